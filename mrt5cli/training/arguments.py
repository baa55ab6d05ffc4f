"""Translates a recipe's training section into arguments of transformers' Trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import TrainingArguments

from mrt5cli.recipe import Recipe
from mrt5cli.runtime import Runtime

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass
class OneDeviceArguments(TrainingArguments):
    """Arguments for exactly one device per process.

    The base class ignores which GPU was requested, and if it sees several, it spreads each batch over all of
    them from one process, which multiplies the batch size.

    Args:
        gpu_index: the GPU to use if this process is not part of a launched group.
    """

    gpu_index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.report_to = []  # the base class adds to it under Kubeflow; we report in `trackers`

    @cached_property
    def _setup_devices(self) -> torch.device:
        device = super()._setup_devices
        if device.type != "cuda" or self.world_size > 1:
            return device
        self._n_gpu = 1
        torch.cuda.set_device(self.gpu_index)
        return torch.device("cuda", self.gpu_index)


def training_arguments(
    recipe: Recipe, runtime: Runtime, at_once: int, micro_batches: int, output_dir: Path
) -> TrainingArguments:
    """The arguments for a recipe, with every costly feature that we do not use turned off.

    Args:
        at_once: examples per batch of the stream.
        micro_batches: batches per optimizer step.
        output_dir: a folder in the run directory; trackers show the directory's name.
    """
    training = recipe.training
    return OneDeviceArguments(
        output_dir=str(output_dir),
        seed=recipe.seed,
        gpu_index=runtime.device.index or 0,
        use_cpu=runtime.device.type == "cpu",
        bf16=training.precision == "bf16",
        max_steps=training.max_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=micro_batches,
        optim="adamw_torch_fused",
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULES[training.schedule],
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        save_strategy="steps",
        save_steps=training.save_steps,
        eval_strategy="no",
        # Our stream restores its own position; the base class would read and discard earlier batches.
        ignore_data_skip=True,
        # In a hard-deletion step before the gate loss starts, the gate receives no gradient.
        ddp_find_unused_parameters=recipe.loss.hard_delete_probability > 0,
        # Otherwise the saved configuration would disable the cache in generation.
        use_cache=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # would read the loss at every step; we check at logging steps
        include_num_input_tokens_seen="no",
        disable_tqdm=True,
        report_to="none",
        run_name=output_dir.parent.name,
        project=os.environ.get("TRACKIO_PROJECT", "huggingface"),
        log_level="error",
    )
