"""Masks and gate: which pixels show tissue, and which frames are good enough to use.

`tissue/` leaves out what lies outside the scope's field and instruments; `masks/` leaves out highlights too, which move
with the lamp and mislead matching, while a network that was trained on highlights looks through them. `instruments/` is there
only where they were found here, for want of masks that a user or a data set gives.
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
from recon.models import torch_device
from recon.models.instruments import finder_info, load_instrument_finder
from recon.parallel import in_order
from recon.pipeline import Stage, track, unkeyed
from recon.types import MAX_THREADS, ReconError, bounded

log = logging.getLogger(__name__)


SUSPICIOUS_SHARE = 0.5
"""Of the field: instruments that are found to cover more are told."""
NOT_FOUND_HERE = "set masks.instruments=given to do without, or give masks with --masks"


@dataclass(frozen=True)
class Config(GateLimits):
    """What is masked, and the limits of the gate."""

    highlights: bool = True
    """Mask specular highlights."""
    polarity: Literal["auto", "instrument", "tissue"] = "auto"
    """What white means in masks given with --masks; "auto" lets the images decide. A data set's own masks are known."""
    instruments: Literal["given", "metal", "sam", "medsam"] = "given"
    """Where no masks of instruments are given: find them, or ("given") take all for tissue. "metal" needs nothing, "sam" and
    "medsam" outline better what it finds and need `instrument_weights`. All would rather miss an instrument than cover tissue."""
    instrument_weights: Path | None = unkeyed(None)  # noqa: RUF009
    """File, or folder as Hugging Face stores it, with the finder's weights; their checksum decides what is reused."""
    device: str = unkeyed("auto")
    """Where "sam" and "medsam" run; "auto" takes a CUDA device when there is one."""
    instrument_margin_share: float = bounded(0.008, 0.0, 0.5)
    """Of the shorter side, added around instruments for their shadow and motion blur."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """Frames masked at once; 0 means as many as there are processors."""


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
    said = None if sequence.instrument_mask is None else asdict(polarity) if polarity else {"white": "instrument"}
    if config.instruments != "given":
        if sequence.instrument_mask is not None:
            log.info("masks: the instrument masks that are given win over masks.instruments=%s", config.instruments)
        else:
            instruments, said = _found(decoded, spread, inputs["frames"], scope, frames["is_unrelated"], out, config)
    if is_users and not any(_covers_something(instruments(entry["index"])) for entry in decoded):
        log.warning("masks: those given with --masks cover 0% of every frame; are they the right files, and is their white above 0?")

    def mask_frame(entry: dict[str, Any], instruments: np.ndarray | None) -> tuple[np.ndarray, Quality]:
        image = read_image(inputs["frames"] / entry["file"])
        return image, measure_quality(image, _masked(image, out, entry["index"], scope, instruments, config), scope)

    # Masks may come from a film, which one thread reads.
    given = ((entry, instruments(entry["index"])) for entry in decoded)
    masked = in_order(lambda each: mask_frame(*each), given, config.num_threads)
    finder, qualities = CutFinder(), []
    for entry, (image, quality) in zip(decoded, track(masked, len(decoded), "masking frames"), strict=True):
        qualities.append(quality)
        if unseen_reason(quality, config) is None:
            finder.add(entry["index"], image, scope)
    if said is not None:
        _check_tissue_is_left(frames["name"], qualities, found_here="finder" in said)
    reasons = rejections(qualities, config)
    gate = {entry["index"]: (quality, reason) for entry, quality, reason in zip(decoded, qualities, reasons, strict=True)}
    write_json(
        out / "gate.json",
        {
            "scope_share": float(scope.mean()),
            "instruments": said,
            "cuts": [] if frames["is_unrelated"] else finder.cuts(),
            "frames": [_gate_entry(entry, *gate.get(entry["index"], (None, entry["reason"]))) for entry in frames["frames"]],
        },
    )


def _masked(image: np.ndarray, out: Path, index: int, scope: np.ndarray, instruments: np.ndarray | None, config: Config) -> np.ndarray:
    """Write the frame's masks unless a killed run left them; returns the stricter one."""
    tissue_path, mask_path = (out / folder / f"{index:06d}.png" for folder in ("tissue", "masks"))
    if mask_path.exists():
        return read_mask(mask_path)
    tissue = scope & ~dark_rim(image, scope)
    if instruments is not None:
        tissue &= ~_grown(scaled_mask(instruments, scope.shape), config.instrument_margin_share)
    write_mask(tissue_path, tissue)
    valid = tissue & highlight_mask(image, scope) if config.highlights else tissue
    write_mask(mask_path, valid)
    return valid


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


