"""`mrt5 generate`: any format in and out, in order, gone on with; a sentence for whatever is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import NO_GATE, SHORTENERS, SPANS, make_run
from typer.testing import CliRunner

from mrt5cli.bars import bars
from mrt5cli.byte_tokens import encode, to_bytes
from mrt5cli.cli import app
from mrt5cli.generation import writing
from mrt5cli.models import load
from mrt5cli.stopping import raised

QUESTIONS = {"kind": "tydiqa", "source": {"kind": "files", "path": "gone"}, "input_length": 40}
PAIRS = {
    "kind": "text2text",
    "source": {"kind": "files", "path": "gone"},
    "input": "Correct: {noisy}",
    "target": "{clean}",
    "input_length": 24,
    "target_length": 9,
}
SPELLING = {"kind": "spelling_correction_contextual", "source": {"kind": "files", "path": "gone"}}
TEXTS = ["abc", "hello world", "été 北京", "a", "  two  words ", "abcdefghijklmnopqrstuvwxyz", '"q" \\ ,x\t.']


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    answers = {**QUESTIONS, "answer_length": 7}
    return {
        "mrt5": make_run(folder, "mrt5"),
        "byt5": make_run(folder, "byt5", shortener=NO_GATE),
        "random": make_run(folder, "random", shortener=SHORTENERS["random"]),
        "spans": make_run(folder, "spans", task=SPANS),
        "questions": make_run(folder, "questions", task=answers),
        "pairs": make_run(folder, "pairs", task=PAIRS),
        "spelling": make_run(folder, "spelling", task=SPELLING),
    }


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return saved(tmp_path / "lines.txt", "".join(f"{text}\n" for text in TEXTS))


def saved(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def generate(*arguments: object, stdin: bytes | None = None) -> Any:
    words = [*map(str, arguments)]
    return CliRunner().invoke(
        app, ["generate", *words, *(() if "--device" in words else ("--device", "cpu"))], input=stdin
    )


def outputs(*arguments: object, stdin: bytes | None = None) -> list[str]:
    result = generate(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes.endswith(b"\n")
    return result.stdout_bytes.decode().removesuffix("\n").split("\n")


def by_hand(run: Path, texts: list[str], most: int, **how: Any) -> list[str]:
    """What the model itself generates, a text at a time."""
    model, found = load(run), []
    for text in texts:
        ids = torch.from_numpy(encode(text.encode()[: 16 - 1 if most == 16 else 10**6], add_eos=True))[None]
        with torch.inference_mode():
            raw = model.generate(ids, **{"hard_delete": True, "max_new_tokens": most, **how})[0].tolist()
        raw = raw[1 : raw.index(1)] if 1 in raw else raw[1:]
        found.append(to_bytes(raw).decode("utf-8", "replace"))
    return found


def escaped(texts: list[str]) -> list[str]:
    return [text.replace("\n", "\\n").replace("\r", "\\r") for text in texts]


def problem(result: Any, *words: str) -> str:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-2 if "hint:" in result.stderr else -1].startswith(("error:", "hint:"))
    for word in words:
        assert word in result.stderr
    return result.stderr


# --- what is written ---


@pytest.mark.parametrize("name", ["mrt5", "byt5"])
def test_lines_are_what_the_model_itself_generates(
    runs: dict[str, Path], lines: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = escaped(by_hand(runs[name], TEXTS, 16))
    assert len(set(wanted)) > 3

    assert outputs(runs[name], lines) == wanted
    assert outputs(runs[name], "-", stdin=lines.read_bytes()) == wanted
    monkeypatch.setattr(writing, "WINDOW", 3)
    assert outputs(runs[name], stdin=lines.read_bytes()) == wanted


def test_soft_gates_and_beams(runs: dict[str, Path], lines: Path) -> None:
    soft = by_hand(runs["mrt5"], TEXTS, 16, hard_delete=False)
    beams = by_hand(runs["mrt5"], TEXTS, 16, num_beams=3)

    assert (
        outputs(runs["mrt5"], lines, "--soft") == escaped(soft) != escaped(by_hand(runs["mrt5"], TEXTS, 16))
    )
    assert outputs(runs["mrt5"], lines, "--num-beams", 3) == escaped(beams)
    assert len(outputs(runs["mrt5"], lines, "--num-beams", 3, "--num-return", 2)) == 2 * len(TEXTS)


def test_rows_of_json_say_all_that_is_known(runs: dict[str, Path], lines: Path) -> None:
    found = outputs(runs["mrt5"], lines, "--format", "jsonl")
    rows = [json.loads(row) for row in found]

    assert [row["input"] for row in rows] == TEXTS
    assert [row["index"] for row in rows] == list(range(len(TEXTS)))
    assert [row["output"] for row in rows] == by_hand(runs["mrt5"], TEXTS, 16)
    assert [row["truncated"] for row in rows] == [len(text.encode()) > 15 for text in TEXTS]
    assert all(0 < row["kept"] <= 16 and 0 <= row["deleted"] < 1 for row in rows)
    assert any(row["deleted"] > 0 for row in rows)
    lengths = [min(len(text.encode()) + 1, 16) for text in TEXTS]
    assert [row["deleted"] for row in rows] == pytest.approx(
        [1 - row["kept"] / length for row, length in zip(rows, lengths, strict=True)], abs=1e-4
    )
    alone = [
        json.loads(row) for row in outputs(runs["mrt5"], lines, "--format", "jsonl", "--batch-tokens", 1)
    ]
    assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in rows], rel=1e-4)


def test_a_score_is_the_log_probability_of_the_output(runs: dict[str, Path]) -> None:
    row = json.loads(outputs(runs["byt5"], "--text", "abc", "--format", "jsonl", "--max-new-tokens", 4)[0])
    model = load(runs["byt5"])
    ids = torch.from_numpy(encode("abc", add_eos=True))[None]
    with torch.inference_mode():
        labels = model.generate(ids, max_new_tokens=4)[:, 1:]
        logits = model(input_ids=ids, labels=labels).logits.log_softmax(-1)

    assert row["score"] == pytest.approx(float(logits.gather(-1, labels[..., None]).sum()), rel=1e-4)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_hold_what_lines_hold(runs: dict[str, Path], lines: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    result = generate(runs["mrt5"], lines, "--out", out)

    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "7 inputs, 7 outputs" in result.stderr
    assert "1 input truncated to 16 byte tokens" in " ".join(result.stderr.split())
    assert [row["output"] for row in table_of(out)] == by_hand(runs["mrt5"], TEXTS, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", out.name]


def table_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    text = path.read_bytes().decode()
    return list(
        csv.DictReader(io.StringIO(text, newline=""), delimiter="," if path.suffix == ".csv" else "\t")
    )


def test_bytes_that_are_no_text(runs: dict[str, Path], lines: Path) -> None:
    escapes = outputs(runs["mrt5"], lines, "--bytes")
    valid = outputs(runs["mrt5"], lines, "--valid-utf8")

    raw = [
        line.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1", "replace")
        for line in escapes
    ]
    assert any("\\x" in line for line in escapes)
    assert not any("\ufffd" in line for line in (*escapes, *valid))
    assert any("\ufffd" in line for line in outputs(runs["mrt5"], lines))
    assert len(raw) == len(TEXTS)


def test_draws_depend_on_seed_and_number_alone(runs: dict[str, Path], lines: Path) -> None:
    drawn = ["--sample", "--num-return", 2, "--seed", 5]
    found = outputs(runs["mrt5"], lines, *drawn)

    assert found == outputs(runs["mrt5"], lines, *drawn, "--batch-tokens", 1)
    assert found != outputs(runs["mrt5"], lines, *drawn[:-1], 6)
    assert found[::2] != found[1::2]
    assert outputs(runs["random"], lines) == outputs(runs["random"], lines), "random deletion is drawn alike"


def test_a_deletion_rate_is_met_by_a_threshold(runs: dict[str, Path], tmp_path: Path) -> None:
    texts = saved(tmp_path / "many.txt", "".join(f"{n} bottles of {n * n}\n" for n in range(99)))
    result = generate(
        runs["spans"], texts, "--deletion-rate", 0.3, "--format", "jsonl", "--max-new-tokens", 1
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]

    gone = sum(len(row["input"]) + 1 - row["kept"] for row in rows) / sum(
        len(row["input"]) + 1 for row in rows
    )
    assert gone == pytest.approx(0.3, abs=0.02)
    threshold = float(result.stderr.split("gate values up to ")[1].split()[0])
    by_threshold = outputs(
        runs["spans"], texts, f"--threshold={threshold:.9g}", "--format", "jsonl", "--max-new-tokens", 1
    )
    assert sum(json.loads(row)["kept"] for row in by_threshold) == pytest.approx(
        sum(row["kept"] for row in rows), rel=0.02
    )


def test_a_gate_that_is_told_its_rate_is_not_calibrated(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = make_run(tmp_path, "told", shortener=SHORTENERS["quantile_gate"])
    how = ("--format", "jsonl", "--max-new-tokens", 2)
    monkeypatch.delattr(writing.Pen, "threshold_for")
    by_rate = generate(told, lines, "--deletion-rate", 0.8, *how)
    assert by_rate.exit_code == 0, by_rate.output
    assert by_rate.stdout == generate(told, lines, "--threshold=-6", *how).stdout
    assert by_rate.stdout != generate(told, lines, *how).stdout


@pytest.mark.slow
def test_two_devices_write_what_one_does(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 4)
    texts = saved(tmp_path / "many.txt", "".join(f"{n}\n" for n in range(22)))

    assert outputs(runs["mrt5"], texts, "--device", "cpu,cpu") == outputs(runs["mrt5"], texts)


# --- what is read ---

ROWS = [{"id": str(n), "noisy": text, "at": "x\ny"} for n, text in enumerate(TEXTS)]


def tables(folder: Path) -> dict[str, Path]:
    found = {}
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        written = io.StringIO()
        writer = csv.DictWriter(written, ["id", "noisy", "at"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        found[kind] = saved(folder / f"rows.{kind}", "\ufeff" + written.getvalue())
    found["jsonl"] = saved(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    found["json"] = saved(folder / "rows.json", json.dumps(ROWS))
    found["jsonl.gz"] = saved(folder / "packed.jsonl.gz", gzip.compress(found["jsonl"].read_bytes()))
    found["parquet"] = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), found["parquet"])
    return found


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "jsonl.gz", "parquet"])
def test_a_column_of_a_table(runs: dict[str, Path], lines: Path, tmp_path: Path, kind: str) -> None:
    file = tables(tmp_path)[kind]
    wanted = outputs(runs["mrt5"], lines)

    assert outputs(runs["mrt5"], file, "--column", "noisy") == wanted
    assert outputs(runs["mrt5"], file, "--prompt", "{noisy}") == wanted
    assert outputs(runs["mrt5"], file, "--prompt", "x {noisy}", "--format", "jsonl")[0].startswith(
        '{"index": 0, "input": "x abc"'
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_column_is_added_to_the_table(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    file = tables(tmp_path)[kind]
    ending = "jsonl" if kind == "parquet" else kind
    out = tmp_path / f"out.{ending}"

    result = generate(runs["mrt5"], file, "--column", "noisy", "--add-column", "clean", "--out", out)
    assert result.exit_code == 0, result.output
    wanted = by_hand(runs["mrt5"], TEXTS, 16)
    assert table_of(out) == [{**row, "clean": text} for row, text in zip(ROWS, wanted, strict=True)]
    again = generate(runs["mrt5"], file, "--column", "noisy", "--add-column", "clean")
    assert again.stdout_bytes == out.read_bytes(), "its format is the table's"


def test_lines_of_any_system(runs: dict[str, Path], tmp_path: Path) -> None:
    wanted = outputs(runs["mrt5"], "--text", "ab")[0]
    long = "x" * 1_000_000
    for content in (b"\xef\xbb\xbfab\nab", b"ab\r\nab\r\n", "ab\nab\n".encode("utf-16")):
        assert outputs(runs["mrt5"], saved(tmp_path / "lines.log", content)) == [wanted, wanted]
    assert outputs(runs["mrt5"], saved(tmp_path / "long.txt", f"ab\n{long}\nab\n"))[::2] == [wanted, wanted]
    nul = outputs(runs["mrt5"], saved(tmp_path / "nul.txt", b"a\0b\nab\n"))
    assert nul[1] == wanted != nul[0]


def test_no_inputs_are_no_outputs(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, how in (("empty.txt", ()), ("empty.csv", ("--column", "a"))):
        result = generate(runs["mrt5"], saved(tmp_path / name, ""), *how)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
    out = tmp_path / "out.csv"
    assert (
        generate(runs["mrt5"], saved(tmp_path / "0.csv", "a\n"), "--column", "a", "--out", out).exit_code == 0
    )
    assert out.read_bytes() == b"index,input,output,score,deleted,kept,truncated\n"
    assert generate(runs["mrt5"], "--out", tmp_path / "0.jsonl", stdin=b"").exit_code == 0
    assert (tmp_path / "0.jsonl").read_bytes() == b""


def test_the_prompt_of_a_runs_task(runs: dict[str, Path], tmp_path: Path) -> None:
    table = saved(tmp_path / "q.jsonl", '{"question": "Who?", "context": "Me."}\n')

    (row,) = map(json.loads, outputs(runs["questions"], table, "--format", "jsonl", "--valid-utf8"))
    assert row["input"] == "Question: Who? Context: Me."
    assert len(row["output"].encode()) <= 7, "the task's answer length"
    problem(generate(runs["questions"], "--text", "Who?"), "question, context", "--prompt")
    problem(generate(runs["questions"], table, "--column", "question"), "question, context", "--raw")
    (row,) = map(json.loads, outputs(runs["questions"], "--text", "Who?", "--raw", "--format", "jsonl"))
    assert row["input"] == "Who?"
    rows = saved(tmp_path / "s.tsv", "input\tother\nteh\tx\n")
    assert outputs(runs["spelling"], rows) == outputs(runs["spelling"], "--text", "teh")


def test_a_line_stands_in_the_one_column_of_a_prompt(runs: dict[str, Path], tmp_path: Path) -> None:
    rows = saved(tmp_path / "rows.csv", "noisy,other\nteh,a\n")

    def given(*how: object) -> str:
        (row,) = map(json.loads, outputs(runs["pairs"], *how, "--format", "jsonl"))
        assert len(row["output"].encode()) <= 3 * 9, "the task's length of targets"
        return row["input"]

    assert given("--text", "teh") == given(rows) == "Correct: teh"
    assert given(rows, "--column", "other") == "Correct: a"
    assert given("--text", "teh", "--raw") == given("--text", "teh", "--prompt", "{line}") == "teh"
    assert given(rows, "--column", "other", "--raw") == "a"
    assert given(rows, "--prompt", "{other}{{{noisy}}}") == "a{teh}"
    problem(generate(runs["pairs"], saved(tmp_path / "x.csv", "a\nb\n")), "no column 'noisy'; it has a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ab\n\xff\n", ("lines.txt, line 2: not UTF-8: byte 0 is 0xff", "iconv")),
        (b"ab\n\nab\n", ("lines.txt, line 2", "no text")),
        (b"ab\n  \t\n", ("lines.txt, line 2", "no text")),
    ],
    ids=["latin", "empty", "blank"],
)
def test_a_bad_line(runs: dict[str, Path], tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    file = saved(tmp_path / "lines.txt", content)
    result = generate(runs["mrt5"], file)
    problem(result, *words)
    (first,) = outputs(runs["mrt5"], "--text", "ab")
    assert result.stdout == f"{first}\n", "what comes before it is done"

    skipped = generate(runs["mrt5"], file, "--on-error", "skip")
    assert set(skipped.stdout.splitlines()) == {first}
    assert "1 input could not be used" in skipped.stderr
    empty = generate(runs["mrt5"], file, "--on-error", "empty")
    assert empty.stdout.split("\n")[:2] == [first, ""]
    assert empty.stdout.count("\n") == content.count(b"\n")


def test_a_bad_row(runs: dict[str, Path], tmp_path: Path) -> None:
    file = saved(tmp_path / "rows.jsonl", '{"a": "ab"}\n{"b": 1}\n{"a": null}\nno\n{"a": ["x"]}\n{"a": 3}\n')
    problem(generate(runs["mrt5"], file, "--column", "a"), "rows.jsonl, line 2", "no column 'a'; it has b")
    rows = [
        json.loads(row)
        for row in outputs(runs["mrt5"], file, "--column", "a", "--on-error", "empty", "--format", "jsonl")
    ]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["input"] for row in rows] == ["ab", None, None, None, None, "3"]
    kept = generate(runs["mrt5"], file, "--column", "a", "--on-error", "skip", "--add-column", "c")
    assert [list(json.loads(row)) for row in kept.stdout.splitlines()] == [["a", "c"]] * 2
    short = saved(tmp_path / "rows.csv", "a,b\nab,1\nab\n")
    problem(
        generate(runs["mrt5"], short, "--column", "a"),
        "rows.csv, line 3",
        "1 cell, expected 2",
        "--on-error skip",
    )


def test_a_first_row_that_is_bad_does_not_say_the_columns(runs: dict[str, Path], tmp_path: Path) -> None:
    file = saved(tmp_path / "rows.csv", "a,b\nab\nab,1\nab,2,3\n")
    found = outputs(runs["mrt5"], file, "--column", "a", "--on-error", "empty", "--add-column", "c")
    assert (found[0], found[1], found[3]) == ("a,b,c", ",,", ",,")
    assert found[2].startswith("ab,1,")


def test_a_column_that_is_there_already_is_refused_before_the_work(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.Pen, "write", None)
    rows = saved(tmp_path / "rows.csv", "noisy,b\nab,1\n")
    problem(generate(runs["mrt5"], rows, "--column", "noisy", "--add-column", "b"), "'b' exists already")


def test_wrong_inputs(runs: dict[str, Path], tmp_path: Path) -> None:
    run, rows = runs["mrt5"], saved(tmp_path / "rows.csv", "noisy,b\nab,1\n")
    problem(generate(run, tmp_path / "none.txt"), "does not exist", "typo")
    problem(generate(run, tmp_path), "is a folder")
    problem(generate(run, saved(tmp_path / "empty.csv", "")), "empty.csv is empty", "a column of inputs")
    problem(generate(run, rows), "--column", "--prompt")
    problem(generate(run, rows, "--column", "nosy"), "no column 'nosy'", "did you mean 'noisy'?")
    problem(generate(run, rows, "--column", "nosy", "--add-column", "c"), "did you mean 'noisy'?")
    problem(generate(runs["questions"], rows), "no column 'question'", "--column", "--prompt")
    problem(generate(run, rows, "--prompt", "{noisy"), "unmatched {")
    problem(generate(run, rows, "--prompt", "noisy"), "no place for the input")
    problem(
        generate(run, saved(tmp_path / "x.parquet", b"PAR1"), "--column", "a"), "x.parquet cannot be read"
    )
    problem(
        generate(run, saved(tmp_path / "u.txt", "ab".encode("utf-16-le") * 9)),
        "UTF-16 without a byte order mark",
    )
    problem(generate(tmp_path / "no-run", rows), "no-run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--sample --num-beams 2", ("--num-beams", "--num-return 4")),
        ("--temperature 0.5", ("--temperature", "add --sample")),
        ("--top-p 0.5", ("--top-p", "add --sample")),
        ("--num-return 2", ("--num-return 2", "--num-beams 2")),
        ("--soft --threshold=-3", ("--threshold", "leave out --soft")),
        ("--deletion-rate 0.5 --threshold=-3", ("--deletion-rate", "leave one")),
        ("--threshold 3", ("--threshold 3 is outside of the gate's range",)),
        ("--deletion-rate 1", ("--deletion-rate", "below 1")),
        ("--column a --prompt {a}", ("--prompt", "--column")),
        ("--raw --prompt {a}", ("--prompt", "--raw")),
        ("--add-column c", ("--add-column", "has lines")),
        ("--column c", ("--column", "has lines")),
        ("--out lines.txt", ("--out lines.txt", "is also the input file")),
        ("--add-column c --num-return 2 --sample", ("--add-column", "--num-return")),
        ("--resume", ("--resume", "--out")),
        ("--text x", ("--text", "FILE")),
        ("--device gpu", ("--device gpu",)),
        ("--device cpu,gpu", ("--device gpu",)),
        ("--out x.jsonl.gz", ("without compression",)),
        ("--out x.json", (".jsonl",)),
        ("--revision main", ("--revision main",)),
    ],
)
def test_options_that_make_no_sense(
    runs: dict[str, Path], lines: Path, options: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lines.parent)
    problem(generate(runs["mrt5"], lines, *options.split()), *words)
    assert not (lines.parent / "x.jsonl.gz").exists()


def test_a_model_without_a_gate_has_no_threshold(runs: dict[str, Path], lines: Path) -> None:
    problem(generate(runs["byt5"], lines, "--threshold=-3"), "no delete gate", "--threshold")
    problem(generate(runs["byt5"], lines, "--deletion-rate", 0.5), "no learned delete gate")


# --- an end in the middle ---


class Stop(Exception):
    """Something ends the program."""


@pytest.mark.parametrize(
    ("kind", "end"),
    [("txt", "ctrl-c"), ("csv", "error"), ("jsonl", "SIGTERM"), ("txt", "kill"), ("csv", "kill")],
)
def test_an_end_in_the_middle_is_gone_on_with(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, end: str
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 4)
    texts = saved(tmp_path / "in.txt", "".join(f"{n} {'ab' * n}\n" for n in range(15)) + "\n" + "z\n" * 3)
    out, whole = tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
    how = [runs["mrt5"], texts, "--on-error", "empty", "--sample", "--num-return", 2]
    assert generate(*how, "--out", whole).exit_code == 0
    writes, write = [], writing.Pen.write

    def ends(self: Any, texts: Any, progress: Any) -> Any:
        writes.append(len(texts))
        if len(writes) == 3:
            if end == "SIGTERM":
                signal.raise_signal(signal.SIGTERM)
            raise Stop if end == "error" else KeyboardInterrupt
        return write(self, texts, progress)

    with monkeypatch.context() as patch, raised():  # as `main` has it
        patch.setattr(writing.Pen, "write", ends)
        stopped = generate(*how, "--out", out)
    assert stopped.exit_code == (1 if end == "error" else 130)  # `main` makes 143 of SIGTERM's
    assert "8 inputs done in" in " ".join(stopped.stderr.split())
    assert "--resume" in stopped.stderr
    half = out.read_bytes()
    assert whole.read_bytes().startswith(half)
    assert half
    if end == "kill":  # which may come between the rows and the note of them
        out.write_bytes(half + b"torn" * len(whole.read_bytes()))

    resumed = generate(*how, "--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert out.read_bytes() == whole.read_bytes()
    assert "19 inputs, 38 outputs" in resumed.stderr
    problem(generate(*how, "--out", out, "--resume"), "is finished")


def test_going_on_with_something_else_is_refused(
    runs: dict[str, Path], tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 2)
    out, bad = tmp_path / "out.txt", saved(tmp_path / "bad.txt", lines.read_bytes() + b"\n")
    problem(generate(runs["mrt5"], bad, "--out", out), "line 8", "--resume")

    problem(generate(runs["mrt5"], lines, "--out", out), "is unfinished", "--resume")
    problem(generate(runs["spans"], bad, "--out", out, "--resume"), "was started with")
    for option, value in (("seed", 9), ("max-new-tokens", 9), ("bytes", None)):
        changed = generate(
            runs["mrt5"], lines, "--out", out, "--resume", f"--{option}", *([value] if value else [])
        )
        problem(
            changed, f"was started with {option.replace('-', '_')} ", f"now it is {json.dumps(value or True)}"
        )
    other = saved(tmp_path / "other.txt", "1\n" * 20)
    problem(generate(runs["mrt5"], other, "--out", out, "--resume"), "the first 7 inputs have changed")
    assert generate(runs["mrt5"], lines, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == generate(runs["mrt5"], lines).stdout_bytes


def test_after_a_bad_input_it_may_be_said_to_skip_such(
    runs: dict[str, Path], tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 2)
    out, bad = (
        tmp_path / "out.txt",
        saved(tmp_path / "bad.txt", lines.read_bytes() + b"\n" + lines.read_bytes()),
    )
    how = [runs["mrt5"], bad, "--out", out]
    problem(generate(*how), "line 8", "--on-error skip", "--resume")
    assert generate(*how, "--resume", "--on-error", "skip").exit_code == 0
    assert out.read_bytes() == generate(runs["mrt5"], lines).stdout_bytes * 2


def test_any_column_of_a_table_that_has_changed_is_seen(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 2)
    how = ["--column", "a", "--add-column", "c", "--out", tmp_path / "out.csv"]
    rows = saved(tmp_path / "rows.csv", "a,b\nab,1\nab,2\n,3\n")
    problem(generate(runs["mrt5"], rows, *how), "line 4")
    saved(rows, "a,b\nab,1\nab,0\nab,3\n")
    problem(generate(runs["mrt5"], rows, *how, "--resume"), "the first 2 inputs have changed")


def test_what_is_drawn_for_a_batch_goes_on_in_the_same_batches(
    runs: dict[str, Path], tmp_path: Path, lines: Path
) -> None:
    bad, out = saved(tmp_path / "bad.txt", lines.read_bytes() + b"\n"), tmp_path / "out.txt"
    for run in ("random", "mrt5"):
        problem(generate(runs[run], bad, "--out", out), "line 8")
        resumed = generate(runs[run], lines, "--out", out, "--resume", "--batch-tokens", 999)
        if run == "random":
            problem(resumed, "was started with batch_tokens")
            assert generate(runs[run], lines, "--out", out, "--resume").exit_code == 0
        else:
            assert resumed.exit_code == 0, resumed.output


def test_a_threshold_that_was_found_is_kept(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WINDOW", 4)
    texts = [f"{n} bottles of {n * n}\n" for n in range(9)]
    whole = saved(tmp_path / "whole.txt", "".join(texts))
    half = saved(tmp_path / "half.txt", "".join([*texts[:6], "\n"]))
    how = ["--deletion-rate", 0.4, "--out", tmp_path / "out.txt"]
    problem(generate(runs["spans"], half, *how), "no text")
    assert generate(runs["spans"], whole, *how, "--resume").exit_code == 0

    assert generate(runs["spans"], whole, *how[:2]).stdout_bytes == how[3].read_bytes()


def test_a_log_says_how_fast_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([1.0, 10.0, 41.0])
    monkeypatch.setattr("mrt5cli.bars.time.monotonic", lambda: next(clock))
    with bars("generating", "inputs") as tell:
        for finished in (100, 500, 4100):
            tell("in.txt", finished, 9000)

    said = capsys.readouterr().err.splitlines()
    assert said == ["generating in.txt", "in.txt: 4100 of 9000, 100 inputs/s, about 49 s left"]
