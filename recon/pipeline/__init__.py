"""The stage engine: contract, config, store, runner. Stages import these four names and nothing deeper."""

from recon.pipeline.progress import track
from recon.pipeline.stage import Stage, unkeyed
from recon.pipeline.store import read_manifest

__all__ = ["Stage", "read_manifest", "track", "unkeyed"]
