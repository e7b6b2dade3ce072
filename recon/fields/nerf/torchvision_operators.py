"""Torchvision's wheels are compiled for CUDA: beside a torch without it their operators do not load, and the import fails.

Nerfstudio needs torchvision's transforms and nothing compiled. Where the import fails for that reason, the schemas of the operators that
it asks for are declared, and it is tried again; calling those operators would still fail.
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []
"""Keeps the declaration alive: it ends with its object."""


def import_torchvision() -> None:
    """Import torchvision, whatever torch it was built for. Raises what the import raises for any other reason."""
    try:
        import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    import_module("torchvision")
