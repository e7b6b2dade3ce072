"""A scene: surfaces with materials, a ray caster over them, and random scenes of the kinds endoscopes meet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import open3d as o3d
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from recon.data.phantom.geometry import Surface, TubeShape, loop, organ, relief, tube
from recon.data.phantom.noise import noise_volume
from recon.types import Mesh

KINDS = ("tube", "nasal", "cavity", "relief")

MUCOSA = np.array([[0.80, 0.42, 0.33], [0.74, 0.34, 0.30], [0.86, 0.56, 0.42], [0.70, 0.45, 0.35], [0.82, 0.60, 0.50], [0.60, 0.25, 0.22]])
ORGANS = np.array(
    [
        [0.26, 0.08, 0.06],
        [0.34, 0.14, 0.10],
        [0.88, 0.70, 0.35],
        [0.90, 0.62, 0.52],
        [0.75, 0.35, 0.30],
        [0.55, 0.45, 0.20],
        [0.80, 0.75, 0.70],
    ]
)


@dataclass(frozen=True)
class Material:
    """How a surface looks: linear colour, its variation, vessels and gloss."""

    albedo: tuple[float, float, float]
    variation: float = 0.15
    """Log-brightness of broad patches, one sigma."""
    patch_mm: float = 15.0
    vessels: float = 0.5
    """Share of light that a vessel takes away."""
    vessel_width: float = 0.12
    vessel_spacing_mm: float = 9.0
    grain: float = 0.08
    """Log-brightness of the fine texture, one sigma."""
    grain_mm: float = 1.2
    bump: float = 0.05
    """Tilt of the shading normal by fine relief, radians."""
    gloss: float = 0.5
    shininess: float = 60.0
    pale: float = 0.0
    """How far some patches fade towards white, 0 to 1."""
    speckle: float = 0.0
    """Log-brightness of scattered fine spots."""


@dataclass(frozen=True)
class Scene:
    """Objects that do not move, and the camera path that suits them."""

    surfaces: tuple[Surface, ...]
    materials: tuple[Material, ...]
    path: Float[np.ndarray, "n 4 4"]
    """Poses along which a camera may travel, T_world_camera."""
    volume: Float[Tensor, "1 c d d d"]

    @cached_property
    def vertices(self) -> Float[np.ndarray, "v 3"]:
        return np.concatenate([s.vertices for s in self.surfaces]).astype(np.float32)

    @cached_property
    def faces(self) -> UInt32[np.ndarray, "f 3"]:
        offsets = np.cumsum([0] + [len(s.vertices) for s in self.surfaces[:-1]])
        return np.concatenate([s.faces + o for s, o in zip(self.surfaces, offsets, strict=True)]).astype(np.uint32)

    @cached_property
    def object_of_face(self) -> Int[np.ndarray, " f"]:
        return np.repeat(np.arange(len(self.surfaces)), [len(s.faces) for s in self.surfaces])

    @cached_property
    def vertex_normals(self) -> Float[np.ndarray, "v 3"]:
        corners = self.vertices[self.faces]
        weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        sums = np.stack([np.bincount(self.faces.ravel(), np.repeat(weighted[:, k], 3), len(self.vertices)) for k in range(3)], -1)
        return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    @cached_property
    def caster(self) -> o3d.t.geometry.RaycastingScene:
        caster = o3d.t.geometry.RaycastingScene()
        caster.add_triangles(o3d.core.Tensor(self.vertices), o3d.core.Tensor(self.faces))
        return caster

    def cast(self, origin: Float[np.ndarray, " 3"], directions: Float[np.ndarray, "n 3"]) -> dict[str, np.ndarray]:
        """First hits of rays from one point: `distance` (n,), inf where nothing is hit, `face` (n,), `barycentric` (n, 2)."""
        rays = np.concatenate([np.broadcast_to(origin, directions.shape), directions], axis=1).astype(np.float32)
        hits = self.caster.cast_rays(o3d.core.Tensor(rays))
        return {
            "distance": hits["t_hit"].numpy(),
            "face": hits["primitive_ids"].numpy().astype(np.int64),
            "barycentric": hits["primitive_uvs"].numpy(),
        }

    def mesh(self, faces: Int[np.ndarray, " k"]) -> Mesh:
        """The part of the surface made of the given faces, in millimetres."""
        used, inverse = np.unique(self.faces[faces], return_inverse=True)
        return Mesh(self.vertices[used].astype(np.float64), inverse.reshape(-1, 3).astype(np.int64), unit="mm")


def look_at(position: np.ndarray, target: np.ndarray, roll_rad: float) -> Float[np.ndarray, "4 4"]:
    """T_world_camera of a camera at `position` whose optical axis meets `target`."""
    forward = (target - position) / np.linalg.norm(target - position)
    sideways = np.array([0.0, 1.0, 0.0]) if abs(forward[1]) < 0.95 else np.array([1.0, 0.0, 0.0])
    right = np.cross(sideways, forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    T_world_camera = np.eye(4)
    T_world_camera[:3, :3] = np.stack([c * right + s * down, -s * right + c * down, forward], axis=1)
    T_world_camera[:3, 3] = position
    return T_world_camera


def random_material(rng: np.random.Generator, palette: np.ndarray) -> Material:
    """A tissue; its brightness and hue say nothing about its distance."""
    albedo = palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.2, 3) * rng.uniform(0.6, 1.15)
    return Material(
        albedo=tuple(np.clip(albedo, 0.02, 0.98)),
        variation=rng.uniform(0.05, 0.4),
        patch_mm=rng.uniform(5, 40),
        vessels=rng.uniform(0, 0.75),
        vessel_width=rng.uniform(0.04, 0.2),
        vessel_spacing_mm=np.exp(rng.uniform(np.log(3), np.log(20))),
        grain=rng.uniform(0, 0.18),
        grain_mm=np.exp(rng.uniform(np.log(0.5), np.log(3))),
        bump=rng.uniform(0, 0.15),
        gloss=rng.uniform(0, 1.5) ** 2,
        shininess=np.exp(rng.uniform(np.log(15), np.log(250))),
    )


def tube_scene(rng: np.random.Generator, shape: TubeShape, material: Material, volume: Tensor) -> Scene:
    """A tube, travelled along its centre line with a wandering gaze."""
    surface, points, frames = tube(rng, shape, volume)
    inside = slice(int(0.12 * len(points)), int(0.8 * len(points)))
    points, frames = points[inside], frames[inside]
    walk = np.linspace(0, len(points) * shape.length_mm / 420, len(points))
    wander = [np.tanh(walk_noise) for walk_noise in (_wander(rng, walk, 25.0 + 10 * k) for k in range(5))]
    poses = np.tile(np.eye(4), (len(points), 1, 1))
    for i, (point, frame) in enumerate(zip(points, frames, strict=True)):
        offset = 0.22 * shape.radius_mm * (wander[0][i] * frame[:, 0] + wander[1][i] * frame[:, 1])
        gaze = frame[:, 2] + 0.35 * (wander[2][i] * frame[:, 0] + wander[3][i] * frame[:, 1])
        poses[i] = look_at(point + offset, point + offset + gaze, 0.4 * wander[4][i])
    return Scene((surface,), (material,), poses, volume)


def _wander(rng: np.random.Generator, position: np.ndarray, wavelength: float) -> np.ndarray:
    waves = np.sin(np.outer(position / wavelength, rng.uniform(1.0, 4.0, 4)) + rng.uniform(0, 2 * np.pi, 4))
    return waves @ rng.normal(size=4) / np.sqrt(2.0)


def orbit(rng: np.random.Generator, centre: np.ndarray, distance_mm: float, direction: np.ndarray, num: int = 200) -> np.ndarray:
    """Poses (num, 4, 4) that sway about a point at about the given distance."""
    t = np.linspace(0, 60, num)
    sway = [np.tanh(_wander(rng, t, 12.0)) for _ in range(7)]
    side = np.linalg.qr(np.column_stack([direction, rng.normal(size=(3, 2))]))[0][:, 1:]
    poses = []
    for i in range(num):
        toward = direction + 0.35 * (sway[0][i] * side[:, 0] + sway[1][i] * side[:, 1])
        position = centre + distance_mm * (1 + 0.25 * sway[2][i]) * toward / np.linalg.norm(toward)
        target = centre + 0.25 * distance_mm * np.array([sway[3][i], sway[4][i], sway[5][i]])
        poses.append(look_at(position, target, 0.4 * sway[6][i]))
    return np.stack(poses)


def cavity_scene(rng: np.random.Generator, volume: Tensor) -> Scene:
    """Organs and loops of bowel heaped on an uneven bed, under a wall, seen from outside."""
    distance = rng.uniform(30, 120)
    direction = np.array([*rng.normal(0, 0.35, 2), -1.0])
    direction /= np.linalg.norm(direction)
    wall = organ(rng, np.zeros(3), np.full(3, distance * rng.uniform(1.5, 2.2)), volume, rng.uniform(0.0, 0.08), rows=140)
    bed = relief(rng, 3.2 * distance, distance * rng.uniform(0.05, 0.25), volume)
    surfaces, materials = [wall, bed], [random_material(rng, MUCOSA), random_material(rng, ORGANS)]
    for _ in range(rng.integers(4, 12)):
        size = distance * rng.uniform(0.1, 0.45)
        centre = np.append(rng.normal(0, 0.55 * distance, 2), rng.uniform(-0.6, 0.6) * size)
        if rng.random() < 0.35:
            surfaces.append(loop(rng, centre, volume))
        else:
            surfaces.append(organ(rng, centre, size * rng.uniform(0.4, 1.2, 3), volume, rng.uniform(0.0, 0.08)))
        materials.append(random_material(rng, ORGANS if rng.random() < 0.7 else MUCOSA))
    return Scene(tuple(surfaces), tuple(materials), orbit(rng, np.zeros(3), distance, direction), volume)


def relief_scene(rng: np.random.Generator, volume: Tensor) -> Scene:
    """A sheet of tissue with low relief, a few organs on it, seen from one side."""
    distance = rng.uniform(25, 110)
    tilt = rng.normal(0, 0.45, 2)
    direction = np.array([tilt[0], tilt[1], -1.0])
    direction /= np.linalg.norm(direction)
    surfaces = [
        relief(rng, 4.5 * distance, distance * rng.uniform(0.02, 0.16), volume),
        organ(rng, np.zeros(3), np.full(3, 6 * distance), volume, 0.02),
    ]
    materials = [random_material(rng, MUCOSA if rng.random() < 0.6 else ORGANS), random_material(rng, MUCOSA)]
    for _ in range(rng.integers(0, 5)):
        centre = np.append(rng.normal(size=2) * distance * 0.5, rng.uniform(0, 0.1) * distance)
        surfaces.append(organ(rng, centre, distance * rng.uniform(0.06, 0.3, 3), volume, rng.uniform(0, 0.1)))
        materials.append(random_material(rng, ORGANS))
    return Scene(tuple(surfaces), tuple(materials), orbit(rng, np.zeros(3), distance, direction), volume)


def random_tube(rng: np.random.Generator) -> TubeShape:
    """A colon- or oesophagus-like tube."""
    radius = rng.uniform(8, 30)
    return TubeShape(
        length_mm=radius * rng.uniform(9, 14),
        radius_mm=radius,
        bend=rng.uniform(0.0, 0.6),
        radius_variation=rng.uniform(0, 0.35),
        num_lobes=int(rng.integers(2, 5)),
        lobe_height=rng.uniform(0, 0.2),
        fold_spacing_mm=radius * rng.uniform(0.5, 1.8),
        fold_height=rng.uniform(0, 0.6) if rng.random() < 0.85 else 0.0,
        fold_width_mm=radius * rng.uniform(0.06, 0.25),
        squeeze=np.exp(rng.normal(0, 0.12)),
        bump_mm=radius * np.exp(rng.uniform(np.log(0.002), np.log(0.03))),
    )


def random_passage(rng: np.random.Generator) -> TubeShape:
    """A narrow passage with longitudinal ridges, as in the nose."""
    radius = rng.uniform(5, 14)
    return TubeShape(
        length_mm=radius * rng.uniform(8, 12),
        radius_mm=radius,
        bend=rng.uniform(0.1, 0.5),
        radius_variation=rng.uniform(0.1, 0.4),
        lobe_height=rng.uniform(0.05, 0.25),
        fold_spacing_mm=radius * rng.uniform(1, 3),
        fold_height=rng.uniform(0, 0.4),
        fold_width_mm=radius * rng.uniform(0.15, 0.5),
        num_ridges=int(rng.integers(1, 5)),
        ridge_height=rng.uniform(0.2, 0.7),
        squeeze=np.exp(rng.normal(0, 0.3)),
        bump_mm=radius * np.exp(rng.uniform(np.log(0.004), np.log(0.04))),
    )


def random_scene(kind: str, seed: int) -> Scene:
    """A scene of one of `KINDS`, decided by its seed alone."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    volume = noise_volume(int(rng.integers(2**31)))
    if kind == "cavity":
        return cavity_scene(rng, volume)
    if kind == "relief":
        return relief_scene(rng, volume)
    shape = random_tube(rng) if kind == "tube" else random_passage(rng)
    return tube_scene(rng, shape, random_material(rng, MUCOSA), volume)
