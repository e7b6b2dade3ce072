"""A surface that changes over time as one animated GLB, in metres and Y up as `recon.io.meshes.write_glb` writes a still one.

Meshes that share their faces become one mesh with morph targets, blended linearly in time. Others become a node for each time, of
which one at a time has scale 1 and the rest 0: glTF 2.0 animates no visibility, and scale is what every viewer knows. The colours
of vertices are linear in glTF; ours are sRGB and are converted. Source: glTF 2.0 specification, sections 3.7 (meshes), 3.11
(animations) and 4.4 (GLB).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from recon.io.atomic import write_bytes
from recon.io.meshes import GLTF_AXES, METRES_PER_MM, vertex_normals
from recon.types import Mesh, ReconError

_COMPONENTS = {"float32": 5126, "uint32": 5125}
_KINDS = {1: "SCALAR", 3: "VEC3"}
_LISTS = ("accessors", "bufferViews", "meshes", "nodes")
_VERTICES, _INDICES = 34962, 34963
"""What a buffer view is for."""


@dataclass(frozen=True)
class TimedMesh:
    """The surface at one time."""

    time_s: float
    mesh: Mesh


@dataclass
class _Gltf:
    """The tree of a file and its binary chunk while they grow."""

    tree: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in _LISTS})
    chunk: bytearray = field(default_factory=bytearray)

    def accessor(self, values: np.ndarray, target: int | None = None) -> int:
        """Append numbers, a row an element; returns the index of their accessor."""
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        view = {"buffer": 0, "byteOffset": len(self.chunk), "byteLength": values.nbytes} | ({} if target is None else {"target": target})
        entry = {"bufferView": len(self.tree["bufferViews"]), "componentType": _COMPONENTS[values.dtype.name], "count": len(values)}
        entry |= {"type": _KINDS[width]}
        if values.dtype == np.float32:  # bounds are required of positions and times, and harm nowhere
            rows = values.reshape(len(values), width)
            entry |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self.chunk += values.tobytes() + bytes(-values.nbytes % 4)
        self.tree["bufferViews"].append(view)
        self.tree["accessors"].append(entry)
        return len(self.tree["accessors"]) - 1


def write_animated_glb(path: str | Path, meshes: Sequence[TimedMesh]) -> None:
    """Write meshes in the order of their times; the animation starts with the first and holds the last for a typical step.

    Without a known unit the longest side of all becomes 1 m and `extras` of the scene say so, beside `times_s`.
    Raises ReconError without a mesh, for one without faces, for two at one time and for units that differ.
    """
    meshes = sorted(meshes, key=lambda timed: timed.time_s)
    _check(path, meshes)
    metres_per_unit = _metres_per_unit(meshes)
    surfaces = [_Surface.of(timed.mesh, metres_per_unit) for timed in meshes]
    times_s = np.array([timed.time_s for timed in meshes]) - meshes[0].time_s
    gltf = _Gltf()
    if _share_faces(meshes):
        animation = _morphing(gltf, surfaces, times_s)
    else:
        animation = _switching(gltf, surfaces, times_s)
    unit = meshes[0].mesh.unit
    extras = {"source_unit": unit, "metres_per_unit": metres_per_unit, "metric": unit == "mm", "times_s": [m.time_s for m in meshes]}
    tree = {
        "asset": {"version": "2.0", "generator": "endorecon"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(gltf.tree["nodes"]))), "extras": extras}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}, "doubleSided": True}],
        **gltf.tree,
        **({"animations": [animation]} if len(meshes) > 1 else {}),
        "buffers": [{"byteLength": len(gltf.chunk)}],
    }
    write_bytes(path, _glb(tree, bytes(gltf.chunk)))


def linear_colors(colors: UInt8[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
    """sRGB as linear light, 1 the brightest (IEC 61966-2-1); float32, since dark tones lie close together there."""
    share = colors / 255.0
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4).astype(np.float32)


@dataclass(frozen=True)
class _Surface:
    """A mesh in glTF's axes, metres and types."""

    positions: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    colors: Float[np.ndarray, "v 3"] | None
    corners: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh, metres_per_unit: float) -> _Surface:
        normals = mesh.normals if mesh.normals is not None else vertex_normals(mesh.vertices, mesh.faces)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.where(length > 0, normals / np.where(length > 0, length, 1), (0.0, 0.0, 1.0))
        return cls(
            (mesh.vertices * GLTF_AXES * metres_per_unit).astype(np.float32),
            (normals * GLTF_AXES).astype(np.float32),
            None if mesh.colors is None else linear_colors(mesh.colors),
            mesh.faces.ravel().astype(np.uint32),
        )

    def add_to(self, gltf: _Gltf) -> dict[str, Any]:
        """Append its numbers; returns a primitive."""
        attributes = {"POSITION": gltf.accessor(self.positions, _VERTICES), "NORMAL": gltf.accessor(self.normals, _VERTICES)}
        if self.colors is not None:
            attributes["COLOR_0"] = gltf.accessor(self.colors, _VERTICES)
        return {"attributes": attributes, "indices": gltf.accessor(self.corners, _INDICES), "material": 0}


