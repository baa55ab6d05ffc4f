"""`mrt5 evaluate`: one table, one document, saved beside the run; a sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import GATE, NO_GATE, SHORTENERS, SPANS, TARGET, VOWELS, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.recipe.shorteners import of_type


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "byt5": make_run(folder, "byt5", shortener=NO_GATE, seconds=61.4),
        "mrt5": make_run(folder, "mrt5", controller=TARGET, seconds=4000.0),
        "random": make_run(folder, "random", shortener={"kind": "random", "layer": 1, "rate": 0.25}),
        "spans": make_run(folder, "spans", task=SPANS, shortener=GATE),
    }


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])


def document(*arguments: object) -> dict[str, Any]:
    result = evaluate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_one_run(runs: dict[str, Path]) -> None:
    result = evaluate(runs["mrt5"])

    assert result.exit_code == 0, result.output
    heading, *lines = result.stdout.splitlines()
    assert heading.startswith("vowel_removal, test split, 24 examples, hard deletion, batches of 8, ")
    line = next(line for line in lines if line.startswith("mrt5-seed3"))
    removed = next(line for line in lines if line.startswith("source removed"))
    assert line.split()[2] == "25.0", "the target"
    assert "gate" in result.stdout
    assert removed.split()[2:4] == ["-", "-"]
    assert "warning: removing the source does not raise the loss of mrt5-seed3: it hardly" in result.stdout


def test_several_runs_are_lines_of_one_table(runs: dict[str, Path]) -> None:
    result = evaluate(runs["byt5"], runs["mrt5"], runs["random"], "--limit", 10)

    assert result.exit_code == 0, result.output
    names = [line.split("  ")[0] for line in result.stdout.splitlines() if "seed3 " in line]
    assert names[:3] == ["byt5-seed3", "mrt5-seed3", "random-seed3"]
    assert "61 s" in result.stdout
    assert "1 h 07 min" in result.stdout
    assert "10 examples" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:8])) <= 90


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of every shortener, of one task."""
    folder = tmp_path_factory.mktemp("variants")
    sections = {"byt5": NO_GATE, "mrt5": GATE, **SHORTENERS}
    return {
        name: make_run(folder, name.replace("_", "-"), shortener=section)
        for name, section in sections.items()
    }


def test_every_variant_in_one_table(variants: dict[str, Path]) -> None:
    result = evaluate(*variants.values(), "--limit", 10)

    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines() if re.match(r"\S+-seed3 +[0-9]", line)]
    assert [cells[0] for cells in table] == [f"{name.replace('_', '-')}-seed3" for name in variants]
    deleted = {name: float(cells[1]) for name, cells in zip(variants, table, strict=True)}
    assert deleted["byt5"] == 0
    assert all(0 < deleted[name] < 100 for name in variants if name != "byt5")
    assert "whose gate is below the threshold, or that are pooled into another" in result.stdout
    assert "gone-seed3 reads a single EOS instead of its source" in result.stdout
    assert "loss of gone-seed3" not in result.stdout
    assert "soft mode" not in result.stdout


def test_every_variant_in_one_document(variants: dict[str, Path]) -> None:
    told = document(*variants.values(), "--limit", 10)

    for model in told["models"]:
        (row,) = model["rows"]
        assert row["deletion_rate"] == pytest.approx(1 - row["kept_length"] / row["input_length"])
        gates = of_type(model["deletion_type"]).gates
        assert (row["gate_recall"] is not None) == gates, model["name"]
        assert row["source_removed_loss"] is not None
    rows = {model["name"].removesuffix("-seed3"): model["rows"][0] for model in told["models"]}
    assert rows["gone"]["kept_length"] == rows["gone"]["new_length"] == 1
    assert rows["gone"]["loss"] == pytest.approx(rows["gone"]["source_removed_loss"])
    lengths = rows["cp"]["input_length"]
    assert lengths / 3 <= rows["cp"]["kept_length"] <= lengths / 3 + 1
    assert rows["byt5"]["loss"] != rows["cp"]["loss"]


