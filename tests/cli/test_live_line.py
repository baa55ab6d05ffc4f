"""The live line of a real training in a pseudo-terminal, which a signal comes to."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from runs_of_commands import ENVIRONMENT, MRT5
from terminals import Reader, screen

from mrt5cli.rundir import RunDir

WIDTH = 80


@pytest.mark.slow
def test_a_signal_is_told_of_on_the_live_line_and_nothing_of_it_is_left_twice(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    options = ["max_steps=100000", "save_steps=100000", "eval_steps=50"]
    words = ["pretrain", "quickstart", "--smoke", "--out", str(run.path)]
    words += [f"--set=training.{option}" for option in options]
    leading, following = pty.openpty()
    fcntl.ioctl(following, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, *MRT5, *words],
        cwd=tmp_path,
        env=environment,
        stdin=following,
        stdout=following,
        stderr=following,
        start_new_session=True,
    )
    os.close(following)
    reader = Reader(leading)
    try:
        deadline = time.monotonic() + 120
        while b"validation at step" not in reader.read and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        process.kill()
    shown = screen(reader.text(), WIDTH)
    assert all(len(line) <= WIDTH for line in shown)
    block = [place for place, line in enumerate(shown) if line.startswith("step ")]
    assert len(block) == 1, shown
    rest = " ".join(shown[block[0] :])
    for words_once in (
        "loss ",
        "(target 24 %)",
        "alpha ",
        "memory ",
        " left",
        "validation at step",
    ):
        assert words_once in rest
    notice = "SIGTERM: stopping after this step; Ctrl-C stops at once, without saving"
    assert shown.count(notice) == 1
    assert rest.index(notice) < rest.index("stopped and saved at step") < rest.index("to resume: ")
