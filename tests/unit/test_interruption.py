"""What signals do to a training, apart from a training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from mrt5cli.stopping import SIGNALS, Stopped
from mrt5cli.training.interruption import Interruption

ALONE = SimpleNamespace(world_size=1, device="cpu")


def after_step(interruption: Interruption, step: int = 3) -> SimpleNamespace:
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    state = SimpleNamespace(global_step=step, max_steps=10, logging_steps=5)
    interruption.on_step_end(ALONE, state, control)
    return control


def test_nothing_happens_without_a_signal():
    control = after_step(Interruption())
    assert not control.should_save
    assert not control.should_training_stop


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_saves_and_stops_after_the_step(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        control = after_step(interruption)
    assert control.should_save
    assert control.should_training_stop
    assert interruption.stopped
    assert interruption.number == number
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_the_second_ctrl_c_stops_at_once_but_a_second_termination_does_not():
    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_whoever_waits_for_data_is_stopped_at_once(number: signal.Signals):
    with Interruption() as interruption:
        interruption.waiting = lambda: True
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
    assert stopped.value.number == number


def test_in_a_group_repetitions_mean_nothing():
    with Interruption(alone=False) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert interruption.number == signal.SIGINT


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("number", "gone"), [(signal.SIGUSR1, False), (signal.SIGTERM, True), (0, False)])
def test_a_group_agrees_at_logging_steps_on_a_signal_or_that_its_launcher_is_gone(
    group: None, number: int, gone: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    with Interruption(alone=False) as interruption:
        if gone:
            monkeypatch.setattr(os, "getppid", lambda: 1)
        elif number:
            os.kill(os.getpid(), number)
        assert not after_step(interruption, step=4).should_save
        assert after_step(interruption, step=5).should_save == bool(number)
    assert interruption.number == number


def test_a_run_that_is_at_its_end_is_not_interrupted():
    interruption = Interruption()
    interruption.number = signal.SIGTERM
    assert not after_step(interruption, step=10).should_training_stop
    assert not interruption.stopped


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_other_threads_train_without_handlers():
    failures: list[BaseException] = []

    def train() -> None:
        try:
            with Interruption():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures
