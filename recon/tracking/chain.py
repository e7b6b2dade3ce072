"""Poses of frames next to frames that have one: dense alignment, growing outwards in both directions of time.

A frame is aligned to the keyframe of its nearest posed neighbour while that is well in view, so drift grows with the
number of keyframes and not of frames; otherwise the neighbour becomes a keyframe itself.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from recon.geometry import se3
from recon.tracking.alignment import AlignmentOptions, State, Verdict, align, coarse_cost
from recon.tracking.dense_frame import DenseFrame
from recon.tracking.pose_graph import Edge

MAX_VELOCITY_GAP = 3
"""Constant velocity is extrapolated over at most this many frames."""


@dataclass(frozen=True)
class ChainOptions:
    """How far the chain reaches."""

    max_gap: int = 8
    """Usable frames between a frame and the posed one it is aligned to."""
    max_attempts: int = 5
    """Posed neighbours tried before a frame is given up."""
    keyframe_overlap: float = 0.65
    """Share of its keyframe that a frame must see to stay with it."""
    keyframe_correlation: float = 0.75
    """Agreement with its keyframe that lets a frame stay with it."""
    level_pull: float = 0.3
    """How far a factor is drawn back to the level of the frames the chain started from, as a share of its log: small errors of
    each alignment add up along a chain, while the network's own scale hardly wanders."""
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)


