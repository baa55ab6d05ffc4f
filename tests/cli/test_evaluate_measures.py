"""`mrt5 evaluate` by the measures that a recipe names: tables, files, predictions, comparisons, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml
from own_kinds import forgotten
from tiny_runs import NO_GATE, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.errors import RunFailed
from mrt5cli.evaluation import evaluate as evaluation
from mrt5cli.generation.decoding import Decoding
from mrt5cli.metrics import scoring
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.recipe import load
from mrt5cli.recipe.differences import decides_numbers, differences

PAIRS = "noisy\tclean\tlanguage\nhelo there\thello there\ten\nsalut,  toi\tsalut toi\tfr\nwrold\tworld\ten\n"
SCRIPT = """
import datasets
import evaluate


class Lengths(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features(predictions=text, references=text)
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"said": sum(map(len, predictions)), "wanted": sum(map(len, references))}
"""
METRICS = ["cer", "exact_match", "wer", "chrf", "bleu", "token_accuracy"]


def task(folder: Path, *metrics: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "text2text",
        "source": {"kind": "files", "path": str(folder / "pairs")},
        **{"input": "Correct: {noisy}", "target": "{clean}", "language_column": "language"},
        **{"input_length": 32, "target_length": 12, "metrics": list(metrics)},
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measures")
    (folder / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        (folder / "pairs" / f"{split}.tsv").write_text(PAIRS)
    (folder / "lengths.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    where, choices = folder / "runs", {"choices": ["hello there", "salut toi", "world"]}
    lengths = str(folder / "lengths.py")
    return {
        "all": make_run(where, "all", task=task(folder, *METRICS)),
        "byt5": make_run(where, "byt5", task=task(folder, *METRICS), shortener=NO_GATE),
        "chosen": make_run(where, "chosen", task=task(folder, "accuracy", "sequence_accuracy", **choices)),
        "loaded": make_run(where, "loaded", task=task(folder, "exact_match", lengths)),
        "vowels": make_run(where, "vowels"),
    }


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])


def printed(*arguments: object) -> str:
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_the_table_has_the_tasks_measures_and_the_file_their_numbers(runs: dict[str, Path]) -> None:
    text = printed(runs["all"])

    for name in ("CER", "EM", "WER", "chrF", "BLEU", "token"):
        assert name in text
    assert "F1" not in text and "choice" not in text and "seq." not in text
    assert "answers compared by" not in text, "texts are taken as they are"
    assert "CER, EM, WER, chrF, BLEU: answers from greedy decoding, scored against the best-matching" in text
    assert "BLEU: sacrebleu, nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:" in text
    found = SavedEvaluation.read(runs["all"] / "eval" / "text2text.json")
    assert (found.version, [row.subset for row in found.rows]) == (3, ["en", "fr", "total"])
    english, french, both = found.rows
    assert both.cer == pytest.approx((2 * english.known("cer") + french.known("cer")) / 3)
    assert both.bleu is not None and both.exact_match_95 is not None
    assert (both.f1, both.accuracy, both.others) == (None, None, {})
    told = json.loads((runs["all"] / "eval" / "text2text.json").read_text())
    assert told["normalization"] == "none"
    assert told["generation"] == {"num_beams": 1, "max_new_tokens": None, "length_penalty": 1.0}
    assert told["metrics"]["bleu"] == scoring.signature("bleu") and list(told["metrics"]) == ["chrf", "bleu"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_predictions_are_a_row_an_example_and_come_to_the_numbers(
    suffix: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / f"answers.{suffix}"
    result = evaluate(runs["all"], "--predictions", path, "--json")
    assert result.exit_code == 0, result.output
    assert f"saved {path}" in result.stderr
    english, french, _ = json.loads(result.stdout)["models"][0]["rows"]

    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = (
            [json.loads(line) for line in file]
            if suffix == "jsonl"
            else list(csv.DictReader(file, delimiter="\t" if suffix == "tsv" else ","))
        )

    texts = ["subset", "input", "target", "references", "prediction"]
    assert list(rows[0]) == [*texts, *METRICS, "deleted", "kept"]
    assert [(row["subset"], row["input"]) for row in rows] == [
        ("en", "Correct: helo there"),
        ("en", "Correct: wrold"),
        ("fr", "Correct: salut,  toi"),
    ]
    assert [row["target"] for row in rows] == ["hello there", "world", "salut toi"]
    assert rows[0]["references"] in (["hello there"], '["hello there"]')
    assert french["cer"] == pytest.approx(float(rows[2]["cer"])), "the one example of its subset"
    assert french["chrf"] == pytest.approx(float(rows[2]["chrf"]))
    wanted = [row["target"] for row in rows[:2]]
    assert english["bleu"] == sacrebleu.corpus_bleu([row["prediction"] for row in rows[:2]], [wanted]).score
    length = len(rows[0]["input"].encode()) + 1
    assert float(rows[0]["deleted"]) == pytest.approx(1 - int(rows[0]["kept"]) / length)


def test_predictions_of_two_models_say_whose_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    told = json.loads(
        printed(runs["all"], "--compare", runs["byt5"], "--predictions", path, "--languages", "en", "--json")
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["all-seed3"] * 2 + ["byt5-seed3"] * 2
    tested = {one["measure"]: one for one in told["differences"]}
    assert list(tested) == [*METRICS, "loss"]
    first, second = (model["rows"][0]["cer"] for model in told["models"])
    assert (tested["cer"]["first"], tested["cer"]["second"]) == (first, second)
    assert tested["cer"]["test"] == "bootstrap" and tested["exact_match"]["test"] == "mcnemar"
    assert tested["cer"]["low"] <= first - second <= tested["cer"]["high"]
    text = printed(runs["all"], "--compare", runs["byt5"])
    assert "character error rate, % (paired bootstrap)" in text and "BLEU (paired bootstrap)" in text


def test_predictions_that_cannot_be(runs: dict[str, Path], tmp_path: Path) -> None:
    told = refused(runs["vowels"], "--predictions", tmp_path / "x.csv")
    assert "but vowel_removal generates none: it measures the loss" in told
    told = refused(runs["chosen"], "--predictions", tmp_path / "x.csv")
    assert "text2text generates none: it measures accuracy, sequence_accuracy" in told
    told = refused(runs["all"], "--predictions", tmp_path / "x.parquet")
    assert "unknown format" in told and "a name that ends in .jsonl, .csv or .tsv" in told
    assert "cannot be written" in refused(runs["all"], "--predictions", tmp_path)
    assert not list(tmp_path.iterdir())


def test_predictions_never_take_the_place_of_examples(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    (data := tmp_path / "mine.tsv").write_text(PAIRS)
    told = refused(runs["all"], "--data", data, "--predictions", data)
    assert f"{data} contains the examples" in told and data.read_text() == PAIRS
    inside = folder / "pairs" / "test.tsv"
    told = refused(runs["all"], "--data", data, "--predictions", inside)
    assert f"is in {folder / 'pairs'}, which contains the examples" in told and inside.read_text() == PAIRS
    both = tmp_path / "both.csv"
    assert "choose another name" in refused(runs["all"], "--predictions", both, "--out", both)
    metrics = runs["all"] / "metrics.jsonl"
    assert "contains the metrics of a run" in refused(runs["all"], "--predictions", metrics)


def test_answers_are_kept_where_a_later_language_fails(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = evaluation._Subset.measure

    def failing(part: Any) -> Any:
        if part.subset == "fr":
            raise RunFailed("the disk with fr is gone")
        return measure(part)

    monkeypatch.setattr(evaluation._Subset, "measure", failing)
    result = evaluate(runs["all"], "--predictions", tmp_path / "answers.csv")
    assert result.exit_code == 1 and "the disk with fr is gone" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished-answers.csv"]
    with (tmp_path / "unfinished-answers.csv").open(newline="") as file:
        assert [row["subset"] for row in csv.DictReader(file)] == ["en", "en"]


def test_runs_that_were_trained_with_other_metrics_in_mind_are_measured_by_the_firsts(
    runs: dict[str, Path], evaluate_modules: None
) -> None:
    told = json.loads(printed(runs["all"], runs["loaded"], "--limit", 1, "--json"))
    assert [model["rows"][0]["cer"] is not None for model in told["models"]] == [True, True]


def test_accuracy_chooses_without_being_asked_and_generates_nothing(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("answers are generated but not scored")

    monkeypatch.setattr("mrt5cli.evaluation.evaluate.generate_answers", never)
    told = json.loads(printed(runs["chosen"], "--json"))
    rows = told["models"][0]["rows"]
    assert rows[0]["accuracy"] is not None and rows[0]["accuracy_95"] is not None
    assert rows[0]["exact_match"] is None and told["normalization"] is None and told["generation"] is None
    assert "choice" in printed(runs["chosen"])


def test_a_metric_that_is_loaded_is_in_tables_files_and_cards(
    runs: dict[str, Path], tmp_path: Path, evaluate_modules: None
) -> None:
    text = printed(runs["loaded"])
    assert "lengths." in text and "wanted" in text
    found = SavedEvaluation.read(runs["loaded"] / "eval" / "text2text.json")
    assert found.rows[0].others["lengths.wanted"] == len("hello there" + "world")
    assert found.rows[2].others["lengths.wanted"] == pytest.approx((2 * 16 + 9) / 3), "weighted by examples"
    told = json.loads((runs["loaded"] / "eval" / "text2text.json").read_text())
    assert [source.partition(",")[0] for source in told["metrics"].values()] == ["lengths.py"]
    text = printed(runs["loaded"], runs["byt5"], "--task", "text2text")
    assert "lengths." in text
    result = CliRunner().invoke(app, ["convert", str(runs["loaded"]), str(tmp_path / "card"), "--to", "hub"])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| lengths.said | lengths.wanted |" in card and "| 16.0000 |" in card


def test_a_metric_that_cannot_be_loaded_is_told_before_anything_is_measured(
    folder: Path, runs: dict[str, Path], tmp_path: Path, evaluate_modules: None
) -> None:
    run = make_run(tmp_path, "hub", task=task(folder, "exact_match", "rouge"))
    told = refused(run)
    assert "the metric 'rouge' is not built in, and evaluate-metric/rouge is not available" in told
    assert "HF_HUB_OFFLINE is set" in told and "evaluating" not in told


def test_a_name_without_sense_is_refused_with_the_recipe(runs: dict[str, Path]) -> None:
    words = ["recipe", "check", str(runs["all"] / "recipe.yaml"), "--set", "task.metrics=[excat_match, loss]"]
    result = CliRunner().invoke(app, words)
    told = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "task.metrics 'excat_match' is not a metric; did you mean exact_match?" in told
    assert "task.metrics loss is always measured and cannot be a task's metric" in told


def test_a_card_tells_results_under_different_conditions_apart(folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "told", task=task(folder, "exact_match"))
    (tmp_path / "more.tsv").write_text(PAIRS)
    printed(run)
    printed(run, "--precision", "bf16")
    printed(run, "--normalization", "squad", "--data", tmp_path / "more.tsv")
    printed(run, "--deletion-rate", 0.5)
    result = CliRunner().invoke(app, ["convert", str(run), str(tmp_path / "card"), "--to", "hub"])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "card" / "README.md").read_text()
    how = ["", ", bfloat16", ", squad rule, other data", "", ", threshold moved to delete 50 %"]
    rows = [
        line.split(" | ")[2] for line in card.splitlines() if line.startswith("| text2text | test | hard")
    ]
    assert sorted(rows) == sorted(3 * [f"hard{each}" for each in how])
    assert "more.tsv" not in card


def test_results_on_the_task_of_another_recipe_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "own", task=task(folder, "exact_match"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["task"]["input"] = "{noisy}"
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(recipe))
    printed(run, "--task", run / "recipe.yaml")
    own = (run / "eval" / "text2text.json").read_text()
    printed(run, "--task", tmp_path / "bare.yaml")
    assert (run / "eval" / "text2text.json").read_text() == own
    assert sorted(path.name for path in (run / "eval").iterdir()) == ["text2text-bare.json", "text2text.json"]
    result = CliRunner().invoke(app, ["convert", str(run), str(tmp_path / "card"), "--to", "hub"])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| test | hard, another task: {noisy} -> {clean} | total |" in card
    assert "| test | hard | total |" in card


def test_beams_and_lengths_of_the_recipe(
    runs: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, generate = [], evaluation.generate_answers

    def watched(*given: Any, decoding: Decoding, **more: Any) -> list[str]:
        seen.append(decoding)
        return generate(*given, decoding=decoding, **more)

    monkeypatch.setattr(evaluation, "generate_answers", watched)
    run = make_run(tmp_path, "beams", task=task(folder, "cer"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluation"]["generation"] = {"num_beams": 2, "max_new_tokens": 3, "length_penalty": 0.5}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = tmp_path / "short.jsonl"
    text = printed(run, "--predictions", path)
    assert "CER: answers from beam search with 2 beams, scored against" in text
    assert seen == [Decoding(3, num_beams=2, length_penalty=0.5)] * 2
    told = json.loads((run / "eval" / "text2text-beams2-longest3-penalty0.5.json").read_text())
    assert told["generation"] == {"num_beams": 2, "max_new_tokens": 3, "length_penalty": 0.5}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(row["prediction"].encode()) <= 3 * 3 for row in rows)


def test_targets_beyond_the_positions_of_a_model_are_refused(folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "short", task=task(folder, "cer"), positions="absolute", max_positions=32)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["task"]["target_length"] = recipe["model"]["max_positions"] = 40
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(recipe))
    told = refused(run, "--task", tmp_path / "longer.yaml")
    assert "has 32 learned positions and cannot write the 40 byte tokens of text2text" in told


def test_another_rule_is_told_apart(runs: dict[str, Path]) -> None:
    told = refused(runs["chosen"], "--normalization", "squad")
    assert "--normalization applies to exact match and F1, and text2text is measured by" in told
    assert "answers compared by the squad rule" in printed(runs["all"], "--normalization", "squad")
    assert (runs["all"] / "eval" / "text2text-squad.json").is_file()
    printed(runs["all"], "--normalization", "none")
    assert not (runs["all"] / "eval" / "text2text-none.json").exists(), "it is the task's own"


@pytest.mark.parametrize(("metric", "better"), [("cer", min), ("chrf", max), ("accuracy", max)])
def test_training_keeps_what_is_best_by_a_measure(
    metric: str, better: Any, folder: Path, tmp_path: Path, runs: dict[str, Path]
) -> None:
    recipe = yaml.safe_load((runs["chosen"] / "recipe.yaml").read_text())
    recipe["task"]["metrics"] = ["cer", "chrf", "accuracy"]
    recipe["training"] |= {"max_steps": 2, "device_batch_size": 8, "eval_steps": 1, "best_metric": metric}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = ["pretrain", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line["validation"]["total"][metric] for line in lines if "validation" in line]
    best = json.loads((tmp_path / "run" / "meta.json").read_text())["best"]
    assert len(seen) == 2 and best["metric"] == metric and best["value"] == better(seen)


OWN = """
from mrt5cli.metrics.catalog import Metric, register

