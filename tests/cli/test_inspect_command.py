"""`mrt5 inspect-deletions`: what goes is shown, counted, told as JSON; a sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import NO_GATE, SPANS, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "mrt5": make_run(folder, "mrt5"),
        "byt5": make_run(folder, "byt5", shortener=NO_GATE),
        "spans": make_run(folder, "spans", task=SPANS),
    }


def inspect(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["inspect-deletions", *map(str, arguments), "--device", "cpu"])


def document(*arguments: object) -> dict[str, Any]:
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ids_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def test_text(runs: dict[str, Path]) -> None:
    text = "Wo ist das? где это?"
    result = inspect(runs["mrt5"], "--text", text)

    assert result.exit_code == 0, result.output
    assert "[-" in result.stdout
    assert "[-...-] deleted" in result.stdout
    assert "\x1b" not in result.stdout
    assert "trained on strings that begin with '#'" in result.stderr
    told = document(runs["mrt5"], "--text", text)
    assert [i for row in told["rows"] for i in row["ids"] if i != 1] == ids_of(text)
    assert len(told["rows"]) == 2, "pieces of the recipe's 16 positions"
    assert f"deletes {told['deleted']} of {told['positions']} positions" in result.stdout
    assert told["deletion_rate"] == pytest.approx(told["deleted"] / told["positions"])
    assert sum(sum(row["deleted"]) for row in told["rows"]) == told["deleted"]
    assert sum(kind["count"] for kind in told["kinds"]) == told["positions"]
    assert {kind["kind"] for kind in told["kinds"]} >= {"Cyrillic: lead bytes", "spaces", "EOS"}
    assert all(kind["kind"] in result.stdout for kind in told["kinds"])
    assert "gate_precision" not in told


def test_the_runs_own_task(runs: dict[str, Path]) -> None:
    result = inspect(runs["mrt5"])

    assert result.exit_code == 0, result.output
    assert result.stdout.count("target: ") == 5
    assert "of the letters it deletes" in result.stdout
    told = document(runs["mrt5"], "--limit", 3)
    assert len(told["rows"]) == 3
    for row in told["rows"]:
        left = [i for i, needless in zip(row["ids"], row["deletable"], strict=True) if not needless]
        assert left[-len(row["target"]) :] == row["target"], (
            "a target is the source without what is deletable"
        )
    assert 0 <= told["gate_precision"] <= 1


def test_span_corruption_names_its_sentinels(runs: dict[str, Path]) -> None:
    result = inspect(runs["spans"], "--limit", 2)

    assert result.exit_code == 0, result.output
    assert "S0⟩" in result.stdout
    assert "sentinels" in result.stdout
    assert "example 2, " in result.stdout
    assert "target" not in result.stdout


def test_another_task(runs: dict[str, Path]) -> None:
    told = document(runs["mrt5"], "--task", "span_corruption", "--limit", 1)

    assert any(kind["kind"] == "sentinels" for kind in told["kinds"])


def test_threshold(runs: dict[str, Path]) -> None:
    few = document(runs["mrt5"], "--text", "some plain words", "--threshold", -29)
    many = document(runs["mrt5"], "--text", "some plain words", "--threshold", -0.5)

    assert few["deleted"] < many["deleted"]
    assert few["threshold"] == -29


def test_a_file_of_any_bytes(runs: dict[str, Path], tmp_path: Path) -> None:
    raw = bytes(range(256)) * 2
    (tmp_path / "raw").write_bytes(raw)

    told = document(runs["mrt5"], "--file", tmp_path / "raw", "--limit", 99)

    assert [i - 3 for row in told["rows"] for i in row["ids"] if i != 1] == list(raw)
    assert any(kind["kind"] == "bytes that are not UTF-8" for kind in told["kinds"])


def test_a_long_file_is_cut_and_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 200)

    result = inspect(runs["mrt5"], "--file", tmp_path / "long.txt", "--limit", 2)

    assert "only the first 30 of 1,000 bytes are inspected" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{byt5}", "--text", "abc"], "byt5-seed3 has no delete gate: a plain ByT5 deletes nothing"),
        (["{mrt5}", "--text", ""], "--text is empty"),
        (["{mrt5}", "--file", "{mrt5}/nothing.txt"], "nothing.txt: does not exist"),
        (["{mrt5}", "--file", "{mrt5}"], "is a directory"),
        (["{mrt5}", "--text", "a", "--task", "copy"], "give one of --text, --file and --task"),
        (["{mrt5}", "--text", "a", "--threshold", "3"], "gate values run from -30 (delete) to 0 (keep)"),
        (["{mrt5}/checkpoints"], "is neither a run (no recipe.yaml) nor a checkpoint"),
        (["{mrt5}", "--task", "speling"], "no recipe 'speling'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], sentence: str, runs: dict[str, Path]
) -> None:
    result = inspect(*(argument.format(**runs) for argument in arguments))

    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


def test_an_empty_file(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    result = inspect(runs["mrt5"], "--file", tmp_path / "empty")

    assert result.exit_code == 2
    assert "empty is empty: there is nothing to delete" in result.stderr


@pytest.mark.parametrize(("setting", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_only_on_a_terminal_that_wants_it(
    setting: dict[str, str], coloured: bool, runs: dict[str, Path]
) -> None:
    """A pseudo-terminal stands for the user's."""
    import pty

    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mrt5cli",
        "inspect-deletions",
        str(runs["mrt5"]),
        "--text",
        "hello there",
    ]
    with subprocess.Popen(
        command,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**environment, **setting, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux reports that the other side has closed
            pass
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    os.close(ours)

    assert process.returncode == 0, errors
    text = shown.decode()
    assert ("\x1b[2;9m" in text) == coloured
    assert ("[-" in text) == (not coloured)


def test_a_pipe_that_cannot_hold_the_marks_gets_their_codes(runs: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "mrt5cli", "inspect-deletions", str(runs["mrt5"]), "--text", "жест"]

    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"},
    )

    assert done.returncode == 0, done.stderr.decode()
    assert b"\\u27e8EOS\\u27e9" in done.stdout
