"""Deletion by configuration: what `inference_deletion` says holds wherever a call says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from tiny_runs import make_run
from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from typer.testing import CliRunner

from mrt5cli import recipe as recipes
from mrt5cli.cli import app
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, build, load

TEXTS = ["A text that is long enough to lose some bytes.", "A shorter one."]


def tiny(**fields) -> MrT5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2}
    model = MrT5ForConditionalGeneration(MrT5Config(**sizes, delete_gate_layer=2, **fields))
    if model.config.deletion_type == "scaled_sigmoid":
        gate = model.encoder.block[2].delete_gate.feed_forward
        gate.weight.data.mul_(20)
        gate.bias.data.zero_()
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    return dict(ByT5Tokenizer()(TEXTS, padding=True, return_tensors="pt"))


def lengths(model: MrT5ForConditionalGeneration, **given) -> tuple[int, int]:
    """Positions that the encoder returns: called alone, and by the whole model."""
    with torch.inference_mode():
        alone = model.get_encoder()(**batch(), **given).last_hidden_state.shape[1]
        whole = model(**batch(), labels=torch.ones(2, 3, dtype=torch.long), **given)
    return alone, whole.encoder_last_hidden_state.shape[1]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A model in the Hub's layout, whose config.json says "hard"."""
    tiny(inference_deletion="hard").save_pretrained(tmp_path / "model")
    words = ["convert", str(tmp_path / "model"), str(tmp_path / "export"), "--to", "hub"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return tmp_path / "export"


def test_a_call_that_says_nothing():
    length = batch()["input_ids"].shape[1]
    soft, hard = tiny(), tiny(inference_deletion="hard")
    assert lengths(soft) == (length, length)
    short, _ = lengths(hard)
    assert 0 < short < length
    assert lengths(hard) == lengths(soft, hard_delete=True) == (short, short)
    assert lengths(hard, hard_delete=False) == (length, length), "what a call says comes first"


def test_training_gates_softly():
    model = tiny(inference_deletion="hard").train()
    length = batch()["input_ids"].shape[1]
    assert lengths(model) == (length, length)
    assert lengths(model, hard_delete=True) < (length, length)


def test_a_loaded_model_can_be_told_otherwise():
    model = tiny()
    model.config.inference_deletion = "hard"
    usual = lengths(model)
    assert usual == lengths(model, hard_delete=True)
    model.config.deletion_threshold = -29.9
    assert lengths(model) > usual, "the threshold, too, is read at every call"


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True}]
)
def test_generate_and_beams(how: dict):
    model, told = tiny(inference_deletion="hard"), tiny()
    seen: list[int] = []
    model.encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.shape[1]))
    how = how | {"max_new_tokens": 12, "min_new_tokens": 12}
    torch.manual_seed(1)
    found = model.generate(**batch(), **how)
    assert seen == [lengths(told, hard_delete=True)[0]]
    torch.manual_seed(1)
    assert torch.equal(found, told.generate(**batch(), **how, hard_delete=True))


def test_a_pipeline():
    model, tokenizer = tiny(inference_deletion="hard"), ByT5Tokenizer()
    found = pipeline("feature-extraction", model=model.encoder, tokenizer=tokenizer)(
        TEXTS[0], return_tensors=True
    )
    with torch.inference_mode():
        states = (
            tiny()
            .encoder(tokenizer(TEXTS[0], return_tensors="pt").input_ids, hard_delete=True)
            .last_hidden_state
        )
    torch.testing.assert_close(found, states)
    assert found.shape[1] < len(TEXTS[0])


@pytest.mark.parametrize("remote", [False, True], ids=["registered", "remote code"])
def test_an_export_in_plain_transformers(export: Path, remote: bool):
    cls = AutoModelForSeq2SeqLM
    if remote:  # what trust_remote_code finds where the package is not imported
        cls = get_class_from_dynamic_module("modeling_mrt5.MrT5ForConditionalGeneration", export)
    model = cls.from_pretrained(export)
    assert type(model).__module__.startswith("transformers_modules") == remote
    short, length = lengths(tiny(), hard_delete=True)[0], batch()["input_ids"].shape[1]
    assert lengths(model) == (short, short)
    soft = cls.from_pretrained(export, inference_deletion="soft")
    assert lengths(soft) == (length, length)


def test_who_says_hard(tmp_path: Path):
    authors = GOLDEN / "models" / "mrt5_g2"
    assert load(authors).config.inference_deletion == "soft", "as their code"
    plain, gate = GOLDEN / "models" / "t5", {"deletion_type": "scaled_sigmoid", "delete_gate_layer": 1}
    assert load(plain, **gate).config.inference_deletion == "hard", "a new gate, which is trained elsewhere"
    assert load(plain, **gate, inference_deletion="soft").config.inference_deletion == "soft"
    assert load(authors, sigmoid_mask_scale=-20.0).config.inference_deletion == "soft", "still their gate"
    run = make_run(tmp_path, "run")
    assert json.loads((run / "model" / "config.json").read_text())["inference_deletion"] == "hard"
    section = recipes.load(run / "recipe.yaml").model.model_copy(update={"start": str(authors)})
    model = build(section)
    assert model.config.inference_deletion == "hard", "a model of a recipe"


def test_the_recipe_is_the_only_one_to_say_what_a_loss_is(tmp_path: Path):
    tiny(gate_loss=0.5, score_loss=0.1).save_pretrained(tmp_path / "start")
    section = recipes.load(make_run(tmp_path, "run") / "recipe.yaml").model
    config = build(section.model_copy(update={"start": str(tmp_path / "start")})).config
    assert (config.gate_loss, config.score_loss) == (0.0, 0.0)


