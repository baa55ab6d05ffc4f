"""`mrt5 bench`: what it times, what it says of it, and what it refuses. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import make_run
from typer.testing import CliRunner

from mrt5cli.benchmark.rounds import Timing, interleave, kept_lengths, speedup
from mrt5cli.cli import app

SMALL = [
    "--size",
    "tiny",
    "--batch",
    "2",
    "--length",
    "40",
    "--target",
    "5",
    "--rounds",
    "2",
    "--device",
    "cpu",
]


def bench(*words: object):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def test_every_kind_in_one_document(tmp_path: Path):
    out = tmp_path / "bench.json"
    result = bench(
        *SMALL,
        "--what",
        "forward,train,generate,attention",
        "--rates",
        "0,0.5",
        "--bf16",
        "--json",
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads(out.read_text()) == document
    assert [suite["what"] for suite in document["suites"]] == ["forward", "train", "generate", "attention"]
    forward = document["suites"][0]
    cases = {case["name"]: case for case in forward["cases"]}
    assert {"transformers eager", "dense", "packed 50 %", "packed 50 % bf16"} <= set(cases)
    assert all(len(case["rounds"]) == 2 for suite in document["suites"] for case in suite["cases"])
    for parity in forward["parity"].values():
        assert parity["difference"] < 2e-4 < parity["size"]
    ideal = {ratio["baseline"]: ratio["ideal"] for ratio in cases["packed 50 %"]["ratios"]}
    assert ideal["dense"] == cases["dense"]["macs"] / cases["packed 50 %"]["macs"] > 1


def test_a_table_for_people_and_a_run_of_ones_own(tmp_path: Path):
    result = bench(
        make_run(tmp_path, "mrt5"), *SMALL[2:], "--length", "30", "--rates", "0.5", "--rows", "wide"
    )
    assert result.exit_code == 0, result.output
    assert "packed 50 %" in result.stdout
    assert "ideal" in result.stdout
    assert "from the plain path" in result.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["--what", "forward,speed"], "'speed' is nothing to time"),
        (["--what", ","], "--what names nothing"),
        (["--rates", "50"], "is not a share of positions"),
        (["--size", "huge"], "--size huge is not known"),
        (["nowhere/at/all"], "does not exist"),
    ],
)
def test_wrong_words(words: list[str], message: str):
    result = bench(*words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_a_pooling_has_no_gate_to_steer(tmp_path: Path):
    run = make_run(tmp_path, "cp", shortener={"kind": "convolution", "layer": 1, "stride": 2})
    result = bench(run, *SMALL[2:])
    assert result.exit_code == 2
    assert "shortens by 'convolution'" in result.stderr


def test_every_round_begins_with_another_case():
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = interleave(cases, rounds=3, device=torch.device("cpu"))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_ratios_are_taken_within_rounds():
    ratio = speedup(Timing("slow", [4.0, 40.0, 6.0]), Timing("fast", [2.0, 10.0, 1.0]))
    assert (ratio.median, ratio.least, ratio.most) == (4.0, 2.0, 6.0)


@given(st.integers(1, 9), st.integers(8, 2000), st.floats(0.05, 0.95), st.sampled_from(["even", "wide"]))
def test_kept_lengths(rows: int, length: int, deleted: float, spread: str):
    kept = kept_lengths(rows, length, deleted, spread)
    assert len(kept) == rows and all(1 <= count <= length for count in kept)
    assert sum(kept) / rows == pytest.approx(max(1, length * (1 - deleted)), abs=1)
    if spread == "even":
        assert len(set(kept)) == 1


def test_wide_rows_are_those_of_the_targets():
    assert kept_lengths(4, 100, 0.5, "wide") == [20, 40, 60, 80]
    assert kept_lengths(2, 100, 0.7, "wide") == [12, 48]
