"""Length units in which other programs write, and what they are in millimetres."""

from __future__ import annotations

from typing import Literal

LengthUnit = Literal["mm", "cm", "m", "unitless"]

MM_PER_UNIT: dict[str, float] = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Without "unitless": what has no unit is multiplied by nothing."""
