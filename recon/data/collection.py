"""Which folders below a data set's root are its recordings, so that a whole data set can be scored at once.

A folder that a known layout recognises is a recording and is not searched further. Plain folders of images and videos are not
collected: nothing tells a recording from a folder that only happens to hold pictures.
"""

from __future__ import annotations

import os
from pathlib import Path

from recon.data import DATASETS
from recon.io.names import natural_key
from recon.types import ReconError

MAX_DEPTH = 4
"""Levels below the root: SimCol3D and repacked SCARED need two, unpacked archives often add one or two of their own."""

_UNSPECIFIC = ("phantom", "video", "folder")


def find_sequences(root: str | Path, dataset: str | None = None) -> list[tuple[str, Path]]:
    """Names and folders of all recordings at or below `root`, in natural order.

    A root that is itself a recording is the only one and is named after its folder; the others by their path from the root,
    with slashes. `dataset` restricts the search to one layout. Empty when no known layout is found. A folder reached twice
    through links counts once. Raises ReconError when the root is no folder or a folder cannot be read.
    """
    path = Path(root)
    if dataset is not None and dataset not in DATASETS:
        raise ReconError(f"data set {dataset!r} is not known; known: {', '.join(DATASETS)}")
    if not path.is_dir():
        raise ReconError(f"{root} is not a folder; give the root of a data set or one of its recordings")
    names = [name for name in DATASETS if name not in _UNSPECIFIC] if dataset is None else [dataset]
    found: list[Path] = []
    _search(path, names, MAX_DEPTH, found, set())
    return [(path.resolve().name if folder == path else folder.relative_to(path).as_posix(), folder) for folder in found]


def _search(folder: Path, names: list[str], levels: int, found: list[Path], visited: set[Path]) -> None:
    place = folder.resolve()
    if place in visited:
        return
    visited.add(place)
    try:
        if any(DATASETS[name].matches(folder) for name in names):
            found.append(folder)
            return
        with os.scandir(folder) as entries:
            below = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")] if levels else []
    except OSError as error:
        raise ReconError(f"{folder} cannot be read: {error.strerror}") from error
    for name in sorted(below, key=lambda name: (natural_key(name), name)):
        _search(folder / name, names, levels - 1, found, visited)
