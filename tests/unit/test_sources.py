"""Where text comes from: what is found, what is refused and how the refusal reads."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mrt5cli.data.corpus import Corpus
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.reading import PIECE_BYTES, paragraphs
from mrt5cli.data.sources import MemoryText, open_source
from mrt5cli.errors import UserError
from mrt5cli.recipe import EmbeddedSource, FilesSource

LONG = " with enough text to fill an example of the task, and then some more."


def open_files(path: Path, languages: Sequence[str] = ("en",), **settings: Any) -> MemoryText:
    text = open_source(FilesSource(kind="files", path=str(path), **settings), list(languages))
    assert isinstance(text, MemoryText)
    return text


def documents(corpus: Corpus) -> list[str]:
    return [document.decode() for document in bytes(corpus.buffer).split(b"\xff")[:-1]]


def everything(text: MemoryText, language: str = "en") -> list[str]:
    return sorted(document for corpus in text.corpora[language].values() for document in documents(corpus))


def refusal(path: Path, languages: Sequence[str] = ("en",), **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        open_files(path, languages, **settings)
    assert "Traceback" not in str(error.value)
    return str(error.value)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows in the format that the name asks for."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.name.endswith(".csv"):
        csv.write_csv(pa.Table.from_pylist(list(rows)), path)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


# --- embedded
# -------------------------------------------------------------------------------------------------------


def test_embedded_text_is_english_prose_and_the_same_every_time() -> None:
    started = time.process_time()
    first = embedded_documents.__wrapped__()
    seconds = time.process_time() - started
    assert first == embedded_documents.__wrapped__()
    assert seconds < 5, "it takes under a second on an idle core"
    text = b"\n".join(first)
    assert len(first) > 300 and len(text) > 1_000_000
    assert text.count(b" the ") > 5_000 and 0xFF not in text
    text.decode("utf-8")


def test_embedded_text_has_held_out_parts_that_fill_examples() -> None:
    text = open_source(EmbeddedSource(kind="embedded"), ["en"])
    assert isinstance(text, MemoryText)
    for split in ("validation", "test"):
        assert text.corpus("en", split, 1193).size > 50_000
    held_out = {*documents(text.corpus("en", "validation", 1)), *documents(text.corpus("en", "test", 1))}
    assert held_out.isdisjoint(documents(text.corpus("en", "train", 1)))
    assert text.description.startswith("embedded text (1.")


def test_embedded_text_imports_nothing_it_reads() -> None:
    import sys

    before = set(sys.modules)
    embedded_documents.__wrapped__()
    assert set(sys.modules) - before <= {"pydoc_data", "pydoc_data.topics"}


# --- formats
# --------------------------------------------------------------------------------------------------------

NASTY = ["plain", 'quotes " and, commas', "two\nlines", "NA", "3.14", "日本語 ünïcode", "null"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, [{"id": number, "text": text} for number, text in enumerate([*NASTY, ""])])
    for path in (tmp_path, tmp_path / name):
        assert everything(open_files(path)) == sorted(NASTY)


def test_a_row_may_be_long(tmp_path: Path) -> None:
    """pyarrow reads a CSV file in blocks of a megabyte, and a row must fit in one."""
    write_rows(tmp_path / "a.csv", [{"text": "word, word\n" * 300_000}, {"text": "short"}])
    assert [len(text) for text in everything(open_files(tmp_path))] == [5, 3_300_000]


def test_missing_texts_are_no_documents(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": None}, {"text": "a"}])
    write_rows(tmp_path / "b.parquet", [{"text": "b"}, {"text": None}])
    assert everything(open_files(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_another_column_and_one_that_is_not_there(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, [{"body": "one", "title": "two"}])
    assert everything(open_files(tmp_path, text_column="title")) == ["two"]
    message = refusal(tmp_path)
    assert name in message and "no column 'text'; it has body, title" in message
    assert "task.source.text_column" in message


@pytest.mark.parametrize(("name", "what"), [("a.jsonl", "line 2"), ("a.parquet", "row 1: column 'n' is 1")])
def test_a_column_that_is_not_text(tmp_path: Path, name: str, what: str) -> None:
    write_rows(tmp_path / name, [{"n": 1, "text": "x"}, {"n": 2, "text": "y"}])
    if name == "a.jsonl":
        write_rows(tmp_path / name, [{"text": "x"}, {"text": 5}])
    message = refusal(tmp_path, text_column="text" if name == "a.jsonl" else "n")
    assert what in message and "expected text" in message


def test_paragraphs_of_one_text_file_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nline\r\n\r\n \t\r\nsecond\n\n\n\nthird\n")
    assert everything(open_files(file)) == ["first\nline", "second", "third"]
    (tmp_path / "again.txt.gz").write_bytes(gzip.compress(b"fourth"))
    assert everything(open_files(tmp_path)) == ["first\nline", "fourth", "second", "third"]


def test_each_of_many_text_files_is_a_document(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"title {number}\n\nbody\n")
    assert everything(open_files(tmp_path)) == sorted(f"title {number}\n\nbody" for number in range(20))


@pytest.mark.parametrize(
    "text", ["word " * 5000, "語" * 7000, "x" * 20_000], ids=["words", "no spaces", "one word"]
)
def test_text_without_blank_lines_is_cut_between_characters(text: str) -> None:
    pieces = list(paragraphs([text.encode()]))
    assert b"".join(pieces) == text.encode()
    assert all(PIECE_BYTES // 2 <= len(piece) <= PIECE_BYTES + 3 for piece in pieces[:-1])
    assert "".join(piece.decode() for piece in pieces) == text
    if " " in text:
        assert all(piece.endswith(b" ") for piece in pieces)


# --- folders
# --------------------------------------------------------------------------------------------------------


def test_splits_named_by_files_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-00000-of-00001.jsonl", [{"text": f"train {n}{LONG}"} for n in range(50)])
    (tmp_path / "validation.txt").write_text("validation" + LONG)
    (tmp_path / "test.txt").write_text("test" + LONG)
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "notes.md").write_text("notes")
    text = open_files(tmp_path)
    assert documents(text.corpus("en", "validation", 10)) == ["validation" + LONG]
    assert documents(text.corpus("en", "test", 10)) == ["test" + LONG]
    assert len(documents(text.corpus("en", "train", 10))) == 50


def test_a_split_without_files_is_taken_from_training(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": f"train {n}{LONG}"} for n in range(50)])
    (tmp_path / "validation.txt").write_text("validation" + LONG)
    text = open_files(tmp_path)
    test, train = (documents(text.corpus("en", split, 10)) for split in ("test", "train"))
    assert len(test) >= 1 and len(test) + len(train) == 50 and set(test).isdisjoint(train)


def test_files_beside_those_named_after_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a")
    (tmp_path / "more.txt").write_text("b")
    assert "more.txt" in refusal(tmp_path) and "name all files" in refusal(tmp_path)


def test_folders_of_languages(tmp_path: Path) -> None:
    for language in ("en", "sw"):
        (tmp_path / language / "deep").mkdir(parents=True)
        (tmp_path / language / "deep" / "a.txt").write_text(
            f"{language} one\n\n{language} two\n\n{language} three"
        )
    text = open_files(tmp_path, ["sw", "en"])
    assert everything(text, "sw") == ["sw one", "sw three", "sw two"]
    assert everything(open_files(tmp_path, ["en"])) == ["en one", "en three", "en two"]
    message = refusal(tmp_path, ["en", "fr"])
    assert "files for en" in message and "none for fr" in message
    assert "files for en, sw, but none for fr" in refusal(tmp_path, ["fr"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_of_languages(tmp_path: Path, name: str) -> None:
    rows = [
        {"text": f"{language} {n}", "language": language} for n in range(4) for language in ("en", "fr", "de")
    ]
    write_rows(tmp_path / name, rows)
    text = open_files(tmp_path / name, ["fr", "en"])
    assert everything(text, "fr") == [f"fr {n}" for n in range(4)]
    message = refusal(tmp_path / name, ["en", "sw"])
    assert "no rows in sw" in message and "4 in 'fr'" in message


def test_several_languages_without_a_way_to_tell(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert "no rows in en, fr (1 in 'no language')" in refusal(tmp_path, ["en", "fr"])
    (tmp_path / "a.txt").unlink()
    write_rows(tmp_path / "a.jsonl", [{"text": "x"}])
    assert "no rows in en, fr (1 in 'no language')" in refusal(tmp_path, ["en", "fr"])


# --- refusals
# -------------------------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")
    assert "contains no text files (found: nothing)" in refusal(tmp_path)
    (tmp_path / "a.pdf").write_text("x")
    assert "1 .pdf" in refusal(tmp_path)
    assert "is in an unsupported format" in refusal(tmp_path / "a.pdf")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n")
    message = refusal(tmp_path / name)
    assert "no text in" in message and name in message


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.txt", "paragraph 1: not UTF-8: byte 3 is 0xe9"),
        ("a.jsonl", "line 1: not UTF-8: byte 3 is 0xe9"),
        ("a.csv", "line 1: not UTF-8: byte 0xe9"),
    ],
)
def test_not_utf8(tmp_path: Path, name: str, where: str) -> None:
    (tmp_path / name).write_bytes(b"caf\xe9 and more")
    message = refusal(tmp_path)
    assert f"{name}, {where}" in message and "iconv" in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"text": "a"}\n{"text": oops}\n', "line 2: not JSON: Expecting value at column 10"),
        ('{"text": "a"}\n\n["b"]\n', "line 3: not an object"),
        ('["a"]\n["b"]\n', "row 1: not an object"),
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2: no column 'text'; it has txt"),
    ],
)
def test_malformed_rows(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert what in refusal(tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 100)[:-20])
    assert "a.txt.gz cannot be read" in refusal(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt.gz").write_bytes(b"not packed")
    assert "b.txt.gz cannot be read" in refusal(tmp_path / "b.txt.gz")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as Parquet" in refusal(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("text,n\na,1\nb,2,3\n")
    assert "d.csv, line 3: 3 cells, expected 2 (text, n)" in refusal(tmp_path / "d.csv")


def test_too_little_text_is_said_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    text = open_files(tmp_path)
    with pytest.raises(
        UserError, match=r"too little train text .* 6 bytes in 2 documents, and one example needs 100"
    ):
        text.corpus("en", "train", 100)
    with pytest.raises(UserError, match=r"too little validation text .* 0 bytes in 0 documents"):
        text.corpus("en", "validation", 1)


def test_only_held_out_files_serve_evaluation(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("text")
    text = open_files(tmp_path)
    assert documents(text.corpus("en", "test", 4)) == ["text"]
    with pytest.raises(UserError, match="has no train text"):
        text.corpus("en", "train", 4)
