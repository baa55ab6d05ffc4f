"""Sends the metrics of a run to trackers, `training.report_to`, by transformers' own callbacks.

Only the leading process does. What a callback raises, as where a service is away, is told once, and ends what
that tracker gets and nothing else: metrics.jsonl has everything. Where environment variables say how a
tracker is to be used, they decide; what they leave open is set here.

    called                      what it is
    train/loss                  cross-entropy, nats a target token; total_loss is what is minimised: that and
                                gate_term, score_term and auxiliary_term, coefficients included
    train/memory_bytes          of the process, or that PyTorch holds of its GPU
    eval/NAME                   of validation data; eval/SUBSET/NAME where there are several subsets
    train/others                as in a line of metrics, see `trainer`
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from mrt5cli.recipe import Recipe, dump
from mrt5cli.rundir import RunDir
from mrt5cli.runtime import memory_in_use
from mrt5cli.text import Tell, first_line, is_quiet
from mrt5cli.training.progress import terms

AS_THEY_ARE = (
    *("deletion_rate", "target", "alpha", "kept_length"),
    *("bytes_per_second", "learning_rate", "grad_norm"),
)
FINISH_SECONDS = 300.0
"""For which the end of a run waits for wandb to upload the rest; `wandb sync` uploads what is left over."""


class Trackers(TrainerCallback):
    """A context manager, whose end is that of the run for trackers, and a callback.

    Args:
        run: opened; its meta.json says what trackers know it by, and which steps they have already.
        tell: where to say what failed.
    """

    def __init__(self, recipe: Recipe, run: RunDir, tell: Tell) -> None:
        self.recipe, self.run, self.tell = recipe, run, tell
        self.tracked = run.meta()["sessions"][-1]["tracked"]
        self.begun: dict[str, Any] = {}  # callbacks of transformers, whose events have no types
        self.own_wandb: Any = None
        self.at: tuple[TrainingArguments, TrainerState, TrainerControl] | None = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name in [*self.begun]:
            self._try(name, partial(self._end, name, failed=kind is not None))
        self.begun.clear()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: object,
    ) -> None:
        self.at = args, state, control
        for name in self.recipe.training.report_to:
            if name == "wandb" and os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
                continue
            self._try(name, partial(self._begin, name, model))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: object,
    ) -> None:
        memory = memory_in_use(args.device)
        numbers = logged(logs, self.recipe.loss.score_coefficient)
        self._send("loss", state, {**numbers, "memory_bytes": memory})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **_: object,
    ) -> None:
        self._send("validation", state, validated(metrics))

    def _send(self, kind: str, state: TrainerState, numbers: Mapping[str, float | None]) -> None:
        if state.global_step <= self.tracked[kind]:  # sent before a kill, which came behind the checkpoint
            return
        assert self.at is not None, "the training has begun"
        args, _, control = self.at
        known = {name: value for name, value in numbers.items() if value is not None}
        for name, callback in [*self.begun.items()]:
            self._try(name, partial(callback.on_log, args, state, control, logs={**known}))

    def _begin(self, name: str, model: Any) -> None:
        assert self.at is not None, "the training has begun"
        args, state, control = self.at
        [kind] = get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]
        callback: Any = kind()
        if name == "wandb":
            self._begin_wandb(args)
        elif name == "trackio":
            # It knows runs by their names, and goes on with one whose name it has seen.
            args = copy.copy(args)
            args.run_name = self.tracked["id"]
        elif callback.logging_dir is None:
            callback.logging_dir = str(self.run.path / "tensorboard")
        callback.on_train_begin(args, state, control, model=model)
        if name == "tensorboard":
            lines = dump(self.recipe).splitlines()
            callback.tb_writer.add_text("recipe", "\n".join(f"    {line}" for line in lines))
        else:
            tracker = sys.modules[name]
            tracker.config.update({"recipe": self.recipe.model_dump(mode="json")}, allow_val_change=True)
        self.begun[name] = callback

    def _begin_wandb(self, args: TrainingArguments) -> None:
        """Begin a wandb run, or go on with that of this run; one that somebody has begun is used."""
        import wandb

        if wandb.run is not None:
            return
        usual: dict[str, dict[str, Any]] = {
            "WANDB_NAME": {"name": args.run_name},
            "WANDB_DIR": {"dir": str(self.run.path)},
            "WANDB_RUN_ID": {"id": self.tracked["id"]},
            "WANDB_RESUME": {"resume": "allow"},
            "WANDB_FINISH_TIMEOUT": {"settings": {"finish_timeout": FINISH_SECONDS}},
        }
        given: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "huggingface")}
        for variable, value in usual.items():
            given |= {} if variable in os.environ else value
        if is_quiet():
            given["settings"] = {**given.get("settings", {}), "silent": True}
        self.own_wandb = wandb.init(**given)

    def _end(self, name: str, *, failed: bool) -> None:
        assert self.at is not None, "the training has begun"
        args, state, control = self.at
        self.begun[name].on_train_end(args, state, control)
        if name == "wandb" and self.own_wandb is not None:
            self.own_wandb.finish(exit_code=int(failed))

    def _try(self, name: str, action: Callable[[], object]) -> None:
        """Do something with a tracker, which gets nothing more if that fails."""
        try:
            # Results of commands go to stdout; of wandb, what it makes of the stream is left alone.
            with nullcontext() if name == "wandb" else redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            self.begun.pop(name, None)
            self.tell(
                f"note: {name} gets nothing more of this run, it failed: {type(error).__name__}: "
                f"{first_line(error)}\n  the training goes on, and {self.run.metrics_path} has all numbers"
            )


def logged(row: Mapping[str, Any], score_coefficient: float) -> dict[str, float | None]:
    """What trackers are sent of a line of metrics."""
    parts = {name.replace(" ", "_"): value for name, value in terms(row, score_coefficient).items()}
    return {
        "loss": row["cross_entropy"],
        "total_loss": row["loss"],
        **parts,
        **{name: row[name] for name in AS_THEY_ARE},
    }


def validated(line: Mapping[str, Any]) -> dict[str, float | None]:
    """What trackers are sent of a line of metrics from validation: the last of several rows is the total."""
    *subsets, total = line["validation"].items()
    numbers = {f"eval_{name}": value for name, value in total[1].items()}
    for subset, row in subsets:
        numbers |= {f"eval_{subset}/{name}": value for name, value in row.items()}
    return numbers
