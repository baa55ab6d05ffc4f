"""Every baseline of the paper goes the whole way: trained, resumed, evaluated, inspected by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled
from tiny_runs import NO_GATE, SHORTENERS
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tiny
description: A baseline
seed: 7
task: {{kind: vowel_removal, length: 12}}
model:
  start: scratch
  shape: {{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}}
  shortener: {shortener}
  dropout: 0.1
training:
  max_steps: {steps}
  batch_size: 8
  device_batch_size: 4
  learning_rate: 3.0e-3
  logging_steps: 1
  save_steps: 3
  eval_steps: 3
evaluation: {{examples: 8, batch_size: 4}}
"""


def mrt5(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result


# Types of boundary predictors that are taught have a test of their own.
TRAINED = {"byt5": NO_GATE} | {
    name: section for name, section in SHORTENERS.items() if name not in ("bp_entropy", "bp_unigram")
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_evaluated_and_inspected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE.format(shortener=json.dumps(TRAINED[name]), steps=6))
    mrt5("pretrain", "r.yaml", "--out", "run")

    run = RunDir(tmp_path / "run")
    lines = [line for line in run.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    rates = [line["deletion_rate"] for line in lines]
    assert all(rate == 0 for rate in rates) if name == "byt5" else all(0 < rate < 1 for rate in rates)
    validated = [line["validation"] for line in run.metrics() if "validation" in line]
    assert len(validated) == 2
    row = json.loads(mrt5("evaluate", "run", "--json").stdout)["models"][0]["rows"][0]
    assert row["loss"] > 0
    if name not in ("byt5", "gone"):
        told = json.loads(mrt5("inspect-deletions", "run", "--limit", 3, "--json").stdout)
        assert len(told["rows"]) == 3


@pytest.mark.parametrize(
    "name", ["bp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp", "random"))]
)
def test_a_broken_off_run_ends_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of boundaries and of random deletion are part of what a checkpoint keeps."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE.format(shortener=json.dumps(TRAINED[name]), steps=6))
    mrt5("pretrain", "r.yaml", "--out", "whole")
    (tmp_path / "half").mkdir()
    for part in ("recipe.yaml", "meta.json", "checkpoints/step-00000003"):
        copy(tmp_path / "whole" / part, tmp_path / "half" / part)
    meta = json.loads((tmp_path / "half/meta.json").read_text())
    (tmp_path / "half/meta.json").write_text(json.dumps({**meta, "status": "running"}))
    mrt5("pretrain", "r.yaml", "--out", "half", "--resume")

    from safetensors.torch import load_file

    whole, half = (load_file(tmp_path / run / "model/model.safetensors") for run in ("whole", "half"))
    assert whole.keys() == half.keys()
    for key, weight in whole.items():
        torch.testing.assert_close(half[key], weight, atol=1e-6, rtol=0, msg=labelled(key))


def copy(source: Path, target: Path) -> None:
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
