"""Accuracy and flipped choices of a trained model in lower precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.evaluation.counting import Outcomes, Tally, row_of, tally, teacher_forced
from mrt5cli.metrics.counts import Ratio
from mrt5cli.models import MrT5ForConditionalGeneration, MrT5Output, load
from mrt5cli.recipe import Recipe
from mrt5cli.tasks.base import Batch, build_task


@dataclass(frozen=True)
class PrecisionRow:
    """Results on the test split in one precision, compared with fp32.

    Attributes:
        precision: name of the precision.
        loss: cross-entropy in nats per token.
        token_accuracy, sequence_accuracy, deletion_rate: 0 to 1.
        argmax_flipped: share of target tokens whose likeliest byte differs from fp32.
        gate_flipped: share of positions kept in one precision and deleted in the other; None without
            deletion.
        logits: largest absolute difference of logits.
    """

    precision: str
    loss: float | None
    token_accuracy: float | None
    sequence_accuracy: float | None
    deletion_rate: float | None
    argmax_flipped: float | None
    gate_flipped: float | None
    logits: float


def precision_rows(
    source: str, recipe: Recipe, *, device: torch.device, limit: int, done: Callable[[int], None]
) -> tuple[list[PrecisionRow], str]:
    """Evaluate the test split of a run's task, teacher-forced as in its recipe, in every precision.

    Args:
        source: the checkpoint directory.
        recipe: the run's recipe.
        limit: examples per subset, at most as many as the recipe evaluates.
        done: called with the number of batches done.

    Returns:
        One row per precision, and a sentence about the data.
    """
    task, how = build_task(recipe.task), recipe.evaluation
    full = load(source).to(device)
    counts = {
        "fp32": _Counts(full),
        "bf16 autocast": _Counts(full, autocast=True),
        "bf16 weights": _Counts(copy.deepcopy(full).to(torch.bfloat16)),
    }
    limit, examples, number = min(limit, how.examples), 0, 0
    for subset in task.subsets("test"):
        for cpu_batch in task.held_out("test", subset, batch_size=how.batch_size, limit=limit):
            batch = {name: part.to(device) for name, part in cpu_batch.items()}
            outputs = [each.forward(batch, how.hard_delete) for each in counts.values()]
            for each, out in zip(counts.values(), outputs, strict=True):
                each.add(out, outputs[0], batch, full.config.threshold)
            examples, number = examples + len(batch["labels"]), number + 1
            done(number)
    of = (
        f"{examples:,} test examples of {task.name}, {'hard' if how.hard_delete else 'soft'} deletion, "
        "teacher-forced; flips are against fp32"
    )
    return [each.row(name) for name, each in counts.items()], of


class _Counts:
    """The counts of a model in one precision over the batches so far, compared with fp32."""

    def __init__(self, model: MrT5ForConditionalGeneration, autocast: bool = False) -> None:
        self.model, self.autocast = model, autocast
        self.outcomes: list[Outcomes] = []
        self.tally, self.argmaxes, self.decisions, self.farthest = Tally(), Ratio(), Ratio(), 0.0

    def forward(self, batch: Batch, hard: bool) -> MrT5Output:
        torch.manual_seed(0)  # for gates that sample
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        in_half = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast)
        with torch.inference_mode(), in_half:
            out: MrT5Output = self.model(**given, hard_delete=hard, use_cache=False)
        return out

    def add(self, out: MrT5Output, reference: MrT5Output, batch: Batch, threshold: float) -> None:
        assert out.logits is not None and reference.logits is not None  # labels were given
        self.outcomes.append(teacher_forced(out, batch))
        self.tally += tally(out, batch, threshold)
        real = (batch["labels"] != PAD) & (batch["labels"] != IGNORED_LABEL)
        self.argmaxes += _share(out.logits.argmax(-1) != reference.logits.argmax(-1), real)
        apart = (out.logits.float() - reference.logits.float()).abs().amax(dim=-1)[real]
        self.farthest = max(self.farthest, float(apart.max()))
        if out.keep_mask is not None and reference.keep_mask is not None:
            self.decisions += _share(out.keep_mask != reference.keep_mask, batch["input_ids"] != PAD)

    def row(self, precision: str) -> PrecisionRow:
        row = row_of("all", Outcomes.joined(self.outcomes), self.tally)
        measured = row.loss, row.token_accuracy, row.sequence_accuracy, row.deletion_rate
        return PrecisionRow(precision, *measured, self.argmaxes.value, self.decisions.value, self.farthest)


def _share(flipped: Tensor, counted: Tensor) -> Ratio:
    return Ratio(float((flipped & counted).sum()), int(counted.sum()))
