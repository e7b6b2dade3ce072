"""What a mesh file claims before anything is built from it: sizes, references, and how often a part is repeated.

A file of a hundred bytes can ask for gigabytes. What it cannot hold is refused here, with the reason.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from recon.types import ReconError

MAX_BYTES = 4_000_000_000
MAX_TREE_BYTES = 200_000_000
"""Of the JSON that describes a glTF scene; its numbers lie elsewhere."""
MAX_INSTANCED = 50_000_000
"""Vertices and corners of a glTF scene, counting a part as often as it is placed."""

_HEAD_BYTES = 64_000
_GEOMETRY_EXTENSIONS = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization"}


def check_mesh_file(path: Path) -> None:
    """Raise ReconError for a file that cannot be opened, is too large, or claims what it cannot hold."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if size > MAX_BYTES:
                raise ReconError(f"{path} is larger than {MAX_BYTES // 10**9} GB")
            if path.suffix.lower() == ".glb":
                file.seek(0)
                _check_glb(path, size, _gltf_tree(path, size, file.read(20), file.read))
    except OSError as error:
        raise ReconError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() == ".ply":
        _check_ply(path, size, head)


def claimed_counts(path: Path) -> tuple[int, int] | None:
    """How many vertices and faces a PLY or OFF file says it holds; None where it does not say."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if path.suffix.lower() == ".ply":
        counts = _ply_counts(head)
        return (int(counts[b"vertex"]), int(counts[b"face"])) if {b"vertex", b"face"} <= counts.keys() else None
    words = re.sub(rb"#.*", b"", head).split()
    if path.suffix.lower() == ".off" and len(words) > 2 and words[1].isdigit() and words[2].isdigit():
        return int(words[1]), int(words[2])
    return None


def _ply_counts(head: bytes) -> dict[bytes, bytes]:
    return dict(re.findall(rb"^element (\w+) (\d{1,18})\s*$", head.split(b"end_header")[0], re.MULTILINE))


def _check_ply(path: Path, size: int, head: bytes) -> None:
    counts = _ply_counts(head)
    claimed = sum(int(count) for count in counts.values())
    if claimed > size:
        raise ReconError(f"{path} claims {claimed} elements in {size} bytes: it is cut short or damaged")
    if counts and not int(counts.get(b"face", 0)):
        raise ReconError(f"{path} holds {int(counts.get(b'vertex', 0))} points and no faces: a point cloud, expected a surface")


def _gltf_tree(path: Path, size: int, head: bytes, read) -> dict[str, Any]:
    if len(head) < 20 or head[:4] != b"glTF" or struct.unpack("<I", head[4:8]) != (2,):
        raise ReconError(f"{path} is not a binary glTF 2 file")
    (length,) = struct.unpack("<I", head[12:16])
    if length > min(size, MAX_TREE_BYTES):
        raise ReconError(f"{path} claims a description of {length} bytes in {size}: it is cut short or damaged")
    try:
        tree = json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise ReconError(f"{path}: its description is no JSON: {type(error).__name__}") from error
    if not isinstance(tree, dict):
        raise ReconError(f"{path}: its description should be a JSON object, found {type(tree).__name__}")
    return tree


def _check_glb(path: Path, size: int, tree: dict[str, Any]) -> None:
    try:
        unread = sorted(_GEOMETRY_EXTENSIONS & {*tree.get("extensionsRequired", ()), *tree.get("extensionsUsed", ())})
        outside = [buffer["uri"] for buffer in tree.get("buffers", ()) if not buffer.get("uri", "data:").startswith("data:")]
        counts = [int(accessor["count"]) for accessor in tree.get("accessors", ())]
        nodes = tree.get("nodes", [])
        children = [child for node in nodes for child in node.get("children", ())]
        num_instanced = sum(_mesh_size(tree["meshes"][node["mesh"]], counts) for node in nodes if "mesh" in node)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ReconError(f"{path}: its description is damaged ({type(error).__name__})") from error
    if unread:
        raise ReconError(f"{path} is packed by {', '.join(unread)}, which is not read: save it without compression")
    if outside:
        raise ReconError(f"{path} needs another file ({str(outside[0])[:60]}): save it with everything inside")
    if sum(counts) > size:
        raise ReconError(f"{path} claims {sum(counts)} elements in {size} bytes: it is cut short or damaged")
    if len(children) != len(set(children)):
        raise ReconError(f"{path}: a node of its scene has two parents; expected a tree")
    if num_instanced > MAX_INSTANCED:
        raise ReconError(f"{path} places parts so often that they make {num_instanced} vertices and corners; {MAX_INSTANCED} are allowed")


def _mesh_size(mesh: dict[str, Any], counts: list[int]) -> int:
    accessors = [key for part in mesh["primitives"] for key in (part["attributes"]["POSITION"], part.get("indices")) if key is not None]
    return sum(counts[key] for key in accessors)
