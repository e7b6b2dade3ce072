"""Run the acceptance commands and hold their figures against limits.toml: `check.py [GROUP ...]`, all groups by default.

Recordings and scoring programs lie in a folder beside the checkout that is not part of the project; without it
the groups that need them are skipped, which is said.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import field as acceptance_field
import network as acceptance_network
import numpy as np
import reliability as acceptance_reliability

from recon.data.phantom import DEMO_SPEC, open_phantom
from recon.io.images import read_image, write_png
from recon.io.meshes import read_mesh
from recon.models import load_depth_model
from recon.types import ReconError
from stages import PIPELINE

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
RECON = Path(sys.executable).with_name("recon")
SMALL_PHANTOM = "phantom:tube?seed=1&frames=12"
DONE_OR_PARTIAL = (0, 3)
RIGID = tuple(stage for stage in PIPELINE if stage not in ("scene", "splats", "nerf"))
"""Stages of a run that holds the tissue for rigid."""


class CheckFailed(Exception):
    """A command did not end as it must."""


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it took."""

    seconds: float
    peak_rss_mb: float
    errors: str


def recon(*words: str | Path, allowed: tuple[int, ...] = DONE_OR_PARTIAL) -> Ended:
    """Run the command line and insist on its exit code."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([RECON, *map(str, words)], stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read()
    if process.returncode not in allowed:
        raise CheckFailed(f"recon {' '.join(map(str, words))} ended with {process.returncode}: {text[-500:]}")
    return Ended(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6, text)


def second_run(*words: str | Path) -> dict[str, float]:
    """Figures of the same command once more."""
    ended = recon(*words)
    again = [line.split()[0] for line in ended.errors.splitlines() if " done in " in line]
    return {"second_run_seconds": ended.seconds, "second_run_stages": len(again)}


def score(program: str, *words: str | Path) -> dict[str, float]:
    """Figures from a scoring program that shares nothing with this project."""
    command = [sys.executable, SHARED / "checks" / program, *words]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if ended.returncode:
        raise CheckFailed(f"{program} ended with {ended.returncode}: {ended.stderr[-500:]}")
    return json.loads(ended.stdout)


def truth_used(figures: dict) -> dict[str, float]:
    """How many kinds of ground truth the run says it was given."""
    return {"truth_used": sum(bool(value) for name, value in figures["inputs_used"].items() if name.startswith("gt_"))}


def demo(folder: Path) -> dict[str, float]:
    words = ("demo", "--out", folder / "run")
    ended = recon(*words, allowed=(0,))
    metrics = json.loads((folder / "run" / "results" / "report.json").read_text())["metrics"]
    error = next(m["value"] for m in metrics if (m["name"], m["alignment"]) == ("accuracy_mean", "sim3_trajectory"))
    phantom = open_phantom(DEMO_SPEC)
    truths = [phantom.depth_gt(index) for index in range(0, len(phantom.frames), 6)]
    median_depth = float(np.median(np.concatenate([truth.depth[truth.valid] for truth in truths])))
    figures = {"surface_error_percent": 100 * error / median_depth, "seconds": ended.seconds}
    return {**figures, **confidence(folder), **second_run(*words)}


def nasal(folder: Path, sequence: str = "seq_a") -> dict[str, float]:
    source = SHARED / "data" / "nasal" / sequence
    words = ("run", source, "--out", folder / "run")
    recon(*words)
    recon("export", folder / "run", "--what", "depth", "--to", folder / "depth", allowed=(0,))
    figures = score("score_nasal.py", folder / "run", source, "--depth", folder / "depth")
    return {**figures, **truth_used(figures), **second_run(*words)}


def long_nasal(folder: Path) -> dict[str, float]:
    """The longer sequence, on which plain structure from motion loses the camera."""
    return nasal(folder, "seq_b")


def laparoscopy(folder: Path) -> dict[str, float]:
    words = ("run", SHARED / "data" / "video" / "laparoscopy.mp4", "--out", folder / "run")
    ended = recon(*words)
    faces = len(read_mesh(folder / "run" / "results" / "mesh.ply").faces)
    return {"peak_rss_mb": ended.peak_rss_mb, "faces": faces, **second_run(*words)}


def colon(folder: Path) -> dict[str, float]:
    source = SHARED / "data" / "c3vd_like" / "colon_a"
    words = ("run", source, "--out", folder / "run")
    recon(*words)
    recon("export", folder / "run", "--what", "depth", "--to", folder / "depth", allowed=(0,))
    figures = score("score_c3vd.py", folder / "run", source, "--depth", folder / "depth")
    return {**figures, **truth_used(figures), **disagreement(folder, source, figures), **confidence(folder), **second_run(*words)}


def perturbed(folder: Path) -> dict[str, float]:
    """The same recording with a tenth of its frames taken out at random, and with five frames black."""
    source = SHARED / "data" / "c3vd_like" / "colon_a"
    num = len(list(source.glob("*_color.png")))
    kept = sorted(np.random.default_rng(0).permutation(num)[: num - num // 10].tolist())
    black = set(range(40, 45))
    removed, blackened = folder / "removed" / source.name, folder / "black" / source.name
    copy_frames(source, removed, kept, set())
    copy_frames(source, blackened, list(range(num)), black)
    figures = {}
    for name, copy, usable in (("removed", removed, len(kept)), ("black", blackened, num - len(black))):
        recon("run", copy, "--out", folder / name / "run")
        found = score("score_c3vd.py", folder / name / "run", copy)
        figures |= {f"{name}_posed": found["posed"] * found["frames"] / usable, f"{name}_accuracy_mm": found["accuracy_mm"]}
    return figures


def copy_frames(source: Path, target: Path, indices: list[int], black: set[int]) -> None:
    """A C3VD sequence of some of another's frames, numbered anew; the `black` ones show nothing."""
    target.mkdir(parents=True)
    poses = (source / "pose.txt").read_text().splitlines()
    (target / "pose.txt").write_text("".join(f"{poses[index]}\n" for index in indices))
    shutil.copy(source / "coverage_mesh.obj", target)
    for number, index in enumerate(indices):
        for kind in ("color.png", "depth.tiff"):
            shutil.copy(source / f"{index:04d}_{kind}", target / f"{number:04d}_{kind}")
        if index in black:
            path = target / f"{number:04d}_color.png"
            write_png(path, np.zeros_like(read_image(path)))


