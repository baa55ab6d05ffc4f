"""The training loss: cross-entropy + alpha * gate loss + entropy terms + beta * score loss (paper, section
3.2 and appendix D).

Each part is a mean over things of its own kind, which `counts` counts: cross-entropy over target tokens, the
gate loss over source positions, and so on. With `loss.average_per: optimizer_step`, it is one mean over all
micro-batches of the step on all processes, so neither `training.device_batch_size` nor the number of
processes changes the loss. With `micro_batch`, the reference's, all micro-batches weigh the same, and a token
of a short one weighs more.

Three parts still depend on how a step is divided: the gate's variance, which is that within a micro-batch;
the entropy terms, which include the padding of a micro-batch; and the score loss after hard deletion or
pooling, or of a source that is removed, because pairs are counted before the step, when nothing is gone yet.
So does what shortens `per: batch`.

Everything stays on the device: no value is read, and masks are multiplied in instead of indexed with, because
both would make a GPU step wait.

Legend: B batch, L input bytes, T target tokens. Gate values run from `scale` (delete) to 0 (keep); counted
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
"""What the loss is a sum of, in the order of `LossTerms.parts` and `counts`."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of one micro-batch taken alone, and what it is made of.

    Attributes:
        parts: (6,), what each of `PARTS` adds to the loss, coefficients included, with gradients.
        deleted: number of counted positions whose gate is below the threshold, or that were pooled away.
        counted: number of counted positions, both 0-dim.
    """

    parts: Tensor
    deleted: Tensor
    counted: Tensor

    @property
    def total(self) -> Tensor:
        return self.parts.sum()


def counts(batch: Batch, settings: LossSection, *, own_loss_per_position: bool) -> Tensor:
    """(6,) float64, of how many things each part of a batch's loss is a mean; on the device of the batch.

    Args:
        own_loss_per_position: as of the shortener, whose own loss is the auxiliary one.
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
        alpha: coefficient of the gate loss in force at this step.
        threshold: the model configuration's deletion threshold, a gate value.
        regularized: False during the delay: no gate loss and no entropy terms, but the score loss (as in the
            reference).
    """
    counted_BL = input_ids != PAD
    gate_BL, logits_BL = output.delete_gate_output, output.delete_gate_logits
    assert output.cross_entropy is not None, "there are labels in training"
    nothing = torch.zeros_like(output.cross_entropy)
    gate, entropy = nothing, nothing
    scores: Iterable[Tensor] = (nothing, nothing)

    # A gate without logits is not learned (random deletion): its loss would have no gradient.
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
    """What alpha weighs, 0-dim: a mean over counted positions, or minus a variance.

    Args:
        kind: `loss.gate_loss` of the recipe; `gate_mean` is the paper's.
    """
    match kind:
        case "gate_mean":
            return mean_over(gate_BL, counted_BL)
        case "logits_mean":
            return mean_over(logits_BL, counted_BL)
        case "clamped_logits_mean":
            # The threshold is a gate value although it bounds logits: the reference's rule.
            return mean_over(logits_BL.clamp(min=2.0 * threshold), counted_BL)
        case "gate_variance":
            # Drives gates to both ends. It is that within the micro-batch, because a variance over a whole
            # step would need the step's mean before the first backward pass.
            deviation_BL = (gate_BL - mean_over(gate_BL, counted_BL)) * counted_BL
            return -deviation_BL.square().sum() / (counted_BL.sum() - 1).clamp(min=1)
    raise ValueError(f"no gate loss {kind!r}")


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


# --- what is summed between two lines of metrics ------------------------------------------------------------


class Window:
    """Sums since the last logging step, kept on the device: of each part of the loss, weighted by what it is
    over, then those weights, then positions deleted and counted.

    Attributes:
        peaks: (6,) float32, the greatest size of each part in any micro-batch of this process.

    Args:
        state: what `state` gave; a window that a kill cuts continues in the resumed run.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        sums = [0.0] * (2 * len(PARTS) + 2) if state is None else state["sums"]
        # Byte counts of a long window are beyond what float32 holds exactly.
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self.peaks = torch.zeros(len(PARTS), device=device)
        self.spent = 0.0 if state is None else state["seconds"]
        self.opened = time.perf_counter()

    def add(self, terms: LossTerms, weights: Tensor) -> None:
        """Count one micro-batch.

        Args:
            weights: (6,), for how much each part of its loss counts beside those of other micro-batches.
        """
        parts = terms.parts.detach()
        self.peaks = torch.fmax(self.peaks, parts.abs())  # which takes a NaN for nothing
        parts = parts * weights
        self.sums += torch.cat((parts, weights, torch.stack((terms.deleted, terms.counted))))

    def means(
        self, world_size: int, score_coefficient: float, micro_batch: int
    ) -> tuple[dict[str, float], float]:
        """Mean losses and the deletion rate, each over its own counts and all processes, positions that were
        kept a row, and the bytes counted.

        Args:
            micro_batch: rows that one of `weights` stands for; 1 where they are counted.
        """
        if world_size > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.cpu()
        parts, weights = sums[:-2].view(2, -1)
        deleted, counted = sums[-2:].tolist()
        # What nothing was counted of, such as targets where all rows have none, is 0.
        means = named(parts / weights.clamp(min=1), score_coefficient)
        rows = float(weights[PARTS.index("entropy")]) * micro_batch
        return {
            **means,
            "deletion_rate": deleted / counted,
            "kept_length": (counted - deleted) / rows,
        }, counted

    def seconds(self) -> float:
        """Time since the window was opened."""
        return self.spent + time.perf_counter() - self.opened

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": self.sums.tolist(), "seconds": self.seconds()}

    @staticmethod
    def dealt_out(states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """What a process resumes with, of what `state` gave in another number of them: the first has all."""
        share = 1.0 if rank == 0 else 0.0
        sums = [share * sum(of_all) for of_all in zip(*(state["sums"] for state in states), strict=True)]
        return {"sums": sums, "seconds": states[0]["seconds"]}


def named(parts: Tensor, score_coefficient: float) -> dict[str, float]:
    """What a line of metrics calls the parts (6,) of a loss, or of means of such."""
    cross_entropy, gate, entropy, encoder_score, cross_score, _ = parts.tolist()
    scores = encoder_score + cross_score
    return {
        "loss": parts.sum().item(),
        "cross_entropy": cross_entropy,
        "gate_loss": gate + entropy,
        "score_loss": scores / score_coefficient if score_coefficient else 0.0,
    }
