"""Forward and backward of training steps: as the reference makes them, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.benchmark.inputs import batch
from mrt5cli.benchmark.models import ours, steer
from mrt5cli.benchmark.rounds import kept_lengths
from mrt5cli.benchmark.suite import GRADIENT_TOLERANCE, Case, Parity, Shapes, Suite
from mrt5cli.benchmark.written_out import reference_like
from mrt5cli.models.recomputation import Recompute, recompute
from mrt5cli.models.score_loss import SCORE_CEILING

REFERENCE = "reference-like"
RECOMPUTING: dict[str, Recompute] = {
    "fused, score loss, recomputing selectively": "selective",
    "fused, score loss, recomputing blocks": "blocks",
}
"""Names of cases, and the recipe's `training.recompute`."""
SCORE_COEFFICIENT, GATE_COEFFICIENT = 0.5, 1e-3
"""What the gate and score losses count in the step; the time does not depend on it."""


def train(base: Any, shapes: Shapes) -> Suite:
    """Soft steps with and without the score loss, with activations computed again, and hard steps.

    `reference-like` writes attention out and returns the scores of all layers to compute the score loss. No
    dropout anywhere, so that gradients can be compared; the optimizer's step is not part of it.
    """
    ids, mask, labels = batch(base, shapes)
    suite, sizes = Suite("train"), Sizes.of(base.config)
    full, targets = [shapes.length] * shapes.batch, [shapes.target] * shapes.batch
    given = {"attention_mask": mask, "labels": labels, "use_cache": False}
    models: dict[str, Any] = {}

    def returned_scores(model: Any) -> Tensor:
        out = model(ids, output_attentions=True, **given)
        layers = (*out.encoder_attentions[base.config.delete_gate_layer :], *out.cross_attentions)
        excess = [scores.clamp(min=SCORE_CEILING).mean() - SCORE_CEILING for scores in layers]
        return _soft_loss(out) + SCORE_COEFFICIENT * torch.stack(excess).mean()

    def with_score_loss(model: Any) -> Tensor:
        out = model(ids, output_score_loss=True, **given)
        return _soft_loss(out) + SCORE_COEFFICIENT * out.score_loss

    def without(model: Any) -> Tensor:
        return _soft_loss(model(ids, **given))

    def add(
        name: str,
        model: Any,
        step: Callable[[Any], Tensor],
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        half: bool = False,
    ) -> None:
        model.train()
        models[name] = model

        def loss() -> Tensor:
            if kept is not None:
                steer(model, kept, shapes.length)
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
                return step(model)

        def call() -> None:
            loss().backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)  # every model has gradients of its own

        work = macs(sizes, full, full if kept is None else kept, targets)
        suite.cases[name] = Case(call, against, work, loss=loss)

    no_dropout = {"dropout_rate": 0.0}
    fused = ours(base, "packed", **no_dropout)
    reference = reference_like(base, **no_dropout)
    add(REFERENCE, reference, returned_scores, [])
    add("eager, score loss", ours(base, "eager", **no_dropout), with_score_loss, [REFERENCE])
    add("fused, score loss", fused, with_score_loss, [REFERENCE, "eager, score loss"])
    for name, what in RECOMPUTING.items():
        saving = ours(base, "packed", **no_dropout)
        recompute(saving, what)
        add(name, saving, with_score_loss, [REFERENCE, "fused, score loss"])
    add("fused", fused, without, [REFERENCE, "fused, score loss"])
    if shapes.bf16:
        add(f"{REFERENCE} bf16", reference, returned_scores, [REFERENCE], half=True)
        add("fused, score loss bf16", fused, with_score_loss, [REFERENCE, f"{REFERENCE} bf16"], half=True)

    def hard(model: Any) -> Tensor:
        loss: Tensor = model(ids, hard_delete=True, **given).loss
        return loss

    steered = ours(base, "packed", **no_dropout)
    for tag, rate, spread in shapes.deletions():
        kept = kept_lengths(shapes.batch, shapes.length, rate, spread)
        add(f"fused, hard step {tag}", steered, hard, ["fused", REFERENCE], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        def gradients(name: str) -> dict[str, Tensor]:
            loss = suite.cases[name].loss
            assert loss is not None
            loss().backward()  # type: ignore[no-untyped-call]
            found = {key: part.grad for key, part in models[name].named_parameters() if part.grad is not None}
            models[name].zero_grad(set_to_none=True)
            return found

        oracle = gradients(REFERENCE)
        for name in ("eager, score loss", "fused, score loss", *RECOMPUTING):
            yield f"gradients of {name}", _gradient_parity(oracle, gradients(name))

    suite.checks = checks
    return suite


def _soft_loss(out: Any) -> Tensor:
    total: Tensor = out.loss + GATE_COEFFICIENT * out.delete_gate_output.mean()
    return total


def _gradient_parity(oracle: dict[str, Tensor], other: dict[str, Tensor]) -> Parity:
    """The largest difference of any weight's gradient, relative to that gradient's largest entry."""
    if not oracle or oracle.keys() != other.keys():
        return Parity(float("nan"), 1.0, GRADIENT_TOLERANCE)
    ratios = [
        (oracle[name] - other[name]).abs().max() / oracle[name].abs().max().clamp(min=1e-12)
        for name in oracle
    ]
    return Parity(float(torch.stack(ratios).max()), 1.0, GRADIENT_TOLERANCE)
