"""`mrt5 recipe new`: a table of pairs is looked at, and the recipe that is printed for it runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tiny_runs import make_run
from typer.testing import CliRunner, Result

from mrt5cli import runtime
from mrt5cli.cli import app
from mrt5cli.drafting import pairs, recipe_text
from mrt5cli.recipe import Recipe, load

PAIRS = [{"id": str(n), "noisy": f"teh cat {n}", "clean": f"the cat {n}"} for n in range(60)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["recipe", "new", "text2text", "--device", "cpu", *arguments])


def new(*arguments: str) -> Recipe:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    Path("mine.yaml").write_text(result.stdout, encoding="utf-8")
    written = result.stdout.splitlines()
    assert max(len(line) for line in written if not line.startswith(("#   mrt5", "  start:"))) <= 110
    return load("mine.yaml")


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr


def table(rows: list[dict[str, str]], between: str = "\t") -> str:
    return "".join(between.join(cells) + "\n" for cells in [list(rows[0]), *(row.values() for row in rows)])


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[], object]] = {
    "pairs.tsv": lambda: Path("pairs.tsv").write_text(table(PAIRS)),
    "pairs.csv": lambda: Path("pairs.csv").write_text("\ufeff" + table(PAIRS, ",").replace("\n", "\r\n")),
    "pairs.jsonl.gz": lambda: Path("pairs.jsonl.gz").write_bytes(gzip.compress(lines(PAIRS).encode())),
    "pairs.tsv.gz": lambda: Path("pairs.tsv.gz").write_bytes(gzip.compress(table(PAIRS).encode())),
    "pairs.json": lambda: Path("pairs.json").write_text(json.dumps(PAIRS)),
    "pairs.parquet": lambda: parquet.write_table(pa.Table.from_pylist(PAIRS), "pairs.parquet"),
}


@pytest.mark.parametrize("file", WRITERS)
def test_every_format(file: str) -> None:
    WRITERS[file]()
    recipe = new("--data", file)
    task = recipe.task
    assert (recipe.name, task.source.path) == ("pairs", file)
    assert (task.input, task.target, task.metrics) == ("{noisy}", "{clean}", ["exact_match", "cer"])
    assert (task.input_length, task.target_length) == (16, 16)
    assert task.source.split.model_dump() == {"validation": 0.1, "test": 0.1}
    text = Path("mine.yaml").read_text()
    assert text.splitlines()[1] == f"#   mrt5 recipe new text2text --data {file}"
    assert (
        "# Columns of all rows (60 of train):\n#   id: numbers, 2 bytes on average, many distinct\n" in text
    )
    assert "# Chosen: the input by its name and the target by its name." in text


def test_the_recipe_runs() -> None:
    WRITERS["pairs.tsv"]()
    new("--data", "pairs.tsv")
    invoke = CliRunner().invoke
    checked = invoke(app, ["recipe", "check", "mine.yaml"])
    assert (checked.exit_code, checked.stdout) == (0, "1 recipe, 0 problems\n")
    for also in ([], ["--smoke"]):
        planned = invoke(app, ["pretrain", "mine.yaml", "--dry-run", "--device", "cpu", *also])
        assert planned.exit_code == 0, planned.output
        assert "text2text, rows of pairs.tsv" in planned.stderr


@pytest.mark.parametrize(
    ("columns", "input_", "target"),
    [
        (["text", "label"], "text", "label"),
        (["answer", "question"], "question", "answer"),
        (["clean_text", "noisy_text"], "noisy_text", "clean_text"),
        (["word", "phonemes"], "word", "phonemes"),
        (["id", "language", "written", "iso"], "written", "iso"),
        (["translation.de", "translation.en"], "translation.de", "translation.en"),
        (["targetText", "sourceText", "more"], "sourceText", "targetText"),
        (["a:b", "one", "two"], "one", "two"),
    ],
)
def test_which_columns_are_found(columns: list[str], input_: str, target: str) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(30):
        row: dict[str, Any] = {}
        for column in columns:
            head, _, inner = column.partition(".")
            value = f"x{number}"
            row |= {head: {**row.get(head, {}), inner: value}} if inner else {column: value}
        rows.append(row)
    Path("a.jsonl").write_text(lines(rows))
    task = new("--data", "a.jsonl").task
    assert (task.input, task.target) == (f"{{{input_}}}", f"{{{target}}}")


def test_templates_are_taken_as_given() -> None:
    WRITERS["pairs.tsv"]()
    task = new("--data", "pairs.tsv", "--input", "Correct {{{id}}}: {noisy}").task
    assert (task.input, task.target) == ("Correct {{{id}}}: {noisy}", "{clean}")
    assert task.input_length == 32
    assert new("--data", "pairs.tsv", "--target", "{noisy}").task.input == "{clean}"


def test_odd_names_stay_on_their_lines() -> None:
    rows = [{"a\nb": f"x{n}", "c": f"y{n}", **{f"more{k}": "z" for k in range(30)}} for n in range(30)]
    Path("a.jsonl").write_text(lines(rows))
    task = new("--data", "a.jsonl", "--input", "Say\n{a\nb}").task
    assert (task.input, task.target) == ("Say\n{a\nb}", "{c}")
    text = Path("mine.yaml").read_text()
    assert "#   a\\nb: text, 3 bytes" in text and "#   and 12 more columns\n" in text
    Path("b.jsonl").write_text(
        lines([{"text": [f"x{n}"], "one": f"y{n}", "two": f"z{n}"} for n in range(30)])
    )
    assert new("--data", "b.jsonl").task.input == "{one}", "an input is one text"


def test_lengths_hold_99_of_100_rows() -> None:
    """Or all, where that takes little more; a byte is a token, and EOS is one more."""
    long = [{"a": "é" * 20, "b": "y" * 15} for _ in range(995)]  # 40 bytes, 15 bytes
    Path("a.jsonl").write_text(lines([*long, *({"a": "é" * 27, "b": "y" * 400} for _ in range(5))]))
    recipe = new("--data", "a.jsonl")
    assert (recipe.task.input_length, recipe.task.target_length) == (64, 16)
    assert recipe.model.max_positions == 64
    text = Path("mine.yaml").read_text()
    assert (
        "the longest input has 55, the longest target 401.\n# 0 inputs and 5 targets will be truncated."
        in text
    )
    Path("a.jsonl").write_text(lines([{"a": "x" * 10**6, "b": "y" * 10**5}] * 3))
    huge = new("--data", "a.jsonl")
    assert (huge.task.input_length, huge.task.target_length) == (
        recipe_text.MOST_INPUT,
        recipe_text.MOST_TARGET,
    )
    assert huge.training.batch_size == 16


def test_few_targets_are_choices() -> None:
    rows = [{"text": f"text {n}", "label": ["yes", "no: never", "ö"][n % 3], "lang": "en"} for n in range(90)]
    Path("a.jsonl").write_text(lines(rows))
    task = new("--data", "a.jsonl").task
    assert (task.metrics, task.choices) == (["accuracy"], ["no: never", "yes", "ö"])
    assert task.language_column is None, "all rows are in one language"
    Path("b.jsonl").write_text(lines([{"text": f"text {n}", "label": n % 2} for n in range(90)]))
    assert new("--data", "b.jsonl").task.choices == ["0", "1"]
    Path("c.jsonl").write_text(lines(rows[:9]))
    assert new("--data", "c.jsonl").task.choices is None, "so few rows say nothing"


def test_languages_are_evaluated_apart() -> None:
    rows = [{"written": f"x {n}", "iso": f"y {n}", "language": ["nl", "fr"][n % 2]} for n in range(90)]
    Path("a.jsonl").write_text(lines(rows))
    assert new("--data", "a.jsonl").task.language_column == "language"


def test_a_folder_with_splits() -> None:
    for folder, splits in (("all", ("train", "dev", "test")), ("some", ("train", "test"))):
        Path(folder).mkdir()
        for split in splits:
            Path(folder, f"{split}.tsv").write_text(table(PAIRS))
    assert "validation: 0" not in run("--data", "all").stdout
    assert new("--data", "all", "--name", "mine").name == "mine"
    assert "split: {validation: 0.1}" in run("--data", "some").stdout
    assert "(60 of train, 60 of validation, 60 of test)" in run("--data", "all").stdout


def test_of_a_large_file_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SAMPLE", 20)
    for file in WRITERS:
        WRITERS[file]()
        new("--data", file)
        assert "# Columns of the first rows (20 of train):" in Path("mine.yaml").read_text(), file
    monkeypatch.setattr(pairs, "SAMPLE", 10_000)
    monkeypatch.setattr(pairs, "HEAD_BYTES", 100)
    for file in ("pairs.tsv", "pairs.tsv.gz"):
        new("--data", file)
        assert "# Columns of the first rows (3 of train):" in Path("mine.yaml").read_text()
    # A head that ends within a cell in quotes is not what the file says.
    quoted = [{"noisy": '"a\nb"', "clean": '"say ""so"""'}] * 30
    Path("quoted.tsv").write_text(table(quoted))
    new("--data", "quoted.tsv")
    assert "# Columns of all rows (30 of train):" in Path("mine.yaml").read_text()


