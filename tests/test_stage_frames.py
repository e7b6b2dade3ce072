"""The frames stage: every source frame is accounted for, sizes and times are as promised, and a killed run continues."""

import json
import logging

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, picture, save, write_folder
from video_files import tile_number, write_video

from recon.io.atomic import write_json
from recon.io.images import read_image
from recon.pipeline.config import build_config
from recon.types import ReconError
from stages import frames
from stages.frames import Config

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def run(tmp_path):
    """Run the stage on a source into `tmp_path/out` and return frames.json."""

    def run_stage(source, config=None, **spec):
        write_json(tmp_path / "spec" / "source.json", {"path": str(source), "dataset": None, "camera_file": None, "masks_dir": None} | spec)
        (tmp_path / "out").mkdir(exist_ok=True)
        frames.run({"source": tmp_path / "spec"}, tmp_path / "out", config or Config())
        return json.loads((tmp_path / "out" / "frames.json").read_text())

    return run_stage


def test_small_images_keep_their_size_and_all_is_told(run, tmp_path):
    report = run(write_folder(tmp_path / "rec"))
    assert (report["name"], report["dataset"], report["incomplete"], report["notes"]) == ("rec", "folder", None, [])
    assert (report["source_width_px"], report["source_height_px"], report["width_px"], report["height_px"]) == (WIDTH, HEIGHT) * 2
    entry = {"index": 1, "name": "9.png", "timestamp_s": 0.04, "file": "images/000001.jpg", "reason": None}
    assert report["frames"][1] == entry
    assert np.abs(read_image(tmp_path / "out" / entry["file"]).astype(int) - picture(1)).mean() < 12  # noise is the worst case of JPEG


def test_large_images_are_averaged_down(run, tmp_path):
    for k in range(2):
        image = np.zeros((60, 120, 3), np.uint8)
        image[:, ::2] = 200  # every second column: area averaging gives grey, plain subsampling gives stripes
        save(tmp_path / "rec" / f"{k}.png", image)
    report = run(tmp_path / "rec", Config(max_side_px=60))
    assert (report["width_px"], report["height_px"]) == (60, 30)
    assert np.abs(read_image(tmp_path / "out" / "images/000000.jpg").astype(int) - 100).max() < 4


@pytest.mark.parametrize(
    ("size", "expected"), [((1350, 1080), (960, 768)), ((1080, 1920), (540, 960)), ((960, 10), (960, 10)), ((5000, 1), (960, 1))]
)
def test_working_size(size, expected):
    assert frames.working_size(*size, 960) == expected


def test_frames_left_out_by_the_config_say_so(run, tmp_path):
    report = run(write_folder(tmp_path / "rec", 8), Config(stride=2, start_s=1.0, end_s=2.6, frame_rate_hz=2.0))
    assert [f["timestamp_s"] for f in report["frames"]] == [k / 2 for k in range(8)]
    assert [f["index"] for f in report["frames"] if f["file"]] == [2, 4]
    assert report["frames"][1]["reason"] == "left out by frames.stride = 2"
    assert "start_s" in report["frames"][0]["reason"]


def test_a_killed_run_continues_without_doing_work_twice(run, tmp_path):
    source = write_folder(tmp_path / "rec")
    first = run(source)
    kept = tmp_path / "out" / "images" / "000000.jpg"
    kept.write_bytes(b"left by the killed run")
    (tmp_path / "out" / "images" / "000002.jpg").unlink()
    (tmp_path / "out" / "images" / ".part-000002.jpg").write_bytes(b"half")
    (tmp_path / "out" / "frames.json").unlink()
    assert run(source) == first
    assert kept.read_bytes() == b"left by the killed run"
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == [f"{k:06d}.jpg" for k in range(4)]


def test_undecodable_frames_are_rejected_with_the_reason_and_the_rest_goes_on(run, tmp_path, caplog):
    source = write_folder(tmp_path / "rec", 5)
    (source / "9.png").write_bytes((source / "9.png").read_bytes()[:200])
    (source / "10.png").write_text("no image")
    with caplog.at_level(logging.WARNING):
        report = run(source)
    assert [f["index"] for f in report["frames"] if f["file"]] == [0, 3, 4]
    assert all(f["reason"].startswith("cannot be decoded: ") for f in report["frames"][1:3])
    assert str(tmp_path) not in json.dumps(report)
    assert len(caplog.records) == 2


def test_notes_are_kept_and_logged(run, tmp_path, caplog):
    source = write_folder(tmp_path / "rec")
    save(source / "8.png", picture(0)[:, :, 0])
    with caplog.at_level(logging.WARNING):
        report = run(source)
    assert report["notes"] == ["grey expanded to RGB in 1 of 4 images, the first is 8.png"]
    assert "grey expanded" in caplog.text


def test_a_video_keeps_its_own_times(run, tmp_path):
    write_video(tmp_path / "v.mkv", 6, [0, 40, 100, 1000, 1040, 2000])
    report = run(tmp_path / "v.mkv", Config(frame_rate_hz=1.0))
    assert [f["timestamp_s"] for f in report["frames"]] == [0, 0.04, 0.1, 1, 1.04, 2]
    assert [tile_number(read_image(tmp_path / "out" / f["file"])) for f in report["frames"]] == list(range(6))


def test_a_truncated_video_is_incomplete_not_an_error(run, tmp_path):
    write_video(tmp_path / "v.mp4", 60, container_options={"movflags": "faststart"}, options={"qp": "2"})
    content = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(content[: int(len(content) * 0.7)])
    report = run(tmp_path / "v.mp4")
    assert "announces 60 frames but only" in report["incomplete"]
    assert sum(f["file"] is not None for f in report["frames"]) > 20


def test_fewer_than_two_usable_frames_is_bad_input(run, tmp_path):
    source = write_folder(tmp_path / "rec", 3)
    for name in ("8.png", "9.png"):
        (source / name).write_bytes((source / name).read_bytes()[:100])
    with pytest.raises(ReconError, match="rec has 1 usable frame, 2 are needed; cannot be decoded") as caught:
        run(source)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out" / "frames.json").exists()


def test_an_end_before_the_start_is_refused():
    with pytest.raises(ReconError, match=r"\[frames\] end_s must be 0 or after start_s, found 1 and 2"):
        build_config(Config, {"start_s": 2.0, "end_s": 1.0}, "[frames]")
