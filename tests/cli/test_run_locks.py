"""Runs that meet: two at one moment, a second one while the first trains, readers while checkpoints go, and
hosts that share a suite. In processes of their own, as on a machine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from runs_of_commands import started, wait_for
from test_pretrain import RECIPE
from typer.testing import CliRunner

from mrt5cli import locks
from mrt5cli.cli import app
from mrt5cli.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ENDLESS = ("--set", "training.max_steps=1000000", "--device", "cpu")
QUICK = """
import sys
from mrt5cli import locks
locks.WAIT_SECONDS = 0.3
from mrt5cli.cli import main
sys.argv[0] = "mrt5"
main()
"""
"""`mrt5`, which waits less for a process that may be ending."""


def done(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    with started(folder, "-c", QUICK, *words) as process:
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def mrt5(*words: str) -> None:
    """The same in this process."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, whose beats go on."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("how", ["fresh", "smoke", "resumed"])
@pytest.mark.parametrize("again", range(3))
def test_of_two_that_start_at_one_moment_one_trains(
    folder: Path, how: str, again: int, chance: random.Random
) -> None:
    run = RunDir(folder / ("runs/smoke/tiny-smoke-seed7" if how == "smoke" else "run"))
    words = ["pretrain", "tiny.yaml", *ENDLESS, *(["--smoke"] if how == "smoke" else ["--out", "run"])]
    if how != "fresh":
        with started(folder, "-c", QUICK, *words) as first:
            wait_for(lambda: len(run.saved_steps()) > 0, first)
    words += ["--resume"] if how == "resumed" else []
    pause = chance.choice([0.0, chance.uniform(0.0, 1.0)])
    print(f"the second came {pause:.3f} s later")
    with started(folder, "-c", QUICK, *words) as one:
        time.sleep(pause)
        with started(folder, "-c", QUICK, *words) as other:
            both = [one, other]
            while all(process.poll() is None for process in both):
                time.sleep(0.05)
            refused, trains = sorted(both, key=lambda process: process.poll() is None)
            said = " ".join(refused.communicate()[1].split())
            assert refused.returncode == 2, said
            assert (
                f"another process is training in {run.path.relative_to(folder)}: pid {trains.pid} on" in said
            )
            lines = len(run.metrics())
            wait_for(lambda: len(run.metrics()) > lines + 1, trains)
            os.killpg(trains.pid, signal.SIGINT)
            assert trains.wait(60) == 130
    numbers = [row["step"] for row in run.metrics()]
    assert numbers == sorted(set(numbers)) and run.saved_steps()[-1] >= numbers[-1]
    assert run.meta()["status"] == "interrupted" and not list(run.path.rglob(".tmp-*"))
    assert len(run.meta()["sessions"]) == (2 if how == "resumed" else 1) and run.holder() is None


@pytest.mark.parametrize(
    "words", [("--out", "run"), ("--out", "run", "--resume"), ("--smoke",)], ids=["fresh", "resume", "smoke"]
)
def test_a_second_one_is_refused_and_touches_nothing(folder: Path, words: tuple[str, ...]) -> None:
    name = "runs/smoke/tiny-smoke-seed7" if "--smoke" in words else "run"
    run = RunDir(folder / name)
    first_words = [word for word in words if word != "--resume"]
    with started(folder, "-c", QUICK, "pretrain", "tiny.yaml", *first_words, *ENDLESS) as first:
        wait_for(lambda: len(run.saved_steps()) > 0, first)
        os.killpg(first.pid, signal.SIGSTOP)  # what changes now, the second one has changed
        (run.checkpoints / ".tmp-step-00999999").mkdir()
        before = content(run.path)
        second = done(folder, "pretrain", "tiny.yaml", *words, *ENDLESS)
        assert second.returncode == 2, second.stderr
        said = " ".join(second.stderr.split())
        assert f"another process is training in {name}: pid {first.pid} on host" in said
        assert f"kill {first.pid}" in said and "loading the model" not in said
        assert content(run.path) == before and (run.checkpoints / ".tmp-step-00999999").is_dir()
        os.killpg(first.pid, signal.SIGCONT)
        lines = len(run.metrics())
        wait_for(lambda: len(run.metrics()) > lines + 2, first)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert run.holder() is None


def test_a_killed_run_with_workers_is_resumed_at_once(folder: Path) -> None:
    run = RunDir(folder / "run")
    words = ("pretrain", "tiny.yaml", "--out", "run", *ENDLESS, "--set", "training.data_workers=2")
    with started(folder, "-c", QUICK, *words) as first:
        wait_for(lambda: len(run.saved_steps()) > 0, first)
        os.kill(first.pid, signal.SIGKILL)  # not the workers
        first.wait()
        assert run.holder() is None
    step = run.metrics()[-1]["step"]
    with started(folder, "-c", QUICK, *words, "--resume") as resumed:
        wait_for(lambda: run.metrics()[-1]["step"] > step + 5, resumed)


# --- directories that go away -------------------------------------------------------------------------------


