"""The authors' training trajectories through our own trainer: every micro-step and the final weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, labelled
from safetensors.torch import load_file
from torch.utils.data import IterableDataset

from mrt5cli import recipe as recipes
from mrt5cli.models import load
from mrt5cli.recipe import ConstantController, LossSection, PIController
from mrt5cli.training.arguments import OneDeviceArguments
from mrt5cli.training.losses import named
from mrt5cli.training.trainer import DeletionTrainer

RUNS = json.loads((GOLDEN / "cases/training/trajectories.json").read_text())["runs"]
TENSORS = load_file(GOLDEN / "cases/training/trajectories.safetensors")
LOSSES = {
    "gate_mean_loss": "gate_mean",
    "gate_mean": "gate_mean",
    "clamped_logits_mean": "clamped_logits_mean",
}


class GoldenStream(IterableDataset[dict[str, torch.Tensor]]):
    """The stored batches, round and round."""

    start_batch = 0

    def __init__(self, with_mask: bool) -> None:
        names = ("input_ids", "attention_mask", "labels") if with_mask else ("input_ids", "labels")
        self.batches = [{name: TENSORS[f"batch.{n}.{name}"] for name in names} for n in range(3)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return islice(cycle(self.batches), self.start_batch, None)


class RecordingTrainer(DeletionTrainer):
    """Keeps what the golden rows hold, after each micro-step."""

    rows: list[dict[str, float]]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        terms = self.terms
        found = named(terms.parts.detach(), self.loss_settings.score_coefficient)
        self.rows.append(
            {
                "alpha_used": float(self.alpha_used),
                "alpha_after": float(self.controller.alpha),
                "p_acc": float(getattr(self.controller, "p", 0.0)),
                "i_acc": float(getattr(self.controller, "i", 0.0)),
                "cross_entropy": found["cross_entropy"],
                "gate": found["gate_loss"],
                "total_loss": terms.total.item(),
                "percent_nonpad_deleted": 100.0 * (terms.deleted / terms.counted).item(),
                "scores_loss": found["score_loss"],
            }
        )
        return loss


def trainer_for(run: dict[str, Any], folder: Path) -> RecordingTrainer:
    settings, optimizer = run["trainer"], run["optimizer"]
    model = load(GOLDEN / run["model"], **run["config_overrides"]).train()
    if optimizer["name"] == "adamw":
        chosen: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer["lr"],
            betas=tuple(optimizer["betas"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
        )
    else:
        chosen = torch.optim.SGD(model.parameters(), lr=optimizer["lr"])
    if "target" in settings:
        controller: Any = PIController(
            kind="pi",
            target_deletion_rate=settings["target"],
            k_p=settings["kp"],
            k_i=settings["ki"],
            alpha_start=settings["alpha"],
            every_steps=settings.get("step", 1),
            update_per="micro_batch",
        )
    else:
        controller = ConstantController(kind="constant", alpha=settings["alpha"])
    loss = LossSection(
        gate_loss=LOSSES[settings["loss_function"]],
        score_coefficient=settings.get("scores", 0.0),
        score_per="batch",
        average_per="micro_batch",
        regularizer_delay=settings.get("delay", 0),
        hard_delete_probability=settings.get("hard_prob", 0.0),
    )
    chosen_by_run = {"loss": loss, "controller": controller, "seed": settings.get("rng_seed", 0)}
    trainer = RecordingTrainer(
        model,
        OneDeviceArguments(
            output_dir=str(folder),
            use_cpu=True,
            max_steps=run["steps"],
            gradient_accumulation_steps=run["gradient_accumulation"],
            max_grad_norm=0.0,  # the reference run did not clip
            save_strategy="no",
            logging_steps=5,
            disable_tqdm=True,
            report_to="none",
        ),
        GoldenStream(run["attention_mask_passed"]),
        recipes.load("quickstart_byt5").model_copy(update=chosen_by_run),
        optimizers=(chosen, torch.optim.lr_scheduler.LambdaLR(chosen, lambda _: 1.0)),
    )
    trainer.rows = []
    return trainer


@pytest.mark.parametrize("name", list(RUNS))
def test_trajectory(name: str, tmp_path: Path):
    run = RUNS[name]
    trainer = trainer_for(run, tmp_path)
    trainer.train_from(None)

    noise = run["deviation_under_1e6_relative_weight_noise"]
    limit = max(1e-4, 20 * noise["total_loss"])
    delay = run["trainer"].get("delay", 0)
    assert len(trainer.rows) == len(run["rows"])
    for ours, theirs in zip(trainer.rows, run["rows"], strict=True):
        where = f"{name}, step {theirs['optimizer_step']}.{theirs['micro_step']}"
        assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], abs=limit), where
        assert ours["total_loss"] == pytest.approx(theirs["total_loss"], abs=limit), where
        # The file has the gate loss in every row; the delay leaves it out of the total, and so out of ours.
        delayed = theirs["optimizer_step"] < delay
        gate = 0.0 if delayed else theirs["gate_loss_times_alpha"]
        assert ours["gate"] == pytest.approx(gate, abs=limit), where
        assert theirs["min_gate_margin"] > 1e-3
        assert ours["percent_nonpad_deleted"] == pytest.approx(theirs["percent_nonpad_deleted"], abs=1e-4), (
            where
        )
        for key in ("alpha_used", "alpha_after", "p_acc", "i_acc"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), (where, key)
        if "scores" in run["trainer"]:
            assert ours["scores_loss"] == pytest.approx(theirs["scores_loss"], abs=limit), where

    parameters = dict(trainer.model.named_parameters())
    finals = {
        k.removeprefix(f"{name}.final."): v for k, v in TENSORS.items() if k.startswith(f"{name}.final.")
    }
    assert len(finals) == 5
    for key, expected in finals.items():
        limit = max(1e-5, 20 * noise["final_params"])
        torch.testing.assert_close(parameters[key].detach(), expected, atol=limit, rtol=0, msg=labelled(key))


def test_all_runs_are_here():
    assert len(RUNS) == 6
