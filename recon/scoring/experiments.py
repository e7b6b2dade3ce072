"""Tables of papers as files: which data, frames, arithmetic and networks, and the figures that were published of them.

`configs/experiments/*.toml` each describe one table. The published figures lie in files of their own
(`configs/experiments/published`), every row with where it was read and by whom it was measured; a network's own score is set
beside it with the difference. A figure that could not be read is not there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.data import DATASETS
from recon.eval.protocols import PROTOCOLS, Protocol
from recon.scoring.temporal import ENDODAV
from recon.types import Metric, ReconError

ORIGINS = {
    "authors": "by its authors",
    "later": "by a later work",
    "second_hand": "by its authors, read in others' notes on the paper",
}
"""Who measured a published figure; keys stand in the files."""
TEMPORAL = ("tae", "tas")
UNITS = {"mae": "mm", "median_ae": "mm", "rmse": "mm", "sq_rel": "mm", "tae": "%"}
"""Of published figures, whatever the paper prints; the others have none."""
_EXPERIMENT = {"title": str, "dataset": str, "protocols": list, "methods": list, "published": str}
_EXPERIMENT_OPTIONAL = {"split": str, "part": str, "cap_mm": float, "notes": list}
_PUBLISHED = {"title": str, "notes": list}
_PUBLISHED_OPTIONAL = {"rows": list}
_ROW = {"method": str, "origin": str, "source": str, "protocol": str, "figures": dict}
_ROW_OPTIONAL = {"network": str, "note": str}


@dataclass(frozen=True)
class PublishedRow:
    """One method's line of a published table."""

    method: str
    """As the paper calls it."""
    network: str | None
    """The same in `recon models`; None where it is not there."""
    origin: str
    """Key of ORIGINS."""
    source: str
    """Repository and file, paper, or thread."""
    protocol: str
    figures: Mapping[str, float]
    """By the protocol's names of figures, in their units."""
    note: str


@dataclass(frozen=True)
class Experiment:
    """One table of a paper."""

    name: str
    title: str
    dataset: str
    split: Path | None
    part: str
    protocols: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...]
    """Of the experiment and of its published figures."""


@dataclass(frozen=True)
class Difference:
    """A published figure beside the one found here."""

    row: PublishedRow
    label: str
    """Of the network that was run."""
    name: str
    published: float
    here: float

    @property
    def difference(self) -> float:
        return self.here - self.published


def read_experiment(path: Path) -> Experiment:
    """Read an experiment with its split's place and its published rows.

    Raises ReconError naming the file, what was found and what was expected: a key, a data set, a protocol, a cap other than the
    protocol's, a file that is not there.
    """
    table = _table(path, _EXPERIMENT, _EXPERIMENT_OPTIONAL, "an experiment")
    if table["dataset"] not in DATASETS:
        raise ReconError(f"{path}: data set {table['dataset']!r} is not known; known: {', '.join(DATASETS)}")
    protocols = tuple(_protocol(path, name) for name in table["protocols"])
    cap = table.get("cap_mm")
    other = next((protocol for protocol in protocols if protocol.max_truth != cap), None)
    if other is not None:
        raise ReconError(f"{path}: cap_mm is {cap} and that of protocol {other.name} {other.max_truth}; make them agree, or leave out both")
    split = None if "split" not in table else _beside(path, table["split"])
    published = _table(_beside(path, table["published"]), _PUBLISHED, _PUBLISHED_OPTIONAL, "a file of published figures")
    rows = tuple(_row(_beside(path, table["published"]), row) for row in published.get("rows", ()))
    notes = (*table.get("notes", ()), *published["notes"])
    names = tuple(protocol.name for protocol in protocols)
    foreign = next((row for row in rows if row.protocol not in names), None)
    if foreign is not None:
        raise ReconError(f"{path}: {foreign.method} was published under {foreign.protocol}, expected one of: {', '.join(names)}")
    part = table.get("part", "test")
    return Experiment(path.stem, table["title"], table["dataset"], split, part, names, tuple(table["methods"]), rows, notes)


def differences(rows: Sequence[PublishedRow], label: str, network: str, metrics: Sequence[Metric]) -> list[Difference]:
    """Every published figure of a network beside its own, where both are there."""
    found = {(metric.protocol, metric.name): metric.value for metric in metrics if metric.protocol is not None}
    return [
        Difference(row, label, name, value, found[row.protocol, name])
        for row in rows
        for name, value in row.figures.items()
        if row.network == network and (row.protocol, name) in found
    ]


def figures_of(protocol: str) -> tuple[str, ...]:
    """Names of the figures that a protocol can give."""
    return (*PROTOCOLS[protocol].measures, *(TEMPORAL if protocol == ENDODAV else ()))


def _protocol(path: Path, name: Any) -> Protocol:
    if name not in PROTOCOLS:
        raise ReconError(f"{path}: protocol {name!r} is not known; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _row(path: Path, row: dict[str, Any]) -> PublishedRow:
    _check(path, row, _ROW, _ROW_OPTIONAL, "a row of published figures")
    if row["origin"] not in ORIGINS:
        raise ReconError(f"{path}: {row['method']}: origin {row['origin']!r}, expected one of: {', '.join(ORIGINS)}")
    known = figures_of(_protocol(path, row["protocol"]).name)
    for name, value in row["figures"].items():
        if name not in known or not isinstance(value, int | float):
            raise ReconError(f"{path}: {row['method']}: {name} = {value!r}, expected numbers named: {', '.join(known)}")
    figures = {name: float(value) for name, value in row["figures"].items()}
    where = (row["origin"], row["source"], row["protocol"])
    return PublishedRow(row["method"], row.get("network"), *where, figures, row.get("note", ""))


def _beside(path: Path, name: str) -> Path:
    found = path.parent / name
    if not found.is_file():
        raise ReconError(f"{path} names {name}, and {found} is not there: keep the folder of experiments together, or mend the name")
    return found


def _table(path: Path, keys: Mapping[str, type], optional: Mapping[str, type], what: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ReconError(f"{path} cannot be read as {what}: {error}; configs/experiments has such files") from error
    _check(path, table, keys, optional, what)
    return table


def _check(path: Path, table: Any, keys: Mapping[str, type], optional: Mapping[str, type], what: str) -> None:
    known = {**keys, **optional}
    if not isinstance(table, dict):
        raise ReconError(f"{path}: {table!r} is no table, expected {what}")
    missing, unknown = [key for key in keys if key not in table], [key for key in table if key not in known]
    if missing or unknown:
        found = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ReconError(f"{path} is not {what}: it {found}; it must have {', '.join(keys)} and may have {', '.join(optional)}")
    for key, value in table.items():
        kind = (int, float) if known[key] is float else known[key]
        if not isinstance(value, kind):
            raise ReconError(f"{path}: {key} is {value!r}, expected a {known[key].__name__}")
        if isinstance(value, list) and not (all(isinstance(v, str) for v in value) or all(isinstance(v, dict) for v in value)):
            raise ReconError(f"{path}: {key} is {value!r}, expected texts in quotes")
