"""Every lens by one set of functions: project, unproject, resize, crop, mirror, and where the lens ends.

Pixel centres are at integers. A lens' field ends where its polynomial stops being one to one (`radial.MIN_SLOPE`);
inside it `unproject` and `project` are each other's inverse to rounding. The models themselves: `brown` (perspective
with distortion), `fisheye` (Kannala-Brandt), `scaramuzza` (omnidirectional).
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float

from recon.geometry import brown, fisheye, scaramuzza
from recon.types import CAMERA_PARAMS, Camera, ReconError

MAX_DEPTH_ANGLE_RAD = float(np.deg2rad(85.0))
"""z-depth of a ray tends to zero at 90 degrees from the axis; rays beyond this angle carry no usable z-depth."""

COVER_TOLERANCE = 1e-6
"""Relative to the pixel's coordinates. Unprojection is exact inside the lens' field and clamps outside, so any small
distance tells the two apart."""

_TWO_FOCAL = {"SIMPLE_PINHOLE": "PINHOLE", "SIMPLE_RADIAL": "OPENCV", "RADIAL": "OPENCV"}


def project(camera: Camera, points: Float[np.ndarray, "*batch 3"]) -> tuple[Float[np.ndarray, "*batch 2"], Bool[np.ndarray, "*batch"]]:
    """Pixels of points in the camera frame, and whether the lens can see in that direction (image borders do not count).

    Pixels of invalid points are finite: those of the nearest direction the lens can see.
    """
    return _lens(camera).project(camera, np.asarray(points, dtype=np.float64))


def unproject(camera: Camera, pixels: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 3"]:
    """Unit rays through pixels; a pixel outside the lens' field gets the field's edge (`covers` tells which)."""
    rays = _lens(camera).unproject(camera, np.asarray(pixels, dtype=np.float64))
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def covers(camera: Camera, pixels: Float[np.ndarray, "*batch 2"]) -> Bool[np.ndarray, "*batch"]:
    """Whether some ray of the lens meets the pixel: its unprojection projects back to it."""
    pixels = np.asarray(pixels, dtype=np.float64)
    back, _ = project(camera, unproject(camera, pixels))
    return np.linalg.norm(back - pixels, axis=-1) <= COVER_TOLERANCE * np.maximum(1.0, np.linalg.norm(pixels, axis=-1))


def angle_limit(camera: Camera) -> float:
    """Largest angle between a ray of the lens and its axis, rad: pi / 2 for an undistorted pinhole."""
    return _lens(camera).angle_limit(camera)


def pixel_grid(camera: Camera) -> Float[np.ndarray, "h w 2"]:
    """Pixel centres (u, v) of the whole image."""
    u, v = np.meshgrid(np.arange(camera.width_px, dtype=np.float64), np.arange(camera.height_px, dtype=np.float64))
    return np.stack([u, v], axis=-1)


def ray_grid(camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Unit rays of all pixel centres."""
    return unproject(camera, pixel_grid(camera))


def usable_mask(camera: Camera) -> Bool[np.ndarray, "h w"]:
    """Pixels that a ray of the lens meets, and whose ray is far enough from sideways to carry a z-depth."""
    pixels = pixel_grid(camera)
    return covers(camera, pixels) & (unproject(camera, pixels)[..., 2] >= np.cos(MAX_DEPTH_ANGLE_RAD))


def resize(camera: Camera, width_px: int, height_px: int) -> Camera:
    """The same lens on an image scaled to another size: u' = (u + 0.5) s - 0.5 on each axis.

    Under unequal factors a single-focal model becomes its two-focal sibling.
    """
    sx, sy = width_px / camera.width_px, height_px / camera.height_px
    model, p = (camera.model, camera.params) if sx == sy else _two_focal(camera)
    if model == "SCARAMUZZA":
        cx, cy, *a, c, d, e = p
        # The affine's lower right is 1 by convention, so (x, y) and the polynomial scale with the height.
        a = [a_k * sy ** (1 - k) for k, a_k in enumerate(a)]
        params = (_resized_centre(cx, sx), _resized_centre(cy, sy), *a, c * sx / sy, d * sx / sy, e)
    elif model in _TWO_FOCAL:
        params = (p[0] * sx, _resized_centre(p[1], sx), _resized_centre(p[2], sy), *p[3:])
    else:
        params = (p[0] * sx, p[1] * sy, _resized_centre(p[2], sx), _resized_centre(p[3], sy), *p[4:])
    return Camera(model, width_px, height_px, params)


def crop(camera: Camera, x0: int, y0: int, width: int, height: int) -> Camera:
    """The same lens on the image's part from pixel (x0, y0), `width` by `height` pixels large; it may reach outside."""
    if width < 1 or height < 1:
        raise ReconError(f"crop must be at least one pixel wide and high, found {width}x{height}")
    params = list(camera.params)
    cx_idx = {"SCARAMUZZA": 0, "SIMPLE_PINHOLE": 1, "SIMPLE_RADIAL": 1, "RADIAL": 1}.get(camera.model, 2)
    params[cx_idx] -= x0
    params[cx_idx + 1] -= y0
    return Camera(camera.model, width, height, tuple(params))


def mirror(camera: Camera) -> Camera:
    """The same lens on the image flipped left to right: u' = width - 1 - u, and x changes its sign."""
    names = CAMERA_PARAMS[camera.model]
    odd = {"p2", "d", "e"}  # terms that change sign with x
    given = zip(names, camera.params, strict=True)
    params = (camera.width_px - 1 - p if name == "cx" else -p if name in odd else p for name, p in given)
    return Camera(camera.model, camera.width_px, camera.height_px, tuple(params))


def _lens(camera: Camera) -> ModuleType:
    lengths = [p for name, p in zip(CAMERA_PARAMS[camera.model], camera.params, strict=True) if name in ("f", "fx", "fy", "a0")]
    if min(lengths) <= 0.0:
        raise ReconError(f"camera model {camera.model} needs positive focal lengths (a0 for SCARAMUZZA), found {lengths}")
    return {"OPENCV_FISHEYE": fisheye, "SCARAMUZZA": scaramuzza}.get(camera.model, brown)


def _resized_centre(centre_px: float, factor: float) -> float:
    return (centre_px + 0.5) * factor - 0.5


def _two_focal(camera: Camera) -> tuple[str, tuple[float, ...]]:
    if camera.model not in _TWO_FOCAL:
        return camera.model, camera.params
    f, cx, cy, *distortion = camera.params
    if camera.model == "SIMPLE_PINHOLE":
        return "PINHOLE", (f, f, cx, cy)
    k1, k2 = (*distortion, 0.0)[:2]
    return "OPENCV", (f, f, cx, cy, k1, k2, 0.0, 0.0)
