"""`recon eval networks`: the same frames, the same scoring as for anyone's files, costs of processes of their own, nothing made twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_c3vd, write_folder, write_servct
from test_cli_eval import call, value
from torch import nn

from recon.data import open_sequence
from recon.geometry.cameras import usable_mask
from recon.io.depth import read_depth
from recon.models.falloff import Falloff
from recon.scoring import network_run
from recon.scoring.depth import DepthOptions, compare_depth
from recon.scoring.network_run import camera_of, peak_memory_mb, scope_of
from recon.scoring.networks import Machine, Recording, entrant, frames_to_predict, network_prediction, predict, with_short_labels
from recon.types import DepthMap, ReconError

SPLITS = Path(__file__).parents[1] / "configs" / "splits"
METRES = 0.071


class Metres(nn.Module):
    """Says the same distance everywhere."""

    def forward(self, image):
        return {"depth": 0 * image.mean(dim=1) + METRES}


class Disparity(nn.Module):
    """The brighter, the nearer."""

    def forward(self, image):
        return {"disparity": image.mean(dim=1) + 0.2}


def exported(network: nn.Module, path: Path) -> str:
    torch.export.save(torch.export.export(network, (torch.rand(1, 3, 32, 64),)), path)
    return str(path)


def compared(capsys, *words) -> dict:
    code, out, err = call(capsys, "eval", "networks", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def recordings(path: Path) -> list[Recording]:
    sequence = open_sequence(path)
    return [Recording(str(path), None, sequence, tuple(range(len(sequence.frames))))]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Two networks on a C3VD sequence and SERV-CT pairs, compared once."""
    root = tmp_path_factory.mktemp("compared")
    sources = [str(write_c3vd(root / "c3vd" / "cecum_t1_a")), str(write_servct(root / "Experiment_1"))]
    metres = exported(Metres(), root / "metres.pt2")
    return root, sources, metres


def test_predictions_are_scored_as_anyones_files_are(capsys, outcome):
    root, sources, metres = outcome
    found = compared(capsys, "--methods", f"falloff,{metres}", *sources, "--out", root / "out")
    of = {(score["method"], score["dataset"]): score for score in found["scores"]}
    assert {method for method, _ in of} == {"falloff", "metres.pt2"}
    # Both truths are flat, and so is what the network says.
    for dataset in ("c3vd", "servct"):
        assert value(of["metres.pt2", dataset], "abs_rel", "scale_frame") == pytest.approx(0, abs=1e-3)
        assert value(of["falloff", dataset], "abs_rel", "scale_frame") > 0.05
    (files,) = (root / "out" / "predictions").glob("falloff-*/cecum_t1_a-*")
    plain = call(capsys, "eval", "depth", files, sources[0], "--match", "index", "--unit", "unitless", "--json")
    for metric in json.loads(plain[1])["scores"][0]["metrics"]:
        assert value(of["falloff", "c3vd"], metric["name"], metric["alignment"], metric["protocol"]) == pytest.approx(metric["value"])
    means = {score["method"]: score for score in found["summaries"]}
    by_hand = np.mean([value(of["falloff", dataset], "rmse", "scale_frame") for dataset in ("c3vd", "servct")])
    assert value(means["falloff"], "rmse", "scale_frame") == pytest.approx(by_hand)


def test_metres_are_scored_unscaled_and_nothing_else_is(outcome):
    root, sources, path = outcome
    plain = entrant(path)
    in_metres = replace(plain, label="in metres", info=replace(plain.info, output="metric"))
    both = [recording for source in sources for recording in recordings(source)]
    predict([in_metres, plain], both, Machine("cpu", 1), root / "metric", lambda line: None)
    scores = {
        (one.label, recording.sequence.dataset): compare_depth(
            recording.sequence, network_prediction(one, recording, root / "metric"), DepthOptions()
        )
        for recording in both
        for one in (in_metres, plain)
    }
    # Depth of frame k of the C3VD sequence is 10 (k + 1) mm and that of SERV-CT 64 mm; the network says 71 mm of all.
    assert scores["in metres", "servct"].value("mae", "none") == pytest.approx(7, abs=1e-3)
    assert scores["in metres", "servct"].value("acc_2cm", "none") == 1
    assert scores["in metres", "c3vd"].value("mae", "none") == pytest.approx(np.mean([61, 51, 41, 31]), abs=0.01)
    assert scores["in metres", "c3vd"].value("acc_2cm", "none") == 0
    assert scores[path, "servct"].value("acc_2cm", "none") is None and scores[path, "servct"].value("mae", "none") is None


