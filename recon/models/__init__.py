"""Depth networks by name. Each turns one picture behind a known lens into z-depth with its uncertainty.

A name is one of `recon models`, or the path of an exported network (`.pt2`, `.onnx`; see `recon.models.exported`). Packages
add names by the entry point group "endorecon.depth_models": each entry is a function without arguments that returns a
`ModelInfo` of the entry's name. Weights are never downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon.types import Camera, ReconError

PLUG_INS = "endorecon.depth_models"
"""The entry point group in which packages name their networks."""
EXPORTED = (".pt2", ".onnx")
STORED = (".pth", ".safetensors")
"""Files that count as weights in a folder of them: the authors' and those of `recon train`."""
UNSTATED = ("not stated",)
"""What is known of the training of weights that say nothing of it; never to be shown as trained on nothing."""


@dataclass(frozen=True)
class DepthEstimate:
    """What a network says of one picture, on the picture's own lens resized to (h, w), of the picture's aspect."""

    depth: Float[np.ndarray, "h w"]
    """z-depth, up to one factor; 0 where the network says nothing."""
    sigma: Float[np.ndarray, "h w"]
    """One standard deviation of the log of the depth; 0 where the depth is 0."""


@runtime_checkable
class DepthModel(Protocol):
    """A loaded network."""

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """Estimate depth of one RGB image; `camera` has the image's size, `mask` is True on tissue."""


@runtime_checkable
class VideoDepthModel(DepthModel, Protocol):
    """A loaded network that sees many frames at once."""

    def infer_video(
        self, frames: Iterable[tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]], camera: Camera
    ) -> Iterator[DepthEstimate]:
        """Estimate depth of consecutive RGB images with their masks, one estimate for each, in order."""


@dataclass(frozen=True)
class ModelInfo:
    """One line of `recon models`."""

    name: str
    parameters: int | None
    """None where the file does not tell."""
    trainable: int | None
    licence: str
    output: Literal["distance", "depth", "disparity", "metric"]
    """What the network itself says: along the ray, z-depth, its inverse, or z-depth in metres."""
    trained_on: tuple[str, ...]
    """Data sets (keys of `recon.data.DATASETS`; `dataset/split` where it was a split's part) that the usual weights have seen."""
    load: Callable[[str, Path | None], DepthModel]
    """From a device, and where the weights lie (None where there are none), to the model."""
    packaged: Path | None = None
    """Weights that came with the network, used unless others are given."""
    earlier: tuple[str, ...] = ()
    """SHA-256 of files that came with it before and were trained on the same."""
    published: str | None = None
    """Where the authors publish weights for `depth.weights`; None where no others can be given."""
    arithmetic: Callable[[str], str] = lambda device: "float32"
    """What most of the network is computed in on a device."""
    code: str = ""
    """Name and version of the package that brings the network, where it is not this one."""

    @property
    def weights(self) -> str:
        """ "in the package", "none needed", or how to get them."""
        if self.packaged is not None:
            return "in the package"
        return "none needed" if self.published is None else f"given by depth.weights=FILE: {self.published}"

    def weights_path(self, given: Path | None) -> Path | None:
        """Where the weights lie. Raises ReconError where they are needed and not there, and where given ones are of no use."""
        from recon.models.weights import training_facts

        if given is None:
            if self.packaged is None and self.published is not None:
                raise ReconError(f"depth.model {self.name!r} needs its weights: set depth.weights=FILE; {self.published}")
            return self.packaged
        if self.published is None:
            raise ReconError(f"depth.weights {given}: depth.model {self.name!r} takes none; leave it out")
        if not given.exists():
            raise ReconError(f"depth.weights {given} does not exist: give the weights of {self.name!r}; {self.published}")
        method = training_facts(given).get("method", self.name)
        if method != self.name:
            raise ReconError(f"depth.weights {given} were trained as {method!r}, not as {self.name!r}: set depth.model={method}")
        return given

    def seen(self, given: Path | None = None) -> tuple[str, ...]:
        """What the weights in use were trained on; UNSTATED alone where nobody says."""
        from recon.models.weights import sha256, training_facts

        if given is None or (self.packaged is not None and given.is_file() and sha256(given) in (sha256(self.packaged), *self.earlier)):
            return self.trained_on
        facts = training_facts(given)
        if "trained_on" in facts:
            return tuple(facts["trained_on"])
        # The authors' weights are the ones to give where none are packaged.
        return self.trained_on if self.packaged is None else UNSTATED

    def checksum(self, given: Path | None = None) -> str:
        """SHA-256 of the weights; the empty string where there are none.

        Raises ReconError as `weights_path` does, and for files that are plainly damaged or of another kind than their names say.
        """
        from recon.models.weights import check_kind, sha256

        path = self.weights_path(given)
        if path is None:
            return ""
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in STORED)
        if not files:
            raise ReconError(f"depth.weights {path} holds no .pth or .safetensors file: give the folder with the weights of {self.name!r}")
        for file in files:
            if file.suffix in STORED:
                check_kind(file)
        if path.is_file():
            return sha256(path)
        return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


