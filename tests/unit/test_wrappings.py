"""Names that wrappers give to weights, one embedding under several names, a head that is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, load

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    config = MrT5Config(
        d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2, num_decoder_layers=1, delete_gate_layer=1
    )
    MrT5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "saved"))


@pytest.fixture(scope="module")
def state(made) -> dict[str, torch.Tensor]:
    return load_file(made / "model.safetensors")


def write(folder, state):
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def check_same(folder, state):
    found = load(folder).state_dict()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name


# --- wrappers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, told",
    [
        ("module.", "'module' (DistributedDataParallel)"),
        ("_orig_mod.", "'_orig_mod' (torch.compile)"),
        ("module._orig_mod.", "'module' (DistributedDataParallel), '_orig_mod' (torch.compile)"),
        ("_orig_mod.module.", "'_orig_mod' (torch.compile), 'module' (DistributedDataParallel)"),
        ("model.", "'model'"),
        ("module.model.", "'module' (DistributedDataParallel), 'model'"),
        ("_fsdp_wrapped_module.", "'_fsdp_wrapped_module' (FullyShardedDataParallel)"),
        ("net.t5.", "'net', 't5'"),
    ],
)
def test_what_a_wrapper_adds_to_names_is_left_off_with_one_note(saved, state, caplog, prefix, told):
    write(saved, prefixed(prefix, state))
    check_same(saved, state)
    assert [record.getMessage() for record in caplog.records] == [
        f"{saved}: parts of its weight names that a wrapper added were removed: {told}"
    ]


def test_parts_may_be_wrapped_and_the_head_stand_outside(saved, state):
    write(
        saved,
        {
            name.replace("encoder.block.0.", "encoder.block.0._orig_mod.").replace(
                "shared", "model.shared"
            ): tensor
            for name, tensor in state.items()
        },
    )
    check_same(saved, state)


def test_names_of_our_own_need_no_note(saved, state, caplog):
    check_same(saved, state)
    assert not caplog.records


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda state: prefixed("teacher.", state) | prefixed("student.", state),
            "twice, as student.decoder.block.0.* and as teacher.decoder.block.0",
        ),
        (
            lambda state: state | prefixed("module.", state),
            "twice, as decoder.block.0.* and as module.decoder.block.0",
        ),
        (lambda state: prefixed("model.", state) | {"loss.weight": torch.ones(2)}, "first loss.weight"),
        (lambda state: state | {"pooler.encoder.weight": torch.ones(2)}, "first encoder.weight"),
        (
            lambda state: state | {"encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": torch.ones(2)},
            r"is a LoRA adapter .*\n  merge it into its model",
        ),
    ],
)
def test_what_is_not_one_model(saved, state, spoil, words):
    write(saved, spoil(state))
    with pytest.raises(CheckpointError, match=words):
        load(saved)


# --- the embedding and the head -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept", [EMBEDDINGS[:1], EMBEDDINGS[1:2], EMBEDDINGS[2:], EMBEDDINGS[:2], EMBEDDINGS]
)
def test_an_embedding_under_any_of_its_names(saved, state, kept):
    rest = {name: tensor for name, tensor in state.items() if name != "shared.weight"}
    write(saved, rest | dict.fromkeys(kept, state["shared.weight"]))
    check_same(saved, state)


@pytest.mark.parametrize("first, other", [EMBEDDINGS[:2], EMBEDDINGS[::2], EMBEDDINGS[1:]])
def test_embeddings_that_differ_are_refused(saved, state, first, other):
    changed = state["shared.weight"].clone()
    changed[7, 3] += 0.5
    rest = {name: tensor for name, tensor in state.items() if name != "shared.weight"}
    write(saved, rest | {first: state["shared.weight"], other: changed})
    with pytest.raises(
        CheckpointError,
        match=f"{first} and {other} differ",
    ):
        load(saved)
    write(saved, rest | {first: state["shared.weight"], other: torch.ones(2, 16)})
    with pytest.raises(CheckpointError, match="differ; expected one embedding"):
        load(saved)


def test_one_embedding_in_two_precisions_is_one(saved, state):
    write(saved, state | {"encoder.embed_tokens.weight": state["shared.weight"].bfloat16()})
    check_same(saved, state)


def test_a_head_that_is_not_there_is_the_embedding_only_where_the_configuration_says_so(saved, state):
    headless = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    write(saved, headless)
    with pytest.raises(CheckpointError, match=r"1 weight missing, first lm_head.weight"):
        load(saved)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: value for name, value in config.items() if name != "tie_word_embeddings"})
    )
    with pytest.raises(CheckpointError, match=r"first lm_head.weight"):
        load(saved)
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}))
    check_same(saved, headless | {"lm_head.weight": state["shared.weight"]})
    model = load(saved)
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    # The other way round, and with both: existing weights are used unchanged.
    write(saved, {name: tensor for name, tensor in state.items() if name != "shared.weight"})
    check_same(saved, {"shared.weight": state["lm_head.weight"], "lm_head.weight": state["lm_head.weight"]})
    write(saved, state)
    check_same(saved, state)


def test_an_embedding_is_never_made_up(saved, state):
    write(saved, {name: tensor for name, tensor in state.items() if name != "shared.weight"})
    with pytest.raises(CheckpointError, match=r"1 weight missing, first shared.weight"):
        load(saved)