def test_temporal_agreement_needs_poses(capsys, outcome):
    root, sources, metres = outcome
    found = compared(capsys, "--methods", f"falloff,{metres}", *sources, "--out", root / "out")
    have = {score["dataset"] for score in found["scores"] if any(m["name"] == "tae" for m in score["metrics"])}
    assert have <= {"c3vd"}
    still = open_sequence(sources[1])
    assert frames_to_predict(still, [0]) == (0,)
    moving = open_sequence(sources[0])
    assert frames_to_predict(moving, [0, 3]) == (0, 1, 3) and frames_to_predict(replace(moving, is_unrelated=True), [0]) == (0,)


def test_files_and_costs(capsys, outcome):
    root, sources, metres = outcome
    code, out, err = call(capsys, "eval", "networks", "--methods", f"falloff,{metres}", *sources, "--out", root / "out")
    assert code == 0, err
    assert "all 6 frames are there" in err
    stored = json.loads((root / "out" / "scores.json").read_text())
    for facts in stored["networks"]:
        assert facts["num_timed"] == 6 and 0 < facts["ms_per_frame"] < 10_000 and 50 < facts["peak_memory_mb"] < 3000
    speed = {m["name"]: m["value"] for m in stored["means"][0]["metrics"] if m["group"] == "speed"}
    assert {"parameters", "ms_per_frame", "peak_memory"} <= set(speed) and speed["parameters"] == 0
    page = (root / "out" / "networks.html").read_text()
    assert "http" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page) and "<script" not in page
    assert page.count("data:image/png") == 4 and "metres.pt2" in page and "ms_per_frame" in page
    for word in ("abs_rel, scale_frame", "coverage, none", "peak_memory (MB)"):
        assert word in page and word in out


def test_disparity_is_fitted_as_disparity(tmp_path):
    (recording,) = recordings(write_servct(tmp_path / "Experiment_1"))
    one = entrant(exported(Disparity(), tmp_path / "near.pt2"))
    one = replace(one, info=replace(one.info, output="disparity"))
    predict([one], [recording], Machine("cpu", 1), tmp_path / "out", lambda line: None)
    prediction = network_prediction(one, recording, tmp_path / "out")
    assert prediction.is_disparity

    def affine(index: int) -> DepthMap:
        """True depth whose inverse is the network's disparity, scaled and shifted: exact for a fit in disparity alone."""
        disparity = prediction.depth(index)
        depth = 1 / (0.02 + 0.02 * disparity / disparity.max())
        return DepthMap(depth.astype(np.float32), np.ones(depth.shape, bool), "metric")

    score = compare_depth(replace(recording.sequence, depth_gt=affine), prediction, DepthOptions())
    assert score.value("abs_rel", "scale_shift") < 1e-4 < 0.02 < score.value("abs_rel", "scale_frame")


def test_an_interrupted_comparison_predicts_only_what_is_missing(tmp_path):
    source = write_c3vd(tmp_path / "cecum_t1_a")
    (one,) = with_short_labels([entrant("falloff")])
    said: list[str] = []
    predict([one], recordings(source), Machine("cpu", 1), tmp_path / "out", said.append)
    (folder,) = (tmp_path / "out" / "predictions").glob("falloff-*/*-*")
    sequence = open_sequence(source)
    image = sequence.frames[1].image()
    camera = camera_of(sequence, 1, image)
    expected = Falloff().infer(image, camera, scope_of(sequence) & usable_mask(camera))
    assert read_depth(folder / "000001.tiff") == pytest.approx(expected.depth, rel=1e-5)

    kept = (folder / "000001.tiff").stat().st_mtime_ns
    log = folder / network_run.LOG
    lines = [line for line in log.read_text().splitlines() if line]
    log.write_text("\n".join(lines[:3]) + '\n{"index": 3, "sec')
    (folder / "000002.tiff").unlink()
    predict([one], recordings(source), Machine("cpu", 1), tmp_path / "out", said.append)
    predict([one], recordings(source), Machine("cpu", 1), tmp_path / "out", said.append)
    assert [re.search(r"(\d+|all \d+)( of \d+)? frames", line)[1] for line in said] == ["4", "2", "all 4"]
    assert (folder / "000001.tiff").stat().st_mtime_ns == kept and (folder / "000002.tiff").exists()
    predict([one], recordings(source), Machine("cpu", 2), tmp_path / "out", said.append)
    assert said[-1].startswith("falloff: 4 of 4"), "times with other threads are not mixed"


