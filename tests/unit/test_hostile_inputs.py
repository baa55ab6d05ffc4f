"""What is made to hurt: bombs, endless lines, pipes, names that lead elsewhere, commands to a terminal.

Each is refused in a sentence, or read, in bounded memory: see `tests/broken.py`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from broken import DATA, PACK, read
from pyarrow import parquet

from mrt5cli import recipe
from mrt5cli.data import formats, reading
from mrt5cli.data.columns import column_of_texts
from mrt5cli.data.formats import DataFile
from mrt5cli.data.reading import usable_rows
from mrt5cli.errors import CheckpointError, RecipeError, UserError
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.generation.inputs import Prompt, Source
from mrt5cli.json_files import LARGEST_FILE, read_object
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.recipe import FilesSource, strict_yaml
from mrt5cli.recipe.loading import shipped
from mrt5cli.recipe.strict_yaml import LONGEST, YamlProblem, parse
from mrt5cli.rundir import RunDir
from mrt5cli.templates import Template
from mrt5cli.text import visible
from mrt5cli.writing import write_json

LONG = 2**16
"""What a row may have here, so that bombs are small."""
PLAIN = {"": bytes, **PACK}


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may have `LONG` bytes."""
    for module in (formats, reading):
        monkeypatch.setattr(module, "LONGEST_ROW", LONG)


def rows(file: Path) -> list[str]:
    """The texts in a file."""
    return [str(row["text"]) for _, row in usable_rows(DataFile.local(file), [column_of_texts("text")])]


def said(file: Path) -> str:
    """What is said of a file that is refused."""
    error = read(lambda: rows(file), file.name)
    assert error is not None
    return error.message