def confidence(folder: Path) -> dict[str, float]:
    """Whether the confidence of a run's mesh rises with the truth, and how far it is from it."""
    return acceptance_reliability.figures(acceptance_reliability.of_run(folder / "run"))


def adapted(folder: Path) -> dict[str, float]:
    """What adaptation to the recording makes of the network's own depth, and of the depth of the whole run."""
    source = SHARED / "data" / "c3vd_like" / "colon_a"
    recon("adapt", source, "--out", folder / "run", allowed=(0,))
    recon("run", source, "--out", folder / "run", "--set", "depth.adapt=true")
    recon("export", folder / "run", "--what", "depth", "--to", folder / "depth", allowed=(0,))
    [own] = (folder / "run" / "depth").glob("[!.]*/depth")
    of_network, of_run = (score("score_c3vd.py", folder / "run", source, "--depth", depth) for depth in (own, folder / "depth"))
    return {**of_run, "network_abs_rel_frame": of_network["abs_rel_frame"], **truth_used(of_run)}


def disagreement(folder: Path, source: Path, figures: dict[str, float]) -> dict[str, float]:
    """Largest difference in percent between `recon eval surface` and the scoring program on the same run."""
    recon("eval", "surface", folder / "run", source, "--out", folder / "scores", allowed=(0,))
    (scored,) = json.loads((folder / "scores" / "scores.json").read_text())["scores"]
    own = {m["name"]: m["value"] for m in scored["metrics"] if m["alignment"] == "sim3_trajectory"}
    names = {"accuracy_mean": "accuracy_mm", "accuracy_p95": "accuracy_p95_mm", "completeness_mean": "completeness_mm", "f_2mm": "f1_2mm"}
    return {"eval_disagreement_percent": max(100 * abs(own[ours] / figures[theirs] - 1) for ours, theirs in names.items())}


def splats(folder: Path) -> dict[str, float]:
    """A scene that moves, at a quarter of its size: every eighth frame held out, then five in a row."""
    source = SHARED / "data" / "endonerf_like" / "pull_a"
    words = ("run", source, "--config", ROOT / "configs" / "moving.toml", "--set", "scene.width_px=160")
    ended = recon(*words, "--out", folder / "run", allowed=(0,))
    found = acceptance_field.figures(folder / "run", source)
    recon(*words, "scene.held_out=runs", "--out", folder / "runs", allowed=(0,))
    in_runs = acceptance_field.figures(folder / "runs", source)
    report = json.loads((folder / "run" / "results" / "report.json").read_text())
    own = {metric["name"]: metric["value"] for metric in report["metrics"]}
    apart = 100 * abs(own["timed_accuracy_mean"] / found["surface_mm"] - 1)
    return {
        **found,
        "runs_over_neighbours_db": in_runs["over_neighbours_db"],
        "fit_minutes": report["seconds"]["splats"] / 60,
        "seconds": ended.seconds,
        "report_disagreement_percent": apart,
        **truth_used(report),
    }


