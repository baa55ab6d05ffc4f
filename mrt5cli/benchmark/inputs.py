"""What models are fed in a benchmark: random bytes without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.suite import Shapes


def batch(base: Any, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, L), their mask, and labels (B, T), where the model lies; the same each time."""
    generator = torch.Generator().manual_seed(1)
    device = next(base.parameters()).device
    ids = torch.randint(3, 259, (shapes.batch, shapes.length), generator=generator)
    labels = torch.randint(3, 259, (shapes.batch, shapes.target), generator=generator)
    return ids.to(device), torch.ones_like(ids).to(device), labels.to(device)
