"""Procedural endoscopic scenes with exact depth, poses and surface; one generator for demo, tests and training."""

from recon.data.phantom.sequence import DEMO_SPEC, GENERATOR_VERSION, open_phantom

__all__ = ["DEMO_SPEC", "GENERATOR_VERSION", "open_phantom"]
