"""Predicted depth and trajectory in one unit: a factor per frame, and a smooth field over the image where points allow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from recon.data import open_source
from recon.data.folder import image_files
from recon.data.masks import instruments_of, scaled_mask, white_masks
from recon.data.second_view import CALIBRATION, read_calibration, second_views
from recon.geometry import se3
from recon.geometry.cameras import resize
from recon.geometry.surface import with_lens
from recon.io.atomic import read_json, write_json
from recon.io.cameras import read_camera
from recon.io.depth import read_depth, write_depth
from recon.io.images import read_image
from recon.io.masks import read_mask
from recon.io.meshes import read_mesh
from recon.io.trajectory import read_tum, write_tum
from recon.models import model_info
from recon.parallel import in_order
from recon.pipeline import Stage, file_checksum, track, unkeyed
from recon.sampling import spread
from recon.tracking.scale_field import FrameRatios, ScaleModel, fit_scale_model, sample_nearest, sample_ratios
from recon.tracking.scale_instrument import InstrumentView, scale_from_instrument
from recon.tracking.scale_model import ModelView, scale_from_model
from recon.tracking.scale_sources import MeasuredScale, scale_from_metric_depth, scale_from_poses
from recon.tracking.scale_stereo import StereoPair, scale_from_stereo
from recon.types import MAX_THREADS, Camera, FrameError, ReconError, Scale, Trajectory, Unit, bounded

log = logging.getLogger(__name__)

DATASET = "dataset"
"""Name of depth, and of a unit, that comes with the recording."""
SOURCES = ("factor_mm", "poses_mm", "stereo", "instrument_width_mm", "model_mm", "metric_network")
"""Fields of the config that say where the unit comes from; at most one of them is given."""
NUM_MODEL_VIEWS, MODEL_WIDTH_PX = 16, 64
"""Of the frames that are laid onto a model."""
MAX_POINT_ERROR_PX = 2.0
"""Sparse points that reproject worse than this give no ratio."""
MIN_CALIBRATION_POINTS = 20
CALIBRATION_LIMITS = (0.2, 5.0)
MAX_LOG_FIELD = 1.5
"""A field never changes depth by more than this log factor from its frame's level."""


@dataclass(frozen=True)
class Config:
    """Where the unit comes from."""

    factor_mm: float = bounded(0.0, 0.0)
    """Millimetres per world unit of the trajectory, where known; 0 leaves the result without a unit."""
    factor_sigma_mm: float = bounded(0.0, 0.0)
    """One standard deviation of `factor_mm`; 0 where unknown."""
    poses_mm: Path | None = unkeyed(None)  # noqa: RUF009
    """TUM file of where another device (robot kinematics, an electromagnetic tracker) says that the camera was, in millimetres, with
    the recording's times or with frame numbers for times: the unit is measured from it."""
    stereo: Literal["dataset"] | Path | None = unkeyed(None)  # noqa: RUF009
    """Second view of a stereo endoscope: "dataset" where the recording's data set has one with its calibration (SERV-CT, SCARED,
    StereoMIS), else a folder of right pictures named like the frames, with stereo.json: the keys of camera.json for the right lens
    and T_right_left_mm, four rows of four numbers that map points of the left camera to the right one, mm."""
    instrument_width_mm: float = bounded(0.0, 0.0, 30.0)
    """Diameter of the shaft of an instrument that touches tissue now and then; needs instrument masks (--masks, or a data set's own). The
    roughest of all sources, to 10 % at best; 0 where unknown."""
    model_mm: Path | None = unkeyed(None)  # noqa: RUF009
    """Mesh of the organ in millimetres (PLY, OBJ, STL, OFF, GLB) from a scan before the procedure, cut to the region that is seen: half of
    it or more must be. Refused where its shape does not decide the fit, as that of a smooth tube."""
    metric_network: bool = False
    """Believe the metres of a depth network that claims to know them (`metric` in `recon models`), as far as its own sigma goes."""
    window_frames: float = bounded(5.0, 0.1)
    """Standard deviation of the smoothing of factors over time."""
    field: bool = True
    """Allow the factor to vary smoothly over the image."""
    num_threads: int = bounded(0, 0, MAX_THREADS, keyed=False)
    """Frames scaled at once; 0 means as many as there are processors."""

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) not in (None, False, 0.0)]
        if len(given) > 1:
            both = "both" if len(given) == 2 else "all"
            raise ValueError(f"{' and '.join(given)} {both} say what the unit is: give one of them")


