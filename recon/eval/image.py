"""How like a rendered picture is to the camera's: PSNR and SSIM on tissue, the neighbours to beat, and three published protocols.

Pictures are RGB in 0..1, masks True on tissue. SSIM: Wang et al., "Image quality assessment: from error visibility to structural
similarity" (2004), Gaussian windows of 11x11 with sigma 1.5. The protocols score scenes in EndoNeRF's layout, each with the
arithmetic of its authors' code; they differ in which frames count, in what the mean squared error is divided by, in whether frames
are pooled before the logarithm or after, in SSIM's border, in how the render is stored, and in what LPIPS is fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import correlate1d

from recon.types import ReconError

WINDOW_RADIUS_PX, WINDOW_SIGMA_PX = 5, 1.5
C1, C2 = 0.01**2, 0.03**2
"""Stabilisers of the luminance and the contrast term for values in 0..1."""
HELD_OUT_STEP, HELD_OUT_FIRST = 8, 1
"""EndoSurf and the Gaussian splats after it hold out frames 1, 9, 17, ..."""

Border = Literal["reflect", "zero", "valid"]
PerceptualDistance = Callable[[np.ndarray, np.ndarray, bool], float]
"""LPIPS of two pictures in 0..1; True: they are brought to -1..1 first, as the network wants; False: fed as they are."""


@dataclass(frozen=True)
class ImageProtocol:
    """What one published evaluation of renders does."""

    held_out: bool
    """Scores frames 1, 9, 17, ..., which training does not see; else all frames but the first."""
    is_pooled: bool
    """PSNR of the mean squared error over all frames; else the mean of the frames' PSNR."""
    divides_by: tuple[Literal["all", "mask"], ...]
    """What the squared error in the mask is divided by, for `psnr` and then `psnr_star`: all pixels, which flatters, or the mask's."""
    border: Border
    levels: Literal["cut", "rounded", "float"]
    """How the render becomes 8 bits before it is scored."""
    lpips_signed: bool | None
    """Whether LPIPS gets -1..1, or 0..1 as it is; None where the authors use another network than AlexNet."""


IMAGE_PROTOCOLS = {
    "endonerf": ImageProtocol(False, True, ("all",), "zero", "cut", False),
    "endosurf": ImageProtocol(True, True, ("mask",), "valid", "float", None),
    "endogaussian": ImageProtocol(True, False, ("all", "mask"), "zero", "rounded", True),
}
"""med-air/EndoNeRF eval_rgb.py; Ruyi-Zha/endosurf trainer/utils.py (its LPIPS is VGG's); CUHK-AIM-Group/EndoGaussian metrics.py."""


@dataclass(frozen=True)
class FrameScore:
    """What a protocol keeps of one frame."""

    square_error: float
    """Sum over the values (pixels times channels) of the mask."""
    num_values: dict[str, int]
    """How many values there are, by "all" and "mask"."""
    ssim: float
    lpips: float | None


def psnr(render: Float[np.ndarray, "h w 3"], picture: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Peak signal to noise over the mask's pixels, dB; infinite for equal pictures. Raises ReconError when the mask is empty."""
    _check(render, mask)
    difference = render[mask].astype(np.float64) - picture[mask]
    return _decibels(float((difference**2).mean()))


def ssim(render: Float[np.ndarray, "h w 3"], picture: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Mean of the SSIM map over the mask's pixels and the channels, borders reflected.

    Outside the mask the render is given the picture's values, so that what windows beside the edge see of an instrument is no
    error of the render. Raises ReconError when the mask is empty.
    """
    _check(render, mask)
    composed = np.where(mask[..., None], render, picture)
    return float(ssim_map(composed, picture)[mask].mean())


def ssim_map(a: Float[np.ndarray, "h w c"], b: Float[np.ndarray, "h w c"], border: Border = "reflect") -> Float[np.ndarray, "h2 w2 c"]:
    """SSIM of each window; of the input's size, or with "valid" of whole windows alone (10 pixels less each way)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _window_mean(a, border), _window_mean(b, border)
    var_a, var_b = _window_mean(a * a, border) - mean_a**2, _window_mean(b * b, border) - mean_b**2
    covariance = _window_mean(a * b, border) - mean_a * mean_b
    likeness = (2.0 * mean_a * mean_b + C1) * (2.0 * covariance + C2)
    return likeness / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))


def scored_frames(protocol: str, numbers: Sequence[int]) -> list[int]:
    """Which of the frames (numbered from 0 in their order) a protocol scores. Raises ReconError when it scores none."""
    if _protocol(protocol).held_out:
        chosen = [i for i in numbers if i % HELD_OUT_STEP == HELD_OUT_FIRST]
    else:
        chosen = [i for i in numbers if i > 0]
    if not chosen:
        raise ReconError(f"protocol {protocol} scores none of {len(numbers)} frames: it needs at least frames 0 and 1")
    return chosen


