"""Instrument finders by name, for recordings without instrument masks.

`metal` needs nothing; `sam` and `medsam` outline what `metal` finds, with weights that the user gives. Weights are never downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from recon.types import ReconError


@runtime_checkable
class InstrumentFinder(Protocol):
    """What every finder does."""

    def find(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        scope: Bool[np.ndarray, "h w"],
        samples: Iterable[UInt8[np.ndarray, "h w 3"]],
    ) -> Iterator[Bool[np.ndarray, "h w"]]:
        """Yield one mask for each RGB frame, in order: True on instruments, False elsewhere and outside the scope's field.

        Args:
            frames: Consecutive frames, all of one size. They are drawn as they are needed, a few ahead, and not kept: what moves
                is seen in them. A single frame is judged by its look alone.
            scope: True inside the scope's field.
            samples: A few frames spread over the recording, which tell how its tissue looks.
        """


@dataclass(frozen=True)
class FinderInfo:
    """What is known of a finder."""

    name: str
    how: str
    """In a few words."""
    licence: str
    load: Callable[[str, Path | None], InstrumentFinder]
    """From a device and the weights (None where it takes none) to the finder."""
    published: str | None = None
    """Where its weights are published; None where it takes none."""

    def weights_path(self, given: Path | None) -> Path | None:
        """Where the weights lie. Raises ReconError where they are needed and not given, and where given ones are of no use."""
        if self.published is None and given is not None:
            raise ReconError(f"masks.instrument_weights {given}: masks.instruments {self.name!r} takes none; leave it out")
        if self.published is not None and given is None:
            raise ReconError(
                f"masks.instruments {self.name!r} needs its weights: set masks.instrument_weights=PATH, or masks.instruments=metal; "
                f"{self.published}"
            )
        return given

    def checksum(self, given: Path | None) -> str:
        """SHA-256 of the weights and of what says their size; the empty string where there are none.

        Raises ReconError as `weights_path`, for weights that are missing or plainly damaged, and without the package they run in.
        """
        from recon.models.sam import transformers_package
        from recon.models.sam_promptable import weights_file
        from recon.models.weights import sha256

        path = self.weights_path(given)
        if path is None:
            return ""
        transformers_package()
        file, described = weights_file(path), path / "config.json"
        if not described.is_file():
            return sha256(file)
        return hashlib.sha256(f"{sha256(file)} {sha256(described)}\n".encode()).hexdigest()


def finders() -> dict[str, FinderInfo]:
    """All finders by name."""
    return {info.name: info for info in (METAL, SAM, MEDSAM)}


def finder_info(name: str) -> FinderInfo:
    """What is known of a finder. Raises ReconError listing the known names."""
    known = finders()
    if name not in known:
        raise ReconError(f"instrument finder {name!r} is not known; known: {', '.join(known)}")
    return known[name]


def load_instrument_finder(name: str, device: str = "cpu", weights: Path | None = None) -> InstrumentFinder:
    """Load a finder by its name. Raises ReconError where its weights or their package are missing, damaged or of another network."""
    info = finder_info(name)
    return info.load(device, info.weights_path(weights))


def _metal(device: str, weights: Path | None) -> InstrumentFinder:
    from recon.models.metal_finder import MetalFinder

    return MetalFinder()


def _sam(device: str, weights: Path | None) -> InstrumentFinder:
    from recon.models.sam_finder import SamFinder

    return SamFinder(weights, device)


def _medsam(device: str, weights: Path | None) -> InstrumentFinder:
    from recon.models.sam_finder import SamFinder

    return SamFinder(weights, device, is_medsam=True)


METAL = FinderInfo("metal", "grey, sharp-edged things that enter from the rim", "Apache-2.0", _metal)
SAM = FinderInfo(
    "sam", "SAM's outline of what metal finds", "Apache-2.0", _sam, "facebook/sam-vit-base on Hugging Face, or sam_vit_b_01ec64.pth"
)
MEDSAM = FinderInfo(
    "medsam", "MedSAM's outline of what metal finds", "Apache-2.0", _medsam, "wanglab/medsam-vit-base on Hugging Face, or medsam_vit_b.pth"
)
