"""`training.lora` as people use it: what a run trains and leaves, resuming, several processes, refusals."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_of_commands import ENVIRONMENT, curve
from safetensors.torch import load_file
from test_finetune import RECIPE
from tiny_runs import GATE, TARGET, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1}


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--device", "cpu"])


def write_recipe(folder: Path) -> str:
    """A start and a recipe that changes it."""
    make_run(folder / "runs", "mrt5", shortener=GATE)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"] |= {"start": str(folder / "runs/mrt5-seed3"), "shortener": GATE}
    recipe["training"] |= {"lora": LORA, "keep_checkpoints": 9, "learning_rate": 0.03}
    (folder / "lora.yaml").write_text(json.dumps(recipe | {"controller": TARGET}))
    return str(folder / "lora.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = mrt5("finetune", write_recipe(folder), "--out", str(folder / "run"))
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return RunDir(folder / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- a whole run --------------------------------------------------------------------------------------------


def test_a_run_leaves_an_ordinary_model_whose_targets_and_gate_have_changed(trained: RunDir):
    before, now = weights(trained.path.parent / "runs/mrt5-seed3/model"), weights(trained.model)
    assert now.keys() == before.keys()
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    assert changed == {
        name for name in now if name.endswith((".q.weight", ".v.weight")) or ".delete_gate." in name
    }
    best = trained.meta()["best"]["step"]
    assert same(now, weights(trained.best_weights(best)))
    adapted = 4 * (32 + 16) * 2 * 4  # q and v of two layers, and of the decoder's two attentions, rank 4
    gate = sum(weight.numel() for name, weight in now.items() if ".delete_gate." in name)
    assert trained.meta()["trained_parameters"] == adapted + gate
    assert "peft" in trained.meta()["versions"]
    last = trained.checkpoint(24)
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    assert sum(one["exp_avg"].numel() for one in state.values()) == adapted + gate


def test_every_command_takes_its_model_and_its_checkpoints(trained: RunDir, tmp_path: Path):
    for place in (trained.path, trained.checkpoint(24)):
        result = mrt5("evaluate", str(place), "--limit", "4", "--json")
        assert result.exit_code == 0, result.output
    (tmp_path / "lines").write_text("the cat\n")
    words = [str(tmp_path / "lines"), "--out", str(tmp_path / "answers")]
    assert mrt5("generate", str(trained.path), *words).exit_code == 0
    assert mrt5("inspect-deletions", str(trained.path), "--text", "the cat").exit_code == 0
    result = CliRunner().invoke(app, ["convert", str(trained.path), str(tmp_path / "hub"), "--to", "hub"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("step", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_resuming_comes_to_the_same_curve_and_weights(trained: RunDir, step: int, tmp_path: Path):
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "run")))
    for later in run.saved_steps():
        if later > step:
            shutil.rmtree(run.checkpoint(later))
    shutil.rmtree(run.model)
    run.meta_path.write_text(json.dumps({**run.meta(), "status": "running", "best": None}))
    result = mrt5("finetune", str(run.recipe_path), "--out", str(run.path), "--resume")
    assert result.exit_code == 0, result.output
    assert curve(run) == curve(trained)
    assert same(weights(run.model), weights(trained.model))
    for name in ("model.safetensors", "lora.safetensors"):
        assert same(load_file(run.checkpoint(24) / name), load_file(trained.checkpoint(24) / name))


def test_a_checkpoint_without_its_changes_is_passed_over_or_refused_by_name(trained: RunDir, tmp_path: Path):
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "run")))
    run.meta_path.write_text(json.dumps({**run.meta(), "status": "running"}))
    (run.checkpoint(24) / "lora.safetensors").unlink()
    words = ["finetune", str(run.recipe_path), "--out", str(run.path), "--resume", "--dry-run"]
    result = mrt5(*words)
    assert result.exit_code == 0
    told = "step-00000024 is not a complete checkpoint: it has no lora.safetensors"
    assert f"{told}; resuming from step 20" in result.stderr
    (run.checkpoint(24) / "manifest.json").unlink()  # as of an older version
    result = mrt5(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "continues from the previous one, step-00000020" in result.stderr


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    # Dropout differs by process.
    words = ["--set", "model.dropout=0.0", "--set", "training.lora.dropout=0.0", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mrt5cli", "finetune", recipe]
    done = subprocess.run(
        [*launch, *words, "--out", "two"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    alone = CliRunner().invoke(app, ["finetune", recipe, *words, "--out", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    two, one = RunDir(tmp_path / "two"), RunDir(tmp_path / "one")
    assert two.meta()["processes"] == 2
    rows = [[row for row in curve(run) if "loss" in row] for run in (two, one)]
    for row, wanted in zip(*rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5), f"step {row['step']}"
    assert (two.checkpoint(24) / "lora.safetensors").is_file()


# --- before anything is spent -------------------------------------------------------------------------------


def test_a_plan_says_what_is_trained(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    told = mrt5("finetune", recipe, "--dry-run").output
    trained = r"trained  1,[0-9]{3} of these parameters: LoRA of rank 4 on q, v, and the delete gate"
    assert re.search(trained, told)
    plans = [
        json.loads(mrt5("finetune", recipe, "--dry-run", "--json", *more).stdout)
        for more in ([], ["--set", "training.lora=null"])
    ]
    assert plans[0]["trained_parameters"] < plans[1]["trained_parameters"] == plans[1]["parameters"]
    memory, whole = (plan["estimate"]["memory"]["weights"] for plan in plans)
    assert memory == 4 * plans[0]["parameters"] + 12 * plans[0]["trained_parameters"] < whole


def test_without_peft_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, found = write_recipe(tmp_path), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "peft" else found(name, *at)
    )
    result = mrt5("finetune", recipe, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "training.lora needs the package peft, which is not installed" in result.stderr
    assert "pip install 'peft" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ("{rank: 0}", r"training.lora.rank +expected a whole number from 1 to 65,536, not 0"),
        ("{alpha: 0}", "training.lora.alpha +expected a number from"),
        ("{dropout: 1.0}", "training.lora.dropout +expected a number"),
        ("{targets: [queries]}", r"targets\[0\] +expected 'q', 'k', 'v', 'o', 'wi_0', .* not 'queries'"),
        ("{targets: []}", "training.lora.targets +must list at least 1"),
        ("{r: 8}", "training.lora.r +unknown key"),
        ("true", "training.lora +expected a section"),
    ],
)
def test_settings_that_cannot_be(lora: str, told: str, tmp_path: Path):
    result = mrt5("finetune", write_recipe(tmp_path), "--set", f"training.lora={lora}")
    assert result.exit_code == 2
    assert re.search(told, result.stderr), result.stderr


def test_random_weights_that_stay_so_are_remarked_upon(tmp_path: Path):
    words = ["--smoke", "--dry-run", "--set", "training.lora={}"]
    told = mrt5("pretrain", "quickstart", *words).output
    assert "note: training.lora hardly changes the random weights of model.start: scratch" in told
