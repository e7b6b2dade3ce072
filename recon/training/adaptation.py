"""The student fine-tuned on one recording, without any truth: what its views and its sparse map say of each other.

Poses and points stay as structure from motion found them. The target must look as its partners show it (the smaller of two
photometric errors, monodepth2), depth maps of partners must be one surface (SC-SfMLearner), points must lie where they were
triangulated, and where none of these speaks, shape stays as it was. Batch norm keeps its statistics. How unsure the network says
it is stays as it was too: errors where it was just fitted would make it too sure, and the scale stage calibrates it for a recording.
Stretches of the recording, away from what is learnt from, decide, by their photometric error on pixels chosen once, which step is
kept; where even the best is hardly better than the start, the network stays as it was. All of this is computed in float32, also
where the network is used in bfloat16 afterwards: those differ by some thousandths, far less than is learnt.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recon.losses import masked_mean
from recon.losses.depth import gradient_residual
from recon.losses.photometric import auto_mask, minimum_over_sources
from recon.models.adapters import attach, merge, train_adapters
from recon.models.student import StudentDepth
from recon.sampling import spread
from recon.tracking.mapping import SparseMap
from recon.tracking.stillness import is_still
from recon.training.adaptation_losses import Comparison, Depths, Views, compare, predict, stack_views
from recon.training.adaptation_views import MIN_GROUPS, Group, View, common_window, find_groups, hold_out, load_views
from recon.types import Camera

logger = logging.getLogger(__name__)

MAX_GROUPS = 150
"""Of a longer recording, frames spread over it: memory and time stay bounded."""
MAX_JUDGED = 15
BATCH_GROUPS = 3
WARMUP_STEPS = 5
JUDGE_EVERY = 25
MIN_GAIN = 0.005
"""Share by which the held-out photometric error must fall for the network to change: a choice. Noise and grain, which no depth
explains, are most of the error in real pictures, so it falls little even where depth becomes much better. Where poses were shuffled on
a rendered tube, training raised the error by 2 to 4 percent (3 orders, 6 steps)."""
MIN_EXPLAINED = 0.65
"""Share of the held-out pixels that the poses must explain better than no motion does, before anything is learnt: a choice. Poses
in random order explained 0.54 to 0.56 on a rendered tube (8 orders)."""
LEARNING_RATES = {"all": 1e-4, "adapters": 1e-3}
MAX_GRADIENT = 1.0
LORA_RANK = 8
WEIGHTS = {"photometric": 1.0, "consistency": 0.5, "points": 1.0, "shape": 0.3, "uncertainty": 1.0}
POINT_TOLERANCE = 0.05
"""Log-distance by which a point's error changes from quadratic to linear (Huber)."""
SHAPE_STEPS = (1, 4)
"""Distances in pixels over which changes of shape are held back."""

Parts = Literal["all", "adapters"]


@dataclass(frozen=True)
class Recipe:
    """How a network is adapted."""

    parts: Parts = "all"
    """"adapters" trains LoRA on the Linear layers (the MLPs of the attention blocks), and the scales and shifts of the norms."""
    num_steps: int = 150
    seed: int = 0


@dataclass(frozen=True)
class Evidence:
    """What a recording offers to learn from."""

    maps: Sequence[SparseMap]
    """Of structure from motion, the largest first."""
    images: Path
    """Folder of NNNNNN.jpg at working resolution."""
    tissue: Path
    """Folder of NNNNNN.png: what the network is told to look at."""
    masks: Path
    """The same without highlights."""
    camera: Camera
    """The lens that the network is told; the maps may have refined it."""


@dataclass(frozen=True)
class Score:
    """Means over the held-out frames."""

    photometric: float
    """On pixels chosen with the network as it was, whatever depth makes of them later."""
    points: float
    """Median absolute difference of log-distance from the sparse points, after one factor per frame."""


@dataclass(frozen=True)
class Adaptation:
    """What came of it."""

    reason: str | None
    """Why the network stays as it was; None when it changed."""
    num_learnt: int = 0
    """Frames."""
    num_held_out: int = 0
    step: int = 0
    """Of the best score."""
    start: Score | None = None
    best: Score | None = None


def adapt(
    model: StudentDepth,
    evidence: Evidence,
    recipe: Recipe,
    progress: Callable[[Iterable[int], int, str], Iterable[int]] = lambda items, total, description: items,
) -> Adaptation:
    """Change the model's network for the better or leave it as it is. The same input and recipe give the same weights."""
    if not evidence.maps:
        return Adaptation("structure from motion registered no frame")
    if is_still(evidence.maps[0]):
        return Adaptation("the camera stands still, so nothing is seen from two sides")
    held_out, kept_back = hold_out(evidence.maps, MAX_JUDGED)
    learnt = spread(find_groups(evidence.maps, kept_back), MAX_GROUPS)
    counts = {"num_learnt": len(learnt), "num_held_out": len(held_out)}
    if not held_out or not learnt:
        found = f"{len(learnt)} frames are seen from another side by others"
        return Adaptation(f"{found}, and fewer than {MIN_GROUPS} are too few to learn from and to keep some apart to judge by", **counts)
    adapter = _Adapter(model, evidence, [*learnt, *held_out])
    judge = _Judge(adapter, held_out)
    if judge.explained < MIN_EXPLAINED:
        found = f"the poses explain {judge.explained:.0%} of the held-out pixels better than no motion does"
        return Adaptation(f"{found}, expected at least {MIN_EXPLAINED:.0%}: they do not fit the pictures", **counts, start=judge.start)
    try:
        _train(adapter, judge, learnt, recipe, progress)
    finally:
        # Whatever ends training, the caller's network is whole, and no worse than it was.
        merge(adapter.network)
        adapter.network.load_state_dict(judge.best_weights)
    found = {"step": judge.best_step, "start": judge.start, "best": judge.best}
    if judge.best_step == 0:
        return Adaptation(f"the held-out photometric error did not fall by {MIN_GAIN:.1%}, or points moved away", **counts, **found)
    return Adaptation(None, **counts, **found)


def described(adaptation: Adaptation, recipe: Recipe) -> dict[str, Any]:
    """Content of adaptation.json."""
    return {"adapted": adaptation.reason is None, **asdict(adaptation), **asdict(recipe)}


