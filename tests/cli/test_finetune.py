"""`mrt5 finetune` as people use it: every kind of model, the best weights, stopping, kills, refusals."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_of_commands import ENVIRONMENT, MRT5, curve, start, wait_for
from safetensors.torch import load_file
from tiny_runs import GATE, NO_GATE, TARGET, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")

BP = {"kind": "boundary_predictor", "layer": 1, "prior": 0.5}
CP = {"kind": "convolution", "layer": 1, "stride": 2}
KINDS = {"byt5": NO_GATE, "mrt5": GATE, "bp": BP, "cp": CP}

RECIPE: dict[str, Any] = {
    "name": "tuned",
    "description": "A fine-tune with everything in it that has a state",
    "seed": 7,
    "task": {
        "kind": "spelling_correction_contextual",
        "source": {"kind": "generated", "examples": 24},
        "input_length": 32,
        "target_length": 32,
    },
    "model": {"start": "runs/byt5-seed3", "shortener": NO_GATE, "dropout": 0.1},
    "training": {
        "max_steps": 24,
        "batch_size": 4,
        "device_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 4,
        "eval_steps": 3,
        "save_steps": 5,
        "best_metric": "loss",
    },
    "evaluation": {"examples": 16, "batch_size": 5},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every kind and a recipe for each."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, kind in KINDS.items():
        make_run(folder / "runs", name, shortener=kind)
        recipe = json.loads(json.dumps(RECIPE))
        recipe["model"] |= {"start": f"runs/{name}-seed3", "shortener": kind}
        if name == "mrt5":
            recipe["controller"] = TARGET
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(*words: str) -> Any:
    return CliRunner().invoke(app, ["finetune", *words])


def done(*words: str) -> tuple[RunDir, str]:
    result = finetune(*words, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return RunDir(Path("runs/tuned-seed7")), result.stderr


def validations(run: RunDir) -> list[dict[str, Any]]:
    return [row for row in run.metrics() if "validation" in row]


def same_weights(one: Path, other: Path) -> bool:
    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)


# --- whole runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("bp", "cp"))) for kind in KINDS]
)
def test_every_kind_of_model_is_fine_tuned(name: str):
    from mrt5cli.evaluation.evaluate import measure
    from mrt5cli.evaluation.options import EvaluationOptions
    from mrt5cli.models import load
    from mrt5cli.tasks import build_task

    run, told = done(f"{name}.yaml")
    rows = validations(run)
    assert [row["step"] for row in rows] == list(range(3, 25, 3))
    values = {row["step"]: row["validation"]["all"]["loss"] for row in rows}
    step = min(values, key=lambda at: (values[at], at))
    best = run.meta()["best"]
    assert best == {"metric": "loss", "value": values[step], "step": step, "stopped_early": False}
    assert values[step] < values[3] and step > 3, "else this test shows nothing"
    assert run.best_steps()[-1] == step
    assert same_weights(run.model, run.best_weights(step))
    assert f"best: cross-entropy {values[step]:.4f} on validation data at step {step}" in told
    notes = [line for line in told.splitlines() if line.startswith("note:")]
    assert f"from runs/{name}-seed3" in told and all("attention weights" in note for note in notes)
    if name != "byt5":
        assert re.search(rf"from runs/{name}-seed3, \w+ \w+ included", told)

    # The value is that of the weights that were kept, deleted for real, without alpha and its gate loss.
    recipe = run.recipe()
    options = EvaluationOptions(split="validation", batch_size=5, limit=16, source_removed=False)
    [row] = measure(load(run.model), build_task(recipe.task), options).rows
    assert row.loss == pytest.approx(best["value"], abs=1e-5)
    assert [entry["loss"] for entry in run.metrics() if "loss" in entry][-1] != best["value"]


def test_mrt5_keeps_its_gate_and_its_controller():
    run, told = done("mrt5.yaml", "--set", "training.learning_rate=1e-9", "--set", "training.max_steps=3")
    start, now = (
        load_file(Path(path) / "model.safetensors") for path in ("runs/mrt5-seed3/model", run.model)
    )
    gate = "encoder.block.1.delete_gate.feed_forward.weight"
    torch.testing.assert_close(now[gate], start[gate], atol=1e-6, rtol=0)
    assert float(start[gate].std()) > 0.3, "not what a fresh gate has"
    assert run.metrics()[-1]["target"] == 0.25
    assert "alpha set by pi toward 25 % deleted" in told


def test_from_is_written_into_the_run_which_alone_repeats_it():
    run, told = done("mrt5.yaml", "--from", "runs/byt5-seed3")
    assert "note: the delete gate is randomly initialized: runs/byt5-seed3 has none at that layer" in told
    assert run.recipe().model.start == "runs/byt5-seed3"
    done(str(run.recipe_path), "--out", "again")
    assert same_weights(run.model, Path("again/model"))
    assert curve(run) == curve(RunDir(Path("again")))
    assert run.meta()["best"] == RunDir(Path("again")).meta()["best"]


@pytest.mark.slow
def test_from_takes_checkpoints_and_the_best_of_another_run_too():
    run, _ = done("byt5.yaml")
    kept = run.best_weights(run.best_steps()[-1])
    for where in (run.checkpoint(20), kept, run.path):
        told = done("byt5.yaml", "--from", str(where), "--out", "next", "--dry-run")
        assert told
    result = finetune("byt5.yaml", "--from", str(kept), "--out", "next", "--dry-run", "--json")
    assert json.loads(result.stdout)["recipe"]["model"]["start"] == str(kept)


def test_from_makes_a_fine_tune_of_a_recipe_from_scratch(place: Path):
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"] = {
        "start": "scratch",
        "shape": {"d_model": 64, "num_layers": 4},
        "initialization": "depth_scaled",
    }
    (place / "scratch.yaml").write_text(json.dumps(recipe))
    result = finetune("scratch.yaml", "--from", "runs/byt5-seed3", "--dry-run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "width 32, 2 + 1 layers, no shortener; from runs/byt5-seed3" in result.stderr
    assert "shape: null" in result.stdout


def test_the_plan_says_what_there_is_and_what_will_be_kept():
    result = finetune(
        "mrt5.yaml",
        "--dry-run",
        "--device",
        "cpu",
        "--set",
        "training.patience=4",
        "--set",
        "task.input_length=16",
    )
    assert result.exit_code == 0, result.output
    assert "24 training and 24 validation rows" in result.stderr
    assert re.search(r"\(\d+ sources.* cut\)", result.stderr)
    assert (
        "best     lowest cross-entropy on validation data, hard deletion, measured every 3 steps; "
        "stops after 4 without improvement" in result.stderr
    )
    plan = json.loads(finetune("byt5.yaml", "--dry-run", "--json", "--device", "cpu").stdout)
    assert plan["best"] == "lowest cross-entropy on validation data, measured every 3 steps"
    assert not Path("runs/tuned-seed7").exists()


def test_json_says_what_was_best():
    result = finetune("byt5.yaml", "--json", "--device", "cpu")
    found = json.loads(result.stdout)
    assert found["best"] == RunDir(Path("runs/tuned-seed7")).meta()["best"]


def test_without_a_metric_the_last_weights_are_the_model():
    run, told = done("byt5.yaml", "--set", "training.best_metric=null")
    assert not run.best.exists() and run.meta()["best"] is None and "best" not in told
    assert same_weights(run.model, run.checkpoint(24))


def test_the_last_step_is_measured_too():
    run, _ = done("byt5.yaml", "--set", "training.max_steps=7")
    assert [row["step"] for row in validations(run)] == [3, 6, 7]
    assert set(validations(run)[0]["validation"]["all"]) == {"loss", "token_accuracy", "deletion_rate"}


def test_over_several_subsets_the_metric_is_the_total_by_examples():
    task = "task={kind: tydiqa, source: {kind: generated, examples: 12}, languages: [en, ru, th]}"
    run, _ = done("byt5.yaml", "--set", task, "--set", "training.max_steps=3")
    line = validations(run)[0]
    parts = [line["validation"][language]["loss"] for language in ("en", "ru", "th")]
    assert line["best"]["value"] == pytest.approx(sum(parts) / 3)
    assert line["best"]["value"] == line["validation"]["total"]["loss"]


QUESTIONS = "task={kind: xquad, source: {kind: generated, examples: 12}, answer_length: 8, input_length: 64}"


@pytest.mark.parametrize("metric", ["f1", "exact_match", "loss"])
def test_answers_are_generated_where_the_metric_needs_them(metric: str, monkeypatch: pytest.MonkeyPatch):
    from mrt5cli.models import MrT5ForConditionalGeneration

    generated: list[bool] = []
    original = MrT5ForConditionalGeneration.generate

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        generated.append(options["hard_delete"])
        return original(self, *args, **options)

    monkeypatch.setattr(MrT5ForConditionalGeneration, "generate", watched)
    words = ("--set", QUESTIONS, "--set", f"training.best_metric={metric}", "--set", "training.max_steps=3")
    run, _ = done("mrt5.yaml", *words)
    [line] = validations(run)
    assert line["best"]["value"] == line["validation"]["en"][metric]
    if metric != "loss":
        assert 0.0 <= line["best"]["value"] <= 1.0
    assert set(generated) == (set() if metric == "loss" else {True})


def test_smoke_runs_start_from_random_weights_and_say_so():
    result = finetune("mrt5.yaml", "--from", "runs/mrt5-seed3", "--smoke", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "note: model.start is ignored: a smoke run" in result.stderr
    assert [path.name for path in Path("runs/smoke").iterdir()] == ["tuned-smoke-seed7"]


# --- stopping ---------------------------------------------------------------------------------------------

HOPELESS = (
    # Words that a model of this size will not get right in a few steps: the metric stays at 0.
    *("--set", "training.best_metric=sequence_accuracy"),
    *("--set", "training.learning_rate=1e-5"),
    *("--set", "training.patience=2"),
)


def test_it_stops_when_nothing_better_comes():
    run, told = done("byt5.yaml", *HOPELESS)
    assert [row["step"] for row in validations(run)] == [3, 6, 9]
    assert [row["best"]["waited"] for row in validations(run)] == [0, 1, 2]
    assert validations(run)[0]["validation"]["all"]["sequence_accuracy"] == 0.0
    assert run.meta()["status"] == "finished"
    assert run.meta()["best"] == {
        "metric": "sequence_accuracy",
        "value": 0.0,
        "step": 3,
        "stopped_early": True,
    }
    assert run.saved_steps() == [5, 9]
    assert [row["step"] for row in run.metrics() if "loss" in row] == [4, 8, 9]
    assert same_weights(run.model, run.best_weights(3))
    assert not same_weights(run.model, run.checkpoint(9))
    assert "done: 9 steps" in told and "stopped early" in told


def test_a_kill_after_the_last_evaluation_does_not_start_it_again():
    run, _ = done("byt5.yaml", *HOPELESS)
    before = run.meta()["best"]
    shutil.rmtree(run.model)
    run.meta_path.write_text(json.dumps({**run.meta(), "status": "running", "best": None}))
    done(str(run.recipe_path), "--out", str(run.path), "--resume")
    assert run.meta()["best"] == before and run.meta()["step"] == 9
    assert run.saved_steps() == [5, 9]
    assert same_weights(run.model, run.best_weights(3))


# Ends as `python -m mrt5cli` does, but for the names of the threads that are there still.
WATCHED = """
import os, pathlib, runpy
try:
    runpy.run_module("mrt5cli", run_name="__main__")
