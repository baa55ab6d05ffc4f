"""Signals that ask a training to stop: the step is finished, and a checkpoint saved to resume from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.runtime import leads
from mrt5cli.stopping import Stopped, taken_by

NOTICE = "{signal}: stopping after this step; {again} stops at once, without saving"


def _on_stderr(notice: str) -> None:
    """Say something from a handler, which may run in the middle of a print, which print does not survive."""
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"\n{notice}\n".encode())


class Interruption(TrainerCallback):
    """A context manager that catches the signals, and the callback that acts on them between steps.

    Alone, a Ctrl-C after the first signal raises `Stopped` at once. Processes of a group get the signal from
    their launcher as well as from the terminal, so there repetitions mean nothing; and as they must stop at
    the same step, they agree on it when they meet anyway, at logging steps. There they find, too, that
    torchrun is gone, which a signal that it does not take ends: to them it is as if SIGTERM had come.

    Args:
        alone: this process trains without others.

    Attributes:
        notify: says that a signal has come; it is called in the middle of anything.
        waiting: says whether the training has been waiting for data: then the first signal raises
            `Stopped`, and the trainer saves what it has.
        number: of the first signal that came, 0 before; of a group's, the greatest.
        stopped: the callback has ended the training because of it.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.notify: Callable[[str], None] = _on_stderr
        self.waiting: Callable[[], bool] = lambda: False
        self.number = 0
        self.stopped = False
        self.handlers = ExitStack()
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> Interruption:
        self.handlers.enter_context(taken_by(self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self.handlers.close()  # puts those before back

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = self.number and number == signal.SIGINT
        if self.alone and (at_once or self.waiting()):
            raise Stopped(number)
        if not self.number and leads():
            again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
            self.notify(NOTICE.format(signal=signal.Signals(number).name, again=again))
        self.number = self.number or number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not self.alone:
            if state.global_step % state.logging_steps:
                return
            if self.launcher not in (None, os.getppid()):
                self.number = self.number or signal.SIGTERM
            number = torch.tensor(float(self.number), device=args.device)
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            self.number = int(number.item())
        if self.number and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
