"""Triangle meshes: PLY for work, GLB for showing, and other programs' files read with suspicion.

Foreign files go through trimesh and are checked; Open3D's PLY reader crashes on damaged ones and is not used for them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float, Int

from recon.io.atomic import atomic_path, write_bytes
from recon.types import Mesh, ReconError

MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb")
MAX_BYTES = 4_000_000_000

_GLTF_AXES = np.array([1.0, -1.0, -1.0])
"""glTF has Y up and looks along -Z; the world has the first camera's axes: Y down, Z forward. A half turn about X."""
_METRES_PER_MM = 0.001


def write_ply(path: str | Path, mesh: Mesh) -> None:
    """Binary little-endian PLY: positions and normals, then colours, `confidence` and `observations` where known."""
    vertices = np.asarray(mesh.vertices)
    normals = mesh.normals if mesh.normals is not None else vertex_normals(vertices, mesh.faces)
    columns: dict[str, tuple[str, str, np.ndarray]] = {}
    for names, values in (("x y z", vertices), ("nx ny nz", normals)):
        columns |= {name: ("float", "<f4", values[:, i]) for i, name in enumerate(names.split())}
    if mesh.colors is not None:
        columns |= {name: ("uchar", "u1", mesh.colors[:, i]) for i, name in enumerate(("red", "green", "blue"))}
    for name in ("confidence", "observations"):
        if getattr(mesh, name) is not None:
            columns[name] = ("float", "<f4", getattr(mesh, name))
    vertex_table = np.zeros(len(vertices), dtype=[(name, dtype) for name, (_, dtype, _) in columns.items()])
    for name, (_, _, values) in columns.items():
        vertex_table[name] = values
    face_table = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face_table["count"], face_table["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"comment unit {mesh.unit}", f"element vertex {len(vertices)}"]
    header += [f"property {kind} {name}" for name, (kind, _, _) in columns.items()]
    header += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices", "end_header"]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertex_table.tobytes())
        file.write(face_table.tobytes())


def write_glb(path: str | Path, mesh: Mesh) -> None:
    """Metres and Y up. Without a known unit the longest side becomes 1 m and `extras` say so."""
    extent = float(np.ptp(mesh.vertices, axis=0).max()) if len(mesh.vertices) else 0.0
    metres_per_unit = _METRES_PER_MM if mesh.unit == "mm" else 1.0 / extent if extent > 0 else 1.0
    body = trimesh.Trimesh(
        np.asarray(mesh.vertices) * _GLTF_AXES * metres_per_unit,
        mesh.faces,
        vertex_normals=None if mesh.normals is None else mesh.normals * _GLTF_AXES,
        vertex_colors=mesh.colors,
        process=False,
    )
    scene = trimesh.Scene({"surface": body})
    scene.metadata = {"source_unit": mesh.unit, "metres_per_unit": metres_per_unit, "metric": mesh.unit == "mm"}
    write_bytes(path, scene.export(file_type="glb", include_normals=True))


def read_mesh(path: str | Path) -> Mesh:
    """A triangle mesh in its own unit: GLB comes back in world axes, and in mm unless it is marked as unitless.

    Raises ReconError naming the file for anything that is not a finite, non-empty mesh with valid indices.
    """
    path = Path(path)
    _check_file(path)
    try:
        loaded = trimesh.load(path, process=False, force="scene" if path.suffix.lower() == ".glb" else "mesh", skip_materials=True)
        extras = dict(loaded.metadata) if path.suffix.lower() == ".glb" else {}
        body = loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded
        mesh = _from_trimesh(path, body)
    except ReconError:
        raise
    except Exception as error:  # trimesh's readers raise many unrelated types on damaged files.
        raise ReconError(
            f"{path} cannot be read as a mesh: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return _from_gltf(path, mesh, extras) if path.suffix.lower() == ".glb" else mesh


def vertex_normals(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v 3"]:
    """Unit normals weighted by face area; (0, 0, 1) at vertices without a face that has one."""
    corners = np.asarray(vertices, dtype=np.float64)[faces]
    area_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area_normals[:, axis], 3), minlength=len(vertices)) for axis in range(3)], axis=1
    )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.where(length > 0, length, 1), (0.0, 0.0, 1.0))


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise ReconError(f"{path} is no mesh format that is read ({', '.join(s[1:] for s in MESH_SUFFIXES)})")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64_000)
    except OSError as error:
        raise ReconError(f"{path} cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise ReconError(f"{path} is larger than {MAX_BYTES // 10**9} GB")
    if path.suffix.lower() == ".ply":
        claimed = sum(int(count) for count in re.findall(rb"^element \w+ (\d{1,18})\s*$", head.split(b"end_header")[0], re.MULTILINE))
        if claimed > size:
            raise ReconError(f"{path} claims {claimed} elements in {size} bytes: it is cut short or damaged")


def _from_trimesh(path: Path, body: trimesh.Trimesh) -> Mesh:
    vertices, faces = np.array(body.vertices, dtype=np.float64), np.array(body.faces, dtype=np.int64)
    if not len(vertices) or not len(faces):
        raise ReconError(f"{path} holds {len(vertices)} vertices and {len(faces)} faces: no surface")
    if not np.all(np.isfinite(vertices)):
        raise ReconError(f"{path} holds vertices that are not finite")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ReconError(f"{path}: a face names vertex {faces.max()} of {len(vertices)}")
    attributes = _ply_attributes(body)
    has_colors = body.visual.kind == "vertex" and len(body.visual.vertex_colors) == len(vertices)
    return Mesh(
        vertices,
        faces,
        colors=np.array(body.visual.vertex_colors[:, :3], dtype=np.uint8) if has_colors else None,
        normals=attributes.get("normals"),
        confidence=attributes.get("confidence"),
        observations=attributes.get("observations"),
        unit="mm" if path.suffix.lower() == ".ply" and _says_mm(path) else "unitless",
    )


def _ply_attributes(body: trimesh.Trimesh) -> dict[str, np.ndarray]:
    """Per-vertex columns of a PLY file beyond positions and colours."""
    data = body.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    if data is None or getattr(data, "dtype", None) is None or not data.dtype.names:
        return {}
    columns = {
        name: np.array(data[name], dtype=np.float64).reshape(len(data))
        for name in ("confidence", "observations")
        if name in data.dtype.names
    }
    if all(name in data.dtype.names for name in ("nx", "ny", "nz")):
        columns["normals"] = np.stack([np.array(data[name], dtype=np.float64).reshape(len(data)) for name in ("nx", "ny", "nz")], axis=1)
    return {name: values for name, values in columns.items() if len(values) == len(body.vertices) and np.all(np.isfinite(values))}


def _says_mm(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\ncomment unit mm\n" in file.read(4096)


def _from_gltf(path: Path, mesh: Mesh, extras: dict) -> Mesh:
    metres_per_unit = extras.get("metres_per_unit", _METRES_PER_MM)
    if type(metres_per_unit) not in (int, float) or not 0 < metres_per_unit < np.inf:
        raise ReconError(f"{path}: metres_per_unit in extras should be a positive number, found {metres_per_unit!r}")
    return Mesh(
        mesh.vertices * _GLTF_AXES / metres_per_unit,
        mesh.faces,
        colors=mesh.colors,
        unit="unitless" if extras.get("source_unit") == "unitless" else "mm",
    )
