"""Benchmark of training steps (forward and backward), with attention written out and fused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mrt5cli.benchmark.card import products
from mrt5cli.benchmark.forward import SDPA
from mrt5cli.benchmark.models import (
    DROPOUT,
    Precision,
    Shapes,
    Variant,
    float32_products,
    implementations,
    named,
    on_gpu,
    ours,
    plain,
)
from mrt5cli.benchmark.reference import reference_like
from mrt5cli.benchmark.suite import GRADIENT_TOLERANCE, SLACK, Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration, MrT5Output
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.recomputation import Recompute, recompute
from mrt5cli.models.score_loss import SCORE_CEILING

REFERENCE, EAGER, FUSED = "reference-like", "eager, score loss", "fused, score loss"
RECOMPUTING: dict[str, Recompute] = {
    "fused, score loss, recomputing selectively": "selective",
    "fused, score loss, recomputing blocks": "blocks",
}
"""Values of the recipe's `training.recompute` by case name."""
WHOLE, DROPPING = "fused, score loss, dropout, with AdamW's step", ", dropout"
SCORE_COEFFICIENT, GATE_COEFFICIENT = 0.5, 1e-3
"""Weights of the score loss and the gate loss; the time does not depend on them."""

Loss = Callable[[Variant], Tensor]


def train(base: MrT5ForConditionalGeneration, shapes: Shapes, *, reference: bool = False) -> Suite:
    """Soft steps with and without score loss, with recomputation, and hard steps, in each precision.

    They are compared with transformers' T5, and on a GPU or with `reference` with the reference-like step; a
    GPU adds dropout and the optimizer's step. Gradients are compared without dropout.
    """
    suite = Suite("train")
    checked: dict[str, tuple[PreTrainedModel, Precision]] = {}

    def add(
        name: str,
        model: PreTrainedModel,
        loss: Loss,
        against: Sequence[str] = (),
        kept: Sequence[int] | None = None,
        check: bool = False,
    ) -> None:
        for precision in shapes.precisions:
            each, others = named(name, precision), [named(other, precision) for other in against]
            make = whole_step if name == WHOLE else step
            suite.cases[each] = make(Variant(model, shapes, kept, precision), loss, others)
            if check:
                checked[each] = model, precision

    if on_gpu(base):
        _add_soft_steps(base, add, DROPOUT, True)
        whole = ours(copy.deepcopy(base), implementations(base)[0], dropout_rate=DROPOUT)
        add(WHOLE, whole, scored, [f"{FUSED}{DROPPING}"])
    _add_soft_steps(base, add, 0.0, reference or on_gpu(base))
    _add_other_steps(base, add, shapes)
    if on_gpu(base):
        suite.cases |= products(base, shapes)

    def checks() -> Checks:
        eager = ours(base, "eager", dropout_rate=0.0)

        @cache
        def oracle(precision: Precision) -> dict[str, Tensor]:
            with fast_paths(False):
                return gradients(eager, step(Variant(eager, shapes, precision=precision), scored))

        def parity(name: str, model: PreTrainedModel, precision: Precision) -> Parity:
            rounded = None if precision == "fp32" else oracle(precision)
            return gradient_parity(oracle("fp32"), gradients(model, suite.cases[name]), rounded)

        for name, given in checked.items():
            yield f"gradients of {name}", partial(parity, name, *given)

    suite.checks = checks
    return suite


def _add_soft_steps(
    base: MrT5ForConditionalGeneration, add: Callable[..., None], dropout: float, reference: bool
) -> None:
    """Add steps with the score loss for every implementation, and their baselines."""
    fields, suffix, check = {"dropout_rate": dropout}, DROPPING if dropout else "", not dropout
    if reference:
        add(REFERENCE + suffix, reference_like(base, **fields), returned_scores, check=check)
    if not base.config.has_absolute_position_embeddings:  # which transformers' T5 does not provide
        add(SDPA + suffix, plain(base, "sdpa", **fields), plain_loss)
    if not on_gpu(base):
        add(EAGER + suffix, ours(base, "eager", **fields), scored)
    slow = [name + suffix for name in (REFERENCE, SDPA, EAGER)]
    for place, how in enumerate(implementations(base)):
        name = f"{how}, score loss" if place else FUSED
        add(name + suffix, ours(base, how, **fields), scored, slow, check=check)


