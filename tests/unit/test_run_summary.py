"""What a training says last: the numbers of its end, and whether it ended off its target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrt5cli import recipe as recipes
from mrt5cli.rundir import RunDir
from mrt5cli.training.record import outcome, rate_at_end, summary
from mrt5cli.writing import write_json, write_text

P = {"kind": "p", "target_deletion_rate": 0.4}
PI = {"kind": "pi", "target_deletion_rate": 0.4}
TWO_SIDED = {"kind": "pi_two_sided", "target_deletion_rate": 0.4}


def rows_of(rates: list[float], target: float | None, every: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "step": every * number,
            "loss": 2.0,
            "cross_entropy": 1.9,
            "deletion_rate": rate,
            "target": target,
            "seconds": float(number),
        }
        for number, rate in enumerate(rates, start=1)
    ]


def finished(
    folder: Path, rates: list[float], controller: dict[str, Any], *, shortener: str = "delete_gate"
) -> RunDir:
    """A finished run of these deletion rates, ten steps each."""
    gate = {"kind": shortener, "layer": 1, **({"rate": 0.4} if shortener == "random" else {})}
    recipe = recipes.Recipe.model_validate(
        {
            "name": "tiny",
            "description": "tiny",
            "task": {"kind": "vowel_removal", "length": 16},
            "model": {"start": "scratch", "shortener": {"kind": "none"} if shortener == "none" else gate},
            "controller": controller,
            "training": {"max_steps": 10 * len(rates), "batch_size": 8},
        }
    )
    run = RunDir.create(folder / "tiny-seed42")
    write_text(run.recipe_path, recipes.dump(recipe))
    meta = {"status": "finished", "device": "cpu", "precision": "fp32", "started": "", "ended": ""}
    write_json(run.meta_path, {"name": "tiny", "seed": 42, "parameters": 1, **meta})
    rows = rows_of(rates, recipe.target_deletion_rate)
    write_text(run.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize("controller", [P, PI, TWO_SIDED])
@pytest.mark.parametrize(
    ("end", "said"),
    [
        (0.312, "31.2 % deleted at the end, 8.8 points below the controller's target of 40 %"),
        (0.5, "50.0 % deleted at the end, 10.0 points above the controller's target of 40 %"),
        (0.0, "0.0 % deleted at the end, 40.0 points below the controller's target of 40 %"),
    ],
)
def test_a_run_that_ends_off_its_target_says_so_last(
    tmp_path: Path, controller: dict[str, Any], end: float, said: str
):
    run = finished(tmp_path, [0.4] * 36 + [end] * 4, controller)
    assert summary(run).splitlines()[-1] == f"off target: {said}"
    assert outcome(run)["deletion_rate_at_end"] == pytest.approx(end)


def test_the_loss_is_the_cross_entropy_and_what_was_minimised_stands_apart(tmp_path: Path):
    """Total loss moves with alpha, and may be negative."""
    run = finished(tmp_path, [0.4] * 4, TWO_SIDED)
    assert "last logged: loss 1.9000 (cross-entropy), total loss 2.0000, deleted" in summary(run)
    run.metrics_path.write_text(run.metrics_path.read_text().replace("2.0", "1.9"))
    assert "last logged: loss 1.9000 (cross-entropy), deleted" in summary(run)


@pytest.mark.parametrize("end", [0.37, 0.4, 0.43])
def test_a_run_on_its_target_ends_with_what_to_do_next(tmp_path: Path, end: float):
    run = finished(tmp_path, [0.9] * 36 + [end] * 4, TWO_SIDED)
    assert summary(run).splitlines()[-1] == f"next: mrt5 evaluate {run.path}"


@pytest.mark.parametrize("shortener", ["none", "random"])
def test_without_a_target_there_is_none_to_miss(tmp_path: Path, shortener: str):
    told = summary(finished(tmp_path, [0.2] * 8, {"kind": "constant"}, shortener=shortener))
    assert "(target" not in told and "off target" not in told
    assert told.splitlines()[-1].startswith("next: ")


def test_one_odd_line_at_the_end_decides_nothing(tmp_path: Path):
    """A line of 10 steps of 800 covers few bytes; the last tenth of the run is what counts."""
    told = summary(finished(tmp_path, [0.4] * 79 + [0.5], TWO_SIDED))
    assert "deleted 41.2 % (target 40 %), by soft gates on training data over the last 80 steps" in told
    assert "off target" not in told


def test_the_rate_at_the_end_covers_a_tenth_of_the_run_and_at_least_a_line():
    assert rate_at_end(rows_of([0.1] * 90 + [0.4] * 10, None)) == (pytest.approx(0.4), 100)
    assert rate_at_end(rows_of([0.1, 0.4], None)) == (pytest.approx(0.4), 10)
    assert rate_at_end(rows_of([0.1], None, every=1)) == (pytest.approx(0.1), 1)
    # The last line of a run may be short: each counts as many times as it covers steps.
    unequal = [(8, 0.0), (96, 0.2), (104, 0.4), (105, 1.0)]
    rows = [{"step": step, "deletion_rate": rate} for step, rate in unequal]
    assert rate_at_end(rows) == (pytest.approx((0.2 * 88 + 0.4 * 8 + 1.0) / 97), 97)
