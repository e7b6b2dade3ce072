"""The verb eval networks: several depth networks on the same frames, their errors beside what they cost.

A sibling of `eval depth` and not an option of it: it has no PRED, and the words that explain a foreign prediction (its unit,
its scale, what trained it, how its files belong to frames) would say nothing here. The scoring is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recon.cli.results import stdout
from recon.cli.truths import Truth, open_truths, recordings_of, split_notes
from recon.data.splits import read_split, shared_frames
from recon.eval.protocols import OWN, PROTOCOLS
from recon.io.atomic import write_text
from recon.models import torch_device
from recon.pipeline.lock import run_lock
from recon.report.comparison import Comparison, PublishedTable, render_comparison
from recon.report.page import Picture
from recon.report.tables import method_table, text_table, with_interval
from recon.sampling import spread
from recon.scoring.depth import DepthOptions, compare_depth
from recon.scoring.experiments import ORIGINS, UNITS, Difference, Experiment, differences, read_experiment
from recon.scoring.files import write_scores
from recon.scoring.networks import (
    Cost,
    Entrant,
    Machine,
    Recording,
    entrant,
    frames_to_predict,
    network_prediction,
    predict,
    with_short_labels,
)
from recon.scoring.pictures import network_pictures
from recon.scoring.prediction import chosen_frames
from recon.scoring.score import Score, mean_score
from recon.types import Metric, ReconError

PAGE = "networks.html"
EIGEN = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta_1.25")
METRIC = ("coverage", "abs_rel", "mae", "acc_2cm")
"""Without any alignment: the errors are of networks that claim metres."""
TEMPORAL = ("tae", "tas")
MAX_PICTURED = 3
"""Recordings of which a frame is shown."""


@dataclass(frozen=True)
class _Plan:
    """What is compared on what."""

    title: str
    methods: tuple[str, ...]
    sources: tuple[str, ...]
    dataset: str | None
    split: Path | None
    part: str
    protocols: tuple[str, ...]
    experiment: Experiment | None = None


def networks(arguments: argparse.Namespace) -> int:
    """Compare networks on the same frames."""
    plan = _plan(arguments)
    unknown = [name for name in plan.protocols if name not in PROTOCOLS]
    if unknown:
        raise ReconError(f"protocol {unknown[0]!r} is not known; known: {', '.join(PROTOCOLS)}")
    machine = _machine(arguments.device)
    entrants = with_short_labels([entrant(text) for text in plan.methods])
    for one in entrants:
        _refuse_seen(one, plan)
    truths = _truths(plan)
    recordings = [_recording(truth, plan, arguments.max_frames) for truth in truths]
    with run_lock(arguments.out):
        costs = predict(entrants, recordings, machine, arguments.out, say=lambda line: print(line, file=sys.stderr, flush=True))
    scores = {one.label: [_score(one, *pair, plan, arguments) for pair in zip(truths, recordings, strict=True)] for one in entrants}
    return _report(plan, entrants, recordings, costs, scores, arguments)


def _plan(arguments: argparse.Namespace) -> _Plan:
    methods = tuple(word for text in arguments.methods or () for word in text.split(",") if word)
    if arguments.experiment is not None:
        return _plan_of_experiment(arguments, methods)
    if arguments.data is not None:
        raise ReconError("--data goes with --experiment FILE; without one, name recordings as SOURCE")
    if not methods:
        raise ReconError("no network is named: give --methods NAME[=WEIGHTS],..., with names of `recon models`")
    if not arguments.sources:
        raise ReconError("no recording is given: name a sequence of a known data set, a folder of such, or a phantom")
    title = ", ".join(arguments.sources)
    return _Plan(
        title, methods, tuple(arguments.sources), arguments.dataset, arguments.split, arguments.part or "test", _protocols(arguments)
    )


def _plan_of_experiment(arguments: argparse.Namespace, methods: tuple[str, ...]) -> _Plan:
    """What the file says; only the networks may be others, since their weights lie where the user has them."""
    if arguments.data is None or arguments.sources:
        raise ReconError(f"--experiment {arguments.experiment} needs --data ROOT, the folder of its data set, and takes no SOURCE")
    given = {"--dataset": arguments.dataset, "--split": arguments.split, "--part": arguments.part, "--protocol": arguments.protocol}
    says = [option for option, value in given.items() if value is not None]
    if says:
        raise ReconError(
            f"--experiment {arguments.experiment} says itself what {says[0]} would: leave that out, or leave out the experiment"
        )
    found = read_experiment(arguments.experiment)
    protocols = tuple(name for name in found.protocols if name != OWN)
    sources = (str(arguments.data),)
    return _Plan(found.title, methods or found.methods, sources, found.dataset, found.split, found.part, protocols, found)


def _protocols(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Those asked for; the project's own is always there."""
    return tuple(name for name in dict.fromkeys(arguments.protocol or ()) if name != OWN)


