"""Who takes a signal that asks to stop: raised once, ignored where it was, and never a worker's."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from mrt5cli.stopping import (
    SIGNALS,
    Stopped,
    exit_code,
    how_it_ended,
    kept_from_children,
    number_of,
    raised,
    taken_by,
    work_for_parent,
)

CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
}


@pytest.mark.parametrize("number", SIGNALS)
def test_the_raised_signal_knows_its_code_and_its_words(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, raised():
        os.kill(os.getpid(), number)
    assert exit_code(stopped.value) == CODES[number]
    assert str(stopped.value) == ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}")
    assert number_of(pickle.loads(pickle.dumps(stopped.value))) == number
    assert exit_code(KeyboardInterrupt()) == 130


def test_what_comes_with_the_first_signal_is_not_raised_again_but_ctrl_c_is() -> None:
    with raised():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_whose_exception_was_lost_is_raised_when_it_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mrt5cli.stopping.SAME_SECONDS", 0.05)
    with raised():
        for _ in range(2):
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_python_drops_in_a_finalizer_comes_again(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped, raised():
        Finalized()
        for _ in range(1000):
            time.sleep(0.01)
    assert stopped.value.number == number
    assert capfd.readouterr().err == ""


def test_what_is_ignored_stays_ignored_but_for_ctrl_c() -> None:
    seen: list[int] = []
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}  # nohup, a shell's `&`
    try:
        with taken_by(lambda number, frame: seen.append(number)):
            for number in SIGNALS:
                os.kill(os.getpid(), number)
        assert seen == [signal.SIGINT]
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_how_a_process_ended() -> None:
    assert how_it_ended(-9) == "was killed by SIGKILL, by hand or because memory ran out"
    assert how_it_ended(-15) == "was killed by SIGTERM"
    assert how_it_ended(3) == "ended with code 3"


# --- processes that work for another ------------------------------------------------------------------------


def serve(end: Connection) -> None:
    work_for_parent()
    end.send("ready")
    while True:
        end.send(end.recv())


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def worker(request: pytest.FixtureRequest) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    context = multiprocessing.get_context(request.param)
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    with kept_from_children(spawned=request.param != "fork"):
        process.start()
    yield process, ours
    process.kill()
    process.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork
def test_a_worker_is_deaf_to_a_group_and_ends_when_its_parent_says_so(
    worker: tuple[multiprocessing.Process, Connection],
) -> None:
    process, end = worker
    for number in SIGNALS:  # while it may still import, from a process that is not its parent
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)
    assert end.poll(60) and end.recv() == "ready"
    for number in SIGNALS:
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)
    end.send("still there")
    assert end.poll(60) and end.recv() == "still there"
    process.terminate()
    process.join(20)
    assert process.exitcode == 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # here they are let through again


PARENT = """
import multiprocessing, os, sys, time
from mrt5cli.stopping import kept_from_children, {serve}

def stuck():
    {serve}()
    os.write(1, b"%d\\n" % os.getpid())  # at once, as three write here
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with kept_from_children():
        for _ in range(3):
            context.Process(target=stuck, daemon=True).start()
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up as Linux lists them")
@pytest.mark.parametrize("serve", ["work_for_parent", "end_with_parent"])
def test_no_worker_outlives_a_parent_that_was_killed(serve: str) -> None:
    command = [sys.executable, "-c", PARENT.format(serve=serve)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            workers = [int(parent.stdout.readline()) for _ in range(3)]
            assert all(map(alive, workers))
        finally:
            parent.kill()
        until = time.monotonic() + 20
        while any(map(alive, workers)):
            assert time.monotonic() < until, "a worker is left"
            time.sleep(0.05)


def test_another_thread_changes_no_handler() -> None:
    handlers: list[object] = []

    def look() -> None:
        with raised():
            handlers.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(number) for number in SIGNALS]
