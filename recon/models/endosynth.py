"""EndoSynth's four zero-shot metric networks (Toussaint et al., "Zero-shot monocular metric depth for endoscopic images", 2025).

Known networks, fine-tuned on rendered views of instruments to say metres up to MAX_METRES. `VARIANTS` holds what the authors'
inference code does with each: colours, and how the output becomes metres. All see INPUT_PX, whatever the picture's aspect.

Decided here, where that code is silent or wrong:
- Its loader swaps red and blue of arrays that are RGB already, so the authors' own files are fed (blue, green, red), as their
  published figures were made. Networks of `recon train` see RGB, and say so; `load_metric` takes either order for any file.
- For MiDaS it computes depth from the picture instead of from the output; here from the output. Nothing there keeps that depth
  below MAX_METRES: it is cut there, though not in training, where a cut would leave no gradient.
- EndoDAC sees ImageNet-normalised colours in EndoSynth, unlike in EndoDAC itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from recon.models import depth_anything, midas
from recon.models.depth_anything import DepthAnything, imagenet_normalised
from recon.models.dpt import resized
from recon.models.endodac import EndoDAC
from recon.models.inference import PictureDepth, Reading, cubic
from recon.models.monodepth2 import depth_from_sigmoid
from recon.models.weights import TRAINED, load_weights, read_numbers
from recon.types import ReconError

PREFIX = "endosynth-"
"""Of the networks' names in the registry."""
MAX_METRES, MIN_METRES = 0.3, 0.001
INPUT_PX = (742, 420)
"""Width and height that the networks see: 53 by 30 patches of 14 px."""
INVERSE_FLOOR = 1e-5
"""Added to Depth Anything V1's output, so that its logarithm is finite."""
MIDAS_FACTOR = 70_000.0
"""Of MiDaS' depth, whose inverse is in the thousands."""

Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Variant:
    """One of the four networks."""

    build: Callable[[Any], nn.Module]
    """From one of `sizes` to the network."""
    sizes: Mapping[str, Any]
    published_size: str
    normalised: Callable[[Tensor], Tensor]
    """From RGB in [0, 1] to what the network takes."""
    metres: Callable[[Tensor], Tensor]
    """From the network's output to z-depth in metres."""
    is_enlarged_first: bool
    """Whether the output is brought to the picture's size before it becomes metres, or after."""
    unused: tuple[str, ...] = ()
    """What files hold that the network does not."""
    last_layer: str = ""
    """The convolution before a final ReLU, where there is one."""
    usual_output: float = 0.0
    """What stands for about 5 cm behind that ReLU."""

    def wake(self, network: nn.Module) -> None:
        """Make a network of random weights say about 5 cm: a final ReLU that gives 0 everywhere would never learn."""
        if self.last_layer:
            layer = network.get_submodule(self.last_layer)
            with torch.no_grad():
                layer.weight.mul_(self.usual_output)
                layer.bias.fill_(self.usual_output)

    def metres_at(self, output: Float[Tensor, "b _h _w"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """z-depth in metres at (rows, columns)."""
        if self.is_enlarged_first:
            return self.metres(resized(output[:, None], size)[:, 0])
        return resized(self.metres(output)[:, None], size)[:, 0]


def finest(found: Any) -> Float[Tensor, "b _h _w"]:
    """What a network says; of EndoDAC's four scales, the finest."""
    return found[0] if isinstance(found, list) else found


def metres_from_inverse(output: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """z-depth of Depth Anything V1's inverse depth r >= 0: 0.3 sigmoid(-log(r + 1e-5)), which is 0.3 / (1 + r + 1e-5)."""
    return MAX_METRES * torch.sigmoid(-torch.log(functional.relu(output) + INVERSE_FLOOR))


def metres_from_sigmoid(output: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """z-depth of EndoDAC's sigmoid disparity: 0.3 m at 0, 1 mm at 1."""
    return depth_from_sigmoid(output, MIN_METRES, MAX_METRES)


def metres_from_midas(output: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """z-depth of MiDaS' inverse depth: 70,000 times EndoDAC's rule. Without a bound; see the module."""
    return MIDAS_FACTOR * depth_from_sigmoid(output, MIN_METRES, MAX_METRES)


def centred(colour: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """RGB in [0, 1] as MiDaS sees it: -1 to 1."""
    return (colour - 0.5) / 0.5


VARIANTS: dict[str, Variant] = {
    "dav1": Variant(
        build=lambda size: DepthAnything(1, size),
        sizes=depth_anything.SIZES,
        published_size="base",
        normalised=imagenet_normalised,
        metres=metres_from_inverse,
        is_enlarged_first=False,
        last_layer="depth_head.scratch.output_conv2.2",
        usual_output=5.0,
    ),
    "dav2": Variant(
        build=lambda size: DepthAnything(2, size, MAX_METRES),
        sizes=depth_anything.SIZES,
        published_size="base",
        normalised=imagenet_normalised,
        metres=lambda metres: metres,
        is_enlarged_first=False,
    ),
    "endodac": Variant(
        build=EndoDAC,
        sizes=depth_anything.SIZES,
        published_size="base",
        normalised=imagenet_normalised,
        metres=metres_from_sigmoid,
        is_enlarged_first=True,
    ),
    "midas": Variant(
        build=midas.Midas,
        sizes=midas.SIZES,
        published_size="large",
        normalised=centred,
        metres=metres_from_midas,
        is_enlarged_first=True,
        unused=midas.UNUSED,
        last_layer="scratch.output_conv.4",
        usual_output=1400.0,
    ),
}
"""By the names of the authors' files (`dav1-f.pth`, ...)."""


class MetricDepth:
    """A loaded network that says metres: `infer(rgb)`."""

    def __init__(self, variant: Variant, network: nn.Module, size_px: tuple[int, int], channels: Channels, device: str) -> None:
        self.variant, self.size_px, self.channels, self.device = variant, size_px, channels, device
        self.network = network.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def infer(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """z-depth in metres, above 0 and at most MAX_METRES, of a picture whose channels are red, green, blue."""
        colour = torch.from_numpy(cubic(rgb, self.size_px)).permute(2, 0, 1)[None].to(self.device)
        output = finest(self.network(self.prepared(colour))).float()
        return self.variant.metres_at(output, rgb.shape[:2])[0].clamp(max=MAX_METRES).cpu().numpy()

    def prepared(self, colour: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB in [0, 1] in the order and range that the weights were trained with."""
        return self.variant.normalised(of_order(colour, self.channels))

    def reading(self) -> Reading:
        """How the pipeline reads this network: metres on the network's own grid, at the picture's aspect."""
        variant = self.variant

        def z_depth(output: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
            return variant.metres(torch.from_numpy(output)).clamp(max=MAX_METRES).numpy()

        return Reading(lambda width, height: self.size_px, z_depth, self.prepared, cubic)


def of_order(colour: Float[Tensor, "b 3 h w"], channels: Channels) -> Float[Tensor, "b 3 h w"]:
    """RGB with its channels as they are or from blue to red."""
    return colour if channels == "rgb" else colour.flip(1)


def variant_size(name: str, size: str) -> Any:
    """The size of that name of a variant; "" is the published one. Raises ReconError listing what there is."""
    if name not in VARIANTS:
        raise ReconError(f"variant must be one of {', '.join(VARIANTS)}, found {name!r}")
    sizes = VARIANTS[name].sizes
    if size and size not in sizes:
        raise ReconError(f"size of {name} must be one of {', '.join(sizes)}, found {size!r}")
    return sizes[size or VARIANTS[name].published_size]


def encoder_width(size: Any) -> int:
    """By which a trained file tells its size."""
    return size.beit.width if isinstance(size, midas.MidasSize) else size.vit.width


def load_metric(name: str, weights: Path, device: str = "cpu", channels: Channels | None = None) -> MetricDepth:
    """Load the variant `name` from the authors' `*-f.pth` or from a file or folder of `recon train`.

    `channels` is the order in which colours are fed: as the file says, where nothing is given; see the module. Raises ReconError
    for an unknown variant, a damaged file and one that does not fit.
    """
    size = variant_size(name, "")
    if weights.is_dir():
        weights = weights / (TRAINED if (weights / TRAINED).exists() else f"{name}-f.pth")
    numbers = read_numbers(weights)
    variant = VARIANTS[name]
    if "encoder_width" in numbers:
        size = next((known for known in variant.sizes.values() if encoder_width(known) == numbers["encoder_width"]), size)
    network = variant.build(size)
    load_weights(network, weights, may_ignore=variant.unused)
    trained = "is_rgb" in numbers
    size_px = (int(numbers["width"]), int(numbers["height"])) if trained else INPUT_PX
    order: Channels = "rgb" if trained and numbers["is_rgb"] else "bgr"
    return MetricDepth(variant, network, size_px, channels or order, device)


def load_endosynth(name: str, device: str, weights: Path) -> PictureDepth:
    """The same as a depth model of the pipeline; its depth is in metres."""
    model = load_metric(name, weights, device)
    return PictureDepth(model.network, finest, model.reading(), device)