vowels_kept = Metric("vowels_kept", "vowels kept", "vowels\\nkept", "share", better="higher")
register(vowels_kept, lambda answer, accepted: 0.25)
"""


def test_a_metric_of_the_users_own_chooses_and_is_shown(tmp_path: Path, runs: dict[str, Path]) -> None:
    (tmp_path / "vowels.py").write_text(OWN)
    recipe = yaml.safe_load((runs["all"] / "recipe.yaml").read_text())
    recipe["task"]["metrics"] = ["vowels_kept"]
    recipe["training"] |= {"max_steps": 1, "device_batch_size": 8, "eval_steps": 1}
    recipe["training"]["best_metric"] = "vowels_kept"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = ["pretrain", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "expected 'loss', 'token_accuracy'" in result.stderr
    assert " or 'bleu', not 'vowels_kept'" in " ".join(result.stderr.split())

    code = ["--code", str(tmp_path / "vowels.py")]
    with forgotten():
        result = CliRunner().invoke(app, [*words, *code])
        assert result.exit_code == 0, result.output
        text = printed(tmp_path / "run", *code)
    best = json.loads((tmp_path / "run" / "meta.json").read_text())["best"]
    assert (best["metric"], best["value"]) == ("vowels_kept", 0.25)
    assert "vowels kept: answers from greedy decoding" in " ".join(text.split()) and "25.00" in text
    found = SavedEvaluation.read(tmp_path / "run" / "eval" / "text2text.json")
    assert [row.others for row in found.rows] == [{"vowels_kept": 0.25}] * 3


def test_weights_cannot_be_chosen_by_what_the_task_does_not_measure(
    folder: Path, tmp_path: Path, runs: dict[str, Path]
) -> None:
    words = ["pretrain", str(runs["loaded"] / "recipe.yaml"), "--out", str(tmp_path / "run")]
    changed = ["training.device_batch_size=8", "training.eval_steps=1", "training.best_metric=wer"]
    result = CliRunner().invoke(app, [*words, *(word for each in changed for word in ("--set", each))])
    assert result.exit_code == 2, result.output
    told = " ".join(result.stderr.split())
    assert "training.best_metric: task text2text does not measure wer" in told
    assert "use loss, token_accuracy, sequence_accuracy or exact_match" in told


def test_a_run_may_be_resumed_with_other_metrics(runs: dict[str, Path]) -> None:
    before = load(runs["all"] / "recipe.yaml")
    now = load(runs["all"] / "recipe.yaml", ["task.metrics=[cer]", "task.input='{noisy}'"])
    changed = differences(before, now)
    assert {key: decides_numbers(key, now) for key in changed} == {"task.metrics": False, "task.input": True}


def test_a_script_that_is_not_there_is_told_before_training(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["pretrain", str(runs["loaded"] / "recipe.yaml"), "--dry-run", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*words, "--set", "task.metrics=[exact_match, ./gone.py]"])
    assert result.exit_code == 2, result.output
    assert "the metric ./gone.py does not exist" in result.stderr


def test_half_precision_is_recorded(runs: dict[str, Path]) -> None:
    told = json.loads(printed(runs["vowels"], "--limit", 2, "--precision", "bf16", "--json"))
    assert told["models"][0]["dtype"] == "bfloat16"
    assert (runs["vowels"] / "eval" / "vowel_removal-bf16.json").is_file()
