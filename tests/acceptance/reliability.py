"""Whether a surface's confidence means what it says: predicted probability against how often it came true.

`reliability.py RUN [RUN ...]` prints a table for each finished run of a recording whose true surface is known. Vertices are sorted
by confidence and cut into ten equal parts. A vertex is true when, with the camera path laid over the true one with scale as in the
evaluation, it lies within 1 % of the median true depth of the true surface. The table and the expected calibration error are those
of Guo et al., "On calibration of modern neural networks" (2017), over parts of equal size.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.cli.results import artifact
from recon.data import open_source
from recon.eval.distances import Surface
from recon.eval.trajectory import match, similarity
from recon.io.atomic import read_json
from recon.pipeline.store import read_manifest
from recon.scoring.prediction import prediction_of_run
from recon.scoring.score import Inputs
from recon.scoring.surface import median_true_depth
from recon.types import ReconError

NUM_PARTS = 10
TOLERANCE = 0.01
"""Of the median true depth: what the confidence of a mesh asks about."""
MAX_MEDIAN_FRAMES = 50


@dataclass(frozen=True)
class Part:
    """Vertices of neighbouring confidence."""

    lowest: float
    """Least confidence in it."""
    confidence: float
    """Mean."""
    true_share: float
    """Of its vertices, those that lie within the tolerance."""
    error: float
    """Mean distance to the truth, in median true depths."""
    matched: float
    """Mean share of what is known of a vertex that matching of views gave; NaN where the mesh does not say."""


def reliability(
    confidence: Float[np.ndarray, " v"], error: Float[np.ndarray, " v"], matched: Float[np.ndarray, " v"] | None = None
) -> list[Part]:
    """Ten parts of equal size from the least to the most confident vertices; `error` in median depths."""
    matched = np.full(len(confidence), np.nan) if matched is None else matched
    order = np.argsort(confidence, kind="stable")
    return [
        Part(
            float(confidence[rows[0]]),
            float(confidence[rows].mean(dtype=np.float64)),
            float((error[rows] <= TOLERANCE).mean()),
            float(error[rows].mean(dtype=np.float64)),
            float(matched[rows].mean(dtype=np.float64)),
        )
        for rows in np.array_split(order, NUM_PARTS)
    ]


def figures(parts: list[Part]) -> dict[str, float]:
    """What `limits.toml` holds against a run: order and level of the confidence."""
    shares, errors = [part.true_share for part in parts], [part.error for part in parts]
    return {
        "decile_violations": int(np.sum(np.diff(shares) < 0)),
        "decile_error_violations": int(np.sum(np.diff(errors) > 0)),
        "calibration_error": float(np.mean([abs(part.confidence - part.true_share) for part in parts])),
    }


def of_run(run: Path) -> list[Part]:
    """Parts of a finished run's mesh. Raises ReconError where the recording has no true surface or path, or the mesh no confidence."""
    vertices, confidence, matched, median_depth, surface = _laid_over(run)
    error = np.concatenate([surface.distances(part) for part in np.array_split(vertices, max(1, len(vertices) // 200_000))])
    return reliability(confidence, error / median_depth, matched)


def _laid_over(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, float, Surface]:
    """Vertices in the world of the truth, their confidence and matched share, the median true depth and the true surface."""
    sequence = open_source(run / "source" / read_manifest(artifact(run, "frames"))["reads"]["source"])
    found = prediction_of_run(
        run.name, Inputs(False, False, False), artifact(run, "scale"), run / "results" / "mesh.ply", artifact(run, "masks") / "scope.png"
    )
    median_depth = median_true_depth(sequence, MAX_MEDIAN_FRAMES)
    if sequence.mesh_gt is None or sequence.trajectory_gt is None or median_depth is None:
        raise ReconError(f"{sequence.name} lacks a true surface, path or depth: choose a run of a recording that has all three")
    if found.mesh is None or found.mesh.confidence is None or found.trajectory is None:
        raise ReconError(f"{run}/results/mesh.ply has no confidence: run it again with this version")
    fit = similarity(*match(found.trajectory, sequence.trajectory_gt), with_scale=True)
    mesh = found.mesh
    return fit.map(mesh.vertices), mesh.confidence, mesh.matched, median_depth, Surface(sequence.mesh_gt())


def show(name: str, parts: list[Part]) -> None:
    print(f"\n{name}\n| decile | confidence | true to 1 % | mean error (% of depth) | matched |\n|{'---|' * 5}")
    for number, part in enumerate(parts, 1):
        cells = (
            f"{part.lowest:.3f} up",
            f"{part.confidence:.3f}",
            f"{part.true_share:.3f}",
            f"{100 * part.error:.2f}",
            f"{part.matched:.2f}",
        )
        print(f"| {number}: {' | '.join(cells)} |")
    found = figures(parts)
    drops = found["decile_violations"], found["decile_error_violations"]
    verdict = "monotone" if not any(drops) else f"not monotone: the share falls {drops[0]} times, the error rises {drops[1]} times"
    print(f"{verdict}; expected calibration error {found['calibration_error']:.3f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    code = 0
    for run in parser.parse_args().runs:
        try:
            source = read_json(run / "source" / read_manifest(artifact(run, "frames"))["reads"]["source"] / "source.json")["path"]
            show(f"{run.name}: {Path(source).name}", of_run(run))
        except ReconError as error:
            print(f"{run}: {error}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
