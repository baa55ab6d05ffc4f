"""Held-out numbers during training, on the side: they move neither the controller nor any generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.errors import DataLost, UserError
from mrt5cli.evaluation.evaluate import measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.metrics.results import Row
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import Task
from mrt5cli.training.best import Best
from mrt5cli.training.trainer import DeletionTrainer

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration

MEASURED = ("loss", "token_accuracy", "deletion_rate")


class Validation(TrainerCallback):
    """Every `training.eval_steps`, one more line of metrics: `validation`, an object with a row a subset.

    With a `training.best_metric`, the last step is measured too, the metric is among the numbers of each row,
    and the line says what came of it: `best`, an object with the metric, its value over all subsets weighted
    by examples, whether it is the best so far, and the evaluations since the best.

    Args:
        task: a `tasks.Task`.
        recipe: its evaluation section says how many examples and whether to delete hard.
        run: where the line goes; None in all processes but the leading one, which wait.
        trainer: keeps the best weights, where the recipe has a `training.best_metric`.
    """

    def __init__(self, task: Task, recipe: Recipe, run: RunDir | None, trainer: DeletionTrainer) -> None:
        self.task = task
        self.settings = recipe.evaluation
        self.every = recipe.training.eval_steps
        self.run = run
        self.trainer = trainer
        self.best = trainer.best

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and self.best is not None):
            return
        try:
            rows = [] if self.run is None else self._rows(model)
        except UserError as error:
            raise DataLost.because_of(error) from error
        line = {"step": state.global_step, "validation": {row.subset: self._numbers(row) for row in rows}}
        if self.best is not None:
            line["best"] = self._choose(self.best, rows, control)
        elif args.world_size > 1:
            dist.barrier()
        if self.run is not None:
            self.run.add_metrics(line)

    def _rows(self, model: MrT5ForConditionalGeneration) -> list[Row]:
        options = EvaluationOptions(
            split="validation",
            batch_size=self.settings.batch_size,
            limit=self.settings.examples,
            hard_delete=self.settings.hard_delete,
            source_removed=False,
            generate=self.best is not None and bool(METRICS[self.best.metric].answers),
        )
        return measure(model, self.task, options).rows

    def _numbers(self, row: Row) -> dict[str, float | None]:
        names = dict.fromkeys(MEASURED if self.best is None else (*MEASURED, self.best.metric))
        return {name: getattr(row, name) for name in names}

    def _choose(self, best: Best, rows: list[Row], control: TrainerControl) -> dict[str, Any]:
        """Have the weights kept if they are the best, and training stopped if patience is at its end."""
        # The last row is the total where there are several.
        measured = getattr(rows[-1], best.metric) if rows else None
        value = float("nan") if measured is None else float(measured)
        better = self.trainer.offer(value)
        if best.exhausted:
            control.should_log = control.should_save = control.should_training_stop = True
        return {"metric": best.metric, "value": measured, "better": better, "waited": best.waited}
