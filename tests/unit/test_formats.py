"""Files of every format, as people have them: the same documents in memory and streamed, or one sentence."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mrt5cli.data.columns import text_column
from mrt5cli.data.formats import DataFile
from mrt5cli.data.reading import PIECE_BYTES, paragraphs, rows_of, usable_rows
from mrt5cli.data.sources import MemoryText, StreamedText, open_source
from mrt5cli.errors import UserError
from mrt5cli.recipe import CharacterTask, FilesSource, XnliTask, XQuADTask
from mrt5cli.tasks.base import build_task

PARAGRAPH = "A paragraph with enough words in it to be a document, number %d."
MANY = [PARAGRAPH % n for n in range(60)]
NASTY = [
    *MANY,
    "NA",
    "null",
    "nan",
    "007 agents",
    "12",
    "1.50",
    'quotes " and, commas',
    "naïve 日本 😀",
    "tab\there",
]


def both_ways(path: Path, **source: Any) -> tuple[list[bytes], list[bytes]]:
    """All documents of all splits, sorted: as they are in memory and as they are streamed."""
    memory = open_source(FilesSource(kind="files", path=str(path), **source), ["en"])
    assert isinstance(memory, MemoryText)
    held = []
    for split in ("train", "validation", "test"):
        held += memory.corpus("en", split, 1).buffer.tobytes().split(b"\xff")[:-1]
    streamed = open_source(FilesSource(kind="files", path=str(path), streaming=True, **source), ["en"])
    assert isinstance(streamed, StreamedText)
    train = streamed.train("en", key=(1,))
    train.endless = False
    read = train.take(10**9).tobytes().split(b"\xff")[:-1]
    for split in ("validation", "test"):
        read += streamed.held_out("en", split, 10).take(10**9).tobytes().split(b"\xff")[:-1]
    return sorted(held), sorted(read)


def lines(rows: list[Any], **options: Any) -> bytes:
    return "\n".join(json.dumps(row, **options) for row in rows).encode()


def table(rows: list[list[str]], delimiter: str = ",", **options: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, **options).writerows(rows)
    return text.getvalue().encode()


def arrow(column: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table({"n": list(range(len(column))), "text": column}), out, row_group_size=7)
    return out.getvalue()


def zstandard(content: bytes) -> bytes:
    out = io.BytesIO()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
        stream.flush()
        packed = out.getvalue() if out.closed else None
    return packed or bytes(pa.compress(content, codec="zstd", asbytes=True))


TEXT = "\n\n".join(MANY)
ROWS = [{"text": text} for text in NASTY]
CELLS = [["text"], *([text] for text in NASTY)]
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "text": ("a.txt", TEXT.encode(), MANY),
    "carriage returns and newlines": ("a.txt", TEXT.replace("\n", "\r\n").encode(), MANY),
    "carriage returns": ("a.txt", TEXT.replace("\n", "\r").encode(), MANY),
    "mark": ("a.txt", TEXT.encode("utf-8-sig"), MANY),
    "UTF-16": ("a.txt", TEXT.encode("utf-16"), MANY),
    "UTF-16, the other way round": ("a.txt", b"\xfe\xff" + TEXT.encode("utf-16-be"), MANY),
    "UTF-32": ("a.txt", TEXT.encode("utf-32"), MANY),
    "blank lines with spaces": ("a.txt", TEXT.replace("\n\n", "\n \n\t\n\n").encode(), MANY),
    "capitals": ("A.TXT", TEXT.encode(), MANY),
    "gz": ("a.txt.gz", gzip.compress(TEXT.encode()), MANY),
    "two of gz": ("a.txt.GZ", gzip.compress(TEXT[:500].encode()) + gzip.compress(TEXT[500:].encode()), MANY),
    "bz2": ("a.txt.bz2", bz2.compress(TEXT.encode()), MANY),
    "xz": ("a.txt.xz", lzma.compress(TEXT.encode()), MANY),
    "zst": ("a.jsonl.zst", bytes(zstandard(lines(ROWS))), NASTY),
    "jsonl": ("a.jsonl", lines(ROWS), NASTY),
    "jsonl with a mark": ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS, ensure_ascii=False), NASTY),
    "jsonl in UTF-16": ("a.jsonl", lines(ROWS, ensure_ascii=False).decode().encode("utf-16"), NASTY),
    "jsonl ended by carriage returns": ("a.jsonl", lines(ROWS).replace(b"\n", b"\r"), NASTY),
    "ndjson": ("a.ndjson", lines(ROWS), NASTY),
    "json": ("a.json", lines(ROWS), NASTY),
    "one list": ("a.json", json.dumps(ROWS, indent=1).encode(), NASTY),
    "nulls first": ("a.jsonl", lines([{"text": None}] * 50 + ROWS), NASTY),
    "other columns of many types": (
        "a.jsonl",
        lines([{"m": {"k": 1} if n % 2 else [n], **row} for n, row in enumerate(ROWS)]),
        NASTY,
    ),
    "lone surrogates": ("a.jsonl", b'{"text": "lone \\ud83d here"}\n' + lines(ROWS), ["lone ? here", *NASTY]),
    "line separators": (
        "a.jsonl",
        lines([{"text": "a\u2028b\x85c"}, *ROWS], ensure_ascii=False),
        ["a\u2028b\x85c", *NASTY],
    ),
    "csv": ("a.csv", table(CELLS), NASTY),
    "csv with a mark": ("a.csv", b"\xef\xbb\xbf" + table(CELLS), NASTY),
    "csv in UTF-16": ("a.csv", table(CELLS).decode().encode("utf-16"), NASTY),
    "csv ended by carriage returns": ("a.csv", table(CELLS, lineterminator="\r"), NASTY),
    "csv.gz": ("a.csv.gz", gzip.compress(table(CELLS)), NASTY),
    "csv of numbers": (
        "a.csv",
        table([["text"], *([str(10**12 + n)] for n in range(60))]),
        [str(10**12 + n) for n in range(60)],
    ),
    "tsv": ("a.tsv", table([["n", "text"], *([str(n), text] for n, text in enumerate(NASTY))], "\t"), NASTY),
    "parquet": ("a.parquet", arrow(NASTY), NASTY),
    "parquet with nulls": ("a.parquet", arrow([None] * 40 + NASTY), NASTY),
    "parquet of a dictionary": ("a.parquet", arrow(pa.array(NASTY).dictionary_encode()), NASTY),
    "parquet of bytes": ("a.parquet", arrow(pa.array([text.encode() for text in NASTY])), NASTY),
    "parquet of large text": ("a.parquet", arrow(pa.array(NASTY, pa.large_string())), NASTY),
    "parquet in gz": ("a.parquet.gz", gzip.compress(arrow(NASTY)), NASTY),
}


@pytest.mark.parametrize("case", FILES)
def test_documents_are_the_same_in_memory_and_streamed(tmp_path: Path, case: str) -> None:
    name, content, wanted = FILES[case]
    (tmp_path / name).write_bytes(content)
    held, streamed = both_ways(tmp_path)
    assert held == sorted(text.encode() for text in wanted)
    assert streamed == held


def test_one_very_long_line_is_the_same_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"".join(b"word%d " % n for n in range(300_000)))
    held, streamed = both_ways(tmp_path)
    assert held == streamed and len(held) > 600 and max(map(len, held)) <= PIECE_BYTES


SPACED = st.lists(st.sampled_from(["a", "é😀", " ", "\n", "\r\n", "\n\n", "\t", "\r", " \n \n", "x" * 40]))


@given(SPACED)
def test_nothing_but_white_space_is_lost(parts: list[str]) -> None:
    text = "".join(parts).encode() * 3
    found = list(paragraphs(io.BytesIO(text)))
    assert b"".join(b"".join(found).split()) == b"".join(text.split())


def test_blank_lines_take_no_time_and_are_no_documents() -> None:
    # Seconds, where it was hours: each blank line was once looked at from each of the others.
    assert list(paragraphs(io.BytesIO(b"a\n" + b" \n" * 400_000))) == [b"a"]


def test_white_space_alone_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("   \n  \n" + TEXT)
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": " \n "}, {"text": "real"}]))
    held, streamed = both_ways(tmp_path)
    assert held == streamed == sorted(text.encode() for text in [*MANY, "real"])


def test_a_text_without_end_is_read_in_pieces() -> None:
    """Memory does not grow with the length of a paragraph."""
    held: list[int] = []

    def lines() -> Iterator[bytes]:
        for number in range(1, 201):
            yield b"word " * 2000 + b"\n"
            held.append(10_001 * number - taken)

    taken = 0
    for piece in paragraphs(lines()):
        taken += len(piece)
    assert taken == 10_001 * 200 - 1 and max(held) < 30_000


# --- quotes -------------------------------------------------------------------------------------------------


def rows_in(path: Path, *columns: str, header: bool = True) -> list[dict[str, str]]:
    wanted = [text_column(name) for name in columns]
    return [dict(row) for _, row in usable_rows(DataFile.local(path), wanted, header=header)]


def some_csv(path: Path, change: Callable[[list[str]], None], ending: str = "") -> Path:
    rows = [f'{n},"row number {n} with words enough"{ending}' for n in range(400)]
    change(rows)
    path.write_text("id,text\n" + "\n".join(rows) + "\n")
    return path


def test_a_quote_that_is_not_closed_is_refused_with_its_line(tmp_path: Path) -> None:
    def opened(rows: list[str]) -> None:
        rows[100] = '100,"an inch sign without its pair'

    with pytest.raises(UserError, match=r"a.csv cannot be read: line 102: a quote lacks its pair"):
        rows_in(some_csv(tmp_path / "a.csv", opened), "text")

    def bare(rows: list[str]) -> None:
        rows[:] = [row.replace('"', "") for row in rows]
        rows[100] = '100,"an inch sign'

    with pytest.raises(UserError, match=r"line 102: a quote .*unexpected end of data"):
        rows_in(some_csv(tmp_path / "a.csv", bare), "text")


def test_heads_in_other_cases_and_rows_of_other_widths(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("Input\tOutput \nteh\tthe\n")
    assert rows_in(tmp_path / "a.tsv", "input", "output", header=False) == [{"input": "teh", "output": "the"}]
    (tmp_path / "a.tsv").write_text("a\tb\nteh\tdog\tthe dog\n")
    with pytest.raises(UserError, match=r"line 2: 3 cells, expected 2"):
        rows_in(tmp_path / "a.tsv", "input", "output", header=False)
    (tmp_path / "a.tsv").write_text('text\n"opened here\na\nb\nclosed here"\nc\n')
    assert len(rows_in(tmp_path / "a.tsv", "text")) == 5


def test_line_breaks_in_cells_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(table([["id", "text"], *([str(n), "one\ntwo, three\nfour"] for n in range(50))]))
    assert [row["text"] for row in rows_in(path, "text")] == ["one\ntwo, three\nfour"] * 50


TSV = {
    "speech over two rows": ('"I amm here\t"I am here\nand tehre"\tand there"\n', 2),
    "closed in a later row": ('"Come heer\tCome here\nand sitt"\tand sit\nmoar\tmore\n', 3),
    "closed within a later cell": ('"Come heer\tCome here\nand sitt," she said. "Now"\tand sit\n', 2),
    "quotation": ('"quoted"\tplain\nbare\tplain\n', 2),
}


@pytest.mark.parametrize("case", TSV)
def test_quotes_in_tsv_are_text(tmp_path: Path, case: str) -> None:
    content, count = TSV[case]
    (tmp_path / "a.tsv").write_text(content)
    rows = rows_in(tmp_path / "a.tsv", "input", "output", header=False)
    assert [[row["input"], row["output"]] for row in rows] == [
        line.split("\t") for line in content.splitlines()
    ]
    assert len(rows) == count


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_tsv_that_a_writer_quoted(tmp_path: Path, quoting: int) -> None:
    cells = [["a", "b"], ['say "hi"', "x"], ["two\nlines", "tab\there"], ["plain", ""], ["\nfirst", "last\n"]]
    (tmp_path / "a.tsv").write_bytes(table(cells, "\t", quoting=quoting))
    rows = rows_in(tmp_path / "a.tsv", "a", "b")
    assert [[row["a"], row["b"]] for row in rows] == cells[1:]


# --- what is refused ----------------------------------------------------------------------------------------

DEEP = b'{"text": "a", "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "digits": (
        "a.jsonl",
        b'{"text": "a", "id": ' + b"7" * 5000 + b"}\n",
        "line 1: not JSON: it contains a whole number of more than 4,300 digits",
    ),
    "depth": (
        "a.jsonl",
        b'{"text": "a"}\n' + DEEP,
        "line 2: not JSON: it is nested too deeply",
    ),
    "depth in a list": (
        "a.json",
        b"[" + DEEP + b"]",
        "row 1: not JSON: it is nested too deeply",
    ),
    "UTF-16 without a mark": ("a.txt", TEXT.encode("utf-16-le"), "as in UTF-16 without a mark"),
    "half of UTF-16": ("a.txt", TEXT.encode("utf-16")[:-1], "not UTF-16, as its mark says"),
    "not UTF-8": ("a.csv", b"text\ncaf\xe9\n", "line 2: not UTF-8: byte 0xe9"),
    "pointer": ("a.jsonl", POINTER, "a.jsonl is a Git LFS pointer"),
    "pointer for Parquet": ("a.parquet", POINTER, "a.parquet is a Git LFS pointer"),
    "pointer for text": ("a.txt", POINTER, "git lfs pull"),
    "pointer for what is packed": ("a.csv.gz", POINTER, "is a Git LFS pointer"),
    "page": (
        "a.jsonl",
        b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        "a.jsonl is a web page (HTML)",
    ),
    "packed, and not called so": ("a.txt", gzip.compress(TEXT.encode()), "is a gzip archive; unpack it"),
    "another separator": ("a.csv", b"id;text\n1;b\n", "no column 'text'; it has id;text"),
    "two columns of a name": ("a.csv", b"text,text\na,b\n", "several columns are called 'text'"),
    "too few cells": ("a.csv", b"a,text\n1,2\n3\n", "line 3: 1 cell, expected 2 (a, text)"),
    "cut off": ("a.jsonl.gz", gzip.compress(lines(ROWS))[:100], "cannot be read: Compressed file ended"),
    "cut off, zst": ("a.jsonl.zst", bytes(zstandard(lines(ROWS)))[:100], "cannot be read: "),
    "numbers in Parquet": (
        "a.parquet",
        arrow(list(range(9))),
        "row 1: column 'text' holds 0, expected text",
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, case: str, streaming: bool) -> None:
    name, content, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        text = open_source(FilesSource(kind="files", path=str(tmp_path), streaming=streaming), ["en"])
        assert isinstance(text, StreamedText)
        text.train("en", key=(1,)).take(100_000)
    assert message.replace("cannot be read: ", "") in str(caught.value).replace("damaged, ", "")
    assert name in caught.value.message and "\n" not in caught.value.message


def test_a_column_twice_in_parquet(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(MANY)] * 2, names=["text", "text"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns are called 'text'"):
        both_ways(tmp_path)
    parquet.write_table(
        pa.Table.from_arrays([pa.array(MANY)] * 3, names=["x", "text", "x"]), tmp_path / "a.parquet"
    )
    held, streamed = both_ways(tmp_path)
    assert held == streamed and len(held) == 60


def test_reading_can_begin_anywhere(tmp_path: Path) -> None:
    for name, content, _ in FILES.values():
        (tmp_path / name).write_bytes(content)
        file = DataFile.local(tmp_path / name)
        everything = list(rows_of(file, [text_column("text")]))
        assert list(rows_of(file, [text_column("text")], everything[20].number)) == everything[21:]


# --- the data sets' own files -------------------------------------------------------------------------------


def test_files_of_xnli_as_they_are_published(tmp_path: Path) -> None:
    """Its columns, its words for labels, quotes that are text, and labels on which nobody agreed."""
    header = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID"
    rows = [
        ("en", "neutral", '"A" man', "B"),
        ("en", "contradiction", '"C', 'D"'),
        ("en", "-", "E", "F"),
        ("sw", "entailment", "G", '"H"'),
    ]
    body = "".join(f"{la}\t{label}\t\t{first}\t{second}\t1\n" for la, label, first, second in rows)
    (tmp_path / "xnli.dev.tsv").write_text(f"{header}\n{body}")
    (tmp_path / "xnli.test.tsv").write_text(f"{header}\n{body}")
    (tmp_path / "multinli.train.en.tsv").write_text(
        "premise\thypo\tlabel\nA\tB\tcontradictory\nC\tD\tneutral\n"
    )
    task = build_task(
        XnliTask.model_validate(
            {"kind": "xnli", "source": {"kind": "files", "path": str(tmp_path)}, "languages": ["en", "sw"]}
        )
    )
    assert task.rows("train", "en").to_pylist() == [  # type: ignore[attr-defined]
        {"premise": "A", "hypothesis": "B", "label": "2"},
        {"premise": "C", "hypothesis": "D", "label": "1"},
    ]
    assert task.rows("validation", "en").to_pylist() == [  # type: ignore[attr-defined]
        {"premise": '"A" man', "hypothesis": "B", "label": "1"},
        {"premise": '"C', "hypothesis": 'D"', "label": "2"},
    ]
    assert task.rows("test", "sw").to_pylist() == [  # type: ignore[attr-defined]
        {"premise": "G", "hypothesis": '"H"', "label": "0"}
    ]
    assert any("left out, on whose label annotators did not agree" in remark for remark in task.remarks())


def test_questions_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    """SQuAD 2.0's empty lists."""
    rows = [
        {
            "id": str(n),
            "question": "q",
            "context": "c",
            "answers": {"text": ["c"] * (n % 3), "answer_start": [0] * (n % 3)},
        }
        for n in range(9)
    ]
    (tmp_path / "train.json").write_bytes(lines(rows))
    task = build_task(
        XQuADTask.model_validate(
            {"kind": "xquad", "source": {"kind": "files", "path": str(tmp_path)}, "languages": ["en"]}
        )
    )
    assert [row["id"] for row in task.rows("train", "en").to_pylist()] == list("124578")  # type: ignore[attr-defined]
    assert "3 rows left out, without an answer" in task.remarks()
    for number, reason in (("[" * 100_000, "nested too deeply"), ("9" * 5000, "more than 4,300 digits")):
        rows[0]["answers"] = f'{{"text": {number}'
        (tmp_path / "train.json").write_bytes(lines(rows[:1]))
        with pytest.raises(UserError, match=f"column 'answers' holds .*: .*{reason}"):
            build_task(task.section).rows("train", "en")  # type: ignore[attr-defined]


def test_files_of_the_character_tasks(tmp_path: Path) -> None:
    for name in ("Train.tsv", "word_search_val.TSV", "word_search_test_oov.tsv", "test/overlap.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"a\tb\nc"\td\n')
    (tmp_path / "spelling_correction_contextual_val.tsv").write_text("x\ty\n")
    task = build_task(
        CharacterTask.model_validate(
            {"kind": "word_search", "source": {"kind": "files", "path": str(tmp_path)}}
        )
    )
    assert task.subsets("test") == ["test_oov", "test_overlap"]
    for split, part in (("train", "all"), ("validation", "all"), ("test", "test_overlap")):
        rows = task.rows(split, part).to_pylist()  # type: ignore[attr-defined]
        assert rows == [{"input": '"a', "output": "b"}, {"input": 'c"', "output": "d"}]
    assert "spelling_correction_contextual_val.tsv (of another task)" in task.remarks()[0]
