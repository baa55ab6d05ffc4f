"""Sends the metrics of a run to the trackers of `training.report_to`, through transformers' callbacks.

Only the leading process does so. If a callback raises, for example because its service is unreachable, that
is reported once, and this tracker receives nothing more; metrics.jsonl still contains everything. Environment
variables that configure a tracker take precedence over the settings made here.

    train/loss                cross-entropy, nats per target token; total_loss is the minimized sum of it and
                              gate_term, score_term and auxiliary_term, coefficients included
    train/memory_bytes        memory of the process, or allocated by PyTorch on its GPU
    eval/NAME                 on validation data; eval/SUBSET/NAME if there are several subsets
    all other train/NAME      as in a line of metrics, see `trainer`
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
"""How long the end of a run waits for wandb's upload; `wandb sync` uploads the rest later."""


class Trackers(TrainerCallback):
    """A callback, and a context manager that ends the run for the trackers when it exits.

    Args:
        run: an opened run; its meta.json contains its id for trackers and the steps they have received.
        tell: receives reports of failures.
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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.at = args, state, control
        for name in self.recipe.training.report_to:
            if name == "wandb" and os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
                continue
            self._try(name, partial(self._begin, name, kwargs["model"]))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        memory = memory_in_use(args.device)
        numbers = logged(kwargs["logs"], self.recipe.loss.score_coefficient)
        self._send("loss", state, {**numbers, "memory_bytes": memory})

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._send("validation", state, validated(kwargs["metrics"]))

    def _send(self, kind: str, state: TrainerState, numbers: Mapping[str, float | None]) -> None:
        if state.global_step <= self.tracked[kind]:  # sent before the run was killed and resumed
            return
        assert self.at is not None, "training has started"
        args, _, control = self.at
        known = {name: value for name, value in numbers.items() if value is not None}
        for name, callback in [*self.begun.items()]:
            self._try(name, partial(callback.on_log, args, state, control, logs={**known}))

    def _begin(self, name: str, model: Any) -> None:
        assert self.at is not None, "training has started"
        args, state, control = self.at
        [kind] = get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]
        callback: Any = kind()
        if name == "wandb":
            self._begin_wandb(args)
        elif name == "trackio":
            # trackio identifies runs by name, and continues a run whose name it knows.
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
        """Start or resume the wandb run; if the caller has already started one, use that."""
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
        assert self.at is not None, "training has started"
        args, state, control = self.at
        self.begun[name].on_train_end(args, state, control)
        if name == "wandb" and self.own_wandb is not None:
            self.own_wandb.finish(exit_code=int(failed))

    def _try(self, name: str, action: Callable[[], object]) -> None:
        """Call a tracker, and drop it if the call fails."""
        try:
            # stdout is reserved for results; wandb replaces the stream itself, which must not be undone.
            with nullcontext() if name == "wandb" else redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            self.begun.pop(name, None)
            self.tell(
                f"note: {name} failed and receives nothing more: {type(error).__name__}: "
                f"{first_line(error)}\n  training continues, and {self.run.metrics_path} contains all metrics"
            )


def logged(row: Mapping[str, Any], score_coefficient: float) -> dict[str, float | None]:
    """The numbers of a line of metrics that trackers receive."""
    parts = {name.replace(" ", "_"): value for name, value in terms(row, score_coefficient).items()}
    return {
        "loss": row["cross_entropy"],
        "total_loss": row["loss"],
        **parts,
        **{name: row[name] for name in AS_THEY_ARE},
    }


def validated(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a validation line that trackers receive; the last of several rows is the total."""
    *subsets, total = line["validation"].items()
    numbers = {f"eval_{name}": value for name, value in total[1].items()}
    for subset, row in subsets:
        numbers |= {f"eval_{subset}/{name}": value for name, value in row.items()}
    return numbers
