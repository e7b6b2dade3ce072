"""Meshes of other programs: what is a surface is read alike from every format, what is none is refused with the reason."""

import copy
import json
import struct

import numpy as np
import pytest
import trimesh

from recon.io import meshes
from recon.io.obj import read_obj
from recon.types import Mesh, ReconError

NUM_MUTATIONS = 100
SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
PLY_VERTICES = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
PLY_FACES = "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
OBJ_SQUARE = "".join(f"v {line}\n" for line in SQUARE.splitlines())
OFF_SQUARE = f"OFF\n4 1 0\n{SQUARE}"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def area(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area


def glb(tree, numbers=b""):
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(numbers), b"BIN\0") + numbers
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], "<f4").tobytes() + np.array([0, 1, 2], "<u4").tobytes()
TREE = {
    "asset": {"version": "2.0"},
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
    "accessors": [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
        {"bufferView": 1, "componentType": 5125, "count": 3, "type": "SCALAR"},
    ],
    "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 12}],
    "buffers": [{"byteLength": 48}],
}


def changed(*path_and_value):
    """`TREE` with one entry replaced."""
    *path, last, value = path_and_value
    tree = copy.deepcopy(TREE)
    place = tree
    for key in path:
        place = place[key]
    place[last] = value
    return glb(tree, TRIANGLE)


# --- what is read


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "off", "glb"])
def test_a_sphere_keeps_its_shape_and_its_topology(tmp_path, suffix):
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=3)
    sphere.export(tmp_path / f"m.{suffix}")
    read = meshes.read_mesh(tmp_path / f"m.{suffix}", "mm")
    body = trimesh.Trimesh(read.vertices, read.faces, process=False)
    assert (len(read.vertices), len(read.faces)) == (len(sphere.vertices), len(sphere.faces))
    assert body.is_watertight and body.euler_number == 2
    assert np.isclose(body.volume, sphere.volume, rtol=1e-5)
    assert read.unit == "mm"


@pytest.mark.parametrize(
    ("name", "content", "num_faces"),
    [
        ("quad.ply", PLY_VERTICES + PLY_FACES.format(1) + SQUARE + "4 0 1 2 3\n", 2),
        ("mixed.ply", PLY_VERTICES + PLY_FACES.format(2) + SQUARE + "3 0 1 2\n4 0 1 2 3\n", 3),
        ("quad.obj", OBJ_SQUARE + "f 1 2 3 4\n", 2),
        ("back.obj", OBJ_SQUARE + "f -4 -3 -2 -1\n", 2),
        ("seam.obj", OBJ_SQUARE + "vt 0 0\nvt 1 1\nf 1/1 2/1 3/1\nf 1/2 3/2 4/2\n", 2),
        ("crlf.obj", (OBJ_SQUARE + "f 1//1 2//1 3//1 4//1\n").replace("\n", "\r\n"), 2),
        ("quad.off", OFF_SQUARE + "4 0 1 2 3\n", 2),
    ],
)
def test_polygons_become_triangles_of_the_same_area(tmp_path, name, content, num_faces):
    read = meshes.read_mesh(write(tmp_path / name, content))
    assert len(read.vertices) == 4
    assert len(read.faces) == num_faces
    assert np.isclose(area(read), 1.0 if num_faces == 2 else 1.5)


def test_a_binary_ply_of_quads_is_read(tmp_path):
    header = (PLY_VERTICES + PLY_FACES.format(1)).replace("ascii", "binary_little_endian").encode()
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4").tobytes()
    read = meshes.read_mesh(write(tmp_path / "m.ply", header + corners + b"\x04" + np.arange(4, dtype="<i4").tobytes()))
    assert np.isclose(area(read), 1)


def test_obj_corners_of_any_kind_keep_their_order_and_their_texture(tmp_path):
    text = OBJ_SQUARE + "vt 0 0\nvt 1 1\nf 1/1 2/1 3/2\nv 5 5 5\nf -1/1 1/1 2/2 3/2\nf 2/2 3/2 4/2\n"
    vertices, faces, texture_idx = read_obj(write(tmp_path / "m.obj", text))
    assert len(vertices) == 5
    assert faces.tolist() == [[0, 1, 2], [4, 0, 1], [4, 1, 2], [1, 2, 3]]
    assert texture_idx.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    _, faces, texture_idx = read_obj(write(tmp_path / "n.obj", OBJ_SQUARE + "vt 0 0\nf 1/1 2/1 3/1\nf 1 3 4\n"))
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert texture_idx is None


def test_faces_without_area_by_name_are_left_out(tmp_path):
    read = meshes.read_mesh(write(tmp_path / "m.off", OFF_SQUARE.replace("4 1 0", "4 2 0") + "3 0 1 2\n3 1 1 2\n"))
    assert read.faces.tolist() == [[0, 1, 2]]


