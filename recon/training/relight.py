"""Views that are lit, coloured and exposed anew each time they are drawn.

Casting rays costs more than a step of training and shading hardly anything, so shards hold geometry, and a network that
meets a view again meets it in other colours, at another brightness and behind another mask. What stays besides shape was
decided when rays were cast: where the lamp is and what lies in its shadow, and the layout of vessels, patches and grain.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon.data.phantom.instruments import MASKED_TOOL_SHARE, coating, metal
from recon.data.phantom.optics import random_artefacts, spoil
from recon.data.phantom.randomize import random_imaging
from recon.data.phantom.shading import Buffers, expose, looks_of, scope_mask, shade
from recon.data.phantom.variety import random_tissues
from recon.losses.depth import masked_median
from recon.training.shards import Batch, Views

CONTRAST_SHARES = {"tube": 0.2, "nasal": 0.2, "cavity": 0.7, "relief": 0.3, "void": 0.85, "smooth": 0.3, "turbinate": 0.1}
"""How often dark and bright are dealt out by chance to the objects of a view: colour is not to be read as distance. Most often
where organs stand before each other, for there the falloff of light misleads."""


def relight(views: Views, rng: np.random.Generator) -> Batch:
    """Draw materials, light, exposure, masks and artefacts for every view, and make the batch that a network sees."""
    buffers = views.buffers
    imaging = [random_imaging(rng) for _ in views.num_tissues]
    light, highlight = shade(buffers, random_looks(views, rng), imaging)
    size = buffers.distance.shape[1:]
    scope = torch.from_numpy(np.stack([scope_mask(size, one) for one in imaging])).to(buffers.distance.device)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    pictures = expose(light, highlight, scope & (buffers.distance > 0), imaging, generator).cpu().numpy()
    # The rim of the scope is part of the picture that lens and coder spoil.
    framed = pictures * scope.cpu().numpy()[..., None]
    spoiled = np.stack([spoil(picture, random_artefacts(rng), rng) for picture in framed])
    masked = torch.from_numpy(rng.random(len(imaging)) < MASKED_TOOL_SHARE)[:, None, None]
    mask = scope & ~(views.on_tool & masked.to(scope.device))
    image = torch.from_numpy(spoiled).to(scope.device).permute(0, 3, 1, 2) / 255.0
    return to_batch(image, buffers, mask)


def random_looks(views: Views, rng: np.random.Generator) -> Float[Tensor, "b o 12"]:
    """A table of looks for every view: tissues first, then the shaft and the parts of the tip of its instrument."""
    tables = []
    for kind, num_tissues, num_objects in zip(views.kinds, views.num_tissues, views.num_objects, strict=True):
        tissues = random_tissues(rng, num_tissues, CONTRAST_SHARES[kind])
        parts = [coating(rng), *[metal(rng)] * (num_objects - num_tissues)]
        tables.append(looks_of([*tissues, *parts[: num_objects - num_tissues]]))
    return torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)


def to_batch(image: Float[Tensor, "b 3 h w"], buffers: Buffers, mask: Bool[Tensor, "b h w"]) -> Batch:
    """Pictures and the log-distance, relative to its own median, of what the mask leaves."""
    known = mask & (buffers.distance > 0)
    log_distance = buffers.distance.clamp_min(1e-3).log()
    return Batch(
        image=image * mask[:, None],
        rays=buffers.rays.permute(0, 3, 1, 2),
        mask=mask[:, None].float(),
        log_distance=torch.where(known, log_distance - masked_median(log_distance, known)[:, None, None], 0.0),
        known=known,
    )