@dataclass
class Chain:
    """Posed frames so far. `poses`, `factors` and `keyframe_of` grow as frames are added."""

    order: Sequence[int]
    """Usable frame indices in the order of time."""
    load: Callable[[int], DenseFrame]
    """Dense frame, its depth in the network's unit."""
    options: ChainOptions = field(default_factory=ChainOptions)
    cuts: Sequence[int] = ()
    """Frame indices, in order, that begin another shot: no frame is aligned to one of another shot for being its neighbour."""
    poses: dict[int, Float[np.ndarray, "4 4"]] = field(default_factory=dict)
    """T_world_camera."""
    factors: dict[int, float] = field(default_factory=dict)
    """World units per unit of the network's depth."""
    keyframe_of: dict[int, int] = field(default_factory=dict)
    edge_of: dict[int, Edge] = field(default_factory=dict)
    """The alignment that placed each frame that has none of its own."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Of frames that no alignment could place, the last reason."""

    def __post_init__(self) -> None:
        self._position = {index: position for position, index in enumerate(self.order)}
        self._start_factors: list[float] = []

    def add(self, index: int, T_world_camera: Float[np.ndarray, "4 4"], factor: float, keyframe: int | None = None) -> None:
        """A posed frame; one without a keyframe is its own, and its factor is one to hold on to."""
        if keyframe is None:
            self._start_factors.append(factor)
        self.poses[index], self.factors[index] = T_world_camera, factor
        self.keyframe_of[index] = index if keyframe is None else keyframe
        self.reasons.pop(index, None)

    def keyframes(self) -> list[int]:
        """Frames that are their own keyframe, in order."""
        return sorted(index for index, key in self.keyframe_of.items() if index == key)

    def position(self, index: int) -> int:
        """Of a frame, in the order of time."""
        return self._position[index]

    def is_one_shot(self, first: int, second: int) -> bool:
        """Whether no cut lies between two frames."""
        return bisect_right(self.cuts, first) == bisect_right(self.cuts, second)

    def grow(self, leave_out: Container[int] = ()) -> Iterator[int]:
        """Pose what can be posed, nearest frames first, and yield each index that was decided on.

        Frames in `leave_out` are not tried.
        """
        queue: list[tuple[int, int, int]] = []
        for index in sorted(self.poses):
            self._offer(queue, index, leave_out)
        attempts: dict[int, int] = {}
        while queue:
            _, index, neighbour = heapq.heappop(queue)
            if index in self.poses or attempts.get(index, 0) >= self.options.max_attempts:
                continue
            attempts[index] = attempts.get(index, 0) + 1
            reason = self._attempt(index, neighbour)
            if reason is None:
                self._offer(queue, index, leave_out)
                yield index
            else:
                self.reasons[index] = f"alignment to frame {neighbour} failed: {reason}"
        for index in self.order:
            if index not in self.poses and index not in leave_out:
                self.reasons.setdefault(index, f"no posed frame within {self.options.max_gap} frames")
                yield index

    def edge(self, key: int, frame: int, guesses: Sequence[np.ndarray], min_overlap: float, min_correlation: float) -> Edge | None:
        """The alignment of `frame` to the posed `key` as an edge; None when it is not to be trusted that much."""
        verdict = self.link(key, frame, guesses)
        if verdict.reason is not None or verdict.overlap < min_overlap or verdict.correlation < min_correlation:
            return None
        return self._edge(frame, key, verdict)

    def in_world(self, edge: Edge) -> Float[np.ndarray, "4 4"]:
        """T_frame_key of an edge with its translation in world units."""
        T = edge.T_frame_key.copy()
        T[:3, 3] *= self.factors[edge.key]
        return T

    def place(self, edge: Edge) -> None:
        """Add the frame of an edge as a keyframe: others may hang on it."""
        factor = self.factors[edge.key] * float(np.exp(edge.log_scale))
        self.add(edge.frame, self.poses[edge.key] @ se3.inverse(self.in_world(edge)), factor, edge.key)
        self.keyframe_of[edge.frame] = edge.frame
        self.edge_of[edge.frame] = edge

    def move_keyframes(self, poses: Mapping[int, Float[np.ndarray, "4 4"]], factors: Mapping[int, float]) -> None:
        """Give keyframes other poses and factors; the frames that hang on them come along."""
        for index, key in self.keyframe_of.items():
            if key in poses and index != key:
                relative = se3.inverse(self.poses[key]) @ self.poses[index]
                ratio = factors[key] / self.factors[key]
                relative[:3, 3] *= ratio
                self.poses[index], self.factors[index] = poses[key] @ relative, self.factors[index] * ratio
        self.poses |= poses
        self.factors |= factors

    def link(self, key: int, frame: int, guesses: Sequence[Float[np.ndarray, "4 4"]]) -> Verdict:
        """Align `frame` to the posed `key`; guesses are T_frame_key. The verdict's log scale is relative to the key's factor."""
        factor = self.factors[key]
        here, there = self.load(key).scaled(factor), self.load(frame).scaled(factor)
        states = [State(guess) for guess in guesses]
        best = min(states, key=lambda state: coarse_cost(here, there, state, self.options.alignment))
        return align(here, there, best, self.options.alignment)

    def _offer(self, queue: list[tuple[int, int, int]], posed: int, leave_out: Container[int]) -> None:
        """Queue the unposed frames around a posed one, the nearest in time to be tried first."""
        at = self._position[posed]
        for position in range(max(0, at - self.options.max_gap), min(len(self.order), at + self.options.max_gap + 1)):
            index = self.order[position]
            if index not in self.poses and index not in leave_out and self.is_one_shot(posed, index):
                heapq.heappush(queue, (abs(position - at), index, posed))

    def _attempt(self, index: int, neighbour: int) -> str | None:
        """Align to the neighbour's keyframe, or else to the neighbour; the reason when both fail."""
        guesses = self._guesses(index, neighbour)
        keyframe = self.keyframe_of[neighbour]
        if keyframe != neighbour:
            verdict = self._align(index, keyframe, guesses)
            if verdict.reason is None and self._stays(verdict):
                self._accept(index, keyframe, verdict)
                return None
        verdict = self._align(index, neighbour, guesses)
        if verdict.reason is None:
            self.keyframe_of[neighbour] = neighbour
            self._accept(index, neighbour, verdict)
        return verdict.reason

    def _align(self, index: int, key: int, guesses: list[np.ndarray]) -> Verdict:
        return self.link(key, index, [se3.inverse(guess) @ self.poses[key] for guess in guesses])

    def _stays(self, verdict: Verdict) -> bool:
        return verdict.overlap >= self.options.keyframe_overlap and verdict.correlation >= self.options.keyframe_correlation

    def _accept(self, index: int, key: int, verdict: Verdict) -> None:
        pose = self.poses[key] @ se3.inverse(verdict.state.T_frame_key)
        log_factor = np.log(self.factors[key]) + verdict.state.log_scale
        pull = self.options.level_pull
        level = float(np.log(np.median(self._start_factors)))
        self.add(index, pose, float(np.exp((1.0 - pull) * log_factor + pull * level)), key)
        self.edge_of[index] = self._edge(index, key, verdict)

    def _edge(self, index: int, key: int, verdict: Verdict) -> Edge:
        T = verdict.state.T_frame_key.copy()
        T[:3, 3] /= self.factors[key]
        return Edge(key, index, T, float(verdict.state.log_scale), self.load(key).median_depth)

    def _guesses(self, index: int, neighbour: int) -> list[np.ndarray]:
        """Where the frame may be: at its neighbour, where constant velocity takes it, or between two posed frames."""
        at, to = self._position[neighbour], self._position[index]
        guesses = [self.poses[neighbour]]
        behind = self._posed_beside(at, -1 if to > at else 1)
        if behind is not None and abs(to - at) <= MAX_VELOCITY_GAP:
            guesses.append(se3.interpolate(self.poses[self.order[behind]], self.poses[neighbour], (to - behind) / (at - behind)))
        ahead = self._posed_beside(to, 1 if to > at else -1)
        if ahead is not None:
            guesses.append(se3.interpolate(self.poses[neighbour], self.poses[self.order[ahead]], (to - at) / (ahead - at)))
        return guesses

    def _posed_beside(self, position: int, direction: int) -> int | None:
        """Nearest position with a pose, looking from `position` in one direction of time."""
        for step in range(1, self.options.max_gap + 1):
            candidate = position + direction * step
            if 0 <= candidate < len(self.order) and self.order[candidate] in self.poses:
                return candidate
        return None
