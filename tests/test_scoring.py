"""What a score says of itself: which truth was known, and how sequences are averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.data import open_sequence
from recon.eval.surface import SurfaceOptions
from recon.scoring.depth import DepthOptions, compare_depth
from recon.scoring.frame_surface import FrameComparison, compare_frame_surfaces
from recon.scoring.prediction import Prediction
from recon.scoring.score import Inputs, Score, mean_score, training_data
from recon.types import Metric, ReconError

SPEC = "phantom:tube?seed=5&frames=6&width=64&height=48&step_mm=2.0"


def metric(value: float, protocol: str | None = None, name: str = "abs_rel") -> Metric:
    return Metric("depth", name, value, "1", "scale_frame", protocol=protocol)


def score(metrics: list[Metric], num_frames: int, num_missing: int = 0) -> Score:
    rows = [{"index": k, "scared-af/coverage": 1.0, "scared-af/scale": 1.0} for k in range(num_frames)]
    rows += [{"index": num_frames + k, "scared-af/coverage": 0.0} for k in range(num_missing)]
    return Score("m", "s", "scared", metrics, Inputs(), {"depth": True, "trajectory": False, "mesh": False}, frames=rows)


def test_what_nobody_said_is_not_taken_for_a_no():
    assert any("not stated" in line for line in Inputs().sentences("c3vd", "a"))
    clean = Inputs(False, False, False, "given", ()).sentences("c3vd", "a")
    assert "no truth entered the prediction" in clean and "trained on: nothing" in clean
    assert any("no errors of a reconstruction" in line for line in Inputs(True, False, False).sentences("c3vd", "a"))
    assert any("no zero-shot" in line for line in Inputs(trained_on=("c3vd", "phantom")).sentences("c3vd", "a"))
    assert not any("no zero-shot" in line for line in Inputs(trained_on=("phantom",)).sentences("c3vd", "a"))


def test_sequences_count_the_same_unless_the_authors_average_frames():
    short, long = score([metric(0.1), metric(0.1, "scared-af")], 2), score([metric(0.4), metric(0.4, "scared-af")], 8)
    mean = mean_score([short, long])
    assert mean.value("abs_rel", "scale_frame") == pytest.approx(0.25)
    assert mean.value("abs_rel", "scale_frame", "scared-af") == pytest.approx((2 * 0.1 + 8 * 0.4) / 10)
    assert mean.sequence == "mean of 2 sequences"


def test_what_was_left_out_is_not_forgotten_in_the_mean():
    full = score([metric(0.1, "scared-af"), metric(1.0, "scared-af", "coverage")], 4)
    none = score([metric(0.0, "scared-af", "coverage")], 0, num_missing=12)
    mean = mean_score([full, none])
    assert mean.value("coverage", "scale_frame", "scared-af") == pytest.approx(0.25)
    assert mean.value("abs_rel", "scale_frame", "scared-af") == pytest.approx(0.1)


def test_training_data_is_recognised_by_its_data_set():
    assert Inputs(trained_on=("scared/scared-af",)).has_seen("scared", "a") and not Inputs().has_seen("scared", "a")
    assert training_data("c3vd", "cecum_t1_a") == "c3vd"


def test_a_recording_of_no_data_set_is_known_by_its_whole_name():
    inputs = Inputs(trained_on=("phantom", training_data("video", "surgery_1")))
    assert inputs.has_seen("video", "surgery_1")
    assert not inputs.has_seen("video", "surgery_2") and not inputs.has_seen("folder", "surgery_1")
    assert "the method was trained on video/surgery_1: these are no zero-shot numbers" in inputs.sentences("video", "surgery_1")


def test_adaptation_to_the_recording_is_said():
    said = [line for line in Inputs(adapted_on_this_recording=True).sentences("c3vd", "a") if "adapted on this recording" in line]
    assert len(said) == 1
    for value in (None, False):
        assert not any("adapted" in line for line in Inputs(adapted_on_this_recording=value).sentences("c3vd", "a"))
    one = replace(score([metric(0.1)], 1), inputs=Inputs(adapted_on_this_recording=True, trained_on=("a",)))
    stored = one.as_json()["inputs"]
    assert stored["adapted_on_this_recording"] is True and said[0] in stored["text"]


def test_a_mean_rests_on_what_any_of_its_scores_rests_on():
    one = replace(score([metric(0.1)], 1), inputs=Inputs(False, False, True, "given", ("a", "b"), True))
    two = replace(score([metric(0.2)], 1), inputs=Inputs(False, None, None, "given", ("b", "c"), False))
    assert mean_score([one, two]).inputs == Inputs(False, None, True, "given", ("a", "b", "c"), True)
    three = replace(two, inputs=Inputs(False, False, False, "estimated"))
    assert mean_score([two, three]).inputs == Inputs(False, None, None, "several", None, None)


def test_a_mean_has_an_interval_over_sequences():
    mean = mean_score([score([metric(v)], 3) for v in (0.1, 0.2, 0.3, 0.4, 0.15, 0.25, 0.35)])
    (only,) = mean.metrics
    assert only.interval is not None and 0.1 <= only.interval[0] < only.value < only.interval[1] <= 0.4


def phantom_prediction(factor_of, is_disparity: bool = False) -> tuple:
    sequence = open_sequence(SPEC)

    def depth(index: int) -> np.ndarray:
        truth = sequence.depth_gt(index)
        z = np.where(truth.valid, truth.depth, 0).astype(np.float32) * np.float32(factor_of(index))
        return np.divide(1, z, out=np.zeros_like(z), where=z > 0) if is_disparity else z

    return sequence, Prediction("p", Inputs(), "unitless" if is_disparity else "mm", depth=depth, is_disparity=is_disparity)


@pytest.mark.parametrize("is_disparity", [False, True])
def test_a_scale_that_wanders_costs_temporal_agreement(is_disparity):
    steady = compare_depth(*phantom_prediction(lambda index: 2.0, is_disparity), DepthOptions())
    wandering = compare_depth(*phantom_prediction(lambda index: 2.0 * 1.1**index, is_disparity), DepthOptions())
    assert steady.value("abs_rel", "scale_frame") == pytest.approx(0, abs=1e-5)
    assert wandering.value("abs_rel", "scale_frame") == pytest.approx(0, abs=1e-5)
    assert steady.value("tae", "scale_sequence") < 3 < 7 < wandering.value("tae", "scale_sequence")
    assert wandering.value("abs_rel", "scale_sequence") > 0.1
    assert steady.truth_used == {"depth": True, "trajectory": True, "mesh": False}


def test_frames_without_a_prediction_count_as_missing():
    sequence, full = phantom_prediction(lambda index: 1.0)
    half = Prediction("p", Inputs(), "mm", depth=lambda index: full.depth(index) if index % 2 else None)
    found = compare_depth(sequence, half, DepthOptions())
    assert found.value("coverage", "none") == pytest.approx(0.5)
    assert found.value("abs_rel", "none") == pytest.approx(0, abs=1e-6)
    assert found.value("abs_rel_penalised", "none") == pytest.approx(0.5, abs=1e-6)


def test_only_so_many_frames_are_looked_at():
    sequence, full = phantom_prediction(lambda index: 1.0)
    found = compare_depth(sequence, full, DepthOptions(max_frames=3))
    assert [row["index"] for row in found.frames] == [0, 2, 5]
    assert any("2 of 3 frames are compared with the next one" in note for note in found.notes)


def test_a_recording_without_depth_is_named():
    sequence, _ = phantom_prediction(lambda index: 1.0)
    with pytest.raises(ReconError, match="holds no depth"):
        compare_depth(sequence, Prediction("p", Inputs(), "mm"), DepthOptions())


def test_a_view_without_a_prediction_is_as_empty_under_every_alignment():
    sequence, full = phantom_prediction(lambda index: 1.0)
    options = FrameComparison(SurfaceOptions(num_samples=500), indices=(0, 1))
    half = Prediction("p", Inputs(), "mm", depth=lambda index: full.depth(index) if index else None)
    found = compare_frame_surfaces(sequence, half, options)
    for alignment in ("none", "scale_frame", "se3_icp", "sim3_icp"):
        assert found.value("coverage", alignment) == pytest.approx(0.5)
        assert found.value("chamfer_penalised", alignment) == pytest.approx(5, abs=0.01)
        assert found.value("accuracy_mean", alignment) == pytest.approx(0, abs=0.01)


def test_a_view_five_percent_too_far_has_that_scale_error():
    sequence, large = phantom_prediction(lambda index: 1.05)
    found = compare_frame_surfaces(sequence, large, FrameComparison(SurfaceOptions(num_samples=500), indices=(0,)))
    assert found.value("scale_error", "none") == pytest.approx(5, abs=0.01)
    assert found.value("accuracy_mean", "scale_frame") < 0.01 < 0.5 < found.value("accuracy_mean", "none")
