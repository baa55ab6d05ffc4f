"""`--continue-for`: a finished run trains longer, perhaps with other settings; and RUN@step-500."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_of_commands import MRT5, curve, start
from safetensors.torch import load_file
from typer.testing import CliRunner

from mrt5cli import load, locks, pretrain, rundir
from mrt5cli.cli import app
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import parse_overrides
from mrt5cli.rundir import RunDir
from mrt5cli.subject import find_subject
from mrt5cli.training.pretrain import Training, training_of
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
  max_steps: 20
  batch_size: 8
  device_batch_size: 4
  learning_rate: 3.0e-3
  schedule: constant
  warmup_steps: 4
  logging_steps: 2
  save_steps: 7
evaluation: {examples: 8, batch_size: 4}
"""
FIRST = 12
"""Steps of the finished run that is continued."""


def train(folder: Path, out: str, **settings: object) -> RunDir:
    given = {f"training.{key}": value for key, value in settings.items()}
    (folder / "tiny.yaml").write_text(RECIPE)
    return pretrain(folder / "tiny.yaml", given, out=folder / out, device="cpu", progress=False)


def go_on(run: RunDir, steps: int, /, **settings: object) -> RunDir:
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return pretrain(run, given, continue_for=steps, device="cpu", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs: `whole`, and `first`, which ended before."""
    folder = tmp_path_factory.mktemp("continuing")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder, "whole")
    train(folder, "first", max_steps=FIRST)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def whole(folder: Path) -> RunDir:
    return RunDir(folder / "whole")


@pytest.fixture
def first(folder: Path, tmp_path: Path) -> RunDir:
    """A copy of the run that ended before."""
    shutil.copytree(folder / "first", tmp_path / "run")
    return RunDir(tmp_path / "run")


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def assert_equal(found: RunDir, wanted: RunDir) -> None:
    """To the last bit: curves, weights, moments and all other state."""
    assert curve(found) == curve(wanted)
    weights, others = weights_of(found), weights_of(wanted)
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    last = wanted.checkpoint(wanted.saved_steps()[-1]).name
    found_at, wanted_at = found.checkpoints / last, wanted.checkpoints / last
    states = [torch.load(each / "optimizer.pt")["state"] for each in (found_at, wanted_at)]
    for weight, moments in states[1].items():
        assert all(torch.equal(states[0][weight][name], moment) for name, moment in moments.items())
    own = [json.loads((each / "mrt5_state_0.json").read_text()) for each in (found_at, wanted_at)]
    for state in own:
        del state["seconds"], state["window"]["seconds"]
    assert own[0] == own[1]


# --- as if it had never ended -------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_the_run_that_never_ended(first: RunDir, whole: RunDir) -> None:
    assert go_on(first, 8) == first
    assert_equal(first, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"data_workers": 2},
        {"device_batch_size": 8},
        {"lora": {"rank": 2}},
        {"best_metric": "loss", "eval_steps": 4},
        {"schedule": "linear", "warmup_steps": 0, "max_steps": 12},
    ],
    ids=str,
)
def test_so_it_is_with_other_settings(tmp_path: Path, settings: dict[str, Any]) -> None:
    """In two segments; of a schedule that falls, the first of them is the second's start."""
    falls = settings.get("schedule") == "linear"
    wanted = None if falls else train(tmp_path, "whole", **settings)
    found = train(tmp_path, "found", **{**settings, "max_steps": FIRST - 4})
    go_on(go_on(found, 4), 8)
    if wanted is not None:
        # Where weights are chosen, the last step is measured too.
        rows = [row for row in curve(found) if "best" not in row or row["step"] % 4 == 0]
        assert rows == curve(wanted)
        assert all(torch.equal(weights_of(found)[name], each) for name, each in weights_of(wanted).items())
    else:
        rates = [row["learning_rate"] for row in found.metrics()]
        expected = [7, 5, 3, 1], [3, 1], [7, 5, 3, 1]
        assert rates == pytest.approx([3e-3 * left / (2 * len(of)) for of in expected for left in of])


def test_numbers_of_a_segment_are_the_same_after_a_kill_at_each_of_its_writes(
    first: RunDir, whole: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files separate a finished run from its segment; then there is the new model."""

    class Killed(BaseException):
        pass

    def killing(function: Callable[..., Any], at: Path) -> Callable[..., Any]:
        def killed(path: Path, *rest: Any) -> None:
            if path == at:
                raise Killed
            function(path, *rest)

        return killed

    kept = first.segment(FIRST) / "recipe.yaml"
    before = weights_of(first)
    for name, path in (
        ("write_bytes", kept),
        ("write_json", first.meta_path),
        ("write_text", first.recipe_path),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(rundir, name, killing(getattr(rundir, name), path))
            with pytest.raises(Killed):
                go_on(first, 8)
        assert first.recipe().training.max_steps == FIRST
        assert all(torch.equal(weights_of(first)[name], each) for name, each in before.items())
        if not first.is_finished:  # it states that it continues, but has not started
            pretrain(first.recipe_path, out=first.path, resume=True, device="cpu", progress=False)
        assert first.is_finished and first.meta()["step"] == FIRST
    with monkeypatch.context() as patch:

        def killed_at_the_end(run: RunDir, step: int) -> None:
            raise Killed

        patch.setattr(RunDir, "keep_results", killed_at_the_end)
        with pytest.raises(Killed):
            go_on(first, 8)
    assert all(torch.equal(weights_of(first)[name], each) for name, each in before.items())
    pretrain(first.recipe_path, out=first.path, resume=True, device="cpu", progress=False)
    assert_equal(first, whole)
    assert kept.read_text().count("continues_from: 0") == 1


@pytest.mark.slow
@pytest.mark.parametrize("time_of_kill", range(4))
def test_a_segment_that_is_killed_anywhere_comes_to_the_same_numbers(
    first: RunDir, whole: RunDir, chance: random.Random, time_of_kill: int
) -> None:
    words = ("--continue-for", "8", "--device", "cpu")
    process = start(first.path.parent, *MRT5, "pretrain", "run", *words)
    until = chance.choice([FIRST, FIRST + 2, FIRST + 6, 20])
    print(f"to be killed once step {until} is logged, or the run has begun")
    for _ in range(6000):
        began = first.meta()["status"] == "running"
        if process.poll() is not None or (began and first.metrics()[-1]["step"] >= until):
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.1))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    load(first.path)  # some model is always there
    if not first.is_finished:
        pretrain(first.recipe_path, out=first.path, resume=True, device="cpu", progress=False)
    if first.meta()["step"] == FIRST:
        go_on(first, 8)
    assert_equal(first, whole)


def test_processes_that_come_later_join_in_what_the_first_has_begun(
    first: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They find a run that is being trained, by its new recipe, or, for a moment, still by the one before."""

    def asked() -> Training:
        words = {"out": None, "resume": False, "smoke": False, "device": "cpu", "allow_pickle": True}
        return training_of(first.path, ["loss.score_coefficient=0.2"], continue_for=8, **words)

    leader, before = asked(), first.recipe_path.read_bytes()
    session = {"segment": {"from_step": FIRST, "to_step": 20}}
    with first.opened(
        leader.recipe, {"status": "running", "sessions": [session]}, step=FIRST, found=first.state()
    ):
        monkeypatch.setenv("WORLD_SIZE", "2")
        for recipe in (first.recipe_path.read_bytes(), before):
            first.recipe_path.write_bytes(recipe)
            monkeypatch.setenv("RANK", "1")
            assert asked() == leader
            assert leader.plan().resume_step == FIRST
            monkeypatch.setenv("RANK", "0")
            monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
            with pytest.raises(UserError, match="another process is training"):
                asked()


# --- what is set, and what is written -----------------------------------------------------------------------


def test_a_segment_has_a_learning_rate_of_its_own_and_what_is_set(
    first: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = first.metrics()[-1]["alpha"]
    settings = {
        "training.learning_rate": 1e-3,
        "training.schedule": "linear",
        "training.warmup_steps": 2,
        "training.weight_decay": 0.1,
        "training.save_steps": 2,
        "training.logging_steps": 1,
        "training.keep_checkpoints": 9,
        "controller.kind": "pi",
        "controller.target_deletion_rate": 0.5,
    }
    pretrain(first, settings, continue_for=6, device="cpu", progress=False)
    rows = first.metrics()
    new = [row for row in rows if row["step"] > FIRST]
    assert [row["step"] for row in new] == [13, 14, 15, 16, 17, 18]
    assert [row["learning_rate"] for row in new] == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert {row["target"] for row in new} == {0.5}
    # Of another kind, alpha is what it was until the first update.
    state = json.loads((first.checkpoint(FIRST) / "mrt5_state_0.json").read_text())["controller"]
    assert new[0]["alpha"] == state["alpha"] != alpha
    assert first.saved_steps() == [7, 12, 14, 16, 18]
    (group,) = {
        each["weight_decay"] for each in torch.load(first.checkpoint(14) / "optimizer.pt")["param_groups"]
    } - {0.0}
    assert group == 0.1
    assert all(one["seconds"] < other["seconds"] for one, other in pairwise(rows))

    training = first.recipe().training
    assert (training.continues_from, training.max_steps, training.warmup_steps) == (FIRST, 18, 2)
    session = first.meta()["sessions"][-1]
    assert session["segment"] == {"from_step": FIRST, "to_step": 18}
    assert session["set"]["training.learning_rate"] == "0.003 in the run, 0.001 now"
    assert "training.max_steps" not in session["set"]
    assert first.recipe_changed() is None
    assert find_subject(f"{first.path}@7").recipe.training.max_steps == FIRST
    assert find_subject(f"{first.path}@14").recipe == find_subject(str(first.path)).recipe == first.recipe()


def test_steps_between_lines_and_checkpoints_are_those_of_the_recipe_after_a_resume(first: RunDir) -> None:
    meta = first.meta()
    write_json(first.meta_path, {**meta, "status": "interrupted"})
    shutil.rmtree(first.checkpoint(FIRST))
    given = {"training.save_steps": 2}
    pretrain(first.recipe_path, given, out=first.path, resume=True, device="cpu", progress=False)
    assert first.saved_steps() == [10, 12]


def test_a_plan_tells_of_the_steps_before_and_of_the_learning_rate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = ("pretrain", "first", "--continue-for", "8", "--dry-run", "--device", "cpu")
    given = ("--set", "training.learning_rate=1e-3", "--set", "loss.score_coefficient=0.2")
    files = sorted(folder.rglob("*"))
    plain, found = (CliRunner().invoke(app, [*words, *more]) for more in ((), (*given, "--json")))
    assert found.exit_code == plain.exit_code == 0, found.output + plain.output
    told = plain.output
    assert "8 more after the first 12, of 8 examples" in told
    assert "learning rate 0.003, constant, starting at step 12" in told
    assert "note: the learning rate" not in told
    document = json.loads(found.stdout)
    assert (document["resume_step"], document["continues_from"]) == (12, 12)
    assert document["notes"] == [
        "loss.score_coefficient: 0.1 in the run, 0.2 now",
        "training.learning_rate: 0.003 in the run, 0.001 now",
        "the learning rate ended at 0.003, and jumps to 0.001; --set training.warmup_steps=N "
        "raises it over N steps instead",
    ]
    assert sorted(folder.rglob("*")) == files


def test_results_of_the_model_before_are_not_those_of_the_new_one(first: RunDir) -> None:
    for name in ("vowel_removal", "vowel_removal-step-00000007"):
        write_json(first.eval(name), {})
    while_it_trains: list[str] = []

    def look(run: RunDir, row: dict[str, Any]) -> None:
        subject = find_subject(str(run.path))
        while_it_trains.append(f"{subject.name} {subject.recipe.controller.target_deletion_rate}")
        real(run, row)

    real = RunDir.add_metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "add_metrics", look)
        go_on(first, 2, controller__target_deletion_rate=0.5)
    assert while_it_trains == ["run 0.2"]  # what its model was trained by until then
    assert find_subject(str(first.path)).recipe.controller.target_deletion_rate == 0.5
    assert [path.name for path in first.eval("").parent.iterdir()] == ["vowel_removal-step-00000007.json"]
    assert [path.name for path in (first.segment(FIRST) / "eval").iterdir()] == ["vowel_removal.json"]


@pytest.mark.slow
def test_the_best_weights_are_those_of_all_segments_and_patience_begins_anew(tmp_path: Path) -> None:
    settings = {"best_metric": "loss", "eval_steps": 2, "patience": 2, "schedule": "constant"}
    run = train(tmp_path, "run", learning_rate=0.3, **settings)
    best = run.meta()["best"]
    assert best["stopped_early"] and (ended := run.meta()["step"]) < 20
    weights = weights_of(run)
    go_on(run, 10, training__learning_rate=0.3)  # no better
    assert run.meta()["step"] == ended + 4
    assert run.meta()["best"] == best
    assert all(torch.equal(weights[name], each) for name, each in weights_of(run).items())
    go_on(run, 2, training__best_metric=None, training__patience=None)
    assert run.meta()["best"] is None
    assert not all(torch.equal(weights[name], each) for name, each in weights_of(run).items())
    go_on(run, 2, training__best_metric="loss")
    assert run.meta()["best"]["step"] == run.meta()["step"]


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("model.dropout=0.0", "the model or the data"),
        ("model.start=google/byt5-small", "the model or the data"),
        ("task.length=14", "the model or the data"),
        ("seed=8", "the model or the data"),
        ("name=other", "the model or the data"),
        ("training.batch_size=16", "counted in batches"),
        ("training.lora={rank: 2}", "to other weights"),
        ("controller={kind: p, target_deletion_rate: 0.2, alpha_start: 0.5}", "from its current value"),
    ],
)
def test_what_would_be_another_run(folder: Path, setting: str, why: str) -> None:
    first = RunDir(folder / "first")
    key, _, value = setting.partition("=")
    if key == "model.start":
        given: dict[str, Any] = {key: value, "model.shape": None}
    else:
        given = {key: parse_overrides([f"value={value}"])["value"]}
    with pytest.raises(UserError, match="cannot continue with these settings changed") as error:
        pretrain(first, given, continue_for=8, device="cpu", progress=False)
    assert why in error.value.message
    assert f"mrt5 finetune {first.recipe_path} --from {first.path} --out DIR" in str(error.value.hint)
    assert not first.segments.exists()


