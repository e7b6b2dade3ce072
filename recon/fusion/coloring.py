"""Colours of a surface from the few frames that see each vertex best, brought to one exposure.

The mean over all frames blurs: each frame's depth and pose are a little off. A vertex takes its colour from the views that
resolve it best (near, head on, sharp, neither saturated nor dark), in the spirit of Lempitsky and Ivanov, "Seamless mosaicing
of image-based texture maps" (2007); the exposure is solved first, so that seams between views do not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from recon.fusion.exposure import NUM_FALLOFF, Exposure, Observations, solve_exposure
from recon.fusion.sightings import Sighting, nearest_of
from recon.fusion.view import View
from recon.image.quality import SATURATED_LEVEL, blur_score

NUM_BEST = 3
"""Views kept per vertex."""
SHARPNESS_OF_CHOICE = 10.0
"""Views of a vertex are mixed by the ratio of their quality to this power: one 10 % worse than the best counts a third, so that there
are no hard seams, and one half as good counts nothing, so that nothing blurs."""
NUM_SAMPLES = 2000
"""Vertices, spread over the surface, whose colours in all frames decide the exposure."""
GLARE_LEVEL = 200
"""From here to saturation a pixel loses its say: the tone curve bends there."""
DARK_LEVEL = 16
"""Of the brightest channel; below, a pixel holds noise."""
LEAST_VALUE = 2.0
"""Recorded values are raised to this before the logarithm."""
ROW_LENGTH = 4096
BRIGHT_QUANTILE = 0.95
"""The surface's bright end stays as bright as it was recorded."""
MAX_LOG_CORRECTION = np.log(2.0)
"""Of exposure and falloff together: beyond, dark noise would be blown up."""


@dataclass(frozen=True)
class _Kept:
    """The best views of each vertex, in no order; quality 0 where there are fewer."""

    quality: Float[np.ndarray, "v k"]
    color: UInt8[np.ndarray, "v k 3"]
    frame: Int[np.ndarray, "v k"]
    falloff: Float[np.ndarray, "v k 3"]