@pytest.mark.parametrize(
    ("content", "arguments", "message", "hint"),
    [
        (None, [], "a.tsv does not exist", "expected a file, or a folder"),
        ("", [], "a.tsv contains no training rows", "expected a line of column names, then one row per line"),
        ("noisy\tclean\n", [], "a.tsv contains no training rows", "one row per line"),
        ("text\nhello\n", [], "need two columns of text, but there is only 'text'", "span_corruption"),
        ("noisy;clean\na;b\n", [], "there is only 'noisy;clean'", "cells seem to be separated by ';'"),
        ("a\tb\n1\t2\n", [], "there is none besides 'a', 'b'", "--input and --target"),
        ("noisy\tclean\nx\ty\tz\n", [], "a.tsv, line 2: 3 cells, expected 2 (noisy, clean)", ""),
        ("noisy\tnoisy\tclean\nx\ty\tz\n", [], "several columns are named 'noisy'", "rename or remove one"),
        (
            "noisy\tclean\nx\ty\n",
            ["--input", "{nosy}"],
            "--input: a.tsv has no column 'nosy'; it has noisy, clean",
            "did you mean {noisy}?",
        ),
        ("noisy\tclean\nx\ty\n", ["--target", "clean"], "--target 'clean' names no column", "{noisy}"),
        ("noisy\tclean\nx\ty\n", ["--target", "{clean"], "--target '{clean': unmatched { at character 1", ""),
        ("noisy\tclean\nx\t\n", ["--target", "{clean}", "--input", "{noisy}"], None, None),
        ("noisy\tclean\nx\ty\n", ["--name", "A/B"], "name  may contain a-z, 0-9", ""),
        ("noisy\tclean\nx\ty\n", ["--device", "gpu"], "--device gpu is not a device", "use cpu"),
    ],
)
def test_what_cannot_be_looked_at(
    content: str | None, arguments: list[str], message: str | None, hint: str | None
) -> None:
    if content is not None:
        Path("a.tsv").write_text(content)
    if message is None or hint is None:
        assert new("--data", "a.tsv", *arguments).task.target_length == 16  # empty texts are taken
        return
    told = refused("--data", "a.tsv", *arguments)
    assert message in told.partition("\nhint")[0] and hint in told


