"""Which weights are the best, when patience ends, and what of them stays on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mrt5cli.errors import UserError
from mrt5cli.rundir import RunDir, write_json
from mrt5cli.training.best import Best, check_kept, go_back_to, keep_needed

STATE = "mrt5_state_0.json"


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


def run_with(folder: Path, *, weights: list[int], checkpoints: dict[int, int | None]) -> RunDir:
    """A run that keeps weights of some steps, and checkpoints that each call one of them the best."""
    run = RunDir.create(folder / "run")
    for step in weights:
        write_json(run.best_weights(step) / "config.json", {})
    for step, best in checkpoints.items():
        write_json(run.checkpoint(step) / STATE, {"best": {"value": 1.0, "step": best, "waited": 0}})
    return run


def test_weights_stay_as_long_as_a_checkpoint_may_need_them(tmp_path: Path):
    run = run_with(tmp_path, weights=[5, 10, 15, 20, 25], checkpoints={12: 10, 18: 15})
    keep_needed(run, Best("loss", step=25), STATE)
    assert run.best_steps() == [10, 15, 25]
    assert sorted(path.name for path in run.best.iterdir()) == [f"step-000000{step}" for step in (10, 15, 25)]


def test_checkpoints_from_before_the_first_evaluation_need_none(tmp_path: Path):
    run = run_with(tmp_path, weights=[5, 10], checkpoints={3: None})
    write_json(run.checkpoint(4) / STATE, {"best": None})
    run.checkpoint(6).mkdir()  # of another number of processes, say: no state of this name
    run.checkpoint(7).mkdir()
    (run.checkpoint(7) / STATE).write_text('{"best": {"val')  # nobody can go on from this one
    keep_needed(run, Best("loss", step=10), STATE)
    assert run.best_steps() == [10]


def test_going_back_leaves_no_weights_of_later_steps(tmp_path: Path):
    run = run_with(tmp_path, weights=[10, 15, 20], checkpoints={})
    go_back_to(run, Best("loss", value=1.0, step=10), 15)
    assert run.best_steps() == [10, 15]
    go_back_to(run, Best("loss"), 0)
    assert run.best_steps() == []


def test_lost_weights_are_noticed(tmp_path: Path):
    run = run_with(tmp_path, weights=[10], checkpoints={})
    best = Best("loss", value=1.0, step=15)
    with pytest.raises(UserError, match=r"has lost its best weights: they were measured at step 15"):
        go_back_to(run, best, 20)
    with pytest.raises(UserError, match="has lost its best weights"):
        check_kept(run, best)
    assert check_kept(run, Best("loss", value=1.0, step=10)) == run.best_weights(10)
    assert check_kept(run, Best("loss")) is None


def test_half_written_weights_are_cleared_away(tmp_path: Path):
    run = run_with(tmp_path, weights=[10], checkpoints={})
    run.recipe_path.write_text("name: x\n")
    write_json(run.meta_path, {})
    (run.best / ".tmp-step-00000020").mkdir()
    RunDir.create(run.path)
    assert [path.name for path in run.best.iterdir()] == ["step-00000010"]
    assert run.best_steps() == [10]
