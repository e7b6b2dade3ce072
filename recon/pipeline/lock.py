"""One process at a time in a run folder.

The operating system drops the lock with its holder, so a killed run never blocks the next one; what the file says
(pid, host, start) is for the message to whoever is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recon.types import ReconError


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold `RUN/.lock`. Raises ReconError naming the holder's pid and host when another process has it."""
    path = run / ".lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ReconError(f"{run}: cannot write there ({error.strerror}): give another folder with --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some network disks say the latter
            raise ReconError(f"{run} is in use by {_holder(path)}: wait for it, or give another --out", exit_code=1) from None
        except OSError as error:
            raise ReconError(f"{run}: its disk keeps no file locks ({error.strerror}): give a folder on another disk with --out") from error
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": time.strftime("%Y-%m-%dT%H:%M:%S%z")}))
        try:
            yield
        finally:
            _write(file, "")


def _write(file, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    except (OSError, ValueError, KeyError):
        return "another process that has not yet said who it is"
