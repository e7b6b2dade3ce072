"""How files come into being: whole or not at all under their final name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recon.types import ReconError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is flushed and renamed to `path`.

    The temporary name keeps the suffix, since many writers choose their format by it, and is the same in every process, so
    that a continued job replaces what a killed one left. Raises ReconError when the disk refuses (exit code 2) or fails (1).
    """
    path = Path(path)
    part = path.with_name(f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _flush(part)
        os.replace(part, path)
    except OSError as error:
        _discard(part)
        if error.errno is None or (error.filename is not None and not _is_ours(error.filename, path)):
            raise
        raise _write_error(path, error) from error
    except BaseException:
        _discard(part)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON in the order given; refuses NaN and infinity, which JSON does not know."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Raises ReconError naming the file when it is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReconError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReconError(f"{path} is not valid JSON: {error}") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError as error:
        # The disk that refused the write refuses this too; the first error is the one to report.
        if error.errno not in (*_REFUSED, errno.EIO, errno.ENOTDIR):
            raise


def _is_ours(filename: str | bytes, path: Path) -> bool:
    name = Path(os.fsdecode(filename))
    return name.parent == path.parent or name in path.parents


def _write_error(path: Path, error: OSError) -> ReconError:
    if error.errno in _REFUSED or error.errno == errno.ENOTDIR:
        return ReconError(f"{path} cannot be written: {error.strerror}; choose an output folder that is writable")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ReconError(f"{path} cannot be written: {error.strerror}; free some space and run the same command again", exit_code=1)
    return ReconError(f"{path} cannot be written: {error.strerror}", exit_code=1)
