"""Camera paths against a recording's true one."""

from __future__ import annotations

from recon.eval.trajectory import Similarity, score_trajectory
from recon.scoring.prediction import Prediction
from recon.scoring.score import Score
from recon.types import Alignment, FrameSequence, ReconError


def compare_trajectory(sequence: FrameSequence, prediction: Prediction, seed: int = 0) -> tuple[Score, dict[Alignment, Similarity]]:
    """Score the frames that both paths have. Returns the alignments too, for pictures.

    Raises ReconError for a recording or a prediction without a path.
    """
    if sequence.trajectory_gt is None:
        raise ReconError(f"{sequence.name} has no true camera path to score against")
    if prediction.trajectory is None:
        raise ReconError(f"{prediction.name} holds no camera path")
    scored = score_trajectory(prediction.trajectory, sequence.trajectory_gt, noise_floor=sequence.noise_floor_mm, seed=seed)
    used = {"depth": False, "trajectory": bool(scored.metrics), "mesh": False}
    score = Score(
        prediction.name,
        sequence.name,
        sequence.dataset,
        scored.metrics,
        prediction.inputs,
        used,
        frames=scored.frames,
        notes=[*prediction.notes, *scored.notes],
    )
    return score, scored.alignments
