"""Every command on a terminal of 40 columns: lines are broken between words, and tables become paragraphs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.commands.tables import print_table

WIDTH = 40


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def check_fits(told: str) -> None:
    """No line is too long that could be broken: a word, an argument in quotes, a command."""
    whole = re.compile(r"\s*(\S+|'[^']*'\S*)|.*(mrt5|torchrun) .*")
    for line in told.splitlines():
        assert cell_len(line) <= WIDTH or whole.fullmatch(line), line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("recipe schema training", "optimizer steps over which the learning"),
        ("recipe list", "model MrT5 40 % (p)"),
        ("recipe show nothing", "neither a file nor the name of a shipped recipe"),
        ("recipe check pctrl40 --no-build --set training.max_steps=x", "expected a whole number from 1"),
        ("reproduce --dry-run --only xnli_v3/mrt5_50", "to do: 3 jobs"),
        ("pretrain quickstart --dry-run", "the recipe quickstart_byt5 trains it"),
        ("evaluate nothing/here/at/all", "nothing/here/at/all does not exist"),
    ],
)
def test_what_commands_say(command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mrt5(*command.split())
    check_fits(result.stdout + result.stderr)
    assert words in " ".join((result.stdout + result.stderr).replace("\\\n", "").split())


def test_a_run_from_its_plan_to_its_deletions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = mrt5("pretrain", "local_text", "--smoke", "--out", "tiny", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    for command in ("evaluate tiny --limit 4", "pretrain local_text --smoke --out tiny"):
        result = mrt5(*command.split())
        check_fits(done.stderr + result.stdout + result.stderr)
    inspected = mrt5("inspect-deletions", "tiny", "--limit", "2")
    check_fits(inspected.stderr + inspected.stdout[inspected.stdout.index("tiny deletes") :])
    table = mrt5("evaluate", "tiny", "--limit", "4").stdout
    assert "\ntiny\n  deleted %" in table and "\nsource removed\n  loss" in table
    assert json.loads(mrt5("evaluate", "tiny", "--limit", "4", "--json").stdout)["limit"] == 4


def test_a_table_that_fits_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["", "a\nb", "c/\nd"], [["one", "1", "-"], ["", "2", "3"]])
    assert capsys.readouterr().out.splitlines()[2].startswith("──")


def test_a_table_that_does_not_fit_is_told_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    headers = ["job", "a\nb", "c/\nd", ""]
    why = "a reason that is longer than what is left"
    print_table(headers, [["one", "1", "-", why], ["", "2", "3", ""], ["two", "4", "", "short"]])
    assert capsys.readouterr().out.splitlines() == [
        "job: one",
        "  a b  1",
        "  a reason that is longer than what is",
        "    left",
        "  a b  2",
        "  c/d  3",
        "",
        "job: two",
        "  a b  4",
        "  short",
    ]
