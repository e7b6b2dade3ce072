"""SERV-CT: pairs of its layout, each with its own lens, and the surface made of one view or both."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, picture, save, write_c3vd, write_endonerf, write_folder, write_jhu, write_servct
from PIL import Image

from recon.data import open_sequence, servct
from recon.types import Camera, Mesh, ReconError

pytestmark = pytest.mark.filterwarnings("error")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "servct_like"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")

BASELINE_MM, FAR_MM, NEAR_MM = 5.0, 80.0, 40.0
NEAR_X_MM = (-6.0, 4.0)
"""A post of this width in front of a wall, in the left camera's axes."""


def write_stereo(root: Path, size: tuple[int, int] = (120, 90), focal_px: float = 150.0, shift_px: float = 0.0) -> Path:
    """Two pairs before a post and a wall, rendered pixel by pixel; the second pair has its principal points `shift_px` off."""
    width, height = size
    for k in range(2):
        name = f"{k + 1:03d}"
        centers_px = {"L": width / 2 - 0.5 + k * shift_px, "R": width / 2 + 3.5 + k * shift_px}
        for side, folder in (("L", "Left_rectified"), ("R", "Right_rectified")):
            save(root / folder / f"{name}.png", picture(k, width, height))
            x = (np.arange(width) - centers_px[side]) / focal_px * NEAR_MM + BASELINE_MM * (side == "R")
            row = np.where((x >= NEAR_X_MM[0]) & (x <= NEAR_X_MM[1]), NEAR_MM, FAR_MM)
            save(root / "Ground_truth_CT" / f"Depth{side}" / f"{name}.png", np.tile(row * 256, (height, 1)).astype(np.uint16))
        P1 = np.array([[focal_px, 0, centers_px["L"], 0], [0, focal_px, height / 2, 0], [0, 0, 1, 0]])
        P2 = P1.copy()
        P2[0, 2:] = centers_px["R"], -focal_px * BASELINE_MM
        (root / "Rectified_calibration").mkdir(exist_ok=True)
        calibration = {key: {"rows": 3, "cols": 4, "dt": "d", "data": P.ravel().tolist()} for key, P in (("P1", P1), ("P2", P2))}
        (root / "Rectified_calibration" / f"{name}.json").write_text(json.dumps(calibration))
    return root


def area_mm2(mesh: Mesh) -> float:
    p, q, r = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return 0.5 * np.linalg.norm(np.cross(q - p, r - p), axis=1).sum()


# --- layout


@pytest.mark.parametrize("reference", ["Ground_truth_CT", "Reference_CT", "Reference_RGB"])
def test_both_spellings_of_the_reference(tmp_path, reference):
    sequence = open_sequence(write_servct(tmp_path / "Experiment_1", reference))
    assert sequence.camera == sequence.frame_camera(1) == Camera("PINHOLE", WIDTH, HEIGHT, (30.0, 31.0, 19.5, 15.25))
    depth = sequence.depth_gt(1)
    assert depth.depth_mm.max() == 64
    assert np.argwhere(~depth.valid).tolist() == [[0, 0], [0, 1]]  # zero, and blue; red still has a surface
    assert (sequence.trajectory_gt, sequence.mesh_gt, sequence.unit, sequence.is_unrelated) == (None, None, "mm", True)
    assert sequence.noise_floor_mm == 2.0
    assert sequence.notes[0] == f"the truth is {reference}"
    assert "unrelated" in sequence.notes[-1]


def test_the_root_has_all_experiments_in_order(tmp_path):
    write_servct(tmp_path / "Experiment_1")
    write_servct(tmp_path / "Experiment_2", "Reference_CT", first=3)
    sequence = open_sequence(tmp_path)
    assert [f.name for f in sequence.frames] == ["Experiment_1/001", "Experiment_1/002", "Experiment_2/003", "Experiment_2/004"]
    assert all(sequence.depth_gt(k).valid.mean() > 0.9 for k in range(4))


def test_a_reference_folder_chooses_that_reference(tmp_path):
    root = write_servct(tmp_path / "Experiment_2")
    shutil.copytree(root / "Ground_truth_CT", root / "Ground_truth_RGB")
    for k in (1, 2):
        save(root / "Ground_truth_RGB" / "DepthL" / f"00{k}.png", np.full((HEIGHT, WIDTH), 32 * 256, np.uint16))
    sequence = open_sequence(root)
    assert sequence.depth_gt(0).depth_mm.max() == 64
    assert "Ground_truth_RGB too" in sequence.notes[1]
    chosen = open_sequence(root / "Ground_truth_RGB")
    assert (chosen.dataset, [f.name for f in chosen.frames]) == ("servct", ["001", "002"])
    assert chosen.depth_gt(0).depth_mm.max() == 32
    assert chosen.notes[0] == "the truth is Ground_truth_RGB"


