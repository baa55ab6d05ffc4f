"""The same run in one process and in several, in shards and whole, and resumed by another number of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled
from runs_of_commands import curve
from safetensors.torch import load_file

from mrt5cli import load, pretrain
from mrt5cli.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TESTS = Path(__file__).parents[1]
RUN = """
name: divided
description: 20 steps of 8 examples, with a controller that moves and without dropout
seed: 7
task: {task}
model:
  start: scratch
  shape: {{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 3, num_decoder_layers: 2}}
  shortener: {{kind: delete_gate, layer: 1, bias_init: 0.5}}
  dropout: 0.0
loss: {{score_coefficient: 0.1, regularizer_delay: 3}}
controller: {{kind: pi_two_sided, target_deletion_rate: 0.6, k_p: 2.0, k_i: 0.05, k_d: 5.0}}
training:
  max_steps: 20
  batch_size: 8
  device_batch_size: 8
  learning_rate: 3.0e-3
  warmup_steps: 5
  logging_steps: 3
  save_steps: 10
  eval_steps: 10
evaluation: {{examples: 8, batch_size: 4}}
"""
SPANS = "kind: span_corruption, input_length: 48, mean_span_length: 3.0"
TASKS = {
    "memory": f"{{{SPANS}, source: {{kind: files, path: text}}, languages: [en, sw]}}",
    "streamed": f"{{{SPANS}, source: {{kind: files, path: text, streaming: true}}, languages: [en, sw]}}",
    "ragged": "{kind: text2text, source: {kind: files, path: pairs.jsonl}, input: '{a}', target: '{b}'}",
}
TORCHRUN = ["torch.distributed.run", "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
TORCHRUN += ["--nproc-per-node"]
ACCELERATE = ["accelerate.commands.launch", "--main_process_port=0", "--multi_gpu", "--num_processes"]
FSDP = ["accelerate.commands.launch", "--main_process_port=0", "--use_fsdp", "--fsdp_version=2"]
FSDP += ["--num_processes"]
SHARDS = {"training.sharding": "fsdp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes and their data."""
    root, chance = tmp_path_factory.mktemp("processes"), random.Random(1)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 8))) for _ in range(200)]

    def text(most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, most)))

    for language in ("en", "sw"):
        (root / "text" / language).mkdir(parents=True)
        for name in ("train-0", "train-1", "validation"):
            rows = "".join(json.dumps({"text": text(60)}) + "\n" for _ in range(60))
            (root / "text" / language / f"{name}.jsonl").write_text(rows)
    pairs = "".join(json.dumps({"a": text(12), "b": text(4)}) + "\n" for _ in range(300))
    (root / "pairs.jsonl").write_text(pairs)
    for name, task in TASKS.items():
        (root / f"{name}.yaml").write_text(RUN.format(task=task))
    return root


def settings(at_once: int, **more: object) -> dict[str, object]:
    return {"training.device_batch_size": at_once} | {
        key.replace("__", "."): value for key, value in more.items()
    }


def together(folder: Path, launcher: list[str], processes: int, runs: list[dict[str, Any]]) -> None:
    """Train runs in a group of processes."""
    plan = folder / f"{launcher[0]}{len(launcher)}-{processes}-{len(list(folder.iterdir()))}.json"
    plan.write_text(json.dumps(runs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(processes), str(TESTS / "many_runs.py"), str(plan)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr


def alone(folder: Path, name: str, out: str, *, resume: bool = False, **more: object) -> RunDir:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pretrain(f"{name}.yaml", settings(8, **more), out=out, device="cpu", resume=resume, progress=False)
    return RunDir(folder / out)


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, RunDir]:
    """What one process makes of each task, with whole steps at once."""
    return {name: alone(folder, name, f"one-{name}") for name in TASKS}


def numbers_of(run: RunDir) -> list[dict[str, float]]:
    """What lines of metrics say, those of validation too."""
    lines = []
    for line in curve(run):
        rows = line.pop("validation", {"": line})
        lines += [{name: value for name, value in row.items() if value is not None} for row in rows.values()]
    return lines


def assert_same(found: RunDir, wanted: RunDir) -> None:
    for line, other in zip(numbers_of(found), numbers_of(wanted), strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5), other
    weights, others = (load_file(run.model / "model.safetensors") for run in (found, wanted))
    assert weights.keys() == others.keys()
    for name, weight in others.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5, msg=labelled(name))


def test_the_controller_moves(one: dict[str, RunDir]) -> None:
    """Else equal curves would say nothing of it."""
    for run in one.values():
        lines = [line for line in run.metrics() if "alpha" in line]
        assert len({line["alpha"] for line in lines}) > 3 and abs(lines[-1]["alpha"]) > 0.01
        assert len({line["deletion_rate"] for line in lines}) > 3


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.ci
def test_two_processes_like_one_whole_and_in_shards(folder: Path, one: dict[str, RunDir]) -> None:
    """And the checkpoint of shards is resumed by one process."""
    whole, shards = settings(4), settings(4) | SHARDS
    together(
        folder,
        TORCHRUN,
        2,
        [
            {"recipe": "streamed.yaml", "out": "ci-whole", "settings": whole},
            {"recipe": "streamed.yaml", "out": "ci-shards", "settings": shards},
        ],
    )
    for out in ("ci-whole", "ci-shards"):
        assert_same(RunDir(folder / out), one["streamed"])
    as_of_step_10(folder, "ci-shards", "ci-resumed")
    assert_same(alone(folder, "streamed", "ci-resumed", resume=True, **SHARDS_KEY), one["streamed"])
    loaded = load(folder / "ci-shards")
    assert type(loaded).__name__ == "MrT5ForConditionalGeneration"


