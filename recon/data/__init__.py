"""Which layouts are known, and in which order a path is tried against them.

A source is `phantom`, a video file, or a folder. A folder is asked, in the order of `DATASETS`, whether it has the layout of a
known data set; the first that says yes opens it, and any other folder is a plain folder of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recon.data import c3vd, endonerf, endoslam, endosynth, folder, hamlyn, jhu, scared, servct, simcol, stereomis, video
from recon.data.masks import instrument_masks
from recon.io.atomic import read_json
from recon.io.cameras import check_camera_size, read_camera
from recon.types import FrameError, FrameSequence, ReconError


@dataclass(frozen=True)
class Dataset:
    """One layout: how it is recognised and opened."""

    description: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], FrameSequence]
    timed: bool = False
    """True when the frames' timestamps come from the source itself."""
    protocols: tuple[str, ...] = ()
    """Published depth protocols that belong to it, keys of `recon.eval.protocols.PROTOCOLS`."""


def is_phantom(source: str | Path) -> bool:
    """True for `phantom` and `phantom:<scene>?<settings>`, which name a rendered scene and no path."""
    return str(source) == "phantom" or str(source).startswith("phantom:")


def _open_phantom(source: str | Path) -> FrameSequence:
    from recon.data.phantom import open_phantom  # the renderer is heavy and most sources do not need it

    return open_phantom(str(source))


DATASETS: dict[str, Dataset] = {
    "phantom": Dataset(
        "a rendered scene with known truth: phantom or phantom:SCENE?seed=N&frames=N", is_phantom, _open_phantom, timed=True
    ),
    "video": Dataset("a video file", video.matches, video.open_video, timed=True),
    "c3vd": Dataset("C3VD v1 or v2: colonoscopy phantom, one sequence a folder", c3vd.matches, c3vd.open_c3vd, protocols=("c3vd-endodac",)),
    "servct": Dataset(
        "SERV-CT: stereo pairs with CT reference, the root or one Experiment folder",
        servct.matches,
        servct.open_servct,
        protocols=("servct-official", "servct-mono"),
    ),
    "scared": Dataset(
        "SCARED: one keyframe with its video, or a dataset folder of keyframes",
        scared.matches,
        scared.open_scared,
        timed=True,
        protocols=("scared-af",),
    ),
    "hamlyn": Dataset("Hamlyn as rectified by Recasens, one sequence a folder", hamlyn.matches, hamlyn.open_hamlyn, protocols=("hamlyn",)),
    "endonerf": Dataset("EndoNeRF: still stereo endoscope, deforming tissue", endonerf.matches, endonerf.open_endonerf),
    "stereomis": Dataset(
        "StereoMIS: stereo video with kinematics, one recording a folder", stereomis.matches, stereomis.open_stereomis, timed=True
    ),
    "endoslam": Dataset("EndoSLAM: frames with poses, one sequence a folder", endoslam.matches, endoslam.open_endoslam),
    "endosynth": Dataset(
        "EndoSynth: rendered views with metric depth",
        endosynth.matches,
        endosynth.open_endosynth,
        protocols=("endosynth-relative", "endosynth-metric"),
    ),
    "simcol": Dataset("SimCol3D: rendered colonoscopy, one Frames folder", simcol.matches, simcol.open_simcol),
    "jhu": Dataset("JHU nasal endoscopy with structure-from-motion poses", jhu.matches, jhu.open_jhu),
    "folder": Dataset("a folder of images of one size", Path.is_dir, folder.open_folder),
}
"""Known layouts in the order in which `detect` asks them."""


def detect(source: str | Path) -> str:
    """Name of the first data set whose layout fits. Raises ReconError when the path does not exist or is neither file nor folder."""
    if is_phantom(source):
        return "phantom"
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:
        raise ReconError(f"{source} cannot be read: {error.strerror}") from error
    if not exists:
        raise ReconError(f"{source} does not exist; give a video file, a folder of images or a sequence of a known data set")
    try:
        return next(name for name, layout in DATASETS.items() if name != "phantom" and layout.matches(path))
    except StopIteration:
        raise ReconError(f"{source} is neither a file nor a folder") from None
    except OSError as error:
        raise ReconError(f"{source} cannot be read: {error.strerror}") from error


def known_layout(path: Path) -> str | None:
    """Name of the data set whose layout a folder has; None for plain folders of images and for files."""
    names = (name for name, layout in DATASETS.items() if name not in ("phantom", "video", "folder") and layout.matches(path))
    return next(names, None) if path.is_dir() else None


def open_sequence(
    source: str | Path,
    dataset: str | None = None,
    camera_file: str | Path | None = None,
    masks_dir: str | Path | None = None,
) -> FrameSequence:
    """Open a recording without decoding it.

    `dataset` overrides detection; `camera_file` replaces the data set's own camera and must fit the images; `masks_dir` holds
    instrument masks named like the frames (white = instrument). Raises ReconError (exit code 2) naming the path and the reason.
    """
    if dataset is not None and dataset not in DATASETS:
        raise ReconError(f"data set {dataset!r} is not known; known: {', '.join(DATASETS)}")
    name = detect(source)
    name = dataset or name
    try:
        sequence = DATASETS[name].open(Path(source) if name != "phantom" else source)
    except OSError as error:
        raise ReconError(f"{source} cannot be read as {name}: {error}") from error
    if camera_file is not None:
        sequence = replace(sequence, camera=_camera_for(sequence, camera_file, source))
    if masks_dir is not None:
        sequence = replace(sequence, instrument_mask=instrument_masks(Path(masks_dir), sequence.frames))
    return sequence


def open_source(folder: str | Path) -> FrameSequence:
    """Open what `folder/source.json` describes: {"path", "dataset", "camera_file", "masks_dir"}, all but the path may be null."""
    spec = read_json(Path(folder) / "source.json")
    return open_sequence(spec["path"], spec.get("dataset"), spec.get("camera_file"), spec.get("masks_dir"))


def _camera_for(sequence: FrameSequence, camera_file: str | Path, source: str | Path):
    camera = read_camera(camera_file)
    for frame in sequence.frames:
        try:
            height, width = frame.image().shape[:2]
        except FrameError:
            continue
        check_camera_size(camera, width, height, camera_file, source)
        return camera
    raise ReconError(f"{source} has no frame that can be decoded")
