"""The verb doctor: what this machine can and cannot run, and whether the files of a run are whole."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from rich.table import Table

from recon.cli import system_libraries
from recon.cli.results import check_is_run, stdout
from recon.parallel import num_processors
from recon.pipeline import store
from recon.types import ReconError
from stages import PIPELINE

MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL"}
"""Import names that differ from the package's."""
DECODERS = ("h264", "hevc", "mpeg4", "mjpeg", "vp9", "av1", "ffv1")
LEAST_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class _Finding:
    subject: str
    state: str
    is_fine: bool = True


def doctor(arguments: argparse.Namespace) -> int:
    """Report on the machine, or on a run. Returns 1 when something needed is missing or a file is damaged."""
    findings = list(_run_findings(arguments.run) if arguments.run else _machine_findings())
    table = Table("", "subject", "state", header_style="")
    for finding in findings:
        table.add_row("ok" if finding.is_fine else "BAD", finding.subject, finding.state)
    stdout.print(table)
    return 0 if all(finding.is_fine for finding in findings) else 1


def _run_findings(run: Path) -> Iterator[_Finding]:
    check_is_run(run)
    for folder in store.artifacts(run, PIPELINE):
        if folder.name.startswith("."):
            yield _Finding(str(folder), "unfinished; the same command continues it")
            continue
        try:
            damaged = store.damaged_files(folder)
        except ReconError as error:
            yield _Finding(str(folder), str(error), is_fine=False)
            continue
        remedy = f"damaged: {', '.join(damaged[:3])} ({len(damaged)} files); delete this folder and run again"
        yield _Finding(str(folder), remedy if damaged else "whole", not damaged)


def _machine_findings() -> Iterator[_Finding]:
    yield _Finding("python", f"{platform.python_version()} on {platform.platform()}")
    missing = system_libraries.missing()
    state = f"missing {', '.join(missing)}: {system_libraries.remedy(missing)}" if missing else "all there"
    yield _Finding("system libraries", state, not missing)
    for package in _required_packages():
        yield _package(package)
    yield _torch()
    yield _Finding("processors", f"{num_processors()} usable of {os.cpu_count()}")
    yield _memory()
    free = shutil.disk_usage(".").free
    yield _Finding("disk here", f"{free / 1e9:.1f} GB free", free > LEAST_FREE_BYTES)
    yield _decoders()
    yield from _weights()


def _required_packages() -> list[str]:
    try:
        requirements = metadata.requires("endorecon") or []
    except metadata.PackageNotFoundError:
        raise ReconError("the package endorecon is not installed: run `make install`", exit_code=1) from None
    names = [requirement.split(";")[0].strip() for requirement in requirements if "extra ==" not in requirement]
    return sorted(name.split("[")[0].split(">")[0].split("<")[0].split("=")[0].split("!")[0].strip() for name in names)


def _package(package: str) -> _Finding:
    try:
        import_module(MODULES.get(package, package))
        return _Finding(package, metadata.version(package))
    except Exception as error:  # a package can fail to load in any way at all; that is what is asked here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _Finding(package, f"cannot be loaded ({reason}): run `make install`", is_fine=False)


def _torch() -> _Finding:
    try:
        import torch
    except (ImportError, OSError):  # already told among the packages
        return _Finding("device", "unknown without torch", is_fine=False)
    if torch.cuda.is_available():
        return _Finding("device", f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name()}")
    return _Finding("device", f"CPU, {torch.get_num_threads()} threads (no GPU is needed)")


def _memory() -> _Finding:
    pages = {name: os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES")}
    total, free = (pages["SC_PAGE_SIZE"] * pages[name] / 1e9 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return _Finding("memory", f"{total:.1f} GB, {free:.1f} GB free at once", total > 3)


def _decoders() -> _Finding:
    try:
        import av
    except (ImportError, OSError):
        return _Finding("video decoders", "none without av", is_fine=False)
    names = [name for name in DECODERS if name in av.codecs_available]
    return _Finding("video decoders", f"{', '.join(names)} (FFmpeg in av {av.__version__})", "h264" in names)


def _weights() -> Iterator[_Finding]:
    from recon.models import registry

    for name, model in registry().items():
        if model.packaged is None and model.published is not None:
            continue  # its weights are given with each run, or never
        try:
            checksum = model.checksum()
        except ReconError as error:
            yield _Finding(f"network {name}", str(error), is_fine=False)
            continue
        yield _Finding(f"network {name}", f"weights whole, SHA-256 {checksum[:12]}" if checksum else "needs no weights")