def test_other_ways_to_train_and_what_is_no_finished_run(
    first: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "empty").mkdir()

    def refused(*words: str) -> str:
        result = CliRunner().invoke(app, ["pretrain", *words, "--continue-for", "5"])
        assert result.exit_code == 2, result.output
        return result.stderr

    for other in ("--resume", "--smoke", "--out=elsewhere"):
        told = f"error: {other.partition('=')[0]} cannot be combined with --continue-for"
        assert told in refused("run", other)
    for key in ("training.max_steps=9", "training={max_steps: 9}", "training.continues_from=3"):
        assert f"--set {key.partition('=')[0]} cannot be combined with --continue-for" in refused(
            "run", "--set", key
        )
    assert "error: tiny fine-tunes" not in refused("tiny.yaml")
    assert "requires a run directory, but tiny.yaml is a recipe" in refused("tiny.yaml")
    assert "requires a run directory, but run/recipe.yaml is its recipe\nhint: name the run: run" in refused(
        "run/recipe.yaml"
    )
    assert "requires a run directory, but nothing does not exist" in refused("nothing")
    Path("runs").mkdir()
    Path("runs", "below").symlink_to(Path("run").absolute())
    assert "but below does not exist\nhint: name the run: runs/below" in refused("below")
    assert "requires a run directory, but empty is not a run directory" in refused("empty")
    assert "9 exceeds the 5 remaining steps" in refused("run", "--set", "training.warmup_steps=9")
    result = CliRunner().invoke(app, ["pretrain", "run", "--continue-for", "0"])
    assert result.exit_code == 2 and "greater than or equal to 1" in result.stderr
    result = CliRunner().invoke(app, ["pretrain", "run"])
    assert "--continue-for N to train the run longer" in result.stderr

    write_json(first.meta_path, {**first.meta(), "status": "interrupted"})
    told = refused("run")
    assert "requires a finished run, but run is interrupted\nhint: first: mrt5 pretrain" in told
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with first.hold():
        assert "another process is training in run" in refused("run")


