"""Doing a plan: order, failures that stay alone, interruption, locks, processes that are killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reproduction import FAMILY, experiment, leave_done, recipe

from mrt5cli import locks
from mrt5cli.errors import UserError
from mrt5cli.stopping import SIGNALS
from mrt5cli.suite import executing, processes
from mrt5cli.suite.executing import SuiteOutcome, execute, log_of, only_one
from mrt5cli.suite.jobs import Job, SuitePlan, TrainJob
from mrt5cli.suite.planning import make_plan
from mrt5cli.suite.processes import Forks, kill
from mrt5cli.suite.work import JobOrder

BYT5, MRT5, RANDOM, OTHER = (f"train {name} seed 1" for name in FAMILY)


class Silent:
    """A display that records its calls."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.errors: dict[str, str | None] = {}

    def started(self, job: Job) -> None:
        self.said.append(job.id)

    def ended(self, job: Job, seconds: float, error: str | None) -> None:
        self.errors[job.id] = error

    def done_elsewhere(self, job: Job) -> None:
        self.said.append(f"by another host: {job.id}")

    def tick(self) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass
class FakeJob:
    """Ends after some polls, with given output and exit code."""

    code: int
    leave: Callable[[], None]
    polls: int = 2
    stopped: int = 0
    killed: int = 0

    pid = None

    @property
    def exitcode(self) -> int | None:
        self.polls -= 1
        if self.polls > 0:
            return None
        if self.code == 0:
            self.leave()
        return self.code

    def terminate(self) -> None:
        self.stopped += 1
        self.code = 130

    def kill(self) -> None:
        self.killed += 1
        self.code = -9
        self.polls = 1


@dataclass
class FakeLauncher:
    """Starts fakes: each job leaves what it should, but for those with a code of their own."""

    slots: int = 1
    codes: dict[str, int] = field(default_factory=dict)
    polls: dict[str, int] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    orders: list[JobOrder] = field(default_factory=list)
    running: list[FakeJob] = field(default_factory=list)
    most: int = 0

    def start(self, order: JobOrder, slot: int, log: Path) -> FakeJob:
        assert 0 <= slot < self.slots
        self.orders.append(order)
        with log.open("a") as file:
            file.write(self.says.get(order.job.id, ""))
        leave = (
            (lambda: None) if order.job.id in self.idle else (lambda: leave_done(order.plan, order.job.id))
        )
        job = FakeJob(self.codes.get(order.job.id, 0), leave, self.polls.get(order.job.id, 2))
        self.running.append(job)
        self.most = max(self.most, sum(one.polls > 0 for one in self.running))
        return job


def family(root: Path, **fields: object) -> SuitePlan:
    return make_plan(
        "mine", [experiment("all", *FAMILY, analyses=("compute",), **fields)], root, known=FAMILY
    )


def run(plan: SuitePlan, launcher: FakeLauncher, display: Silent | None = None) -> SuiteOutcome:
    return execute(plan, launcher, display or Silent())


def test_everything_once_and_in_order(tmp_path: Path) -> None:
    plan, launcher = family(tmp_path), FakeLauncher()
    outcome = run(plan, launcher)
    assert [order.job.id for order in launcher.orders] == outcome.done == [job.id for job in plan.jobs]
    assert {job.status for job in plan.jobs} == {"done"}
    assert outcome.failures == [] and not outcome.signal
    again = FakeLauncher()
    assert run(family(tmp_path), again).done == again.orders == []


def test_jobs_fill_the_slots_as_far_as_needs_allow(tmp_path: Path) -> None:
    launcher = FakeLauncher(slots=3, polls={BYT5: 8})
    run(family(tmp_path), launcher)
    order = [one.job.id for one in launcher.orders]
    assert launcher.most == 3
    assert order[:2] == [BYT5, OTHER]  # nothing else can be started yet
    assert order[-1] == "analyse all:compute"


