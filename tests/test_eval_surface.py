"""Surface figures against hand-computed cases, analytic bodies and independent oracles (trimesh, scipy, scikit-image)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from bodies import box, joined, mesh_of, sphere, square, tube
from scipy.spatial import cKDTree
from skimage.measure import euler_number, marching_cubes, mesh_surface_area

from recon.eval.distances import FacingSurface, Surface, double_areas, face_normals, part, sample_surface
from recon.eval.surface import SurfaceOptions, score_surface
from recon.eval.surface_errors import curve, f_score
from recon.eval.topology import topology
from recon.types import Mesh, ReconError

QUICK = SurfaceOptions(num_samples=20_000, alignments=("none",))
EMPTY = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), unit="mm")
FLAT = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), unit="mm")


def value(metrics, name, alignment=None) -> float:
    found = [m.value for m in metrics if m.name == name and alignment in (None, m.alignment)]
    assert len(found) == 1, f"{name} {alignment}: {found}"
    return found[0]


def score(pred, gt, options=QUICK, **more):
    return score_surface(pred, gt, poses=None, is_metric=True, options=options, **more)


def test_samples_are_uniform_over_area_and_seeded():
    mesh = square()
    samples = sample_surface(mesh, 20_000, 3)
    again = sample_surface(mesh, 20_000, 3)
    assert np.array_equal(samples.points, again.points)
    assert np.histogram2d(samples.points[:, 0], samples.points[:, 1], bins=4)[0].min() > 0.9 * 20_000 / 16
    assert np.array_equal(samples.normals, np.tile([0.0, 0.0, 1.0], (20_000, 1)))
    uneven = joined(square(), square(30.0, z=5.0))
    assert np.mean(sample_surface(uneven, 20_000, 0).points[:, 2] > 2.5) == pytest.approx(0.9, abs=0.01)
    with_line = replace(mesh, faces=np.concatenate([mesh.faces, [[0, 1, 1]]]))
    assert np.isfinite(sample_surface(with_line, 1000, 0).points).all()


def test_distances_and_nearest_points_agree_with_trimesh_far_from_the_origin():
    body = trimesh.creation.icosphere(2, 10.0)
    offset = np.array([3000.0, -2000.0, 5000.0])
    surface = Surface(replace(mesh_of(body), vertices=np.array(body.vertices) + offset))
    points = np.random.default_rng(0).normal(0, 12, (200, 3))
    nearest, oracle, _ = trimesh.proximity.closest_point(body, points)
    assert surface.distances(points + offset) == pytest.approx(oracle, abs=2e-3)
    found = Surface(mesh_of(body)).closest(points)
    assert found.distances == pytest.approx(oracle, abs=1e-5) and found.points == pytest.approx(nearest, abs=1e-5)
    assert np.abs(found.normals - face_normals(mesh_of(body))[found.face_idx]).max() < 1e-5
    corner = body.vertices[body.faces[found.face_idx, 0]]
    assert np.abs(np.sum((found.points - corner) * found.normals, axis=1)).max() < 1e-5  # the point lies on the face that is named


def test_distances_agree_with_dense_samples_and_with_the_analytic_sphere():
    mesh = sphere(10.0, 4)
    points = np.random.default_rng(1).normal(0, 12, (500, 3))
    found = Surface(mesh).distances(points)
    dense, _ = cKDTree(sample_surface(mesh, 400_000, 0).points).query(points)
    assert (found <= dense + 1e-5).all() and np.abs(found - dense).max() < 0.1
    assert np.abs(found - np.abs(np.linalg.norm(points, axis=1) - 10)).max() < 0.02  # facets lie up to 0.016 inside


def test_one_stray_vertex_costs_the_others_no_digits():
    mesh = sphere()
    far = joined(mesh, replace(square(), vertices=square().vertices + 1e8))
    outside = 1.1 * mesh.vertices
    assert Surface(far).distances(outside) == pytest.approx(Surface(mesh).distances(outside), abs=1e-5)


def test_faces_without_area_are_ignored_and_damaged_meshes_refused():
    mesh = replace(square(), faces=np.array([[0, 1, 1], [0, 1, 2], [0, 2, 3], [2, 2, 2]]))
    found = Surface(mesh).closest(np.array([[8.0, 2.0, 3.0], [2.0, 8.0, -4.0]]))
    assert found.face_idx.tolist() == [1, 2] and found.distances == pytest.approx([3, 4])
    for broken, words in (
        (replace(mesh, faces=np.array([[0, 1, 9]])), "names vertex 9 of 4"),
        (replace(mesh, vertices=np.full((4, 3), np.nan)), "area"),
        (FLAT, "area"),
        (EMPTY, "area"),
    ):
        with pytest.raises(ReconError, match=words):
            Surface(broken)
    with_nan = replace(mesh, vertices=np.concatenate([mesh.vertices, [[np.nan] * 3]]), faces=np.array([[0, 1, 2], [0, 1, 4]]))
    assert Surface(with_nan).distances(np.array([[5.0, 2.0, 1.0]])) == pytest.approx([1])


def test_two_parallel_squares_by_hand():
    found = score(square(z=1.5), square(), median_depth=30.0, noise_floor=0.3)
    for name in ("mean", "median", "rmse", "p90", "p95", "max"):
        assert value(found.metrics, f"accuracy_{name}") == pytest.approx(1.5, abs=1e-5)
        assert value(found.metrics, f"completeness_{name}") == pytest.approx(1.5, abs=1e-5)
    for name in ("chamfer_l1", "hd95", "hausdorff", "signed_bias", "chamfer_penalised", "accuracy_normal_compatible"):
        assert value(found.metrics, name) == pytest.approx(1.5, abs=1e-5)
    assert value(found.metrics, "chamfer_l2") == pytest.approx(2 * 1.5**2, abs=1e-4)
    assert value(found.metrics, "f_1mm") == 0 and value(found.metrics, "f_2mm") == 1 and value(found.metrics, "coverage") == 1
    assert value(found.metrics, "normal_consistency") == pytest.approx(1) == value(found.metrics, "normal_consistency_signed")
    assert value(found.metrics, "accuracy_mean_percent_of_depth") == pytest.approx(5, abs=1e-4)
    floors = {m.name: m.noise_floor for m in found.metrics}
    assert floors["accuracy_mean"] == 0.3 == floors["chamfer_penalised"] and floors["f_2mm"] is None and floors["chamfer_l2"] is None
    assert {m.unit for m in found.metrics if m.name == "chamfer_l2"} == {"mm^2"}
    assert not any(m.lower_is_better for m in found.metrics if m.name.startswith(("f_", "precision", "recall", "coverage", "normal_")))
    counts = {"components", "boundary_loops", "boundary_length", "euler", "genus"}
    assert {m.name for m in found.metrics if m.lower_is_better is None} == {"signed_bias", *counts}
    below = score(replace(square(z=-1.5), faces=square().faces[:, ::-1]), square())
    assert value(below.metrics, "signed_bias") == pytest.approx(-1.5, abs=1e-5)
    assert value(below.metrics, "normal_consistency_signed") == pytest.approx(-1)
    assert value(below.metrics, "normal_consistency") == pytest.approx(1)


def test_the_sign_of_the_bias_follows_the_cameras_and_else_the_winding():
    above = np.tile(np.eye(4), (2, 1, 1))
    above[:, :3, 3] = [[5, 5, 40], [2, 8, 30]]
    for faces in (square().faces, square().faces[:, ::-1]):
        gt = replace(square(), faces=faces)
        found = score(square(z=1.5), gt, gt_path=above)
        assert value(found.metrics, "signed_bias") == pytest.approx(1.5, abs=1e-5) and not any("wound" in note for note in found.notes)
        seen_by = score_surface(square(z=1.5), gt, poses=(above, above), is_metric=True, options=QUICK)
        some = score_surface(square(z=1.5), gt, poses=(above[:1], above[:1]), is_metric=True, gt_path=above, options=QUICK)
        assert value(some.metrics, "signed_bias", "none") == value(seen_by.metrics, "signed_bias", "none")
        assert value(seen_by.metrics, "signed_bias", "none") == pytest.approx(1.5, abs=1e-5)
    by_winding = score(square(z=1.5), gt)
    assert value(by_winding.metrics, "signed_bias") == pytest.approx(-1.5, abs=1e-5)
    assert sum("wound" in note for note in by_winding.notes) == 1
    # From inside a tube a narrower one is in front, whichever way the truth is wound.
    path = np.tile(np.eye(4), (9, 1, 1))
    path[:, 2, 3] = np.linspace(-40, 40, 9)
    for order in (slice(None), slice(None, None, -1)):
        gt = replace(tube(10.0, 100.0), faces=tube(10.0, 100.0).faces[:, order])
        assert value(score(tube(9.0, 100.0), gt, gt_path=path).metrics, "signed_bias") == pytest.approx(1, abs=0.05)


def test_tilted_squares_have_the_cosine_and_the_mean_of_a_wedge():
    a = np.radians(30)
    tilted = replace(square(), vertices=square().vertices @ np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]).T)
    found = score(tilted, square(30.0))
    assert value(found.metrics, "accuracy_mean") == pytest.approx(10 * np.sin(a) / 2, rel=0.01)
    assert value(found.metrics, "accuracy_max") == pytest.approx(10 * np.sin(a), rel=0.01)
    assert value(found.metrics, "normal_consistency") == pytest.approx(np.cos(a), abs=1e-4)


def test_the_truth_against_itself_is_zero_and_against_a_larger_sphere_the_gap():
    for mesh in (sphere(), tube(folds=2.0), box()):
        found = score(mesh, mesh)
        for name in ("accuracy_max", "completeness_max", "hausdorff", "hd95", "chamfer_l1", "chamfer_penalised"):
            assert value(found.metrics, name) < 1e-4
        assert value(found.metrics, "f_0.5mm") == 1 and abs(value(found.metrics, "signed_bias")) < 1e-4
    found = score(sphere(12.0), sphere(10.0))
    assert value(found.metrics, "accuracy_mean") == pytest.approx(2, abs=0.02) == value(found.metrics, "completeness_mean")
    assert value(found.metrics, "signed_bias") == pytest.approx(2, abs=0.02)


def test_half_a_reconstruction_keeps_its_accuracy_and_loses_completeness():
    half = square()
    half.vertices[:, 0] *= 0.5
    found = score(half, square())
    assert value(found.metrics, "accuracy_mean") == pytest.approx(0, abs=1e-5)
    assert value(found.metrics, "completeness_mean") == pytest.approx(1.25, rel=0.02)
    assert value(found.metrics, "recall_2mm") == pytest.approx(0.7, abs=0.01)
    assert value(found.metrics, "f_2mm") == pytest.approx(2 * 0.7 / 1.7, abs=0.01)
    assert value(found.metrics, "chamfer_penalised") == pytest.approx((0.5 * 10 + 1.25) / 2, rel=0.02)


def test_means_agree_with_trimesh_on_the_same_samples():
    pred, gt = box(), sphere(14.0, 3)
    found = score(pred, gt)
    body = trimesh.Trimesh(gt.vertices, gt.faces, process=False)
    _, oracle, _ = trimesh.proximity.closest_point(
        body, trimesh.sample.sample_surface(trimesh.Trimesh(pred.vertices, pred.faces), 3000, seed=1)[0]
    )
    assert value(found.metrics, "accuracy_mean") == pytest.approx(oracle.mean(), rel=0.03)
    assert value(found.metrics, "accuracy_p95") == pytest.approx(np.percentile(oracle, 95), rel=0.03)


def test_the_far_side_of_a_fold_is_no_match_for_a_surface_that_faces_the_other_way():
    back = replace(square(z=-1.0), faces=square().faces[:, ::-1])
    fold = joined(square(z=0.0), back)
    astray = square(z=-1.0)  # looks up, but lies on the fold's lower skin
    found = score(joined(fold, astray), fold)
    assert value(found.metrics, "accuracy_mean") == pytest.approx(0, abs=1e-5)
    assert value(found.metrics, "accuracy_normal_compatible") == pytest.approx(1 / 3, rel=0.03)
    inside_out = replace(fold, faces=fold.faces[:, ::-1])
    assert value(score(inside_out, fold).metrics, "accuracy_normal_compatible") == pytest.approx(0, abs=1e-5)
    double = joined(square(z=1.0), back, square(z=2.0))
    found = score(double, square())
    assert value(found.metrics, "accuracy_normal_compatible") == pytest.approx(1.5, abs=0.02) and any(
        "looks a way" in note for note in found.notes
    )


def test_facing_distances_agree_with_brute_force():
    mesh = sphere(10.0, 3)
    surface, rng = Surface(mesh), np.random.default_rng(0)
    points, normals = rng.normal(0, 8, (60, 3)), rng.normal(size=(60, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    found = FacingSurface(surface).distances(points, normals, surface.closest(points))
    centres, of_face = mesh.vertices[mesh.faces].mean(axis=1), face_normals(mesh)
    limits = []
    for angle in (90 - 33, 90 + 33):  # the direction is rounded
        compatible = normals @ of_face.T > np.cos(np.radians(angle))
        apart = np.linalg.norm(points[:, None] - centres, axis=2)
        limits.append(np.where(compatible, apart, np.inf).min(axis=1))
    assert (found <= limits[0] + 1e-5).all() and (found >= limits[1] - 1.2).all()


def test_curves_and_f_by_hand():
    found = curve(np.array([0.5, 1.5]), np.array([0.1, 0.2, 2.0, 9.0]), np.array([0.0, 0.5, 1.0, 2.0, 10.0]))
    assert found.precision.tolist() == [0, 0, 0.5, 1, 1] and found.recall.tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert found.f == pytest.approx([0, 0, 0.5, 2 / 3, 1])
    assert f_score(0.0, 0.0) == 0
    drawn = score(square(z=1.5), square()).curves["none"]
    assert drawn.thresholds[[0, -1]].tolist() == [0, 10] and np.array_equal(drawn.f > 0.5, drawn.thresholds > 1.5 + 1e-5)


def test_thresholds_in_mm_exist_only_in_mm():
    found = score(square(unit="unitless"), square(unit="unitless"))
    assert not any("mm" in m.name or "mm" in m.unit or m.name in ("coverage", "chamfer_penalised") for m in found.metrics)
    assert found.curves == {}


@pytest.mark.parametrize("pred", [EMPTY, FLAT])
def test_an_empty_reconstruction_covers_nothing_and_costs_the_cap(pred):
    found = score(pred, square())
    assert value(found.metrics, "coverage") == 0 == value(found.metrics, "f_2mm") == value(found.metrics, "recall_5mm")
    assert value(found.metrics, "chamfer_penalised") == 10
    assert not any(m.name.startswith(("accuracy", "completeness", "precision")) for m in found.metrics)
    assert "not computable" in found.notes[0] and found.rungs == []


@pytest.mark.parametrize("gt", [EMPTY, FLAT])
def test_an_empty_truth_gives_a_note(gt):
    found = score(square(), gt)
    assert found.metrics == [] and "not computable" in found.notes[0]


def test_invented_surface_counts_as_wrong_and_an_outlier_costs_what_it_costs():
    found = score(joined(square(), square(z=100.0)), square())
    assert value(found.metrics, "accuracy_mean") == pytest.approx(50, rel=0.02)
    assert value(found.metrics, "completeness_mean") == pytest.approx(0, abs=1e-5)
    assert value(found.metrics, "chamfer_penalised") == pytest.approx(2.5, rel=0.02)
    assert value(found.metrics, "components") == 2


def test_topology_of_known_bodies():
    ball = topology(sphere())
    assert (ball.components, ball.boundary_loops, ball.boundary_length, ball.euler, ball.genus) == (1, 0, 0.0, 2, 0)
    ring = topology(mesh_of(trimesh.creation.torus(10, 3)))
    assert (ring.euler, ring.genus) == (0, 1)
    pipe = topology(tube(10.0, 100.0))
    assert (pipe.components, pipe.boundary_loops, pipe.euler, pipe.genus) == (1, 2, 0, 0)
    assert pipe.boundary_length == pytest.approx(2 * 2 * np.pi * 10, rel=1e-3)
    sheet = topology(square())
    assert (sheet.boundary_loops, sheet.euler, sheet.genus) == (1, 1, 0) and sheet.boundary_length == pytest.approx(40)
    apart = joined(sphere(5.0), tube(30.0), mesh_of(trimesh.creation.torus(10, 3)))
    assert topology(apart).genus == 1 and topology(apart).components == 3
    assert topology(EMPTY).components == 0


def test_topology_sees_what_is_not_a_surface():
    page = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1.0]])
    book = topology(Mesh(page, np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]])))
    assert book.non_manifold_edges == 1 and book.genus is None and book.non_manifold_vertices == 0
    cones = topology(Mesh(np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 0, -1], [0, 1, -1.0]]), np.array([[0, 1, 2], [0, 3, 4]])))
    assert cones.non_manifold_vertices == 1 and cones.components == 1 and cones.genus is None and cones.non_manifold_edges == 0
    flipped = square()
    flipped.faces[1] = flipped.faces[1, ::-1]
    assert topology(flipped).genus is None
    soup = square()
    soup = Mesh(soup.vertices[soup.faces].reshape(-1, 3), np.arange(6).reshape(2, 3))  # as STL stores it
    assert topology(soup) == topology(square())


def test_topology_and_area_agree_with_trimesh_and_scikit_image():
    rng = np.random.default_rng(0)
    body = mesh_of(trimesh.creation.icosphere(3, 10.0))
    holed = part(body, rng.random(len(body.faces)) > 0.1)
    oracle, found = trimesh.Trimesh(holed.vertices, holed.faces, process=False), topology(holed)
    lonely = trimesh.grouping.group_rows(oracle.edges_sorted, require_count=1)
    ends = oracle.vertices[oracle.edges_sorted[lonely]]
    assert found.boundary_length == pytest.approx(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum())
    assert found.euler == oracle.euler_number
    assert found.components == len(trimesh.graph.connected_components(oracle.edges, nodes=np.unique(oracle.faces)))
    z, y, x = np.mgrid[-12:13, -12:13, -12:13].astype(float)
    torus = 3.0 - np.hypot(np.hypot(x, y) - 7.0, z)
    vertices, faces, _, _ = marching_cubes(torus, 0.0)
    mesh = Mesh(vertices.astype(np.float64), faces.astype(np.int64))
    assert topology(mesh).genus == 1 and topology(mesh).euler == 2 * euler_number(torus > 0, connectivity=1)
    assert double_areas(mesh).sum() / 2 == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-6)


def test_topology_metrics_are_in_the_predictions_own_unit():
    found = score_surface(square(unit="unitless"), square(), poses=None, is_metric=False, options=QUICK)
    length = next(m for m in found.metrics if m.name == "boundary_length")
    assert length.value == pytest.approx(40) and length.unit == "unitless"
