"""What is summed between two lines of metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mrt5cli.training.losses import PARTS, LossTerms


class Window:
    """Sums since the last logging step, kept on the device: of each part of the loss, weighted by what it is
    over, then those weights, then positions deleted and counted.

    Args:
        state: what `state` gave; a window that a kill cuts continues in the resumed run.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        sums = [0.0] * (2 * len(PARTS) + 2) if state is None else state["sums"]
        # Byte counts of a long window are beyond what float32 holds exactly.
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self.spent = 0.0 if state is None else state["seconds"]
        self.opened = time.perf_counter()

    def add(self, terms: LossTerms, weights: Tensor) -> None:
        """Count one micro-batch.

        Args:
            weights: (6,), for how much each part of its loss counts beside those of other micro-batches.
        """
        parts = terms.parts.detach() * weights
        self.sums += torch.cat((parts, weights, torch.stack((terms.deleted, terms.counted))))

    def means(self, world_size: int, score_coefficient: float) -> tuple[dict[str, float], float]:
        """Mean losses and the deletion rate, each over its own counts and all processes, and the bytes
        counted."""
        if world_size > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.cpu()
        parts, weights = sums[:-2].view(2, -1)
        deleted, counted = sums[-2:].tolist()
        # What nothing was counted of, such as targets where all rows have none, is 0.
        means = named(parts / weights.clamp(min=1), score_coefficient)
        return {**means, "deletion_rate": deleted / counted}, counted

    def seconds(self) -> float:
        """Time since the window was opened."""
        return self.spent + time.perf_counter() - self.opened

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": self.sums.tolist(), "seconds": self.seconds()}


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
