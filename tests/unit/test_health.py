"""Problems reported during training: collapsed gates, alpha at a bound; and no false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import Stream, make_trainer, tiny_model

from mrt5cli import recipe as recipes
from mrt5cli.recipe import ConstantController, LossSection, PIController, TwoSidedPIController
from mrt5cli.rundir import RunDir
from mrt5cli.training.health import LINES, Health
from mrt5cli.training.record import health

TWO_SIDED = {"kind": "pi_two_sided", "target_deletion_rate": 0.24, "alpha_max": 0.08}
PI = {"kind": "pi", "target_deletion_rate": 0.5}


def health_of(
    folder: Path, controller: dict[str, Any], steps: int, *, kind: str = "delete_gate", delay: int = 0
) -> tuple[Health, list[str]]:
    told: list[str] = []
    gated = kind == "delete_gate"
    recipe = recipes.Recipe.model_validate(
        {
            "name": "tiny",
            "description": "tiny",
            "task": {"kind": "vowel_removal", "length": 16},
            "model": {"start": "scratch", "shortener": {"kind": kind, **({"layer": 1} if gated else {})}},
            "loss": {"regularizer_delay": delay},
            "controller": controller,
            "training": {"max_steps": steps, "batch_size": 8},
        }
    )
    return Health(recipe, RunDir.create(folder / "run"), told.append), told


def train(one: Health, rates: Sequence[float], alphas: Sequence[float] | float, first: int = 0) -> None:
    """Lines of metrics, one every ten steps, that the run keeps."""
    target = one.recipe.target_deletion_rate
    for number, rate in enumerate(rates, start=first + 1):
        alpha = alphas if isinstance(alphas, float) else alphas[number - 1]
        row: dict[str, Any] = {
            "step": 10 * number,
            "loss": 2.0,
            "deletion_rate": rate,
            "alpha": alpha,
            "target": target,
        }
        one.on_log(None, None, None, logs=row)  # type: ignore[arg-type]
        one.run.add_metrics(row)


QUICKSTART = {
    42: "3 1 0 2 3 3 3 3 5 6 6 6 6 6 6 6 6 6 6 10 13 17 22 23 24 23 23 23 23 24 24 24 24 24 24 24 23 24 24",
    7: "1 1 3 5 18 23 24 24 24 24 24 24 23 23 23 23 24 24 24 24 24 24 23 24 23 24 24 23 24 24 23 24 23 23 23",
    8: "0 0 0 0 0 0 0 3 3 3 3 3 3 3 5 6 6 10 17 23 24 24 25 24 24 24 23 24 24 24 24 24 24 24 23 24 24 24 24",
}
"""What recipes/quickstart.yaml deletes with three seeds, in percent, a line of metrics each; alpha is at its
bound as long as the rate is below 17."""


@pytest.mark.parametrize("seed", QUICKSTART)
def test_a_run_that_ends_well_is_told_of_nothing(tmp_path: Path, seed: int) -> None:
    one, told = health_of(tmp_path, TWO_SIDED, 500)
    rates = [int(rate) / 100 for rate in QUICKSTART[seed].split()]
    train(one, rates, [0.08 if rate < 0.17 else 0.01 for rate in rates])
    assert told == [] and health(one.run.metrics()) == {}


def test_gates_that_close_for_good_are_told_of_once_and_when_they_open(tmp_path: Path) -> None:
    one, told = health_of(tmp_path, PI, 1000)
    train(one, [0.3] * 5 + [0.0] * 40 + [0.2] * 5 + [0.0] * 30, 0.01)
    assert [line.splitlines()[0] for line in told] == [
        "note: since step 60, nothing is deleted (0.0 % of the bytes deleted, target 50 %)",
        "note: resolved at step 460: nothing is deleted (20.0 % of the bytes deleted, target 50 %)",
        "note: since step 510, nothing is deleted (0.0 % of the bytes deleted, target 50 %)",
    ]
    assert "controller.k_p (0.5 now)" in told[0] and "model.shortener.bias_init" in told[0]
    assert health(one.run.metrics()) == {"nothing is deleted": [260, 800]}


def test_gates_that_delete_all_are_told_of_soon(tmp_path: Path) -> None:
    one, told = health_of(tmp_path, PI, 1000)
    train(one, [1.0] * (LINES - 1) + [0.9] + [1.0] * LINES, 0.01)
    [line] = told
    assert line.startswith("note: since step 110, everything is deleted (100.0 %")
    assert "or raise model.shortener.bias_init, or choose controller.kind: pi_two_sided" in line


def test_a_low_target_that_is_met_is_no_collapse(tmp_path: Path) -> None:
    one, told = health_of(tmp_path, PI | {"target_deletion_rate": 0.0005}, 1000)
    train(one, [0.0005] * 50, 0.01)
    assert told == []
    train(one, [0.0] * 30, 0.01, first=50)
    assert told[0].startswith("note: since step 510, nothing is deleted")


@pytest.mark.parametrize(
    ("controller", "rate", "alpha", "name"),
    [
        (TWO_SIDED, 0.1, 0.08, "alpha is at its upper bound, controller.alpha_max"),
        (TWO_SIDED, 0.5, -0.08, "alpha is at its lower bound, minus controller.alpha_max"),
        (PI, 0.7, 0.0, "alpha is at its lower bound, 0"),
        (TWO_SIDED, 0.22, 0.08, None),  # on its target
        (TWO_SIDED, 0.5, 0.08, None),  # on its way back
        (PI, 0.3, 0.0, None),  # on its way up
        (TWO_SIDED, 0.1, 0.07, None),
    ],
)
def test_alpha_at_a_bound_off_target(
    tmp_path: Path, controller: dict[str, Any], rate: float, alpha: float, name: str | None
) -> None:
    one, told = health_of(tmp_path, controller, 500)
    alpha = torch.tensor(alpha).item()  # as float32 holds it
    train(one, [rate] * 25, alpha)
    assert told == []
    train(one, [rate] * 5, alpha, first=25)
    assert [line.partition(" (")[0] for line in told] == ([f"note: since step 10, {name}"] if name else [])
    for line in told:  # each setting with what to do to it
        hint = line.splitlines()[1].strip()
        assert hint.startswith(("raise controller.", "lower controller.")), hint
        assert hint.count("controller.alpha_max") <= 1, hint


@pytest.mark.parametrize(
    ("kind", "controller", "delay"),
    [
        ("none", {"kind": "constant"}, 0),
        ("delete_gate", {"kind": "constant"}, 0),  # nothing asks for deletion
        ("delete_gate", {"kind": "constant", "alpha": -0.1}, 0),
        ("delete_gate", PI, 900),
    ],
)
def test_where_nothing_is_to_be_deleted_yet(
    tmp_path: Path, kind: str, controller: dict[str, Any], delay: int
) -> None:
    one, told = health_of(tmp_path, controller, 1000, kind=kind, delay=delay)
    train(one, [0.0] * 90, 0.0)
    assert told == []


def test_a_resumed_run_knows_what_it_was_told_of(tmp_path: Path) -> None:
    one, told = health_of(tmp_path, PI, 1000)
    train(one, [0.0] * 30, 0.01)
    assert len(told) == 1
    again, told = health_of(tmp_path, PI, 1000)
    again.on_train_begin(None, None, None)  # type: ignore[arg-type]
    train(again, [0.0] * 5, 0.01, first=30)
    assert told == [] and again.run.metrics()[-1]["health"] == ["nothing is deleted"]


@pytest.mark.parametrize(
    ("bias", "controller", "said"),
    [
        (40.0, ConstantController(kind="constant", alpha=1e-6), "nothing is deleted"),
        (-40.0, PIController(kind="pi", target_deletion_rate=0.5), "everything is deleted"),
        (
            40.0,
            TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.5, alpha_max=1e-6),
            "alpha is at its upper bound, controller.alpha_max",
        ),
    ],
)
def test_a_collapse_in_a_training_is_told_of(tmp_path: Path, bias: float, controller: Any, said: str) -> None:
    told: list[str] = []
    run = RunDir.create(tmp_path / "run")
    model = tiny_model()
    with torch.no_grad():
        model.encoder.shortener.feed_forward.bias.fill_(bias)
    trainer = make_trainer(
        tmp_path,
        model=model,
        stream=Stream(),
        steps=30,
        logging_steps=1,
        loss=LossSection(),
        controller=controller,
        run=run,
    )
    recipe = recipes.load("quickstart")
    training = recipe.training.model_copy(update={"max_steps": 30})
    trainer.add_callback(
        Health(recipe.model_copy(update={"controller": controller, "training": training}), run, told.append)
    )
    trainer.train_from(None)
    assert any(f" {said} (" in line for line in told), told
    assert said in health(run.metrics())