def test_a_failure_takes_only_along_what_needs_it(tmp_path: Path) -> None:
    says = {MRT5: "Traceback ...\nerror: no such file: data/x\nhint: make it\n"}
    plan, launcher = family(tmp_path), FakeLauncher(codes={MRT5: 2}, says=says)
    outcome = run(plan, launcher)
    [failure] = outcome.failures
    assert (failure.job, failure.error) == (MRT5, "no such file: data/x")
    assert failure.log == log_of(plan, plan.job(MRT5)) and "data/x" in failure.log.read_text()
    assert set(failure.blocked) == {"evaluate tiny/mrt5 seed 1 vowel_removal", "analyse all:compute"}
    states = {job.id: job.status for job in plan.jobs}
    assert states.pop(MRT5) == "failed"
    assert {id_ for id_, status in states.items() if status == "blocked"} == set(failure.blocked)
    assert {status for id_, status in states.items() if id_ not in failure.blocked} == {"done"}
    assert [order.job.id for order in launcher.orders].count(MRT5) == 1  # not again and again


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.sampled_from([BYT5, MRT5, RANDOM, OTHER]), st.sampled_from([1, 2, -9])))
def test_whatever_fails_the_rest_is_done(codes: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(executing, "POLL_SECONDS", 0)
        plan = family(Path(folder))
        outcome = run(plan, FakeLauncher(slots=2, codes=codes))
    states = {job.id: job.status for job in plan.jobs}
    for job in plan.jobs:
        if not {"failed", "blocked"}.isdisjoint(need.status for need in job.needs):
            assert job.status == "blocked"
        else:
            assert job.status == ("failed" if job.id in codes else "done")
    assert {failure.job for failure in outcome.failures} == {
        id_ for id_, status in states.items() if status == "failed"
    }


def test_a_killed_job_says_so_and_old_logs_are_not_read(tmp_path: Path) -> None:
    plan = family(tmp_path)
    log = log_of(plan, plan.job(OTHER))
    log.parent.mkdir(parents=True)
    log.write_text("error: of yesterday\n")
    [failure] = run(plan, FakeLauncher(codes={OTHER: -9})).failures
    assert failure.error == "was killed by SIGKILL, by hand or because memory ran out"
    assert log.read_text().startswith("error: of yesterday\n== ")
    [failure] = run(family(tmp_path), FakeLauncher(codes={OTHER: 1})).failures
    assert failure.error == "ended with code 1: no output"


def test_a_job_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    [failure] = run(family(tmp_path), FakeLauncher(idle=(OTHER,))).failures
    assert failure.error == "it exited with 0 but is missing: not trained yet"


def test_a_changed_run_is_replaced_and_a_half_done_one_gone_on_with(tmp_path: Path) -> None:
    from reproduction import trained

    plan = family(tmp_path)
    trained(plan.job(BYT5), code="0.0.1+old")
    trained(plan.job(OTHER), status="interrupted")
    launcher = FakeLauncher()
    run(family(tmp_path), launcher)
    overwrite = {order.job.id: order.overwrite for order in launcher.orders}
    assert overwrite[BYT5] and not overwrite[OTHER] and not overwrite[MRT5]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_stops_and_a_ctrl_c_after_it_kills(tmp_path: Path, number: signal.Signals) -> None:
    plan, handlers = family(tmp_path), [signal.getsignal(one) for one in SIGNALS]

    class Signalled(FakeLauncher):
        def start(self, order: JobOrder, slot: int, log: Path) -> FakeJob:
            os.kill(os.getpid(), number)
            return super().start(order, slot, log)

    launcher, display = Signalled(slots=2), Silent()
    outcome = run(plan, launcher, display)
    assert outcome.signal == number and outcome.done == [] and outcome.failures == []
    assert [(job.stopped, job.killed) for job in launcher.running] == [(1, 0)]  # and nothing more started
    assert display.errors == {BYT5: "interrupted"}
    assert {job.status for job in plan.jobs} == {"missing"}
    assert display.said[-1].startswith("stopping: trainings save")
    assert [signal.getsignal(one) for one in SIGNALS] == handlers  # ours again

    # The last first; `timeout` sends its own twice.
    pause = [signal.SIGINT, number] if number == signal.SIGINT else [signal.SIGINT, number, number]

    class Signals(FakeJob):
        @property
        def exitcode(self) -> int | None:
            if pause:
                os.kill(os.getpid(), pause.pop())
            return super().exitcode

    class Twice(FakeLauncher):
        def start(self, order: JobOrder, slot: int, log: Path) -> FakeJob:
            self.running.append(Signals(0, lambda: None, polls=10**6))
            return self.running[-1]

    twice = Twice()
    assert run(family(tmp_path), twice).signal == number
    assert [(job.stopped, job.killed) for job in twice.running] == [(1, 1)] and not pause


# --- locks --------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(UserError, match="another `mrt5 reproduce`"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mrt5cli.suite.executing import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another"), only_one(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with only_one(tmp_path):
        pass


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Callable[[], None]]:
    """Has another host hold the lock of a file, whose file system keeps flock to each host; what is returned
    lets it die."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(executing, "ELSEWHERE_SECONDS", 0.05)
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    began = time.time()

    def hold(path: Path) -> Callable[[], None]:
        ended = threading.Event()

        def sign() -> None:
            holder = locks.Holder(4711, "far", began, time.time(), "another machine", "", 1)
            with path.open("r+") as file:
                file.write(json.dumps(asdict(holder)).ljust(locks.SIZE))

        def beats() -> None:
            while not ended.wait(0.05):
                sign()

        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        sign()
        thread = threading.Thread(target=beats, daemon=True)
        thread.start()
        return lambda: (ended.set(), thread.join())[1]

    return hold


def lock_of(plan: SuitePlan, id_: str) -> Path:
    return log_of(plan, plan.job(id_)).with_suffix(".lock")


@pytest.mark.parametrize("dies", [False, True], ids=["done", "dies"])
def test_what_another_host_does_is_left_to_it_while_it_lives(
    tmp_path: Path, two_hosts: Callable[[Path], Callable[[], None]], dies: bool
) -> None:
    plan, launcher, display = family(tmp_path), FakeLauncher(), Silent()
    let_go = two_hosts(lock_of(plan, BYT5))

    def ends() -> None:
        if not dies:
            leave_done(plan, BYT5)
        let_go()
        if not dies:
            lock_of(plan, BYT5).write_text("")

    threading.Timer(0.5, ends).start()
    outcome = run(plan, launcher, display)
    orders = [order.job.id for order in launcher.orders]
    assert {*outcome.done} == {job.id for job in plan.jobs} and outcome.failures == []
    assert f"left to  far: {BYT5}" in display.said
    assert orders[0] == OTHER  # what needs nothing of the other host's is done meanwhile
    assert orders.count(BYT5) == (1 if dies else 0)
    assert (f"by another host: {BYT5}" in display.said) is not dies
    assert len(orders) == len(set(orders))


def test_hosts_do_not_share_a_host_s_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_hosts: object
) -> None:
    with only_one(tmp_path):
        monkeypatch.setattr(locks, "HOST", "near")
        monkeypatch.setattr(locks, "MACHINE", "another machine")
        with only_one(tmp_path):
            pass


# --- processes ----------------------------------------------------------------------------------------------


def ended(job: BaseProcess, seconds: float = 60.0) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = job.exitcode
        if code is not None:
            return int(code)
        time.sleep(0.02)
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    "device, gpus, jobs, smoke, expected",
    [
        ("cpu", 0, None, False, (1, 4, [], False, "on the CPU, 1 job at a time, 4 threads each")),
        ("auto", 0, 2, False, (2, 2, [], False, "on the CPU, 2 jobs at a time, 2 threads each")),
        ("auto", 0, None, True, (4, 1, [], False, "on the CPU, 4 jobs at a time, 1 thread each")),
        ("auto", 3, None, False, (3, None, ["0", "1", "2"], False, "3 jobs at a time, one GPU each")),
        ("cuda", 3, 2, False, (2, None, ["0", "1"], False, "2 jobs at a time, one GPU each")),
        ("cuda", 3, 1, False, (1, None, ["0", "1", "2"], True, "one training at a time, on 3 GPUs")),
        ("cuda:1", 3, None, False, (1, None, ["1"], False, "1 job at a time, one GPU each")),
        ("cuda", 2, None, True, (2, None, ["0", "1"], False, "2 jobs at a time, one GPU each")),
        ("cuda", 2, 3, False, "each job needs a GPU, and there are 2"),
        ("cuda:1", 2, 2, False, "each job needs a GPU, and there are 1"),
    ],
)
def test_what_a_machine_starts_jobs_with(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, jobs: int | None, smoke: bool, expected: Any
) -> None:
    kind = SimpleNamespace(type="cuda" if gpus else "cpu")
    monkeypatch.setattr(processes.runtime, "device", lambda name: kind)
    monkeypatch.setattr(processes.runtime, "usable_cpus", lambda: 4)
    monkeypatch.setattr(processes, "visible_gpus", lambda: [str(number) for number in range(gpus)])
    plan = SuitePlan("mine", Path("nowhere"), [], smoke=smoke)
    if isinstance(expected, str):
        with pytest.raises(UserError) as caught:
            processes.launcher_for(plan, device, jobs)
        assert expected in caught.value.message
        return
    found = processes.launcher_for(plan, device, jobs)
    assert (found.slots, found.threads, list(found.gpus), found.together, str(found)) == expected
    assert found.device == ("cuda" if gpus else "cpu")


def test_real_processes_end_with_their_code_or_signal(tmp_path: Path) -> None:
    """A job whose recipe cannot be trained, and one killed before it can do anything."""
    plan = family(tmp_path / "runs")
    job = plan.job(OTHER)
    assert isinstance(job, TrainJob)
    job.recipe = recipe("lost", str(tmp_path / "nowhere"))
    log = tmp_path / "log"
    running = Forks(1, 1).start(JobOrder(plan, job), 0, log)
    assert ended(running) == 2
    assert "error:" in log.read_text() and "nowhere" in log.read_text()
    running = Forks(1, 1).start(JobOrder(plan, job), 0, log)
    kill(running)
    assert ended(running) == -signal.SIGKILL
    running.terminate()  # of one that has ended is nothing
    kill(running)


@pytest.mark.slow
def test_what_is_forked_has_touched_no_gpu() -> None:
    """CUDA does not survive a fork, so the process that jobs are forked from may not even count GPUs."""
    code = (
        "import torch\n"
        "def touched(*_): raise AssertionError('CUDA is touched')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = touched\n"
        "import mrt5cli.suite.preload\n"
        "print(torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


def orphan(job: BaseProcess) -> None:
    """Let a job find that its parent process has ended."""
    job._popen.finalizer()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_group_that_trains_together_is_stopped_killed_and_orphaned_as_one(tmp_path: Path) -> None:
    """Two processes on a CPU in place of two GPUs: what torchrun starts ends as a single process does."""
    steps = {"max_steps": 100_000, "save_steps": 100_000, "logging_steps": 5, "device_batch_size": 2}
    known = {"long": recipe("long", training=steps)}
    plan = make_plan("mine", [experiment("a", "long", evaluations=())], tmp_path / "runs", known=known)
    [job] = plan.trainings
    launcher = Forks(1, 1, ["0", "1"])

    def lines() -> int:
        return job.run.metrics_path.read_text().count("\n") if job.run.metrics_path.is_file() else 0

    def started() -> BaseProcess:
        before = lines()
        running = launcher.start(JobOrder(plan, job), 0, tmp_path / "log")
        until = time.monotonic() + 120
        while lines() < before + 2:
            assert time.monotonic() < until and running.exitcode is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        return running

    running = started()
    running.terminate()
    assert ended(running) == 143
    meta = job.run.meta()
    assert (meta["status"], meta["processes"]) == ("interrupted", 2)
    assert job.run.saved_steps() == [meta["step"]]

    running = started()
    kill(running)
    assert ended(running) == -signal.SIGKILL
    before = lines()
    time.sleep(1.5)
    assert lines() == before  # no process of the group trains on

    running = started()
    orphan(running)
    until = time.monotonic() + 60
    while job.run.meta()["status"] != "interrupted":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert job.run.saved_steps()[-1] > meta["step"]
