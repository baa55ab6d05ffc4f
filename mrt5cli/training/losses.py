"""The training loss: cross-entropy + alpha * gate loss + entropy terms + beta * score loss.

Paper, section 3.2 and appendix D. Each part is a mean over its own units, which `counts` counts: target
tokens for the cross-entropy, source positions for the gate loss, and so on. With `loss.average_per:
optimizer_step`, it is one mean over all micro-batches of the step on all processes, so neither
`training.device_batch_size` nor the number of processes changes the loss. With `micro_batch`, as in the
reference, all micro-batches have the same weight, so a token of a short one counts more.

Three parts still depend on the division of a step: the gate's variance, which is taken within a micro-batch;
the entropy terms, which include the padding of a micro-batch; and the score loss after hard deletion, pooling
or source removal, because pairs are counted before the forward pass. So do shorteners with `per: batch`.

Everything stays on the device: no value is read, and masks are multiplied rather than used as indices,
because either would make a GPU step wait.

Legend: B batch, L input bytes, T target tokens. Gate values range from `scale` (delete) to 0 (keep). Counted
positions are those whose input id is not padding, EOS and sentinels included.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.models.whole_loss import deletion_counts, mean_over
from mrt5cli.tasks.base import Batch

if TYPE_CHECKING:
    from mrt5cli.models import MrT5Output
    from mrt5cli.recipe import LossSection

PARTS = ("cross_entropy", "gate", "entropy", "encoder_score", "cross_score", "auxiliary")
"""The terms of the loss, in the order of `LossTerms.parts` and `counts`."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of a single micro-batch, by part.

    Attributes:
        parts: (6,), the contribution of each of `PARTS`, coefficients included, with gradients.
        deleted: 0-dim, number of counted positions with a gate below the threshold, or pooled away.
        counted: 0-dim, number of counted positions.
    """

    parts: Tensor
    deleted: Tensor
    counted: Tensor

    @property
    def total(self) -> Tensor:
        return self.parts.sum()


def counts(batch: Batch, settings: LossSection, *, own_loss_per_position: bool) -> Tensor:
    """The number of units that each part of a batch's loss averages, (6,) float64, on the batch's device.

    Args:
        own_loss_per_position: whether the shortener's own (auxiliary) loss is a mean over source positions;
            otherwise it is one over rows.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    rows, length = ids.shape
    positions = ids.ne(PAD).sum()
    targets_B = labels.ne(IGNORED_LABEL).sum(dim=1)
    if settings.score_per == "row":
        mask = batch.get("attention_mask")
        sources_B = torch.full_like(targets_B, length) if mask is None else mask.ne(0).sum(dim=1)
        pairs, cross_pairs = (sources_B * sources_B).sum(), (sources_B * targets_B).sum()
    else:
        pairs, cross_pairs = (ids.new_tensor(rows * length * other) for other in (length, labels.shape[1]))
    number = ids.new_tensor(rows)
    auxiliary = positions if own_loss_per_position else number
    return torch.stack((targets_B.sum(), positions, number, pairs, cross_pairs, auxiliary)).double()


def total_loss(
    output: MrT5Output,
    input_ids: Tensor,
    settings: LossSection,
    *,
    alpha: Tensor | float,
    threshold: float,
    regularized: bool = True,
) -> LossTerms:
    """The training loss of a model's output for one micro-batch.

    Args:
        input_ids: (B, L).
        alpha: coefficient of the gate loss at this step.
        threshold: the model configuration's deletion threshold, a gate value.
        regularized: False during the delay, which omits gate loss and entropy terms but keeps the score loss,
            as in the reference.
    """
    counted_BL = input_ids != PAD
    gate_BL, logits_BL = output.delete_gate_output, output.delete_gate_logits
    assert output.cross_entropy is not None, "there are labels in training"
    nothing = torch.zeros_like(output.cross_entropy)
    gate, entropy = nothing, nothing
    scores: Iterable[Tensor] = (nothing, nothing)

    # A gate without logits is not learned (random deletion), so its loss would have no gradient.
    if regularized and gate_BL is not None and logits_BL is not None:
        gate = alpha * gate_loss(settings.gate_loss, gate_BL, logits_BL, counted_BL, threshold)
        if settings.entropy_coefficient_1 or settings.entropy_coefficient_2:
            each, overall = gate_entropies(gate_BL)
            entropy = settings.entropy_coefficient_1 * each.mean()
            entropy = entropy - settings.entropy_coefficient_2 * overall.mean()
    if output.score_loss_parts is not None:
        scores = settings.score_coefficient * output.score_loss_parts
    auxiliary = nothing if output.auxiliary_loss is None else output.auxiliary_loss
    deleted, counted = deletion_counts(output, counted_BL, threshold)
    parts = (output.cross_entropy, gate, entropy, *scores, auxiliary)
    return LossTerms(torch.stack([part.float() for part in parts]), deleted, counted)


