"""The complete training loss, for trainers that minimize a model's `loss`.

It is cross-entropy + alpha * gate loss + beta * score loss (paper, section 3.2 and appendix D) + the
shortener's auxiliary loss. Runs of recipes compute theirs in `training.losses`.

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
    """Sets alpha during training, from the observed deletion rate."""

    @property
    def alpha(self) -> Tensor:
        """The current coefficient of the gate loss, 0-dim."""

    def count(self, counts: Tensor) -> None:
        """Receive a micro-batch's numbers of deleted and of counted positions, (2,) float32."""


def counted_positions(input_ids: Tensor | None, attention_mask: Tensor | None, gate_BL: Tensor) -> Tensor:
    """(B, L) bool, the source positions that contain input; for embeddings, according to the mask."""
    if input_ids is not None:
        return input_ids != PAD
    if attention_mask is not None and attention_mask.shape == gate_BL.shape:
        return attention_mask != 0
    return gate_BL.new_ones(gate_BL.shape).bool()


def mean_over(values_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """The mean over counted positions; it multiplies by the mask, because an index would wait for a GPU."""
    return (values_BL * counted_BL).sum() / counted_BL.sum()


def deletion_counts(found: Deletion, counted_BL: Tensor, threshold: float) -> Tensor:
    """(2,) float32: counted positions with a gate below the threshold, or pooled away; and all of them."""
    deleted = counted_BL.new_zeros(())
    if found.delete_gate_output is not None:
        # Hard deletion also removes a gate exactly at the threshold; the published rate does not count it.
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
    """The scalar to add to a micro-batch's mean cross-entropy, or None.

    Args:
        found: the encoder's deletion.
        counted_BL: None without a gate.
        penalty: the score loss of this pass, or None.
        control: overrides the configured alpha.
    """
    terms = []
    alpha = config.gate_loss if control is None else control.alpha
    gate_BL, learned = found.delete_gate_output, found.delete_gate_logits is not None
    if gate_BL is not None and counted_BL is not None and learned and (control is not None or alpha):
        terms.append(alpha * mean_over(gate_BL, counted_BL))
    if penalty is not None and config.score_loss:
        terms.append(config.score_loss * penalty.mean())
    if found.auxiliary_loss is not None:
        terms.append(found.auxiliary_loss)
    return sum(terms[1:], terms[0]) if terms else None


def share_of_step(labels: Tensor, count: Tensor | int | None) -> Tensor | float:
    """A micro-batch's fraction of an optimizer step's targets, which scales its regularizers."""
    return 1.0 if count is None else labels.ne(IGNORED_LABEL).sum() / count
