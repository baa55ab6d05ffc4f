"""Handles signals that ask a training to stop: the step is finished, and a checkpoint is saved."""

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


def _on_stderr(notice: str) -> None:
    """Write from a signal handler, which may interrupt a print call; print is not reentrant."""
    with suppress(OSError):  # stderr may be closed
        os.write(2, f"\n{notice}\n".encode())


class Interruption(TrainerCallback):
    """A context manager that catches the signals, and the callback that acts on them between steps.

    In a single process, Ctrl-C after the first signal raises `Stopped` at once. Processes of a group receive
    each signal from their launcher and from the terminal, so repetition has no meaning there. Because they
    must stop at the same step, they agree on it at logging steps, where they synchronize anyway. There they
    also notice if torchrun was ended by a signal that it does not handle, and treat that as SIGTERM.

    Args:
        alone: this process is not part of a group.

    Attributes:
        notify: reports a signal; called from the signal handler.
        waiting: whether the training has been waiting for data. If so, the first signal raises `Stopped`, and
            the trainer saves the last completed step.
        number: number of the first signal received, or 0; in a group, the largest of all processes.
        stopped: the callback has ended the training because of a signal.
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
        self.handlers.close()  # restores the previous handlers

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        at_once = self.number and number == signal.SIGINT
        if self.alone and (at_once or self.waiting()):
            raise Stopped(number)
        if not self.number and leads():
            again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
            name = signal.Signals(number).name
            self.notify(f"{name}: stopping after this step; {again} stops at once, without saving")
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
