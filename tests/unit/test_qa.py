"""TyDi QA and XQuAD: prompt, answers, languages, validation held out by hash, where the Hub has them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

from mrt5cli.byte_tokens import decode
from mrt5cli.errors import UserError
from mrt5cli.recipe import TyDiQATask, XQuADTask
from mrt5cli.recipe.tasks import TYDIQA_LANGUAGES, XQUAD_LANGUAGES
from mrt5cli.tasks import Task, build_task
from mrt5cli.tasks.tydiqa import LANGUAGE_NAMES

SECTIONS = {"tydiqa": TyDiQATask, "xquad": XQuADTask}


def qa(kind: str, source: dict[str, Any], **settings: Any) -> Task:
    return build_task(SECTIONS[kind].model_validate({"kind": kind, "source": source, **settings}))


def row(number: int = 0, **values: Any) -> dict[str, Any]:
    answers = {"text": ["Ada L.", "Ada"], "answer_start": [24, 24]}
    return {
        "id": f"english-{number}-0",
        "question": "Who wrote it?",
        "context": f"The book was written by Ada L. in {1000 + number}.",
        "answers": answers,
    } | values


def files(folder: Path, *rows: dict[str, Any], name: str = "train.jsonl") -> dict[str, str]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"kind": "files", "path": str(folder)}


def ids(task: Task, split: str, language: str) -> list[str]:
    return task.rows(split, language)["id"].to_pylist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", SECTIONS)
def test_prompt_answers_and_lengths(kind: str, tmp_path: Path) -> None:
    rows = [row(), row(1, answers={"text": ["1001"], "answer_start": [34]})]
    source = files(tmp_path, *rows, name="test-en.jsonl")
    task = qa(kind, source, languages=["en"], input_length=90, answer_length=7)
    prompt = "Question: Who wrote it? Context: The book was written by Ada L. in 1000."
    assert task.example("test") == (prompt, "Ada L.")
    assert (task.measures, task.answer_length, task.choices) == (("exact_match", "f1"), 7, None)
    assert task.references("test", "en") == [("Ada L.", "Ada"), ("1001",)]
    assert task.references("test", "en", 1) == [("Ada L.", "Ada")]
    assert task.truncated("test", "en") == 0
    assert qa(kind, source, languages=["en"], input_length=72).truncated("test", "en") == 2


@pytest.mark.parametrize("kind", SECTIONS)
def test_rows_that_share_an_id_keep_their_own_answers(kind: str, tmp_path: Path) -> None:
    rows = [row(), row(answers={"text": ["1000"], "answer_start": [34]})]
    task = qa(kind, files(tmp_path, *rows, name="test-en.jsonl"), languages=["en"])
    assert task.references("test", "en") == [("Ada L.", "Ada"), ("1000",)]
    targets = next(iter(task.held_out("test", "en", batch_size=2)))["labels"].tolist()
    assert [decode(target) for target in targets] == ["Ada L.", "1000"]


def test_long_targets_are_cut_where_sources_are(tmp_path: Path) -> None:
    source = files(tmp_path, row(answers={"text": ["x" * 50], "answer_start": [0]}))
    task = qa("xquad", source, input_length=20)
    [batch] = [next(iter(task.train_stream(batch_size=1, seed=1)))]
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 20)
    assert batch["labels"][0, -1] == 1
    assert task.describe().endswith("at most 20 -> 256 byte tokens (1 source, 1 target cut)")


@pytest.mark.parametrize(
    "cell", ["Ada L.", '{"text": ["Ada L.", "Ada"], "answer_start": [24, 24]}', '  {"text": ["Ada L."]}']
)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_answers_in_tables(tmp_path: Path, cell: str, separator: str) -> None:
    # Quotes in TSV are text, unless they are there for a reason.
    quoted = cell if separator == "\t" and '"' not in cell else '"' + cell.replace('"', '""') + '"'
    suffix = "csv" if separator == "," else "tsv"
    lines = [
        separator.join(["id", "question", "context", "answers"]),
        separator.join(["1", "q", "c", quoted]),
    ]
    (tmp_path / f"test.{suffix}").write_text("\n".join(lines))
    task = qa("xquad", {"kind": "files", "path": str(tmp_path)}, languages=["de"])
    assert task.references("test", "de")[0][0] == "Ada L."  # type: ignore[index]


EXPECTED = 'expected answers such as {"text": ["..."], "answer_start": [0]}'


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answers": None}, f"column 'answers' is null, {EXPECTED}"),
        ({"answers": {"answer_start": [1]}}, f"column 'answers' is {{'answer_start': [1]}}, {EXPECTED}"),
        ({"answers": {"text": "Ada"}}, f"column 'answers' is {{'text': 'Ada'}}, {EXPECTED}"),
        ({"answers": {"text": [1]}}, f"column 'answers' is {{'text': [1]}}, {EXPECTED}"),
        (
            {"answers": "{'text': []}"},
            "column 'answers' is \"{'text': []}\": not JSON: Expecting",
        ),
        ({"question": 7}, "column 'question' is 7, expected text"),
    ],
)
@pytest.mark.parametrize("kind", SECTIONS)
def test_wrong_rows(kind: str, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    task = qa(kind, files(tmp_path, row(), row(1, **values)), languages=["en"])
    with pytest.raises(UserError) as caught:
        task.train_stream(batch_size=1, seed=1)
    file = str(tmp_path / "train.jsonl")
    assert caught.value.message.startswith(f"{file}, line 2: {message}")
    assert "\n" not in caught.value.message


def test_empty_texts_are_taken_and_counted(tmp_path: Path) -> None:
    empty = [row(1, context=""), row(2, question=" \t"), row(3, answers={"text": [""], "answer_start": [0]})]
    task = qa("xquad", files(tmp_path, row(), *empty, row(4, answers={"text": ["Ada", ""]})))
    batch = next(iter(task.train_stream(batch_size=5, seed=1)))
    assert len(batch["labels"]) == 5
    assert task.remarks() == ["rows with an empty text, which are kept: 3 of train"]


def test_missing_answers_name_all_that_is_expected(tmp_path: Path) -> None:
    [task] = [qa("xquad", files(tmp_path, {"id": "a", "question": "q", "context": "c"}))]
    with pytest.raises(
        UserError, match="line 1: no column 'answers'; it has id, question, context"
    ) as caught:
        task.train_stream(batch_size=1, seed=1)
    assert str(caught.value.hint).startswith("a row has id: text; question: text; context: text; answers: ")


# --- TyDi QA ------------------------------------------------------------------------------------------------


def test_tydiqa_takes_languages_from_ids(tmp_path: Path) -> None:
    rows = [row(number, id=f"{name}-{number}-0") for name in LANGUAGE_NAMES for number in range(20)]
    task = qa("tydiqa", files(tmp_path, *rows, name="test.jsonl"))
    assert task.subsets("test") == task.subsets("validation") == TYDIQA_LANGUAGES
    for name, language in LANGUAGE_NAMES.items():
        assert ids(task, "test", language) == [f"{name}-{number}-0" for number in range(20)]
    with pytest.raises(UserError, match="has no files of train"):
        task.train_stream(batch_size=1, seed=1)


def test_tydiqa_a_language_column_goes_before_the_id(tmp_path: Path) -> None:
    rows = [row(0, language="fi"), row(1, id="mine", language="fi")]
    task = qa("tydiqa", files(tmp_path, *rows, name="test.jsonl"), languages=["fi"])
    assert ids(task, "test", "fi") == ["english-0-0", "mine"]


@pytest.mark.parametrize("name", ["klingon-1-0", "7"])
def test_tydiqa_an_id_of_no_language(tmp_path: Path, name: str) -> None:
    task = qa("tydiqa", files(tmp_path, row(), row(id=name)))
    with pytest.raises(UserError) as caught:
        task.train_stream(batch_size=1, seed=1)
    assert f"line 2: column 'id' is '{name}', which names no language of TyDi QA" in caught.value.message


def test_tydiqa_holds_out_a_fifth_by_the_id_alone(tmp_path: Path) -> None:
    rows = [row(number) for number in range(500)]
    task = qa("tydiqa", files(tmp_path, *rows), languages=["en"])
    train, validation = ids(task, "train", "en"), ids(task, "validation", "en")
    assert sorted([*train, *validation]) == sorted(r["id"] for r in rows)
    assert 75 < len(validation) < 125
    assert validation[:3] == SEEN_ONCE
    (tmp_path / "half").mkdir()
    half = qa("tydiqa", files(tmp_path / "half", *rows[300:50:-2]), languages=["en"])
    chosen = {r["id"] for r in rows[300:50:-2]}
    assert set(ids(half, "validation", "en")) == set(validation) & chosen
    assert set(ids(half, "train", "en")) == set(train) & chosen


SEEN_ONCE = ["english-4-0", "english-16-0", "english-18-0"]


def test_tydiqa_own_validation_files_leave_training_whole(tmp_path: Path) -> None:
    files(tmp_path, row(0), row(1), name="validation.jsonl")
    task = qa("tydiqa", files(tmp_path, *(row(number) for number in range(2, 30))), languages=["en"])
    assert len(ids(task, "train", "en")) == 28
    assert ids(task, "validation", "en") == ["english-0-0", "english-1-0"]


def test_tydiqa_on_the_hub(hub: HubServer) -> None:
    """Rows in the Hub's schema, 9 languages in one table, which is read once."""
    name = "google-research-datasets/tydiqa"
    hub.provide(f"datasets/{name}")
    task = qa("tydiqa", {"kind": "hub"})
    training, validation = (
        Counter(key.split("-")[0] for language in TYDIQA_LANGUAGES for key in ids(task, split, language))
        for split in ("train", "validation")
    )
    assert training + validation == dict.fromkeys(LANGUAGE_NAMES, 60)
    assert min(validation.values()) > 0
    assert {len(ids(task, "test", language)) for language in TYDIQA_LANGUAGES} == {20}
    assert "training and" in task.describe()
    stream = iter(task.train_stream(batch_size=9, seed=1))
    assert len({decode(next(stream)["input_ids"]) for _ in range(3)}) == 3
    downloads = [line.rpartition("/")[2] for line in hub.requests("200 GET") if line.endswith(".parquet")]
    assert downloads == ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    assert task.commits() == {name: hub.commit(f"datasets/{name}")}
    assert task.experiment == "tydiqa_goldp"


