"""Which weights are the best, when patience ends, and what of them stays on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mrt5cli.rundir import RunDir
from mrt5cli.training.best import Best
from mrt5cli.writing import write_json


def offered(best: Best, *values: float) -> list[bool]:
    return [best.offer(10 * (number + 1), value) for number, value in enumerate(values)]


def test_the_lowest_loss_is_best():
    best = Best("loss")
    assert offered(best, 2.0, 1.5, 1.7, 1.2) == [True, True, False, True]
    assert (best.value, best.step, best.waited) == (1.2, 40, 0)


@pytest.mark.parametrize("metric", ["token_accuracy", "sequence_accuracy", "exact_match", "f1"])
def test_of_everything_else_the_highest(metric: str):
    best = Best(metric)
    assert offered(best, 0.0, 0.5, 0.4) == [True, True, False]
    assert (best.value, best.step, best.waited) == (0.5, 20, 1)


def test_of_equals_the_first_stays():
    best = Best("f1", patience=2)
    assert offered(best, 0.5, 0.5, 0.5) == [True, False, False]
    assert (best.step, best.exhausted) == (10, True)


def test_what_is_no_number_is_never_better():
    best = Best("loss")
    assert offered(best, math.nan, math.inf, 3.0, math.nan) == [False, False, True, False]
    assert best.value == 3.0


def test_patience_counts_evaluations_since_the_best():
    best = Best("loss", patience=3)
    states = []
    for step, value in enumerate([2.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0], start=1):
        best.offer(step, value)
        states.append(best.exhausted)
    assert states == [False] * 6 + [True]


def test_without_patience_it_waits_for_ever():
    best = Best("loss")
    offered(best, *[1.0] * 50)
    assert not best.exhausted


def test_goes_on_from_its_state():
    best = Best("loss", patience=2)
    offered(best, 2.0, 3.0)
    other = Best("loss", patience=2)
    other.load_state_dict(json.loads(json.dumps(best.state_dict())))
    assert other == best
    assert not other.offer(30, 2.5) and other.exhausted


# --- on disk ----------------------------------------------------------------------------------------------


def run_with(folder: Path, *, weights: list[int], checkpoints: list[int]) -> RunDir:
    """A run that keeps weights of some steps as the best of their time, and checkpoints."""
    run = RunDir.create(folder / "run")
    for step in weights:
        write_json(run.best_weights(step) / "config.json", {})
    for step in checkpoints:
        write_json(run.checkpoint(step) / "config.json", {})
    return run


def test_weights_stay_as_long_as_a_checkpoint_may_need_them(tmp_path: Path):
    run = run_with(tmp_path, weights=[5, 10, 15, 20, 25], checkpoints=[3, 12, 18])
    run.prune(checkpoints=3)
    assert run.best_steps() == [10, 15, 25]
    assert sorted(path.name for path in run.best.iterdir()) == [f"step-000000{step}" for step in (10, 15, 25)]


def test_weights_of_a_checkpoints_own_step_are_its_best(tmp_path: Path):
    run = run_with(tmp_path, weights=[5, 10, 15], checkpoints=[10])
    run.prune(checkpoints=3)
    assert run.best_steps() == [10, 15]


def test_going_back_leaves_no_weights_of_later_steps(tmp_path: Path):
    run = run_with(tmp_path, weights=[10, 15, 20], checkpoints=[])
    run.go_back_to(15)
    assert run.best_steps() == [10, 15]
    run.go_back_to(0)
    assert run.best_steps() == []


def test_half_written_weights_are_cleared_away(tmp_path: Path):
    run = run_with(tmp_path, weights=[10], checkpoints=[])
    run.recipe_path.write_text("name: x\n")
    write_json(run.meta_path, {})
    (run.best / ".tmp-step-00000020").mkdir()
    RunDir.create(run.path)
    assert [path.name for path in run.best.iterdir()] == ["step-00000010"]
    assert run.best_steps() == [10]
