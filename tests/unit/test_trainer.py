"""The trainer on a tiny model and generated batches: control, accumulation, metrics, checkpoints, resume."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import labelled
from runs_of_commands import curve
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, TrainerCallback

from mrt5cli import recipe as recipes
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models.cache_name import CACHE
from mrt5cli.recipe import ConstantController, LossSection, PController, PIController
from mrt5cli.rundir import RunDir
from mrt5cli.training.arguments import OneDeviceArguments
from mrt5cli.training.best import Best
from mrt5cli.training.losses import PARTS
from mrt5cli.training.stream_loader import stream_loader
from mrt5cli.training.trainer import DeletionTrainer

RECIPE = recipes.load("quickstart_byt5")
PI = PIController(kind="pi", target_deletion_rate=0.6, k_i=0.01)


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """Batch i is a function of i: random bytes, rows of different lengths."""

    def __init__(self, rows: int = 3) -> None:
        self.rows = rows
        self.start_batch = 0

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 250, (self.rows, 12), generator=random)
        lengths = torch.randint(3, 13, (self.rows, 1), generator=random)
        ids = ids.masked_fill(torch.arange(12) >= lengths, 0)
        labels = torch.randint(3, 250, (self.rows, 4), generator=random)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batch(index) for index in count(self.start_batch))

    def state_dict(self, consumed: int) -> dict[str, int]:
        return {"start_batch": consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start_batch = state["start_batch"]


def tiny_model(dropout: float = 0.0, **fields: Any) -> MrT5ForConditionalGeneration:
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    config = MrT5Config(**shape, dropout_rate=dropout, delete_gate_layer=1, gate_bias_init=0.0, **fields)
    return MrT5ForConditionalGeneration(config)


def make_trainer(
    tmp_path: Path,
    *,
    model: Any = None,
    stream: Any = None,
    steps: int = 6,
    accumulation: int = 1,
    logging_steps: int = 2,
    save_steps: int = 1000,
    loss: LossSection | None = None,
    controller: Any = PI,
    run: RunDir | None = None,
    callbacks: list[TrainerCallback] | None = None,
    best_metric: str | None = None,
    patience: int | None = None,
    **more: Any,
) -> DeletionTrainer:
    kept = {"best_metric": best_metric, "patience": patience}
    recipe = RECIPE.model_copy(
        update={
            "loss": loss or LossSection(),
            "controller": controller,
            "seed": 5,
            "training": RECIPE.training.model_copy(update=kept),
        }
    )
    return DeletionTrainer(
        tiny_model() if model is None else model,
        OneDeviceArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            max_steps=steps,
            learning_rate=3e-3,
            gradient_accumulation_steps=accumulation,
            logging_steps=logging_steps,
            save_strategy="steps" if run else "no",
            save_steps=save_steps,
            ignore_data_skip=True,
            use_cache=True,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            log_level="error",
            **more,
        ),
        Stream() if stream is None else stream,
        recipe,
        run=run,
        callbacks=callbacks,
    )


class Rates:
    """Wraps a controller's `update` and keeps the rates it was given, with the alpha before."""

    def __init__(self, trainer: DeletionTrainer) -> None:
        self.seen: list[float] = []
        self.steps: list[int] = []
        original = trainer.controller.update

        def update(rate: torch.Tensor) -> None:
            self.seen.append(rate.item())
            self.steps.append(trainer.state.global_step)
            original(rate)

        trainer.controller.update = update  # type: ignore[method-assign]


# --- controller -------------------------------------------------------------------------------------------