# --- XQuAD --------------------------------------------------------------------------------------------------


def test_xquad_on_the_hub(hub: HubServer) -> None:
    hub.provide("datasets/rajpurkar/squad", "datasets/google/xquad")
    task = qa("xquad", {"kind": "hub"})
    assert task.subsets("validation") == ["en"] and task.subsets("test") == XQUAD_LANGUAGES
    assert "800 training and 100 validation rows, test of ar, de, el and 9 more" in task.describe()
    for language in task.subsets("test"):
        assert len(task.references("test", language) or []) == 40
    assert set(task.commits()) == {"rajpurkar/squad", "google/xquad"}
    assert task.experiment is None
    # The recipe's revision is of the test's dataset; SQuAD has no such one.
    pinned = qa("xquad", {"kind": "hub", "revision": hub.commit("datasets/google/xquad")}, languages=["de"])
    assert len(pinned.references("test", "de") or []) == 40
    assert pinned.example("train") == task.example("train")


def test_xquad_translations_share_ids(tmp_path: Path) -> None:
    rows = [row(number, language=language) for language in ("de", "en") for number in range(3)]
    task = qa("xquad", files(tmp_path, *rows, name="test.jsonl"), languages=["en", "de"])
    assert ids(task, "test", "en") == ids(task, "test", "de")
