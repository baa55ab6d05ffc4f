"""How every variant starts, and that it comes back from disk as it went."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from variants import SIZES, VARIANTS, batch_of, labels_for, random_rows, tiny

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models.checkpoint import initialize_depth_scaled

WIDE = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4}
IDS, MASK = batch_of(random_rows([14, 6, 1]), 2)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=MASK, labels=labels_for(IDS), hard_delete=True).logits


def fields_of(model: Any) -> dict[str, Any]:
    """Its configuration, without what transformers notes about the file."""
    notes = (
        "architectures",
        "dtype",
        "transformers_version",
        "_name_or_path",
        "_attn_implementation_internal",
    )
    return {name: value for name, value in model.config.to_dict().items() if name not in notes}


# --- saving
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_comes_back_the_same(variant: str, tmp_path: Path) -> None:
    model = tiny(variant, use_softmax1=True)
    model.save_pretrained(tmp_path)
    for again in (load(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path), copy.deepcopy(model)):
        assert fields_of(again) == fields_of(model)
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())
        assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_without_memory_takes_weights_from_a_file(variant: str, tmp_path: Path) -> None:
    """What is built on the meta device is whole: no tensor is left that no checkpoint fills."""
    model = tiny(variant)
    torch.save(model.state_dict(), tmp_path / "weights")
    with torch.device("meta"):
        empty = MrT5ForConditionalGeneration(model.config).eval()
    shapes = {name: weight.shape for name, weight in empty.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in model.state_dict().items()}
    empty.load_state_dict(torch.load(tmp_path / "weights", weights_only=True), assign=True)
    empty.tie_weights()
    assert not any(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    assert torch.equal(logits(empty), logits(model))


# --- starting
# -------------------------------------------------------------------------------------------------------


def check_fresh(model: MrT5ForConditionalGeneration, norm: float = 1.0) -> None:
    """The reference's initialization of modules between the blocks; ours have their own tests."""
    shortener, width = model.encoder.shortener, model.config.d_model
    block = model.encoder.block[model.config.delete_gate_layer]
    kind = model.config.deletion_type
    if kind in ("scaled_sigmoid", "log_sigmoid"):
        check_xavier(shortener.feed_forward, bias=1.0)
        assert shortener.layer_norm.weight.eq(norm).all()
    elif kind == "boundary_predictor":
        check_xavier(shortener.boundary_predictor[0], bias=-1.0)
        check_xavier(shortener.boundary_predictor[2], bias=-1.0)
    elif kind == "convolution":
        bound = (width * model.config.downsampling_rate) ** -0.5
        for values in (shortener.conv.weight, shortener.conv.bias):
            assert values.abs().max().item() <= bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    elif shortener is not None and shortener.reference is not None:
        assert not list(shortener.parameters())
    if shortener is not None and shortener.normalises:
        assert block.down_ln.weight.eq(norm).all()
    else:
        assert not hasattr(block, "down_ln")


def check_xavier(linear: nn.Linear, bias: float) -> None:
    bound = math.sqrt(6 / (linear.in_features + linear.out_features))
    assert linear.weight.abs().max().item() <= bound
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert linear.bias.eq(bias).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_shortener_is_drawn_as_the_references(variant: str) -> None:
    check_fresh(tiny(variant, awake=False, **WIDE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scaled_start_leaves_shorteners_alone_except_for_norms(variant: str) -> None:
    model = tiny(variant, awake=False, **WIDE)
    initialize_depth_scaled(model)
    check_fresh(model, norm=SIZES["num_layers"] ** -0.5)
    weight = model.encoder.block[1].layer[0].SelfAttention.q.weight
    assert weight.std().item() == pytest.approx((128 * SIZES["num_layers"]) ** -0.5, rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plain_start_gets_the_shortener_and_nothing_else(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = T5ForConditionalGeneration(
        T5Config(
            vocab_size=384,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            tie_word_embeddings=False,
            **{**SIZES, **WIDE},
        )
    )
    plain.lm_head.weight = nn.Parameter(torch.randn_like(plain.lm_head.weight))
    plain.save_pretrained(tmp_path)

    model = load(tmp_path, **{"delete_gate_layer": 1, **VARIANTS[variant]})
    check_fresh(model)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    fresh = {name.removeprefix("encoder.block.1.").split(".")[0] for name in set(ours) - set(theirs)}
    shortener = model.encoder.shortener
    weighs = shortener is not None and any(True for _ in shortener.parameters())
    assert fresh == ({shortener.name} | ({"down_ln"} if shortener.normalises else set()) if weighs else set())


def test_weights_of_another_shortener_are_named(tmp_path: Path) -> None:
    tiny("cp_2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"downsampling_module\.conv\.weight"):
        load(tmp_path, downsampling_rate=3)
    assert load(tmp_path, deletion_type="none").encoder.shortener is None


def test_config_remembers_the_variant() -> None:
    for fields in VARIANTS.values():
        config = MrT5Config(**{**SIZES, "delete_gate_layer": 1, **fields})
        assert fields.items() <= config.to_dict().items()
