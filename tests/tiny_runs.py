"""Run directories with tiny, untrained models: what `pretrain` leaves behind, made in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrt5cli.recipe.shorteners import SHORTENERS as registered

VOWELS = {"kind": "vowel_removal", "length": 16, "train_examples": 64, "eval_examples": 40}
SPANS = {"kind": "span_corruption", "source": {"kind": "embedded"}, "input_length": 64}
SHAPE = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
GATE = {"kind": "delete_gate", "layer": 1, "bias_init": 0.0}
TARGET = {"kind": "pi", "target_deletion_rate": 0.25}
NO_GATE = {"kind": "none"}
SHORTENERS: dict[str, dict[str, Any]] = {
    "random": {"kind": "random", "layer": 1, "rate": 0.25},
    "fixed": {"kind": "fixed", "layer": 1, "amount": 0.4},
    "bp": {"kind": "boundary_predictor", "layer": 1},
    "bp_entropy": {"kind": "boundary_predictor", "layer": 1, "type": "entropy"},
    "bp_unigram": {"kind": "boundary_predictor", "layer": 1, "type": "unigram"},
    "bp_batch": {"kind": "boundary_predictor", "layer": 1, "per": "batch", "sampling": "always"},
    "cp": {"kind": "convolution", "layer": 1, "stride": 3},
    "cp_batch": {"kind": "convolution", "layer": 1, "stride": 3, "per": "batch"},
    "gone": {"kind": "source_removed"},
}
"""Every shortener but MrT5's own gate; below, those that are registered besides."""
SHORTENERS |= {
    section.kinds()[0]: {
        "kind": section.kinds()[0],
        "layer": 1,
        **{name: field.examples[0] for name, field in section.model_fields.items() if field.examples},
    }
    for section in registered
    if not {*section.kinds()} & {GATE["kind"], NO_GATE["kind"], *(one["kind"] for one in SHORTENERS.values())}
}


def make_run(
    folder: Path,
    name: str,
    *,
    task: dict[str, Any] = VOWELS,
    shortener: dict[str, Any] = GATE,
    controller: dict[str, Any] | None = None,
    seconds: float | None = None,
    **model: Any,
) -> Path:
    """A finished run `<name>-seed3`; what learns to delete or to segment does so about half of the time."""
    import torch

    from mrt5cli import recipe as recipes
    from mrt5cli.models import build
    from mrt5cli.rundir import RunDir
    from mrt5cli.writing import write_json, write_text

    recipe = recipes.Recipe.model_validate(
        {
            "name": name,
            "description": "tiny",
            "seed": 3,
            "task": task,
            "model": {"start": "scratch", "shape": SHAPE, "shortener": shortener, "dropout": 0.0, **model},
            "controller": controller or {"kind": "constant"},
            "training": {"max_steps": 1, "batch_size": 8},
            "evaluation": {"examples": 24, "batch_size": 8},
        }
    )
    run = RunDir.create(folder / f"{name}-seed3")
    write_text(run.recipe_path, recipes.dump(recipe))
    write_json(run.meta_path, {"status": "finished"})
    if seconds is not None:
        write_text(run.metrics_path, json.dumps({"step": 1, "loss": 6.0, "seconds": seconds}) + "\n")
    torch.manual_seed(3)
    built = build(recipe.model)
    for key, parameter in built.named_parameters():
        if "delete_gate.feed_forward.weight" in key:
            torch.nn.init.normal_(parameter, std=0.5)
        elif "boundary_predictor.boundary_predictor.2" in key:
            parameter.data.mul_(0 if key.endswith("bias") else 20)
    built.save_pretrained(run.model)
    return run.path
