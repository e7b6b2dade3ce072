"""What the names of numbered files say: their order and their number."""

from __future__ import annotations

import re
from pathlib import Path


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts `2.png` before `10.png`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def last_number(name: str) -> int | None:
    """The last run of digits of a file name without its suffix; None when it has none."""
    digits = re.findall(r"\d+", Path(name).stem)
    return int(digits[-1]) if digits else None
