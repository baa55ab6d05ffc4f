"""What names of files and folders say, and what becomes of a folder: splits, languages, pieces, leftovers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import pytest

from mrt5cli.data import folders
from mrt5cli.data.formats import FORMATS, UNPACKED_BY
from mrt5cli.data.languages import language_meant
from mrt5cli.data.sources import MemoryText, StreamedText, open_source
from mrt5cli.data.splits import SPLITS, read_name
from mrt5cli.data.texts import Found, find_files
from mrt5cli.errors import UserError
from mrt5cli.recipe import FilesSource, XnliTask
from mrt5cli.tasks.base import build_task


def fill(folder: Path, *names: str) -> Path:
    """Files with a paragraph each that says where it is from."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".jsonl":
            file.write_text(json.dumps({"text": f"from {name}"}) + "\n")
        else:
            file.write_text(f"from {name}\n\nmore from {name}\n")
    return folder


def found(folder: Path, *languages: str) -> Found:
    return find_files(folder, languages or ("en",))


def splits(folder: Path, language: str = "en") -> dict[str, list[str]]:
    return {
        split: [str(file.relative_to(folder)) for file in files]
        for split, files in found(folder, language).languages[language].items()
    }


NAMES: dict[str | None, str] = {
    "train": "train Train TRAIN training wiki_train wiki.train train-en train_0 train.en trainset wikiTrain "
    "trainData train-00000-of-00002 c4-train.00000-of-01024 2020_train_v2 train/a data/train/part-1/a "
    "Training/a train1/a",
    "validation": "validation valid val dev Dev eval wiki_val wiki.dev.txt dev-en valid_0 val2017 devSet "
    "validation-00001-of-00002 dev/a eval/x en-valid devel evaluate validate",
    "test": "test Test wiki_test wiki.test.en test-en test_0 testing test2 heldout held-out hold_out tst2013 "
    "test/a testset devtest TEST-00000-of-00001 test_oov newstest2014",
    None: "wiki a contest latest restrained values device develop/me 2020 protest/a intrain",
}
CASES = [(split, name) for split, names in NAMES.items() for name in names.split()]


@pytest.mark.parametrize(("split", "name"), CASES)
def test_every_usual_name_of_a_split(split: str | None, name: str) -> None:
    said = "".join(read_name(PurePath(name)).splits)
    assert ("validation" if said == "eval" else said or None) == split


