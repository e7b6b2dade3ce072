"""Which stages there are and in which order they run. Each file of this package is one stage."""

from importlib import import_module

from recon.pipeline.stage import Stage

PIPELINE = (
    *("frames", "camera", "masks", "structure", "depth", "trajectory", "scale", "stereo", "surface"),
    *("scene", "splats", "nerf", "mesh", "evaluation", "report"),
)


def load(name: str) -> Stage:
    """Import the stage called `name`, an entry of `PIPELINE`, with the libraries it needs."""
    return import_module(f"stages.{name}").STAGE
