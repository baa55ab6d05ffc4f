"""The packed rows of a batch as the model hands them to the kernels.

Legend: B rows, N heads, n positions of all rows, Q queries of a row, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from mrt5cli.models.fast.kernels.plan import Packed, grid


@dataclass(frozen=True)
class DeviceRows:
    """Where the rows of a packed batch lie on a device, and what is added to their attention scores.

    Attributes:
        packed: where the rows lie.
        rel: (N, 2 far + 1) position bias by distance, or None where there is none: with learned positions and
            in cross-attention.
        gate: (n) key gate, or None after hard deletion.
    """

    packed: Packed
    rel: Tensor | None = None
    gate: Tensor | None = None

    def as_source(self) -> DeviceRows:
        """The same rows for cross-attention."""
        return replace(self, rel=None)

    def pairs(self, queries: int) -> int:
        """Scores of a head with `queries` a row, were all rows as long as the batch is wide."""
        return (len(self.packed.bounds) - 1) * queries * self.packed.longest


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: DeviceRows,
    *,
    one: bool,
    ceiling: float | None,
    cross: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention within each row of a packed batch; queries of cross-attention are not packed.

    Args:
        query: (1, N, n, H), or (B, N, Q, H) in cross-attention.
        key, value: (1, N, n, H).
        one, ceiling: see `attend`.

    Returns:
        (1, n, N, H) or (B, Q, N, H), and the excess or None.
    """
    from mrt5cli.models.fast.kernels.varlen import attend  # needs triton

    batch, heads, count, width = query.shape
    queries = grid(batch, count, query.device) if cross else rows.packed
    output, excess = attend(
        query.transpose(1, 2).reshape(batch * count, heads, width),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        queries=queries,
        keys=rows.packed,
        rel=rows.rel,
        gate=rows.gate,
        one=one,
        score_ceiling=ceiling,
    )
    return output.view(batch, count, heads, width), excess
