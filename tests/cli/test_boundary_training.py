"""Boundary predictors taught by labels, through the command line: they learn, resume, and are evaluated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs_of_commands import ENVIRONMENT, MRT5, curve, start, wait_for
from safetensors.torch import load_file
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.data.boundary_labels import load as load_labels
from mrt5cli.models import load
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import build_task

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: taught
description: A boundary predictor that is taught where segments end
seed: 7
task: {kind: span_corruption, source: {kind: files, path: text}, input_length: 64}
model:
  start: scratch
  shape: {d_model: 32, d_ff: 64, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
  shortener: {kind: boundary_predictor, layer: 1, type: TYPE, label_examples: 100}
  dropout: 0.1
training:
  max_steps: 90
  batch_size: 8
  device_batch_size: 4
  learning_rate: 1.0e-2
  logging_steps: 5
  save_steps: 7
evaluation: {examples: 8, batch_size: 4}
"""
KINDS = ("entropy", "unigram")


def prepare(folder: Path, kind: str) -> None:
    """A recipe and its text: sentences of a few invented words."""
    draw = np.random.default_rng(3)
    words = [
        "".join(draw.choice(list("abcdefghijklmnoprstuvw"), size)) for size in (2, 3, 4, 4, 5, 5, 6, 7, 8, 9)
    ]
    (folder / "text").mkdir()
    for number in range(8):
        sentences = [" ".join(draw.choice(words, 12)).capitalize() + "." for _ in range(120)]
        (folder / "text" / f"{number}.txt").write_text("\n".join(sentences))
    (folder / "taught.yaml").write_text(RECIPE.replace("TYPE", kind))


def mrt5(command: str, *words: str) -> Any:
    return CliRunner().invoke(app, [command, *words])


@pytest.fixture(scope="module", params=KINDS)
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp(request.param)
    prepare(folder, request.param)
    threads, place = torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    result = mrt5("pretrain", "taught.yaml", "--out", "run", "--device", "cpu")
    os.chdir(place)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert "to 100 training examples" in result.stderr
    assert "gates" not in result.stderr and " %, on training data" in result.stderr
    return RunDir(folder / "run")


