"""The command line: which verbs there are, what they take, and how their failures read.

argparse rather than tyro: it prints a usage error as one line and loads in milliseconds. A verb's module, and with it
every heavy library, is imported when the verb is called.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from recon import __version__
from recon.cli.eval_arguments import add_eval
from recon.cli.threads import limit_threads

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.\w+)?=")
"""How a word begins that sets one value: `key=` or `section.key=`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 bad usage or input, 3 partial, 130 interrupted."""
    arguments = _parser().parse_args(words_after_set(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(format="recon: %(message)s", level=logging.WARNING)
    logging.getLogger("recon").setLevel(logging.INFO)
    try:
        if "overrides" in arguments:
            limit_threads(arguments.config, arguments.overrides)
        module, function = arguments.verb.split(":")
        code = getattr(import_module(f"recon.cli.{module}"), function)(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        hint = "" if arguments.verb.startswith("evaluate:") else "; the same command continues where it stopped"
        print(f"recon: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failure(error, getattr(arguments, "out", None))


def words_after_set(argv: Sequence[str]) -> list[str]:
    """Give every `key=value` that follows `--set` a `--set` of its own.

    argparse lets an option take one word or all that follow; all of them would swallow a SOURCE that comes after.
    """
    words: list[str] = []
    is_setting = False
    for word in argv:
        is_value = words[-1:] == ["--set"]
        if is_setting and not is_value and _ASSIGNMENT.match(word):
            words.append("--set")
        elif not is_value:
            is_setting = word == "--set"
        words.append(word)
    return words


def _failure(error: Exception, run: Path | None) -> int:
    """Say in one line what went wrong. What nobody foresaw keeps its traceback, in a file."""
    from recon.types import ReconError

    if isinstance(error, ReconError):
        print(f"recon: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    log = _write_log("".join(traceback.format_exception(error)), run)
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(f"recon: unexpected failure ({summary}); details in {log}", file=sys.stderr)
    return 1


def _write_log(text: str, run: Path | None) -> str:
    """Write into the run folder, else into a new file that nobody else can have prepared in the shared temporary folder."""
    try:
        if run is not None and run.is_dir():
            path = run / "error.log"
        else:
            descriptor, name = tempfile.mkstemp(prefix="recon-error-", suffix=".log")
            os.close(descriptor)
            path = Path(name)
        path.write_text(text)
    except OSError:  # then the terminal is the only place left
        print(text, file=sys.stderr)
        return "the lines above"
    return str(path)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="recon", description="3-D reconstruction from endoscopy: a recording in, a mesh and a report out.")
    parser.add_argument("--version", action="version", version=f"recon {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")
    _add_pipeline_verbs(verbs)
    _add_result_verbs(verbs)
    add_eval(_verb, verbs)
    _add_other_verbs(verbs)
    return parser


def _add_pipeline_verbs(verbs) -> None:
    run = _verb(
        verbs,
        "run",
        "job:run",
        "make everything from a recording, reusing what is done",
        """
        recon run surgery.mp4 --out runs/surgery
        recon run frames/ --out runs/a --camera camera.json --set scale.factor_mm=1.8
        recon run surgery.mp4 --out runs/a --set depth.model=falloff surface.voxel=0.01 --until trajectory
        """,
    )
    plan = _verb(
        verbs,
        "plan",
        "job:plan",
        "show what would run and what is reused; writes nothing",
        """
        recon plan surgery.mp4 --out runs/surgery
        """,
    )
    adapt = _verb(
        verbs,
        "adapt",
        "job:adapt",
        "fine-tune the depth network on one recording, without any truth",
        """
        recon adapt surgery.mp4 --out runs/surgery
        recon run surgery.mp4 --out runs/surgery --set depth.adapt=true
        recon adapt surgery.mp4 --out runs/surgery --set depth.adapt_steps=400
        recon run surgery.mp4 --out runs/surgery --set depth.adapt_steps=400 depth.adapt=true
        """,
    )
    adapt.add_argument("-o", "--out", type=Path, metavar="RUN", help="folder of the run (default: runs/ and the source's name)")
    for parser in (run, plan):
        parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
        parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    for parser in (run, plan, adapt):
        parser.add_argument("source", metavar="SOURCE", help='video file, folder of images, data set sequence, or "phantom"')
        parser.add_argument("--dataset", metavar="NAME", help="read SOURCE as this data set instead of recognising it")
        parser.add_argument("--camera", type=Path, metavar="FILE", help="camera.json with the intrinsics")
        parser.add_argument("--masks", type=Path, metavar="DIR", help="instrument masks named like the frames (white = instrument)")
        _add_config(parser)
    demo = _verb(
        verbs,
        "demo",
        "job:demo",
        "reconstruct a rendered phantom, whose true surface is known",
        """
        recon demo
        recon demo --out /tmp/demo --set seed=3
        """,
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="folder of the run (default: %(default)s)")
    _add_config(demo)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with one section per stage; holds only what differs")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override single values of the config (see `recon settings`); may be repeated",
    )


def _add_result_verbs(verbs) -> None:
    export = _verb(
        verbs,
        "export",
        "export:export",
        "write results in other programs' formats",
        """
        recon export runs/surgery --what mesh --to out/
        recon export runs/surgery --what depth --to out/depth
        recon export runs/surgery --what nerfstudio --to out/nerfstudio
        """,
    )
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--what", required=True, choices=("depth", "trajectory", "mesh", "colmap", "nerfstudio", "splats"))
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    show = _verb(verbs, "show", "results:show", "print the report of a run as a table", "recon show runs/surgery")
    show.add_argument("run", type=Path, metavar="RUN")
    clean = _verb(
        verbs,
        "clean",
        "results:clean",
        "list what the newest results do not use",
        """
        recon clean runs/surgery
        recon clean runs/surgery --yes
        """,
    )
    clean.add_argument("run", type=Path, metavar="RUN")
    clean.add_argument("--yes", action="store_true", help="delete it")


def _add_other_verbs(verbs) -> None:
    train = _verb(
        verbs,
        "train",
        "networks:train",
        "train a network",
        """
        recon train configs/train/student.toml --out runs/student
        recon train configs/train/monodepth2.toml --out runs/monodepth2 --set 'sources=["surgery.mp4"]' device=auto
        """,
    )
    train.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="TOML with the method (student, monodepth2, af_sfm, ...; configs/train/ has a file of each) and what differs from "
        "its settings' defaults",
    )
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of checkpoints and weights, to go on from too (default: runs/ and CONFIG's name)"
    )
    train.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override single settings; may be repeated"
    )
    _verb(verbs, "settings", "settings:settings", "print every config key with default and meaning", "recon settings > all.toml")
    models = _verb(verbs, "models", "networks:models", "list the depth networks", "recon models --json")
    models.add_argument("--json", action="store_true", help="for scripts")
    doctor = _verb(
        verbs,
        "doctor",
        "doctor:doctor",
        "say what this machine can run; check the files of a run",
        """
        recon doctor
        recon doctor runs/surgery
        """,
    )
    doctor.add_argument("run", type=Path, nargs="?", metavar="RUN", help="check every file of this run against its checksum")


def _verb(verbs, name: str, handler: str, summary: str, examples: str) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    description = summary[0].upper() + summary[1:] + "."
    parser = verbs.add_parser(
        name, help=summary, description=description, epilog=f"examples:\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(verb=handler)
    return parser
