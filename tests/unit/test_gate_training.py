"""How gates learn: planted states, gradients made by hand and measured, and the checkpoints of a tiny run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import NO_GATE, SPANS, VOWELS, make_run

from mrt5cli.analysis.gate_training import Positions, area, by_class, gate_training, look, probe, scores
from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.byte_tokens import EOS, encode
from mrt5cli.models import MrT5ForConditionalGeneration, load
from mrt5cli.report.analysis_tables import analysis_tables
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import Batch, Task, build_task
from mrt5cli.writing import write_json

RNG = np.random.default_rng(0)
WIDTH = 6


def positions(states: np.ndarray, can_go: np.ndarray, logits: np.ndarray, **more: Any) -> Positions:
    """Letters of as many strings as there are positions."""
    ids = np.full(len(can_go), encode("a")[0])
    first = np.arange(len(can_go)) < len(can_go) / 2
    found = Positions(ids, can_go, logits <= 0, logits, np.zeros_like(logits), states, first)
    return replace(found, **more)


# --- the probe -------------------------------------------------------------------------------------------


def test_a_probe_finds_what_a_direction_holds_and_not_what_none_does() -> None:
    states = RNG.normal(size=(4000, WIDTH)).astype(np.float32)
    states[:, 2] += 40  # far from the middle, and of another size, as states are
    states[:, 3] *= 100
    wrong = RNG.normal(size=4000).astype(np.float32)
    along = states[:, 0] - 2 * states[:, 1]
    kept = np.abs(along) > 0.3  # so that some line parts the two
    told = scores(positions(states[kept], along[kept] > 0, wrong[kept]))
    assert (told["probe_precision"], told["probe_recall"], told["probe_auc"]) == (1.0, 1.0, 1.0)
    assert told["gate_auc"] == pytest.approx(0.5, abs=0.05)
    hidden = scores(positions(states, RNG.random(4000) < 0.5, wrong))
    assert hidden["probe_auc"] == pytest.approx(0.5, abs=0.05)
    assert hidden["probe_precision"] == pytest.approx(0.5, abs=0.05)
    # Neither is a bend: the product of two directions is nothing that a line sees.
    assert scores(positions(states, states[:, 0] * states[:, 1] > 0, wrong))["probe_auc"] < 0.6


def test_odds_of_a_probe_are_those_of_how_the_states_were_drawn() -> None:
    """Two normal distributions a distance d apart, one of them three times as frequent: odds are linear."""
    can_go = RNG.random(40_000) < 0.25
    states = (RNG.normal(size=(40_000, 1)) + 1.5 * can_go[:, None]).astype(np.float32)
    odds = probe(states, can_go, np.array([[0.0], [1.0]], dtype=np.float32))
    assert odds == pytest.approx(np.log(0.25 / 0.75) + 1.5 * (np.array([0.0, 1.0]) - 0.75), abs=0.1)


def test_what_is_fitted_is_not_what_is_scored() -> None:
    """More directions than positions fit anything; on other strings that is worth nothing."""
    states = RNG.normal(size=(200, 150)).astype(np.float32)
    told = scores(positions(states, RNG.random(200) < 0.5, np.ones(200, dtype=np.float32)))
    assert told["probe_auc"] == pytest.approx(0.5, abs=0.2)
    assert told["gate_precision"] is None  # it deletes nothing
    assert (told["gate_recall"], told["gate_auc"]) == (0.0, 0.5)


def test_a_gate_is_scored_by_its_logits_and_markers_are_left_out() -> None:
    states, can_go = RNG.normal(size=(400, WIDTH)).astype(np.float32), np.arange(400) % 4 == 1
    logits = np.where(can_go, -1, 2).astype(np.float32)
    logits[can_go & (np.arange(400) % 8 == 1)] = 1.0  # half of them stay, though less surely than others
    ids = np.where(np.arange(400) % 2 == 0, encode("#")[0], encode("a")[0])
    logits[ids == encode("#")[0]] = -9  # and they cannot go, the task says
    told = scores(positions(states, can_go, logits, ids=ids))
    assert (told["gate_precision"], told["gate_recall"], told["gate_auc"]) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize("can_go", [True, False])
def test_without_two_classes_there_is_nothing_to_tell_apart(can_go: bool) -> None:
    told = scores(positions(np.ones((8, WIDTH), np.float32), np.full(8, can_go), np.ones(8, np.float32)))
    assert {told[name] for name in told if name.startswith("probe") or name.endswith("auc")} == {None}


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_the_area_counts_pairs(drawn: list[tuple[int, bool]]) -> None:
    odds, can_go = np.array([one for one, _ in drawn], float), np.array([can for _, can in drawn], bool)
    pairs = [(a > b) + (a == b) / 2 for a in odds[can_go] for b in odds[~can_go]]
    assert area(odds, can_go) == (pytest.approx(np.mean(pairs)) if pairs else None)


# --- classes ---------------------------------------------------------------------------------------------


def test_logits_and_gradients_are_counted_by_class() -> None:
    ids = np.array([*encode("#abcde"), EOS])
    found = positions(
        np.zeros((7, 1), np.float32),
        np.array([0, 1, 0, 0, 0, 1, 0], bool),
        np.array([-5, 0, 1, 2, -3, -1, -6], np.float32),
        ids=ids,
        gradients=np.array([1e-9, 0.25, -1, 3, -0.5, 0.75, 3e-9], np.float32),
    )
    told = by_class(found)
    assert told["logits"]["not_needed"] == pytest.approx({"low": -0.9, "median": -0.5, "high": -0.1})
    assert told["logits"]["needed"]["median"] == 1
    assert told["logits"]["markers"]["median"] == -5.5
    assert told["gradients"] == {
        "needed": {"open": 2.0, "open_positions": 2, "closed": 0.5, "closed_positions": 1},
        "not_needed": {"open": None, "open_positions": 0, "closed": 0.5, "closed_positions": 2},
        "markers": {"open": None, "open_positions": 0, "closed": pytest.approx(2e-9), "closed_positions": 2},
    }
    assert by_class(replace(found, ids=np.full(7, EOS)))["logits"]["needed"] is None


# --- models ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """With checkpoints of steps 1 and 2, and finished at step 2; its gate deletes about half."""
    made = RunDir(make_run(tmp_path_factory.mktemp("runs"), "gate"))
    for step in (1, 2):
        shutil.copytree(made.model, made.checkpoint(step))
    write_json(made.meta_path, {"status": "finished", "step": 2})
    return made


@pytest.fixture(scope="module")
def task(run: RunDir) -> Task:
    return build_task(run.recipe().task)


def batches(task: Task, count: int, size: int = 4) -> list[Batch]:
    return list(task.held_out("test", "all", batch_size=size, limit=count))


def model_of(run: RunDir) -> MrT5ForConditionalGeneration:
    return load(str(run.model), dtype="float32")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_states_are_what_the_gate_is_linear_in(tmp_path: Path, task: Task, layer: int, norm: str) -> None:
    gate = {"kind": "delete_gate", "layer": layer, "bias_init": 0.0, "norm": norm}
    model = model_of(RunDir(make_run(tmp_path, "gate", shortener=gate)))
    found = look(model, batches(task, 8), task)
    linear = model.encoder.shortener.feed_forward  # type: ignore[union-attr]
    with torch.no_grad():
        again = linear(torch.from_numpy(found.states))[:, 0].numpy()
    assert found.logits == pytest.approx(again, abs=1e-5)
    assert found.deleted.tolist() == (found.logits <= 0).tolist()
    assert found.first.sum() * 2 == len(found.ids) == 8 * VOWELS["length"]


def test_gradients_are_what_a_moved_logit_changes(
    run: RunDir, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, [batch] = model_of(run), batches(task, 1, 1)
    found = look(model, [batch], task)
    gate, scored, step = model.encoder.shortener, type(model.encoder.shortener).score, 0.02
    assert gate is not None
    for place in np.abs(found.gradients).argsort()[-2:].tolist():
        losses = []
        for moved in (step, -step):

            def score(states: Any, padding: Any, ids: Any, at: int = place, by: float = moved) -> Any:
                _, logits = scored(gate, states, padding, ids)  # type: ignore[arg-type]
                logits[0, at] += by
                return gate.scale * torch.sigmoid(-logits), logits

            monkeypatch.setattr(gate, "score", score)
            with torch.no_grad():
                out = model(**batch, hard_delete=False, num_items_in_batch=1)
            losses.append(float(out.cross_entropy))
        monkeypatch.undo()
        assert found.gradients[place] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=0.03)


def test_a_string_is_looked_at_as_if_alone_and_padding_is_none(run: RunDir, task: Task) -> None:
    model, [batch] = model_of(run), batches(task, 2, 2)
    short = {name: values.clone() for name, values in batch.items()}
    short["input_ids"][1, 9:], short["attention_mask"][1, 9:], short["labels"][1, 4:] = 0, 0, -100
    both = look(model, [short], task)
    assert len(both.ids) == VOWELS["length"] + 9
    for row, length, targets in ((0, VOWELS["length"], None), (1, 9, 4)):
        alone = {name: values[row : row + 1, :length] for name, values in short.items() if name != "labels"}
        found = look(model, [{**alone, "labels": short["labels"][row : row + 1, :targets]}], task)
        part = slice(0, length) if row == 0 else slice(-length, None)
        assert both.gradients[part] == pytest.approx(found.gradients, rel=1e-3, abs=1e-6)


def test_hardly_any_gradient_reaches_a_gate_that_is_shut(run: RunDir, task: Task) -> None:
    model, means = model_of(run), {}
    linear = model.encoder.shortener.feed_forward  # type: ignore[union-attr]
    torch.nn.init.zeros_(linear.weight)
    for bias in (2.0, -12.0):
        torch.nn.init.constant_(linear.bias, bias)
        told = by_class(look(model, batches(task, 8), task))["gradients"]["needed"]
        means |= {state: told[state] for state in ("open", "closed") if told[state] is not None}
    assert means["closed"] < 1e-3 * means["open"]


# --- runs ------------------------------------------------------------------------------------------------


def runs_of(*found: RunDir) -> ExperimentRuns:
    return ExperimentRuns("x", tuple(ExperimentRun(run.recipe().name, run.recipe(), run) for run in found))


def test_a_run_is_followed_over_its_checkpoints(run: RunDir, tmp_path: Path) -> None:
    others = (
        make_run(tmp_path, "byt5", shortener=NO_GATE),
        make_run(tmp_path, "spans", task=SPANS),
        make_run(tmp_path, "random", shortener={"kind": "random", "layer": 1, "rate": 0.25}),
    )
    document = gate_training(runs_of(run, *map(RunDir, others)))
    [model] = document["models"]
    assert (model["recipe"], model["task"], model["examples"]) == ("gate", "vowel_removal", 40)
    # The finished model takes the place of the checkpoint of its step.
    assert [one["step"] for one in model["checkpoints"]] == [1, 2]
    first, last = ({**one, "step": 0} for one in model["checkpoints"])
    assert first == last  # as their weights are
    assert {name: model[name] for name in model["checkpoints"][1]} == model["checkpoints"][1]
    [table] = analysis_tables("gate_training", document)
    assert table.rows[0][:3] == ("gate", "3", "2")
    assert len(table.rows[0]) == len(table.headers)


def test_a_run_without_checkpoints_has_its_model(tmp_path: Path) -> None:
    [model] = gate_training(runs_of(RunDir(make_run(tmp_path, "gate"))))["models"]
    assert [one["step"] for one in model["checkpoints"]] == [1]  # as its recipe says


def test_the_best_weights_stand_at_their_own_step(run: RunDir) -> None:
    meta = run.meta()
    try:
        write_json(run.meta_path, {**meta, "step": 3, "best": {"step": 1}})
        [model] = gate_training(runs_of(run))["models"]
    finally:
        write_json(run.meta_path, meta)
    assert [one["step"] for one in model["checkpoints"]] == [1, 2]


def test_where_nothing_can_go_logits_are_told_all_the_same(tmp_path: Path) -> None:
    path = make_run(tmp_path, "copy", task={**VOWELS, "kind": "copy"})
    [model] = gate_training(runs_of(RunDir(path)))["models"]
    assert model["logits"]["not_needed"] is None
    assert model["logits"]["needed"] is not None
    assert model["probe_auc"] is None
