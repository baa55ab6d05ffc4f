"""A batch packed on a GPU: rows end to end without padding, which our kernels process together.

The host needs one number, the total number of positions, to allocate memory; everything else stays on the
device. A caller that knows the number (a collator, or the gate, whose count of survivors is read anyway)
passes it, and then nothing here waits for the device.

Legend: B rows, S slots of a row, n positions of all rows, N heads, H head width, Q queries of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from mrt5cli.models.attention import AttentionOptions, Rows
from mrt5cli.models.fast.kernels import Packed, grid
from mrt5cli.models.layout import PADDING_ALONE, Layout, relative_bias
from mrt5cli.models.score_loss import SCORE_CEILING, ScorePenalty
from mrt5cli.models.shorteners.base import Shortening


@dataclass(frozen=True)
class DeviceRows(Rows):
    """The rows of a packed batch on a GPU, and what is added to their attention scores.

    Attributes:
        packed: where the rows lie.
        rel: (N, 2 far + 1), self-attention's position bias by distance; None with learned positions.
        gate: (n), key gate; None after hard deletion.
        causal: no query sees later keys.
    """

    packed: Packed
    rel: Tensor | None = None
    gate: Tensor | None = None
    causal: bool = False

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """As in `Rows`; a decoder's rows are a grid, whose queries, keys and values may be (B, N, T, H)."""
        from mrt5cli.models.fast.kernels.varlen import attend  # needs triton

        batch, heads, count, width = query.shape
        penalty, counted = options.penalty, None
        if penalty is not None and options.cross:
            counted = penalty.queries(cross=True)
        output, excess = attend(
            *(part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)),
            queries=grid(batch, count, query.device) if options.cross else self.packed,
            keys=self.packed,
            rel=None if options.cross else self.rel,
            gate=self.gate,
            softmax1=options.softmax1,
            causal=self.causal,
            score_ceiling=None if penalty is None else SCORE_CEILING,
            counted=None if counted is None else counted.flatten(),
            dropout=options.dropout,
        )
        if excess is not None and penalty is not None:
            keys = self.packed.bounds.diff().long()
            queries = keys
            if options.cross:
                queries = torch.full_like(keys, count) if counted is None else counted.sum(dim=1)
            penalty.add_of_pairs(excess, heads, queries * keys, cross=options.cross)
        return output.view(batch, count, heads, width)


def causal_rows(attention: T5Attention, targets: Tensor) -> DeviceRows:
    """The rows of a decoder's targets (B, T, ...) for one of its self-attentions."""
    rows, columns = targets.shape[:2]
    positions = torch.arange(columns, dtype=torch.int32, device=targets.device).repeat(rows)
    packed = replace(grid(rows, columns, targets.device), positions=positions)
    far = min(columns - 1, attention.relative_attention_max_distance)
    return DeviceRows(packed, relative_bias(attention, far + 1), causal=True)


class DeviceLayout(Layout):
    """(B, S, ...) <-> (1, n, ...).

    Args:
        valid: (B, S) bool, the positions to pack.
        total: n, the number of True in `valid`; None reads it, which is a device sync.
        positions: (B, S), ascending original positions; None if slots are positions.
        counts_fillers: the score loss counts the empty slots after hard deletion, so the survivors must not
            be packed.

    Attributes:
        index: (n) int64, the slot among B * S of each position.
        packed: where rows lie, for the kernels.
        total: n.
    """

    def __init__(
        self,
        valid: Tensor,
        total: int | None = None,
        positions: Tensor | None = None,
        *,
        counts_fillers: bool = False,
    ) -> None:
        self.shape, self.counts_fillers = valid.shape, counts_fillers
        lengths = valid.sum(dim=1)
        self.total = int(lengths.sum()) if total is None else total
        # Boolean indexing and nonzero would wait for the device to report the size of their result. A scatter
        # does not: it sends every slot to its place in the packed order, and empty ones past the end.
        flat = valid.flatten()
        target = torch.where(flat, flat.cumsum(dim=0) - 1, self.total)
        slots = torch.arange(flat.numel(), device=flat.device)
        self.index = slots.new_empty(self.total + 1).scatter_(0, target, slots)[: self.total]
        places = self.index % self.shape[1] if positions is None else positions.flatten()[self.index]
        bounds = F.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32)
        self.packed = Packed(bounds, self.shape[1], places.to(torch.int32))

    def lay_out(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def restore(self, states: Tensor) -> Tensor:
        padded = states.new_zeros(self.shape.numel(), *states.shape[2:])
        return padded.index_copy_(0, self.index, states[0]).unflatten(0, self.shape)

    def bias(self, attention: T5Attention, length: int, shortening: Shortening) -> tuple[Tensor, DeviceRows]:
        # The kernels look up biases; all distances from max_distance on share a bucket.
        far = min(length - 1, attention.relative_attention_max_distance)
        gate = None if shortening.key_gate is None else self.lay_out(shortening.key_gate)[0]
        rows = DeviceRows(self.packed, relative_bias(attention, far + 1), gate)
        return shortening.states.new_zeros(1), rows

    def of_survivors(self, shortening: Shortening, valid: Tensor) -> Layout:
        if self.counts_fillers:
            return Layout()
        return DeviceLayout(valid, shortening.mask_count, shortening.positions)


def device_layout(
    attention_mask: Tensor | None,
    padding: Tensor,
    score_penalty: ScorePenalty | None,
    real_bytes: int | None,
) -> Layout:
    """The packed layout of an input (B, S), even without padding, because the kernels need no L x L bias; the
    padded one if the mask hides anything but padding, or if the score loss counts padding."""
    if real_bytes is None:
        attended = torch.ones_like(padding) if attention_mask is None else attention_mask != 0
        # Read both numbers at once. This and the later read of the number of survivors are the only times
        # that a forward pass waits for the device.
        real_bytes, differing = torch.stack([(~padding).sum(), (attended == padding).sum()]).tolist()
        if differing:
            return Layout()
    if not real_bytes:
        raise ValueError(PADDING_ALONE)
    published = score_penalty is not None and score_penalty.per == "batch"
    if published and real_bytes < padding.numel():
        return Layout()
    return DeviceLayout(~padding, real_bytes, counts_fillers=published)
