"""Checkpoints from one layout to another, and back to the same bits."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, read_case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration, UMT5ForConditionalGeneration

from mrt5cli.convert import conversion
from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.convert.layouts import LAYOUTS
from mrt5cli.convert.reference import reference_config
from mrt5cli.errors import UserError
from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models.layouts import fields_of
from mrt5cli.models.shorteners import SHORTENERS, WITHOUT_MODULE

MODELS = sorted(path.name for path in (GOLDEN / "models").iterdir())
CHECKPOINTS = json.loads((GOLDEN / "checkpoints.json").read_text())["checkpoints"]
TINY = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 1}
KINDS = [*WITHOUT_MODULE, *(name for name, shortener in SHORTENERS.items() if shortener.reference)]
"""Those that the authors' layout can hold."""


def saved(folder: Path, **fields) -> Path:
    torch.manual_seed(3)
    MrT5ForConditionalGeneration(MrT5Config(**{**TINY, "delete_gate_layer": 1, **fields})).save_pretrained(
        folder
    )
    return folder


def plain(folder: Path) -> Path:
    """A ByT5 as its makers publish it: no field of ours or of the authors."""
    convert(str(saved(folder / "made", deletion_type="none")), folder / "plain", ConversionOptions("byt5"))
    return folder / "plain"


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


def comparable(config: MrT5Config) -> dict:
    """A configuration without who wrote it, and without two fields of the authors that are always "en"."""
    ignored = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype")
    ignored += ("tokenizer_class", "train_language", "eval_language")
    return {key: value for key, value in config.to_dict().items() if key not in ignored}


# --- the authors' checkpoints
# ------------------------------------------------------------------------------------


def test_all_golden_models_are_here():
    assert len(MODELS) == len(CHECKPOINTS) == 10


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_in_the_authors_layout(name: str, tmp_path: Path):
    source = GOLDEN / "models" / name
    outcome = convert(str(source), tmp_path / "ours", ConversionOptions("mrt5"))
    assert outcome.fresh == []
    assert_same_weights(source, tmp_path / "ours")
    assert config_of(tmp_path / "ours")["model_type"] == "mrt5"
    convert(str(tmp_path / "ours"), tmp_path / "theirs", ConversionOptions("reference"))
    assert_same_weights(source, tmp_path / "theirs")
    theirs, written = config_of(source), config_of(tmp_path / "theirs")
    del theirs["transformers_version"]
    assert {key: written.get(key) for key in theirs} == theirs
    assert set(written) - set(theirs) <= {"mrt5_toolkit"}
    generation = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    expected = json.loads((source / "generation_config.json").read_text())
    del expected["transformers_version"]
    expected.pop("temperature", None)  # the boundary predictor's, which transformers took for its own
    assert generation == expected


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda c: Path(c["path"]).name)
def test_logits_after_there_and_back(checkpoint: dict, tmp_path: Path):
    convert(str(GOLDEN / checkpoint["path"]), tmp_path / "ours", ConversionOptions("mrt5"))
    convert(str(tmp_path / "ours"), tmp_path / "theirs", ConversionOptions("reference"))
    for name in checkpoint["cases"]:
        case, tensors = read_case((GOLDEN / name).with_suffix(".json"))
        pooled = checkpoint["reference_class"] in ("BPT5", "CanineT5")
        laws = {"shortening_per": "batch", "boundary_sampling": "always"} if pooled else {}
        model = load(tmp_path / "theirs", **laws)
        torch.manual_seed(case.get("torch_seed", 0))
        hard = {"hard_delete": case["hard_delete"]} if "hard_delete" in case else {}
        with torch.no_grad():
            out = model(
                tensors["in.input_ids"],
                attention_mask=tensors.get("in.attention_mask"),
                labels=tensors["in.labels"],
                **hard,
            )
        torch.testing.assert_close(out.logits, tensors["out.logits"], atol=2e-5, rtol=1e-4)


# --- ours
# ------------------------------------------------------------------------------------