def run(inputs: dict[str, Path], out: Path, config: Config) -> None:
    """Write scaled `depth/`, `sigma/`, `scale.json`, `trajectory.txt` and `trajectory.json` in the final unit."""
    trajectory = read_json(inputs["trajectory"] / "trajectory.json")
    camera = read_camera(inputs["trajectory"] / "camera.json")
    posed = {f["index"]: f for f in trajectory["frames"] if f["T_world_camera"] is not None}
    lenses = read_camera(inputs["camera"] / "camera.json"), camera

    def predicted_depth(index: int) -> np.ndarray:
        return with_lens(read_depth(inputs["depth"] / "depth" / f"{index:06d}.tiff"), *lenses)

    def predicted_sigma(index: int) -> np.ndarray:
        return read_depth(inputs["depth"] / "sigma" / f"{index:06d}.tiff")

    is_known = trajectory["unit"] == "mm"
    if is_known and any(getattr(config, name) not in (None, False, 0.0) for name in SOURCES):
        raise ReconError(f"the unit is known from {trajectory['unit_source']}: leave {', '.join(SOURCES)} of [scale] out")
    ratios, sigmas = _measure(inputs["trajectory"] / "points.npz", posed, camera, predicted_depth, predicted_sigma)
    guesses = {index: float(np.log(frame["depth_factor"])) for index, frame in posed.items()}
    model = fit_scale_model(list(posed), ratios, guesses, config.window_frames, use_fields=config.field)
    calibration = sigma_calibration(model, ratios, sigmas)
    unscaled = _Unscaled(inputs, trajectory, camera, model, calibration, predicted_depth, predicted_sigma)
    measured = _measured(unscaled, ratios, guesses, config)
    scale = measured.scale if measured else Scale(DATASET, 1.0, None) if is_known else given_scale(config)
    lost = [f["index"] for f in trajectory["frames"] if f["status"] == "lost"]
    model_of_all = with_typical_levels(model, lost)
    written = [*posed, *lost]

    def write_scaled(index: int) -> None:
        name = f"{index:06d}.tiff"
        if not (out / "sigma" / name).exists():
            depth, sigma = scaled(model_of_all, index, predicted_depth(index), predicted_sigma(index), calibration)
            write_depth(out / "depth" / name, depth * scale.value)
            write_depth(out / "sigma" / name, sigma)

    for _ in track(in_order(write_scaled, written, config.num_threads), len(written), "scaling depth"):
        pass
    _write_trajectory(inputs, out, trajectory, scale)
    write_json(out / "scale.json", description(scale, model, ratios, guesses, calibration) | (measured.described() if measured else {}))


@dataclass(frozen=True)
class _Unscaled:
    """What the run knows before its unit is known, lengths in world units."""

    inputs: dict[str, Path]
    trajectory: dict[str, Any]
    camera: Camera
    model: ScaleModel
    calibration: float
    predicted_depth: Callable[[int], np.ndarray]
    predicted_sigma: Callable[[int], np.ndarray]

    def depth(self, index: int) -> np.ndarray:
        """z-depth (h, w) of a posed frame on the depth map's own grid."""
        return scaled(self.model, index, self.predicted_depth(index), self.predicted_sigma(index), self.calibration)[0]


def _measured(unscaled: _Unscaled, ratios: dict[int, FrameRatios], guesses: dict[int, float], config: Config) -> MeasuredScale | None:
    """The scale that a source measures; None where it is given or unknown."""
    if config.poses_mm is not None:
        path = _posed(unscaled.inputs, unscaled.trajectory["frames"], "unitless")
        return scale_from_poses(path, read_tum(config.poses_mm, "mm"))
    if config.stereo is not None:
        return scale_from_stereo(list(guesses), _stereo_pairs(unscaled, config.stereo))
    if config.instrument_width_mm:
        return scale_from_instrument(list(guesses), _instrument_views(unscaled), config.instrument_width_mm)
    if config.model_mm is not None:
        return scale_from_model(_coarse_views(unscaled, list(guesses)), read_mesh(config.model_mm, "mm"))
    if config.metric_network:
        return _from_metric_network(unscaled, ratios, guesses)
    brings_mm = read_json(unscaled.inputs["depth"] / "depth.json")["scale"] == "metric"
    if config.factor_mm == 0 and brings_mm and unscaled.trajectory["unit"] != "mm":
        return scale_from_metric_depth(*_metric_parts(unscaled, ratios, guesses), source=DATASET, mm_per_unit=1.0)
    return None


def _stereo_pairs(unscaled: _Unscaled, source: str | Path) -> Callable[[int], StereoPair | None]:
    """From a posed frame to its pair of pictures, the right one as much smaller than recorded as the left one."""
    inputs, sequence = unscaled.inputs, open_source(unscaled.inputs["source"])
    second_view = sequence.second_view if source == "dataset" else second_views(Path(source), sequence.frames)
    if second_view is None:
        raise ReconError(
            f"scale.stereo: data set {sequence.dataset!r} has no second view with its calibration here; give a folder that has"
        )
    frames = read_json(inputs["frames"] / "frames.json")
    share = frames["width_px"] / frames["source_width_px"]

    def pair_of(index: int) -> StereoPair | None:
        view = second_view(index)
        try:
            picture = None if view is None else view.image()
        except FrameError as error:
            log.warning("scale.stereo: frame %d is left out: %s", index, error)
            picture = None
        if view is None or picture is None:
            return None
        size = round(view.camera.width_px * share), round(view.camera.height_px * share)
        right = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        left = read_image(inputs["frames"] / "images" / f"{index:06d}.jpg")
        mask = read_mask(inputs["masks"] / "masks" / f"{index:06d}.png")
        lens = resize(view.camera, *size)
        return StereoPair(left, mask, unscaled.camera, right, lens, view.T_second_first_mm, unscaled.depth(index))

    return pair_of


def _instrument_views(unscaled: _Unscaled) -> Callable[[int], InstrumentView | None]:
    """From a posed frame to the instruments in it, at the size of its depth map. What white means is what the masks stage found."""
    sequence, inputs = open_source(unscaled.inputs["source"]), unscaled.inputs
    if sequence.instrument_mask is None:
        raise ReconError(f"scale.instrument_width_mm: {sequence.name} has no instrument masks; give a folder of them with --masks")
    frames = read_json(inputs["frames"] / "frames.json")
    white_is_tissue = read_json(inputs["masks"] / "gate.json")["instruments"]["white"] == "tissue"
    instruments = instruments_of(white_masks(sequence, (frames["source_width_px"], frames["source_height_px"])), white_is_tissue)

    def view_of(index: int) -> InstrumentView | None:
        mask, depth = instruments(index), unscaled.depth(index)
        if mask is None or not (depth > 0).any():
            return None
        height, width = depth.shape
        instrument = scaled_mask(mask, depth.shape)
        tissue = read_mask(inputs["masks"] / "tissue" / f"{index:06d}.png").astype(np.uint8)
        tissue = cv2.resize(tissue, (width, height), interpolation=cv2.INTER_NEAREST) > 0
        return InstrumentView(resize(unscaled.camera, width, height), instrument, tissue, depth) if instrument.any() else None

    return view_of


