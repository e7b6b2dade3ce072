"""How the numeric libraries behave, decided here alone: how many threads, the same result each time, no chatter."""

from __future__ import annotations

import os
import re
import signal
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon.pipeline.config import Settings

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


def limit_threads(config: Path | None, overrides: Sequence[str]) -> None:
    """Tell libraries that are not loaded yet; BLAS and OpenMP read these variables only once.

    Called before anything imports NumPy, so it looks for `num_threads` alone and leaves every complaint about the
    config to the reading of the config. Threads that wait must sleep: left to spin, they take the processor from the
    very thread they wait for as soon as anything else runs on the machine, which was measured to cost a factor of 40.
    OpenBLAS cannot be told to sleep, and matrices are small here: two threads of it took 17 times as long as one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = [word.partition("=")[2] for word in overrides if word.startswith("num_threads=")]
    value = words[-1] if words else _in_file(config)
    if value and re.fullmatch("[1-9][0-9]*", value):
        os.environ.update(dict.fromkeys(_VARIABLES, value))


def configure_libraries(settings: Settings) -> None:
    """Set threads, reproducible arithmetic and silence. Raises ReconError for a device that is not there."""
    import cv2
    import open3d
    import pycolmap
    import torch

    from recon.types import ReconError

    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
        cv2.setNumThreads(settings.num_threads)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pycolmap would print a stack of C++ frames for it
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if settings.device != "auto":
        try:
            torch.empty(0, device=settings.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ReconError(f'device {settings.device!r} cannot be used here ({reason}): give device="auto" or "cpu"') from error


def _in_file(config: Path | None) -> str:
    if config is None:
        return ""
    try:
        return str(tomllib.loads(config.read_text()).get("num_threads", ""))
    except (OSError, ValueError):  # said properly when the config is read
        return ""
