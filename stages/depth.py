"""Estimate z-depth of every usable frame with a network, up to scale, on the lens of the recording."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recon.data import open_source
from recon.geometry.shrink import shrunk_depth
from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.models import DepthEstimate, VideoDepthModel, load_depth_model, model_info, torch_device
from recon.models.windows import consistent_depth
from recon.pipeline import Stage, track, unkeyed
from recon.scoring.score import training_data
from recon.types import MAX_SEED, ReconError, bounded

log = logging.getLogger(__name__)

DATASET = "dataset"
GIVEN_SIGMA = 0.01
"""Of the logarithm of depth that comes with a recording: no data set states it."""
ADAPTABLE = ("student",)
"""Networks that can be adapted: they know the lens, so their depth and the poses of structure from motion meet."""
FEW = 0.5
"""Share of the frames with any depth, below which a warning says so."""
ADAPTATION, ADAPTED_WEIGHTS = "adaptation.json", "adapted.safetensors"


@dataclass(frozen=True)
class Config:
    """Which network, with which weights, and where it runs."""

    model: str = "student"
    """A name from `recon models`, or the path of an exported network (.pt2, .onnx); "falloff" learned nothing: the floor to beat;
    "dataset" takes the depth that comes with the recording, and the report says whether that is its truth."""
    weights: Path | None = unkeyed(None)  # noqa: RUF009
    """File (or folder) with the network's weights, where they are not in the package; their checksum decides what is reused."""
    consistent: bool = False
    """Even out how the scale of a network jumps from frame to frame, by overlapping windows of 32 frames. Steadies depth of
    itself; where a camera path is found, the scale stage does as much with the poses."""
    adapt: bool = False
    """Fine-tune the network on this recording first, without any truth; see `recon adapt`."""
    adapt_parts: Literal["all", "adapters"] = "all"
    """"adapters" trains low-rank changes of the MLPs in the two attention blocks, and the norms: 1 in 130 of the numbers."""
    adapt_steps: int = bounded(150, 1, 100_000)
    """Of three frames and two partners each; a step costs about a second of one core."""
    seed: int = bounded(0, 0, MAX_SEED)
    """Of the order in which adaptation sees frames."""
    device: str = unkeyed("auto")
    """"auto" takes a CUDA device when there is one."""

    def __post_init__(self) -> None:
        if self.adapt and self.model not in ADAPTABLE:
            raise ValueError(
                f"adapt = true needs a network that knows the lens: model must be {' or '.join(ADAPTABLE)}, found {self.model!r}"
            )


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `depth/NNNNNN.tiff` and `sigma/NNNNNN.tiff` for every frame that the gate let through.

    With `adapt`, `adaptation.json` says what came of it, and `adapted.safetensors` holds the weights if they are better.
    Raises ReconError when the network knows no pixel of any frame.
    """
    usable = [f["index"] for f in read_json(inputs["masks"] / "gate.json")["frames"] if f["status"] == "ok"]
    if not usable:
        raise ReconError("no frame is usable: the gate rejected every one; gate.json of the masks stage has the reasons", exit_code=1)
    if config.model == DATASET:
        _bring(inputs, out, usable)
        return
    weights = _adapted(inputs, out, config) if config.adapt else config.weights
    num_known = 0
    for index, estimate in track(_estimates(inputs, out, config, weights, usable), len(usable), "estimating depth"):
        if estimate is not None:
            write_depth(out / "depth" / _name(index), estimate.depth)
            write_depth(out / "sigma" / _name(index), estimate.sigma)
        depth = read_depth(out / "depth" / _name(index)) if estimate is None else estimate.depth
        num_known += bool((depth > 0).any())
    _check_known(num_known, len(usable), config.model)
    trained_on = list(model_info(config.model).seen(config.weights))
    facts = {"model": config.model, "trained_on": trained_on, "adapted": weights != config.weights, "is_truth": False}
    arithmetic = model_info(config.model).arithmetic(torch_device(config.device))
    write_json(out / "depth.json", facts | {"arithmetic": arithmetic, "scale": "scale_invariant", "num_frames": len(usable)})


def _bring(inputs: dict[str, Path], out: Path, usable: Sequence[int]) -> None:
    """Write the depth that comes with the recording, in the data set's unit.

    Raises ReconError when it has none, or when nobody says in which unit it is.
    """
    sequence = open_source(inputs["source"])
    depth_of = sequence.depth_estimate or sequence.depth_gt
    if depth_of is None:
        raise ReconError(f"depth.model=dataset: {sequence.name} ({sequence.dataset}) brings no depth; choose a network of `recon models`")
    camera, num_known, scales = read_camera(inputs["camera"] / "camera.json"), 0, set()
    for index in track(usable, len(usable), "reading depth"):
        given = depth_of(index)
        depth = np.zeros((camera.height_px, camera.width_px), np.float32)
        if given is not None:
            scales.add(given.scale)
            depth = shrunk_depth(given.depth, given.valid, depth.shape)
        num_known += bool((depth > 0).any())
        write_depth(out / "depth" / _name(index), depth)
        write_depth(out / "sigma" / _name(index), np.where(depth > 0, np.float32(GIVEN_SIGMA), np.float32(0)))
    _check_known(num_known, len(usable), DATASET)
    is_truth = sequence.depth_estimate is None or sequence.depth_gt is sequence.depth_estimate
    scale = "metric" if scales == {"metric"} and sequence.unit == "mm" else "scale_invariant"
    facts = {"model": DATASET, "trained_on": [], "adapted": False, "is_truth": is_truth, "scale": scale, "num_frames": len(usable)}
    write_json(out / "depth.json", facts)


def _check_known(num_known: int, num_frames: int, model: str) -> None:
    """Raises ReconError when there is no depth at all, which later stages would blame on the recording."""
    if num_known == 0:
        raise ReconError(
            f"depth.model {model!r} gave no depth in any of {num_frames} frames (on tissue, all its outputs were NaN, 0 or negative): "
            "mend that network or choose another",
            exit_code=1,
        )
    if num_known < FEW * num_frames:
        log.warning("depth.model %r gave depth in %d of %d frames only", model, num_known, num_frames)


def _adapted(inputs: dict[str, Path], out: Path, config: Config) -> Path | None:
    """Adapt the network, unless a killed run has done so; returns the weights to use."""
    from recon.models.weights import save_halved
    from recon.tracking.map_files import read_maps
    from recon.training.adaptation import Evidence, Recipe, adapt, described

    if not (out / ADAPTATION).exists():
        model = load_depth_model(config.model, torch_device(config.device), config.weights)
        camera = read_camera(inputs["camera"] / "camera.json")
        masks = inputs["masks"]
        evidence = Evidence(read_maps(inputs["structure"]), inputs["frames"] / "images", masks / "tissue", masks / "masks", camera)
        recipe = Recipe(config.adapt_parts, config.adapt_steps, config.seed)
        adaptation = adapt(model, evidence, recipe, track)
        if adaptation.reason is None:
            save_halved(model.network, out / ADAPTED_WEIGHTS, _facts(inputs["frames"], config))
        else:
            log.warning("the network is used as it is: %s", adaptation.reason)
        write_json(out / ADAPTATION, described(adaptation, recipe))
    return out / ADAPTED_WEIGHTS if read_json(out / ADAPTATION)["adapted"] else config.weights


def _facts(frames: Path, config: Config) -> dict[str, Any]:
    """What the weights say of themselves: whose they are, and that they have seen this recording too."""
    source = read_json(frames / "frames.json")
    seen = [*model_info(config.model).seen(config.weights), training_data(source["dataset"], source["name"])]
    return {"method": config.model, "trained_on": list(dict.fromkeys(seen))}


def _estimates(
    inputs: dict[str, Path], out: Path, config: Config, weights: Path | None, usable: Sequence[int]
) -> Iterator[tuple[int, DepthEstimate | None]]:
    """The estimate of each usable frame in order; None where a killed run left it."""
    camera = read_camera(inputs["camera"] / "camera.json")
    model = load_depth_model(config.model, torch_device(config.device), weights)

    def picture(index: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(inputs["frames"] / "images" / f"{index:06d}.jpg")
        return image, read_mask(inputs["masks"] / "tissue" / f"{index:06d}.png")

    def estimate(index: int) -> DepthEstimate:
        image, mask = picture(index)
        return model.infer(image, camera, mask)

    # Every window leans on the one before, so these start anew.
    if isinstance(model, VideoDepthModel):
        yield from zip(usable, model.infer_video(map(picture, usable), camera), strict=True)
        return
    if config.consistent:
        yield from consistent_depth(usable, estimate, model_info(config.model).output == "disparity")
        return
    for index in usable:
        yield index, None if (out / "sigma" / _name(index)).exists() else estimate(index)


def _name(index: int) -> str:
    return f"{index:06d}.tiff"


def _checksums(config: Config) -> dict[str, str]:
    """Raises ReconError for what is already wrong before the first stage starts: network, weights, device."""
    torch_device(config.device)
    if config.model == DATASET:
        return {}
    info = model_info(config.model)
    return {"weights": info.checksum(config.weights), "code": info.code}


STAGE = Stage(
    config=Config,
    run=run,
    version=8,
    reads=("frames", "camera", "masks"),
    also_reads=lambda config: ("structure",) if config.adapt else ("source",) if config.model == DATASET else (),
    writes=("depth.json", "depth/*.tiff", "sigma/*.tiff"),
    checksums=_checksums,
    seconds_per_frame=0.06,
    seconds_once=lambda config: 1.0 * config.adapt_steps if config.adapt else 0.0,
    bytes_per_frame=250_000,
)
