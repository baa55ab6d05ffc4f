"""Trackers: what they are sent, that they go on where a run does, and that none of them ends a training.

The real ones are tried by `tests/cli/test_real_trackers.py`; here stand-ins take the place of transformers'
callbacks, so that none needs to be installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from typer.testing import CliRunner

from mrt5cli import pretrain
from mrt5cli import recipe as recipes
from mrt5cli.cli import app
from mrt5cli.extras import how_to_install
from mrt5cli.recipe.schema import TrainingSection
from mrt5cli.rundir import RunDir
from mrt5cli.training import trackers
from mrt5cli.training.arguments import OneDeviceArguments

TINY = {
    "training.max_steps": 6,
    "training.logging_steps": 1,
    "training.save_steps": 2,
    "training.eval_steps": 3,
    "loss.score_coefficient": 0.5,
}


class Killed(BaseException):
    """The process is gone in the middle of a step."""


class StandIn(TrainerCallback):
    """A tracker that remembers what it was sent."""

    made: ClassVar[list[StandIn]] = []
    ends: ClassVar[Callable[[int], None]] = staticmethod(lambda step: None)

    def __init__(self) -> None:
        self.logging_dir: str | None = None
        self.texts: dict[str, str] = {}
        self.tb_writer = SimpleNamespace(add_text=self.texts.__setitem__)
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.name = self.ended = ""
        self.made.append(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert more["model"] is not None
        self.name = args.run_name

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        type(self).ends(state.global_step)
        self.rows.append((state.global_step, logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = "ended"


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", lambda names: [StandIn])
    monkeypatch.setattr(TrainingSection, "lacks", lambda self: None)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn.made


def train(out: Path, report_to: list[str], resume: bool = False) -> list[dict[str, Any]]:
    """Train to step 6; the lines of metrics."""
    settings = {**TINY, "training.report_to": report_to}
    run = pretrain("quickstart", settings, out=out, smoke=True, resume=resume, device="cpu")
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_a_tracker_is_sent_the_cross_entropy_as_loss_and_every_other_number(
    tmp_path: Path, stand_ins: list[StandIn]
) -> None:
    rows = train(tmp_path / "run", ["tensorboard"])
    [tracker] = stand_ins
    assert tracker.name == "run" and tracker.ended == "ended"
    assert tracker.logging_dir == str(tmp_path / "run" / "tensorboard")
    assert "    max_steps: 6" in tracker.texts["recipe"]
    logged = {row["step"]: row for row in rows if "loss" in row}
    sent = {step: row for step, row in tracker.rows if "loss" in row}
    assert [*sent] == [*logged] == [1, 2, 3, 4, 5, 6]
    for step, row in sent.items():
        line = logged[step]
        assert row.pop("memory_bytes") > 1e8
        assert row.pop("loss") == line["cross_entropy"] and row.pop("total_loss") == line["loss"]
        assert row.pop("gate_term") == line["gate_loss"]
        assert row.pop("score_term") == 0.5 * line["score_loss"]
        assert row.pop("auxiliary_term") == 0.0
        same = ("alpha", "target", "deletion_rate", "kept_length", "bytes_per_second", "learning_rate")
        assert row == {name: line[name] for name in (*same, "grad_norm")}
    validations = [(step, row) for step, row in tracker.rows if "eval_loss" in row]
    of_lines = {row["step"]: row["validation"]["all"] for row in rows if "validation" in row}
    assert [step for step, _ in validations] == [3, 6] == [*of_lines]
    for step, row in validations:
        assert row == {f"eval_{name}": value for name, value in of_lines[step].items()}


def test_terms_are_told_as_they_enter_the_loss() -> None:
    row = dict.fromkeys(trackers.AS_THEY_ARE, 0.0)
    row |= {"loss": 1.75, "cross_entropy": 2.0, "gate_loss": -0.5, "score_loss": 0.5}
    sent = trackers.logged(row, score_coefficient=0.25)
    assert (sent["loss"], sent["total_loss"]) == (2.0, 1.75)
    assert (sent["gate_term"], sent["score_term"], sent["auxiliary_term"]) == (-0.5, 0.125, 0.125)


def test_several_subsets_and_their_total_have_names_of_their_own() -> None:
    rows = {"en": {"loss": 1.0}, "sw": {"loss": 2.0}, "total": {"loss": 1.5}}
    sent = trackers.validated({"step": 1, "validation": rows})
    assert sent == {"eval_loss": 1.5, "eval_en/loss": 1.0, "eval_sw/loss": 2.0}


def test_a_resumed_run_is_the_same_for_a_tracker_and_no_step_is_sent_twice(
    tmp_path: Path, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice behind the checkpoint of step 4: once at 6, and resumed at once at 5."""

    def killed_at(last: int) -> Callable[[int], None]:
        def end(step: int) -> None:
            if step == last:
                raise Killed

        return staticmethod(end)  # type: ignore[return-value]

    monkeypatch.setattr(StandIn, "ends", killed_at(6))
    fake = ModuleType("trackio")
    fake.config = SimpleNamespace(update=lambda *_, **__: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    with pytest.raises(Killed):
        train(tmp_path / "run", ["trackio"])
    monkeypatch.setattr(StandIn, "ends", staticmethod(lambda step: None))
    train(tmp_path / "run", ["trackio"], resume=True)
    first, second = stand_ins
    steps = [[step for step, row in tracker.rows if "loss" in row] for tracker in stand_ins]
    assert steps == [[1, 2, 3, 4, 5], [6]]
    validations = [[step for step, row in tracker.rows if "eval_loss" in row] for tracker in stand_ins]
    assert validations == [[3], [6]]
    assert first.name == second.name and first.name.startswith("run-")
    train(tmp_path / "other" / "run", ["trackio"])
    assert stand_ins[-1].name != first.name, "a run of the same name is another"


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_told_of_once_and_the_training_goes_on(
    tmp_path: Path,
    stand_ins: list[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("the service is away\nand more")

    monkeypatch.setattr(
        StandIn, {"begin": "on_train_begin", "log": "on_log", "end": "on_train_end"}[where], away
    )
    rows = train(tmp_path / "run", ["tensorboard"])
    assert rows[-1]["step"] == 6
    said = capsys.readouterr().err
    told = "note: tensorboard failed and receives nothing more: ConnectionError: the service is away\n"
    assert said.count(told) == 1 == said.count("the service is away")
    assert "done: 6 steps" in said


def test_what_a_tracker_prints_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandIn, "on_train_begin", lambda *_, **__: print("* dashboard at ..."))
    train(tmp_path / "run", ["tensorboard"])
    out, err = capsys.readouterr()
    assert out == "" and "* dashboard at ..." in err


# --- wandb --------------------------------------------------------------------------------------------------


class Wandb(ModuleType):
    """What is used of the package; `run` is the one that is under way."""

    def __init__(self, run: object = None) -> None:
        super().__init__("wandb")
        self.run, self.given, self.ended = run, {}, []
        self.config = SimpleNamespace(update=lambda content, **_: self.given.update(config=content))

    def init(self, **given: object) -> object:
        self.given.update(given)
        return SimpleNamespace(finish=lambda exit_code: self.ended.append(exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_of_wandb_has_the_name_the_place_and_the_recipe_of_ours(tmp_path: Path, wandb: Wandb) -> None:
    train(tmp_path / "run", ["wandb"])
    first = {**wandb.given}
    assert first.pop("config")["recipe"]["training"]["max_steps"] == 6
    known = json.loads((tmp_path / "run" / "meta.json").read_text())["sessions"][0]["tracked"]["id"]
    place = {"name": "run", "dir": str(tmp_path / "run"), "id": known, "resume": "allow"}
    settings = {"finish_timeout": trackers.FINISH_SECONDS}
    assert first == {"project": "huggingface", "settings": settings, **place}
    assert wandb.ended == [0]


@pytest.mark.parametrize(
    ("variable", "value", "key", "given"),
    [
        ("WANDB_PROJECT", "mine", "project", "mine"),
        ("WANDB_NAME", "mine", "name", None),
        ("WANDB_DIR", "/elsewhere", "dir", None),
        ("WANDB_RUN_ID", "mine", "id", None),
        ("WANDB_RESUME", "never", "resume", None),
        ("WANDB_FINISH_TIMEOUT", "1", "settings", None),
    ],
)
def test_what_the_environment_says_of_wandb_is_left_to_it(
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    key: str,
    given: str,
) -> None:
    monkeypatch.setenv(variable, value)
    sent = trackers.Trackers.__new__(trackers.Trackers)
    sent.tracked, sent.run = {"id": "run-1"}, RunDir(tmp_path / "run")
    sent._begin_wandb(SimpleNamespace(run_name="run"))  # type: ignore[arg-type]
    assert wandb.given.get(key) == given and len(wandb.given) == (6 if given else 5)


def test_wandb_is_left_out_where_the_environment_disables_it(
    tmp_path: Path, wandb: Wandb, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    train(tmp_path / "run", ["wandb"])
    assert wandb.given == {} and stand_ins == []


def test_a_run_of_wandb_that_somebody_has_begun_is_used_and_not_ended(
    tmp_path: Path, wandb: Wandb, stand_ins: list[StandIn]
) -> None:
    wandb.run = object()
    train(tmp_path / "run", ["wandb"])
    assert "project" not in wandb.given and wandb.ended == [] and len(stand_ins[0].rows) == 8


def test_wandb_hears_that_a_training_failed(
    tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(step: int) -> None:
        if step == 3:
            raise Killed

    monkeypatch.setattr(StandIn, "ends", staticmethod(end))
    with pytest.raises(Killed):
        train(tmp_path / "run", ["wandb"])
    assert wandb.ended == [1]


# --- which there are ----------------------------------------------------------------------------------------


def test_where_none_is_named_none_is_made_not_even_by_an_environment(
    tmp_path: Path, stand_ins: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "KUBEFLOW_TRAINER_SERVER_URL", "http://localhost:9"
    )  # transformers adds a callback then
    assert OneDeviceArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none").report_to == []
    train(tmp_path / "run", [])
    assert stand_ins == []
    assert "tracked" not in (tmp_path / "run" / "meta.json").read_text()


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker is; a folder `wandb/` that one has left in the working directory looks like a package."""
    monkeypatch.undo()
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    elsewhere = [path for path in sys.path if not (Path(path) / "wandb").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    find = importlib.util.find_spec
    absent = lambda name, *more: None if name in ("tensorboard", "trackio") else find(name, *more)
    monkeypatch.setattr(importlib.util, "find_spec", absent)


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("[wandb]", "needs the package wandb, which is not installed"),
        ("[tensorboard, trackio]", "needs the packages tensorboard and trackio, which are not installed"),
    ],
)
@pytest.mark.parametrize("command", ["pretrain --dry-run", "pretrain --smoke", "recipe check --no-build"])
def test_a_tracker_that_is_not_installed_is_told_of_before_anything_is_done(
    command: str, names: str, said: str
) -> None:
    words = [*command.split(), "quickstart_byt5", "--set", f"training.report_to={names}"]
    done = CliRunner().invoke(app, words)
    told = " ".join((done.output + done.stderr).split()) + str(done.exception or "")
    assert f"training.report_to {said}" in told
    assert how_to_install(*names[1:-1].split(", ")) in told
    assert not Path("runs").exists()
    assert recipes.load("quickstart_byt5", [f"training.report_to={names}"]), "it is right where they are"