def test_a_table_without_names_is_doubted() -> None:
    Path("a.tsv").write_text("Return a new einstance with\tReturn a new instance with\n" * 3)
    result = run("--data", "a.tsv")
    assert result.exit_code == 0
    assert "the first line of a.tsv is read as its column names, such as 'Return a" in result.stderr
    WRITERS["pairs.tsv"]()
    assert run("--data", "pairs.tsv").stderr == ""


def test_rows_without_a_pair_are_said() -> None:
    Path("a.jsonl").write_text(lines([{"noisy": "x"}, {"clean": "y"}]))
    assert "a.jsonl: no row has both {noisy} and {clean}" in refused("--data", "a.jsonl")


def test_other_kinds_and_other_files() -> None:
    result = CliRunner().invoke(app, ["recipe", "new", "xnli", "--data", "a"])
    assert result.exit_code == 2 and "recipe new writes recipes for text2text, not 'xnli'" in result.stderr
    Path("a.txt").write_text("hello\n")
    assert "a.txt is in an unsupported format" in refused("--data", "a.txt")
    Path("dev.tsv").write_text(table(PAIRS))
    assert "hint: its name marks it as validation data: rename it, or give the folder" in refused(
        "--data", "dev.tsv"
    )
    Path("a.parquet").write_bytes(b"PAR1 and no more")
    assert "a.parquet cannot be read as Parquet: " in refused("--data", "a.parquet")


# --- models -------------------------------------------------------------------------------------------------


def test_on_a_gpu_a_published_model_is_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "device", lambda requested: torch.device("cuda", 0))
    monkeypatch.setattr(runtime, "device_name", lambda device: "Some GPU")
    rows = [{"a": f"{n} " + "x" * 1000, "b": f"{n} " + "y" * 400} for n in range(60)]
    Path("a.jsonl").write_text(lines(rows))
    batches = []
    for gigabytes in (140, 24):
        monkeypatch.setattr(runtime, "memory", lambda device, size=gigabytes: size * 10**9)
        recipe = new("--data", "a.jsonl")
        assert (recipe.model.start, recipe.training.precision) == ("stanfordnlp/mrt5-small", "bf16")
        assert recipe.is_finetuning and recipe.controller.kind == "pi" and recipe.training.batch_size == 64
        batches.append(recipe.training.device_batch_size)
    assert batches[0] > batches[1] >= 1
    text = Path("mine.yaml").read_text()
    assert "#   mrt5 finetune THIS.yaml --smoke" in text and "the default for Some GPU" in text


def test_another_start(tmp_path: Path) -> None:
    WRITERS["pairs.tsv"]()
    recipe = new("--data", "pairs.tsv", "--from", "google/byt5-base")
    assert (recipe.model.start, recipe.training.precision) == ("google/byt5-base", "fp32")
    shortener = {"kind": "random", "layer": 1, "rate": 0.5}
    for name, of_run, layer in (("gate", None, 1), ("other", shortener, 1)):
        given = {} if of_run is None else {"shortener": of_run}
        start = make_run(tmp_path, name, positions="absolute", max_positions=64, **given)
        model = new("--data", "pairs.tsv", "--from", str(start)).model
        assert (model.positions, model.max_positions) == ("absolute", 64)
        assert (model.shortener.kind, model.shortener.layer) == ("delete_gate", layer)
    assert new("--data", "pairs.tsv", "--from", "runs/pairs-seed42").name == "pairs-further"
    assert new("--data", "pairs.tsv", "--from", "runs/pairs-seed42", "--name", "mine").name == "mine"
    Path("long.jsonl").write_text(lines([{"a": "x" * 200, "b": "y" * 100}] * 9))
    task = new("--data", "long.jsonl", "--from", str(start)).task
    assert (task.input_length, task.target_length) == (64, 64), "what the run has positions for"
