"""Videos: the right picture at the right time, in any order, from whole and from damaged files."""

import random
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from layouts import save
from video_files import HEIGHT, WIDTH, tile_image, tile_number, write_video

from recon.data import open_sequence
from recon.data.video import unique_timestamps
from recon.types import FrameError, ReconError

pytestmark = pytest.mark.filterwarnings("error")


def numbers(sequence, order=None):
    return [tile_number(sequence.frames[k].image()) for k in (order or range(len(sequence.frames)))]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mjpeg"), ("a.mpg", "mpeg2video")],
)
def test_every_frame_forwards_backwards_and_at_random(tmp_path, name, codec):
    write_video(tmp_path / name, codec=codec)
    sequence = open_sequence(tmp_path / name)
    assert sequence.dataset == "video"
    assert sequence.incomplete is None
    assert numbers(sequence) == list(range(40))
    shuffled = random.Random(3).sample(range(40), 40)
    assert numbers(sequence, shuffled) == shuffled
    assert numbers(sequence, [39, 0, 38, 1]) == [39, 0, 38, 1]
    times = np.array([f.timestamp_s for f in sequence.frames])
    assert np.allclose(times, np.arange(40) / 25, atol=1e-4)


@pytest.mark.parametrize("name", ["a.avi", "a.h264"])
def test_frames_without_times_are_counted(tmp_path, name):
    write_video(tmp_path / name)  # H.264 with reordered frames, in containers that cannot say when to show them
    sequence = open_sequence(tmp_path / name)
    assert sequence.notes == ("the video stores no times: its frames are counted at 25 Hz",)
    assert numbers(sequence) == list(range(40))
    assert numbers(sequence, [30, 7, 8, 39]) == [30, 7, 8, 39]


def test_colours_are_rgb(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    image = open_sequence(tmp_path / "a.mp4").frames[2].image()
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - tile_image(2)).mean() < 8
    assert image[32, 2, 0] > 200 > 60 > image[32, 2, 2]


def test_variable_frame_rate_keeps_its_own_times(tmp_path):
    times_ms = list(np.cumsum([0, 40, 40, 80, 1000, 33, 33, 7, 200, 40]))
    write_video(tmp_path / "a.mkv", 10, [int(t) for t in times_ms])
    sequence = open_sequence(tmp_path / "a.mkv")
    assert [round(f.timestamp_s * 1000) for f in sequence.frames] == times_ms
    assert numbers(sequence, [9, 3, 7]) == [9, 3, 7]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_rotation_turns_the_picture_upright(tmp_path, rotation, turns):
    write_video(tmp_path / "a.mp4", 4, rotation=rotation)
    image = open_sequence(tmp_path / "a.mp4").frames[3].image()
    expected = np.rot90(tile_image(3), turns)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 8


def test_a_sequence_slices_like_a_list(tmp_path):
    write_video(tmp_path / "a.mp4", 6)
    frames = open_sequence(tmp_path / "a.mp4").frames
    assert [f.index for f in frames[1:6:2]] == [1, 3, 5]
    assert frames[-1].index == 5
    with pytest.raises(IndexError):
        frames[6]


def test_pixels_that_are_not_square_are_noted(tmp_path):
    write_video(tmp_path / "a.mp4", 3, pixel_aspect=Fraction(16, 15))
    assert "1.067 times as wide as high" in open_sequence(tmp_path / "a.mp4").notes[0]


def test_timestamps_with_four_decimals_are_unique_and_in_order():
    times = unique_timestamps(np.array([0.0, 0.0, 0.00001, 0.00004, 0.04, 0.04, 1.0]))
    assert times.tolist() == [0.0, 0.0001, 0.0002, 0.0003, 0.04, 0.0401, 1.0]
    assert all(a < b for a, b in pairwise(f"{t:.4f}" for t in times))


# --- damaged files


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_truncated_video_gives_what_decodes_and_says_so(tmp_path, name):
    # Noise makes the pictures most of the file, so that the cut falls into them.
    options = {"movflags": "faststart"} if name == "a.mp4" else None
    write_video(tmp_path / name, 100, container_options=options, options={"qp": "2"})
    cut(tmp_path / name, 0.7)
    sequence = open_sequence(tmp_path / name)
    assert "can be read" in sequence.incomplete or "cut" in sequence.incomplete
    assert 20 < len(sequence.frames) < 100
    decoded = []
    for frame in sequence.frames:
        try:
            decoded.append((frame.index, tile_number(frame.image())))
        except FrameError:
            continue
    assert len(decoded) > len(sequence.frames) - 10
    assert all(index == number for index, number in decoded)


