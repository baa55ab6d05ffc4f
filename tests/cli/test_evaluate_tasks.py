"""`mrt5 evaluate` on tasks with answers and labels: tables, choices, comparisons, published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import NO_GATE, TARGET, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.errors import HubAway, RunFailed, UserError
from mrt5cli.evaluation import evaluate as evaluation
from mrt5cli.recipe.tasks import TYDIQA_LANGUAGES, XNLI_LANGUAGES

XNLI = {"kind": "xnli", "source": {"kind": "generated", "examples": 5}, "input_length": 64}
TYDI = {
    "kind": "tydiqa",
    "source": {"kind": "generated", "examples": 3},
    "languages": ["en", "te", "ko"],
    "input_length": 128,
    "answer_length": 6,
}
SPELLING = {"kind": "spelling_correction_contextual", "source": {"kind": "generated", "examples": 4}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks") / "runs"
    return {
        "xnli": make_run(folder, "xnli", task=XNLI, controller=TARGET),
        "xnli_byt5": make_run(folder, "xnli-byt5", task=XNLI, shortener=NO_GATE),
        "tydi": make_run(folder, "tydi", task=TYDI, controller=TARGET),
        "tydi_byt5": make_run(folder, "tydi-byt5", task=TYDI, shortener=NO_GATE),
        "spelling": make_run(folder, "spelling", task=SPELLING),
        "vowels": make_run(folder, "vowels"),
        "lm": make_run(folder, "lm", task={"kind": "span_corruption", "source": {"kind": "embedded"}}),
    }


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])


def printed(*arguments: object) -> str:
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*arguments: object) -> dict[str, Any]:
    return json.loads(printed(*arguments, "--json"))


def cells(text: str, label: str) -> list[str]:
    """The words of the first line that begins with a label."""
    return next(line for line in text.splitlines() if line.startswith(label + " ")).split()


def test_a_line_a_language_and_a_total(runs: dict[str, Path]) -> None:
    text = printed(runs["xnli"], "--languages", "sw,en", "--limit", 3)

    heading, *lines = text.splitlines()
    assert heading.startswith("xnli, test split, 6 examples, hard deletion")
    labels = [line.split()[0] for line in lines if line[:3] in ("en ", "sw ", "tot")]
    assert labels == ["en", "sw", "total"]
    assert cells(text, "total")[1] == "6"
    assert "source removed" not in text
    assert "acc." in text and "seq." not in text, "the paper's word for labels"
    (row, *_) = document(runs["xnli"], "--languages", "en", "--limit", 3)["models"][0]["rows"]
    low, high = row["sequence_accuracy_95"]
    assert cells(text, "en")[2:6] == [
        f"{100 * row['sequence_accuracy']:.2f}",
        f"{100 * low:.1f}",
        "-",
        f"{100 * high:.1f}",
    ]


def test_choices(runs: dict[str, Path]) -> None:
    told = document(runs["xnli"], "--constrained", "--languages", "en,fr")
    rows = told["models"][0]["rows"]

    assert told["constrained"] is True
    assert rows[2]["accuracy"] == pytest.approx((rows[0]["accuracy"] + rows[1]["accuracy"]) / 2)
    assert rows[2]["accuracy"] >= rows[2]["sequence_accuracy"]
    plain = document(runs["xnli"], "--languages", "en,fr")["models"][0]["rows"]
    assert plain[2]["accuracy"] is None
    assert plain[2]["loss"] == pytest.approx(rows[2]["loss"])
    folder = runs["xnli"] / "eval"
    assert (folder / "xnli-constrained-en+fr.json").is_file()
    assert (folder / "xnli-en+fr.json").is_file()
    text = printed(runs["xnli"], "--constrained", "--languages", "en")
    assert cells(text, "en")[2] == f"{100 * rows[0]['accuracy']:.2f}"


def test_answers(runs: dict[str, Path]) -> None:
    result = evaluate(runs["tydi"], "--runtime")
    text = result.stdout

    assert "answers compared by the squad rule" in text
    assert "EM, F1: answers from greedy decoding" in text
    assert [line.split()[0] for line in text.splitlines()[5:9]] == ["en", "te", "ko", "total"]
    assert "evaluating tydi-seed3, te, answers" in result.stderr
    told = json.loads((runs["tydi"] / "eval" / "tydiqa.json").read_text())
    assert told["normalization"] == "squad"
    row = told["models"][0]["rows"][-1]
    assert row["exact_match"] == 0
    assert row["exact_match_95"][1] > 0.2
    assert row["ms_per_example"] > 0
    document(runs["tydi"], "--normalization", "multilingual", "--limit", 1)
    other = json.loads((runs["tydi"] / "eval" / "tydiqa-multilingual.json").read_text())
    assert other["normalization"] == "multilingual"


@pytest.mark.parametrize("name", ["xnli", "tydi", "spelling"])
def test_the_batch_size_changes_nothing(name: str, runs: dict[str, Path]) -> None:
    few, some, many = (
        document(runs[name], "--batch-size", size, "--limit", 3)["models"][0]["rows"] for size in (1, 3, 8)
    )
    for other in (some, many):
        for row, first in zip(other, few, strict=True):
            for key in ("sequence_accuracy", "exact_match", "f1", "deletion_rate", "kept_length"):
                assert row[key] == pytest.approx(first[key]), key
            assert row["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_parts_of_the_character_tasks(runs: dict[str, Path]) -> None:
    text = printed(runs["spelling"])

    assert cells(text, "test_context_dependent")[1] == "4"
    assert cells(text, "total")[1] == "8"
    assert "66.73" in text, "published"


def test_several_runs_are_lines_of_one_table(runs: dict[str, Path]) -> None:
    text = printed(runs["xnli"], runs["xnli_byt5"], "--limit", 2)

    assert [cells(text, f"{name}-seed3")[1] for name in ("xnli", "xnli-byt5")] == ["30", "30"]
    assert "McNemar" not in text


# --- comparison ---


def test_two_runs_side_by_side(runs: dict[str, Path]) -> None:
    arguments = (runs["tydi"], "--compare", runs["tydi_byt5"], "--languages", "en,ko")
    told = document(*arguments)
    text = printed(*arguments)

    assert [model["name"] for model in told["models"]] == ["tydi-seed3", "tydi-byt5-seed3"]
    found = told["differences"]
    assert [(one["measure"], one["subset"]) for one in found] == [
        (measure, subset) for measure in ("exact_match", "f1", "loss") for subset in ("en", "ko", "total")
    ]
    for one in found:
        place = ["en", "ko", "total"].index(one["subset"])
        first, second = (model["rows"][place][one["measure"]] for model in told["models"])
        assert (one["first"], one["second"]) == (pytest.approx(first), pytest.approx(second))
        assert one["difference"] == pytest.approx(first - second)
        assert one["low"] <= one["difference"] <= one["high"]
        assert 0 < one["p_value"] <= 1
    assert [one["test"] for one in found[::3]] == ["mcnemar", "bootstrap", "bootstrap"]
    assert "exact match, % (McNemar's exact test)" in text
    assert "cross-entropy, nats per token (paired bootstrap)" in text
    assert "difference: tydi-seed3 minus tydi-byt5-seed3 on the same examples" in text
    saved = json.loads((runs["tydi"] / "eval" / "tydiqa-en+ko.json").read_text())
    assert saved["differences"] == []
    assert len(saved["models"]) == 1


def test_a_run_does_not_differ_from_itself(runs: dict[str, Path]) -> None:
    told = document(runs["xnli"], "--compare", runs["xnli"], "--languages", "en", "--constrained")

    assert [one["measure"] for one in told["differences"]] == [
        "accuracy",
        "sequence_accuracy",
        "loss",
    ]
    for one in told["differences"]:
        assert one["difference"] == 0
        assert one["p_value"] == 1
        assert one["low"] <= 0 <= one["high"]


@pytest.mark.parametrize(("name", "measures"), [("vowels", ["sequence_accuracy", "loss"]), ("lm", ["loss"])])
def test_any_task_can_be_compared(name: str, measures: list[str], runs: dict[str, Path]) -> None:
    told = document(
        runs[name], "--compare", runs["xnli_byt5"], "--task", runs[name] / "recipe.yaml", "--limit", 4
    )

    assert [one["measure"] for one in told["differences"]] == measures


# --- published numbers ---


def test_the_papers_models_are_below_the_table(runs: dict[str, Path]) -> None:
    text = printed(runs["xnli"], "--limit", 1)
    told = document(runs["xnli"], "--limit", 1)

    below = text.split("published for this task")[1]
    assert cells(below, "MrT5 v3")[-3:] == ["65.31", "55.60", "7.77"]
    assert cells(below, "ByT5 v1")[-3] == "51.34"
    assert "arXiv 2410.20771" in below
    assert len(told["published"]) == 6 * 16
    assert told["published"][0]["numbers"]["sequence_accuracy"] == pytest.approx(0.803)
    assert "interim" not in json.dumps(told["published"])
    some = printed(runs["xnli"], "--limit", 1, "--languages", "en,sw").split("published for this task")[1]
    assert cells(some, "MrT5 v3 (delta 0.5), sw")[-3] == "57.92"
    assert "65.31" not in some


def test_a_recipe_that_names_its_rows_gets_those_by_language(tmp_path: Path) -> None:
    run = make_run(tmp_path, "named", task=XNLI)
    recipe = run / "recipe.yaml"
    paper = "paper:\n  version: v3\n  experiment: xnli\n  rows: [r1499]\n"
    recipe.write_text(recipe.read_text().replace("paper: null\n", "") + paper)

    below = printed(run, "--limit", 1).split("published for this task")[1]

    assert below.startswith(": MrT5 v3 (delta 0.5)")
    assert cells(below, "en")[-3:] == ["80.20", "50.22", "5.62"]
    assert cells(below, "total")[-3] == "65.31"
    assert "ByT5" not in below


def test_nothing_is_published_of_validation_or_other_tasks(runs: dict[str, Path]) -> None:
    assert "published for" not in printed(runs["xnli"], "--split", "validation")
    assert document(runs["vowels"], "--limit", 2)["published"] == []


# --- which run, which data ---


def test_without_a_run_the_newest_of_the_task(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs["spelling"].parents[1])

    text = printed("--task", "spelling_correction_contextual")
    assert text.splitlines()[0] == "newest finished run: spelling-seed3"
    result = evaluate("--task", "spelling_correction_contextual", "--json")
    assert json.loads(result.stdout)["models"][0]["name"] == "spelling-seed3"
    assert "newest finished run: spelling-seed3" in result.stderr


def test_all_of_xnlis_languages_from_files_in_the_hubs_schema(runs: dict[str, Path], tmp_path: Path) -> None:
    for language in XNLI_LANGUAGES:
        rows = [
            {"premise": f"Ça {language} ก 中", "hypothesis": "x" * (7 * n + 1), "label": n % 3}
            for n in range(4)
        ]
        (tmp_path / f"test-{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    told = document(runs["lm"], "--task", "xnli", "--data", tmp_path, "--constrained", "--batch-size", 3)

    rows = told["models"][0]["rows"]
    assert [row["subset"] for row in rows] == [*XNLI_LANGUAGES, "total"]
    assert [row["examples"] for row in rows] == [4] * 15 + [60]
    assert told["task"]["settings"]["source"] == {"kind": "files", "path": str(tmp_path)}
    assert (runs["lm"] / "eval" / f"xnli-constrained-data-{tmp_path.name}.json").is_file()


@pytest.mark.slow
def test_all_of_tydis_languages_from_a_file_in_the_hubs_schema(runs: dict[str, Path], tmp_path: Path) -> None:
    names = {
        "ru": "russian",
        "ar": "arabic",
        "bn": "bengali",
        "te": "telugu",
        "fi": "finnish",
        "sw": "swahili",
        "ko": "korean",
        "id": "indonesian",
        "en": "english",
    }
    rows = [
        {
            "id": f"{name}-{n}",
            "title": "t",
            "question": "q" * (n + 1),
            "context": f"{name} a b",
            "answers": {"text": [name, "a b"], "answer_start": [0, len(name) + 1]},
        }
        for name in names.values()
        for n in range(2)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    told = document(runs["tydi"], "--task", "tydiqa", "--data", tmp_path, "--limit", 2)
    three = told["models"][0]["rows"]
    assert [row["subset"] for row in three] == ["en", "te", "ko", "total"], "the run's own languages"

    bare = document(runs["lm"], "--task", "tydiqa", "--data", tmp_path, "--limit", 1)
    found = bare["models"][0]["rows"]
    assert [row["subset"] for row in found] == [*TYDIQA_LANGUAGES, "total"]
    assert found[-1]["examples"] == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{xnli}", "--languages", "en,xx,yy"], "the test split of xnli has no xx, yy, only en, fr, es"),
        (["{vowels}", "--languages", "en"], "the test split of vowel_removal has no en, only all"),
        (["{xnli}", "{tydi}", "--compare", "{xnli}"], "--compare compares one run with one other"),
        (
            ["{tydi}", "--constrained"],
            "--constrained requires a task with a few possible targets, and tydiqa",
        ),
        (["{lm}", "--constrained"], "and span_corruption has no such list"),
        (["{xnli}", "--normalization", "bleu"], "'bleu' is not one of 'squad', 'multilingual'"),
        (
            ["{vowels}", "--data", "."],
            "the examples of vowel_removal are generated, not read",
        ),
        (["{xnli}", "--data", "{folder}"], "has no files of test"),
        (["{xnli}", "--data", "{folder}/nowhere"], "nowhere does not exist"),
        (["{lm}", "--task", "word_search"], "the examples of word_search are files, and none are given"),
        (
            ["--task", "xnli"],
            "there is no finished run under runs/ that was trained on xnli hint: give a run",
        ),
        ([], "there is no finished run under runs/ hint: give a run"),
        (["{xnli}", "--compare", "{tydi}"], "were trained on different tasks"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str],
    sentence: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": 1}\n')

    result = evaluate(*(argument.format(folder=folder, **runs) for argument in arguments))

    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


# --- what cannot be measured --------------------------------------------------------------------------------


def test_every_language_is_looked_for_before_one_is_measured(runs: dict[str, Path], tmp_path: Path) -> None:
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
    for name, languages in {"both": ("en", "sw"), "one": ("en",)}.items():
        for language in languages:
            (tmp_path / name / language).mkdir(parents=True)
            (tmp_path / name / language / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    asked = (runs["xnli"], "--languages", "en,sw", "--data")
    assert evaluate(*asked, tmp_path / "both").exit_code == 0

    result = evaluate(*asked, tmp_path / "one")
    assert result.exit_code == 2 and "sw" in result.stderr
    assert "evaluating" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize("kind", [RunFailed, HubAway])
def test_what_was_measured_is_kept_where_a_later_language_fails(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UserError]
) -> None:
    measure = evaluation._Subset.measure

    def failing(part: Any) -> Any:
        if part.subset == "te":
            raise kind("the disk with te is gone", "look for it")
        return measure(part)

    whole = document(runs["tydi"])["models"][0]["rows"]
    monkeypatch.setattr(evaluation._Subset, "measure", failing)
    out = tmp_path / "out.json"
    first = task_order(whole)[: task_order(whole).index("te")]
    assert first  # else nothing could be lost

    result = evaluate(runs["tydi"], "--json", "--out", out)
    assert result.exit_code == 1 and "error: the disk with te is gone\nhint: look for it" in result.stderr
    told = json.loads(result.stdout)
    assert told["unfinished"] == "the disk with te is gone"
    rows = told["models"][0]["rows"]
    assert rows == whole[: len(first)] and json.loads(out.read_text(encoding="utf-8")) == told
    saved = runs["tydi"] / "eval" / "unfinished" / "tydiqa.json"
    assert json.loads(saved.read_text(encoding="utf-8"))["models"][0]["rows"] == rows
    # The results of a complete evaluation are kept.
    before = json.loads((runs["tydi"] / "eval" / "tydiqa.json").read_text(encoding="utf-8"))
    assert before["models"][0]["rows"] == whole

    result = evaluate(runs["tydi"], runs["tydi_byt5"])
    assert result.exit_code == 1
    assert result.stdout.startswith("tydiqa, test split, unfinished, hard deletion")
    assert cells(result.stdout, first[0])[1] == "3"
    assert "unfinished: the disk with te is gone" in result.stdout


def task_order(rows: list[dict[str, Any]]) -> list[str]:
    return [row["subset"] for row in rows]
