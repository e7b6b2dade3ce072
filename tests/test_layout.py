"""The shape of the house: who imports whom, how long things are, what they are called."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from recon.cli.settings import field_meanings
from recon.pipeline.stage import RUN, SOURCE
from stages import PIPELINE, load

ROOT = Path(__file__).parents[1]
LEVELS = (
    {"types", "parallel", "sampling"},
    {"geometry", "image", "losses", "eval"},
    {"io", "data", "models"},
    {"training", "tracking", "stereo", "fusion", "fields", "mesh", "report", "scoring"},
)
"""A package imports its own level and those above it in this list."""
LIBRARY = sorted((ROOT / "recon").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
IMPORT_NAMES = {"pillow": "PIL", "opencv-python-headless": "cv2"}
USED_BY_OTHERS = {"rtree", "tensorboard"}
"""trimesh and torch.utils.tensorboard need them but do not ask for them."""

KNOWN_IN_ONE_PLACE = {"nerfstudio": ROOT / "recon/fields/nerf", "gsplat": ROOT / "recon/fields/splats/cuda.py"}
"""Packages of an extra, and the folder or file that imports them."""


SHAPED = {"Bool", "Float", "Int", "UInt8", "UInt16", "UInt32", "Shaped", "Tensor"}
"""Names of annotations. Shapes in them are strings, so ruff cannot look for undefined names."""


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "recon")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "recon").parts[0].removesuffix(".py")


def recon_packages(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("recon.")} - {"__version__"}


def test_the_library_imports_downwards_only():
    level = {package: i for i, packages in enumerate(LEVELS) for package in packages}
    for path in LIBRARY:
        package = package_of(path)
        if package in ("__init__", "cli"):
            continue
        allowed = {"types", "io"} if package == "pipeline" else {name for name in level if level[name] <= level[package]}
        wrong = recon_packages(path) - allowed - {package}
        assert not wrong, f"{path.relative_to(ROOT)} may not import recon.{sorted(wrong)}"
        assert not any(name.split(".")[0] == "stages" for name in imports(path)), f"{path}: only the command line knows the stages"


def test_packages_do_not_import_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in LIBRARY:
        package = package_of(path)
        graph.setdefault(package, set()).update(recon_packages(path) - {package})
    graphlib.TopologicalSorter(graph).prepare()


def test_no_stage_imports_another_or_the_command_line():
    for path in STAGES:
        for name in imports(path):
            assert name.split(".")[0] != "stages" and not name.startswith("recon.cli"), f"{path.name} imports {name}"


def test_stages_are_files_and_read_only_earlier_ones():
    assert {path.stem for path in STAGES} - {"__init__"} == set(PIPELINE)
    known = {SOURCE, RUN}
    for name in PIPELINE:
        stage = load(name)
        for config in _configs(stage.config):
            reads = set(stage.all_reads(config))
            assert reads <= known, f"{name} reads {reads - known} before it is made"
        assert stage.writes, f"{name} promises nothing"
        known.add(name)


def _configs(config: type) -> Iterator:
    """The default, and one with each switch turned and each word of a choice."""
    yield config()
    for name, hint in typing.get_type_hints(config).items():
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else (True, False) if hint is bool else ()
        yield from (dataclasses.replace(config(), **{name: choice}) for choice in choices)


@pytest.mark.parametrize("name", PIPELINE)
def test_every_config_field_has_a_default_and_says_what_it_means(name):
    config = load(name).config
    assert config() == config()
    assert config.__dataclass_params__.frozen
    assert {field.name for field in dataclasses.fields(config)} == set(field_meanings(config))


@pytest.mark.parametrize("path", [*LIBRARY, *STAGES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_named_well_and_documented(path):
    assert not re.search("utils?|common|helpers?|misc", path.stem), "name it after what it decides"
    text = path.read_text()
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "a module says what it decides"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", requirement).group() for requirement in project["dependencies"]}
    modules = {IMPORT_NAMES.get(name, name) for name in declared - USED_BY_OTHERS}
    imported = {name.split(".")[0] for path in [*LIBRARY, *STAGES] for name in imports(path)}
    assert imported - set(sys.stdlib_module_names) - {"recon", "stages"} - KNOWN_IN_ONE_PLACE.keys() == modules


@pytest.mark.parametrize("module, folder", KNOWN_IN_ONE_PLACE.items())
def test_what_may_be_absent_is_imported_in_one_place(module, folder):
    for path in [*LIBRARY, *STAGES]:
        if folder not in (path, *path.parents):
            assert module not in {name.split(".")[0] for name in imports(path)}, f"{path} imports {module}, which may be absent"


def test_everything_installed_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.match(r"[\w-]+", requirement).group().lower() for requirement in requirements} <= pinned


def test_asking_for_help_loads_nothing_heavy():
    code = """
import sys
from recon.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(*({"torch", "open3d", "pycolmap", "cv2", "av", "scipy", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == ""
    assert "doctor" in result.stdout


def test_truth_is_looked_at_by_the_evaluation_and_where_it_is_asked_for_as_an_input():
    """`depth.model` and `trajectory.method` may say "dataset", which the report tells; without it these stages see no source."""
    truths = {"depth_gt", "trajectory_gt", "mesh_gt"}
    users = {path.stem for path in STAGES for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", None) in truths}
    assert users == {"evaluation", "depth", "trajectory"}
    for name, field in (("depth", "model"), ("trajectory", "method")):
        stage = load(name)
        assert SOURCE not in stage.all_reads(stage.config())
        assert SOURCE in stage.all_reads(stage.config(**{field: "dataset"}))


@pytest.mark.parametrize("path", [*LIBRARY, *STAGES], ids=str)
def test_the_types_of_arrays_are_imported(path):
    """An unknown name in a postponed annotation fails nobody, and the check of shapes passes over it."""
    nodes = list(ast.walk(tree_of(path)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)} & SHAPED
    known = {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert used <= known
