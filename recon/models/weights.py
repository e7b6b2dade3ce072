"""Weights on disk: where they lie, that they are whole, and that they fit the network exactly."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch

from recon.types import ReconError

PACKAGED = Path(__file__).parent / "weights"
"""Weights that ship with the package, each beside its model card."""


@lru_cache(maxsize=8)
def sha256(path: Path) -> str:
    """SHA-256 of a file. Raises ReconError when it is missing."""
    if not path.is_file():
        raise ReconError(f"weights {path} are missing: reinstall the package or train them with `recon train`", exit_code=1)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Load safetensors into a network whose tensors must agree in name and shape.

    Raises ReconError listing what is missing, unknown or of another shape, and for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ReconError(f"weights {path} cannot be read: {error}", exit_code=1) from error
    expected = network.state_dict()
    problems = [f"missing {name}" for name in expected if name not in stored]
    problems += [f"unknown {name}" for name in stored if name not in expected]
    problems += [
        f"{name} is {tuple(stored[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in stored and stored[name].shape != value.shape
    ]
    if problems:
        raise ReconError(f"weights {path} do not fit the network: {'; '.join(problems[:8])} ({len(problems)} in all)", exit_code=1)
    network.load_state_dict({name: value.to(expected[name].dtype) for name, value in stored.items()})
