"""Everything that is not a checkpoint of ours is called by its name."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file
from transformers import T5Config

from mrt5cli.byte_tokens import LAST_BYTE_ID
from mrt5cli.errors import UserError
from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, build, load
from mrt5cli.models.config import LEAST_VOCABULARY
from mrt5cli.recipe import ModelSection

GATE = "encoder.block.1.delete_gate"
GATE_PARTS = ("feed_forward.bias", "feed_forward.weight", "layer_norm.weight")


@pytest.fixture
def saved(tmp_path):
    config = MrT5Config(
        d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2, num_decoder_layers=1, delete_gate_layer=1
    )
    MrT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **fields):
    """Set fields of config.json; those that are None go."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def edit_text(folder, **fields):
    """Set fields of config.json to what JSON itself cannot always hold."""
    path = folder / "config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in fields}
    more = "".join(f', "{name}": {text}' for name, text in fields.items())
    path.write_text(json.dumps(kept)[:-1] + more + "}")


def spoil_number(number):
    return lambda tensors: tensors["lm_head.weight"][3].fill_(float(number))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(file, to):
    content = file.read_bytes()
    file.write_bytes(content[:to])


def break_header(file):
    content = bytearray(file.read_bytes())
    content[8:12] = b"[[[["
    file.write_bytes(bytes(content))


