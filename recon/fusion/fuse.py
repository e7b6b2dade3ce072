"""From posed depth views to one surface: measure the noise, keep what views agree on, size the volume, integrate.

Three passes over the views, each streaming: agreement between views (which also measures the depth's noise), the blocks
that the surface touches, and the integration. Only the agreement (one byte a pixel) is kept between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from recon.fusion.consistency import log_residual
from recon.fusion.regions import Region, joined, part_of, reach, split
from recon.fusion.tsdf import BYTES_PER_BLOCK, TsdfVolume, merge_blocks, touched_blocks
from recon.fusion.verdict import Rigidity, judge, rigidity_of
from recon.fusion.view import View
from recon.parallel import in_order
from recon.types import Mesh, ReconError, Unit

CACHED_VIEWS = 48
"""How many recent views a loader should keep: each is asked for several times, by its neighbours."""
CONFIDENCE_TOLERANCE = 0.01
"""Of the median depth: the error that the confidence of the surface asks about."""
UNMATCHED_CORRELATION = 0.3
"""A network errs alike on what looks alike, and no scatter shows it: where matching was silent, those parts of a rendered colon that
more frames saw were true less often. Chosen there of .3 and .5, which differ little."""
MAX_REGIONS = 64
"""Voxels are coarsened until so many regions hold the volume."""
NOISE_SAMPLES = 12
"""Views, spread over the recording, from which the noise of the depth is measured."""
TOLERANCE_RANGE = (0.01, 0.08)
"""Of the relative disagreement that still counts as agreement."""


@dataclass(frozen=True)
class FusionSettings:
    """How finely and how strictly to fuse; lengths are in units of the scene's own depth."""

    voxels_per_depth: float = 96.0
    """Voxels along the median depth."""
    min_truncation_voxels: float = 5.0
    truncation_per_noise: float = 3.0
    """Truncation at least this many times the depth's noise between views."""
    min_agreement: float = 0.3
    """A pixel of which the voting views agree less than this is unknown."""
    max_volume_bytes: int = 500_000_000
    """A volume that needs more is fused region by region."""
    unmatched_correlation: float = 0.0
    """Of the errors of two frames where matching gave no depth: UNMATCHED_CORRELATION where a network speaks for it."""
    num_threads: int = 0
    """Of the processor; 0 means all. The surface is the same."""


@dataclass(frozen=True)
class FusionStats:
    """What the fusion found and chose."""

    num_frames: int
    median_depth: float
    noise: float
    """Median relative disagreement of depth between views."""
    tolerance: float
    voxel: float
    truncation: float
    num_blocks: int
    kept_share: float
    """Of the known pixels, the share that other views confirm."""
    typical_sigma: float
    """Standard deviation of the logarithm of depth in a pixel of weight 1."""
    rigidity: Rigidity
    confidence_tolerance: float = CONFIDENCE_TOLERANCE


