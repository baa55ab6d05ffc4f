"""The packed path of a GPU: its kernels, the layout that feeds them, and the model around both.

Without a GPU the kernels run in Triton's interpreter, which shows that they compute the right numbers and
nothing of their speed; with one, tests/parity/test_gpu.py runs the same cases compiled. What only a compiler
can tell, whether a tile fits a device, is asked of the compiler. All else needs no triton: there the model is
made to treat this CPU as such a GPU, and gets the attention written out in place of the kernels.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import packed_kernels
import pytest
import test_packed
import torch
from conftest import labelled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_kernels import HAS_TRITON, NEEDS_TRITON, SMALL, Case, cases, compare, written_out
from test_packed import VARIANTS, pair, ragged
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrt5cli import models
from mrt5cli.models.attention import softmax1
from mrt5cli.models.deletion import compact
from mrt5cli.models.fast import kernels
from mrt5cli.models.fast.kernels import Packed, grid
from mrt5cli.models.fast.kernels.device_layout import DeviceLayout
from mrt5cli.models.recomputation import recompute

pytestmark = [pytest.mark.drawn, pytest.mark.usefixtures("fast")]

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=NEEDS_TRITON)
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a CUDA device is here: -m gpu runs these cases compiled"
)

ALL_ON = Case((1, 33, 0, 20), None, 10, 9, True, True, 1.0, 0, dropout=0.3, counted=True)
CAUSAL = replace(ALL_ON, dense=True, causal=True, gated=False, softmax1=False)
OVERFLOWING = Case((5,), None, 16, 0, False, True, None, 0, bias=150.0)
"""Scores whose exponentials are no float32, also where a tile reaches past its row."""
NO_KEYS = Case((0, 17), 7, 16, None, True, False, 1.0, 0)


@needs_triton
@interpreted
@settings(max_examples=6, deadline=None)
@given(case=cases())
@example(ALL_ON)
@example(CAUSAL)
@example(OVERFLOWING)
@example(NO_KEYS)
def test_outputs_and_gradients(case: Case):
    compare(case, "cpu")


@needs_triton
@interpreted
@pytest.mark.parametrize("case", [ALL_ON, NO_KEYS], ids=["self", "cross"])
def test_half_precision_is_near(case: Case):
    compare(case, "cpu", torch.float16)  # the interpreter multiplies bfloat16 as if it were integers


@needs_triton
@interpreted
def test_with_the_tiles_of_a_launch():
    compare(Case((70, 3), None, 64, 9, True, True, 1.0, 0), "cpu", small=False)


@needs_triton
@interpreted
@pytest.mark.parametrize("one", [False, True], ids=["softmax", "softmax1"])
def test_a_bias_may_hide(one: bool):
    """Whatever lies ahead, as in a decoder, or everything."""
    from mrt5cli.models.fast.kernels.varlen import attend

    generator = torch.Generator().manual_seed(0)
    given_ = [torch.randn(45, 2, 16, generator=generator).requires_grad_() for _ in range(3)]
    known = torch.randn(2, 5, generator=generator).requires_grad_()
    bounds = torch.tensor([0, 40, 45], dtype=torch.int32)
    rows = Packed(bounds, 40, torch.arange(45, dtype=torch.int32))
    ahead = replace(rows, positions=rows.positions + 99)
    results = []
    for causal in (True, False):
        of_those_ahead = torch.full((2, 4), 0.0 if causal else float("-inf"))
        how = {"rel": torch.cat([known, of_those_ahead], dim=1), "gate": None, "softmax1": one}
        output, _ = attend(*given_, queries=rows, keys=rows, causal=causal, **how)
        results.append((output, *torch.autograd.grad(output.square().sum(), [*given_, known])))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    output, _ = attend(*given_, queries=rows, keys=ahead, **how)
    grads = torch.autograd.grad(output.sum(), [*given_, known])
    assert not output.any() and not any(grad.any() for grad in grads)


@needs_triton
@interpreted
@pytest.mark.parametrize("heads, width", [(16, 16), (5, 128)])
def test_many_heads_and_wide_ones(heads: int, width: int):
    compare(Case((18,), None, width, 9, True, True, 1.0, 0, dropout=0.1, heads=heads), "cpu")


def dropped(seed: int, rate: float, queries: int, keys: int, **how) -> tuple[Tensor, Tensor]:
    """What becomes of equal queries of two heads, without dropout and with it: (queries, 2, width)."""
    from mrt5cli.models.fast.kernels.varlen import attend

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 16, generator=generator).expand(queries, 2, 16)
    key, value = (torch.randn(keys, 2, 16, generator=generator) for _ in range(2))
    device = query.device
    how |= {"queries": grid(1, queries, device), "keys": grid(1, keys, device), "rel": None, "gate": None}
    plain, _ = attend(query, key, value, softmax1=True, **how)
    torch.manual_seed(seed)
    return plain, attend(query, key, value, softmax1=True, dropout=rate, **how)[0]


@needs_triton
@interpreted
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_has_the_variance_it_should(rate: float):
    """Of a sum of weights w times values v: rate / (1 - rate) * sum of (w v) ** 2."""
    queries, keys = 256, 20
    plain, found = dropped(3, rate, queries, keys)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 16, generator=generator)
    key, value = (torch.randn(keys, 2, 16, generator=generator) for _ in range(2))
    weights = softmax1(torch.einsum("qhd,khd->hk", query, key))
    due = rate / (1 - rate) * torch.einsum("hk,khd->hd", weights**2, value**2)
    off = (found.mean(dim=0) - plain[0]) / (due / queries).sqrt()  # in standard errors
    assert off.abs().max() < 4.5 and off.pow(2).mean() < 2
    torch.testing.assert_close(found.var(dim=0).sum(), due.sum(), rtol=0.15, atol=0)


@needs_triton
@interpreted
def test_a_generator_in_the_same_state_drops_the_same():
    """Whatever the tiles."""
    from mrt5cli.models.fast.kernels.varlen import Cut, Tiles

    small = Tiles(SMALL, SMALL, 4, 1)
    _, found = dropped(3, 0.3, 70, 40)
    _, again = dropped(3, 0.3, 70, 40, cut=Cut(small, small, small))
    _, other = dropped(4, 0.3, 70, 40)
    torch.testing.assert_close(found, again)
    assert not torch.allclose(found, other)


@needs_triton
@interpreted
def test_a_column_of_a_longer_projection():
    """Strides of a fused q|k|v, and a gradient that is one number everywhere."""
    from mrt5cli.models.fast.kernels.varlen import attend

    whole = torch.randn(5, 3, 2, 16).requires_grad_()
    rows = Packed(torch.tensor([0, 2, 5], dtype=torch.int32), 3)
    output, _ = attend(*whole.unbind(1), queries=rows, keys=rows, rel=None, gate=None, softmax1=True)
    output.sum().backward()
    parts = [whole.detach()[:, part].contiguous().requires_grad_() for part in range(3)]
    attend(*parts, queries=rows, keys=rows, rel=None, gate=None, softmax1=True)[0].sum().backward()
    torch.testing.assert_close(whole.grad, torch.stack([part.grad for part in parts], dim=1))


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    known=st.booleans(),
)
def test_the_layout(rows: list[list[bool]], known: bool):
    valid = torch.tensor(rows)
    positions = torch.arange(0, 50, 10) + torch.arange(len(rows))[:, None]
    lengths = valid.sum(dim=1)
    layout = DeviceLayout(valid, int(valid.sum()) if known else None, positions)
    assert torch.equal(layout.index, valid.flatten().nonzero()[:, 0])
    assert torch.equal(layout.packed.positions.long(), positions[valid])
    assert layout.packed.bounds.diff().tolist() == lengths.tolist()
    assert layout.packed.bounds.dtype == layout.packed.positions.dtype == torch.int32
    assert layout.total == int(valid.sum())
    assert torch.equal(DeviceLayout(valid).packed.positions.long(), valid.nonzero()[:, 1])
    values = torch.randn(*valid.shape, 3, dtype=torch.float64).requires_grad_()
    back = layout.restore(layout.lay_out(values))
    assert torch.equal(back, values * valid[..., None])
    (back * 2).sum().backward()
    assert torch.equal(values.grad, 2.0 * valid[..., None].expand_as(values))


def test_a_regular_grid():
    packed = grid(3, 4, torch.device("cpu"))
    assert packed.bounds.tolist() == [0, 4, 8, 12] and packed.longest == 4


BENCHMARKS = Path(packed_kernels.__file__).parent / "benchmarks"
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Bytes of shared memory a block may use, by compute capability; the smallest of the first is 8.6."""
SPILLED = {("sm_90", "bfloat16"): 64}
"""Bytes of a thread's values that may lie outside of registers: in cache, read once or twice a tile."""
SPILLED_ELSEWHERE = 400