def _machine(device: str) -> Machine:
    import torch

    return Machine(torch_device(device), torch.get_num_threads())


def _refuse_seen(one: Entrant, plan: _Plan) -> None:
    """A network is not scored on the very frames that trained it, where the split of its training lies beside the given one."""
    if plan.split is None:
        return
    split = read_split(plan.split)
    for name in one.seen or ():
        file = plan.split.parent / f"{name.partition('/')[2]}.toml"
        if "/" in name and file.is_file():
            seen = shared_frames(read_split(file), split, plan.part)
            if seen:
                raise ReconError(
                    f"method {one.label!r} was trained on {name} and must not be scored on the {plan.part} part of {split.name}: "
                    f"{seen[0]}; leave it out, or give weights that were trained otherwise"
                )


def _truths(plan: _Plan) -> list[Truth]:
    found: list[Truth] = []
    for source in plan.sources:
        if recordings_of(source, plan.dataset) is None:
            raise ReconError(
                f"{source} holds no recording of a known data set, so there is nothing true to compare with: give one that brings its "
                "depth, a folder of such, or phantom:SCENE"
            )
        found += open_truths("depth", _truth_arguments(source, plan))
    for truth in found:
        if truth.sequence.depth_gt is None:
            raise ReconError(f"{truth.path} ({truth.sequence.dataset}) has no true depth to score against: leave it out")
    names = [truth.sequence.name for truth in found]
    if len(set(names)) < len(names):
        found = [replace(truth, sequence=replace(truth.sequence, name=truth.path)) for truth in found]
    places = [truth.path for truth in found]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ReconError(f"{twice} is given twice; name it once")
    return found


def _truth_arguments(source: str, plan: _Plan) -> argparse.Namespace:
    return argparse.Namespace(truth=source, dataset=plan.dataset, split=plan.split, part=plan.part, trained_on=None)


def _recording(truth: Truth, plan: _Plan, max_frames: int | None) -> Recording:
    chosen = chosen_frames(truth.sequence, truth.indices, max_frames)
    return Recording(truth.path, plan.dataset, truth.sequence, frames_to_predict(truth.sequence, chosen))


def _score(one: Entrant, truth: Truth, recording: Recording, plan: _Plan, arguments: argparse.Namespace) -> Score:
    split = None if plan.split is None else plan.split.stem
    options = DepthOptions(plan.protocols, truth.indices, arguments.max_frames, split, arguments.seed)
    score = compare_depth(truth.sequence, network_prediction(one, recording, arguments.out), options)
    return replace(score, notes=[*truth.sequence.notes, *score.notes])


def _report(
    plan: _Plan,
    entrants: Sequence[Entrant],
    recordings: Sequence[Recording],
    costs: dict[str, Cost],
    scores: dict[str, list[Score]],
    arguments: argparse.Namespace,
) -> int:
    out = arguments.out
    summaries = {label: found[0] if len(found) == 1 else mean_score(found, arguments.seed) for label, found in scores.items()}
    summaries = {label: replace(score, metrics=[*score.metrics, *costs[label].metrics()]) for label, score in summaries.items()}
    every = [score for found in scores.values() for score in found] if len(recordings) > 1 else list(summaries.values())
    means = list(summaries.values()) if len(recordings) > 1 else []
    notes = [*_cost_notes(recordings, costs), *split_notes(argparse.Namespace(split=plan.split, part=plan.part, trained_on=None))]
    facts: dict[str, Any] = {"networks": [_facts(one, costs[one.label]) for one in entrants]}
    published = []
    if plan.experiment is not None:
        notes += [*_shortfalls(plan, recordings, arguments.max_frames), *plan.experiment.notes]
        found = [d for one in entrants for d in differences(plan.experiment.rows, one.label, one.model, summaries[one.label].metrics)]
        facts["experiment"] = plan.experiment.name
        facts["published"] = [{**asdict(d), "difference": d.difference} for d in found]
        published = [_published_table(plan.experiment, found)]
    write_scores(out, every, means, notes, facts)
    shown = {label: headlines(score.metrics) for label, score in summaries.items()}
    all_notes = list(dict.fromkeys([*notes, *(note for score in (*every, *means) for note in score.notes)]))
    sentences = {label: score.inputs.sentences(score.dataset, score.sequence) for label, score in summaries.items()}
    page = Comparison(plan.title, shown, sentences, all_notes, list(_pictures(entrants, recordings, out)), published)
    write_text(out / PAGE, render_comparison(page))
    if arguments.json:
        as_json = {"scores": [s.as_json() for s in every], "summaries": [s.as_json() for s in summaries.values()], "notes": notes}
        print(json.dumps({**as_json, **facts}, allow_nan=False))
        return 0
    stdout.print(method_table(shown, f"{plan.title} (* best)", with_interval))
    for table in published:
        stdout.print(text_table(table.title, table.columns, table.rows))
    for label, lines in sentences.items():
        stdout.print(f"{label}: {'; '.join(lines)}", soft_wrap=True)
    for note in all_notes:
        stdout.print(f"note: {note}", soft_wrap=True)
    stdout.print(f"page    {out / PAGE}", soft_wrap=True)
    stdout.print(f"scores  {out / 'scores.json'}", soft_wrap=True)
    return 0