def fuse(
    load: Callable[[int], View],
    neighbours: list[np.ndarray],
    median_depth: float,
    typical_sigma: float,
    unit: Unit,
    settings: FusionSettings,
    watch: Callable[[Iterable, int, str], Iterable],
) -> tuple[Mesh, FusionStats]:
    """Fuse `len(neighbours)` views into a surface.

    Args:
        load: from a position (0 to n - 1) to its view; asked for the same ones several times.
        neighbours: per position, the positions of the views that judge it.
        typical_sigma: standard deviation of the logarithm of depth in a pixel of weight 1.
        watch: wraps a loop for progress: (items, total, description).

    Raises ReconError (exit code 1) when no surface comes out, naming the lengths involved.
    """
    num = len(neighbours)
    noise = _measure_noise(load, neighbours, settings.num_threads)
    tolerance = float(np.clip(2 * noise, *TOLERANCE_RANGE))
    compared = ((load(i), [load(int(j)) for j in neighbours[i]]) for i in range(num))
    judged = in_order(lambda views: judge(*views, tolerance, noise, settings.min_agreement), compared, settings.num_threads)
    verdicts = list(watch(judged, num, "comparing views"))
    known, kept = sum(v.known for v in verdicts), sum(v.kept for v in verdicts)

    def weighed(i: int) -> View:
        view = load(i)
        return replace(view, weight=view.weight * (verdicts[i].weight.astype(np.float32) / 255))

    reaches = [reach(load(i)) for i in range(num)]
    origin = np.median([centre for centre, _ in reaches], axis=0)
    voxel, truncation, blocks = _size_volume(weighed, num, median_depth, noise, origin, settings)
    stats = FusionStats(
        num, median_depth, noise, tolerance, voxel, truncation, len(blocks), kept / max(known, 1), typical_sigma, rigidity_of(verdicts)
    )
    if len(blocks) == 0:
        raise _empty(stats, known, kept)

    def fused(region: Region) -> Mesh:
        lengths = (typical_sigma * median_depth, CONFIDENCE_TOLERANCE * median_depth)
        volume = TsdfVolume(region.blocks, voxel, truncation, origin, *lengths, settings.unmatched_correlation)
        seeing = [i for i in range(num) if region.is_within(*reaches[i], origin, voxel, truncation)]
        for i in watch(seeing, len(seeing), "fusing depth"):
            volume.integrate(weighed(i), settings.num_threads)
        return volume.extract(unit)

    regions = split(blocks, settings.max_volume_bytes // BYTES_PER_BLOCK)
    mesh = fused(regions[0]) if len(regions) == 1 else joined([part_of(fused(region), region, origin, voxel) for region in regions])
    if len(mesh.faces) == 0:
        raise _empty(stats, known, kept)
    return mesh, stats


def _measure_noise(load: Callable[[int], View], neighbours: list[np.ndarray], num_threads: int) -> float:
    """Median absolute log residual between neighbouring views; 0 where no view has a neighbour."""
    judged = [i for i, others in enumerate(neighbours) if len(others)]
    if not judged:
        return 0.0
    chosen = [judged[k] for k in np.unique(np.linspace(0, len(judged) - 1, NOISE_SAMPLES).round().astype(int))]
    pairs = ((load(i), load(int(j))) for i in chosen for j in neighbours[i])
    residuals = in_order(lambda pair: log_residual(*pair, TOLERANCE_RANGE[1])[::2, ::2], pairs, num_threads)
    values = np.abs(np.concatenate([r[np.isfinite(r)] for r in residuals]))
    return float(np.median(values)) if len(values) else 0.0


def _size_volume(
    judged: Callable[[int], View], num: int, median_depth: float, noise: float, origin: np.ndarray, settings: FusionSettings
) -> tuple[float, float, np.ndarray]:
    """Choose voxel and truncation from the scene's depth and noise, coarser where the surface would not fit in memory."""
    voxel = median_depth / settings.voxels_per_depth
    while True:
        truncation = max(settings.min_truncation_voxels * voxel, settings.truncation_per_noise * noise * median_depth)
        blocks = np.zeros((0, 3), np.int64)
        for i in range(num):
            blocks = merge_blocks(blocks, touched_blocks(judged(i), voxel, truncation, origin))
            if len(blocks) * BYTES_PER_BLOCK > MAX_REGIONS * settings.max_volume_bytes:
                break
        else:
            return voxel, truncation, blocks
        voxel *= 1.25


def _empty(stats: FusionStats, known: int, kept: int) -> ReconError:
    return ReconError(
        f"the fused surface is empty: {stats.num_frames} frames, {known} known depth pixels of which {kept} agree between views, "
        f"median depth {stats.median_depth:.4g}, voxel {stats.voxel:.4g}, truncation {stats.truncation:.4g} (world units): "
        "if few pixels agree, depth and trajectory are not in one unit or the poses are wrong; look at the scale stage",
        exit_code=1,
    )