BOMBS = {
    "a.jsonl": (b'{"text": "' + b"x" * 9 * LONG + b'"}\n', "line 1 is longer than 65.5 kB"),
    "b.jsonl": (b'{"text": "x"}\n' * 9 + b"x" * 9 * LONG, "line 10 is longer than 65.5 kB"),
    "a.json": (b'[{"text": "x"}, {"text": "' + b"x" * 9 * LONG + b'"}]', "row 2: longer than 65.5 kB"),
    "a.csv": (b"text,n\n" + b"x" * 9 * LONG, "line 2 is longer than 65.5 kB"),
    "b.csv": (b'text,n\n"a\n' + b"words, and more\n" * LONG, "line 2: a quote is not closed"),
    "a.tsv": (b"text\tn\n" + b"x" * 9 * LONG, "line 2 is longer than 65.5 kB"),
}


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("end", PLAIN)
@pytest.mark.parametrize("name", BOMBS)
def test_a_row_without_an_end(tmp_path: Path, name: str, end: str) -> None:
    content, message = BOMBS[name]
    file = tmp_path / (name + end)
    file.write_bytes(PLAIN[end](content))
    assert message in said(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json"])
def test_a_gigabyte_in_a_megabyte(tmp_path: Path, name: str) -> None:
    """As much as a row may have is held, and no more: `read` looks at memory and time."""
    file = tmp_path / f"{name}.gz"
    subprocess.run(f"head -c 1000000000 /dev/zero | tr '\\0' x | gzip -1 > {file}", shell=True, check=True)
    assert "line 1 is longer than 67.1 MB" in said(file)


def test_a_text_in_one_line_is_read_in_pieces(tmp_path: Path) -> None:
    """As the text of a corpus in one line was before: cut at spaces, nothing lost, "\\r\\n" across pieces."""
    words = b"word and word " * 300_000
    file = tmp_path / "a.txt"
    for text in (words, words + b"\r\n" + words):
        file.write_bytes(text)
        found = rows(file)
        assert "".join(found).split() == text.decode().split()
        assert max(map(len, found)) <= reading.PIECE_BYTES
    file.write_bytes(b"x" * (reading.TEXT_BYTES - 1) + b"\r\n\r\nnext")
    *before, last = rows(file)
    assert "".join(before) == "x" * (reading.TEXT_BYTES - 1) and last == "next"


def test_white_space_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" + b" " * 5_000_000 + b"b")
    assert [text.strip() for text in rows(tmp_path / "a.txt") if text.strip()] == ["a", "b"]


@pytest.mark.usefixtures("short_rows")
def test_one_document_is_no_longer_than_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x y\n" * LONG)
    file = DataFile("a.txt", lambda: io.FileIO(tmp_path / "a.txt"), whole=True)
    with pytest.raises(UserError, match=r"a.txt cannot be read: it is one document of more than 65.5 kB"):
        list(usable_rows(file, [column_of_texts("text")]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_are_streamed(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.jsonl.gz"
    texts = [f"日本 {n} 😀" for n in range(9000)]
    file.write_bytes(gzip.compress("\n".join(json.dumps({"text": text}) for text in texts).encode(encoding)))
    assert rows(file) == texts


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["plain words\n", "مرحبا بالعالم هذا نص\n", "привет мир\n"])
def test_other_encodings_without_a_mark_are_named(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes((text * 50).encode(encoding))
    assert "UTF-16 without a byte order mark" in said(tmp_path / "a.txt")


def test_a_list_of_json_is_read_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for whole in ("[]", " [ ] ", '[{"text": "a"}]', '[\n {"text": "a"} ,\n{"text": "b"}\n]\n'):
        file.write_text(whole)
        assert rows(file) == [row["text"] for row in json.loads(whole)]
    for cut, message in {
        '[{"text": "a"}': "row 1: not JSON: the list does not end",
        '[{"text": "a"},': "row 2: not JSON: Expecting value",
        '[{"text": "a"}, {"text": ': "row 2: not JSON: Expecting value at column 11",
        '[{"text": "a"} {"text": "b"}]': "row 1: not JSON: Extra data",
        '[{"text": "a"}] x': "row 2: not JSON: something follows the list",
        '[{"text": "a"}, 5]': "row 2: not an object",
        '[{"text": "a"}, ' + "[" * 200_000: "row 2: not JSON: it is nested too deeply",
    }.items():
        file.write_text(cut)
        assert message in said(file)


def test_cells_of_parquet_that_python_does_not_hold(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for column, message in {
        pa.array(["a", "b"]).type: None,
        pa.timestamp("us"): "row 2: column 'text' has a value that cannot be read: date value out of range",
    }.items():
        values = ["a", "b"] if message is None else [0, 2**62]
        parquet.write_table(pa.table({"text": pa.array(values, column)}), file)
        if message is not None:
            assert message in said(file)
    spoilt = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    parquet.write_table(pa.table({"text": pa.StructArray.from_arrays([spoilt], ["a"])}), file)
    assert "row 2: column 'text': not UTF-8: byte 3 is 0xe9" in said(file)


def test_absurd_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"text": ["a"]})
    parquet.write_table(table.replace_schema_metadata({"x": "y" * (reading.FOOT_BYTES + 1)}), file)
    assert "Exceeded size limit" in said(file)
    parquet.write_table(pa.table({"text": ["a" * 2**16]}), file, use_dictionary=False)
    monkeypatch.setattr(reading, "LONGEST_ROW", 2**15)
    assert "rows from 1 on have more than 32.8 kB each in column 'text'" in said(file)
    monkeypatch.setattr(reading, "PACKED_PARQUET", 100)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert "decompresses to more than 100 B" in said(tmp_path / "a.parquet.gz")


def test_archives_under_other_names(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "x"), "zip", Path(__file__).parent, "test_text.py")
    shutil.make_archive(str(tmp_path / "y"), "tar", Path(__file__).parent, "test_text.py")
    contents = {
        "zip": (tmp_path / "x.zip").read_bytes(),
        "tar": (tmp_path / "y.tar").read_bytes(),
        "gzip": gzip.compress(b"a"),
        "bzip2": bz2.compress(b"a"),
        "xz": lzma.compress(b"a"),
    }
    for kind, content in contents.items():
        for name in ("a.txt", "a.csv", "a.jsonl"):
            (tmp_path / name).write_bytes(content)
            assert f"{name} is a" in said(tmp_path / name) and kind in said(tmp_path / name)


# --- pipes and devices --------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe without a writer."""
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    return path


def test_a_pipe_is_not_waited_for(pipe: Path) -> None:
    assert "pipe.jsonl is not a file" in said(pipe)
    for call in (
        lambda: recipe.load(pipe),
        lambda: read_object(pipe),
        lambda: recipe.load("/dev/zero"),
        lambda: read_object(Path("/dev/zero")),
        lambda: Source(pipe, Prompt.of(Template.parse("{text}"))),
    ):
        error = read(call, "pipe.jsonl", "/dev/zero")
        assert error is not None and "is not a file" in error.message


def test_json_larger_than_any_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for size, message in ((LARGEST_FILE, "it is not JSON"), (LARGEST_FILE + 1, "it is larger than 33.6 MB")):
        with file.open("wb") as opened:
            opened.truncate(size)
        with pytest.raises(UserError, match=message):
            read_object(file)


def test_a_pipe_in_a_folder_is_left_out(pipe: Path) -> None:
    from mrt5cli.data.sources import open_source

    (pipe.parent / "a.txt").write_text("Some text.\n\n" * 200)
    text = open_source(FilesSource(kind="files", path=str(pipe.parent)), ["en"])
    assert any("pipe.jsonl (a pipe or a device)" in remark for remark in text.remarks())


def test_a_pipe_of_inputs_is_waited_for_with_a_word(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = "import sys; from mrt5cli.generation.inputs import Source; "
    code += "print([one.text for one in Source(sys.argv[1], None)])"
    words = [sys.executable, "-c", code, str(tmp_path / "pipe")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reading_it:
        assert reading_it.stderr is not None
        assert "waiting for input from" in reading_it.stderr.readline()
        (tmp_path / "pipe").write_text("hello\n")
        assert reading_it.communicate(timeout=30)[0] == "[b'hello']\n"


# --- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "x" * LONGEST, "more than 262,144 characters"),
        ("a: [" + "1," * 3000 + "]", "more than 3,000 values"),
        ('a: "\\ud800"', "line 1, column 4: a lone surrogate"),
        ('a: 1\nb: "\\U00110000"', "line 2: an escape sequence that is not a valid character"),
        ("[" * 200_000, "nested too deeply"),
    ],
    ids=["long", "many", "half", "escape", "deep"],
)
def test_yaml_that_is_no_recipe(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MOST", 3000)
    with pytest.raises(YamlProblem, match=message):
        parse(text)


def test_two_halves_are_a_character() -> None:
    assert parse('a: "\\ud83d\\ude00 😀"').tree == {"a": "😀 😀"}


def test_very_many_problems_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("".join(f"k{n}: 1\n" for n in range(300)))
    with pytest.raises(RecipeError) as caught:
        recipe.load(tmp_path / "a.yaml")
    assert len(caught.value.problems) == 101 and caught.value.problems[-1][1] == "and 204 more"


@pytest.mark.parametrize("odd", ["../x", "a/b", "..", ".x", "/x", "a\0b", "a\\b", "a\nb", "a\x1b", ""])
def test_names_that_become_paths_lead_nowhere(odd: str) -> None:
    for key, value in (("name", odd), ("task.languages", [odd])):
        with pytest.raises(RecipeError):
            recipe.load("local_text", [f"{key}={json.dumps(value)}"])


ODD = [
    "../x",
    "/x",
    "a/b",
    "a%2Fb",
    "..",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "\u202ex",
    "\udce9",
    "日" * 200,
    "x" * 300,
]


def test_results_are_beside_each_other_whatever_they_are_of(tmp_path: Path) -> None:
    """A subset may be any language of a row, and a kind of task any name that custom code registers."""
    files = [RunDir(tmp_path).eval(EvaluationOptions().result_name(odd)) for odd in (*ODD, "x" * 301)]
    files += [RunDir(tmp_path).eval(EvaluationOptions(subsets=(odd,)).result_name("x")) for odd in ODD]
    for file in files:
        write_json(file, {})
        assert file.parent == tmp_path / "eval" and file.name.isprintable()
    assert {*(tmp_path / "eval").iterdir()} == {*files} and len({*files}) == len(files)
    assert EvaluationOptions(subsets=("en", "日本")).result_name("qa") == "qa-en+日本"


# --- files that vanish --------------------------------------------------------------------------------------

_left: list[int] = []
"""Files that may be opened before the folder that they are in vanishes."""
_doomed: list[Path] = []
GONE = (FileNotFoundError,)


def _vanish(event: str, arguments: tuple[object, ...]) -> None:
    if (
        _left
        and event in ("open", "os.listdir", "os.scandir")
        and str(arguments[0]).startswith(str(_doomed[0]))
    ):
        _left[0] -= 1
        if not _left[0]:
            _left.clear()
            shutil.rmtree(_doomed[0])


sys.addaudithook(_vanish)


def _whatever_vanishes(
    folder: Path, call: Callable[[], object], told_by: tuple[type[OSError], ...] = ()
) -> int:
    """Have a folder vanish before each of the files in it is opened; how many there are.

    Args:
        told_by: what may say so beside a `UserError`; the shell makes a sentence of it that names the file.
    """
    kept = folder.with_name("kept")
    folder.rename(kept)
    for count in range(1, 100):
        shutil.copytree(kept, folder)
        _doomed[:], _left[:] = [folder], [count]
        try:
            read(call, folder.name)
        except told_by as error:
            assert str(error.filename).startswith(str(folder))
        finally:
            over = bool(_left)
            _left.clear()
        if over:
            shutil.rmtree(kept)
            return count - 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.tsv.gz"])
def test_data_vanish(tmp_path: Path, name: str) -> None:
    from mrt5cli.data.sources import open_source

    content = DATA[name.removesuffix(".gz")] * (1 if "parquet" in name or ".json" in name else 9)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = FilesSource(kind="files", path=str(tmp_path / "data"))
    assert _whatever_vanishes(tmp_path / "data", lambda: rows(tmp_path / "data" / name)) > 0
    assert _whatever_vanishes(tmp_path / "data", lambda: open_source(source, ["en"])) > 1


def test_what_is_of_a_run_vanishes(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    shutil.copy(shipped()["quickstart"], run.recipe_path)
    run.meta_path.write_text('{"status": "running"}')
    run.metrics_path.write_text('{"step": 1}\n')
    (run.path / "eval").mkdir()
    shutil.copy(Path(__file__).parents[1] / "fixtures" / "results_v1" / "vowel_removal.json", run.eval("x"))
    for call in (run.state, run.recipe, run.metrics, run.check_not_foreign):
        _whatever_vanishes(run.path, call, GONE)
    assert _whatever_vanishes(run.path, lambda: SavedEvaluation.read(run.eval("x"))) == 1


def test_a_checkpoint_vanishes(golden_dir: Path, tmp_path: Path) -> None:
    from mrt5cli.models import load
    from mrt5cli.models.weights import weight_names

    folder = tmp_path / "checkpoint"
    shutil.copytree(golden_dir / "models" / "mrt5_g2", folder)
    assert _whatever_vanishes(folder, lambda: load(folder), GONE) > 2
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    assert _whatever_vanishes(folder, lambda: weight_names(folder), GONE) > 1


# --- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def shards(golden_dir: Path, tmp_path: Path) -> Iterator[Callable[[object], Path]]:
    """Writes a checkpoint whose index names one file."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden_dir / "models" / "mrt5_g2", folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", tmp_path / "outside.safetensors")

    def write(name: object) -> Path:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        return folder

    yield write


OUTSIDE = [
    "../outside.safetensors",
    "x/../../outside.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    None,
    5,
    ["a"],
]
OUTSIDE += ["a\0b", "a\nb", "\ud800", "x" * 300, {"a": "b"}, True]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_an_index_leads_to_files_beside_it(shards: Callable[[object], Path], name: object) -> None:
    from mrt5cli.models.weights import weight_names

    with pytest.raises(CheckpointError, match=r"is not an index of weights \(it names .*, which is not a"):
        weight_names(shards(name))


def test_a_link_may_lead_out_of_a_folder(shards: Callable[[object], Path], tmp_path: Path) -> None:
    from mrt5cli.models.weights import weight_names

    folder = shards("blobs/link.safetensors")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    assert "shared.weight" in weight_names(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 10**9},
        {"architectures": 5},
        {"num_layers": 10**400},
        {"num_hidden_layers": 10**9},
        {"head_dim": 1.5},
        {"base_model_tp_plan": True},
        {"relative_attention_num_buckets": -(10**400)},
        {"sigmoid_mask_scale": -(10**400)},
        {"sigmoid_mask_scale": -1e308},
        {"is_encoder_decoder": False},
        {"return_dict": False},
        {"output_hidden_states": "x"},
        {"output_attentions": 1.5},
    ],
    ids=repr,
)
def test_odd_fields_of_a_configuration(golden_dir: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    import torch

    from mrt5cli.models import load

    shutil.copytree(golden_dir / "models" / "mrt5_g2", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text()) | fields
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    ids = torch.tensor([[70, 71, 1]])
    read(lambda: load(tmp_path / "odd")(input_ids=ids, labels=ids), "odd")


@pytest.mark.parametrize(
    "fields", [{"max_new_tokens": "x"}, {"watermarking_config": 5}, {"suppress_tokens": 5}]
)
def test_odd_fields_of_generation(golden_dir: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    from mrt5cli.models import load

    shutil.copytree(golden_dir / "models" / "mrt5_g2", tmp_path / "odd")
    (tmp_path / "odd" / "generation_config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"odd: generation_config.json cannot be used"):
        load(tmp_path / "odd")


@pytest.mark.parametrize(
    "content", ["", "[" * 200_000, '{"tokenizer_class": 5, "auto_map": {"AutoTokenizer": "/x"}}']
)
def test_a_tokenizer_beside_a_model_is_not_read(golden_dir: Path, tmp_path: Path, content: str) -> None:
    """Bytes need none; the tokenizer files are read by transformers alone."""
    from mrt5cli.models import load

    shutil.copytree(golden_dir / "models" / "mrt5_g2", tmp_path / "odd")
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (tmp_path / "odd" / name).write_text(content)
    assert read(lambda: load(tmp_path / "odd"), "odd") is None


def test_a_checkpoint_in_a_folder_whose_name_is_no_text(golden_dir: Path, tmp_path: Path) -> None:
    from mrt5cli.models import load

    for name in (b"latin\xe9", b"line\nbreak\x1b[31m"):
        folder = tmp_path / os.fsdecode(name)
        shutil.copytree(golden_dir / "models" / "mrt5_g2", folder)
        assert read(lambda folder=folder: load(folder), "latin", "line") is None
        (folder / "model.safetensors").write_bytes(b"x")
        error = read(lambda folder=folder: load(folder), r"latin\udce9", r"line\nbreak\x1b[31m")
        assert error is not None and "\n" not in error.message


# --- terminals ----------------------------------------------------------------------------------------------

EVIL = "a\x1b[31mb\x1b]8;;http://x\x07c\rd\x08\x9be\u202e\u2066"
SHOWN = r"a\x1b[31mb\x1b]8;;http://x\x07c\rd\x08\x9be\u202e\u2066"


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert visible(EVIL + "\n\tx") == SHOWN + "\n\tx"
    assert visible("a\n\tb", lines=False) == r"a\n\tb"
    assert visible("a\u200fb\udce9", lines=False) == r"a\u200fb\udce9" and visible("א\u200f") == "א\u200f"
    assert visible("naïve 日本 😀 שלום [red]") == "naïve 日本 😀 שלום [red]"
    assert UserError(f"{EVIL}\nx").message == SHOWN + r"\nx"
    assert UserError("a\nb", None, ["c\nd", EVIL]).message == f"a\\nb\nc\\nd\n{SHOWN}"
    error = RecipeError(EVIL, [(EVIL, f"{EVIL}\nx"), ("b", "c")])
    assert error.message.count("\n") == 2 and "\x1b" not in error.message


def test_every_way_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mrt5cli.bars import bars
    from mrt5cli.commands.tables import print_table
    from mrt5cli.text import say, say_on_stderr

    say(EVIL)
    say_on_stderr(EVIL)
    print_table(["name"], [[EVIL], ["[link=x]y[/link]"]])
    with bars("reading", "rows") as bar:
        assert bar is not None
        bar(EVIL, 1, 2)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 2 and err.count(SHOWN) == 2 and "[link=x]y[/link]" in out
    assert not set(out + err) & set("\x1b\x07\r\x08\x9b\u202e\u2066")


def test_names_of_files_in_messages(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m\nb.jsonl"
    file.write_bytes(b"x\n")
    error = read(lambda: rows(file), r"a\x1b[31m\nb.jsonl, line 1: not JSON")
    assert error is not None and "\n" not in error.message
