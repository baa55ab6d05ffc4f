"""`mrt5 reproduce`, with real jobs in real processes: tiny recipes, and shipped ones at toy scale."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from reproduction import tree
from runs_of_commands import started
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.report import page
from mrt5cli.rundir import RunDir

NOWHERE = {"kind": "files", "path": "nowhere"}
TINY = {
    "base": tree("base"),
    "child": tree("child", "runs/base-seed1"),
    "long": tree("long", training={"max_steps": 100_000, "save_steps": 100_000}),
    "broken": tree("broken", task={"kind": "xnli", "source": NOWHERE, "input_length": 32}),
    "on_broken": tree("on_broken", "runs/broken-seed1"),
}
"""One from nothing, one from that, an endless one, one whose data are not there, and one from that."""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the shipped recipes are `TINY`, and the report is a list of statuses."""
    for name, written in TINY.items():
        path = tmp_path / "recipes" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(written))
    monkeypatch.setattr("mrt5cli.recipe.loading.shipped_directory", lambda: tmp_path / "recipes")
    monkeypatch.setattr(page, "write_report", report)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(plan: Any, out: Path, tell: Any) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text("".join(f"{job.id}: {job.status}\n" for job in plan.jobs))
    return [out / "report.md"]


def suite(house: Path, *names: str) -> Path:
    path = house / "mine.yaml"
    entry = {"id": "all", "title": "All", "about": "what is asked", "recipes": list(names)}
    path.write_text(yaml.safe_dump({"experiments": [entry]}))
    return path


def reproduce(*words: object) -> Any:
    return CliRunner().invoke(app, ["reproduce", *map(str, words), "--device", "cpu"])


def states(result: Any) -> dict[str, str]:
    return {job["id"]: job["status"] for job in json.loads(result.stdout)["jobs"]}


def test_a_plan_and_a_report_are_two_things() -> None:
    result = reproduce("--dry-run", "--report-only")
    assert result.exit_code == 2
    assert "error: --dry-run and --report-only exclude each other" in result.stderr


def test_a_suite_from_nothing_to_its_report_and_then_nothing_is_left(house: Path) -> None:
    path = suite(house, "base", "child")
    result = reproduce(path, "--json")
    assert result.exit_code == 0, result.output
    assert set(states(result).values()) == {"done"}
    document = json.loads(result.stdout)
    assert document["runs"] == str(Path("runs", "mine"))
    assert document["report"] == [str(Path("reports", "mine", "report.md"))]
    runs = house / "runs" / "mine"
    child = (runs / "child-seed1" / "recipe.yaml").read_text()
    assert f"start: {Path('runs', 'mine', 'base-seed1')}" in child
    log = (runs / "logs" / "train-child-seed-1.log").read_text()
    assert "done: 4 steps" in log
    results = json.loads((runs / "child-seed1" / "eval" / "vowel_removal.json").read_text())
    meta = json.loads((runs / "child-seed1" / "meta.json").read_text())
    assert results["models"][0]["run_ended"] == meta["ended"]
    again = reproduce(path)
    assert again.exit_code == 0, again.output
    assert "all jobs are done" in again.stderr
    assert again.stdout.strip().endswith("report.md")


def test_what_fails_is_told_and_takes_nothing_else_along(house: Path) -> None:
    path = suite(house, "broken", "on_broken", "base")
    result = reproduce(path, "--json", "--jobs", 2)
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    found = states(result)
    assert found["train broken seed 1"] == "failed"
    assert found["train on_broken seed 1"] == found["evaluate broken seed 1 xnli"] == "blocked"
    assert found["train base seed 1"] == found["evaluate base seed 1 vowel_removal"] == "done"
    [failed] = document["outcome"]["failed"]
    assert "nowhere" in failed["error"]
    assert failed["error"] in Path(failed["log"]).read_text()
    assert "1 job failed" in result.stderr and failed["log"] in result.stderr
    assert "blocked" in (house / "reports" / "mine" / "report.md").read_text()  # written all the same
    assert reproduce(path).exit_code == 1  # tried again, and the rest left alone
    assert Path(failed["log"]).read_text().count("== ") == 2
    assert (house / "runs" / "mine" / "logs" / "train-base-seed-1.log").read_text().count("== ") == 1


def test_a_changed_recipe_is_trained_anew_with_what_starts_from_it(house: Path) -> None:
    path = suite(house, "base", "child")
    assert reproduce(path).exit_code == 0
    changed = tree("base", training={"max_steps": 2})
    (house / "recipes" / "base.yaml").write_text(yaml.safe_dump(changed))
    planned = reproduce(path, "--dry-run", "--json")
    assert set(states(planned).values()) == {"changed"}
    assert "note: 2 runs will be replaced" in reproduce(path, "--dry-run").stdout
    assert reproduce(path, "--only", "base").exit_code == 0
    meta = json.loads((house / "runs" / "mine" / "base-seed1" / "meta.json").read_text())
    assert meta["step"] == 2 and len(meta["sessions"]) == 1
    left = states(reproduce(path, "--dry-run", "--json"))
    assert left["train base seed 1"] == "done"
    assert left["train child seed 1"] == left["evaluate child seed 1 vowel_removal"] == "changed"


