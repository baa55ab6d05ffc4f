"""The progress display: words, plain lines, and the live line of terminals of several widths."""

from __future__ import annotations

import io
import pty
import re
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from terminals import Reader, screen

from mrt5cli import recipe as recipes
from mrt5cli.models.fast.choice import Choice
from mrt5cli.training.progress import ProgressDisplay, compiling, facts_of, validation_of

ROW = {
    "step": 10,
    "loss": 1.23456,
    "cross_entropy": 1.25,
    "gate_loss": -0.02044,
    "score_loss": 0.01,
    "deletion_rate": 0.382,
    "target": 0.4,
    "alpha": 0.0123,
    "bytes_per_second": 12_345.0,
}
ALL = "loss 1.25  gate term -0.0204  score term 0.005  deleted 38.2 % (target 40 %)  alpha 0.0123  12.3 kB/s"
ARGS: Any = SimpleNamespace(device=torch.device("cpu"))
CONTROL: Any = None
LINE = {"validation": {"en": {"loss": 2.0}, "total": {"loss": 1.5, "deletion_rate": 0.375, "f1": 0.25}}}


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=20)


# --- words --------------------------------------------------------------------------------------------------


def test_what_is_called_loss_is_the_cross_entropy_and_terms_are_as_they_enter_the_sum() -> None:
    assert "  ".join(facts_of(ROW, score_coefficient=0.5)) == ALL
    assert "  ".join(facts_of(ROW, 0.5, memory=1_500_000_000)) == f"{ALL}  memory 1.5 GB"
    minimised = ROW["cross_entropy"] + ROW["gate_loss"] + 0.5 * ROW["score_loss"]
    assert minimised == pytest.approx(ROW["loss"], abs=1e-4)


def test_what_is_zero_or_absent_is_not_told() -> None:
    plain = {
        **ROW,
        "target": None,
        **dict.fromkeys(("alpha", "deletion_rate", "gate_loss", "score_loss"), 0.0),
    }
    plain["loss"] = plain["cross_entropy"]
    assert facts_of(plain, 0.5) == ["loss 1.25", "12.3 kB/s"]
    assert facts_of({**plain, "target": 0.4}, 0.5)[1:3] == ["deleted 0.0 % (target 40 %)", "alpha 0"]
    assert facts_of({**plain, "loss": 1.5}, 0.5)[1] == "auxiliary term 0.25"


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (None, "loss 1.5, deleted 37.5 %"),
        (
            {"metric": "f1", "value": 0.25, "better": True},
            "loss 1.5, deleted 37.5 %, F1 25.00 %, the best so far",
        ),
        ({"metric": "f1", "value": 0.25, "better": False}, "loss 1.5, deleted 37.5 %, F1 25.00 %"),
        ({"metric": "loss", "value": 1.5, "better": True}, "loss 1.5, deleted 37.5 %, the best so far"),
        ({"metric": "f1", "value": None, "better": False}, "loss 1.5, deleted 37.5 %"),
    ],
)
def test_a_validation_in_words(best: dict[str, Any] | None, said: str) -> None:
    line = LINE if best is None else {**LINE, "best": best}
    assert validation_of(line, 500) == f"validation at step 500: {said}"


def test_what_the_first_step_compiles() -> None:
    recipe, compiled = (
        recipes.load("quickstart", [f"training.compile={word}"]) for word in ("false", "true")
    )
    blocks = "the blocks' feed-forward halves"
    assert compiling(recipe, Choice("sdpa", "")) == ""
    assert compiling(compiled, Choice("sdpa", "")) == blocks
    assert compiling(compiled, Choice("triton", "")) == f"{blocks} and the Triton kernels"


# --- elsewhere than on a terminal ---------------------------------------------------------------------------


