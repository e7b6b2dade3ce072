"""The stage engine: contract, config, store, runner. Stages import these names and nothing deeper."""

from recon.pipeline.progress import track
from recon.pipeline.stage import RUN, Stage, unkeyed
from recon.pipeline.store import file_checksum, reached_from, read_manifest

__all__ = ["RUN", "Stage", "file_checksum", "reached_from", "read_manifest", "track", "unkeyed"]