def drop(prefix):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


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
        (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read: .*Expecting property"),
        (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda d: (d / "model.safetensors").rename(d / "adapter.bin"),
            "no model.safetensors and no pytorch_model.bin, only adapter.bin",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"nothing"),
            "not a complete safetensors file",
        ),
        (lambda d: edit_config(d, model_type="bert"), "'bert' model"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
        (lambda d: truncate(d / "model.safetensors", -5), "not fully covered"),
        (lambda d: truncate(d / "model.safetensors", 300), r"complete safetensors file \(.*header"),
        (lambda d: break_header(d / "model.safetensors"), r"complete safetensors file \(.*header"),
        (lambda d: edit_config(d, model_type="t5", tie_word_embeddings=True), "T5 v1.0"),
        (lambda d: edit_config(d, model_type="llama"), r"'llama' model; .*\n  start from a supported model"),
        (lambda d: edit_config(d, model_type=["mrt5"]), "mrt5'. model; expected"),
        (
            lambda d: edit_config(d, model_type="t5", architectures=5, deletion_type=None),
            "not part of the model",
        ),
        (lambda d: (d / "config.json").write_text("[" * 100_000), "not JSON: it is nested too deeply"),
        (lambda d: (d / "config.json").write_text(f'{{"d_ff": {"9" * 5000}}}'), "more than 4,300 digits"),
        (lambda d: edit_config(d, d_kv=1e300), r"config.json: d_kv is 1e\+300; expected a whole number"),
        (lambda d: edit_config(d, d_model="abc"), "config.json: d_model is 'abc'; expected a whole number"),
        (lambda d: edit_config(d, dropout_rate="x"), "config.json: dropout_rate is 'x'; expected a number"),
        (lambda d: edit_config(d, num_layers=-1), "config.json: num_layers is -1; expected 1 or more"),
        (
            lambda d: edit_config(d, num_layers=10**30),
            r"config.json: num_layers is 1,000,000,.*; expected 10,000 or less",
        ),
        (
            lambda d: edit_config(d, num_layers=9999),
            r"describes 10,000 layers, but the files contain .* weights\n  config.json and",
        ),
        (
            lambda d: edit_config(d, shortening_per="word"),
            "config.json: shortening_per is 'word'; expected one of row, batch",
        ),
        (lambda d: edit_config(d, use_softmax1=1), "use_softmax1 is 1; expected true or false"),
        (
            lambda d: edit_config(d, has_absolute_position_embeddings=True),
            "positions are relative, but has_absolute_position_embeddings of its config.json",
        ),
        (lambda d: edit_config(d, pad_token_id=2**70), f"pad_token_id is {2**70}; expected an id"),
        (lambda d: edit_config(d, d_ff=0), "d_ff is 0; expected 1 or more"),
        (
            lambda d: edit_config(d, deletion_threshold=math.nan),
            "threshold is nan; expected a finite",
        ),
        (
            lambda d: edit_config(d, layer_norm_epsilon=math.inf),
            "epsilon is inf; expected a finite",
        ),
        (
            lambda d: edit_config(d, relative_attention_max_distance=0),
            "is 0; expected more than half",
        ),
        (lambda d: edit_config(d, dense_act_fn="foo"), "dense_act_fn is 'foo'; expected one of"),
        (lambda d: edit_config(d, model_type=None), "is a model without a model_type"),
        (lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}), "is quantized"),
        (
            lambda d: edit_weights(d, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].char()})),
            r"lm_head.weight is stored as int8; .*\n  if the checkpoint is quantized",
        ),
        (
            lambda d: edit_text(d, decoder_start_token_id="null"),
            "decoder_start_token_id is None; expected an id",
        ),
        (lambda d: edit_config(d, pad_token_id=384), "pad_token_id is 384; expected an id"),
        (lambda d: edit_config(d, d_model=10**6), "with the wrong shape"),
        (
            lambda d: edit_config(d, vocab_size=258),
            r"vocab_size is 258; expected 259 or more: byte b is id b \+ 3",
        ),
        (lambda d: edit_text(d, d_ff="1" * 5000), "config.json cannot be read"),
        (lambda d: edit_text(d, extra="[" * 10**5), "config.json cannot be read"),
        (
            lambda d: edit_weights(d, spoil_number("nan")),
            r"infinity in 1 weight, first lm_head.weight\n  the training",
        ),
        (
            lambda d: edit_weights(d, spoil_number("-inf")),
            "NaN or infinity in 1 weight, first lm_head.weight",
        ),
        (lambda d: edit_config(d, mrt5_toolkit=[]), "mrt5_toolkit in config.json is not an object"),
        (
            lambda d: edit_config(d, deletion_type="random", random_deletion_probability=2.0),
            "expected a fraction from 0 to 1",
        ),
        (lambda d: edit_config(d, delete_gate_layer="first"), "delete_gate_layer"),
        (lambda d: edit_weights(d, drop("decoder.")), "first decoder.block.0"),
        (
            lambda d: edit_weights(d, drop("encoder.block.1.delete_gate.feed_forward.bias")),
            "1 weight missing",
        ),
        (lambda d: edit_weights(d, drop(GATE)), "3 weights missing"),
        (
            lambda d: edit_config(d, model_type="t5", scale_decoder_outputs=True),
            "T5 v1.0",
        ),
        (lambda d: edit_config(d, delete_gate_layer=9), "delete_gate_layer 9"),
        (lambda d: edit_config(d, d_ff=25), "the wrong shape"),
        (
            lambda d: edit_weights(d, lambda t: t.pop("decoder.final_layer_norm.weight")),
            "1 weight missing",
        ),
        (
            lambda d: edit_weights(d, lambda t: t.update({"pooler.weight": torch.ones(2)})),
            "not part of the model",
        ),
        (
            lambda d: edit_config(
                d, deletion_type=None, model_type="t5", architectures=["T5ForConditionalGeneration"]
            ),
            "3 weights not part.*delete_gate",
        ),
        (lambda d: edit_config(d, delete_gate_layer=None, num_layers=4), "weights? missing"),
    ],
)
def test_spoilt_directories(saved, spoil, words):
    spoil(saved)
    with pytest.raises(CheckpointError, match=words):
        load(saved)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
@pytest.mark.parametrize(
    "content, words",
    [
        (POINTER, "but a Git LFS pointer; .* git lfs pull"),
        (PAGE, r"but a web page \(HTML\)"),
        (gzip.compress(b"weights", mtime=0), "but a gzip archive"),
    ],
)
def test_what_stands_in_for_a_file_is_called_by_its_name(saved, name, content, words):
    if name != "config.json":
        (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} .*is not .*{words}"):
        load(saved)


