"""What every variant of the paper must be able to do, and what it refuses: rows, statistics, generation.

Precision, checkpointing and compilation are in test_variants_machine.py, initialisation and saving in
test_variants_saved.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import (
    GATES,
    KINDS,
    LABELS,
    LEARNED_GATES,
    TAUGHT,
    VARIANTS,
    batch_of,
    labels_for,
    random_rows,
    segment_ends,
    shared,
    tiny,
)

CLOSE = {"atol": 1e-4, "rtol": 1e-4}

SETTINGS = st.tuples(
    st.sampled_from([0, 1, 2]).map(lambda layer: ("delete_gate_layer", layer)),
    st.booleans().map(lambda one: ("use_softmax1", one)),
    st.booleans().map(lambda absolute: ("has_absolute_position_embeddings", absolute)),
)
# Separators are frequent, so that the fixed gate finds words of every length, the empty one included.
BYTES = st.integers(3, 258) | st.sampled_from([byte + 3 for byte in b" .\n"] + [1])
ROWS = st.lists(st.lists(BYTES, min_size=1, max_size=20), min_size=1, max_size=4)


def run(model: Any, rows: list[list[int]], extra: int = 0, **arguments: Any) -> Any:
    ids, mask = batch_of(rows, extra)
    with torch.no_grad():
        return model(ids, attention_mask=mask, labels=labels_for(ids), **arguments)


# --- rows
# -----------------------------------------------------------------------------------------------------------


def check_rows_are_independent(model: Any, rows: list[list[int]], extra: int, **arguments: Any) -> None:
    together = run(model, rows, extra, **arguments)
    for place, row in enumerate(rows):
        alone = run(model, [row], **arguments)
        torch.testing.assert_close(together.logits[place], alone.logits[0], **CLOSE)
        assert together.kept_lengths[place] == alone.kept_lengths[0]
        if alone.keep_mask is not None:
            assert torch.equal(together.keep_mask[place, : len(row)], alone.keep_mask[0])
            assert not together.keep_mask[place, len(row) :].any()


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(fields=SETTINGS, rows=ROWS, extra=st.integers(0, 4), hard=st.booleans())
def test_a_row_depends_neither_on_its_batch_nor_on_padding(variant, fields, rows, extra, hard):
    check_rows_are_independent(shared(variant, fields), rows, extra, hard_delete=hard)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("random", {"random_deletion_probability": 1.0}),
        ("fixed", {"fixed_deletion_amount": 1.0}),
        ("mrt5", {"gate_bias_init": -40.0, "awake": False}),
        ("log_sigmoid", {"gate_bias_init": -40.0, "awake": False}),
        ("bp_gumbel", {"awake": False}),  # a fresh predictor ends no segment before the row does
    ],
)
def test_rows_that_lose_everything(variant, fields, hard):
    model = tiny(variant, **fields)
    rows = random_rows([1, 7, 20, 2])
    check_rows_are_independent(model, rows, 3, hard_delete=hard)
    out = run(model, rows, hard_delete=hard)
    if variant != "random":  # whose rate is drawn around the configured one
        assert out.kept_lengths.tolist() == [1] * 4
    assert out.kept_lengths.min() == 1
    assert out.logits.isfinite().all()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_of_equal_bytes_the_first_stays(layer):
    """A row that loses everything keeps its best byte, and rounding must not choose among equal ones."""
    model = shared("log_sigmoid", (("delete_gate_layer", layer),))
    for pair in ((3, 11), (100, 200), (30, 50), (5, 6), (77, 88)):
        for length in (2, 3, 6):
            check_rows_are_independent(model, [[byte] * length for byte in pair], 0, hard_delete=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_without_any_byte_harms_no_other(variant):
    rows = random_rows([9, 4])
    for one in (False, True):
        model = shared(variant, (("use_softmax1", one),))
        for hard in (False, True):
            ids, mask = batch_of([*rows, [0]])
            with torch.no_grad():
                out = model(ids, attention_mask=mask, labels=labels_for(ids), hard_delete=hard)
            torch.testing.assert_close(out.logits[:2], run(model, rows, hard_delete=hard).logits, **CLOSE)
            assert out.logits.isfinite().all()


@pytest.mark.parametrize("variant", ["random", "fixed", "bp_gumbel", "cp_3"])
def test_the_references_laws_do_mix_rows(variant):
    """Also the proof that the tests above can fail."""
    model = tiny(variant, shortening_per="batch")
    text = [[*(byte + 3 for byte in b"What of it, then?"), 1], [*(byte + 3 for byte in b"Well"), 1]]
    with pytest.raises(AssertionError):
        check_rows_are_independent(model, text, 2, hard_delete=True)


# --- what is gone
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=8, deadline=None)
@given(fields=SETTINGS, rows=ROWS, extra=st.integers(0, 4))
def test_statistics_mean_the_same_for_all(variant, fields, rows, extra):
    model = shared(variant, fields)
    lengths = torch.tensor([len(row) for row in rows])
    soft, hard = (run(model, rows, extra, hard_delete=flag) for flag in (False, True))
    real = batch_of(rows, extra)[1].bool()
    for out in (soft, hard):
        if variant == "none":
            assert out.keep_mask is None
            assert torch.equal(out.kept_lengths, lengths)
            continue
        assert out.keep_mask.shape == real.shape
        assert out.keep_mask.dtype == torch.bool
        assert torch.equal(out.keep_mask & real, out.keep_mask)
        assert torch.equal(out.kept_lengths, out.keep_mask.sum(dim=1))
        assert out.kept_lengths.min() >= 1
    assert torch.equal(hard.encoder_attention_mask.sum(dim=1), hard.kept_lengths)
    assert hard.encoder_last_hidden_state.shape[1] == (
        real.shape[1] if variant == "none" else hard.encoder_attention_mask.shape[1]
    )
    if variant != "none":
        assert torch.equal(soft.keep_mask, hard.keep_mask), "soft says what hard would keep"
    if variant in GATES:
        assert torch.equal(soft.encoder_attention_mask.sum(dim=1), lengths), "soft removes nothing"
        gone = (soft.delete_gate_output < model.config.deletion_threshold) & real
        spared = (soft.keep_mask & gone).sum(dim=1)
        assert torch.equal(gone, (~soft.keep_mask & real) | (soft.keep_mask & gone))
        assert spared.max() <= 1, "a row that would lose everything keeps one"
    else:
        assert (hard.delete_gate_output, hard.delete_gate_logits) == (None, None)
        torch.testing.assert_close(soft.logits, hard.logits)
    assert (hard.boundary_logits is not None) == variant.startswith("bp")


def test_what_each_keeps():
    ids = [byte + 3 for byte in b"abcdefgh, ij"] + [1]
    kept = {}
    for variant in ("fixed", "cp_2", "cp_3", "cp_4", "source_removed"):
        out = run(shared(variant), [ids], 2)
        kept[variant] = out.keep_mask[0].nonzero()[:, 0].tolist()
    assert kept == {
        "fixed": [0, 1, 2, 3, 4, 8, 9, 10, 12],
        "cp_2": [0, 2, 4, 6, 8, 10, 12],
        "cp_3": [0, 3, 6, 9, 12],
        "cp_4": [0, 4, 8, 12],
        "source_removed": [12],
    }


@pytest.mark.parametrize("variant", ["bp_gumbel", *TAUGHT])
def test_a_segment_starts_after_each_end(variant):
    rows = random_rows([15, 6])
    out = run(shared(variant), rows, 2)
    for place, row in enumerate(rows):
        ends = (out.boundary_logits[place, : len(row)] > 0).tolist()
        ends[-1] = True
        assert out.keep_mask[place, : len(row)].tolist() == [True, *ends[:-1]]
    assert 1 < out.kept_lengths[0] < 15


@pytest.mark.parametrize("variant", TAUGHT)
def test_in_training_segments_end_where_the_labels_say(variant):
    model = tiny(variant).train()
    ids, mask = batch_of(random_rows([11, 4]), 2)
    out = model(ids, attention_mask=mask, labels=labels_for(ids), segment_ends=segment_ends(ids))
    assert out.keep_mask[0].nonzero()[:, 0].tolist() == [0, 3, 6, 9]
    assert out.keep_mask[1].nonzero()[:, 0].tolist() == [0, 3]
    logits = torch.cat([out.boundary_logits[0, :11], out.boundary_logits[1, :4]])
    truth = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1]).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(out.auxiliary_loss, expected)
    out.auxiliary_loss.backward()
    predictor = model.encoder.block[1].boundary_predictor.boundary_predictor
    assert all(parameter.grad.abs().max() > 0 for parameter in predictor.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_that_are_nan_shorten_like_others(variant):
    """So that a training whose weights were lost ends with a message, not with an error of shapes."""
    model = tiny(variant).train()
    model.encoder.block[0].layer[0].layer_norm.weight.data.fill_(float("nan"))
    ids, mask = batch_of(random_rows([6, 5, 4]))  # an even number of rows, and an odd one
    for rows in (ids, ids[:2]):
        taught = {"segment_ends": segment_ends(rows)} if variant in TAUGHT else {}
        out = model(rows, attention_mask=mask[: len(rows)], labels=labels_for(rows), **taught)
        assert out.loss.isnan()
        assert ((out.kept_lengths >= 1) & (out.kept_lengths <= 6)).all()


# --- generation
# -----------------------------------------------------------------------------------------------------


# Without a gate soft and hard are one: test_statistics_mean_the_same_for_all.
MODES = [
    pytest.param(variant, hard, id=f"{variant}-{'hard' if hard else 'soft'}")
    for variant in KINDS
    for hard in ((False, True) if variant in GATES else (True,))
]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("variant", "hard"), MODES)
def test_generation_of_a_batch_is_that_of_each_row(variant, beams, hard):
    model = shared(variant, (("use_softmax1", True),))
    rows = random_rows([12, 1, 5], seed=2)
    how = {"num_beams": beams, "max_new_tokens": 5, "do_sample": False, "hard_delete": hard}
    ids, mask = batch_of(rows, 2)
    together = model.generate(ids, attention_mask=mask, **how)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **how)
    assert torch.equal(together, uncached)
    for place, row in enumerate(rows):
        alone = model.generate(torch.tensor([row]), **how)[0].tolist()
        assert together[place, : len(alone)].tolist() == alone


@pytest.mark.parametrize("variant", KINDS)
def test_the_first_generated_step_is_the_forward_pass(variant):
    model = shared(variant, (("has_absolute_position_embeddings", True),))
    ids, mask = batch_of(random_rows([12, 5]), 1)
    how = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    for hard in (False, True):
        out = model.generate(
            ids,
            attention_mask=mask,
            hard_delete=hard,
            return_dict_in_generate=True,
            output_logits=True,
            **how,
        )
        forward = model(ids, attention_mask=mask, decoder_input_ids=out.sequences[:, :2], hard_delete=hard)
        torch.testing.assert_close(torch.stack(out.logits, dim=1), forward.logits, **CLOSE)


def test_beams_also_while_training():
    """Callbacks that generate during training meet an encoder output with a loss in it."""
    model = tiny("bp_gumbel").train()
    ids, mask = batch_of(random_rows([9, 5]))
    assert model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=3).shape[0] == 2


# --- embeddings in place of ids
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("random", "fixed")])
def test_embeddings_in_place_of_ids(variant):
    model = shared(variant)
    ids, mask = batch_of(random_rows([9, 5]), 1)
    for hard in (False, True):
        expected = run(model, random_rows([9, 5]), 1, hard_delete=hard)
        with torch.no_grad():
            found = model(
                inputs_embeds=model.shared(ids),
                attention_mask=mask,
                labels=labels_for(ids),
                hard_delete=hard,
            )
        torch.testing.assert_close(found.logits, expected.logits)
        assert torch.equal(found.kept_lengths, expected.kept_lengths)


def test_embeddings_are_refused_where_ids_decide():
    ids, mask = batch_of(random_rows([9, 5]))
    for variant, words in (
        ("fixed", "searches input_ids for words"),
        ("random", "derives its random numbers from input_ids"),
    ):
        model = tiny(variant)
        given = {"inputs_embeds": model.shared(ids), "attention_mask": mask, "labels": labels_for(ids)}
        with pytest.raises(ValueError, match=words):
            model(**given)
        if variant == "random":  # in training draws need not repeat themselves
            assert model.train()(**given).loss.isfinite()


# --- thresholds and modes that are not there
# ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_threshold_is_refused_where_there_is_no_gate(variant):
    model, rows = shared(variant), random_rows([9, 5])
    for hard in (False, True):
        if variant in GATES:
            run(model, rows, hard_delete=hard, deletion_threshold=-5.0)
            continue
        with pytest.raises(ValueError, match="has no deletion threshold; leave out deletion_threshold"):
            run(model, rows, hard_delete=hard, deletion_threshold=-5.0)


@pytest.mark.parametrize("variant", TAUGHT)
def test_labels_are_asked_for_in_training_only(variant):
    model, ids = tiny(variant), torch.tensor(random_rows([9]))
    assert model(ids, labels=LABELS).auxiliary_loss is None
    with pytest.raises(ValueError, match="learns from segment_ends: pass them in training"):
        model.train()(ids, labels=LABELS)


@pytest.mark.parametrize("variant", LEARNED_GATES)
def test_another_threshold_keeps_other_bytes(variant):
    model, rows = shared(variant), random_rows([20])
    middle = model.config.deletion_threshold
    few, some, many = (
        int(run(model, rows, hard_delete=True, deletion_threshold=middle * factor).kept_lengths)
        for factor in (0.05, 1.0, 1.9)
    )
    assert few <= some <= many
    assert few < many
