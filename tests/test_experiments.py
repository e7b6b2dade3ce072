"""Tables of papers as files: everything that they name exists, and a score stands beside the published figure with the difference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from layouts import write_servct
from layouts_depth import write_hamlyn
from test_cli_eval import call, value

from recon.data.splits import read_split
from recon.eval.protocols import OWN, PROTOCOLS
from recon.models import registry
from recon.scoring.experiments import ORIGINS, PublishedRow, differences, figures_of, read_experiment
from recon.types import Metric, ReconError

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiments"
FILES = sorted(EXPERIMENTS.glob("*.toml"))
PUBLISHED = """
title = "t"
notes = ["a remark on the rows"]
[[rows]]
method = "Lamp"
network = "falloff"
origin = "authors"
source = "a paper"
protocol = "servct-mono"
figures = { abs_rel = 0.1, rmse = 5 }
[[rows]]
method = "Other"
origin = "later"
source = "another"
protocol = "servct-mono"
figures = { abs_rel = 0.2 }
"""
EXPERIMENT = """
title = "two pairs"
dataset = "servct"
protocols = ["servct-mono"]
cap_mm = 200
methods = ["falloff"]
published = "published.toml"
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_that_an_experiment_names_exists(path):
    experiment = read_experiment(path)
    known = registry()
    assert set(experiment.methods) <= set(known) and len(set(experiment.methods)) == len(experiment.methods)
    for protocol in experiment.protocols:
        assert PROTOCOLS[protocol].dataset in (None, experiment.dataset)
    if experiment.split is not None:
        split = read_split(experiment.split)
        assert split.dataset == experiment.dataset and experiment.part in split.parts
    assert experiment.rows or any("could not be read" in note for note in experiment.notes)
    for row in experiment.rows:
        assert row.network is None or row.network in known
        assert row.source and row.origin in ORIGINS and row.protocol in experiment.protocols
        assert row.figures and set(row.figures) <= set(figures_of(row.protocol))
        for name in {"abs_rel", "delta_1.25", "acc_2cm"} & set(row.figures):
            assert 0 < row.figures[name] < 1, f"{row.method}: {name} is a share"


def test_the_papers_data_sets_have_an_experiment_and_no_published_file_is_left_over():
    found = [read_experiment(path) for path in FILES]
    assert {"scared", "hamlyn", "servct", "endonerf", "c3vd", "endoslam"} <= {experiment.dataset for experiment in found}
    named = {re.search(r'published = "(.*)"', path.read_text())[1] for path in FILES}
    assert {f"published/{path.name}" for path in (EXPERIMENTS / "published").glob("*.toml")} == named


def test_no_experiment_asks_for_weights_that_have_seen_its_frames():
    for path in FILES:
        experiment = read_experiment(path)
        seen = {name for method in experiment.methods for name in registry()[method].trained_on}
        if experiment.name == "scared-video":
            assert "scared/scared-af" not in seen


def test_differences_are_of_the_same_network_protocol_and_figure():
    row = PublishedRow("A", "a", "authors", "s", "servct-mono", {"abs_rel": 0.1, "rmse": 5.0}, "")
    metrics = [
        Metric("depth", "abs_rel", 0.5, "1", "scale_frame"),
        Metric("depth", "abs_rel", 0.13, "1", "scale_frame", protocol="servct-mono"),
        Metric("depth", "sq_rel", 9.0, "mm", "scale_frame", protocol="servct-mono"),
    ]
    (found,) = differences([row], "mine", "a", metrics)
    assert (found.label, found.name, found.published, found.here) == ("mine", "abs_rel", 0.1, 0.13)
    assert found.difference == pytest.approx(0.03)
    assert differences([row], "mine", "b", metrics) == []


def experiment_in(folder: Path, text: str = EXPERIMENT, published: str = PUBLISHED) -> Path:
    (folder / "published.toml").write_text(published)
    (folder / "table.toml").write_text(text)
    return folder / "table.toml"


