"""What is printed arrives whatever the streams are: other encodings, readers that leave, full disks, none."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrt5cli.output import Messages, Results, lead_nowhere, losing_messages, print_json

DOCUMENT = {"text": "Größe 日本 😀", "file": "caf\udce9", "plain": [1, None]}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16", "utf-8", "UTF8"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json(DOCUMENT)
    stream.flush()
    assert json.loads(bytes_.getvalue().decode(encoding)) == DOCUMENT


def test_a_reader_of_messages_that_leaves_takes_nothing_along() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", buffering=1, encoding="ascii") as stream:
        messages = Messages(stream)
        assert messages.write("read ö\n") == 7
        assert os.read(reading, 100) == b"read \\xf6\n"
        os.close(reading)
        for _ in range(3):
            print("x" * 10_000, file=messages, flush=True)  # more than any buffer holds


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that Linux has")
def test_a_full_disk_below_stdout_is_named() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        results = Results(stream)
        results.write("a line\n")
        with pytest.raises(OSError, match="No space left on device: 'stdout'"):
            results.flush()


@contextmanager
def closed_terminal() -> Iterator[tuple[int, Callable[[], None]]]:
    """A terminal, and a function that closes its window: later writes raise EIO."""
    window, terminal = pty.openpty()
    yield terminal, lambda: os.close(window)


@contextmanager
def closed_pipe() -> Iterator[tuple[int, Callable[[], None]]]:
    reading, writing = os.pipe()
    yield writing, lambda: os.close(reading)


@contextmanager
def full_disk() -> Iterator[tuple[int, Callable[[], None]]]:
    yield os.open("/dev/full", os.O_WRONLY), lambda: None


@pytest.mark.parametrize("lost", [closed_terminal, closed_pipe, full_disk])
def test_whatever_prints_goes_on_when_stderr_is_gone(
    lost: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a program that is not ours, in the middle of a live line: our display, and what libraries print."""
    from rich.console import Console
    from rich.progress import Progress
    from tqdm import tqdm

    from mrt5cli.text import say_on_stderr
    from mrt5cli.training.progress import ProgressDisplay

    with lost() as (descriptor, close), open(descriptor, "w", buffering=1) as stream:  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "__stderr__", stream)
        with losing_messages(), ProgressDisplay(plain_seconds=0.0) as display:
            row = {
                "loss": 1.0,
                "cross_entropy": 1.0,
                "gate_loss": 0.0,
                "score_loss": 0.0,
                "deletion_rate": 0.0,
            }
            row |= {"target": None, "alpha": 0.0, "bytes_per_second": 1.0}
            args = SimpleNamespace(device=torch.device("cpu"))
            state = lambda step: SimpleNamespace(global_step=step, max_steps=4)
            display.on_train_begin(args, state(0), None)  # type: ignore[arg-type]
            display.on_log(args, state(1), None, logs=row)  # type: ignore[arg-type]
            close()
            for step in (2, 3, 4):
                display.on_log(args, state(step), None, logs=row)  # type: ignore[arg-type]
            list(tqdm(range(3), file=sys.stderr, mininterval=0))
            logging.StreamHandler().emit(logging.makeLogRecord({"msg": "a library's"}))
            say_on_stderr("ours " * 10_000)
            Console(stderr=True).print("somebody's")
            with Progress(console=Console(stderr=True)) as bar:
                bar.add_task("another")
        assert sys.stderr is stream
        with pytest.raises(OSError):  # so that this shows something
            print("x" * 100_000, file=stream, flush=True)
        lead_nowhere(stream)


def test_closed_streams_and_an_ascii_stdout(tmp_path: Path) -> None:
    """Commands in processes of their own, as daemons and bare locales start them."""
    mine = tmp_path / "größe.yaml"
    mine.write_text("extends: quickstart\ndescription: für Wörter 日本 😀\n", encoding="utf-8")
    show = f'"{sys.executable}" -m mrt5cli recipe show "{mine}"'
    for ends in ("<&- >&- 2>&-", ">&-", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{show} {ends}"], capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b""), ends

    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = f'{show}; "{sys.executable}" -m mrt5cli recipe copy quickstart /dev/stdout | tail -n +1'
    done = subprocess.run(["sh", "-c", script], capture_output=True, env=ascii_only, timeout=120)
    assert done.stdout.isascii() and b"# The quickstart" in done.stdout and b"rror" not in done.stderr
