"""Loops in a chain of dense alignment: found by looks, checked by alignment, closed by a pose graph.

Keyframes of a sparse map are held fixed: bundle adjustment has closed their loops already.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from recon.geometry import se3
from recon.tracking.chain import Chain
from recon.tracking.dense_frame import DenseFrame
from recon.tracking.pose_graph import Edge, optimise
from recon.tracking.retrieval import Gallery

MAX_KEYFRAMES = 600
"""Among which loops are looked for, spread over the recording."""
NUM_CANDIDATES = 3
MIN_LIKENESS = 0.6
"""Correlation of small pictures above which an alignment is tried."""
MIN_OVERLAP, MIN_CORRELATION = 0.45, 0.8
"""Of a loop: more than of a step, since nothing else speaks for it."""
MAX_DISAGREEMENT_SHARE, MAX_DISAGREEMENT_RAD = 0.1, 0.1
"""Two witnesses of where a lost frame is may differ by this share of the median depth, and by this angle."""


@dataclass(frozen=True)
class Finder:
    """Looks for frames of a chain that look like another."""

    chain: Chain
    gallery: Gallery

    @classmethod
    def of(cls, chain: Chain) -> Finder:
        """A finder among the keyframes of a chain."""
        keyframes = chain.keyframes()
        gallery = Gallery()
        for index in keyframes[:: max(1, -(-len(keyframes) // MAX_KEYFRAMES))]:
            gallery.add(index, chain.load(index))
        return cls(chain, gallery)

    def alignments(self, index: int, frame: DenseFrame, is_candidate: Callable[[int], bool]) -> Iterator[Edge]:
        """Alignments of a frame to keyframes that look like it and that `is_candidate` lets through; few are tried."""
        nearest = [key for key in self.gallery.nearest(frame, len(self.gallery.indices), MIN_LIKENESS) if is_candidate(key)]
        for key in nearest[:NUM_CANDIDATES]:
            guesses = [np.eye(4)]
            if index in self.chain.poses:
                guesses.append(se3.inverse(self.chain.poses[index]) @ self.chain.poses[key])
            edge = self.chain.edge(key, index, guesses, MIN_OVERLAP, MIN_CORRELATION)
            if edge is not None:
                yield edge


def close_loops(chain: Chain, fixed: Container[int]) -> int:
    """Bring the keyframes that are not fixed into agreement, and with them the frames that hang on them; returns how many loops say so."""
    keyframes = chain.keyframes()
    movable = [index for index in keyframes if index not in fixed]
    if not movable:
        return 0
    finder = Finder.of(chain)
    loops = [edge for index in movable for edge in finder.alignments(index, chain.load(index), partial(_is_far, chain, index))]
    loops += _meetings(chain, keyframes, movable)
    if not loops:
        return 0
    links = [chain.edge_of[index] for index in movable if index in chain.edge_of]
    ends = {end for edge in [*links, *loops] for end in (edge.key, edge.frame)}
    held = {index for index in ends if index in fixed} or {min(ends)}
    poses = {index: chain.poses[index] for index in ends}
    factors = {index: chain.factors[index] for index in ends}
    chain.move_keyframes(*optimise(poses, factors, links, loops, held))
    return len(loops)


def _is_far(chain: Chain, first: int, second: int) -> bool:
    """Whether two frames are so far apart in time that no chain of alignments links them shortly."""
    return abs(chain.position(first) - chain.position(second)) > 2 * chain.options.max_gap


def _meetings(chain: Chain, keyframes: list[int], movable: list[int]) -> list[Edge]:
    """Alignments of keyframes that follow one another without being linked: there two ends of the chain met."""
    order = sorted(keyframes, key=chain.position)
    found = []
    for before, after in pairwise(order):
        linked = any(edge is not None and edge.key == other for edge, other in _links(chain, before, after))
        near = chain.position(after) - chain.position(before) <= chain.options.max_gap
        if not linked and near and chain.is_one_shot(before, after) and (before in movable or after in movable):
            guess = se3.inverse(chain.poses[after]) @ chain.poses[before]
            edge = chain.edge(before, after, [guess], MIN_OVERLAP, MIN_CORRELATION)
            found += [] if edge is None else [edge]
    return found


def _links(chain: Chain, first: int, second: int) -> list[tuple[Edge | None, int]]:
    return [(chain.edge_of.get(first), second), (chain.edge_of.get(second), first)]


def find_again(finder: Finder, index: int) -> bool:
    """Place a lost frame by two keyframes that look like it and agree on where it is; False when there are no such two."""
    chain = finder.chain
    witnesses = list(finder.alignments(index, chain.load(index), lambda key: True))
    for number, edge in enumerate(witnesses):
        for other in witnesses[number + 1 :]:
            first, second = (chain.poses[e.key] @ se3.inverse(chain.in_world(e)) for e in (edge, other))
            depth = edge.median_depth * chain.factors[edge.key]
            away = np.linalg.norm(first[:3, 3] - second[:3, 3])
            turned = np.linalg.norm(se3.log(se3.inverse(first) @ second)[3:])
            if away < MAX_DISAGREEMENT_SHARE * depth and turned < MAX_DISAGREEMENT_RAD:
                chain.place(edge)
                return True
    return False
