"""Accuracies, deletion rates and answers against the numbers the authors' evaluation helpers gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mrt5cli.metrics.answers import exact_match, f1, normalise
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.metrics.counts import deleted_bytes, sequences_right, tokens_right

CASES = Path(__file__).parents[1] / "fixtures" / "golden" / "cases" / "metrics"
GOLDEN = json.loads((CASES / "accuracy_and_deletion.json").read_text())
TENSORS = load_file(CASES / "accuracy_and_deletion.safetensors")


@pytest.mark.parametrize("case", GOLDEN["accuracy"], ids=lambda case: str(case["case"]))
def test_accuracies(case: dict) -> None:
    labels = TENSORS[f"{case['case']}.labels"]
    predictions = TENSORS[f"{case['case']}.logits"].argmax(-1)

    assert tokens_right(predictions, labels).value == pytest.approx(case["token_accuracy"], abs=1e-9)
    assert sequences_right(predictions, labels).value == pytest.approx(case["seq_accuracy"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["deletion"], ids=lambda case: case["case"])
def test_deletion_rates_count_strictly_below_the_threshold(case: dict) -> None:
    gate, ids = TENSORS[f"{case['case']}.gate"], TENSORS[f"{case['case']}.input_ids"]
    assert (gate == case["threshold"]).any(), "the case no longer holds a gate value at the threshold"

    rate = deleted_bytes(gate, ids, case["threshold"])

    assert rate.value is not None
    assert 100 * rate.value == pytest.approx(case["percent_nonpad_deleted"], abs=GOLDEN["tolerance"])


def test_the_callers_labels_are_left_alone() -> None:
    labels = TENSORS["0.labels"]
    before = labels.copy()

    tokens_right(TENSORS["0.logits"].argmax(-1), labels)
    sequences_right(TENSORS["0.logits"].argmax(-1), labels)

    np.testing.assert_array_equal(labels, before)


ANSWERS = json.loads((CASES.parents[1] / "metrics" / "qa.json").read_text())


@pytest.mark.parametrize("row", ANSWERS["rows"], ids=lambda row: row["prediction"][:20] or "empty")
def test_answers(row: dict) -> None:
    prediction, references = row["prediction"], row["ground_truths"]

    assert normalise(prediction) == row["normalized_prediction"]
    assert [normalise(reference) for reference in references] == row["normalized_ground_truths"]
    assert exact_match(prediction, references) == row["exact_match"]
    each = [f1(prediction, [reference]) for reference in references]
    assert each == pytest.approx(row["f1_each"], abs=ANSWERS["tolerance"])
    assert f1(prediction, references) == pytest.approx(row["f1"], abs=ANSWERS["tolerance"])


def test_the_metrics_over_all_answers(tmp_path: Path) -> None:
    rows = ANSWERS["rows"]
    given = {
        "predictions": [row["prediction"] for row in rows],
        "references": [row["ground_truths"] for row in rows],
    }

    for name in ("exact_match", "f1"):
        told = METRICS[name].load(cache_dir=str(tmp_path)).compute(**given)
        assert told["count"] == len(rows) == 70
        assert told[name] == pytest.approx(sum(row[name] for row in rows) / 70, abs=ANSWERS["tolerance"])
