"""The stage engine on toy stages: what is reused, what runs again, what a killed process leaves, who may write."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from recon.io.atomic import write_text
from recon.pipeline import Stage, read_manifest, store, unkeyed
from recon.pipeline.config import Settings, read_table, settings_from, stage_config
from recon.pipeline.lock import run_lock
from recon.pipeline.runner import execute, lay_out
from recon.pipeline.source import CHECKSUMS, Checksums, Source, source_key
from recon.types import ReconError

TOY = Path(__file__).parent / "toy_pipeline.py"


@dataclass(frozen=True)
class Numbers:
    count: int = 3
    step: float = 1.0
    device: str = unkeyed("auto")


@dataclass(frozen=True)
class Total:
    seed: int = 0
    names: tuple[str, ...] = ()
    limit: float | None = None


def count_up(inputs, out, config):
    for i in range(config.count):
        write_text(out / f"{i}.txt", str(i * config.step))


def add_up(inputs, out, config):
    values = [float(path.read_text()) for path in sorted(inputs["numbers"].glob("*.txt"))]
    write_text(out / "total.txt", str(sum(values)))


STAGES = {
    "numbers": Stage(Numbers, count_up, reads=("source",), writes=("*.txt",)),
    "report": Stage(Total, add_up, reads=("numbers", "run"), writes=("total.txt",)),
}


def plan(run, words=(), stages=None, source="source-key"):
    stages = stages or STAGES
    table = read_table(None, words)
    settings = settings_from(table, stages)
    configs = {name: stage_config(stage.config, name, table, settings) for name, stage in stages.items()}
    return lay_out(run, stages, configs, source, settings), settings


def run_all(run, words=(), stages=None, source="source-key"):
    """Returns what each stage did."""
    steps, settings = plan(run, words, stages, source)
    said: list[str] = []
    execute(run, steps, settings, said.append)
    return [line.split()[1] for line in said]


def test_a_second_run_reuses_everything(tmp_path):
    assert run_all(tmp_path) == ["done", "done"]
    assert run_all(tmp_path) == ["reused", "reused"]
    assert (tmp_path / "results" / "total.txt").read_text() == "3.0"


def test_only_what_depends_on_a_changed_value_runs_again(tmp_path):
    run_all(tmp_path)
    assert run_all(tmp_path, ["seed=5"]) == ["reused", "done"]
    assert run_all(tmp_path, ["numbers.step=2.0"]) == ["done", "done"]
    assert (tmp_path / "results" / "total.txt").read_text() == "6.0"
    assert run_all(tmp_path) == ["reused", "reused"], "going back finds the old artifacts"
    assert (tmp_path / "results" / "total.txt").read_text() == "3.0", "and the results follow"


def test_version_source_and_checksums_are_part_of_the_recipe(tmp_path):
    run_all(tmp_path)
    newer = {**STAGES, "numbers": Stage(Numbers, count_up, reads=("source",), writes=("*.txt",), version=2)}
    assert run_all(tmp_path, stages=newer) == ["done", "done"]
    assert run_all(tmp_path, source="another recording") == ["done", "done"]
    weighted = {**STAGES, "numbers": Stage(Numbers, count_up, reads=("source",), checksums=lambda config: {"weights": "a1"})}
    assert run_all(tmp_path, stages=weighted) == ["done", "done"]


def test_unkeyed_fields_do_not_change_keys(tmp_path):
    one, _ = plan(tmp_path)
    other, settings = plan(tmp_path, ["device=cuda", "num_threads=3"])
    assert [step.key for step in one] == [step.key for step in other]
    assert other[0].config.device == settings.device == "cuda"


def test_the_manifest_tells_recipe_files_and_cost(tmp_path):
    run_all(tmp_path, ["numbers.count=2"])
    [folder] = (tmp_path / "numbers").iterdir()
    manifest = read_manifest(folder)
    assert manifest["config"] == {"count": 2, "step": 1.0, "device": "auto"}
    assert manifest["reads"] == {"source": "source-key"}
    assert set(manifest["files"]) == {"0.txt", "1.txt"}
    assert manifest["seconds"] >= 0 and manifest["peak_rss_mb"] > 1 and "python" in manifest["versions"]


def test_a_crash_in_the_middle_leaves_no_artifact_and_is_continued(tmp_path):
    written = []

    def fails_once(inputs, out, config):
        for i in range(config.count):
            if (out / f"{i}.txt").exists():
                continue
            if i == 2 and len(written) == 2:
                written.append("crash")
                raise RuntimeError("crash")
            written.append(i)
            write_text(out / f"{i}.txt", str(i))

    stages = {**STAGES, "numbers": Stage(Numbers, fails_once, writes=("*.txt",))}
    with pytest.raises(RuntimeError):
        run_all(tmp_path, stages=stages)
    assert not plan(tmp_path, stages=stages)[0][0].is_done
    assert run_all(tmp_path, stages=stages) == ["done", "done"]
    assert written == [0, 1, "crash", 2]
    resumed = {name: read_manifest(step.folder)["resumed"] for name, step in zip(stages, plan(tmp_path, stages=stages)[0], strict=True)}
    assert resumed == {"numbers": True, "report": False}


def test_a_broken_promise_is_an_error_that_names_it(tmp_path):
    stages = {"numbers": Stage(Numbers, lambda inputs, out, config: None, writes=("mesh.ply",))}
    with pytest.raises(ReconError, match=r"'numbers' promised 'mesh.ply'") as error:
        run_all(tmp_path, stages=stages)
    assert error.value.exit_code == 1
    assert not plan(tmp_path, stages=stages)[0][0].is_done


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("longer than before")])
def test_a_damaged_artifact_is_made_again(tmp_path, damage):
    run_all(tmp_path)
    [folder] = (tmp_path / "numbers").iterdir()
    damage(folder / "1.txt")
    assert store.damaged_files(folder) == ["1.txt"]
    assert run_all(tmp_path) == ["done", "reused"]
    assert store.damaged_files(folder) == []


def test_an_artifact_stays_until_its_successor_is_written(tmp_path, monkeypatch):
    run_all(tmp_path)
    (tmp_path / "results" / "total.txt").unlink()
    seen = []
    monkeypatch.setattr(store.shutil, "rmtree", lambda path, **_: seen.append((path.name[:4], (tmp_path / "results").exists())))
    run_all(tmp_path)
    assert seen == [(".old", True), (".old", True)]


def test_damage_that_keeps_the_size_is_found_by_checksum(tmp_path):
    run_all(tmp_path)
    [folder] = (tmp_path / "numbers").iterdir()
    (folder / "1.txt").write_text("9.9")
    assert store.is_complete(folder)
    assert store.damaged_files(folder) == ["1.txt"]


def test_what_no_result_uses_is_known(tmp_path):
    run_all(tmp_path, ["numbers.count=2"])
    old = set(store.artifacts(tmp_path, tuple(STAGES)))
    run_all(tmp_path)
    used = store.reached_from(tmp_path, (tmp_path / "results").resolve())
    assert set(store.artifacts(tmp_path, tuple(STAGES))) - used == old


def test_results_that_are_no_link_are_left_alone(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(ReconError, match="move it away"):
        run_all(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["numbers.coutn=3"], r"\[numbers\] has no key 'coutn' \(did you mean 'count'\?\); it has: count, step, device"),
        (["nubmers.count=3"], r"no section 'nubmers' \(did you mean 'numbers'\?\); it has: numbers, report"),
        (["sede=3"], r"no key 'sede' \(did you mean 'seed'\?\); it has: seed, num_threads, device, fuse"),
        (["numbers.count=three"], r"\[numbers\] count must be a whole number, found 'three'"),
        (["numbers.count=true"], "must be a whole number, found True"),
        (["numbers.step=[1]"], "must be a number"),
        (["report.names=3"], "must be a list"),
        (["report.limit=x"], "must be a number or 'none'"),
        (["fuse=magic"], "fuse must be one of 'tsdf'"),
        (["numbers"], "--set takes section.key=value, found 'numbers'"),
        (["numbers=3"], "'numbers' is a section"),
        (["seed=1", "seed.x=3"], "'seed' is no section"),
    ],
)
def test_a_wrong_config_is_an_error_that_says_what_is_known(tmp_path, words, message):
    with pytest.raises(ReconError, match=message) as error:
        plan(tmp_path, words)
    assert error.value.exit_code == 2


def test_file_and_words_become_checked_configs(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('seed = 4\n[numbers]\ncount = 7\nstep = 2\n[report]\nnames = ["a", "b"]\nlimit = 3')
    table = read_table(file, ["numbers.count=8", "numbers.device=cpu", "report.limit=none"])
    settings = settings_from(table, STAGES)
    assert stage_config(Numbers, "numbers", table, settings) == Numbers(count=8, step=2.0, device="cpu")
    assert stage_config(Total, "report", table, settings) == Total(seed=4, names=("a", "b"), limit=None)


@pytest.mark.parametrize("text", ["count = ", "\0\xff"])
def test_a_config_file_that_is_not_toml_is_named(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ReconError, match=r"config\.toml"):
        read_table(file)


def test_a_source_is_known_by_its_content(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "frames"
    run.mkdir()
    folder.mkdir()
    (folder / "a.png").write_text("one")
    (folder / "again").symlink_to(".")
    (folder / "lost.png").symlink_to("nowhere.png")
    source = Source(str(folder))
    checksums = Checksums(run)
    key = source_key(source, checksums)
    checksums.save()
    assert source_key(source, Checksums(run)) == key
    moved = folder.rename(tmp_path / "elsewhere")
    assert source_key(Source(str(moved)), Checksums(run)) == key
    (moved / "a.png").write_text("two")
    assert source_key(Source(str(moved)), Checksums(run)) != key
    assert source_key(Source(str(moved), dataset="folder"), Checksums(run)) != source_key(Source(str(moved)), Checksums(run))


@pytest.mark.parametrize("text", ["[1]", "null", '{"a": 3}', "{"])
def test_a_spoilt_memory_of_checksums_is_forgotten(tmp_path, text):
    (tmp_path / "a.png").write_text("one")
    before = source_key(Source(str(tmp_path / "a.png")), Checksums(tmp_path))
    (tmp_path / CHECKSUMS).write_text(text)
    assert source_key(Source(str(tmp_path / "a.png")), Checksums(tmp_path)) == before


def test_a_run_inside_its_source_does_not_change_the_source(tmp_path):
    (tmp_path / "a.png").write_text("one")
    before = source_key(Source(str(tmp_path)), Checksums(tmp_path / "run"))
    run_all(tmp_path / "run")
    assert source_key(Source(str(tmp_path)), Checksums(tmp_path / "run")) == before


def toy(run, *words):
    return subprocess.Popen(
        [sys.executable, TOY, str(run), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(path_exists, process):
    while not path_exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_second_process_is_refused_with_pid_and_host(tmp_path):
    first = toy(tmp_path, "wait")
    try:
        wait_for(lambda: any(tmp_path.glob("numbers/.*/0.txt")), first)
        with pytest.raises(ReconError, match=rf"in use by process {first.pid} on \S+ since") as error, run_lock(tmp_path):
            pass
        assert error.value.exit_code == 1
    finally:
        first.kill()
        first.communicate()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid(), "the dead holder's lock is taken over"


def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    killed = toy(tmp_path / "a", "wait")
    wait_for(lambda: any((tmp_path / "a").glob("numbers/.*/2.txt")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "a" / "results").exists()
    for run in ("a", "b"):
        process = toy(tmp_path / run)
        assert process.communicate()[1] == "" and process.returncode == 0
    files = [
        {path.relative_to(tmp_path / run): path.read_bytes() for path in (tmp_path / run).rglob("*.txt") if "results" not in path.parts}
        for run in ("a", "b")
    ]
    assert files[0] == files[1] and len(files[0]) == 7


def test_a_full_disk_is_one_line_and_the_run_continues_later(tmp_path):
    def write_much(inputs, out, config):
        with (out / "much.txt").open("wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 14))

    stages = {"numbers": Stage(Numbers, write_much, writes=("much.txt",))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        with pytest.raises(ReconError, match=f"{tmp_path}.*no space left") as error:
            run_all(tmp_path, stages=stages)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1
    assert run_all(tmp_path, stages=stages) == ["done"]


@pytest.mark.parametrize("run", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path, run):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReconError, match="cannot write") as error, run_lock(tmp_path / run):
        pass
    assert error.value.exit_code == 2


def test_a_disk_that_keeps_no_locks_is_bad_input(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("recon.pipeline.lock.fcntl.flock", refuse)
    with pytest.raises(ReconError, match="keeps no file locks") as error, run_lock(tmp_path):
        pass
    assert error.value.exit_code == 2


def test_defaults_need_no_file():
    assert settings_from(read_table(None), STAGES) == Settings()


@dataclass(frozen=True)
class Choice:
    counts: bool = False


def counted(inputs, out, config):
    write_text(out / "seen.txt", ",".join(sorted(inputs)))


CHOOSING = {
    "numbers": STAGES["numbers"],
    "extra": Stage(Numbers, count_up, reads=("source",), writes=("*.txt",)),
    "report": Stage(
        Choice, counted, reads=("numbers",), also_reads=lambda config: ("extra",) if config.counts else (), writes=("seen.txt",)
    ),
}


def test_what_is_read_may_depend_on_the_config(tmp_path):
    assert run_all(tmp_path, stages=CHOOSING) == ["done", "done"], "what nobody reads is not made"
    assert (tmp_path / "results" / "seen.txt").read_text() == "numbers"
    assert not (tmp_path / "extra").exists()
    assert run_all(tmp_path, ["report.counts=true"], CHOOSING) == ["reused", "done", "done"]
    assert (tmp_path / "results" / "seen.txt").read_text() == "extra,numbers"
    assert "extra" in read_manifest((tmp_path / "results").resolve())["reads"]


def test_a_key_depends_on_what_is_read_and_on_nothing_else(tmp_path):
    def report_key(*words):
        return plan(tmp_path, words, CHOOSING)[0][-1].key

    assert report_key("extra.count=9") == report_key()
    assert report_key("report.counts=true", "extra.count=9") != report_key("report.counts=true")
    kept = store.reached_from(tmp_path, plan(tmp_path, ["report.counts=true"], CHOOSING)[0][-1].folder)
    assert len(kept) == 1, "nothing was made to know a key"


def test_one_thread_does_not_reuse_what_many_made(tmp_path):
    stages = {"alone": Stage(config=Numbers, run=lambda inputs, out, config: None)}
    one, many = (lay_out(tmp_path, stages, {"alone": Numbers()}, "source", Settings(num_threads=n)) for n in (1, 0))
    assert one[0].key != many[0].key
