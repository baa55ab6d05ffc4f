"""What mrt5cli/tasks/README.md says on adding a task: its files, its recipes and its commands, unchanged."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_kinds import forgotten
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.recipe import load
from mrt5cli.recipe.tasks import kinds

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "mrt5cli" / "tasks" / "README.md").read_text(encoding="utf-8")


def block(language: str, beginning: str) -> str:
    """Its code block in a language that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    [found] = [text for text in blocks if text.startswith(beginning)]
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the new task, the recipes, a metric and some data."""
    (tmp_path / "pronunciation.py").write_text(block("python", '"""Grapheme to phoneme'))
    (tmp_path / "pronunciation.yaml").write_text(block("yaml", "name: pronunciation"))
    (tmp_path / "lexicon.yaml").write_text(block("yaml", "name: lexicon"))
    (tmp_path / "metric.py").write_text(block("python", '"""Whether the answer has'))
    lexicon = tmp_path / "lexicon"
    lexicon.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number}\tw o r d {number}" for number in range(20)]
        (lexicon / f"{split}.tsv").write_text("word\tphonemes\n" + "\n".join(rows) + "\n")
    rows = [f"word{number}\tw o r d {number}" for number in range(200)]
    (tmp_path / "lexicon.tsv").write_text("word\tphonemes\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield tmp_path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


SHAPE = "{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 4, num_decoder_layers: 1}"
SMALL = [
    "training.max_steps=4",
    "training.batch_size=4",
    "training.device_batch_size=4",
    "training.eval_steps=2",
]
ON_A_SMALL_MODEL = [word for setting in (*SMALL, f"model.shape={SHAPE}") for word in ("--set", setting)]
"""A model of no size, and few steps."""


def test_the_table_lists_every_kind_with_a_section_that_is_valid(tmp_path: Path) -> None:
    start = "name: a\ndescription: b\ntraining: {max_steps: 2}\nmodel: {start: scratch}\n"
    sections = re.findall(r"^\| [^|]* \| `(\{kind: .*?\})` \|", README, re.MULTILINE)
    found = []
    for number, section in enumerate(sections):
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(f"{start}task: {section}\n")
        found.append(load(recipe).task.kind)
    assert sorted(found) == sorted(kinds())


def test_its_steps_train_and_evaluate_the_task(folder: Path) -> None:
    commands = block("sh", "mrt5 recipe check pronunciation.yaml").splitlines()
    assert [command.split()[1] for command in commands] == [
        "recipe",
        "pretrain",
        "evaluate",
        "inspect-deletions",
    ]
    outputs = [CliRunner().invoke(app, shlex.split(command)[1:]) for command in commands]
    assert [done.exit_code for done in outputs] == [0] * len(commands), [done.output for done in outputs]
    assert "kind: generated" in (folder / "runs/smoke/pronunciation-smoke-seed42/recipe.yaml").read_text()
    shown = re.search(r"\n    task     pronunciation, .*\n    example .*\n .*\n", README)
    assert shown is not None
    for line in shown[0].strip().splitlines():
        assert line.strip() in outputs[1].output
    [row] = re.findall(r"^all +8 .*$", outputs[2].stdout, re.MULTILINE)
    assert f"\n    {row.split()[0]}         8    0.00  0.0 - 32.4" in README and " 0.00  0.0 - 32.4 " in row


def test_one_file_and_one_recipe_make_a_task(folder: Path) -> None:
    run("recipe", "check", "pronunciation.yaml", "--code", "pronunciation.py")
    given = ("--out", "run", "--device", "cpu", "--code", "pronunciation.py")
    run("pretrain", "pronunciation.yaml", *given, *ON_A_SMALL_MODEL)
    document = json.loads(run("evaluate", "run", "--device", "cpu", "--limit", "10", "--json"))
    [row] = document["models"][0]["rows"]
    assert (row["subset"], row["examples"]) == ("all", 10)
    assert "wo" in run("inspect-deletions", "run", "--device", "cpu", "--limit", "1").replace("[-", "")


def test_a_recipe_alone_makes_a_task_and_a_file_brings_a_metric(folder: Path) -> None:
    metrics = ("--set", "task.metrics=[exact_match, cer, same_length]")
    given = ("--out", "run", "--device", "cpu", "--code", "metric.py")
    run("pretrain", "lexicon.yaml", *given, *ON_A_SMALL_MODEL, *metrics)
    document = json.loads(run("evaluate", "run", "--device", "cpu", "--json"))
    [row] = document["models"][0]["rows"]
    assert 2 <= row["examples"] <= 25 and row["exact_match"] == 0.0 and row["cer"] > 0
    assert 0 <= row["others"]["same_length"] <= 1
