"""The progress display: words, plain lines, and the live line of a terminal."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from mrt5cli.training.progress import ProgressDisplay, facts_of

ROW = {
    "step": 10,
    "loss": 1.23456,
    "deletion_rate": 0.382,
    "target": 0.4,
    "alpha": 0.0123,
    "bytes_per_second": 12_345.0,
}


def test_facts():
    assert facts_of(ROW) == "loss 1.235  deleted 38.2 % of 40 %  alpha 0.0123  12.3 kB/s"
    plain = {**ROW, "target": None, "alpha": 0.0, "deletion_rate": 0.0}
    assert facts_of(plain) == "loss 1.235  12.3 kB/s"


def show(terminal: bool, plain_seconds: float) -> str:
    """What a training of 20 steps shows that logs at 5, 10, 15 and 20."""
    file = io.StringIO()
    display = ProgressDisplay(
        Console(file=file, force_terminal=terminal, width=120, color_system=None), plain_seconds
    )
    with display:
        display.on_train_begin(None, state(0), None)
        for step in range(1, 21):
            display.on_step_end(None, state(step), None)
            if step % 5 == 0:
                display.on_log(None, state(step), None, logs={**ROW, "step": step, "loss": float(step)})
    return file.getvalue()


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=20)


def test_plain_lines_come_now_and_then_and_at_the_end():
    lines = show(terminal=False, plain_seconds=0.0).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 5/20", "step 10/20", "step 15/20", "step 20/20"]
    assert lines[0].endswith("0 s left")
    assert "left" not in lines[-1]
    assert show(terminal=False, plain_seconds=60.0).splitlines() == [
        "step 20/20  loss 20  deleted 38.2 % of 40 %  alpha 0.0123  12.3 kB/s"
    ]


def test_a_terminal_gets_one_line_that_stays():
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", show(terminal=True, plain_seconds=0.0))
    assert shown.count("\n") == 1  # redrawn in place until the end
    last = shown.rstrip().split("\r")[-1]
    assert last.startswith("step 20/20 ")
    assert last.endswith("loss 20  deleted 38.2 % of 40 %  alpha 0.0123  12.3 kB/s")