def _train(adapter: _Adapter, judge: _Judge, learnt: Sequence[Group], recipe: Recipe, progress: Callable) -> None:
    torch.manual_seed(recipe.seed)
    parameters = trained_parameters(adapter.network, recipe.parts)
    optimizer, batches = torch.optim.Adam(parameters), _batches(learnt, recipe.seed)
    for step in progress(range(1, recipe.num_steps + 1), recipe.num_steps, "adapting the network"):
        share = min(step / WARMUP_STEPS, 1.0) * 0.5 * (1.0 + np.cos(np.pi * (step - 1) / recipe.num_steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATES[recipe.parts] * share
        total = sum(WEIGHTS[name] * value for name, value in adapter.losses(next(batches)).items())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
        optimizer.step()
        if step % JUDGE_EVERY == 0 or step == recipe.num_steps:
            judge.consider(step)


def _batches(groups: Sequence[Group], seed: int) -> Iterator[list[Group]]:
    """Groups in random order, over and over."""
    rng, waiting = np.random.default_rng(seed), []
    while True:
        while len(waiting) < BATCH_GROUPS:
            waiting += [groups[i] for i in rng.permutation(len(groups))]
        yield waiting[:BATCH_GROUPS]
        waiting = waiting[BATCH_GROUPS:]


class _Adapter:
    """A network, the frames it learns from, and what it said of them at first."""

    def __init__(self, model: StudentDepth, evidence: Evidence, groups: Sequence[Group]) -> None:
        window = common_window(groups, evidence.tissue)
        self.network, self.device, self.camera = model.network, model.device, window.lens(evidence.camera)
        self.views = load_views(groups, evidence.maps, evidence.images, evidence.tissue, evidence.masks, window)
        with torch.no_grad():
            self.start = {index: predict(self.network, self._stacked([view])) for index, view in self.views.items()}

    def losses(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Each a mean over what it is about."""
        views, depths, seen, rows = self.compared(groups)
        error, visible = minimum_over_sources(seen.error, seen.valid)
        unwarped_error, _ = minimum_over_sources(seen.unwarped_error, seen.valid)
        change = depths.log_distance - torch.cat([self.start[index].log_distance for index in rows])
        doubt = depths.log_scale - torch.cat([self.start[index].log_scale for index in rows])
        bends = sum(masked_mean(gradient_residual(change, views.tissue, pixels), views.tissue) for pixels in SHAPE_STEPS)
        points = nn.functional.huber_loss(depths.residual, torch.zeros_like(depths.residual), reduction="none", delta=POINT_TOLERANCE)
        return {
            "photometric": masked_mean(error, auto_mask(error, unwarped_error, visible)),
            "consistency": masked_mean(seen.inconsistency, seen.valid),
            "points": masked_mean(points / POINT_TOLERANCE, views.has_point),
            "shape": bends,
            "uncertainty": masked_mean(doubt.square(), views.tissue),
        }

    def compared(self, groups: Sequence[Group], valid: Tensor | None = None) -> tuple[Views, Depths, Comparison, dict[int, int]]:
        """Frames, their depth, targets against sources, and the row of each frame; `valid` as in `compare`."""
        rows = {index: row for row, index in enumerate(dict.fromkeys(index for group in groups for index in group.frames))}
        views = self._stacked([self.views[index] for index in rows])
        depths = predict(self.network, views)
        return views, depths, compare(views, depths, groups, rows, valid), rows

    def _stacked(self, views: Sequence[View]) -> Views:
        return stack_views(views, self.camera, self.device)


class _Judge:
    """Scores the network on held-out groups and remembers the best weights."""

    def __init__(self, adapter: _Adapter, groups: Sequence[Group]) -> None:
        self.adapter, self.groups = adapter, groups
        self.pixels: list[tuple[Tensor, Tensor]] = []
        """Of each group: what counts, and what each source must show."""
        shares = []
        with torch.no_grad():
            for group in groups:
                _, _, seen, _ = adapter.compared([group])
                error, visible = minimum_over_sources(seen.error, seen.valid)
                unwarped_error, _ = minimum_over_sources(seen.unwarped_error, seen.valid)
                explained = auto_mask(error, unwarped_error, visible)
                self.pixels.append((explained, seen.valid))
                shares.append(float(masked_mean(explained.float(), visible)))
        self.explained = float(np.mean(shares))
        self.start = self.best = self.score()
        self.best_step, self.best_weights = 0, _copied(adapter.network)

    @torch.no_grad()
    def score(self) -> Score:
        """Of the network as it is now."""
        photometric, points = [], []
        for group, (counted, valid) in zip(self.groups, self.pixels, strict=True):
            views, depths, seen, rows = self.adapter.compared([group], valid)
            error, _ = minimum_over_sources(seen.error, seen.valid)
            photometric.append(float(masked_mean(error, counted)))
            row = rows[group.target]
            points.append(float(depths.residual[row][views.has_point[row]].abs().median()))
        return Score(float(np.mean(photometric)), float(np.mean(points)))

    def consider(self, step: int) -> None:
        """Keep the weights when they are the best so far and better than the start by the margin."""
        score = self.score()
        logger.info("step %d: held-out photometric error %.5f, at first %.5f", step, score.photometric, self.start.photometric)
        if self.is_better(score):
            self.best, self.best_step, self.best_weights = score, step, _copied(self.adapter.network)

    def is_better(self, score: Score) -> bool:
        """Than the best so far, by photometric error; than the start by the margin; and not at the expense of the points."""
        limit = min(self.best.photometric, (1.0 - MIN_GAIN) * self.start.photometric)
        return score.photometric < limit and score.points <= self.start.points


def trained_parameters(network: nn.Module, parts: Parts) -> list[nn.Parameter]:
    """The parameters that may change, all others frozen; "adapters" puts them into the network."""
    network.requires_grad_(True)
    if parts == "adapters":
        attach(network, "*", "lora", rank=LORA_RANK)
        train_adapters(network, warm_up=False)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.requires_grad_(True)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _copied(network: nn.Module) -> dict[str, Tensor]:
    """The weights with adapters folded in."""
    plain = copy.deepcopy(network)
    merge(plain)
    return plain.state_dict()
