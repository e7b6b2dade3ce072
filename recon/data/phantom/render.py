"""Pictures of a scene as an endoscope takes them, with exact depth.

Rays are cast by Embree through Open3D, which runs on the CPU: on a GPU Open3D's caster needs SYCL, so a training run
there renders ahead in worker processes instead. Shading is torch and runs on any device.
Light: a lamp beside the lens, inverse-square falloff, Lambert's cosine, Blinn-Phong highlights (EndoMapper's spot
light model, Batlle et al. 2022, with gamma), exposure that follows the picture as a video processor does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon.data.phantom.noise import sample_noise
from recon.data.phantom.scene import Material, Scene
from recon.geometry.cameras import ray_grid
from recon.types import Camera


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
class Rendering:
    """One picture and its truth."""

    image: UInt8[np.ndarray, "h w 3"]
    distance_mm: Float[np.ndarray, "h w"]
    """Along the ray; 0 where nothing was hit or the mask covers."""
    mask: Bool[np.ndarray, "h w"]
    """False outside the scope's mask and on instruments that are masked."""
    faces: Int[np.ndarray, "h w"]
    """Index of the face of the scene seen, -1 where none."""


@dataclass(frozen=True)
class Tool:
    """An instrument in front of the lens."""

    scene: Scene
    """In camera coordinates."""
    masked: bool
    """Whether its pixels are marked as no tissue; else it is part of the picture and has its distance."""


def render(
    scene: Scene,
    camera: Camera,
    T_world_camera: Float[np.ndarray, "4 4"],
    imaging: Imaging,
    rng: np.random.Generator,
    tool: Tool | None = None,
    device: str = "cpu",
) -> Rendering:
    """Render one view. `rng` decides the sensor's noise."""
    rays = ray_grid(camera).astype(np.float32)
    height, width = rays.shape[:2]
    flat = rays.reshape(-1, 3)
    hits = scene.cast(T_world_camera[:3, 3], flat @ T_world_camera[:3, :3].T.astype(np.float32))
    distance = hits["distance"]
    light, highlight = shade(scene, hits, np.isfinite(distance), flat, T_world_camera, imaging, device, tool)
    front = np.zeros(height * width, bool)
    hidden = front
    if tool is not None:
        over = tool.scene.cast(np.zeros(3), flat)
        front = over["distance"] < distance
        tool_light, tool_highlight = shade(tool.scene, over, front, flat, np.eye(4), imaging, device)
        light[front], highlight[front] = tool_light[front], tool_highlight[front]
        distance = np.minimum(distance, over["distance"])
        hidden = front if tool.masked else hidden
    mask = scope_mask(camera, imaging).reshape(-1)
    image = expose(light, highlight, mask & np.isfinite(distance), rays, imaging, rng)
    seen = mask & np.isfinite(distance) & ~hidden
    return Rendering(
        image=np.where(mask.reshape(height, width, 1), image, 0).astype(np.uint8),
        distance_mm=np.where(seen, distance, 0).reshape(height, width).astype(np.float32),
        mask=(mask & ~hidden).reshape(height, width),
        faces=np.where(seen & ~front, hits["face"], -1).reshape(height, width),
    )


def shade(
    scene: Scene,
    hits: dict[str, np.ndarray],
    hit: Bool[np.ndarray, " n"],
    rays: np.ndarray,
    T_world_camera: np.ndarray,
    imaging: Imaging,
    device: str,
    tool: Tool | None = None,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Diffuse radiance per colour and highlight radiance of every ray; 0 where nothing is hit. A tool casts its shadow too."""
    light, highlight = np.zeros((len(hit), 3), np.float32), np.zeros(len(hit), np.float32)
    if not hit.any():
        return light, highlight
    face, bary = hits["face"][hit], hits["barycentric"][hit]
    weights = np.stack([1 - bary.sum(1), bary[:, 0], bary[:, 1]], -1)
    normals = torch.from_numpy(np.einsum("nk,nkc->nc", weights, scene.vertex_normals[scene.faces[face]])).to(device)
    direction = torch.from_numpy(rays[hit] @ T_world_camera[:3, :3].T.astype(np.float32)).to(device)
    distance = torch.from_numpy(hits["distance"][hit]).to(device)
    points = torch.from_numpy(T_world_camera[:3, 3].astype(np.float32)).to(device) + distance[:, None] * direction
    lamp = torch.from_numpy((T_world_camera[:3, 3] + T_world_camera[:3, :3] @ np.array(imaging.lamp_offset_mm)).astype(np.float32)).to(
        device
    )
    axis_cosine = torch.from_numpy(np.clip(rays[hit][:, 2], 0, 1)).to(device)
    objects = torch.from_numpy(scene.object_of_face[face]).to(device)
    volume = scene.volume.to(device)
    albedo, tilt = torch.zeros_like(points), torch.zeros_like(points)
    gloss, shininess = torch.zeros_like(distance), torch.ones_like(distance)
    for index in torch.unique(objects).tolist():
        here = objects == index
        material = scene.materials[index]
        albedo[here], tilt[here] = texture(volume, points[here], material)
        gloss[here], shininess[here] = material.gloss, material.shininess
    normals = normals + tilt
    normals = torch.nn.functional.normalize(normals, dim=1)
    normals = torch.where((normals * direction).sum(1, keepdim=True) > 0, -normals, normals)
    to_lamp = lamp - points
    lamp_distance = to_lamp.norm(dim=1).clamp_min(1.0)
    to_lamp = to_lamp / lamp_distance[:, None]
    incoming = axis_cosine**imaging.spot_exponent / lamp_distance**2
    if imaging.shadow > 0:
        lifted = points + 2e-3 * distance[:, None] * normals
        dark = in_shadow(scene, lifted, lamp)
        if tool is not None:
            R, centre = (torch.from_numpy(part.astype(np.float32)).to(device) for part in (T_world_camera[:3, :3], T_world_camera[:3, 3]))
            dark = torch.maximum(dark, in_shadow(tool.scene, (lifted - centre) @ R, (lamp - centre) @ R))
        incoming = incoming * (1 - imaging.shadow * dark)
    diffuse = incoming * (normals * to_lamp).sum(1).clamp_min(0)
    diffuse = diffuse + imaging.ambient * diffuse.median()
    half = torch.nn.functional.normalize(to_lamp - direction, dim=1)
    glint = incoming * gloss * (shininess + 2) / 8 * (normals * half).sum(1).clamp_min(0) ** shininess
    light[hit] = (albedo * diffuse[:, None]).cpu().numpy()
    highlight[hit] = (imaging.highlight_gain * 0.3 * glint).cpu().numpy()
    return light, highlight


def texture(volume: Tensor, points: Float[Tensor, "n 3"], material: Material) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Albedo and the tilt of the shading normal at points of one object."""
    patches = sample_noise(volume, points, material.patch_mm)
    brightness = material.variation * patches[:, 0]
    winding = points + 0.25 * material.vessel_spacing_mm * patches[:, 1:4]
    vessel = torch.zeros_like(brightness)
    for octave, strength in ((1.0, 1.0), (0.43, 0.7)) if material.vessels > 0 else ():
        ridges = sample_noise(volume, winding, material.vessel_spacing_mm * octave)
        for channel in (0, 1):
            vessel = torch.maximum(vessel, strength * torch.exp(-((ridges[:, channel] / material.vessel_width) ** 2)))
    base = torch.tensor(material.albedo, dtype=torch.float32, device=points.device).expand(len(points), 3)
    if material.pale > 0:
        fibrous = base.amax(1, keepdim=True).sqrt() * torch.tensor([1.0, 0.88, 0.8], device=points.device)
        base = torch.lerp(base, fibrous, material.pale * torch.sigmoid(8 * patches[:, 3:] - 6))
    if material.grain == 0 and material.bump == 0 and material.speckle == 0:
        fine = finer = torch.zeros_like(patches)
    else:
        fine = sample_noise(volume, points, material.grain_mm)
        finer = sample_noise(volume, points, 0.37 * material.grain_mm)
    brightness = brightness + material.grain * (0.7 * fine[:, 0] + 0.5 * finer[:, 0])
    if material.speckle > 0:
        brightness = brightness + material.speckle * torch.sigmoid(6 * finer[:, 1] - 8)
    blood = torch.tensor([0.35, 0.95, 0.9], device=points.device)
    albedo = base * brightness.exp()[:, None] * (1 - material.vessels * vessel[:, None] * blood)
    return albedo, material.bump * (fine[:, 1:4] + 0.5 * finer[:, 1:4])


def in_shadow(scene: Scene, points: Float[Tensor, "n 3"], lamp: Float[Tensor, " 3"]) -> Float[Tensor, " n"]:
    """1 where something of the scene stands between a point and the lamp, else 0."""
    rays = torch.cat([points, lamp - points], dim=1).cpu().numpy()
    occluded = scene.caster.test_occlusions(o3d.core.Tensor(rays), tnear=0.0, tfar=0.98).numpy()
    return torch.from_numpy(occluded.astype(np.float32)).to(points.device)


def scope_mask(camera: Camera, imaging: Imaging) -> Bool[np.ndarray, "h w"]:
    """True inside the picture of the scope: round, oval, or with cut corners."""
    y, x = np.mgrid[: camera.height_px, : camera.width_px]
    x = x - (camera.width_px - 1) / 2 - imaging.scope_centre[0] * camera.width_px
    y = y - (camera.height_px - 1) / 2 - imaging.scope_centre[1] * camera.width_px
    inside = np.ones(x.shape, bool)
    if imaging.scope_radius > 0:
        inside = np.hypot(x, y / imaging.scope_stretch) < imaging.scope_radius * camera.width_px / 2
    if imaging.scope_cut > 0:
        inside &= np.abs(x) / (camera.width_px / 2) + np.abs(y) / (camera.height_px / 2) < imaging.scope_cut
    return inside


def expose(
    light: np.ndarray, highlight: np.ndarray, lit: Bool[np.ndarray, " n"], rays: np.ndarray, imaging: Imaging, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Turn radiance into the 8-bit picture of a video processor that keeps its exposure."""
    height, width = rays.shape[:2]
    half_diagonal = np.hypot(height, width) / 2
    y, x = np.mgrid[:height, :width]
    off_axis = ((x - width / 2) ** 2 + (y - height / 2) ** 2).reshape(-1) / half_diagonal**2
    fade = 1 - imaging.vignetting * off_axis
    value = light * np.array(imaging.white_balance, np.float32) + highlight[:, None]
    value = value * fade[:, None].astype(np.float32)
    luminance = value[lit].mean(1) if lit.any() else np.ones(1)
    reference = max(float(np.percentile(luminance, imaging.exposure_percentile)), 1e-12)
    value = value * imaging.exposure_target**imaging.gamma / reference
    value = value + rng.normal(size=value.shape).astype(np.float32) * imaging.noise * np.sqrt(np.maximum(value, 0) + 0.02) * 0.6
    value = np.maximum(value, 0) ** (1 / imaging.gamma)
    knee = imaging.knee
    bent = knee + (1 - knee) * (1 - np.exp(-(value - knee) / (1 - knee)))
    value = np.where(value > knee, bent, value)
    return (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)
