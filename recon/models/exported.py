"""Anyone's network in a file: `depth.model=path/to/network.pt2` (torch.export) or `.onnx`, under one array contract.

Inputs are float32 arrays, told apart by their names, which are the names of `forward`'s parameters in a `.pt2`:

    image  (1, 3, h, w)  RGB in [0, 1]; needed
    rays   (1, 3, h, w)  unit ray of each pixel, camera axes x right, y down, z forward; taken where the network names it
    mask   (1, 1, h, w)  1 on tissue, 0 elsewhere; taken where the network names it

Outputs are float32 arrays (1, h', w') or (1, 1, h', w'), told apart by their names, which are the keys of the dict that
`forward` returns in a `.pt2`. Exactly one of the first three is needed:

    depth      z-depth, in any unit            distance   along the ray, in any unit
    disparity  proportional to 1 / z-depth     sigma      one standard deviation of the log of the depth; where the network says it

The picture is resized to the h and w that the file fixes, whatever its aspect; a side that the file leaves open is a
multiple of 32 near the picture's aspect, about 320 by 256 px large, or what the file allows that is nearest to that.
Outputs that are no positive number are unknown depth, and outputs of other names are left alone. An `.onnx` holds its
weights itself: those beside it would not be told from others when results are reused.
A `.pt2` may hold code that runs when it is read: use files of people you trust, as with any program.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from recon.geometry.cameras import resize
from recon.models import UNSTATED, DepthEstimate, ModelInfo
from recon.models.inference import ENDOSCOPIC_PX, SIGMA, of_aspect, on_tissue
from recon.models.student import input_size, lens_rays
from recon.types import Camera, ReconError

CHANNELS = {"image": 3, "rays": 3, "mask": 1}
KINDS = ("depth", "distance", "disparity")
OPEN_AREA_PX = ENDOSCOPIC_PX[0] * ENDOSCOPIC_PX[1]
LONGEST_PX = 1 << 14
"""Of a side that a file leaves open upwards."""
EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)
"""How an entry of the format's `external_data` begins that names a file: key "location", then the length of the name."""


@dataclass(frozen=True, repr=False)
class OpenSide:
    """A side that a file leaves open: step * n + offset pixels, low <= n <= high."""

    step: int = 1
    offset: int = 0
    low: int = 1
    high: int = LONGEST_PX

    def nearest(self, wanted_px: int) -> int:
        """The allowed length next to the wanted one."""
        return self.step * min(max(round((wanted_px - self.offset) / self.step), self.low), self.high) + self.offset

    def __repr__(self) -> str:
        return "open"


Side = int | OpenSide


@dataclass(frozen=True)
class Network:
    """A network of arrays by name."""

    shapes: dict[str, tuple[Side, ...]]
    """Of the inputs."""
    run: Callable[[dict[str, np.ndarray]], Mapping[str, object]]


class ExportedDepth:
    """A network in a file as a depth model."""

    def __init__(self, path: Path, network: Network) -> None:
        self.path, self.network = path, network
        wrong = {
            name: shape
            for name, shape in network.shapes.items()
            if name not in CHANNELS or len(shape) != 4 or not _is(shape[0], 1) or not _is(shape[1], CHANNELS[name])
        }
        if wrong or "image" not in network.shapes:
            found = ", ".join(f"{name} {shape}" for name, shape in network.shapes.items()) or "none"
            raise ReconError(
                f"{path}: inputs are {found}; expected image (1, 3, h, w) and, where used, rays (1, 3, h, w), mask (1, 1, h, w)"
            )

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """z-depth up to one factor, and the network's sigma, or `inference.SIGMA`. Raises ReconError where the contract is broken."""
        size = self._size(camera)
        layers = {
            "image": cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255,
            "rays": lens_rays(resize(camera, *size)),
            "mask": cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)[..., None],
        }
        given = {name: np.ascontiguousarray(layers[name].transpose(2, 0, 1)[None]) for name in self.network.shapes}
        outputs = self._outputs(given, size)
        kinds = [name for name in KINDS if name in outputs]
        if len(kinds) != 1:
            raise ReconError(f"{self.path}: outputs are {', '.join(outputs) or 'unnamed'}; expected exactly one of {', '.join(KINDS)}")
        values = of_aspect(self._plane(kinds[0], outputs), camera)
        sigma = of_aspect(self._plane("sigma", outputs), camera) if "sigma" in outputs else np.full_like(values, SIGMA)
        if sigma.shape != values.shape:
            raise ReconError(f"{self.path}: output sigma is of another size than {kinds[0]}; make them alike")
        return on_tissue(self._z_depth(kinds[0], values, camera), np.where(sigma > 0, sigma, SIGMA), camera, mask)

    def _size(self, camera: Camera) -> tuple[int, int]:
        """Width and height that the network sees."""
        height, width = self.network.shapes["image"][2:]
        wanted = input_size(camera.width_px, camera.height_px, OPEN_AREA_PX)
        sides = [side if isinstance(side, int) else side.nearest(px) for side, px in zip((width, height), wanted, strict=True)]
        return sides[0], sides[1]

    def _outputs(self, given: dict[str, np.ndarray], size: tuple[int, int]) -> Mapping[str, object]:
        try:
            return self.network.run(given)
        except ReconError:
            raise
        except Exception as error:  # it is not our code
            reason = (str(error).splitlines() or [""])[0][:200]
            raise ReconError(
                f"{self.path}: fails on a picture of {size[0]} x {size[1]} px ({type(error).__name__}: {reason}); "
                "export it for a fixed size",
                exit_code=1,
            ) from error

    def _plane(self, name: str, outputs: Mapping[str, object]) -> Float[np.ndarray, "h w"]:
        found = outputs[name]
        if isinstance(found, torch.Tensor):
            found = found.float().cpu().numpy()
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            kind = f"an array of {found.dtype}" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
            raise ReconError(f"{self.path}: output {name} is {kind}, expected an array of float32 (1, h, w) or (1, 1, h, w)")
        values = found.astype(np.float32)
        if values.ndim not in (3, 4) or any(side != 1 for side in values.shape[:-2]) or 0 in values.shape:
            raise ReconError(f"{self.path}: output {name} is {values.shape}, expected (1, h, w) or (1, 1, h, w)")
        return values.reshape(values.shape[-2:])

    @staticmethod
    def _z_depth(kind: str, values: np.ndarray, camera: Camera) -> np.ndarray:
        if kind == "depth":
            return values
        if kind == "distance":
            return values * lens_rays(resize(camera, values.shape[1], values.shape[0]))[..., 2]
        return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def exported_info(path: Path) -> ModelInfo:
    """What is known of a file without loading it. Raises ReconError where it is missing, or plainly cannot be loaded."""
    if path.is_dir():
        raise ReconError(f"depth.model {path} is a folder: give the path of an exported network's file, or a name from `recon models`")
    if not path.is_file():
        raise ReconError(f"depth.model {path} does not exist: give the path of an exported network, or a name from `recon models`")
    is_onnx = path.suffix.lower() == ".onnx"
    if is_onnx:
        _check_onnx(path)
    elif not zipfile.is_zipfile(path):
        raise ReconError(f"{path} cannot be read: it is damaged or of another kind; write it with torch.export.save")
    load = _load_onnx if is_onnx else _load_torch
    return ModelInfo(
        name=str(path),
        parameters=None,
        trainable=None,
        licence="as its owner states",
        output="depth",
        trained_on=UNSTATED,
        load=lambda device, weights: ExportedDepth(path, load(path, device)),
        packaged=path,
    )