@pytest.mark.parametrize("what", ["", "  "])
def test_what_names_no_model(what):
    with pytest.raises(UserError, match="the name of the model is empty; expected a run directory"):
        load(what)


def test_a_model_has_at_least_the_ids_of_all_bytes():
    assert LEAST_VOCABULARY == LAST_BYTE_ID + 1
    with pytest.raises(CheckpointError, match="vocab_size is 100; expected 259 or more"):
        build(section(start="scratch", shape={"d_model": 16}), vocab_size=100)


def test_other_positions_than_the_weights_are_for(saved):
    with pytest.raises(
        CheckpointError, match=r"are relative, but model\.positions .*\n  set model\.positions: relative"
    ):
        build(section(start=str(saved), positions="absolute", shortener={"kind": "none"}))


def test_not_a_directory(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        load(file)


def test_unknown_override_and_float16(saved):
    with pytest.raises(CheckpointError, match="delete_gate_leyer"):
        load(saved, delete_gate_leyer=1)
    with pytest.raises(CheckpointError, match="float16"):
        load(saved, dtype="float16")
    for dtype in ("bf16", "float64", torch.int8, "nn", ""):
        with pytest.raises(CheckpointError, match=r"is not supported; expected float32 or bfloat16"):
            load(saved, dtype=dtype)


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


# --- pickles and shards
# ------------------------------------------------------------------------------------


class Intruder:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def pickle_weights(folder, **options):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)
    return state


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_with_a_note_unless_forbidden(saved, caplog, zipped):
    state = pickle_weights(saved, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"in pickles only, which --no-pickle .*\n  ask the publisher for safetensors"
    ):
        load(saved, allow_pickle=False)
    assert not caplog.records
    model = load(saved)
    assert [record.getMessage() for record in caplog.records] == [
        f"{saved}: weights read from a pickle; no code in it was run"
    ]
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_safetensors_files_are_preferred_to_pickles(saved, caplog):
    expected = load(saved).shared.weight.clone()
    torch.save({"shared.weight": torch.zeros(2)}, saved / "pytorch_model.bin")
    assert torch.equal(load(saved, allow_pickle=False).shared.weight, expected)
    assert not caplog.records


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list mapped files")
def test_pickles_in_the_newer_format_take_no_memory_of_their_own(saved):
    from mrt5cli.models.weights import read_weights

    pickle_weights(saved)
    weights = read_weights(saved)
    assert weights
    mapped = Path("/proc/self/maps").read_text()
    assert str(saved / "pytorch_model.bin") in mapped
    del weights


def test_how_to_generate_comes_along_from_either_format(saved):
    (saved / "generation_config.json").write_text(json.dumps({"max_new_tokens": 77, "eos_token_id": 1}))
    assert load(saved).generation_config.max_new_tokens == 77
    pickle_weights(saved)
    assert load(saved).generation_config.max_new_tokens == 77
    (saved / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"could not be loaded.*generation_config.json"):
        load(saved)