@pytest.mark.parametrize("name", SHORTENERS)
def test_batches_of_another_size_change_no_row_by_row_result(name: str, variants: dict[str, Path]) -> None:
    few, many = (
        document(variants[name], "--limit", 10, "--batch-size", size)["models"][0]["rows"][0]
        for size in (2, 10)
    )
    same = few["loss"] == pytest.approx(many["loss"], rel=1e-5)
    same = same and few["deletion_rate"] == many["deletion_rate"]
    # The authors' boundary predictor mixes rows; strings of one length leave cp_batch no padding to mix in.
    assert same == (name != "bp_batch")


def test_soft_evaluation_says_what_has_no_soft_mode(variants: dict[str, Path]) -> None:
    chosen = [variants[name] for name in ("mrt5", "bp", "cp", "fixed")]
    result = evaluate(*chosen, "--soft", "--limit", 10)

    assert result.exit_code == 0, result.output
    assert "pooling has no soft mode; pooled as with --hard: bp-seed3, cp-seed3" in result.stdout
    soft, hard = (document(*chosen, flag, "--limit", 10)["models"] for flag in ("--soft", "--hard"))
    for one, other in zip(soft, hard, strict=True):
        row, same = one["rows"][0], other["rows"][0]
        pools = one["name"] in ("bp-seed3", "cp-seed3")
        if one["name"] != "fixed-seed3":  # whose gates are shut or open, so that soft and hard hardly differ
            assert (row["loss"] == pytest.approx(same["loss"])) == pools, one["name"]
        assert row["deletion_rate"] == same["deletion_rate"]
        assert row["kept_length"] == same["kept_length"]
        assert (row["new_length"] == row["input_length"]) == (not pools)
    assert "soft mode" not in evaluate(variants["fixed"], "--soft", "--limit", 4).stdout


def test_the_document_holds_what_the_table_shows(runs: dict[str, Path]) -> None:
    told = document(runs["byt5"], runs["mrt5"])

    assert told["task"]["kind"] == "vowel_removal"
    assert (told["split"], told["deletion"], told["limit"], told["batch_size"]) == ("test", "hard", 24, 8)
    byt5, mrt5 = told["models"]
    assert (byt5["target_deletion_rate"], mrt5["target_deletion_rate"]) == (None, 0.25)
    assert mrt5["train_seconds"] == 4000.0
    (row,) = mrt5["rows"]
    assert row["examples"] == 24
    assert 0 < row["deletion_rate"] < 1
    assert row["loss"] * 1.442695 == pytest.approx(row["bits_per_byte"], rel=1e-5)
    assert byt5["rows"][0]["deletion_rate"] == 0
    assert byt5["rows"][0]["kept_length"] == byt5["rows"][0]["input_length"]
    low, high = row["sequence_accuracy_95"]
    assert low <= row["sequence_accuracy"] <= high


def test_results_are_saved_in_the_run(runs: dict[str, Path]) -> None:
    told = document(runs["mrt5"])
    document(runs["mrt5"], "--soft", "--split", "validation")

    folder = runs["mrt5"] / "eval"
    assert json.loads((folder / "vowel_removal.json").read_text()) == told
    soft = json.loads((folder / "vowel_removal-validation-soft.json").read_text())
    assert soft["deletion"] == "soft"
    assert set(soft["versions"]) == {"python", "mrt5cli", "torch", "transformers"}
    assert soft["models"][0]["rows"][0]["new_length"] == soft["models"][0]["rows"][0]["input_length"]


def test_a_run_that_cannot_be_written_to_is_still_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path, "foreign", task=SPANS)
    (run / "eval").touch()

    result = evaluate(run, "--limit", 2)

    assert result.exit_code == 0
    assert f"note: results not saved, {run}/eval/span_corruption.json cannot be written" in result.stderr
    assert "foreign-seed3" in result.stdout

    (run / "metrics.jsonl").write_text("damaged\n")
    told = evaluate(run, "--limit", 2, "--json")
    assert told.exit_code == 0 and "note: results not saved, " in told.stderr
    assert json.loads(told.stdout)["models"][0]["train_seconds"] is None

    (run / "meta.json").write_text("{")
    result = evaluate(run, "--limit", 2)
    assert result.exit_code == 2 and "meta.json cannot be read" in result.stderr


