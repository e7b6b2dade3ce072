"""Videos: what is written is what is read back, whole or not at all; and input, render and depth side by side."""

import av
import numpy as np
import pytest

from recon.data.video import open_recording
from recon.io.video_writer import write_mp4
from recon.report.comparison_video import CAPTION_PX, GAP_PX, ComparedFrame, comparison_picture, depth_range, write_comparison_video
from recon.report.figures import DEPTH_COLORS, colorize
from recon.types import ReconError


def flat(color, height=48, width=64):
    return np.full((height, width, 3), color, np.uint8)


COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 230, 230), (10, 10, 10)]


def test_frames_come_back_in_their_colours_at_their_times(tmp_path):
    assert write_mp4(tmp_path / "a.mp4", (flat(color) for color in COLORS), 12.5) == 5
    recording = open_recording(tmp_path / "a.mp4")
    assert len(recording.frames) == 5 and recording.incomplete is None
    np.testing.assert_allclose([frame.timestamp_s for frame in recording.frames], 0.08 * np.arange(5), atol=1e-4)
    for frame, color in zip(recording.frames, COLORS, strict=True):
        with av.open(str(tmp_path / "a.mp4")) as container:
            decoded = list(container.decode(video=0))[frame.index].reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
        assert np.abs(decoded.astype(int) - color).max() <= 6


def test_the_file_is_what_browsers_play(tmp_path):
    write_mp4(tmp_path / "a.mp4", [flat(COLORS[0])] * 3, 30.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 30)
        assert stream.codec_context.colorspace == 1
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "playing can start before all is loaded"


def test_odd_sides_grow_by_one(tmp_path):
    write_mp4(tmp_path / "a.mp4", [flat(COLORS[0], 47, 63)] * 2, 10.0)
    recording = open_recording(tmp_path / "a.mp4")
    assert (recording.width_px, recording.height_px) == (64, 48)


def test_bad_pictures_leave_no_file(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ReconError, match="no picture"):
        write_mp4(path, [], 10.0)
    with pytest.raises(ReconError, match="picture 2 is 32x48 in a video of 64x48"):
        write_mp4(path, [flat(COLORS[0]), flat(COLORS[0], 48, 32)], 10.0)
    with pytest.raises(ReconError, match="positive number, found 0"):
        write_mp4(path, [flat(COLORS[0])], 0.0)
    assert list(tmp_path.iterdir()) == []


def compared(value=0.5, depth_mm=70.0):
    depth = np.full((48, 64), depth_mm)
    depth[:10] = 0
    mask = np.ones((48, 64), bool)
    mask[:, 40:] = False
    return ComparedFrame(flat((180, 90, 80)), np.full((48, 64, 3), value), depth, mask, "frame 3")


def test_panels_stand_side_by_side():
    picture = comparison_picture(compared(value=1.7), (60.0, 80.0), "mm")
    assert picture.shape == (48 + CAPTION_PX, 3 * 64 + 2 * GAP_PX, 3)
    np.testing.assert_array_equal(picture[5, 5], (180, 90, 80))
    assert picture[5, 50].astype(int).sum() < 350, "what the mask leaves out is dimmed"
    np.testing.assert_array_equal(picture[20, 64 + GAP_PX + 20], (255, 255, 255))
    depth_left = 2 * (64 + GAP_PX)
    np.testing.assert_array_equal(picture[20, depth_left + 20], colorize(np.array([70.0]), 60.0, 80.0, DEPTH_COLORS)[0])
    np.testing.assert_array_equal(picture[5, depth_left + 20], (205, 205, 205))
    assert (picture[48:] < 128).any(), "there are captions"


def test_the_colours_of_depth_hold_for_all_frames():
    near, far = np.zeros((4, 50)), np.zeros((4, 50))
    near[:2], far[2:] = np.linspace(10, 20, 50), np.linspace(30, 40, 50)
    low, high = depth_range(iter([near, far, np.zeros((4, 50))]))
    assert 10 < low < 11 and 39 < high < 40
    with pytest.raises(ReconError, match="no frame has a known depth"):
        depth_range([np.zeros((2, 2))])


def test_a_comparison_becomes_a_video(tmp_path):
    assert write_comparison_video(tmp_path / "a.mp4", (compared(0.1 * k) for k in range(4)), (60.0, 80.0), "mm", 10.0) == 4
    assert len(open_recording(tmp_path / "a.mp4").frames) == 4
