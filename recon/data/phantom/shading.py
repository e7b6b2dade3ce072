"""Light on tissue: from what the rays of some views met to 8-bit pictures, in torch, for a whole batch at once.

Light: a lamp beside the lens, inverse-square falloff, Lambert's cosine, Blinn-Phong highlights (EndoMapper's spot
light model, Batlle et al. 2022, with gamma), exposure that follows the picture as a video processor does.
Geometry is apart from appearance: the same buffers can be lit, coloured and exposed again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from recon.data.phantom.noise import sample_noise
from recon.data.phantom.scene import Material

TONE_PX = 8
"""Side of the cells over which local tone mapping averages; between them it is smooth."""
NUM_NOISES = 9
"""Patches (2), vessels (2 octaves), grain, speckle, tilt (3)."""


@dataclass(frozen=True)
class Imaging:
    """Lamp, exposure, sensor and the mask around the picture."""

    lamp_offset_mm: tuple[float, float, float] = (1.5, 0.0, 0.0)
    spot_exponent: float = 1.0
    """Light falls with the cosine of the angle to the axis to this power."""
    ambient: float = 0.02
    """Light from everywhere (bounced), as a share of the median direct light."""
    exposure_percentile: float = 93.0
    exposure_target: float = 0.75
    """Where that percentile lands in the final picture, 0 to 1."""
    gamma: float = 2.2
    knee: float = 0.8
    """Above this the tone curve bends instead of clipping."""
    flattening: float = 0.0
    """Share of the slow changes of log-brightness that the processor evens out (local tone mapping)."""
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignetting: float = 0.2
    noise: float = 0.012
    scope_radius: float = 0.0
    """Radius of the round mask over half the picture's width; 0 leaves the full frame."""
    scope_stretch: float = 1.0
    """Height over width of the mask: 1 is round, else oval."""
    scope_centre: tuple[float, float] = (0.0, 0.0)
    """Offset of the mask's centre (x, y) over the picture's width."""
    scope_cut: float = 0.0
    """Where a line cuts each corner off, as |x| + |y| in half widths and half heights (1 to 2); 0 leaves the corners."""
    highlight_gain: float = 1.0
    shadow: float = 0.0
    """Share of direct light that a thing between lamp and tissue takes away; 0 casts no shadows."""


@dataclass(frozen=True)
class Buffers:
    """What the rays of `b` views met, in camera coordinates and millimetres."""

    distance: Float[Tensor, "b h w"]
    """Along the ray; 0 where nothing was met."""
    rays: Float[Tensor, "b h w 3"]
    normal: Float[Tensor, "b h w 3"]
    object: Int[Tensor, "b h w"]
    """Row of the table of looks."""
    noise: Float[Tensor, "b h w 9"]
    unlit: Float[Tensor, "b h w"]
    """1 where something stands between the lamp and the tissue."""
    lamp_mm: Float[Tensor, "b 3"]


def looks_of(materials: Sequence[Material]) -> Float[Tensor, "o 12"]:
    """The table that `shade` looks materials up in."""
    return torch.tensor(
        [(*m.albedo, m.variation, m.vessels, m.vessel_width, m.grain, m.bump, m.gloss, m.shininess, m.pale, m.speckle) for m in materials],
        dtype=torch.float32,
    )


def surface_noise(volume: Tensor, points: Float[Tensor, "n 3"], material: Material) -> Float[Tensor, "n 9"]:
    """The noises at points of one object, at the wavelengths of its material."""
    patches = sample_noise(volume, points, material.patch_mm)
    winding = points + 0.25 * material.vessel_spacing_mm * patches[:, 1:4]
    ridges = [sample_noise(volume, winding, material.vessel_spacing_mm * octave)[:, :2].abs().amin(1) for octave in (1.0, 0.43)]
    fine = sample_noise(volume, points, material.grain_mm)
    finer = sample_noise(volume, points, 0.37 * material.grain_mm)
    grain = 0.7 * fine[:, 0] + 0.5 * finer[:, 0]
    tilt = fine[:, 1:4] + 0.5 * finer[:, 1:4]
    return torch.cat([torch.stack([patches[:, 0], patches[:, 3], *ridges, grain, finer[:, 1]], 1), tilt], 1)


def shade(
    buffers: Buffers, looks: Float[Tensor, "b o 12"], imaging: Sequence[Imaging]
) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w"]]:
    """Diffuse radiance per colour, and the radiance of highlights; 0 where nothing was met."""
    device = buffers.distance.device
    batch = torch.arange(len(looks), device=device)[:, None, None]
    look = looks.to(device)[batch, buffers.object]
    gloss, shininess, bump = look[..., 8], look[..., 9], look[..., 7]
    normal = torch.nn.functional.normalize(buffers.normal + bump[..., None] * buffers.noise[..., 6:9], dim=-1)
    normal = torch.where((normal * buffers.rays).sum(-1, keepdim=True) > 0, -normal, normal)
    to_lamp = buffers.lamp_mm[:, None, None] - buffers.distance[..., None] * buffers.rays
    lamp_distance = to_lamp.norm(dim=-1).clamp_min(1.0)
    to_lamp = to_lamp / lamp_distance[..., None]
    axis_cosine = buffers.rays[..., 2].clamp(0, 1)
    incoming = axis_cosine ** each(imaging, "spot_exponent", device) / lamp_distance.square()
    incoming = incoming * (1 - each(imaging, "shadow", device) * buffers.unlit)
    hit = buffers.distance > 0
    diffuse = incoming * (normal * to_lamp).sum(-1).clamp_min(0)
    median = torch.where(hit, diffuse, torch.nan).flatten(1).nanmedian(dim=1).values.nan_to_num()
    diffuse = diffuse + each(imaging, "ambient", device) * median[:, None, None]
    half = torch.nn.functional.normalize(to_lamp - buffers.rays, dim=-1)
    glint = incoming * gloss * (shininess + 2) / 8 * (normal * half).sum(-1).clamp_min(0) ** shininess
    light = albedo(look, buffers.noise) * (diffuse * hit)[..., None]
    return light, 0.3 * each(imaging, "highlight_gain", device) * glint * hit


