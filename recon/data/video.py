"""A video file as a recording: the packets are listed first, a frame is decoded when it is asked for.

Listing packets reads the file once and decodes nothing, which gives every frame's own timestamp (frame rates vary) and the
key frames to seek to. One decoder serves all frames: going forwards costs one decoded frame each, going back costs a seek.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from recon.data.folder import DEFAULT_FRAME_RATE_HZ
from recon.io.images import IMAGE_SUFFIXES, MAX_PIXELS
from recon.types import Frame, FrameError, FrameSequence, ReconError

MAX_FRAME_RATE_HZ = 1000.0
"""Faster recordings are refused: their timestamps are damaged, or they are bombs."""
MAX_PACKETS = 5_000_000
"""A day at 50 Hz."""

_CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,mxf,dv,nut,ivf,gif"
"""FFmpeg also opens text, pictures and playlists that point anywhere; those are no recordings."""
_SHORT_STEP = 32
"""Frames that are rather decoded one after another than reached by a seek."""
_SEEKABLE = ("mov", "mp4", "matroska")
"""Containers that store a time for every frame. The others guess it from what came before, so they are only read forwards."""


@dataclass(frozen=True)
class Listing:
    """What the packets of a video say, in order of presentation."""

    width_px: int
    height_px: int
    pts: Int[np.ndarray, " n"]
    """Presentation times in ticks, increasing."""
    tick_s: float
    keyframe_pts: Int[np.ndarray, " k"]
    pixel_aspect: float
    """Width of a pixel over its height."""
    seekable: bool
    counted: bool
    """True when the container stores no presentation times: frames are numbered as they decode, at its nominal rate."""
    incomplete: str | None


@dataclass(frozen=True)
class Recording:
    """The frames of a video file and what is known of them before any is decoded."""

    frames: Sequence[Frame]
    width_px: int
    height_px: int
    """As stored, before a rotation is applied."""
    incomplete: str | None
    notes: tuple[str, ...]


def matches(path: Path) -> bool:
    return path.is_file()


def open_video(path: Path) -> FrameSequence:
    """Raises ReconError as `open_recording`."""
    recording = open_recording(path)
    return FrameSequence(path.stem, "video", recording.frames, incomplete=recording.incomplete, notes=recording.notes)


def open_recording(path: Path) -> Recording:
    """Raises ReconError naming the file when it is no video, has fewer than 2 frames or an absurd size or frame rate."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ReconError(f"{path} is one image; a reconstruction needs at least 2 frames: give the folder of images")
    listing = list_packets(path)
    num_frames = len(listing.pts)
    if num_frames < 2:
        raise ReconError(
            f"{path} holds {num_frames or 'no'} video frame{'s' if num_frames > 1 else ''}; a reconstruction needs at least 2 frames"
        )
    duration_s = float(listing.pts[-1] - listing.pts[0]) * listing.tick_s
    if (num_frames - 1) > MAX_FRAME_RATE_HZ * duration_s:
        raise ReconError(f"{path} claims {num_frames} frames in {duration_s:.3g} s; more than {MAX_FRAME_RATE_HZ:.0f} Hz is refused")
    times_s = unique_timestamps((listing.pts - listing.pts[0]) * listing.tick_s)
    decoder = Decoder(path, listing)
    frames = _VideoFrames(decoder, times_s)
    return Recording(frames, listing.width_px, listing.height_px, listing.incomplete, _notes(decoder, listing))


