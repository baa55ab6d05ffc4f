"""Held-out numbers during training, on the side: they move neither the controller nor any generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from mrt5cli.errors import DataLost, UserError
from mrt5cli.evaluation.evaluate import measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.rundir import RunDir

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
        trainer: a `DeletionTrainer` that is told the metric and keeps the best weights; None where nobody
            asks for them.
    """

    def __init__(self, task: Any, recipe: Any, run: RunDir | None, trainer: Any = None) -> None:
        self.task = task
        self.settings = recipe.evaluation
        self.every = recipe.training.eval_steps
        self.run = run
        self.trainer = trainer
        self.chooses = recipe.training.best_metric is not None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not (last and self.chooses):
            return
        try:
            rows = [] if self.run is None else self._rows(model)
        except UserError as error:
            raise DataLost.because_of(error) from error
        line = {"step": state.global_step, "validation": {row.subset: self._numbers(row) for row in rows}}
        if self.chooses:
            line["best"] = self._choose(rows, control)
        elif args.world_size > 1:
            dist.barrier()
        if self.run is not None:
            self.run.add_metrics(line)

    def _rows(self, model: Any) -> list[Any]:
        options = EvaluationOptions(
            split="validation",
            batch_size=self.settings.batch_size,
            limit=self.settings.examples,
            hard_delete=self.settings.hard_delete,
            source_removed=False,
            generate=self.chooses and bool(METRICS[self.trainer.best.metric].answers),
        )
        return measure(model, self.task, options).rows

    def _numbers(self, row: Any) -> dict[str, Any]:
        names = dict.fromkeys((*MEASURED, self.trainer.best.metric) if self.chooses else MEASURED)
        return {name: getattr(row, name) for name in names}

    def _choose(self, rows: Sequence[Any], control: Any) -> dict[str, Any]:
        """Have the weights kept if they are the best, and training stopped if patience is at its end."""
        best = self.trainer.best
        # The last row is the total where there are several.
        measured = getattr(rows[-1], best.metric) if rows else None
        value = float("nan") if measured is None else float(measured)
        better = self.trainer.offer(value)
        if best.exhausted:
            control.should_log = control.should_save = control.should_training_stop = True
        return {"metric": best.metric, "value": measured, "better": better, "waited": best.waited}
