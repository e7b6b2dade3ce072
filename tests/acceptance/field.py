"""Score the splats of a rendered scene in EndoNeRF's layout from raw files, with arithmetic of its own: numpy, OpenCV and scipy.

Visible is what the data set's own masks leave, at the size of the renders, pixels that are tissue all over.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import tifffile
import trimesh
from PIL import Image
from scipy.spatial import cKDTree


def figures(run: Path, source: Path) -> dict[str, float]:
    """PSNR, depth, surface and track errors of a finished run with fuse=splats; PSNR of the mean of the neighbouring kept frames."""
    [field] = (run / "splats").glob("[!.]*")
    [scene_file] = (run / "scene").glob("[!.]*/scene.json")
    frames = json.loads(scene_file.read_text())["frames"]
    held_out = {frame["index"] for frame in frames if frame["is_held_out"]}
    raw = _Raw(source, Image.open(field / "renders" / f"{frames[0]['index']:06d}.png").size)
    found: dict[str, list[float]] = {"psnr": [], "neighbours": [], "visible": [], "hidden": []}
    for index in sorted(held_out):
        picture, tissue, depth = raw.picture(index), raw.tissue(index), raw.depth(index)
        render = np.asarray(Image.open(field / "renders" / f"{index:06d}.png")) / 255
        found["psnr"].append(_psnr(render, picture, tissue))
        before = max((i for i in range(index) if i not in held_out), default=None)
        after = min((i for i in range(index + 1, len(frames)) if i not in held_out), default=None)
        share = 0.5 if None in (before, after) else (index - before) / (after - before)
        ends = [raw.picture(i) for i in (before, after) if i is not None]
        mean = ends[0] if len(ends) == 1 else (1 - share) * ends[0] + share * ends[1]
        best = _psnr(mean, picture, tissue) if len(ends) == 1 else max(_psnr(guess, picture, tissue) for guess in (mean, *ends))
        found["neighbours"].append(best)
        error = np.abs(tifffile.imread(field / "depth" / f"{index:06d}.tiff") - depth)
        found["visible"].append(error[tissue].mean())
        found["hidden"].append(error[raw.instrument(index)].mean())
    surface, tracks = _over_time(field / "meshes", raw)
    psnr = float(np.mean(found["psnr"]))
    return {
        "psnr": psnr,
        "over_neighbours_db": psnr - float(np.mean(found["neighbours"])),
        "depth_visible_mm": float(np.mean(found["visible"])),
        "depth_hidden_mm": float(np.mean(found["hidden"])),
        "surface_mm": surface,
        "track_mm": tracks,
    }


class _Raw:
    """Files of the data set at the size of the renders."""

    def __init__(self, source: Path, size_px: tuple[int, int]) -> None:
        self.source, self.size = source, size_px
        self.images, self.masks = (sorted((source / kind).iterdir()) for kind in ("images", "masks"))

    def picture(self, index: int) -> np.ndarray:
        image = np.asarray(Image.open(self.images[index]).convert("RGB"), dtype=np.float64) / 255
        return cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)

    def _covered(self, index: int) -> np.ndarray:
        mask = (np.asarray(Image.open(self.masks[index]).convert("L")) > 127).astype(np.float64)
        return cv2.resize(mask, self.size, interpolation=cv2.INTER_AREA)

    def tissue(self, index: int) -> np.ndarray:
        return self._covered(index) < 1e-6

    def instrument(self, index: int) -> np.ndarray:
        return self._covered(index) > 1 - 1e-6

    def depth(self, index: int) -> np.ndarray:
        with np.load(self.source / "truth_depth" / f"{index:06d}.npz") as stored:
            return cv2.resize(stored["depth"].astype(np.float64), self.size, interpolation=cv2.INTER_AREA)


def _psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2)[mask].mean()))


def _over_time(meshes: Path, raw: _Raw) -> tuple[float, float]:
    """Mean distance of the surface's vertices to the true surface, and of carried true vertices to where they are, mm."""
    times = sorted(int(file.stem) for file in (raw.source / "truth_mesh").glob("*.npz"))
    truth, ours, distances = {}, {}, []
    for index in times:
        with np.load(raw.source / "truth_mesh" / f"{index:06d}.npz") as stored:
            truth[index] = stored["vertices"].astype(np.float64)
            true_mesh = trimesh.Trimesh(truth[index], stored["faces"], process=False)
        ours[index] = np.asarray(trimesh.load(meshes / f"{index:06d}.ply", process=False).vertices)
        chosen = np.random.default_rng(0).choice(len(ours[index]), min(3000, len(ours[index])), replace=False)
        distances.append(trimesh.proximity.closest_point(true_mesh, ours[index][chosen])[1].mean())
    errors = []
    focal = np.load(raw.source / "poses_bounds.npy")[0, 14]
    for begin in times:
        seen = _visible(raw, focal, begin, truth[begin])
        apart, nearest = cKDTree(ours[begin]).query(truth[begin], k=4)
        weight = 1 / (apart + 1e-6)
        weight /= weight.sum(axis=1, keepdims=True)
        for end in times:
            if end != begin:
                carried = truth[begin] + ((ours[end] - ours[begin])[nearest] * weight[..., None]).sum(axis=1)
                both = seen & _visible(raw, focal, end, truth[end])
                errors.append(np.linalg.norm(carried - truth[end], axis=1)[both].mean())
    return float(np.mean(distances)), float(np.mean(errors))


def _visible(raw: _Raw, focal_px: float, index: int, points: np.ndarray) -> np.ndarray:
    """Points in camera axes that fall on tissue, two pixels of the renders or more from the rim."""
    width, height = raw.size
    full_width, full_height = Image.open(raw.images[index]).size
    x = ((points[:, 0] / points[:, 2] * focal_px + full_width / 2 + 0.5) * width / full_width - 0.5).round().astype(int)
    y = ((points[:, 1] / points[:, 2] * focal_px + full_height / 2 + 0.5) * height / full_height - 0.5).round().astype(int)
    inside = (x > 1) & (y > 1) & (x < width - 2) & (y < height - 2)
    return inside & raw.tissue(index)[y.clip(0, height - 1), x.clip(0, width - 1)]
