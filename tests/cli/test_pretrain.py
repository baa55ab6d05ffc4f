"""`mrt5 pretrain` as people use it: plans, refusals, Ctrl-C, kills, resuming, several processes."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled
from runs_of_commands import ENVIRONMENT, MRT5, curve, start, wait_for
from safetensors.torch import load_file
from typer.testing import CliRunner

from mrt5cli import manifest
from mrt5cli.cli import app
from mrt5cli.rundir import RunDir
from mrt5cli.writing import write_json

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tiny
description: A run with everything in it that has a state
seed: 7
task: {kind: vowel_removal, length: 12}
model:
  start: scratch
  shape: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
  shortener: {kind: delete_gate, layer: 1, bias_init: 0.5}
  dropout: 0.1
loss: {hard_delete_probability: 0.3, score_coefficient: 0.1, regularizer_delay: 3}
controller: {kind: pi_two_sided, target_deletion_rate: 0.2, k_i: 0.01, k_d: 5.0}
training:
  max_steps: 60
  batch_size: 8
  device_batch_size: 4
  learning_rate: 3.0e-3
  warmup_steps: 5
  logging_steps: 5
  save_steps: 7
evaluation: {examples: 8, batch_size: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    return "tiny.yaml"


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, ["pretrain", *words])


def assert_same_run(run: RunDir, other: RunDir) -> None:
    """Curves and weights to 1e-6, and all that a checkpoint holds beside weights exactly."""
    found, expected = curve(run), curve(other)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6), f"step {row['step']}"
    weights, wanted_weights = (load_file(each.model / "model.safetensors") for each in (run, other))
    assert weights.keys() == wanted_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, wanted_weights[name], atol=1e-6, rtol=0, msg=labelled(name))
    assert run.saved_steps() == other.saved_steps()
    last = run.saved_steps()[-1]
    states = [json.loads((each.checkpoint(last) / "mrt5_state_0.json").read_text()) for each in (run, other)]
    for key in ("controller", "hard_delete_draws", "stream"):
        assert states[0][key] == states[1][key], key


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = mrt5(str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--device", "cpu")
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return RunDir(folder / "run")


# --- a whole run ------------------------------------------------------------------------------------------


def test_what_a_run_leaves(unbroken: RunDir):
    assert {path.name for path in unbroken.path.iterdir()} == {
        "recipe.yaml",
        "meta.json",
        "metrics.jsonl",
        ".mrt5.lock",
        "checkpoints",
        "model",
    }
    assert [row["step"] for row in unbroken.metrics()] == list(range(5, 61, 5))
    assert unbroken.saved_steps() == [56, 60]
    meta = unbroken.meta()
    assert meta["status"] == "finished"
    assert meta["step"] == 60
    assert meta["seed"] == 7
    assert meta["device"] == "cpu"
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["started"] <= meta["ended"]
    assert unbroken.recipe().training.max_steps == 60


def test_its_model_loads_with_transformers_alone_and_with_us(unbroken: RunDir):
    from transformers import AutoModelForSeq2SeqLM

    from mrt5cli.models import load

    model = load(unbroken.model)
    other = AutoModelForSeq2SeqLM.from_pretrained(unbroken.model)
    assert model.config.deletion_type == "scaled_sigmoid"
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_resolved_recipe_repeats_the_run(unbroken: RunDir, tmp_path: Path):
    result = mrt5(str(unbroken.recipe_path), "--out", str(tmp_path / "again"), "--device", "cpu")
    assert result.exit_code == 0
    assert_same_run(RunDir(tmp_path / "again"), unbroken)


def test_plan_and_summary_are_told_on_stderr_and_json_on_stdout(recipe: str):
    result = mrt5(recipe, "--set", "training.max_steps=5", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["run"] == "runs/tiny-seed7"
    assert found["status"] == "finished"
    assert found["metrics"]["step"] == 5
    told = result.stderr
    assert re.search(r"example +#\w+\n +-> #\w+\n", told)
    assert re.search(r"steps +5 of 8 examples, 2 x 4 accumulated; learning rate 0.003", told)
    assert "step 5/5  loss " in told
    assert "next: mrt5 evaluate runs/tiny-seed7" in told
    assert "%|" not in told  # no second progress bar beside ours


def test_slow_imports_are_announced(recipe: str, monkeypatch: pytest.MonkeyPatch):
    told: list[str | None] = []

    @contextmanager
    def at_once(text: str | None, tell: Any, after: float = 2.0) -> Any:
        told.append(text)
        yield tell

    monkeypatch.setattr("mrt5cli.commands.training.announced", at_once)
    mrt5(recipe, "--dry-run", "--device", "cpu")
    monkeypatch.setattr("mrt5cli.runtime.leads", lambda: False)
    mrt5(recipe, "--dry-run", "--device", "cpu")
    assert told == ["importing torch and transformers ...", None]


def test_dry_run_writes_nothing(recipe: str):
    result = mrt5(recipe, "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "output   runs/tiny-seed7" in result.stderr
    assert "adam_beta2: 0.999" in result.stdout  # the recipe, resolved
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]
    planned = json.loads(mrt5(recipe, "--dry-run", "--json").stdout)
    assert planned["status"] == "planned"
    assert planned["recipe"]["seed"] == 7


def test_validation_on_the_side_changes_nothing(recipe: str, unbroken: RunDir):
    result = mrt5(recipe, "--set", "training.eval_steps=25", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    run = RunDir(Path("runs/tiny-seed7"))
    rows = [row for row in run.metrics() if "validation" in row]
    assert [row["step"] for row in rows] == [25, 50]
    assert set(rows[0]["validation"]["all"]) == {"loss", "token_accuracy", "deletion_rate"}
    ours = [row for row in curve(run) if "loss" in row]
    assert ours == curve(unbroken)


def test_smoke_runs_have_a_place_of_their_own_and_are_replaced(recipe: str):
    for _ in range(2):
        result = mrt5(recipe, "--smoke", "--device", "cpu")
        assert result.exit_code == 0, result.stderr
    assert [path.name for path in Path("runs/smoke").iterdir()] == ["tiny-smoke-seed7"]


# --- broken runs ------------------------------------------------------------------------------------------


def test_a_run_killed_anywhere_goes_on_as_if_unbroken(
    tmp_path: Path, unbroken: RunDir, chance: random.Random
):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = RunDir(tmp_path / "run")
    lines, pause = chance.randint(2, 9), chance.uniform(0.0, 0.1)
    print(f"to be killed {pause:.3f} s after {lines} lines of metrics")
    process = start(tmp_path, *MRT5, "pretrain", "tiny.yaml", "--out", str(run.path), "--device", "cpu")
    wait_for(lambda: len(run.metrics()) >= lines, process)
    time.sleep(pause)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.meta()["status"] == "running", f"finished too soon to be killed: {lines} lines, {pause} s"
    killed_at = run.saved_steps()

    result = mrt5(str(tmp_path / "tiny.yaml"), "--out", str(run.path), "--resume", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert killed_at, result.stderr
    assert f"from the checkpoint of step {killed_at[-1]}" in result.stderr
    assert_same_run(run, unbroken)
    assert [session["from_step"] for session in run.meta()["sessions"]] == [0, killed_at[-1]]


def test_ctrl_c_saves_says_how_to_go_on_and_that_works(
    tmp_path: Path, unbroken: RunDir, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = RunDir(tmp_path / "run")
    words = ("tiny.yaml", "--out", "run", "--device", "cpu", "--set", "training.data_workers=1")
    process = start(tmp_path, *MRT5, "pretrain", *words)
    wait_for(lambda: len(run.metrics()) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, loader workers too, as a terminal does
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "stopping after this step" in stderr
    saved = re.search(r"stopped and saved at step (\d+)\nto resume: mrt5 pretrain (.*)", stderr)
    assert saved, stderr
    assert run.saved_steps()[-1] == int(saved[1])
    assert run.meta()["status"] == "interrupted" and run.meta()["step"] == int(saved[1])
    assert not run.model.exists()
    assert "Traceback" not in stderr

    monkeypatch.chdir(tmp_path)
    result = mrt5(*shlex.split(saved[2]), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    # Saving out of turn leaves another pair of checkpoints behind, and the last one in both.
    assert curve(run) == curve(unbroken)
    weights = [load_file(each.model / "model.safetensors") for each in (run, unbroken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path):
    """Same examples a step, so the same curve; and only one of them writes and speaks."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    # Dropout differs by process.
    common = ["--set", "model.dropout=0.0", "--set", "training.max_steps=12"]
    common += ["--set", "training.save_steps=6", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mrt5cli", "pretrain", "tiny.yaml"]
    process = subprocess.Popen(
        [*launch, *common, "--out", "two", "--set", "training.device_batch_size=2"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    result = mrt5(str(tmp_path / "tiny.yaml"), *common, "--out", str(tmp_path / "one"))
    assert result.exit_code == 0, result.stderr
    stderr = process.communicate(timeout=200)[1]
    assert process.returncode == 0, stderr
    two, one = RunDir(tmp_path / "two"), RunDir(tmp_path / "one")
    assert two.meta()["processes"] == 2
    for row, wanted in zip(curve(two), curve(one), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5), f"step {row['step']}"
    assert stderr.count("done: 12 steps") == 1
    held = manifest.check(two.checkpoint(12))
    assert held is not None
    own = {"mrt5_state_0.json", "mrt5_state_1.json", "rng_state_0.pth", "rng_state_1.pth"}
    assert own <= held.files.keys()

    # Both go on from the checkpoint before one that is damaged, and come to the same end.
    whole = curve(two), (two.model / "model.safetensors").read_bytes()
    write_json(two.meta_path, {**two.meta(), "status": "interrupted"})
    shutil.rmtree(two.model)
    (two.checkpoint(12) / "rng_state_1.pth").write_bytes(b"")
    resumed = [*launch, *common, "--out", "two", "--set", "training.device_batch_size=2", "--resume"]
    again = subprocess.run(
        resumed, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("step-00000012 is not a complete checkpoint: rng_state_1.pth has 0 bytes") == 1
    assert (curve(two), (two.model / "model.safetensors").read_bytes()) == whole


def test_nothing_but_results_is_on_stdout_where_transformers_greets_wandb():
    """It prints there, on being imported, that WANDB_MODE is offline."""
    words = [*MRT5, "pretrain", "quickstart_byt5", "--smoke", "--dry-run", "--json"]
    environment = {**ENVIRONMENT, "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout)["status"] == "planned" and "offline" in done.stderr


def test_threads_are_told_to_wait_quietly_before_torch_is_there():
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), file=sys.__stdout__, flush=True); os._exit(0)
sys.meta_path.insert(0, Watch())
from mrt5cli import manifest
from mrt5cli.cli import app
app(["pretrain", "quickstart_byt5", "--dry-run"])
"""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "PASSIVE\n", done.stderr


# --- refusals ---------------------------------------------------------------------------------------------


def refused(*words: str) -> str:
    result = mrt5(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return str(result.stderr)


def test_an_unfinished_run_that_cannot_be_written_to_is_not_resumed(
    tmp_path: Path, unbroken: RunDir, monkeypatch: pytest.MonkeyPatch
):
    run = RunDir(Path(shutil.copytree(unbroken.path, tmp_path / "run")))
    write_json(run.meta_path, {**run.meta(), "status": "interrupted"})

    def refusing(dir: Path) -> None:  # permissions do not bind root, who runs tests in containers
        assert dir == run.path
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    told = refused(str(run.recipe_path), "--out", str(run.path), "--resume", "--dry-run")
    assert f"{run.path} cannot be written: Permission denied" in told


def test_a_finished_run_is_not_overwritten(unbroken: RunDir):
    before = unbroken.meta_path.read_bytes()
    told = refused(str(unbroken.recipe_path), "--out", str(unbroken.path))
    assert f"{unbroken.path} contains a finished run" in told
    assert "--out" in told
    assert unbroken.meta_path.read_bytes() == before


def test_resuming_a_finished_run_does_nothing(unbroken: RunDir):
    before = unbroken.meta_path.read_bytes()
    result = mrt5(str(unbroken.recipe_path), "--out", str(unbroken.path), "--resume")
    assert result.exit_code == 0
    assert "is finished; nothing to do" in result.stderr
    assert unbroken.meta_path.read_bytes() == before


@pytest.fixture
def unfinished(unbroken: RunDir, tmp_path: Path) -> RunDir:
    """What a kill leaves: status still running, no model."""
    import shutil

    run = RunDir(tmp_path / "unfinished")
    shutil.copytree(unbroken.path, run.path)
    shutil.rmtree(run.model)
    run.meta_path.write_text(json.dumps({**unbroken.meta(), "status": "running"}))
    return run


def test_a_half_done_run_is_resumed_only_on_request(unfinished: RunDir):
    told = refused(str(unfinished.recipe_path), "--out", str(unfinished.path))
    assert "contains an unfinished run, saved at step 60" in told
    assert f"mrt5 pretrain {unfinished.recipe_path} --out {unfinished.path} --resume" in told


def test_resuming_with_another_recipe_names_the_keys(unfinished: RunDir, recipe: str):
    told = refused(
        recipe, "--out", str(unfinished.path), "--resume", "--set", "training.max_steps=90", "--set", "seed=8"
    )
    assert "training.max_steps: 60 in the run, 90 now" in told
    assert "seed: 7 in the run, 8 now" in told
    assert "learning_rate" not in told


def test_keys_that_change_no_number_may_change(unfinished: RunDir, recipe: str):
    result = mrt5(
        recipe,
        "--out",
        str(unfinished.path),
        "--resume",
        "--dry-run",
        "--set",
        "training.save_steps=30",
    )
    assert result.exit_code == 0, result.stderr
    assert "note: training.save_steps: 7 in the run, 30 now" in result.stderr


def test_resuming_nothing_starts(recipe: str):
    result = mrt5(recipe, "--resume", "--set", "training.max_steps=5", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "nothing to resume in runs/tiny-seed7; starting at step 0" in result.stderr


def test_a_place_that_cannot_be_written(recipe: str):
    assert "tiny.yaml is not a folder" in refused(recipe, "--out", "tiny.yaml/run")


def test_a_place_with_other_things(recipe: str):
    assert "it contains tiny.yaml" in refused(recipe, "--out", ".")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(recipe: str):
    told = refused(recipe, "--device", "cuda")
    assert "GPU" in told
    assert "--device cpu" in told


def test_no_such_device(recipe: str):
    assert "--device tpu is not a device" in refused(recipe, "--device", "tpu")


def test_a_start_that_is_not_there(recipe: str):
    told = refused(recipe, "--set", "model.start=./nothing", "--set", "model.shape=null")
    assert "./nothing does not exist" in told


def test_batches_that_do_not_divide_among_processes(recipe: str, monkeypatch: pytest.MonkeyPatch):
    group = {
        "WORLD_SIZE": "3",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    told = refused(recipe, "--device", "cpu")
    assert "8 is not a multiple of 12" in told
    assert "--set training.batch_size=12" in told


def test_a_full_disk_is_noticed_before_training(recipe: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: (10**9, 10**9 - 1000, 1000))
    assert "are free" in refused(recipe, "--device", "cpu")
    assert not Path("runs").exists()


def test_a_start_that_is_not_there_names_the_recipe_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = mrt5("quickstart", "--dry-run")
    assert done.exit_code == 2
    assert "runs/quickstart-byt5-seed42 does not exist" in done.stderr
    assert "mrt5 pretrain quickstart_byt5" in done.stderr


@pytest.mark.parametrize(
    "recipe, command",
    [
        ("dates/byt5", "mrt5 data build dates data/dates"),
        (
            "spelling_small_byt5",
            "mrt5 data build spelling data/spelling_small --window 32 --common 300 --per-pair 60",
        ),
    ],
)
def test_data_that_is_not_there_names_the_command_that_builds_it(
    recipe: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = mrt5(recipe, "--dry-run")
    assert done.exit_code == 2
    assert f"hint: build it: {command}\n" in done.stderr