def test_a_run_that_was_continued_is_not_replaced(house: Path) -> None:
    path = suite(house, "base")
    assert reproduce(path).exit_code == 0
    run = house / "runs" / "mine" / "base-seed1"
    continued = CliRunner().invoke(app, ["pretrain", str(run), "--continue-for", "1", "--device", "cpu"])
    assert continued.exit_code == 0, continued.output
    for words in ((), ("--dry-run",), ("--keep-changed",)):
        refused = reproduce(path, "--runs", run.parent, *words)
        assert refused.exit_code == 2 and "was trained further with --continue-for" in refused.stderr
    assert json.loads((run / "meta.json").read_text())["step"] == 5
    assert reproduce(path, "--report-only").exit_code == 0
    [hint] = [line for line in refused.stderr.splitlines() if line.startswith("hint")]
    moved = CliRunner().invoke(app, shlex.split(hint.partition("mrt5 ")[2]))
    assert moved.exit_code == 0, moved.output
    assert reproduce(path).exit_code == 0
    assert {RunDir(run.with_name(name)).meta()["step"] for name in (run.name, f"{run.name}-continued")} == {
        4,
        5,
    }


def test_a_dry_run_shows_what_and_touches_nothing(house: Path) -> None:
    path = suite(house, "base", "child")
    result = reproduce(path, "--dry-run", "--budget", 0)
    assert result.exit_code == 0, result.output
    assert "all: All" in result.stdout and "beyond the budget of 0 CPU hours" in result.stdout
    assert "CPU h  " in result.stdout and "0 CPU hours" in result.stdout and "GPU h" not in result.stdout
    for device, key in {"cpu": "cpu_hours", "auto": "gpu_hours"}.items():
        words = ["reproduce", str(path), "--dry-run", "--json", "--device", device]
        assert key in json.loads(CliRunner().invoke(app, words).stdout)["jobs"][0]
    assert "train child seed 1" in result.stdout
    assert "39 GFLOP/s for narrow models (measured with `mrt5 reproduce miniature`" in result.stdout
    assert "at an assumed 5 TFLOP/s" in reproduce(path, "--dry-run", "--gpu-tflops", 5).stdout
    assert not (house / "runs").exists() and not (house / "reports").exists()


def test_a_report_of_what_is_there_trains_nothing(house: Path) -> None:
    result = reproduce(suite(house, "base"), "--report-only")
    assert result.exit_code == 0, result.output
    assert (house / "reports" / "mine" / "report.md").read_text().startswith("train base seed 1: missing")
    assert not (house / "runs").exists()


def test_smoke_stays_apart(house: Path) -> None:
    result = reproduce(suite(house, "base"), "--smoke", "--json")
    assert result.exit_code == 0, result.output
    assert (house / "runs" / "smoke" / "mine" / "base-smoke-seed1" / "model").is_dir()
    assert json.loads(result.stdout)["report"] == [str(Path("reports", "mine-smoke", "report.md"))]


@pytest.mark.parametrize(
    "words, message",
    [
        (["nosuch"], "no suite 'nosuch'"),
        (["mine.yaml", "--only", "chlid"], "did you mean child?"),
        (["mine.yaml", "--device", "gpu"], "--device gpu is not a device"),
    ],
)
def test_wrong_words(house: Path, words: list[str], message: str) -> None:
    suite(house, "base", "child")
    result = CliRunner().invoke(app, ["reproduce", *words])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


# --- a process of its own -----------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
import mrt5cli.recipe.loading as loading
from mrt5cli.report import page
from mrt5cli.errors import UserError
from mrt5cli.cli import main
loading.shipped_directory = lambda: Path("recipes")
page.write_report = lambda plan, out, tell: []
if __name__ == "__main__":
    sys.argv = ["mrt5", "reproduce", *sys.argv[1:]]
    main()
"""


@contextmanager
def reproducing(house: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """`mrt5 reproduce` on the house's recipes."""
    script = house / "script.py"
    script.write_text(SCRIPT)
    command = (str(script), *map(str, words), "--device", "cpu")
    with (house / "stderr").open("w") as stderr, started(house, *command, stderr=stderr) as process:
        yield process


