"""The Triton programs of packed attention, launched by `varlen.py`: one forward, two backward.

A program owns one block of one row's queries (or keys) in one head, and loops over the blocks of the other
side. A block that starts past its row's end exits immediately, so the host never needs to know a row's
length. Scores never leave the registers.

Every loop runs the same few lines on a tile of queries x keys. The keys' program transposes the tile, so that
its weights are the left operand of the next product without a copy:

    score = rel[head, clamp(pos_k - pos_q)] + q . k         T5 has no 1 / sqrt(H)
    excess = sum(relu(score - ceiling))                     the score loss, before the gate
    score += gate[k]
    weight = exp(score - lse)                               softmax1: lse includes a key of score and value 0
    out = sum(kept(weight) * v) / (1 - rate)                dropout applies to normalized weights
    d score = weight * (kept(d weight) / (1 - rate) - sum(out * d out))     the same for both softmaxes

The bias is the initial value of a product's accumulator: its lookups need not wait for the product, nor be
added. Keys that a query does not see have a bias of -inf, set only in tiles at the edge of what it sees.
Queries past the end of their row have zeros in q and, in backward, an infinite lse, which makes their weights
0. Exponentials and logarithms are to base 2, a GPU's native ones: factor and subtraction are one instruction.

Triton sees tensors as pointers, which have no Python type.

Legend: N heads, H head width, D entries of the relative bias (2 far + 1).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import math

from mrt5cli.models.fast.kernels.dropping import keeps, line_words

# Only imported if `runs_on` is True. The guard is for exports: transformers refuses a model if one of its
# files imports an uninstalled package without a guard.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("packed attention on a GPU needs triton, which torch for CUDA brings") from error

LOG2E = tl.constexpr(math.log2(math.e))
# These change between batches; specializing on their values would cost a compilation each.
CHANGING = ["total_q", "total_k", "far", "blocks", "threshold"]


@triton.jit
def _place(cu, row):
    """Where a row starts (int64: positions times stride may pass 2^31) and how long it is (int32)."""
    start = tl.load(cu + row)
    return start.to(tl.int64), tl.load(cu + row + 1) - start


@triton.jit
def _inside(rows, length, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Which numbers of a tile of rows are inside a (length, WIDTH) matrix."""
    inside = rows[:, None] < length
    if WIDTH != PADDED:
        inside = inside & (tl.arange(0, PADDED)[None, :] < WIDTH)
    return inside