def deleted_and_counted(model: Any, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    with torch.no_grad():
        gate = model(**batch).delete_gate_output
    real = batch["input_ids"] != 0
    return int(((gate < model.config.deletion_threshold) & real).sum()), int(real.sum())


def test_one_update_a_step_over_all_its_micro_batches(tmp_path: Path):
    model, stream = tiny_model(), Stream()
    parts = [deleted_and_counted(model, stream.batch(index)) for index in range(3)]
    trainer = make_trainer(tmp_path, model=model, steps=1, accumulation=3)
    rates = Rates(trainer)
    trainer.train_from(None)
    deleted, counted = (sum(column) for column in zip(*parts, strict=True))
    assert rates.seen == pytest.approx([deleted / counted])
    # The batches differ in length, so a mean of rates would be another number.
    assert rates.seen[0] != pytest.approx(sum(d / c for d, c in parts) / 3, abs=1e-4)


def test_an_update_each_micro_batch(tmp_path: Path):
    model, stream = tiny_model(), Stream()
    parts = [deleted_and_counted(model, stream.batch(index)) for index in range(3)]
    controller = PI.model_copy(update={"update_per": "micro_batch"})
    trainer = make_trainer(tmp_path, model=model, steps=1, accumulation=3, controller=controller)
    rates = Rates(trainer)
    trainer.train_from(None)
    assert rates.seen == pytest.approx([d / c for d, c in parts])


def test_updates_come_every_so_many_steps_after_the_delay(tmp_path: Path):
    controller = PController(kind="p", target_deletion_rate=0.6, every_steps=3)
    loss = LossSection(regularizer_delay=4)
    trainer = make_trainer(tmp_path, steps=11, controller=controller, loss=loss)
    rates = Rates(trainer)
    trainer.train_from(None)
    assert rates.steps == [6, 9]


def test_the_gate_loss_uses_the_alpha_from_before_the_update(tmp_path: Path):
    controller = PIController(kind="pi", target_deletion_rate=0.99, k_p=1.0, alpha_start=0.5)
    trainer = make_trainer(tmp_path, steps=1, controller=controller)
    trainer.train_from(None)
    assert float(trainer.alpha_used) == 0.5
    assert float(trainer.controller.alpha) != 0.5
    gates = trainer.terms.parts[PARTS.index("gate")].item() / 0.5
    assert -30.0 < gates < 0.0


def test_evaluation_moves_neither_controller_nor_draws(tmp_path: Path):
    loss = LossSection(hard_delete_probability=0.5)
    trainer = make_trainer(tmp_path, loss=loss)
    before = (trainer.controller.state_dict(), trainer.draws.bit_generator.state)
    model = trainer.model.eval()
    trainer.compute_loss(model, Stream().batch(0))
    assert (trainer.controller.state_dict(), trainer.draws.bit_generator.state) == before


def test_hard_batches_are_drawn_at_the_asked_rate(tmp_path: Path):
    trainer = make_trainer(tmp_path, steps=60, loss=LossSection(hard_delete_probability=0.3))
    seen: list[bool] = []
    forward = trainer.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["hard_delete"])
        assert kwargs["real_bytes"] == (kwargs["input_ids"] != 0).sum()  # a GPU is not asked for it
        return forward(*args, **kwargs)

    trainer.model.forward = watch
    trainer.train_from(None)
    assert len(seen) == 60
    assert 8 <= sum(seen) <= 28


def test_the_score_loss_is_asked_for_only_when_it_counts(tmp_path: Path):
    for beta in (0.0, 0.5):
        trainer = make_trainer(tmp_path, steps=1, loss=LossSection(score_coefficient=beta))
        trainer.train_from(None)
        output = trainer.compute_loss(trainer.model, Stream().batch(0), return_outputs=True)[1]
        assert (output.score_loss is not None) == (beta > 0)
        assert getattr(output, CACHE) is None  # nor is a generation cache filled in training


def test_models_without_a_learned_gate_train_too(tmp_path: Path):
    for kind in ("none", "random"):
        trainer = make_trainer(
            tmp_path, model=tiny_model(deletion_type=kind), controller=ConstantController(kind="constant")
        )
        trainer.train_from(None)
        rate = (trainer.terms.deleted / trainer.terms.counted).item()
        assert rate == 0.0 if kind == "none" else rate > 0.0


# --- accumulation -----------------------------------------------------------------------------------------