def wait_for(what: Callable[[], object], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


@pytest.mark.slow
def test_nothing_is_lost_by_stopping_killing_and_starting_again(house: Path) -> None:
    path = suite(house, "long", "base")
    run = house / "runs" / "mine" / "long-seed1"

    # Ctrl-C, as a terminal sends it: to the whole group.
    with reproducing(house, path, "--only", "long") as process:
        wait_for(lambda: steps(run) > 5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    told = (house / "stderr").read_text()
    assert "the same command again" in told and "interrupted" in told
    meta = json.loads((run / "meta.json").read_text())
    [saved] = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()]
    assert meta["status"] == "interrupted" and saved == meta["step"] > 5
    planned = {job["id"]: job for job in json.loads(reproduce(path, "--dry-run", "--json").stdout)["jobs"]}
    assert planned["train long seed 1"]["status"] == "half done"
    assert planned["train long seed 1"]["reason"] == f"saved at step {saved} of 100000"

    # Killed; its training notices the end of a pipe, and saves as on a signal.
    with reproducing(house, path, "--only", "long") as process:
        wait_for(lambda: steps(run) > saved + 5)
        second = reproduce(path)
        assert second.exit_code == 2, second.output
        assert "another `mrt5 reproduce` is working in" in second.stderr
        process.kill()
        process.wait()
    wait_for(lambda: json.loads((run / "meta.json").read_text())["status"] == "interrupted")

    # No process holds its lock. Now the training is killed, and the other recipe is not touched by that.
    with reproducing(house, path, "--jobs", 2) as process:
        before = steps(run)
        wait_for(lambda: steps(run) > before + 5)
        os.kill(pid_of(run), signal.SIGKILL)
        assert process.wait(90) == 1
    told = (house / "stderr").read_text()
    assert "train long seed 1: was killed by SIGKILL, by hand or because memory ran out" in told
    assert re.search(r"done +evaluate base seed 1 vowel_removal", told)
    sessions = json.loads((run / "meta.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions][:2] == [0, saved]
    assert sessions[2]["from_step"] > saved
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("flock", ["", "fcntl.flock = lambda descriptor, how: None"], ids=["flock", "local"])
def test_hosts_that_share_a_folder_share_the_jobs(house: Path, flock: str) -> None:
    """Two processes with other names in place of hosts; with locks as NFS has them, and each host its own."""
    path, hosts = suite(house, "base", "child"), []
    for name in ("near", "far"):
        script = house / f"{name}.py"
        lines = ["import fcntl", "from mrt5cli import locks", f"locks.HOST = locks.MACHINE = {name!r}", flock]
        lines.append("locks._is_local = lambda descriptor: False")
        script.write_text("\n".join(lines) + SCRIPT)
        words = [str(script), str(path), "--device", "cpu"]
        told = (house / name).open("w")
        hosts.append(subprocess.Popen([sys.executable, *words], cwd=house, stdout=told, stderr=told))
        told.close()
    try:
        codes = [host.wait(240) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
            host.wait()
    said = [(house / name).read_text() for name in ("near", "far")]
    assert codes == [0, 0], said
    logs = list((house / "runs" / "mine" / "logs").glob("*.log"))
    begun = [line for log in logs for line in log.read_text().splitlines() if line.startswith("== ")]
    assert len(begun) == len(logs) == 4, begun  # two to train, two to evaluate
    for name in ("base", "child"):
        meta = json.loads((house / "runs" / "mine" / f"{name}-seed1" / "meta.json").read_text())
        assert meta["status"] == "finished" and len(meta["sessions"]) == 1
    assert any("by another host" in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_lets_trainings_save(house: Path, number: signal.Signals) -> None:
    path, run = suite(house, "long"), house / "runs" / "mine" / "long-seed1"
    with reproducing(house, path, "--only", "long") as process:
        wait_for(lambda: steps(run) > 5)
        for _ in range(2):  # as `timeout` does
            os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number
    told = (house / "stderr").read_text()
    assert "the same command again" in told and "Traceback" not in told, told
    meta = json.loads((run / "meta.json").read_text())
    [saved] = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()]
    assert meta["status"] == "interrupted" and saved == meta["step"] > 5


def pid_of(run: Path) -> int:
    """The process that has a run's log open for writing."""
    log = run.parent / "logs" / "train-long-seed-1.log"
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "fd" / "1") == str(log):
                return int(entry.name)
        except OSError:  # another user's, or ended
            continue
    raise AssertionError("no process writes the log")


@pytest.mark.slow
def test_all_gpus_together_train_one_run(tmp_path: Path) -> None:
    """The processes of a group, on a CPU in place of GPUs."""
    from mrt5cli.suite.display import Display
    from mrt5cli.suite.executing import execute
    from mrt5cli.suite.planning import make_plan
    from mrt5cli.suite.processes import Forks
    from mrt5cli.suite.suites import load_suite

    plan = make_plan(
        "paper", load_suite("paper"), tmp_path, smoke=True, only=["diagnostic_v3/merge_ABC_byt5"]
    )
    launcher = Forks(1, 1, ["0", "1"])
    outcome = execute(plan, launcher, Display(plan))
    assert outcome.failures == [] and len(outcome.done) == 2
    [run] = [job.run for job in plan.jobs if job.id in outcome.done and job.kind == "train"]
    assert run is not None and run.meta()["processes"] == 2