def test_folders_are_known_from_inside(tmp_path, monkeypatch):
    root = write_servct(tmp_path / "Experiment_1")
    monkeypatch.chdir(root)
    assert (open_sequence(".").name, [f.name for f in open_sequence(".").frames]) == ("Experiment_1", ["001", "002"])
    monkeypatch.chdir(root / "Ground_truth_CT")
    assert open_sequence(".").depth_gt(0) is not None


def test_files_that_are_not_16_bit_are_millimetres_as_they_are(tmp_path):
    root = write_servct(tmp_path / "Experiment_1")
    save(root / "Ground_truth_CT" / "DepthL" / "001.png", np.full((HEIGHT, WIDTH), 77, np.uint8))
    assert open_sequence(root).depth_gt(0).depth_mm.max() == 77


def test_occlusion_colours_in_a_palette(tmp_path):
    root = write_servct(tmp_path / "Experiment_1")
    file = root / "Ground_truth_CT" / "OcclusionL" / "001.png"
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[3, :5] = (0, 0, 255), (255, 255, 0), (255, 0, 0), (0, 255, 0), (0, 0, 254)
    Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(file)
    assert np.argwhere(~open_sequence(root).depth_gt(0).valid).tolist() == [[0, 0], [3, 0]]  # blue alone has no surface


def test_truth_of_one_frame_may_be_missing(tmp_path):
    root = write_servct(tmp_path / "Experiment_1")
    (root / "Ground_truth_CT" / "DepthL" / "001.png").unlink()
    (root / "Rectified_calibration" / "002.json").unlink()
    sequence = open_sequence(root)
    assert (sequence.depth_gt(0), sequence.frame_mesh_gt(0, False)) == (None, None)
    assert (sequence.frame_camera(1), sequence.frame_mesh_gt(1, False)) == (None, None)
    assert sequence.camera == sequence.frame_camera(0)
    assert sequence.depth_gt(1).valid.any()


@pytest.mark.parametrize(
    "text",
    ['{"P1": {"data": [1, 2]}}', "[]", "{", '{"P1": {"data": [0,0,1,0,0,1,1,0,0,0,1,0]}}', '{"P1": {"data": [1,0,1,0,0,1,1,0,0,0,2,0]}}'],
)
def test_damaged_calibration_is_named(tmp_path, text):
    write_servct(tmp_path / "Experiment_1")
    (tmp_path / "Experiment_1" / "Rectified_calibration" / "002.json").write_text(text)
    with pytest.raises(ReconError, match=r"002\.json"):
        open_sequence(tmp_path)


@pytest.mark.parametrize("kind", ["DepthL", "OcclusionL"])
def test_truth_of_another_size_is_named(tmp_path, kind):
    root = write_servct(tmp_path / "Experiment_1")
    array = np.ones((HEIGHT, WIDTH + 1) if kind == "DepthL" else (HEIGHT, WIDTH + 1, 3), np.uint16 if kind == "DepthL" else np.uint8)
    save(root / "Ground_truth_CT" / kind / "001.png", array)
    with pytest.raises(ReconError, match=rf"{kind}/001\.png is 41x32 but its frame is 40x32"):
        open_sequence(root).depth_gt(0)


def test_other_layouts_are_not_claimed(tmp_path):
    for write in (write_folder, write_c3vd, write_endonerf, write_jhu):
        assert not servct.matches(write(tmp_path / write.__name__))
    assert not servct.matches(tmp_path / "absent")
    assert not servct.matches(Path(__file__))


# --- surface


def test_every_pair_has_its_own_lens(tmp_path):
    sequence = open_sequence(write_stereo(tmp_path / "Experiment_1", shift_px=2.0))
    assert [sequence.frame_camera(k).params[2] for k in range(2)] == [59.5, 61.5]
    assert sequence.camera == sequence.frame_camera(0)
    assert "differ by up to 2.0 px" in sequence.notes[1]
    first, second = (sequence.frame_mesh_gt(k, False) for k in range(2))
    near = [mesh.vertices[mesh.vertices[:, 2] == NEAR_MM, 0] for mesh in (first, second)]
    assert np.allclose([x.min() for x in near], NEAR_X_MM[0], atol=NEAR_MM / 150)
    assert np.allclose([x.max() for x in near], NEAR_X_MM[1], atol=NEAR_MM / 150)


def test_the_left_surface_is_cut_at_the_post(tmp_path):
    mesh = open_sequence(write_stereo(tmp_path / "Experiment_1")).frame_mesh_gt(0, False)
    assert set(np.unique(mesh.vertices[:, 2])) == {NEAR_MM, FAR_MM}
    assert np.ptp(mesh.vertices[mesh.faces][:, :, 2], axis=1).max() == 0  # no face between post and wall
    assert mesh.unit == "mm"