class Halves(Stream):
    """The rows of `Stream(4)`'s batches, two at a time; all rows equally long, so that means agree."""

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        return {k: v[2 * (index % 2) :][:2] for k, v in Whole(4).batch(index // 2).items()}


class Whole(Stream):
    def batch(self, index: int) -> dict[str, torch.Tensor]:
        batch = super().batch(index)
        ids = batch["input_ids"].masked_fill(batch["input_ids"] == 0, 7)
        return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_accumulated_halves_train_like_the_whole(tmp_path: Path):
    weights = []
    for stream, accumulation in ((Whole(4), 1), (Halves(2), 2)):
        trainer = make_trainer(tmp_path, stream=stream, accumulation=accumulation, steps=4)
        trainer.train_from(None)
        weights.append({name: weight.detach() for name, weight in trainer.model.named_parameters()})
    for name, weight in weights[0].items():
        # AdamW divides by the gradient's size: where that is nearly 0, rounding decides the direction.
        torch.testing.assert_close(weights[1][name], weight, atol=2e-4, rtol=0, msg=labelled(name))


# --- nothing waits on a step ------------------------------------------------------------------------------


class Unmasked(Whole):
    """Without a mask: transformers' decoder looks whether one hides anything, and we test ourselves here."""

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        batch = super().batch(index)
        del batch["attention_mask"]
        return batch


def test_no_value_is_read_between_logging_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readings: Counter[str] = Counter()
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)

        def reading(
            self: torch.Tensor, *args: Any, _name: str = name, _original: Any = original, **kw: Any
        ) -> Any:
            readings[_name] += 1
            return _original(self, *args, **kw)

        monkeypatch.setattr(torch.Tensor, name, reading)

    class Watch(TrainerCallback):
        after_warm_up: Counter[str]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                self.after_warm_up = readings.copy()
            if state.global_step == 9:
                assert readings - self.after_warm_up == Counter()

    trainer = make_trainer(
        tmp_path, stream=Unmasked(), steps=10, logging_steps=10, accumulation=2, callbacks=[Watch()]
    )
    trainer.model.set_attn_implementation("sdpa")  # packing counts rows' bytes, on a CPU for nothing
    trainer.train_from(None)
    assert readings["item"] + readings["__float__"] > 0  # the last step logs, so the watch does see readings


# --- metrics ----------------------------------------------------------------------------------------------


def test_a_line_of_metrics_each_logging_step_and_at_the_end(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    trainer = make_trainer(tmp_path, run=run, steps=5, loss=LossSection(score_coefficient=0.5))
    trainer.train_from(None)
    rows = run.metrics()
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert list(rows[0]) == [
        "step",
        "loss",
        "cross_entropy",
        "gate_loss",
        "score_loss",
        "deletion_rate",
        "kept_length",
        "alpha",
        "target",
        "learning_rate",
        "grad_norm",
        "bytes_per_second",
        "seconds",
    ]
    for row in rows:
        total = row["cross_entropy"] + row["gate_loss"] + 0.5 * row["score_loss"]
        assert row["loss"] == pytest.approx(total, abs=1e-5)
    assert rows[0]["target"] == 0.6
    assert 0.0 < rows[0]["deletion_rate"] < 1.0
    assert rows[0]["seconds"] < rows[1]["seconds"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="stopped being finite at or before step 2") as failed:
        make_trainer(tmp_path, model=model, run=run).train_from(None)
    assert run.metrics() == []
    assert failed.value.hint == "lower training.learning_rate (0.003 now) or raise training.warmup_steps"


# --- checkpoints ------------------------------------------------------------------------------------------

EVERYTHING = LossSection(hard_delete_probability=0.4, score_coefficient=0.1, regularizer_delay=2)


def train(tmp_path: Path, name: str, *, until: int | None = None, resume_from: int | None = None) -> RunDir:
    """Twelve steps that exercise all state, stopped at a step or resumed from one."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == until:
                control.should_training_stop = True

    run = RunDir(tmp_path / name)
    if resume_from is None:
        RunDir.create(run.path)
    start = None if resume_from is None else run.checkpoint(resume_from)
    run.go_back_to(resume_from or 0)
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(dropout=0.2) if start is None else load(start).train(),
        steps=12,
        accumulation=2,
        logging_steps=5,
        save_steps=4,
        loss=EVERYTHING,
        run=run,
        callbacks=[Stop()],
    )
    trainer.train_from(start)
    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("unbroken"), "run")


def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path, unbroken: RunDir):
    # Stopped at 7: the lines of steps 5 and later belong to the dead run, and the window opened at 1 was cut.
    broken = train(tmp_path, "run", until=7)
    assert broken.saved_steps() == [4]
    assert [row["step"] for row in broken.metrics()] == [5]
    train(tmp_path, "run", resume_from=4)
    assert curve(broken) == curve(unbroken)
    ends = [load_file(run.checkpoint(12) / "model.safetensors") for run in (broken, unbroken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    states = [
        json.loads((run.checkpoint(12) / "mrt5_state_0.json").read_text()) for run in (broken, unbroken)
    ]
    for key in ("controller", "hard_delete_draws", "stream"):
        assert states[0][key] == states[1][key], key


def test_a_checkpoint_holds_a_model_that_loads(unbroken: RunDir):
    model = load(unbroken.checkpoint(12))
    assert model.config.delete_gate_layer == 1
    assert model.config.use_cache
    assert AutoTokenizer.from_pretrained(unbroken.checkpoint(12))("h\u00e9").input_ids == [107, 198, 172, 1]
    files = {path.name for path in unbroken.checkpoint(12).iterdir()}
    assert files == {
        "tokenizer_config.json",
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "mrt5_state_0.json",
    }


def test_old_checkpoints_go(unbroken: RunDir):
    assert unbroken.saved_steps() == [8, 12]
    assert sorted(path.name for path in unbroken.checkpoints.iterdir()) == ["step-00000008", "step-00000012"]


def test_a_save_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DeletionTrainer, "_save_rng_state", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path, "run")
    run = RunDir(tmp_path / "run")
    assert run.saved_steps() == []
    assert list(run.checkpoints.iterdir()) == []


def test_another_number_of_processes_resumes(tmp_path: Path, unbroken: RunDir):
    """One process continues with the sums of two since the last metrics, and its own place in the data."""
    copy = Path(shutil.copytree(unbroken.checkpoint(8), tmp_path / "step-00000008"))
    state = json.loads((copy / "mrt5_state_0.json").read_text()) | {"processes": 2}
    state["stream"]["start_batch"] = 5
    for rank in range(2):
        state["window"]["sums"] = [float(rank + number) for number in range(2 * len(PARTS) + 2)]
        (copy / f"mrt5_state_{rank}.json").write_text(json.dumps(state))
    trainer = make_trainer(tmp_path, loss=EVERYTHING, accumulation=3)
    trainer._load_own_state(copy)
    assert trainer.window.sums.tolist() == [2.0 * number + 1 for number in range(2 * len(PARTS) + 2)]
    assert trainer.stream.start_batch == trainer.batches_taken == 24
    torch.manual_seed(1)
    trainer._load_rng_state(str(copy))
    first = torch.rand(3)
    torch.manual_seed(2)
    trainer._load_rng_state(str(copy))
    assert torch.equal(torch.rand(3), first), "drawn from seed and step"
    with pytest.raises(UserError, match=r"has no mrt5_state_0\.json"):
        trainer.train_from(tmp_path)


@pytest.mark.parametrize("theirs", [0, 8, 4])
def test_processes_that_go_on_from_different_steps_are_stopped(
    tmp_path: Path, unbroken: RunDir, monkeypatch: pytest.MonkeyPatch, theirs: int
):
    trainer = make_trainer(tmp_path, loss=EVERYTHING)

    def reduce(ends: torch.Tensor, op: object) -> None:
        ends.copy_(torch.maximum(ends, torch.tensor([theirs, -theirs])))

    monkeypatch.setattr(OneDeviceArguments, "world_size", 2)
    monkeypatch.setattr("torch.distributed.all_reduce", reduce)
    if theirs == 8:
        return trainer._check_same_step(8)
    with pytest.raises(UserError, match=f"resume from different steps, {theirs} to 8: they do not all see"):
        trainer._check_same_step(8)


# --- the best weights -------------------------------------------------------------------------------------

VALUES = {2: 5.0, 4: 3.0, 6: 4.0, 8: 2.0, 10: 6.0, 12: 6.0}


class Says(TrainerCallback):
    """Replaces validation: returns a value every other step, and stops training at some step."""

    trainer: DeletionTrainer

    def __init__(self, until: int | None = None) -> None:
        self.until = until

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in VALUES:
            self.trainer.offer(VALUES[state.global_step])
            assert self.trainer.best is not None
            if self.trainer.best.exhausted:
                control.should_save = control.should_training_stop = True
        if state.global_step == self.until:
            control.should_training_stop = True


def train_for_best(
    tmp_path: Path,
    name: str,
    *,
    until: int | None = None,
    resume_from: int | None = None,
    patience: int | None = None,
) -> tuple[RunDir, DeletionTrainer]:
    run = RunDir(tmp_path / name)
    (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    start = None if resume_from is None else run.checkpoint(resume_from)
    run.go_back_to(resume_from or 0)
    says = Says(until)
    trainer = make_trainer(
        tmp_path,
        model=tiny_model() if start is None else load(start).train(),
        steps=12,
        save_steps=5,
        run=run,
        best_metric="loss",
        patience=patience,
        callbacks=[says],
    )
    says.trainer = trainer
    trainer.train_from(start)
    return run, trainer


def test_the_best_weights_are_those_of_their_step(tmp_path: Path):
    seen: dict[str, torch.Tensor] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 8:
                seen.update({name: weight.clone() for name, weight in model.named_parameters()})

    run = RunDir.create(tmp_path / "run")
    says = Says()
    trainer = make_trainer(tmp_path, steps=12, run=run, best_metric="loss", callbacks=[Watch(), says])
    says.trainer = trainer
    trainer.train_from(None)
    kept = load(run.best_weights(8))
    assert all(torch.equal(weight, seen[name]) for name, weight in kept.named_parameters())
    assert any(not torch.equal(weight, seen[name]) for name, weight in trainer.model.named_parameters())


def test_a_resumed_run_finds_the_same_best(tmp_path: Path):
    whole, _ = train_for_best(tmp_path, "whole")
    assert whole.saved_steps() == [10, 12] and whole.best_steps() == [8]
    broken, _ = train_for_best(tmp_path, "broken", until=9)
    assert broken.saved_steps() == [5] and broken.best_steps() == [4, 8]  # step 5 still asks for 4
    # From step 5 on, 8 has not been yet: its weights belong to a branch that is dead.
    _, trainer = train_for_best(tmp_path, "broken", resume_from=5, until=7)
    assert trainer.best == Best("loss", None, 3.0, 4, 1)
    assert broken.best_steps() == [4]
    _, trainer = train_for_best(tmp_path, "broken", resume_from=5)
    assert trainer.best == Best("loss", None, 2.0, 8, 2)
    ends = [load_file(run.best_weights(8) / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_weights_that_no_checkpoint_needs_go(tmp_path: Path):
    run, trainer = train_for_best(tmp_path, "run")
    trainer.settings = trainer.settings.model_copy(update={"keep_checkpoints": 1})
    trainer.state.global_step = 13
    trainer._save_checkpoint(trainer.model)
    assert run.saved_steps() == [13] and run.best_steps() == [8]


def test_patience_at_its_end_is_not_forgotten(tmp_path: Path):
    run, trainer = train_for_best(tmp_path, "run", patience=2)
    assert trainer.state.global_step == 12 and trainer.best == Best("loss", 2, 2.0, 8, 2)
    run, trainer = train_for_best(tmp_path, "early", patience=1)
    assert trainer.state.global_step == 6 and run.saved_steps() == [5, 6]
    weights = load_file(run.checkpoint(6) / "model.safetensors")
    _, trainer = train_for_best(tmp_path, "early", resume_from=6, patience=1)
    assert trainer.best == Best("loss", 1, 3.0, 4, 1)
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in weights.items() if name in now)
    assert run.saved_steps() == [5, 6]


def test_a_run_that_is_through_takes_no_further_step(tmp_path: Path):
    run, _ = train_for_best(tmp_path, "run")
    _, trainer = train_for_best(tmp_path, "run", resume_from=12)
    assert trainer.batches_taken == 12
    assert run.saved_steps() == [10, 12]


@pytest.mark.parametrize("average_per", ["optimizer_step", "micro_batch"])
def test_the_kept_length_is_the_mean_of_rows_however_a_step_is_divided(tmp_path: Path, average_per: Any):
    run, stream = RunDir.create(tmp_path / "run"), Stream()
    loss = LossSection(average_per=average_per)
    more = {"per_device_train_batch_size": stream.rows}
    make_trainer(tmp_path, steps=4, accumulation=2, run=run, loss=loss, stream=stream, **more).train_from(
        None
    )
    for line, row in enumerate(run.metrics()):
        batches = [stream.batch(index) for index in range(4 * line, 4 * line + 4)]
        lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches]).double()
        kept = (1 - row["deletion_rate"]) * lengths.mean().item()
        assert row["kept_length"] == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("error", [RuntimeError, ConnectionResetError, EOFError])
@pytest.mark.parametrize("code", [-9, None])
def test_a_worker_that_dies_while_it_sends_a_batch_is_told_as_such(
    error: type[Exception], code: int | None, monkeypatch: pytest.MonkeyPatch
):
    class Batches:
        _workers = (SimpleNamespace(exitcode=code, join=lambda seconds: None),)

        def __next__(self) -> None:
            raise error("the connection is gone")

    monkeypatch.setattr(DataLoader, "__iter__", lambda self: Batches())
    with pytest.raises(error if code is None else RunFailed, match=r"connection|was killed by SIGKILL"):
        next(iter(stream_loader(Stream(), workers=1)))
