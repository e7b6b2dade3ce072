"""Gaussian splats on disk: PLY in the layout of 3D Gaussian Splatting, and the 32-byte `.splat` of web viewers.

The PLY layout is that of Kerbl et al., "3D Gaussian splatting for real-time radiance field rendering" (2023), which every viewer
reads: logarithms of the scales, logits of the opacity, quaternions wxyz, and colours as coefficients of spherical harmonics, of
which only the constant one is filled here. Positions stay in the run's own axes and unit, which a comment names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon.io.atomic import atomic_path, write_bytes
from recon.io.mesh_headers import MAX_BYTES
from recon.types import ReconError, Unit

SH_CONSTANT = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_CONSTANT * f_dc."""
NUM_REST = 45
"""Coefficients of the harmonics of degree 1 to 3. They are zero here, but some viewers take files with all of them only."""
SPLAT_BYTES = 32

_POSITION, _NORMAL, _COLOR = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_REQUIRED = (*_POSITION, *_COLOR, "opacity", *_SCALE, *_ROTATION)
_SCALARS = {"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4", "double": "<f8"}
_SCALARS |= {"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"}
_SCALARS |= {"float32": "<f4", "float64": "<f8"}
_HEAD_BYTES = 64_000


@dataclass(frozen=True)
class SplatCloud:
    """Gaussians at one time. Raises ReconError unless all numbers are finite and rotations have a length."""

    means: Float[np.ndarray, "n 3"]
    log_scales: Float[np.ndarray, "n 3"]
    """Natural logarithm of the standard deviations along the Gaussian's own axes, in `unit`."""
    quaternions_wxyz: Float[np.ndarray, "n 4"]
    """Turn those axes into the world's; need not be normalised."""
    opacity_logits: Float[np.ndarray, " n"]
    colors: Float[np.ndarray, "n 3"]
    """RGB, 0 to 1."""
    normals: Float[np.ndarray, "n 3"] | None = None
    unit: Unit = "unitless"

    def __post_init__(self) -> None:
        rows = {name: values for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        wrong = [name for name, values in rows.items() if not np.all(np.isfinite(values))]
        if wrong:
            raise ReconError(f"splats: {', '.join(wrong)} should be finite numbers, found some that are not")
        if not np.all(np.any(self.quaternions_wxyz != 0, axis=1)):
            raise ReconError("splats: a rotation has no length; expected quaternions that are not zero")

    def __len__(self) -> int:
        return len(self.means)


def write_splat_ply(path: str | Path, cloud: SplatCloud) -> None:
    """Binary little-endian PLY of 62 floats a Gaussian; without normals those are zero, as 3DGS itself writes them."""
    names = (*_POSITION, *_NORMAL, *_COLOR, *(f"f_rest_{k}" for k in range(NUM_REST)), "opacity", *_SCALE, *_ROTATION)
    table = np.zeros((len(cloud), len(names)), "<f4")

    def fill(columns: tuple[str, ...], values: np.ndarray) -> None:
        table[:, [names.index(name) for name in columns]] = values

    fill(_POSITION, cloud.means)
    if cloud.normals is not None:
        fill(_NORMAL, cloud.normals)
    fill(_COLOR, (cloud.colors - 0.5) / SH_CONSTANT)
    fill(("opacity",), cloud.opacity_logits[:, None])
    fill(_SCALE, cloud.log_scales)
    fill(_ROTATION, cloud.quaternions_wxyz)
    header = ["ply", "format binary_little_endian 1.0", f"comment unit {cloud.unit}", f"element vertex {len(cloud)}"]
    header += [*(f"property float {name}" for name in names), "end_header"]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(table.tobytes())


def read_splat_ply(path: str | Path) -> SplatCloud:
    """Splats of this program or another's; the unit is "unitless" unless the file says so.

    Colours are the constant ones, cut to 0..1: what another program's file says of how they change with the viewing direction
    is left out. Raises ReconError for files that are cut short, damaged, packed, or no splats.
    """
    path = Path(path)
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise ReconError(f"{path} cannot be read: {error.strerror}") from error
    if content is None:
        raise ReconError(f"{path} is larger than {MAX_BYTES // 10**9} GB")
    header, count, columns = _header(path, content[:_HEAD_BYTES])
    expected = len(header) + count * columns.itemsize
    if len(content) != expected:
        claim = f"{path} claims {count} Gaussians of {columns.itemsize} bytes, {expected} bytes in all"
        raise ReconError(f"{claim}, but holds {len(content)}: it is cut short or damaged")
    table = np.frombuffer(content, columns, count, offset=len(header))

    def block(names: tuple[str, ...]) -> np.ndarray:
        return np.stack([table[name].astype(np.float64) for name in names], axis=1)

    has_normals = set(_NORMAL) <= set(columns.names) and bool(np.any(block(_NORMAL)))
    try:
        return SplatCloud(
            block(_POSITION),
            block(_SCALE),
            block(_ROTATION),
            block(("opacity",))[:, 0],
            np.clip(0.5 + SH_CONSTANT * block(_COLOR), 0.0, 1.0),
            block(_NORMAL) if has_normals else None,
            "mm" if b"\ncomment unit mm\n" in header else "unitless",
        )
    except ReconError as error:
        raise ReconError(f"{path}: {error}") from error


def write_splat(path: str | Path, cloud: SplatCloud) -> None:
    """The `.splat` of web viewers: 32 bytes a Gaussian, the largest and most opaque first, so that a page shows them while it loads.

    Position and scales as float32, RGBA and the quaternion (wxyz, (q + 1) * 128) as bytes; no header, no unit. Normals are lost.
    """
    with np.errstate(over="ignore"):
        opacity = 1.0 / (1.0 + np.exp(-cloud.opacity_logits))
    unit_quaternions = cloud.quaternions_wxyz / np.linalg.norm(cloud.quaternions_wxyz, axis=1, keepdims=True)
    table = np.zeros(len(cloud), [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
    table["position"], table["scale"] = cloud.means, np.exp(cloud.log_scales)
    table["rgba"] = _byte(255.0 * np.column_stack([cloud.colors, opacity]))
    table["rotation"] = _byte(128.0 * unit_quaternions + 128.0)
    # The logarithm of size times opacity: sizes of small Gaussians in large units underflow.
    weight = cloud.log_scales.sum(axis=1) + np.log(np.maximum(opacity, 1e-300))
    write_bytes(path, table[np.argsort(-weight, kind="stable")].tobytes())


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _header(path: Path, head: bytes) -> tuple[bytes, int, np.dtype]:
    """The header with its last line end, how many Gaussians it claims, and the layout of one."""
    found = re.match(rb"ply\r?\n.*?\nend_header\r?\n", head, re.DOTALL)
    if found is None:
        raise ReconError(f"{path} is no PLY file, or its header is damaged")
    lines = found.group().decode("ascii", errors="replace").splitlines()
    words = [line.split() for line in lines if line and not line.startswith(("comment", "obj_info"))]
    if ["format", "binary_little_endian", "1.0"] not in words:
        raise ReconError(f"{path} should be binary little-endian PLY: save it so where it comes from")
    elements = [word[1:] for word in words if word[0] == "element"]
    if len(elements) != 1 or len(elements[0]) != 2 or elements[0][0] != "vertex" or not re.fullmatch(r"\d{1,18}", elements[0][1]):
        found_elements = ", ".join(word[0] for word in elements if word) or "none"
        raise ReconError(f"{path} should hold the element vertex alone, found {found_elements}: no splats, or packed; save them unpacked")
    properties = [word[1:] for word in words if word[0] == "property"]
    strange = [" ".join(word) for word in properties if len(word) != 2 or word[0] not in _SCALARS]
    names = [word[-1] for word in properties]
    missing = [name for name in _REQUIRED if name not in names]
    if strange or missing or len(set(names)) < len(names):
        problem = f"lacks {', '.join(missing)}" if missing else f"has properties that are not read ({', '.join(strange) or 'a name twice'})"
        raise ReconError(f"{path} {problem}; expected splats in the layout of 3D Gaussian Splatting")
    return found.group(), int(elements[0][1]), np.dtype([(name, _SCALARS[kind]) for kind, name in properties])