def headlines(metrics: Sequence[Metric]) -> list[Metric]:
    """The figures that a comparison shows; scores.json has all.

    One scale a frame (what papers compare), agreement in time, unscaled figures of metric networks, published protocols, costs.
    """

    def is_shown(metric: Metric) -> bool:
        if metric.protocol is not None or metric.group == "speed":
            return True
        names = {"scale_frame": EIGEN, "none": METRIC}.get(metric.alignment, ())
        return metric.name in (*names, *TEMPORAL)

    return [metric for metric in metrics if is_shown(metric)]


def _facts(one: Entrant, cost: Cost) -> dict[str, Any]:
    """A network's entry in scores.json."""
    where = {"model": one.model, "output": one.info.output, "licence": one.info.licence, "weights_sha256": one.sha256 or None}
    return {"method": one.label, **where, "trained_on": None if one.seen is None else list(one.seen), **asdict(cost)}


def _shortfalls(plan: _Plan, recordings: Sequence[Recording], max_frames: int | None) -> list[str]:
    """Why the figures are not of all that the published ones are of."""
    notes = []
    if plan.split is not None:
        expected = len(read_split(plan.split).parts[plan.part])
        if len(recordings) < expected:
            notes.append(f"{len(recordings)} of the {expected} recordings of the {plan.part} part are here; published figures are of all")
    if max_frames is not None:
        notes.append(f"at most {max_frames} frames of a recording were scored; published figures are of all")
    return notes


def _published_table(experiment: Experiment, found: Sequence[Difference]) -> PublishedTable:
    """A line for every published row, and below it one for each network that was run: its figures, and how much they differ."""
    names = list(dict.fromkeys(name for row in experiment.rows for name in row.figures))
    rows: list[list[str]] = []
    for row in experiment.rows:
        figures = [f"{row.figures[name]:g}" if name in row.figures else "" for name in names]
        remark = f" ({row.note})" if row.note else ""
        rows.append([f"{row.method}{remark}", ORIGINS[row.origin], *figures, row.source])
        for label in dict.fromkeys(d.label for d in found if d.row == row):
            own = {d.name: f"{d.here:.4g} ({d.difference:+.2g})" for d in found if d.row == row and d.label == label}
            rows.append([f"  {label}", "here, and minus published", *(own.get(name, "") for name in names), ""])
    title = f"published: {experiment.title}, {', '.join(experiment.protocols)}"
    columns = [f"{name} ({UNITS[name]})" if name in UNITS else name for name in names]
    return PublishedTable(title, ["method", "measured", *columns, "read in"], rows)


def _cost_notes(recordings: Sequence[Recording], costs: dict[str, Cost]) -> list[str]:
    first = next(iter(costs.values()))
    sizes = dict.fromkeys(len(recording.indices) for recording in recordings)
    frames = f"{', '.join(map(str, sizes))} frames" if len(recordings) == 1 else f"{len(recordings)} recordings"
    return [
        f"{frames}; every network in a process of its own on {first.device}, threads: {first.threads}. ms per frame: median from decoded "
        "picture to depth, loading and a first call left out; peak memory: the whole process with its libraries, 10^6 bytes",
        "networks see every pixel inside the scope's field; instruments and highlights are not masked",
    ]


def _pictures(entrants: Sequence[Entrant], recordings: Sequence[Recording], out: Path) -> Iterator[Picture]:
    for position in spread(list(range(len(recordings))), MAX_PICTURED):
        recording = recordings[position]
        predictions = [network_prediction(one, recording, out) for one in entrants]
        middle = recording.indices[len(recording.indices) // 2]
        for caption, data in network_pictures(recording.sequence, predictions, middle):
            yield Picture(caption, data)
