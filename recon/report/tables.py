"""Numbers as tables: for the terminal, for CSV and for LaTeX, never with digits below the noise of the truth."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from recon.types import Metric

SIGNIFICANT = 4
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
    return f"{formatted(metric)} [{low}, {high}]"


def alignment_table(metrics: Sequence[Metric], title: str, show: Callable[[Metric], str] = formatted) -> Table:
    """One method: a row a metric, a column an alignment."""
    columns = list(dict.fromkeys(metric.alignment for metric in metrics))
    rows: dict[Row, dict[str, str]] = {}
    for metric in metrics:
        rows.setdefault(_row(metric), {})[metric.alignment] = show(metric)
    return _table(title, rows, columns)


def method_table(metrics_of: dict[str, Sequence[Metric]], title: str, show: Callable[[Metric], str] = formatted) -> Table:
    """Several methods: a row a metric under one alignment, a column a method, the best value marked."""
    rows: dict[Row, dict[str, str]] = {}
    best: dict[Row, tuple[float, str]] = {}
    for method, metrics in metrics_of.items():
        for metric in metrics:
            group, name, protocol = _row(metric)
            row = (group, f"{name}, {metric.alignment}", protocol)
            rows.setdefault(row, {})[method] = show(metric)
            cost = metric.value if metric.lower_is_better else -metric.value
            if row not in best or cost < best[row][0]:
                best[row] = (cost, method)
    for row, (_, method) in best.items():
        if len(rows[row]) > 1:
            rows[row][method] += " *"
    return _table(title, rows, list(metrics_of))


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
