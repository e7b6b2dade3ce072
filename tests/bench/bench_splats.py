"""How long the processor's rasteriser takes: 20 thousand Gaussians at 160x128, forward and backward, and one step of training.

Printed, never a test. Best of several, since whatever else runs on the machine only ever slows it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch loads

import torch

from recon.fields.splats.projection import Pinhole
from recon.fields.splats.rasterize import Splats, rasterize

NUM, WIDTH, HEIGHT = 20_000, 160, 128
GOAL_MS = 35.0


def sheet() -> tuple[list[torch.Tensor], Pinhole]:
    """Gaussians about a pixel apart on an uneven sheet, as training begins with."""
    generator = torch.Generator().manual_seed(0)
    focal = 142.0
    xy = (torch.rand(NUM, 2, generator=generator) - 0.5) * torch.tensor([WIDTH, HEIGHT]) / focal * 1.05
    means = torch.cat([xy, 1 + 0.05 * torch.rand(NUM, 1, generator=generator)], dim=1)
    quaternions = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.3 * torch.randn(NUM, 4, generator=generator), dim=1)
    scales = 0.6 / focal * torch.exp(0.3 * torch.randn(NUM, 3, generator=generator))
    opacities = 0.5 + 0.4 * torch.rand(NUM, generator=generator)
    parts = [means, quaternions, scales, opacities, torch.rand(NUM, 3, generator=generator)]
    return [part.requires_grad_() for part in parts], Pinhole(focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, WIDTH, HEIGHT)


def best_ms(work: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of the fastest of several calls; the first compiles."""
    work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return 1e3 * min(found)


def main() -> None:
    parts, camera = sheet()
    slope = torch.randn(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))

    def forward() -> torch.Tensor:
        return rasterize(Splats(*parts), torch.eye(4), camera).features

    def both() -> None:
        (forward() * slope).sum().backward()

    with torch.no_grad():
        alone = best_ms(forward)
    together = best_ms(both)
    print(f"{NUM} Gaussians at {WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads, projection included")
    print(f"forward {alone:.1f} ms; forward and backward {together:.1f} ms; goal: at most {GOAL_MS:g} ms")


if __name__ == "__main__":
    main()