def test_out_writes_the_document(runs: dict[str, Path], tmp_path: Path) -> None:
    told = document(runs["byt5"], "--out", tmp_path / "deep" / "result.json")

    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == told


def test_a_checkpoint_directory_takes_its_runs_recipe(runs: dict[str, Path]) -> None:
    told = document(runs["mrt5"] / "model")

    assert told["models"][0]["name"] == "mrt5-seed3"


def test_a_step_of_a_run_is_named_timed_and_saved_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, "steps", seconds=50.0)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 600, "loss": 5.0, "seconds": 90.0}) + "\n")
    step = run / "checkpoints" / "step-00000500"
    (run / "model").rename(step)

    told = document(step)

    assert told["models"][0]["name"] == "steps-seed3/step-00000500"
    assert told["models"][0]["train_seconds"] == 50.0
    assert (run / "eval" / "vowel_removal-step-00000500.json").is_file()


def test_a_bare_checkpoint_needs_a_task(runs: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.symlink_to(runs["mrt5"] / "model", target_is_directory=True)

    refused = evaluate(bare)
    assert refused.exit_code == 2
    assert "has no recipe, so its task is unknown" in refused.stderr
    assert "--task" in refused.stderr

    told = document(bare, "--task", "copy", "--limit", 4)
    assert told["task"]["settings"]["length"] == 64
    assert told["models"][0]["rows"][0]["examples"] == 4
    assert not (bare / "eval").exists()


def test_another_task_takes_the_runs_length(runs: dict[str, Path]) -> None:
    assert document(runs["mrt5"], "--task", "copy")["task"]["settings"]["length"] == 16
    assert (runs["mrt5"] / "eval" / "copy.json").is_file()


def test_another_recipes_task(runs: dict[str, Path], tmp_path: Path) -> None:
    other = make_run(tmp_path, "other", task={**VOWELS, "length": 12})

    told = document(runs["mrt5"], "--task", other / "recipe.yaml")

    assert told["task"]["settings"]["length"] == 12


def test_the_language_model_task_shows_the_loss_without_source(runs: dict[str, Path]) -> None:
    result = evaluate(runs["spans"], "--limit", 8)

    assert result.exit_code == 0, result.output
    assert "source removed:" in result.stdout
    (row,) = document(runs["spans"], "--limit", 8)["models"][0]["rows"]
    assert f"{row['source_removed_loss']:.4f}" in result.stdout
    assert row["gate_recall"] is None


def test_runtime(runs: dict[str, Path]) -> None:
    told = document(runs["byt5"], "--runtime", "--limit", 8)

    (model,) = told["models"]
    assert model["rows"][0]["ms_per_example"] > 0
    assert told["timed_passes"] == 5
    assert (model["device"], model["dtype"]) == ("cpu", "float32")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs/nothing-here/at-all"], "does not exist"),
        (["{mrt5}", "{spans}"], "mrt5-seed3 and spans-seed3 were trained on different tasks (kind: "),
        (["{mrt5}", "--task", "vowel_removl"], "no recipe 'vowel_removl'"),
        (["{mrt5}", "--task", "vowel_removl"], "pass a recipe or one of span_corruption, copy"),
        (["{mrt5}", "--limit", "0"], "invalid value for '--limit'"),
        (
            ["{mrt5}", "--split", "train"],
            "invalid value for '--split': 'train' is not one of 'validation', 'test'",
        ),
        (["{mrt5}", "--task", "copy", "--out", "{mrt5}/recipe.yaml/x.json"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], sentence: str, runs: dict[str, Path]
) -> None:
    result = evaluate(*(argument.format(**runs) for argument in arguments))

    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


def test_tasks_that_differ_are_told_in_the_words_of_recipes(tmp_path: Path) -> None:
    one, other = (
        make_run(tmp_path, name, task={**SPANS, "source": source, "languages": ["en"]})
        for name, source in {
            "one": {"kind": "embedded"},
            "other": {"kind": "files", "path": "my texts", "streaming": True},
        }.items()
    )

    result = evaluate(one, other)

    assert result.exit_code == 2
    assert "were trained on different tasks (source.kind: embedded and files)" in result.stderr


def test_a_model_with_too_few_positions(tmp_path: Path) -> None:
    short = make_run(tmp_path, "short", positions="absolute", max_positions=20)

    result = evaluate(
        short, "--task", make_run(tmp_path, "long", task={**VOWELS, "length": 30}) / "recipe.yaml"
    )

    assert result.exit_code == 2
    assert "has 20 learned positions and cannot read the 30 byte tokens of vowel_removal" in result.stderr


def test_json_in_a_real_process_has_stdout_to_itself(runs: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "mrt5cli", "evaluate", str(runs["mrt5"]), "--json", "--limit", "4"]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limit"] == 4
    assert "saved " in done.stderr


# --- another deletion rate
# ------------------------------------------------------------------------------------


def test_a_gate_conditioned_on_its_rate_has_no_calibrated_threshold(tmp_path: Path) -> None:
    run = make_run(tmp_path, "told", shortener={"kind": "quantile_gate", "layer": 1})
    found = evaluate(run, "--deletion-rate", "0.3,0.7,0", "--limit", "40", "--html", tmp_path / "it.html")
    assert found.exit_code == 0, found.output
    rows = [line.split() for line in found.stdout.splitlines() if line.startswith("at ")]
    assert [row[3] for row in rows] == ["-21", "-9", "-31"]
    assert "the gate is conditioned on the rate" in found.stdout and "set thresholds" not in found.stdout
    page = (tmp_path / "it.html").read_text(encoding="utf-8")
    assert "an input of the model." in page and "calibrated the threshold" not in page


def test_deletion_rates_without_training(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mrt5")
    result = evaluate(run, "--deletion-rate", "0.2,0.8", "--limit", "40", "--json")
    assert result.exit_code == 0, result.output
    own, low, high = json.loads(result.stdout)["models"]
    assert own["calibration"] is None
    for model, rate in ((low, 0.2), (high, 0.8)):
        assert model["calibration"]["rate"] == model["target_deletion_rate"] == rate
        assert abs(model["calibration"]["reached"] - rate) < 0.01
        assert abs(model["rows"][-1]["deletion_rate"] - rate) < 0.1
    saved = [path.name for path in (run / "eval").iterdir()]
    assert saved == ["vowel_removal-rates.json"]
    assert len(json.loads((run / "eval" / saved[0]).read_text())["models"]) == 3

    table = evaluate(run, "--deletion-rate", "0.2,0.8", "--limit", "40").stdout
    rows = [line.split() for line in table.splitlines() if line.startswith("at ")]
    for row, model, rate in zip(rows, (low, high), ("20.0", "80.0"), strict=True):
        threshold, reached = model["calibration"]["threshold"], model["calibration"]["reached"]
        assert row[3:6] == [f"{threshold:.4g}", rate, f"{100 * reached:.1f}"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--deletion-rate", "60"], "0 to below 1"),
        (["--deletion-rate", "half"], "0 to below 1"),
        (["--deletion-rate", "0.5", "--soft"], "soft gates delete nothing"),
    ],
)
def test_deletion_rates_that_cannot_be(words: list[str], message: str, tmp_path: Path) -> None:
    result = evaluate(make_run(tmp_path, "mrt5"), *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_rate_needs_one_run_with_a_learned_gate(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mrt5")
    assert "pass one RUN" in evaluate(run, run, "--deletion-rate", "0.5").stderr
    plain = make_run(tmp_path, "byt5", shortener={"kind": "none"})
    assert "no learned delete gate" in evaluate(plain, "--deletion-rate", "0.5").stderr
