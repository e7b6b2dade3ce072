"""Animated GLB: what the file says at each time, read back with an own reader and trimesh, and seen in a browser."""

import base64
import json
import shutil
import struct
import subprocess

import numpy as np
import pytest
import trimesh
from PIL import Image

from recon.io.animation import TimedMesh, linear_colors, write_animated_glb
from recon.types import Mesh, ReconError

RED = np.array([[200, 30, 30]], np.uint8)


def sheet(x_mm, cells=1, unit="mm"):
    """A square of 20 mm, 100 mm before the camera, its middle `x_mm` to the right."""
    side = np.linspace(-10, 10, cells + 1)
    u, v = np.meshgrid(side, side)
    vertices = np.stack([u.ravel() + x_mm, v.ravel(), np.full(u.size, 100.0)], axis=1)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    faces = np.concatenate([[[c, c + cells + 1, c + 1], [c + 1, c + cells + 1, c + cells + 2]] for c in corner])
    return Mesh(vertices, faces, colors=np.repeat(RED, len(vertices), axis=0), unit=unit)


def moving(counts):
    """From left to right in steps of half a second, starting at 3 s."""
    return [TimedMesh(3.0 + 0.5 * k, sheet(-15.0 + 15.0 * k, cells)) for k, cells in enumerate(counts)]


SHARED, OWN = (1, 1, 1), (1, 2, 3)


