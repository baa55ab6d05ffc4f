"""What mrt5cli/tasks/README.md says on adding a task: its two files, put where it says, and used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrt5cli.recipe.tasks import ADDED

ROOT = Path(__file__).parent.parent.parent


def block(language: str, beginning: str) -> str:
    """Its code block in a language that begins so."""
    blocks = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "mrt5cli" / "tasks" / "README.md").read_text(), re.DOTALL
    )
    [found] = [text for text in blocks if text.startswith(beginning)]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package with the new task, its recipe and some data."""
    for folder in ("mrt5cli", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mrt5cli/tasks/pronunciation.py").write_text(block("python", '"""Grapheme to phoneme'))
    (tmp_path / "pronunciation.yaml").write_text(block("yaml", "name: pronunciation"))
    lexicon = tmp_path / "lexicon"
    lexicon.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number}\tw o r d {number}" for number in range(20)]
        (lexicon / f"{split}.tsv").write_text("word\tphonemes\n" + "\n".join(rows) + "\n")
    return tmp_path


def run(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mrt5cli", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_file_and_one_recipe_make_a_task(checkout: Path):
    run(checkout, "recipe", "check", "pronunciation.yaml")
    # Its own rows in its own files, on a model of no size.
    shape = "{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 4, num_decoder_layers: 1}"
    small = ["training.max_steps=4", "training.batch_size=4", "training.device_batch_size=4"]
    small += ["training.eval_steps=2", f"model.shape={shape}"]
    words = [word for setting in small for word in ("--set", setting)]
    run(checkout, "pretrain", "pronunciation.yaml", "--out", "run", "--device", "cpu", *words)
    document = json.loads(run(checkout, "evaluate", "run", "--device", "cpu", "--limit", "10", "--json"))
    [row] = document["models"][0]["rows"]
    assert (row["subset"], row["examples"]) == ("all", 10)
    assert "wo" in run(checkout, "inspect-deletions", "run", "--device", "cpu", "--limit", "1").replace(
        "[-", ""
    )


def test_a_smoke_run_generates_its_rows(checkout: Path):
    run(checkout, "pretrain", "pronunciation.yaml", "--smoke", "--out", "smoke", "--device", "cpu")
    recipe = (checkout / "smoke" / "recipe.yaml").read_text()
    assert "kind: generated" in recipe


def test_no_file_of_this_package_is_taken_for_an_added_task():
    assert ADDED == ()