def test_a_run_without_its_end_cannot_go_on(first: RunDir) -> None:
    damaged = first.checkpoint(FIRST) / "optimizer.pt"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"optimizer\.pt has .* bytes, .* in the data are lost") as error:
        go_on(first, 8)
    assert "restore the checkpoint" in str(error.value.hint)
    shutil.rmtree(first.checkpoint(FIRST))
    with pytest.raises(UserError, match="has no checkpoint of step 12, from which to continue"):
        go_on(first, 8)
    shutil.rmtree(first.checkpoints)
    with pytest.raises(UserError, match="has no checkpoint of step 12, from which to continue"):
        go_on(first, 8)
    assert first.is_finished


def test_the_recipe_of_a_segment_begins_no_run(first: RunDir, tmp_path: Path) -> None:
    go_on(first, 2)
    with pytest.raises(UserError, match=r"continues_from: 12 continues a finished run, and .* none"):
        pretrain(first.recipe_path, out=tmp_path / "new", device="cpu", progress=False)
    again = pretrain(first.segment(FIRST) / "recipe.yaml", out=tmp_path / "new", device="cpu", progress=False)
    assert curve(again) == [row for row in curve(first) if row["step"] <= FIRST]
    with pytest.raises(
        RecipeError, match=r"continues_from  must be less than training\.max_steps 12, not 12"
    ):
        pretrain(again.recipe_path, {"training.continues_from": FIRST})


