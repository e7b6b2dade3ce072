"""Sim(3) pose graph: keyframes of dense alignment, their relative poses, and loops, brought into agreement.

Drift of a monocular chain is a similarity, so every keyframe has a scale of its own beside its pose (Strasdat, Montiel and
Davison, "Scale drift-aware large scale monocular SLAM", 2010). Solved by scipy's sparse trust-region least squares; a
loop that is wrong after all is found by what it says against all the others, and dropped.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix

from recon.geometry import se3

NUM_PARAMS = 7
"""Per keyframe: twist [translation, rotation] and log factor."""
SIGMA_TRANSLATION, SIGMA_ROTATION_RAD, SIGMA_LOG_SCALE = 0.01, 0.01, 0.02
"""Of one alignment; translation in units of the keyframe's median depth."""
SIGMA_LEVEL = 0.3
"""How far a keyframe's log factor lies from the level of all: the network's own scale hardly wanders."""

MAX_SIGMAS = 6.0
"""Of any residual of a loop, above which it is dropped."""
MAX_EVALUATIONS = 60
"""Of each solution."""
LSMR_TOLERANCE = 1e-8
"""Of the sparse linear solver inside: scipy's own default stops too early for a long chain."""


@dataclass(frozen=True)
class Edge:
    """One alignment of a keyframe to another."""

    key: int
    frame: int
    T_frame_key: Float[np.ndarray, "4 4"]
    """Translation in units of the key's predicted depth (its factor is taken out)."""
    log_scale: float
    """Log of the frame's factor over the key's."""
    median_depth: float
    """Of the key, in units of its predicted depth."""


def optimise(
    poses: Mapping[int, Float[np.ndarray, "4 4"]],
    factors: Mapping[int, float],
    chain: Sequence[Edge],
    loops: Sequence[Edge],
    fixed: Container[int],
) -> tuple[dict[int, Float[np.ndarray, "4 4"]], dict[int, float]]:
    """Poses (T_world_camera) and factors of the keyframes that agree best with all edges.

    `chain` holds the keyframes together and is believed; the loop that disagrees most when all are weighed is dropped, until
    none does.
    Keyframes in `fixed` stay where they are; there must be one.
    """
    kept = list(loops)
    while True:
        problem = _Problem(poses, factors, [*chain, *kept], fixed)
        x = problem.solve()
        worst = np.abs(problem.by_edge(x)).max(axis=1)[len(chain) :]
        if not kept or worst.max() < MAX_SIGMAS:
            return problem.moved_maps(x)
        kept.pop(int(worst.argmax()))


class _Problem:
    """Residuals, in standard deviations, of all edges as a function of steps of the free keyframes."""

    def __init__(self, poses: Mapping[int, np.ndarray], factors: Mapping[int, float], edges: Sequence[Edge], fixed: Container[int]) -> None:
        self.indices = sorted(poses)
        row = {index: k for k, index in enumerate(self.indices)}
        self.T = np.stack([poses[index] for index in self.indices])
        self.level = np.log([factors[index] for index in self.indices])
        self.free = np.array([row[index] for index in self.indices if index not in fixed], dtype=np.int64)
        self.key, self.frame = (np.array([row[getattr(edge, end)] for edge in edges]) for end in ("key", "frame"))
        self.measured = np.stack([edge.T_frame_key for edge in edges])
        self.log_scale = np.array([edge.log_scale for edge in edges])
        self.depth = np.array([edge.median_depth for edge in edges])
        self.num_params = NUM_PARAMS * len(self.free)

    def moved(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Poses and log factors after a step."""
        steps = x.reshape(-1, NUM_PARAMS)
        T, level = self.T.copy(), self.level.copy()
        # Turns about the camera and not about the world's origin: the parameters of far keyframes stay apart.
        turn = se3.exp(np.concatenate([np.zeros((len(steps), 3)), steps[:, 3:6]], axis=1))
        T[self.free, :3, :3] = turn[:, :3, :3] @ T[self.free, :3, :3]
        T[self.free, :3, 3] += steps[:, :3] * np.exp(self.level[self.free])[:, None]
        level[self.free] += steps[:, 6]
        return T, level

    def moved_maps(self, x: np.ndarray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        """The same by frame index, factors without their log."""
        T, level = self.moved(x)
        return dict(zip(self.indices, T, strict=True)), dict(zip(self.indices, np.exp(level).tolist(), strict=True))

    def by_edge(self, x: np.ndarray) -> Float[np.ndarray, "e 7"]:
        """What each edge says against the poses."""
        T, level = self.moved(x)
        relative = se3.inverse(T[self.frame]) @ T[self.key]
        relative[:, :3, 3] *= np.exp(-level[self.key])[:, None]
        twist = se3.log(self.measured @ se3.inverse(relative))
        scale = level[self.frame] - level[self.key] - self.log_scale
        translation = twist[:, :3] / self.depth[:, None]
        return np.concatenate(
            [translation / SIGMA_TRANSLATION, twist[:, 3:] / SIGMA_ROTATION_RAD, scale[:, None] / SIGMA_LOG_SCALE], axis=1
        )

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """Of the edges, then of the levels."""
        wander = (self.level[self.free] + x[NUM_PARAMS - 1 :: NUM_PARAMS] - np.median(self.level)) / SIGMA_LEVEL
        return np.concatenate([self.by_edge(x).reshape(-1), wander])

    def solve(self) -> np.ndarray:
        """The step of least cost."""
        options = {"atol": LSMR_TOLERANCE, "btol": LSMR_TOLERANCE, "maxiter": 10 * self.num_params}
        start = np.zeros(self.num_params)
        return least_squares(self.residuals, start, jac_sparsity=self._sparsity(), max_nfev=MAX_EVALUATIONS, tr_options=options).x

    def _sparsity(self) -> lil_matrix:
        """Which parameter moves which residual."""
        column = {row: k for k, row in enumerate(self.free.tolist())}
        num_rows = NUM_PARAMS * len(self.key)
        pattern = lil_matrix((num_rows + len(column), self.num_params), dtype=np.int8)
        for number, ends in enumerate(zip(self.key.tolist(), self.frame.tolist(), strict=True)):
            for first in (NUM_PARAMS * column[row] for row in ends if row in column):
                pattern[NUM_PARAMS * number : NUM_PARAMS * (number + 1), first : first + NUM_PARAMS] = 1
        for k in range(len(column)):
            pattern[num_rows + k, NUM_PARAMS * k + 6] = 1
        return pattern
