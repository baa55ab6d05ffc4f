"""The human-readable lines of a training plan; `--json` contains them as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrt5cli.data.characters import beginning
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.recipe import Recipe
from mrt5cli.text import counted, listed, rounded
from mrt5cli.training.forecast import Forecast
from mrt5cli.training.plan import Prepared, TrainingPlan

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration

SHOWN = 100
"""Longest excerpt, in characters, of the example's source and target."""


def facts(plan: TrainingPlan, prepared: Prepared, expected: Forecast) -> dict[str, str]:
    """The plan's lines: each label with its text, which may span several lines."""
    recipe, training = plan.recipe, plan.recipe.training
    model, config, micro_batches = prepared.start.model, prepared.start.model.config, prepared.micro_batches
    accumulated = f", {micro_batches} x {training.device_batch_size} accumulated" if micro_batches > 1 else ""
    if training.batch_tokens is not None:
        accumulated = f", at most {training.batch_tokens:,} byte tokens per forward pass"
    warmup = f" after {counted(training.warmup_steps, 'warm-up step')}" if training.warmup_steps else ""
    steps, since = f"{training.max_steps:,}", ""
    if before := training.continues_from:
        steps = f"{training.max_steps - before:,} more after the first {before:,},"
        since = f", starting at step {before:,}"
    shards = " with one shard each" * (training.sharding == "fsdp" and plan.runtime.world_size > 1)
    source, target = (beginning(each, SHOWN) for each in prepared.example)
    found = {
        "run": f"{recipe.name}: {recipe.description}",
        "task": prepared.task.describe(),
        "splits": "\n".join(prepared.task.splits()),
        "example": f"{source}\n-> {target}",
        "model": f"{rounded(model.num_parameters())} parameters, width {config.d_model}, "
        f"{config.num_layers} + {config.num_decoder_layers} layers, "
        f"{recipe.model.shortener.placed()}; from {prepared.start.origin}",
        "trained": _trained(recipe, model),
        "loss": _loss(recipe),
        "steps": f"{steps} of {training.batch_size} examples{accumulated}; learning rate "
        f"{training.learning_rate:g}, {training.schedule}{warmup}{since}",
        "best": _best(recipe),
        "device": f"{plan.runtime.sentence()}{shards}; attention by {prepared.attention}",
        **expected.facts(),
        "output": str(plan.run.path),
    }
    return {name: fact for name, fact in found.items() if fact}


def _trained(recipe: Recipe, model: MrT5ForConditionalGeneration) -> str:
    lora, shortener = recipe.training.lora, recipe.model.shortener
    if lora is None:
        return ""
    gate = f", and the {shortener.called}" if shortener.has_weights else ""
    return (
        f"{model.num_parameters(only_trainable=True):,} of these parameters: LoRA of rank {lora.rank} on "
        f"{listed(lora.targets)}{gate}"
    )


def _loss(recipe: Recipe) -> str:
    loss, controller, shortener = recipe.loss, recipe.controller, recipe.model.shortener
    terms, notes = ["cross-entropy"], []
    if not shortener.steered:
        terms += [f"{shortener.own_loss} loss"] if shortener.own_loss else []
    elif controller.kind == "constant":
        terms.append(f"{controller.alpha:g} * {loss.gate_loss}")
    else:
        terms.append(f"alpha * {loss.gate_loss}")
        target = f"{100 * controller.target_deletion_rate:g} % deleted"
        notes.append(f"alpha set by {controller.kind} toward {target}")
    if loss.score_coefficient:
        terms.append(f"{loss.score_coefficient:g} * score loss")
    if shortener.steered and (loss.entropy_coefficient_1 or loss.entropy_coefficient_2):
        terms.append("entropy terms")
    if shortener.steered and loss.regularizer_delay:
        notes.append(f"gate loss from step {loss.regularizer_delay}")
    return "; ".join([" + ".join(terms), *notes])


def _best(recipe: Recipe) -> str:
    training = recipe.training
    if training.best_metric is None:
        return ""
    metric = METRICS[training.best_metric]
    how = "hard deletion" if recipe.evaluation.hard_delete else "soft deletion"
    gates = f", {how}" if recipe.model.shortener.gates else ""
    patience = f"; stops after {training.patience} without improvement" if training.patience else ""
    which = "lowest" if metric.better == "lower" else "highest"
    often = f"measured every {training.eval_steps} steps"
    return f"{which} {metric.title} on validation data{gates}, {often}{patience}"
