"""Forward and backward of training steps: with every step of attention written out, and fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mrt5cli.benchmark.models import Shapes, Variant, ours
from mrt5cli.benchmark.suite import GRADIENT_TOLERANCE, Case, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration, MrT5Output
from mrt5cli.models.recomputation import Recompute, recompute

EAGER, FUSED = "eager, score loss", "fused, score loss"
RECOMPUTING: dict[str, Recompute] = {
    "fused, score loss, recomputing selectively": "selective",
    "fused, score loss, recomputing blocks": "blocks",
}
"""Names of cases, and the recipe's `training.recompute`."""
SCORE_COEFFICIENT, GATE_COEFFICIENT = 0.5, 1e-3
"""What the gate and score losses count in the step; the time does not depend on it."""


def train(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """Soft steps with and without the score loss, with activations computed again, and hard steps.

    No dropout anywhere, so that gradients can be compared; the optimizer's step is not part of it.
    """
    eager, fused, steered = (ours(base, how, dropout_rate=0.0) for how in ("eager", "packed", "packed"))
    cases = {
        EAGER: step(Variant(eager, shapes), scored),
        FUSED: step(Variant(fused, shapes), scored, [EAGER]),
    }
    models = {EAGER: eager, FUSED: fused}
    for name, what in RECOMPUTING.items():
        models[name] = ours(base, "packed", dropout_rate=0.0)
        recompute(models[name], what)
        cases[name] = step(Variant(models[name], shapes), scored, [EAGER, FUSED])
    cases["fused"] = step(Variant(fused, shapes), lambda variant: soft_loss(variant()), [FUSED])
    if shapes.bf16:
        cases[f"{FUSED} bf16"] = step(Variant(fused, shapes, half=True), scored, [EAGER, FUSED])
    for tag, kept in shapes.deletions():
        hard = Variant(steered, shapes, kept)
        cases[f"fused, hard step {tag}"] = step(hard, lambda variant: variant().loss, ["fused", EAGER])

    def checks() -> Iterator[tuple[str, Parity]]:
        oracle = gradients(eager, cases[EAGER])
        for name in (FUSED, *RECOMPUTING):
            yield f"gradients of {name}", gradient_parity(oracle, gradients(models[name], cases[name]))

    return Suite("train", cases, checks)


def step(variant: Variant, loss: Callable[[Variant], Tensor], against: Sequence[str] = ()) -> Case:
    """One forward and backward pass of a model in training mode, whose gradients are freed after it."""
    variant.model.train()

    def call() -> None:
        loss(variant).backward()  # type: ignore[no-untyped-call]
        variant.model.zero_grad(set_to_none=True)  # every model has gradients of its own

    return Case(call, against, variant.macs(), loss=partial(loss, variant))


def soft_loss(out: MrT5Output) -> Tensor:
    """What a model with soft gates is trained by, but for its score loss."""
    assert (
        out.loss is not None and out.delete_gate_output is not None
    )  # labels were given, and gates are soft
    return out.loss + GATE_COEFFICIENT * out.delete_gate_output.mean()


def scored(variant: Variant) -> Tensor:
    """The whole loss of a soft step."""
    out = variant(output_score_loss=True)
    return soft_loss(out) + SCORE_COEFFICIENT * out.score_loss


def gradients(model: MrT5ForConditionalGeneration, case: Case) -> dict[str, Tensor]:
    """Of every weight that gets one in a step."""
    assert case.loss is not None
    case.loss().backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def gradient_parity(oracle: dict[str, Tensor], other: dict[str, Tensor]) -> Parity:
    """The largest difference of any weight's gradient, relative to that gradient's largest entry."""
    if not oracle or oracle.keys() != other.keys():
        return Parity(float("nan"), 1.0, GRADIENT_TOLERANCE)
    ratios = [
        (oracle[name] - other[name]).abs().max() / oracle[name].abs().max().clamp(min=1e-12)
        for name in oracle
    ]
    return Parity(float(torch.stack(ratios).max()), 1.0, GRADIENT_TOLERANCE)