@triton.jit
def _load(base, rows, length, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a (length, WIDTH) matrix, with zeros outside it."""
    places = base + rows[:, None] * stride + tl.arange(0, PADDED)[None, :]
    return tl.load(places, mask=_inside(rows, length, WIDTH, PADDED), other=0.0)


@triton.jit
def _store(base, values, rows, length, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    places = base + rows[:, None] * stride + tl.arange(0, PADDED)[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=_inside(rows, length, WIDTH, PADDED))


@triton.jit
def _load_each(base, places, length, other, is_near):
    """Elements of a vector; every thread of a program needs many of them.

    Args:
        is_near: always true, which the compiler cannot know, so that it does not move the load out of the
            branch. Prefetched, each thread would have its own copies, with addresses in a third of the
            registers.
    """
    values = places * 0.0
    if is_near:
        values = tl.load(base + places, mask=places < length, other=other)
    return values


@triton.jit
def _sight(rows, first, length_k, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr):
    """The number of keys that each query of a block sees, and its largest and smallest value."""
    limits = tl.zeros([BLOCK_Q], tl.int32) + length_k
    most = length_k
    fewest = length_k
    if CAUSAL:
        limits = tl.minimum(rows + 1, length_k)
        most = tl.minimum(first + BLOCK_Q, length_k)
        fewest = first + 1
    return limits, most, fewest


@triton.jit
def _span(positions, first, length, SIZE: tl.constexpr):
    """The first and the last position of a block of a row; positions ascend."""
    return tl.load(positions + first), tl.load(positions + tl.minimum(first + SIZE, length) - 1)


@triton.jit
def _is_far(first_q, last_q, first_k, last_k, far):
    """Whether all distances of a tile are at or beyond one end of the bias, and the entry there."""
    after = first_k - last_q >= far
    before = last_k - first_q <= -far
    return after | before, tl.where(after, 2 * far, 0)


@triton.jit
def _clamped(distance, far):
    """The entry of a distance."""
    return tl.minimum(tl.maximum(distance, -far), far) + far


@triton.jit
def _entries(pos_q, pos_k, rows, columns, length_q, length_k, far, KEYS_FIRST: tl.constexpr):
    """The entry of each pair of a tile; past the end of a row, its last position's."""
    here = tl.load(pos_q + tl.minimum(rows, length_q - 1))
    there = tl.load(pos_k + tl.minimum(columns, length_k - 1))
    distance = there[:, None] - here[None, :] if KEYS_FIRST else there[None, :] - here[:, None]
    return _clamped(distance, far)


@triton.jit
def _bias(
    nothing, is_far, entry, rel, pos_q, pos_k, rows, columns, length_q, length_k, far,
    KEYS_FIRST: tl.constexpr,
):  # fmt: skip
    """The bias of a tile; `nothing` is zeros of its shape."""
    if is_far:
        bias = nothing + tl.load(rel + entry)
    else:
        bias = tl.load(rel + _entries(pos_q, pos_k, rows, columns, length_q, length_k, far, KEYS_FIRST))
    return bias


@triton.jit
def _add_skewed(grad, d_score, distance, far, SIZE_Q: tl.constexpr, SIZE_K: tl.constexpr):
    """Add a tile's bias gradient where neighbors in the tile are neighbors in the text.

    All pairs on a diagonal have the same distance. Rotating every column by its index turns diagonals into
    rows, whose sums take two atomics per query instead of one per pair, which would outlast all products.

    Args:
        distance: distance between the tile's first query and key.
    """
    tl.static_assert(SIZE_K <= SIZE_Q)
    turns = tl.arange(0, SIZE_Q)[:, None] + tl.arange(0, SIZE_K)[None, :]
    skewed = tl.gather(d_score, turns & (SIZE_Q - 1), 0)  # row r: pairs r queries after their keys
    whole = tl.sum(skewed, 1)
    wrapped = tl.sum(tl.where(turns >= SIZE_Q, skewed, 0.0), 1)  # or SIZE_Q - r before them
    behind = distance - tl.arange(0, SIZE_Q)
    tl.atomic_add(grad + _clamped(behind, far), whole - wrapped, sem="relaxed")
    tl.atomic_add(grad + _clamped(behind + SIZE_Q, far), wrapped, sem="relaxed")


@triton.jit
def _ceilings(ceiling, counted, start_q, rows, length_q, HAS_COUNTED: tl.constexpr):
    """The ceiling of each query; infinite for queries that do not count."""
    counts = rows < length_q
    if HAS_COUNTED:
        counts = counts & (tl.load(counted + start_q + rows, mask=counts, other=0) != 0)
    return tl.where(counts, ceiling, float("inf"))


@triton.jit(do_not_specialize=CHANGING)
def forward(
    q, k, v, out, lse, excess, rel, gate, counted, seed, pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_on, stride_oh, total_q,
    far, ceiling, threshold, scale, heads, blocks,
    HAS_REL: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr, HAS_COUNTED: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr, SOFTMAX1: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of queries: its output, its log-sum-exp to base 2 and its sum of scores above the ceiling."""
    program = tl.program_id(0)
    head, row = program // blocks % heads, program // blocks // heads
    start_q, length_q = _place(cu_q, row)
    start_k, length_k = _place(cu_k, row)
    first = program % blocks * BLOCK_Q
    if first >= length_q:
        return
    rows = first + tl.arange(0, BLOCK_Q)
    one_head = head.to(tl.int64) * total_q + start_q
    queries = _load(q + start_q * stride_qn + head * stride_qh, rows, length_q, stride_qn, WIDTH, PADDED)
    k += start_k * stride_kn + head * stride_kh
    v += start_k * stride_vn + head * stride_vh
    limits, most, fewest = _sight(rows, first, length_k, CAUSAL, BLOCK_Q)
    if HAS_REL:
        rel += head * (2 * far + 1)
        pos_q, pos_k = pos_q + start_q, pos_k + start_k
        first_q, last_q = _span(pos_q, first, length_q, BLOCK_Q)
    if HAS_CEILING:
        ceilings = _ceilings(ceiling, counted, start_q, rows, length_q, HAS_COUNTED)
    if HAS_DROPOUT:
        word, extra = line_words(seed, one_head + rows)

    # softmax1 is a softmax with a first key of score 0 and value 0.
    peak = tl.full([BLOCK_Q], 0.0 if SOFTMAX1 else float("-inf"), tl.float32)
    total = tl.full([BLOCK_Q], 1.0 if SOFTMAX1 else 0.0, tl.float32)
    summed = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    above = tl.zeros([BLOCK_Q], tl.float32)
    for offset in range(0, most, BLOCK_K):
        columns = offset + tl.arange(0, BLOCK_K)
        keys = _load(k, columns, length_k, stride_kn, WIDTH, PADDED)
        if HAS_GATE:
            gates = _load_each(gate + start_k, columns, length_k, 0.0, offset < length_k)
        bias = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
        if HAS_REL:
            first_k, last_k = _span(pos_k, offset, length_k, BLOCK_K)
            is_far, entry = _is_far(first_q, last_q, first_k, last_k, far)
            bias = _bias(
                bias, is_far, entry, rel, pos_q, pos_k, rows, columns, length_q, length_k, far, False
            )
        if offset + BLOCK_K > fewest:
            bias = tl.where(columns[None, :] < limits[:, None], bias, float("-inf"))
        score = tl.dot(queries, tl.trans(keys), acc=bias, input_precision=PRECISION)
        if HAS_CEILING:
            above += tl.sum(tl.maximum(score - ceilings[:, None], 0.0), 1)
        if HAS_GATE:
            score += gates[None, :]
        higher = tl.maximum(peak, tl.max(score, 1) * LOG2E)
        # A bias of -inf may hide every key so far.
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score * LOG2E - reference[:, None])
        shrink = tl.exp2(peak - reference)
        total = total * shrink + tl.sum(weight, 1)
        if HAS_DROPOUT:
            weight = tl.where(keeps(word[:, None], extra[:, None], columns[None, :], threshold), weight, 0.0)
        values = _load(v, columns, length_k, stride_vn, WIDTH, PADDED)
        summed = tl.dot(
            weight.to(values.dtype), values, acc=summed * shrink[:, None], input_precision=PRECISION
        )
        peak = higher

    # A query that sees no key has no softmax; its output is 0, like softmax1's.
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    factor = (scale if HAS_DROPOUT else 1.0) / total
    summed *= factor[:, None]
    _store(out + start_q * stride_on + head * stride_oh, summed, rows, length_q, stride_on, WIDTH, PADDED)
    log = tl.where(empty, 0.0, peak) + tl.log2(total)
    tl.store(lse + one_head + rows, log, mask=rows < length_q)
    if HAS_CEILING:
        tl.store(excess + program, tl.sum(above, 0))


@triton.jit(do_not_specialize=CHANGING)
def backward_queries(
    q, k, v, out, d_out, lse, delta, d_q, d_rel, d_excess, rel, gate, counted, seed,
    pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_on, stride_oh,
    stride_gn, stride_gh, total_q, far, ceiling, threshold, scale, heads, blocks, replicas,
    HAS_REL: tl.constexpr, REL_GRAD: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr,
    HAS_COUNTED: tl.constexpr, HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of queries: their gradient, the bias's, and `delta` = sum(out * d out) for `backward_keys`.

    `d_q` is contiguous (total_q, N, WIDTH).
    """
    program = tl.program_id(0)
    head, row = program // blocks % heads, program // blocks // heads
    start_q, length_q = _place(cu_q, row)
    start_k, length_k = _place(cu_k, row)
    first = program % blocks * BLOCK_Q
    if first >= length_q:
        return
    rows = first + tl.arange(0, BLOCK_Q)
    one_head = head.to(tl.int64) * total_q + start_q
    queries = _load(q + start_q * stride_qn + head * stride_qh, rows, length_q, stride_qn, WIDTH, PADDED)
    answer = _load(out + start_q * stride_on + head * stride_oh, rows, length_q, stride_on, WIDTH, PADDED)
    wanted = _load(d_out + start_q * stride_gn + head * stride_gh, rows, length_q, stride_gn, WIDTH, PADDED)
    k += start_k * stride_kn + head * stride_kh
    v += start_k * stride_vn + head * stride_vh
    logs = tl.load(lse + one_head + rows, mask=rows < length_q, other=float("inf"))
    through = tl.sum(answer.to(tl.float32) * wanted.to(tl.float32), 1)
    tl.store(delta + one_head + rows, through, mask=rows < length_q)
    limits, most, fewest = _sight(rows, first, length_k, CAUSAL, BLOCK_Q)
    if HAS_REL:
        rel += head * (2 * far + 1)
        pos_q, pos_k = pos_q + start_q, pos_k + start_k
        first_q, last_q = _span(pos_q, first, length_q, BLOCK_Q)
        if REL_GRAD:
            # Neighboring programs add to different copies, so that their atomics rarely collide.
            d_rel += (program % replicas * heads + head) * (2 * far + 1)
    if HAS_CEILING:
        ceilings = _ceilings(ceiling, counted, start_q, rows, length_q, HAS_COUNTED)
        penalty = tl.load(d_excess)
    if HAS_DROPOUT:
        word, extra = line_words(seed, one_head + rows)

    d_queries = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    for offset in range(0, most, BLOCK_K):
        columns = offset + tl.arange(0, BLOCK_K)
        keys = _load(k, columns, length_k, stride_kn, WIDTH, PADDED)
        if HAS_GATE:
            gates = _load_each(gate + start_k, columns, length_k, 0.0, offset < length_k)
        bias = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
        if HAS_REL:
            first_k, last_k = _span(pos_k, offset, length_k, BLOCK_K)
            is_far, entry = _is_far(first_q, last_q, first_k, last_k, far)
            bias = _bias(
                bias, is_far, entry, rel, pos_q, pos_k, rows, columns, length_q, length_k, far, False
            )
        if offset + BLOCK_K > fewest:
            bias = tl.where(columns[None, :] < limits[:, None], bias, float("-inf"))
        score = tl.dot(queries, tl.trans(keys), acc=bias, input_precision=PRECISION)
        if HAS_CEILING:
            above = tl.where(score > ceilings[:, None], penalty, 0.0)
        if HAS_GATE:
            score += gates[None, :]
        weight = tl.exp2(score * LOG2E - logs[:, None])
        values = _load(v, columns, length_k, stride_vn, WIDTH, PADDED)
        d_weight = tl.dot(wanted, tl.trans(values), input_precision=PRECISION)
        if HAS_DROPOUT:
            kept = keeps(word[:, None], extra[:, None], columns[None, :], threshold)
            d_weight = tl.where(kept, d_weight * scale, 0.0)
        d_score = weight * (d_weight - through[:, None])
        if HAS_CEILING:
            d_score += above
        if REL_GRAD:
            apart = tl.minimum(length_q - first, BLOCK_Q) + tl.minimum(length_k - offset, BLOCK_K) - 2
            dense = last_q - first_q + last_k - first_k == apart
            if is_far:
                tl.atomic_add(d_rel + entry, tl.sum(tl.sum(d_score, 1), 0), sem="relaxed")
            elif dense:
                _add_skewed(d_rel, d_score, first_k - first_q, far, BLOCK_Q, BLOCK_K)
            else:
                entries = _entries(pos_q, pos_k, rows, columns, length_q, length_k, far, False)
                visible = (rows[:, None] < length_q) & (columns[None, :] < limits[:, None])
                tl.atomic_add(d_rel + entries, d_score, mask=visible, sem="relaxed")
        d_queries = tl.dot(d_score.to(keys.dtype), keys, acc=d_queries, input_precision=PRECISION)
    stride = heads * WIDTH
    _store(d_q + start_q * stride + head * WIDTH, d_queries, rows, length_q, stride, WIDTH, PADDED)


@triton.jit(do_not_specialize=CHANGING)
def backward_keys(
    q, k, v, d_out, lse, delta, d_k, d_v, d_gate, d_excess, rel, gate, counted, seed,
    pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_gn, stride_gh,
    total_q, total_k, far, ceiling, threshold, scale, heads, blocks,
    HAS_REL: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr, HAS_COUNTED: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of keys: the gradients of keys, values and, in this head, of their gates.

    `d_k` and `d_v` are contiguous (total_k, N, WIDTH), `d_gate` is (N, total_k).
    """
    program = tl.program_id(0)
    head, row = program // blocks % heads, program // blocks // heads
    start_q, length_q = _place(cu_q, row)
    start_k, length_k = _place(cu_k, row)
    first = program % blocks * BLOCK_K
    if first >= length_k:
        return
    columns = first + tl.arange(0, BLOCK_K)
    one_head = head.to(tl.int64) * total_q + start_q
    keys = _load(k + start_k * stride_kn + head * stride_kh, columns, length_k, stride_kn, WIDTH, PADDED)
    values = _load(v + start_k * stride_vn + head * stride_vh, columns, length_k, stride_vn, WIDTH, PADDED)
    q += start_q * stride_qn + head * stride_qh
    d_out += start_q * stride_gn + head * stride_gh
    if HAS_REL:
        rel += head * (2 * far + 1)
        pos_q, pos_k = pos_q + start_q, pos_k + start_k
        first_k, last_k = _span(pos_k, first, length_k, BLOCK_K)
    if HAS_GATE:
        gates = tl.load(gate + start_k + columns, mask=columns < length_k, other=0.0)
    if HAS_CEILING:
        penalty = tl.load(d_excess)

    d_keys = tl.zeros([BLOCK_K, PADDED], tl.float32)
    d_values = tl.zeros([BLOCK_K, PADDED], tl.float32)
    d_gates = tl.zeros([BLOCK_K], tl.float32)
    # Queries before the block's first key see none of it.
    for offset in range(first // BLOCK_Q * BLOCK_Q if CAUSAL else 0, length_q, BLOCK_Q):
        rows = offset + tl.arange(0, BLOCK_Q)
        queries = _load(q, rows, length_q, stride_qn, WIDTH, PADDED)
        logs = _load_each(lse + one_head, rows, length_q, float("inf"), offset < length_q)
        through = _load_each(delta + one_head, rows, length_q, 0.0, offset < length_q)
        bias = tl.zeros([BLOCK_K, BLOCK_Q], tl.float32)  # transposed, like the entire tile
        if HAS_REL:
            first_q, last_q = _span(pos_q, offset, length_q, BLOCK_Q)
            is_far, entry = _is_far(first_q, last_q, first_k, last_k, far)
            bias = _bias(bias, is_far, entry, rel, pos_q, pos_k, rows, columns, length_q, length_k, far, True)
        limits, _, fewest = _sight(rows, offset, length_k, CAUSAL, BLOCK_Q)
        if first + BLOCK_K > fewest:
            bias = tl.where(columns[:, None] < limits[None, :], bias, float("-inf"))
        score = tl.dot(keys, tl.trans(queries), acc=bias, input_precision=PRECISION)
        if HAS_CEILING:
            ceilings = _ceilings(ceiling, counted, start_q, rows, length_q, HAS_COUNTED)
            above = tl.where(score > ceilings[None, :], penalty, 0.0)
        if HAS_GATE:
            score += gates[:, None]
        weight = tl.exp2(score * LOG2E - logs[None, :])
        wanted = _load(d_out, rows, length_q, stride_gn, WIDTH, PADDED)
        d_weight = tl.dot(values, tl.trans(wanted), input_precision=PRECISION)
        given = weight
        if HAS_DROPOUT:
            word, extra = line_words(seed, one_head + rows)
            kept = keeps(word[None, :], extra[None, :], columns[:, None], threshold)
            given = tl.where(kept, weight, 0.0)
            d_weight = tl.where(kept, d_weight * scale, 0.0)
        d_values = tl.dot(given.to(wanted.dtype), wanted, acc=d_values, input_precision=PRECISION)
        d_score = weight * (d_weight - through[None, :])
        if HAS_GATE:
            d_gates += tl.sum(d_score, 1)
        if HAS_CEILING:
            d_score += above
        d_keys = tl.dot(d_score.to(queries.dtype), queries, acc=d_keys, input_precision=PRECISION)
    stride = heads * WIDTH
    if HAS_DROPOUT:
        d_values *= scale
    _store(d_k + start_k * stride + head * WIDTH, d_keys, columns, length_k, stride, WIDTH, PADDED)
    _store(d_v + start_k * stride + head * WIDTH, d_values, columns, length_k, stride, WIDTH, PADDED)
    if HAS_GATE:
        tl.store(d_gate + head.to(tl.int64) * total_k + start_k + columns, d_gates, mask=columns < length_k)