def test_one_command_a_table(capsys, tmp_path):
    data = write_servct(tmp_path / "Experiment_1")
    words = ("eval", "networks", "--experiment", experiment_in(tmp_path), "--data", data, "--out", tmp_path / "out")
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    here = value(found["scores"][0], "abs_rel", "scale_frame", "servct-mono")
    by_name = {entry["name"]: entry for entry in found["published"]}
    assert set(by_name) == {"abs_rel", "rmse"}
    assert by_name["abs_rel"]["here"] == here and by_name["abs_rel"]["difference"] == pytest.approx(here - 0.1)
    assert by_name["abs_rel"]["row"]["source"] == "a paper"
    code, out, err = call(capsys, *words)
    assert code == 0, err
    text = f"{here:.4g} ({here - 0.1:+.2g})"
    page = (tmp_path / "out" / "networks.html").read_text()
    for place in (out, page):
        assert text in place and "Lamp" in place and "Other" in place and "another" in place and "a remark on the rows" in place


def test_a_part_of_the_data_is_said_to_be_one(capsys, tmp_path):
    write_hamlyn(tmp_path / "data" / "rectified01", count=2)
    write_hamlyn(tmp_path / "data" / "rectified08", count=2)
    words = ("--experiment", EXPERIMENTS / "hamlyn.toml", "--data", tmp_path / "data", "--methods", "falloff", "--max-frames", 1)
    code, out, err = call(capsys, "eval", "networks", *words, "--out", tmp_path / "out")
    assert code == 0, err
    assert "1 of the 21 recordings" in out and "at most 1 frames" in out and "rectified08" not in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cap_mm = 200", "cap_mm = 180", "cap_mm is 180.*servct-mono 200"),
        ('dataset = "servct"', 'dataset = "newt"', "data set 'newt' is not known; known:"),
        ('protocols = ["servct-mono"]', 'protocols = ["mine"]', "protocol 'mine' is not known; known:"),
        ("published.toml", "absent.toml", "absent.toml is not there"),
        ("cap_mm = 200", "cap_mm = 200\nscale = 3", "unknown scale; it must have"),
        ("cap_mm = 200", 'cap_mm = "far"', "cap_mm is 'far', expected a float"),
        ('title = "two pairs"', "", "lacks title"),
        ("title = ", "title ", "cannot be read as an experiment"),
        ('origin = "later"', 'origin = "hearsay"', "'hearsay', expected one of: authors"),
        ("rmse = 5", "speed = 5", "speed = 5, expected numbers named: abs_rel"),
        ('source = "another"\nprotocol = "servct-mono"', 'source = "another"\nprotocol = "hamlyn"', "published under hamlyn"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, old, new, message):
    assert old in EXPERIMENT + PUBLISHED
    path = experiment_in(tmp_path, EXPERIMENT.replace(old, new), PUBLISHED.replace(old, new) if old not in EXPERIMENT else PUBLISHED)
    with pytest.raises(ReconError, match=message) as error:
        read_experiment(path)
    assert len(str(error.value).splitlines()) == 1 and str(tmp_path) in str(error.value)


def test_options_that_contradict_an_experiment_are_told_in_one_line(capsys, tmp_path):
    path = experiment_in(tmp_path)
    for words, message in (
        (["--experiment", path], "needs --data ROOT"),
        (["--experiment", path, "--data", tmp_path, "phantom"], "takes no SOURCE"),
        (["--experiment", path, "--data", tmp_path, "--protocol", OWN], "says itself what --protocol would"),
        (["--experiment", tmp_path / "none.toml", "--data", tmp_path], "cannot be read as an experiment"),
        (["--experiment", path, "--data", tmp_path / "none"], "does not exist"),
        (["--data", tmp_path, "--methods", "falloff"], "--data goes with --experiment"),
        (["--experiment", EXPERIMENTS / "scared.toml", "--data", tmp_path], "endodac=FILE"),
    ):
        code, _, err = call(capsys, "eval", "networks", *words, "--out", tmp_path / "out")
        assert code == 2 and len(err.strip().splitlines()) == 1 and message in err, err
