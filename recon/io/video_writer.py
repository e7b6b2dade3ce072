"""Pictures as an MP4 that every player and browser shows: H.264, 4:2:0, even sides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from recon.io.atomic import atomic_path
from recon.types import ReconError

QUALITY = "18"
"""x264's constant rate factor: 18 is hardly told from the original."""
_BT709 = 1
"""How colours are coded, by its number in H.264; said in the file, since players guess otherwise by the size."""
_TV_RANGE = 1


def write_mp4(path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> int:
    """Write RGB pictures of one size as they come; returns how many. Odd sides grow by a copy of their last row or column.

    Raises ReconError when there is no picture, when one has another size, and for a rate that is no positive number.
    """
    import av

    if not (np.isfinite(fps) and fps > 0):
        raise ReconError(f"{path}: frames per second should be a positive number, found {fps}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ReconError(f"{path}: there is no picture to make a video of")
    num = 0
    try:
        with atomic_path(path) as part, av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": QUALITY})
            stream.height, stream.width = (size + size % 2 for size in first.shape[:2])
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = _BT709, _BT709, _BT709, _TV_RANGE
            for num, picture in enumerate(itertools.chain([first], frames), 1):
                if picture.shape != first.shape:
                    size = f"{first.shape[1]}x{first.shape[0]}"
                    raise ReconError(f"{path}: picture {num} is {picture.shape[1]}x{picture.shape[0]} in a video of {size}")
                container.mux(stream.encode(_video_frame(picture)))
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise ReconError(f"{path} cannot be written as a video: {error}", exit_code=1) from error
    return num


def _video_frame(picture: UInt8[np.ndarray, "h w 3"]):
    import av

    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
