"""Poses of a whole recording: from its sparse maps where structure from motion registered, by dense alignment for the rest.

The world has the axes of the first posed camera and its origin there. Its unit makes the median depth of the sparse
points 1 (the median over frames of each frame's median); without points, the median predicted depth of the first frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from recon.geometry import se3
from recon.geometry.similarity import Similarity
from recon.io.depth import read_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.tracking.chain import Chain, ChainOptions
from recon.tracking.dense_frame import DenseFrame, Undistorter
from recon.tracking.joining import by_alignment, by_shared_points, merged, same_lens, transformed
from recon.tracking.loops import Finder, close_loops, find_again
from recon.tracking.mapping import SparseMap
from recon.tracking.scale_field import FrameRatios, sample_ratios
from recon.tracking.stillness import is_still
from recon.types import Camera, Unit

Method = Literal["hybrid", "sfm", "alignment"]
CACHED_FRAMES = 32
MIN_PIECE_FRAMES = 5
"""Fewer frames that hang together are no piece worth telling of."""
MAX_FAILED = 30
"""Frames from which no piece grew, after which no further ones are tried."""
NUM_LOOKS = 8
"""Frames of a lost stretch that are compared with what was seen elsewhere."""
STARTS = (0.0, 0.25, 0.5, 0.75)
"""Where in the recording alignment without a map may begin."""


@dataclass(frozen=True)
class Recording:
    """What tracking reads."""

    order: Sequence[int]
    """Usable frame indices in the order of time."""
    images: Path
    """Folder of NNNNNN.jpg."""
    masks: Path
    """Folder of NNNNNN.png, white where valid."""
    depth: Path
    """Folder of NNNNNN.tiff: predicted z-depth."""
    camera: Camera
    """The lens as it was given or assumed; a map may have refined it."""
    cuts: Sequence[int] = ()
    """Indices, in order, of frames that begin another shot."""


@dataclass(frozen=True)
class Track:
    """Poses of frames that hang together, in the world of this module's docstring."""

    camera: Camera
    poses: Mapping[int, Float[np.ndarray, "4 4"]]
    """T_world_camera by frame index."""
    factors: Mapping[int, float]
    """World units per unit of the frame's predicted depth."""
    keyframe_of: Mapping[int, int]
    """The frame each was aligned to; itself for keyframes."""
    method_of: Mapping[int, Literal["sfm", "alignment", "still", "dataset"]]
    """What gave each pose; "still" is a camera that does not move."""
    reasons: Mapping[int, str]
    """Why a frame has no pose."""
    sparse: SparseMap | None
    num_maps: int = 0
    num_joined: int = 0
    num_loops: int = 0
    """Alignments that closed a loop or joined two ends of the chain."""
    unit: Unit = "unitless"
    """Of the world: "mm" where metric depth gave it."""
    others: Sequence[Track] = ()
    """Pieces of the recording that could not be joined to this one, the longest first: each in a world of its own."""


def as_is(items: Iterable[int], total: int, description: str) -> Iterable[int]:
    """Progress that shows nothing."""
    return items


