"""Held-out numbers during training, on the side: they move neither the controller nor any generator."""

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
    """Every `training.eval_steps`, one more line of metrics: `validation`, an object with a row a subset.

    With a `training.best_metric`, the last step is measured too, the metric is among the numbers of each row,
    and the line says what came of it: `best`, an object with the metric, its value over all subsets weighted
    by examples, whether it is the best so far, and the evaluations since the best. The trainer keeps the best
    weights; training stops when patience is at its end.

    Args:
        recipe: its evaluation section says how many examples and whether to delete hard.
        run: where the line goes; None in all processes but the leading one, which wait.
        progress: called as by `measure`. What comes of it, callbacks get as they get any evaluation.
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
            # Answers, and choices, take long: only where they decide.
            measures=() if self.best is None else (self.best.metric,),
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: object,
    ) -> None:
        best = self.best
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and best is not None):
            return
        try:
            with sharding.gathered(model):
                rows = []
                if self.run is not None:
                    rows = measure(model, self.task, self.options, progress=self.progress).rows
                if args.world_size > 1:
                    dist.barrier()
        except UserError as error:
            raise DataLost.because_of(error) from error
        names = dict.fromkeys(MEASURED if best is None else (*MEASURED, best.metric))
        numbers = {row.subset: {name: row.number(name) for name in names} for row in rows}
        line: dict[str, object] = {"step": state.global_step, "validation": numbers}
        if best is not None:
            # The last row is the total where there are several.
            measured = rows[-1].number(best.metric) if rows else None
            better = self.trainer.offer(float("nan") if measured is None else measured)
            line["best"] = {"metric": best.metric, "value": measured, "better": better, "waited": best.waited}
            if best.exhausted:
                control.should_log = control.should_save = control.should_training_stop = True
        if self.run is not None:
            self.trainer.callback_handler.on_evaluate(args, state, control, line)
            self.run.add_metrics(line)