class BestViews:
    """Keeps the best views of every vertex while frames pass by one at a time, and what decides their exposure.

    Args:
        num_vertices: of the surface.
        median_depth: world units; the distance at which the tissue is shown.
    """

    def __init__(self, num_vertices: int, median_depth: float) -> None:
        self.median_depth, self.num_frames = median_depth, 0
        shape = (num_vertices, NUM_BEST)
        falloff = np.zeros((*shape, NUM_FALLOFF), np.float32)
        self._kept = _Kept(np.zeros(shape, np.float32), np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.int32), falloff)
        self._sample_of = np.full(num_vertices, -1, np.int64)
        sampled = np.unique(np.linspace(0, num_vertices - 1, NUM_SAMPLES).round().astype(np.int64))
        self._sample_of[sampled] = np.arange(len(sampled))
        self._observed: list[Observations] = []

    def add(self, view: View, sighting: Sighting) -> None:
        """Take what one frame recorded of the vertices that it sees."""
        color = _between_pixels(view.color, sighting.pixel_xy)
        falloff = np.stack([np.log(sighting.distance / self.median_depth), np.log(sighting.cosine), np.log(sighting.axis_cosine)], axis=-1)
        # Beside unknown pixels lie the black outside of the lens, glare and instruments; nothing of them may be mixed in.
        usable = _usability(color) * (_between_pixels(255 * view.valid.astype(np.uint8), sighting.pixel_xy) == 255)
        # Pixels of the view that a piece of the surface fills, per area.
        resolution = sighting.cosine * (self.median_depth / sighting.distance) ** 2
        quality = (resolution * usable * _sharpness(view)).astype(np.float32)
        self._keep(sighting.vertex, quality, color, falloff)
        row = self._sample_of[sighting.vertex]
        chosen = (row >= 0) & (usable > 0.5)
        frame = np.full(np.count_nonzero(chosen), self.num_frames)
        self._observed.append(Observations(row[chosen], frame, _log(color[chosen]), falloff[chosen]))
        self.num_frames += 1

    def _keep(self, vertex: np.ndarray, quality: np.ndarray, color: np.ndarray, falloff: np.ndarray) -> None:
        """Replace the worst view kept of each vertex where this one is better."""
        kept = self._kept
        worst = np.argmin(kept.quality[vertex], axis=1)
        better = quality > kept.quality[vertex, worst]
        at = (vertex[better], worst[better])
        kept.quality[at], kept.frame[at] = quality[better], self.num_frames
        kept.color[at], kept.falloff[at] = color[better], falloff[better]

    def exposure(self) -> Exposure:
        """Return the frames' gains and the falloff of light."""
        parts = [[getattr(o, name) for o in self._observed] for name in ("vertex", "frame", "log_color", "falloff")]
        return solve_exposure(Observations(*(np.concatenate(part) for part in parts)), self.num_frames)

    def colors(
        self, vertices: Float[np.ndarray, "v 3"], exposure: Exposure, otherwise: UInt8[np.ndarray, "v 3"]
    ) -> UInt8[np.ndarray, "v 3"]:
        """Return the colour of every vertex as a camera at the median depth sees it head on.

        A vertex that no view shows well takes the colour of the nearest that one does; `otherwise` where there is none at all.
        """
        kept = self._kept
        best = kept.quality.max(axis=1)
        known = best > 0
        if not known.any():
            return otherwise
        share = (kept.quality / np.where(known, best, 1)[:, None]) ** SHARPNESS_OF_CHOICE
        recorded, evened = np.zeros((len(best), 3)), np.zeros((len(best), 3))
        for k in range(NUM_BEST):
            correction = np.clip(exposure.correction(kept.frame[:, k], kept.falloff[:, k]), -MAX_LOG_CORRECTION, MAX_LOG_CORRECTION)
            recorded += share[:, k, None] * kept.color[:, k]
            evened += share[:, k, None] * np.exp(_log(kept.color[:, k]) - correction)
        total = np.where(known, share.sum(axis=1), 1)[:, None]
        # Not by the median: most of a tube's wall is far and dark in every frame.
        level, evened_level = (np.quantile((values / total)[known], BRIGHT_QUANTILE) for values in (recorded, evened))
        evened *= level / np.maximum(evened_level, LEAST_VALUE) / total
        return np.clip(np.rint(evened), 0, 255).astype(np.uint8)[nearest_of(vertices, known)]


def _between_pixels(picture: UInt8[np.ndarray, "h w *c"], pixel_xy: Float[np.ndarray, "n 2"]) -> UInt8[np.ndarray, "n *c"]:
    """The picture's values at fractional pixels, from the four around."""
    num, channels = len(pixel_xy), picture.shape[2:]
    if num == 0:
        return np.zeros((0, *channels), np.uint8)
    # cv2.remap makes no picture with a side of more than 32767, so a list of points is folded into rows.
    padded = np.concatenate([pixel_xy, np.repeat(pixel_xy[-1:], -num % ROW_LENGTH, axis=0)]).astype(np.float32)
    grid = padded.reshape(-1, ROW_LENGTH, 2)
    found = cv2.remap(picture, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape(-1, *channels)[:num]


def _usability(color: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """0 to 1: how little a pixel is saturated; 0 where it is dark."""
    brightest = color.max(axis=1).astype(np.float32)
    free = np.clip((SATURATED_LEVEL - brightest) / (SATURATED_LEVEL - GLARE_LEVEL), 0.02, 1)
    return np.where(brightest < DARK_LEVEL, 0, free)


def _sharpness(view: View) -> float:
    """Share of detail, 0 to 1, that the frame has not lost to blur."""
    return max(1e-3, (1 - blur_score(view.color, view.valid)) ** 2)


def _log(color: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.log(np.maximum(color.astype(np.float64), LEAST_VALUE))
