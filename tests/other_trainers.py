"""The same optimizer steps by transformers' trainers, a loop around accelerate, and the toolkit's trainer.

Run as a program by each process of a group, it prints the losses that each of them reports.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from divided_steps import STEP, Table, rows
from pydantic import TypeAdapter
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.recipe import ConstantController, LossSection, load
from mrt5cli.recipe.schema import Controller
from mrt5cli.rundir import RunDir
from mrt5cli.training.arguments import OneDeviceArguments
from mrt5cli.training.rate_controller import DeletionRateController
from mrt5cli.training.trainer import DeletionTrainer

STEPS = 30
MakeRows = Callable[..., dict[str, torch.Tensor]]
SIZES = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
QUIET: dict[str, Any] = {
    "use_cpu": True,
    "max_steps": STEPS,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "report_to": "none",
    "log_level": "error",
    "train_sampling_strategy": "sequential",
    "remove_unused_columns": False,
}


def new_model(**fields: Any) -> MrT5ForConditionalGeneration:
    torch.manual_seed(0)
    model = MrT5ForConditionalGeneration(
        MrT5Config(**SIZES, dropout_rate=0.0, delete_gate_layer=1, gate_bias_init=0.0, **fields)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".q.weight", "delete_gate.feed_forward.weight")):
                weight.mul_(10)  # so that scores exceed 5, and gates differ
    return model


def even_rows(first: int, number: int, one_width: bool = True) -> dict[str, torch.Tensor]:
    """Rows `first`, ... of another endless table, whose sources, and whose targets, all have one length."""
    random = [torch.Generator().manual_seed(row) for row in range(first, first + number)]
    ids = torch.stack([torch.randint(3, 250, (12,), generator=one) for one in random])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :10] // 2 + 3}


class Rows(torch.utils.data.Dataset[int]):
    """The numbers of rows, which a collator makes a batch of."""

    def __len__(self) -> int:
        return STEP * STEPS

    def __getitem__(self, row: int) -> int:
        return row


class Collator:
    def __init__(self, make: MakeRows) -> None:
        self.make = make

    def __call__(self, wanted: list[int]) -> dict[str, torch.Tensor]:
        return self.make(wanted[0], len(wanted))


def divided(accumulation: int, world_size: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": STEP // (accumulation * world_size),
        "gradient_accumulation_steps": accumulation,
    }


def by_transformers(
    cls: type[Trainer],
    accumulation: int,
    model: MrT5ForConditionalGeneration,
    *callbacks: TrainerCallback,
    make: MakeRows = rows,
    resume: str | None = None,
    **more: Any,
) -> Trainer:
    """A Trainer of transformers' that has trained the model."""
    kind = Seq2SeqTrainingArguments if cls is Seq2SeqTrainer else TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        world_size = kind(output_dir=folder, use_cpu=True).world_size
        arguments = kind(**QUIET | {"save_strategy": "no"} | divided(accumulation, world_size, folder) | more)
        trainer = cls(
            model,
            arguments,
            train_dataset=Rows(),
            eval_dataset=Rows(),
            data_collator=Collator(make),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def plain(accumulation: int, **fields: Any) -> list[float]:
    return losses_of(by_transformers(Trainer, accumulation, new_model(**fields)))


def seq2seq(accumulation: int, **fields: Any) -> list[float]:
    model = new_model(**fields)
    return losses_of(by_transformers(Seq2SeqTrainer, accumulation, model, predict_with_generate=True))


def accelerated(
    accumulation: int,
    control: DeletionRateController | None = None,
    make: MakeRows = rows,
    steps: int = STEPS,
    **fields: Any,
) -> list[float]:
    """A loop as accelerate's guide to gradient accumulation has it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = new_model(**fields)
    if control is not None:
        control.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=QUIET["learning_rate"], weight_decay=0.0)
    loader = DataLoader(
        Rows(), batch_size=STEP // (accumulation * accelerator.num_processes), collate_fn=Collator(make)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches, found = iter(loader), []
    for _ in range(steps):
        of_step = [next(batches) for _ in range(accumulation)]
        items = sum(batch["labels"].ne(-100).sum() for batch in of_step)
        items = accelerator.gather(items).sum()
        total = torch.zeros(())
        for number, batch in enumerate(of_step):
            with accelerator.no_sync(model) if number < accumulation - 1 else torch.enable_grad():
                loss = model(**batch, num_items_in_batch=items).loss
                # Gradients of processes are averaged, and backward divides by the accumulation.
                accelerator.backward(loss * accelerator.num_processes * accumulation)
            total += loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if control is not None:
            control.step()
        found.append(float(accelerator.reduce(total, "sum")))
    return found


def ours(
    accumulation: int,
    controller: Controller | None = None,
    make: MakeRows = rows,
    *,
    delay: int = 0,
    score: float = 0.0,
    **fields: Any,
) -> list[dict[str, Any]]:
    """The lines of metrics of a run."""
    model = new_model(**fields)
    with tempfile.TemporaryDirectory() as folder:
        world_size = OneDeviceArguments(output_dir=folder, use_cpu=True).world_size
        of_steps = divided(accumulation, world_size, folder)
        arguments = OneDeviceArguments(**QUIET | of_steps | {"save_strategy": "no", "ignore_data_skip": True})
        at_once = of_steps["per_device_train_batch_size"]
        run = RunDir.create(Path(folder) / "run")
        recipe = load("quickstart_byt5").model_copy(
            update={
                "loss": LossSection(score_coefficient=score, regularizer_delay=delay),
                "controller": controller or ConstantController(kind="constant", alpha=0.0),
            }
        )
        table = Table(0, at_once, arguments.process_index, world_size, one_width=False, labels=False)
        table.make = make
        DeletionTrainer(model, arguments, table, recipe, run=run).train_from(None)
        return run.metrics()


def our_losses(accumulation: int, **fields: Any) -> list[float]:
    return [line["loss"] for line in ours(accumulation, **fields)]


WAYS: dict[str, Callable[..., list[float]]] = {
    "Trainer": plain,
    "Seq2SeqTrainer": seq2seq,
    "accelerate": accelerated,
    "ours": our_losses,
}
STEERED = ("loss", "alpha", "deletion_rate")
LAWS: dict[str, dict[str, Any]] = {
    "pi": {"kind": "pi", "k_p": 1.0, "k_i": 0.02},
    "p": {"kind": "p", "k_p": 0.05, "every_steps": 3},
    "pi_two_sided": {"kind": "pi_two_sided", "k_p": 0.5, "k_i": 0.1, "k_d": 5.0, "alpha_max": 0.4},
    "micro-batches": {"kind": "pi", "k_p": 1.0, "k_i": 0.02, "update_per": "micro_batch"},
}
LAWS_OF_TWO = ("pi", "micro-batches")
"""Those that two processes steer by: the others differ in arithmetic only."""
DELAY = 4
TARGET = 0.7


def steered_by_us(law: str, accumulation: int, make: MakeRows) -> list[dict[str, float]]:
    """What our trainer's curve is, a line a step."""
    section = TypeAdapter(Controller).validate_python({"target_deletion_rate": TARGET, **LAWS[law]})
    lines = ours(accumulation, section, make, delay=DELAY, score=0.5)
    return [{name: line[name] for name in STEERED} for line in lines]


def steered_in_a_trainer(law: str, accumulation: int, make: MakeRows) -> list[dict[str, float]]:
    """The same by the callback in transformers' Trainer."""
    control = DeletionRateController(TARGET, delay=DELAY, **LAWS[law])
    trainer = by_transformers(Trainer, accumulation, new_model(score_loss=0.5), control, make=make)
    return [{name: line[name] for name in STEERED} for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    # The arguments are how many batches each process accumulates for a step.
    found: dict[str, Any] = {
        name: {size: way(int(size)) for size in sys.argv[1:]} for name, way in WAYS.items()
    }
    found["steered"] = {
        law: {size: steered_in_a_trainer(law, int(size), even_rows) for size in sys.argv[1:]}
        for law in LAWS_OF_TWO
    }
    found["steered by us"] = {
        law: {size: steered_by_us(law, int(size), even_rows) for size in sys.argv[1:]} for law in LAWS_OF_TWO
    }
    if torch.distributed.get_rank() == 0:
        json.dump(found, sys.stdout)
    torch.distributed.destroy_process_group()
