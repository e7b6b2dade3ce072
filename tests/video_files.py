"""Small videos whose frames can be told apart: frame k shows k as eight black or white tiles."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 128, 64


def tile_image(number: int) -> np.ndarray:
    """Two rows of four tiles, the bits of `number`; a red stripe marks the left edge."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        if number >> bit & 1:
            image[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 255
    image[:, :8] = (255, 0, 0)
    return image


def tile_number(image: np.ndarray) -> int:
    return sum((image[(bit // 4) * 32 + 16, (bit % 4) * 32 + 20].mean() > 127) << bit for bit in range(8))


def write_video(
    path: Path,
    count: int = 40,
    times_ms: list[int] | None = None,
    codec: str = "libx264",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> None:
    """Frames at 25 Hz, or at the times given; a key frame every 10 frames, and B-frames where the codec has them."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 10
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        container.start_encoding()
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(tile_image(k), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