def _found(
    decoded: list[dict[str, Any]],
    spread: list[dict[str, Any]],
    folder: Path,
    scope: np.ndarray,
    is_unrelated: bool,
    out: Path,
    config: Config,
) -> tuple[MaskOf, dict[str, Any]]:
    """Find instruments in every frame, unless a killed run has done so; masks of them, and what gate.json says.

    Masks that look like tissue are not used.
    """
    paths = {entry["index"]: out / "instruments" / f"{entry['index']:06d}.png" for entry in decoded}
    if not all(path.exists() for path in paths.values()):
        finder = load_instrument_finder(config.instruments, torch_device(config.device), config.instrument_weights)

        def pictures(entries: list[dict[str, Any]]) -> Iterator[np.ndarray]:
            return (read_image(folder / entry["file"]) for entry in entries)

        # Of unrelated pictures, none tells what moves in the next.
        clips = [[entry] for entry in decoded] if is_unrelated else [decoded]
        found = (mask for clip in clips for mask in finder.find(pictures(clip), scope, pictures(spread)))
        for path, mask in zip(paths.values(), track(found, len(paths), "finding instruments"), strict=True):
            write_mask(path, mask)
    shares = {index: float(read_mask(path)[scope].mean()) for index, path in paths.items()}
    seen = [(read_image(folder / entry["file"]), read_mask(paths[entry["index"]])) for entry in spread if shares[entry["index"]] > 0.0]
    polarity = judge_polarity(seen, scope)
    is_used = not (polarity.is_clear and polarity.white == "tissue")
    suspicious = [index for index, share in shares.items() if share > SUSPICIOUS_SHARE]
    mean, name = float(np.mean(list(shares.values()))), config.instruments
    if not is_used:
        log.warning("masks: what %s found looks like tissue (%s) and is not used; %s", name, polarity.reason, NOT_FOUND_HERE)
    if suspicious:
        log.warning("masks: %s covers more than half of %d frames, first of %d; %s", name, len(suspicious), suspicious[0], NOT_FOUND_HERE)
    log.info("masks: %s covers %.1f%% of the field on average", name, 100.0 * mean)
    coverage = {"mean_coverage": round(mean, 5), "suspicious_frames": suspicious}
    said = asdict(polarity) | {"white": "instrument", "finder": name, "is_used": is_used} | coverage
    return (lambda index: read_mask(paths[index]) if is_used else None), said


def _check_tissue_is_left(name: str, qualities: list[Quality], found_here: bool) -> None:
    if all(quality.valid_share == 0.0 for quality in qualities):
        remedy = NOT_FOUND_HERE if found_here else "give the right files, or set masks.polarity to what their white means"
        raise ReconError(f"{name}: the instrument masks cover all of every frame; {remedy}")


def _checksums(config: Config) -> dict[str, str]:
    """Raises ReconError for a finder without its weights or their package, before the first stage starts."""
    if config.instruments == "given":
        if config.instrument_weights is not None:
            raise ReconError(
                f"masks.instrument_weights {config.instrument_weights}: set masks.instruments=sam or medsam, whichever they are of"
            )
        return {}
    torch_device(config.device)
    return {"instruments": finder_info(config.instruments).checksum(config.instrument_weights)}


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
    version=3,
    reads=("source", "frames", "camera"),
    writes=("scope.png", "tissue/*.png", "masks/*.png", "gate.json"),
    checksums=_checksums,
    seconds_per_frame=0.12,
    bytes_per_frame=25_000,
)
