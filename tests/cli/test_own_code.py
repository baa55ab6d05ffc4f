"""--code: a shortener in a file of the user's own is trained, saved and loaded again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrt5cli import cli, own_code
from mrt5cli.cli import app
from mrt5cli.models import shorteners as modules
from mrt5cli.recipe import shorteners as sections
from mrt5cli.recipe.section import take_in_added_kinds
from mrt5cli.rundir import RunDir

OWN = '''
"""Every nth byte stays."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from mrt5cli.models import shorteners as modules
from mrt5cli.recipe import shorteners as sections


@sections.register
class Nth(sections.Placed):
    """Every nth byte stays."""

    deletion_types = ("every_nth",)
    fields = {"layer": "delete_gate_layer", "n": "nth_that_stays"}
    paper_name = called = "every-nth gate"
    about = "{model} that deletes by position."
    gates = True
    refuses_threshold = "keeps every {n}th byte"

    kind: Literal["nth"]
    n: Annotated[int, Field(ge=2)] = Field(2, description="of so many bytes one stays")

    def phrase(self):
        return f"all but every {self.n}th byte deleted"


@modules.register
class NthGate(modules.Gate):
    deletion_types = ("every_nth",)
    own_fields = {"nth_that_stays": 2}

    def __init__(self, config):
        super().__init__(config)
        self.n = config.nth_that_stays
        self.bonus = torch.nn.Parameter(torch.zeros(()))

    @classmethod
    def check(cls, config):
        if config.nth_that_stays < 2:
            raise ValueError(f"nth_that_stays {config.nth_that_stays} deletes nothing")

    def score(self, states, padding, input_ids):
        stays = torch.arange(padding.shape[1], device=padding.device) % self.n == 0
        values = torch.where(stays, self.bonus.clamp(max=0), self.bonus + self.scale).expand(padding.shape)
        return values.masked_fill(padding, self.scale), None
'''

RECIPE = """
name: own
description: A shortener of one's own
task: {kind: vowel_removal, length: 12, eval_examples: 8}
model:
  start: scratch
  shape: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
  shortener: {kind: nth, layer: 1, n: 3}
training: {max_steps: 2, batch_size: 4, device_batch_size: 4, logging_steps: 1}
evaluation: {examples: 8, batch_size: 4}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with the file and a recipe; what is registered is forgotten again."""
    (tmp_path / "nth.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    before = list(sections.SHORTENERS), dict(modules.SHORTENERS)
    yield
    sections.SHORTENERS[:] = before[0]
    modules.SHORTENERS.clear()
    modules.SHORTENERS.update(before[1])
    own_code._imported.clear()
    take_in_added_kinds()


def mrt5(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done


def test_trained_saved_and_loaded_again():
    done = mrt5("pretrain", "own.yaml", "--out", "run", "--device", "cpu", "--code", "nth.py")
    assert "mrt5 evaluate run --code nth.py" in done.output
    saved = json.loads(Path("run/model/config.json").read_text())
    assert (saved["deletion_type"], saved["nth_that_stays"]) == ("every_nth", 3)
    [row] = json.loads(mrt5("evaluate", "run", "--code", "nth.py", "--device", "cpu", "--json").stdout)[
        "models"
    ][0]["rows"]
    assert row["deletion_rate"] == pytest.approx(2 / 3, abs=0.01)  # 8 of 12 bytes
    timed = mrt5("bench", "run", "--what", "precision", "--limit", "8", "--code", "nth.py", "--json")
    assert json.loads(timed.stdout)["suites"][0]["rows"][0]["deletion_rate"] == row["deletion_rate"]
    converted = mrt5("convert", "run", "copy", "--to", "mrt5", "--code", "nth.py").stdout
    assert "all but every 3th byte deleted before encoder block 1" in converted
    why = mrt5("inspect-deletions", "copy", "--code", "nth.py", "--text", "x", "--threshold", "-3", code=2)
    assert "keeps every 3th byte, so --threshold -3 has no meaning" in why.output
    for layout, reason in {"hub": "comes with --code", "reference": "'every_nth'"}.items():
        assert reason in mrt5("convert", "run", "x", "--to", layout, "--code", "nth.py", code=2).output
    assert not Path("x").exists()


def test_without_the_file_the_kind_is_not_known():
    told = mrt5("recipe", "check", "own.yaml", code=2).output
    assert "no such kind: 'nth'" in told and "one of your own comes with --code FILE" in " ".join(
        told.split()
    )
    assert "no such kind" not in mrt5("recipe", "check", "own.yaml", "--code", "nth.py").output
    shown = mrt5(
        "recipe", "show", "own.yaml", "--code", "nth.py", "--set", "model.shortener.n=1", code=2
    ).output
    assert "expected a whole number of at least 2, not 1" in shown


def test_how_to_go_on_names_the_file(tmp_path: Path):
    own_code.import_file(Path("nth.py"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert RunDir(tmp_path).resume_command.endswith("--resume --code nth.py")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        ("x = 1 / 0", "cannot be imported: ZeroDivisionError: division"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_imported(content: str | None, reason: str):
    if content is not None:
        Path("wrong.py").write_text(content)
    assert reason in mrt5("recipe", "show", "quickstart", "--code", "wrong.py", code=2).output


def test_a_fault_in_it_is_told_by_its_line(capsys: pytest.CaptureFixture[str]):
    Path("faulty.py").write_text("def fails():\n    return 1 / 0\n")
    own_code.import_file(Path("faulty.py"))
    [module] = [module for name, module in sys.modules.items() if name.endswith("_faulty")]
    with pytest.raises(ZeroDivisionError) as caught:
        module.fails()
    assert own_code.place_in(caught.value) == "faulty.py, line 2"
    message, hint, code = cli._unexpected(caught.value)
    assert message == "faulty.py, line 2: ZeroDivisionError: division by zero"
    assert "bug in mrt5cli" not in hint and code == 1


def test_two_of_one_name_are_refused():
    own_code.import_file(Path("nth.py"))
    with pytest.raises(ValueError, match="there is a shortener 'every_nth' already: Nth"):
        sections.register(type("Other", (sections.Placed,), {"deletion_types": ("every_nth",)}))
    with pytest.raises(ValueError, match="'random' already"):
        modules.register(type("Other", (modules.Gate,), {"deletion_types": ("random",)}))


def test_a_suite_trains_it_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch):
    Path("recipes").mkdir()
    Path("own.yaml").rename("recipes/own.yaml")
    monkeypatch.setattr("mrt5cli.recipe.loading.shipped_directory", lambda: Path("recipes"))
    Path("mine.yaml").write_text("experiments:\n- {id: all, title: All, recipes: [own]}\n")
    done = mrt5("reproduce", "mine.yaml", "--code", "nth.py", "--device", "cpu", "--json")
    assert {job["id"]: job["status"] for job in json.loads(done.stdout)["jobs"]} == {
        "train own seed 42": "done",
        "evaluate own seed 42 vowel_removal": "done",
    }
