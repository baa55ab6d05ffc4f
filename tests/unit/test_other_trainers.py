"""Trainers that are not ours: the same losses, and a deletion rate that is steered there as in a run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import other_trainers
import pytest
import torch
from other_trainers import (
    DELAY,
    LAWS,
    LAWS_OF_TWO,
    STEP,
    STEPS,
    TARGET,
    WAYS,
    accelerated,
    by_transformers,
    even_rows,
    losses_of,
    new_model,
    rows,
    steered_by_us,
    steered_in_a_trainer,
)
from transformers import Seq2SeqTrainer, T5Config, T5ForConditionalGeneration, Trainer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from mrt5cli.convert.files import Job
from mrt5cli.convert.layouts import write_hub
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.training.rate_controller import DeletionRateController

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one() -> list[float]:
    """Losses of our own trainer, all examples of a step at once."""
    losses = WAYS["ours"](1)
    assert len(losses) == STEPS
    return losses


@pytest.fixture(scope="module")
def of_two() -> dict[str, Any]:
    """What two processes make of every way."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", other_trainers.__file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*launch, "1", "4"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def same_curve(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    # The loss is a sum of terms of either sign; what it is off by is measured by theirs, about 7 each.
    for step, (line, other) in enumerate(zip(found, wanted, strict=True)):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-4), f"step {step}"


# --- losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_same_losses(way: str, accumulation: int, one: list[float]) -> None:
    assert WAYS[way](accumulation) == pytest.approx(one, rel=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("way", list(WAYS))
def test_the_same_losses_of_two_processes(
    way: str, accumulation: int, of_two: dict[str, Any], one: list[float]
) -> None:
    assert of_two[way][str(accumulation)] == pytest.approx(one, rel=1e-5)


def test_the_curve_is_one_of_learning(one: list[float]) -> None:
    """Equal losses say something only where weights change what they are."""
    model = new_model().train()
    with torch.no_grad():
        untouched = [float(model(**rows(STEP * step, STEP)).loss) for step in range(STEPS)]
    assert one[0] == pytest.approx(untouched[0], rel=1e-5)
    assert sum(one[-5:]) < sum(untouched[-5:]) - 0.3


def test_generating_in_evaluation_deletes(one: list[float]) -> None:
    model = new_model(inference_deletion="hard")
    lengths: list[int] = []
    trainer = by_transformers(
        Seq2SeqTrainer, 1, model, predict_with_generate=True, max_steps=2, per_device_eval_batch_size=8
    )
    model.encoder.register_forward_hook(lambda *call: lengths.append(call[-1].last_hidden_state.shape[1]))
    found = trainer.predict(torch.utils.data.Subset(trainer.train_dataset, range(8)), max_new_tokens=6)
    batch = rows(0, 8)
    wanted = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], hard_delete=True, max_new_tokens=6
    )
    assert set(lengths) == {lengths[-1]} and lengths[-1] < batch["input_ids"].shape[1]
    assert found.predictions[:, : wanted.shape[1]].tolist() == wanted.tolist()  # padded to a common length
    with torch.no_grad():
        loss = float(model.eval()(**batch, hard_delete=True).loss)
    assert found.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


# --- the whole loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [None, 60])
def test_the_whole_loss_of_a_model_in_training_mode(items: int | None) -> None:
    batch = rows(0, 8)
    model = new_model().train()
    found = model(**batch, output_score_loss=True, num_items_in_batch=items)
    assert torch.equal(found.loss, found.cross_entropy), "nothing is asked for"
    share = 1.0 if items is None else int(batch["labels"].ne(-100).sum()) / items
    gate = found.delete_gate_output[batch["input_ids"] != 0].mean()
    model.config.gate_loss, model.config.score_loss = 0.25, 0.5
    whole = model(**batch, num_items_in_batch=items)
    assert found.score_loss > 0.01
    torch.testing.assert_close(
        whole.loss, found.cross_entropy + share * (0.25 * gate + 0.5 * found.score_loss)
    )
    torch.testing.assert_close(whole.cross_entropy, found.cross_entropy)
    model.eval()
    measured = model(**batch, num_items_in_batch=items)
    assert torch.equal(measured.loss, measured.cross_entropy), "an evaluation measures cross-entropy"


