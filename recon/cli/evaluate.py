"""The verb eval: numbers for anyone's predictions, without a pipeline."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from recon.cli.predictions import missing_prediction, open_prediction
from recon.cli.results import stdout
from recon.cli.truths import Truth, open_truths, split_notes
from recon.data import is_phantom
from recon.eval.ladder import Rung
from recon.eval.protocols import OWN, PROTOCOLS
from recon.eval.surface import SurfaceOptions
from recon.report.tables import alignment_table, method_table, with_interval
from recon.scoring.depth import DepthOptions, compare_depth
from recon.scoring.files import write_scores
from recon.scoring.frame_surface import FrameComparison, compare_frame_surfaces
from recon.scoring.pictures import depth_pictures, surface_pictures
from recon.scoring.prediction import Prediction
from recon.scoring.score import Score, mean_score
from recon.scoring.surface import Comparison, compare_surface, median_true_depth
from recon.scoring.trajectory import compare_trajectory
from recon.types import ReconError

MEDIAN_DEPTH_FRAMES = 50
"""Spread over a recording, to know how far away its tissue is."""


@dataclass(frozen=True)
class _Scored:
    """A score with what pictures of it need."""

    score: Score
    truth: Truth
    prediction: Prediction
    rungs: list[Rung]


def depth(arguments: argparse.Namespace) -> int:
    """Score depth maps."""
    return _evaluate("depth", arguments)


def trajectory(arguments: argparse.Namespace) -> int:
    """Score camera paths."""
    return _evaluate("trajectory", arguments)


def surface(arguments: argparse.Namespace) -> int:
    """Score surfaces."""
    return _evaluate("surface", arguments)


def protocols(arguments: argparse.Namespace) -> int:
    """List the published depth protocols and where their arithmetic was read."""
    table = Table(
        "protocol", "what", "true depth, mm", "aligned by", "crop", "resized", "source and decisions", header_style="", show_lines=True
    )
    for protocol in PROTOCOLS.values():
        limits = f"{protocol.min_truth:g} to {'no cap' if protocol.max_truth is None else format(protocol.max_truth, 'g')}"
        clamped = ", prediction clamped" if protocol.clamps else ""
        fits = ", ".join(f"{alignment}: {fit.replace('_', ' ')}" for alignment, fit in protocol.fits)
        crop = protocol.crop
        cropped = "" if crop is None else f"rows {crop.top}:{crop.bottom}, columns {crop.left}:{crop.right}".replace("None", "")
        table.add_row(protocol.name, protocol.title, limits + clamped, fits, cropped, protocol.resize, protocol.source)
    stdout.print(table)
    return 0


def _evaluate(kind: str, arguments: argparse.Namespace) -> int:
    of_method: dict[str, list[Score]] = {}
    for scored in _scores(kind, arguments):
        of_method.setdefault(scored.score.method, []).append(scored.score)
        if arguments.out is not None:
            _write_pictures(kind, scored, arguments.out)
    summaries = {method: _summary(scores, arguments.seed) for method, scores in of_method.items()}
    every = [score for scores in of_method.values() for score in scores]
    notes = split_notes(arguments)
    if arguments.out is not None:
        write_scores(arguments.out, every, [s for s in summaries.values() if s not in every], notes)
    if arguments.json:
        print(
            json.dumps(
                {"scores": [s.as_json() for s in every], "summaries": [s.as_json() for s in summaries.values()], "notes": notes},
                allow_nan=False,
            )
        )
    else:
        _print(every, summaries, notes)
        if arguments.out is not None:
            stdout.print(f"files   {arguments.out}", soft_wrap=True)
    return 0


def _scores(kind: str, arguments: argparse.Namespace) -> Iterator[_Scored]:
    names = _method_names(arguments.predictions)
    for truth in open_truths(kind, arguments):
        for path, name in zip(arguments.predictions, names, strict=True):
            prediction = _prediction(path, name, kind, truth, arguments)
            score, rungs = _compare(kind, truth, prediction, arguments)
            notes = [*truth.sequence.notes, *score.notes]
            yield _Scored(replace(score, notes=notes), truth, prediction, rungs)


def _prediction(path: Path, name: str, kind: str, truth: Truth, arguments: argparse.Namespace) -> Prediction:
    place = path / truth.name if truth.name else path
    if truth.name and path.is_dir() and not place.exists():
        return missing_prediction(name, kind, truth.name, arguments)
    return replace(open_prediction(place, kind, arguments, truth.sequence), name=name)


def _compare(kind: str, truth: Truth, prediction: Prediction, arguments: argparse.Namespace) -> tuple[Score, list[Rung]]:
    _check_options(kind, truth, prediction, arguments)
    if kind == "trajectory":
        return compare_trajectory(truth.sequence, prediction, arguments.seed)[0], []
    if kind == "depth":
        split = None if arguments.split is None else arguments.split.stem
        options = DepthOptions(tuple(arguments.protocol or ()), truth.indices, arguments.max_frames, split, arguments.seed)
        return compare_depth(truth.sequence, prediction, options), []
    options = SurfaceOptions(num_samples=arguments.samples, seed=arguments.seed, cap_mm=arguments.cap)
    if prediction.mesh is None:
        frames = FrameComparison(options, arguments.both_views, truth.indices, arguments.max_frames)
        return compare_frame_surfaces(truth.sequence, prediction, frames), []
    whole = truth.is_bare and truth.sequence.camera is not None and truth.sequence.trajectory_gt is not None
    return compare_surface(
        truth.sequence, prediction, Comparison(options, median_true_depth(truth.sequence, MEDIAN_DEPTH_FRAMES), truth_is_whole=whole)
    )


def _check_options(kind: str, truth: Truth, prediction: Prediction, arguments: argparse.Namespace) -> None:
    """Raise ReconError for an option that would change nothing here, rather than let a reader believe that it did."""
    if kind != "surface":
        return
    if not truth.is_bare and (arguments.camera is not None or arguments.gt_trajectory is not None):
        raise ReconError(f"{arguments.truth} brings its own camera and path: --camera and --gt-trajectory are for a bare mesh")
    if arguments.both_views and prediction.mesh is not None:
        raise ReconError("--both-views is for depth maps scored as the surfaces of single views, and PRED is a mesh")


def _method_names(paths: list[Path]) -> list[str]:
    """Names of folders where they tell the methods apart, else whole paths."""
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        raise ReconError(f"{next(path for path, place in zip(paths, places, strict=True) if places.count(place) > 1)} is given twice")
    names = [place.name for place in places]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _summary(scores: list[Score], seed: int) -> Score:
    return scores[0] if len(scores) == 1 else mean_score(scores, seed)


def _print(scores: list[Score], summaries: dict[str, Score], notes: list[str]) -> None:
    if len(summaries) > 1:
        first = next(iter(summaries.values()))
        stdout.print(method_table({name: s.metrics for name, s in summaries.items()}, f"{first.sequence} (* best)", with_interval))
    for score in scores if len(summaries) == 1 else ():
        _print_score(score)
    for summary in summaries.values() if len(summaries) == 1 and len(scores) > 1 else ():
        _print_score(summary)
    for method, summary in summaries.items():
        for sentence in summary.inputs.sentences(summary.dataset, summary.sequence):
            stdout.print(f"{method}: {sentence}", soft_wrap=True)
    for note in dict.fromkeys([*notes, *(note for score in (*scores, *summaries.values()) for note in score.notes)]):
        stdout.print(f"note: {note}", soft_wrap=True)


def _print_score(score: Score) -> None:
    own = [metric for metric in score.metrics if metric.protocol in (None, OWN)]
    published = [metric for metric in score.metrics if metric.protocol not in (None, OWN)]
    title = f"{score.method} on {score.sequence} ({score.dataset})"
    stdout.print(alignment_table(own, title, with_interval))
    if published:
        stdout.print(alignment_table(published, f"{title}, published protocols", with_interval))
    for rung in score.rungs:
        condition = "" if rung["condition"] is None else f", condition {rung['condition']:.3g}"
        stdout.print(
            f"{rung['alignment']:16} scale {rung['scale']:.6g}, turned {rung['rotation_deg']:.4g} deg, "
            f"moved {rung['translation']:.4g} {rung['unit']} (centroid){condition}"
        )
    floors = {metric.noise_floor for metric in score.metrics if metric.noise_floor is not None and metric.unit == "mm"}
    for floor in sorted(floors):
        stdout.print(f"the truth of this data set is not known better than {floor:.2g} mm: smaller differences mean nothing")
    if not floors and not is_phantom(score.dataset):
        stdout.print("the error of this truth itself is not stated")


def _write_pictures(kind: str, scored: _Scored, out: Path) -> None:
    folder = out / scored.score.method.replace("/", "_") / scored.score.sequence.replace("/", "_")
    if kind == "depth":
        depth_pictures(folder, scored.truth.sequence, scored.prediction, scored.score)
    if kind == "surface":
        surface_pictures(folder, scored.truth.sequence, scored.prediction, scored.score, scored.rungs)