def test_files_of_others_are_left_alone(tmp_path):
    source = write_c3vd(tmp_path / "cecum_t1_a")
    one = entrant("falloff")
    predict([one], recordings(source), Machine("cpu", 1), tmp_path / "out", lambda line: None)
    (folder,) = (tmp_path / "out" / "predictions").glob("falloff-*/*-*")
    (folder / "made_by.json").unlink()
    with pytest.raises(ReconError, match="did not write"):
        predict([one], recordings(source), Machine("cpu", 1), tmp_path / "out", lambda line: None)
    assert len(list(folder.glob("*.tiff"))) == 4


def test_peak_memory_is_of_the_program_and_not_of_its_caller():
    ballast = np.ones(80_000_000)  # 640 MB here
    code = "from recon.scoring.network_run import peak_memory_mb; print(peak_memory_mb())"
    root = str(Path(network_run.__file__).parents[2])
    small = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    assert ballast[-1] == 1 and float(small.stdout) < peak_memory_mb() - 300


def test_a_network_of_windows_sees_consecutive_frames(tmp_path):
    sequence = open_sequence(write_c3vd(tmp_path / "cecum_t1_a", count=8))
    seen = []

    class Windowed(Falloff):
        def infer_video(self, frames, camera):
            for number, (image, mask) in enumerate(frames):
                seen.append(image)
                estimate = self.infer(image, camera, mask)
                yield replace(estimate, depth=np.full_like(estimate.depth, number + 1))

    (tmp_path / "out").mkdir()
    network_run._predict(Windowed(), sequence, [2, 5], tmp_path / "out")
    assert len(seen) == 4 and all(np.array_equal(image, sequence.frames[index].image()) for index, image in enumerate(seen, start=2))
    assert [read_depth(tmp_path / "out" / f"{index:06d}.tiff").max() for index in (2, 5)] == [1, 4]
    assert {file.name for file in (tmp_path / "out").glob("*.tiff")} == {"000002.tiff", "000005.tiff"}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("endodac", r"'endodac'.*needs weights.*endodac=FILE.*depth_model\.pth.*github\.com/BeileiCui/EndoDAC"),
        ("endoufm=nowhere.pth", r"'endoufm=nowhere\.pth'.*does not exist.*github\.com/RealMindyY/EndoUFM"),
        ("student,newt", r"'newt'.*not known; known: student"),
        ("student=", r"'student='.*expected.*NAME=WEIGHTS"),
        ("falloff,falloff", "given twice"),
        ("", "no network is named"),
    ],
)
def test_bad_methods_are_told_in_one_line_before_anything_runs(capsys, tmp_path, methods, message):
    source = write_c3vd(tmp_path / "cecum_t1_a")
    code, _, err = call(capsys, "eval", "networks", "--methods", methods, source, "--out", tmp_path / "out")
    assert code == 2 and len(err.strip().splitlines()) == 1 and re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_bad_sources_are_told_in_one_line(capsys, tmp_path):
    plain = write_folder(tmp_path / "plain")
    moving = write_c3vd(tmp_path / "cecum_t1_a")
    for words, message in (
        ([plain], "no recording of a known data set"),
        ([tmp_path / "absent"], "does not exist"),
        ([moving, moving], "given twice"),
        ([], "no recording is given"),
        ([moving, "--protocol", "mine"], "protocol 'mine' is not known"),
        ([moving, "--device", "abacus"], "device 'abacus'"),
    ):
        code, _, err = call(capsys, "eval", "networks", "--methods", "falloff", *words, "--out", tmp_path / "out")
        assert code == 2 and len(err.strip().splitlines()) == 1 and message in err, err


def test_weights_that_do_not_fit_are_told_by_name(capsys, tmp_path):
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1)}, tmp_path / "w.safetensors")
    words = ("--methods", f"endodac={tmp_path / 'w.safetensors'}", write_c3vd(tmp_path / "cecum_t1_a"), "--out", tmp_path / "out")
    code, _, err = call(capsys, "eval", "networks", *words)
    assert code == 2 and "'endodac'" in err and "w.safetensors" in err and "Traceback" not in err


def test_a_network_is_not_scored_on_what_trained_it(capsys, tmp_path):
    (tmp_path / "dataset_8" / "keyframe_0").mkdir(parents=True)
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1)}, tmp_path / "w.safetensors")
    words = ("--methods", f"endodac={tmp_path / 'w.safetensors'}", tmp_path, "--split", SPLITS / "scared-video.toml")
    code, _, err = call(capsys, "eval", "networks", *words, "--out", tmp_path / "out")
    assert code == 2 and "must not be scored" in err and "dataset_8" in err
