"""Weights on disk: where they lie, that they are whole and hold no code, and that they fit the network exactly."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon.io.atomic import write_bytes
from recon.models.key_maps import original_names
from recon.types import ReconError

PACKAGED = Path(__file__).parent / "weights"
"""Weights that ship with the package, each beside its model card."""
WRAPPERS = ("state_dict", "model")
"""Where training scripts keep the network's own state dict beside the optimiser's."""
TRAINED = "depth.safetensors"
"""What `recon train` calls the depth network in its folder of the best networks."""
TRAINING = "endorecon"
"""Key in the header of its files, which holds JSON: several keys would lie there in another order each time."""
ZIPPED = b"PK\x03\x04"
TORCH_HEADS = (ZIPPED, b"\x80")
"""How torch's archives begin, and the bare pickles of its first years."""
PARALLEL = "module."
"""What torch's DataParallel puts before every name."""
LISTED = 6
"""How many names of each kind an error tells."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which file a network's tensors came from, and which did not."""

    sha256: str
    kept: tuple[str, ...]
    """Tensors that were not in the file, were allowed not to be, and keep their values."""


def sha256(path: Path) -> str:
    """SHA-256 of a file. Raises ReconError when it is missing or a folder."""
    if path.is_dir():
        raise ReconError(f"weights {path} are a folder, expected one file: give the path of the file with this network's weights")
    if not path.is_file():
        raise ReconError(f"weights {path} are missing: give the path of an existing file; packaged ones return by reinstalling")
    found = path.stat()
    return _digest(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _digest(path: Path, _changed_ns: int, _size: int) -> str:
    """Kept until the file changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(
    network: nn.Module,
    path: Path,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = original_names,
    may_miss: Sequence[str] = (),
    may_ignore: Sequence[str] = (),
) -> LoadedWeights:
    """Load a checkpoint into a network; see `read_checkpoint` and `fit_weights` for what is refused."""
    checksum, state = sha256(path), read_checkpoint(path)
    try:
        return LoadedWeights(checksum, fit_weights(network, rename(state), may_miss, may_ignore))
    except ReconError as error:
        raise ReconError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth, .pt or .bin that torch wrote; never runs code from the file.

    A state dict inside a training checkpoint (under "state_dict" or "model") is unwrapped, the prefix of DataParallel
    dropped, and numbers and words beside the tensors (monodepth2 stores its image size) are left out.
    Raises ReconError for a damaged file, one that holds code, and one without a state dict.
    """
    stored = _read(path)
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    if not isinstance(stored, Mapping):
        raise ReconError(f"weights {path} hold a {type(stored).__name__}, expected a state dict: save `network.state_dict()`")
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    strange = [
        str(name) for name, value in stored.items() if not (isinstance(name, str) and isinstance(value, Tensor | int | float | str | None))
    ]
    if strange or not tensors:
        found = f"entries that are no named tensors ({', '.join(strange[:4])})" if strange else "no tensor"
        raise ReconError(f"weights {path} hold {found}, expected a state dict: save `network.state_dict()`")
    parallel = all(name.startswith(PARALLEL) for name in tensors)
    return {name.removeprefix(PARALLEL): value for name, value in tensors.items()} if parallel else tensors


def read_numbers(path: Path) -> dict[str, int | float]:
    """Numbers that a checkpoint holds beside its tensors: monodepth2's family stores the width and height it trained at.

    Those of `recon train` are in the header of its file. Raises ReconError for a damaged file and one that holds code.
    """
    if path.suffix == ".safetensors":
        entries = training_facts(path).items()
    else:
        stored = _read(path)
        entries = stored.items() if isinstance(stored, Mapping) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, int | float)}


def training_facts(path: Path) -> dict[str, Any]:
    """What `recon train` says of a network in its file's header: method, size in pixels, `trained_on`; nothing of other files.

    `path` is the file or the folder with TRAINED. Raises ReconError for a damaged file.
    """
    from safetensors import safe_open

    path = path / TRAINED if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.exists():
        return {}
    with _safetensors_errors(path), safe_open(str(path), "pt") as file:
        return json.loads((file.metadata() or {}).get(TRAINING, "{}"))


