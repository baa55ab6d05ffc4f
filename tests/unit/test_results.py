"""Files of results: what is written is read back the same, and those of older versions are read too."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mrt5cli.errors import UserError
from mrt5cli.metrics.catalog import MEASURED
from mrt5cli.metrics.results import VERSION, Row, SavedEvaluation, SavedModel

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "results_v1"
"""As `mrt5 evaluate` wrote them before files had a version: one timed, one with --deletion-rate."""

shares = st.floats(0, 1)
rows = st.builds(
    Row,
    st.text(max_size=5),
    st.integers(0, 10**6),
    loss=st.none() | shares,
    f1=st.none() | shares,
    f1_95=st.none() | st.tuples(shares, shares),
)


def read(text: str) -> Row:
    return TypeAdapter(Row).validate_json(text)


@given(rows)
def test_a_row_is_read_as_it_was_written(row: Row) -> None:
    assert read(json.dumps(row.to_json(), allow_nan=False)) == row


def test_what_is_not_finite_is_none_when_it_is_read() -> None:
    assert read(json.dumps(Row("en", 3, loss=float("nan"), f1=0.5).to_json())) == Row("en", 3, f1=0.5)


def test_every_metric_that_is_measured_is_a_number_of_a_row() -> None:
    there = {field.name for field in fields(Row)}
    assert {metric.name for metric in MEASURED} <= there
    assert {f"{metric.name}_95" for metric in MEASURED if metric.scores} <= there  # what judges a task


def test_results_of_version_1_are_read() -> None:
    found = SavedEvaluation.read(VERSION_1 / "vowel_removal.json")

    assert (found.task, found.split, found.deletion, found.batch_size) == ("vowel_removal", "test", "hard", 8)
    assert found.settings["length"] == 16
    assert (found.limit, found.languages, found.data) == (6, None, None)
    assert found.of_the_model_itself
    [row] = found.rows
    assert (row.subset, row.examples, row.target_tokens, row.truncated) == ("all", 6, 88, 0)
    assert row.loss == pytest.approx(6.404158)
    assert row.sequence_accuracy_95 == (0.0, pytest.approx(0.390343))
    assert row.median_ms_per_example is not None and row.f1 is None
    assert found.timed_on[1:] == ("float32", 1, 8)


def test_accuracy_had_another_name_before_version_3() -> None:
    row = {"subset": "en", "examples": 3, "constrained_accuracy": 0.5, "constrained_accuracy_95": [0.1, 0.9]}
    [read] = SavedModel.model_validate({"source": "m", "rows": [row]}).rows
    assert read == Row("en", 3, accuracy=0.5, accuracy_95=(0.1, 0.9))


def test_numbers_of_others_are_kept_apart() -> None:
    row = Row(
        "en", 3, cer=1.5, others={"rouge.rouge1": 0.5, "mine": float("nan")}, others_95={"mine": (0, 1)}
    )
    back = read(json.dumps(row.to_json(), allow_nan=False))
    assert (back.number("rouge.rouge1"), back.number("mine"), back.number("cer")) == (0.5, None, 1.5)
    assert (back.interval("mine"), back.interval("cer"), back.number("nothing")) == ((0.0, 1.0), None, None)


def test_other_thresholds_of_version_1_are_told_by_their_field() -> None:
    found = SavedEvaluation.read(VERSION_1 / "vowel_removal-rates.json")

    assert [model.calibration is not None for model in found.models] == [False, True, True]
    assert not found.of_the_model_itself


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ({"source": "runs/a/checkpoints/step-00000500"}, 500),
        ({"source": "step-by-step"}, None),
        ({"source": "runs/a/model"}, None),
        ({"source": "runs/a/elsewhere", "step": 500}, 500),
        ({"source": "runs/step-00000500", "step": None}, None),
    ],
)
def test_the_step_of_a_checkpoint_is_its_field_and_before_it_had_one_its_folder(
    model: dict[str, Any], step: int | None
) -> None:
    assert SavedModel.model_validate({"rows": [], **model}).step == step


def test_other_data_of_version_1_is_told_by_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "vowel_removal-data-mine.json"
    path.write_bytes((VERSION_1 / "vowel_removal.json").read_bytes())

    assert not SavedEvaluation.read(path).of_the_model_itself
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2, "data": None}))
    assert SavedEvaluation.read(path).of_the_model_itself


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": VERSION + 1}, "version: Input should be 1, 2 or 3"),
        ({"models": 3}, "models: Input should be a valid tuple"),
        (
            {"models": [{"source": "m", "rows": [{"examples": 3}]}]},
            r"models\.0\.rows\.0\.subset: Field required",
        ),
        (
            {"models": [{"source": "m", "rows": [{"subset": "en", "examples": 3, "loss": "low"}]}]},
            r"rows\.0\.loss: Input should be a valid number",
        ),
        ({"task": None}, r"task\.kind: Field required"),
    ],
)
def test_what_is_no_result_is_refused_by_its_name(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**json.loads((VERSION_1 / "vowel_removal.json").read_text()), **change}))

    with pytest.raises(UserError, match=rf"odd\.json is not a results file of .*{why}"):
        SavedEvaluation.read(path)
