"""How fast depth is estimated and in how much memory: the shipped student beside EndoDAC, in one process, printed, never a test.

EndoDAC has its published size (ViT-B, 280x224 px) and random weights: speed does not depend on them. Both see one picture of
320x256 px. First the student alone, since the peak of the memory only grows.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recon.io.depth import write_depth
from recon.models import load_depth_model
from recon.models.adapters import merge
from recon.models.endodac import EndoDAC
from recon.models.inference import ENDOSCOPIC_PX, PictureDepth, Reading, depth_of_sigmoid
from recon.models.student import INPUTS
from recon.models.windows import consistent_depth
from recon.types import Camera

WIDTH_PX, HEIGHT_PX = ENDOSCOPIC_PX
CAMERA = Camera("PINHOLE", WIDTH_PX, HEIGHT_PX, (230.0, 230.0, (WIDTH_PX - 1) / 2, (HEIGHT_PX - 1) / 2))
BATCH = 8
NUM_STREAMED = 1000


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def bench_streaming(model, image: np.ndarray, mask: np.ndarray) -> None:
    """Depth of many frames, evened out, to disk."""
    with tempfile.TemporaryDirectory() as folder:
        for index, estimate in consistent_depth(range(NUM_STREAMED), lambda index: model.infer(image, CAMERA, mask), False):
            write_depth(Path(folder) / f"{index:06d}.tiff", estimate.depth)
            if index == NUM_STREAMED // 10:
                after_tenth = peak_gib()
    grown = 1024 * (peak_gib() - after_tenth)
    print(f"streaming: {NUM_STREAMED} frames to disk, peak memory grew by {grown:.0f} MiB after the first tenth; goal: none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="calls whose median is taken")
    parser.add_argument("--no-streaming", action="store_true", help="leave out the thousand frames")
    arguments = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    mask = np.ones((HEIGHT_PX, WIDTH_PX), bool)
    print(f"{torch.get_num_threads()} threads, pictures of {WIDTH_PX}x{HEIGHT_PX}")

    student = load_depth_model("student")
    small = milliseconds(lambda: student.infer(image, CAMERA, mask), arguments.repeats)
    print(f"student: {small:.1f} ms a frame, from picture to depth")
    with torch.inference_mode():
        for size in (1, BATCH):
            for layout in (torch.contiguous_format, torch.channels_last):
                network = student.network.to(memory_format=layout)
                seen = torch.rand(size, INPUTS, HEIGHT_PX, WIDTH_PX).contiguous(memory_format=layout)
                each = milliseconds(lambda: network(seen), arguments.repeats) / size  # noqa: B023
                print(f"student: {each:.1f} ms a frame for the network alone at {WIDTH_PX}x{HEIGHT_PX}, {size} at a time, {layout}")
    if not arguments.no_streaming:
        bench_streaming(student, image, mask)
    print(f"student: peak memory {peak_gib():.2f} GiB; goal: under 1.5 GiB")

    network = EndoDAC()
    merge(network)
    endodac = PictureDepth(network, lambda outputs: outputs[0], Reading(lambda width, height: ENDOSCOPIC_PX, depth_of_sigmoid), "cpu")
    large = milliseconds(lambda: endodac.infer(image, CAMERA, mask), max(arguments.repeats // 4, 3))
    print(f"EndoDAC: {large:.0f} ms a frame, from picture to depth: {large / small:.0f} times the student's; goal: at least 20")
    print(f"EndoDAC: peak memory {peak_gib():.2f} GiB; goal: under 1.5 GiB")


if __name__ == "__main__":
    main()
