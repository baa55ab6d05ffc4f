"""How far a plan is: plain lines, live bars, and the newest line of a training's metrics."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from reproduction import FAMILY, experiment
from rich.console import Console

from mrt5cli.suite.display import Display, last_metrics
from mrt5cli.suite.jobs import Job, SuitePlan, TrainJob
from mrt5cli.suite.planning import make_plan


def planned(root: Path) -> SuitePlan:
    return make_plan("mine", [experiment("all", "other")], root, known=FAMILY)


def with_metrics(job: Job, text: str) -> Job:
    assert isinstance(job, TrainJob)
    job.run.path.mkdir(parents=True, exist_ok=True)
    job.run.metrics_path.write_text(text)
    return job


def row(step: int, **more: object) -> str:
    return (
        json.dumps({"step": step, "loss": -0.022, "cross_entropy": 2.5, "deletion_rate": 0.31, **more}) + "\n"
    )


def test_a_line_for_each_start_and_end(tmp_path: Path) -> None:
    plan, out = planned(tmp_path), StringIO()
    display = Display(plan, Console(file=out), seconds=0)
    train, evaluate = plan.jobs
    display.started(with_metrics(train, row(1) + row(2)))
    display.tick()
    display.ended(train, 12.0, None)
    display.started(evaluate)
    display.tick()
    display.ended(evaluate, 3.0, "no such file")
    assert out.getvalue().splitlines() == [
        "started  train other seed 1",
        "running  train other seed 1  step 2/4  loss 2.5  deleted 31 %",
        "done     train other seed 1 in 12 s  [1/2]",
        "started  evaluate other seed 1 vowel_removal",
        "running  evaluate other seed 1 vowel_removal",
        "failed   evaluate other seed 1 vowel_removal: no such file  [2/2]",
    ]


def test_between_ticks_nothing_is_said(tmp_path: Path) -> None:
    plan, out = planned(tmp_path), StringIO()
    display = Display(plan, Console(file=out))
    display.started(plan.jobs[0])
    display.tick()
    display.ended(plan.jobs[0], 1.0, "interrupted")
    assert out.getvalue().splitlines()[1:] == ["stopped  train other seed 1 in 1 s  [1/2]"]


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    plan, out = planned(tmp_path), StringIO()
    display = Display(plan, Console(file=out, force_terminal=True, width=120), seconds=0)
    with display.bars:
        display.started(with_metrics(plan.jobs[0], row(3)))
        display.tick()
        display.bars.refresh()
        bar = display.bars.tasks[-1]
        assert (bar.completed, bar.total) == (3, 4)
        display.ended(plan.jobs[0], 1.0, None)
        assert [task.description for task in display.bars.tasks] == ["jobs"]
        assert display.bars.tasks[0].completed == 1
    assert "loss 2.5" in out.getvalue() and "done     train other seed 1" in out.getvalue()


@given(st.integers(1, 60), st.integers(0, 200))
def test_the_newest_whole_line_however_long_the_file(rows: int, cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        text = "".join(row(step, note="x" * 100) for step in range(1, rows + 1))
        kept = text[: len(text) - cut] if cut < len(text) else ""
        job = with_metrics(planned(Path(folder)).jobs[0], kept)
        whole = kept.count("\n")
        assert last_metrics(job).get("step", 0) == whole


def test_what_has_no_steps_has_no_metrics(tmp_path: Path) -> None:
    train, evaluate = planned(tmp_path).jobs
    assert last_metrics(train) == last_metrics(evaluate) == {}
    assert last_metrics(with_metrics(train, "no json\n")) == {}
