"""Rows of a task: formats, layouts, what is refused, encoding, order, held-out parts, the Hub."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

import hubsim
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from torch.utils.data import DataLoader

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD, decode, encode
from mrt5cli.data.columns import text_column
from mrt5cli.errors import UserError
from mrt5cli.recipe import CharacterTask, DiagnosticTask, TyDiQATask, XnliTask, XQuADTask
from mrt5cli.recipe.tasks import AddedTask
from mrt5cli.tasks import Batch, Task, build_task
from mrt5cli.tasks.base import batches_of, make_batch
from mrt5cli.tasks.tables import Encoding, RowOrder, TableTask, token_ids

PAIRS = [
    {
        "premise": f"premise {number} {'x' * (7 * number % 31)} ключ",
        "hypothesis": f'a "quoted",\n{number}\tword',
        "label": number % 3,
    }
    for number in range(23)
]


def in_language(language: str, rows: list[dict[str, Any]] = PAIRS) -> list[dict[str, Any]]:
    return [{**row, "premise": f"{language} {row['premise']}"} for row in rows]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if file.name.endswith(".jsonl"):
        file.write_text(lines, encoding="utf-8")
    elif file.name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode()))
    elif file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            delimiter = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return file


def xnli(folder: Path, languages: tuple[str, ...] = ("en", "sw"), **settings: Any) -> Task:
    section = {"kind": "xnli", "source": {"kind": "files", "path": str(folder)}, "languages": list(languages)}
    return build_task(XnliTask.model_validate(section | settings))


def texts(batches: Any) -> list[tuple[str, str]]:
    return [
        (decode(source), decode(target))
        for batch in batches
        for source, target in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def expected(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(f"Premise: {row['premise']} Hypothesis: {row['hypothesis']}", str(row["label"])) for row in rows]


# --- what every task answers --------------------------------------------------------------------------------


def test_a_task_without_rows_answers_too() -> None:
    task = build_task(DiagnosticTask(kind="copy"))
    assert (task.measures, task.experiment, task.choices, task.answer_length) == ((), None, None, None)
    assert task.references("test", "all") is None
    assert task.truncated("test", "all") == 0
    assert task.language_of("all") is None


def test_batches_are_as_wide_as_their_longest_row() -> None:
    ids = np.array([[5, 1, PAD, PAD], [5, 6, 1, PAD], [5, 6, 7, 1]])
    labels = np.array([[9, 1, -100], [9, -100, -100], [9, 1, -100]])
    first, second = batches_of(make_batch(ids, labels), 2)
    assert first["input_ids"].tolist() == [[5, 1, 0], [5, 6, 1]]
    assert first["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert first["labels"].tolist() == [[9, 1], [9, -100]]
    assert second["input_ids"].tolist() == [[5, 6, 7, 1]] and second["labels"].tolist() == [[9, 1]]
    assert all(tensor.is_contiguous() for tensor in [*first.values(), *second.values()])


# --- formats and layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".tsv", ".parquet"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", PAIRS)
    task = xnli(tmp_path)
    assert task.rows("train", "en").to_pylist() == [row | {"label": str(row["label"])} for row in PAIRS]  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", ["folders", "names", "columns", "pieces"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    sets = {language: in_language(language) for language in ("sw", "en", "fr")}
    if layout == "columns":
        rows = [row | {"language": language} for language, rows in sets.items() for row in rows]
        write(tmp_path / "test.csv", rows)
    for language, rows in sets.items():
        if layout == "folders":
            write(tmp_path / language / "test.jsonl", rows)
        if layout == "names":
            write(tmp_path / f"test-{language}.tsv", rows)
        if layout == "pieces":
            write(tmp_path / f"test-{language}-00000-of-00002.parquet", rows[:9])
            write(tmp_path / f"test-{language}-00001-of-00002.parquet", rows[9:])
    (tmp_path / "README.md").write_text("not rows")
    task = xnli(tmp_path)
    for language in ("en", "sw"):
        assert texts(task.held_out("test", language, batch_size=4)) == expected(sets[language])
        assert task.language_of(language) == language


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_names_of_validation_and_a_file_that_names_no_language(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.csv", PAIRS)
    assert texts(xnli(tmp_path).held_out("validation", "en", batch_size=30)) == expected(PAIRS)


def test_a_test_in_one_language_need_not_name_it(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", PAIRS)
    assert texts(xnli(tmp_path, ("sw",)).held_out("test", "sw", batch_size=30)) == expected(PAIRS)


def test_rows_of_the_wanted_language_only(tmp_path: Path) -> None:
    """XNLI's training is in English, also when a file has more."""
    rows = [row | {"language": language} for language in ("sw", "en") for row in in_language(language)]
    write(tmp_path / "train.jsonl", rows)
    assert texts([next(iter(xnli(tmp_path).train_stream(batch_size=50, seed=1)))])[0][0].startswith(
        "Premise: en"
    )
    assert len(xnli(tmp_path).rows("train", "en")) == 23  # type: ignore[attr-defined]


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", PAIRS)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\r\n\n")
    assert len(xnli(tmp_path).rows("train", "en")) == 23  # type: ignore[attr-defined]


