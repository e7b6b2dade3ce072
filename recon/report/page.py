"""The report as one HTML page that works from a file, off line: pictures embedded, no script, every text escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recon.report.tables import formatted, metric_of, with_interval

TEMPLATE = "page.html.j2"
MAX_SEGMENTS = 1500
"""Of the strip of frame statuses; a longer recording is shown in bins."""
ALIGNMENT_NAMES = {
    "none": "as it is",
    "first_pose": "first pose",
    "se3_trajectory": "rigid, by the path",
    "sim3_trajectory": "with scale, by the path",
    "se3_icp": "rigid, by the surface",
    "sim3_icp": "with scale, by the surface",
    "scale_sequence": "one scale",
    "scale_frame": "a scale per frame",
    "scale_shift": "scale and shift",
}
"""What each alignment of a metric fitted, for the page."""
MAIN_METRICS = {
    *("abs_rel", "rmse", "mae", "delta_1.25", "coverage", "scale_spread", "posed", "ate_rmse", "ate_percent_of_path", "rpe_translation"),
    *("rotation_mean", "drift_percent", "accuracy_mean", "accuracy_p95", "accuracy_mean_percent_of_depth", "completeness_mean"),
    *("chamfer_l1", "f_1mm", "f_2mm", "f_5mm", "hd95", "normal_consistency", "signed_bias", "scale_error", "chamfer_penalised", "tae"),
}
"""Shown at once; the others are one click away."""
MIN_MOVING_SHARE = 0.02
"""Of a frame, that is worth naming it: less is noise of the depth."""
WORST_FIRST = ("lost", "rejected", "posed", "keyframe")


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    caption: str
    data: bytes
    """A PNG or JPEG file."""

    @property
    def uri(self) -> str:
        kind = "png" if self.data[:4] == b"\x89PNG" else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class PagePictures:
    """Every picture of the page, by section."""

    mesh: list[Picture]
    frames: list[Picture]
    depth: list[Picture]
    trajectory: list[Picture]
    errors: list[Picture]
    times: Picture
    depth_legend: tuple[list[str], str, str]
    """CSS colours, and the labels of the near and the far end."""
    confidence_stops: list[str]
    film: str | None = None
    """A video as a data address."""


def render_page(title: str, report: dict[str, Any], frames: list[dict[str, Any]], notes: list[str], pictures: PagePictures) -> str:
    """Return the HTML. `report` and `frames` are what report.json and frames.json hold."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(TEMPLATE).render(
        title=title,
        report=report,
        strip=status_strip([frame["status"] for frame in frames]),
        statuses={status: sum(frame["status"] == status for frame in frames) for status in reversed(WORST_FIRST)},
        reasons=grouped_reasons(frames),
        metric_groups=grouped_metrics(report["metrics"]),
        rungs=report["alignments"],
        moving_frames=moving_frames(report["rigidity"]["frames"]) if report["rigidity"] else [],
        alignment_names=ALIGNMENT_NAMES,
        headline=headline(report),
        notes=notes,
        pictures=pictures,
    )


def moving_frames(frames: list[dict[str, Any]], num: int = 3) -> list[str]:
    """Return the frames of which most moved, with the share; none where a frame holds less than `MIN_MOVING_SHARE` of it."""
    moving = [frame for frame in frames if (frame["non_rigid_share"] or 0.0) >= MIN_MOVING_SHARE]
    worst = sorted(moving, key=lambda frame: -frame["non_rigid_share"])[:num]
    return [f"{frame['index']} ({frame['non_rigid_share']:.0%})" for frame in worst]


