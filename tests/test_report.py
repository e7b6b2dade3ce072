"""The page is one self-contained file with escaped texts, and the frame list says what became of every frame."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trimesh

from recon.report import figures
from recon.report.page import PagePictures, Picture, grouped_metrics, grouped_reasons, number, ranges, render_page, status_strip
from recon.report.preview import MeshRenderer, Viewpoint, viewpoints
from recon.report.summary import frame_list, frame_numbers, partial_reasons
from recon.types import Mesh

NASTY = '<script src="http://x.test/a.js">"é&'


def entry(index, file="images/x.jpg", reason=None):
    return {"index": index, "name": f"{index}.png", "timestamp_s": index / 25, "file": file, "reason": reason}


def test_every_frame_gets_a_status_and_a_reason():
    source = [entry(i) for i in range(5)] + [entry(5, None, "cannot be decoded: cut short")]
    gate = [{"index": i, "status": "rejected" if i == 1 else "ok", "reason": "too dark" if i == 1 else None} for i in range(5)]
    poses = [
        {"index": 0, "status": "keyframe", "reason": None},
        {"index": 2, "status": "posed", "reason": None},
        {"index": 3, "status": "lost", "reason": "no overlap"},
    ]
    frames = frame_list(source, gate, poses)
    assert [f["status"] for f in frames] == ["keyframe", "rejected", "posed", "lost", "lost", "rejected"]
    assert frames[1]["reason"] == "too dark" and frames[4]["reason"] and "cut short" in frames[5]["reason"]
    assert frame_numbers(frames) == {"total": 6, "used": 4, "posed": 2, "rejected": 2, "lost": 2, "keyframes": 1}
    reasons = partial_reasons({"incomplete": "cut at 3.1 s", "frames": source}, frames)
    assert len(reasons) == 3
    assert "cut at 3.1 s" in reasons[0] and "1 frame cannot be decoded" in reasons[1] and "no overlap" in reasons[2]


def test_frames_rejected_by_the_gate_alone_make_no_partial_result():
    source = [entry(0), entry(1), entry(2, None, "left out by frames.stride = 2")]
    gate = [{"index": 0, "status": "ok", "reason": None}, {"index": 1, "status": "rejected", "reason": "blurred"}]
    frames = frame_list(source, gate, [{"index": 0, "status": "keyframe", "reason": None}])
    assert partial_reasons({"incomplete": None, "frames": source}, frames) == []


def test_strip_covers_the_recording_and_long_ones_show_the_worst():
    runs = status_strip(["posed"] * 3 + ["lost"] + ["keyframe"] * 4)
    assert [r[0] for r in runs] == ["posed", "lost", "keyframe"]
    assert runs[1][1:] == pytest.approx((37.5, 12.5)) and sum(r[2] for r in runs) == pytest.approx(100)
    long = ["posed"] * 100_000
    long[777] = "lost"
    runs = status_strip(long)
    assert len(runs) == 3 and sum(r[2] for r in runs) == pytest.approx(100)
    assert status_strip([]) == []


def test_reasons_are_grouped_and_frames_written_as_ranges():
    frames = [{"index": i, "status": "rejected" if i < 4 else "posed", "reason": "dark" if i != 1 else "blurred"} for i in range(6)]
    assert grouped_reasons(frames) == [("rejected", "dark", "0, 2\u20133", 3), ("rejected", "blurred", "1", 1)]
    assert ranges(list(range(0, 60, 2))).endswith("and 18 more")


def test_numbers_are_readable():
    assert [number(x) for x in (0.0, 0.01234, 1.23456, 123.456, 12345.6, 1e-9, -2.5)] == [
        "0.0000",
        "0.0123",
        "1.235",
        "123.5",
        "12\u2009346",
        "1e-09",
        "-2.500",
    ]


def test_metrics_are_one_row_each_with_a_column_per_alignment():
    base = {"group": "depth", "unit": "1", "lower_is_better": True}
    metrics = [{**base, "name": "abs_rel", "alignment": a, "value": v} for a, v in (("none", 0.5), ("scale_frame", 0.1))]
    metrics.append({**base, "name": "scale_drift", "alignment": "none", "value": 0.2})
    metrics.append({**base, "name": "abs_rel", "alignment": "scale_frame", "value": 0.3, "protocol": "servct-mono"})
    (group,) = grouped_metrics(metrics)
    assert group.name == "depth" and group.alignments == ["none", "scale_frame"]
    assert [(row["name"], row["values"]) for row in group.main] == [("abs_rel", {"none": "0.5", "scale_frame": "0.1"})]
    assert [(row["name"], row["protocol"], row["values"]) for row in group.others] == [
        ("scale_drift", None, {"none": "0.2"}),
        ("abs_rel", "servct-mono", {"scale_frame": "0.3"}),
    ]


@pytest.fixture
def page() -> str:
    picture = Picture(NASTY, figures.encode(np.zeros((4, 4, 3), np.uint8)))
    metric = {
        "group": "surface",
        "name": "accuracy_mean",
        "value": 1.5,
        "unit": "mm",
        "alignment": "sim3_trajectory",
        "lower_is_better": True,
    }
    report = {
        "unit": "mm",
        "scale": {"source": "given", "value": 2.0, "sigma": None},
        "frames": {"total": 2, "used": 1, "posed": 1, "rejected": 1, "lost": 0},
        "metrics": [metric],
        "inputs_used": {
            "gt_depth": False,
            "gt_pose": False,
            "gt_scale": False,
            "intrinsics": "estimated",
            "trained_on": ["phantom"],
            "trained_on_this_data": True,
            "adapted_on_this_recording": False,
        },
        "alignments": [
            {"alignment": "sim3_trajectory", "scale": 31.2, "rotation_deg": 4.5, "translation": 7.25, "unit": "mm", "condition": None}
        ],
        "evaluation_gt": {"depth": False, "trajectory": True, "mesh": True},
        "coverage": {
            "area_unit": "mm^2",
            "observed_area": 5000.0,
            "missed_area_estimate": 250.0,
            "coverage_estimate": 0.95238,
            "num_holes": 1,
            "largest_holes": [{"area": 250.0, "center": [1.0, -2.0, 30.0], "nearest_frame": 17}],
        },
        "field": None,
        "rigidity": {"judged_share": 0.9, "non_rigid_share": 0.123, "frames": [{"index": 7, "non_rigid_share": 0.31}]},
        "partial": [NASTY],
        "pieces": [{"trajectory": "trajectory_2.txt", "num_frames": 7, "first": 40, "last": 46}],
        "cuts": [40],
        "still": False,
        "seconds": {"frames": 1.0},
        "peak_rss_mb": 512.0,
        "versions": {"python": "3.11"},
        "config": {"frames": {"note": NASTY}},
    }
    frames = [
        {"index": 0, "name": NASTY, "timestamp_s": 0.0, "status": "keyframe", "reason": None},
        {"index": 1, "name": "b", "timestamp_s": 0.1, "status": "rejected", "reason": NASTY},
    ]
    pictures = PagePictures(
        [picture], [picture], [picture], [picture], [picture], picture, (["#000000", "#ffffff"], "1 mm", "2 mm"), ["#000000"]
    )
    return render_page(NASTY, report, frames, [NASTY], pictures)


def test_the_page_loads_nothing_from_elsewhere(page):
    for attribute in re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']([^"']*)""", page):
        assert attribute.startswith("data:image/"), attribute
    assert "@import" not in page and "url(" not in page and "<script" not in page and "<link" not in page


