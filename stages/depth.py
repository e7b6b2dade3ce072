"""Estimate z-depth of every usable frame with a network, up to scale, on the lens of the recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.depth import write_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.models import DepthEstimate, load_depth_model, model_info
from recon.models.windows import consistent_depth
from recon.pipeline import Stage, track, unkeyed
from recon.types import ReconError


@dataclass(frozen=True)
class Config:
    """Which network, with which weights, and where it runs."""

    model: str = "student"
    """A name from `recon models`, or the path of an exported network (.pt2, .onnx); "falloff" learned nothing: the floor to beat."""
    weights: Path | None = unkeyed(None)  # noqa: RUF009
    """File (or folder) with the network's weights, where they are not in the package; their checksum decides what is reused."""
    consistent: bool = False
    """Even out how the scale of a network jumps from frame to frame, by overlapping windows of 32 frames. Steadies depth of
    itself; where a camera path is found, the scale stage does as much with the poses."""
    device: str = unkeyed("auto")
    """"auto" takes a CUDA device when there is one."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `depth/NNNNNN.tiff` and `sigma/NNNNNN.tiff` for every frame that the gate let through."""
    usable = [f["index"] for f in read_json(inputs["masks"] / "gate.json")["frames"] if f["status"] == "ok"]
    if not usable:
        raise ReconError("no frame is usable: the gate rejected every one; gate.json of the masks stage has the reasons", exit_code=1)
    for index, estimate in track(_estimates(inputs, out, config, usable), len(usable), "estimating depth"):
        if estimate is not None:
            write_depth(out / "depth" / _name(index), estimate.depth)
            write_depth(out / "sigma" / _name(index), estimate.sigma)
    info = model_info(config.model)
    # What other weights than the packaged ones have seen, nobody says.
    trained_on = list(info.trained_on) if config.weights is None or info.packaged is None else []
    scale = {"model": config.model, "trained_on": trained_on, "scale": "scale_invariant", "num_frames": len(usable)}
    write_json(out / "depth.json", scale)


def _estimates(inputs: dict[str, Path], out: Path, config: Config, usable: Sequence[int]) -> Iterator[tuple[int, DepthEstimate | None]]:
    """The estimate of each usable frame in order; None where a killed run left it."""
    camera = read_camera(inputs["camera"] / "camera.json")
    model = load_depth_model(config.model, torch_device(config.device), config.weights)

    def estimate(index: int) -> DepthEstimate:
        image = read_image(inputs["frames"] / "images" / f"{index:06d}.jpg")
        return model.infer(image, camera, read_mask(inputs["masks"] / "tissue" / f"{index:06d}.png"))

    if config.consistent:
        # Every window leans on the one before, so this starts anew.
        yield from consistent_depth(usable, estimate, model_info(config.model).output == "disparity")
        return
    for index in usable:
        yield index, None if (out / "sigma" / _name(index)).exists() else estimate(index)


def _name(index: int) -> str:
    return f"{index:06d}.tiff"


def torch_device(name: str) -> str:
    """The device to run on; "auto" is CUDA where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checksums(config: Config) -> dict[str, str]:
    info = model_info(config.model)
    return {"weights": info.checksum(config.weights), "code": info.code}


STAGE = Stage(
    config=Config,
    run=run,
    version=3,
    reads=("frames", "camera", "masks"),
    writes=("depth.json", "depth/*.tiff", "sigma/*.tiff"),
    checksums=_checksums,
    seconds_per_frame=0.06,
    bytes_per_frame=250_000,
)
