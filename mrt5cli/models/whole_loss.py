"""The whole training loss, for trainers that take a model's `loss` as it is: cross-entropy + alpha * gate
loss + beta * score loss (paper, section 3.2 and appendix D) + what a shortener has of its own. Runs of
recipes add up theirs in `training.losses`.

Legend: B batch, L input bytes, T target bytes. Gate values run from `scale` (delete) to 0 (keep); counted
positions are those whose input id is not padding, EOS included.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.score_loss import ScorePenalty
from mrt5cli.models.shorteners.base import Deletion


class DeletionControl(Protocol):
    """What sets alpha while a model is trained, from what the model deletes."""

    @property
    def alpha(self) -> Tensor:
        """The coefficient of the gate loss in force now, 0-dim."""

    def count(self, counts: Tensor) -> None:
        """See how many positions of a micro-batch are deleted, and of how many: (2,) float32."""


def counted_positions(input_ids: Tensor | None, attention_mask: Tensor | None, gate_BL: Tensor) -> Tensor:
    """(B, L) bool, the source positions that hold input; of embeddings, the mask alone says so."""
    if input_ids is not None:
        return input_ids != PAD
    if attention_mask is not None and attention_mask.shape == gate_BL.shape:
        return attention_mask != 0
    return gate_BL.new_ones(gate_BL.shape).bool()


def mean_over(values_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """The mean of counted positions. Masked by a product: an index would make a GPU's host wait."""
    return (values_BL * counted_BL).sum() / counted_BL.sum()


def deletion_counts(found: Deletion, counted_BL: Tensor, threshold: float) -> Tensor:
    """(2,) float32: counted positions whose gate is below the threshold, or that were pooled away; all."""
    deleted = counted_BL.new_zeros(())
    if found.delete_gate_output is not None:
        # Hard deletion removes a gate exactly at the threshold too; not counting it is the published rule.
        deleted = ((found.delete_gate_output < threshold) & counted_BL).sum()
    elif found.keep_mask is not None:
        deleted = (counted_BL & ~found.keep_mask).sum()
    counts = counted_BL.new_zeros(2).float()
    counts[0], counts[1] = deleted, counted_BL.sum()
    return counts


def regularizers(
    config: MrT5Config,
    found: Deletion,
    counted_BL: Tensor | None,
    penalty: ScorePenalty | None,
    control: DeletionControl | None,
) -> Tensor | None:
    """What is added to a micro-batch's mean cross-entropy, a scalar, or None for nothing.

    Args:
        found: what the encoder says of its deletion.
        counted_BL: None without a gate.
        penalty: the score loss of this pass, or None.
        control: takes the place of the configured alpha.
    """
    terms = []
    gate_BL, learned = found.delete_gate_output, found.delete_gate_logits is not None
    if gate_BL is not None and counted_BL is not None and learned:
        if control is not None:
            terms.append(control.alpha * mean_over(gate_BL, counted_BL))
        elif config.gate_loss:
            terms.append(config.gate_loss * mean_over(gate_BL, counted_BL))
    if penalty is not None and config.score_loss:
        terms.append(config.score_loss * penalty.mean())
    if found.auxiliary_loss is not None:
        terms.append(found.auxiliary_loss)
    return sum(terms[1:], terms[0]) if terms else None


def share_of_step(labels: Tensor, count: Tensor | int | None) -> Tensor | float:
    """How much of an optimizer step's targets a micro-batch has: what its regularisers count for there."""
    return 1.0 if count is None else labels.ne(IGNORED_LABEL).sum() / count
