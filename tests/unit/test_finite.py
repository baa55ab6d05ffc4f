"""Numbers that stop being finite: the run ends in a sentence, and the last good checkpoint stays."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import make_trainer, tiny_model
from torch import Tensor
from transformers import TrainerCallback

from mrt5cli.errors import RunFailed
from mrt5cli.json_files import finite
from mrt5cli.models import load
from mrt5cli.output import print_json
from mrt5cli.recipe import LossSection, PController
from mrt5cli.rundir import RunDir
from mrt5cli.training.finite import is_finite
from mrt5cli.training.trainer import DeletionTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Poison(TrainerCallback):
    """Puts a number where there should be none, in the step before which `step` steps are done."""

    trainer: DeletionTrainer

    def __init__(self, where: str, step: int, number: float) -> None:
        self.where, self.step, self.number = where, step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != self.step:
            return
        head = self.trainer.model.lm_head.weight
        if self.where == "gradient":
            head.register_hook(lambda gradient: gradient * self.number)
        elif self.where == "alpha":
            self.trainer.controller.i.fill_(self.number)  # type: ignore[attr-defined]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != self.step:
            return
        head = self.trainer.model.lm_head.weight
        with torch.no_grad():
            if self.where == "weights":
                head[0, 0] = self.number
            elif self.where == "moments":
                self.trainer.optimizer.state[head]["exp_avg"][0, 0] = self.number


def poisoned(
    folder: Path, where: str, number: float, *, logging_steps: int, step: int = 3, **more: Any
) -> tuple[RunDir, RunFailed]:
    """A run that saves every step and keeps one checkpoint, poisoned after three good steps."""
    run = RunDir.create(folder / "run")
    poison = Poison(where, step, number)
    trainer = make_trainer(
        folder, run=run, steps=8, logging_steps=logging_steps, save_steps=1, callbacks=[poison], **more
    )
    poison.trainer = trainer
    trainer.settings = trainer.settings.model_copy(update={"keep_checkpoints": 1})
    with pytest.raises(RunFailed) as failed:
        trainer.train_from(None)
    return run, failed.value


@pytest.mark.parametrize("logging_steps", [1, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("weights", math.nan),
        pytest.param("weights", -math.inf, marks=pytest.mark.slow),
        pytest.param("moments", math.nan, marks=pytest.mark.slow),
        ("gradient", math.inf),
        pytest.param("alpha", math.inf, marks=pytest.mark.slow),
    ],
)
def test_the_last_good_checkpoint_stays_and_resumes(
    tmp_path: Path, where: str, number: float, logging_steps: int
) -> None:
    run, failed = poisoned(tmp_path, where, number, logging_steps=logging_steps)
    told = {"gradient": "loss or its gradient"}.get(where, where) if logging_steps == 1 else ""
    assert told in failed.message
    assert "stopped being finite at or before step 4" in failed.message
    assert ("controller.k_p (0.5 now)" in str(failed.hint)) == (where == "alpha")
    assert run.saved_steps() == [3]
    assert all(
        weight.isfinite().all() for weight in load_file(run.checkpoint(3) / "model.safetensors").values()
    )
    assert "NaN" not in run.metrics_path.read_text() and "Infinity" not in run.metrics_path.read_text()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003"]  # nothing half-written
    resumed = make_trainer(tmp_path, model=load(run.checkpoint(3)).train(), steps=5, save_steps=1, run=run)
    resumed.train_from(run.checkpoint(3))
    assert run.saved_steps()[-1] == 5


def test_the_last_step_is_looked_at_too(tmp_path: Path) -> None:
    run, failed = poisoned(tmp_path, "weights", math.nan, logging_steps=100, step=7)
    assert "the model's weights stopped being finite at or before step 8" in failed.message
    assert run.saved_steps() == [7]


def test_weights_that_are_not_finite_are_never_the_best(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    trainer = make_trainer(tmp_path, run=run, steps=2, best_metric="token_accuracy")
    trainer.train_from(None)
    assert trainer.offer(0.5)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = math.nan
    trainer.state.global_step = 3
    with pytest.raises(RunFailed, match="weights"):
        trainer.offer(1.0)  # accuracy is a number whatever the weights are
    assert run.best_steps() == [2]
    with pytest.raises(RunFailed, match="weights"):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


# --- what to do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "bf16", "hint"),
    [
        (
            [5.0, 1.0, 0, 0, 0, 0],
            False,
            r"lower training.learning_rate \(0.003 now\) or raise training.warmup_steps",
        ),
        ([5.0, 1.0, 0, 0, 0, 0], True, "training.warmup_steps, or set training.precision=fp32"),
        ([math.inf, 9.0, 0, 0, 0, 0], False, "lower training.learning_rate"),
        (
            [5.0, -4e7, 0, 0, 0, 0],
            False,
            "the gate loss, alpha included, reached 4e.07, with a cross-entropy of 5: lower what sets "
            r"alpha: controller.k_p \(0.5 now\), controller.k_i \(0.01 now\), controller.alpha_start",
        ),
        ([5.0, 1.0, 0, 600.0, 0, 0], False, "the score loss reached 600, .* lower loss.score_coefficient"),
        ([5.0, 1.0, math.inf, 0, 0, 0], False, "entropy terms reached inf, .* loss.entropy_coefficient_1"),
    ],
)
def test_the_hint_is_about_what_drove_it(tmp_path: Path, parts: list[float], bf16: bool, hint: str) -> None:
    trainer = make_trainer(tmp_path, bf16=bf16)
    terms = type("Terms", (), {"deleted": torch.tensor(1.0), "counted": torch.tensor(2.0)})()
    for each in ([1.0] * 6, parts, [math.nan] * 6):
        terms.parts = torch.tensor(each)
        trainer.window.add(terms, torch.ones(6, dtype=torch.float64))
    trainer.create_optimizer()
    with pytest.raises(RunFailed, match="the loss stopped being finite") as failed:
        trainer.check_finite()
    assert re.search(hint, str(failed.value.hint))


def test_gains_that_are_too_high_are_named(tmp_path: Path) -> None:
    """Nothing is put in by hand: a gate loss without a floor, and a controller that pushes it on."""
    controller = PController(kind="p", target_deletion_rate=0.99, k_p=1e6, every_steps=1)
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(row_without_survivors="first"),
        steps=400,
        loss=LossSection(gate_loss="logits_mean"),
        controller=controller,
        run=RunDir.create(tmp_path / "run"),
        max_grad_norm=1e9,
    )
    trainer.args.learning_rate = 10.0
    with pytest.raises(RunFailed, match="stopped being finite") as failed:
        trainer.train_from(None)
    assert "controller.k_p (1e+06 now)" in str(failed.value.hint)


# --- tensors and JSON -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_number_among_many_is_found(number: float, dtype: torch.dtype) -> None:
    def tensors() -> list[Tensor]:
        return [torch.ones(3, 50, dtype=dtype), torch.empty(0), torch.tensor(3), torch.full((7,), 3e38)]

    assert is_finite(tensors())
    for place in (0, 149):
        broken = tensors()
        broken[0].view(-1)[place] = number
        assert not is_finite(broken)


def test_json_has_null_in_place_of_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    tree = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}], "d": "NaN", "e": True, "f": 2}
    wanted = {"a": None, "b": [None, {"c": [None, 1.5]}], "d": "NaN", "e": True, "f": 2}
    assert finite(tree) == wanted
    print_json(tree)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == wanted


def test_no_line_of_metrics_has_a_nan(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.add_metrics({"step": 1, "validation": {"en": {"loss": math.nan}}})
    assert run.metrics_path.read_text() == '{"step": 1, "validation": {"en": {"loss": null}}}\n'


# --- several processes ------------------------------------------------------------------------------------

TWO = """
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_finite import Poison
from test_trainer import Stream, make_trainer

