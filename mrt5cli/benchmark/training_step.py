"""Forward and backward of training steps: with every step of attention written out, and fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrt5cli.analysis.compute import macs
from mrt5cli.benchmark.cases import GRADIENT_TOLERANCE, Case, Parity, Suite
from mrt5cli.benchmark.inputs import Shapes, batch
from mrt5cli.benchmark.models import ours, sizes_of, steer
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.recomputation import Recompute, recompute

EAGER, FUSED = "eager, score loss", "fused, score loss"
RECOMPUTING: dict[str, Recompute] = {
    "fused, score loss, recomputing selectively": "selective",
    "fused, score loss, recomputing blocks": "blocks",
}
"""Names of cases, and the recipe's `training.recompute`."""
SCORE_COEFFICIENT, GATE_COEFFICIENT = 0.5, 1e-3
"""What the gate and score losses count in the step; the time does not depend on it."""
Loss = Callable[[MrT5ForConditionalGeneration], Tensor]


def train(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """Soft steps with and without the score loss, with activations computed again, and hard steps.

    No dropout anywhere, so that gradients can be compared; the optimizer's step is not part of it.
    """
    ids, mask, labels = batch(base, shapes)
    suite, sizes = Suite("train"), sizes_of(base)
    full, targets = [shapes.length] * shapes.batch, [shapes.target] * shapes.batch
    models: dict[str, MrT5ForConditionalGeneration] = {}

    def output(model: MrT5ForConditionalGeneration, **how: Any) -> Any:
        return model(ids, attention_mask=mask, labels=labels, use_cache=False, **how)

    def with_score_loss(model: MrT5ForConditionalGeneration) -> Tensor:
        out = output(model, output_score_loss=True)
        return soft_loss(out) + SCORE_COEFFICIENT * out.score_loss

    def without(model: MrT5ForConditionalGeneration) -> Tensor:
        return soft_loss(output(model))

    def hard(model: MrT5ForConditionalGeneration) -> Tensor:
        return output(model, hard_delete=True).loss

    def add(
        name: str,
        model: MrT5ForConditionalGeneration,
        loss: Loss,
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        half: bool = False,
    ) -> None:
        models[name] = model
        work = macs(sizes, full, full if kept is None else kept, targets)
        suite.cases[name] = step(model, loss, shapes, against, work, kept, half)

    def model(attention: str) -> MrT5ForConditionalGeneration:
        return ours(base, attention, dropout_rate=0.0)

    fused, steered = model("packed"), model("packed")
    add(EAGER, model("eager"), with_score_loss, [])
    add(FUSED, fused, with_score_loss, [EAGER])
    for name, what in RECOMPUTING.items():
        saving = model("packed")
        recompute(saving, what)
        add(name, saving, with_score_loss, [EAGER, FUSED])
    add("fused", fused, without, [FUSED])
    if shapes.bf16:
        add(f"{FUSED} bf16", fused, with_score_loss, [EAGER, FUSED], half=True)
    for tag, kept in shapes.deletions():
        add(f"fused, hard step {tag}", steered, hard, ["fused", EAGER], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        oracle = gradients(models[EAGER], suite.cases[EAGER])
        for name in (FUSED, *RECOMPUTING):
            yield f"gradients of {name}", gradient_parity(oracle, gradients(models[name], suite.cases[name]))

    suite.checks = checks
    return suite


def step(
    model: MrT5ForConditionalGeneration,
    loss: Loss,
    shapes: Shapes,
    against: Sequence[str] = (),
    macs: int | None = None,
    kept: Sequence[int] | None = None,
    half: bool = False,
) -> Case:
    """One forward and backward pass of a model in training mode, whose gradients are freed after it."""
    model.train()

    def forward() -> Tensor:
        if kept is not None:
            steer(model, kept, shapes.length)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            return loss(model)

    def call() -> None:
        forward().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)  # every model has gradients of its own

    return Case(call, against, macs, loss=forward)


def soft_loss(out: Any) -> Tensor:
    """What a model with soft gates is trained by, but for its score loss."""
    return out.loss + GATE_COEFFICIENT * out.delete_gate_output.mean()


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