SHARDS_KEY = {"training__sharding": "fsdp"}
WAYS = {
    "torchrun 2": (TORCHRUN, 2, (4, 1), {}),
    "torchrun 4": (TORCHRUN, 4, (2,), {}),
    "accelerate 2": (ACCELERATE, 2, (4,), {}),
    "torchrun 2 in shards": (TORCHRUN, 2, (2,), SHARDS),
    "torchrun 4 in shards": (TORCHRUN, 4, (1,), SHARDS | {"training.recompute": "blocks"}),
    "accelerate 2 in shards": (FSDP, 2, (4,), SHARDS | {"training.recompute": "selective"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_processes_like_one(folder: Path, one: dict[str, RunDir], way: str) -> None:
    launcher, processes, sizes, more = WAYS[way]
    names = {
        f"{way} {task} {size}".replace(" ", "-"): (task, settings(size) | more)
        for task in TASKS
        for size in sizes
    }
    together(
        folder,
        launcher,
        processes,
        [{"recipe": f"{task}.yaml", "out": out, "settings": how} for out, (task, how) in names.items()],
    )
    for out, (task, _) in names.items():
        assert_same(RunDir(folder / out), one[task])


VARIANTS: dict[str, dict[str, object]] = {
    "packed rows": {"loss.score_coefficient": 0.0},
    "some hard": {"loss.hard_delete_probability": 0.4},
    "bf16": {"training.precision": "bf16"},
    "dropout": {"model.dropout": 0.1},
    "absolute positions": {"model.positions": "absolute", "model.max_positions": 64},
    "segments": {
        "model.shortener": {"kind": "boundary_predictor", "layer": 1},
        "loss.score_coefficient": 0.0,
        "loss.regularizer_delay": 0,
        "controller": {"kind": "constant", "alpha": 0.0},
    },
    "no shortener": {
        "model.shortener": {"kind": "none"},
        "loss.regularizer_delay": 0,
        "controller": {"kind": "constant", "alpha": 0.0},
    },
    "best weights": {"training.best_metric": "loss"},
}


def test_shards_like_whole_models_of_any_kind(folder: Path) -> None:
    """In the same two processes, so that the same numbers are drawn in the model, too."""
    runs = [
        {
            "recipe": "memory.yaml",
            "out": f"{name}{kind}".replace(" ", "-"),
            "settings": settings(2) | variant | how,
        }
        for name, variant in VARIANTS.items()
        for kind, how in (("", {}), (" in shards", SHARDS))
    ]
    together(folder, TORCHRUN, 2, runs)
    for name in VARIANTS:
        out = name.replace(" ", "-")
        assert_same(RunDir(folder / f"{out}-in-shards"), RunDir(folder / out))


# --- resumed by others --------------------------------------------------------------------------------------


def as_of_step_10(folder: Path, run: str, out: str) -> None:
    """A copy of a run that was killed after half of its steps."""
    shutil.copytree(folder / run, folder / out)
    copy = RunDir(folder / out)
    shutil.rmtree(copy.model)
    shutil.rmtree(copy.checkpoint(20))
    copy.meta_path.write_text(json.dumps(copy.meta() | {"status": "running"}))


def test_any_number_of_processes_resumes(folder: Path, one: dict[str, RunDir]) -> None:
    """At a step that is in the middle of a line of metrics."""
    kinds: dict[str, dict[str, object]] = {"": {}, "-shards": SHARDS}
    at_once = {2: 4, 4: 2}
    for processes, size in at_once.items():
        runs = [
            {"recipe": "streamed.yaml", "out": f"of-{processes}{kind}", "settings": settings(size) | how}
            for kind, how in kinds.items()
        ]
        together(folder, TORCHRUN, processes, runs)
    begun = ["one-streamed", "of-2", "of-2-shards", "of-4", "of-4-shards"]
    resumed = []
    for processes, size in at_once.items():
        runs = []
        for kind, how in kinds.items():
            outs = [f"{run}-by-{processes}{kind}" for run in begun]
            for run, out in zip(begun, outs, strict=True):
                as_of_step_10(folder, run, out)
                runs.append({"recipe": "streamed.yaml", "out": out, "settings": settings(size) | how})
            resumed += outs
        together(folder, TORCHRUN, processes, [{**run, "resume": True} for run in runs])
    for run in begun:
        as_of_step_10(folder, run, f"{run}-by-1")
        alone(folder, "streamed", f"{run}-by-1", resume=True, training__data_workers=2)
        resumed.append(f"{run}-by-1")
    for out in resumed:
        assert_same(RunDir(folder / out), one["streamed"])
    assert len(resumed) == 25
