"""The dense prediction head of Depth Anything (Ranftl et al. 2021), with the key names of its published state dicts.

Four feature maps of one grid become a pyramid (4, 2, 1 and 1/2 times the patch grid), are fused from coarse to fine, and end
as one channel at the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.models.vit import PATCH_PX

HEAD_CHANNELS = 32


class ResidualConvUnit(nn.Module):
    """Two pre-activated 3x3 convolutions around a short cut."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class FeatureFusionBlock(nn.Module):
    """Add a finer layer to the path from below, refine, and enlarge. The coarsest block's `resConfUnit1` is never used."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(
        self, path: Float[Tensor, "b c h w"], layer: Float[Tensor, "b c h w"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "b c rows columns"]:
        """`size` is (rows, columns) of the result."""
        if layer is not None:
            path = path + self.resConfUnit1(layer)
        return self.out_conv(resized(self.resConfUnit2(path), size))


class FusionNeck(nn.Module):
    """From a pyramid of four maps to four fused paths. `channels` are the pyramid's, finest first."""

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.scratch = nn.Module()
        for level, number in enumerate(channels, start=1):
            self.scratch.add_module(f"layer{level}_rn", nn.Conv2d(number, features, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{level}", FeatureFusionBlock(features))

    def fused(
        self, layers: Sequence[Float[Tensor, "b _c _h _w"]], mix: Callable[[int, Tensor], Tensor] = lambda place, x: x
    ) -> list[Float[Tensor, "b features _h _w"]]:
        """The four paths, finest first: twice the size of the finest layer, then that of each layer but the coarsest.

        `mix` is applied at places 2 and 3, on the two coarsest paths (coarser first).
        """
        scratch = self.scratch
        one, two, three, four = (layer(x) for layer, x in zip(self._layer_convolutions(), layers, strict=True))
        path4 = mix(2, scratch.refinenet4(four, None, _size(three)))
        path3 = mix(3, scratch.refinenet3(path4, three, _size(two)))
        path2 = scratch.refinenet2(path3, two, _size(one))
        path1 = scratch.refinenet1(path2, one, (2 * one.shape[-2], 2 * one.shape[-1]))
        return [path1, path2, path3, path4]

    def _layer_convolutions(self) -> tuple[nn.Module, ...]:
        return self.scratch.layer1_rn, self.scratch.layer2_rn, self.scratch.layer3_rn, self.scratch.layer4_rn


class DPTNeck(FusionNeck):
    """From four feature maps of one grid to four fused paths. `channels` are the pyramid's, finest first."""

    def __init__(self, width: int, features: int, channels: Sequence[int]) -> None:
        # Made before what is shared, so that random starts are drawn in the order of the pictures' way through the network.
        finest, fine, _, coarse = channels
        projects = nn.ModuleList([nn.Conv2d(width, number, 1) for number in channels])
        resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(finest, finest, 4, 4),
                nn.ConvTranspose2d(fine, fine, 2, 2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, 2, 1),
            ]
        )
        super().__init__(features, channels)
        self.projects, self.resize_layers = projects, resize_layers

    def paths(
        self, maps: Sequence[Float[Tensor, "b c rows columns"]], mix: Callable[[int, Tensor], Tensor] = lambda place, x: x
    ) -> list[Float[Tensor, "b features _h _w"]]:
        """The four paths, finest first: 8, 4, 2 and 1 times the patch grid.

        `mix` is applied at four places, which it is told: 0 and 1 on the two coarsest layers of the pyramid (finer
        first), 2 and 3 on the two coarsest paths (coarser first). Video Depth Anything mixes frames there.
        """
        layers = [resize(project(x)) for resize, project, x in zip(self.resize_layers, self.projects, maps, strict=True)]
        layers[2], layers[3] = mix(0, layers[2]), mix(1, layers[3])
        return self.fused(layers, mix)


class DPTHead(DPTNeck):
    """The neck and its one-channel output behind `activation`: a ReLU for disparity, a sigmoid for metric depth."""

    def __init__(self, width: int, features: int, channels: Sequence[int], activation: nn.Module) -> None:
        super().__init__(width, features, channels)
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, HEAD_CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(HEAD_CHANNELS, 1, 1), activation
        )

    def forward(self, maps: Sequence[Float[Tensor, "b c rows columns"]]) -> Float[Tensor, "b h w"]:
        """The output at the picture's size, from the maps of its patch grid."""
        return self.output(self.paths(maps)[0], _size(maps[0]))

    def output(self, finest: Float[Tensor, "b features _h _w"], grid: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """From the finest path to the output, for a patch grid of (rows, columns)."""
        picture = (grid[0] * PATCH_PX, grid[1] * PATCH_PX)
        return self.scratch.output_conv2(resized(self.scratch.output_conv1(finest), picture)).squeeze(1)


def resized(x: Float[Tensor, "b c _h _w"], size: tuple[int, int]) -> Float[Tensor, "b c rows columns"]:
    """Bilinear, corner pixels staying in the corners, as all of this family."""
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def _size(x: Float[Tensor, "b c rows columns"]) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
