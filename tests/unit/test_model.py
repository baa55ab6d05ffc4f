"""The model's rules: initialization, the untied head, what deletion may and may not change, generation."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from conftest import labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models import mrt5 as mrt5_module
from mrt5cli.models.checkpoint import initialize_depth_scaled
from mrt5cli.models.deletion import TIE, survivors
from mrt5cli.models.recomputation import recompute
from mrt5cli.models.score_loss import ScorePenalty

SIZES = {"d_model": 32, "d_ff": 48, "d_kv": 10, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}


def tiny(**fields) -> MrT5ForConditionalGeneration:
    torch.manual_seed(fields.pop("seed", 0))
    config = MrT5Config(**{**SIZES, "delete_gate_layer": 1, "dropout_rate": 0.0, **fields})
    return MrT5ForConditionalGeneration(config).eval()


def spread_gate(model: MrT5ForConditionalGeneration) -> None:
    """Make the gate delete about half of the bytes, with values at both ends of its range."""
    gate = model.encoder.block[model.config.delete_gate_layer].delete_gate
    gate.feed_forward.weight.data.mul_(20)
    gate.feed_forward.bias.data.zero_()


def batch(rows: list[int], seed: int = 0, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with rows of these lengths, right-padded, and their attention mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (len(rows), length or max(rows)), generator=generator)
    mask = (torch.arange(ids.shape[1])[None] < torch.tensor(rows)[:, None]).long()
    return ids * mask, mask


LABELS = torch.randint(3, 259, (1, 7), generator=torch.Generator().manual_seed(5))


# --- initialisation and the head
# ------------------------------------------------------------------------------------


def check_t5_initialisation(model: MrT5ForConditionalGeneration) -> None:
    width, heads, inner = model.config.d_model, model.config.num_heads, model.config.d_kv
    expected = {
        "SelfAttention.q.weight": (width * inner) ** -0.5,
        "SelfAttention.k.weight": width**-0.5,
        "SelfAttention.v.weight": width**-0.5,
        "SelfAttention.o.weight": (heads * inner) ** -0.5,
        "DenseReluDense.wi_0.weight": width**-0.5,
        "DenseReluDense.wo.weight": model.config.d_ff**-0.5,
    }
    for stack in (model.encoder, model.decoder):
        for name, parameter in stack.named_parameters():
            for ending, std in expected.items():
                if name.endswith(ending):
                    assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def check_gate_initialisation(model: MrT5ForConditionalGeneration, bias: float) -> None:
    gate = model.encoder.block[model.config.delete_gate_layer].delete_gate
    bound = math.sqrt(6 / (model.config.d_model + 1))
    assert gate.feed_forward.weight.abs().max().item() <= bound
    assert gate.feed_forward.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert gate.feed_forward.bias.item() == bias
    assert gate.layer_norm.weight.eq(1).all()


WIDE = {"d_model": 128, "d_ff": 256, "d_kv": 32}


def test_fresh_model_is_initialised_like_t5():
    model = tiny(**WIDE, gate_bias_init=-1.0)
    check_t5_initialisation(model)
    check_gate_initialisation(model, bias=-1.0)
    assert model.lm_head.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert model.shared.weight.std().item() == pytest.approx(1.0, rel=0.05)


def test_learned_positions_are_initialised():
    model = tiny(**WIDE, has_absolute_position_embeddings=True, max_position_embeddings=64)
    for stack in (model.encoder, model.decoder):
        assert stack.absolute_pos_embed.weight.std().item() == pytest.approx(1.0, rel=0.05)
        assert not any("relative_attention_bias" in name for name, _ in stack.named_parameters())


def test_only_the_gate_is_new_when_starting_from_a_plain_byt5_directory(tmp_path):
    torch.manual_seed(0)
    plain = T5ForConditionalGeneration(
        T5Config(
            vocab_size=384,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            tie_word_embeddings=False,
            **WIDE,
        )
    ).eval()
    plain.lm_head.weight = torch.nn.Parameter(torch.randn_like(plain.lm_head.weight))
    plain.save_pretrained(tmp_path)

    model = load(tmp_path, deletion_type="scaled_sigmoid", delete_gate_layer=2)
    check_t5_initialisation(model)
    check_gate_initialisation(model, bias=1.0)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert set(ours) - set(theirs) == {
        f"encoder.block.2.delete_gate.{name}"
        for name in ("layer_norm.weight", "feed_forward.weight", "feed_forward.bias")
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_depth_scaled_initialisation_is_the_references():
    model = tiny(**WIDE, num_layers=4)
    initialize_depth_scaled(model)
    block = model.encoder.block[1]
    assert block.layer[0].SelfAttention.q.weight.std().item() == pytest.approx((128 * 4) ** -0.5, rel=0.05)
    assert block.layer[1].DenseReluDense.wo.weight.std().item() == pytest.approx((256 * 4) ** -0.5, rel=0.05)
    first = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert first.std().item() == pytest.approx((128 * 4) ** -0.5, rel=0.2)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            depth = 4 if name.startswith("encoder") else 2
            assert parameter.eq(depth**-0.5).all(), name
    assert model.shared.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert block.delete_gate.feed_forward.bias.item() == 1.0


def test_the_head_is_its_own_in_memory_on_disk_and_for_older_readers(tmp_path):
    model = tiny()
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()
    model.tie_weights()
    assert not torch.equal(model.lm_head.weight, model.shared.weight)

    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["tie_word_embeddings"] is False
    assert "scale_decoder_outputs" not in saved

    twin = tiny(seed=1)
    twin.load_state_dict(model.state_dict())
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for other in (load(tmp_path), again, twin):
        assert torch.equal(other.lm_head.weight, model.lm_head.weight)
        assert torch.equal(other.shared.weight, model.shared.weight)
    assert AutoConfig.from_pretrained(tmp_path).delete_gate_layer == 1


def test_plain_model_equals_transformers_t5(tmp_path):
    ids, mask = batch([9, 5])
    model = tiny(deletion_type="none")
    config = T5Config(
        vocab_size=384,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        **SIZES,
    )
    plain = T5ForConditionalGeneration(config).eval()
    plain.lm_head.weight = torch.nn.Parameter(torch.empty_like(plain.lm_head.weight))
    plain.load_state_dict(model.state_dict())
    labels = LABELS.expand(2, -1)
    expected = plain(input_ids=ids, attention_mask=mask, labels=labels.contiguous())
    found = model(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-5, rtol=1e-4)
    assert found.kept_lengths.tolist() == [9, 5]
    assert found.delete_gate_output is None


# --- deletion
# -------------------------------------------------------------------------------------------------------

VARIANTS = st.fixed_dictionaries(
    {
        "delete_gate_layer": st.integers(0, 2),
        "deletion_type": st.sampled_from(["scaled_sigmoid", "log_sigmoid", "random"]),
        "use_softmax1": st.booleans(),
        "has_absolute_position_embeddings": st.booleans(),
    }
)
ROWS = st.lists(st.integers(1, 13), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(fields=VARIANTS, rows=ROWS, hard=st.booleans(), extra=st.integers(0, 5), seed=st.integers(0, 1000))
def test_a_row_depends_neither_on_its_batch_nor_on_padding(fields, rows, hard, extra, seed):
    model = tiny(**fields, max_position_embeddings=32)
    if fields["deletion_type"] != "random":
        spread_gate(model)
    ids, mask = batch(rows, seed, length=max(rows) + extra)
    labels = LABELS.expand(len(rows), -1)
    with torch.no_grad():
        together = model(ids, attention_mask=mask, labels=labels, hard_delete=hard)
        for row, length in enumerate(rows):
            alone = model(ids[row : row + 1, :length], labels=LABELS, hard_delete=hard)
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=2e-5, rtol=1e-4)
            assert together.kept_lengths[row] == alone.kept_lengths[0]
            assert torch.equal(together.keep_mask[row, :length], alone.keep_mask[0])


@settings(max_examples=40, deadline=None)
@given(fields=VARIANTS, rows=ROWS, seed=st.integers(0, 1000))
def test_hard_deletion_equals_masking_the_deleted_bytes(fields, rows, seed):
    """The oracle: full length, deleted keys hidden by a gate of -1e9, survivors ungated."""
    model = tiny(**fields, max_position_embeddings=32)
    if fields["deletion_type"] != "random":
        spread_gate(model)
    ids, mask = batch(rows, seed)
    labels = LABELS.expand(len(rows), -1)
    with torch.no_grad():
        hard = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
        oracle = copy.deepcopy(model)
        gate = oracle.encoder.block[model.config.delete_gate_layer].delete_gate
        forced = torch.zeros(ids.shape).masked_fill(~hard.keep_mask, -1e9)
        gate.score = lambda states, padding, input_ids: (forced, None)
        masked = oracle(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(hard.logits, masked.logits, atol=5e-5, rtol=1e-4)
    for row in range(len(rows)):
        kept = masked.encoder_last_hidden_state[row, hard.keep_mask[row]]
        found = hard.encoder_last_hidden_state[row, : hard.kept_lengths[row]]
        torch.testing.assert_close(found, kept, atol=5e-5, rtol=1e-4)


def test_a_row_that_loses_everything_keeps_its_best_byte():
    model = tiny()
    spread_gate(model)
    ids, mask = batch([9, 6])
    with torch.no_grad():
        out = model(
            ids, attention_mask=mask, labels=LABELS.expand(2, -1), hard_delete=True, deletion_threshold=1.0
        )
    assert out.kept_lengths.tolist() == [1, 1]
    gate = out.delete_gate_output.masked_fill(mask == 0, float("-inf"))
    best = gate.max(dim=1, keepdim=True).values
    ties = gate >= best - TIE * best.abs().clamp(min=1)
    assert torch.equal(out.keep_mask.int().argmax(dim=1), ties.int().argmax(dim=1))
    assert out.logits.isfinite().all()


def test_the_first_of_the_best_bytes_stays_whatever_rounding_says():
    for noise in (0.0, 1e-5, -1e-5):
        gate = torch.tensor([[-9.0, -4.0 + noise, -4.0, -4.0 - noise, -30.0], [-30.0] * 5])
        real = torch.ones_like(gate, dtype=torch.bool)
        real[1, 0] = False
        kept = survivors(torch.zeros_like(real), gate, real, "best")
        assert kept.nonzero().tolist() == [[0, 1], [1, 1]]
    clear = torch.tensor([[-4.01, -4.0]])
    assert survivors(clear > 0, clear, clear < 0, "best").tolist() == [[False, True]]


def test_an_all_padding_row_breaks_nothing():
    ids, mask = batch([9, 6])
    ids[1], mask[1] = 0, 0
    for fields in ({}, {"use_softmax1": True}):
        out = tiny(**fields)(ids, attention_mask=mask, labels=LABELS.expand(2, -1), hard_delete=True)
        assert out.logits.isfinite().all()


def test_the_run_time_threshold_only_moves_hard_deletion():
    model = tiny()
    spread_gate(model)
    ids, _ = batch([12])
    with torch.no_grad():
        loose = model(ids, labels=LABELS, hard_delete=True, deletion_threshold=-29.0)
        strict = model(ids, labels=LABELS, hard_delete=True, deletion_threshold=-1.0)
        soft = [model(ids, labels=LABELS, deletion_threshold=limit).logits for limit in (-29.0, -1.0)]
    assert loose.kept_lengths > strict.kept_lengths
    assert torch.equal(*soft)


def test_embeddings_in_place_of_ids():
    model = tiny()
    spread_gate(model)
    ids, mask = batch([9, 5])
    labels = LABELS.expand(2, -1)
    for hard in (False, True):
        by_ids = model(ids, attention_mask=mask, labels=labels, hard_delete=hard)
        embeds = model.shared(ids)
        found = model(inputs_embeds=embeds, attention_mask=mask, labels=labels, hard_delete=hard)
        torch.testing.assert_close(found.logits, by_ids.logits)


def test_gate_noise_only_in_training_and_without_bias():
    ids, _ = batch([200])
    quiet = tiny()
    means = {}
    for law in ("difference", "single"):
        model = tiny(use_gumbel_noise=True, gumbel_noise_law=law)
        assert torch.equal(model(ids, labels=LABELS).logits, quiet(ids, labels=LABELS).logits)
        model.train()
        noise = torch.stack([model(ids, labels=LABELS).delete_gate_logits for _ in range(20)])
        means[law] = (noise - quiet(ids, labels=LABELS).delete_gate_logits).mean().item()
    assert abs(means["difference"]) < 0.15
    assert means["single"] == pytest.approx(0.577, abs=0.1)


# --- random deletion
# ------------------------------------------------------------------------------------------------


def test_random_deletion_hits_its_rate_and_repeats_itself_in_evaluation():
    model = tiny(deletion_type="random", random_deletion_probability=0.4)
    ids, mask = batch([100] * 60 + [50] * 60)
    labels = LABELS.expand(120, -1)
    with torch.no_grad():
        first = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
        second = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
        model.train()
        third = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
    assert torch.equal(first.keep_mask, second.keep_mask)
    assert not torch.equal(first.keep_mask, third.keep_mask)
    for out in (first, third):
        rates = 1 - out.kept_lengths / mask.sum(dim=1)
        assert rates.mean().item() == pytest.approx(0.4, abs=0.02)
        assert rates.std().item() == pytest.approx(0.05, abs=0.02)
        position_rates = 1 - out.keep_mask[:60].float().mean(dim=0)
        assert position_rates.max() < 0.75
        assert position_rates.min() > 0.1


def test_random_deletion_over_the_batch_is_the_references_law():
    model = tiny(deletion_type="random", random_deletion_probability=0.4, shortening_per="batch")
    ids, mask = batch([100] * 60 + [50] * 60)
    out = model(ids, attention_mask=mask, labels=LABELS.expand(120, -1))
    deleted = out.delete_gate_output.eq(-30) & mask.bool()
    assert deleted.sum().item() / mask.sum().item() == pytest.approx(0.4, abs=0.17)
    assert (
        deleted.sum(dim=1)[:60].float() / 100
    ).std() > 0.03  # rows differ: positions are drawn over all of them


# --- generation, precision, memory
# ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}, {}])
def test_generation_in_a_padded_batch_equals_generation_alone(how):
    model = tiny(use_softmax1=True)
    spread_gate(model)
    ids, mask = batch([12, 7, 3])
    for hard in (False, True):
        if how.get("do_sample"):
            out = model.generate(ids, attention_mask=mask, hard_delete=hard, max_new_tokens=6, **how)
            assert out.shape[0] == 3
            continue
        together = model.generate(ids, attention_mask=mask, hard_delete=hard, max_new_tokens=6, **how)
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            alone = model.generate(ids[row : row + 1, :length], hard_delete=hard, max_new_tokens=6, **how)
            stop = alone.shape[1]
            assert together[row, :stop].tolist() == alone[0].tolist()


@pytest.mark.parametrize("depths", [(2, 4), (4, 2)], ids=["deeper", "shallower"])
@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"do_sample": True}, {"cache_implementation": "static"}, {}], ids=str
)
def test_generation_with_a_decoder_of_another_depth(how, depths):
    encoder, decoder = depths
    model = tiny(num_layers=encoder, num_decoder_layers=decoder)
    ids, mask = batch([9, 6])
    given = {"attention_mask": mask, "hard_delete": True, "max_new_tokens": 6, **how}
    torch.manual_seed(3)
    cached = model.generate(ids, **given)
    torch.manual_seed(3)
    uncached = model.generate(ids, **{**given, "cache_implementation": None}, use_cache=False)
    assert torch.equal(cached, uncached)
    assert model.config.num_layers == encoder


def test_generate_refuses_a_misspelt_argument():
    with pytest.raises(ValueError, match="hard_deletion"):
        tiny().generate(batch([5])[0], hard_deletion=True, max_new_tokens=2)


def test_first_generated_step_is_the_forward_pass():
    model = tiny()
    spread_gate(model)
    ids, mask = batch([12, 7])
    out = model.generate(
        ids,
        attention_mask=mask,
        hard_delete=True,
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    start = torch.zeros(2, 1, dtype=torch.long)
    forward = model(ids, attention_mask=mask, decoder_input_ids=start, hard_delete=True)
    torch.testing.assert_close(out.logits[0], forward.logits[:, 0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_attentions_of_generation_are_those_of_the_forward_pass(beams):
    model = tiny()
    spread_gate(model)
    ids, mask = batch([12, 7])
    asked = {"attention_mask": mask, "hard_delete": True, "output_attentions": True}
    out = model.generate(ids, max_new_tokens=2, num_beams=beams, return_dict_in_generate=True, **asked)
    start = torch.zeros(2, 1, dtype=torch.long)
    forward = model(ids, decoder_input_ids=start, **asked)
    for name in ("encoder_attentions", "cross_attentions"):
        found = getattr(out, name)
        for one, other in zip(found[0] if name[0] == "c" else found, getattr(forward, name), strict=True):
            torch.testing.assert_close(one[:: beams if name[0] == "c" else 1], other)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("softmax1", [False, True])
def test_bfloat16_weights_and_autocast(hard, softmax1, tmp_path):
    model = tiny(use_softmax1=softmax1)
    spread_gate(model)
    ids, mask = batch([12, 7])
    labels = LABELS.expand(2, -1)
    exact = model(ids, attention_mask=mask, labels=labels, hard_delete=hard)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(ids, attention_mask=mask, labels=labels, hard_delete=hard)
        autocast.loss.backward()
    model.save_pretrained(tmp_path)
    half = load(tmp_path, dtype="bfloat16")(ids, attention_mask=mask, labels=labels, hard_delete=hard)
    assert autocast.delete_gate_output.dtype == half.delete_gate_output.dtype == torch.float32
    for found in (autocast, half):
        assert found.loss.item() == pytest.approx(exact.loss.item(), abs=0.15)


@pytest.mark.parametrize("hard", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(hard):
    ids, mask = batch([12, 7])
    grads = []
    for checkpointing in (False, True):
        model = tiny(use_softmax1=True).train()
        spread_gate(model)
        if checkpointing:
            # The name since transformers 5.20 or so, and the one before.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        out = model(
            ids, attention_mask=mask, labels=LABELS.expand(2, -1), hard_delete=hard, output_score_loss=True
        )
        (out.loss + 0.01 * out.delete_gate_output.mean() + out.score_loss).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4, msg=labelled(name))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_keeps_less_and_changes_nothing(dropout):
    ids, mask = batch([40, 33])
    kept, grads = {}, {}
    for what in ("none", "selective", "blocks"):
        model = tiny(use_softmax1=True, dropout_rate=dropout).train()
        recompute(model, what)
        torch.manual_seed(4)
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(ids, attention_mask=mask, labels=LABELS.expand(2, -1), output_score_loss=True)
            total = out.loss + 0.01 * out.delete_gate_output.mean() + out.score_loss
        total.backward()
        kept[what] = sum(sizes.values())
        grads[what] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert kept["blocks"] < kept["none"]
    for what in ("selective", "blocks"):
        assert grads[what].keys() == grads["none"].keys()
        for name, grad in grads["none"].items():
            torch.testing.assert_close(
                grads[what][name], grad, atol=1e-6, rtol=1e-4, msg=labelled(f"{what} {name}")
            )


def test_attention_dropout_only_in_training():
    model = tiny(dropout_rate=0.5)
    ids, _ = batch([9])
    assert torch.equal(model(ids, labels=LABELS).logits, model(ids, labels=LABELS).logits)
    model.train()
    assert not torch.equal(model(ids, labels=LABELS).logits, model(ids, labels=LABELS).logits)


# --- refusals
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"delete_gate_layer": 3}, "delete_gate_layer 3"),
        ({"delete_gate_layer": -1}, "delete_gate_layer -1"),
        ({"sigmoid_mask_scale": 1.0}, "sigmoid_mask_scale"),
        ({"deletion_type": "sometimes"}, "deletion_type"),
    ],
)
def test_impossible_configurations_are_refused(fields, words):
    with pytest.raises(Exception, match=words):
        MrT5Config(**{**SIZES, "delete_gate_layer": 1, **fields})


def test_threshold_defaults_to_the_middle_of_the_gate():
    assert MrT5Config(**SIZES, delete_gate_layer=1, sigmoid_mask_scale=-10.0).deletion_threshold == -5.0
    log_gate = MrT5Config(**SIZES, delete_gate_layer=1, deletion_type="log_sigmoid")
    assert log_gate.deletion_threshold == pytest.approx(math.log(0.5))


def test_too_many_learned_positions_are_refused_in_words():
    model = tiny(has_absolute_position_embeddings=True, max_position_embeddings=8)
    with pytest.raises(ValueError, match="9 positions"):
        model(batch([9])[0], labels=LABELS)


def test_unknown_attention_is_refused_in_words():
    with pytest.raises(ValueError, match="flash_attention_2"):
        tiny().set_attn_implementation("flash_attention_2")


# --- umT5: a relative bias in every layer
# ------------------------------------------------------------------------------------


def test_a_bias_in_every_layer_is_umt5():
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    torch.manual_seed(0)
    umt5 = UMT5ForConditionalGeneration(UMT5Config(vocab_size=384, dropout_rate=0.0, **SIZES)).eval()
    for parameter in umt5.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = tiny(deletion_type="none", relative_bias_per_layer=True)
    assert not any(model.load_state_dict(umt5.state_dict(), strict=False))
    ids, mask = batch([19, 12])
    labels = LABELS.expand(2, -1)
    with torch.no_grad():
        theirs = umt5(ids, attention_mask=mask, labels=labels.contiguous()).logits
        ours = model(ids, attention_mask=mask, labels=labels).logits
    # transformers 5 ties the head of what it builds from scratch, and scales the decoder's output for it.
    torch.testing.assert_close(ours, theirs * SIZES["d_model"] ** 0.5, atol=2e-5, rtol=1e-4)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, umt5.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False))


def test_own_biases_follow_the_survivors():
    """Hard deletion equals soft deletion that hides the same bytes, in every layer's own bias."""
    model = tiny(relative_bias_per_layer=True, sigmoid_mask_scale=-1e9, deletion_threshold=-5e8, seed=3)
    spread_gate(model)
    ids, mask = batch([24, 15])
    labels = LABELS.expand(2, -1)
    gate = model.encoder.block[1].delete_gate
    gate.feed_forward.weight.data.mul_(1e4)  # every gate fully open or shut
    with torch.no_grad():
        soft = model(ids, attention_mask=mask, labels=labels)
        hard = model(ids, attention_mask=mask, labels=labels, hard_delete=True)
    assert 0 < int(hard.kept_lengths.sum()) < int(mask.sum())
    torch.testing.assert_close(hard.logits, soft.logits, atol=2e-5, rtol=1e-4)


