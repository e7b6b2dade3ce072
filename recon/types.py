"""The types that cross module borders, and the conventions they hold.

Camera axes are OpenCV's (x right, y down, z forward). `T_a_b` maps points of frame b into frame a, so
`p_world = T_world_camera @ p_camera` and inner names cancel. Depth is z-depth unless the name says distance
(along the ray). Masks are True where valid. Pixel centres are at integers. Quaternions are wxyz, except in TUM files.
Units are millimetres, seconds, radians and pixels; lengths of unknown scale are in world units and nothing named
`_mm` holds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

CAMERA_PARAMS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "SCARAMUZZA": ("cx", "cy", "a0", "a1", "a2", "a3", "a4", "c", "d", "e"),
}
"""Camera models by their COLMAP names (and Scaramuzza's omnidirectional one), with the order of their parameters."""

Unit = Literal["mm", "unitless"]
FrameStatus = Literal["keyframe", "posed", "lost", "rejected"]
Alignment = Literal[
    "none",
    "first_pose",
    "se3_trajectory",
    "sim3_trajectory",
    "se3_icp",
    "sim3_icp",
    "scale_sequence",
    "scale_frame",
    "scale_shift",
]

MAX_SEED = 2**31 - 1
"""The largest that every random generator in use takes."""
MAX_THREADS = 1024


def bounded(default: Any, low: int | float, high: int | float = math.inf, **metadata: Any) -> Any:
    """Declare a config field whose value from a file or the command line must lie between `low` and `high`, both allowed."""
    return field(default=default, metadata={"bounds": (low, high), **metadata})


class ReconError(Exception):
    """A failure that the command line prints as one line; `exit_code` is 2 for bad input and 1 for a failed job."""

    def __init__(self, message: str, exit_code: Literal[1, 2] = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class FrameError(ReconError):
    """One frame that cannot be decoded; the run goes on without it."""


@dataclass(frozen=True)
class Camera:
    """One lens: how rays of the camera frame meet pixels of a `height_px` by `width_px` image."""

    model: str
    """A key of `CAMERA_PARAMS`."""
    width_px: int
    height_px: int
    params: tuple[float, ...]
    """In the order of `CAMERA_PARAMS[model]`, pixels where they are lengths, pixel centres at integers."""

    def __post_init__(self) -> None:
        if self.model not in CAMERA_PARAMS:
            raise ReconError(f"camera model {self.model!r} is not known; known: {', '.join(CAMERA_PARAMS)}")
        names = CAMERA_PARAMS[self.model]
        if len(self.params) != len(names):
            raise ReconError(f"camera model {self.model} takes {len(names)} parameters ({', '.join(names)}), found {len(self.params)}")
        if not np.all(np.isfinite(self.params)):
            raise ReconError(f"camera model {self.model} has a parameter that is not finite: {self.params}")
        if self.width_px < 1 or self.height_px < 1:
            raise ReconError(f"camera image size must be positive, found {self.width_px}x{self.height_px}")


@dataclass(frozen=True)
class Frame:
    """One image of a recording, decoded when asked for."""

    index: int
    """Position in the source, from 0."""
    name: str
    timestamp_s: float
    load: Callable[[], UInt8[np.ndarray, "h w 3"]] = field(repr=False)

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Decode to RGB. Raises FrameError when the frame cannot be decoded."""
        return self.load()


@dataclass(frozen=True)
class SecondView:
    """What the other lens of a stereo endoscope saw at the time of a frame, decoded when asked for."""

    camera: Camera
    """Of its own image."""
    T_second_first_mm: Float[np.ndarray, "4 4"]
    """Maps points of the frame's camera to this one, mm."""
    load: Callable[[], UInt8[np.ndarray, "h w 3"]] = field(repr=False)

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Decode to RGB. Raises FrameError when it cannot be decoded."""
        return self.load()


@dataclass(frozen=True)
class DepthMap:
    """z-depth of one view on its camera's own pixel grid."""

    depth: Float[np.ndarray, "h w"]
    """z-depth; 0 where unknown."""
    valid: Bool[np.ndarray, "h w"]
    scale: Literal["metric", "scale_invariant", "affine_invariant"]
    """metric: millimetres; scale_invariant: up to one factor; affine_invariant: up to factor and shift."""
    in_both_views: Bool[np.ndarray, "h w"] | None = None
    """Of a stereo pair's truth: True where the other view sees the same place; None where nobody says."""

    @property
    def depth_mm(self) -> Float[np.ndarray, "h w"]:
        if self.scale != "metric":
            raise ReconError(f"depth is {self.scale}, not metric: give a scale before asking for millimetres")
        return self.depth


@dataclass(frozen=True)
class Trajectory:
    """Camera poses of some frames of a recording."""

    frame_indices: Int[np.ndarray, " n"]
    timestamps_s: Float[np.ndarray, " n"]
    """NaN where a format carries no times."""
    T_world_camera: Float[np.ndarray, "n 4 4"]
    unit: Unit = "unitless"

    def __len__(self) -> int:
        return len(self.timestamps_s)


@dataclass(frozen=True)
class Mesh:
    """A triangle surface with what is known of each vertex."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: UInt8[np.ndarray, "v 3"] | None = None
    normals: Float[np.ndarray, "v 3"] | None = None
    confidence: Float[np.ndarray, " v"] | None = None
    """Probability, 0 to 1, that the vertex is true to 1 % of the median depth."""
    observations: Float[np.ndarray, " v"] | None = None
    """How many frames saw the vertex."""
    unit: Unit = "unitless"
    matched: Float[np.ndarray, " v"] | None = None
    """Share, 0 to 1, of what is known of the vertex that matching of views gave; a network gave the rest."""
    last_seen_s: Float[np.ndarray, " v"] | None = None
    """Time of the last fused frame that saw the vertex."""
    viewing_angle_rad: Float[np.ndarray, " v"] | None = None
    """Smallest angle between the normal and the ray to the camera, over the fused frames that saw the vertex."""


@dataclass(frozen=True)
class Scale:
    """Where the length unit of a reconstruction comes from."""

    source: str
    """"given", "dataset", ... or "none"."""
    value: float
    """Millimetres per world unit of the trajectory before scaling; 1 when the source is "none"."""
    sigma: float | None
    """One standard deviation of `value`; None where unknown."""

    @property
    def unit(self) -> Unit:
        return "unitless" if self.source == "none" else "mm"


@dataclass(frozen=True)
class Metric:
    """One number that a reader can quote."""

    group: Literal["depth", "trajectory", "surface", "image", "speed"]
    name: str
    value: float
    unit: str
    alignment: Alignment = "none"
    lower_is_better: bool | None = True
    """None for counts and signed figures, of which neither direction is better."""
    protocol: str | None = None
    """The published protocol whose arithmetic gave it; None for this project's own definition."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of `value`, where there is something to resample."""
    noise_floor: float | None = None
    """In `unit`: the truth itself is not known better, so smaller differences mean nothing."""


@dataclass(frozen=True)
class FrameSequence:
    """A recording: lazy frames, and what its data set knows of camera and truth (None where it knows nothing)."""

    name: str
    dataset: str
    """Key of `recon.data.DATASETS` that opened it."""
    frames: Sequence[Frame]
    camera: Camera | None = None
    """At the resolution of the source images."""
    frame_camera: Callable[[int], Camera | None] | None = None
    """From frame index to its own lens, where a data set calibrates every frame; else `camera` holds for all."""
    is_unrelated: bool = False
    """True when the frames are single views that do not follow one another."""
    unit: Unit = "unitless"
    """Of the truth below."""
    trajectory_gt: Trajectory | None = None
    depth_gt: Callable[[int], DepthMap | None] | None = None
    """From frame index to true depth on the source image's pixel grid."""
    depth_estimate: Callable[[int], DepthMap | None] | None = None
    """From frame index to depth that somebody's stereo matcher or sensor gave and the recording brings along: an input, unless it is
    the very depth that `depth_gt` gives."""
    is_still: bool = False
    """True where the data set says that the camera stood still."""
    mesh_gt: Callable[[], Mesh] | None = None
    """The part of the true surface that the camera saw."""
    whole_mesh_gt: Callable[[], Mesh] | None = None
    """The whole true surface, seen or not."""
    frame_mesh_gt: Callable[[int, bool], Mesh | None] | None = None
    """From frame index, and whether to merge what the second view of a stereo pair adds, to the true surface in that frame's
    camera axes."""
    noise_floor_mm: float | None = None
    """What the data set's authors say about the error of their own truth, as a distance."""
    instrument_mask: Callable[[int], Bool[np.ndarray, "h w"] | None] | None = None
    """From frame index to a mask that is False on instruments."""
    second_view: Callable[[int], SecondView | None] | None = None
    """From frame index to the other view of a calibrated stereo pair."""
    incomplete: str | None = None
    """Why the source is known to be cut short, e.g. a truncated video."""
    notes: tuple[str, ...] = ()
    """Remarks for whoever reads the report, e.g. what was converted."""