@pytest.mark.parametrize(
    "names",
    [
        ("train/x.txt", "test/x.txt", "validation/x.txt"),
        ("wiki_train.txt", "wiki_test.txt", "wiki_validation.txt"),
        ("wiki.train.txt", "wiki.test.txt", "wiki.valid.txt"),
        ("Train.txt", "Test.txt", "Validation.txt"),
        ("train-en.txt", "test-en.txt", "validation-en.txt"),
        ("train_0.txt", "test_0.txt", "validation_0.txt"),
        ("train.txt", "test.txt", "dev.txt"),
        ("en/train.txt", "en/test.txt", "en/val.txt"),
        ("train/en/x.txt", "test/en/x.txt", "eval/en/x.txt"),
        ("TRAIN.JSONL", "TEST.JSONL", "DEV.JSONL"),
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl", "val-00000-of-00001.jsonl"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_text_is_not_trained_on(tmp_path: Path, names: Sequence[str], streaming: bool) -> None:
    fill(tmp_path, *names)
    source = FilesSource(kind="files", path=str(tmp_path), streaming=streaming)
    text = open_source(source, ["en"])
    train, test, validation = names
    assert text.splits == [f"train: {train}", f"validation: {validation}", f"test: {test}"]
    if isinstance(text, StreamedText):
        stream = text.train("en", key=(1,))
        stream.endless = False
        content = stream.take(10**6).tobytes().decode("utf-8", "replace")
    else:
        content = text.corpus("en", "train", 1).buffer.tobytes().decode("utf-8", "replace")
    assert f"from {train}" in content and test not in content and validation not in content


def test_a_folder_that_is_called_as_the_split_decides(tmp_path: Path) -> None:
    fill(tmp_path, "train/how-to-test.txt", "train/b.txt", "test/train-of-thought.txt")
    assert splits(tmp_path) == {
        "train": ["train/b.txt", "train/how-to-test.txt"],
        "test": ["test/train-of-thought.txt"],
    }


def test_eval_is_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, "train.txt", "eval.txt")
    assert splits(tmp_path) == {"train": ["train.txt"], "validation": ["eval.txt"]}
    fill(tmp_path, "dev.txt")
    assert splits(tmp_path) == {"train": ["train.txt"], "validation": ["dev.txt"], "test": ["eval.txt"]}
    fill(tmp_path, "test.txt")
    with pytest.raises(UserError, match=r"has validation and test files, and eval.txt could be either"):
        splits(tmp_path)


def test_mixtures_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a", "train.txt", "test.txt", "more.txt")
    with pytest.raises(
        UserError, match=r"has files for test, train, and files that name no split: more.txt"
    ) as caught:
        splits(tmp_path / "a")
    assert "into a folder train/" in str(caught.value.hint)
    fill(tmp_path / "b", "train_test.txt")
    with pytest.raises(UserError, match=r"train_test.txt names two splits, test and train"):
        splits(tmp_path / "b")
    fill(tmp_path / "c", "train/dev.txt")
    with pytest.raises(UserError, match=r"train/dev.txt names two splits, train and validation"):
        splits(tmp_path / "c")


def test_pieces_that_are_missing_are_said(tmp_path: Path) -> None:
    fill(tmp_path, "train-00000-of-00002.txt", "test-00000-of-00001.txt", "dev-00002-of-00003.txt")
    remarks = found(tmp_path).remarks
    assert remarks == [
        f"{tmp_path}: only 1 of 3 pieces found, such as dev-00002-of-00003.txt",
        f"{tmp_path}: only 1 of 2 pieces found, such as train-00000-of-00002.txt",
    ]
    fill(tmp_path, "train-00001-of-00002.txt")
    assert len(found(tmp_path).remarks) == 1
    for names in (
        ("a-0-of-2.txt", "a-1-of-2.txt", "a-0-of-1.txt"),
        ("b-0-of-2.txt", "b-1-of-2.txt", "b-2-of-2.txt"),
    ):
        folder = fill(tmp_path / names[-1], *names)
        with pytest.raises(UserError, match="are not pieces of one set"):
            found(folder)
    # Some count from 1.
    fill(tmp_path / "b", "train-1-of-2.txt", "train-2-of-2.txt")
    assert found(tmp_path / "b").remarks == []


# --- what is left out ---------------------------------------------------------------------------------------


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fill(
        tmp_path / "data", "sub/a.txt", ".hidden/b.txt", "__MACOSX/._a.txt", "notes.docx", "README.txt"
    )
    fill(tmp_path / "outside", "en2/d.txt")
    fill(tmp_path, "c.txt")
    (data / "linked.txt").symlink_to(tmp_path / "c.txt")
    (data / "more").symlink_to(tmp_path / "outside/en2")
    (data / "again").symlink_to(data / "sub")
    (data / "loop").symlink_to(data)
    (data / "dead.txt").symlink_to(tmp_path / "gone.txt")
    (data / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    there = found(data)
    names = [str(file.relative_to(data)) for file in there.languages["en"]["train"]]
    assert names == ["linked.txt", "more/d.txt", "sub/a.txt"]
    [remark] = there.remarks
    assert remark.startswith(f"8 entries of {data} left out: ")
    for part in (
        "closed/ (permission denied)",
        ".hidden/, __MACOSX/ (hidden)",
        "notes.docx (of an unsupported format)",
        "README.txt (about the data)",
        "again/, loop/ (a link to what is already included)",
        "dead.txt (a dangling link)",
    ):
        assert part in remark


def test_rows_say_what_they_leave_out_too(tmp_path: Path) -> None:
    row = json.dumps({"premise": "a", "hypothesis": "b", "label": 0}) + "\n"
    for name in ("wiki_train.jsonl", "Dev/en.jsonl", "test/en.jsonl", "more.jsonl", "test.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(row)
    task = build_task(
        XnliTask.model_validate(
            {"kind": "xnli", "source": {"kind": "files", "path": str(tmp_path)}, "languages": ["en"]}
        )
    )
    assert task.splits() == ["train: wiki_train.jsonl", "validation: Dev/en.jsonl", "test: test/en.jsonl"]
    [remark] = task.remarks()
    assert "test.pdf (of an unsupported format); more.jsonl (not named after a split)" in remark
    assert task.example("test") == ("Premise: a Hypothesis: b", "0")
    other = row.replace("{", '{"language": "de-DE", ')
    (tmp_path / "test/en.jsonl").write_text(other + row.replace("{", '{"language": "en-GB", ') + row)
    task = build_task(task.section)  # type: ignore[attr-defined]
    assert len(task.rows("test", "en")) == 2  # type: ignore[attr-defined]
    assert "1 row left out, which en.jsonl has in de" in task.remarks()


# --- languages ----------------------------------------------------------------------------------------------


def test_names_of_languages() -> None:
    for said, asked, meant in (
        ("en", ["en"], "en"),
        ("EN", ["en"], "en"),
        ("en_US", ["en"], "en"),
        ("eng_Latn", ["en"], "en"),
        ("English", ["en"], "en"),
        ("de-DE", ["en"], None),
        ("de-DE", ["en", "de"], "de"),
        ("zh_tw", ["zh", "zh-TW"], "zh-TW"),
        ("zh-Hant-TW", ["zh"], "zh"),
        ("zh", ["zh-TW"], None),
        ("en", ["EN"], "EN"),
        ("en", ["EN", "no", "en"], "EN"),
        ("ceb", ["ceb"], "ceb"),
        ("Python", ["en"], None),
    ):
        assert language_meant(said, tuple(asked)) == meant, said


def test_folders_of_languages_in_any_spelling(tmp_path: Path) -> None:
    fill(tmp_path, "english/a.txt", "DE/a.txt", "zh_TW/a.txt", "loose.txt")
    there = found(tmp_path, "en", "de", "zh-TW")
    assert {
        language: str(files["train"][0].relative_to(tmp_path)) for language, files in there.languages.items()
    } == {
        "en": "english/a.txt",
        "de": "DE/a.txt",
        "zh-TW": "zh_TW/a.txt",
    }
    assert there.remarks == [f"1 entry of {tmp_path} left out: loose.txt (outside the language folders)"]
    assert "DE/a.txt, zh_TW/a.txt (in de, zh, not in task.languages)" in found(tmp_path, "en").remarks[0]


def test_languages_beyond_the_papers_beside_one_that_is_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "a", "train.en.txt", "train.pl.txt", "test.en.txt", "test.pl.txt")
    assert splits(tmp_path / "a") == {"train": ["train.en.txt"], "test": ["test.en.txt"]}
    fill(tmp_path / "b", "europarl.de-en.de.txt", "europarl.de-en.en.txt")
    assert splits(tmp_path / "b") == {"train": ["europarl.de-en.en.txt"]}
    fill(tmp_path / "c", "wiki_en/a.txt", "wiki_de/a.txt")
    assert splits(tmp_path / "c") == {"train": ["wiki_en/a.txt"]}


def test_files_about_the_data(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a.jsonl",
        "README.en.txt",
        "LICENSE-2.0.txt",
        "LICENSE_MIT.txt",
        "copyright.txt",
        "index.json",
    )
    fill(tmp_path, "dataset_card.json", "eval_results.json", "train_config.json")
    assert splits(tmp_path) == {"train": ["a.jsonl"]}
    assert "8 entries of" in found(tmp_path).remarks[0]


def test_languages_in_the_names_of_files(tmp_path: Path) -> None:
    fill(tmp_path, "wiki.en.txt", "wiki.de.txt")
    assert splits(tmp_path) == {"train": ["wiki.en.txt"]}
    assert splits(tmp_path, "de") == {"train": ["wiki.de.txt"]}
    both = found(tmp_path, "en", "de")
    assert both.by_language and len(both.languages["de"]["train"]) == 1
    # Words that could be languages are no languages where not every file has one.
    fill(tmp_path / "b", "how_it_is.txt", "el_quijote.txt", "novel.txt")
    assert len(splits(tmp_path / "b")["train"]) == 3
    fill(tmp_path / "c", "train-de.txt", "test-de.txt")
    with pytest.raises(UserError, match="has files for de, but none for en"):
        found(tmp_path / "c", "de", "en")
    [remark] = found(tmp_path / "c", "en").remarks
    assert remark.startswith("the files are named after de but are read as en; ")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "en/x.jsonl"])