def unique_timestamps(times_s: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Round to 0.1 ms and move equal neighbours on, so that a time with 4 decimals names one frame."""
    ticks = np.round(times_s * 1e4).astype(np.int64)
    steps = np.arange(len(ticks))
    return (np.maximum.accumulate(ticks - steps) + steps) / 1e4


def list_packets(path: Path) -> Listing:
    """Read every packet header of the first video stream. Raises ReconError when the file is not a video."""
    with _opened(path) as container:
        stream = _video_stream(path, container)
        pts, keyframe_pts, num_packets, damaged = [], [], 0, False
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                num_packets += 1
                damaged |= packet.is_corrupt
                if num_packets > MAX_PACKETS:
                    raise ReconError(f"{path} has more than {MAX_PACKETS} video packets; cut it into shorter recordings")
                if not packet.is_discard:
                    pts.append(packet.pts)
                if packet.is_keyframe:
                    keyframe_pts.append(packet.pts)
        except av.error.FFmpegError:
            damaged = True
        width, height = stream.codec_context.width, stream.codec_context.height
        if num_packets and not 0 < width * height <= MAX_PIXELS:
            raise ReconError(f"{path} claims frames of {width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels")
        counted = None in pts or container.format.name == "avi"  # AVI tells when to decode, not when to show
        ordered = np.arange(len(pts)) if counted else np.unique(np.array(pts, dtype=np.int64))
        tick_s = 1 / float(stream.average_rate or DEFAULT_FRAME_RATE_HZ) if counted else float(stream.time_base)
        return Listing(
            width,
            height,
            ordered,
            tick_s,
            np.zeros(0, dtype=np.int64) if counted else np.unique(np.array(keyframe_pts, dtype=np.int64)),
            float(stream.sample_aspect_ratio or 1),
            not counted and any(name in container.format.name.split(",") for name in _SEEKABLE),
            counted,
            _incomplete(container, stream, num_packets, ordered * tick_s, damaged),
        )


class _VideoFrames(Sequence[Frame]):
    """Frames made on demand: a long video has hundreds of thousands."""

    def __init__(self, decoder: Decoder, times_s: Float[np.ndarray, " n"]) -> None:
        self._decoder = decoder
        self._times_s = times_s

    def __len__(self) -> int:
        return len(self._times_s)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return Frame(index, f"{index:06d}", float(self._times_s[index]), partial(self._decoder.image, index))


class Decoder:
    """Decodes frames by index; may be shared between threads, which then take turns."""

    def __init__(self, path: Path, listing: Listing) -> None:
        self._path = path
        self._listing = listing
        self._lock = threading.Lock()
        self._container: av.container.InputContainer | None = None
        self._decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._pending: tuple[int, av.VideoFrame] | None = None
        """Decoded already, but later than what was asked for."""
        self._index = -1
        """The frame asked for last."""

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB, turned upright by the video's rotation. Raises FrameError when the frame does not decode."""
        frame = self.frame(index)
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))

    def frame(self, index: int) -> av.VideoFrame:
        with self._lock:
            self._approach(index)
            self._index = index
            frame = self._advance_to(int(self._listing.pts[index]))
        if frame is None or frame.is_corrupt:
            raise FrameError(f"frame {index} of {self._path} cannot be decoded: its data is damaged or missing")
        if (frame.width, frame.height) != (self._listing.width_px, self._listing.height_px):
            size = f"{self._listing.width_px}x{self._listing.height_px}"
            raise FrameError(f"frame {index} of {self._path} is {frame.width}x{frame.height} in a video of {size}")
        return frame

    def _approach(self, index: int) -> None:
        """Bring the decoder to a place from which `index` is reached by decoding forwards."""
        if self._container is not None and 0 < index - self._index <= (_SHORT_STEP if self._listing.seekable else index):
            return
        keyframes = self._listing.keyframe_pts
        keyframe = keyframes[max(0, np.searchsorted(keyframes, self._listing.pts[index], side="right") - 1)] if len(keyframes) else None
        if self._container is None or keyframe is None or keyframe <= self._listing.pts[0] or not self._listing.seekable:
            self._restart()
            return
        try:
            self._container.seek(int(keyframe), stream=self._container.streams.video[0], backward=True)
        except av.error.FFmpegError:
            self._restart()
            return
        self._decoded = _decode(self._container, counted=False)
        self._pending = next(self._decoded, None)
        if self._pending is None or self._pending[0] > keyframe:
            self._restart()  # Some containers seek to the wrong side; the start of the file is always before.

    def _restart(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = _opened(self._path)
        self._decoded, self._pending = _decode(self._container, self._listing.counted), None

    def _advance_to(self, target: int) -> av.VideoFrame | None:
        """The frame at this time; None when the decoder gives a later one, which is kept, or ends."""
        while True:
            found = self._pending or next(self._decoded, None)
            self._pending = None
            if found is None or found[0] == target:
                return found and found[1]
            if found[0] > target:
                self._pending = found
                return None


def _opened(path: Path) -> av.container.InputContainer:
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        return av.open(str(path.absolute()), mode="r", options=options, metadata_errors="replace")
    except FileNotFoundError as error:
        raise ReconError(f"{path} does not exist") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ReconError(f"{path} cannot be read as a video: {getattr(error, 'strerror', None) or error}") from error


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise ReconError(f"{path} has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ReconError(f"{path} is coded in a way that this build of FFmpeg cannot decode; convert it to H.264")
    return stream


def _decode(container: av.container.InputContainer, counted: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """Every frame that decodes with its presentation time (or its number), in order; damaged packets are passed over."""
    for number, frame in enumerate(_frames(container)):
        time = number if counted else frame.pts
        if time is not None:
            yield time, frame


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    try:
        for packet in container.demux(stream):
            yield from _decode_packet(stream, packet)
    except av.error.FFmpegError:
        yield from _decode_packet(stream, None)


def _decode_packet(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return stream.decode(packet)
    except av.error.FFmpegError:
        # What fails to decode is missed by its timestamp when that frame is asked for.
        return []


def _incomplete(container, stream: av.VideoStream, num_packets: int, times_s: Float[np.ndarray, " n"], damaged: bool) -> str | None:
    if stream.frames > num_packets:
        return f"the file announces {stream.frames} frames but only {num_packets} can be read"
    if damaged:
        return f"the file is damaged or cut after {num_packets} frames"
    if len(times_s) < 2:
        return None
    if stream.duration is not None:
        expected_s = float(stream.duration * stream.time_base)
    else:
        expected_s = (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
    found_s, longest_step_s = float(times_s[-1] - times_s[0]), float(np.diff(times_s).max())
    if expected_s > found_s + 2 * longest_step_s + 0.5:
        return f"the file announces {expected_s:.2f} s but only {found_s:.2f} s can be read"
    return None


def _notes(decoder: Decoder, listing: Listing) -> tuple[str, ...]:
    try:
        frame = decoder.frame(0)
    except FrameError:
        return ()
    notes = []
    if listing.counted:
        notes.append(f"the video stores no times: its frames are counted at {1 / listing.tick_s:g} Hz")
    if frame.interlaced_frame:
        notes.append("the video is interlaced: its two half images are used as they are and moving edges are combed")
    if frame.rotation % 90:
        notes.append(f"the video's rotation of {frame.rotation} degrees is not a quarter turn; the nearest one is used")
    if abs(listing.pixel_aspect - 1) > 0.01:
        notes.append(f"the video's pixels are {listing.pixel_aspect:.3f} times as wide as high; give a camera with two focal lengths")
    return tuple(notes)