def test_long_cells(tmp_path: Path) -> None:
    """Beyond the 128 KiB that Python's reader takes by default."""
    write(tmp_path / "train.csv", [PAIRS[0] | {"premise": "x" * 200_000}])
    assert len(xnli(tmp_path).rows("train", "en")) == 1  # type: ignore[attr-defined]


# --- what is refused ----------------------------------------------------------------------------------------

GOOD = '{"premise": "a", "hypothesis": "b", "label": 0}\n'
WRONG = {
    "not JSON": ("train.jsonl", GOOD + '{"premise": ', "train.jsonl, line 2: not JSON: Expecting value"),
    "not a row": ("train.jsonl", GOOD + "\n[1]", "train.jsonl, line 3: not an object, expected a row"),
    "column": (
        "train.jsonl",
        '{"premise": "a", "hypotesis": "b"}',
        "line 1: no column 'hypothesis'; it has premise, hypotesis",
    ),
    "type": (
        "train.jsonl",
        '{"premise": ["a"], "hypothesis": "b", "label": 1}',
        "line 1: column 'premise' is ['a'], expected text",
    ),
    "null": (
        "train.jsonl",
        '{"premise": null, "hypothesis": "b", "label": 1}',
        "line 1: column 'premise' is null, expected text",
    ),
    "header": ("train.csv", "premise,label\na,0\n", "train.csv, line 1: no column 'hypothesis'"),
    "cells": (
        "train.csv",
        'premise,hypothesis,label\n"a\nb",b,0\na,b\n',
        "train.csv, line 4: 2 cells, expected 3 (premise, hypothesis, label)",
    ),
    "quotes": (
        "train.csv",
        'premise,hypothesis,label\na,b,0\n"a" b,c,1\n',
        "train.csv cannot be read: line 3: a quote is not closed",
    ),
    "open quote": ("train.csv", 'premise,hypothesis,label\na,"b,0\n', "line 2: a quote is not closed"),
    "nothing": ("train.csv", "premise,hypothesis,label\n", "train.csv contains no rows"),
    "language": (
        "train.jsonl",
        GOOD.replace("{", '{"language": 7, '),
        "train.jsonl contains no rows in en (1 in 7)",
    ),
    "wrong label": ("train.jsonl", GOOD.replace(": 0", ": 7"), "line 1: column 'label' is 7"),
    "other language": (
        "train.jsonl",
        GOOD.replace("{", '{"language": "xx", '),
        "train.jsonl contains no rows in en (1 in xx)",
    ),
    "parquet": ("train.parquet", "none", "train.parquet cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(tmp_path: Path, case: str) -> None:
    name, content, message = WRONG[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        xnli(tmp_path).train_stream(batch_size=1, seed=1)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    for name, content, place in (
        ("train.jsonl", GOOD.encode() + b'{"premise": "caf\xe9"}\n', r"line 2: not UTF-8: byte 16 is 0xe9"),
        ("train.csv", b"premise,hypothesis,label\ncaf\xe9,b,0\n", r"line 2: not UTF-8: byte 0xe9"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}, {place}"):
            xnli(tmp_path).train_stream(batch_size=1, seed=1)
        file.unlink()


def test_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([*PAIRS])
    texts = [row.encode() for row in table["premise"].to_pylist()]
    texts[7] = b"ab\xe9"
    spoilt = pa.array(texts, pa.binary()).view(pa.string())
    parquet.write_table(table.set_column(0, "premise", spoilt), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train.parquet, row 8: column .premise.: not UTF-8: byte 2 is 0xe9"):
        xnli(tmp_path).train_stream(batch_size=1, seed=1)


def test_a_wrong_type_in_parquet_names_the_row(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [*PAIRS, PAIRS[0] | {"label": None}])
    with pytest.raises(UserError, match=r"train.parquet, row 24: column 'label' is null, expected 0, 1, 2"):
        xnli(tmp_path).train_stream(batch_size=1, seed=1)


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        xnli(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        xnli(write(tmp_path / "rows.csv", PAIRS))
    with pytest.raises(UserError, match=r"has no train, validation or test files \(found: rows.csv\)"):
        xnli(tmp_path)
    write(tmp_path / "train.csv", PAIRS)
    write(tmp_path / "train.jsonl", PAIRS)
    with pytest.raises(UserError, match=r"several files for train: train.csv, train.jsonl"):
        xnli(tmp_path)


@pytest.mark.parametrize(
    "names", [("dev.csv", "val.csv"), ("dev-00000.csv", "dev.csv"), ("dev-00000.csv", "dev-00000.tsv")]
)
def test_rows_are_not_taken_twice(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / name, PAIRS)
    with pytest.raises(UserError, match=f"several files for validation: {names[0]}, {names[1]}"):
        xnli(tmp_path)


def test_splits_and_languages_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", PAIRS)
    write(tmp_path / "test-fr.csv", PAIRS)
    task = xnli(tmp_path)
    with pytest.raises(UserError) as caught:
        task.held_out("test", "sw", batch_size=1)
    assert caught.value.message.endswith("has no files of test (sw); it has test (fr), train")
    assert "test-sw.jsonl" in str(caught.value.hint)
    write(tmp_path / "test.csv", PAIRS)
    with pytest.raises(UserError, match=r"test\.csv contains no rows in sw \(23 in no language\)"):
        xnli(tmp_path).held_out("test", "sw", batch_size=1)


# --- encoding -----------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.integers(2, 20), st.integers(0, 3))
def test_token_ids_are_those_of_each_text(texts: list[str], at_most: int, before: int) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    array = pa.array(["before"] * before + texts, type=pa.large_string()).slice(before)
    ids = token_ids(array, at_most, -100)
    for row, text in zip(ids, texts, strict=True):
        wanted = [*encode(text)[: at_most - 1].tolist(), 1]
        assert row.tolist() == wanted + [-100] * (ids.shape[1] - len(wanted))
    assert ids.shape[1] == max((row != -100).sum() for row in ids)


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD.replace('"a"', '"a\\ud800"'))
    assert xnli(tmp_path).example("train") == ("Premise: a? Hypothesis: b", "0")


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "test-en.csv", PAIRS)
    task = xnli(tmp_path, ("en",), input_length=70)
    lengths = [len(source.encode()) + 1 for source, _ in expected(PAIRS)]
    assert task.truncated("test", "en") == sum(length > 70 for length in lengths) > 0
    assert task.truncated("test", "en", 5) == sum(length > 70 for length in lengths[:5])
    batches = list(task.held_out("test", "en", batch_size=1))
    assert [len(batch["input_ids"][0]) for batch in batches] == [min(length, 70) for length in lengths]
    assert all(batch["input_ids"][0, -1] == 1 for batch in batches)


def test_describe_counts_rows_and_cuts(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", PAIRS)
    write(tmp_path / "test-en.csv", PAIRS)
    assert xnli(tmp_path).describe() == (
        f"xnli, rows of {tmp_path}, 23 training rows, test of en, sw, at most 1024 -> 2 byte tokens"
    )
    write(tmp_path / "dev.csv", PAIRS[:2])
    described = xnli(tmp_path, input_length=70).describe()
    assert "23 training and 2 validation rows" in described
    cut = sum(len(source.encode()) + 1 > 70 for source, _ in expected(PAIRS) + expected(PAIRS[:2]))
    assert described.endswith(f"({cut} sources cut)")


# --- order --------------------------------------------------------------------------------------------------


def take(stream: Any, count: int) -> list[Batch]:
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
    )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    write(tmp_path / "train.csv", PAIRS)
    write(tmp_path / "test-en.csv", PAIRS)
    return xnli(tmp_path, ("en",))


def test_every_pass_has_all_rows_in_an_order_of_its_own(task: Task) -> None:
    seen = texts(take(task.train_stream(batch_size=5, seed=1), 23))
    passes = [seen[start : start + 23] for start in range(0, 115, 23)]
    assert all(sorted(one) == sorted(expected(PAIRS)) for one in passes)
    assert len({tuple(one) for one in [*passes, tuple(expected(PAIRS))]}) == 6
    assert seen != texts(take(task.train_stream(batch_size=5, seed=2), 23))


def test_example_i_depends_on_the_seed_and_i_alone(task: Task) -> None:
    one = texts(take(task.train_stream(batch_size=1, seed=1), 60))
    assert texts(take(task.train_stream(batch_size=7, seed=1), 9))[:60] == one
    together = [texts(list(batches)) for batches in zip(*of_ranks(task, 2, 3), strict=True)]
    assert [sorted(each) for each in together] == [sorted(one[at : at + 6]) for at in range(0, 60, 6)]


def of_ranks(task: Task, batch_size: int, ranks: int) -> list[list[Batch]]:
    """Ten batches of each rank."""
    return [
        take(task.train_stream(batch_size=batch_size, seed=1, rank=rank, world_size=ranks), 10)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_get_their_share_of_long_and_of_short_rows(tmp_path: Path, ranks: int) -> None:
    lengths = [int(200 * Random(number).random() ** 3) for number in range(90)]
    rows = [{**PAIRS[0], "premise": "x" * length} for length in lengths]
    write(tmp_path / "train.csv", rows)
    task = xnli(tmp_path, ("en",))
    sizes = [
        [int(batch["attention_mask"].sum() + batch["labels"].ne(IGNORED_LABEL).sum()) for batch in batches]
        for batches in of_ranks(task, 6, ranks)
    ]
    plain = take(task.train_stream(batch_size=6, seed=1), 10 * ranks)
    apart = [int(batch["attention_mask"].sum()) for batch in plain]
    uneven = max(
        max(apart[at : at + ranks]) / (sum(apart[at : at + ranks]) / ranks)
        for at in range(0, len(apart), ranks)
    )
    dealt = max(max(each) / (sum(each) / ranks) for each in zip(*sizes, strict=True))
    assert dealt < 1.12 and uneven > 1.2


@pytest.mark.parametrize("batches", [1, 3, 13])
def test_resuming_is_exact(task: Task, batches: int) -> None:
    whole = take(task.train_stream(batch_size=4, seed=1), 20)
    stream = task.train_stream(batch_size=4, seed=1)
    take(stream, batches)
    resumed = task.train_stream(batch_size=4, seed=1)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict(batches))))
    assert same(take(resumed, 20 - batches), whole[batches:])


def test_batches_are_padded_to_their_own_longest(task: Task) -> None:
    for batch in [
        *take(task.train_stream(batch_size=3, seed=1), 30),
        *task.held_out("test", "en", batch_size=3),
    ]:
        lengths = batch["attention_mask"].sum(dim=1)
        assert batch["input_ids"].shape[1] == lengths.max()
        assert torch.equal(batch["attention_mask"], batch["input_ids"].ne(PAD).long())
        assert (batch["labels"] != IGNORED_LABEL).any(dim=0).all()


def test_loader_workers_change_nothing(task: Task) -> None:
    loader = DataLoader(task.train_stream(batch_size=4, seed=1), batch_size=None, num_workers=2)
    assert same(take(loader, 15), take(task.train_stream(batch_size=4, seed=1), 15))


def test_streams_travel_to_processes_that_start_afresh(task: Task) -> None:
    stream = pickle.loads(pickle.dumps(task.train_stream(batch_size=4, seed=1)))
    assert same(take(stream, 8), take(task.train_stream(batch_size=4, seed=1), 8))


def test_an_order_is_drawn_for_every_pass() -> None:
    rows = RowOrder(23, (3, 0))(np.arange(200))
    assert rows[23 * 4 + 2] == RowOrder(23, (3, 0))(np.array([23 * 4 + 2]))[0]
    assert all(sorted(rows[start : start + 23]) == list(range(23)) for start in range(0, 184, 23))


@pytest.mark.parametrize("limit", [None, 1, 8, 23, 99])
def test_held_out_rows_are_the_same_whatever_the_batch_size(task: Task, limit: int | None) -> None:
    wanted = expected(PAIRS)[:limit]
    for batch_size in (1, 3, 8, 70):
        batches = list(task.held_out("test", "en", batch_size=batch_size, limit=limit))
        assert texts(batches) == wanted
        assert [len(batch["labels"]) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


# --- empty texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".tsv"])
def test_rows_with_an_empty_text_are_taken_and_counted(tmp_path: Path, suffix: str) -> None:
    empty = [{"premise": "", "hypothesis": "b", "label": 0}, {"premise": "a", "hypothesis": " ", "label": 1}]
    write(tmp_path / f"train{suffix}", [PAIRS[0], *empty])
    write(tmp_path / f"validation{suffix}", PAIRS)
    task = xnli(tmp_path)
    assert ("Premise:  Hypothesis: b", "0") in texts([next(iter(task.train_stream(batch_size=3, seed=1)))])
    assert "3 training and 23 validation rows" in task.describe()
    assert task.remarks() == ["rows with an empty text, which are kept: 2 of train"]


def test_empty_cells_of_the_character_tasks_are_taken_and_counted(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("abc\t\n\tabc\nabc\tabc\n")
    section = {"kind": "word_search", "source": {"kind": "files", "path": str(tmp_path)}}
    task = build_task(CharacterTask.model_validate(section))
    found = texts([next(iter(task.train_stream(batch_size=3, seed=1)))])
    assert sorted(found) == [("", "abc"), ("abc", ""), ("abc", "abc")]
    assert task.remarks() == ["rows with an empty text, which are kept: 2 of train"]


# --- Hub ----------------------------------------------------------------------------------------------------

CLASSES = """dataset_info:
- config_name: en
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': contradiction
          '1': entailment
          '2': neutral"""


def publish(
    hub: HubServer, rows: list[dict[str, Any]], *, page: str = "", file: str = "en/test-00000.parquet"
) -> None:
    """someone/pairs with rows of one split, without a cached copy."""
    shutil.rmtree(hub.home, ignore_errors=True)

    def make(folder: Path) -> None:
        write(folder / file, rows)
        hubsim.write_card(folder, {"en": {"test": "en/test*"}}, page.splitlines())

    hub.add("datasets/someone/pairs", make)


def hub_pairs(hub: HubServer, **settings: Any) -> list[tuple[str, str]]:
    source = {"kind": "hub", "name": "someone/pairs", **settings}
    task = build_task(XnliTask.model_validate({"kind": "xnli", "source": source, "languages": ["en"]}))
    return texts(task.held_out("test", "en", batch_size=8))


def test_hub_labels_are_read_by_name(hub: HubServer) -> None:
    """A dataset that counts its labels in another order means the same by their names."""
    import datasets

    texts = {name: datasets.Value("string") for name in ("premise", "hypothesis")}
    rows = [{"premise": "a", "hypothesis": "b", "label": number} for number in (0, 1, 2)]
    publish(hub, rows)
    assert [target for _, target in hub_pairs(hub)] == ["0", "1", "2"]
    publish(hub, rows, page=CLASSES)
    assert [target for _, target in hub_pairs(hub)] == ["2", "0", "1"]

    # A file may say so, too.
    names = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    named = datasets.Dataset.from_list(rows, datasets.Features({**texts, "label": names}))
    publish(hub, rows)
    folder = hub.root / "datasets/someone/pairs/en"
    parquet.write_table(named.data.table, folder / "test-00000.parquet")
    hub.refresh()
    assert [target for _, target in hub_pairs(hub)] == ["2", "0", "1"]


@pytest.mark.parametrize("name", ["test-00000.parquet", "test.jsonl", "test.jsonl.gz", "test.csv"])
def test_hub_files_of_every_format(hub: HubServer, name: str) -> None:
    publish(hub, PAIRS, file=f"en/{name}")
    assert hub_pairs(hub) == expected(PAIRS)


class Added(TableTask):
    """A task as users add it: only its own parts."""

    columns = (text_column("word"), text_column("phonemes"))
    by_language = False

    def generate(self, draw: Random, part: str, number: int) -> dict[str, str]:
        return {"word": f"w{number}", "phonemes": f"p {number}"}


def test_an_added_task_reads_a_dataset_of_its_columns(hub: HubServer) -> None:
    def task(**source: Any) -> Added:
        section = AddedTask.model_validate({"kind": "added", "source": {"kind": "hub", **source}})
        return Added(section, Encoding("{word}", "phonemes", 64, 64))

    def make(folder: Path) -> None:
        (folder / "test.csv").write_text("word,phonemes\nab,a b\n")
        hubsim.write_card(folder, {"default": {"test": "test.csv"}})

    hub.add("datasets/someone/words", make)
    named = task(name="someone/words")
    assert named.subsets("test") == ["all"] and named.example("test") == ("ab", "a b")
    with pytest.raises(UserError, match="added has no published dataset on the Hub") as caught:
        task().example("test")
    assert "task.source.name" in str(caught.value.hint)


def test_an_added_task_says_which_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("word,phonemes\nab,a b\n")
    section = AddedTask.model_validate({"kind": "added", "source": {"kind": "files", "path": str(tmp_path)}})
    task = Added(section, Encoding("{word}", "phonemes", 64, 64))
    assert task.example("test") == ("ab", "a b")
    with pytest.raises(UserError, match="has no files of train; it has test") as caught:
        task.example("train")
    assert str(caught.value.hint).startswith("add train.jsonl")


def test_a_hub_file_that_is_one_list(hub: HubServer) -> None:
    def make(folder: Path) -> None:
        (folder / "test.json").write_text(json.dumps(PAIRS, indent=1))
        hubsim.write_card(folder, {"en": {"test": "test.json"}})

    hub.add("datasets/someone/pairs", make)
    assert hub_pairs(hub) == expected(PAIRS)


def test_empty_texts_of_the_hub_are_taken_and_wrong_labels_are_not(hub: HubServer) -> None:
    rows = [{"premise": "", "hypothesis": "b", "label": 0}, {"premise": "a", "hypothesis": "b", "label": -1}]
    publish(hub, rows[:1])
    assert hub_pairs(hub) == [("Premise:  Hypothesis: b", "0")]
    for page in ("", CLASSES):
        publish(hub, rows, page=page)
        with pytest.raises(UserError) as caught:
            hub_pairs(hub)
        where = "someone/pairs, en/test-00000.parquet, row 2: column 'label' is -1, expected 0, 1, 2"
        assert caught.value.message.startswith(where)


def test_hub_rows_of_another_schema(hub: HubServer) -> None:
    publish(hub, [{"first": "a", "second": "b", "label": 1}])
    with pytest.raises(
        UserError, match=r"en/test-00000.parquet: no column 'premise'; it has first, second, label"
    ):
        hub_pairs(hub)
    publish(hub, [{"premise": {"en": "a"}, "hypothesis": "b", "label": 1}])
    with pytest.raises(UserError, match=r"row 1: column 'premise' is \{'en': 'a'}, expected text"):
        hub_pairs(hub)


def test_a_split_or_a_configuration_that_a_dataset_does_not_have(hub: HubServer) -> None:
    publish(hub, PAIRS)
    section = XnliTask.model_validate(
        {"kind": "xnli", "source": {"kind": "hub", "name": "someone/pairs"}, "languages": ["en", "fr"]}
    )
    task = build_task(section)
    with pytest.raises(UserError, match=r"someone/pairs \(en\) has no train split; it has test"):
        task.train_stream(batch_size=1, seed=1)
    with pytest.raises(UserError, match="someone/pairs has no configuration 'fr'; it has en"):
        task.held_out("test", "fr", batch_size=1)


def test_a_download_that_arrives_damaged(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, PAIRS)
    hub.fault("GET .*parquet", "corrupt")
    assert hub_pairs(hub) == expected(PAIRS), "it is fetched again"
    publish(hub, PAIRS[:20])
    hub.fault("GET .*parquet", "corrupt", times=9)
    with pytest.raises(
        UserError, match=r"someone/pairs, en/test-00000.parquet arrived damaged twice: its SHA-256"
    ):
        hub_pairs(hub)


def test_rows_that_are_cached_need_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, PAIRS)
    pairs = hub_pairs(hub)
    hub.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_pairs(hub) == pairs and not hub.requests()
    commit = hub.commit("datasets/someone/pairs")
    assert hub_pairs(hub, revision=commit) == pairs
    with pytest.raises(
        UserError, match="someone/pairs is not available from the Hugging Face Hub: HF_HUB_OFFLINE is set"
    ) as caught:
        hub_pairs(hub, revision="v1")
    assert "--data FOLDER" in str(caught.value.hint) and "connect" in str(caught.value.hint)


def test_a_part_of_a_split_in_the_cache_is_not_taken_for_all_of_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> None:
        for number in range(3):
            write(folder / f"en/test-{number:05d}-of-00003.parquet", PAIRS[number::3])
        hubsim.write_card(folder, {"en": {"test": "en/test-*"}})

    hub.add("datasets/someone/pairs", make)
    hub.fault("GET .*test-00002-of", "status", code=404)
    with pytest.raises(UserError):
        hub_pairs(hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="en, test: not all files are in the local Hub cache"):
        hub_pairs(hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert len(hub_pairs(hub)) == len(PAIRS)


def test_a_language_that_the_published_dataset_does_not_have() -> None:
    with pytest.raises(UserError, match="facebook/xnli from the Hub has no language 'fi'; it has en, fr,"):
        hub_xnli(languages=["en", "fi"])
    assert hub_xnli(languages=["fi"], source={"kind": "hub", "name": "a/b"}).subsets("test") == ["fi"]


def hub_xnli(**settings: Any) -> Task:
    return build_task(XnliTask.model_validate({"kind": "xnli", **settings}))


# --- generated rows -----------------------------------------------------------------------------------------

GENERATED = {
    "xnli": XnliTask,
    "tydiqa": TyDiQATask,
    "xquad": XQuADTask,
    "spelling_correction_contextual": CharacterTask,
    "word_search": CharacterTask,
}


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_rows(kind: str) -> None:
    section = GENERATED[kind].model_validate({"kind": kind, "source": {"kind": "generated", "examples": 7}})
    first, second = build_task(section), build_task(section)
    for split in ("train", "validation", "test"):
        assert first.example(split) == second.example(split)
    parts = first.subsets("test")
    batches = {part: list(first.held_out("test", part, batch_size=3)) for part in parts}
    assert all([len(batch["labels"]) for batch in batches[part]] == [3, 3, 1] for part in parts)
    assert len({str(texts(batches[part])) for part in parts}) == len(parts), "parts are different"
    assert texts(batches[parts[0]]) != texts(
        first.held_out("validation", first.subsets("validation")[0], batch_size=3)
    )
    assert "generated rows, " in first.describe()
    assert len(take(first.train_stream(batch_size=4, seed=1), 5)) == 5
    if references := first.references("test", parts[-1]):
        sources = [source for source, _ in texts(batches[parts[-1]])]
        assert all(answer in source for source, [answer] in zip(sources, references, strict=True))


def test_generated_rows_are_the_same_everywhere() -> None:
    section = TyDiQATask.model_validate({"kind": "tydiqa", "source": {"kind": "generated", "examples": 1}})
    source, target = build_task(section).example("validation")
    assert source.startswith("Question: ") and target in source
    assert (source[:24], target) == SEEN_ONCE


SEEN_ONCE = ("Question: пшлтл? Context", "отиш шюткмг юкфеьм")
