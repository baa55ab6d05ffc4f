"""Packed batches: decides which are packed, and implements them on a CPU.

Rows lie end to end without padding. Attention processes long rows one at a time and short ones in groups.

Legend: B batch, S positions of the longest row, N heads, H head width, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from mrt5cli.models.attention import AttentionOptions, Rows, sdpa
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.deletion import distance_bias, hiding
from mrt5cli.models.fast.choice import choose
from mrt5cli.models.fast.fused import precision
from mrt5cli.models.fast.kernels.device_layout import device_layout
from mrt5cli.models.layout import PADDING_ALONE, Layout, relative_bias
from mrt5cli.models.score_loss import ScorePenalty
from mrt5cli.models.shorteners.base import Sequences, Shortening

SCORES_AT_ONCE = 2**18
"""Most attention scores of a group of short rows in a layer: below this, separate calls would cost more than
a little padding."""


class Group:
    """Neighbouring rows of a packed batch that attention processes together, padded to the longest of them.

    Attributes:
        rows: the group's rows in the batch; r is their number.
        place: their positions in the packed batch.
        counts: positions of each row; `longest`, n, is the largest.
        valid: (r, n) bool, False at padding; None without padding.
        bias: (1 or r, 1 or N, 1 or n, n), position bias plus a mask of the padding; or None.
        gate: (r, n), key gate; None after hard deletion.
    """

    def __init__(self, rows: slice, place: slice, counts: Sequence[int], device: torch.device) -> None:
        self.rows, self.place, self.counts = rows, place, counts
        self.longest = max(counts)
        self.valid: Tensor | None = None
        self.bias: Tensor | None = None
        self.gate: Tensor | None = None
        if min(counts) < self.longest:
            slots = torch.arange(self.longest, device=device)
            self.valid = slots < torch.tensor(counts, device=device)[:, None]
            # Computed here, because their number depends on data, which a compiled block does not support.
            self._slots = self.valid.flatten().nonzero()[:, 0]

    def hidden(self, dtype: torch.dtype) -> Tensor | None:
        """(r, 1, 1, n) to add to scores, so that nothing attends to padding; None without padding."""
        return None if self.valid is None else hiding(self.valid, dtype)

    def pad(self, packed: Tensor) -> Tensor:
        """All positions of a packed batch (positions, ...) -> the group's (r, n, ...), zeros at padding."""
        of_group, shape = packed[self.place], (len(self.counts), self.longest)
        if self.valid is None:
            return of_group.unflatten(0, shape)
        padded = of_group.new_zeros(self.valid.numel(), *of_group.shape[1:])
        return padded.index_copy(0, self._slots, of_group).unflatten(0, shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """(r, n, ...) -> (positions of the group, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.valid is None else flat.index_select(0, self._slots)


@dataclass
class GroupedRows(Rows):
    """The rows of a packed batch on a CPU."""

    groups: list[Group]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        outputs, cross = [], options.cross  # batches with a score loss are not packed
        for group in self.groups:
            if group.longest == 0:  # every row of this group was deleted
                nothing = query[group.rows] if cross else query[0, :, group.place]
                outputs.append(torch.zeros_like(nothing).transpose(-3, -2))
                continue
            # (positions, N, H) -> (r, N, n, H)
            k, v = (group.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (key, value))
            q = query[group.rows] if cross else group.pad(query[0].transpose(0, 1)).transpose(1, 2)
            bias = group.hidden(torch.float32) if cross else group.bias
            added = replace(options, bias=bias, gate=group.gate, hidden=None)
            output = sdpa(q, k, v, added)[0].transpose(1, 2)
            outputs.append(output if cross else group.unpad(output))
        joined = torch.cat(outputs)
        return (joined if cross else joined[None]).contiguous()


class FullLayout(Layout):
    """A batch without padding, whose survivors are packed after hard deletion."""

    def of_survivors(self, shortening: Shortening, valid: Tensor) -> Layout:
        return PackedLayout(valid)


class PackedLayout(FullLayout):
    """Rows of a padded batch laid end to end, without the padding: (B, S, ...) <-> (1, positions, ...).

    Args:
        valid: (B, S) bool, the positions to pack.

    Attributes:
        bounds: offsets of the rows, B + 1.
    """

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid
        self.bounds: list[int] = [0, *accumulate(valid.sum(dim=1).tolist())]

    def lay_out(self, padded: Tensor) -> Tensor:
        return padded[self.valid][None]

    def restore(self, states: Tensor) -> Tensor:
        padded = states.new_zeros(*self.valid.shape, *states.shape[2:])
        padded[self.valid] = states[0]
        return padded

    def bias(self, attention: T5Attention, length: int, shortening: Shortening) -> tuple[Tensor, GroupedRows]:
        by_distance, groups = relative_bias(attention, length), self.groups(attention.n_heads)
        gates = None if shortening.key_gate is None else shortening.key_gate[self.valid]
        positions = None
        if shortening.positions is not None:
            positions = shortening.positions[self.valid]
        elif self._has_gaps():
            positions = self.valid.nonzero()[:, 1]
        of_length: dict[int, Tensor] = {}
        for group in groups:
            count = group.longest
            group.gate = None if gates is None else group.pad(gates)
            if by_distance is None or not count:
                group.bias = group.hidden(torch.float32)
                continue
            if positions is not None:
                bias = distance_bias(by_distance, group.pad(positions), length)
            else:
                if count not in of_length:
                    window = by_distance[:, length - count : length + count - 1]
                    of_length[count] = distance_bias(window, None, count)
                bias = of_length[count]
            hidden = group.hidden(bias.dtype)
            group.bias = bias if hidden is None else bias + hidden
        return shortening.states.new_zeros(1), GroupedRows(groups)

    def _has_gaps(self) -> bool:
        """Whether a row has gaps between its positions, and not only before or after them."""
        valid = self.valid
        return bool((valid[:, 1:] & ~valid[:, :-1] & (valid.cumsum(dim=1)[:, :-1] > 0)).any())

    def groups(self, heads: int) -> list[Group]:
        """The batch's rows, in order, in the groups that attention with this number of heads processes."""
        counts = [stop - start for start, stop in pairwise(self.bounds)]
        starts, longest = [0], 0
        for row, count in enumerate(counts):
            longest = max(longest, count)
            if row > starts[-1] and (row + 1 - starts[-1]) * heads * longest**2 > SCORES_AT_ONCE:
                starts.append(row)
                longest = count
        bounds, device = self.bounds, self.valid.device
        return [
            Group(slice(first, end), slice(bounds[first], bounds[end]), counts[first:end], device)
            for first, end in pairwise([*starts, len(counts)])
        ]


def fast_layout(
    config: MrT5Config,
    source: Sequences,
    score_penalty: ScorePenalty | None,
    real_bytes: int | None,
    *,
    training: bool,
) -> Layout:
    """The packed layout of an input, or the padded one if packing is not supported or saves nothing.

    Args:
        real_bytes: number of positions that contain input, if known.
        training: whether the model is in training mode, and may drop attention weights.

    Raises:
        ValueError: the batch contains nothing but padding.
    """
    if torch.compiler.is_compiling():
        return Layout()
    chosen = choose(
        config,
        source.padding.device,
        precision(source.states),
        drops=training and config.drops_weights,
        score_per=None if score_penalty is None else score_penalty.per,
        trains=torch.is_grad_enabled(),
    ).implementation
    if chosen == "triton":
        return device_layout(source.mask, source.padding, score_penalty, real_bytes)
    if chosen != "packed":
        return Layout()
    padded = bool(source.padding.any())
    # Packing requires that the mask hides padding and nothing else.
    if padded if source.mask is None else not torch.equal(source.mask != 0, ~source.padding):
        return Layout()
    if not padded:
        return FullLayout()
    packed = PackedLayout(~source.padding)
    if not packed.bounds[-1]:
        raise ValueError(PADDING_ALONE)
    return packed
