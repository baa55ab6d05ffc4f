"""What mrt5cli/tasks/README.md says on adding a task: its two files, used as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def block(language: str, beginning: str) -> str:
    """Its code block in a language that begins so."""
    blocks = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "mrt5cli" / "tasks" / "README.md").read_text(), re.DOTALL
    )
    [found] = [text for text in blocks if text.startswith(beginning)]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the new task, its recipe and some data."""
    (tmp_path / "pronunciation.py").write_text(block("python", '"""Grapheme to phoneme'))
    (tmp_path / "pronunciation.yaml").write_text(block("yaml", "name: pronunciation"))
    lexicon = tmp_path / "lexicon"
    lexicon.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number}\tw o r d {number}" for number in range(20)]
        (lexicon / f"{split}.tsv").write_text("word\tphonemes\n" + "\n".join(rows) + "\n")
    return tmp_path


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mrt5cli", *words, "--code", "pronunciation.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_file_and_one_recipe_make_a_task(folder: Path):
    run(folder, "recipe", "check", "pronunciation.yaml")
    # Its own rows in its own files, on a model of no size.
    shape = "{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 4, num_decoder_layers: 1}"
    small = ["training.max_steps=4", "training.batch_size=4", "training.device_batch_size=4"]
    small += ["training.eval_steps=2", f"model.shape={shape}"]
    words = [word for setting in small for word in ("--set", setting)]
    run(folder, "pretrain", "pronunciation.yaml", "--out", "run", "--device", "cpu", *words)
    document = json.loads(run(folder, "evaluate", "run", "--device", "cpu", "--limit", "10", "--json"))
    [row] = document["models"][0]["rows"]
    assert (row["subset"], row["examples"]) == ("all", 10)
    assert "wo" in run(folder, "inspect-deletions", "run", "--device", "cpu", "--limit", "1").replace(
        "[-", ""
    )


def test_a_smoke_run_generates_its_rows(folder: Path):
    run(folder, "pretrain", "pronunciation.yaml", "--smoke", "--out", "smoke", "--device", "cpu")
    recipe = (folder / "smoke" / "recipe.yaml").read_text()
    assert "kind: generated" in recipe