@pytest.mark.parametrize(("accumulation", "kind"), [(1, "quantile"), (4, "hnet"), (1, "boundary_predictor")])
def test_what_a_shortener_learns_by_is_in_the_loss(accumulation: int, kind: str) -> None:
    """Transformers' Trainer minimises it as a run of ours does, unless it draws something for each batch."""
    fields: dict[str, Any] = {"deletion_type": kind}
    if kind == "quantile":
        fields |= {"lowest_rate": 0.5, "highest_rate": 0.5}
    batch, model = even_rows(0, 8), new_model(**fields).train()
    found = model(**batch, num_items_in_batch=100)
    share = int(batch["labels"].ne(-100).sum()) / 100
    torch.testing.assert_close(found.loss, found.cross_entropy + share * found.auxiliary_loss)
    before = {name: weight.clone() for name, weight in model.encoder.shortener.named_parameters()}
    torch.manual_seed(1)
    trainer = by_transformers(Trainer, accumulation, model, make=even_rows)
    for name, weight in model.encoder.shortener.named_parameters():
        assert not torch.equal(weight, before[name]), name
    if kind != "boundary_predictor":
        ours = [line["loss"] for line in other_trainers.ours(accumulation, make=even_rows, **fields)]
        assert losses_of(trainer) == pytest.approx(ours, rel=1e-5)


def test_embeddings_count_by_their_mask() -> None:
    batch, model = rows(0, 8), new_model(gate_loss=0.5).train()
    wanted = model(**batch).loss
    embedded = model.shared(batch.pop("input_ids"))
    torch.testing.assert_close(model(inputs_embeds=embedded, **batch).loss, wanted)


def test_the_coefficients_are_saved(tmp_path: Path) -> None:
    new_model(gate_loss=0.25, score_loss=0.5).save_pretrained(tmp_path)
    config = MrT5ForConditionalGeneration.from_pretrained(tmp_path).config
    assert (config.gate_loss, config.score_loss) == (0.25, 0.5)


# --- the controller -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulation", "make"), [(1, rows), (4, even_rows)])
@pytest.mark.parametrize("law", list(LAWS))
def test_our_curve_in_their_trainer(law: str, accumulation: int, make: Any) -> None:
    ours = steered_by_us(law, accumulation, make)
    same_curve(steered_in_a_trainer(law, accumulation, make), ours)
    assert ours[DELAY - 1]["alpha"] == 0
    moved = {round(line["alpha"], 6) for line in ours[DELAY:]}
    assert len(moved) > 5, "nothing was steered"


@pytest.mark.ci
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("law", LAWS_OF_TWO)
def test_the_rate_is_that_of_all_processes(law: str, accumulation: int, of_two: dict[str, Any]) -> None:
    found = of_two["steered"][law][str(accumulation)]
    same_curve(found, of_two["steered by us"][law][str(accumulation)])
    if law != "micro-batches":  # whose gain grows with their number
        same_curve(found, steered_by_us(law, 1, even_rows))


@pytest.mark.parametrize("asked", [False, True], ids=["by itself", "restored by the Trainer"])
def test_a_resumed_training_goes_on(asked: bool, tmp_path: Path) -> None:
    def train(**more: Any) -> list[dict[str, float]]:
        control = DeletionRateController(TARGET, "pi", k_p=1.0, k_i=0.02, delay=2)
        trainer = by_transformers(
            Trainer, 2, new_model(), control, output_dir=str(tmp_path), logging_steps=4, **more
        )
        return [line for line in trainer.state.log_history if "loss" in line]

    whole = train(max_steps=12)
    # The last log before the checkpoint is two steps old; what was counted since is in it, too.
    train(max_steps=12, save_strategy="steps", save_steps=6)
    resumed = train(
        max_steps=12,
        resume=str(tmp_path / "checkpoint-6"),
        restore_callback_states_from_checkpoint=asked,
    )
    assert [line["step"] for line in resumed] == [4, 8, 12]
    for line, wanted in zip(resumed, whole, strict=True):
        assert line["alpha"] == pytest.approx(wanted["alpha"], rel=1e-5)
        assert line["deletion_rate"] == pytest.approx(wanted["deletion_rate"], rel=1e-5)