@dataclass
class Tracker:
    """One recording on its way to a track."""

    recording: Recording
    maps: Sequence[SparseMap]
    """What structure from motion gave, the largest first; each in a frame and unit of its own."""
    method: Method
    seed: int = 0
    chain_options: ChainOptions = field(default_factory=ChainOptions)
    progress: Callable[[Iterable[int], int, str], Iterable[int]] = as_is
    camera: Camera = field(init=False)
    load: Callable[[int], DenseFrame] = field(init=False)

    def run(self) -> Track:
        """Joining of the maps, then alignment of what is left, then pieces for what neither could reach."""
        # A recording with cuts has shots that the largest map says nothing of.
        still = bool(self.maps) and not self.recording.cuts and is_still(self.maps[0])
        maps = [] if still else self.maps
        self.camera = maps[0].camera if maps else self.recording.camera
        self.load = lru_cache(CACHED_FRAMES)(self._dense_frame)
        if still:
            chain = self._chain()
            add_still(chain)
            return Track(self.camera, chain.poses, chain.factors, chain.keyframe_of, {i: "still" for i in chain.poses}, {}, None)
        main, apart = self._main(maps)
        pieces = [main, *self._pieces(main, apart)]
        # Ties go to the first, the one that has the largest map.
        longest = max(pieces, key=lambda piece: len(piece.poses))
        others = sorted((piece for piece in pieces if piece is not longest), key=lambda piece: -len(piece.poses))
        missing = [index for index in self.recording.order if index not in longest.poses]
        reasons = {index: main.reasons.get(index, "structure from motion did not register it") for index in missing}
        others = [normalised(piece) for piece in others if piece.poses]
        return replace(normalised(longest), reasons=reasons, others=others, num_maps=main.num_maps, num_joined=main.num_joined)

    def _chain(self) -> Chain:
        return Chain(self.recording.order, self.load, self.chain_options, self.recording.cuts)

    def _dense_frame(self, index: int) -> DenseFrame:
        recording = self.recording
        return Undistorter(self.camera).frame(
            read_image(recording.images / f"{index:06d}.jpg"),
            read_mask(recording.masks / f"{index:06d}.png"),
            read_depth(recording.depth / f"{index:06d}.tiff"),
        )

    def _main(self, maps: Sequence[SparseMap]) -> tuple[Track, list[SparseMap]]:
        """The piece around the largest map, and the maps that could not be joined to it."""
        chain = self._chain()
        sparse, apart = self._joined(maps, chain) if maps else (None, [])
        if self.method != "sfm":
            if maps:
                self._align(chain)
            else:
                chain = self._aligned_alone(chain)
            self._find_again(chain, {index for other in apart for index in other.poses})
        return self._track(chain, sparse, len(maps), len(maps) - len(apart)), apart

    def _track(self, chain: Chain, sparse: SparseMap | None, num_maps: int = 0, num_joined: int = 0) -> Track:
        """What a chain has come to, its loops closed."""
        mapped = sparse.poses if sparse else {}
        num_loops = close_loops(chain, mapped) if self.method != "sfm" else 0
        method_of = {index: "sfm" if index in mapped else "alignment" for index in chain.poses}
        return Track(
            self.camera, chain.poses, chain.factors, chain.keyframe_of, method_of, chain.reasons, sparse, num_maps, num_joined, num_loops
        )

    def _joined(self, maps: Sequence[SparseMap], chain: Chain) -> tuple[SparseMap, list[SparseMap]]:
        """The largest map with those that can be brought into its frame, and those that cannot.

        Maps that share points with it come first. Then the chain grows over frames that no map knows, so that the gap to
        each other map is as short as it can be, and the others are linked by alignment.
        """
        self._add(chain, maps[0])
        whole, apart = self._join(maps[0], maps[1:], chain, lambda whole, other: by_shared_points(whole, other, self.seed))
        if apart and self.method == "hybrid":
            self._align(chain, leave_out={index for other in apart for index in other.poses})
            whole, apart = self._join(whole, apart, chain, lambda _, other: by_alignment(chain, other, self._factors(other)))
        return whole, apart

    def _join(
        self, whole: SparseMap, others: Sequence[SparseMap], chain: Chain, link: Callable[[SparseMap, SparseMap], Similarity | None]
    ) -> tuple[SparseMap, list[SparseMap]]:
        """Merge the maps that `link` can bring into the first one's frame; those that it cannot are handed back."""
        apart = []
        for other in others:
            similarity = link(whole, other) if same_lens(whole.camera, other.camera) else None
            if similarity is None:
                apart.append(other)
            else:
                other = transformed(other, similarity)
                self._add(chain, other)
                whole = merged(whole, other)
        return whole, apart

    def _find_again(self, chain: Chain, mapped: Set[int]) -> None:
        """Look for places where the camera, lost for a while, is back in view of what it had seen, and grow from there."""
        lost = [stretch for stretch in self._stretches(set(chain.poses)) if not mapped & set(stretch)]
        if not lost or not chain.poses:
            return
        finder = Finder.of(chain)
        for stretch in lost:
            # Growing from one stretch may have posed frames of the next.
            stretch = [index for index in stretch if index not in chain.poses]
            if any(find_again(finder, index) for index in stretch[:: max(1, len(stretch) // NUM_LOOKS)]):
                self._align(chain, leave_out=mapped)

    def _pieces(self, main: Track, apart: Sequence[SparseMap]) -> list[Track]:
        """Pieces of their own: maps that could not be joined, then stretches that alignment alone can hold together."""
        taken, pieces = set(main.poses), []
        for sparse in apart:
            if same_lens(sparse.camera, self.camera) and not taken & set(sparse.poses):
                chain = self._chain()
                self._add(chain, sparse)
                pieces.append(self._grown(chain, sparse, taken))
                taken |= set(pieces[-1].poses)
        if self.method == "sfm":
            return pieces
        failed: set[int] = set()
        while len(failed) < MAX_FAILED and (stretches := self._stretches(taken | failed)):
            stretch = max(stretches, key=len)
            middle = stretch[len(stretch) // 2]
            chain = self._chain()
            chain.add(middle, np.eye(4), 1.0 / chain.load(middle).median_depth)
            piece = self._grown(chain, None, taken)
            if len(piece.poses) >= MIN_PIECE_FRAMES:
                pieces.append(piece)
                taken |= set(piece.poses)
            else:
                failed.add(middle)
        return pieces

    def _grown(self, chain: Chain, sparse: SparseMap | None, taken: Set[int]) -> Track:
        if self.method != "sfm":
            self._align(chain, leave_out=taken)
        return self._track(chain, sparse)

    def _stretches(self, taken: Set[int]) -> list[list[int]]:
        """Runs of usable frames of one shot that nothing has posed, long enough to be a piece."""
        runs: list[list[int]] = []
        cuts = set(self.recording.cuts)
        follows = False
        for index in self.recording.order:
            if index in taken:
                follows = False
                continue
            if not follows or index in cuts:
                runs.append([])
            runs[-1].append(index)
            follows = True
        return [run for run in runs if len(run) >= MIN_PIECE_FRAMES]

    def _align(self, chain: Chain, leave_out: Set[int] = frozenset()) -> None:
        missing = len(set(self.recording.order) - set(chain.poses) - leave_out)
        for _ in self.progress(chain.grow(leave_out), missing, "aligning frames"):
            pass

    def _aligned_alone(self, empty: Chain) -> Chain:
        """Without any map: everything hangs on one usable frame, the first unless it leads nowhere."""
        best = empty
        for share in STARTS:
            start = empty.order[int(share * len(empty.order))]
            chain = self._chain()
            chain.add(start, np.eye(4), 1.0 / chain.load(start).median_depth)
            self._align(chain)
            best = max(best, chain, key=lambda c: len(c.poses))
            if 2 * len(best.poses) > len(best.order):
                break
        return best

    def _add(self, chain: Chain, sparse: SparseMap) -> None:
        factors = self._factors(sparse)
        for index in sparse.poses:
            if index not in chain.poses:
                chain.add(index, sparse.poses[index], factors[index])

    def _factors(self, sparse: SparseMap) -> dict[int, float]:
        """Map units per unit of predicted depth; a frame without points takes the median of the others."""
        factors = {index: float(np.exp(np.median(r.log_ratio))) for index, r in self._ratios(sparse) if len(r.log_ratio)}
        middle = float(np.median(list(factors.values()))) if factors else 1.0
        return {index: factors.get(index, middle) for index in sparse.poses}

    def _ratios(self, sparse: SparseMap) -> Iterator[tuple[int, FrameRatios]]:
        for index in sparse.poses:
            pixels, z, _ = frame_points(sparse, index)
            depth = read_depth(self.recording.depth / f"{index:06d}.tiff")
            yield index, sample_ratios(depth, pixels, (sparse.camera.width_px, sparse.camera.height_px), z)


def add_still(chain: Chain) -> None:
    """All frames at the origin; the camera being still, their depth maps show one scene and take one level."""
    first = chain.order[0]
    reference = chain.load(first)
    for index in chain.order:
        frame = chain.load(index)
        both = reference.levels[0].has_depth & frame.levels[0].has_depth
        shift = float(np.median((reference.levels[0].log_depth - frame.levels[0].log_depth)[both])) if both.any() else 0.0
        chain.add(index, np.eye(4), float(np.exp(shift)) / reference.median_depth, keyframe=first)


def frame_points(sparse: SparseMap, index: int) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Pixels, z-depths and reprojection errors of the points that a frame sees."""
    rows = np.flatnonzero(sparse.obs_frame == index)
    points = sparse.obs_point[rows]
    T_camera_world = se3.inverse(sparse.poses[index])
    z = sparse.xyz[points] @ T_camera_world[2, :3] + T_camera_world[2, 3]
    return sparse.obs_px[rows], z, sparse.error_px[points]


def normalised(track: Track) -> Track:
    """The track in the world of this module's docstring."""
    if not track.poses:
        return track
    T = se3.inverse(track.poses[min(track.poses)])
    scale = 1.0
    if track.sparse is not None:
        medians = [np.median(z) for index in track.sparse.poses if len(z := frame_points(track.sparse, index)[1])]
        scale = 1.0 / float(np.median(medians))
    similarity = Similarity(scale, T[:3, :3], scale * T[:3, 3])
    return replace(
        track,
        poses={index: similarity.poses(track.poses[index]) for index in sorted(track.poses)},
        factors={index: scale * track.factors[index] for index in sorted(track.factors)},
        sparse=None if track.sparse is None else transformed(track.sparse, similarity),
    )
