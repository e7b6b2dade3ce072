"""What the verb eval takes. Light: the work is in `recon.cli.evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

EXAMPLES = {
    "depth": """
        recon eval depth runs/colon /data/c3vd/cecum_t1_a
        recon eval depth predictions/ /data/SERV-CT --unit mm --protocol servct-official
        recon eval depth ours/ theirs/ /data/c3vd --out scores --trained-on c3vd
        """,
    "trajectory": """
        recon eval trajectory estimate.tum /data/c3vd/cecum_t1_a
        recon eval trajectory estimate.tum truth.tum --unit mm
        """,
    "surface": """
        recon eval surface runs/colon /data/c3vd/cecum_t1_a --out scores
        recon eval surface mesh.ply truth.ply --unit mm
        recon eval surface depth/ /data/SERV-CT --unit mm --both-views
        """,
}
SUMMARIES = {
    "depth": "errors of depth maps, under every alignment and under published protocols",
    "trajectory": "errors of a camera path",
    "surface": "distances between surfaces, under every alignment",
}
PREDICTIONS = {
    "depth": "run folder, folder of PNG, TIFF, NPY or NPZ named or ordered like the frames, or one stack",
    "trajectory": "run folder, TUM or KITTI file, or COLMAP model",
    "surface": "run folder, mesh (PLY, OBJ, STL, OFF, GLB), or depth maps, each scored as the surface of its view",
}
NETWORKS_SUMMARY = "several depth networks on the same frames: errors, parameters, time and memory"
NETWORKS_EXAMPLES = """
        recon eval networks --methods student,falloff phantom:tube /data/c3vd/cecum_t1_a --out compared
        recon eval networks --methods student,endodac=depth_model.pth /data/SCARED --split configs/splits/scared-af.toml
        recon eval networks --experiment configs/experiments/scared.toml --data /data/SCARED --methods endodac=depth_model.pth,student
        """
MAX_FACTOR = 1e9
MAX_SEED = 2**31 - 1
"""As `recon.types` has it, which loads numpy."""
MAX_SAMPLES = 20_000_000
UNITS = ("mm", "cm", "m", "unitless")


def add_eval(add_verb: Callable[..., argparse.ArgumentParser], verbs) -> None:
    """Add `eval` and its three kinds; `add_verb` is how the command line adds any verb."""
    parser = verbs.add_parser("eval", help="score anyone's predictions against the truth, no pipeline needed")
    kinds = parser.add_subparsers(metavar="KIND", required=True, title="kinds")
    for kind, summary in SUMMARIES.items():
        _add_arguments(add_verb(kinds, kind, f"evaluate:{kind}", summary, EXAMPLES[kind]), kind)
    _add_networks(add_verb(kinds, "networks", "comparison:networks", NETWORKS_SUMMARY, NETWORKS_EXAMPLES))
    add_verb(kinds, "protocols", "evaluate:protocols", "list the published depth protocols", "recon eval protocols")


def _positive(text: str) -> float:
    value = float(text)
    if not 1 / MAX_FACTOR <= value <= MAX_FACTOR:
        raise argparse.ArgumentTypeError(f"{text} is not between {1 / MAX_FACTOR:g} and {MAX_FACTOR:g}")
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return number


def _add_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("predictions", type=Path, nargs="+", metavar="PRED", help=PREDICTIONS[kind])
    parser.add_argument(
        "truth", metavar="GT", help="sequence of a known data set, a folder of such sequences, or a bare file of the same kind"
    )
    parser.add_argument("--dataset", metavar="NAME", help="read GT as this data set instead of recognising it")
    parser.add_argument("--unit", choices=UNITS, help="of PRED, where the files do not say (default: that of GT, which is noted)")
    parser.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        metavar="FACTOR",
        help="multiply PRED's values by this first, e.g. 0.00390625",
    )
    parser.add_argument("--gt-unit", choices=UNITS, help="of GT when it is a bare file that does not say (default: mm, which is noted)")
    parser.add_argument("--gt-scale", type=_positive, default=1.0, metavar="FACTOR", help="the same for GT when it is a bare file")
    parser.add_argument("--split", type=Path, metavar="FILE", help="score only what this split names (see configs/splits)")
    parser.add_argument("--part", default="test", help="of the split (default: %(default)s)")
    parser.add_argument(
        "--trained-on", action="append", metavar="NAME", help="data set or split file that the method was trained on; may be repeated"
    )
    parser.add_argument(
        "--gt-used", action="append", choices=("none", "depth", "pose", "scale"), help="truth that entered PRED; may be repeated"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scores.json, scores.csv, frames.csv, scores.tex and pictures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--seed", type=_whole(0, MAX_SEED), default=0, help="of samples and bootstrap")
    if kind == "depth":
        parser.add_argument(
            "--protocol",
            action="append",
            metavar="NAME",
            help="published protocol beside the four alignments; may be repeated (see `recon eval protocols`)",
        )
        parser.add_argument("--disparity", action="store_true", help="PRED holds disparity (proportional to 1 / z), not depth")
    if kind != "trajectory":
        rules = ("name", "number", "index", "order")
        parser.add_argument("--match", choices=rules, help="how depth maps belong to frames, instead of what fits most (which is noted)")
        parser.add_argument("--max-frames", type=_whole(1, 10**9), metavar="N", help="score at most N depth maps a sequence, evenly spread")
    if kind == "trajectory":
        parser.add_argument("--format", choices=("tum", "kitti", "colmap"), help="of PRED and of a bare GT, instead of recognising it")
    if kind == "surface":
        parser.add_argument("--trajectory", type=Path, metavar="FILE", help="camera path of PRED, for the alignments by the path")
        parser.add_argument("--gt-trajectory", type=Path, metavar="FILE", help="camera path of a bare GT")
        parser.add_argument(
            "--camera", type=Path, metavar="FILE", help="camera.json of the recording: what it cannot have seen is not missing"
        )
        parser.add_argument("--both-views", action="store_true", help="merge what the second view of a stereo pair adds to the truth")
        parser.add_argument("--samples", type=_whole(100, MAX_SAMPLES), default=100_000, metavar="N", help="points on each surface")
        parser.add_argument(
            "--cap",
            type=_positive,
            default=10.0,
            metavar="MM",
            help="what missing surface costs in the penalised score (10)",
        )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="sequence of a known data set with true depth, a folder of such, or phantom:SCENE"
    )
    parser.add_argument(
        "--methods",
        action="append",
        metavar="NAME[=WEIGHTS],...",
        help="names of `recon models` or paths of exported networks, with their weights where those are not in the package",
    )
    parser.add_argument(
        "--experiment", type=Path, metavar="FILE", help="a paper's table (see configs/experiments): data set, split, protocol and networks"
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder of the experiment's data set")
    parser.add_argument("--dataset", metavar="NAME", help="read every SOURCE as this data set instead of recognising it")
    parser.add_argument("--split", type=Path, metavar="FILE", help="compare only on what this split names (see configs/splits)")
    parser.add_argument("--part", help="of the split (default: test)")
    parser.add_argument(
        "--protocol", action="append", metavar="NAME", help="published protocol beside the own one and the data set's; may be repeated"
    )
    parser.add_argument("--max-frames", type=_whole(1, 10**9), metavar="N", help="of a recording, evenly spread")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/networks"),
        metavar="DIR",
        help="gets networks.html, scores.json, scores.csv, scores.tex and predictions, which the next call uses (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help='"auto" takes a CUDA device when there is one')
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seed", type=_whole(0, MAX_SEED), default=0, help="of the bootstrap")
