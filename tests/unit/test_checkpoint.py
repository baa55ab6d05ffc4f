"""Everything that is not a checkpoint of ours is called by its name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrt5cli import models
from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, build, load
from mrt5cli.recipe import ModelSection


@pytest.fixture
def saved(tmp_path):
    config = MrT5Config(
        d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2, num_decoder_layers=1, delete_gate_layer=1
    )
    MrT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_loads_in_eval_mode_with_overrides(saved):
    model = load(saved, use_softmax1=True)
    assert not model.training
    assert model.config.use_softmax1
    assert load(saved, dtype="bfloat16").dtype == torch.bfloat16


def test_another_gate_brings_its_own_threshold(saved):
    assert load(saved, deletion_type="log_sigmoid").config.deletion_threshold == pytest.approx(
        -0.6931, abs=1e-4
    )
    assert load(saved, sigmoid_mask_scale=-10.0).config.deletion_threshold == -5.0


def test_a_gate_may_be_left_out(saved):
    assert load(saved, deletion_type="none").config.deletion_type == "none"


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            "pickled weights",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"nothing"), "could not be read"),
        (lambda d: edit_config(d, model_type="bert"), "'bert' model"),
        (lambda d: edit_config(d, model_type="t5", architectures=["BPT5X"]), "BPT5"),
        (
            lambda d: edit_config(d, model_type="t5", scale_decoder_outputs=True),
            "T5 v1.0",
        ),
        (lambda d: edit_config(d, delete_gate_layer=9), "delete_gate_layer 9"),
        (lambda d: edit_config(d, d_ff=25), "another shape"),
        (
            lambda d: edit_weights(d, lambda t: t.pop("decoder.final_layer_norm.weight")),
            "1 weights are missing",
        ),
        (
            lambda d: edit_weights(d, lambda t: t.update({"pooler.weight": torch.ones(2)})),
            "belong to no part",
        ),
    ],
)
def test_spoilt_directories(saved, spoil, words):
    spoil(saved)
    with pytest.raises(CheckpointError, match=words):
        load(saved)


def test_not_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        load(file)


def test_unknown_override_and_float16(saved):
    with pytest.raises(CheckpointError, match="delete_gate_leyer"):
        load(saved, delete_gate_leyer=1)
    with pytest.raises(CheckpointError, match="float16"):
        load(saved, dtype="float16")


def test_a_hub_id_without_a_network_fails_at_once(monkeypatch):
    monkeypatch.setattr(models.checkpoint, "hub_reachable", lambda: False)
    with pytest.raises(CheckpointError, match="the Hub cannot be reached"):
        load("nobody/nothing")


def test_build_from_scratch_and_from_a_checkpoint(saved):
    gate = {"kind": "delete_gate", "layer": 1, "norm": "layer", "noise": "gumbel", "bias_init": -1.0}
    shape = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    scratch = build(section(start="scratch", shape=shape, shortener=gate, dropout=0.0))
    assert scratch.training
    assert scratch.config.gate_layer_norm_type == "layer"
    assert isinstance(scratch.encoder.block[1].delete_gate.layer_norm, torch.nn.LayerNorm)
    assert scratch.encoder.block[1].delete_gate.feed_forward.bias.item() == -1.0

    further = build(section(start=str(saved), shortener={"kind": "random", "rate": 0.3, "layer": 1}))
    assert further.config.deletion_type == "random"
    assert further.config.use_softmax1
    kept = load(saved)
    assert torch.equal(further.lm_head.weight, kept.lm_head.weight)


def test_meta_builds_need_neither_weights_nor_memory():
    small = build(section(shortener={"kind": "delete_gate"}), device="meta")
    assert small.device.type == "meta"
    # ByT5-small has 300 M parameters (the paper), the gate about 3000 more.
    plain = build(section(), device="meta")
    assert sum(p.numel() for p in plain.parameters()) == 299_637_760
    assert sum(p.numel() for p in small.parameters()) - 299_637_760 == 2945


def section(**fields) -> ModelSection:
    return ModelSection.model_validate_json(json.dumps(fields))
