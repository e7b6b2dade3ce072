"""Triangle meshes: PLY for work, GLB for showing, and other programs' files read with suspicion.

Foreign files go through trimesh and are checked before and after; Open3D's PLY reader crashes on damaged ones and is not
used for them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float, Int

from recon.io.atomic import atomic_path, write_bytes
from recon.io.mesh_headers import check_mesh_file, claimed_counts
from recon.io.obj import read_obj
from recon.io.units import MM_PER_UNIT, LengthUnit
from recon.types import Mesh, ReconError

MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb")
VERTEX_PROPERTIES = ("confidence", "observations", "matched", "last_seen_s", "viewing_angle_rad")
"""Numbers of a vertex that `Mesh` may hold, by their names in a PLY file."""
MAX_COORDINATE = 1e9
"""In file units: what is farther from the origin is damage, and overflows the single precision of ray casting."""

GLTF_AXES = np.array([1.0, -1.0, -1.0])
"""glTF has Y up and looks along -Z; the world has the first camera's axes: Y down, Z forward. A half turn about X."""
METRES_PER_MM = 0.001
_WITHOUT_SHARED_VERTICES = (".stl", ".glb")
"""Formats that repeat a vertex for each face (STL) or wherever a texture or normal has a seam (GLB)."""


def write_ply(path: str | Path, mesh: Mesh, quality: Float[np.ndarray, " v"] | None = None) -> None:
    """Binary little-endian PLY: positions and normals, then colours and `VERTEX_PROPERTIES` where known.

    `quality` is any number per vertex, such as its error: mesh viewers colour by a property of that name. Raises ReconError
    when it is not finite.
    """
    if quality is not None and not np.all(np.isfinite(quality)):
        raise ReconError(f"{path}: quality of a vertex should be finite, found {np.count_nonzero(~np.isfinite(quality))} that are not")
    vertices = np.asarray(mesh.vertices)
    normals = mesh.normals if mesh.normals is not None else vertex_normals(vertices, mesh.faces)
    columns: dict[str, tuple[str, str, np.ndarray]] = {}
    for names, values in (("x y z", vertices), ("nx ny nz", normals)):
        columns |= {name: ("float", "<f4", values[:, i]) for i, name in enumerate(names.split())}
    if mesh.colors is not None:
        columns |= {name: ("uchar", "u1", mesh.colors[:, i]) for i, name in enumerate(("red", "green", "blue"))}
    for name, values in (*((name, getattr(mesh, name)) for name in VERTEX_PROPERTIES), ("quality", quality)):
        if values is not None:
            columns[name] = ("float", "<f4", values)
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
    metres_per_unit = METRES_PER_MM if mesh.unit == "mm" else 1.0 / extent if extent > 0 else 1.0
    body = trimesh.Trimesh(
        np.asarray(mesh.vertices) * GLTF_AXES * metres_per_unit,
        mesh.faces,
        vertex_normals=None if mesh.normals is None else mesh.normals * GLTF_AXES,
        vertex_colors=mesh.colors,
        process=False,
    )
    scene = trimesh.Scene({"surface": body})
    scene.metadata = {"source_unit": mesh.unit, "metres_per_unit": metres_per_unit, "metric": mesh.unit == "mm"}
    write_bytes(path, scene.export(file_type="glb", include_normals=True))


def read_mesh(path: str | Path, unit: LengthUnit | None = None) -> Mesh:
    """A triangle mesh in mm, or in its own numbers where nothing says what they are ("unitless").

    Polygons become triangles, STL and GLB get back the vertices that their faces share, and faces that name a vertex twice
    are left out. GLB comes back in world axes.

    Args:
        unit: of the numbers in the file, where it does not say: this program's PLY and GLB do, and other GLB is in metres
            unless declared here; "unitless" also sets aside what the file says.

    Raises ReconError naming the file for anything that is not a finite, non-empty mesh with valid indices, and for a unit
    that contradicts the file.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise ReconError(f"{path} is no mesh format that is read ({', '.join(s[1:] for s in MESH_SUFFIXES)})")
    check_mesh_file(path)
    try:
        mesh, says, assumed = _read_glb(path) if path.suffix.lower() == ".glb" else _read_other(path)
    except ReconError:
        raise
    except Exception as error:  # trimesh's readers raise many unrelated types on damaged files.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ReconError(f"{path} cannot be read as a mesh: {reason}; if another program opens it, save it there as triangles") from error
    if unit not in (None, says, "unitless") and says is not None:
        raise ReconError(f"{path} says that it is in {says}, but {unit} was declared: leave the unit out or declare {says}")
    final = unit or says or assumed
    return replace(mesh, vertices=mesh.vertices * MM_PER_UNIT.get(final, 1.0), unit="unitless" if final == "unitless" else "mm")


def states_no_unit(path: str | Path) -> bool:
    """Whether a file of this program says that its lengths have no unit; other programs' files say nothing either way."""
    path = Path(path)
    if path.suffix.lower() == ".glb":
        return read_mesh(path).unit == "unitless"
    return path.suffix.lower() == ".ply" and _says(path, b"unit unitless")


def vertex_normals(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v 3"]:
    """Unit normals weighted by face area; (0, 0, 1) at vertices without a face that has one."""
    corners = np.asarray(vertices, dtype=np.float64)[faces]
    area_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area_normals[:, axis], 3), minlength=len(vertices)) for axis in range(3)], axis=1
    )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.where(length > 0, length, 1), (0.0, 0.0, 1.0))