CONFIGS = st.fixed_dictionaries(
    {
        "deletion_type": st.sampled_from(KINDS),
        "delete_gate_layer": st.integers(0, 2),
        "use_softmax1": st.booleans(),
        "sigmoid_mask_scale": st.sampled_from([-30.0, -10.0]),
        "deletion_threshold": st.sampled_from([None, -3.0]),
        "gate_layer_norm": st.booleans(),
        "gate_layer_norm_type": st.sampled_from(["rms", "layer"]),
        "gate_bias_init": st.sampled_from([1.0, -1.0]),
        "use_gumbel_noise": st.booleans(),
        "gumbel_noise_law": st.sampled_from(["difference", "single"]),
        "random_deletion_probability": st.sampled_from([0.5, 0.3]),
        "fixed_deletion_amount": st.sampled_from([0.5, 0.3]),
        "boundary_predictor_type": st.sampled_from(["gumbel", "entropy", "unigram"]),
        "prior": st.sampled_from([0.2, 0.5]),
        "boundary_temperature": st.sampled_from([0.5, 1.0]),
        "boundary_sampling": st.sampled_from(["training", "always"]),
        "downsampling_rate": st.sampled_from([2, 4]),
        "shortening_per": st.sampled_from(["row", "batch"]),
        "hard_delete_positions": st.sampled_from(["original", "compacted"]),
        "row_without_survivors": st.sampled_from(["best", "first"]),
        "has_absolute_position_embeddings": st.booleans(),
        "max_position_embeddings": st.sampled_from([1024, 32]),
        "learned_positions": st.sampled_from(["added", "unused"]),
        "dropout_rate": st.sampled_from([0.1, 0.0]),
    }
)


@settings(max_examples=200, deadline=None)
@given(CONFIGS)
def test_no_field_is_lost_in_the_authors_layout(fields: dict):
    config = MrT5Config(**TINY, **fields)
    written = json.loads(json.dumps(reference_config(config, "float32")))
    assert comparable(MrT5Config(**fields_of(written, ""))) == comparable(config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absolute", [False, True])
def test_there_and_back_from_ours(kind: str, absolute: bool, tmp_path: Path):
    source = saved(tmp_path / "ours", deletion_type=kind, has_absolute_position_embeddings=absolute)
    convert(str(source), tmp_path / "theirs", ConversionOptions("reference"))
    convert(str(tmp_path / "theirs"), tmp_path / "back", ConversionOptions("mrt5"))
    assert_same_weights(source, tmp_path / "back")
    assert comparable(load(tmp_path / "back").config) == comparable(load(source).config)


def test_what_the_authors_code_would_do_otherwise_is_said(tmp_path: Path):
    source = saved(tmp_path / "ours", gate_layer_norm_type="layer", row_without_survivors="first")
    notes = convert(str(source), tmp_path / "theirs", ConversionOptions("reference")).notes
    assert len(notes) == 1 and "without mean and bias" in notes[0]
    as_theirs = {"shortening_per": "batch", "boundary_sampling": "always"}
    source = saved(tmp_path / "bp", deletion_type="boundary_predictor", **as_theirs)
    assert convert(str(source), tmp_path / "bp2", ConversionOptions("reference")).notes == []


@pytest.mark.drawn
def test_umt5_has_no_place_in_the_authors_layout(tmp_path: Path):
    source = saved(tmp_path / "u", relative_bias_per_layer=True)
    with pytest.raises(UserError, match="one relative bias for all layers"):
        convert(str(source), tmp_path / "out", ConversionOptions("reference"))
    assert not (tmp_path / "out").exists()
    notes = convert(str(source), tmp_path / "plain", ConversionOptions("byt5")).notes
    assert config_of(tmp_path / "plain")["model_type"] == "umt5"
    theirs = UMT5ForConditionalGeneration.from_pretrained(tmp_path / "plain").eval()
    ours = load(tmp_path / "plain")
    ids, labels = torch.randint(3, 259, (2, 15)), torch.randint(3, 259, (2, 6))
    with torch.no_grad():
        scaled = theirs(ids, labels=labels).logits * TINY["d_model"] ** 0.5
        torch.testing.assert_close(ours(ids, labels=labels).logits, scaled, atol=1e-5, rtol=1e-4)
    assert "divides its logits by the square root of d_model" in notes[0]


@pytest.mark.parametrize("kind", ["mt5", "umt5"])
def test_what_transformers_5_writes_of_an_untied_head_is_not_believed(kind: str, tmp_path: Path):
    source = saved(tmp_path / "u", deletion_type="none", relative_bias_per_layer=kind == "umt5")
    convert(str(source), tmp_path / "plain", ConversionOptions("byt5"))
    config = config_of(tmp_path / "plain") | {"model_type": kind, "tie_word_embeddings": True}
    path = tmp_path / "plain" / "config.json"
    path.write_text(json.dumps(config | {"transformers_version": "5.23.0"}))
    assert torch.equal(load(tmp_path / "plain").lm_head.weight, load(source).lm_head.weight)
    path.write_text(json.dumps(config | {"transformers_version": "4.39.1"}))
    with pytest.raises(CheckpointError, match=r"T5 v1\.0"):
        load(tmp_path / "plain")


@pytest.mark.drawn
@pytest.mark.parametrize("kind", KINDS)
def test_byt5_is_what_plain_transformers_computes(kind: str, tmp_path: Path):
    source = saved(tmp_path / "ours", deletion_type=kind)
    outcome = convert(str(source), tmp_path / "byt5", ConversionOptions("byt5"))
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "byt5").eval()
    assert outcome.weights == sum(weight.numel() for weight in theirs.parameters())
    assert not any(".delete_gate." in key or "down" in key for key in tensors_of(tmp_path / "byt5"))
    ours = load(source, deletion_type="none")
    ids, labels = torch.randint(3, 259, (2, 15)), torch.randint(3, 259, (2, 6))
    with torch.no_grad():
        expected = theirs(ids, labels=labels).logits
        torch.testing.assert_close(ours(ids, labels=labels).logits, expected, atol=1e-5, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "byt5")("a").input_ids == [100, 1]
    assert ("reads every byte" in " ".join(outcome.notes)) == (kind != "none")


