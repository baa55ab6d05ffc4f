"""The fast paths against the eager oracle: outputs and gradients, whatever the shape."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
import torch
from conftest import labelled
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.attention import AttentionOptions, eager
from mrt5cli.models.fast import fused as fused_module
from mrt5cli.models.fast import packed_rows
from mrt5cli.models.fast.fused import fused, has_fused, tiles
from mrt5cli.models.fast.kernels.device_layout import device_layout
from mrt5cli.models.fast.packed_rows import PackedLayout
from mrt5cli.models.score_loss import ScorePenalty

pytestmark = [pytest.mark.drawn, pytest.mark.usefixtures("fast")]

SIZES = {"d_model": 24, "d_ff": 32, "d_kv": 6, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2}
VARIANTS = {
    "none": {},
    "scaled_sigmoid": {},
    "log_sigmoid": {},
    "random": {"random_deletion_probability": 0.6},
    "fixed": {},
    "boundary_predictor": {},
    "convolution": {"downsampling_rate": 3},
    "source_removed": {},
}


def pair(fast: str, **fields) -> tuple[MrT5ForConditionalGeneration, MrT5ForConditionalGeneration]:
    """The same weights under the oracle and under a fast path."""
    torch.manual_seed(0)
    config = MrT5Config(**{**SIZES, "delete_gate_layer": 1, "dropout_rate": 0.0, **fields})
    oracle = MrT5ForConditionalGeneration(config).eval()
    for name, parameter in oracle.named_parameters():
        if "relative_attention_bias" in name or "delete_gate.feed_forward.weight" in name:
            parameter.data.mul_(5)
    torch.manual_seed(0)
    other = MrT5ForConditionalGeneration(MrT5Config(**config.to_diff_dict())).eval()
    other.load_state_dict(oracle.state_dict())
    oracle.set_attn_implementation("eager")
    other.set_attn_implementation(fast)
    return oracle, other


def ragged(lengths: list[int], width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (len(lengths), max(width, *lengths)), generator=generator)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


ROWS = st.lists(st.integers(1, 21), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    fast=st.sampled_from(["sdpa", "packed"]),
    kind=st.sampled_from(sorted(VARIANTS)),
    lengths=ROWS,
    width=st.integers(1, 24),
    layer=st.integers(0, 2),
    one=st.booleans(),
    absolute=st.booleans(),
    hard=st.booleans(),
    threshold=st.sampled_from([None, -29.9, -0.5, -1e-9]),
    at_once=st.sampled_from([1, 200, 2**18]),
    seed=st.integers(0, 99),
)
@example("packed", "scaled_sigmoid", [1], 1, 0, True, False, True, None, 1, 0)
@example("packed", "scaled_sigmoid", [1, 21, 5], 24, 0, True, False, True, -1e-9, 1, 1)
@example("packed", "scaled_sigmoid", [1, 21, 5], 24, 0, True, False, True, -1e-9, 2**18, 1)
@example("packed", "scaled_sigmoid", [9, 9], 9, 1, False, False, True, -1e-9, 2**18, 2)
def test_outputs_and_gradients(
    fast, kind, lengths, width, layer, one, absolute, hard, threshold, at_once, seed
):
    """Whether short rows are gone through at once, and share a tile of the backward pass, or not."""
    with (
        patch.object(packed_rows, "SCORES_AT_ONCE", at_once),
        patch.dict(fused_module.TILES, cpu=at_once),
    ):
        compare(fast, kind, lengths, width, layer, one, absolute, hard, threshold, seed)


def compare(fast, kind, lengths, width, layer, one, absolute, hard, threshold, seed):
    fields = {"deletion_type": kind, "delete_gate_layer": layer, "use_softmax1": one, **VARIANTS[kind]}
    if absolute:
        fields |= {"has_absolute_position_embeddings": True, "max_position_embeddings": 32}
    models = pair(fast, **fields)
    ids, mask = ragged(lengths, width, seed)
    labels = torch.randint(3, 259, (len(lengths), 5), generator=torch.Generator().manual_seed(seed))
    learned = kind in ("scaled_sigmoid", "log_sigmoid")
    outputs = []
    for model in models:
        out = model(
            ids,
            attention_mask=mask,
            labels=labels,
            hard_delete=hard,
            deletion_threshold=threshold if learned else None,
            use_cache=False,
        )
        total = out.loss
        if learned:
            total = total + 0.01 * (out.delete_gate_output * mask).mean()
        total.backward()
        outputs.append(out)
    oracle, other = outputs
    torch.testing.assert_close(other.logits, oracle.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(other.loss, oracle.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(other.kept_lengths, oracle.kept_lengths)
    for (name, expected), parameter in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if expected.grad is None or not expected.grad.any():
            assert parameter.grad is None or parameter.grad.abs().max() < 1e-6, name
            continue
        limit = 1e-6 + 1e-3 * expected.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected.grad, atol=limit, rtol=0, msg=labelled(name))


@settings(max_examples=40, deadline=None)
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
def test_the_fused_core(batch, heads, queries, keys, width, bias, gated, one, excess, tile):
    with patch.dict(fused_module.TILES, cpu=tile):
        compare_cores(batch, heads, queries, keys, width, bias, gated, one, excess)


def compare_cores(batch, heads, queries, keys, width, bias, gated, one, excess):
    torch.manual_seed(1)
    shapes = {"shared": (1, heads), "of each row": (batch, heads), "of each key": (batch, 1)}

    def tensors() -> list[torch.Tensor | None]:
        torch.manual_seed(2)
        parts = [torch.randn(batch, heads, n, width) for n in (queries, keys, keys)]
        parts.append(None if bias == "none" else 3 * torch.randn(*shapes[bias], queries, keys))
        parts.append(-30 * torch.rand(batch, keys) ** 2 if gated else None)
        return [None if part is None else part.requires_grad_() for part in parts]

    ours, theirs = tensors(), tensors()
    assert has_fused(ours[0])
    *others, gate = ours
    output, above = fused(*others, one, gate=gate, ceiling=5.0 if excess else None)
    penalty = ScorePenalty("batch") if excess else None
    *parts, their_bias, their_gate = theirs
    expected, _ = eager(*parts, AttentionOptions(one, penalty=penalty, bias=their_bias, gate=their_gate))
    expected_above = penalty.mean() * batch * heads * queries * keys if penalty else torch.zeros(())
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(above, expected_above)
    weight = torch.randn_like(output)
    ((output * weight).sum() + 0.1 * (above if excess else 0)).backward()
    ((expected * weight).sum() + 0.1 * (expected_above if excess else 0)).backward()
    for part, other in zip(ours, theirs, strict=True):
        if part is not None:
            torch.testing.assert_close(part.grad, other.grad, atol=1e-4, rtol=1e-3)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 400))
def test_tiles_are_every_row_and_head_once_and_no_larger_than_asked(batch, heads, queries, keys, most):
    with patch.dict(fused_module.TILES, cpu=most):
        found = list(tiles(torch.empty(batch, heads, queries, 1), torch.empty(batch, heads, keys, 1)))
    covered = torch.zeros(batch, heads, dtype=torch.long)
    for tile in found:
        assert covered[tile].numel() * queries * keys <= most or covered[tile].numel() == 1
        covered[tile] += 1
    assert (covered == 1).all()


def test_a_row_that_sees_nothing_gets_zeros_under_softmax1():
    q, k, v = (torch.randn(1, 2, 3, 8) for _ in range(3))
    hidden = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min)
    assert not fused(q, k, v, hidden, True)[0].any()


@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from([1, 20, 60, 10**6]),
)
def test_there_and_back(rows: list[list[bool]], at_once: int):
    valid = torch.tensor(rows)
    values = torch.randn(*valid.shape, 3) * valid[..., None]
    layout = PackedLayout(valid)
    assert torch.equal(layout.restore(layout.lay_out(values)), values)
    flat, seen = layout.lay_out(values)[0], []
    with patch.object(packed_rows, "SCORES_AT_ONCE", at_once):
        groups = layout.groups(heads=2)
    for group in groups:
        padded = group.pad(flat)
        assert padded.shape[:2] == (len(group.counts), max(group.counts))
        assert torch.equal(group.unpad(padded), flat[group.place])
        assert len(group.counts) == 1 or 2 * padded.shape[0] * padded.shape[1] ** 2 <= at_once
        hidden = group.hidden(torch.float32)
        there = torch.ones(padded.shape[:2], dtype=torch.bool) if hidden is None else hidden[:, 0, 0] == 0
        assert there.sum(dim=1).tolist() == list(group.counts)
        seen += list(range(len(rows)))[group.rows]
    assert seen == list(range(len(rows)))
    assert [count for group in groups for count in group.counts] == [sum(row) for row in rows]


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_of_padding_alone_is_refused(training: bool):
    model = MrT5ForConditionalGeneration(MrT5Config(d_model=32, d_ff=48, d_kv=8, num_heads=2, num_layers=4))
    model.train(training).set_attn_implementation("packed")
    ids = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="has no positions: every id is padding"):
        model(input_ids=ids, attention_mask=ids, labels=torch.ones(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="has no positions: every id is padding"):
        device_layout(ids, ids == 0, None, None)


def test_padding_between_bytes_keeps_their_distances():
    models = pair("packed", use_softmax1=True)
    ids, _ = ragged([20, 17, 9], 20, 6)
    ids[0, [3, 4, 11]] = 0
    ids[2, :2] = 0
    mask = ids.ne(0).long()
    with torch.no_grad():
        for hard, at_once in itertools.product((False, True), (1, 2**18)):
            with patch.object(packed_rows, "SCORES_AT_ONCE", at_once):
                expected, found = (
                    m(ids, attention_mask=mask, labels=ids[:, 5:9] + 1, hard_delete=hard) for m in models
                )
            torch.testing.assert_close(found.logits, expected.logits, atol=2e-4, rtol=1e-4)


def test_bfloat16_is_near():
    model, fast = pair("packed", use_softmax1=True)
    ids, mask = ragged([20, 13, 1], 20, 3)
    labels = torch.randint(3, 259, (3, 5))
    with torch.no_grad():
        oracle = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
        with torch.autocast("cpu", torch.bfloat16):
            near = fast(ids, attention_mask=mask, labels=labels, hard_delete=True)
    assert torch.equal(near.kept_lengths, oracle.kept_lengths)
    assert (near.logits.float() - oracle.logits).abs().max() < 0.1 * oracle.logits.abs().max()


@pytest.mark.parametrize("fast", ["sdpa", "packed"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same(fast: str, beams: int):
    model, other = pair(fast, use_softmax1=True)
    ids, mask = ragged([20, 13, 4], 22, 5)
    for hard in (True, False):
        settings_ = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "hard_delete": hard}
        expected = model.generate(ids, attention_mask=mask, **settings_)
        assert torch.equal(other.generate(ids, attention_mask=mask, **settings_), expected)


def test_hidden_states_are_in_their_places_when_asked_for():
    model, other = pair("packed")
    ids, mask = ragged([20, 13], 20, 5)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, labels=ids[:, :4], output_hidden_states=True)
        out = other(ids, attention_mask=mask, labels=ids[:, :4], output_hidden_states=True)
    for state, wanted in zip(out.encoder_hidden_states, expected.encoder_hidden_states, strict=True):
        torch.testing.assert_close(state, wanted, atol=1e-4, rtol=1e-4)
