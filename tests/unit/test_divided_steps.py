"""The loss of an optimizer step is that of all its examples, however they are accumulated and distributed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import divided_steps
import pytest
import torch
from conftest import labelled
from divided_steps import (
    CASES,
    DIVIDED_ALIKE,
    PADDED_ALIKE,
    SCORES,
    STEP,
    WITHOUT_TARGET,
    Case,
    rows,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES_OF_TWO = ("4", "2", "4/30")
each_case = pytest.mark.parametrize("name", list(CASES))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes make of every case, by its name and the examples that each takes at once."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", divided_steps.__file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*launch, *SIZES_OF_TWO], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    """What one process makes of every case, all examples of a step at once."""
    return {name: train(case, STEP) for name, case in CASES.items()}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for line, other in zip(found["lines"], wanted["lines"], strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-6), line["step"]
    for name, weight in wanted["weights"].items():
        ours, theirs = torch.tensor(found["weights"][name]), torch.tensor(weight)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=labelled(name))


@each_case
def test_every_part_of_the_loss_is_there(name: str, whole: dict[str, dict[str, Any]]) -> None:
    line, case = whole[name]["lines"][0], CASES[name]
    assert line["score_loss"] > 0.01 or not case.loss
    assert abs(line["gate_loss"]) > 1e-3 or case.model.get("deletion_type") in ("none", "boundary_predictor")
    parts = line["cross_entropy"] + line["gate_loss"] + 0.5 * line["score_loss"]
    assert (line["loss"] - parts > 0.01) == (name == "labelled segments")
    assert line["loss"] - parts > -1e-6


@pytest.mark.parametrize("at_once", [4, 2, 1])
@each_case
def test_accumulated_like_at_once(name: str, at_once: int, whole: dict[str, dict[str, Any]]) -> None:
    if name != DIVIDED_ALIKE:
        assert_same(train(CASES[name], at_once), whole[name])


@pytest.mark.ci
@pytest.mark.parametrize("at_once", SIZES_OF_TWO)
@each_case
def test_two_processes_like_one(
    name: str, at_once: str, of_two: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]
) -> None:
    if at_once.isdigit():
        alike = train(CASES[name], int(at_once)) if name == DIVIDED_ALIKE else whole[name]
        assert_same(of_two[name][at_once], alike)
    elif name not in (DIVIDED_ALIKE, PADDED_ALIKE):
        assert_same(of_two[name][at_once], whole[name])


@pytest.mark.parametrize("batch_tokens", [1, 30, 60])
@each_case
def test_divided_by_tokens_like_at_once(
    name: str, batch_tokens: int, whole: dict[str, dict[str, Any]]
) -> None:
    if name not in (DIVIDED_ALIKE, PADDED_ALIKE):
        assert_same(train(CASES[name], STEP, batch_tokens=batch_tokens), whole[name])


def test_means_of_micro_batches_by_name() -> None:
    """The reference's: every micro-batch weighs the same, which is another loss where targets are ragged."""
    [line] = train(Case({"average_per": "micro_batch"}), 2, steps=1)["lines"]
    alone = [train(Case(), 1, steps=1, first=row, step=1)["lines"][0] for row in range(STEP)]
    of_rows = [(one["cross_entropy"], one["gate_loss"], *lengths(row)) for row, one in enumerate(alone)]
    wanted: dict[str, list[float]] = {"cross_entropy": [], "gate_loss": []}
    for first in range(0, STEP, 2):
        pair = of_rows[first : first + 2]
        sources, targets = (sum(row[place] for row in pair) for place in (2, 3))
        wanted["cross_entropy"].append(sum(row[0] * row[3] for row in pair) / targets)
        wanted["gate_loss"].append(sum(row[1] * row[2] for row in pair) / sources)
    for name, means in wanted.items():
        assert line[name] == pytest.approx(sum(means) / len(means), rel=1e-5)
    whole = train(Case(), STEP, steps=1)["lines"][0]
    assert abs(whole["cross_entropy"] - line["cross_entropy"]) > 0.01
    assert abs(whole["gate_loss"] - line["gate_loss"]) > 0.01


def lengths(row: int) -> tuple[int, int]:
    """Source positions and target tokens of a row."""
    batch = rows(row, 1)
    return int((batch["input_ids"] != 0).sum()), int((batch["labels"] != -100).sum())


def test_variances_weigh_by_positions() -> None:
    case = Case({"gate_loss": DIVIDED_ALIKE})
    [line] = train(case, 4, steps=1)["lines"]
    halves = [train(case, 4, steps=1, first=first, step=4)["lines"][0]["gate_loss"] for first in (0, 4)]
    positions = [int((rows(first, 4)["input_ids"] != 0).sum()) for first in (0, 4)]
    weighted = sum(value * number for value, number in zip(halves, positions, strict=True)) / sum(positions)
    assert line["gate_loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("average_per", ["optimizer_step", "micro_batch"])
def test_a_step_without_targets_is_no_nan(average_per: str) -> None:
    case = Case({"average_per": average_per, **SCORES})
    [line] = train(case, 1, steps=1, first=WITHOUT_TARGET, step=1)["lines"]
    assert line["cross_entropy"] == 0.0 and line["loss"] == pytest.approx(
        line["gate_loss"] + 0.5 * line["score_loss"]
    )
    [line] = train(case, 1, steps=1)["lines"]  # nor is one that has some
    assert 3.0 < line["cross_entropy"] < 9.0 and line["grad_norm"] > 0.0


def test_a_line_of_several_steps_is_over_all_their_counts() -> None:
    single = train(CASES["gate_mean"], 2, steps=2, step=4)["lines"]
    [line] = train(CASES["gate_mean"], 2, steps=2, step=4, logging_steps=2)["lines"]
    for name, place in (("gate_loss", 0), ("deletion_rate", 0), ("cross_entropy", 1)):
        weights = [sum(lengths(row)[place] for row in range(first, first + 4)) for first in (0, 4)]
        assert weights[0] != weights[1]
        weighted = sum(one[name] * weight for one, weight in zip(single, weights, strict=True))
        assert line[name] == pytest.approx(weighted / sum(weights), rel=1e-5)
    assert line["loss"] == pytest.approx(
        line["cross_entropy"] + line["gate_loss"] + 0.5 * line["score_loss"], rel=1e-6
    )