def _read_other(path: Path) -> tuple[Mesh, LengthUnit | None, LengthUnit]:
    """The mesh in file numbers, the unit that the file says, and the one to assume otherwise."""
    if path.suffix.lower() == ".obj":
        vertices, faces, _ = read_obj(path)
        return _checked(path, Mesh(vertices, faces)), None, "unitless"
    body = trimesh.load(path, process=False, force="mesh", skip_materials=True)
    says: LengthUnit | None = "mm" if path.suffix.lower() == ".ply" and _says(path, b"unit mm") else None
    mesh = _from_trimesh(body)
    claimed = claimed_counts(path)
    if claimed is not None and (len(mesh.vertices) < claimed[0] or len(mesh.faces) < claimed[1]):
        found = f"{len(mesh.vertices)} vertices and {len(mesh.faces)} triangles"
        raise ReconError(f"{path} claims {claimed[0]} vertices and {claimed[1]} faces, but {found} can be read: it is cut short or damaged")
    return _checked(path, mesh), says, "unitless"


def _read_glb(path: Path) -> tuple[Mesh, LengthUnit | None, LengthUnit]:
    scene = trimesh.load(path, process=False, force="scene", skip_materials=True)
    extras = dict(scene.metadata)
    metres_per_unit = extras.get("metres_per_unit", 1.0)
    if type(metres_per_unit) not in (int, float) or not 0 < metres_per_unit < np.inf:
        raise ReconError(f"{path}: metres_per_unit in extras should be a positive number, found {metres_per_unit!r}")
    mesh = _from_trimesh(scene.to_geometry())
    says: LengthUnit | None = "mm" if "metres_per_unit" in extras and extras.get("source_unit") == "mm" else None
    mesh = _checked(path, replace(mesh, vertices=mesh.vertices * GLTF_AXES / metres_per_unit))
    return mesh, says, "unitless" if extras.get("source_unit") == "unitless" else "m"


def _from_trimesh(body: trimesh.Trimesh) -> Mesh:
    vertices, faces = np.array(body.vertices, dtype=np.float64), np.array(body.faces, dtype=np.int64)
    attributes = _ply_attributes(body)
    has_colors = body.visual.kind == "vertex" and len(body.visual.vertex_colors) == len(vertices)
    colors = np.array(body.visual.vertex_colors[:, :3], dtype=np.uint8) if has_colors else None
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), colors=colors, **attributes)


def _checked(path: Path, mesh: Mesh) -> Mesh:
    """The mesh without degenerate faces. Raises ReconError for what is no surface."""
    vertices, faces = mesh.vertices, mesh.faces
    if not len(vertices) or not len(faces):
        raise ReconError(f"{path} holds {len(vertices)} vertices and {len(faces)} faces: no surface")
    if not np.all(np.isfinite(vertices)):
        raise ReconError(f"{path} holds vertices that are not finite")
    if np.abs(vertices).max() > MAX_COORDINATE:
        raise ReconError(f"{path} holds vertices up to {np.abs(vertices).max():.3g} from the origin; above {MAX_COORDINATE:.0e} is refused")
    if faces.min() < 0 or faces.max() >= len(vertices):
        named = faces.min() if faces.min() < 0 else faces.max()
        raise ReconError(f"{path}: a face names vertex {named}, counted from 0, of {len(vertices)}")
    if path.suffix.lower() in _WITHOUT_SHARED_VERTICES:
        mesh = _with_shared_vertices(mesh)
    a, b, c = mesh.faces.T
    is_proper = (a != b) & (b != c) & (c != a)
    if not is_proper.any():
        raise ReconError(f"{path}: each of its {len(faces)} faces names a vertex twice: no surface")
    return mesh if is_proper.all() else replace(mesh, faces=mesh.faces[is_proper])


def _with_shared_vertices(mesh: Mesh) -> Mesh:
    """Vertices at bit-identical positions become the first of them."""
    _, first, same_as = np.unique(mesh.vertices + 0.0, axis=0, return_index=True, return_inverse=True)  # + 0.0: -0 is 0
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    colors = None if mesh.colors is None else mesh.colors[first[order]]
    return Mesh(mesh.vertices[first[order]], place[same_as.reshape(-1)[mesh.faces]], colors, unit=mesh.unit)


def _ply_attributes(body: trimesh.Trimesh) -> dict[str, np.ndarray]:
    """Per-vertex columns of a PLY file beyond positions and colours."""
    data = body.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    if data is None or getattr(data, "dtype", None) is None or not data.dtype.names:
        return {}
    columns = {name: np.array(data[name], dtype=np.float64).reshape(len(data)) for name in VERTEX_PROPERTIES if name in data.dtype.names}
    if all(name in data.dtype.names for name in ("nx", "ny", "nz")):
        columns["normals"] = np.stack([np.array(data[name], dtype=np.float64).reshape(len(data)) for name in ("nx", "ny", "nz")], axis=1)
    return {name: values for name, values in columns.items() if len(values) == len(body.vertices) and np.all(np.isfinite(values))}


def _says(path: Path, comment: bytes) -> bool:
    with path.open("rb") as file:
        return b"\ncomment " + comment + b"\n" in file.read(4096)
