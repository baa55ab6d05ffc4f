"""The Triton programs around attention, launched by `around_attention.py`: one pass over memory each.

They are T5's norm, the gated activation with dropout, and the residual with dropout. They multiply no
matrices, so memory traffic sets their speed: each program reads its part of a matrix (R, D) once, computes in
float32, and writes results in the required precision.

Triton sees tensors as pointers, which have no Python type.

Legend: R rows, D width of a row.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

# Only imported if `runs_on` is True; guarded as in tiles.py.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("kernels on a GPU need triton, which torch for CUDA brings") from error

from mrt5cli.models.fast.kernels.dropping import keeps, line_words

# The number of rows changes between batches; specializing on its values would cost a compilation each.
CHANGING = ["rows"]

SLOPE, CUBE = tl.constexpr(1.5957691216057308), tl.constexpr(0.044715)
"""2 sqrt(2 / pi), and the cubic constant of gelu's tanh form, x * sigmoid(SLOPE * (x + CUBE * x^3))."""


@triton.jit
def _tile(first, rows, columns, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Line numbers and places of a tile in a (rows, WIDTH) matrix, and which of them are inside it."""
    lines = first + tl.arange(0, ROWS)
    inside = (lines[:, None] < rows) & (columns[None, :] < WIDTH)
    return lines, lines.to(tl.int64)[:, None] * stride + columns[None, :], inside


@triton.jit
def _divided(states, inverse, ROUNDED: tl.constexpr):
    """x / rms(x) in float32, after rounding to the weight's type `ROUNDED`, as T5 does before multiplying."""
    return (states * inverse[:, None]).to(ROUNDED).to(tl.float32)


@triton.jit(do_not_specialize=CHANGING)
def norm_forward(
    states, weight, output, inverse, rows, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A tile of weight * x / rms(x), and 1 / rms(x) of each row.

    `states` and `output` are contiguous (R, D), `inverse` is float32 (R).
    """
    columns = tl.arange(0, BLOCK)
    lines, places, inside = _tile(tl.program_id(0) * ROWS, rows, columns, WIDTH, WIDTH, ROWS)
    values = tl.load(states + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + epsilon)
    factor = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    normed = _divided(values, scale, weight.dtype.element_ty) * factor[None, :]
    tl.store(output + places, normed.to(output.dtype.element_ty), mask=inside)
    tl.store(inverse + lines, scale, mask=lines < rows)


@triton.jit(do_not_specialize=CHANGING)
def norm_backward(
    grad, states, weight, inverse, d_states, d_weight, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
):  # fmt: skip
    """The gradient of `SPAN` rows, and their contribution to the weight's.

    `d_weight` is float32 (programs, D): no program waits for another, and the sum has a fixed order.
    """
    columns = tl.arange(0, BLOCK)
    factor = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    summed = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, SPAN, ROWS):
        lines, places, inside = _tile(tl.program_id(0) * SPAN + offset, rows, columns, WIDTH, WIDTH, ROWS)
        wanted = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(states + places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + lines, mask=lines < rows, other=0.0)
        if WEIGHT_GRAD:
            summed += tl.sum(wanted * _divided(values, scale, weight.dtype.element_ty), 0)
        wanted *= factor[None, :]
        values *= scale[:, None]
        along = tl.sum(wanted * values, 1) / WIDTH
        change = scale[:, None] * (wanted - values * along[:, None])
        tl.store(d_states + places, change.to(d_states.dtype.element_ty), mask=inside)
    if WEIGHT_GRAD:
        tl.store(d_weight + tl.program_id(0) * WIDTH + columns, summed, mask=columns < WIDTH)


@triton.jit
def _share(gates):
    """gelu(x) / x."""
    return 1.0 / (1.0 + tl.exp((gates + gates * gates * gates * CUBE) * -SLOPE))


@triton.jit
def _kept(seed, lines, columns, scale, THRESHOLD: tl.constexpr):
    """The factors of dropout for a tile: 0 where it drops, `scale` where it keeps."""
    start, extra = line_words(seed, lines)
    threshold = tl.full([1, 1], THRESHOLD, tl.uint32)
    return tl.where(keeps(start[:, None], extra[:, None], columns[None, :], threshold), scale, 0.0)


@triton.jit(do_not_specialize=CHANGING)
def gate_forward(
    gate, factor, output, seed, rows, scale, stride_gate, stride_factor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """A tile of dropout(gelu(gate) * factor); a threshold of 0 drops nothing.

    `gate` and `factor` are (R, D) with strided rows, `output` is contiguous.
    """
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(0) * ROWS
    lines, places, inside = _tile(first, rows, columns, WIDTH, WIDTH, ROWS)
    gates = _load(gate, first, rows, columns, stride_gate, WIDTH, ROWS)
    hidden = gates * _share(gates)
    hidden *= _load(factor, first, rows, columns, stride_factor, WIDTH, ROWS)
    if THRESHOLD > 0:
        hidden *= _kept(seed, lines, columns, scale, THRESHOLD)
    tl.store(output + places, hidden.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def gate_backward(
    grad, gate, factor, output, d_gate, d_factor, seed, rows, scale, stride_gate, stride_factor, stride_grads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile's gate and factor, and the recomputed result of `gate_forward`.

    `grad` and `output` are contiguous; rows of `d_gate` and `d_factor` are `stride_grads` apart.
    """
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(0) * ROWS
    lines, places, inside = _tile(first, rows, columns, WIDTH, WIDTH, ROWS)
    gates = _load(gate, first, rows, columns, stride_gate, WIDTH, ROWS)
    factors = _load(factor, first, rows, columns, stride_factor, WIDTH, ROWS)
    wanted = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
    share = _share(gates)
    active = gates * share
    slope = share + active * (1.0 - share) * (1.0 + gates * gates * CUBE * 3.0) * SLOPE
    hidden = active * factors
    if THRESHOLD > 0:
        kept = _kept(seed, lines, columns, scale, THRESHOLD)
        wanted, hidden = wanted * kept, hidden * kept
    tl.store(output + places, hidden.to(output.dtype.element_ty), mask=inside)
    _, apart, _ = _tile(first, rows, columns, stride_grads, WIDTH, ROWS)
    tl.store(d_gate + apart, (wanted * factors * slope).to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_factor + apart, (wanted * active).to(d_factor.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def add_forward(
    states, update, output, seed, rows, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """A tile of states + dropout(update), all contiguous (R, D)."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lines, places, inside = _tile(tl.program_id(0) * ROWS, rows, columns, WIDTH, WIDTH, ROWS)
    added = tl.load(update + places, mask=inside, other=0.0).to(tl.float32)
    added *= _kept(seed, lines, columns, scale, THRESHOLD)
    total = tl.load(states + places, mask=inside, other=0.0).to(tl.float32) + added
    tl.store(output + places, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def add_backward(
    grad, d_update, seed, rows, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """A tile of the update's gradient; the states' is `grad` itself."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lines, places, inside = _tile(tl.program_id(0) * ROWS, rows, columns, WIDTH, WIDTH, ROWS)
    wanted = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
    wanted *= _kept(seed, lines, columns, scale, THRESHOLD)
    tl.store(d_update + places, wanted.to(d_update.dtype.element_ty), mask=inside)


@triton.jit
def _load(base, first, rows, columns, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """A tile, in float32, of a matrix whose rows are `stride` apart; zeros outside it."""
    _, places, inside = _tile(first, rows, columns, stride, WIDTH, ROWS)
    return tl.load(base + places, mask=inside, other=0.0).to(tl.float32)
