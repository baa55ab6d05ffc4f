"""Files of a run damaged in every way: what is computed of them is what would have been, or the file is told.

Each injection spoils one file and then resumes the run, or evaluates its newest checkpoint. Either is
refused in a sentence that names the file, or comes to the very numbers of the unbroken run; going on from an
earlier checkpoint is told by the file's name too.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

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
loss: {hard_delete_probability: 0.3, regularizer_delay: 3}
controller: {kind: pi_two_sided, target_deletion_rate: 0.2, k_i: 0.01, k_d: 5.0}
training:
  max_steps: 10
  batch_size: 4
  device_batch_size: 4
  learning_rate: 3.0e-3
  logging_steps: 2
  save_steps: 4
  keep_checkpoints: 3
  eval_steps: 3
  best_metric: loss
evaluation: {examples: 8, batch_size: 4}
"""
LATER, EARLIER = 8, 4
"""Steps with a checkpoint; the run goes on from the later one."""
CHECKPOINT = (
    *("added_tokens.json", "config.json", "generation_config.json", "manifest.json", "model.safetensors"),
    *("mrt5_state_0.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer_config.json"),
    "trainer_state.json",
)
OF_THE_RUN = ("metrics.jsonl", "meta.json", "recipe.yaml")
DAMAGES = ("bit", "cut", "empty", "missing", "longer", "swapped")


@dataclass(frozen=True)
class Unbroken:
    """A run to its end, the same run as it stood after step 8, and what an evaluation of that says."""

    whole: RunDir
    stopped: RunDir
    evaluated: list[dict[str, Any]]


def mrt5(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def resume(run: RunDir, *more: str) -> Any:
    return mrt5("pretrain", run.recipe_path, "--out", run.path, "--resume", "--device", "cpu", *more)


def evaluate(what: Path) -> Any:
    return mrt5("evaluate", what, "--split", "validation", "--device", "cpu", "--json")


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["models"][0]["rows"]
    return [{key: value for key, value in row.items() if "ms_" not in key} for row in found]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(RECIPE)
    torch.set_num_threads(1)
    result = mrt5("pretrain", folder / "tiny.yaml", "--out", folder / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    whole = RunDir(folder / "run")
    stopped = RunDir(Path(shutil.copytree(whole.path, folder / "stopped")))
    shutil.rmtree(stopped.model)
    shutil.rmtree(stopped.checkpoint(10))
    stopped.go_back_to(LATER)
    write_json(stopped.meta_path, {**stopped.meta(), "status": "interrupted"})
    return Unbroken(whole, stopped, rows(evaluate(stopped.path)))


def spoil(file: Path, damage: str, draw: random.Random) -> str:
    """Damage a file of a run, or of its later checkpoint; what was done, in words."""
    content = file.read_bytes()
    match damage:
        case "bit":
            place, bit = draw.randrange(len(content)), draw.randrange(8)
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            return f"bit {bit} of byte {place}"
        case "cut":
            length = draw.randrange(1, len(content))
            file.write_bytes(content[:length])
            return f"cut to {length} of {len(content)} bytes"
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "longer":
            file.write_bytes(content + draw.randbytes(7))
        case "swapped":
            other = file.parent.with_name(f"step-{EARLIER:08d}") / file.name
            if not other.is_file() or other.read_bytes() == content:
                pytest.skip("the same at both steps")
            file.write_bytes(other.read_bytes())
    return damage
