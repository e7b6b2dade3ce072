"""Where artifacts lie and when one is done: `RUN/<stage>/<key>/` with a manifest, or nothing.

The key names the recipe: stage, version, keyed config, checksums, and the keys of what is read. Work happens in
`RUN/<stage>/.<key>/`; the manifest is written last and the folder renamed, so a killed stage leaves only the former.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recon.io.atomic import write_json
from recon.types import ReconError

MANIFEST = "manifest.json"


def recipe_key(recipe: dict[str, Any]) -> str:
    """Name a recipe by the first 12 hex digits of its SHA-256."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what is known of a finished artifact.

    Keys: `stage`, `version`, `config` (every field), `checksums`, `reads` (name to key), `key`, `settings` (seed,
    num_threads, device, fuse), `files` (relative path to `sha256` and `bytes`), `versions`, `seconds`,
    `resumed` (a stopped attempt had left files, and `seconds` counts the last attempt only), `peak_rss_mb` (of the
    process until the stage ended).
    """
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ReconError(f"{path} does not exist, so this artifact was never finished: run the same command again") from None
    except (ValueError, OSError) as error:
        raise ReconError(f"{path} cannot be read ({error}): delete {folder} and run the same command again", exit_code=1) from error


def is_complete(folder: Path) -> bool:
    """Say whether an artifact has its manifest and every file it lists, at the size it lists."""
    if not (folder / MANIFEST).is_file():
        return False
    return not any(_wrong_sizes(folder, read_manifest(folder)))


def damaged_files(folder: Path) -> list[str]:
    """List the files of an artifact whose content is no longer what its manifest says."""
    manifest = read_manifest(folder)
    wrong = set(_wrong_sizes(folder, manifest))
    files = manifest["files"].items()
    return sorted(wrong | {name for name, known in files if name not in wrong and file_checksum(folder / name) != known["sha256"]})


def working_folder(folder: Path) -> Path:
    """Return the folder in which an artifact is made, created when it is not there."""
    path = folder.with_name(f".{folder.name}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def finish(folder: Path, manifest: dict[str, Any], writes: Sequence[str]) -> None:
    """Check the promises of a stage, write the manifest, and give the artifact its final name."""
    work = working_folder(folder)
    for pattern in writes:
        if not any(work.glob(pattern)):
            raise ReconError(f"stage {manifest['stage']!r} promised {pattern!r}, but {work} has no such file", exit_code=1)
    for leftover in work.rglob(".part-*"):  # a killed writer's, of a file that this time was not written
        leftover.unlink()
    files = {
        path.relative_to(work).as_posix(): {"sha256": file_checksum(path), "bytes": path.stat().st_size}
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(work / MANIFEST, {**manifest, "files": files})
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # damaged; results may point at it, so it is gone for no longer than a rename takes
        os.replace(folder, old)
    os.replace(work, folder)
    shutil.rmtree(old, ignore_errors=True)


def point_results(run: Path, folder: Path) -> None:
    """Make `RUN/results` mean `folder`, in one step that no reader can see half done."""
    link, fresh = run / "results", run / ".results"
    if link.exists() and not link.is_symlink():
        raise ReconError(f"{link} exists and is not a link: move it away, the newest results belong there")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.relative_to(run), target_is_directory=True)
    os.replace(fresh, link)


def artifacts(run: Path, stages: Sequence[str]) -> list[Path]:
    """List every artifact of a run, finished or not, in the order of `stages`."""
    return [path for stage in stages for path in sorted((run / stage).glob("*")) if path.is_dir()]


def reached_from(run: Path, folder: Path) -> set[Path]:
    """Collect an artifact and everything it was made from."""
    found: set[Path] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        if current in found:
            continue
        found.add(current)
        if (current / MANIFEST).is_file():
            pending += [run / stage / key for stage, key in read_manifest(current)["reads"].items()]
    return found


def _wrong_sizes(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, known in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            size = -1
        if size != known["bytes"]:
            yield name
