"""How bright each frame recorded the same tissue, and how brightness falls with distance and angle: solved jointly.

A video processor changes its gain from frame to frame, and an endoscope carries its lamp, so a wall grows brighter as the
camera nears it. With I the recorded value (0 to 255, gamma encoded), for vertex v in frame f and colour c

    log I(v, f, c) = albedo(v, c) + gain(f, c) + falloff . x(v, f)

where x holds the logarithms of distance, of the cosine of incidence and of the cosine to the optical axis. Under a power-law
tone curve a lamp's inverse-square and Lambert's law are linear in x, so nothing is assumed of gamma. Gains of overlapping
frames as in Brown and Lowe, "Automatic panoramic image stitching using invariant features" (2007), section 6; the model of
light as in Batlle et al., "Photometric single-view dense 3D reconstruction in endoscopy" (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix, diags, hstack, identity, kron
from scipy.sparse.linalg import spsolve

FALLOFF_NAMES = ("distance", "cosine_of_incidence", "cosine_to_axis")
"""Whose logarithms the light is linear in; the distance is over the median depth."""
FALLOFF_SIGNS = np.array([-1.0, 1.0, 1.0])
"""No lamp brightens what is far or slanted. A term that comes out the other way round, as where distances hardly differ, is left out."""
NUM_FALLOFF = len(FALLOFF_NAMES)
GAIN_SIGMA = 1.0
FALLOFF_SIGMA = 2.0
"""Priors about 0 (log units): what overlap does not decide stays uncorrected."""
NOISE_SIGMA = 0.1
"""Of a recorded value, log units: scales the priors against the observations."""
HUBER = 1.5
"""In robust standard deviations."""
REWEIGHTINGS = 3


@dataclass(frozen=True)
class Observations:
    """What some frames recorded of some vertices; n observations."""

    vertex: Int[np.ndarray, " n"]
    """Rows of the sampled vertices, from 0."""
    frame: Int[np.ndarray, " n"]
    """Positions of the frames, from 0."""
    log_color: Float[np.ndarray, "n 3"]
    falloff: Float[np.ndarray, "n k"]


@dataclass(frozen=True)
class Exposure:
    """The solution, in logarithms of recorded values."""

    log_gain: Float[np.ndarray, "f 3"]
    falloff: Float[np.ndarray, " k"]
    disagreement_before: float
    """Median absolute difference between a vertex' recorded values and its mean over frames, log units; 0 without overlap."""
    disagreement: float
    """The same after compensation."""

    def correction(self, frame: Int[np.ndarray, " n"], falloff: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n 3"]:
        """Return what the frames added to the logarithm of the tissue's own colour."""
        return self.log_gain[frame] + (falloff @ self.falloff)[:, None]

    def summary(self) -> dict[str, Any]:
        """Return the numbers that a reader may ask for: spread of the gains, the falloff, and how far frames disagree."""
        return {
            "log_gain_std": [round(float(s), 4) for s in self.log_gain.std(axis=0)],
            "log_falloff": dict(zip(FALLOFF_NAMES, (round(float(x), 4) for x in self.falloff), strict=True)),
            "log_disagreement_recorded": round(self.disagreement_before, 4),
            "log_disagreement": round(self.disagreement, 4),
        }


def solve_exposure(observations: Observations, num_frames: int) -> Exposure:
    """Solve for gains and falloff, with an albedo for each vertex, by iteratively reweighted sparse least squares.

    Vertices seen once say nothing and are left out; without any overlap all corrections are 0.
    """
    o = _seen_twice(observations)
    if len(o.vertex) == 0:
        return Exposure(np.zeros((num_frames, 3)), np.zeros(NUM_FALLOFF), 0.0, 0.0)
    n, num_vertices = len(o.vertex), int(o.vertex.max()) + 1
    rows = np.arange(n)
    of_vertex = csr_matrix((np.ones(n), (rows, o.vertex)), (n, num_vertices))
    of_frame = csr_matrix((np.ones(n), (rows, o.frame)), (n, num_frames))
    # Rows run over observations, then colours; all colours share the falloff.
    shared = csr_matrix(np.repeat(o.falloff, 3, axis=0))
    albedo_and_gain = hstack([kron(of_vertex, identity(3)), kron(of_frame, identity(3))], format="csr")
    prior = np.concatenate([np.zeros(3 * num_vertices), np.full(3 * num_frames, GAIN_SIGMA), np.full(NUM_FALLOFF, FALLOFF_SIGMA)])
    ridge = diags(np.where(prior > 0, (NOISE_SIGMA / np.maximum(prior, 1e-9)) ** 2, 1e-9))
    target = o.log_color.reshape(-1)
    weights, is_light, reweighted = np.ones(3 * n), np.ones(NUM_FALLOFF), 0
    while reweighted < REWEIGHTINGS:
        design = hstack([albedo_and_gain, shared @ diags(is_light)], format="csr")
        weighted = design.T @ diags(weights)
        solution = spsolve((weighted @ design + ridge).tocsc(), weighted @ target, permc_spec="MMD_AT_PLUS_A")
        backwards = solution[-NUM_FALLOFF:] * FALLOFF_SIGNS < 0
        if backwards.any():
            is_light[backwards] = 0
            continue
        reweighted += 1
        residual = np.abs(design @ solution - target)
        scale = max(1.4826 * float(np.median(residual)), 1e-6)
        weights = np.minimum(1.0, HUBER * scale / np.maximum(residual, 1e-12))
    gains = solution[3 * num_vertices : 3 * (num_vertices + num_frames)].reshape(-1, 3)
    mean = (of_vertex.T @ o.log_color) / np.bincount(o.vertex)[:, None]
    before = np.abs(o.log_color - mean[o.vertex])
    return Exposure(gains, solution[-NUM_FALLOFF:], float(np.median(before)), float(np.median(residual)))


def _seen_twice(o: Observations) -> Observations:
    """Keep vertices that at least two frames saw, renumbered."""
    count = np.bincount(o.vertex) if len(o.vertex) else np.zeros(0, np.int64)
    keep = count[o.vertex] > 1
    _, vertex = np.unique(o.vertex[keep], return_inverse=True)
    return Observations(vertex, o.frame[keep], o.log_color[keep], o.falloff[keep])
