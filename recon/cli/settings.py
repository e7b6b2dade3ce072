"""The verb settings: every config key with its default and meaning, as a config file that changes nothing."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

from recon.pipeline.config import Settings
from stages import PIPELINE, load


def settings(arguments: argparse.Namespace) -> int:
    """Print a TOML file that says what there is to set."""
    shared = {field.name for field in fields(Settings)}
    lines = list(_lines(Settings, leave_out=set()))
    for name in PIPELINE:
        lines += ["", f"[{name}]", *_lines(load(name).config, leave_out=shared)]
    print("\n".join(lines))
    return 0


def field_meanings(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited fields first."""
    meanings: dict[str, str] = {}
    for owner in filter(is_dataclass, reversed(config.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for field, after in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meanings[field.target.id] = " ".join(after.value.value.split())
    return meanings


def _lines(config: type, leave_out: set[str]) -> Iterator[str]:
    defaults, meanings = config(), field_meanings(config)
    for field in fields(config):
        if field.name in leave_out:
            continue
        yield from textwrap.wrap(meanings[field.name], 110, initial_indent="# ", subsequent_indent="# ")
        yield _assignment(field.name, getattr(defaults, field.name))


def _assignment(name: str, value: Any) -> str:
    """TOML has no null, so a field that is empty stays a remark."""
    if value is None:
        return f"# {name} = ..."
    return f"{name} = {json.dumps(value, default=str)}"