@needs_triton
@pytest.mark.parametrize(
    "capabilities, dtypes, widths",
    [
        pytest.param("90", "bfloat16", "64", id="quick"),
        pytest.param("80,90,100", "bfloat16,float32", "64,128", id="all", marks=pytest.mark.slow),
    ],
)
def test_tiles_fit(tmp_path, capabilities: str, dtypes: str, widths: str):
    """The compiler takes every kernel, with everything on, and it fits: no GPU is needed for that."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "kernel_resources.py", capabilities, dtypes, widths, "--json"],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    combinations = [len(part.split(",")) for part in (capabilities, dtypes, widths)]
    assert len(found) == 3 * math.prod(combinations)
    for name, (registers, spilled, shared) in found.items():
        device, dtype, *_ = name.split()
        assert registers <= 255, (name, registers)
        assert spilled <= SPILLED.get((device, dtype), SPILLED_ELSEWHERE), (name, spilled)
        assert shared <= SHARED[device], (name, shared)


def test_the_table_of_the_readme():
    module = runpy.run_path(str(BENCHMARKS / "roofline.py"))
    readme = Path(models.__file__).with_name("README.md")
    assert module["table"]() in readme.read_text(encoding="utf-8")


def test_tiles_are_timed_on_a_gpu_only():
    if torch.cuda.is_available():
        pytest.skip("here they are")
    module = runpy.run_path(str(BENCHMARKS / "tiles.py"))
    with pytest.raises(SystemExit, match="tiles are timed on a CUDA device"):
        module["main"]()


@needs_triton
def test_tiles_are_ones_a_matrix_unit_takes():
    from mrt5cli.models.fast.kernels.varlen import tiles_for

    for dtype in (torch.float32, torch.bfloat16):
        for width in (1, 10, 64, 128):
            cut = tiles_for(width, dtype)
            assert all(min(tile.queries, tile.keys) >= 16 for tile in cut)
            assert cut.backward_queries.keys <= cut.backward_queries.queries


def test_where_the_kernels_run(monkeypatch):
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    cuda = torch.device("cuda")
    assert kernels.runs_on(cuda, 64) and not kernels.runs_on(torch.device("cpu"), 64)
    assert not kernels.runs_on(cuda, 200)
    torch.use_deterministic_algorithms(True)
    try:
        assert not kernels.runs_on(cuda, 64)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert not kernels.runs_on(cuda, 64)


@given(
    kept=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    seen=st.none() | st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_how_many_survivors_are_seen(kept, seen):
    keep = torch.tensor(kept)
    visible = None if seen is None else torch.tensor(seen).expand(len(kept), 4)
    positions, valid, count = compact(keep, keep.sum(dim=1), visible)
    assert positions.shape[1] == int(keep.sum(dim=1).max())
    mask = valid if visible is None else valid & visible.gather(1, positions)
    assert count == int(mask.sum())


@pytest.fixture(params=["written out", pytest.param("triton", marks=[needs_triton, interpreted])])
def by_kernel(request, monkeypatch):
    """The model takes this CPU for a GPU with kernels."""
    calls = []
    found = SimpleNamespace(calls=calls, inside=False, slow=request.param == "triton")

    def counted(*args, **how):
        calls.append(how)
        found.inside = True
        try:
            return core(*args, **how)
        finally:
            found.inside = False

    if request.param == "triton":
        from mrt5cli.models.fast.kernels.varlen import attend as core
    else:
        core = written_out
    monkeypatch.setitem(sys.modules, "mrt5cli.models.fast.kernels.varlen", SimpleNamespace(attend=counted))
    monkeypatch.setattr("mrt5cli.models.fast.choice.obstacle", lambda *_: None)
    return found


MODEL = {
    "kind": st.sampled_from(sorted(VARIANTS)),
    "lengths": test_packed.ROWS,
    "width": st.integers(1, 24),
    "layer": st.integers(0, 2),
    "one": st.booleans(),
    "absolute": st.booleans(),
    "hard": st.booleans(),
    "threshold": st.sampled_from([None, -29.9, -0.5, -1e-9]),
    "seed": st.integers(0, 99),
}


@pytest.mark.hypothesis
def test_the_model(by_kernel):
    """Every variant, soft and hard: the cases and limits of the paths of a CPU."""

    @settings(max_examples=1 if by_kernel.slow else 40, deadline=None, database=None)
    @given(**MODEL)
    @example("scaled_sigmoid", [1, 21, 5], 24, 0, True, False, True, -1e-9, 1)
    @example("scaled_sigmoid", [9, 9], 9, 1, False, False, False, None, 2)
    @example("convolution", [9, 4], 12, 1, True, True, False, None, 2)
    def check(kind, lengths, width, layer, one, absolute, hard, threshold, seed):
        before = len(by_kernel.calls)
        test_packed.compare("triton", kind, lengths, width, layer, one, absolute, hard, threshold, seed)
        assert (
            len(by_kernel.calls) == before + 7
        )  # three encoder layers, two of cross-attention, two of targets

    check()


class Waits(TorchDispatchMode):
    """Counts the operations whose result's value or size the host would have to wait for on a GPU."""

    ASKING = (
        "_local_scalar_dense",
        "nonzero",
        "equal",
        "masked_select",
        "is_nonzero",
        "unique_dim",
        "_unique2",
    )

    def __init__(self, by_kernel: SimpleNamespace) -> None:
        super().__init__()
        self.count, self.by_kernel = 0, by_kernel

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        self.count += (name in self.ASKING or by_mask) and not self.by_kernel.inside
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "lengths, hard, known, waits",
    [
        ([9, 5], True, 14, 1),  # the survivors
        ([9, 5], True, None, 2),  # and the bytes of a batch whose maker did not count them
        ([9, 5], False, 14, 0),
        ([9, 9], True, 18, 1),
        ([9, 9], False, None, 1),
    ],
)
def test_how_often_a_forward_waits(by_kernel, monkeypatch, lengths, hard, known, waits):
    model, fast = pair("triton", use_softmax1=True)
    ids, mask = ragged(lengths, 12, 3)
    given_ = {"attention_mask": mask, "labels": ids[:, :4].clamp(min=3), "hard_delete": hard}
    given_ |= {"use_cache": False, "output_score_loss": True}
    expected = model(ids, **given_).logits
    monkeypatch.setattr("mrt5cli.models.mrt5.hides_nothing", lambda mask: False)  # as of a GPU's
    answer = torch.Tensor.tolist
    with Waits(by_kernel) as counter:

        def counting(tensor):  # of a CPU's tensor it is no operation
            counter.count += not by_kernel.inside
            return answer(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counting)
        out = fast(ids, **given_, real_bytes=known)
    torch.testing.assert_close(out.logits, expected, atol=2e-4, rtol=1e-4)
    assert by_kernel.calls and counter.count == waits