def test_texts_from_outside_are_escaped(page):
    assert "&lt;script" in page
    assert NASTY not in page


def test_the_page_says_what_a_reader_must_know(page):
    assert (
        "1.5</td>" in page
        and "31.2" in page
        and "phantom" in page
        and "sim3_trajectory" in page
        and "millimetres" in page
        and "estimated" in page
        and "partial" in page
        and "frames 40 to 46" in page
        and "before frame 40" in page
    )
    assert "95.2 %</b> is there" in page and "250.0 mm²" in page and "<td>17</td>" in page
    assert "12.3 %</b> of the view did not obey rigidity" in page and "7 (31%)" in page


def cube() -> Mesh:
    body = trimesh.creation.box((2, 2, 2)).subdivide()
    return Mesh(np.array(body.vertices), np.array(body.faces, np.int64), np.full((len(body.vertices), 3), 200, np.uint8))


def radial(mesh: Mesh) -> np.ndarray:
    return mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)


def test_preview_shows_the_front_lit_and_the_back_as_a_veil():
    mesh = cube()
    view = Viewpoint("front", np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -5], [0, 0, 0, 1.0]]), float(np.deg2rad(50)))
    front = MeshRenderer(mesh, radial(mesh)).render(mesh.colors, view, 60, 50)
    assert front.shape == (50, 60, 3)
    assert np.all(np.abs(front[25, 30].astype(int) - 200) < 6)
    assert np.all(front[0, 0] > 235)
    turned = Mesh(mesh.vertices, mesh.faces[:, ::-1], mesh.colors)
    inside = MeshRenderer(turned, -radial(mesh)).render(mesh.colors, view, 60, 50)
    assert 0 < 200 - inside[25, 30].mean() < 60


def test_viewpoints_see_the_mesh():
    mesh = cube()
    T = np.tile(np.eye(4), (5, 1, 1))
    T[:, 2, 3] = -6
    for view in viewpoints(mesh, T):
        picture = MeshRenderer(mesh, radial(mesh)).render(mesh.colors, view, 40, 40)
        assert np.linalg.det(view.T_world_camera[:3, :3]) == pytest.approx(1)
        assert np.std(picture) > 5, view.name


def test_colours_grey_what_is_unknown():
    rgb = figures.colorize(np.array([[1.0, 2.0]]), 1.0, 2.0, "viridis", np.array([[True, False]]))
    assert rgb[0, 1].tolist() == [205, 205, 205] and rgb[0, 0].tolist() != [205, 205, 205]


def test_figures_are_png():
    centers = np.cumsum(np.ones((4, 3)), axis=0)
    drawn = [
        figures.trajectory_figure(centers, np.array([True, False, True, False]), "mm", centers + 1),
        figures.times_figure({"frames": 1.0, "depth": 20.0}),
        figures.panels_figure([("a", np.zeros((4, 5, 3), np.uint8)), ("b", np.full((4, 5), np.nan))], "inferno", 0.0, 0.3, "error"),
    ]
    assert all(data.startswith(b"\x89PNG") for data in drawn)


def test_masked_pixels_are_dimmed_and_thumbnails_keep_the_aspect():
    image = np.full((20, 40, 3), 200, np.uint8)
    mask = np.zeros((20, 40), bool)
    mask[:, :20] = True
    shown = figures.masked(image, mask)
    assert np.all(shown[:, :20] == 200) and shown[:, 20:].mean() < 130
    assert figures.thumbnail(image, 10).shape == (5, 10, 3)
