"""Shared libraries that pip cannot bring. Needs the standard library alone, since it also runs before installation."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys

DEBIAN_PACKAGES = {"libusb-1.0.so.0": "libusb-1.0-0", "libGL.so.1": "libgl1", "libgomp.so.1": "libgomp1", "libX11.so.6": "libx11-6"}
"""What Open3D links against, and the Debian package that has it."""


def missing() -> list[str]:
    """Name the libraries that the loader does not find."""
    return [name for name in DEBIAN_PACKAGES if not _loads(name)]


def remedy(names: list[str]) -> str:
    """Say in one line how to install them."""
    if shutil.which("apt-get") is None:
        return f"install {', '.join(names)} with your system's package manager"
    packages = " ".join(DEBIAN_PACKAGES[name] for name in names)
    command = f"apt-get update && apt-get install -y --no-install-recommends {packages}"
    return command if os.geteuid() == 0 else f"sudo sh -c {shlex.quote(command)}"


def main() -> int:
    """Install what is missing when that is ours to do, else say how."""
    names = missing()
    if names and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing system libraries:", ", ".join(names), flush=True)
        subprocess.run(["sh", "-c", remedy(names)], check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        names = missing()
    if names:
        print(f"missing system libraries: {', '.join(names)}; install them with: {remedy(names)}", file=sys.stderr)
    return 1 if names else 0


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
