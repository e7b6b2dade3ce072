"""The recording as an artifact without a stage: `RUN/source/<key>/source.json`, keyed by the recording's content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recon.io.atomic import write_json
from recon.pipeline.stage import SOURCE
from recon.pipeline.store import file_checksum, recipe_key
from recon.types import ReconError

CHECKSUMS = ".source-checksums.json"


@dataclass(frozen=True)
class Source:
    """What the user pointed at. Paths are absolute."""

    path: str
    """A file, a folder, or a phantom specification such as "phantom:tube?seed=3"."""
    dataset: str | None = None
    camera_file: str | None = None
    masks_dir: str | None = None


class Checksums:
    """Checksums of files, remembered by path, size and time of change so that a second run need not read them."""

    def __init__(self, run: Path) -> None:
        self._run = run.resolve()
        self._file = run / CHECKSUMS
        self._known = _remembered(self._file)

    def save(self) -> None:
        """Keep what was learnt, in the run folder."""
        write_json(self._file, self._known)

    def of(self, path: Path) -> str:
        """SHA-256 of a file's content, or of the names and contents of all visible files in a folder."""
        try:
            if path.is_file():
                return self._of_file(path)
            digest = hashlib.sha256()
            for file in sorted(self._visible_files(path)):
                digest.update(f"{file.relative_to(path).as_posix()}\0{self._of_file(file)}\n".encode())
            return digest.hexdigest()
        except OSError as error:
            raise ReconError(f"{error.filename or path}: cannot be read ({error.strerror})") from error

    def _of_file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if known is None or known[:2] != stamp:
            known = self._known[str(path)] = [*stamp, file_checksum(path)]
        return known[2]

    def _visible_files(self, folder: Path) -> Iterator[Path]:
        """Walk through links too, but never into a loop and never into the run folder."""
        seen = {self._run}
        for parent, children, names in os.walk(folder, followlinks=True, onerror=_raise):
            real = Path(parent).resolve()
            if real in seen:
                children.clear()
                continue
            seen.add(real)
            children[:] = sorted(name for name in children if not name.startswith("."))
            paths = (Path(parent) / name for name in names if not name.startswith("."))
            yield from (path for path in paths if path.is_file())


def source_key(source: Source, checksums: Checksums, generator_version: int | str | None = None) -> str:
    """Name a recording by its content. A rendered one has none yet: its specification and `generator_version` stand for it."""
    rendered = generator_version is not None
    recipe = {
        "content": [source.path, generator_version] if rendered else checksums.of(Path(source.path)),
        "dataset": source.dataset,
        "camera": checksums.of(Path(source.camera_file)) if source.camera_file else None,
        "masks": checksums.of(Path(source.masks_dir)) if source.masks_dir else None,
    }
    return recipe_key(recipe)


def source_folder(run: Path, key: str) -> Path:
    """Where `source.json` of the recording with this key lies."""
    return run / SOURCE / key


def write_source(folder: Path, source: Source) -> None:
    """Write `source.json`. The same content may have moved, so the newest path counts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "source.json", asdict(source))


def _remembered(file: Path) -> dict[str, list[Any]]:
    """A memory only: without it, or with something else in its place, everything is read once more."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 3} if isinstance(known, dict) else {}


def _raise(error: OSError) -> None:
    raise error