def test_pickles_in_shards(saved):
    state = pickle_weights(saved)
    (saved / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, saved / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (saved / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(load(saved).shared.weight, state["shared.weight"])
    (saved / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 2 weight files .* first b.bin"):
        load(saved)


def test_code_in_a_pickle_is_not_run(saved, tmp_path):
    state = pickle_weights(saved)
    trace = tmp_path / "was-here"
    torch.save({**state, "extra": Intruder(trace)}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing in it was run") as raised:
        load(saved)
    assert not trace.exists()
    assert "weights_only" not in str(raised.value) and "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is not a complete pickle"),
        (b"PK\x03\x04 half a zip", "is not a complete pickle"),
        (b"junk", "is not a complete pickle"),
        (b"not a pickle", "is not a complete pickle"),
    ],
)
def test_no_whole_pickle(saved, content, words):
    pickle_weights(saved)
    (saved / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        load(saved)


def test_a_pickle_of_something_else(saved):
    state = pickle_weights(saved)
    for content in ([torch.ones(2)], {"state_dict": state}, {**state, "step": 3}):
        torch.save(content, saved / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="contains more than named tensors"):
            load(saved)
    for dtype in (torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        torch.save({**state, "lm_head.weight": torch.ones(2).to(dtype)}, saved / "pytorch_model.bin")
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(CheckpointError, match=f"lm_head.weight is stored as {name}; expected float32"):
            load(saved)


def test_shards_load_and_a_missing_one_is_named(saved):
    model = load(saved)
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved, max_shard_size="10KB")
    shards = sorted(saved.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(load(saved).lm_head.weight, model.lm_head.weight)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"first {shards[1].name}"):
        load(saved)
    (saved / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of weights"):
        load(saved)


# --- whose checkpoint
# ------------------------------------------------------------------------------------


def test_a_plain_start_misses_exactly_its_new_shortener(saved):
    load(saved, deletion_type="none").save_pretrained(saved / "plain")
    for kind, parts in {
        "scaled_sigmoid": [f"delete_gate.{part}" for part in GATE_PARTS],
        "convolution": ["down_ln.weight", "downsampling_module.conv.bias", "downsampling_module.conv.weight"],
        "random": [],
    }.items():
        fresh = load(saved / "plain", deletion_type=kind).fresh_weights
        assert fresh == [f"encoder.block.1.{part}" for part in parts]
    assert load(saved).fresh_weights == []
    # Another place or kind is a new shortener too.
    assert len(load(saved, delete_gate_layer=0).fresh_weights) == 3
    assert len(load(saved, deletion_type="boundary_predictor").fresh_weights) == 5


@pytest.mark.drawn
@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_plain_directories(saved, kind):
    config = load(saved).config.to_diff_dict() | {"deletion_type": "none"}
    config |= {"relative_bias_per_layer": kind == "umt5"}
    source = MrT5ForConditionalGeneration(MrT5Config(**config)).eval()
    folder = saved / kind
    source.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    ours = set(MrT5Config().to_dict()) - set(T5Config().to_dict())
    plain = {key: value for key, value in config.items() if key not in ours}
    (folder / "config.json").write_text(json.dumps({**plain, "model_type": kind}))
    model = load(folder)
    assert model.config.deletion_type == "none"
    assert model.config.relative_bias_per_layer == (kind == "umt5")
    ids = torch.randint(3, 259, (1, 9))
    with torch.no_grad():
        expected = source(ids, labels=ids).logits
        assert torch.equal(model(ids, labels=ids).logits, expected)


def test_remote_code_of_a_published_layout_is_not_run(saved, tmp_path):
    trace = tmp_path / "was-here"
    (saved / "modeling_theirs.py").write_text(f"open({str(trace)!r}, 'w')\nraise SystemExit\n")
    edit_config(
        saved, auto_map={"AutoModelForSeq2SeqLM": "modeling_theirs.Model", "AutoConfig": "modeling_theirs.C"}
    )
    load(saved)
    assert not trace.exists()


def test_one_weight_of_a_decoder_is_not_taken_for_all(saved):
    edit_weights(saved, drop("decoder.final_layer_norm"))
    with pytest.raises(CheckpointError, match=r"first decoder.final_layer_norm.weight\n"):
        load(saved)


def test_the_authors_poolings_are_loaded_right_per_row():
    for name, kind in {"bpt5": "boundary_predictor", "canine": "convolution"}.items():
        config = load(GOLDEN / "models" / name).config
        assert (config.deletion_type, config.shortening_per) == (kind, "row")
    assert load(GOLDEN / "models/bpt5").config.boundary_temperature == 0.5
    assert not hasattr(load(GOLDEN / "models/bpt5").generation_config, "boundary_temperature")