def replaced(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()
    (path / "mine.txt").write_text("mine")


@pytest.mark.parametrize("gone", ["", "checkpoints", "metrics.jsonl", "another"])
def test_what_is_deleted_under_a_run_ends_it_in_a_sentence(folder: Path, gone: str) -> None:
    run = RunDir(folder / "run")
    with started(folder, "-c", QUICK, "pretrain", "tiny.yaml", "--out", "run", *ENDLESS) as process:
        wait_for(lambda: len(run.saved_steps()) > 0, process)
        if gone == "another":
            replaced(run.path)
        elif gone == "metrics.jsonl":
            run.metrics_path.unlink()
        else:
            while (run.path / gone).exists():  # as `rm -r` does, which tries again
                shutil.rmtree(run.path / gone, ignore_errors=True)
        stderr = " ".join(process.communicate(timeout=60)[1].split())
    assert process.returncode == 1, stderr
    how = "replaced by another directory" if gone == "another" else "deleted"
    name = "run" if gone in ("", "another") else f"run/{gone}"
    assert f"error: {name} was {how} while this process trained in" in stderr
    assert "Traceback" not in stderr and "bug" not in stderr
    left = {"": [], "another": ["mine.txt"]}.get(gone)
    assert left is None or sorted(path.name for path in run.path.rglob("*")) == left


# --- readers ------------------------------------------------------------------------------------------------


def test_what_reads_a_run_that_prunes_reads_it_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "inputs.txt").write_text("abc\n" * 4)
    often = ("--set", "training.save_steps=1", "--set", "training.keep_checkpoints=1")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(locks, "_READ", {})
    run, cpu = RunDir(folder / "run"), ("--device", "cpu")
    with started(folder, "-c", QUICK, "pretrain", "tiny.yaml", "--out", "run", *ENDLESS, *often) as trainer:
        wait_for(lambda: len(run.saved_steps()) > 0, trainer)
        mrt5("evaluate", "run", "--limit", "8", *cpu)
        mrt5("generate", "run", "inputs.txt", *cpu)
        mrt5("convert", "run", "exported", "--to", "mrt5")
        mrt5("inspect-deletions", "run", "--text", "hello world", *cpu)
        mrt5("finetune", "tiny.yaml", "--from", "run", "--out", "next", "--set", "training.max_steps=6", *cpu)
        held = {Path(os.readlink(f"/proc/self/fd/{number}")).parent for number in locks._READ.values()}
        assert held and all(folder.is_dir() for folder in held)  # though the trainer is far beyond
        for number in locks._READ.values():
            os.close(number)
        assert trainer.poll() is None
        saved = run.saved_steps()[-1]
        wait_for(lambda: run.saved_steps()[-1] > saved + 3, trainer)
        assert len(run.saved_steps()) <= 2  # what had been held is gone, but for what is being replaced


# --- links and modes ----------------------------------------------------------------------------------------


def test_a_run_on_another_disk_is_trained_resumed_replaced_and_read(folder: Path) -> None:
    disk = folder / "disk"
    run = RunDir(folder / "runs" / "smoke" / "tiny-smoke-seed7")
    for link in (run.path, run.checkpoints, run.model):
        (disk / link.name).mkdir(parents=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(disk / link.name)
    for _ in range(2):
        result = done(folder, "pretrain", "tiny.yaml", "--smoke", "--device", "cpu")
        assert result.returncode == 0, result.stderr
        assert all(link.is_symlink() for link in (run.path, run.checkpoints, run.model))
        assert (disk / "model" / "config.json").is_file() and list((disk / "checkpoints").glob("step-*"))
    result = done(folder, "evaluate", str(run.path), "--limit", "8", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in disk.iterdir()) == ["checkpoints", "model", run.path.name]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_whatever_is_written_has_the_modes_of_the_umask(
    folder: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.chdir(folder)
    (folder / "inputs.txt").write_text("abc\n" * 4)
    before = {folder, *folder.rglob("*")}
    run, cpu = "runs/smoke/tiny-smoke-seed7", ("--device", "cpu")
    mask = os.umask(umask)
    try:
        for words in [
            ("pretrain", "tiny.yaml", "--smoke", *cpu),
            ("evaluate", run, "--out", "b/all.json", *cpu),
            ("generate", run, "inputs.txt", "--out", "new/outputs.jsonl", *cpu),
            *(("convert", run, f"to/{to}", "--to", to) for to in ("mrt5", "reference", "hub", "onnx")),
            ("inspect-deletions", run, "--text", "hello world"),
            ("data", "build", "dates", "data/dates", "--train", "100"),
            ("recipe", "copy", "quickstart_byt5", "mine.yaml"),
            ("reproduce", "--smoke", "--report-only", "--only", "multilingual_v3"),
        ]:
            mrt5(*words)
    finally:
        os.umask(mask)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in {*folder.rglob("*")} - before}
    wrong = {
        str(path.relative_to(folder)): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert len(modes) > 40 and wrong == {}
