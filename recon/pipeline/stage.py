"""What a stage is: a frozen config, a function from folders to a folder, and what it reads and promises to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SOURCE = "source"
"""In `reads`: the folder whose `source.json` names the recording. Its key is the content of the recording."""
RUN = "run"
"""In `reads`: the run folder itself. It has no key, so a stage must not let it decide what is written."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; its name is its file, its artifact, its config section and its folder."""

    config: type
    """A frozen dataclass with a default for every field."""
    run: Callable[[dict[str, Path], Path, Any], None]
    """`run(inputs, out, config)`: `inputs` maps each name in `reads` to a folder. `out` exists, and may hold what a
    killed run of the same recipe left; files must be written there atomically, so that what exists is whole."""
    reads: tuple[str, ...] = ()
    """Earlier stages, `SOURCE` or `RUN`."""
    also_reads: Callable[[Any], tuple[str, ...]] | None = None
    """From the config to further earlier stages that it asks for. Their keys decide this stage's key, and they are made for it,
    only then: `run` finds them in `inputs` under the same condition."""
    writes: tuple[str, ...] = ()
    """Globs; each must match at least one file when `run` returns."""
    version: int = 1
    """Raised whenever the same recipe would give another result."""
    checksums: Callable[[Any], dict[str, str]] | None = None
    """From the config to SHA-256 sums of files that the result depends on, such as network weights."""
    seconds_per_frame: float | int = 0
    """Cost on two cores, a hint for `recon plan`."""
    seconds_once: Callable[[Any], float] | None = None
    """From the config to the cost that does not grow with the recording, likewise."""
    bytes_per_frame: float | int = 0
    """Size on disk, a hint for `recon plan`."""

    def all_reads(self, config: Any) -> tuple[str, ...]:
        """What the stage reads under this config."""
        return self.reads + (self.also_reads(config) if self.also_reads else ())


def unkeyed(default: Any) -> Any:
    """Declare a config field that changes how a stage runs but not what it makes (device, threads)."""
    return field(default=default, metadata={"keyed": False})


def keyed_values(config: Any) -> dict[str, Any]:
    """Fields of a stage config that decide its result."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata.get("keyed", True)}
