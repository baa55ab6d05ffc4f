"""Ctrl-C and termination: the step is finished, a checkpoint is saved, and the run can be resumed later."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.runtime import leads

NOTICE = "\nstopping after this step; Ctrl-C again stops at once, without saving\n"


class Interruption(TrainerCallback):
    """A context manager that catches the signals, and the callback that acts on them between steps.

    Alone, the second Ctrl-C raises KeyboardInterrupt at once. Processes of a group get the signal from their
    launcher as well as from the terminal, so there repetitions mean nothing; and as they must stop at the
    same step, they agree on it when they meet anyway, at logging steps.

    Args:
        alone: this process trains without others.

    Attributes:
        waiting: says whether the training has been waiting for data: then the first signal raises
            KeyboardInterrupt, and the trainer saves what it has.
        stopped: the callback has ended the training because of a signal.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.waiting: Callable[[], bool] = lambda: False
        self.requested = False
        self.stopped = False
        self.handlers = ExitStack()

    def __enter__(self) -> Interruption:
        # Python takes signal handlers in the main thread only; elsewhere the caller sees to interruptions.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self.handlers.close()  # puts those before back

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.requested and number == signal.SIGINT
        if self.alone and (again or self.waiting()):
            raise KeyboardInterrupt
        if not self.requested and leads():
            # A handler may run in the middle of a print, which print itself does not survive.
            with suppress(OSError):  # nobody reads it any more
                os.write(2, NOTICE.encode())
        self.requested = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        stop = self.requested
        if not self.alone:
            if state.global_step % state.logging_steps:
                return
            flag = torch.tensor(float(stop), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            stop = bool(flag.item())
        if stop and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