def _morphing(gltf: _Gltf, surfaces: Sequence[_Surface], times_s: np.ndarray) -> dict[str, Any]:
    """The first mesh, and how far each later one lies from it; at its time a target has weight 1. Colours are the first one's."""
    first, num_targets = surfaces[0], len(surfaces) - 1
    primitive = first.add_to(gltf)
    if num_targets:
        primitive["targets"] = [
            {
                "POSITION": gltf.accessor(surface.positions - first.positions, _VERTICES),
                "NORMAL": gltf.accessor(surface.normals - first.normals, _VERTICES),
            }
            for surface in surfaces[1:]
        ]
    gltf.tree["meshes"].append({"primitives": [primitive]} | ({"weights": [0.0] * num_targets} if num_targets else {}))
    gltf.tree["nodes"].append({"name": "surface", "mesh": 0})
    if not num_targets:
        return {}
    weights = np.eye(len(surfaces), dtype=np.float32)[:, 1:]
    held = np.concatenate([weights, weights[-1:]])
    return _animation(gltf, [(0, "weights", "LINEAR", _with_end(times_s), held.ravel())])


def _switching(gltf: _Gltf, surfaces: Sequence[_Surface], times_s: np.ndarray) -> dict[str, Any]:
    """A node for each time, seen from then until the next; a viewer that does not animate shows the first."""
    end_s = _with_end(times_s)[-1]
    tracks = []
    for k, surface in enumerate(surfaces):
        gltf.tree["meshes"].append({"primitives": [surface.add_to(gltf)]})
        gltf.tree["nodes"].append({"name": f"surface_{k:06d}", "mesh": k, "scale": [float(k == 0)] * 3})
        keys = {0.0: float(k == 0), float(times_s[k]): 1.0}
        if k + 1 < len(surfaces):
            keys[float(times_s[k + 1])] = 0.0
        keys[float(end_s)] = list(keys.values())[-1]
        scales = np.repeat(np.array(list(keys.values()), dtype=np.float32)[:, None], 3, axis=1)
        tracks.append((k, "scale", "STEP", np.array(list(keys)), scales))
    return _animation(gltf, tracks)


def _animation(gltf: _Gltf, tracks: Sequence[tuple[int, str, str, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Tracks are (node, property, interpolation, times in s, values)."""
    samplers = [
        {"input": gltf.accessor(times.astype(np.float32)), "output": gltf.accessor(values), "interpolation": interpolation}
        for _, _, interpolation, times, values in tracks
    ]
    channels = [{"sampler": k, "target": {"node": track[0], "path": track[1]}} for k, track in enumerate(tracks)]
    return {"name": "time", "samplers": samplers, "channels": channels}


def _with_end(times_s: np.ndarray) -> np.ndarray:
    """One more time, so that the last mesh is seen as long as another."""
    return np.append(times_s, times_s[-1] + (float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0))


def _share_faces(meshes: Sequence[TimedMesh]) -> bool:
    first = meshes[0].mesh
    return all(len(m.mesh.vertices) == len(first.vertices) and np.array_equal(m.mesh.faces, first.faces) for m in meshes[1:])


def _metres_per_unit(meshes: Sequence[TimedMesh]) -> float:
    if meshes[0].mesh.unit == "mm":
        return METRES_PER_MM
    low = np.min([timed.mesh.vertices.min(axis=0) for timed in meshes], axis=0)
    high = np.max([timed.mesh.vertices.max(axis=0) for timed in meshes], axis=0)
    extent = float((high - low).max())
    return 1.0 / extent if extent > 0 else 1.0


def _check(path: str | Path, meshes: Sequence[TimedMesh]) -> None:
    if not meshes:
        raise ReconError(f"{path}: no mesh to animate, expected one for each time")
    for timed in meshes:
        if not len(timed.mesh.vertices) or not len(timed.mesh.faces):
            raise ReconError(f"{path}: the mesh at {timed.time_s:g} s has no surface; leave its time out")
        if not np.all(np.isfinite(timed.mesh.vertices)):
            raise ReconError(f"{path}: the mesh at {timed.time_s:g} s has vertices that are not finite", exit_code=1)
    times_s = [timed.time_s for timed in meshes]
    if not np.all(np.isfinite(times_s)) or not np.all(np.diff(times_s) > 0):
        raise ReconError(f"{path}: meshes of an animation need a time of their own each, found {times_s}")
    units = {timed.mesh.unit for timed in meshes}
    if len(units) > 1:
        raise ReconError(f"{path}: meshes of one animation are in {' and '.join(sorted(units))}; expected one unit")


def _glb(tree: dict[str, Any], chunk: bytes) -> bytes:
    text = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 4)
    parts = [struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", len(chunk), b"BIN\0"), chunk]
    return b"".join([struct.pack("<4s2I", b"glTF", 2, 12 + sum(map(len, parts))), *parts])