def test_rows_that_say_another_language_are_left_out(
    tmp_path: Path, name: str, streaming: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    rows = [{"text": f"row {n} of words", "language": ("en-GB", "de-DE")[n % 2]} for n in range(40)]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name.endswith("jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "x.csv":
        csv.write_csv(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    text = open_source(FilesSource(kind="files", path=str(tmp_path), streaming=streaming), ["en"])
    if isinstance(text, StreamedText):
        stream = text.train("en", key=(1,))
        stream.endless = False
        content = stream.take(10**6).tobytes().decode("utf-8", "replace")
        assert "rows left out, because their column 'language' names another language, such as 'de-DE'" in (
            capsys.readouterr().err.replace("\n  ", " ")
        )
    else:
        assert isinstance(text, MemoryText)
        content = text.corpus("en", "train", 1).buffer.tobytes().decode("utf-8", "replace")
        assert any("20 in 'de-DE'" in remark for remark in text.remarks())
    assert "row 6 of" in content and not any(f"row {n} of" in content for n in range(1, 40, 2))
    with pytest.raises(UserError, match=r"no rows in fr|no text|but none for fr"):
        fr = open_source(FilesSource(kind="files", path=str(tmp_path), streaming=streaming), ["fr"])
        assert isinstance(fr, StreamedText)
        fr.train("fr", key=(1,)).take(1)


def test_the_readme_lists_every_format_and_only_words_that_are_read() -> None:
    text = (Path(__file__).parents[2] / "mrt5cli" / "data" / "README.md").read_text(encoding="utf-8")
    assert [suffix for suffix in (*FORMATS, *UNPACKED_BY) if f"`{suffix}`" not in text] == []
    rows = re.findall(r"^\| (train|validation|test) \| (`.*) \|$", text, re.MULTILINE)
    assert [split for split, _ in rows] == list(SPLITS)
    for split, words in rows:
        for word in re.findall(r"`(\w+)`", words):
            for name in (word, f"wiki_{word}", f"{word.capitalize()}Data"):
                said = read_name(PurePath(name)).splits
                assert said == {"eval" if word.startswith("eval") else split}, name
