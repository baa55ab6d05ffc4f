"""What is summed between two lines of metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from mrt5cli.training.losses import LossTerms


class Window:
    """Sums since the last logging step, kept on the device."""

    names = ("loss", "cross_entropy", "gate_loss", "score_loss", "deleted", "counted")

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        start = [0.0] * len(self.names) if state is None else state["sums"]
        self.batches: int = 0 if state is None else state["batches"]
        # Byte counts of a long window are beyond what float32 holds exactly.
        self.sums = torch.tensor(start, dtype=torch.float64, device=device)
        self.spent = 0.0 if state is None else state["seconds"]
        self.opened = time.perf_counter()

    def add(self, terms: LossTerms) -> None:
        """Count one micro-batch."""
        losses = (terms.total.detach(), terms.cross_entropy, terms.gate, terms.score)
        self.sums += torch.stack((*losses, terms.deleted, terms.counted))
        self.batches += 1

    def means(self, world_size: int) -> tuple[dict[str, float], float]:
        """Mean losses a micro-batch and the deletion rate over all processes, and the bytes counted."""
        if world_size > 1:
            dist.all_reduce(self.sums)
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        counted, deleted = sums.pop("counted"), sums.pop("deleted")
        batches = self.batches * world_size
        means = {name: value / batches for name, value in sums.items()}
        return means | {"deletion_rate": deleted / counted}, counted

    def seconds(self) -> float:
        """Time since the window was opened."""
        return self.spent + time.perf_counter() - self.opened

    def state(self) -> dict[str, Any]:
        """For a checkpoint: a window that a kill cuts goes on in the resumed run."""
        return {"sums": self.sums.tolist(), "batches": self.batches, "seconds": self.seconds()}