class Reader:
    """As much of glTF as the tests need."""

    def __init__(self, path):
        content = path.read_bytes()
        magic, version, size = struct.unpack_from("<4s2I", content)
        assert (magic, version, size) == (b"glTF", 2, len(content))
        length, kind = struct.unpack_from("<I4s", content, 12)
        self.tree = json.loads(content[20 : 20 + length])
        num, chunk_kind = struct.unpack_from("<I4s", content, 20 + length)
        self.chunk = content[28 + length :]
        assert kind == b"JSON" and chunk_kind == b"BIN\0" and num == len(self.chunk) == self.tree["buffers"][0]["byteLength"]
        assert length % 4 == num % 4 == 0

    def numbers(self, accessor):
        entry = self.tree["accessors"][accessor]
        view = self.tree["bufferViews"][entry["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4"}[entry["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3}[entry["type"]]
        values = np.frombuffer(self.chunk, dtype, entry["count"] * width, view["byteOffset"]).reshape(-1, width)
        if "min" in entry:
            np.testing.assert_array_equal(values.min(axis=0), np.float32(entry["min"]))
        return values

    def seen_at(self, time_s):
        """Vertices of the surface at a time of the animation, as a viewer computes them."""
        animation = self.tree["animations"][0]
        scales, weights = {}, None
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            times, values = self.numbers(sampler["input"])[:, 0], self.numbers(sampler["output"])
            assert np.all(np.diff(times) > 0)
            if channel["target"]["path"] == "scale":
                assert sampler["interpolation"] == "STEP"
                scales[channel["target"]["node"]] = values[np.searchsorted(times, time_s, side="right") - 1]
            else:
                columns = values.reshape(len(times), -1).T
                weights = [np.interp(time_s, times, column) for column in columns]
        if weights is None:
            (node,) = [node for node, scale in scales.items() if scale.any()]
            np.testing.assert_array_equal(scales[node], 1)
            primitive = self.tree["meshes"][self.tree["nodes"][node]["mesh"]]["primitives"][0]
            return self.numbers(primitive["attributes"]["POSITION"])
        primitive = self.tree["meshes"][0]["primitives"][0]
        targets = [self.numbers(target["POSITION"]) for target in primitive["targets"]]
        return self.numbers(primitive["attributes"]["POSITION"]) + sum(w * target for w, target in zip(weights, targets, strict=True))


@pytest.mark.parametrize("counts", [SHARED, OWN])
def test_the_surface_is_where_it_was_at_each_time(tmp_path, counts):
    meshes = moving(counts)
    write_animated_glb(tmp_path / "a.glb", meshes[::-1])
    reader = Reader(tmp_path / "a.glb")
    for timed in meshes:
        expected = timed.mesh.vertices * (0.001, -0.001, -0.001)
        np.testing.assert_allclose(reader.seen_at(timed.time_s - 3.0), expected, atol=1e-7)
    np.testing.assert_allclose(reader.seen_at(1.4), meshes[2].mesh.vertices * (0.001, -0.001, -0.001), atol=1e-7)
    assert reader.tree["scenes"][0]["extras"] == {"source_unit": "mm", "metres_per_unit": 0.001, "metric": True, "times_s": [3.0, 3.5, 4.0]}


def test_shared_faces_move_evenly_and_others_switch(tmp_path):
    for counts, x_m in ((SHARED, -0.0075), (OWN, -0.015)):
        write_animated_glb(tmp_path / "a.glb", moving(counts))
        assert Reader(tmp_path / "a.glb").seen_at(0.25)[:, 0].mean() == pytest.approx(x_m, abs=1e-7)


@pytest.mark.parametrize("counts", [SHARED, OWN])
def test_it_opens_in_trimesh_with_normals_and_colours(tmp_path, counts):
    write_animated_glb(tmp_path / "a.glb", moving(counts))
    scene = trimesh.load(tmp_path / "a.glb", force="scene", process=False, skip_materials=True)
    assert len(scene.geometry) == (1 if counts == SHARED else 3)
    first = next(iter(scene.geometry.values()))
    np.testing.assert_allclose(first.vertices, sheet(-15.0).vertices * (0.001, -0.001, -0.001), atol=1e-7)
    np.testing.assert_array_equal(first.visual.vertex_colors[0, :3], (linear_colors(RED)[0] * 255).round())
    facing = np.sign(first.face_normals[0, 2])
    np.testing.assert_allclose(first.vertex_normals[0], (0, 0, facing), atol=1e-6)


def test_one_mesh_is_a_still_and_a_unitless_scene_fills_one_metre(tmp_path):
    write_animated_glb(tmp_path / "a.glb", [TimedMesh(0.0, sheet(0.0))])
    assert "animations" not in Reader(tmp_path / "a.glb").tree
    write_animated_glb(tmp_path / "b.glb", [TimedMesh(float(k), sheet(20.0 * k, unit="unitless")) for k in range(3)])
    reader = Reader(tmp_path / "b.glb")
    assert reader.tree["scenes"][0]["extras"]["metres_per_unit"] == pytest.approx(1 / 60)
    assert np.ptp([reader.seen_at(time)[:, 0] for time in (0.0, 2.0)]) == pytest.approx(1.0, abs=1e-6)


def test_grey_levels_of_srgb_become_linear_light():
    np.testing.assert_allclose(linear_colors(np.array([[0, 255, 188]], np.uint8))[0], (0.0, 1.0, 0.503), atol=1e-3)


def test_what_cannot_be_animated_is_refused_by_name(tmp_path):
    path = tmp_path / "a.glb"
    with pytest.raises(ReconError, match="no mesh to animate"):
        write_animated_glb(path, [])
    with pytest.raises(ReconError, match="a time of their own"):
        write_animated_glb(path, [TimedMesh(1.0, sheet(0.0)), TimedMesh(1.0, sheet(1.0))])
    with pytest.raises(ReconError, match="mm and unitless"):
        write_animated_glb(path, [TimedMesh(1.0, sheet(0.0)), TimedMesh(2.0, sheet(1.0, unit="unitless"))])
    with pytest.raises(ReconError, match="at 2 s has no surface"):
        write_animated_glb(path, [TimedMesh(1.0, sheet(0.0)), TimedMesh(2.0, Mesh(np.zeros((3, 3)), np.zeros((0, 3), int), unit="mm"))])
    assert not path.exists()


PAGE = """<!doctype html><body style="margin:0">
<script type="importmap">{"imports": {"three": "THREE/build/three.module.js", "three/addons/": "THREE/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
const bytes = Uint8Array.from(atob("BYTES"), c => c.charCodeAt(0));
const renderer = new THREE.WebGLRenderer({ preserveDrawingBuffer: true });
renderer.setSize(400, 300);
document.body.appendChild(renderer.domElement);
new GLTFLoader().parse(bytes.buffer, "", gltf => {
  const scene = new THREE.Scene();
  scene.background = new THREE.Color(0xffffff);
  scene.add(gltf.scene, new THREE.AmbientLight(0xffffff, 3));
  const mixer = new THREE.AnimationMixer(gltf.scene);
  mixer.clipAction(gltf.animations[0]).play();
  mixer.setTime(TIME);
  renderer.render(scene, new THREE.PerspectiveCamera(35, 400 / 300, 0.01, 10));
});
</script>"""


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Folder of three.js from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    got = subprocess.run(["npm", "install", "--prefix", folder, "--ignore-scripts", "three@0.170.0"], capture_output=True, timeout=120)
    if got.returncode:
        pytest.skip("npm cannot get three.js here")
    return folder / "node_modules" / "three"


@pytest.mark.slow
@pytest.mark.parametrize("counts", [SHARED, OWN])
def test_a_browser_shows_the_sheet_move(tmp_path, three, counts):
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    write_animated_glb(tmp_path / "a.glb", moving(counts))
    columns = []
    for time_s in (0.0, 1.0):
        text = base64.b64encode((tmp_path / "a.glb").read_bytes()).decode()
        (tmp_path / "a.html").write_text(PAGE.replace("THREE/", f"{three.as_uri()}/").replace("BYTES", text).replace("TIME", str(time_s)))
        words = ["--headless", "--no-sandbox", "--allow-file-access-from-files", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        words += ["--window-size=400,300", "--virtual-time-budget=5000", f"--screenshot={tmp_path / 'a.png'}"]
        subprocess.run([browser, *words, (tmp_path / "a.html").as_uri()], capture_output=True, timeout=120, check=True)
        picture = np.array(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        is_red = picture[..., 0] - picture[..., 1] > 80
        assert is_red.sum() > 1000, "the browser drew no sheet"
        np.testing.assert_allclose(picture[is_red].mean(axis=0), RED[0], atol=12)
        columns.append(float(np.nonzero(is_red)[1].mean()))
    focal_px = 150 / np.tan(np.deg2rad(17.5))
    np.testing.assert_allclose(columns, (199.5 - 0.15 * focal_px, 199.5 + 0.15 * focal_px), atol=2)
