"""Estimate z-depth of every usable frame with a network, up to scale, on the lens of the recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.depth import write_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.models import load_depth_model, model_info
from recon.pipeline import Stage, track, unkeyed
from recon.types import ReconError


@dataclass(frozen=True)
class Config:
    """Which network, and where it runs."""

    model: str = "student"
    """A name from `recon models`; "falloff" needs no learning and is the floor to beat."""
    device: str = unkeyed("auto")
    """"auto" takes a CUDA device when there is one."""


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write `depth/NNNNNN.tiff` and `sigma/NNNNNN.tiff` for every frame that the gate let through."""
    usable = [f["index"] for f in read_json(inputs["masks"] / "gate.json")["frames"] if f["status"] == "ok"]
    if not usable:
        raise ReconError("no frame is usable: the gate rejected every one; gate.json of the masks stage has the reasons", exit_code=1)
    camera = read_camera(inputs["camera"] / "camera.json")
    model = load_depth_model(config.model, torch_device(config.device))
    for index in track(usable, len(usable), "estimating depth"):
        name = f"{index:06d}.tiff"
        if (out / "sigma" / name).exists():
            continue
        image = read_image(inputs["frames"] / "images" / f"{index:06d}.jpg")
        estimate = model.infer(image, camera, read_mask(inputs["masks"] / "tissue" / f"{index:06d}.png"))
        write_depth(out / "depth" / name, estimate.depth)
        write_depth(out / "sigma" / name, estimate.sigma)
    trained_on = list(model_info(config.model).trained_on)
    write_json(out / "depth.json", {"model": config.model, "trained_on": trained_on, "scale": "scale_invariant", "num_frames": len(usable)})


def torch_device(name: str) -> str:
    """The device to run on; "auto" is CUDA where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


STAGE = Stage(
    config=Config,
    run=run,
    version=2,
    reads=("frames", "camera", "masks"),
    writes=("depth.json", "depth/*.tiff", "sigma/*.tiff"),
    checksums=lambda config: {"weights": model_info(config.model).checksum()},
    seconds_per_frame=0.06,
    bytes_per_frame=250_000,
)
