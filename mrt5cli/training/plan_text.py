"""Tells a plan: what is printed before a run starts, and what scripts get of it."""

from __future__ import annotations

from typing import Any

from mrt5cli.data.characters import beginning
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.recipe import Recipe
from mrt5cli.text import rounded
from mrt5cli.training.choose import TrainingPlan

DECIDES_NUMBERS = False  # words

SHOWN = 100
"""Characters of an example's source and of its target."""


def text_of(plan: TrainingPlan) -> str:
    """What is printed before a run starts."""
    lines: list[str] = []
    for name, fact in facts(plan).items():
        first, *rest = fact.split("\n")
        lines += [f"{name:<9}{first}", *(f"{'':<9}{line}" for line in rest)]
    return "\n".join(lines + [f"note: {note}" for note in plan.notes])


def document_of(plan: TrainingPlan) -> dict[str, Any]:
    """The plan for scripts."""
    return {
        "status": "finished" if plan.prepared is None else "planned",
        "run": str(plan.run.path),
        "resume_step": plan.resume_step,
        "parameters": None if plan.prepared is None else plan.prepared.parameters,
        **{name: fact for name, fact in facts(plan).items() if name not in ("run", "output")},
        "notes": plan.notes,
        "recipe": plan.recipe.model_dump(mode="json"),
    }


def facts(plan: TrainingPlan) -> dict[str, str]:
    """The plan in words, a line or more each; none of a run that is finished."""
    recipe, prepared = plan.recipe, plan.prepared
    if prepared is None:
        return {}
    training, config, micro = recipe.training, prepared.model.config, prepared.micro_batches
    accumulated = f", {micro} x {training.device_batch_size} accumulated" if micro > 1 else ""
    warmup = f" after {training.warmup_steps} warm-up steps" if training.warmup_steps else ""
    source, target = (beginning(each, SHOWN) for each in prepared.example)
    splits = prepared.task.splits()
    return {
        "run": f"{recipe.name}: {recipe.description}",
        "task": prepared.description,
        **({"splits": "\n".join(splits)} if splits else {}),
        "example": f"{source}\n-> {target}",
        "model": f"{rounded(prepared.parameters)} parameters, width {config.d_model}, {config.num_layers} + "
        f"{config.num_decoder_layers} layers, "
        f"{recipe.model.shortener.placed()}; from {prepared.start.origin}",
        "loss": _loss(recipe),
        "steps": f"{training.max_steps:,} of {training.batch_size} examples{accumulated}; learning rate "
        f"{training.learning_rate:g}, {training.schedule}{warmup}",
        **({"best": _best(recipe)} if training.best_metric else {}),
        "device": plan.runtime.sentence(),
        "output": str(plan.run.path),
    }


def _loss(recipe: Recipe) -> str:
    loss, controller, shortener = recipe.loss, recipe.controller, recipe.model.shortener
    if not shortener.steered:
        parts = ["cross-entropy" + (f" + {shortener.own_loss} loss" if shortener.own_loss else "")]
    elif controller.kind == "constant":
        parts = [f"cross-entropy + {controller.alpha:g} * {loss.gate_loss}"]
    else:
        parts = [
            f"cross-entropy + alpha * {loss.gate_loss}, alpha set by {controller.kind} towards "
            f"{100 * controller.target_deletion_rate:g} % deleted"
        ]
    if loss.score_coefficient:
        parts.append(f"+ {loss.score_coefficient:g} * score loss")
    if not shortener.steered:
        return " ".join(parts)
    if loss.entropy_coefficient_1 or loss.entropy_coefficient_2:
        parts.append("+ entropy terms")
    if loss.regularizer_delay:
        parts.append(f"from step {loss.regularizer_delay}")
    return " ".join(parts)


def _best(recipe: Recipe) -> str:
    training = recipe.training
    assert training.best_metric is not None
    metric = METRICS[training.best_metric]
    how = "hard deletion" if recipe.evaluation.hard_delete else "soft deletion"
    gates = f", {how}" if recipe.model.shortener.gates else ""
    patience = f"; stops after {training.patience} without a better one" if training.patience else ""
    which = "lowest" if metric.better == "lower" else "highest"
    return (
        f"{which} {metric.title} on validation data{gates}, measured every "
        f"{training.eval_steps} steps{patience}"
    )