def test_a_second_training_begins_anew() -> None:
    control = DeletionRateController(TARGET, "pi", k_p=1.0, k_i=0.02)
    curves = []
    for _ in range(2):
        model = new_model()
        trainer = by_transformers(Trainer, 1, model, control, max_steps=4)
        curves.append([line["alpha"] for line in trainer.state.log_history if "alpha" in line])
        assert model.deletion_control is None, "the model's loss is its own again"
    assert curves[0] == curves[1] and curves[0][0] == 0


def test_in_a_loop_of_accelerate() -> None:
    control = DeletionRateController(TARGET, delay=DELAY, **LAWS["pi"])
    losses = accelerated(4, control, even_rows, score_loss=0.5)
    ours = steered_by_us("pi", 4, even_rows)
    assert losses == pytest.approx([line["loss"] for line in ours], rel=1e-5)
    assert control.deletion_rate == pytest.approx(ours[-1]["deletion_rate"])
    state = json.loads(json.dumps(control.state_dict()))
    other = DeletionRateController(TARGET, delay=DELAY, **LAWS["pi"]).attach(new_model())
    other.load_state_dict(state)
    assert other.alpha == control.alpha
    control.detach()


def test_accelerate_keeps_its_state(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    control = DeletionRateController(TARGET, **LAWS["pi"]).attach(model := new_model().train())
    accelerator.register_for_checkpointing(control)
    for _ in range(3):
        model(**rows(0, 8))
        control.step()
    accelerator.save_state(str(tmp_path))
    alpha = control.alpha
    control.attach(model)
    assert control.alpha == 0
    accelerator.load_state(str(tmp_path))
    assert control.alpha == alpha != 0


def test_an_exported_model(tmp_path: Path) -> None:
    """Its class is one of its own files, which know nothing of the package."""
    write_hub(Job(new_model()), tmp_path)
    cls = get_class_from_dynamic_module("modeling_mrt5.MrT5ForConditionalGeneration", tmp_path)
    assert not issubclass(cls, MrT5ForConditionalGeneration)
    curves = []
    for kind in (cls, MrT5ForConditionalGeneration):
        control = DeletionRateController(TARGET, **LAWS["pi"])
        trainer = by_transformers(Trainer, 1, kind.from_pretrained(tmp_path), control, max_steps=5)
        curves.append([line["deletion_rate"] for line in trainer.state.log_history if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_evaluation_is_not_counted() -> None:
    control = DeletionRateController(TARGET).attach(model := new_model().train())
    model(**rows(0, 8))
    control.step()
    seen = control.deletion_rate
    model.eval()(**rows(8, 8))
    assert float(control._counts.sum()) == 0 and seen is not None and 0 < seen < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_deletion_rate": 1.5}, "target_deletion_rate"),
        ({"target_deletion_rate": 0.5, "kind": "pid"}, "unknown kind 'pid'; expected"),
        ({"target_deletion_rate": 0.5, "k_d": 3.0}, "k_d"),
        ({"target_deletion_rate": 0.5, "delay": -1}, "delay is -1"),
    ],
)
def test_settings_that_the_law_has_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DeletionRateController(**settings)


def test_a_model_that_cannot_be_steered() -> None:
    control = DeletionRateController(0.5)
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1))
    with pytest.raises(UserError, match="found no MrT5 in T5ForConditionalGeneration"):
        control.attach(t5)
    for kind in ("none", "random", "convolution"):
        config = MrT5Config(**other_trainers.SIZES, delete_gate_layer=1, deletion_type=kind)
        with pytest.raises(UserError, match="needs a learned delete gate"):
            control.attach(MrT5ForConditionalGeneration(config))


def test_a_checkpoint_of_another_controller(tmp_path: Path) -> None:
    more: dict[str, Any] = {"output_dir": str(tmp_path), "max_steps": 4, "save_steps": 2}
    more["save_strategy"] = "steps"
    by_transformers(Trainer, 1, new_model(), DeletionRateController(0.5, "p"), **more)
    more["resume"] = str(tmp_path / "checkpoint-2")
    with pytest.raises(UserError, match="controller is of kind 'p', but this one is 'pi'"):
        by_transformers(Trainer, 1, new_model(), DeletionRateController(0.5), **more)
    del more["resume"]
    by_transformers(Trainer, 1, new_model(), **more)
    more["resume"] = str(tmp_path / "checkpoint-2")
    with pytest.raises(UserError, match="without a DeletionRateController"):
        by_transformers(Trainer, 1, new_model(), DeletionRateController(0.5), **more)