@pytest.mark.parametrize("deletion", ["soft", "hard"])
def test_sentence_vectors(deletion: str):
    model = tiny(inference_deletion=deletion)
    with torch.inference_mode():
        together = model.encoder(**batch())
        vectors = together.mean_pooled()
        assert vectors.shape == (2, 32)
        for row, text in enumerate(TEXTS):
            alone = model.encoder(ByT5Tokenizer()([text], return_tensors="pt").input_ids)
            torch.testing.assert_close(vectors[row], alone.mean_pooled()[0], atol=1e-5, rtol=1e-4)
            states = alone.last_hidden_state[0]
            kept = states if deletion == "hard" else states[alone.keep_mask[0]]
            assert len(kept) == alone.kept_lengths[0]
            torch.testing.assert_close(vectors[row], kept.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_sentence_vectors_without_a_gate():
    model = tiny(deletion_type="none")
    states = model.encoder(batch()["input_ids"][:1]).last_hidden_state
    found = model.encoder(batch()["input_ids"][:1]).mean_pooled()
    torch.testing.assert_close(found, states.mean(dim=1))


# --- what `mrt5 convert` stores -----------------------------------------------------------------------------


def convert(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["convert", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


def test_convert_stores_how_to_delete(tmp_path: Path):
    authors = GOLDEN / "models" / "mrt5_g2"
    assert convert(authors, tmp_path / "kept", "--to", "mrt5")[0] == 0
    assert load(tmp_path / "kept").config.inference_deletion == "soft", "theirs stays as it was"
    words = ("--inference-deletion", "hard", "--threshold", "-16")
    assert convert(authors, tmp_path / "hard", "--to", "hub", *words)[0] == 0
    config = load(tmp_path / "hard").config
    assert (config.inference_deletion, config.deletion_threshold) == ("hard", -16.0)
    assert convert(tmp_path / "hard", tmp_path / "theirs", "--to", "reference")[0] == 0
    assert convert(tmp_path / "theirs", tmp_path / "back", "--to", "mrt5")[0] == 0
    assert load(tmp_path / "back").config.inference_deletion == "hard", "lost on the way to theirs and back"


def test_a_new_gate_deletes_for_real(tmp_path: Path):
    assert (
        convert(GOLDEN / "models" / "t5", tmp_path / "start", "--to", "mrt5", "--gate", "log_sigmoid")[0] == 0
    )
    assert load(tmp_path / "start").config.inference_deletion == "hard"


def test_convert_stores_a_calibrated_rate(tmp_path: Path):
    run = make_run(tmp_path, "run")
    code, stdout, stderr = convert(run, tmp_path / "half", "--to", "mrt5", "--deletion-rate", "0.5", "--json")
    assert code == 0, stderr
    (note,) = [one for one in json.loads(stdout)["notes"] if "threshold" in one]
    config = load(tmp_path / "half").config
    assert config.deletion_rate == 0.5
    assert config.deletion_threshold != load(run).config.deletion_threshold
    assert f"{config.deletion_threshold:.4g}" in note
    # Another threshold is not the calibrated one, and a new gate has nothing to do with it.
    code, _, stderr = convert(tmp_path / "half", tmp_path / "moved", "--to", "mrt5", "--threshold", "-3")
    assert code == 0, stderr
    assert load(tmp_path / "moved").config.deletion_rate is None
    assert load(tmp_path / "half", sigmoid_mask_scale=-20.0).config.deletion_rate is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "byt5", "--inference-deletion", "hard"], "deletion options have no effect"),
        (["--to", "byt5", "--deletion-rate", "0.5"], "deletion options have no effect"),
        (["--to", "mrt5", "--deletion-rate", "0.3,0.5"], "one deletion threshold"),
        (["--to", "mrt5", "--deletion-rate", "0.3", "--threshold", "-3"], "one deletion threshold"),
        (["--to", "mrt5", "--deletion-rate", "1.5"], "a fraction of positions"),
        (["--to", "mrt5", "--threshold", "3"], "outside of the gate's range"),
        (["--to", "mrt5", "--data", "here"], "need --deletion-rate"),
        (["--to", "mrt5", "--deletion-rate", "0.5"], "has no recipe"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path):
    code, _, stderr = convert(GOLDEN / "models" / "mrt5_g2", tmp_path / "out", *words)
    assert code == 2
    assert message in " ".join(stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inference_deletion": "never"}, "inference_deletion"),
        ({"deletion_rate": 1.5}, "deletion_rate is 1.5; expected a fraction"),
        ({"score_loss": -1.0}, "score_loss is -1.0; expected a coefficient"),
    ],
)
def test_a_configuration_that_makes_no_sense(fields: dict, message: str):
    with pytest.raises(Exception, match=message):
        MrT5Config(**fields)


def test_a_rate_belongs_to_its_threshold(tmp_path: Path):
    model = tiny(deletion_threshold=-8.0, deletion_rate=0.5)
    assert model.config.deletion_rate == 0.5
    model.save_pretrained(tmp_path)
    assert load(tmp_path).config.deletion_rate == 0.5
    assert load(tmp_path, deletion_threshold=-9.0).config.deletion_rate is None
    cls = MrT5ForConditionalGeneration
    assert cls.from_pretrained(tmp_path, deletion_threshold=-9.0).config.deletion_rate is None
    model.config.deletion_threshold = None
    assert model.config.threshold == -15.0 and model.config.deletion_rate is None, "the gate's own"


def test_a_threshold_that_is_refused_names_the_models_own(tmp_path: Path):
    code, _, stderr = convert(
        GOLDEN / "models" / "mrt5_g2", tmp_path / "out", "--to", "mrt5", "--threshold", "5"
    )
    assert code == 2 and "this model's own threshold is -15" in " ".join(stderr.split())