def test_a_training_step_waits_for_nothing(by_kernel, monkeypatch):
    _, model = pair("triton", use_softmax1=True, attention_dropout_rate=0.1)
    ids, mask = ragged([9, 5], 12, 3)
    monkeypatch.setattr("mrt5cli.models.mrt5.hides_nothing", lambda mask: False)
    with Waits(by_kernel) as waits:
        train(model.train(), ids, mask, ids[:, :4].clamp(min=3), output_score_loss=True, real_bytes=14)
    assert by_kernel.calls and waits.count == 0


def train(model, ids, mask, labels, **how):
    """An output and its gradients, of a loss that looks at the score loss if there is one."""
    out = model(ids, attention_mask=mask, labels=labels, use_cache=False, **how)
    (out.loss + (0 if out.score_loss is None else out.score_loss)).backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_near(found: dict, wanted: dict) -> None:
    for name, expected in wanted.items():
        if expected is not None:
            limit = 5e-5 + 2e-3 * expected.abs().max().item()
            torch.testing.assert_close(found[name], expected, atol=limit, rtol=0, msg=labelled(name))


@pytest.mark.parametrize("per", ["row", "batch"])
@pytest.mark.parametrize("lengths", [[9, 9], [9, 5]], ids=["full", "ragged"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_score_loss(by_kernel, lengths: list[int], hard: bool, per: str):
    """The published mean looks at padding, so the kernels compute it where there is none."""
    models = pair("triton", use_softmax1=True)
    ids, mask = ragged(lengths, 9, 3)
    labels = torch.randint(3, 259, (2, 4))
    labels[1, 2:] = -100
    found = []
    for model in models:
        for name, parameter in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter.data.mul_(40)  # scores that pass the ceiling
        how = {"output_score_loss": True, "score_loss_per": per, "hard_delete": hard}
        found.append(train(model, ids, mask, labels, **how))
    (expected, wanted), (out, grads) = found
    assert expected.score_loss_parts.min() > 0.1
    torch.testing.assert_close(out.score_loss_parts, expected.score_loss_parts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-4, rtol=1e-4)
    assert_near(grads, wanted)
    packed = {"row": 7, "batch": (1 if hard else 7) if lengths == [9, 9] else 0}[per]
    assert len(by_kernel.calls) == packed  # of three encoder layers, two of cross-attention, two of targets


@pytest.mark.parametrize(
    "fields", [{"has_absolute_position_embeddings": True}, {"relative_bias_per_layer": True}]
)
def test_targets_see_what_came_before(by_kernel, fields):
    """Learned positions and biases of each layer's own; targets longer than the distances of T5's buckets."""
    ids, mask = ragged([9, 5], 9, 3)
    labels = torch.randint(3, 259, (2, 21))
    fields = {"relative_attention_max_distance": 17, "max_position_embeddings": 32, **fields}
    (expected, wanted), (out, grads) = (train(model, ids, mask, labels) for model in pair("triton", **fields))
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-4, rtol=1e-4)
    assert_near(grads, wanted)
    assert [call["causal"] for call in by_kernel.calls] == [False] * 3 + [True, False] * 2


@pytest.mark.parametrize("asked", ["use_cache", "decoder_attention_mask", "output_attentions"])
def test_targets_that_are_not_for_the_kernels(by_kernel, asked: str):
    given_ = {"use_cache": True, "decoder_attention_mask": torch.ones(2, 4), "output_attentions": True}
    oracle, model = pair("triton")
    ids, mask = ragged([9, 5], 9, 3)
    how = {
        "attention_mask": mask,
        "labels": ids[:, :4].clamp(min=3),
        "use_cache": False,
        asked: given_[asked],
    }
    torch.testing.assert_close(model(ids, **how).logits, oracle(ids, **how).logits, atol=2e-4, rtol=1e-4)
    assert not any(call["causal"] for call in by_kernel.calls)


def test_dropped_attention_weights(by_kernel):
    """The seed is the generator's: the same state drops the same, also where activations are recomputed."""
    _, model = pair("triton", attention_dropout_rate=0.3, use_softmax1=True)
    ids, mask = ragged([9, 5], 9, 3)
    labels = ids[:, :4].clamp(min=3)
    found = []
    for what in ("none", "blocks", "selective"):
        recompute(model.train(), what)
        model.zero_grad()
        torch.manual_seed(1)
        found.append(train(model, ids, mask, labels))
    assert all(call["dropout"] == 0.3 for call in by_kernel.calls)
    for out, grads in found[1:]:
        torch.testing.assert_close(out.logits, found[0][0].logits)
        assert_near(grads, found[0][1])
    assert not torch.allclose(model(ids, attention_mask=mask, labels=labels).logits, found[0][0].logits)
    by_kernel.calls.clear()
    model.eval()(ids, attention_mask=mask, labels=labels)
    assert all(call["dropout"] == 0 for call in by_kernel.calls)


class Largest(TorchDispatchMode):
    """The most elements that a tensor has which an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.by = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().nbytes() // made.itemsize > self.elements:
                self.elements, self.by = made.untyped_storage().nbytes() // made.itemsize, str(func)
        return result


@pytest.mark.parametrize("lengths", [[128, 128], [128, 90]], ids=["full", "ragged"])
@pytest.mark.parametrize("attention", ["triton", "eager"])
def test_nothing_of_the_size_of_scores_is_made(monkeypatch, lengths: list[int], attention: str):
    """In a soft training step with dropout and score loss, for whose attention something stands that makes no
    more than the kernels do."""

    def like_kernels(query, key, value, *, rel, gate, score_ceiling=None, **_):
        given = [part.sum() for part in (key, value, rel, gate) if part is not None]
        output = query + sum(given)
        return output, None if score_ceiling is None else output.float().sum()

    heads, targets = 8, 128
    stand_in = SimpleNamespace(attend=like_kernels)
    monkeypatch.setitem(sys.modules, "mrt5cli.models.fast.kernels.varlen", stand_in)
    monkeypatch.setattr("mrt5cli.models.fast.choice.obstacle", lambda *_: None)
    _, model = pair(attention, dropout_rate=0.1, use_softmax1=True, num_heads=heads)
    ids, mask = ragged(lengths, 128, 3)
    labels = torch.randint(3, 259, (2, targets))
    labels[1, 30:] = -100
    with Largest() as largest:
        train(model.train(), ids, mask, labels, output_score_loss=True, real_bytes=sum(lengths))
    scores = heads * targets**2  # of a row's targets
    assert (largest.elements < scores) == (attention == "triton"), (largest.elements, largest.by)


def test_a_mask_that_hides_real_bytes_is_not_packed(by_kernel):
    model, fast = pair("triton")
    ids, mask = ragged([9, 5], 9, 3)
    mask[0, :3] = 0
    labels = ids[:, :4].clamp(min=3)
    expected = model(ids, attention_mask=mask, labels=labels).logits
    torch.testing.assert_close(
        fast(ids, attention_mask=mask, labels=labels).logits, expected, atol=2e-4, rtol=1e-4
    )
    assert not by_kernel.calls


def test_positions_are_where_bytes_stood(by_kernel):
    """Padding before and between bytes: distances are those of the padded batch."""
    model, fast = pair("triton", use_softmax1=True)
    ids, _ = ragged([9, 9], 9, 3)
    ids[0, :3] = 0
    ids[1, 4:6] = 0
    mask, labels = (ids != 0).long(), torch.randint(3, 259, (2, 4))
    for hard in (True, False):
        expected = model(ids, attention_mask=mask, labels=labels, hard_delete=hard).logits
        out = fast(ids, attention_mask=mask, labels=labels, hard_delete=hard).logits
        torch.testing.assert_close(out, expected, atol=2e-4, rtol=1e-4)
    assert by_kernel.calls