def score_frame(
    protocol: str,
    render: Float[np.ndarray, "h w 3"],
    picture: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    lpips: PerceptualDistance | None = None,
) -> FrameScore:
    """Score one frame as a protocol does. Raises ReconError for an unknown protocol and an empty mask."""
    how = _protocol(protocol)
    _check(render, mask)
    a, b = _stored(render, how.levels) * mask[..., None], picture * mask[..., None]
    distance = None if lpips is None or how.lpips_signed is None else lpips(a, b, how.lpips_signed)
    squares = float(((a - b).astype(np.float64) ** 2).sum())
    return FrameScore(squares, {"all": a.size, "mask": 3 * int(mask.sum())}, float(ssim_map(a, b, how.border).mean()), distance)


def protocol_scores(protocol: str, scores: Sequence[FrameScore]) -> dict[str, float]:
    """`psnr` (dB), with EndoGaussian `psnr_star`, `ssim`, and `lpips` where it was given, over the frames of `scored_frames`."""
    how = _protocol(protocol)
    if not scores:
        raise ReconError(f"protocol {protocol}: no frame was scored")
    result = {}
    for name, part in zip(("psnr", "psnr_star"), how.divides_by, strict=False):
        if how.is_pooled:
            total = sum(score.square_error for score in scores) / sum(score.num_values[part] for score in scores)
            result[name] = _decibels(total)
        else:
            result[name] = float(np.mean([_decibels(score.square_error / score.num_values[part]) for score in scores]))
    result["ssim"] = float(np.mean([score.ssim for score in scores]))
    distances = [score.lpips for score in scores if score.lpips is not None]
    return result | ({"lpips": float(np.mean(distances))} if distances else {})


def nearest_kept(
    load: Callable[[int], Float[np.ndarray, "h w 3"]], kept: Sequence[int], times_s: Float[np.ndarray, " n"], index: int
) -> Float[np.ndarray, "h w 3"]:
    """The kept frame nearest in time to a held-out one, the earlier of two: what a render must beat.

    Args:
        load: from frame index to picture.
        kept: indices of the frames that training saw.
        times_s: of all frames, by index.
    """
    kept = _sorted_kept(kept, times_s, index)
    return load(int(kept[np.argmin(np.abs(times_s[kept] - times_s[index]))]))


def neighbour_average(
    load: Callable[[int], Float[np.ndarray, "h w 3"]], kept: Sequence[int], times_s: Float[np.ndarray, " n"], index: int
) -> Float[np.ndarray, "h w 3"]:
    """The kept frames before and after a held-out one, mixed by their distance in time; the nearest one beyond the ends."""
    kept = _sorted_kept(kept, times_s, index)
    after = int(np.searchsorted(times_s[kept], times_s[index]))
    if after in (0, len(kept)):
        return load(int(kept[min(after, len(kept) - 1)]))
    before, behind = int(kept[after - 1]), int(kept[after])
    share = (times_s[index] - times_s[before]) / (times_s[behind] - times_s[before])
    return (1.0 - share) * load(before) + share * load(behind)


def _sorted_kept(kept: Sequence[int], times_s: np.ndarray, index: int) -> Int[np.ndarray, " k"]:
    if not len(kept) or index in kept:
        found = "no frame is kept" if not len(kept) else f"frame {index} is kept itself"
        raise ReconError(f"neighbours of held-out frame {index}: {found}; give the frames that training saw")
    kept = np.array(sorted(kept), dtype=np.int64)
    return kept[np.argsort(times_s[kept], kind="stable")]


def _protocol(name: str) -> ImageProtocol:
    if name not in IMAGE_PROTOCOLS:
        raise ReconError(f"image protocol {name!r} is not known; known: {', '.join(IMAGE_PROTOCOLS)}")
    return IMAGE_PROTOCOLS[name]


def _check(render: np.ndarray, mask: np.ndarray) -> None:
    if not mask.any():
        raise ReconError("image scores: the mask leaves no pixel, leave the frame out and say so")
    if not np.all(np.isfinite(render)):
        raise ReconError("image scores: the render holds values that are not finite", exit_code=1)


def _stored(render: np.ndarray, levels: str) -> np.ndarray:
    """The render as read back from the 8-bit file in which the authors keep it."""
    if levels == "float":
        return render
    scaled = 255.0 * np.clip(render.astype(np.float64), 0.0, 1.0)
    return np.floor(scaled if levels == "cut" else scaled + 0.5) / 255.0


def _window_mean(image: np.ndarray, border: Border) -> np.ndarray:
    offsets = np.arange(-WINDOW_RADIUS_PX, WINDOW_RADIUS_PX + 1)
    weights = np.exp(-0.5 * (offsets / WINDOW_SIGMA_PX) ** 2)
    mode = "constant" if border == "zero" else "reflect"
    for axis in (0, 1):
        image = correlate1d(image, weights / weights.sum(), axis=axis, mode=mode)
    inside = slice(WINDOW_RADIUS_PX, -WINDOW_RADIUS_PX)
    return image[inside, inside] if border == "valid" else image


def _decibels(mean_square: float) -> float:
    return math.inf if mean_square == 0.0 else -10.0 * math.log10(mean_square)
