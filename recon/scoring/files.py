"""Scores as files: JSON with everything, CSV for spreadsheets, LaTeX rows for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recon.io.atomic import write_json, write_text
from recon.report.tables import as_csv, as_latex
from recon.scoring.score import SCHEMA, Score


def write_scores(
    out: Path, scores: Sequence[Score], means: Sequence[Score], notes: Sequence[str], more: Mapping[str, Any] | None = None
) -> None:
    """Write scores.json, scores.csv, scores.tex and, where single frames have values, frames.csv.

    `scores` are single sequences, `means` are over several; the LaTeX rows take a method's mean where it has one. `more` holds
    further entries of the JSON file.
    """
    write_json(
        out / "scores.json",
        {
            "schema": SCHEMA,
            "scores": [s.as_json() for s in scores],
            "means": [s.as_json() for s in means],
            "notes": list(notes),
            **(more or {}),
        },
    )
    write_text(out / "scores.csv", as_csv(row for score in (*scores, *means) for row in _rows(score)))
    rows = [{"method": s.method, "sequence": s.sequence, **frame} for s in scores for frame in s.frames]
    if rows:
        write_text(out / "frames.csv", as_csv(rows))
    chosen = {score.method: score.metrics for score in (*scores, *means)}
    write_text(out / "scores.tex", as_latex(chosen))


def _rows(score: Score) -> list[dict[str, Any]]:
    return [
        {
            "method": score.method,
            "sequence": score.sequence,
            "group": metric.group,
            "protocol": metric.protocol or "",
            "alignment": metric.alignment,
            "name": metric.name,
            "value": metric.value,
            "unit": metric.unit,
            "interval_low": None if metric.interval is None else metric.interval[0],
            "interval_high": None if metric.interval is None else metric.interval[1],
            "noise_floor": metric.noise_floor,
            "lower_is_better": metric.lower_is_better,
        }
        for metric in score.metrics
    ]
