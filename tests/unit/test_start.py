"""Where a training starts: whose weights it has, and what is said about those it has not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import GATE, NO_GATE, make_run

from mrt5cli.errors import UserError
from mrt5cli.recipe import ModelSection
from mrt5cli.training.start import check_start, model_to_start

BP = {"kind": "boundary_predictor", "layer": 1, "prior": 0.5}
CP = {"kind": "convolution", "layer": 1, "stride": 2}
RANDOM = {"kind": "random", "layer": 1, "rate": 0.5}
KINDS = {"byt5": NO_GATE, "mrt5": GATE, "bp": BP, "cp": CP, "random": RANDOM}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: str(make_run(folder, name, shortener=kind)) for name, kind in KINDS.items()}


def start(run: str, shortener: dict[str, Any], **more: Any) -> tuple[Any, str | None, list[str]]:
    found = model_to_start(ModelSection.model_validate({"start": run, "shortener": shortener, **more}))
    carried = re.search(r", (.*) included$", found.origin)
    return found.model, carried and carried[1], found.notes


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("name", "carried"),
    [("mrt5", "delete gate"), ("bp", "boundary predictor"), ("cp", "strided convolution")],
)
def test_a_shortener_of_the_same_kind_goes_on(runs: dict[str, str], name: str, carried: str):
    from mrt5cli.models import load

    model, found, notes = start(runs[name], KINDS[name])
    assert (found, notes) == (carried, [])
    assert model.training
    before = weights(load(f"{runs[name]}/model"))
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def test_a_gate_keeps_what_it_learned_under_another_prior_scale_or_threshold(runs: dict[str, str]):
    model, carried, notes = start(runs["mrt5"], {**GATE, "scale": -20.0, "bias_init": 3.0})
    assert (carried, notes) == ("delete gate", [])
    assert model.config.sigmoid_mask_scale == -20.0
    bias = weights(model)["encoder.block.1.delete_gate.feed_forward.bias"]
    assert bias.tolist() == [0.0]
    assert start(runs["bp"], {**BP, "prior": 0.3})[1] == "boundary predictor"


def test_a_threshold_that_was_moved_is_not_lost_without_a_word(runs: dict[str, str], tmp_path: Path):
    from mrt5cli.models import load

    load(runs["mrt5"], deletion_threshold=-8.0).save_pretrained(tmp_path)
    _, carried, notes = start(str(tmp_path), GATE)
    assert carried == "delete gate"
    told = f"{tmp_path} deletes at gate values up to -8; this run uses the recipe's threshold, -15"
    assert notes == [told]
    assert start(str(tmp_path), {**GATE, "threshold": -8.0})[2] == []


@pytest.mark.parametrize(
    ("name", "shortener", "note"),
    [
        ("byt5", GATE, "the delete gate is randomly initialized: {run} has none at that layer"),
        ("byt5", CP, "the strided convolution is randomly initialized: {run} has none at that layer"),
        ("bp", GATE, "the delete gate is randomly initialized: {run} has none at that layer"),
        ("random", GATE, "the delete gate is randomly initialized: {run} has none at that layer"),
        (
            "mrt5",
            {**GATE, "layer": 0},
            "the delete gate is randomly initialized: {run} has none at that layer",
        ),
        ("mrt5", NO_GATE, "the delete gate of {run} is not used"),
        ("cp", RANDOM, "the strided convolution of {run} is not used"),
    ],
)
def test_one_note_where_shorteners_differ(
    runs: dict[str, str], name: str, shortener: dict[str, Any], note: str
):
    _, carried, notes = start(runs[name], shortener)
    assert carried is None
    assert notes == [note.format(run=runs[name])]


@pytest.mark.parametrize(("name", "shortener"), [("byt5", NO_GATE), ("byt5", RANDOM), ("random", NO_GATE)])
def test_nothing_to_say_where_no_weights_are_concerned(
    runs: dict[str, str], name: str, shortener: dict[str, Any]
):
    assert start(runs[name], shortener)[1:] == (None, [])


def test_softmax_goes_on_as_softmax1(tmp_path: Path):
    run = str(make_run(tmp_path, "plain", shortener=NO_GATE, softmax1=False))
    model, _, notes = start(run, NO_GATE)
    assert model.config.use_softmax1 and notes == []


def refused(run: str, shortener: dict[str, Any], **more: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        start(run, shortener, **more)
    assert "\n" not in caught.value.message
    return caught.value


def test_another_stride(runs: dict[str, str]):
    error = refused(runs["cp"], {**CP, "stride": 3})
    assert "strided convolution with stride 2, whose weights do not fit" in error.message
    assert error.message.endswith("model.shortener.stride 3")
    assert "--set model.shortener.stride=2" in str(error.hint)
    assert start(runs["cp"], {**CP, "stride": 3, "layer": 0})[1] is None  # there it starts fresh


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_another_norm(runs: dict[str, str], norm: str):
    error = refused(runs["mrt5"], {**GATE, "norm": norm})
    assert f"delete gate with norm rms, whose weights do not fit model.shortener.norm {norm}" in error.message
    assert "--set model.shortener.norm=rms" in str(error.hint)


def test_another_depth(runs: dict[str, str]):
    assert (
        "delete_gate_layer 3 is not below num_layers 2" in refused(runs["byt5"], {**GATE, "layer": 3}).message
    )


def test_learned_positions(tmp_path: Path):
    run = str(make_run(tmp_path, "absolute", positions="absolute", max_positions=32))
    error = refused(run, GATE)
    assert "has 32 learned absolute positions, but model.positions is relative" in error.message
    assert "--set model.positions=absolute --set model.max_positions=32" in str(error.hint)
    assert start(run, GATE, positions="absolute", max_positions=32)[1] == "delete gate"


def test_no_learned_positions(runs: dict[str, str]):
    refused(runs["mrt5"], GATE, positions="absolute", max_positions=32)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./nothing", "./nothing does not exist"),
        ("runs/byt6-seed3", "runs/byt6-seed3 does not exist"),
        (".", "neither a run"),
        ("a_file", "is a file"),
        ("someone/some-model", "is neither a directory here nor available from the Hugging Face Hub"),
    ],
)
def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    assert told in refused(name, GATE).message


def test_a_run_that_a_shipped_recipe_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"model.start: .* does not exist") as caught:
        check_start("runs/multilingual-v3-mrt5-50-seed40")
    assert str(caught.value.hint).endswith(": mrt5 pretrain multilingual_v3/mrt5_50")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (
            "runs/quickstart-byt5-seed7",
            "the recipe quickstart_byt5 trains it: mrt5 pretrain quickstart_byt5 --set seed=7",
        ),
        (
            "runs/quickstart-byt5-seed42",
            "the recipe quickstart_byt5 trains it: mrt5 pretrain quickstart_byt5",
        ),
        ("runs/quickstart-byt5-seed", None),
        ("runs/quickstart-byt5", None),
        ("elsewhere/runs/quickstart-byt5-seed7", None),
    ],
)
def test_a_run_that_a_shipped_recipe_makes_with_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, told: str | None
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_start(start)
    assert caught.value.message == f"model.start: {start} does not exist"
    if told is None:
        assert "recipe" not in str(caught.value.hint)
    else:
        assert str(caught.value.hint) == told
