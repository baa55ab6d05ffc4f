"""--code: a task in a file of the user's own, with settings of its own, is trained and evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_kinds import forgotten
from typer.testing import CliRunner

from mrt5cli import own_code
from mrt5cli.cli import app
from mrt5cli.recipe import tasks
from mrt5cli.recipe.section import take_in_added_kinds
from mrt5cli.tasks import base

OWN = '''
"""Every word, its letters turned around and perhaps repeated."""

from typing import Annotated, Literal

from pydantic import Field

from mrt5cli.data.columns import text_column
from mrt5cli.data.generated import words
from mrt5cli.recipe.tasks import AddedTask
from mrt5cli.tasks.base import register
from mrt5cli.tasks.tables import Encoding, TableTask


class ReversalTask(AddedTask):
    """Words backwards."""

    kind: Literal["reversal"]
    times: Annotated[int, Field(ge=1, le=3)] = Field(1, description="how often the word comes")


@register("reversal", section=ReversalTask)
class Reversal(TableTask):
    columns = (text_column("word"), text_column("backwards"))
    by_language = False
    measures = ("sequence_accuracy",)

    def __init__(self, section):
        lengths = section.input_length, section.target_length
        super().__init__(section, Encoding("{word}", "backwards", *lengths))

    def generate(self, draw, part, number):
        [word] = words(draw, 1)
        return {"word": word, "backwards": self.section.times * word[::-1]}
'''
RECIPE = """
name: own
description: A task of one's own
task: {kind: reversal, source: {kind: generated, examples: 8}, times: 2}
model:
  start: scratch
  shape: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
training: {max_steps: 2, batch_size: 4, device_batch_size: 4, logging_steps: 1, data_workers: 1}
evaluation: {examples: 8, batch_size: 4}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "reversal.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield


def mrt5(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


def test_trained_and_evaluated() -> None:
    given = ("--device", "cpu", "--code", "reversal.py")
    mrt5("pretrain", "own.yaml", "--out", "run", *given)
    assert "times: 2" in Path("run/recipe.yaml").read_text()
    document = json.loads(mrt5("evaluate", "run", *given, "--json"))
    [row] = document["models"][0]["rows"]
    assert (row["subset"], row["examples"]) == ("all", 8)


def test_the_newest_run_of_it_is_found_by_its_code() -> None:
    mrt5("pretrain", "own.yaml", "--device", "cpu", "--code", "reversal.py")
    with forgotten():
        forget_reversal()
        told = mrt5("evaluate", "--task", "reversal", "--device", "cpu", "--limit", "4")
        assert "newest finished run: own-seed42" in told
    told = mrt5("evaluate", "--task", "reversals", code=2)
    assert "--task reversals: no recipe 'reversals'" in told


def forget_reversal() -> None:
    """As a process is that has not imported it yet."""
    own_code.IMPORTED.clear()
    del base._TASKS["reversal"]
    del tasks.SECTIONS[-1]
    take_in_added_kinds()


def test_recipes_know_it_only_with_the_file() -> None:
    assert "unknown kind 'reversal'" in mrt5("recipe", "check", "own.yaml", code=2)
    words = ("recipe", "show", "own.yaml", "--code", "reversal.py", "--set", "task.times=4")
    assert "task.times" in mrt5(*words, code=2)


def test_a_kind_that_is_there_is_not_taken_over() -> None:
    Path("reversal.py").write_text(OWN.replace('"reversal"', '"xnli"'))
    told = mrt5("recipe", "show", "own.yaml", "--code", "reversal.py", code=2)
    assert "there is a task 'xnli' already" in " ".join(told.split())