def _coarse_views(unscaled: _Unscaled, indices: Sequence[int]) -> list[ModelView]:
    """Some of the posed frames, spread over the recording, with their depth on tissue as small pictures."""
    camera, chosen = unscaled.camera, spread(indices, NUM_MODEL_VIEWS)
    lens = resize(camera, MODEL_WIDTH_PX, round(MODEL_WIDTH_PX * camera.height_px / camera.width_px))
    poses = {frame["index"]: frame["T_world_camera"] for frame in unscaled.trajectory["frames"]}
    views = []
    for index in chosen:
        tissue = read_mask(unscaled.inputs["masks"] / "tissue" / f"{index:06d}.png")
        size = lens.width_px, lens.height_px
        on_tissue = cv2.resize(tissue.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        depth = cv2.resize(unscaled.depth(index), size, interpolation=cv2.INTER_NEAREST) * on_tissue
        views.append(ModelView(index, lens, np.array(poses[index]), depth))
    return views


def _from_metric_network(unscaled: _Unscaled, ratios: dict[int, FrameRatios], guesses: dict[int, float]) -> MeasuredScale:
    """Raises ReconError for a network that claims no metres."""
    name = read_json(unscaled.inputs["depth"] / "depth.json")["model"]
    output = "depth" if name == DATASET else model_info(name).output
    if output != "metric":
        raise ReconError(
            f"scale.metric_network: depth.model {name!r} gives {output} up to a factor; choose one that `recon models` calls metric"
        )
    return scale_from_metric_depth(*_metric_parts(unscaled, ratios, guesses))


def _metric_parts(unscaled: _Unscaled, ratios: dict[int, FrameRatios], guesses: dict[int, float]) -> tuple[np.ndarray, ...]:
    """Of every frame with depth: its index, the log of world units over units of its depth, and the log sigma that it states."""
    indices = [index for index in guesses if (unscaled.predicted_depth(index) > 0).any()]
    # Points say it best; where a frame has none, dense alignment found the factor.
    factors = [float(np.median(ratios[i].log_ratio)) if len(ratios[i].log_ratio) else guesses[i] for i in indices]
    stated = [float(np.median(sigma[sigma > 0])) for sigma in map(unscaled.predicted_sigma, indices)]
    return np.array(indices, dtype=np.int64), np.array(factors), np.array(stated)


def given_scale(config: Config) -> Scale:
    """The scale that the config gives, else none."""
    if config.factor_mm == 0:
        return Scale("none", 1.0, None)
    return Scale("given", config.factor_mm, config.factor_sigma_mm or None)


def with_typical_levels(model: ScaleModel, indices: Sequence[int]) -> ScaleModel:
    """The model with the median level for frames without a pose: nothing fixes their own scale, but their depth is still of use."""
    typical = float(np.median(list(model.log_factor.values())))
    return replace(model, log_factor={**model.log_factor, **dict.fromkeys(indices, typical)})


def scaled(model: ScaleModel, index: int, predicted: np.ndarray, sigma: np.ndarray, calibration: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth in world units and the standard deviation of its log: the network's own, calibrated on the points, and the field's."""
    log_field, field_sigma = model.log_field(index, *predicted.shape)
    level = model.log_factor[index]
    factor = np.exp(np.clip(log_field, level - MAX_LOG_FIELD, level + MAX_LOG_FIELD))
    known = predicted > 0
    return (predicted * factor * known).astype(np.float32), (np.hypot(sigma * calibration, field_sigma) * known).astype(np.float32)


def _measure(
    points_file: Path, posed: dict[int, dict], camera: Camera, depth_of: Callable[[int], np.ndarray], sigma_of: Callable[[int], np.ndarray]
) -> tuple[dict[int, FrameRatios], dict[int, np.ndarray]]:
    """Ratios of every frame, and the network's sigma at the same points."""
    with np.load(points_file) as file:
        points = {key: file[key] for key in file.files}
    good = points["error_px"] <= MAX_POINT_ERROR_PX
    ratios, sigmas = {}, {}
    for index, frame in posed.items():
        rows = np.flatnonzero((points["obs_frame"] == index) & good[points["obs_point"]])
        T_camera_world = se3.inverse(np.array(frame["T_world_camera"]))
        z = points["xyz"][points["obs_point"][rows]] @ T_camera_world[2, :3] + T_camera_world[2, 3]
        ratios[index] = sample_ratios(depth_of(index), points["obs_px"][rows], (camera.width_px, camera.height_px), z)
        sigmas[index] = sample_nearest(sigma_of(index), ratios[index].positions)
    return ratios, sigmas


def sigma_calibration(model: ScaleModel, ratios: dict[int, FrameRatios], sigmas: dict[int, np.ndarray]) -> float:
    """Factor that makes the network's sigma at the points as large as what the model leaves there; 1 without points."""
    counted = [index for index in ratios if len(ratios[index].log_ratio) >= MIN_CALIBRATION_POINTS]
    quotients = [model.residual(index) / max(float(np.median(sigmas[index])), 1e-6) for index in counted]
    return float(np.clip(np.median(quotients), *CALIBRATION_LIMITS)) if quotients else 1.0


def description(scale: Scale, model: ScaleModel, ratios: dict[int, FrameRatios], guesses: dict[int, float], calibration: float) -> dict:
    """Content of scale.json. `drift` is the standard deviation over frames of the log factor that the network's depth needs."""
    levels = np.array(list(model.log_factor.values()))
    return {
        "source": scale.source,
        "value": scale.value,
        "sigma": scale.sigma,
        "unit": scale.unit,
        "drift": float(levels.std()) if len(levels) else 0.0,
        "sigma_calibration": calibration,
        "frames": [
            {
                "index": index,
                "factor": float(np.exp(level)) * scale.value,
                "num_points": len(ratios[index].log_ratio),
                "residual": model.residual(index) if len(ratios[index].log_ratio) else None,
            }
            for index, level in model.log_factor.items()
        ],
    }


def _write_trajectory(inputs: dict[str, Path], out: Path, trajectory: dict, scale: Scale) -> None:
    """The trajectory with translations in the final unit, as JSON and as TUM lines."""
    frames = []
    for frame in trajectory["frames"]:
        if frame["T_world_camera"] is not None:
            T = np.array(frame["T_world_camera"])
            T[:3, 3] *= scale.value
            frame = frame | {"T_world_camera": T.tolist()}
        frames.append(frame)
    write_json(out / "trajectory.json", trajectory | {"unit": scale.unit, "frames": frames})
    write_tum(out / "trajectory.txt", _posed(inputs, frames, scale.unit))


def _posed(inputs: dict[str, Path], frames: Sequence[dict], unit: Unit) -> Trajectory:
    """The frames that have a pose, with their times."""
    time = {f["index"]: f["timestamp_s"] for f in read_json(inputs["frames"] / "frames.json")["frames"]}
    posed = [frame for frame in frames if frame["T_world_camera"] is not None]
    poses = np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64).reshape(-1, 4, 4)
    indices = np.array([frame["index"] for frame in posed], dtype=np.int64)
    return Trajectory(indices, np.array([time[index] for index in indices]), poses, unit)


def _checksums(config: Config) -> dict[str, str]:
    """Raises ReconError for a file that is no path of poses, no calibration or no mesh, before the first stage starts."""
    if config.poses_mm is not None:
        read_tum(config.poses_mm, "mm")
        return {"poses_mm": file_checksum(config.poses_mm)}
    if config.stereo == "dataset":
        return {"stereo": config.stereo}
    if config.stereo is not None:
        read_calibration(config.stereo)
        files = [config.stereo / CALIBRATION, *image_files(config.stereo)]
        return {f"stereo/{file.name}": file_checksum(file) for file in files}
    if config.model_mm is not None:
        read_mesh(config.model_mm, "mm")
        return {"model_mm": file_checksum(config.model_mm)}
    return {}


def _also_reads(config: Config) -> tuple[str, ...]:
    """The recording itself holds what some sources measure."""
    if config.stereo is not None or config.instrument_width_mm:
        return ("source", "masks")
    return ("masks",) if config.model_mm is not None else ()


STAGE = Stage(
    config=Config,
    run=run,
    version=7,
    checksums=_checksums,
    reads=("frames", "camera", "depth", "trajectory"),
    also_reads=_also_reads,
    writes=("depth/*.tiff", "sigma/*.tiff", "scale.json", "trajectory.txt", "trajectory.json"),
    seconds_per_frame=0.1,
    bytes_per_frame=450_000,
)
