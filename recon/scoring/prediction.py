"""What is scored: a run's or anyone's depth, camera path or surface, in one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from recon.io.atomic import read_json
from recon.io.depth import read_depth
from recon.io.masks import read_mask
from recon.io.meshes import read_mesh
from recon.scoring.score import Inputs
from recon.types import FrameSequence, Mesh, Trajectory, Unit


@dataclass(frozen=True)
class Prediction:
    """One method's result for one sequence. Parts that it does not have are None."""

    name: str
    """Of the method, as tables show it."""
    inputs: Inputs
    unit: Unit
    """Of depth, path and surface alike."""
    depth: Callable[[int], Float[np.ndarray, "h w"] | None] | None = None
    """From frame index to z-depth (or disparity); 0, negative, NaN and infinite are unknown. None for a frame that has none."""
    is_disparity: bool = False
    """True when `depth` gives values proportional to 1 / z."""
    trajectory: Trajectory | None = None
    mesh: Mesh | None = None
    scope: Bool[np.ndarray, "h w"] | None = None
    """True where the recording's image shows tissue and not the scope's border, where that is known."""
    notes: tuple[str, ...] = ()

    def z_depth(self, index: int) -> Float[np.ndarray, "h w"] | None:
        """Depth of a frame, up to scale where `depth` gives disparity; 0 unknown, None for a frame that has none."""
        depth = None if self.depth is None else self.depth(index)
        if depth is None:
            return None
        z = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0) if self.is_disparity else depth
        return np.where((z > 0) & (z < np.inf), z, np.zeros_like(z))


def chosen_frames(sequence: FrameSequence, indices: Sequence[int] | None, max_frames: int | None) -> list[int]:
    """The frames to score: all or the given ones, and of these at most `max_frames`, evenly spread."""
    wanted = list(range(len(sequence.frames)) if indices is None else indices)
    if max_frames is None or len(wanted) <= max_frames:
        return wanted
    return [wanted[k] for k in np.linspace(0, len(wanted) - 1, max_frames).round().astype(int)]


def prediction_of_run(name: str, inputs: Inputs, scaled: Path, mesh_file: Path | None, scope_file: Path) -> Prediction:
    """What a run found: depth and poses in the folder that its scale stage wrote, the scope's field, and its mesh where wanted."""
    posed = [frame for frame in read_json(scaled / "trajectory.json")["frames"] if frame["T_world_camera"] is not None]
    indices = np.array([frame["index"] for frame in posed], dtype=np.int64)
    poses = np.array([frame["T_world_camera"] for frame in posed], dtype=np.float64).reshape(-1, 4, 4)
    unit: Unit = read_json(scaled / "scale.json")["unit"]
    files = {int(file.stem): file for file in sorted((scaled / "depth").glob("*.tiff"))}
    return Prediction(
        name,
        inputs,
        unit,
        depth=lambda index: read_depth(files[index]) if index in files else None,
        # Frames are matched by index, so times play no part.
        trajectory=Trajectory(indices, indices.astype(np.float64), poses, unit),
        mesh=None if mesh_file is None else replace(read_mesh(mesh_file), unit=unit),
        scope=read_mask(scope_file),
    )
