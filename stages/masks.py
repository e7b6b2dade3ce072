"""Masks and gate: which pixels show tissue, and which frames are good enough to use.

`tissue/` leaves out what lies outside the scope's field and instruments; `masks/` leaves out highlights too, which move
with the lamp and mislead matching, while a network that was trained on highlights looks through them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from recon.data import open_source
from recon.data.masks import MaskOf, instruments_of, scaled_mask, white_masks
from recon.geometry.cameras import usable_mask
from recon.image.cuts import CutFinder
from recon.image.highlights import highlight_mask
from recon.image.instruments import Polarity, judge_polarity
from recon.image.quality import GateLimits, Quality, measure_quality, rejections, unseen_reason
from recon.image.scope import NUM_FRAMES, dark_rim, find_scope_mask
from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.images import read_image
from recon.io.masks import read_mask, write_mask
from recon.pipeline import Stage, track
from recon.types import ReconError, bounded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(GateLimits):
    """What is masked, and the limits of the gate."""

    highlights: bool = True
    """Mask specular highlights."""
    polarity: Literal["auto", "instrument", "tissue"] = "auto"
    """What white means in masks given with --masks; "auto" lets the images decide. A data set's own masks are known."""
    instrument_margin_share: float = bounded(0.008, 0.0, 0.5)
    """Of the shorter side, added around instruments for their shadow and motion blur."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `scope.png`, two masks per decoded frame, and `gate.json`."""
    frames = read_json(inputs["frames"] / "frames.json")
    decoded = [entry for entry in frames["frames"] if entry["file"]]
    spread = decoded[:: max(1, -(-len(decoded) // NUM_FRAMES))]
    scope = find_scope_mask(read_image(inputs["frames"] / entry["file"]) for entry in spread)
    scope &= usable_mask(read_camera(inputs["camera"] / "camera.json"))
    if not scope.any():
        raise ReconError(f"{frames['name']}: the lens in camera.json reaches no pixel inside the scope's field; check the camera file")
    write_mask(out / "scope.png", scope)

    sequence = open_source(inputs["source"])
    is_users = read_json(inputs["source"] / "source.json").get("masks_dir") is not None
    white_of = white_masks(sequence, (frames["source_width_px"], frames["source_height_px"]))
    polarity = _polarity(white_of, spread, inputs["frames"], scope, config) if is_users else None
    instruments = instruments_of(white_of, polarity is not None and polarity.white == "tissue")
    if is_users and not any(_covers_something(instruments(entry["index"])) for entry in decoded):
        log.warning("masks: those given with --masks cover 0% of every frame; are they the right files, and is their white above 0?")
    finder = CutFinder()
    qualities = [
        _mask_frame(inputs["frames"] / entry["file"], out, entry["index"], scope, instruments(entry["index"]), config, finder)
        for entry in track(decoded, len(decoded), "masking frames")
    ]
    reasons = rejections(qualities, config)
    gate = {entry["index"]: (quality, reason) for entry, quality, reason in zip(decoded, qualities, reasons, strict=True)}
    write_json(
        out / "gate.json",
        {
            "scope_share": float(scope.mean()),
            "instruments": None if sequence.instrument_mask is None else asdict(polarity) if polarity else {"white": "instrument"},
            "cuts": [] if frames["is_unrelated"] else finder.cuts(),
            "frames": [_gate_entry(entry, *gate.get(entry["index"], (None, entry["reason"]))) for entry in frames["frames"]],
        },
    )


def _mask_frame(
    image_path: Path, out: Path, index: int, scope: np.ndarray, instruments: np.ndarray | None, config: Config, finder: CutFinder
) -> Quality:
    """Write the frame's masks unless a killed run left them, and score the frame inside the stricter one.

    A frame in which something can be seen is shown to the finder of cuts.
    """
    image = read_image(image_path)
    tissue_path, mask_path = (out / folder / f"{index:06d}.png" for folder in ("tissue", "masks"))
    if mask_path.exists():
        valid = read_mask(mask_path)
    else:
        tissue = scope & ~dark_rim(image, scope)
        if instruments is not None:
            tissue &= ~_grown(scaled_mask(instruments, scope.shape), config.instrument_margin_share)
        write_mask(tissue_path, tissue)
        valid = tissue & highlight_mask(image, scope) if config.highlights else tissue
        write_mask(mask_path, valid)
    quality = measure_quality(image, valid, scope)
    if unseen_reason(quality, config) is None:
        finder.add(index, image, scope)
    return quality


def _covers_something(mask: np.ndarray | None) -> bool:
    return mask is not None and bool(mask.any())


def _polarity(white_of: MaskOf, entries: list[dict[str, Any]], folder: Path, scope: np.ndarray, config: Config) -> Polarity:
    if config.polarity != "auto":
        return Polarity(config.polarity, True, "as configured")

    def samples() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for entry in entries:
            white = white_of(entry["index"])
            if white is not None:
                yield read_image(folder / entry["file"]), scaled_mask(white, scope.shape)

    polarity = judge_polarity(samples(), scope)
    say = log.info if polarity.is_clear and polarity.white == "instrument" else log.warning
    say("masks: white is %s (%s); set masks.polarity to overrule", polarity.white, polarity.reason)
    return polarity


def _grown(mask: np.ndarray, margin_share: float) -> np.ndarray:
    size = 2 * round(margin_share * min(mask.shape)) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))).astype(bool)


def _gate_entry(entry: dict[str, Any], quality: Quality | None, reason: str | None) -> dict[str, Any]:
    return {
        "index": entry["index"],
        "status": "ok" if reason is None else "rejected",
        "reason": reason,
        "blur": quality and round(quality.blur, 4),
        "exposure": quality and round(quality.exposure, 4),
        "valid_share": quality and round(quality.valid_share, 4),
    }


STAGE = Stage(
    config=Config,
    run=run,
    version=2,
    reads=("source", "frames", "camera"),
    writes=("scope.png", "tissue/*.png", "masks/*.png", "gate.json"),
    seconds_per_frame=0.12,
    bytes_per_frame=25_000,
)
