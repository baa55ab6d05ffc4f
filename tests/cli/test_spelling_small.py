"""The real task that needs no Hub, from data to table. Minutes: `make test-slow`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrt5cli.cli import app

pytestmark = pytest.mark.slow

NAMES = ("byt5", "mrt5", "random")


def mrt5(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def total(model: dict[str, Any]) -> dict[str, Any]:
    [row] = [row for row in model["rows"] if row["subset"] == "total"]
    return dict(row)


def test_three_models_correct_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ("--window", "32", "--common", "300", "--per-pair", "60")
    mrt5("data", "build", "spelling", "data/spelling_small", *size)
    mrt5("pretrain", "spelling_small_byt5")
    mrt5("finetune", "spelling_small")
    mrt5("finetune", "spelling_small_random")
    runs = [f"runs/spelling-small-{name}-seed42" for name in NAMES]

    models = json.loads(mrt5("evaluate", *runs, "--json"))["models"]
    byt5, learned, random = (total(model) for model in models)

    # Copying the input is right in 0 % of the sentences.
    assert byt5["sequence_accuracy"] > 0.4
    assert learned["deletion_rate"] == pytest.approx(0.35, abs=0.05)
    assert random["deletion_rate"] == pytest.approx(0.35, abs=0.01)
    assert learned["sequence_accuracy"] > random["sequence_accuracy"] + 0.05
    assert learned["sequence_accuracy"] > byt5["sequence_accuracy"] - 0.1
    assert byt5["source_removed_sequence_accuracy"] < 0.01
