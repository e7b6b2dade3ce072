"""Numbers as tables: for the terminal, for CSV and for LaTeX, never with digits below the noise of the truth."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from recon.types import Metric

SIGNIFICANT = 4
COUNT_MISSING = ("coverage", "posed", "penalised", "recall", "completeness", "chamfer", "hausdorff", "hd95", "f_")
"""Parts of the names of figures that what is missing makes worse."""
MIN_COVERAGE_RATIO = 0.98
"""Of the highest coverage among the methods, for an error to be called the best."""
Row = tuple[str, str, str | None]
"""Group, name with unit, protocol."""
LATEX_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def metric_of(entry: dict[str, Any]) -> Metric:
    """A metric as it stands in report.json."""
    interval = entry.get("interval")
    return Metric(**{**entry, "interval": None if interval is None else (float(interval[0]), float(interval[1]))})


def formatted(metric: Metric) -> str:
    """The value with four significant digits, or as many as the truth is good for: `< 0.32` below its noise floor."""
    value, floor = metric.value, metric.noise_floor
    if floor is None or floor <= 0:
        return f"{value:.{SIGNIFICANT}g}"
    if abs(value) < floor:
        return f"< {floor:.2g}"
    decimals = max(0, -math.floor(math.log10(floor)))
    return f"{value:.{decimals}f}"


def with_interval(metric: Metric) -> str:
    """The value and its 95 % interval, where it has one."""
    if metric.interval is None:
        return formatted(metric)
    low, high = (formatted(Metric(metric.group, metric.name, end, metric.unit, noise_floor=metric.noise_floor)) for end in metric.interval)
    return formatted(metric) if low == high == formatted(metric) else f"{formatted(metric)} [{low}, {high}]"


def alignment_table(metrics: Sequence[Metric], title: str, show: Callable[[Metric], str] = formatted) -> Table:
    """One method: a row a metric, a column an alignment."""
    columns = list(dict.fromkeys(metric.alignment for metric in metrics))
    rows: dict[Row, dict[str, str]] = {}
    for metric in metrics:
        rows.setdefault(_row(metric), {})[metric.alignment] = show(metric)
    return _table(title, rows, columns)


def method_table(metrics_of: dict[str, Sequence[Metric]], title: str, show: Callable[[Metric], str] = formatted) -> Table:
    """Several methods: a row a metric under one alignment, a column a method, the best value marked."""
    shown = {
        row.key: {method: text + (" *" if method == row.best else "") for method, text in row.cells.items()}
        for row in method_rows(metrics_of, show)
    }
    return _table(title, shown, list(metrics_of))


@dataclass(frozen=True)
class MethodRow:
    """One figure of several methods."""

    key: Row
    """The name says the alignment too."""
    cells: dict[str, str]
    """By method; absent where it has no such figure."""
    best: str | None


def method_rows(metrics_of: dict[str, Sequence[Metric]], show: Callable[[Metric], str] = formatted) -> list[MethodRow]:
    """Figures of several methods, in the order in which they first appear."""
    rows: dict[Row, dict[str, Metric]] = {}
    for method, metrics in metrics_of.items():
        for metric in metrics:
            group, name, protocol = _row(metric)
            aligned = name if metric.group == "speed" else f"{name}, {metric.alignment}"
            rows.setdefault((group, aligned, protocol), {})[method] = metric
    found = []
    for row, metrics in rows.items():
        best = best_method({method: metric for method, metric in metrics.items() if _may_win(metric, metrics_of, method)})
        found.append(MethodRow(row, {method: show(metric) for method, metric in metrics.items()}, best))
    return found


def _may_win(metric: Metric, metrics_of: dict[str, Sequence[Metric]], method: str) -> bool:
    """An error over less than the others cover is no better error; figures in which missing counts are open to all."""
    if any(word in metric.name for word in COUNT_MISSING):
        return True
    shares = {name: _covered(metrics, metric) for name, metrics in metrics_of.items()}
    most = max((share for share in shares.values() if share is not None), default=None)
    own = shares[method]
    return most is None or (own is not None and own >= MIN_COVERAGE_RATIO * most)


def _covered(metrics: Sequence[Metric], like: Metric) -> float | None:
    """The share that a figure's group and protocol cover: of pixels, surface or frames."""
    same = [m for m in metrics if (m.group, m.protocol) == (like.group, like.protocol) and m.name in ("coverage", "posed")]
    exact = [m.value for m in same if m.alignment == like.alignment]
    return (exact or [m.value for m in same] or [None])[0]


def best_method(metrics: dict[str, Metric]) -> str | None:
    """Whose value is best; None where there is no better direction, and where the best two differ by less than the truth's noise."""
    first = next(iter(metrics.values()), None)
    if first is None or len(metrics) < 2 or first.lower_is_better is None:
        return None
    ranked = sorted(metrics, key=lambda method: metrics[method].value, reverse=not first.lower_is_better)
    margin = abs(metrics[ranked[0]].value - metrics[ranked[1]].value)
    return ranked[0] if margin > (first.noise_floor or 0.0) else None


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Cells of text for the terminal."""
    table = Table(*columns, title=title, title_justify="left", header_style="", title_style="")
    for row in rows:
        table.add_row(*row)
    return table


def as_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of any columns, in the order in which columns first appear; empty where a row has none."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_latex(metrics_of: dict[str, Sequence[Metric]]) -> str:
    """Rows for a table of a paper: per group, protocol and alignment one comment that names the columns, then a row a method."""
    blocks: dict[tuple[str, str | None, str], dict[str, list[Metric]]] = {}
    for method, metrics in metrics_of.items():
        for metric in metrics:
            blocks.setdefault((metric.group, metric.protocol, metric.alignment), {}).setdefault(method, []).append(metric)
    lines = []
    for (group, protocol, alignment), methods in blocks.items():
        names = list(dict.fromkeys(label(metric) for metrics in methods.values() for metric in metrics))
        lines.append(f"% {group}, alignment {alignment}" + (f", protocol {protocol}" if protocol else ""))
        lines.append(f"% method & {' & '.join(names)} \\\\")
        for method, metrics in methods.items():
            values = {label(metric): formatted(metric).replace("< ", "$<$") for metric in metrics}
            lines.append(" & ".join([method.translate(LATEX_SPECIAL), *(values.get(name, "--") for name in names)]) + r" \\")
    return "\n".join(lines) + "\n"


def label(metric: Metric) -> str:
    """Name and unit; ratios have none."""
    return metric.name if metric.unit == "1" else f"{metric.name} ({metric.unit})"


def _row(metric: Metric) -> Row:
    return metric.group, label(metric), metric.protocol


def _table(title: str, rows: dict[Row, dict[str, str]], columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="", title_style="")
    table.add_column("metric")
    if any(protocol for _, _, protocol in rows):
        table.add_column("protocol")
    for column in columns:
        table.add_column(column, justify="right")
    group_before = None
    for (group, name, protocol), values in rows.items():
        if group_before not in (None, group):
            table.add_section()
        group_before = group
        cells = [name, protocol or ""] if len(table.columns) == len(columns) + 2 else [name]
        table.add_row(*cells, *(values.get(column, "") for column in columns))
    return table
