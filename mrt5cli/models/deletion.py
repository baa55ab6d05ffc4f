"""Tensor functions of hard deletion: which bytes survive, where they move, and their distances.

Legend: B batch, L input bytes, K kept slots (the longest row's count), N heads, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HIDES = -1e30
"""Added to a score, it makes the weight 0. The lowest float32 would become -inf when it is rounded to
bfloat16, or in a kernel that computes powers of 2 instead of e."""


def hides_nothing(mask: Tensor) -> bool:
    """Whether a mask is known to be all ones; False on a GPU, where reading it makes the host wait."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())


def hiding(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, L) to add to attention scores, so that nothing attends to a key where its mask is 0."""
    added = torch.zeros(mask_BL.shape, dtype=dtype, device=mask_BL.device)
    return added.masked_fill_(mask_BL == 0, HIDES)[:, None, None]


TIE = 1e-4
"""Tolerance within which gate values are equal, relative to the best one if that is beyond +-1: rounding
differs between batches, and must not decide which byte survives."""


def survivors(keep_BL: Tensor, gate_BL: Tensor, candidates_BL: Tensor, fallback: str) -> Tensor:
    """(B, L) bool, the bytes that survive: at least one in each row that has a candidate.

    Args:
        keep_BL: bool, gate above the threshold.
        gate_BL: gate values.
        candidates_BL: bool, positions that contain input and not padding.
        fallback: the byte that a row without survivors keeps: its "best" candidate, which is the first of
            those with the highest gate value, or its "first" position.
    """
    if fallback == "first":
        spare = torch.zeros_like(keep_BL)
        spare[:, 0] = True
    else:
        among_BL = gate_BL.masked_fill(~candidates_BL, float("-inf"))
        best = among_BL.max(dim=1, keepdim=True).values
        ties_BL = among_BL >= best - TIE * best.abs().clamp(min=1)
        spare = torch.zeros_like(keep_BL).scatter_(
            1, ties_BL.to(torch.uint8).argmax(dim=1, keepdim=True), True
        )
    return keep_BL | (spare & ~keep_BL.any(dim=1, keepdim=True))


def compact(keep_BL: Tensor, lengths_B: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Left-align the survivors of every row.

    Args:
        keep_BL: bool, the survivors.
        lengths_B: int64, their number in each row.
        mask_BL: 0 at hidden positions, or None.

    Returns:
        positions (B, K) int64, the original position of each slot (0 in slots past a row's count); valid
        (B, K) bool; the number of survivors that are not hidden. Reading that number and K, the largest count
        of the batch, is the only device sync of a forward pass.
    """
    seen_BL = keep_BL if mask_BL is None else keep_BL & (mask_BL != 0)
    longest, seen_count = torch.stack([lengths_B.max(), seen_BL.sum()]).tolist()
    # An extra slot receives everything that is deleted.
    slots_BL = (keep_BL.cumsum(dim=1) - 1).masked_fill_(~keep_BL, longest)
    places = torch.arange(keep_BL.shape[1], device=keep_BL.device).expand_as(slots_BL)
    positions = slots_BL.new_zeros(slots_BL.shape[0], longest + 1).scatter_(1, slots_BL, places)[:, :-1]
    valid = torch.arange(longest, device=keep_BL.device)[None, :] < lengths_B[:, None]
    return positions, valid, seen_count


def gather_rows(values: Tensor, positions_BK: Tensor) -> Tensor:
    """values (B, L) or (B, L, D) at positions (B, K) -> (B, K) or (B, K, D)."""
    if values.dim() == 2:
        return values.gather(1, positions_BK)
    return values.gather(1, positions_BK[..., None].expand(-1, -1, values.shape[-1]))


def distance_bias(bias_ND: Tensor, positions_BK: Tensor | None, length: int, step: int = 1) -> Tensor:
    """The position bias of the survivors, (B, N, K, K), or of all L positions, (1, N, L, L).

    Args:
        bias_ND: (N, 2 L - 1), the bias by key position minus query position, from -(L - 1) to L - 1.
        positions_BK: original positions of the survivors; None for all L positions.
        step: alignment in memory of the last dimension's rows, in numbers.
    """
    heads = bias_ND.shape[0]
    if positions_BK is None and torch.compiler.is_exporting():
        # An exported graph cannot take windows of a width that only a call knows.
        positions_BK = torch.arange(length, device=bias_ND.device)[None]
    if positions_BK is None:
        # Row q of the L x L bias is the window of L distances that starts at L - 1 - q.
        room = -length % step
        windows = F.pad(bias_ND, (0, room)).unfold(1, length + room, 1).flip(1)
        return windows.contiguous()[None, ..., :length]
    kept = positions_BK.shape[1]
    wide_BK = F.pad(positions_BK, (0, -kept % step))
    distance = wide_BK[:, None, :] - positions_BK[:, :, None] + (length - 1)  # [B, K, K]
    gathered = bias_ND.index_select(1, distance.flatten()).view(heads, *distance.shape)
    return gathered.transpose(0, 1)[..., :kept]


def last_position(real_BL: Tensor) -> Tensor:
    """(B, L) bool, True at the last True of each row."""
    return real_BL & (real_BL.flip(1).cumsum(dim=1).flip(1) == 1)
