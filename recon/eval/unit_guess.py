"""Whether two lengths differ by a factor that looks like a unit mistaken for another."""

from __future__ import annotations

FACTORS = {
    1000.0: "metres against millimetres",
    100.0: "metres against centimetres",
    10.0: "centimetres against millimetres",
    0.1: "millimetres against centimetres",
    0.01: "centimetres against metres",
    0.001: "millimetres against metres",
}
TOLERANCE = 0.2
"""A factor that is nearer than this share to a power of ten looks like another unit."""


def unit_notes(group: str, factor: float) -> list[str]:
    """A note when `factor`, true over predicted length, looks like another unit; else nothing."""
    found = (units for power, units in FACTORS.items() if abs(factor / power - 1) <= TOLERANCE)
    return [f"{group}: truth is {factor:.4g} times the prediction: looks like {units}; declare the prediction's unit" for units in found]
