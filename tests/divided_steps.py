"""The same optimizer steps, their examples taken at once or in parts, by one process or two.

Run as a program by each process of a group, it prints what came of every case.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.data import IterableDataset

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.recipe import ConstantController, LossSection, load
from mrt5cli.rundir import RunDir
from mrt5cli.training.arguments import OneDeviceArguments
from mrt5cli.training.trainer import DeletionTrainer

STEP = 8
"""Examples of an optimizer step."""
WITHOUT_TARGET = 2
"""The row of every step that has no target."""
SIZES = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}


@dataclass(frozen=True)
class Case:
    """What is trained: settings of the loss and of the model; whether batches are padded to one width."""

    loss: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    one_width: bool = False


SCORES = {"score_coefficient": 0.5}
CASES = {
    name: Case({"gate_loss": name, **SCORES})
    for name in get_args(LossSection.model_fields["gate_loss"].annotation)
} | {
    "no gate": Case(SCORES, {"deletion_type": "none"}),
    "labelled segments": Case(
        model={"deletion_type": "boundary_predictor", "boundary_predictor_type": "entropy"}
    ),
    # What looks at padding can only agree where there is the same padding.
    "the reference's": Case(
        {**SCORES, "score_per": "batch", "entropy_coefficient_1": 0.1, "entropy_coefficient_2": 0.2},
        {"deletion_type": "log_sigmoid", "sigmoid_mask_scale": -10.0},
        one_width=True,
    ),
}
DIVIDED_ALIKE = "gate_variance"
"""The case whose loss depends on how many examples are taken at once; none does on processes."""
PADDED_ALIKE = "the reference's"
"""The case whose loss depends on the width of batches."""


def rows(first: int, number: int, one_width: bool = False) -> dict[str, torch.Tensor]:
    """Rows `first`, ... of an endless table: sources and targets of very different lengths, some without any
    target."""
    sources, targets = [], []
    for row in range(first, first + number):
        random = torch.Generator().manual_seed(row)
        long = row % 3 == 0
        length = int(torch.randint(9, 13, (1,), generator=random)) if long else 3
        wanted = int(torch.randint(8, 11, (1,), generator=random)) if long else 1
        if row % STEP == WITHOUT_TARGET:
            wanted = 0
        sources.append(torch.randint(3, 250, (length,), generator=random))
        targets.append(torch.randint(3, 250, (wanted,), generator=random))
    ids, labels = torch.zeros(number, 12, dtype=torch.long), torch.full((number, 10), -100)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        ids[row, : len(source)], labels[row, : len(target)] = source, target
    if not one_width:
        ids = ids[:, : max(map(len, sources))]
        labels = labels[:, : max(1, *map(len, targets))]
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


class Table(IterableDataset[dict[str, torch.Tensor]]):
    """The rows in batches, dealt out among processes as by our own streams."""

    may_fail = False

    def __init__(
        self, first: int, at_once: int, rank: int, world_size: int, one_width: bool, labels: bool
    ) -> None:
        self.first, self.at_once, self.rank, self.world_size = first, at_once, rank, world_size
        self.one_width, self.labels = one_width, labels
        self.make = rows

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        first = self.first + self.rank * self.at_once
        while True:
            batch = self.make(first, self.at_once, self.one_width)
            ids = batch["input_ids"]
            yield batch | ({"segment_ends": (ids % 3 == 0) & (ids != 0)} if self.labels else {})
            first += self.world_size * self.at_once


def train(
    case: Case,
    at_once: int,
    *,
    steps: int = 2,
    logging_steps: int = 1,
    first: int = 0,
    step: int = STEP,
    batch_tokens: int | None = None,
) -> dict[str, Any]:
    """Metrics and final weights of a few steps of gradient descent.

    Args:
        at_once: examples a forward pass, or of a whole step of a process where `batch_tokens` divides it.
        first: the row to begin with.
        step: examples an optimizer step.
    """
    torch.manual_seed(0)
    recipe = load("quickstart_byt5")
    settings = {"deletion_type": "scaled_sigmoid", "gate_bias_init": 0.0, **case.model}
    model = MrT5ForConditionalGeneration(
        MrT5Config(**SIZES, dropout_rate=0.0, delete_gate_layer=1, **settings)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".q.weight", "delete_gate.feed_forward.weight")):
                weight.mul_(10)  # so that scores exceed 5, and gates differ
    with tempfile.TemporaryDirectory() as folder:
        arguments = OneDeviceArguments(output_dir=folder, use_cpu=True)
        at_a_time = at_once * arguments.world_size
        arguments = OneDeviceArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=steps,
            gradient_accumulation_steps=step // at_a_time,
            logging_steps=logging_steps,
            save_strategy="no",
            ignore_data_skip=True,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            log_level="error",
        )
        labels = settings["deletion_type"] == "boundary_predictor"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
        run = RunDir.create(Path(folder) / "run")
        trainer = DeletionTrainer(
            model,
            arguments,
            Table(first, at_once, arguments.process_index, arguments.world_size, case.one_width, labels),
            recipe.model_copy(
                update={
                    "loss": LossSection(**case.loss),
                    "controller": ConstantController(kind="constant", alpha=0.3),
                    "seed": 5,
                    "training": recipe.training.model_copy(update={"batch_tokens": batch_tokens}),
                }
            ),
            run=run,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )
        trainer.train_from(None)
        left_out = ("seconds", "bytes_per_second", "target")
        lines = [{k: v for k, v in line.items() if k not in left_out} for line in run.metrics()]
    return {"lines": lines, "weights": {n: w.detach().tolist() for n, w in model.named_parameters()}}


if __name__ == "__main__":
    # The arguments are the numbers of examples that each process takes at once; "4/30": by 30 byte tokens.
    found = {
        name: {
            size: train(case, int(size.split("/")[0]), batch_tokens=int(size.partition("/")[2] or 0) or None)
            for size in sys.argv[1:]
        }
        for name, case in CASES.items()
    }
    if torch.distributed.get_rank() == 0:
        json.dump(found, sys.stdout)
    torch.distributed.destroy_process_group()
