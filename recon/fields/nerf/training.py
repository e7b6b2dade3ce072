"""Train the NeRF of a scene folder and render views of it, by nerfstudio in a process of its own.

Nerfstudio pins old libraries, downloads weights and loads files that may run code: none of it is imported here. The child resumes from
its own checkpoint in a folder that this module made and signed with its recipe; any other folder is refused, and nerfstudio's
`config.yml` is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import recon
from recon.fields.nerf.normalisation import normalise
from recon.fields.nerf.settings import NerfSettings
from recon.fields.scene import Scene, read_scene
from recon.io.atomic import read_json, write_json
from recon.types import ReconError

MADE_BY, TASK, LOG, HISTORY = "made_by.json", "task.json", "nerfstudio.log", "history.json"
Watch = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Render:
    """One picture to render: the pose of one frame of the scene, the time of another (positions in `Scene.frames`)."""

    pose_of: int
    time_of: int
    color: Path | None
    """PNG to write, if any."""
    depth: Path | None
    """Depth TIFF to write (z-depth in run units, 0 where no surface is), if any."""

    def as_task(self) -> dict[str, Any]:
        """As the child reads it."""
        paths = {name: None if path is None else str(path) for name, path in (("color", self.color), ("depth", self.depth))}
        return {"pose_of": self.pose_of, "time_of": self.time_of, **paths}


@dataclass(frozen=True)
class Check:
    """How well the NeRF showed its scene at a step."""

    step: int
    """Steps done."""
    psnr: float
    """dB, over tissue of the held-out frames, or of all where none is held out."""
    terms: dict[str, float]
    """Of the loss in that step."""


def train_and_render(
    scene: Path, folder: Path, settings: NerfSettings, views: Sequence[Render], device: str, num_threads: int, watch: Watch
) -> list[Check]:
    """Train in `folder`, going on from what a killed training left there, and write the files of `views` that are missing.

    Args:
        scene: folder that `recon.fields.scene` wrote.
        device: "cpu", "cuda" or "cuda:1".
        num_threads: of the child; 0 means all.
        watch: wraps a loop for progress: (items, total, description).

    Raises ReconError when nerfstudio is absent, for a scene without frames, tissue or depth, for a folder that was
    not made here or for another recipe, and (exit code 1) for a loss that is no number, with its step and term, and when the process ends.
    """
    check_installed()
    trainable_scene(scene)
    _claim(folder, scene, settings)
    task = {
        "scene": str(scene),
        "folder": str(folder),
        "settings": asdict(settings),
        "device": device,
        "threads": num_threads,
        "views": [view.as_task() for view in views],
    }
    write_json(folder / TASK, task)
    checks = {check["step"]: check for check in (read_json(folder / HISTORY) if (folder / HISTORY).exists() else [])}
    total = settings.num_steps + len(views)
    for _ in watch(_progress(folder, checks), total, "training the NeRF"):
        pass
    return [Check(**checks[step]) for step in sorted(checks)]


def check_installed() -> None:
    """Raises ReconError saying how to install what is missing."""
    missing = [name for name in ("nerfstudio", "torchvision") if find_spec(name) is None]
    if missing:
        raise ReconError(
            f"the NeRF needs {' and '.join(missing)}, which is not installed: pip install 'endorecon[nerf]', "
            "or choose another representation, such as fuse=splats"
        )


def trainable_scene(folder: Path) -> Scene:
    """Read a scene. Raises ReconError for one that no NeRF can be made of: too few frames, no tissue, or no depth."""
    scene = read_scene(folder)
    if len(scene.kept) < 2:
        raise ReconError(f"{folder} has {len(scene.kept)} frame to train on; a scene that moves needs at least 2: give more frames")
    if not any(scene.tissue[position].any() for position in scene.kept):
        raise ReconError(f"the masks of {folder} cover all of every frame, so no tissue is left: check what white means in them")
    normalise(scene)
    return scene


def _claim(folder: Path, scene: Path, settings: NerfSettings) -> None:
    """Make the folder ours, or find that it already is, for this scene and these settings."""
    digest = hashlib.sha256()
    for name in ("scene.json", "camera.json", "images.npy", "tissue.npy", "depth.npy"):
        with (scene / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    recipe = asdict(replace(settings, steps_per_save=0))
    made_by = {"program": "endorecon", "scene": digest.hexdigest(), "settings": recipe}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MADE_BY).exists():
        if read_json(folder / MADE_BY) != made_by:
            raise ReconError(f"{folder} holds the training of another scene or of other settings: choose another folder, or move it away")
        return
    if any(path.name != f".part-{MADE_BY}" for path in folder.iterdir()):
        raise ReconError(
            f"{folder} holds files that this program did not write, and a foreign training is never loaded: choose another folder"
        )
    write_json(folder / MADE_BY, made_by)


def _progress(folder: Path, checks: dict[int, dict[str, Any]]) -> Iterator[int]:
    """Run the child; yield once for every step and every view, and collect the checks, on the disk too."""
    # The child must find this very package, wherever the parent has it from.
    paths = [str(Path(recon.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "recon.fields.nerf.child", str(folder / TASK)]
    num_done, error = 0, None
    with (folder / LOG).open("ab") as log, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log) as child:
        try:
            for line in child.stdout:
                said = json.loads(line)
                error = said if "error" in said else error
                if "psnr" in said:
                    checks[said["step"]] = {name: said[name] for name in ("step", "psnr", "terms")}
                    write_json(folder / HISTORY, [checks[step] for step in sorted(checks)])
                reached = said.get("step", num_done + 1)
                yield from range(num_done, reached)  # a continued training begins in the middle
                num_done = max(num_done, reached)
        except BaseException:
            child.terminate()
            raise
    if child.returncode == 130:
        raise KeyboardInterrupt
    if child.returncode:
        raise _failure(folder, child.returncode, error)


def _failure(folder: Path, code: int, said: dict[str, Any] | None) -> Exception:
    if said is not None:
        return ReconError(said["error"], exit_code=said["exit_code"])
    if code < 0:
        name = signal.Signals(-code).name
        hint = "memory may be short; its last checkpoint is kept, and the same command goes on from there"
        return ReconError(f"the NeRF's process was ended by {name}: {hint}", exit_code=1)
    last = (folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    return ReconError(f"the NeRF's process failed ({''.join(last)[:300]}); all that it said is in {folder / LOG}", exit_code=1)