def save_halved(network: nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write parameters in half precision, as safetensors with `facts` in the header for `training_facts`.

    Statistics stay whole: a running variance may be above 65504, the largest half, and infinite it would silence its channel.
    """
    from safetensors.torch import save

    parameters = dict(network.named_parameters())
    halved = {name: value.half() if name in parameters else value for name, value in network.state_dict().items()}
    contiguous = {name: value.cpu().contiguous() for name, value in halved.items()}
    write_bytes(path, save(contiguous, {TRAINING: json.dumps(facts)}))


def check_kind(path: Path) -> None:
    """Look at the ends of a file of weights: is it of the kind that its name says, and whole as far as that shows.

    Raises ReconError where it is not.
    """
    is_named_safetensors = path.suffix == ".safetensors"
    try:
        with path.open("rb") as file:
            head = file.read(9)
        size = path.stat().st_size
    except OSError as error:
        raise ReconError(f"weights {path} cannot be read: {error}; get the file again") from error
    # Its head is the length of the JSON that follows; torch's, taken for one, would be astronomic.
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8
    is_torch = not is_safetensors and head.startswith(TORCH_HEADS)
    if is_safetensors and not is_named_safetensors:
        raise ReconError(f"weights {path} are a safetensors file under another name: rename it to {path.stem}.safetensors")
    if is_torch and is_named_safetensors:
        raise ReconError(f"weights {path} were written by torch, not as safetensors: rename the file to {path.stem}.pth")
    if is_named_safetensors:
        training_facts(path)
    elif not is_torch or (head.startswith(ZIPPED) and not zipfile.is_zipfile(path)):
        raise ReconError(f"weights {path} cannot be read: it is damaged, or torch did not write it; get the file again")


def _read(path: Path) -> object:
    check_kind(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    with _safetensors_errors(path):
        return load_file(str(path))


@contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ReconError(f"weights {path} cannot be read: {error}; get the file again") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle leads torch's reader into any of a dozen
        code = re.search(r"GLOBAL (\S+)|(TorchScript)", str(error))
        if code:
            found = f"weights {path} hold code ({code[1] or code[2]}), which is never run: expected tensors only"
            raise ReconError(f"{found}; save `network.state_dict()` where the file comes from") from error
        # Of a strange pickle torch says how to run it, of a damaged one nothing.
        reason = str(error).splitlines()[0][:200] if isinstance(error, OSError) else "it is damaged, or torch did not write it"
        raise ReconError(f"weights {path} cannot be read: {reason}; get the file again") from error


def fit_weights(
    network: nn.Module, state: Mapping[str, Tensor], may_miss: Sequence[str] = (), may_ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """Give a network the tensors of a state dict; returns the names of those it kept, because the state dict lacks them.

    Only what matches a pattern of `may_miss` (`*.lora_*`) may be missing, only what matches one of `may_ignore` may be
    without a place. Nothing is loaded unless all fits. Raises ReconError listing what is missing, unknown, of another shape or
    infinite.
    """
    expected = network.state_dict()
    kept = tuple(name for name in expected if name not in state)
    fitting = {name: value for name, value in state.items() if name in expected}
    problems = [
        _listed("missing ", [name for name in kept if not _matches(name, may_miss)]),
        _listed("unknown ", [name for name in state if name not in expected and not _matches(name, may_ignore)]),
        _listed(
            "",
            [
                f"{name} is {_shape(value)}, expected {_shape(expected[name])}"
                for name, value in fitting.items()
                if value.shape != expected[name].shape
            ],
        ),
    ]
    infinite = [name for name, value in fitting.items() if not value.isfinite().all()]
    if infinite:
        raise ReconError(f"{_listed('weights with infinite numbers or none: ', infinite)}; get the file again, or train it anew")
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise ReconError(f"weights do not fit the network: {found}. Are they another network's, or of another size?")
    merged = {**expected, **{name: value.to(expected[name].dtype) for name, value in fitting.items()}}
    network.load_state_dict(merged)
    return kept


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{what}{', '.join(names[:LISTED])}{more}" if names else ""


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