def test_the_right_view_adds_what_the_left_one_cannot_see(tmp_path):
    """Hidden from the left: the wall behind the post that the right camera, 5 mm to the right, sees beside it, and the image's side.

    The shadow of the post on the wall ends at x = 2 * 4 for the left camera and at 2 * 4 - 5 for the right one; the images end at
    x = 59.5 / 150 * 80 and (119 - 63.5) / 150 * 80 + 5. All within a pixel's footprint of 80 / 150 mm, over the wall's height.
    """
    sequence = open_sequence(write_stereo(tmp_path / "Experiment_1"))
    left, both = sequence.frame_mesh_gt(0, False), sequence.frame_mesh_gt(0, True)
    assert np.array_equal(both.faces[: len(left.faces)], left.faces)
    assert np.array_equal(both.vertices[: len(left.vertices)], left.vertices)
    assert both.faces.max() == len(both.vertices) - 1
    added = Mesh(both.vertices, both.faces[len(left.faces) :])
    corners = both.vertices[added.faces]
    assert np.ptp(corners[:, :, 2], axis=1).max() == 0
    x_mm = corners[:, :, 0][corners[:, :, 2] == FAR_MM]
    pixel_mm = FAR_MM / 150
    shadow, side = x_mm[x_mm < 20], x_mm[x_mm > 20]
    assert np.allclose([shadow.min(), shadow.max()], [3.0, 8.0], atol=1.5 * pixel_mm)
    assert np.allclose([side.min(), side.max()], [59.5 * pixel_mm, 55.5 * pixel_mm + 5], atol=1.5 * pixel_mm)
    height_mm = 89 * pixel_mm
    expected = height_mm * (5 + 55.5 * pixel_mm + 5 - 59.5 * pixel_mm)
    assert abs(area_mm2(added) - expected) < 2 * 1.5 * pixel_mm * height_mm + 90 * NEAR_MM / 150


def test_both_views_need_the_right_one(tmp_path):
    root = write_stereo(tmp_path / "Experiment_1")
    (root / "Ground_truth_CT" / "DepthR" / "001.png").unlink()
    calibration = root / "Rectified_calibration" / "002.json"
    calibration.write_text(json.dumps({"P1": json.loads(calibration.read_text())["P1"]}))
    sequence = open_sequence(root)
    assert len(sequence.frame_mesh_gt(0, False).faces) > 0
    with pytest.raises(ReconError, match=r"DepthR/001\.png is missing"):
        sequence.frame_mesh_gt(0, True)
    with pytest.raises(ReconError, match=r"002\.json: expected P2"):
        sequence.frame_mesh_gt(1, True)


def test_a_view_without_any_depth_adds_nothing(tmp_path):
    root = write_stereo(tmp_path / "Experiment_1")
    for side in "RL":
        save(root / "Ground_truth_CT" / f"Depth{side}" / "001.png", np.zeros((90, 120), np.uint16))
        both = open_sequence(root).frame_mesh_gt(0, True)
        assert len(both.faces) == (len(open_sequence(root).frame_mesh_gt(0, False).faces) if side == "R" else 0)


# --- against the pairs beside the repository


@needs_shared
@pytest.mark.parametrize("index", [0, 4])
def test_shared_views_overlap_and_neither_sees_through_the_other(index):
    """The right view's depth at each left face's centre: equal or nearer, never behind it, or the face would be a curtain."""
    sequence = open_sequence(SHARED)
    camera = sequence.frame_camera(index)
    mesh = sequence.frame_mesh_gt(index, False)
    centers = mesh.vertices[mesh.faces].mean(axis=1)[::7] - (5.2, 0, 0)
    f, _, cx, cy = camera.params
    u, v = np.floor(f * centers[:, 0] / centers[:, 2] + cx).astype(int), np.floor(f * centers[:, 1] / centers[:, 2] + cy).astype(int)
    inside = (u >= 0) & (u < camera.width_px - 1) & (v >= 0) & (v < camera.height_px - 1)
    u, v, z = u[inside], v[inside], centers[inside, 2]
    folder = next(SHARED.glob(f"*/*_CT/DepthR/00{index + 1}.png"))
    depth_mm = np.array(Image.open(folder)) / 256.0
    around = np.stack([depth_mm[v + dv, u + du] for dv in (0, 1) for du in (0, 1)])
    known = around.min(axis=0) > 0
    assert np.median(np.abs(around.mean(axis=0) - z)[known]) < 0.05
    assert np.mean(around.min(axis=0)[known] - z[known] > 0.5) < 1e-4


def test_the_right_view_lies_the_baseline_beside_the_left_one(tmp_path):
    root = write_servct(tmp_path / "Experiment_1")
    file = root / "Rectified_calibration" / "001.json"
    P2 = [30.0, 0, 21.5, -150.0, 0, 31.0, 15.25, 0, 0, 0, 1, 0]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"P2": {"data": P2}}))
    view = servct.open_servct(root).second_view(0)
    assert view.camera.params == (30.0, 31.0, 21.5, 15.25) and np.allclose(view.T_second_first_mm[:3, 3], (-5, 0, 0))
    assert view.image().shape == (view.camera.height_px, view.camera.width_px, 3)
    (root / "Right_rectified" / "001.png").unlink()
    assert servct.open_servct(root).second_view(0) is None
