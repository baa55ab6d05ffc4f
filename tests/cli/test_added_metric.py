"""What mrt5cli/metrics/README.md says of metrics: the table of all, and a custom one, used as it says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_kinds import forgotten
from typer.testing import CliRunner

import mrt5cli.metrics
from mrt5cli import own_code
from mrt5cli.cli import app
from mrt5cli.metrics.catalog import MEASURED, METRICS
from mrt5cli.metrics.scoring import alone, number, scored

PAGE = Path(mrt5cli.metrics.__file__).with_name("README.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Add a metric\n")[2].partition("\n## ")[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the file that a reader copies."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    (name,) = re.findall(r"save it as `(\w+\.py)`", SECTION)
    (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield tmp_path / name


def test_the_page_lists_every_metric_with_its_unit_and_direction() -> None:
    table = PAGE.partition("\n## Every metric\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w*) ?\|", table, re.MULTILINE)
    assert rows == [(one.name, one.unit, one.better or "") for one in MEASURED]


@pytest.mark.parametrize(
    ("answer", "accepted", "score"),
    [
        ("1995-03-03", ["1995-03-03"], 1.0),
        ("1995-03-04", ["1995-03-03"], 2 / 3),
        ("", ["1995-03-03"], 0.0),
        ("none", ["no number"], 1.0),
        ("7 and 8", ["9", "8"], 1.0),
    ],
)
def test_the_added_metric_scores_an_answer(
    folder: Path, answer: str, accepted: list[str], score: float
) -> None:
    own_code.import_file(folder)
    assert METRICS["numbers_kept"].chooses and METRICS["numbers_kept"].text(score) == f"{100 * score:.2f}"
    assert alone("numbers_kept", scored("numbers_kept", [answer], [accepted])) == [pytest.approx(score)]
    assert number("numbers_kept", [answer, ""], [accepted, ["1"]]) == pytest.approx(score / 2)


@pytest.mark.ci
def test_the_commands_train_and_evaluate_with_it(folder: Path) -> None:
    commands = re.findall(r"^(mrt5 (?:.*\\\n)*.*)$", SECTION, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
    best = json.loads(Path("runs/numbers/meta.json").read_text())["best"]
    assert best["metric"] == "numbers_kept"
    found = json.loads(Path("runs/numbers/eval/text2text.json").read_text())["models"][0]["rows"]
    assert [0 <= row["others"]["numbers_kept"] <= 1 for row in found] == [True]


@pytest.mark.ci
def test_the_example_in_python_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## From Python\n")[2], flags=re.DOTALL)
    exec(code, {})
    assert re.findall(r"print\(\w+\)  # (.*)", code) == capsys.readouterr().out.splitlines()
