"""What a stage cost and with which versions it ran, and one seed for every random generator of the process."""

from __future__ import annotations

import platform
import random
import resource
import sys
from importlib import metadata

import numpy as np

PACKAGES = (
    "endorecon",
    "torch",
    "numpy",
    "scipy",
    "open3d",
    "pycolmap",
    "kornia",
    "trimesh",
    "av",
    "pillow",
    "opencv-python-headless",
    "numba",
    "gsplat",
    "nerfstudio",
)
"""Those that can change a result."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and, where it is loaded, torch, so that a stage does not depend on what ran before it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in 10^6 bytes: for a stage, an upper bound of what it needed itself."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