def test_a_cut_transport_stream_still_decodes(tmp_path):
    write_video(tmp_path / "a.ts", 100)
    cut(tmp_path / "a.ts", 0.6)
    sequence = open_sequence(tmp_path / "a.ts")
    assert 20 < len(sequence.frames) < 100
    assert numbers(sequence, range(20)) == list(range(20))


def test_holes_in_the_middle_cost_only_their_frames(tmp_path):
    write_video(tmp_path / "a.mkv", 100, options={"qp": "2", "bf": "0"})
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    with av.open(str(tmp_path / "a.mkv")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    start, size = packets[50]
    content[start + size // 2 : start + size - 4] = bytes(size - 4 - size // 2)
    (tmp_path / "a.mkv").write_bytes(content)
    sequence = open_sequence(tmp_path / "a.mkv")
    lost = []
    for frame in sequence.frames:
        try:
            number = tile_number(frame.image())
        except FrameError as error:
            assert f"frame {frame.index} of" in str(error)
            lost.append(frame.index)
        else:
            assert number == frame.index or 50 <= frame.index < 60  # errors spread until the next key frame
    assert set(lost) <= set(range(50, 60))
    assert tile_number(sequence.frames[60].image()) == 60
    assert tile_number(sequence.frames[49].image()) == 49


def test_a_video_without_its_index_is_refused_with_the_reason(tmp_path):
    write_video(tmp_path / "a.mp4", 50, options={"qp": "2"})
    cut(tmp_path / "a.mp4", 0.5)  # the index (moov) is at the end of such files
    with pytest.raises(ReconError, match=r"a\.mp4 cannot be read as a video: ") as caught:
        open_sequence(tmp_path / "a.mp4")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_what_ffmpeg_would_open_but_is_no_recording(tmp_path):
    write_video(tmp_path / "real.ts", 5)
    (tmp_path / "notes.txt").write_text("text that FFmpeg would render as a film of a terminal\n" * 20)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile real.ts\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.ts\n#EXT-X-ENDLIST\n")
    for name in ("notes.txt", "list.ffconcat", "list.m3u8"):
        with pytest.raises(ReconError, match=rf"{name} cannot be read as a video"):
            open_sequence(tmp_path / name)
    save(tmp_path / "one.png", tile_image(3))
    with pytest.raises(ReconError, match=r"one\.png is one image"):
        open_sequence(tmp_path / "one.png")


def test_text_sound_and_nothing_are_no_videos(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for name, word in (
        ("text.mp4", "cannot be read as a video"),
        ("empty.mp4", "cannot be read as a video"),
        ("sound.mkv", "no video stream"),
    ):
        with pytest.raises(ReconError, match=rf"{name}.*{word}"):
            open_sequence(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "count", "word"), [("a.mkv", 0, "End of file"), ("a.mp4", 0, "no video (frame|stream)"), ("a.mkv", 1, "1 video frame;")]
)
def test_too_few_frames(tmp_path, name, count, word):
    write_video(tmp_path / name, count)
    with pytest.raises(ReconError, match=rf"{name} .*{word}"):
        open_sequence(tmp_path / name)


def test_absurd_frame_rates_are_refused(tmp_path):
    write_video(tmp_path / "a.mkv", 50, [k // 5 for k in range(0, 250, 5)])
    sequence = open_sequence(tmp_path / "a.mkv")  # 1000 Hz, the limit
    assert len(sequence.frames) == 50
    content = (tmp_path / "a.mkv").read_bytes()
    scale = content.index(bytes.fromhex("2AD7B183")) + 4  # TimestampScale: nanoseconds a tick
    assert content[scale : scale + 3] == (1_000_000).to_bytes(3, "big")
    (tmp_path / "a.mkv").write_bytes(content[:scale] + (1000).to_bytes(3, "big") + content[scale + 3 :])
    with pytest.raises(ReconError, match="Hz is refused"):
        open_sequence(tmp_path / "a.mkv")
