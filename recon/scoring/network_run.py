"""The other end of `recon.scoring.networks`: one network over the frames of recordings, in a process that does nothing else.

What stays of it: per recording, `NNNNNN.tiff` (z-depth as the network gives it, on the picture's own aspect) and a line of
`frames.jsonl` for every frame, with the seconds that its inference took and the peak memory of the process until then. Both are
written frame by frame, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from recon.data import open_sequence
from recon.geometry.cameras import usable_mask
from recon.geometry.fit import default_camera
from recon.image.scope import NUM_FRAMES, find_scope_mask
from recon.io.atomic import read_json
from recon.io.depth import write_depth
from recon.models import DepthEstimate, DepthModel, load_depth_model
from recon.types import Camera, FrameError, FrameSequence, ReconError

DEFAULT_FOV_DEG = 75.0
"""Horizontal, of a lens that nobody calibrated; as the camera stage assumes."""
LOG = "frames.jsonl"
Picture = tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]


def main(task: str) -> int:
    """Carry out a task file. A foreseen failure is one JSON line on standard output, with the exit code that it asks for."""
    try:
        run(read_json(task))
    except ReconError as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}), flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def run(task: dict[str, Any]) -> None:
    """Predict what is missing of every recording of a task, as `recon.scoring.networks` writes it.

    Raises ReconError for weights that do not fit and for recordings that cannot be opened.
    """
    torch.set_num_threads(task["threads"])
    model = load_depth_model(task["model"], task["device"], None if task["weights"] is None else Path(task["weights"]))
    for recording in task["recordings"]:
        sequence = open_sequence(recording["path"], recording["dataset"])
        _predict(model, sequence, recording["missing"], Path(recording["folder"]))


def _predict(model: DepthModel, sequence: FrameSequence, missing: Sequence[int], folder: Path) -> None:
    scope, parent = scope_of(sequence), os.getppid()

    def picture(index: int) -> Picture | None:
        try:
            image = sequence.frames[index].image()
        except FrameError:
            return None
        # Single views of a collection may have other sizes than those that the scope was found in.
        return image, scope if scope.shape == image.shape[:2] else np.ones(image.shape[:2], bool)

    infer_video = getattr(model, "infer_video", None)
    if infer_video is not None and not sequence.is_unrelated:
        found = _video_estimates(infer_video, sequence, missing, picture)
    else:
        found = _estimates(model, sequence, missing, picture)
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write("\n")  # a killed process may have left half a line
        for index, estimate, seconds in found:
            if estimate is not None:
                write_depth(folder / f"{index:06d}.tiff", estimate.depth)
            row = {"index": index, "seconds": seconds, "peak_memory_mb": peak_memory_mb(), "gpu_memory_mb": _gpu_memory_mb()}
            log.write(json.dumps(row) + "\n")
            log.flush()
            if os.getppid() != parent:
                raise SystemExit(1)  # nobody waits for the rest, and the next call may be writing it already


def _estimates(
    model: DepthModel, sequence: FrameSequence, missing: Sequence[int], picture: Callable[[int], Picture | None]
) -> Iterator[tuple[int, DepthEstimate | None, float | None]]:
    """Each frame by itself. The first picture is seen twice: what a library sets up once is no property of a frame."""
    is_warm = False
    for index in missing:
        seen = picture(index)
        if seen is None:
            yield index, None, None
            continue
        camera = camera_of(sequence, index, seen[0])
        mask = seen[1] & usable_mask(camera)
        if not is_warm:
            model.infer(seen[0], camera, mask)
            is_warm = True
        start = time.perf_counter()
        estimate = model.infer(seen[0], camera, mask)
        yield index, estimate, time.perf_counter() - start


def _video_estimates(
    infer_video: Callable[[Iterable[Picture], Camera], Iterator[DepthEstimate]],
    sequence: FrameSequence,
    missing: Sequence[int],
    picture: Callable[[int], Picture | None],
) -> Iterator[tuple[int, DepthEstimate | None, float | None]]:
    """A network of windows sees every frame from the first missing one to the last; each is charged the mean time until then,
    since a window's first frame waits for all of it."""
    wanted, seen, waited = set(missing), [], 0.0

    def fed() -> Iterator[Picture]:
        nonlocal waited
        for index in range(min(wanted), max(wanted) + 1):
            start = time.perf_counter()
            one = picture(index)
            waited += time.perf_counter() - start
            if one is not None:
                seen.append(index)
                yield one

    first = next((one for index in missing if (one := picture(index)) is not None), None)
    start = time.perf_counter()
    if first is not None:
        for position, estimate in enumerate(infer_video(fed(), camera_of(sequence, missing[0], first[0]))):
            if seen[position] not in wanted:
                continue
            reached = time.perf_counter()
            yield seen[position], estimate, (reached - start - waited) / (position + 1)
            # What the caller does with a frame is none of the network's time.
            waited += time.perf_counter() - reached
    for index in sorted(wanted - set(seen)):
        yield index, None, None


def scope_of(sequence: FrameSequence) -> Bool[np.ndarray, "h w"]:
    """The scope's field, from frames spread over the recording; of the size that most of them have, all True where none decodes.

    Instruments and highlights are left to the networks: published protocols ask for every pixel with truth.
    """
    images = []
    for index in np.unique(np.linspace(0, len(sequence.frames) - 1, NUM_FRAMES).round().astype(int)):
        try:
            images.append(sequence.frames[index].image())
        except FrameError:
            continue
    shapes = [image.shape for image in images]
    common = max(shapes, key=shapes.count, default=None)
    return np.ones((1, 1), bool) if common is None else find_scope_mask(image for image in images if image.shape == common)


def camera_of(sequence: FrameSequence, index: int, image: UInt8[np.ndarray, "h w 3"]) -> Camera:
    """The lens of a frame as its data set has it, else an assumed one."""
    own = sequence.frame_camera(index) if sequence.frame_camera is not None else None
    return own or sequence.camera or default_camera(image.shape[1], image.shape[0], float(np.deg2rad(DEFAULT_FOV_DEG)))


def peak_memory_mb() -> float:
    """Peak resident memory of this program so far, in 10^6 bytes.

    Linux counts the peak of whoever started a process into `getrusage`, which would give a small network that of its caller;
    the high-water mark in /proc is the program's own.
    """
    try:
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return kilobytes * 1024 / 1e6


def _gpu_memory_mb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_initialized() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
