"""From a TOML file and `section.key=value` words to one checked, frozen config per stage.

Defaults live in the dataclasses of the stages; a file or a word holds only what differs. Nothing is guessed: an
unknown name or a value of the wrong type is an error that lists what is known.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from recon.types import MAX_SEED, MAX_THREADS, ReconError, bounded


@dataclass(frozen=True)
class Settings:
    """What holds for a whole run. A stage config that declares a field of the same name takes its value from here."""

    seed: int = bounded(0, 0, MAX_SEED)
    """Of everything random."""
    num_threads: int = bounded(0, 0, MAX_THREADS)
    """0 means all; with 1 the same seed gives the same mesh, byte for byte."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    fuse: Literal["tsdf", "splats", "nerf"] = "tsdf"
    """How depth becomes a surface: "tsdf" holds the tissue for rigid; "splats" are Gaussians that move with it, "nerf" a field of
    density and colour under a deformation (extra `nerf`)."""


def read_table(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file, when there is one, and lay `section.key=value` words over it."""
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ReconError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ReconError(f"{path}: not valid TOML: {error}") from error
    for word in overrides:
        _override(table, word)
    return table


def settings_from(table: dict[str, Any], sections: Iterable[str]) -> Settings:
    """Check the keys that stand before any section. `sections` are the names of the stages."""
    known = [f.name for f in fields(Settings)]
    sections = list(sections)
    for name, value in table.items():
        if name in known:
            continue
        if name not in sections:
            kind, choices = ("section", sections) if isinstance(value, dict) else ("key", known)
            raise ReconError(f"config has no {kind} {name!r}{_nearest(name, choices)}; it has: {', '.join(choices)}")
        if not isinstance(value, dict):
            raise ReconError(f"config: {name!r} is a section; write [{name}] or {name}.key=value")
    return build_config(Settings, {k: v for k, v in table.items() if k in known}, "config")


def stage_config(config: type, section: str, table: dict[str, Any], settings: Settings) -> Any:
    """Make the config of one stage from its section, with what `settings` says of the whole run."""
    names = {f.name for f in fields(config)}
    shared = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in names}
    return build_config(config, {**shared, **table.get(section, {})}, f"[{section}]")


def build_config(config: type, values: dict[str, Any], where: str) -> Any:
    """Make a checked dataclass; `where` names the place that a complaint is about."""
    hints = typing.get_type_hints(config)
    known = {f.name: f for f in fields(config)}
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ReconError(f"{where} has no key {name!r}{_nearest(name, list(known))}; it has: {', '.join(known) or 'none'}")
        try:
            checked[name] = _checked(value, hints[name])
            _check_bounds(checked[name], known[name].metadata.get("bounds"))
        except TypeError as error:
            raise ReconError(f"{where} {name} must be {error}, found {value!r}") from None
    try:
        return config(**checked)
    except ValueError as error:
        raise ReconError(f"{where} {error}") from error


def _override(table: dict[str, Any], word: str) -> None:
    name, equals, text = word.partition("=")
    parts = name.split(".")
    if not equals or not all(parts) or len(parts) > 2:
        raise ReconError(f"--set takes section.key=value, found {word!r}")
    section = table if len(parts) == 1 else table.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ReconError(f"--set {word}: {parts[0]!r} is no section")
    section[parts[-1]] = _value(text)


def _value(text: str) -> Any:
    """Read a word as TOML; what is not TOML is a plain string, so `--set depth.model=student` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(value: Any, hint: Any) -> Any:
    """Return `value` as `hint` wants it; raises TypeError that says what was wanted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise TypeError("one of " + ", ".join(map(repr, arguments)))
    if origin in (types.UnionType, typing.Union):
        return _checked_union(value, arguments)
    if origin is tuple:
        return _checked_tuple(value, arguments)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise TypeError("a finite number")
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
        raise TypeError({int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(hint, hint.__name__))
    return value


def _check_bounds(value: Any, bounds: tuple[int | float, int | float] | None) -> None:
    """Raises TypeError that says which numbers are allowed; fields without bounds take any."""
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return
    low, high = bounds
    raise TypeError(f"at least {low}" if math.isinf(high) else f"between {low} and {high}")


def _checked_union(value: Any, choices: tuple[Any, ...]) -> Any:
    """TOML has no null: the word `none` stands for None where a field allows it."""
    if types.NoneType in choices and value in (None, "none"):
        return None
    wanted = []
    for choice in choices:
        if choice is types.NoneType:
            wanted.append("'none'")
            continue
        try:
            return _checked(value, choice)
        except TypeError as error:
            wanted.append(str(error))
    raise TypeError(" or ".join(wanted))


def _checked_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = len(arguments) == 2 and arguments[1] is Ellipsis
    if not isinstance(value, list) or (not repeated and len(value) != len(arguments)):
        raise TypeError("a list" if repeated else f"a list of {len(arguments)}")
    return tuple(_checked(item, arguments[0] if repeated else arguments[i]) for i, item in enumerate(value))


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