def _load_torch(path: Path, device: str) -> Network:
    try:
        with _silent("torch"):
            program = torch.export.load(path)
    except Exception as error:  # a damaged archive leads torch's reader into any of a dozen
        raise ReconError(f"{path} cannot be read: {type(error).__name__}; write it with torch.export.save") from error
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    names = program.graph_signature.user_inputs
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes = {name: tuple(_torch_side(side, program.range_constraints) for side in nodes[name].shape) for name in names}
    module = program.module()

    def run(given: dict[str, np.ndarray]) -> dict[str, object]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(given[name]).to(device) for name in names))
        if not isinstance(outputs, dict):
            raise ReconError(f"{path}: returns a {type(outputs).__name__}, expected a dict with one of {', '.join(KINDS)}; export it so")
        return {str(name): value for name, value in outputs.items()}

    return Network(shapes, run)


def _torch_side(side: int | torch.SymInt, ranges: Mapping[Any, Any]) -> Side:
    """An open side of `torch.export` is an expression of a symbol that has bounds; OpenSide() where it is not a growing line."""
    if isinstance(side, int):
        return side
    expression = side.node.expr
    symbols = list(expression.free_symbols)
    if len(symbols) != 1:
        return OpenSide()
    offset, at_one = (int(expression.subs(symbols[0], value)) for value in (0, 1))
    if at_one <= offset or symbols[0] not in ranges:
        return OpenSide()
    bounds = ranges[symbols[0]]
    return OpenSide(at_one - offset, offset, int(max(bounds.lower, 1)), int(min(bounds.upper, LONGEST_PX)))


def _is(side: Side, length: int) -> bool:
    return isinstance(side, OpenSide) or side == length


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """torch logs how the reading of a damaged file failed, with its trace, before it raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_onnx(path: Path) -> None:
    """Raises ReconError without the runtime, and where weights lie in files beside this one."""
    if find_spec("onnxruntime") is None:
        raise ReconError(f"{path}: ONNX files need the package onnxruntime, which is not installed: pip install onnxruntime")
    if path.stat().st_size == 0:
        raise ReconError(f"{path} cannot be read: it is empty; export it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for entry in EXTERNAL.finditer(content):
            beside = path.parent / content[entry.end() : entry.end() + entry[1][0]].decode(errors="replace")
            if beside.exists():
                raise ReconError(f"{path} keeps weights in {beside.name}: put them into the file itself (export with external_data=False)")


def _load_onnx(path: Path, device: str) -> Network:
    onnxruntime = importlib.import_module("onnxruntime")
    providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # its own kinds of errors, one for each way in which a file is damaged
        raise ReconError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}; export it again") from error
    shapes = {entry.name: tuple(side if isinstance(side, int) else OpenSide() for side in entry.shape) for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    return Network(shapes, lambda given: dict(zip(names, session.run(None, given), strict=True)))
