"""What installed packages bring by entry points: found without a word, refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_own_code as own_shortener
import test_own_task as own_task
from own_kinds import forgotten
from typer.testing import CliRunner

from mrt5cli import own_code
from mrt5cli.cli import app
from mrt5cli.recipe import shorteners as sections
from mrt5cli.tasks import base

ROOT = Path(__file__).parents[2]
Install = Callable[..., None]


def install(where: Path, name: str, entry_points: str, **files: str) -> None:
    """A distribution as pip leaves it: modules, and a .dist-info with its name, version and entry points."""
    info = where / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, text in files.items():
        (where / f"{module}.py").write_text(text)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions where this process looks; what they bring is forgotten again."""
    site = tmp_path / "site"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    known = set(sys.modules)
    Path("own.yaml").write_text(own_task.RECIPE)
    with forgotten():
        yield lambda name, entry_points, **files: install(site, name, entry_points, **files)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(site)):
            del sys.modules[name]


def mrt5(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


TASK = "[mrt5.tasks]\nreversal = reversing\n"
SHORTENER = "[mrt5.shorteners]\nnth = every_nth\n"


def test_a_task_is_trained_and_evaluated_without_a_word(installed: Install) -> None:
    installed("reversal-task", TASK, reversing=own_task.OWN)
    mrt5("pretrain", "own.yaml", "--out", "run", "--device", "cpu")
    meta = json.loads(Path("run/meta.json").read_text())
    assert (meta["packages"], meta["code"]) == ({"reversal-task": "1.2"}, [])
    done = CliRunner().invoke(app, ["evaluate", "run", "--device", "cpu", "--json"])
    [row] = json.loads(done.stdout)["models"][0]["rows"]
    assert row["examples"] == 8


def test_a_shortener_is_found(installed: Install) -> None:
    installed("nth-gate", SHORTENER, every_nth=own_shortener.OWN)
    Path("nth.yaml").write_text(own_shortener.RECIPE)
    assert "0 problems" in mrt5("recipe", "check", "nth.yaml")
    assert "'nth'" in mrt5("recipe", "schema", "model.shortener.kind")
    [package] = own_code.PACKAGES or ()
    assert own_code.package_of(type(sections.of_type("every_nth")).__module__) is None  # of the metaclass
    assert own_code.package_of(sections.of_type("every_nth").__module__) == package
    assert str(package) == "nth-gate 1.2"


METRIC = "[mrt5.metrics]\nsame_length = lengths\n"
LENGTHS = """
from mrt5cli.metrics.catalog import Metric, register


def same_length(answer, accepted):
    return float(len(answer) in map(len, accepted))


register(Metric("same_length", "as long as the target", "same\\nlength", "share"), same_length)
"""
TEXT2TEXT = """
name: own
description: A metric of one's own
task:
  kind: text2text
  source: {kind: files, path: pairs.tsv, split: {validation: 0.3, test: 0.3}}
  input: "{a}"
  target: "{b}"
  input_length: 16
  target_length: 8
  metrics: [same_length]
model:
  start: scratch
  shape: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
training: {max_steps: 2, batch_size: 4, device_batch_size: 4, logging_steps: 1}
"""


@pytest.fixture
def pairs(installed: Install) -> None:
    Path("own.yaml").write_text(TEXT2TEXT)
    rows = (f"{number}\t{number * number}" for number in range(40))
    Path("pairs.tsv").write_text("\n".join(("a\tb", *rows)))


def test_a_metric_is_found(installed: Install, pairs: None) -> None:
    installed("length-metric", METRIC, lengths=LENGTHS)
    mrt5("pretrain", "own.yaml", "--out", "run", "--device", "cpu")
    assert json.loads(Path("run/meta.json").read_text())["packages"] == {"length-metric": "1.2"}
    done = CliRunner().invoke(app, ["evaluate", "run", "--device", "cpu", "--json"])
    [row] = json.loads(done.stdout)["models"][0]["rows"]
    assert 0 <= row["others"]["same_length"] <= 1


def test_a_metric_that_fails_is_named_where_it_is_asked_for(installed: Install, pairs: None) -> None:
    installed("length-metric", METRIC, lengths="import nowhere_to_be_found")
    told = mrt5("recipe", "check", "own.yaml", "--no-build", code=2)
    assert "the metric 'same_length' of the installed length-metric 1.2 cannot be imported" in told


def test_a_module_that_fails_is_named_where_its_kind_is_asked_for(installed: Install) -> None:
    installed("reversal-task", TASK, reversing="import nowhere_to_be_found")
    told = mrt5("recipe", "check", "own.yaml", "--no-build", code=2)
    assert "unknown kind 'reversal'" in told
    assert (
        "the task 'reversal' of the installed reversal-task 1.2 cannot be imported: ModuleNotFoundError: No "
        "module named 'nowhere_to_be_found'"
    ) in told
    assert "note:" not in told


def test_a_fault_in_it_is_told_by_its_line(installed: Install) -> None:
    installed("reversal-task", TASK, reversing=own_task.OWN.replace("word[::-1]", "word.nothing"))
    done = CliRunner().invoke(app, ["pretrain", "own.yaml", "--dry-run", "--device", "cpu"])
    place = own_code.place_in(done.exception) if done.exception else None
    assert place == "reversing.py of reversal-task 1.2, line 34"


def test_elsewhere_it_is_a_note(installed: Install, caplog: pytest.LogCaptureFixture) -> None:
    installed("reversal-task", TASK, reversing="raise SystemExit('not today')")
    assert "vowel_removal" in mrt5("recipe", "show", "quickstart")
    assert "the installed reversal-task 1.2 cannot be imported: SystemExit: not today" in caplog.text


def test_two_that_bring_one_kind_are_both_named(installed: Install) -> None:
    installed("reversal-task", TASK, reversing=own_task.OWN)
    installed("backwards", "[mrt5.tasks]\nreversal = backwards\n", backwards=own_task.OWN)
    told = mrt5("recipe", "check", "own.yaml", "--no-build", code=2)
    both = told.partition("expected")[2]
    assert "reversal-task 1.2" in both and "backwards 1.2" in both
    assert "both provide the task 'reversal', so neither is used: uninstall one" in told


def test_two_of_one_kind_under_different_names_are_both_named(
    installed: Install, caplog: pytest.LogCaptureFixture
) -> None:
    installed("a-reversal", "[mrt5.tasks]\na = reversing\n", reversing=own_task.OWN)
    installed("b-reversal", "[mrt5.tasks]\nb = backwards\n", backwards=own_task.OWN)
    mrt5("recipe", "check", "own.yaml", "--no-build")
    assert (
        "-reversal 1.2 cannot be imported: ValueError: there is a task 'reversal' already, of " in caplog.text
    )
    assert "a-reversal 1.2" in caplog.text and "b-reversal 1.2" in caplog.text


def test_code_on_the_command_line_comes_before_packages(
    installed: Install, caplog: pytest.LogCaptureFixture
) -> None:
    installed("reversal-task", TASK, reversing=own_task.OWN)
    Path("mine.py").write_text(own_task.OWN)
    mrt5("recipe", "check", "own.yaml", "--no-build", "--code", "mine.py")
    assert base._TASKS["reversal"].__module__.endswith("_mine")
    assert not caplog.text  # it is being worked on


@pytest.mark.parametrize("words", ["-m mrt5cli --help", "-m mrt5cli pretrain --help", "-c import\tmrt5cli"])
def test_nothing_is_imported_for_help(tmp_path: Path, words: str) -> None:
    install(tmp_path / "site", "loud", "[mrt5.tasks]\nloud = loud\n", loud="print('imported')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    command = [sys.executable, *words.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert "imported" not in done.stdout
