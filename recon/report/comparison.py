"""Several methods on the same frames as one HTML page that works from a file, off line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recon.report.page import Picture
from recon.report.tables import MethodRow, method_rows, with_interval
from recon.types import Metric

TEMPLATE = "comparison.html.j2"
GROUPS = {"depth": "Depth errors", "speed": "What it costs"}


@dataclass(frozen=True)
class PublishedTable:
    """Figures of a paper beside those found here, as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A cell a column."""


@dataclass(frozen=True)
class Comparison:
    """What the page shows."""

    title: str
    metrics_of: dict[str, list[Metric]]
    """By method, in the order of the columns."""
    sentences: dict[str, list[str]]
    """What is known of each method: truth that entered, lens, training data."""
    notes: list[str]
    pictures: list[Picture]
    published: list[PublishedTable] = field(default_factory=list)


def render_comparison(comparison: Comparison) -> str:
    """Return the HTML: pictures embedded, no script, every text escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = method_rows(comparison.metrics_of, with_interval)
    return environment.get_template(TEMPLATE).render(
        page=comparison,
        methods=list(comparison.metrics_of),
        groups=[(GROUPS.get(group, group), has_protocol, found) for group, has_protocol, found in _grouped(rows)],
    )


def _grouped(rows: Sequence[MethodRow]) -> list[tuple[str, bool, list[MethodRow]]]:
    """Rows by group, and whether any of the group names a protocol."""
    by_group = sorted(rows, key=lambda row: list(dict.fromkeys(row.key[0] for row in rows)).index(row.key[0]))
    groups = [(group, list(found)) for group, found in groupby(by_group, key=lambda row: row.key[0])]
    return [(group, any(row.key[2] for row in found), found) for group, found in groups]
