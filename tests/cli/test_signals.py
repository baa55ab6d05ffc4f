"""Commands that are asked to stop at any time save, and end with the signal's exit code and a message."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from runs_of_commands import MRT5, start, wait_for
from test_pretrain import RECIPE

from mrt5cli.rundir import RunDir
from mrt5cli.stopping import SIGNALS

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
LONG = ("--set", "training.max_steps=100000", "--set", "training.save_steps=100000")


def script() -> str:
    """What pip makes of the console script that pyproject.toml declares."""
    module, name = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]["mrt5"].split(":")
    return f"import sys\nfrom {module} import {name}\nsys.argv[0] = 'mrt5'\nsys.exit({name}())"


WAYS = {"module": MRT5, "script": ("-c", script())}


# --- before and after ---------------------------------------------------------------------------------------

IMPORTING = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Watch())
"""
ENDING = "import atexit, os\natexit.register(os.kill, os.getpid(), {number})\n"


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("when", [IMPORTING, ENDING], ids=["importing", "ending"])
def test_where_nothing_is_to_be_saved_it_ends_at_once(when: str, number: signal.Signals) -> None:
    code = when.format(number=int(number)) + script().replace(
        "'mrt5'", "'mrt5'; sys.argv[1:] = ['--version']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (128 + number, "")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [("--help",), ("recipe", "list"), ("pretrain", "tiny.yaml", "--dry-run")])
def test_at_any_moment_it_ends_without_a_traceback(
    tmp_path: Path, way: str, words: tuple[str, ...], chance: random.Random
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    for _ in range(10):
        number, pause = chance.choice(SIGNALS), chance.uniform(0, 1.5)
        process = start(tmp_path, *WAYS[way], *words)
        if number == signal.SIGINT:  # before our first line Python raises it in files of its own
            wait_for(lambda: takes(signal.SIGTERM, process.pid), process)  # noqa: B023
        time.sleep(pause)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        what = f"{number.name} after {pause:.3f} s: {process.returncode} {said}"
        # A shell's code of what ended by the signal itself is the same.
        assert process.returncode in (0, 128 + number, -number), what
        assert said in ("", "error: interrupted\n", f"error: stopped by {number.name}\n"), what


def takes(number: int, pid: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> number - 1 & 1)  # type: ignore[index]


# --- in the middle ------------------------------------------------------------------------------------------


def training(folder: Path, *words: str, before: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], RunDir]:
    """One that has logged a few steps, and is far from its end."""
    (folder / "tiny.yaml").write_text(RECIPE)
    run = RunDir(folder / "run")
    given = ("--out", "run", "--device", "cpu", *LONG, *words)
    process = start(folder, *MRT5, "pretrain", "tiny.yaml", *given, before=before)
    wait_for(lambda: len(run.metrics()) >= 3, process)
    return process, run


def assert_saved(process: subprocess.Popen[str], run: RunDir, number: signal.Signals) -> str:
    """It has saved where it stood, and said so; returns what it said."""
    _, said = process.communicate(timeout=90)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and f"{number.name}: stopping after this step" in said, said
    assert run.meta()["status"] == "interrupted"
    assert f"stopped and saved at step {run.saved_steps()[-1]}\n" in said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(one, marks=[pytest.mark.ci] if one == signal.SIGTERM else []) for one in SIGNALS],
)
def test_a_group_with_workers_saves_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """As `timeout`, Slurm and systemd send them: to workers too, and twice."""
    process, run = training(tmp_path, "--set", "training.data_workers=2")
    for _ in range(1 if number == signal.SIGINT else 2):
        os.killpg(process.pid, number)
    said = assert_saved(process, run, number)

    step = run.saved_steps()[-1]
    again = re.search(r"to resume: mrt5 (pretrain .*)", said)
    assert again
    resumed = start(tmp_path, *MRT5, *shlex.split(again[1]), "--device", "cpu")
    wait_for(lambda: run.metrics()[-1]["step"] > step, resumed)
    os.killpg(resumed.pid, number)
    assert_saved(resumed, run, number)
    assert [session["from_step"] for session in run.meta()["sessions"]] == [0, step]


@pytest.mark.slow
def test_nohup_keeps_it_training(tmp_path: Path) -> None:
    process, run = training(tmp_path, before=("nohup",))
    os.killpg(process.pid, signal.SIGHUP)
    lines = len(run.metrics())
    wait_for(lambda: len(run.metrics()) > lines + 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert_saved(process, run, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are listed by Linux only")
def test_a_worker_that_is_killed_is_told_as_such_and_nothing_is_lost(tmp_path: Path) -> None:
    process, run = training(tmp_path, "--set", "training.data_workers=2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 1, said
    assert "a process that prepares batches was killed by SIGKILL, by hand or because memory ran out" in said
    assert "Traceback" not in said and "bug" not in said
    assert run.metrics()[-1]["step"] <= run.saved_steps()[-1]
    assert "training.data_workers" in said.rpartition("hint: resume with --resume")[2]
