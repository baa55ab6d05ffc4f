"""What a trained model loses in a lower precision: accuracy beside the choices that flip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.errors import UserError
from mrt5cli.evaluation.counting import Outcomes, Tally, row_of, tally, teacher_forced
from mrt5cli.metrics.counts import Ratio
from mrt5cli.models import MrT5ForConditionalGeneration, load
from mrt5cli.subject import Subject
from mrt5cli.tasks.base import Batch, Task, build_task

PRECISIONS = ("fp32", "bf16 autocast", "bf16 weights")


@dataclass
class _Counts:
    """Of one precision, beside those of fp32."""

    outcomes: list[Outcomes] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    argmaxes: Ratio = field(default_factory=Ratio)
    decisions: Ratio = field(default_factory=Ratio)
    farthest: float = 0.0


@dataclass(frozen=True)
class PrecisionRow:
    """What a model makes of its test split in one precision, beside fp32.

    Attributes:
        argmax_flipped: share of target tokens whose likeliest byte is another than in fp32.
        gate_flipped: share of positions that are kept in one and deleted in the other; None where nothing is
            deleted.
        logits: the largest absolute difference.
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
    subject: Subject, *, device: torch.device, limit: int, done: Callable[[int], None]
) -> tuple[list[PrecisionRow], str]:
    """The test split of a run's task, teacher-forced as its recipe evaluates it, in every precision.

    Args:
        subject: a trained run, with its recipe.
        limit: examples a subset, at most as many as the recipe evaluates.
        done: called with the batches done.

    Returns:
        A row for each precision, and a sentence on what they are of.

    Raises:
        UserError: the model comes without a recipe.
    """
    if subject.recipe is None:
        raise UserError(
            f"{subject.name} comes without a recipe, so its task is not known",
            "give a run directory that `mrt5 pretrain` or `mrt5 finetune` made",
        )
    recipe = subject.recipe
    task = build_task(recipe.task)
    full = load(subject.source).to(device, torch.float32)
    halved = copy.deepcopy(full).to(torch.bfloat16)
    models = {"fp32": full, "bf16 autocast": full, "bf16 weights": halved}
    counts = {name: _Counts() for name in PRECISIONS}
    limit = min(limit, recipe.evaluation.examples)
    hard = recipe.evaluation.hard_delete
    examples = 0
    for number, batch in enumerate(_batches(task, recipe.evaluation.batch_size, limit)):
        batch = {name: part.to(device) for name, part in batch.items()}
        examples += len(batch["labels"])
        reference: Any = None
        for name, model in models.items():
            torch.manual_seed(0)  # for gates that draw
            with torch.inference_mode(), _autocast(name, device):
                out = _forward(model, batch, hard)
            reference = out if reference is None else reference
            _count(counts[name], out, reference, batch, full.config.threshold)
        done(number + 1)
    if not examples:
        raise UserError(f"{subject.name}: its task has no test examples")
    of = (
        f"{examples:,} test examples of {task.name}, {'hard' if hard else 'soft'} deletion, teacher-forced; "
        "flips are against fp32"
    )
    return [_row(name, found) for name, found in counts.items()], of


def _batches(task: Task, batch_size: int, limit: int) -> Iterator[Batch]:
    for subset in task.subsets("test"):
        yield from task.held_out("test", subset, batch_size=batch_size, limit=limit)


def _autocast(name: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16 autocast" else nullcontext()


def _forward(model: MrT5ForConditionalGeneration, batch: Batch, hard: bool) -> Any:
    labels = batch["labels"].masked_fill(batch["labels"] == PAD, IGNORED_LABEL)
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**given, labels=labels, hard_delete=hard, use_cache=False)


def _count(counts: _Counts, out: Any, reference: Any, batch: Batch, threshold: float) -> None:
    counts.outcomes.append(teacher_forced(out, batch))
    counts.tally += tally(out, batch, threshold)
    real = (batch["labels"] != PAD) & (batch["labels"] != IGNORED_LABEL)
    counts.argmaxes += _share(out.logits.argmax(-1) != reference.logits.argmax(-1), real)
    apart = (out.logits.float() - reference.logits.float()).abs().amax(dim=-1)[real]
    counts.farthest = max(counts.farthest, float(apart.max()))
    if out.keep_mask is not None:
        counts.decisions += _share(out.keep_mask != reference.keep_mask, batch["input_ids"] != PAD)


def _share(flipped: Tensor, counted: Tensor) -> Ratio:
    return Ratio(float((flipped & counted).sum()), int(counted.sum()))


def _row(precision: str, counts: _Counts) -> PrecisionRow:
    row = row_of("all", Outcomes.joined(counts.outcomes), counts.tally)
    return PrecisionRow(
        precision=precision,
        loss=row.loss,
        token_accuracy=row.token_accuracy,
        sequence_accuracy=row.sequence_accuracy,
        deletion_rate=row.deletion_rate,
        argmax_flipped=counts.argmaxes.value,
        gate_flipped=counts.decisions.value,
        logits=counts.farthest,
    )