class Clock:
    """A clock that moves only when set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mrt5cli.training.progress.time.monotonic", clock)
    return clock


def lines_of(clock: Clock, seconds: Callable[[int], float], every: int, compiles: str = "") -> list[str]:
    """What 20 steps show in a pipe, each taking so many seconds, with metrics every so many."""
    file = io.StringIO()
    display = ProgressDisplay(0.5, compiles, Console(file=file, width=200))
    with display:
        display.on_train_begin(ARGS, state(0), CONTROL)
        for step in range(1, 21):
            clock.now += seconds(step)
            display.on_step_end(ARGS, state(step), CONTROL)
            if step == 15:
                clock.now += 12.0
                display.validating("en", 512)
                display.on_evaluate(ARGS, state(step), CONTROL, metrics=LINE)
            if step % every == 0:
                display.on_log(
                    ARGS, state(step), CONTROL, logs={**ROW, "step": step, "cross_entropy": float(step)}
                )
    return re.sub(r"memory [\d.]+ [kMG]?B", "memory M", file.getvalue()).splitlines()


def test_a_plain_line_comes_every_ten_seconds_at_validation_and_at_the_end(clock: Clock) -> None:
    rest = "  memory M"
    facts = lambda step: ALL.replace("1.25", str(step), 1) + rest
    lines = [re.sub("  auxiliary term [-.0-9]+", "", line) for line in lines_of(clock, lambda step: 2.0, 5)]
    assert lines == [
        f"step 5/20  {facts(5)}  30 s left",
        f"step 10/20  {facts(10)}  20 s left",
        f"step 15/20  {facts(10)}  14 s left  validating, en: 512 examples",
        "validation at step 15: loss 1.5, deleted 37.5 %",
        f"step 20/20  {facts(20)}",
    ]


def test_where_lines_of_metrics_are_far_apart_steps_are_told_between_them(clock: Clock) -> None:
    lines = [line for line in lines_of(clock, lambda step: 12.0, 20) if line.startswith("step")]
    assert lines[0] == "step 3/20  no metrics yet  3 min left"
    assert [line.split("  ")[0] for line in lines[:3]] == ["step 3/20", "step 5/20", "step 7/20"]


@pytest.mark.parametrize(("compiles", "more"), [("", ""), ("kernels", ", kernels compiled")])
def test_a_long_first_step_is_told_and_does_not_count_for_the_time_left(
    clock: Clock, compiles: str, more: str
) -> None:
    lines = lines_of(clock, lambda step: 34.0 if step == 1 else 2.0, 5, compiles)
    assert lines[0] == f"the first step took 34 s{more}"
    assert lines[1].startswith("step 10/20") and lines[1].endswith("20 s left")
    assert not any("first step" in line for line in lines_of(clock, lambda step: 1.0, 5, compiles))


def test_a_first_step_that_takes_long_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrt5cli.training.progress.LONG", 0.01)
    file = io.StringIO()
    with ProgressDisplay(0.0, "kernels", Console(file=file, width=200)) as display:
        display.on_train_begin(ARGS, state(0), CONTROL)
        deadline = time.monotonic() + 10
        while not file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert file.getvalue() == "the first step compiles kernels ...\n"


# --- on a terminal ------------------------------------------------------------------------------------------


def drive(display: ProgressDisplay) -> None:
    """20 steps with metrics at every fifth; at step 10 something else is printed, and a validation."""
    print("before", file=sys.stderr)
    with display:
        display.on_train_begin(ARGS, state(0), CONTROL)
        for step in range(1, 21):
            display.on_step_end(ARGS, state(step), CONTROL)
            if step % 5 == 0:
                display.on_log(ARGS, state(step), CONTROL, logs=ROW)
                display.live.refresh()
            if step == 10:
                print("a note from elsewhere " + "x" * 70, file=sys.stderr)
                display.validating("en", 512)
                display.live.refresh()
                display.on_evaluate(ARGS, state(step), CONTROL, metrics=LINE)
                display.live.refresh()
            if step == 18:
                display.note("SIGTERM: stopping")
    print("behind", file=sys.stderr)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_live_line_of_a_terminal_stays_whole_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    leading, following = pty.openpty()
    reader = Reader(leading)
    with open(following, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        drive(ProgressDisplay(0.5, console=Console(stderr=True, width=width)))
        monkeypatch.undo()
    text = reader.text()
    shown = screen(text, width)
    assert shown[0] == "before"
    assert all(cell_len(line) <= width for line in shown)
    # Nothing drawn before is left: everything appears once.
    said = " ".join(" ".join(shown).split())
    for words in ("step 20/20", "loss 1.25", "score term 0.005", "deleted 38.2 % (target 40 %)", "12.3 kB/s"):
        assert said.count(words) == 1, (words, shown)
    assert "validation at step 10: loss 1.5, deleted 37.5 %" in said
    assert said.endswith("SIGTERM: stopping behind")
    assert said.count("a note from elsewhere") == 1
    drawn = " ".join(text.split())
    assert "step 0/20" in drawn and "the first step is running" in drawn
    assert "validating, en: 512 examples" in drawn


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with ProgressDisplay(0.5, console=console) as display:
        display.on_train_begin(ARGS, state(0), CONTROL)
        display.on_log(ARGS, state(20), CONTROL, logs=ROW)
    assert file.getvalue().startswith("step 20/20  loss 1.25") and "\x1b" not in file.getvalue()
