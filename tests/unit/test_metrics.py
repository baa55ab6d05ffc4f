"""Counts: sums and counts apart, nothing depends on how examples are batched, empty input is answered."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, METRICS
from mrt5cli.metrics.counts import (
    Ratio,
    below_threshold,
    bits_per_byte,
    deleted_bytes,
    gate_precision,
    gate_recall,
    mean_interval,
    sequences_right,
    target_tokens,
    tokens_right,
    wilson_interval,
)

rows = st.lists(st.lists(st.sampled_from([-100, 0, 1, 5, 6]), min_size=6, max_size=6), min_size=1, max_size=8)


@given(labels=rows, predictions=rows, cut=st.integers(0, 8))
def test_batches_of_any_size_add_up(labels: list, predictions: list, cut: int) -> None:
    size = min(len(labels), len(predictions))
    y, p = np.array(labels[:size]), np.array(predictions[:size])

    for count in (tokens_right, sequences_right):
        whole = count(p, y)
        assert count(p[:cut], y[:cut]) + count(p[cut:], y[cut:]) == whole
        assert 0 <= whole.total <= whole.count


@given(labels=rows)
def test_labels_predict_themselves(labels: list) -> None:
    y = np.array(labels)

    assert tokens_right(y, y).value == (1.0 if target_tokens(y).any() else None)
    assert sequences_right(y, y).count == target_tokens(y).any(axis=1).sum()


def test_one_wrong_token_costs_its_sequence_and_padding_costs_nothing() -> None:
    labels = np.array([[5, 6, 1], [5, 1, -100], [7, 1, 0]])
    predictions = np.array([[5, 9, 1], [5, 1, 99], [7, 1, 99]])

    assert tokens_right(predictions, labels) == Ratio(6, 7)
    assert sequences_right(predictions, labels) == Ratio(2, 3)


def test_a_row_without_targets_is_neither_right_nor_wrong() -> None:
    assert sequences_right([[5], [5]], [[5], [-100]]) == Ratio(1, 1)
    assert sequences_right([[5]], [[-100]]).value is None
    assert tokens_right([[5]], [[0]]).value is None


@given(
    gate=st.lists(st.floats(-30, 0, width=32), min_size=12, max_size=12),
    ids=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    threshold=st.floats(-30, 0, width=32),
)
def test_deletion_rate_never_counts_padding(gate: list, ids: list, threshold: float) -> None:
    gate_BL, ids_BL = np.array(gate, np.float32).reshape(3, 4), np.array(ids).reshape(3, 4)

    rate = deleted_bytes(gate_BL, ids_BL, threshold)

    assert rate.count == (ids_BL != 0).sum()
    assert rate.total == sum(g < threshold for g, i in zip(gate_BL.flat, ids_BL.flat, strict=True) if i != 0)
    padded = np.pad(ids_BL, ((0, 0), (0, 2))), np.pad(gate_BL, ((0, 0), (0, 2)), constant_values=-30)
    assert deleted_bytes(padded[1], padded[0], threshold) == rate


def test_a_gate_at_the_threshold_is_not_counted() -> None:
    assert below_threshold([[-15.0, -15.1, 0.0]], [[5, 5, 5]], -15.0).tolist() == [[False, True, False]]


def test_precision_and_recall() -> None:
    deleted, deletable, ids = [[1, 1, 1, 0]], [[1, 0, 0, 1]], [[100, 101, 102, 103]]

    assert gate_precision(deleted, deletable, ids) == Ratio(1, 3)
    assert gate_recall(deleted, deletable, ids) == Ratio(1, 2)
    assert gate_precision([[0]], [[1]], [[100]]).value is None


def test_markers_and_padding_are_neither_rightly_nor_wrongly_deleted() -> None:
    ids = [[ord("#") + 3, 100, 101, 1, 0]]

    assert gate_precision([[1, 1, 0, 1, 1]], [[0, 1, 1, 0, 0]], ids) == Ratio(1, 1)
    assert gate_recall([[1, 1, 0, 1, 1]], [[0, 1, 1, 0, 0]], ids) == Ratio(1, 2)


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(2)) == pytest.approx(1.0)
    assert bits_per_byte(None) is None


@given(right=st.integers(0, 500), wrong=st.integers(0, 500))
def test_wilson_interval_holds_the_share(right: int, wrong: int) -> None:
    trials = right + wrong
    if trials == 0:
        assert wilson_interval(None, 0) is None
        return
    interval = wilson_interval(right / trials, trials)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= right / trials + 1e-12
    assert right / trials - 1e-12 <= high <= 1
    assert high - low < 1


def test_wilson_interval_against_a_textbook_value() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    interval = wilson_interval(81 / 263, 263)
    assert interval == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_the_interval_of_a_mean_of_shares_is_wilsons() -> None:
    assert mean_interval([[1, 0, 1, 1]]) == pytest.approx(wilson_interval(0.75, 4))
    assert mean_interval([[1, 1, 1]]) == wilson_interval(1.0, 3), "all alike is no certainty"
    assert mean_interval([[], []]) is None


def test_the_interval_of_a_mean_is_near_the_normal_one_and_leaves_out_what_subsets_differ_by() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, 4000)

    low, high = mean_interval([scores])

    half = 1.96 * scores.std() / 4000**0.5
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=1e-4)
    apart = mean_interval([scores[:2000] - 0.2, scores[2000:] + 0.2])
    assert apart[1] - apart[0] == pytest.approx(2 * half, rel=0.02)


@given(groups=st.lists(st.lists(st.floats(0, 1), max_size=8), min_size=1, max_size=3))
def test_the_interval_of_a_mean_holds_it(groups: list) -> None:
    every = [score for group in groups for score in group]
    interval = mean_interval(groups)
    if not every:
        assert interval is None
        return
    low, high = interval
    assert 0 <= low <= np.mean(every) + 1e-9
    assert np.mean(every) - 1e-9 <= high <= 1


def test_the_counts_need_neither_torch_nor_evaluate() -> None:
    heavy = "{'torch', 'evaluate', 'datasets'}"
    code = f"import sys, mrt5cli.metrics.counts; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the evaluate.Metric classes ---


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a metric opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_metrics_give_the_numbers_of_the_counts(offline: None, tmp_path: Path) -> None:
    cache = str(tmp_path)
    predictions, references = [[5, 9, 1], [5, 1]], [[5, 6, 1], [5, 1]]

    token = METRICS["token_accuracy"].load(cache_dir=cache)
    assert token.compute(predictions=predictions, references=references) == {
        "token_accuracy": 0.8,
        "count": 5,
    }

    sequence = METRICS["sequence_accuracy"].load(cache_dir=cache)
    for p, r in zip(predictions, references, strict=True):
        sequence.add_batch(predictions=[p], references=[r])
    assert sequence.compute() == {"sequence_accuracy": 0.5, "count": 2}

    bits = METRICS["bits_per_byte"].load(cache_dir=cache)
    found = bits.compute(predictions=[math.log(2) * 3, math.log(2)], references=[1, 3])
    assert found == {"bits_per_byte": pytest.approx(1.0), "count": 4}

    rate = (
        METRICS["deletion_rate"]
        .load(cache_dir=cache)
        .compute(
            predictions=[[-15.0, -29.0], [-1.0, -29.0, -30.0]],
            references=[[5, 5], [5, 5, 0]],
            threshold=-15.0,
        )
    )
    assert rate == {"deletion_rate": 0.5, "count": 4}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_loads_and_answers_empty_input_or_says_why_not(
    name: str, offline: None, tmp_path: Path
) -> None:
    from mrt5cli.metrics.evaluate_metrics import COUNTED

    if name in COUNTED or METRICS[name].answers:
        metric = METRICS[name].load(cache_dir=str(tmp_path))
        assert metric._compute(predictions=[], references=[]) == {name: None, "count": 0}
    else:
        with pytest.raises(ValueError, match=f"{name} is not counted from pairs"):
            METRICS[name].load()


def test_padding_makes_no_accuracy(offline: None, tmp_path: Path) -> None:
    found = (
        METRICS["token_accuracy"]
        .load(cache_dir=str(tmp_path))
        .compute(predictions=[[5]], references=[[-100]])
    )
    assert found == {"token_accuracy": None, "count": 0}


# --- the catalog ---


def test_every_published_metric_is_in_the_catalog() -> None:
    from mrt5cli.paper.published import published

    assert {row.metric.partition("[")[0] for row in published().values()} <= set(BY_PUBLISHED_NAME)


def test_labels_are_right_as_a_whole() -> None:
    accuracy = METRICS["sequence_accuracy"]
    assert (accuracy.on("xnli").heading, accuracy.on("xnli").column) == ("accuracy, %", "acc.\n%")
    assert accuracy.on("word_search") == accuracy


@pytest.mark.parametrize(
    ("name", "column", "heading", "text"),
    [
        ("deletion_rate", "deleted\n%", "deleted, %", "12.3"),
        ("token_accuracy", "token\nacc. %", "token accuracy, %", "12.34"),
        ("loss", "loss", "cross-entropy, nats", "0.1234"),
        ("gate_recall", "gate\nrecall", "gate recall", "0.123"),
    ],
)
def test_a_metric_in_words(name: str, column: str, heading: str, text: str) -> None:
    metric = METRICS[name]
    assert (metric.column, metric.heading, metric.text(0.12341)) == (column, heading, text)
    assert metric.text(None) == "-"


def test_the_catalog_needs_nothing_heavy() -> None:
    heavy = "{'torch', 'evaluate', 'datasets', 'numpy', 'pydantic'}"
    code = f"import sys, mrt5cli.metrics.catalog; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
