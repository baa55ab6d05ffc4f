"""text2text: every format and option, splits by a hash, mixtures, the Hub, and what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
from collections import Counter
from datetime import date
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import hubsim
import pyarrow as pa
import pytest
from hub_server import HubServer
from pyarrow import parquet

from mrt5cli.byte_tokens import decode
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import Recipe, Text2TextTask, load, smoke
from mrt5cli.subject import Subject, choose_task
from mrt5cli.tasks import build_task
from mrt5cli.tasks.text2text import Text2Text

PAIRS = [
    {"noisy": f"teh {number} {'x' * (7 * number % 31)} ключ", "clean": f'a "b",\t{number}\nword'}
    for number in range(40)
]
SHAPES = {"input": "Correct: {noisy}", "target": "{clean}"}
SECTION = {"kind": "text2text", **SHAPES}


def task(path: Path, **settings: Any) -> Text2Text:
    split = {"split": settings.pop("split")} if "split" in settings else {}
    return of({"source": {"kind": "files", "path": str(path), **split}} | settings)


def of(settings: dict[str, Any]) -> Text2Text:
    made = build_task(section(**settings))
    assert isinstance(made, Text2Text)
    return made


def section(**settings: Any) -> Text2TextTask:
    return Text2TextTask.model_validate_json(json.dumps(SECTION | settings))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the file's name says, unpacked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(written(path.suffix, rows), encoding="utf-8", newline="")
    return path


def written(suffix: str, rows: list[dict[str, Any]]) -> str:
    if suffix == ".json":
        return json.dumps(rows)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def pairs(made: Text2Text, split: str, part: str = "all") -> list[tuple[str, str]]:
    if split == "train":
        return [(row["input"], row["targets"][0]) for row in made.rows(split, part).to_pylist()]
    return [
        (decode(source), decode(target))
        for batch in made.held_out(split, part, batch_size=7)
        for source, target in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def everything(made: Text2Text, part: str = "all") -> list[tuple[str, str]]:
    splits = [split for split in ("train", "validation", "test") if made.parts(split)]
    return [pair for split in splits for pair in pairs(made, split, part)]


def refused(made: Text2Text) -> UserError:
    with pytest.raises(UserError) as caught:
        made.example("train")
    return caught.value


EXPECTED = sorted((f"Correct: {row['noisy']}", row["clean"]) for row in PAIRS)

# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_formats(tmp_path: Path, suffix: str, folder: bool) -> None:
    file = write(tmp_path / f"pairs{suffix}", PAIRS)
    made = task(tmp_path if folder else file)
    assert sorted(everything(made)) == EXPECTED
    assert made.splits()[0] == f"train: pairs{suffix}"


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_packed(tmp_path: Path, suffix: str, packed: str) -> None:
    content = written(suffix, PAIRS).encode()
    with pa.CompressedOutputStream(pa.OSFile(str(tmp_path / "zst"), "wb"), "zstd") as stream:
        stream.write(content)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(packed)
    file = tmp_path / f"pairs{suffix}{packed}"
    file.write_bytes(pack(content) if pack else (tmp_path / "zst").read_bytes())
    assert sorted(everything(task(file))) == EXPECTED


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\r\n", "\n").encode(),
    ],
    ids=["bom", "utf-16", "lf"],
)
def test_encodings_and_ends_of_lines(tmp_path: Path, encode: Any) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(encode(written(".csv", PAIRS)))
    assert sorted(everything(task(file))) == EXPECTED


def test_a_nul_is_a_byte_like_others(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [{"noisy": "a\0b", "clean": "\0"}])
    made = task(file, split={"validation": 0, "test": 0})
    assert pairs(made, "train") == [("Correct: a\0b", "\0")]
    assert next(iter(made.train_stream(batch_size=1, seed=1)))["labels"].tolist() == [[3, 1]]


def test_a_long_line_is_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"noisy": "x" * 2**20, "clean": "y" * 2**20}, {"noisy": "a", "clean": "b"}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    made = task(tmp_path, input_length=32, target_length=16)
    assert made.truncated("test", "all") == 1
    assert made.describe().endswith("32 -> 16 byte tokens at most (1 source, 1 target cut)")
    batch = next(iter(made.held_out("test", "all", batch_size=2)))
    assert batch["input_ids"].shape == (2, 32) and batch["labels"].shape == (2, 16)
    assert made.references("test", "all")[0] == ("y" * 2**20,), "references are whole"


# --- cells --------------------------------------------------------------------------------------------------


def test_numbers_and_truths_are_written(tmp_path: Path) -> None:
    values = [1, 1.5, 10**20, True, False, "007", "1.50"]
    rows = [{"noisy": value, "clean": value} for value in values]
    texts = ["1", "1.5", "100000000000000000000", "true", "false", "007", "1.50"]
    made = task(write(tmp_path / "train.jsonl", rows), split={"validation": 0, "test": 0})
    assert [target for _, target in pairs(made, "train")] == texts
    made = task(write(tmp_path / "train.csv", rows), split={"validation": 0, "test": 0})
    assert [target for _, target in pairs(made, "train")][3:] == ["True", "False", "007", "1.50"], (
        "as they stand"
    )


def test_cells_of_parquet(tmp_path: Path) -> None:
    values = [pa.array([0.1], pa.float32()), [date(2024, 2, 29)], [Decimal("1.50")], [b"caf\xc3\xa9"]]
    for number, value in enumerate([*values, pa.array(["x"]).dictionary_encode()]):
        parquet.write_table(pa.table({"noisy": value, "clean": value}), tmp_path / f"train-{number}.parquet")
        made = task(tmp_path / f"train-{number}.parquet", split={"validation": 0, "test": 0})
        text = ["0.1", "2024-02-29", "1.50", "café", "x"][number]
        assert pairs(made, "train") == [(f"Correct: {text}", text)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_within_columns(tmp_path: Path, suffix: str) -> None:
    rows = [{"translation": {"en": f"e{n}", "more": {"fr": f"f{n}"}}} for n in range(3)]
    settings = {"input": "{translation.en}", "target": "{translation.more.fr}"}
    made = task(write(tmp_path / f"train{suffix}", rows), **settings, split={"validation": 0, "test": 0})
    assert pairs(made, "train") == [(f"e{n}", f"f{n}") for n in range(3)]
    rows = [{**row, "translation.en": "own"} for row in rows]
    made = task(write(tmp_path / f"train{suffix}", rows), **settings, split={"validation": 0, "test": 0})
    assert pairs(made, "train")[0] == ("own", "f0"), "a column that is called so wins"


def test_several_targets_and_references(tmp_path: Path) -> None:
    rows = [
        {"noisy": "a", "clean": ["b", "c"], "also": ["c", "d"]},
        {"noisy": "e", "clean": "f", "also": None},
        {"noisy": "g", "clean": ["h"], "also": "i"},
    ]
    for suffix in (".jsonl", ".json"):
        write(tmp_path / f"train{suffix}", rows)
        write(tmp_path / f"test{suffix}", rows)
        made = task(tmp_path, references_column="also")
        assert [target for _, target in pairs(made, "test")] == ["b", "f", "h"], "the first is trained on"
        assert made.references("test", "all") == [("b", "c", "d"), ("f",), ("h", "i")]
        assert made.references("test", "all", 1) == [("b", "c", "d")]
        for file in tmp_path.iterdir():
            file.unlink()


def test_the_same_column_on_both_sides_is_one_text(tmp_path: Path) -> None:
    made = task(write(tmp_path / "train.tsv", [{"a": "x"}]), input="{a}", target="{a}")
    assert pairs(made, "train") == [("x", "x")]


def test_a_target_around_columns(tmp_path: Path) -> None:
    rows = [{"noisy": "a", "clean": "b", "n": 3}]
    made = task(write(tmp_path / "train.jsonl", rows), target="{clean} {{{n}}}")
    assert pairs(made, "train") == [("Correct: a", "b {3}")]


def test_languages(tmp_path: Path) -> None:
    rows = [{"noisy": f"x{n}", "clean": "y", "lang": ["en", "de", "tlh"][n % 3]} for n in range(300)]
    made = task(write(tmp_path / "p.tsv", rows), language_column="lang", input="{lang}: {noisy}")
    assert made.subsets("test") == ["de", "en", "tlh"] and made.language_of("tlh") == "tlh"
    assert all(source.startswith("de: ") for source, _ in pairs(made, "test", "de"))
    assert "test of de, en, tlh" in made.describe()
    assert len(pairs(made, "train")) + sum(
        len(pairs(made, split, part)) for split in ("validation", "test") for part in made.subsets(split)
    ) == len(rows)
    written_nowhere = [*rows, {"noisy": "x", "clean": "y", "lang": " "}]
    error = refused(task(write(tmp_path / "p.tsv", written_nowhere), language_column="lang"))
    assert error.message.endswith("p.tsv, line 302: column 'lang' holds nothing, expected a language")


def test_the_language_may_be_the_target(tmp_path: Path) -> None:
    rows = [{"noisy": f"x{n}", "lang": ["en", "de"][n % 2]} for n in range(200)]
    made = task(write(tmp_path / "p.jsonl", rows), language_column="lang", target="{lang}")
    assert {target for _, target in pairs(made, "test", "de")} == {"de"}
    assert made.subsets("test") == ["de", "en"]


def test_choices(tmp_path: Path) -> None:
    rows = [{"noisy": "a", "clean": "yes"}, {"noisy": "b", "clean": "maybe"}]
    settings = {"choices": ["yes", "no"], "metrics": ["accuracy", "cer"]}
    made = task(write(tmp_path / "train.tsv", rows[:1]), **settings)
    assert made.choices == ("yes", "no") and made.measures == ("accuracy", "cer")
    error = refused(task(write(tmp_path / "train.tsv", rows), **settings))
    assert "line 3: the target is 'maybe', which is not in task.choices: yes, no" in error.message


# --- splits -------------------------------------------------------------------------------------------------


def homes(made: Text2Text) -> dict[tuple[str, str], str]:
    return {pair: split for split in ("train", "validation", "test") for pair in pairs(made, split)}


MANY = [{"noisy": f"n{number}", "clean": f"c{number}"} for number in range(2000)]


def test_a_hash_holds_rows_out_and_leaves_them_where_they_are(tmp_path: Path) -> None:
    split = {"validation": 0.1, "test": 0.2}
    before = homes(task(write(tmp_path / "a.tsv", MANY), split=split))
    sizes = Counter(before.values())
    assert 150 < sizes["validation"] < 250 and 330 < sizes["test"] < 470
    other = [{"noisy": "new", "clean": "new"}, *reversed(MANY[:1000]), *MANY[1500:], *MANY[1000:1500]]
    after = homes(task(write(tmp_path / "b.jsonl", other), split=split))
    assert {pair: after[pair] for pair in before} == before, "in another order, file and format"
    reworded = homes(task(tmp_path / "a.tsv", split=split, input="Fix this. {noisy}"))
    assert list(reworded.values()) == list(before.values()), "nor does a prompt move them"


def test_another_share_of_one_split_leaves_the_other(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", MANY)
    one, other = (task(file, split={"validation": share, "test": 0.2}) for share in (0.0, 0.3))
    assert pairs(one, "test") == pairs(other, "test")
    assert one.subsets("validation") == [] and other.subsets("validation") == ["all"]


def test_more_rows_than_are_held_at_a_time(tmp_path: Path) -> None:
    rows = [{"noisy": f"n{n}", "clean": [f"c{n}", "or"], "l": "ab"[n % 2]} for n in range(9001)]
    made = task(write(tmp_path / "train.jsonl", rows), split={"validation": 0, "test": 0.5})
    trained, tested = pairs(made, "train"), pairs(made, "test")
    assert len(trained) + len(tested) == 9001 and abs(len(trained) - len(tested)) < 500
    places = [int(target[1:]) for _, target in trained]
    assert places == sorted(places) and {f"Correct: n{n}" for n in places} == {
        source for source, _ in trained
    }
    assert all(also == "or" for _, also in made.references("test", "all"))
    divided = task(tmp_path / "train.jsonl", language_column="l", split={"validation": 0, "test": 0.5})
    assert sorted(pairs(divided, "test", "a") + pairs(divided, "test", "b")) == sorted(tested)


def test_rows_with_one_input_stay_together(tmp_path: Path) -> None:
    rows = [{"noisy": row["noisy"], "clean": clean} for row in MANY[:300] for clean in ("a", "b", "a")]
    made = task(write(tmp_path / "a.tsv", rows), target="{clean}!", split={"validation": 0.3, "test": 0.3})
    found = [{source for source, _ in pairs(made, split)} for split in ("train", "validation", "test")]
    assert sum(map(len, found)) == 300 == len(set.union(*found))
    assert sum(len(pairs(made, split)) for split in ("train", "validation", "test")) == 900


def test_what_was_held_out_is_said(tmp_path: Path) -> None:
    made = task(write(tmp_path / "pairs.tsv", MANY), split={"test": 0.125})
    assert made.splits() == ["train: pairs.tsv"], "before anything is read"
    rows = {split: len(pairs(made, split)) for split in ("validation", "test")}
    assert made.splits()[1:] == [
        f"{split}: {rows[split]} of 2,000 training rows, a share of {share} % by a hash of their inputs"
        for split, share in (("validation", "5"), ("test", "12.5"))
    ]
    assert (
        f"{2000 - sum(rows.values()):,} training and {rows['validation']} validation rows" in made.describe()
    )


def test_a_split_that_comes_out_empty(tmp_path: Path) -> None:
    made = task(write(tmp_path / "pairs.tsv", MANY[:3]))
    assert made.subsets("validation") == [] and len(pairs(made, "train")) == 3
    assert "validation: none of 3 training rows" in "; ".join(made.splits())
    made.describe()
    alone = task(write(tmp_path / "pairs.tsv", MANY[:1]), split={"validation": 0.5, "test": 0.499})
    error = refused(alone)
    assert "by the hash of its input, each of 1 row falls into" in error.message
    assert error.hint == "add rows, or lower task.source.split"


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.tsv", "dev.tsv", "test.tsv"], ["train: train.tsv", "validation: dev.tsv", "test: test.tsv"]),
        (["train/a.tsv", "train/b.tsv", "test.tsv"], ["train: train/a.tsv, train/b.tsv", "test: test.tsv"]),
        (["pairs.tsv", "test.tsv"], ["train: pairs.tsv", "test: test.tsv"]),
        (["a.tsv", "b.tsv", "more/c.tsv"], ["train: a.tsv, b.tsv, more/c.tsv"]),
        (
            ["p-00000-of-00002.tsv", "p-00001-of-00002.tsv"],
            ["train: p-00000-of-00002.tsv, p-00001-of-00002.tsv"],
        ),
    ],
    ids=lambda names: "+".join(names) if "." in names[0] and ":" not in names[0] else "",
)
def test_names_say_splits(tmp_path: Path, files: list[str], splits: list[str]) -> None:
    for number, name in enumerate(files):
        write(tmp_path / name, MANY[number::3])
    made = task(tmp_path, split={"validation": 0, "test": 0})
    assert made.splits() == splits
    trained = [row for number, name in enumerate(files) if name in splits[0] for row in MANY[number::3]]
    assert sorted(pairs(made, "train")) == sorted(
        (f"Correct: {row['noisy']}", row["clean"]) for row in trained
    )


def test_a_file_beside_training_files_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("train.tsv", "more.tsv"):
        write(tmp_path / name, MANY[:100])
    made = task(tmp_path)
    assert len(homes(made)) == 100
    assert made.remarks() == [f"1 entry of {tmp_path} left out: more.tsv (named after no split)"]


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["a.csv", "b.tsv"], "they may be the same rows over again: keep those of one format"),
        (["train.csv", "train.jsonl"], "they may be the same rows over again: keep those of one format"),
        (["a.tsv", "a.tsv.gz"], "keep one of them"),
        (["a1.tsv", "a1.tsv.gz"], "keep one of them"),
        (["train-a.tsv", "train-b.tsv"], "keep one of them"),
    ],
    ids=["formats", "formats-of-a-split", "packed-and-not", "packed-and-not-numbered", "two-of-a-split"],
)
def test_files_that_may_be_the_same_rows(tmp_path: Path, files: list[str], hint: str) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"several files for train: {files[0]}, {files[1]}") as caught:
        task(tmp_path)
    assert str(caught.value.hint).startswith(hint)


def test_a_file_of_a_held_out_split_alone(tmp_path: Path) -> None:
    made = task(write(tmp_path / "test.tsv", PAIRS[:3]))
    assert (
        sorted(pairs(made, "test")) == sorted((f"Correct: {row['noisy']}", row["clean"]) for row in PAIRS[:3])
        and made.subsets("validation") == []
    )
    assert "has no files of train; it has test" in refused(made).message


# --- what is refused ----------------------------------------------------------------------------------------

HEAD = "noisy\tclean\n"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("p.tsv", "nosy\tclean\na\tb\n", "p.tsv, line 1: no column 'noisy'; it has nosy, clean; did you mean "
         "'nosy'?", "task.input and task.target name columns"),
        ("p.tsv", "teh\tthe\n", "p.tsv, line 1: no column 'noisy'; it has teh, the", "in the first line"),
        ("p.csv", "noisy;clean\na;b\n", "no column 'noisy'; it has noisy;clean", "be separated by ';'"),
        ("p.csv", "noisy\tclean\na\tb\n", "no column 'noisy'; it has noisy\\tclean", "separated by '\\t'"),
        ("p.jsonl", '{"noisy": "a"}\n', "p.jsonl, line 1: no column 'clean'; it has noisy", "task.target"),
        ("p.jsonl", '{"noisy": {"en": "a"}, "clean": "b"}\n', "line 1: column 'noisy' holds columns of its "
         "own (en), which are named with a dot", None),
        ("p.jsonl", '{"noisy": ["a"], "clean": "b"}\n', "column 'noisy' holds ['a'], expected text", None),
        ("p.jsonl", '{"noisy": "a", "clean": []}\n', "line 1: column 'clean' holds an empty list", None),
        ("p.jsonl", '{"noisy": "a", "clean": [null]}\n', "line 1: column 'clean' holds nothing", None),
        ("p.jsonl", '\n{"noisy": "a", "clean": null}\n', "line 2: column 'clean' holds nothing", None),
        ("p.jsonl", '{"noisy": NaN, "clean": "b"}\n', "line 1: column 'noisy' holds nan", None),
        ("p.jsonl", '{"noisy": "a", "clean"\n', "p.jsonl, line 1: not JSON", None),
        ("p.jsonl", '["a"]', "p.jsonl, row 1: a row must be an object of columns", None),
        ("p.jsonl", "[]", "p.jsonl holds no rows", "after the names of its columns"),
        ("p.tsv", "", "p.tsv holds no rows", "after the names of its columns"),
        ("p.tsv", HEAD, "p.tsv holds no rows", "after the names of its columns"),
        ("p.csv", "noisy,clean\n,\n , \n", "p.csv holds no rows", "2 rows left out, with nothing in it"),
        ("p.tsv", HEAD + "a\n", "p.tsv, line 2: 1 cell, expected 2 (noisy, clean)", "put in double quotes"),
        ("p.csv", 'noisy,clean\n"a,b\n', "p.csv cannot be read: line 2: a quote lacks its pair", None),
        ("p.tsv", HEAD.encode() + b"\xc3\xa9\tb\ncaf\xe9\tb\n", "line 3: not UTF-8: byte 0xe9", "iconv"),
        ("p.tsv", "noisy\tnoisy\tclean\n", "p.tsv, line 1: several columns are called 'noisy'", "rename"),
        ("p.parquet", b"PAR1 and no more", "p.parquet cannot be read as Parquet", None),
        ("p.txt", "a b", "p.txt is of a format that is not read", "separated by tabs .tsv"),
        ("train_test.tsv", HEAD, "says test and train, and can be of one split only", "rename it"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, name: str, content: str | bytes, message: str, hint: str | None) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        task(tmp_path / name).example("train")
    assert message in caught.value.message.replace("train and test", "test and train")
    assert hint is None or hint in str(caught.value.hint)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist") as caught:
        task(tmp_path / "nowhere")
    assert str(caught.value.hint).startswith("expected a file, or a folder with files")
    (tmp_path / "notes.pdf").write_text("")
    with pytest.raises(UserError, match=r"has no train, validation or test files \(found: 1 .pdf\)"):
        task(tmp_path)


def test_rows_with_nothing_are_left_out_and_those_with_half_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("noisy,clean,id\na,b,1\n,,2\nc,,3\n,d,4\n , ,5\n")
    made = task(tmp_path, split={"validation": 0, "test": 0})
    assert pairs(made, "train") == [("Correct: a", "b"), ("Correct: c", ""), ("Correct: ", "d")]
    assert made.remarks() == [
        "2 rows left out, with nothing in it",
        "rows with an empty text, taken as they are: 2 of train",
    ]


# --- order --------------------------------------------------------------------------------------------------


def drawn(made: Text2Text, batches: int, **settings: Any) -> list[str]:
    stream = made.train_stream(**({"batch_size": 4, "seed": 3} | settings))
    return sources(stream, batches)


def sources(stream: Any, batches: int) -> list[str]:
    return [decode(source) for batch in islice(stream, batches) for source in batch["input_ids"]]


def test_each_pass_has_every_row_once_and_is_resumed_anywhere(tmp_path: Path) -> None:
    made = task(write(tmp_path / "a.tsv", MANY[:40]), split={"validation": 0, "test": 0})
    whole = drawn(made, 30)
    assert all(len(set(whole[start : start + 40])) == 40 for start in (0, 40, 80))
    assert whole[:40] != whole[40:80] and drawn(made, 30, seed=4) != whole
    stream = made.train_stream(batch_size=4, seed=3)
    stream.load_state_dict({"start_batch": 13})
    again = pickle.loads(pickle.dumps(stream))
    assert sources(again, 17) == whole[52:]
    ranks = [drawn(made, 15, rank=rank, world_size=2) for rank in (0, 1)]
    for at in range(0, 60, 4):
        assert sorted(row for rank in ranks for row in rank[at : at + 4]) == sorted(
            whole[2 * at : 2 * at + 8]
        )


def mixture(tmp_path: Path, **settings: Any) -> Text2Text:
    write(tmp_path / "ocr.tsv", MANY[:300])
    write(tmp_path / "g2p.jsonl", [{"word": f"w{n}", "sounds": [f"s{n}", "or"]} for n in range(200)])
    sources = [
        {"kind": "files", "path": str(tmp_path / "ocr.tsv"), "weight": 3},
        {
            "kind": "files",
            "path": str(tmp_path / "g2p.jsonl"),
            "name": "sounds",
            "input": "Say: {word}",
            "target": "{sounds}",
        },
    ]
    return of({"sources": sources, **settings})


def test_a_mixture(tmp_path: Path) -> None:
    made = mixture(tmp_path)
    assert made.subsets("test") == ["ocr", "sounds"] and made.language_of("ocr") is None
    assert made.describe().startswith("text2text, 75 % ocr and 25 % sounds, ")
    assert all(source.startswith("Say: ") for source, _ in pairs(made, "test", "sounds"))
    assert made.references("test", "sounds")[0][1] == "or"
    assert {line.partition(",")[0] for line in made.splits()} == {"ocr", "sounds"}
    whole = drawn(made, 640)
    of_ocr = [source for source in whole if source.startswith("Correct: ")]
    assert len(of_ocr) == 0.75 * len(whole), "shares are exact over whole blocks"
    ours = {source for source, _ in pairs(made, "train", "ocr")}
    assert set(of_ocr[: len(ours)]) == ours, "and each source in passes of its own"
    stream = made.train_stream(batch_size=4, seed=3)
    stream.load_state_dict({"start_batch": 333})
    assert sources(stream, 9) == whole[1332:1368]


def test_equal_sources_have_orders_of_their_own(tmp_path: Path) -> None:
    file = {"kind": "files", "path": str(write(tmp_path / "a.tsv", MANY[:64]))}
    made = of({"sources": [{**file, "input": "0 {noisy}"}, {**file, "input": "1 {noisy}", "name": "b"}]})
    whole = drawn(made, 32)
    orders = [[source[2:] for source in whole if source.startswith(start)] for start in "01"]
    assert orders[0][:20] != orders[1][:20]
    assert len(made.subsets("test")) in (0, 2) and len(set(made.parts("train"))) == 2


def test_a_mixture_by_language(tmp_path: Path) -> None:
    for name in "ab":
        rows = [{"noisy": f"{name}{n}", "clean": "y", "l": ["en", "de"][n % 2]} for n in range(300)]
        write(tmp_path / f"{name}.tsv", rows)
    files = [{"kind": "files", "path": str(tmp_path / f"{name}.tsv")} for name in "ab"]
    made = of({"sources": files, "language_column": "l"})
    assert made.subsets("test") == ["a/de", "a/en", "b/de", "b/en"]
    assert made.language_of("b/de") == "de"
    assert all(source.startswith("Correct: b") for source, _ in pairs(made, "test", "b/de"))
    assert "a/en" in made.describe()


# --- the Hub ------------------------------------------------------------------------------------------------


def publish(hub: HubServer, splits: dict[str, list[dict[str, Any]]], name: str = "someone/words") -> None:
    def make(folder: Path) -> None:
        for split, rows in splits.items():
            write(folder / "en" / f"{split}.jsonl", rows)
        hubsim.write_card(folder, {"en": {split: f"en/{split}.jsonl" for split in splits}})

    hub.add(f"datasets/{name}", make)


def from_hub(**source: Any) -> Text2Text:
    return of({"source": {"kind": "hub", "name": "someone/words", "configuration": "en", **source}})


def test_a_dataset_of_the_hub(hub: HubServer) -> None:
    publish(hub, {"train": MANY[:50], "dev": MANY[50:60], "extra": MANY[60:65]})
    made = from_hub(splits={"test": "extra"})
    assert made.splits() == [], "nothing is asked before it is needed"
    assert len(pairs(made, "train")) == 50, "none is held out where all splits have rows"
    assert [len(pairs(made, split)) for split in ("validation", "test")] == [10, 5]
    assert made.splits() == [
        "train: train of someone/words",
        "validation: dev of someone/words",
        "test: extra of someone/words",
    ]
    assert made.commits() == {"someone/words": hub.commit("datasets/someone/words")}
    assert made.describe().startswith(
        "text2text, someone/words from the Hub, 50 training and 10 validation rows"
    )


def test_a_split_that_is_named_is_no_other_one(hub: HubServer) -> None:
    publish(hub, {"train": MANY[:500], "dev": MANY[:10]})
    made = from_hub(splits={"test": "dev"})
    assert len(pairs(made, "test")) == 10
    assert set(pairs(made, "validation")).isdisjoint(pairs(made, "train")), "held out of the training rows"


def test_a_dataset_with_one_split(hub: HubServer) -> None:
    publish(hub, {"train": MANY})
    made = from_hub(split={"test": 0.2})
    assert len(homes(made)) == 2000 and 330 < len(pairs(made, "test")) < 470


def test_what_a_dataset_does_not_have(hub: HubServer) -> None:
    publish(hub, {"validation_a": MANY[:5], "validation_b": MANY[:5], "training_set_1": MANY, "extra": MANY})
    assert len(pairs(from_hub(splits={"validation": "extra"}), "train")) > 1800
    with pytest.raises(
        UserError, match="each of validation_a, validation_b could be the validation split"
    ) as one:
        from_hub().subsets("validation")
    assert str(one.value.hint) == "say which is: task.source.splits: {validation: validation_a}"
    with pytest.raises(UserError, match=r"has no extras split; it has .*; did you mean extra\?"):
        from_hub(splits={"train": "extras"}).example("train")
    with pytest.raises(UserError, match="someone/words has no configuration 'eng'; it has en") as two:
        from_hub(configuration="eng").example("train")
    assert "task.source.configuration" in str(two.value.hint)
    publish(hub, {"train": [{"a": "b"}]}, "someone/others")
    with pytest.raises(
        UserError, match=r"someone/others, en/train.jsonl, line 1: no column 'noisy'; it has a"
    ):
        from_hub(name="someone/others").example("train")
    publish(hub, {"extra": MANY}, "someone/extras")
    with pytest.raises(UserError, match=r"someone/extras \(en\) has no train split; it has extra"):
        from_hub(name="someone/extras").example("train")


def test_a_dataset_of_rows_with_nothing(hub: HubServer) -> None:
    publish(hub, {"train": [{"noisy": None, "clean": ""}]})
    error = refused(from_hub())
    assert error.message == "someone/words from the Hub: no train rows"
    assert error.hint == "1 row left out, with nothing in it"


# --- recipes, --data, --smoke -------------------------------------------------------------------------------


def recipe(**settings: Any) -> Recipe:
    tree = {
        "name": "mine",
        "description": "mine",
        "task": SECTION | settings,
        "model": {"start": "scratch"},
        "training": {"max_steps": 1},
    }
    return Recipe.model_validate_json(json.dumps(tree))


FILE = {"kind": "files", "path": "a.tsv"}


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({}, "task.source", "missing; expected a section with kind files or hub, or `sources`"),
        ({"source": FILE, "sources": [FILE]}, "task.sources", "cannot be combined with source"),
        ({"source": {**FILE, "kind": "text"}}, "task.source.kind", "expected files, hub or generated"),
        ({"source": {"kind": "files"}}, "task.source.path", "missing"),
        ({"source": {"kind": "hub"}}, "task.source.name", "missing"),
        ({"source": FILE, "input": {"noisy": None}}, "task.input", "must be quoted"),
        ({"source": FILE, "input": "Correct:"}, "task.input", "uses no column"),
        ({"source": FILE, "target": "{clean"}, "task.target", "unmatched { at character 1"),
        ({"source": FILE, "target": "{clean:>3}"}, "task.target", "formats and conversions after"),
        ({"source": {**FILE, "split": {"tets": 0.1}}}, "task.source.split.tets", "did you mean test?"),
        ({"source": {**FILE, "split": {"test": 1}}}, "task.source.split.test", "at least 0 and below 1"),
        (
            {"source": {**FILE, "split": {"validation": 0.5, "test": 0.5}}},
            "task.source.split.test",
            "leaves no rows for training",
        ),
        ({"sources": [FILE, {**FILE, "weight": 0}]}, "task.sources[1].weight", "expected a number from"),
        ({"sources": [FILE, {**FILE, "target": "{"}]}, "task.sources[1].target", "unmatched {"),
        ({"sources": [FILE, FILE]}, "task.sources[1].name", "sources[0] is named 'a', too"),
        ({"source": FILE, "metrics": []}, "task.metrics", "must list at least 1"),
        ({"source": FILE, "metrics": ["cer", "cer"]}, "task.metrics", "listed twice: cer"),
        ({"source": FILE, "metrics": ["accuracy"]}, "task.choices", "missing; accuracy needs the list"),
        ({"source": FILE, "choices": ["a", "a"]}, "task.choices", "listed twice: a"),
    ],
)
def test_wrong_recipes(tmp_path: Path, settings: dict[str, Any], key: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    tree = {"name": "mine", "description": "mine", "task": SECTION | settings, "training": {"max_steps": 1}}
    file.write_text(json.dumps(tree))
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert {where for where, _ in caught.value.problems} == {key}
    assert message in caught.value.problems[0][1]


def test_smoke_keeps_local_rows_and_stands_in_for_the_hub(tmp_path: Path) -> None:
    file = {"kind": "files", "path": str(write(tmp_path / "a.tsv", MANY[:200]))}
    small = smoke(recipe(source=file)).task
    assert isinstance(small, Text2TextTask) and small.source is not None
    assert small.source.kind == "files" and (small.input_length, small.target_length) == (64, 16)
    hub = {"kind": "hub", "name": "someone/words", "weight": 3, "input": "Say: {word}"}
    small = smoke(recipe(sources=[file, hub], language_column="l", references_column="also")).task
    assert isinstance(small, Text2TextTask)
    assert [source.kind for source in small.sources] == ["files", "generated"]
    small = smoke(recipe(source={"kind": "hub", "name": "someone/words"}, choices=["a", "b"])).task
    assert isinstance(small, Text2TextTask)
    made = build_task(small)
    batch = next(iter(made.held_out("test", "all", batch_size=16)))
    assert {decode(target) for target in batch["labels"]} == {"a", "b"}


def test_data_takes_the_place_of_the_source(tmp_path: Path) -> None:
    other = write(tmp_path / "test.tsv", MANY[:7])
    own = recipe(sources=[{"kind": "files", "path": "nowhere.tsv", "weight": 2}])
    subject = Subject("run", "run", None, own)
    replaced = choose_task(None, subject, str(other))
    assert isinstance(replaced, Text2TextTask) and replaced.sources == []
    made = build_task(replaced)
    assert isinstance(made, Text2Text)
    assert len(pairs(made, "test")) == 7
    other.rename(tmp_path / "new.tsv")
    replaced = choose_task(None, subject, str(tmp_path / "new.tsv"))
    made = build_task(replaced)
    assert isinstance(made, Text2Text)
    assert len(pairs(made, "test")) == len(pairs(made, "validation")) == 7, (
        "a file that says no split is whole"
    )
    assert made.splits() == ["train: new.tsv", "validation: new.tsv", "test: new.tsv"]
    other = write(tmp_path / "pairs.tsv", MANY)
    trained = recipe(
        sources=[{"kind": "files", "path": str(other), "input": "Say: {noisy}", "target": "{clean}"}]
    )
    replaced = choose_task(None, Subject("run", "run", None, trained), str(tmp_path / "." / "pairs.tsv"))
    made = build_task(replaced)
    assert isinstance(made, Text2Text)
    held_out = pairs(made, "test")
    assert len(held_out) < 200 and held_out[0][0].startswith("Say: "), "what was trained on is not tested on"
    assert replaced.model_dump(mode="json")["source"]["path"] == str(other)
    with pytest.raises(UserError, match="text2text needs a recipe that names the columns of its rows"):
        choose_task("text2text", Subject("hub", "hub", None, None), str(other))


def test_what_a_task_says_of_itself(tmp_path: Path) -> None:
    made = task(write(tmp_path / "train.tsv", MANY[:9]), metrics=["cer", "exact_match"])
    assert (made.measures, made.answer_length, made.choices) == (("cer", "exact_match"), 256, None)
    assert (made.experiment, made.normalization) == (None, "none")
    assert made.example("train") == ("Correct: n0", "c0")
