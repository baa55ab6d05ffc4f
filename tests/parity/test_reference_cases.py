"""The authors' code beyond the golden cases: its first version, gates and poolings at the first layer, with
learned positions or without a mask, and the score loss of hard steps. See fixtures/reference/README.md."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models.layouts import fields_of, is_first_version, move_gate
from mrt5cli.models.shorteners.fixed import FixedGate

FIXTURES = Path(__file__).parents[1] / "fixtures"
V1 = sorted((FIXTURES / "golden" / "v1").iterdir())
TENSORS = {
    name: load_file(FIXTURES / "reference" / f"{name}.safetensors") for name in ("first_version", "later")
}
CASES = [
    pytest.param(version, case, id=f"{version}-{case['name']}")
    for version in TENSORS
    for case in json.loads((FIXTURES / "reference" / f"{version}.json").read_text())
]
AS_THE_REFERENCE = {
    "shortening_per": "batch",
    "boundary_sampling": "always",
    "row_without_survivors": "first",
}
STATES = {"atol": 2e-5, "rtol": 1e-4}


def weight(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of a case: normal numbers that follow from the seed and the name its makers give it."""
    state = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
    drawn = torch.from_numpy(state.standard_normal(shape).astype(np.float32))
    if name.endswith("delete_gate.feed_forward.weight"):
        return drawn
    if name.endswith(("layer_norm.weight", "down_ln.weight")):
        return 1 + np.float32(0.2) * drawn
    return np.float32(0.6 if ".q." in name else 0.15) * drawn


def checkpoint(case: dict[str, Any], folder: Path) -> Path:
    """The case's checkpoint as the authors' code would have saved it."""
    config = case["config"]
    with torch.device("meta"):
        model = MrT5ForConditionalGeneration(MrT5Config(**fields_of(config, "")))
    moved = -1 if is_first_version(config) else 0
    state = {
        move_gate(name, moved): weight(case["seed"], move_gate(name, moved), tuple(parameter.shape))
        for name, parameter in model.named_parameters()
    }
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(model: MrT5ForConditionalGeneration, tensors: dict[str, torch.Tensor], name: str, call: dict, **more):
    ids = tensors[f"{name}.ids"]
    with torch.no_grad():
        return model(
            ids,
            attention_mask=(ids != 0).long() if call["mask"] else None,
            labels=tensors[f"{name}.labels"],
            hard_delete=bool(call["hard"]),
            **more,
        )


def test_all_cases_are_here():
    assert (len(V1), len(CASES)) == (3, 24)


@pytest.mark.parametrize("attention", ["eager", "packed"])
@pytest.mark.parametrize(("version", "case"), CASES)
def test_forward(version: str, case: dict[str, Any], attention: str, tmp_path: Path):
    tensors = TENSORS[version]
    folder = checkpoint(case, tmp_path / "theirs")
    model = load(folder, attn_implementation=attention, **AS_THE_REFERENCE)
    for call in case["calls"]:
        scores = {"output_score_loss": True, "score_loss_per": "batch"} if "score_loss" in call else {}
        torch.manual_seed(case["seed"])
        out = run(model, tensors, case["name"], call, **scores)
        torch.testing.assert_close(out.logits[..., ::16], tensors[call["tensors"] + ".logits"], **STATES)
        if call["hard"] is not None:
            gate = tensors[call["tensors"] + ".gate"]
            torch.testing.assert_close(out.delete_gate_output, gate, **STATES)
        if scores:
            assert out.score_loss.item() == pytest.approx(call["score_loss"], abs=1e-5), call["tensors"]


@pytest.mark.parametrize("number", range(16))
def test_fixed_deletion_over_a_batch(number: int):
    tensors = TENSORS["later"]
    ids, keep = (tensors[f"fixed_masks.{number:02d}.{part}"] for part in ("ids", "keep"))
    amount = (0.3, 0.5, 0.7)[number % 3]
    gate = FixedGate(MrT5Config(fixed_deletion_amount=amount, shortening_per="batch"))
    values, _ = gate.score(torch.zeros(*ids.shape, 1), torch.zeros_like(ids, dtype=torch.bool), ids)
    assert torch.equal(values == 0, keep)


