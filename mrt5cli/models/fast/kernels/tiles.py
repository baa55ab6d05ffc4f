"""The Triton programs of packed attention: one forward, two backward. `varlen.py` launches them.

A program owns one block of one row's queries (or keys) in one head and walks over the blocks of the other
side; a block that starts past its row's end leaves at once, so the host never needs to know a row's length.
No score leaves the registers.

Every loop is the same five lines on a tile of queries x keys:

    score = q . k + rel[head, clamp(pos_k - pos_q)]         T5 has no 1 / sqrt(H)
    excess = sum(relu(score - ceiling))                     the score loss looks here, before the gate
    score += gate[k]
    weight = exp(score - lse)                               softmax1: a key of score 0 and value 0 is in lse
    d score = weight * (d weight - sum(out * d out))        the same for both softmaxes

Triton sees tensors as pointers, which have no Python type.

Legend: N heads, H head width, D entries of the relative bias (2 far + 1).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

# Only imported where `runs_on` says yes. Guarded all the same, because transformers refuses an exported model
# when one of its files needs, without a guard, what is not installed.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("packed attention on a GPU needs triton, which torch for CUDA brings") from error

# Numbers that change from batch to batch, whose special values are not worth a compilation each.
CHANGING = ["total_q", "total_k", "far", "blocks"]


@triton.jit
def _place(cu, row):
    """Where a row starts (int64: positions times stride may pass 2^31) and how long it is (int32)."""
    start = tl.load(cu + row)
    return start.to(tl.int64), tl.load(cu + row + 1) - start


@triton.jit
def _load(base, rows, length, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a (length, WIDTH) matrix, zeros past either end."""
    dims = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (dims[None, :] < WIDTH)
    return tl.load(base + rows[:, None] * stride + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _store(base, values, rows, length, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    dims = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (dims[None, :] < WIDTH)
    tl.store(base + rows[:, None] * stride + dims[None, :], values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _positions(base, rows, length):
    """Original positions of rows; past the end the last one's, which moves no minimum or maximum."""
    return tl.load(base + tl.minimum(rows, length - 1))


@triton.jit
def _is_far(pos_q, pos_k, far):
    """Whether all distances of a tile lie at or past one end of the bias, and the entry there."""
    after = tl.min(pos_k, 0) - tl.max(pos_q, 0) >= far
    before = tl.max(pos_k, 0) - tl.min(pos_q, 0) <= -far
    return after | before, tl.where(after, 2 * far, 0)


@triton.jit
def _entries(pos_q, pos_k, far):
    distance = pos_k[None, :] - pos_q[:, None]
    return tl.minimum(tl.maximum(distance, -far), far) + far


@triton.jit
def _add_bias(score, rel, pos_q, pos_k, far):
    is_far, entry = _is_far(pos_q, pos_k, far)
    if is_far:
        score += tl.load(rel + entry)
    else:
        score += tl.load(rel + _entries(pos_q, pos_k, far))
    return score


@triton.jit
def _add_bias_grad(grad, d_score, visible, pos_q, pos_k, far):
    """Add a tile's share of the bias gradient: one atomic where all distances are far, else one a pair.

    `d_score` is 0 where nothing is visible.
    """
    is_far, entry = _is_far(pos_q, pos_k, far)
    if is_far:
        tl.atomic_add(grad + entry, tl.sum(tl.sum(d_score, 1), 0), sem="relaxed")
    else:
        tl.atomic_add(grad + _entries(pos_q, pos_k, far), d_score, mask=visible, sem="relaxed")


@triton.jit(do_not_specialize=CHANGING)
def forward(
    q, k, v, out, lse, excess, rel, gate, pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_on, stride_oh, total_q,
    far, ceiling, heads, blocks,
    HAS_REL: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr, SOFTMAX1: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of queries: its output, its log-sum-exp and its sum of scores above the ceiling."""
    program = tl.program_id(0)
    head, row = program // blocks % heads, program // blocks // heads
    start_q, length_q = _place(cu_q, row)
    start_k, length_k = _place(cu_k, row)
    first = program % blocks * BLOCK_Q
    if first >= length_q:
        return
    rows = first + tl.arange(0, BLOCK_Q)
    queries = _load(q + start_q * stride_qn + head * stride_qh, rows, length_q, stride_qn, WIDTH, PADDED)
    k += start_k * stride_kn + head * stride_kh
    v += start_k * stride_vn + head * stride_vh
    if HAS_REL:
        rel += head * (2 * far + 1)
        here = _positions(pos_q + start_q, rows, length_q)

    # softmax1 is a softmax whose first key has score 0 and value 0.
    peak = tl.full([BLOCK_Q], 0.0 if SOFTMAX1 else float("-inf"), tl.float32)
    total = tl.full([BLOCK_Q], 1.0 if SOFTMAX1 else 0.0, tl.float32)
    summed = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    above = tl.zeros([BLOCK_Q], tl.float32)
    for offset in range(0, length_k, BLOCK_K):
        columns = offset + tl.arange(0, BLOCK_K)
        keys = _load(k, columns, length_k, stride_kn, WIDTH, PADDED)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if HAS_REL:
            score = _add_bias(score, rel, here, _positions(pos_k + start_k, columns, length_k), far)
        if HAS_CEILING:
            visible = (rows[:, None] < length_q) & (columns[None, :] < length_k)
            above += tl.sum(tl.where(visible, tl.maximum(score - ceiling, 0.0), 0.0), 1)
        if HAS_GATE:
            score += tl.load(gate + start_k + columns, mask=columns < length_k, other=0.0)[None, :]
        score = tl.where(columns[None, :] < length_k, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(peak - higher)
        total = total * shrink + tl.sum(weight, 1)
        values = _load(v, columns, length_k, stride_vn, WIDTH, PADDED)
        summed = tl.dot(
            weight.to(values.dtype), values, acc=summed * shrink[:, None], input_precision=PRECISION
        )
        peak = higher

    # A row without keys: softmax has no sum there, and its output is 0 as softmax1's is.
    total = tl.where(total > 0, total, 1.0)
    summed = summed / total[:, None]
    _store(out + start_q * stride_on + head * stride_oh, summed, rows, length_q, stride_on, WIDTH, PADDED)
    tl.store(lse + head.to(tl.int64) * total_q + start_q + rows, peak + tl.log(total), mask=rows < length_q)
    if HAS_CEILING:
        tl.store(excess + program, tl.sum(above, 0))


@triton.jit(do_not_specialize=CHANGING)
def backward_queries(
    q, k, v, out, d_out, lse, delta, d_q, d_rel, d_excess, rel, gate, pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_on, stride_oh,
    stride_gn, stride_gh, total_q, far, ceiling, heads, blocks, replicas,
    HAS_REL: tl.constexpr, REL_GRAD: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of queries: their gradient, the bias's, and `delta` = sum(out * d out) for the keys' turn.

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
    queries = _load(q + start_q * stride_qn + head * stride_qh, rows, length_q, stride_qn, WIDTH, PADDED)
    answer = _load(out + start_q * stride_on + head * stride_oh, rows, length_q, stride_on, WIDTH, PADDED)
    wanted = _load(d_out + start_q * stride_gn + head * stride_gh, rows, length_q, stride_gn, WIDTH, PADDED)
    k += start_k * stride_kn + head * stride_kh
    v += start_k * stride_vn + head * stride_vh
    one_head = head.to(tl.int64) * total_q + start_q
    logs = tl.load(lse + one_head + rows, mask=rows < length_q, other=0.0)
    through = tl.sum(answer.to(tl.float32) * wanted.to(tl.float32), 1)
    tl.store(delta + one_head + rows, through, mask=rows < length_q)
    if HAS_REL:
        rel += head * (2 * far + 1)
        here = _positions(pos_q + start_q, rows, length_q)
        if REL_GRAD:
            # Neighbouring programs add to different copies, so that their atomics seldom meet.
            d_rel += (program % replicas * heads + head) * (2 * far + 1)
    if HAS_CEILING:
        penalty = tl.load(d_excess)

    d_queries = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    for offset in range(0, length_k, BLOCK_K):
        columns = offset + tl.arange(0, BLOCK_K)
        visible = (rows[:, None] < length_q) & (columns[None, :] < length_k)
        keys = _load(k, columns, length_k, stride_kn, WIDTH, PADDED)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if HAS_REL:
            there = _positions(pos_k + start_k, columns, length_k)
            score = _add_bias(score, rel, here, there, far)
        if HAS_CEILING:
            extra = tl.where(visible & (score > ceiling), penalty, 0.0)
        if HAS_GATE:
            score += tl.load(gate + start_k + columns, mask=columns < length_k, other=0.0)[None, :]
        weight = tl.exp(tl.where(visible, score - logs[:, None], float("-inf")))
        values = _load(v, columns, length_k, stride_vn, WIDTH, PADDED)
        d_weight = tl.dot(wanted, tl.trans(values), input_precision=PRECISION)
        d_score = weight * (d_weight - through[:, None])
        if HAS_CEILING:
            d_score += extra
        if REL_GRAD:
            _add_bias_grad(d_rel, d_score, visible, here, there, far)
        d_queries = tl.dot(d_score.to(keys.dtype), keys, acc=d_queries, input_precision=PRECISION)
    stride = heads * WIDTH
    _store(d_q + start_q * stride + head * WIDTH, d_queries, rows, length_q, stride, WIDTH, PADDED)


@triton.jit(do_not_specialize=CHANGING)
def backward_keys(
    q, k, v, d_out, lse, delta, d_k, d_v, d_gate, d_excess, rel, gate, pos_q, pos_k, cu_q, cu_k,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_gn, stride_gh,
    total_q, total_k, far, ceiling, heads, blocks,
    HAS_REL: tl.constexpr, HAS_GATE: tl.constexpr, HAS_CEILING: tl.constexpr,
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
    keys = _load(k + start_k * stride_kn + head * stride_kh, columns, length_k, stride_kn, WIDTH, PADDED)
    values = _load(v + start_k * stride_vn + head * stride_vh, columns, length_k, stride_vn, WIDTH, PADDED)
    q += start_q * stride_qn + head * stride_qh
    d_out += start_q * stride_gn + head * stride_gh
    lse += head.to(tl.int64) * total_q + start_q
    delta += head.to(tl.int64) * total_q + start_q
    if HAS_REL:
        rel += head * (2 * far + 1)
        there = _positions(pos_k + start_k, columns, length_k)
    if HAS_GATE:
        gates = tl.load(gate + start_k + columns, mask=columns < length_k, other=0.0)
    if HAS_CEILING:
        penalty = tl.load(d_excess)

    d_keys = tl.zeros([BLOCK_K, PADDED], tl.float32)
    d_values = tl.zeros([BLOCK_K, PADDED], tl.float32)
    d_gates = tl.zeros([BLOCK_K], tl.float32)
    for offset in range(0, length_q, BLOCK_Q):
        rows = offset + tl.arange(0, BLOCK_Q)
        visible = (rows[:, None] < length_q) & (columns[None, :] < length_k)
        queries = _load(q, rows, length_q, stride_qn, WIDTH, PADDED)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if HAS_REL:
            score = _add_bias(score, rel, _positions(pos_q + start_q, rows, length_q), there, far)
        if HAS_CEILING:
            extra = tl.where(visible & (score > ceiling), penalty, 0.0)
        if HAS_GATE:
            score += gates[None, :]
        logs = tl.load(lse + rows, mask=rows < length_q, other=0.0)
        weight = tl.exp(tl.where(visible, score - logs[:, None], float("-inf")))
        wanted = _load(d_out, rows, length_q, stride_gn, WIDTH, PADDED)
        d_values = tl.dot(tl.trans(weight.to(wanted.dtype)), wanted, acc=d_values, input_precision=PRECISION)
        d_weight = tl.dot(wanted, tl.trans(values), input_precision=PRECISION)
        through = tl.load(delta + rows, mask=rows < length_q, other=0.0)
        d_score = weight * (d_weight - through[:, None])
        if HAS_GATE:
            d_gates += tl.sum(d_score, 0)
        if HAS_CEILING:
            d_score += extra
        d_keys = tl.dot(tl.trans(d_score.to(queries.dtype)), queries, acc=d_keys, input_precision=PRECISION)
    stride = heads * WIDTH
    _store(d_k + start_k * stride + head * WIDTH, d_keys, columns, length_k, stride, WIDTH, PADDED)
    _store(d_v + start_k * stride + head * WIDTH, d_values, columns, length_k, stride, WIDTH, PADDED)
    if HAS_GATE:
        tl.store(d_gate + head.to(tl.int64) * total_k + start_k + columns, d_gates, mask=columns < length_k)
