"""How fast surfaces and depth maps are scored: two figures, printed, never a test.

Surfaces: a million samples a side between two bumpy tubes of 200 000 triangles, and the same points (or, as that takes
minutes, the first of them) through trimesh. Depth: as many maps as SCARED's test set has, of its size, four alignments.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import trimesh

from recon.eval.depth import score_depth
from recon.eval.depth_frames import DepthPair
from recon.eval.distances import Surface, sample_surface
from recon.eval.protocols import PROTOCOLS
from recon.types import Mesh

TUBE = (500, 200)
"""Rings along and corners around: two triangles for each."""
NUM_SAMPLES = 1_000_000
NUM_TRIMESH = 20_000
NUM_MAPS, MAP_SIZE = 551, (1024, 1280)
NUM_DISTINCT_MAPS = 8
"""Kept in memory; the others repeat them, for making maps is not what is measured."""


def tube(bump_mm: float, seed: int) -> Mesh:
    """A closed-around, open-ended tube 100 mm long and 40 mm wide, with smooth bumps and a little noise."""
    along, around = np.meshgrid(np.arange(TUBE[0] + 1), np.arange(TUBE[1]), indexing="ij")
    angle, z = 2 * np.pi * around / TUBE[1], 100.0 * along / TUBE[0]
    noise = np.random.default_rng(seed).normal(size=angle.shape)
    radius = 20.0 + bump_mm * np.sin(0.5 * z) * np.cos(3 * angle) + 0.05 * noise
    vertices = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1).reshape(-1, 3)
    first = (along[:-1] * TUBE[1] + around[:-1]).reshape(-1)
    beside = (along[:-1] * TUBE[1] + (around[:-1] + 1) % TUBE[1]).reshape(-1)
    faces = np.concatenate([np.stack([first, beside, first + TUBE[1]], 1), np.stack([beside, beside + TUBE[1], first + TUBE[1]], 1)])
    return Mesh(vertices, faces, unit="mm")


class Stopwatch:
    """Wall and processor seconds, all threads, since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def bench_surface(num_trimesh: int) -> None:
    meshes = tube(1.5, 0), tube(1.0, 1)
    watch = Stopwatch()
    points = [sample_surface(mesh, NUM_SAMPLES, 0).points for mesh in meshes]
    sampling, _ = watch()
    ours = [Surface(mesh).distances(p) for mesh, p in zip(meshes[::-1], points, strict=True)]
    seconds, processor = watch()
    what = f"{NUM_SAMPLES} samples a side, {len(meshes[0].faces)} triangles, both directions, sampling and building included"
    print(f"surface: {seconds:.2f} s ({processor:.2f} s of processor) for {what}; goal: under 10 s")

    building, querying, worst = 0.0, 0.0, 0.0
    for mesh, all_points, mine in zip(meshes[::-1], points, ours, strict=True):
        watch, chosen = Stopwatch(), all_points[:num_trimesh]
        query = trimesh.proximity.ProximityQuery(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
        query.on_surface(chosen[:1])  # builds the tree
        built = watch()[0]
        # In pieces: trimesh holds all candidates of all points at once.
        theirs = np.concatenate([query.on_surface(piece)[1] for piece in np.array_split(chosen, max(1, num_trimesh // 10_000))])
        building, querying = building + built, querying + watch()[0] - built
        worst = max(worst, float(np.abs(theirs - mine[:num_trimesh]).max()))
    whole = building + querying * NUM_SAMPLES / num_trimesh
    how = "measured" if num_trimesh == NUM_SAMPLES else f"from {num_trimesh} of the same points a side, {building + querying:.1f} s"
    ratio = whole / (seconds - sampling)
    print(
        f"surface: trimesh.proximity takes {whole:.0f} s ({how}), {ratio:.0f} times the {seconds - sampling:.2f} s here; goal: at least 20"
    )
    print(f"surface: the distances differ by at most {worst:.2g} mm")


def depth_pairs() -> list[DepthPair]:
    """Smooth truth with holes, and predictions of another scale with smooth and pixel-wise errors."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(0, 1, MAP_SIZE[0]), np.linspace(0, 1, MAP_SIZE[1]), indexing="ij")
    pairs = []
    for k in range(NUM_DISTINCT_MAPS):
        gt = 60 + 30 * np.sin(3 * x + k) + 20 * np.cos(4 * y)
        pred = gt * (0.9 + 0.02 * k + 0.05 * np.sin(9 * x)) + rng.normal(size=gt.shape)
        gt[rng.random(gt.shape) < 0.1] = 0
        pairs.append(DepthPair(pred.astype(np.float32), gt.astype(np.float32)))
    return pairs


def bench_depth() -> None:
    pairs = depth_pairs()
    watch = Stopwatch()
    score = score_depth(range(NUM_MAPS), lambda index: pairs[index % NUM_DISTINCT_MAPS], PROTOCOLS["endorecon"], unit="mm", is_metric=True)
    seconds, processor = watch()
    alignments = sorted({metric.alignment for metric in score.metrics})
    what = f"{NUM_MAPS} maps of {MAP_SIZE[1]}x{MAP_SIZE[0]}, {len(score.metrics)} figures ({', '.join(alignments)})"
    print(f"depth: {seconds:.1f} s ({processor:.1f} s of processor) for {what}; goal: under 60 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all-points", action="store_true", help="give trimesh every point (many minutes)")
    arguments = parser.parse_args()
    bench_surface(NUM_SAMPLES if arguments.all_points else NUM_TRIMESH)
    bench_depth()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