# --- the first version ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("folder", V1, ids=lambda folder: folder.name)
def test_first_version(folder: Path, attention: str):
    tensors = load_file(folder / "case.safetensors")
    model = load(folder, attn_implementation=attention)
    for mode in ("soft", "hard"):
        with torch.no_grad():
            out = model(tensors["in.input_ids"], labels=tensors["in.labels"], hard_delete=mode == "hard")
        torch.testing.assert_close(out.logits, tensors[f"out.{mode}.logits"], **STATES)
        torch.testing.assert_close(out.loss, tensors[f"out.{mode}.loss"], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.delete_gate_output, tensors[f"out.{mode}.gate"], **STATES)


@pytest.mark.parametrize("folder", V1, ids=lambda folder: folder.name)
def test_first_version_there_and_back(folder: Path, tmp_path: Path):
    outcome = convert(str(folder), tmp_path / "ours", ConversionOptions("mrt5"))
    assert outcome.read == "the authors' MrT5, first version"
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "mrt5"
    assert config["delete_gate_layer"] == int(folder.name) + 1
    assert config["gate_layer_norm_type"] == "layer"
    assert "output_attn_logs" not in config
    convert(str(tmp_path / "ours"), tmp_path / "theirs", ConversionOptions("reference-v1"))
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "theirs"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs = json.loads((folder / "config.json").read_text())
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del theirs["transformers_version"]
    assert {key: written.get(key) for key in theirs} == theirs
    assert set(written) - set(theirs) == {"tokenizer_class"}


def first_version(tmp_path: Path, **fields: Any) -> Path:
    """A copy of one, with a field of config.json changed; None takes it away."""
    folder = tmp_path / "changed"
    folder.mkdir()
    config = json.loads((V1[1] / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((V1[1] / "model.safetensors").read_bytes())
    return folder


def test_first_version_is_told_by_its_weights(tmp_path: Path):
    folder = first_version(tmp_path, output_attn_logs=None)
    assert load(folder).config.delete_gate_layer == 2
    assert (
        convert(str(folder), tmp_path / "ours", ConversionOptions("mrt5")).read
        == "the authors' MrT5, first version"
    )


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_first_version_in_a_pickle(zipped: bool, tmp_path: Path):
    folder = first_version(tmp_path, output_attn_logs=None)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    found, expected = load(folder).state_dict(), load(V1[1]).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_first_version_after_the_last_block_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"follows the last encoder block \(delete_gate_layer 4 of 5"):
        load(first_version(tmp_path, delete_gate_layer=4))


def test_a_gate_elsewhere_than_config_says_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"4 weights missing, first encoder.block.3.delete_gate"):
        load(first_version(tmp_path, delete_gate_layer=2))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"deletion_type": "none"}, "it supports delete gates only"),
        ({"deletion_type": "convolution"}, "it supports delete gates only"),
        ({"delete_gate_layer": 0}, "this one precedes the first"),
        ({"gate_layer_norm_type": "rms"}, "this one's has neither"),
    ],
)
def test_what_the_first_version_cannot_hold(fields: dict[str, Any], why: str, tmp_path: Path):
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 1}
    defaults = {"delete_gate_layer": 1, "gate_layer_norm_type": "layer"}
    MrT5ForConditionalGeneration(MrT5Config(**{**sizes, **defaults, **fields})).save_pretrained(
        tmp_path / "m"
    )
    with pytest.raises(Exception, match=why):
        convert(str(tmp_path / "m"), tmp_path / "out", ConversionOptions("reference-v1"))
    assert not (tmp_path / "out").exists()