def test_parts_of_a_scene_stand_where_it_places_them(tmp_path):
    tree = TREE | {"nodes": [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0]}], "scenes": [{"nodes": [0, 1]}]}
    read = meshes.read_mesh(write(tmp_path / "m.glb", glb(tree, TRIANGLE)), "mm")
    assert len(read.faces) == 2
    assert np.allclose([read.vertices[:, 0].min(), read.vertices[:, 0].max()], [0, 6])


# --- units


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("cm", 10), ("m", 1000), ("unitless", 1), (None, 1)])
def test_a_declared_unit_brings_millimetres(tmp_path, unit, factor):
    read = meshes.read_mesh(write(tmp_path / "m.off", OFF_SQUARE + "4 0 1 2 3\n"), unit)
    assert np.ptp(read.vertices[:, 0]) == factor
    assert read.unit == ("mm" if unit in ("mm", "cm", "m") else "unitless")


@pytest.mark.parametrize(("unit", "factor"), [(None, 1000), ("m", 1000), ("mm", 1), ("unitless", 1)])
def test_glb_is_in_metres_unless_declared(tmp_path, unit, factor):
    read = meshes.read_mesh(write(tmp_path / "m.glb", glb(TREE, TRIANGLE)), unit)
    assert np.ptp(read.vertices[:, 0]) == factor
    assert read.unit == ("unitless" if unit == "unitless" else "mm")


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_what_a_file_says_of_its_unit_is_not_contradicted(tmp_path, suffix):
    mesh = Mesh(np.array([[0.0, 0, 0], [8, 0, 0], [0, 8, 0]]), np.array([[0, 1, 2]]), unit="mm")
    {"ply": meshes.write_ply, "glb": meshes.write_glb}[suffix](tmp_path / f"m.{suffix}", mesh)
    for unit in (None, "mm", "unitless"):
        read = meshes.read_mesh(tmp_path / f"m.{suffix}", unit)
        assert np.allclose(read.vertices, mesh.vertices, atol=1e-5)
        assert read.unit == ("unitless" if unit == "unitless" else "mm")
    with pytest.raises(ReconError, match="says that it is in mm, but m was declared"):
        meshes.read_mesh(tmp_path / f"m.{suffix}", "m")


def test_a_unitless_glb_of_ours_takes_a_declared_unit(tmp_path):
    mesh = Mesh(np.array([[0.0, 0, 0], [8, 0, 0], [0, 8, 0]]), np.array([[0, 1, 2]]))
    meshes.write_glb(tmp_path / "m.glb", mesh)
    assert np.allclose(meshes.read_mesh(tmp_path / "m.glb", "cm").vertices, 10 * mesh.vertices, atol=1e-4)


# --- error meshes


