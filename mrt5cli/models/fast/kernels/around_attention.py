"""The layers around attention on a GPU: norm, gated activation with its last product, residual with dropout.

The Triton programs are in `elementwise.py`; this file has their autograd functions and launches. Only
`right_on` reads a value back from the device, once.

Legend: R rows (of any number of dimensions), D width of a row, F width of the hidden layer, E output width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrt5cli.models.fast.kernels import blocks_of, power_of_2
from mrt5cli.models.fast.kernels.elementwise import (
    add_backward,
    add_forward,
    gate_backward,
    gate_forward,
    norm_backward,
    norm_forward,
)
from mrt5cli.models.fast.kernels.randomness import draw_seed, kept, threshold

logger = logging.getLogger(__name__)

TILE = 2048
"""Numbers in a tile: 16 per thread, with four warps. A wider row of the norm is one tile."""
COLUMNS = 512
"""Columns in a tile of the gated activation: F of every T5 is a multiple, so that no lane is idle."""
PROGRAMS = 1024
"""Most programs that sum the gradient of a norm's weight: about 8 per multiprocessor of a large GPU."""


# --- the norm -----------------------------------------------------------------------------------------------


def normalize(states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """weight * x / rms(x) over the last dimension.

    Args:
        states: (R, D), D at most `WIDEST_ROW`.
        weight: (D).
        dtype: precision of the result.
    """
    return _Norm.apply(states, weight, epsilon, dtype)


class _Norm(torch.autograd.Function):
    """Saves x and one number per row for backward."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        states = states.contiguous()
        output, inverse = _normalized(states, weight, epsilon, dtype)
        ctx.save_for_backward(states, weight, inverse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_gradients(grad, *ctx.saved_tensors, of_weight=ctx.needs_input_grad[1]), None, None


def _normalized(states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The result, and 1 / rms(x) of each row."""
    output = torch.empty_like(states, dtype=dtype)
    inverse = states.new_empty(states.shape[:-1], dtype=torch.float32)
    width, rows = states.shape[-1], inverse.numel()
    block, height, warps = _rows_at_once(width)
    if rows:
        with torch.cuda.device_of(states):
            norm_forward[(blocks_of(height, rows),)](
                states, weight, output, inverse, rows, epsilon,
                WIDTH=width, BLOCK=block, ROWS=height, num_warps=warps,
            )  # fmt: skip
    return output, inverse


def _norm_gradients(
    grad: Tensor, states: Tensor, weight: Tensor, inverse: Tensor, *, of_weight: bool
) -> tuple[Tensor, Tensor | None]:
    width, rows = states.shape[-1], inverse.numel()
    block, height, warps = _rows_at_once(width)
    span = max(height, power_of_2(blocks_of(PROGRAMS, rows)))  # rows of a program
    programs = blocks_of(span, rows)
    to_states = torch.empty_like(states)
    partial = weight.new_empty(programs, width, dtype=torch.float32) if of_weight else None
    if programs:
        with torch.cuda.device_of(states):
            norm_backward[(programs,)](
                grad.contiguous(), states, weight, inverse, to_states, partial, rows,
                WIDTH=width, BLOCK=block, ROWS=height, SPAN=span, WEIGHT_GRAD=of_weight, num_warps=warps,
            )  # fmt: skip
    return to_states, None if partial is None else partial.sum(dim=0).to(weight.dtype)


def _rows_at_once(width: int) -> tuple[int, int, int]:
    """Columns and rows of the tile of a norm's program, and its warps."""
    block = power_of_2(width)
    height = max(1, TILE // block)
    return block, height, min(16, block * height // 512)


# --- the gated activation -----------------------------------------------------------------------------------


def gated_output(gate: Tensor, factor: Tensor | None, weight: Tensor, rate: float) -> Tensor:
    """dropout(gelu(gate) * factor) @ weight.T, (R, E), with gelu's tanh approximation.

    Args:
        gate, factor: (R, F) each; or both side by side in gate, (R, 2 F), without factor.
        weight: (E, F).
        rate: fraction that is dropped, 0 to below 1.
    """
    seed = draw_seed(gate.device) if rate > 0 else None
    return _GatedOutput.apply(gate, factor, weight, seed, rate)


class _GatedOutput(torch.autograd.Function):
    """Saves gate, factor and the seed of dropout for backward, which recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, factor: Tensor | None, weight: Tensor, seed: Tensor | None, rate: float
    ) -> Tensor:
        ctx.save_for_backward(gate, factor, weight, seed)
        ctx.rate = rate
        return F.linear(_gated(gate, factor, seed, rate, weight.dtype), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, factor, weight, seed = ctx.saved_tensors
        hidden, to_weight = F.linear(grad, weight.t()), None
        to_gate, to_factor, hidden = _gate_gradients(hidden, gate, factor, seed, ctx.rate)
        if ctx.needs_input_grad[2]:
            to_weight = grad.flatten(0, -2).t() @ hidden.flatten(0, -2)
        return to_gate, to_factor, to_weight, None, None


def _gated(
    gate: Tensor, factor: Tensor | None, seed: Tensor | None, rate: float, dtype: torch.dtype
) -> Tensor:
    """dropout(gelu(gate) * factor), (R, F)."""
    left, right = _halves(gate, factor)
    rows, width = left.shape
    output = gate.new_empty(*gate.shape[:-1], width, dtype=dtype)
    grid, constants = _tiles(rows, width, rate)
    if rows:
        with torch.cuda.device_of(gate):
            gate_forward[grid](
                left, right, output, seed, rows, 1 / (1 - rate), left.stride(0), right.stride(0), **constants
            )
    return output


def _gate_gradients(
    grad: Tensor, gate: Tensor, factor: Tensor | None, seed: Tensor | None, rate: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of gate and factor from that of `_gated`, and its recomputed result."""
    grad = grad.contiguous()
    hidden = torch.empty_like(grad)
    to_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    to_factor = None if factor is None else torch.empty_like(to_gate)
    left, right = _halves(gate, factor)
    to_left, to_right = _halves(to_gate, to_factor)
    rows, width = left.shape
    grid, constants = _tiles(rows, width, rate)
    if rows:
        with torch.cuda.device_of(grad):
            gate_backward[grid](
                grad, left, right, hidden, to_left, to_right, seed, rows, 1 / (1 - rate),
                left.stride(0), right.stride(0), to_left.stride(0), **constants,
            )  # fmt: skip
    return to_gate, to_factor, hidden


def _halves(gate: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gate and factor as matrices, whose rows need not be adjacent."""
    matrix = gate.reshape(-1, gate.shape[-1]).contiguous()
    if factor is not None:
        return matrix, factor.reshape(matrix.shape).contiguous()
    left, right = matrix.chunk(2, dim=1)
    return left, right


def _tiles(rows: int, width: int, rate: float) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of programs, and their constants."""
    block = min(COLUMNS, power_of_2(width))
    height = TILE // block
    constants = {"WIDTH": width, "BLOCK": block, "ROWS": height, "THRESHOLD": threshold(rate)}
    return (blocks_of(height, rows), blocks_of(block, width)), constants


# --- the residual -------------------------------------------------------------------------------------------


def added(states: Tensor, update: Tensor, rate: float) -> Tensor:
    """states + dropout(update), (R, D); `rate` is the fraction that is dropped, above 0 and below 1."""
    return _Added.apply(states, update, draw_seed(states.device), rate)


class _Added(torch.autograd.Function):
    """Saves only the seed of dropout for backward."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, update: Tensor, seed: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.rate, ctx.dtype = rate, update.dtype
        return _sum(states, update, seed, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        return grad, _update_gradient(grad, seed, ctx.rate, ctx.dtype), None, None


def _sum(states: Tensor, update: Tensor, seed: Tensor, rate: float) -> Tensor:
    states, update = states.contiguous(), update.contiguous()
    output = torch.empty_like(states, dtype=torch.promote_types(states.dtype, update.dtype))
    rows, width = states.shape[:-1].numel(), states.shape[-1]
    grid, constants = _tiles(rows, width, rate)
    if rows:
        with torch.cuda.device_of(states):
            add_forward[grid](states, update, output, seed, rows, 1 / (1 - rate), **constants)
    return output


def _update_gradient(grad: Tensor, seed: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    to_update = torch.empty_like(grad, dtype=dtype, memory_format=torch.contiguous_format)
    rows, width = grad.shape[:-1].numel(), grad.shape[-1]
    grid, constants = _tiles(rows, width, rate)
    if rows:
        with torch.cuda.device_of(grad):
            add_backward[grid](grad.contiguous(), to_update, seed, rows, 1 / (1 - rate), **constants)
    return to_update


# --- self-check ---------------------------------------------------------------------------------------------


@cache
def right_on(device: torch.device) -> bool:
    """Whether the kernels agree with PyTorch on a device; logs a warning if they do not.

    It runs once per process and device, and takes a few milliseconds plus compilation. It waits for the
    device, draws no random numbers, and saves nothing for backward.
    """
    try:
        with torch.no_grad():
            wrong = [
                f"{name} differs by {(found.float() - wanted.float()).abs().max().item():g}"
                for name, found, wanted in _compared(device)
                if not torch.allclose(found.float(), wanted.float(), rtol=0.02, atol=0.02)
            ]
    except Exception as error:  # a compiler may raise anything
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        logger.warning(
            "the self-check of our kernels around attention failed on %s: %s; norms, gated activations and "
            "residuals use PyTorch's kernels, slower and with the same results", device, wrong[0],
        )  # fmt: skip
    return not wrong


def _compared(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, results and expected results, in the types of a training step under autocast."""
    rows, width, rate, half = 70, 72, 0.25, torch.bfloat16
    wave = torch.arange(2 * rows * width, device=device).sin().view(rows, 2 * width)
    states, grad, weight = 2 * wave[:, :width], wave[:, width:].to(half), 1 + wave[0, :width]
    output, inverse = _normalized(states.contiguous(), weight, 1e-6, half)
    scale = torch.rsqrt(states.square().mean(1, keepdim=True) + 1e-6)
    normed, wanted = states * scale, grad * weight
    yield "the norm", output, normed * weight
    to_states, to_weight = _norm_gradients(grad, states.contiguous(), weight, inverse, of_weight=True)
    along = (wanted * normed).mean(1, keepdim=True)
    yield "the norm's gradient", to_states, scale * (wanted - normed * along)
    assert to_weight is not None
    yield "the gradient of its weight", to_weight, (grad * normed).sum(0)

    joint, seed = 3 * wave.to(half), torch.full((), 7 << 40 | 5, device=device)
    gate, factor = joint.float().chunk(2, dim=1)
    lines, columns = torch.arange(rows, device=device), torch.arange(width, device=device)
    dropping = kept(seed, lines[:, None], columns, rate) / (1 - rate)
    hidden = F.gelu(gate, approximate="tanh") * factor * dropping
    yield "the gated activation", _gated(joint, None, seed, rate, half), hidden
    to_joint, _, again = _gate_gradients(grad, joint, None, seed, rate)
    yield "the gated activation in backward", again, hidden
    to_hidden = grad * dropping
    to_gate = torch.ops.aten.gelu_backward(to_hidden * factor, gate, approximate="tanh")
    to_factor = to_hidden * F.gelu(gate, approximate="tanh")
    yield "its gradient", to_joint, torch.cat((to_gate, to_factor), dim=1)
    yield "the residual", _sum(states, grad, seed, rate), states + grad * dropping
    yield "the residual's gradient", _update_gradient(states, seed, rate, half), states * dropping