def test_byt5_says_when_it_computes_something_else(tmp_path: Path):
    source = saved(tmp_path / "ours", deletion_type="none", use_softmax1=True)
    assert "softmax1" in convert(str(source), tmp_path / "byt5", ConversionOptions("byt5")).notes[0]
    learned = saved(tmp_path / "learned", has_absolute_position_embeddings=True)
    with pytest.raises(UserError, match="learned positions"):
        convert(str(learned), tmp_path / "no", ConversionOptions("byt5"))


# --- an MrT5 start
# ------------------------------------------------------------------------------------


def test_a_plain_byt5_becomes_a_start(tmp_path: Path):
    source = plain(tmp_path)
    outcome = convert(
        str(source), tmp_path / "start", ConversionOptions("mrt5", fields={"delete_gate_layer": 2})
    )
    gate = "encoder.block.2.delete_gate"
    assert outcome.fresh == [
        f"{gate}.{part}" for part in ("feed_forward.bias", "feed_forward.weight", "layer_norm.weight")
    ]
    model = load(tmp_path / "start")
    assert model.config.use_softmax1 and model.config.deletion_type == "scaled_sigmoid"
    assert model.encoder.block[2].delete_gate.feed_forward.bias.item() == 1.0
    for name, tensor in tensors_of(source).items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_new_gate_follows_the_seed(tmp_path: Path):
    source = plain(tmp_path)
    fields = {"delete_gate_layer": 1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(str(source), tmp_path / name, ConversionOptions("mrt5", fields=fields, seed=seed))
    key = "encoder.block.1.delete_gate.feed_forward.weight"
    a, b, c = (tensors_of(tmp_path / name)[key] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_no_shortener_for_a_layout_without(tmp_path: Path):
    source = plain(tmp_path)
    fields = {"deletion_type": "scaled_sigmoid", "delete_gate_layer": 1}
    with pytest.raises(UserError, match="--to byt5 removes the shortener"):
        convert(str(source), tmp_path / "out", ConversionOptions("byt5", fields=fields))


def test_a_shortener_is_not_exchanged(tmp_path: Path):
    gate = saved(tmp_path / "gate")
    with pytest.raises(UserError, match=r"\(scaled_sigmoid before encoder block 1\)"):
        convert(str(gate), tmp_path / "out", ConversionOptions("mrt5", fields={"delete_gate_layer": 2}))
    source = saved(tmp_path / "cp", deletion_type="convolution")
    with pytest.raises(UserError, match=r"already has a shortener \(convolution"):
        convert(
            str(source),
            tmp_path / "out",
            ConversionOptions("mrt5", fields={"deletion_type": "scaled_sigmoid"}),
        )


# --- files
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"onnx"}))
def test_bfloat16_and_shards(layout: str, tmp_path: Path):
    source = saved(tmp_path / "ours", gate_layer_norm_type="layer" if layout == "reference-v1" else "rms")
    outcome = convert(
        str(source), tmp_path / "out", ConversionOptions(layout, dtype="bfloat16", shard_size="10KB")
    )
    assert outcome.dtype == "bfloat16"
    shards = [name for name in outcome.files if name.startswith("model-0")]
    assert len(shards) > 1
    config = config_of(tmp_path / "out")
    assert config.get("torch_dtype", config.get("dtype")) == "bfloat16"
    model = load(tmp_path / "out", dtype="bfloat16")
    assert torch.equal(model.shared.weight, load(source).shared.weight.bfloat16())
    again = convert(
        str(tmp_path / "out"), tmp_path / "again", ConversionOptions("mrt5", fields={"delete_gate_layer": 1})
    )
    assert again.dtype == "bfloat16" and "model.safetensors" in again.files


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_the_files_say_what_they_are_stored_in(stored: str, tmp_path: Path):
    """Whatever config.json says, or does not."""
    source = saved(tmp_path / "ours")
    dtype = getattr(torch, stored)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = config_of(source)
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    outcome = convert(str(source), tmp_path / "out", ConversionOptions("mrt5"))
    half = stored == "float16"
    assert outcome.dtype == ("float32" if half else stored)
    assert str(tensors_of(tmp_path / "out")["shared.weight"].dtype) == f"torch.{outcome.dtype}"
    assert [("written in float32" in note) for note in outcome.notes] == [True] * half


