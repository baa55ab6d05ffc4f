"""What is summed between two lines of metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mrt5cli.errors import UserError
from mrt5cli.training.losses import PARTS, LossTerms, named


class Window:
    """Sums since the last logging step, kept on the device: of each part of the loss, weighted by what it is
    over, then those weights, then positions deleted and counted.

    Raises:
        UserError: the state is that of an earlier version, whose sums were others.
    """

    size = 2 * len(PARTS) + 2

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        start = [0.0] * self.size if state is None else state["sums"]
        if len(start) != self.size:
            raise UserError(
                "the checkpoint was written by an earlier version of mrt5, which averaged losses otherwise",
                "go on with that version, or start the run anew",
            )
        # Byte counts of a long window are beyond what float32 holds exactly.
        self.sums = torch.tensor(start, dtype=torch.float64, device=device)
        self.spent = 0.0 if state is None else state["seconds"]
        self.opened = time.perf_counter()

    def add(self, terms: LossTerms, weights: Tensor) -> None:
        """Count one micro-batch.

        Args:
            terms: its loss.
            weights: (6,), for how much each part of it counts beside those of other micro-batches.
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
        rate = {"deletion_rate": deleted / counted}
        return {name: value.item() for name, value in means.items()} | rate, counted

    def seconds(self) -> float:
        """Time since the window was opened."""
        return self.spent + time.perf_counter() - self.opened

    def state(self) -> dict[str, Any]:
        """For a checkpoint: a window that a kill cuts goes on in the resumed run."""
        return {"sums": self.sums.tolist(), "seconds": self.seconds()}
