"""How the encoder lays the rows of a batch end to end, without padding, and what attention is told of them.

On a CPU rows are gone through one by one, short ones some at once (`packing.Packing`), on a GPU kernels take
them all at once (`kernels.plan.Plan`).

Legend: B batch, L input bytes, N heads, n positions of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mrt5cli.models.attention import IMPLEMENTATIONS, Rows, ScorePenalty
from mrt5cli.models.fast.kernels import runs_on
from mrt5cli.models.fast.kernels.plan import Plan
from mrt5cli.models.fast.kernels.rows import DeviceRows
from mrt5cli.models.packing import Packing, distance_bias
from mrt5cli.models.shorteners import Shortening
from mrt5cli.models.stack import asked

CAPTURED = ("output_attentions", "output_hidden_states")
"""Requests that transformers answers by watching every layer, whose states must then be in their places."""

PACKING = (IMPLEMENTATIONS["packed"], IMPLEMENTATIONS["triton"])


def pack_input(
    encoder: Any,
    attention_mask: Tensor | None,
    padding: Tensor,
    score_penalty: ScorePenalty | None,
    real_bytes: int | None,
    arguments: dict[str, Any],
) -> Packing | Plan | None:
    """How the input would be packed, or None where packing cannot be: without the kernel, without a mask
    that hides just the padding, or where every layer's scores or states are wanted in their places."""
    if encoder.config._attn_implementation not in PACKING or torch.compiler.is_compiling():
        return None
    if any(asked(name, encoder.config, arguments) for name in CAPTURED):
        return None
    if encoder.config.shortening_per == "batch":  # the reference's laws look at padding
        return None
    if _by_kernels(encoder, padding.device):
        return _plan(encoder, attention_mask, padding, score_penalty, real_bytes)
    if score_penalty is not None or padding.device.type != "cpu":
        return None
    if padding.any() if attention_mask is None else not torch.equal(attention_mask != 0, ~padding):
        return None
    return Packing(~padding)


def _by_kernels(encoder: Any, device: torch.device) -> bool:
    """Whether our kernels lay rows end to end on a GPU: on request, until they have been timed on one."""
    asked_for = encoder.config._attn_implementation == IMPLEMENTATIONS["triton"]
    return asked_for and runs_on(device, encoder.config.d_kv)


def _plan(
    encoder: Any,
    attention_mask: Tensor | None,
    padding: Tensor,
    score_penalty: ScorePenalty | None,
    real_bytes: int | None,
) -> Plan | None:
    """The same for a GPU's kernels, which drop no attention weights. They get full batches too, because
    they need no L x L bias. With a score loss they get those alone: it looks at scores of padding."""
    if encoder.training and encoder.block[0].layer[0].SelfAttention.dropout > 0:
        return None
    if real_bytes is None:
        attended = torch.ones_like(padding) if attention_mask is None else attention_mask != 0
        # Both numbers in one answer. Waiting for it and, later, for the number of survivors are all the
        # times a forward waits for the device: neither Plan nor the kernels' launches ask it anything.
        real_bytes, differing = torch.stack([(~padding).sum(), (attended == padding).sum()]).tolist()
        if differing:
            return None
    plan = Plan(~padding, real_bytes)
    # The kernels sum the scores of all queries.
    return plan if score_penalty is None or (plan.is_full and score_penalty.targets is None) else None


def pack_survivors(
    encoder: Any, shortening: Shortening, score_penalty: ScorePenalty | None
) -> Packing | Plan | None:
    """How what is left is packed; None where a law of the reference lets rows see each other."""
    if shortening.self_mask is not None or shortening.mask is None or score_penalty is not None:
        return None
    if _by_kernels(encoder, shortening.mask.device):
        positions = None if encoder.positions_start_afresh else shortening.positions
        return Plan(shortening.mask != 0, shortening.mask_count, positions)
    return Packing(shortening.mask != 0)


def _device_rows(
    encoder: Any, block: nn.Module, shortening: Shortening, plan: Plan, length: int
) -> DeviceRows:
    """What a GPU's kernels need to know about the rows; they look the position bias up themselves."""
    # From max_distance on all distances share a bucket.
    far = min(length - 1, encoder.config.relative_attention_max_distance)
    gate = None if shortening.key_gate is None else plan.pack(shortening.key_gate)[0]
    return DeviceRows(plan.packed, encoder.bias_by_distance(block, far + 1), gate)


def _rows(encoder: Any, block: nn.Module, shortening: Shortening, packing: Packing, length: int) -> Rows:
    """What is added to the scores of each group of rows: position bias, mask and key gate."""
    by_distance = encoder.bias_by_distance(block, length)
    groups = packing.groups(encoder.config.num_heads)
    gates = None
    if shortening.key_gate is not None:
        flat = shortening.key_gate[packing.valid]
        gates = [group.pad(flat) for group in groups]
    positions = None
    if shortening.positions is None:
        if packing.has_gaps:  # neighbours in the packed row are none in the text
            positions = packing.valid.nonzero()[:, 1]
    elif not encoder.positions_start_afresh:
        positions = shortening.positions[packing.valid]
    biases: list[Tensor | None] = []
    of_length: dict[int, Tensor] = {}
    for group in groups:
        count = group.longest
        if by_distance is None or count == 0:
            bias = None
        elif positions is not None:
            bias = distance_bias(by_distance, group.pad(positions), length)
        else:
            if count not in of_length:
                window = by_distance[:, length - count : length + count - 1]
                of_length[count] = distance_bias(window, None, count)
            bias = of_length[count]
        biases.append(_with(group.hidden(torch.float32 if bias is None else bias.dtype), bias))
    return Rows(groups, biases, gates)


def _with(hidden: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if hidden is None or bias is None:
        return bias if hidden is None else hidden
    return bias + hidden


def rows_of(
    encoder: Any, block: nn.Module, shortening: Shortening, packing: Packing | Plan, length: int
) -> Rows | DeviceRows:
    """What a block's attention needs to know about packed rows.

    Args:
        length: L, before anything was removed.
    """
    find = _device_rows if isinstance(packing, Plan) else _rows
    return find(encoder, block, shortening, packing, length)