@pytest.mark.parametrize("layout", ["byt5", "reference"])
def test_a_tokenizer_of_bytes_is_named_for_a_vocabulary_of_bytes_only(layout: str, tmp_path: Path):
    for size in (384, 1000):
        source = saved(tmp_path / f"from{size}", deletion_type="none", vocab_size=size)
        convert(str(source), tmp_path / f"to{size}", ConversionOptions(layout))
        assert ("tokenizer_class" in config_of(tmp_path / f"to{size}")) == (size == 384)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = saved(tmp_path / "ours")

    def fail(job, folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setitem(conversion.LAYOUTS, "mrt5", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", ConversionOptions("mrt5"))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_overwritten_checkpoint_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, there = saved(tmp_path / "ours"), saved(tmp_path / "out", deletion_type="none")
    before = tensors_of(there)
    with pytest.raises(UserError, match="--overwrite"):
        convert(str(source), there, ConversionOptions("mrt5"))
    with monkeypatch.context() as patch:
        patch.setitem(conversion.LAYOUTS, "mrt5", lambda job, folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(str(source), there, ConversionOptions("mrt5", overwrite=True))
    assert tensors_of(there).keys() == before.keys()
    convert(str(source), there, ConversionOptions("mrt5", overwrite=True))
    assert load(there).config.deletion_type == "scaled_sigmoid"


def test_places_that_are_refused(tmp_path: Path):
    source = saved(tmp_path / "ours")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    file = tmp_path / "file"
    file.write_text("x")
    for place, words in (
        (source, "is inside the source"),
        (source / "inside", "is inside the source"),
        (tmp_path, "or contains it"),
        (file, "is a file"),
    ):
        with pytest.raises(UserError, match=words):
            convert(str(source), place, ConversionOptions("mrt5", overwrite=True))
    with pytest.raises(UserError, match="is not a checkpoint"):
        convert(str(source), other, ConversionOptions("mrt5", overwrite=True))
    assert (other / "thesis.txt").exists()


def test_the_source_under_another_name_is_never_replaced(tmp_path: Path):
    source = saved(tmp_path / "ours")
    (tmp_path / "side").mkdir()
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked").symlink_to(tmp_path)
    before = tensors_of(source).keys()
    for named, place in (
        (source, tmp_path / "side" / ".." / "ours"),
        (source, tmp_path / "linked" / "ours"),
        (source, tmp_path / "link"),
        (tmp_path / "link", source),
    ):
        with pytest.raises(UserError, match="is inside the source"):
            convert(str(named), place, ConversionOptions("byt5", overwrite=True))
    assert tensors_of(source).keys() == before


def test_a_place_the_file_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = saved(tmp_path / "ours")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        convert(str(source), tmp_path / "file" / "out", ConversionOptions("mrt5"))

    def full(job, folder):
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(conversion.LAYOUTS, "mrt5", full)
    with pytest.raises(UserError, match=r"No space left on device \(it needs .* are free\); no files were"):
        convert(str(source), tmp_path / "out", ConversionOptions("mrt5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "ours"]


def test_a_pickle(tmp_path: Path):
    source = saved(tmp_path / "ours")
    state = tensors_of(source)
    torch.save(state, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="--no-pickle"):
        convert(str(source), tmp_path / "out", ConversionOptions("mrt5", allow_pickle=False))
    assert not (tmp_path / "out").exists()
    convert(str(source), tmp_path / "out", ConversionOptions("mrt5"))
    assert tensors_of(tmp_path / "out").keys() == state.keys()