finally:
    tasks = pathlib.Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text() for task in tasks]
    pathlib.Path("threads-" + os.environ["RANK"]).write_text("".join(names))
"""


@pytest.mark.slow
def test_several_processes_stop_together(place: Path):
    (place / "watched.py").write_text(WATCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "watched.py", "finetune"]
    words = ["byt5.yaml", *HOPELESS, "--device", "cpu", "--set", "training.save_steps=100"]
    done_ = subprocess.run(
        [*launch, *words], cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    assert done_.returncode == 0, done_.stderr
    run = RunDir(place / "runs/tuned-seed7")
    assert run.meta()["processes"] == 2 and run.meta()["best"]["stopped_early"]
    assert [row["step"] for row in validations(run)] == [3, 6, 9]
    states = [json.loads((run.checkpoint(9) / f"mrt5_state_{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0]["best"] == states[1]["best"] == {"value": 0.0, "step": 3, "waited": 2}
    assert run.best_steps() == [3] and same_weights(run.model, run.best_weights(3))
    # Threads of the group that outlive the interpreter abort a process now and then.
    for rank in (0, 1):
        assert "gloo" not in (place / f"threads-{rank}").read_text()


# --- kills ------------------------------------------------------------------------------------------------


@pytest.mark.slow  # tests/unit/test_trainer.py resumes to the same best within one process
def test_a_run_killed_anywhere_has_the_same_best_in_the_end(place: Path, chance: random.Random):
    pause = chance.uniform(0.0, 0.1)
    print(f"to be killed {pause:.3f} s after the fourth validation")
    long = ("--set", "training.max_steps=60", "--device", "cpu")
    run = RunDir(place / "killed")
    process = start(place, *MRT5, "finetune", "mrt5.yaml", "--out", "killed", *long)
    wait_for(lambda: len(validations(run)) >= 4, process)
    time.sleep(pause)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.meta()["status"] == "running" and run.saved_steps()

    whole = RunDir(place / "whole")
    for words in (("--out", "whole"), ("--out", "killed", "--resume")):
        result = finetune("mrt5.yaml", *words, *long)
        assert result.exit_code == 0, result.output
    assert "from the checkpoint of step" in result.stderr
    assert curve(run) == curve(whole)
    assert run.meta()["best"] == whole.meta()["best"]
    assert run.best_steps() == whole.best_steps()
    assert same_weights(run.model, whole.model)
    states = [json.loads((each.checkpoint(60) / "mrt5_state_0.json").read_text()) for each in (run, whole)]
    assert states[0]["best"] == states[1]["best"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(place: Path):
    process = start(place, *MRT5, "finetune", "byt5.yaml", "--set", "training.max_steps=5000")
    run = RunDir(place / "runs/tuned-seed7")
    wait_for(lambda: len(validations(run)) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert "to resume: mrt5 finetune runs/tuned-seed7/recipe.yaml --out runs/tuned-seed7 --resume" in stderr


# --- refusals ---------------------------------------------------------------------------------------------


def refused(*words: str, command: str = "finetune") -> str:
    result = CliRunner().invoke(app, [command, *words, "--device", "cpu"])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    assert result.stderr.count("error:") == 1
    assert not Path("runs/tuned-seed7").exists()
    return str(result.stderr)


def test_a_recipe_from_scratch(place: Path):
    told = refused("quickstart_byt5")
    assert "quickstart_byt5 sets model.start: scratch" in told
    assert "name one with --from" in told and "mrt5 pretrain quickstart_byt5" in told
    assert "name one with --from" in refused("byt5.yaml", "--from", "scratch")
    assert "a name is empty" in refused("byt5.yaml", "--from", "")
    assert "a lone surrogate, which is not a character" in refused("byt5.yaml", "--from", "a\udcff")


def test_pretrain_names_finetune():
    told = refused("byt5.yaml", command="pretrain")
    assert "byt5.yaml fine-tunes runs/byt5-seed3 on spelling_correction_contextual" in told
    assert "mrt5 finetune byt5.yaml" in told and "model.start=scratch" in told


def test_a_downstream_task_from_nothing_is_pretrained(place: Path):
    shape = "model.shape={d_model: 16, d_ff: 16, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}"
    words = ["byt5.yaml", "--set", "model.start=scratch", "--set", shape, "--set", "training.max_steps=3"]
    result = CliRunner().invoke(app, ["pretrain", *words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert " pretrain " in RunDir(Path("runs/tuned-seed7")).resume_command


def test_two_starts():
    told = refused("byt5.yaml", "--from", "runs/byt5-seed3", "--set", "model.start=runs/mrt5-seed3")
    assert "model.start  set twice; --from" in told


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ("runs/byt6-seed3", "did you mean runs/byt5-seed3?"),
        ("byt5.yaml", "byt5.yaml is a file; expected a run directory, a checkpoint directory or a Hub id"),
        ("runs", "runs is neither a run (no recipe.yaml) nor a checkpoint (no config.json)"),
        ("someone/some-model", "is neither a directory here nor available from the Hugging Face Hub"),
        ("runs/multilingual-v3-byt5-seed76", "mrt5 pretrain multilingual_v3/byt5"),
    ],
)
def test_a_start_that_is_none(start: str, told: str):
    assert told in refused("byt5.yaml", "--from", start)
    assert told in refused("byt5.yaml", "--set", f"model.start={start}")


def test_a_start_without_weights(place: Path):
    (place / "runs/byt5-seed3/model/model.safetensors").unlink()
    assert "has no model.safetensors" in refused("byt5.yaml")


def test_a_start_of_another_size():
    told = refused("mrt5.yaml", "--set", "model.shortener.layer=5")
    assert "delete_gate_layer 5 is not below num_layers 2" in told
    told = refused("byt5.yaml", "--set", "model.shape={d_model: 64}")
    assert "model.shape" in told and "a checkpoint has its own" in told
    assert "--set model.shortener.stride=2" in refused("cp.yaml", "--set", "model.shortener.stride=3")


def test_a_metric_that_the_task_cannot_have():
    told = refused("byt5.yaml", "--set", "training.best_metric=f1")
    assert "task spelling_correction_contextual does not measure f1" in told
    assert "use loss, token_accuracy or sequence_accuracy" in told
    assert "expected 'loss'" in refused("byt5.yaml", "--set", "training.best_metric=total_loss")


def test_no_validation_rows(place: Path):
    (place / "pairs").mkdir()
    (place / "pairs/train.tsv").write_text("helo there\thello there\n")
    told = refused("byt5.yaml", "--set", "task.source={kind: files, path: pairs}")
    assert "validation" in told and "pairs" in told


def test_patience_without_a_metric():
    told = refused("byt5.yaml", "--set", "training.best_metric=null", "--set", "training.patience=3")
    assert "training.patience" in told and "needs best_metric" in told


@pytest.mark.slow
def test_what_chooses_the_weights_may_not_change_on_the_way():
    run, _ = done("byt5.yaml")
    run.meta_path.write_text(json.dumps({**run.meta(), "status": "running"}))
    for change in ("training.eval_steps=4", "evaluation.hard_delete=false", "evaluation.examples=3"):
        result = finetune("byt5.yaml", "--resume", "--set", change, "--device", "cpu")
        assert result.exit_code == 2 and change.split("=")[0] in result.stderr, change
    result = finetune(
        "byt5.yaml", "--resume", "--dry-run", "--set", "training.save_steps=2", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output


# --- one command beside the other -------------------------------------------------------------------------


def test_both_commands_have_the_same_options():
    from mrt5cli.commands import training

    here = inspect.signature(training.finetune).parameters
    there = inspect.signature(training.pretrain).parameters
    assert set(here) - set(there) == {"from_"}
    assert all(str(here[name]) == str(there[name]) for name in there)
