"""What the README says the quickstart shows is what it shows. Minutes: `make test-slow`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mrt5cli.cli import app

pytestmark = pytest.mark.slow


def mrt5(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("seed", [42, 3])
def test_the_quickstart_is_true(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for recipe in ("quickstart_byt5", "quickstart", "quickstart_random"):
        mrt5("pretrain", recipe, "--set", f"seed={seed}")
    names = [f"quickstart-{name}-seed{seed}" for name in ("byt5", "mrt5", "random")]

    models = json.loads(mrt5("evaluate", *(f"runs/{name}" for name in names), "--json"))["models"]
    byt5, learned, random = (model["rows"][-1] for model in models)

    assert learned["deletion_rate"] == pytest.approx(0.24, abs=0.03)
    assert random["deletion_rate"] == pytest.approx(0.24, abs=0.03)
    assert learned["gate_precision"] > 0.95
    assert learned["gate_recall"] > 0.9
    assert learned["token_accuracy"] > byt5["token_accuracy"] - 0.005
    assert learned["token_accuracy"] > random["token_accuracy"] + 0.1
    assert byt5["source_removed_loss"] > byt5["loss"] + 1