def _add_other_steps(base: MrT5ForConditionalGeneration, add: Callable[..., None], shapes: Shapes) -> None:
    """Add steps of the fast implementation: with recomputation, without score loss, and hard ones."""
    build = partial(ours, base, implementations(base)[0], dropout_rate=0.0)
    for name, what in RECOMPUTING.items():
        lean = build()
        recompute(lean, what)
        add(name, lean, scored, [REFERENCE, EAGER, FUSED], check=True)
    add("fused", build(), lambda variant: soft_loss(variant()), [FUSED])
    steered = build()
    for tag, kept in shapes.deletions():
        add(f"fused, hard step {tag}", steered, plain_loss, ["fused", SDPA, EAGER], kept)


def step(variant: Variant, loss: Loss, against: Sequence[str] = ()) -> Case:
    """A forward and backward pass of a model in training mode; gradients are freed afterwards."""
    variant.model.train()
    work = variant.macs()

    def call() -> None:
        loss(variant).backward()  # type: ignore[no-untyped-call]
        variant.model.zero_grad(set_to_none=True)  # models share weights but not gradients

    again = partial(loss, variant)  # backward doubles the products; recomputation does not count
    return Case(call, against, work, 6 * work, precision=variant.precision, loss=again)


def whole_step(variant: Variant, loss: Loss, against: Sequence[str]) -> Case:
    """A complete training step including the optimizer, on separate weights."""
    model = variant.model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def call() -> None:
        loss(variant).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return replace(step(variant, loss, against), call=call, loss=None)


def plain_loss(variant: Variant) -> Tensor:
    """The cross-entropy of any model."""
    loss: Tensor = variant().loss
    return loss


def soft_loss(out: MrT5Output) -> Tensor:
    """The training loss of a model with soft gates, without its score loss."""
    assert (
        out.loss is not None and out.delete_gate_output is not None
    )  # labels were given, and gates are soft
    return out.loss + GATE_COEFFICIENT * out.delete_gate_output.mean()


def scored(variant: Variant) -> Tensor:
    """The complete loss of a soft step."""
    out = variant(output_score_loss=True)
    return soft_loss(out) + SCORE_COEFFICIENT * out.score_loss


def returned_scores(variant: Variant) -> Tensor:
    """The same, computed from the scores of all layers that a `reference_like` model returns."""
    out: Any = variant(output_attentions=True)
    layers = (*out.encoder_attentions[variant.model.config.delete_gate_layer :], *out.cross_attentions)
    excess = [scores.clamp(min=SCORE_CEILING).mean() - SCORE_CEILING for scores in layers]
    return soft_loss(out) + SCORE_COEFFICIENT * torch.stack(excess).mean()


def gradients(model: PreTrainedModel, case: Case) -> dict[str, Tensor]:
    """The gradients of a step, by weight name."""
    assert case.loss is not None
    with float32_products(case.precision):
        case.loss().backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def gradient_parity(
    oracle: dict[str, Tensor], other: dict[str, Tensor], rounded: dict[str, Tensor] | None = None
) -> Parity:
    """The parity of the worst weight, by the largest entry of its gradient relative to the allowed rounding.

    Args:
        oracle: the oracle's gradients in float32.
        other: the fast path's gradients.
        rounded: the oracle's gradients in the precision of `other`, if that is not float32. A weight may be
            `SLACK` times as far off as in `rounded`, or as the average weight there.
    """

    def distances(found: dict[str, Tensor]) -> Tensor:
        pairs = ((grad, found[name]) for name, grad in oracle.items())
        return torch.stack([(a - b).abs().max() / a.abs().max().clamp(min=1e-12) for a, b in pairs])

    if not oracle or oracle.keys() != other.keys():
        return Parity(float("nan"), 1.0, GRADIENT_TOLERANCE)
    found = distances(other)
    allowed = torch.full_like(found, GRADIENT_TOLERANCE)
    if rounded is not None:
        lost = distances(rounded)
        allowed = (SLACK * lost.clamp(min=lost.mean())).clamp(min=GRADIENT_TOLERANCE)
    worst = (found / allowed).argmax()
    return Parity(float(found[worst]), 1.0, float(allowed[worst]))