from mrt5cli.errors import RunFailed
from mrt5cli.rundir import RunDir

rank, where, logging_steps = int(os.environ["RANK"]), sys.argv[1], int(sys.argv[2])
run = RunDir(Path(sys.argv[3]) / "run")
poison = Poison(where, 3 if rank == 1 else -1, float("nan"))  # the trouble of one is the end of all
stream = Stream()
stream.may_fail = False
trainer = make_trainer(
    run.path, run=run, steps=8, logging_steps=logging_steps, save_steps=1, callbacks=[poison], stream=stream
)
poison.trainer = trainer
try:
    trainer.train_from(None)
except RunFailed as failed:
    Path(f"{sys.argv[3]}/{rank}").write_text(failed.message)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("logging_steps", [1, 100])
@pytest.mark.parametrize("where", ["weights", "moments", "gradient"])
def test_two_processes_fail_together(tmp_path: Path, where: str, logging_steps: int) -> None:
    tests, program = Path(__file__).parents[1], tmp_path / "two.py"
    program.write_text(TWO)
    run = RunDir.create(tmp_path / "run")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(program)]
    path = os.pathsep.join(map(str, (tests, tests / "unit", tests.parent)))
    done = subprocess.run(
        [*launch, where, str(logging_steps), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert "stopped being finite at or before step 4" in (tmp_path / str(rank)).read_text()
    assert run.saved_steps()[-1] == 3
    assert not list(run.checkpoints.glob(".tmp-*"))
