"""`--slurm`: what is asked for, what is refused, what sbatch gets, and jobs that are stopped and go on."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from runs_of_commands import curve
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.errors import UserError
from mrt5cli.recipe import load
from mrt5cli.rundir import RunDir
from mrt5cli.training import run as training_run
from mrt5cli.training.pretrain import Training
from mrt5cli.training.slurm import Job, Request, prepare

RECIPE = """
name: {name}
description: tiny
seed: 3
task: {{kind: vowel_removal, length: 12}}
model:
  start: scratch
  shape: {{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}}
  shortener: {{kind: delete_gate, layer: 1, bias_init: 0.5}}
controller: {{kind: pi_two_sided, target_deletion_rate: 0.2}}
training: {{max_steps: {steps}, batch_size: 8, device_batch_size: 4, logging_steps: 5, save_steps: 1000}}
evaluation: {{examples: 8, batch_size: 4}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.yaml").write_text(RECIPE.format(name=name, steps=20))
    return tmp_path


@pytest.fixture
def slurm(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with Slurm; the folder in which that says what it does."""
    (here / "queue").mkdir()
    for name, value in fake_slurm.install(here / "queue").items():
        monkeypatch.setenv(name, value)
    return here / "queue"


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, ["pretrain", *words])


def training(name: str = "one.yaml", **how: Any) -> Training:
    asked: dict[str, Any] = {
        "out": None,
        "resume": False,
        "smoke": False,
        "device": "cpu",
        "allow_pickle": True,
    }
    return Training(load(name), (), **{**asked, **how})


# --- what is asked for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("5", 5), ("90:30", 90), ("12:00:00", 720), ("0:00:20", 1), ("2-0", 2880), ("1-06:30:59", 1830)],
)
def test_a_time_as_slurm_writes_it(time: str, minutes: int) -> None:
    assert Request.of([f"time={time}"]).minutes == minutes


def test_keys_and_values() -> None:
    asked = Request.of(
        ["partition=gpu,time=5, nodelist=a,b,gpus=4", "nodes=2,cpus-per-task=3", "exclusive=true"]
    )

    assert (asked.minutes, asked.processes, asked.cluster) == (5, 8, "slurm")
    assert asked.parameters == {
        **{"partition": "gpu", "nodelist": "a,b", "nodes": 2, "cpus_per_task": 3, "exclusive": True},
        **{"gpus_per_node": 4, "ntasks_per_node": 4, "signal_delay_s": 300},
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partition=gpu", "requires a time"),
        ("time=soon", "time=soon is not a time"),
        ("time=1:2:3:4", "is not a time"),
        ("time=0:00", "time=0:00: expected a time above 0"),
        ("gpu", "--slurm gpu is not KEY=VALUE"),
        ("time=", "is not KEY=VALUE"),
        ("time=5,gpus=0", "gpus=0: expected a number above 0"),
        ("time=5,gpus=h100:2", "gpus=h100:2: expected a number above 0"),
        ("time=5,nodes=two", "nodes=two: expected a number"),
        ("time=5,nodes=true", "nodes=True: expected a number"),
        ("time=5,signal=USR1", "--slurm signal cannot be set"),
        ("time=5,cluster=pbs", "cluster=pbs is unknown"),
        ("time=5,cluster=local,nodes=2", "cluster=local is one machine"),
    ],
)
def test_what_cannot_be_asked_for(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Request.of([text])


# --- before anything is queued ------------------------------------------------------------------------------


def test_a_dry_run_prints_the_job_where_there_is_no_slurm(here: Path) -> None:
    asked = "partition=gpu,time=12:00:00,gpus=2,cpus_per_task=8,reservation=mine,setup=module load x"
    shown = mrt5("one.yaml", "two.yaml", "--slurm", asked, "--dry-run")

    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert shown.stderr == "job 0: runs/one-seed3\njob 1: runs/two-seed3\n"
    wanted = ["array=0-1%2", "gpus-per-node=2", "ntasks-per-node=2", "time=720", "signal=USR2@300", "requeue"]
    wanted += ["partition=gpu", "reservation=mine", "job-name=mrt5", "nodes=1", "cpus-per-task=8"]
    assert {f"#SBATCH --{each}" for each in wanted} <= set(lines)
    assert "module load x" in lines and "wckey" not in shown.stdout
    [command] = (line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=8" in command and "submitit.core._submit" in command
    assert not list(here.glob("runs/*"))
    document = json.loads(mrt5("one.yaml", "--slurm", "time=5", "--dry-run", "--json").stdout)
    assert document["runs"] == ["runs/one-seed3"]
    assert "--job-name=one-seed3" in document["script"] and "--array" not in document["script"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["one.yaml", "one.yaml"], "two recipes use runs/one-seed3"),
        (["one.yaml", "--set", "training.max_steps=none"], "training.max_steps"),
        (["one.yaml", "--slurm", "gpus=3"], "not a multiple of 12"),
        (["one.yaml", "no_such.yaml"], "no_such"),
        (["one.yaml", "--set", "task={kind: span_corruption, source: {kind: files, path: none}}"], "none"),
        (["one.yaml"], "Slurm is not available"),
    ],
    ids=str,
)
def test_what_never_reaches_the_queue(here: Path, words: list[str], told: str) -> None:
    said = mrt5(*words, "--slurm", "time=5")

    assert said.exit_code == 2 and told in said.output
    assert not Path("runs/slurm").exists()


def test_several_recipes_are_for_slurm(here: Path) -> None:
    said = mrt5("one.yaml", "two.yaml")
    assert said.exit_code == 2 and "2 recipes at a time are for Slurm" in said.output


def test_a_run_that_is_there_is_not_replaced(here: Path) -> None:
    [run] = prepare([training(smoke=True)], Request.of(["time=5"])).runs
    run.path.mkdir(parents=True)
    for file in (run.recipe_path, run.meta_path):
        file.write_text("{}")
    with pytest.raises(UserError, match=r"runs/smoke/.* contains a run"):
        prepare([training(smoke=True)], Request.of(["time=5"]))


def test_without_submitit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package submitit") as caught:
        prepare([training()], Request.of(["time=5"]))
    assert caught.value.hint == "pip install 'submitit>=1.5.4,<2'"


# --- queued -------------------------------------------------------------------------------------------------


def test_an_array_is_queued_and_each_job_has_its_training(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLURM_HOLDS", "1")
    queued = mrt5("one.yaml", "two.yaml", "--slurm", "time=5", "--json")

    assert queued.exit_code == 0, queued.output
    jobs = json.loads(queued.stdout)["jobs"]
    assert [(job["id"], job["run"]) for job in jobs] == [
        ("4711_0", "runs/one-seed3"),
        ("4711_1", "runs/two-seed3"),
    ]
    assert jobs[1]["log"] == str(Path("runs/slurm/4711_1_0_log.err").absolute())
    for number, name in enumerate(("one", "two")):
        submitted = pickle.loads(Path(f"runs/slurm/4711_{number}_submitted.pkl").read_bytes())
        assert pickle.loads(submitted.function.pickled).recipe.name == name
        assert submitted._timeout_min == 5


def test_a_job_that_slurm_refuses(slurm: Path) -> None:
    (slurm / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    said = mrt5("one.yaml", "--slurm", "time=5,partition=none")
    assert (
        said.exit_code == 2 and "sbatch rejects the job" in said.output and "invalid partition" in said.output
    )


def in_debug(job: Job, folder: Path) -> None:
    """Do a job in this process, by submitit's executor for that, which would leave its logs open."""
    from submitit import DebugExecutor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.FileHandler", lambda path: logging.NullHandler())
        DebugExecutor(folder).submit(job).results()


def test_a_job_begins_a_run_and_leaves_a_finished_one(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job.of(training())
    in_debug(job, here)
    run = RunDir(Path("runs/one-seed3"))
    assert run.is_finished and run.meta()["step"] == 20
    in_debug(job, here)
    assert "is finished; nothing to do" in capfd.readouterr().err
    assert job.checkpoint().function is job


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGUSR2], "handed on"),
        ([signal.SIGTERM, signal.SIGUSR2], "handed on"),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT], 130),
        ([signal.SIGUSR1], 138),
    ],
)
def test_which_signals_queue_a_job_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int], code: object
) -> None:
    from mrt5cli.stopping import Stopped, taken_by

    def execute(plan: object) -> None:
        with taken_by(lambda number, frame: None):
            for number in numbers:
                signal.raise_signal(number)
        raise Stopped(numbers[0])

    def submitit(number: int, frame: object) -> None:
        raise SystemExit("handed on")

    monkeypatch.setattr(training_run, "execute", execute)
    before = signal.signal(signal.SIGUSR2, submitit)
    try:
        with pytest.raises(SystemExit) as ended:
            in_debug(Job.of(training()), here)
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.set_wakeup_fd(-1)
    assert ended.value.code == code