def number(value: float) -> str:
    """Format with four significant digits and no exponent where a reader needs none."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = max(0, 4 - len(str(int(abs(value))))) if abs(value) >= 1 else 4
        return f"{value:,.{digits}f}".replace(",", "\u2009")
    return f"{value:.3g}"


def status_strip(statuses: list[str]) -> list[tuple[str, float, float]]:
    """Return runs of equal status as (status, start, length) in percent; bins of long recordings show their worst frame."""
    if len(statuses) > MAX_SEGMENTS:
        edges = [round(k * len(statuses) / MAX_SEGMENTS) for k in range(MAX_SEGMENTS + 1)]
        statuses = [min(statuses[a:b], key=WORST_FIRST.index) for a, b in pairwise(edges)]
    runs: list[list[Any]] = []
    for status in statuses:
        if runs and runs[-1][0] == status:
            runs[-1][1] += 1
        else:
            runs.append([status, 1])
    out, start = [], 0
    for status, length in runs:
        out.append((status, 100 * start / len(statuses), 100 * length / len(statuses)))
        start += length
    return out


def grouped_reasons(frames: list[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    """Return (status, reason, frame ranges, count) of frames without a pose, the most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for frame in frames:
        if frame["status"] in ("lost", "rejected"):
            # Numbers inside a reason differ from frame to frame; the first one stands for its kind.
            groups.setdefault((frame["status"], frame["reason"] or "no reason given"), []).append(frame["index"])
    return sorted(((s, r, ranges(i), len(i)) for (s, r), i in groups.items()), key=lambda group: -group[3])


def ranges(indices: list[int], limit: int = 12) -> str:
    """Write sorted frame numbers as ranges: 3, 5-9."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    texts = [str(a) if a == b else f"{a}\u2013{b}" for a, b in runs]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


@dataclass(frozen=True)
class MetricGroup:
    """The metrics of one kind, as tables."""

    name: str
    alignments: list[str]
    main: list[dict[str, Any]]
    """One row a metric: name, unit, protocol, lower_is_better and `values`, texts by alignment. Those that are read first."""
    others: list[dict[str, Any]]
    noise_floor: float | None
    """In millimetres: what the truth is not known better than."""


def grouped_metrics(metrics: list[dict[str, Any]]) -> list[MetricGroup]:
    """Return the tables of every group; values have as many digits as the truth is good for."""
    groups: dict[str, dict[tuple[str, str, str | None], dict[str, Any]]] = {}
    floors: dict[str, float] = {}
    for entry in metrics:
        metric = metric_of(entry)
        rows = groups.setdefault(metric.group, {})
        row = rows.setdefault((metric.name, metric.unit, metric.protocol), {**entry, "protocol": metric.protocol, "values": {}})
        row["values"][metric.alignment] = with_interval(metric)
        if metric.noise_floor is not None and metric.unit == "mm":
            floors[metric.group] = metric.noise_floor
    found = []
    for group, rows in groups.items():
        alignments = list(dict.fromkeys(alignment for row in rows.values() for alignment in row["values"]))
        main = [row for row in rows.values() if row["name"] in MAIN_METRICS and row["protocol"] is None] or list(rows.values())
        found.append(MetricGroup(group, alignments, main, [row for row in rows.values() if row not in main], floors.get(group)))
    return found


def headline(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the few numbers that a reader looks for first, as (value, label)."""
    frames = report["frames"]
    cards = [(f"{frames['posed']} / {frames['total']}", "frames posed")]
    for name, alignment, label in (
        ("ate_rmse", "sim3_trajectory", "camera path error, RMS"),
        ("accuracy_mean", "sim3_trajectory", "surface error, mean"),
        ("f_2mm", "sim3_trajectory", "F-score at 2 mm"),
        ("abs_rel", "scale_frame", "relative depth error"),
    ):
        found = next((m for m in report["metrics"] if (m["name"], m["alignment"]) == (name, alignment)), None)
        if found:
            cards.append((f"{formatted(metric_of(found))} {'' if found['unit'] in ('1', 'unitless') else found['unit']}".strip(), label))
    return [*cards, (f"{sum(report['seconds'].values()):.0f} s", "computing time")]
