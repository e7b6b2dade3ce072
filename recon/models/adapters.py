"""Few trained numbers on top of frozen Linear layers, put there by name, and folded into the weights for inference.

An adapted layer is still a Linear with its `weight` and `bias` under their old names, so weights load before or after;
the adapter's own numbers lie beside them (`lora_A`, ...), named as in the published checkpoints. `KINDS` holds what there is:
another kind is one more subclass of `AdaptedLinear`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from recon.types import ReconError


class AdaptedLinear(nn.Linear, ABC):
    """A Linear layer whose weight an adapter changes. It takes over the tensors of `linear`."""

    warm_up: ClassVar[tuple[str, ...]]
    """Names of the parameters that are trained at first."""
    tuned: ClassVar[tuple[str, ...]]
    """Names of the parameters that are trained after the warm-up."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        """`scale` multiplies what the adapter adds: alpha / rank in the papers' terms."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale

    @abstractmethod
    def changed_weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight that the layer amounts to."""

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return functional.linear(x, self.changed_weight(), self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain Linear that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.changed_weight())
        linear.bias = self.bias
        return linear


class LoRALinear(AdaptedLinear):
    """LoRA (Hu et al. 2022): y = W x + b + scale B A x, with B 0 at first."""

    warm_up = ("lora_A", "lora_B")
    tuned = ("lora_A", "lora_B")

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear, rank, scale)
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def factors(self) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
        """What the input, and then the outcome, is multiplied by."""
        return self.lora_A, self.lora_B

    def changed_weight(self) -> Float[Tensor, "outputs inputs"]:
        down, up = self.factors()
        return self.weight + self.scale * up @ down

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        down, up = self.factors()
        return functional.linear(x, self.weight, self.bias) + self.scale * functional.linear(functional.linear(x, down), up)


class DVLoRALinear(LoRALinear):
    """DV-LoRA (EndoDAC, Cui et al. 2024): y = W x + b + scale (B * V) (A * U) x, with one U a rank and one V an output.

    A and B are trained in the warm-up while U and V keep their random values in (-1, 1); after it, U and V alone.
    """

    tuned = ("lora_U", "lora_V")

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear, rank, scale)
        self.lora_U = nn.Parameter(linear.weight.new_empty(rank, 1).uniform_(-1, 1))
        self.lora_V = nn.Parameter(linear.weight.new_empty(linear.out_features, 1).uniform_(-1, 1))

    def factors(self) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
        return self.lora_A * self.lora_U, self.lora_B * self.lora_V


class RVLoRALinear(DVLoRALinear):
    """RVLoRA (Li et al. 2024, arXiv 2409.07723; EndoUFM): DV-LoRA whose U and V keep their random values; A and B are trained throughout.

    Every layer draws its own vectors, as the published code does (it builds vectors that all layers share and never uses them).
    """

    tuned = ("lora_A", "lora_B")


class SSBLinear(AdaptedLinear):
    """SSB (Si et al., "See further for parameter efficient fine-tuning by standing on the shoulders of decomposition", 2024):
    y = b * (W (a * x)) + bias, with a factor an input and one an output, all 1 at first. Of rank and scale it knows nothing.

    The names are EndoDAV's: a is `lora_A`, b is `lora_B`.
    """

    warm_up = ("lora_A", "lora_B")
    tuned = ("lora_A", "lora_B")

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear, rank, scale)
        self.lora_A = nn.Parameter(linear.weight.new_ones(linear.in_features, 1))
        self.lora_B = nn.Parameter(linear.weight.new_ones(linear.out_features, 1))

    def changed_weight(self) -> Float[Tensor, "outputs inputs"]:
        return self.lora_B * self.weight * self.lora_A.T


KINDS: dict[str, type[AdaptedLinear]] = {
    "lora": LoRALinear,
    "dvlora": DVLoRALinear,
    "rvlora": RVLoRALinear,
    "ssb": SSBLinear,
}


def attach(network: nn.Module, pattern: str, kind: str, rank: int = 4, scale: float = 1.0) -> list[str]:
    """Adapt every Linear whose dotted name matches `pattern` (as file names do: * and [12]); returns their names.

    Raises ReconError for an unknown kind and where nothing matches.
    """
    if kind not in KINDS:
        raise ReconError(f"adapter {kind!r} is not known; known: {', '.join(KINDS)}")
    # Exactly Linear: nn.MultiheadAttention reads the weight of its output layer, a subclass, without calling the layer.
    linears = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    plain = [name for name in linears if fnmatchcase(name, pattern)]
    if not plain:
        some = ", ".join(list(linears)[:3]) or "none"
        raise ReconError(f"adapter pattern {pattern!r}: found no Linear layer of that name to adapt; the network has {some} ...")
    for name in plain:
        network.set_submodule(name, KINDS[kind](linears[name], rank, scale))
    return plain


def train_adapters(network: nn.Module, warm_up: bool) -> None:
    """Freeze all of the network but its adapters' numbers of the warm-up, or of the time after it."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, AdaptedLinear):
            for name in module.warm_up if warm_up else module.tuned:
                module.get_parameter(name).requires_grad_(True)


def merge(network: nn.Module) -> list[str]:
    """Replace every adapted layer by the plain Linear that computes the same; returns their names."""
    adapted = {name: module for name, module in network.named_modules() if isinstance(module, AdaptedLinear)}
    for name, module in adapted.items():
        network.set_submodule(name, module.merged())
    return list(adapted)