@dataclass(frozen=True)
class PluggedIn:
    """A loaded network of another package, held to what `DepthModel` promises."""

    model: DepthModel
    info: ModelInfo

    def infer(self, image: UInt8[np.ndarray, "H W 3"], camera: Camera, mask: Bool[np.ndarray, "H W"]) -> DepthEstimate:
        """The package's own estimate. Raises ReconError naming the package where it is none."""
        estimate = self.model.infer(image, camera, mask)
        if not isinstance(estimate, DepthEstimate):
            raise self._broken(f"a {type(estimate).__name__}", "a recon.models.DepthEstimate")
        for name, values in (("depth", estimate.depth), ("sigma", estimate.sigma)):
            if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 2 or values.size == 0:
                kind = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
                raise self._broken(f"{name} that is {kind}", "an array of floats (h, w)")
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise self._broken(f"{name} with NaN, infinite or negative values", "0 where nothing is known")
        if estimate.depth.shape != estimate.sigma.shape:
            raise self._broken(f"depth {estimate.depth.shape} and sigma {estimate.sigma.shape}", "both of one size")
        return estimate

    def _broken(self, found: str, expected: str) -> ReconError:
        return ReconError(f"plug-in {self.info.code}: {self.info.name!r} returned {found}, expected {expected}; mend that package")


def registry() -> dict[str, ModelInfo]:
    """All depth models of this installation by name. Raises ReconError for a plug-in that is broken."""
    known = _own()
    for entry in _plug_ins():
        if entry.name in known:
            raise ReconError(
                f"plug-in {_origin(entry)} names its network {entry.name!r}, which is taken; rename it or uninstall that package"
            )
        known[entry.name] = _plugged_in(entry)
    return known


def model_info(name: str) -> ModelInfo:
    """What is known of a network, named or exported. Raises ReconError listing the known names."""
    if Path(name).suffix.lower() in EXPORTED:
        from recon.models.exported import exported_info

        return exported_info(Path(name))
    if Path(name).suffix.lower() in STORED:
        raise ReconError(f"depth.model {name} is a file of weights: set depth.weights={name} and depth.model to the network that it is of")
    own = _own()
    if name in own:
        return own[name]
    known = registry()
    if name not in known:
        raise ReconError(f"depth.model {name!r} is not known; known: {', '.join(known)}, or the path of an exported network (.pt2, .onnx)")
    return known[name]


def load_depth_model(name: str, device: str = "cpu", weights: Path | None = None) -> DepthModel:
    """Load a depth model by its name or path. Raises ReconError where its weights are missing, damaged or of another network."""
    info = model_info(name)
    model = info.load(device, info.weights_path(weights))
    if not info.code:
        return model
    if not isinstance(model, DepthModel):
        raise ReconError(f"plug-in {info.code} loads {name!r} as a {type(model).__name__}, expected an object with a method infer")
    return PluggedIn(model, info)


def torch_device(name: str) -> str:
    """The device to run on; "auto" is CUDA where there is one. Raises ReconError for what this machine has not."""
    import torch

    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if num_cuda else "cpu"
    known = ("cpu", *(("cuda", *(f"cuda:{index}" for index in range(num_cuda))) if num_cuda else ()))
    if name not in known:
        reason = "there is no CUDA device here" if name.startswith("cuda") and not num_cuda else f"here are {', '.join(known)}"
        raise ReconError(f"device {name!r}: {reason}; use auto or cpu")
    return name


def _own() -> dict[str, ModelInfo]:
    from recon.models import falloff, published, student

    return {info.name: info for info in (student.info(), falloff.INFO, *published.MODELS)}


def _plug_ins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=PLUG_INS))


def _plugged_in(entry: EntryPoint) -> ModelInfo:
    """Raises ReconError naming the package for whatever goes wrong in it."""
    try:
        info = entry.load()()
    except Exception as error:  # it is not our code
        raise ReconError(
            f"plug-in {_origin(entry)} cannot be loaded: {type(error).__name__}: {error}; mend or uninstall that package"
        ) from error
    if not isinstance(info, ModelInfo) or info.name != entry.name:
        found = f"a ModelInfo named {info.name!r}" if isinstance(info, ModelInfo) else f"a {type(info).__name__}"
        raise ReconError(f"plug-in {_origin(entry)} returned {found}, expected a recon.models.ModelInfo named {entry.name!r}")
    return replace(info, code=_origin(entry))


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
