"""Validation during training, without any effect on the controller or on random generators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.errors import DataLost, UserError
from mrt5cli.evaluation.evaluate import Progress, measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import Task
from mrt5cli.training import sharding
from mrt5cli.training.trainer import DeletionTrainer

MEASURED = ("loss", "token_accuracy", "deletion_rate")


class Validation(TrainerCallback):
    """Every `training.eval_steps`, adds a line of metrics with `validation`, an object with a row per subset.

    With a `training.best_metric`, the last step is measured as well, each row includes the metric, and the
    line contains `best`: an object with the metric, its value over all subsets weighted by examples, whether
    it is the best so far, and the number of evaluations since the best. The trainer keeps the best weights;
    training stops when patience is exhausted.

    Args:
        recipe: its evaluation section specifies the number of examples and the kind of deletion.
        run: receives the line; None in all processes but the leading one, which wait.
        progress: as in `measure`. Callbacks receive the result through `on_evaluate`.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        run: RunDir | None,
        trainer: DeletionTrainer,
        progress: Progress = lambda subset, done: None,
    ) -> None:
        self.task, self.run, self.trainer, self.best = task, run, trainer, trainer.best
        self.progress = progress
        self.every = recipe.training.eval_steps
        self.options = replace(
            EvaluationOptions.of(recipe.evaluation),
            split="validation",
            source_removed=False,
            # Generated answers and choices are slow, so they are measured only if they select the weights.
            measures=() if self.best is None else (self.best.metric,),
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = self.best
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and best is not None):
            return
        try:
            with sharding.gathered(kwargs["model"]):
                rows = []
                if self.run is not None:
                    rows = measure(kwargs["model"], self.task, self.options, progress=self.progress).rows
                if args.world_size > 1:
                    dist.barrier()
        except UserError as error:
            raise DataLost.because_of(error) from error
        names = dict.fromkeys(MEASURED if best is None else (*MEASURED, best.metric))
        numbers = {row.subset: {name: row.number(name) for name in names} for row in rows}
        line: dict[str, object] = {"step": state.global_step, "validation": numbers}
        if best is not None:
            # If there are several rows, the last is the total.
            measured = rows[-1].number(best.metric) if rows else None
            better = self.trainer.offer(float("nan") if measured is None else measured)
            line["best"] = {"metric": best.metric, "value": measured, "better": better, "waited": best.waited}
            if best.exhausted:
                control.should_log = control.should_save = control.should_training_stop = True
        if self.run is not None:
            self.trainer.callback_handler.on_evaluate(args, state, control, line)
            self.run.add_metrics(line)
