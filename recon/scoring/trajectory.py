"""Camera paths against a recording's true one."""

from __future__ import annotations

import numpy as np

from recon.eval.trajectory import score_trajectory
from recon.geometry.similarity import Similarity
from recon.scoring.prediction import Prediction
from recon.scoring.score import Score
from recon.types import Alignment, FrameSequence, Metric, ReconError


def compare_trajectory(sequence: FrameSequence, prediction: Prediction, seed: int = 0) -> tuple[Score, dict[Alignment, Similarity]]:
    """Score the frames that both paths have. Returns the alignments too, for pictures.

    Raises ReconError for a recording or a prediction without a path.
    """
    if sequence.trajectory_gt is None:
        raise ReconError(f"{sequence.name} has no true camera path to score against")
    if prediction.trajectory is None:
        raise ReconError(f"{prediction.name} holds no camera path")
    scored = score_trajectory(
        prediction.trajectory,
        sequence.trajectory_gt,
        noise_floor=sequence.noise_floor_mm,
        seed=seed,
        with_c3vd_legacy=sequence.dataset == "c3vd",
    )
    num_found, num_true = (
        len(np.intersect1d(prediction.trajectory.frame_indices, sequence.trajectory_gt.frame_indices)),
        len(sequence.trajectory_gt),
    )
    posed = Metric("trajectory", "posed", num_found / num_true, "1", "none", lower_is_better=False)
    few = (
        [f"trajectory: {num_found} of {num_true} frames with a true pose have one, and the errors are of these alone"]
        if num_found < num_true
        else []
    )
    used = {"depth": False, "trajectory": bool(scored.metrics), "mesh": False}
    score = Score(
        prediction.name,
        sequence.name,
        sequence.dataset,
        [posed, *scored.metrics],
        prediction.inputs,
        used,
        frames=scored.frames,
        notes=[*prediction.notes, *few, *scored.notes],
    )
    return score, scored.alignments
