"""Where the rows of a padded batch lie when they are laid end to end on a device, without asking it twice.

The host must know one number, how many positions there are, to allocate them; all else stays on the device.
Whoever knows the number (a collator, or the gate, whose count of survivors is read anyway) passes it, and
then nothing here waits for the device.

Legend: B rows, K slots of a row, n positions of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Rows laid end to end.

    Attributes:
        bounds: (B + 1) int32, offsets of the rows.
        longest: no row is longer; a bound known on the host. Rows may be far shorter at little cost.
        positions: (n) int32, original position of each; within +-2^30.
    """

    bounds: Tensor
    longest: int
    positions: Tensor | None = None


def grid(rows: int, columns: int, device: torch.device) -> Packed:
    """The rows of a regular (rows, columns) batch, as the queries of cross-attention are."""
    return Packed(torch.arange(rows + 1, dtype=torch.int32, device=device) * columns, columns)


class Plan:
    """(B, K, ...) <-> (1, n, ...).

    Args:
        valid: (B, K) bool, what is laid down.
        total: n, the number of True in `valid`; None reads it, one device sync.
        positions: (B, K) ascending original positions, or None where slots are positions.

    Attributes:
        index: (n) int64, the slot among B * K that each position comes from.
        packed: where rows lie, for the kernels.
        total: n.
    """

    def __init__(self, valid: Tensor, total: int | None = None, positions: Tensor | None = None) -> None:
        self.shape = valid.shape
        lengths = valid.sum(dim=1)
        self.total = int(lengths.sum()) if total is None else total
        # Boolean indexing and nonzero would wait for the device to tell the size of their result. A scatter
        # does not: every slot is sent to its place in the packed order, empty ones to a place past the end.
        flat = valid.flatten()
        target = torch.where(flat, flat.cumsum(dim=0) - 1, self.total)
        slots = torch.arange(flat.numel(), device=flat.device)
        self.index = slots.new_empty(self.total + 1).scatter_(0, target, slots)[: self.total]
        places = self.index % self.shape[1] if positions is None else positions.flatten()[self.index]
        bounds = F.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32)
        self.packed = Packed(bounds, self.shape[1], places.to(torch.int32))

    @property
    def saves(self) -> bool:
        """Whether packing saves anything: always, because the kernels build no L x L bias."""
        return True

    @property
    def is_full(self) -> bool:
        """Whether there is no padding at all."""
        return self.total == self.shape.numel()

    def pack(self, padded: Tensor) -> Tensor:
        """(B, K, ...) -> (1, n, ...)."""
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, n, ...) -> (B, K, ...), zeros where nothing was."""
        padded = packed.new_zeros(self.shape.numel(), *packed.shape[2:])
        return padded.index_copy_(0, self.index, packed[0]).unflatten(0, self.shape)