def test_quality_is_a_property_that_others_read(tmp_path):
    mesh = Mesh(np.array([[0.0, 0, 0], [8, 0, 0], [0, 8, 0]]), np.array([[0, 1, 2]]), np.full((3, 3), 7, np.uint8), unit="mm")
    meshes.write_ply(tmp_path / "m.ply", mesh, quality=np.array([0.5, 1.5, 2.5]))
    raw = trimesh.load(tmp_path / "m.ply", process=False).metadata["_ply_raw"]["vertex"]["data"]
    assert raw["quality"].reshape(-1).tolist() == [0.5, 1.5, 2.5]
    assert np.array_equal(meshes.read_mesh(tmp_path / "m.ply").colors, mesh.colors)
    with pytest.raises(ReconError, match=r"n\.ply: quality of a vertex should be finite, found 1"):
        meshes.write_ply(tmp_path / "n.ply", mesh, quality=np.array([0.5, np.nan, 2.5]))
    assert not (tmp_path / "n.ply").exists()


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cloud.ply", PLY_VERTICES + "end_header\n" + SQUARE, "4 points and no faces: a point cloud"),
        ("no_faces.ply", PLY_VERTICES + PLY_FACES.format(0) + SQUARE, "4 points and no faces"),
        ("above.ply", PLY_VERTICES + PLY_FACES.format(1) + SQUARE + "3 0 1 4\n", "names vertex 4, counted from 0, of 4"),
        ("below.ply", PLY_VERTICES + PLY_FACES.format(1) + SQUARE + "3 0 1 -1\n", "names vertex -1"),
        ("nan.ply", PLY_VERTICES + PLY_FACES.format(1) + "nan" + SQUARE[1:] + "3 0 1 2\n", "not finite"),
        (
            "cut.ply",
            PLY_VERTICES + PLY_FACES.format(9) + SQUARE + "3 0 1 2\n",
            "claims 4 vertices and 9 faces, but .* 1 triangles can be read",
        ),
        ("cut.off", OFF_SQUARE.replace("4 1 0", "4 9 0") + "3 0 1 2\n", "claims 4 vertices and 9 faces"),
        ("claims.ply", PLY_VERTICES.replace("vertex 4", "vertex 4000000000") + PLY_FACES.format(1), "cut short"),
        ("empty.ply", "", "cannot be read as a mesh"),
        ("zero.obj", OBJ_SQUARE + "f 0 1 2\n", "one below 1"),
        ("above.obj", OBJ_SQUARE + "f 1 2 5\n", "names vertex 5"),
        ("below.obj", OBJ_SQUARE + "f -5 2 3\n", "one below 1"),
        ("two.obj", OBJ_SQUARE + "f 1 2\n", "at least 3 corners"),
        ("mixed.obj", OBJ_SQUARE + "f 1/1 2 3/1/1\n", "written alike"),
        ("text.obj", OBJ_SQUARE + "f 1 2 x\n", "not a number"),
        ("inf.obj", OBJ_SQUARE + "v inf 0 0\nf 1 2 5\n", "finite"),
        ("far.obj", OBJ_SQUARE + "v 1e300 0 0\nf 1 2 5\n", r"1e\+300 from the origin"),
        ("cloud.obj", OBJ_SQUARE, "4 vertices and 0 faces"),
        ("point.off", OFF_SQUARE + "3 1 1 1\n", "each of its 1 faces names a vertex twice"),
        ("claims.off", OFF_SQUARE.replace("4 1 0", "4000000000000 1 0") + "3 0 1 2\n", "cannot be read as a mesh"),
        ("empty.stl", b"", "no surface"),
        ("claims.stl", bytes(80) + struct.pack("<I", 4_000_000_000) + bytes(50), "no surface"),
        ("cloud.glb", changed("meshes", 0, "primitives", 0, "mode", 0), "cannot be read as a mesh"),
        ("zeros.glb", changed("accessors", 0, {"componentType": 5126, "count": 3 * 10**8, "type": "VEC3"}), "300000003 elements"),
        ("outside.glb", changed("buffers", [{"byteLength": 48, "uri": "../secret.bin"}]), r"needs another file \(\.\./secret\.bin\)"),
        ("packed.glb", changed("extensionsRequired", ["KHR_draco_mesh_compression"]), "packed by KHR_draco_mesh_compression"),
        ("twice.glb", changed("nodes", [{"children": [1, 1]}, {"mesh": 0}]), "two parents"),
        ("many.glb", changed("nodes", [{"mesh": 0}] * 9) + bytes(10), "places parts so often"),
        ("no_mesh.glb", changed("nodes", 0, "mesh", 7), "description is damaged"),
        ("text.glb", "this is no mesh at all, whatever it is called", "not a binary glTF 2 file"),
        ("list.glb", glb([1, 2]), "should be a JSON object"),
        ("deep.glb", struct.pack("<4sIII4s", b"glTF", 2, 99, 50_000, b"JSON") + b"[" * 50_000, "no JSON"),
        ("m.fbx", b"x", "no mesh format that is read"),
    ],
)
def test_what_is_no_surface_is_refused_with_the_reason(tmp_path, name, content, words, monkeypatch):
    monkeypatch.setattr("recon.io.mesh_headers.MAX_INSTANCED", 50)
    with pytest.raises(ReconError, match=words) as caught:
        meshes.read_mesh(write(tmp_path / name, content))
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


def good_file(tmp_path, kind):
    sphere = trimesh.creation.icosphere(subdivisions=1)
    suffix = kind.split("_")[-1]
    path = tmp_path / f"good.{suffix}"
    if kind.startswith("ascii"):
        sphere.export(path, file_type="stl_ascii" if suffix == "stl" else "ply", **({"encoding": "ascii"} if suffix == "ply" else {}))
    else:
        sphere.export(path)
    return path.read_bytes()


def damaged(content):
    """Cuts, flipped bytes anywhere, a flipped header, zeros, noise, a part twice: always the same hundred."""
    rng = np.random.default_rng(11)
    for k in range(NUM_MUTATIONS):
        data = bytearray(content)
        start = int(rng.integers(0, min(len(data), 300) if k % 2 else len(data)))
        end = min(len(data), start + int(rng.integers(1, 40)))
        kind = k % 6
        if kind == 0:
            data = data[:start]
        elif kind == 1:
            data[start] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            data[start:end] = rng.bytes(end - start)
        elif kind == 3:
            data[start:end] = bytes([0, 255][k // 6 % 2] for _ in range(end - start))
        elif kind == 4:
            data[start:start] = data[start:end]
        else:
            del data[start:end]
        yield bytes(data)


@pytest.mark.parametrize("kind", ["ply", "ascii_ply", "obj", "stl", "ascii_stl", "off", "glb"])
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_damaged_files_give_a_valid_mesh_or_one_line(tmp_path, kind):
    name = f"a.{kind.split('_')[-1]}"
    refused = 0
    for data in damaged(good_file(tmp_path, kind)):
        try:
            read = meshes.read_mesh(write(tmp_path / name, data))
        except ReconError as error:
            assert name in str(error) and "\n" not in str(error) and len(str(error)) < 500, str(error)
            refused += 1
        else:
            assert len(read.faces) and read.faces.min() >= 0 and read.faces.max() < len(read.vertices)
            assert np.all(np.isfinite(read.vertices)) and np.abs(read.vertices).max() <= meshes.MAX_COORDINATE
    assert refused >= 5