# --- RUN@step -----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_named_by_its_step(
    first: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run@step-7", "run@7", "run@step-00000007", f"{tmp_path}/run@7"):
        assert find_subject(name).source.endswith("run/checkpoints/step-00000007")
        assert find_subject(name).name == "run/step-00000007"
    assert find_subject("run@last").step == FIRST
    weights = load_file(first.checkpoint(7) / "model.safetensors")
    assert torch.equal(load("run@7").lm_head.weight, weights["lm_head.weight"])
    first.best_weights(3).mkdir(parents=True)
    shutil.copytree(first.model, first.best_weights(3), dirs_exist_ok=True)
    assert find_subject("run@best").source.endswith("run/best/step-00000003")
    Path("run@step-7").symlink_to(first.model)
    assert find_subject("run@step-7").source == "run@step-7"


@pytest.mark.parametrize(
    ("name", "told", "hint"),
    [
        ("run@step-8", "run has no checkpoint of step 8", "choose one of run@step-7, run@step-12"),
        (
            "run@best",
            "run has no best weights: its recipe sets no training.best_metric",
            "choose one of run@step-7",
        ),
        ("run@first", "run has no checkpoint 'first'", "choose one of run@step-7"),
        ("run@", "run has no checkpoint ''", "choose one of run@step-7"),
        ("google/byt5-small@main", "google/byt5-small@main does not exist", "--revision"),
        ("@7", "@7 does not exist", "use RUN@step-500 for a local run"),
    ],
)
def test_a_step_that_is_not_there(
    first: RunDir, monkeypatch: pytest.MonkeyPatch, name: str, told: str, hint: str
) -> None:
    monkeypatch.chdir(first.path.parent)
    with pytest.raises(UserError) as error:
        find_subject(name)
    assert error.value.message.startswith(told)
    assert hint in str(error.value.hint)


def test_a_step_is_a_start_and_no_hub_id(first: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first.path.parent)
    words = ("run/recipe.yaml", "--from", "run@7", "--out", "new", "--set", "training.max_steps=5")
    result = CliRunner().invoke(app, ["finetune", *words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "from run@7, delete gate included" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", "run@7", "--revision", "main"])
    assert "--revision main needs a Hub model, and none is given" in result.stderr