def test_a_trainer_that_takes_another_loss() -> None:
    """The gate loss is in the one that the model returns."""
    more = {"label_smoothing_factor": 0.1, "max_steps": 2}

    def collated(first: int, number: int) -> dict[str, torch.Tensor]:
        batch = rows(first, number)
        return {**batch, "decoder_input_ids": batch["labels"].clamp(min=0)}

    by_transformers(Trainer, 1, new_model(), make=collated, **more)
    with pytest.raises(UserError, match="saw no deletion in this step"):
        by_transformers(Trainer, 1, new_model(), DeletionRateController(0.5), make=collated, **more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own look at it
def test_a_compiled_model_is_not_compiled_anew_at_every_step() -> None:
    torch.compiler.reset()
    losses, compiled = [], 0

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        nonlocal compiled
        compiled += 1
        return graph

    counts = []
    for compile_it in (False, True):
        model = new_model(attn_implementation="eager").train()
        control = DeletionRateController(TARGET, **LAWS["pi"]).attach(model)
        called = torch.compile(model, backend=backend) if compile_it else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(6):
            loss = called(**even_rows(STEP * step, STEP)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            control.step()
            losses.append(loss.item())
            counts.append(compiled)
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-4)
    assert counts[-1] == counts[8] > 0, "graphs by step: " + str(counts[6:])


# --- what else may happen to one ----------------------------------------------------------------------------


def test_a_model_goes_into_a_pickle_with_its_controller() -> None:
    model = new_model().train()
    control = DeletionRateController(TARGET, **LAWS["pi"]).attach(model)
    for _ in range(2):
        model(**rows(0, 8))
        control.step()
    again = pickle.loads(pickle.dumps(model))
    assert again.deletion_control is not control
    assert again.deletion_control.alpha == control.alpha != 0


def test_the_last_controller_counts() -> None:
    model, other = new_model().train(), new_model().train()
    first = DeletionRateController(0.5).attach(model)
    second = DeletionRateController(0.3).attach(model)
    model(**rows(0, 8))
    second.step()
    with pytest.raises(UserError, match="another DeletionRateController has replaced this one"):
        first.step()
    second.attach(other)
    assert model.deletion_control is None and other.deletion_control is second


def test_a_model_that_moves_takes_its_controller_along() -> None:
    control = DeletionRateController(TARGET, **LAWS["pi"]).attach(model := new_model().train())
    model(**rows(0, 8))
    control.step()
    alpha = control.alpha
    control._move(torch.device("meta"))  # the one other device that there is everywhere
    assert control.alpha.device.type == control._counts.device.type == "meta"
    control = DeletionRateController(TARGET, **LAWS["pi"]).attach(model)
    model(**rows(0, 8))
    control.step()
    control._move(torch.device("cpu"))
    assert control.alpha == alpha != 0 and control._step == 1


def test_what_is_refused() -> None:
    model = new_model()
    with pytest.raises(UserError, match="not attached to a model"):
        DeletionRateController(0.5).load_state_dict({})
    for weight in model.encoder.shortener.parameters():
        weight.requires_grad_(False)
    with pytest.raises(UserError, match="a delete gate that is frozen"):
        DeletionRateController(0.5).attach(model)


def test_a_source_that_is_encoded_before() -> None:
    batch, model = rows(0, 8), new_model(gate_loss=0.5, score_loss=0.0).train()
    wanted = model(**batch).loss
    encoded = model.encoder(batch["input_ids"], attention_mask=batch["attention_mask"])
    labels = batch["labels"]
    torch.testing.assert_close(model(encoder_outputs=encoded, labels=labels).loss, wanted)
    with pytest.raises(ValueError, match="have lost their gates"):
        model(encoder_outputs=encoded.to_tuple(), attention_mask=batch["attention_mask"], labels=labels)
    short = model.eval().encoder(batch["input_ids"], attention_mask=batch["attention_mask"], hard_delete=True)
    with pytest.raises(ValueError, match=r"has \d+ positions and attention_mask 11"):
        model(encoder_outputs=short.to_tuple(), attention_mask=batch["attention_mask"], labels=labels)
    with pytest.raises(ValueError, match="there is nothing to decode"):
        model(batch["input_ids"])