def gate_loss(kind: str, gate_BL: Tensor, logits_BL: Tensor, counted_BL: Tensor, threshold: float) -> Tensor:
    """The term that alpha multiplies, 0-dim: a mean over counted positions, or a negative variance.

    Args:
        kind: `loss.gate_loss` of the recipe; `gate_mean` is the paper's.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "gate_mean":
            return mean_over(gate_BL, counted_BL)
        case "logits_mean":
            return mean_over(logits_BL, counted_BL)
        case "clamped_logits_mean":
            # As in the reference, the threshold bounds logits although it is a gate value.
            return mean_over(logits_BL.clamp(min=2.0 * threshold), counted_BL)
        case "gate_variance":
            # Drives gates to both extremes. The variance is taken within the micro-batch, because that of a
            # whole step would need the step's mean before the first backward pass.
            deviation_BL = (gate_BL - mean_over(gate_BL, counted_BL)) * counted_BL
            return -deviation_BL.square().sum() / (counted_BL.sum() - 1).clamp(min=1)
    raise ValueError(f"unknown gate loss {kind!r}")


def gate_entropies(gate_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's two entropy terms in nats, each (B,); the first is minimized, the second maximized.

    They interpret the gate value as the log-probability of keeping, which is correct only for the log-sigmoid
    gate, and include padding. The first is the mean entropy of each position's decision, low if all decisions
    are clear; the second is the entropy of the row's mean probability, highest if half of the row is kept.
    """
    # At a probability of exactly 0 or 1, the gradient of the entropy is infinite.
    keep_BL = gate_BL.exp().clamp(1e-7, 1.0 - 1e-7)
    return _binary_entropy(keep_BL).mean(dim=1), _binary_entropy(keep_BL.mean(dim=1))


def _binary_entropy(probability: Tensor) -> Tensor:
    other = 1.0 - probability
    return -(probability * probability.log() + other * other.log())


# --- what is summed between two lines of metrics ------------------------------------------------------------


class Window:
    """Sums since the last logging step, kept on the device.

    These are the parts of the loss times their weights, the weights, and the deleted and counted positions.

    Args:
        state: earlier result of `state`, with which a resumed run continues an interrupted window.

    Attributes:
        peaks: (6,) float32, largest magnitude of each part in any micro-batch of this process.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        sums = [0.0] * (2 * len(PARTS) + 2) if state is None else state["sums"]
        # float32 cannot represent the byte counts of a long window exactly.
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self.peaks = torch.zeros(len(PARTS), device=device)
        self.spent = 0.0 if state is None else state["seconds"]
        self.opened = time.perf_counter()

    def add(self, terms: LossTerms, weights: Tensor) -> None:
        """Add one micro-batch, whose parts have `weights`, (6,), relative to other micro-batches."""
        parts = terms.parts.detach()
        self.peaks = torch.fmax(self.peaks, parts.abs())  # fmax ignores NaN
        parts = parts * weights
        self.sums += torch.cat((parts, weights, torch.stack((terms.deleted, terms.counted))))

    def means(
        self, world_size: int, score_coefficient: float, micro_batch: int
    ) -> tuple[dict[str, float], float]:
        """The window's means over all processes, and the number of counted bytes.

        The means are the losses, each over its own units, the deletion rate, and the kept positions per row.

        Args:
            micro_batch: number of rows per unit of `weights`; 1 if `weights` counts rows.
        """
        if world_size > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.cpu()
        parts, weights = sums[:-2].view(2, -1)
        deleted, counted = sums[-2:].tolist()
        # A part without units, such as the cross-entropy of rows without targets, is 0.
        means = named(parts / weights.clamp(min=1), score_coefficient)
        rows = float(weights[PARTS.index("entropy")]) * micro_batch
        return {
            **means,
            "deletion_rate": deleted / counted,
            "kept_length": (counted - deleted) / rows,
        }, counted

    def seconds(self) -> float:
        """Seconds since the window was opened."""
        return self.spent + time.perf_counter() - self.opened

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"sums": self.sums.tolist(), "seconds": self.seconds()}

    @staticmethod
    def dealt_out(states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """The state for a process after the number of processes changed: rank 0 receives all sums."""
        share = 1.0 if rank == 0 else 0.0
        sums = [share * sum(of_all) for of_all in zip(*(state["sums"] for state in states), strict=True)]
        return {"sums": sums, "seconds": states[0]["seconds"]}


def named(parts: Tensor, score_coefficient: float) -> dict[str, float]:
    """The parts of a loss, (6,), or of mean losses, under their names in a line of metrics."""
    cross_entropy, gate, entropy, encoder_score, cross_score, _ = parts.tolist()
    scores = encoder_score + cross_score
    return {
        "loss": parts.sum().item(),
        "cross_entropy": cross_entropy,
        "gate_loss": gate + entropy,
        "score_loss": scores / score_coefficient if score_coefficient else 0.0,
    }
