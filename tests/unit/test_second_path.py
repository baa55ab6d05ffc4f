"""Attention by PyTorch's own kernels: that of a GPU, written out for a CPU, and dropped weights.

The kernel of a GPU is replaced by the same function, which refuses what CUDA's refuses: so the model goes the
path on a GPU where our own kernels cannot run.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import test_packed
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_packed import pair, ragged
from test_packed_kernels import MODEL, Waits
from torch.utils._python_dispatch import TorchDispatchMode

from mrt5cli.models import attention, layout
from mrt5cli.models.deletion import distance_bias
from mrt5cli.models.fast import fused as fused_module
from mrt5cli.models.fast.fused import How, fused, tiles
from mrt5cli.models.recomputation import recompute

pytestmark = [pytest.mark.drawn, pytest.mark.usefixtures("fast")]


@pytest.fixture
def gpu(monkeypatch):
    """This CPU has a GPU's kernel; `biases` of its calls, and whether a call is `inside`."""
    found = SimpleNamespace(biases=[], inside=False)

    def efficient(query, key, value, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
        assert compute_log_sumexp and not dropout_p and not is_causal and scale == 1.0
        assert all(part.stride(-1) == 1 for part in (query, key, value))
        if bias is not None:
            assert bias.dtype == query.dtype and bias.shape == (*query.shape[:3], key.shape[2])
            strides = [step for step, size in zip(bias.stride(), bias.shape, strict=True) if size > 1]
            assert bias.stride(-1) == 1 and not any(step % 8 for step in strides if step != 1)
        found.biases.append(bias)
        found.inside = True
        scores = query.float() @ key.float().mT + (0 if bias is None else bias.float())
        lse = scores.logsumexp(dim=-1)
        output = (scores.softmax(dim=-1) @ value.float()).to(query.dtype)
        found.inside = False
        # CUDA's has room for a multiple of 32 queries, and says nothing of what is in the rest.
        return output, F.pad(lse, (0, -query.shape[2] % 32), value=float("nan")), None, None

    multiplied = torch.bmm

    def bmm(left, right, *, out_dtype=None):
        if out_dtype is None:
            return multiplied(left, right)
        assert left.dtype == right.dtype == torch.bfloat16 and out_dtype == torch.float32
        return multiplied(left.float(), right.float())

    monkeypatch.setattr(fused_module, "_EFFICIENT", efficient)
    monkeypatch.setitem(fused_module._KERNELS, "cpu", fused_module._efficient)
    monkeypatch.setattr(torch, "bmm", bmm)
    return found


@pytest.mark.hypothesis
def test_the_model(gpu):
    """Every variant, soft and hard: the cases and limits of the paths of a CPU."""

    @settings(max_examples=30, deadline=None, database=None)
    @given(**MODEL)
    @example("scaled_sigmoid", [1, 21, 5], 24, 0, True, False, True, -1e-9, 1)
    @example("scaled_sigmoid", [9, 4], 9, 1, False, False, False, None, 2)
    @example("scaled_sigmoid", [9, 4], 9, 1, True, True, False, None, 2)
    def check(kind, lengths, width, layer, one, absolute, hard, threshold, seed):
        before = len(gpu.biases)
        test_packed.compare("sdpa", kind, lengths, width, layer, one, absolute, hard, threshold, seed)
        assert len(gpu.biases) == before + 7  # three encoder layers, two of the decoder with cross-attention

    check()


@pytest.mark.hypothesis
def test_the_core(gpu):
    @settings(max_examples=30, deadline=None, database=None)
    @given(
        batch=st.integers(1, 3),
        heads=st.integers(1, 3),
        queries=st.integers(1, 40),
        keys=st.integers(1, 40),
        width=st.sampled_from([1, 8, 13, 64]),
        bias=st.sampled_from(["none", "shared", "of each row", "of each key"]),
        gated=st.booleans(),
        one=st.booleans(),
        excess=st.booleans(),
        tile=st.sampled_from([1, 500, 2**20]),
    )
    def check(tile, **case):
        with patch.dict(fused_module.TILES, cpu=tile):
            test_packed.compare_cores(**case)

    check()


def test_bfloat16_is_near(gpu):
    """Weights of an autocast step: products rounded, statistics not."""
    model, fast = pair("sdpa", use_softmax1=True)
    ids, mask = ragged([20, 13, 1], 20, 3)
    given_ = {"attention_mask": mask, "labels": ids[:, :5].clamp(min=3), "output_score_loss": True}
    oracle = model(ids, **given_)
    with torch.autocast("cpu", torch.bfloat16):
        near = fast(ids, **given_)
    assert (near.logits.float() - oracle.logits).abs().max() < 0.1 * oracle.logits.abs().max()
    for out in (oracle, near):
        (out.loss + out.score_loss).backward()
    for (name, expected), found in zip(model.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is not None and expected.grad.norm() > 1e-3:
            assert (found.grad - expected.grad).norm() < 0.15 * expected.grad.norm(), name


class Sizes(TorchDispatchMode):
    """The elements of the largest tensor that an operation gives back, those within the kernel apart."""

    def __init__(self, gpu: SimpleNamespace) -> None:
        super().__init__()
        self.largest, self.gpu = 0, gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            # A broadcast one is as large as what it repeats.
            if isinstance(part, torch.Tensor) and not self.gpu.inside and 0 not in part.stride():
                self.largest = max(self.largest, part.numel())
        return result


def training_pair(rate: float):
    _, model = pair("sdpa", use_softmax1=True, attention_dropout_rate=rate)
    ids, mask = ragged([64, 50, 64], 64, 3)
    given_ = {"attention_mask": mask, "labels": ids[:, :4].clamp(min=3), "output_score_loss": True}
    return model.train(), {"input_ids": ids, **given_, "real_bytes": int(mask.sum())}


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_training_step_makes_no_tensor_of_all_scores(gpu, rate: float):
    """Three rows, three heads, 64 x 64 scores each: the largest is the bias, which all rows share."""
    model, inputs = training_pair(rate)
    with patch.dict(fused_module.TILES, cpu=64 * 64), Sizes(gpu) as sizes:
        out = model(**inputs)
        (out.loss + out.score_loss).backward()
    assert sizes.largest == 3 * 64 * 64


def test_a_training_step_waits_for_nothing(gpu, monkeypatch):
    model, inputs = training_pair(0.1)
    # What a CPU looks at because it costs nothing there.
    for place in (layout, attention):
        monkeypatch.setattr(place, "hides_nothing", lambda mask: False, raising=False)
    for place in ("outputs", "mrt5"):
        monkeypatch.setattr(f"mrt5cli.models.{place}.hides_nothing", lambda mask: False)
    monkeypatch.setattr(fused_module, "_seed", lambda: 1)
    with Waits(gpu) as waits:
        out = model(**inputs)
        (out.loss + out.score_loss).backward()
    assert waits.count == 0


@pytest.mark.parametrize("length", [2, 7, 8, 21])
def test_the_bias_is_built_once_and_shared(gpu, length: int):
    _, model = pair("sdpa", use_softmax1=True)
    ids, mask = ragged([length, 1], length, 3)
    with patch.object(layout, "distance_bias", side_effect=distance_bias) as builds:
        model(ids, attention_mask=mask, labels=torch.randint(3, 259, (2, 40)))
    assert builds.call_count == 1
    ours = gpu.biases[:3]
    assert len({bias.data_ptr() for bias in ours}) == 1
    assert all(bias.stride()[::2] == (0, -(-length // 8) * 8) for bias in ours)


@pytest.mark.parametrize("step", [1, 8])
@given(st.lists(st.integers(0, 20), min_size=1, max_size=11, unique=True))
def test_a_bias_in_steps_is_the_same(step: int, kept: list[int]):
    rel, positions = torch.randn(3, 41), torch.tensor([sorted(kept)])
    distance = positions[:, None, :] - positions[:, :, None]
    bias = distance_bias(rel, positions, 21, step)
    assert torch.equal(bias, rel[:, distance + 20].transpose(0, 1))
    whole = distance_bias(rel, None, 21, step)
    assert torch.equal(whole[:, :, positions[0]][..., positions[0]], bias)
    assert all(each.stride(2) % step == 0 and each.stride(3) == 1 for each in (bias, whole) if len(kept) > 1)


# --- dropped weights, on a CPU as on a GPU
# ------------------------------------------------------------------------------------------------------------


def some(queries: int = 9, keys: int = 13, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(5)
    parts = [torch.randn(batch, 3, n, 8) for n in (queries, keys, keys)]
    parts += [torch.randn(1, 3, queries, keys), -3 * torch.rand(batch, keys)]
    return [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("tile", [1, 200, 2**20])
@pytest.mark.parametrize("one", [True, False], ids=["softmax1", "softmax"])
def test_gradients_with_dropout(tile: int, one: bool):
    """Against autograd, with the mask that was drawn; the score loss sees nothing of it."""
    ours, theirs = some(), some()
    with patch.dict(fused_module.TILES, cpu=tile, cuda=tile):
        with patch.object(fused_module, "_seed", lambda: 7):
            *tensors, gate = ours
            output, excess = fused(*tensors, one, gate=gate, ceiling=1.0, dropout=0.3)
        how, kept = How(one, dropout=0.3, seed=7), torch.zeros(2, 3, 9, 13)
        numbers = how.numbers(output.device)
        for each in tiles(ours[0], ours[1]):
            kept[each] = how.kept(kept[each], numbers)
    query, key, value, bias, gate = theirs
    scores = query @ key.mT + bias
    above = (scores - 1).clamp(min=0).sum()
    scores = scores + gate[:, None, None]
    weights = attention.softmax1(scores) if one else scores.softmax(dim=-1)
    expected = (weights * kept) @ value
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(excess, above)
    into = torch.randn_like(output)
    for out, more in ((output, excess), (expected, above)):
        ((out * into).sum() + 0.1 * more).backward()
    for part, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(part.grad, other.grad, atol=1e-4, rtol=1e-3)


def test_mean_and_variance_of_what_is_left():
    """E[out] is the output without dropout; Var[out] is rate / (1 - rate) * sum_k (w_k v_k)^2."""
    rate, draws = 0.2, 3000
    query, key, value, bias, gate = (part.detach() for part in some(2, 5, 1))
    many = [part.expand(draws, *part.shape[1:]) for part in (query, key, value)]
    torch.manual_seed(1)
    with torch.no_grad():
        found, _ = fused(*many, bias, True, gate=gate.expand(draws, 5), dropout=rate)
        whole, _ = fused(query, key, value, bias, True, gate=gate)
    weights = attention.softmax1(query @ key.mT + bias + gate[:, None, None])
    variance = rate / (1 - rate) * weights.square() @ value.square()
    torch.testing.assert_close(found.mean(dim=0), whole[0], atol=0.05, rtol=0.05)
    assert ((found.mean(dim=0) - whole[0]).abs() < 5 * (variance[0] / draws).sqrt()).all()
    torch.testing.assert_close(found.var(dim=0), variance[0], atol=1e-3, rtol=0.2)


def test_the_seed_decides():
    outputs = []
    for seed in (1, 1, 2):
        *tensors, gate = some()
        torch.manual_seed(seed)
        outputs.append([fused(*tensors, True, gate=gate, dropout=0.5)[0] for _ in range(2)])
    assert all(map(torch.equal, outputs[0], outputs[1]))
    assert not torch.equal(outputs[0][0], outputs[0][1]) and not torch.equal(outputs[0][0], outputs[2][0])


@pytest.mark.parametrize("name", ["sdpa", "packed"])
@pytest.mark.parametrize("what", ["selective", "blocks"])
def test_what_is_computed_again_is_dropped_again(name: str, what: str):
    gradients = []
    for how in ("none", what):
        model, inputs = training_pair(0.5)
        model.set_attn_implementation(name)
        recompute(model, how)
        torch.manual_seed(4)
        out = model(**inputs, use_cache=False)
        (out.loss + out.score_loss).backward()
        gradients.append([part.grad for part in model.parameters() if part.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sdpa", "packed"])
def test_nothing_of_all_scores_is_kept_for_backward(name: str, rate: float):
    kept = []
    model, inputs = training_pair(rate)
    model.set_attn_implementation(name)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        model(**inputs)
    assert max(part.untyped_storage().nbytes() for part in kept) // 4 < 3 * 3 * 64 * 64