def test_what_goes_wrong_is_a_sentence_in_the_log(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        in_debug(Job.of(training(out=here)), here)
    assert ended.value.code == 2
    assert f"error: {here} " in capsys.readouterr().err


# --- in processes of their own ------------------------------------------------------------------------------


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def queue(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mrt5cli", "pretrain", *words]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=180)


def finished(name: str) -> bool:
    run = RunDir(Path(f"runs/{name}-seed3"))
    return run.is_run and run.meta().get("status") == "finished"


def running(name: str, session: int) -> bool:
    """Whether the run trains, for the so-manieth time."""
    metrics, meta = Path(f"runs/{name}-seed3/metrics.jsonl"), Path(f"runs/{name}-seed3/meta.json")
    begun = meta.exists() and len(json.loads(meta.read_text())["sessions"]) == session
    return begun and metrics.exists() and metrics.stat().st_mtime > meta.stat().st_mtime


@pytest.mark.slow
def test_an_array_whose_jobs_lose_their_places(slurm: Path) -> None:
    """Both are warned in the middle, one as Slurm does before another job takes its place; both go on by
    themselves and come to what an undisturbed run comes to."""
    for name in ("one", "two"):
        Path(f"{name}.yaml").write_text(RECIPE.format(name=name, steps=600))
    queue("one.yaml", "two.yaml", "--slurm", "time=60", "--set", "training.data_workers=1")
    warnings = {"one": [signal.SIGUSR2], "two": [signal.SIGTERM, signal.SIGUSR2]}
    left = [(name, session) for session in (1, 2) for name in warnings]

    def warned() -> bool:
        for name, session in left[:]:
            if running(name, session):
                fake_slurm.warn(slurm, f"4711_{list(warnings).index(name)}", *warnings[name])
                left.remove((name, session))
        return not left

    until(warned)
    until(lambda: finished("one") and finished("two"))

    assert sorted((slurm / "requeued").read_text().split()) == ["4711_0", "4711_0", "4711_1", "4711_1"]
    assert fake_slurm.started(slurm, "4711_0") == 3
    whole = mrt5("one.yaml", "--out", "whole", "--device", "cpu", "--set", "training.data_workers=1")
    assert whole.exit_code == 0, whole.output
    run, other = RunDir(Path("runs/one-seed3")), RunDir(Path("whole"))
    assert [one["status"] for one in run.meta()["sessions"]] == ["interrupted", "interrupted", "finished"]
    assert curve(run) == curve(other)
    assert (run.model / "model.safetensors").read_bytes() == (other.model / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_job_that_is_cancelled_saves_and_stays_out(slurm: Path) -> None:
    Path("one.yaml").write_text(RECIPE.format(name="one", steps=100_000))
    queue("one.yaml", "--slurm", "time=60")
    until(lambda: running("one", 1))
    fake_slurm.warn(slurm, "4711", signal.SIGTERM)
    until(lambda: (slurm / "4711.codes").exists())

    assert (slurm / "4711.codes").read_text() == "[143]\n"
    assert not (slurm / "requeued").exists()
    assert RunDir(Path("runs/one-seed3")).saved_steps()


@pytest.mark.slow
def test_two_processes_train_together_and_go_on(slurm: Path) -> None:
    Path("one.yaml").write_text(RECIPE.format(name="one", steps=600))
    queue("one.yaml", "--slurm", "time=60,ntasks-per-node=2")
    until(lambda: running("one", 1))
    fake_slurm.warn(slurm, "4711", signal.SIGUSR2)
    until(lambda: finished("one"))

    meta = RunDir(Path("runs/one-seed3")).meta()
    assert meta["processes"] == 2 and len(meta["sessions"]) == 2
    assert (slurm / "requeued").read_text() == "4711\n"


@pytest.mark.slow
def test_a_finished_run_goes_on_as_a_job_that_is_queued_again(slurm: Path) -> None:
    assert mrt5("one.yaml", "--device", "cpu").exit_code == 0
    queue("runs/one-seed3", "--continue-for", "200", "--slurm", "time=60")
    run = RunDir(Path("runs/one-seed3"))
    until(lambda: run.metrics()[-1]["step"] > 25)
    fake_slurm.warn(slurm, "4711", signal.SIGUSR2)
    until(lambda: (slurm / "requeued").exists() and run.is_finished)

    assert run.meta()["step"] == 220
    sessions = [(one["status"], one.get("segment")) for one in run.meta()["sessions"]]
    segment = {"from_step": 20, "to_step": 220}
    assert sessions == [("finished", None), ("interrupted", segment), ("finished", segment)]


@pytest.mark.slow
def test_submitits_own_executor_on_this_machine(here: Path) -> None:
    """The time ends, as its controller counts it."""
    Path("one.yaml").write_text(RECIPE.format(name="one", steps=100_000))
    queue("one.yaml", "--slurm", "cluster=local,time=1,signal_delay_s=40")
    until(lambda: running("one", 2))
    # Now the training may end by itself.
    [log] = Path("runs/slurm").glob("*_0_log.out")
    job = int(log.name.partition("_")[0])
    assert "Requeued job" in log.read_text()
    os.kill(job, signal.SIGTERM)  # its controller passes it on
    until(lambda: RunDir(Path("runs/one-seed3")).meta()["sessions"][1].get("status") == "interrupted")
    assert len(RunDir(Path("runs/one-seed3")).saved_steps()) == 2
