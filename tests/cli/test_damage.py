"""Files of a run damaged in every way: results are those of intact files, or the damage is reported.

Each injection spoils one file and then resumes the run, or evaluates its newest checkpoint. Either is
refused in a sentence that names the file, or comes to the very numbers of the unbroken run; going on from an
earlier checkpoint is reported with the file's name, too.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_of_commands import curve
from typer.testing import CliRunner

from mrt5cli import manifest
from mrt5cli.cli import app
from mrt5cli.errors import UserError
from mrt5cli.manifest import of_the_model
from mrt5cli.models import load
from mrt5cli.rundir import RunDir
from mrt5cli.training.trainer import DeletionTrainer
from mrt5cli.training.whole import newest_whole
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
"""Steps with a checkpoint; the run resumes from the later one."""
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
    """Damage a file of a run, or of its later checkpoint; returns a description of the damage."""
    content = file.read_bytes()
    other = file.parent.with_name(f"step-{EARLIER:08d}") / file.name
    if damage == "swapped" and not (other.is_file() and other.read_bytes() != content):
        damage = "bit"  # the file is the same at both steps, or of none
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
            file.write_bytes(other.read_bytes())
    return damage


TRIED: Counter[str] = Counter()
"""Injections of this session, by what they ended in."""


@pytest.fixture(scope="module", autouse=True)
def count() -> Iterator[None]:
    yield
    print(f"\n{TRIED.total()} injections: {dict(TRIED)}")


def copied(unbroken: Unbroken, folder: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(unbroken.stopped.path, folder / f"run{TRIED.total()}")))


def place(run: RunDir, name: str) -> Path:
    if name.startswith("best/"):
        return run.best_weights(run.best_steps()[-1]) / name.removeprefix("best/")
    return (run.path if name in OF_THE_RUN else run.checkpoint(LATER)) / name


def judge(unbroken: Unbroken, run: RunDir, name: str, command: str, done: str) -> None:
    """Run the command on a damaged run; the damage is refused, reported, or makes no difference."""
    result = resume(run) if command == "resume" else evaluate(run.path)
    said, what = result.output + result.stderr, f"{name}, {done}, {command}"
    told = name.removeprefix("best/") in said
    if result.exit_code == 2:
        assert told, f"{what}: refused in other words: {said}"
        ended = "refused"
    else:
        assert result.exit_code == 0 and result.exception is None, f"{what}: {result.exception!r} {said}"
        if command == "resume":
            same = curve(run) == curve(unbroken.whole) and weights(run) == weights(unbroken.whole)
        else:
            same = rows(result) == unbroken.evaluated
        assert same or told, f"{what}: other numbers without a word: {said}"
        ended = "told" if told else "no difference"
    for never in ("weights_only", "Aborted", "model.start", "Traceback", "bug in mrt5cli"):
        assert never not in said, f"{what}: {said}"
    TRIED[f"{command}: {ended}"] += 1


def weights(run: RunDir) -> bytes:
    return (run.model / "model.safetensors").read_bytes()


NAMES = (*CHECKPOINT, *OF_THE_RUN, "best/model.safetensors", "best/config.json")


def test_all_files_of_a_checkpoint_are_damaged_here(unbroken: Unbroken):
    assert sorted(path.name for path in unbroken.stopped.checkpoint(LATER).iterdir()) == sorted(CHECKPOINT)
    assert unbroken.stopped.best_steps() == [3, 6]


ALWAYS = {"config.json", "model.safetensors", "optimizer.pt", "mrt5_state_0.json", "metrics.jsonl"}
"""One file of each kind; the others take as long, and are `slow`."""


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_one_damage_of_each_file(unbroken: Unbroken, tmp_path: Path, name: str, chance: random.Random):
    for command in ("resume", "evaluate"):
        run = copied(unbroken, tmp_path)
        damage = chance.choice(DAMAGES)
        judge(unbroken, run, name, command, spoil(place(run, name), damage, chance))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_of_each_file(
    unbroken: Unbroken, tmp_path: Path, name: str, damage: str, chance: random.Random
):
    for _ in range({"bit": 6, "cut": 3}.get(damage, 1)):
        for command in ("resume", "evaluate"):
            run = copied(unbroken, tmp_path)
            done = spoil(place(run, name), damage, chance)
            judge(unbroken, run, name, command, done)
            shutil.rmtree(run.path)


@pytest.mark.parametrize("name", CHECKPOINT)
def test_no_damage_is_resumed_from_or_loaded(
    unbroken: Unbroken, tmp_path: Path, name: str, chance: random.Random
):
    """As above, many times, by what a resume and a load ask before they begin."""
    run = copied(unbroken, tmp_path)
    file = place(run, name)
    content, model = file.read_bytes(), of_the_model(name) or name == manifest.NAME
    for damage in (*["bit"] * 20, *["cut"] * 5, "empty", "longer", "missing"):
        done = spoil(file, damage, chance)
        if (name, damage) != (manifest.NAME, "missing"):  # else it is as of an older version, and whole
            step, _, passed_over = newest_whole(run)
            assert step == EARLIER and name in passed_over[LATER], done
            if model:
                with pytest.raises(UserError, match=re.escape(name)):
                    load(run.checkpoint(LATER))
        file.write_bytes(content)
        TRIED["asked"] += 1
    assert newest_whole(run) == (LATER, 1, {})


@pytest.mark.slow
def test_what_a_manifest_costs_is_measured():
    script = Path(__file__).parents[1] / "benchmarks" / "manifests.py"
    words = [sys.executable, str(script), "--size", "tiny", "--rounds", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r"^load +median 0\.\d+ s with, 0\.\d+ s without: ", done.stdout, re.M)


# --- going on -----------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_kept_aside_and_on_record(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    file = run.checkpoint(LATER) / "optimizer.pt"
    spoil(file, "cut", random.Random(0))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    told = f"{run.checkpoint(LATER)} is not a complete checkpoint: optimizer.pt has "
    planned = resume(run, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert plan["resume_step"] == EARLIER and any(note.startswith(told) for note in plan["notes"])
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before

    result = resume(run)
    assert result.exit_code == 0, result.output
    assert "from the checkpoint of step 4" in result.stderr
    assert f"note: {told}" in result.stderr and "keeping this one as damaged-step-00000008" in result.stderr
    assert curve(run) == curve(unbroken.whole) and weights(run) == weights(unbroken.whole)
    assert run.saved_steps() == [4, 8, 10]
    assert (run.checkpoints / "damaged-step-00000008" / "optimizer.pt").is_file()
    [sentence] = run.meta()["sessions"][-1]["damaged"]
    assert sentence.startswith(told)


def test_what_is_kept_aside_makes_way_for_another(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    for _ in range(2):
        spoil(run.checkpoint(LATER) / "scheduler.pt", "empty", random.Random(0))
        run.go_back_to(EARLIER)
        shutil.copytree(unbroken.stopped.checkpoint(LATER), run.checkpoint(LATER))
    assert run.saved_steps() == [EARLIER, LATER]


def test_without_a_whole_checkpoint_all_that_is_damaged_is_named(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    (run.checkpoint(EARLIER) / "model.safetensors").unlink()
    (run.checkpoint(LATER) / "rng_state.pth").write_bytes(b"")
    for more in ([], ["--dry-run"]):
        result = resume(run, *more)
        assert result.exit_code == 2
        assert "step-00000008 is not a complete checkpoint: rng_state.pth has 0 bytes, but " in result.stderr
        assert "\n" in result.stderr and "\\n" not in result.stderr  # a line each
        assert "step-00000004 is not a complete checkpoint: it has no model.safetensors" in result.stderr
        assert "model.start" not in result.stderr
    assert run.saved_steps() == [EARLIER, LATER]


def test_strays_among_checkpoints_block_nothing(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    for folder in ("step-99", "step-00000099", ".tmp-step-00000010", "old/step-00000012"):
        (run.checkpoints / folder).mkdir(parents=True)
    (run.checkpoints / "step-99" / "config.json").write_text("{}")
    for file in ("step-00000010", ".tmp-step-00000012", "step-", "notes.txt"):
        (run.checkpoints / file).write_text("mine")
    assert rows(evaluate(run.path)) == unbroken.evaluated
    result = resume(run)
    assert result.exit_code == 0, result.output
    assert "from the checkpoint of step 8" in result.stderr and "note: /" not in result.stderr
    assert weights(run) == weights(unbroken.whole)
    assert run.saved_steps() == [4, 8, 10]
    assert (run.checkpoints / "notes.txt").read_text() == "mine"


def test_a_renamed_checkpoint_is_no_later_one(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    run.checkpoint(EARLIER).rename(run.checkpoint(9))
    result = evaluate(run.checkpoint(9))
    assert result.exit_code == 2 and "manifest.json belongs to step 4" in result.stderr
    result = resume(run)
    assert result.exit_code == 0 and "manifest.json belongs to step 4" in result.stderr
    assert weights(run) == weights(unbroken.whole)


def test_best_weights_that_are_damaged_do_not_become_the_model(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = copied(unbroken, tmp_path)
    train_from = DeletionTrainer.train_from

    def damaged_meanwhile(trainer: DeletionTrainer, checkpoint: Path) -> None:
        train_from(trainer, checkpoint)
        for step in run.best_steps():
            spoil(run.best_weights(step) / "model.safetensors", "bit", random.Random(0))

    monkeypatch.setattr(DeletionTrainer, "train_from", damaged_meanwhile)
    result = resume(run)
    assert result.exit_code == 1, result.output
    assert "are incomplete or damaged: model.safetensors differs from what was written" in result.stderr
    assert f"mrt5 convert {run.checkpoint(10)} DEST" in result.stderr
    assert not run.model.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("meta.json", '{"status": "interrupted", "sessions": 7}', "meta.json is damaged: its sessions is 7"),
        ("meta.json", '{"status": "interrupted", "sessions": [1]}', "meta.json is damaged: its sessions is"),
        ("meta.json", '{"status": "interrupted", "attention": []}', "meta.json is damaged: its attention is"),
        (
            "meta.json",
            '{"status": "interrupted", "hub_commits": ""}',
            "meta.json is damaged: its hub_commits",
        ),
        ("meta.json", '{"status": "interrupted", "data": 1}', "meta.json is damaged: its data is 1"),
        ("meta.json", "{}", "meta.json is damaged: it is an empty object"),
        ("meta.json", "[]", "meta.json is not a JSON object"),
        ("recipe.yaml", "[]", "recipe.yaml"),
        ("recipe.yaml", "name: x", "recipe.yaml"),
    ],
)
def test_what_a_run_says_of_itself_is_of_another_shape(
    unbroken: Unbroken, tmp_path: Path, name: str, content: str, words: str
):
    run = copied(unbroken, tmp_path)
    (run.path / name).write_text(content)
    result = resume(run)
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert name != "meta.json" or "hint: restore it from a copy" in result.stderr


def test_checkpoints_that_are_gone_are_not_said_never_to_have_been(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    for step in run.saved_steps():
        shutil.rmtree(run.checkpoint(step))
    result, lines = resume(run), run.metrics_path.read_bytes()
    assert result.exit_code == 2, result.output
    assert f"{run.path} has lost its checkpoints: its metrics reach step " in " ".join(result.stderr.split())
    assert run.metrics_path.read_bytes() == lines


def test_another_recipe_in_a_run_is_told(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    text = run.recipe_path.read_text()
    run.recipe_path.write_text(text.replace("learning_rate: 0.003", "learning_rate: 0.007"))
    assert run.recipe_path.read_text() != text
    result = resume(run)
    assert f"note: {run.recipe_path} differs from what the run wrote" in result.stderr


def test_metrics_that_are_deleted_are_said_to_be_missing(unbroken: Unbroken, tmp_path: Path):
    run = copied(unbroken, tmp_path)
    run.metrics_path.unlink()
    assert f"{run.metrics_path} is missing: the curve of this run is lost up to" in (
        run.metrics_lost(LATER) or ""
    )


def test_metrics_that_are_lost_are_told_of_checkpoints_without_a_manifest_too(
    unbroken: Unbroken, tmp_path: Path
):
    run = copied(unbroken, tmp_path)
    (run.checkpoint(LATER) / manifest.NAME).unlink()
    assert run.metrics_lost(LATER) is None
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    run.metrics_path.write_text("".join(lines[:-2]))
    assert "has no line between steps 6 and 8" in (run.metrics_lost(LATER) or "")
    run.metrics_path.unlink()
    assert f"note: {run.metrics_path} has no line between steps 0 and 8" in resume(run, "--dry-run").stderr
