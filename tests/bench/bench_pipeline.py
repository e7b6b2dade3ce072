"""How long a recording takes from frames to surface beside structure from motion alone: a ratio and shares, printed, never a test.

`bench_pipeline.py [SOURCE]` runs the pipeline, then pycolmap's own extraction, sequential matching and incremental mapping, with
its default options, on the same pictures, lens and number of threads: one after the other in one call. Whatever else runs on the
machine slows either of them as it comes, which wall time shows and processor time hardly does; so both ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pycolmap

from recon.data.phantom import DEMO_SPEC
from recon.io.cameras import read_camera
from recon.io.colmap_camera import colmap_lens, colmap_params

COLON = Path(__file__).parents[3] / "shared" / "data" / "c3vd_like" / "colon_a"
RECON = Path(sys.executable).with_name("recon")
LAST_STAGE = "surface"
GOAL = 1.5


def recon(*words: str | Path) -> float:
    """Run the command line; returns the processor seconds that it took. A partial result will do."""
    process = subprocess.Popen([RECON, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"recon {' '.join(map(str, words))} ended with {process.returncode}: {errors[-500:]}")
    return usage.ru_utime + usage.ru_stime


def pipeline(source: str, run: Path, num_threads: int) -> tuple[dict[str, float], float]:
    """Wall seconds of each stage up to the surface, and processor seconds of them together."""
    words = ("run", source, "--out", run, "--set", f"num_threads={num_threads}")
    processor = recon(*words, "--until", LAST_STAGE)
    recon(*words)
    report = json.loads((run / "results" / "report.json").read_text())
    if report["resumed"]:
        print(f"resumed, so their time is that of their last attempt only: {', '.join(report['resumed'])}")
    stages = list(report["seconds"])
    return {name: report["seconds"][name] for name in stages[: stages.index(LAST_STAGE) + 1]}, processor


def structure_from_motion(images: Path, camera_file: Path, work: Path, num_threads: int) -> tuple[dict[str, float], float, int]:
    """Wall seconds of each step of pycolmap, processor seconds of them together, and how many pictures its largest map poses."""
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    lens = colmap_lens(read_camera(camera_file)).camera
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model, reader.camera_params = lens.model, ",".join(map(repr, colmap_params(lens)))
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    pairing, mapping = pycolmap.SequentialPairingOptions(), pycolmap.IncrementalPipelineOptions()
    for options in (extraction, matching, pairing, mapping):
        options.num_threads = num_threads
    database, seconds, start = work / "database.db", {}, time.perf_counter()

    def took(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    cpu = pycolmap.Device.cpu
    pycolmap.extract_features(
        database, images, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader, extraction_options=extraction, device=cpu
    )
    took("extraction")
    pycolmap.match_sequential(database, matching_options=matching, pairing_options=pairing, device=cpu)
    took("matching")
    maps = pycolmap.incremental_mapping(database, images, work / "maps", options=mapping)
    took("mapping")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return seconds, used.ru_utime + used.ru_stime, max((found.num_reg_images() for found in maps.values()), default=0)


def show(name: str, seconds: dict[str, float], processor: float) -> float:
    total = sum(seconds.values())
    print(f"{name}: {total:.1f} s, {processor:.1f} s of processor")
    for step, took in seconds.items():
        print(f"  {step:<12} {took:8.1f} s {took / total:7.1%}")
    return total


def bench(source: str, run: Path, num_threads: int) -> None:
    ours, our_processor = pipeline(source, run, num_threads)
    [frames], [camera] = (list((run / stage).glob("[!.]*")) for stage in ("frames", "camera"))
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        job = fresh.submit(structure_from_motion, frames / "images", camera / "camera.json", Path(work), num_threads)
        theirs, their_processor, num_posed = job.result()
    num_frames = len(list((frames / "images").iterdir()))
    print(f"{source}: {num_frames} pictures, {num_threads} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end")
    ratio = show("frames to surface", ours, our_processor) / show("pycolmap alone", theirs, their_processor)
    print(f"pycolmap posed {num_posed} of {num_frames} pictures")
    print(f"ratio {ratio:.2f} by the clock, {our_processor / their_processor:.2f} by the processor; goal: at most {GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default=str(COLON) if COLON.is_dir() else DEMO_SPEC)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="keep the run here; must not hold one yet, for what is reused takes no time")
    arguments = parser.parse_args()
    if arguments.out is not None and arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists: give a new folder, for stages that are reused take no time")
    with tempfile.TemporaryDirectory() as folder:
        bench(arguments.source, arguments.out or Path(folder) / "run", arguments.threads)


if __name__ == "__main__":
    main()
