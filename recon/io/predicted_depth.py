"""Which predicted depth map belongs to which frame.

Programs name their files after the frames, after their position, or not at all. Every way of matching is tried and the one
that fits most frames is taken; what was taken is said, because a shift by one frame passes for a bad network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from recon.io.depth_formats import ARRAY_SUFFIXES, DEPTH_SUFFIXES, depth_of, open_stack, read_predicted_depth
from recon.io.names import last_number, natural_key
from recon.types import ReconError

MatchRule = Literal["name", "number", "index", "order"]
"""name: the frame's own name, suffix apart; number: the last number in both names; index: six digits that count the frames
from 0, as `recon export` writes; order: the n-th file is the n-th frame."""

_MEANING = {
    "name": "by the frames' names",
    "number": "by the last number in their names",
    "index": "by the six digits in their names, counted from frame 0",
    "order": "by their order, because no name says which frame they belong to",
}


@dataclass(frozen=True)
class MatchedDepth:
    """Where the map of each frame lies."""

    position_of: dict[int, int]
    """From frame index to position in the `DepthFolder`; frames without a map are absent."""
    notes: tuple[str, ...]


class DepthFolder:
    """Predicted maps of one recording: a folder of files, one stack (n, h, w) in an NPY or NPZ file, or one file.

    Args:
        path: of the folder or file. In a folder, arrays and TIFF come before PNG, which then are taken for pictures of them.
        factor: what file values are multiplied by, e.g. 1000 for metres where the truth is in millimetres.

    Raises ReconError when there is no map, or the factor is none.
    """

    def __init__(self, path: str | Path, factor: float = 1.0) -> None:
        self.path, self.factor = Path(path), factor
        if not 0 < factor < math.inf:
            raise ReconError(f"{path}: depth is multiplied by a positive number, found {factor}")
        self._notes: tuple[str, ...] = ()
        self._stack = open_stack(self.path) if self.path.suffix.lower() in ARRAY_SUFFIXES and self.path.is_file() else None
        self.files = [self.path] if self.path.is_file() else self._find()

    def __len__(self) -> int:
        return len(self.files) if self._stack is None else len(self._stack)

    def read(self, position: int) -> Float[np.ndarray, "h w"]:
        """float32, file values times the factor, as `read_predicted_depth`; may be called from threads."""
        if self._stack is None:
            return read_predicted_depth(self.files[position], self.factor)
        return depth_of(self._stack[position], self.factor)

    def matched(self, names: Sequence[str], rule: MatchRule | None = None) -> MatchedDepth:
        """Match with the frames of these names, in their order; `rule` instead of the one that fits most frames.

        Raises ReconError when no frame gets a map.
        """
        if self._stack is not None or rule == "order":
            return self._by_order(names, "the stack" if self._stack is not None else "the folder")
        found = _fits(names, self.files)
        best = rule or max(found, key=lambda key: len(found[key]))
        if not found[best]:
            if rule is None and len(self.files) == len(names):
                return self._by_order(names, "the folder")
            raise ReconError(
                f"{self.path}: none of its {len(self.files)} depth maps (such as {self.files[0].name}) is named like a frame "
                f"(such as {names[0]}) or like 000000.tiff, and there are {len(names)} frames to match them with by order"
            )
        return MatchedDepth(found[best], (*self._notes, *self._matching_notes(found, best, len(names))))

    def _find(self) -> list[Path]:
        if not self.path.is_dir():
            raise ReconError(f"{self.path} does not exist; expected a folder of depth maps or one stack (.npy, .npz)")
        found = [p for p in self.path.iterdir() if p.suffix.lower() in DEPTH_SUFFIXES and not p.name.startswith(".") and p.is_file()]
        exact = [p for p in found if p.suffix.lower() != ".png"]
        if exact and len(exact) < len(found):
            self._notes = (f"{self.path.name}: {len(found) - len(exact)} PNG files beside the arrays are taken for pictures of them",)
        files = exact or found
        if not files:
            raise ReconError(f"{self.path} holds no depth map ({', '.join(s[1:] for s in DEPTH_SUFFIXES)})")
        return sorted(files, key=lambda p: (natural_key(p.name), p.name))

    def _by_order(self, names: Sequence[str], holder: str) -> MatchedDepth:
        if len(self) != len(names):
            raise ReconError(f"{self.path}: {holder} holds {len(self)} maps for {len(names)} frames; matching by order needs as many")
        notes = () if len(self) == 1 else (f"{self.path.name}: {len(self)} maps are matched {_MEANING['order']}",)
        return MatchedDepth({index: index for index in range(len(self))}, self._notes + notes)

    def _matching_notes(self, found: dict[str, dict[int, int]], best: str, num_frames: int) -> list[str]:
        chosen = found[best]
        notes = [f"{self.path.name}: {len(chosen)} of {num_frames} frames have a depth map, matched {_MEANING[best]}"]
        unused = sorted(set(range(len(self.files))) - set(chosen.values()))
        if unused:
            notes.append(f"{self.path.name}: {len(unused)} depth maps fit no frame, the first is {self.files[unused[0]].name}")
        rivals = [key for key, pairs in found.items() if len(pairs) == len(chosen) and pairs != chosen]
        return notes + [f"{self.path.name}: the maps would fit as many frames {_MEANING[key]}, and differently" for key in rivals]


def _fits(names: Sequence[str], files: Sequence[Path]) -> dict[str, dict[int, int]]:
    """From frame to file under every rule that looks at names."""
    stems = [file.stem for file in files]
    return {
        "name": _pairs([Path(name).stem for name in names], stems),
        "number": _pairs([last_number(name) for name in names], [last_number(file.name) for file in files]),
        "index": _pairs([f"{index:06d}" for index in range(len(names))], stems),
    }


def _pairs(of_frames: Sequence[str | int | None], of_files: Sequence[str | int | None]) -> dict[int, int]:
    """From frame to file with the same key; none at all when a key is not one frame's or one file's alone."""
    frame_of, file_of = ({key: i for i, key in enumerate(keys) if key is not None} for keys in (of_frames, of_files))
    if len(frame_of) + of_frames.count(None) < len(of_frames) or len(file_of) + of_files.count(None) < len(of_files):
        return {}
    return {frame: file_of[key] for key, frame in frame_of.items() if key in file_of}
