"""The training loss: cross-entropy + alpha * gate loss + entropy terms + beta * score loss (paper, section
3.2 and appendix D).

Everything stays on the device: no value is read, and masks are multiplied in instead of indexed with, because
both would make a GPU step wait.

Legend: B batch, L input bytes. Gate values run from `scale` (delete) to 0 (keep); counted positions are those
whose input id is not padding, EOS and sentinels included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAD = 0


@dataclass(frozen=True, slots=True)
class LossTerms:
    """One micro-batch's loss and what it is made of; 0-dim tensors, only `total` carries gradients.

    Attributes:
        total: what is minimised.
        cross_entropy: nats a target token.
        gate: what gate loss and entropy terms add to `total`, alpha included; 0 during the delay.
        score: the score loss before its coefficient; 0 where it is not asked for.
        deleted: number of counted positions (of B * L) whose gate is below the threshold, or that were pooled
            away.
        counted: number of counted positions.
    """

    total: Tensor
    cross_entropy: Tensor
    gate: Tensor
    score: Tensor
    deleted: Tensor
    counted: Tensor


def total_loss(
    output: Any,
    input_ids: Tensor,
    settings: Any,
    *,
    alpha: Tensor | float,
    threshold: float,
    regularized: bool = True,
) -> LossTerms:
    """The training loss of a model output.

    Args:
        output: a model's output with `loss`, and gates or None.
        input_ids: (B, L).
        settings: `recipe.LossSection`.
        alpha: coefficient of the gate loss in force at this step.
        threshold: the model configuration's deletion threshold, a gate value.
        regularized: False during the delay: no gate loss and no entropy terms, but the score loss (as in the
            reference).
    """
    counted_BL = input_ids != PAD
    gate_BL, logits_BL = output.delete_gate_output, output.delete_gate_logits
    cross_entropy = output.loss
    nothing = torch.zeros_like(cross_entropy)
    total, added, score, deleted = cross_entropy, nothing, nothing, nothing

    # A gate without logits is not learned (random deletion): its loss would have no gradient.
    if regularized and logits_BL is not None:
        added = alpha * GATE_LOSSES[settings.gate_loss](gate_BL, logits_BL, counted_BL, threshold)
        if settings.entropy_coefficient_1 or settings.entropy_coefficient_2:
            each, overall = gate_entropies(gate_BL)
            added = added + settings.entropy_coefficient_1 * each.mean()
            added = added - settings.entropy_coefficient_2 * overall.mean()
        total = total + added
    if output.score_loss is not None:
        score = output.score_loss
        total = total + settings.score_coefficient * score
    if output.auxiliary_loss is not None:
        total = total + output.auxiliary_loss
    if gate_BL is not None:
        deleted = deleted_positions(gate_BL, counted_BL, threshold)
    elif output.keep_mask is not None:
        deleted = (counted_BL & ~output.keep_mask).sum().to(torch.float32)
    return LossTerms(
        total=total,
        cross_entropy=cross_entropy.detach(),
        gate=added.detach(),
        score=score.detach(),
        deleted=deleted,
        counted=counted_BL.sum().to(cross_entropy.dtype),
    )


def deleted_positions(gate_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """Number of counted positions whose gate is strictly below the threshold, a 0-dim float tensor.

    Hard deletion removes what is not strictly above it, so a gate exactly at the threshold goes uncounted:
    the published rule.
    """
    return ((gate_BL < threshold) & counted_BL).sum().to(torch.float32)


def gate_mean(gate_BL: Tensor, logits_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """Mean gate value over counted positions, `scale` to 0: the paper's regulariser."""
    return _mean(gate_BL, counted_BL)


def clamped_logits_mean(gate_BL: Tensor, logits_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """Mean gate logit over counted positions, logits below twice the threshold counted as that much.

    The threshold is a gate value although it bounds logits: the reference's law.
    """
    return _mean(logits_BL.clamp(min=2.0 * threshold), counted_BL)


def logits_mean(gate_BL: Tensor, logits_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """Mean gate logit over counted positions."""
    return _mean(logits_BL, counted_BL)


def gate_variance(gate_BL: Tensor, logits_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """Minus the unbiased variance of the gate over counted positions: it drives gates to both ends."""
    deviation_BL = (gate_BL - _mean(gate_BL, counted_BL)) * counted_BL
    return -deviation_BL.square().sum() / (counted_BL.sum() - 1).clamp(min=1)


GATE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "gate_mean": gate_mean,
    "clamped_logits_mean": clamped_logits_mean,
    "logits_mean": logits_mean,
    "gate_variance": gate_variance,
}


def gate_entropies(gate_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's two entropy terms, in nats, each (B,): the first is minimised, the second maximised.

    They read the gate value as the log-probability of keeping, which fits the log-sigmoid gate only, and
    include padding. First: the mean entropy of a position's keep-or-delete, low when every choice is clear.
    Second: the entropy of the row's mean probability, high when half of the row is kept.
    """
    # At a probability of exactly 0 or 1 the gradient of the entropy is infinite.
    keep_BL = gate_BL.exp().clamp(1e-7, 1.0 - 1e-7)
    return _binary_entropy(keep_BL).mean(dim=1), _binary_entropy(keep_BL.mean(dim=1))


def _binary_entropy(probability: Tensor) -> Tensor:
    other = 1.0 - probability
    return -(probability * probability.log() + other * other.log())


def _mean(values_BL: Tensor, counted_BL: Tensor) -> Tensor:
    return (values_BL * counted_BL).sum() / counted_BL.sum()
