"""`mrt5 bench`: what it times, what it says of it, and what it refuses. No test looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import make_run
from typer.testing import CliRunner

from mrt5cli.bars import bars
from mrt5cli.benchmark import suite
from mrt5cli.benchmark.run import BUILDERS
from mrt5cli.cli import app
from mrt5cli.commands.bench import KINDS

HERE = ["--batch-size", "2", "--length", "40", "--target-length", "5", "--rounds", "2", "--device", "cpu"]
SMALL = ["--size", "tiny", *HERE]


def bench(*words: object):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.mark.slow
def test_every_way_to_time_a_model_in_one_document(tmp_path: Path):
    out = tmp_path / "bench.json"
    words = ["--what", "forward,train,generate,attention", "--deletion-rate", "0,0.5", "--rows", "even,wide"]
    result = bench(*SMALL, *words, "--precision", "fp32,bf16", "--json", "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads(out.read_text()) == document
    assert [suite["what"] for suite in document["suites"]] == words[1].split(",")
    for found in document["suites"]:
        assert all(len(case["rounds"]) == 2 for case in found["cases"])
        assert found["parity"] and all(parity["holds"] for parity in found["parity"].values())
        assert all(parity["size"] > 0.1 for parity in found["parity"].values())
    forward, train, _, attention = (
        {case["name"]: case for case in suite["cases"]} for suite in document["suites"]
    )
    assert {"transformers sdpa", "dense bf16", "packed 50 % even bf16", "eager 50 % wide"} <= set(forward)
    steps = {"eager, score loss", "fused, score loss, recomputing blocks", "fused, hard step 50 % wide"}
    assert steps <= set(train)
    assert attention["fused forward"]["operations_per_second"] > 0
    assert attention["fused forward"]["ratios"][0]["baseline"] == "eager forward"


def test_the_ideal_is_the_arithmetic(tmp_path: Path):
    result = bench(*SMALL, "--deletion-rate", "0.5", "--rows", "even,wide", "--json")
    assert result.exit_code == 0, result.output
    [suite] = json.loads(result.stdout)["suites"]
    cases = {case["name"]: case for case in suite["cases"]}

    def ratio(case: str, baseline: str):
        [found] = [found for found in cases[case]["ratios"] if found["baseline"] == baseline]
        return found

    found = ratio("packed 50 % even", "dense")
    assert found["ideal"] == cases["dense"]["macs"] / cases["packed 50 % even"]["macs"] > 1
    assert found["share_of_ideal"] == pytest.approx(found["median"] / found["ideal"])
    assert found["least"] <= found["median"] <= found["most"]
    assert ratio("dense", "transformers eager")["ideal"] == 1
    # Rows of 20 and 80 % hold as many bytes as two of 50 %, but padded each is 80 % long.
    assert cases["packed 50 % wide"]["macs"] == pytest.approx(cases["packed 50 % even"]["macs"], rel=0.01)
    assert ratio("packed 50 % wide", "padded 50 % wide")["ideal"] > 1.05
    assert ratio("packed 50 % even", "padded 50 % even")["ideal"] == 1


def test_a_table_for_people_and_a_run_of_ones_own(tmp_path: Path):
    run = make_run(tmp_path, "mrt5")
    result = bench(run, *HERE, "--length", "30", "--deletion-rate", "0.5", "--rows", "wide")
    assert result.exit_code == 0, result.output
    assert "packed 50 % wide" in result.stdout
    assert "% of" in result.stdout
    assert "dense: at most" in result.stdout
    assert "timing forward" in result.stderr


@pytest.mark.usefixtures("fast")
def test_a_path_that_computes_something_else_fails_loudly(monkeypatch):
    monkeypatch.setattr(suite, "LOGIT_TOLERANCE", 0.0)
    result = bench(*SMALL, "--deletion-rate", "0.5")
    assert result.exit_code == 1
    assert "a fast path does not compute what the plain one does: forward, " in result.stderr
    assert "MORE THAN" in result.stdout  # what was measured is shown all the same


@pytest.mark.slow
def test_memory_of_a_step_is_smaller_where_less_is_kept():
    words = ["--length", "200", "--target-length", "20", "--rounds", "1"]
    command = [
        sys.executable,
        "-m",
        "mrt5cli",
        "bench",
        *SMALL,
        *words,
        "--what",
        "train",
        "--deletion-rate",
        "0",
    ]
    # A process of its own: the server that forks what measures keeps the environment of its start.
    done = subprocess.run(
        [*command, "--memory", "--json"],
        env={**os.environ, "MRT5_FAST": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    [suite] = json.loads(done.stdout)["suites"]
    live = {case["name"]: case["memory"]["live"] for case in suite["cases"]}
    eager = live["eager, score loss"]
    assert live["fused, score loss, recomputing blocks"] < live["fused, score loss"] < eager
    # Two rows, four heads, 200 x 200 scores of 4 bytes: 1.3 MB a layer, several of each of six layers kept.
    assert 8e6 < eager < 60e6
    assert all(case["memory"]["peak"] >= case["memory"]["live"] for case in suite["cases"])


def test_precision_of_a_trained_run(tmp_path: Path):
    result = bench(make_run(tmp_path, "mrt5"), "--what", "precision", "--limit", 16, "--json", *HERE)
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)["suites"]
    full, autocast, weights = found["rows"]
    assert [row["precision"] for row in found["rows"]] == ["fp32", "bf16 autocast", "bf16 weights"]
    assert full["argmax_flipped"] == full["gate_flipped"] == full["logits"] == 0
    for row in (autocast, weights):
        assert row["logits"] > 1e-4  # it is another precision
        assert row["loss"] == pytest.approx(full["loss"], rel=0.05)
        assert 0 <= row["gate_flipped"] < 0.2
    assert 0 < full["deletion_rate"] < 1
    assert "16 test examples of vowel_removal" in found["notes"][0]


def test_precision_as_a_table_of_a_model_that_deletes_nothing(tmp_path: Path):
    run = make_run(tmp_path, "byt5", shortener={"kind": "none"})
    result = bench(run, "--what", "precision", "--limit", 8, *HERE)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if line.startswith("bf16 weights")]
    assert line.split()[-2] == "-"  # no gate, no decision to flip


@pytest.mark.parametrize(
    "words, message",
    [
        (["--what", "forward,speed"], "--what 'forward,speed': expected words of forward, train"),
        (["--what", ","], "--what ',': expected words of"),
        (["--deletion-rate", "50"], "a rate is a share of positions, 0 to below 1"),
        (["--rows", "odd"], "expected words of even, wide"),
        (["--rows", "wide", "--batch-size", "1"], "needs at least two rows per batch"),
        (["--size", "huge"], "--size huge is unknown"),
        (["nowhere/at/all"], "does not exist"),
        (["--what", "precision"], "--what precision needs a trained run"),
        (["--precision", "fp8"], "--precision 'fp8': expected words of fp32, bf16, tf32"),
        (["--precision", "fp32,tf32"], "--precision tf32 rounds products on a GPU, and this is a CPU"),
    ],
)
def test_wrong_words(words: list[str], message: str):
    result = bench(*words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


@pytest.mark.slow
def test_what_was_measured_before_a_time_limit_is_not_lost(tmp_path: Path):
    out = tmp_path / "bench.json"
    words = [*SMALL, "--what", "attention", "--rounds", "90", "--length", "256", "--out", out]
    command = [sys.executable, "-m", "mrt5cli", "bench", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()  # as `timeout` does
    shown, said = process.communicate(timeout=100)
    assert process.returncode == 143 and "stopped by SIGTERM" in said, said
    [suite] = json.loads(out.read_text())["suites"]
    rounds = {len(case["rounds"]) for case in suite["cases"]}
    assert rounds <= set(range(1, 90)) and len(rounds) == 1
    assert "fused forward and backward" in shown


def test_precisions_are_those_asked_for():
    result = bench(*SMALL, "--what", "attention", "--precision", "bf16", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["setting"]["precisions"] == ["bf16"]
    assert {case["precision"] for case in document["suites"][0]["cases"]} == {"bf16"}


@pytest.mark.slow
def test_no_compiler():
    command = [sys.executable, "-m", "mrt5cli", "bench", *SMALL, "--what", "compile", "--rounds", "1"]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "error: torch.compile needs a C++ compiler on a CPU" in done.stderr


def test_a_pooling_has_no_gate_to_steer(tmp_path: Path):
    run = make_run(tmp_path, "cp", shortener={"kind": "convolution", "layer": 1, "stride": 2})
    result = bench(run, *HERE)
    assert result.exit_code == 2
    assert "shortens with 'convolution'" in result.stderr


def test_a_model_without_a_recipe_has_no_data_to_be_precise_on(tmp_path: Path):
    run = make_run(tmp_path, "mrt5")
    (run / "model").rename(tmp_path / "bare")
    result = bench(tmp_path / "bare", "--what", "precision", *HERE)
    assert result.exit_code == 2
    assert "needs a trained run with its recipe" in result.stderr


def test_the_command_itself():
    words = [*SMALL, "--what", "attention", "--threads", "1", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mrt5cli", "bench", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["setting"]["threads"] == 1
    assert done.stderr.splitlines()[0] == "timing attention"


def test_a_log_says_what_is_left(monkeypatch, capsys):
    clock = iter([1.0, 10.0, 41.0])
    monkeypatch.setattr("mrt5cli.bars.time.monotonic", lambda: next(clock))
    with bars("timing") as tell:
        for finished in (1, 2, 5):
            tell("forward", finished, 9)
    assert capsys.readouterr().err.splitlines() == ["timing forward", "forward: 5 of 9, about 40 s left"]


# torch.compile's warnings, about its own code.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)
@pytest.mark.slow
def test_what_compiling_costs():
    result = bench(*SMALL, "--what", "compile", "--deletion-rate", "0.5", "--rounds", "1", "--json")
    assert result.exit_code == 0, result.output
    [compiled] = json.loads(result.stdout)["suites"]
    costs = [case["compiling"] for case in compiled["cases"] if case["compiling"]]
    assert len(costs) == 4
    assert all(cost["graphs"] >= 1 and cost["recompiled"] == 0 for cost in costs)


@pytest.mark.slow
def test_the_development_benchmarks_run(tmp_path: Path):
    script = Path(__file__).parent.parent / "benchmarks" / "targets.py"
    out = tmp_path / "targets.json"
    words = ["--size", "tiny", "--batch", "2", "--length", "80", "--target", "9", "--rounds", "1"]
    words += ["--device", "cpu", "--threads", "1", "--what"]
    kinds = ["forward", "attention", "train", "data", "startup", "products"]
    command = [sys.executable, script, *words, ",".join(kinds), "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert [suite["what"] for suite in document["suites"]] == kinds
    judged = {target["target"]["what"] for target in document["targets"]}
    assert judged == {"forward", "attention", "train", "data", "startup"}


def test_every_kind_is_one_that_runs():
    assert {*BUILDERS, "precision"} == set(KINDS)


def test_a_model_with_learned_positions(tmp_path: Path):
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 4, "num_decoder_layers": 1}
    positions = {"has_absolute_position_embeddings": True, "max_position_embeddings": 40}
    MrT5ForConditionalGeneration(MrT5Config(**shape, **positions)).save_pretrained(tmp_path)
    longer = bench(tmp_path, "--length", 41, "--target-length", 4)
    assert longer.exit_code == 2
    assert "this model has learned 40 positions, fewer than the requested 41" in longer.stderr
    precision = bench(tmp_path, "--what", "precision")
    assert "needs a trained run" in precision.stderr, "which has texts of its own length"
    compared = bench(tmp_path, "--length", 16, "--target-length", 4)
    assert compared.exit_code == 2
    assert "learned positions, which transformers' T5, its baseline, does not support" in compared.stderr


def test_a_plain_model_of_few_layers_gets_a_gate_that_it_has_room_for(tmp_path: Path):
    from mrt5cli.benchmark.models import base_model
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    MrT5ForConditionalGeneration(MrT5Config(**shape, deletion_type="none")).save_pretrained(tmp_path)
    assert base_model(str(tmp_path), "tiny").config.delete_gate_layer == 1
