"""Held-out numbers during training, on the side: they move neither the controller nor any generator."""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from mrt5cli.evaluation.evaluate import evaluate_model
from mrt5cli.rundir import RunDir


class Validation(TrainerCallback):
    """Every `training.eval_steps`, one more line of metrics: `validation`, an object with a row a subset.

    Args:
        task: a `tasks.Task`.
        recipe: its evaluation section says how many examples and whether to delete hard.
        run: where the line goes; None in all processes but the leading one, which wait.
    """

    def __init__(self, task: Any, recipe: Any, run: RunDir | None) -> None:
        self.task = task
        self.settings = recipe.evaluation
        self.every = recipe.training.eval_steps
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every:
            return
        if self.run is not None:
            self._measure(state.global_step, model, self.run)
        if args.world_size > 1:
            dist.barrier()

    def _measure(self, step: int, model: Any, run: RunDir) -> None:
        rows = evaluate_model(
            model,
            self.task,
            split="validation",
            batch_size=self.settings.batch_size,
            limit=self.settings.examples,
            hard_delete=self.settings.hard_delete,
            source_removed=False,
        )
        measured = {
            row.subset: {
                "loss": row.loss,
                "token_accuracy": row.token_accuracy,
                "deletion_rate": row.deletion_rate,
            }
            for row in rows
        }
        with run.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "validation": measured}) + "\n")