def albedo(look: Float[Tensor, "*n 12"], noise: Float[Tensor, "*n 9"]) -> Float[Tensor, "*n 3"]:
    """Colour of tissue: patches, pale (fibrous) areas, vessels that take green and blue away, grain and speckle."""
    base, variation, vessels, width, grain = look[..., :3], look[..., 3], look[..., 4], look[..., 5], look[..., 6]
    pale, speckle = look[..., 10], look[..., 11]
    vessel = torch.maximum(torch.exp(-((noise[..., 2] / width) ** 2)), 0.7 * torch.exp(-((noise[..., 3] / width) ** 2)))
    fibrous = base.amax(-1, keepdim=True).sqrt() * torch.tensor([1.0, 0.88, 0.8], device=base.device)
    base = torch.lerp(base, fibrous, (pale * torch.sigmoid(8 * noise[..., 1] - 6))[..., None])
    brightness = variation * noise[..., 0] + grain * noise[..., 4] + speckle * torch.sigmoid(6 * noise[..., 5] - 8)
    blood = torch.tensor([0.35, 0.95, 0.9], device=base.device)
    return base * brightness.exp()[..., None] * (1 - (vessels * vessel)[..., None] * blood)


def expose(
    light: Float[Tensor, "b h w 3"],
    highlight: Float[Tensor, "b h w"],
    lit: Bool[Tensor, "b h w"],
    imaging: Sequence[Imaging],
    generator: torch.Generator,
) -> UInt8[Tensor, "b h w 3"]:
    """Turn radiance into the 8-bit pictures of a video processor that keeps its exposure; `generator` (CPU) draws the sensor's noise."""
    device, (height, width) = light.device, light.shape[1:3]
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    off_axis = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / (height**2 + width**2) * 4
    fade = 1 - each(imaging, "vignetting", device) * off_axis
    balance = torch.tensor([one.white_balance for one in imaging], dtype=torch.float32, device=device)[:, None, None]
    value = (light * balance + highlight[..., None]) * fade[..., None]
    luminance = value.mean(-1)
    reference = [
        torch.quantile(luminance[k][lit[k]], one.exposure_percentile / 100) if lit[k].any() else luminance.new_ones(())
        for k, one in enumerate(imaging)
    ]
    gain = each(imaging, "exposure_target", device) ** each(imaging, "gamma", device)
    value = value * (gain / torch.stack(reference)[:, None, None].clamp_min(1e-12))[..., None]
    value = value * flattened(value.mean(-1), lit, each(imaging, "flattening", device))[..., None]
    grain = torch.randn(value.shape, generator=generator).to(device)
    value = value + grain * 0.6 * each(imaging, "noise", device)[..., None] * (value.clamp_min(0) + 0.02).sqrt()
    value = value.clamp_min(0) ** (1 / each(imaging, "gamma", device)[..., None])
    knee = each(imaging, "knee", device)[..., None]
    bent = knee + (1 - knee) * (1 - torch.exp(-(value - knee) / (1 - knee)))
    return (torch.where(value > knee, bent, value).clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def flattened(luminance: Float[Tensor, "b h w"], lit: Bool[Tensor, "b h w"], share: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b h w"]:
    """Gains that take `share` of the slow part of log-brightness away and keep its mean over what is lit: local tone mapping."""
    logs = torch.where(lit, luminance.clamp_min(1e-4).log(), 0.0)
    size = [max(side // TONE_PX, 1) for side in luminance.shape[1:]]
    sums, counts = (functional.adaptive_avg_pool2d(layer[:, None], size) for layer in (logs, lit.float()))
    mean = (logs.flatten(1).sum(1) / lit.flatten(1).sum(1).clamp_min(1))[:, None, None, None]
    # Cells with nothing lit take the mean; a box over nine cells makes the rest slow.
    sums, counts = (functional.avg_pool2d(layer, 3, 1, 1) for layer in (sums + 1e-3 * mean, counts + 1e-3))
    slow = functional.interpolate(sums / counts, luminance.shape[1:], mode="bilinear")
    return torch.exp(-share * (slow - mean)[:, 0])


def each(imaging: Sequence[Imaging], name: str, device: torch.device | str) -> Float[Tensor, "b 1 1"]:
    """One number of every view's imaging."""
    return torch.tensor([getattr(one, name) for one in imaging], dtype=torch.float32, device=device)[:, None, None]


def scope_mask(size: tuple[int, int], imaging: Imaging) -> Bool[np.ndarray, "h w"]:
    """True inside the picture of the scope, of `size` (height, width): round, oval, or with cut corners."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    x = x - (width - 1) / 2 - imaging.scope_centre[0] * width
    y = y - (height - 1) / 2 - imaging.scope_centre[1] * width
    inside = np.ones(x.shape, bool)
    if imaging.scope_radius > 0:
        inside = np.hypot(x, y / imaging.scope_stretch) < imaging.scope_radius * width / 2
    if imaging.scope_cut > 0:
        inside &= np.abs(x) / (width / 2) + np.abs(y) / (height / 2) < imaging.scope_cut
    return inside