@pytest.fixture
def there(unbroken: RunDir, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the recipe, which paths in it are relative to."""
    monkeypatch.chdir(unbroken.path.parent)
    return unbroken.path.parent


def test_it_learns_the_labels(unbroken: RunDir, there: Path) -> None:
    boundary_loss = [row["loss"] - row["cross_entropy"] for row in unbroken.metrics()]
    assert np.mean(boundary_loss[-3:]) < 0.75 * boundary_loss[0]

    labeller, model = load_labels(unbroken.boundaries), load(unbroken.model).eval()
    right, ends, counted = 0, 0, 0
    for batch in build_task(unbroken.recipe().task).held_out("test", "en", batch_size=16, limit=48):
        with torch.no_grad():
            predicted = model(**batch).boundary_logits > 0
        real = batch["input_ids"] != 0
        labels = torch.from_numpy(labeller.label(batch["input_ids"].numpy()))
        right += int((predicted == labels)[real].sum())
        ends += int(labels[real].sum())
        counted += int(real.sum())
    majority = max(ends, counted - ends) / counted
    assert 1 - right / counted < 0.7 * (1 - majority), f"{right / counted} right, {majority} by guessing"


def test_what_it_leaves(unbroken: RunDir) -> None:
    assert {path.name for path in unbroken.path.iterdir()} == {
        "recipe.yaml",
        "meta.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        ".mrt5.lock",
        "boundaries.npz",
    }


def test_a_run_killed_anywhere_goes_on_as_if_unbroken(
    unbroken: RunDir, there: Path, tmp_path: Path, chance: random.Random
) -> None:
    run = RunDir(tmp_path / "run")
    lines = chance.randint(2, 12)
    print(f"to be killed after {lines} lines of metrics")
    words = ["taught.yaml", "--out", str(run.path), "--device", "cpu", "--set", "training.data_workers=1"]
    process = start(Path.cwd(), *MRT5, "pretrain", *words)
    wait_for(lambda: len(run.metrics()) >= lines, process)
    os.killpg(process.pid, signal.SIGKILL)
    told = process.communicate()[1]
    assert "fork" not in told
    assert run.meta()["status"] == "running", f"finished too soon to be killed: {lines} lines"
    killed_at = run.saved_steps()[-1]
    labels = run.boundaries.stat()

    result = mrt5("pretrain", "taught.yaml", "--out", str(run.path), "--resume", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert f"from the checkpoint of step {killed_at}" in result.stderr
    assert "fitting" not in result.stderr
    assert run.boundaries.stat().st_mtime_ns == labels.st_mtime_ns
    assert run.boundaries.read_bytes() == unbroken.boundaries.read_bytes()
    assert curve(run) == curve(unbroken)
    weights = [load_file(each.model / "model.safetensors") for each in (run, unbroken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_without_its_labels_a_run_does_not_go_on(unbroken: RunDir, there: Path, tmp_path: Path) -> None:
    import shutil

    run = RunDir(tmp_path / "run")
    shutil.copytree(unbroken.path, run.path)
    shutil.rmtree(run.model)
    run.meta_path.write_text(json.dumps({**unbroken.meta(), "status": "running"}))
    run.boundaries.unlink()
    result = mrt5("pretrain", "taught.yaml", "--out", str(run.path), "--resume", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert f"{run.boundaries} is not there" in result.stderr
    assert "Traceback" not in result.output


def test_a_run_stopped_while_it_was_fitting_starts(unbroken: RunDir, there: Path, tmp_path: Path) -> None:
    """The kill comes after the directory is open and before there are labels."""
    run = RunDir.create(tmp_path / "run")
    run.recipe_path.write_bytes(unbroken.recipe_path.read_bytes())
    run.meta_path.write_text(json.dumps({**unbroken.meta(), "status": "running"}))
    words = ["taught.yaml", "--out", str(run.path), "--resume", "--device", "cpu"]
    result = mrt5("pretrain", *words)
    assert result.exit_code == 0, result.stderr
    assert curve(run) == curve(unbroken)


def test_validation_on_the_side_changes_nothing(unbroken: RunDir, there: Path, tmp_path: Path) -> None:
    words = ["taught.yaml", "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = mrt5("pretrain", *words, "--set", "training.eval_steps=45")
    assert result.exit_code == 0, result.stderr
    rows = RunDir(tmp_path / "run").metrics()
    validated = [row["validation"]["en"] for row in rows if "validation" in row]
    assert [row["step"] for row in rows if "validation" in row] == [45, 90]
    assert 0.4 < validated[-1]["deletion_rate"] < 1.0
    assert [row for row in curve(RunDir(tmp_path / "run")) if "loss" in row] == curve(unbroken)


def test_it_is_evaluated_and_inspected_without_labels(unbroken: RunDir, there: Path) -> None:
    result = mrt5("evaluate", "run", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    result = mrt5("inspect-deletions", "run", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_a_dry_run_fits_nothing_and_says_what_it_would(there: Path, unbroken: RunDir, tmp_path: Path) -> None:
    result = mrt5("pretrain", "taught.yaml", "--out", str(tmp_path / "run"), "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "boundary predictor (entropy)" in result.stderr or "(unigram)" in result.stderr
    assert "cross-entropy + boundary loss" in result.stderr
    assert "fitting" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_read_what_one_of_them_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same examples a step, so the same curve."""
    prepare(tmp_path, "unigram")
    monkeypatch.chdir(tmp_path)
    common = ["--set", "model.dropout=0.0", "--set", "training.max_steps=12", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mrt5cli", "pretrain"]
    process = subprocess.Popen(
        [*launch, "taught.yaml", *common, "--out", "two", "--set", "training.device_batch_size=2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    result = mrt5("pretrain", "taught.yaml", *common, "--out", "one")
    assert result.exit_code == 0, result.stderr
    stderr = process.communicate(timeout=200)[1]
    assert process.returncode == 0, stderr
    assert stderr.count("fitting") == 1
    two, one = RunDir(Path("two")), RunDir(Path("one"))
    assert two.boundaries.read_bytes() == one.boundaries.read_bytes()
    for row, wanted in zip(curve(two), curve(one), strict=True):
        for name in ("loss", "cross_entropy", "deletion_rate", "grad_norm"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), f"{name}, step {row['step']}"