# --- precision, losses
# ------------------------------------------------------------------------------------


def test_float16_is_refused_in_a_forward_pass():
    model, (ids, _) = tiny(), batch([9])
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="overflow in float16"):
        model(ids, labels=LABELS)
    model.half()
    with pytest.raises(ValueError, match=r"overflow in float16.*use torch.bfloat16"):
        model.generate(ids, max_new_tokens=2)


def test_the_loss_of_a_part_of_a_step_is_divided_by_the_targets_of_all_of_it():
    model, (ids, _) = tiny(), batch([9, 6, 4, 8])
    labels = LABELS.repeat(4, 1)
    labels[1, 2:] = labels[2, 5:] = -100
    whole = model(ids, labels=labels).loss
    count = (labels != -100).sum()
    parts = [model(ids[n : n + 1], labels=labels[n : n + 1], num_items_in_batch=count).loss for n in range(4)]
    torch.testing.assert_close(sum(parts), whole)


def scoring(attention: str) -> MrT5ForConditionalGeneration:
    """A model with scores above the ceiling, which a fresh one has not."""
    model = tiny(use_softmax1=True)
    spread_gate(model)
    for name, parameter in model.named_parameters():
        if name.endswith("Attention.q.weight"):
            parameter.data.mul_(20)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@settings(max_examples=10, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=2, max_size=4),
    seed=st.integers(0, 9),
)
def test_the_score_loss_counts_each_rows_own_pairs(hard, attention, rows, seed):
    """In a padded batch it is what the rows give alone, each by the number of its pairs; its gradient too."""
    model = scoring(attention)
    ids, mask = batch([source for source, _ in rows], seed, length=11)
    labels = LABELS.repeat(len(rows), 1)
    for place, (_, targets) in enumerate(rows):
        labels[place, targets:] = -100
    penalties: list[ScorePenalty] = []

    class Recorded(ScorePenalty):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            penalties.append(self)

    def forward(source, targets, attended=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mrt5_module, "ScorePenalty", Recorded)
            return model(
                source, attention_mask=attended, labels=targets, hard_delete=hard, output_score_loss=True
            )

    weights = [parameter for name, parameter in model.named_parameters() if "Attention.k" in name]
    together = forward(ids, labels, mask).score_loss
    found = torch.autograd.grad(together, weights, allow_unused=True)

    sums, pairs = torch.zeros(4), torch.zeros(4)
    for place, (source, targets) in enumerate(rows):
        out = forward(ids[place : place + 1, :source], labels[place : place + 1, :targets])
        kept = int(out.encoder_attention_mask.sum())
        # Two encoder blocks stand after the gate, and two layers of cross-attention.
        own = torch.tensor([kept * kept, kept * kept, kept * targets, kept * targets])
        sums, pairs = sums + torch.stack(penalties[-1].layer_means) * own, pairs + own
    expected = (sums / pairs).mean()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(found, torch.autograd.grad(expected, weights, allow_unused=True), strict=True):
        if one is not None:  # a score may pass the ceiling by rounding alone
            torch.testing.assert_close(one, other, atol=1e-4 + 1e-2 * other.abs().max().item(), rtol=0)


def test_attention_is_set_in_encoder_and_decoder(monkeypatch: pytest.MonkeyPatch):
    """transformers 5.17 forgets submodels whose configuration is of the same class."""
    from mrt5cli.benchmark.models import plain

    def alone(self: PreTrainedModel, attn_implementation: str) -> None:
        name = self._check_and_adjust_attn_implementation(attn_implementation, is_init_check=False)
        self.config._attn_implementation_internal = name

    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", alone)
    model = tiny()
    model.set_attn_implementation("eager")
    assert {part.config._attn_implementation for part in (model, model.encoder, model.decoder)} == {
        "mrt5_eager"
    }
    theirs = plain(model, "eager")
    assert {part.config._attn_implementation for part in (theirs, theirs.encoder, theirs.decoder)} == {
        "eager"
    }