def network(folder: Path) -> dict[str, float]:
    return acceptance_network.figures(load_depth_model("student"))


def killed(folder: Path) -> dict[str, float]:
    """One run is left alone; another is killed in every stage, at once and a second later, and started again each time.

    Structure from motion gets every second frame, so that dense alignment has a say in what is compared.
    """
    words = ("run", SMALL_PHANTOM, "--set", "num_threads=1", "--set", "structure.max_mapped_frames=6", "--out")
    recon(*words, folder / "alone")
    methods = {frame["method"] for frame in read_frames(folder / "alone")}
    if not {"sfm", "alignment"} <= methods:
        raise CheckFailed(f"frames were posed by {methods}, expected both by sfm and by alignment")
    struck = {stage for stage in RIGID for delay_s in (0, 1) if kill_in(stage, delay_s, folder / "killed", *words)}
    recon(*words, folder / "killed")
    return {"stages_killed": len(struck), "different_bytes": different_bytes(folder / "alone", folder / "killed")}


def read_frames(run: Path) -> list[dict]:
    """Frames of a finished run's trajectory."""
    [file] = run.glob("trajectory/[!.]*/trajectory.json")
    return json.loads(file.read_text())["frames"]


def different_bytes(one: Path, other: Path) -> int:
    """Over the meshes and the unrounded trajectories of two finished runs, the bytes that are not the same."""
    total = 0
    for pattern in ("results/mesh.ply", "trajectory/[!.]*/trajectory.json", "trajectory/[!.]*/points.npz"):
        [a], [b] = ([file.read_bytes() for file in run.glob(pattern)] for run in (one, other))
        total += abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
    return total


def kill_in(stage: str, delay_s: float, run: Path, *words: str | Path) -> bool:
    """Start a command and kill -9 it while `stage` works. False when the stage was too quick to be struck."""
    process = subprocess.Popen([RECON, *map(str, words), run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if is_working(stage, process.pid, run):
            end = time.perf_counter() + delay_s
            while time.perf_counter() < end and is_working(stage, process.pid, run):
                time.sleep(0.001)
            process.kill()
            process.wait()
            return any((run / stage).glob(".*"))
        time.sleep(0.001)
    return False


def is_working(stage: str, pid: int, run: Path) -> bool:
    """Whether this process, and not one killed before, works on a stage: it holds the lock and earlier stages are done."""
    earlier = RIGID[: RIGID.index(stage)]
    if not (run / ".lock").is_file() or f'"pid": {pid},' not in (run / ".lock").read_text():
        return False
    return any((run / stage).glob(".*")) and all(any((run / name).glob("[!.]*")) for name in earlier)


GROUPS: dict[str, Callable[[Path], dict[str, float]]] = {
    "demo": demo,
    "nasal": nasal,
    "long_nasal": long_nasal,
    "laparoscopy": laparoscopy,
    "colon": colon,
    "perturbed": perturbed,
    "adapted": adapted,
    "network": network,
    "splats": splats,
    "killed": killed,
}

WITHOUT_RECORDINGS = ("demo", "killed")
"""Groups that render what they need."""


def judge(group: str, figures: dict[str, float], limits: dict[str, dict[str, float]]) -> list[bool]:
    """Print one line per limit and say which are kept. A figure that was not measured is not within its limit."""
    verdicts = []
    for name, limit in limits.items():
        [(kind, bound)] = limit.items()
        value = figures.get(name)
        kept = value is not None and (value <= bound if kind == "max" else value >= bound)
        shown = "not measured" if value is None else f"{value:.4g}"
        print(f"{group:<12} {name:<24} {shown:>12}   {kind} {bound:<8g} {'ok' if kept else 'WORSE'}", flush=True)
        verdicts.append(kept)
    return verdicts


def main() -> int:
    limits = tomllib.loads((Path(__file__).parent / "limits.toml").read_text())
    if set(limits) != set(GROUPS):
        raise SystemExit(f"limits.toml and GROUPS differ in {', '.join(sorted(set(limits) ^ set(GROUPS)))}")
    verdicts = []
    for group in sys.argv[1:] or GROUPS:
        if group not in WITHOUT_RECORDINGS and not (SHARED / "data").is_dir():
            print(f"{group:<12} skipped: its recordings are not here ({SHARED / 'data'})", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                figures = GROUPS[group](Path(folder))
            except (CheckFailed, OSError, ReconError) as error:
                print(f"{group}: {error}", file=sys.stderr)
                figures = {}
        verdicts += judge(group, figures, limits[group])
    print(f"{verdicts.count(True)} passed, {verdicts.count(False)} failed")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
