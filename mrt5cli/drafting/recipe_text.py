"""A recipe for a table of pairs, as YAML text with comments."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mrt5cli import runtime as machine
from mrt5cli.drafting.pairs import MOST_CHOICES, Draft
from mrt5cli.errors import RecipeError
from mrt5cli.recipe import ModelSection, Recipe, words
from mrt5cli.recipe.strict_yaml import inline, parse
from mrt5cli.rundir import RunDir
from mrt5cli.text import counted, shortened
from mrt5cli.training.estimates import parameters, shape_of, sizes_of
from mrt5cli.training.memory import Step

if TYPE_CHECKING:
    import torch

STEP = 16
MOST_INPUT, MOST_TARGET = 2048, 512
"""Maximum lengths in byte tokens, multiples of `STEP`; longer rows are truncated."""
LITTLE_MORE = 1.5
"""Maximum factor by which the longest row may exceed the 99th percentile without being truncated."""
FEW_ROWS = 2000
"""Training rows below which a larger fraction of them is held out."""
PRETRAINED = "stanfordnlp/mrt5-small"
BUDGET = 12_000_000
"""Byte tokens to train a small model on, about four minutes on two cores; `EPOCHS` may limit them further."""
EPOCHS = 200
SMALL_MODEL = """\
# Learned positions, because a model trained from scratch is slow to learn positions from T5's relative bias.
# Noise on the gate's logits, so that gates end up open or closed instead of in between.
model:
  start: scratch
  shape: {{d_model: 64, d_ff: 256, d_kv: 16, num_heads: 4, num_layers: 3, num_decoder_layers: 2}}
  positions: absolute
  max_positions: {positions}
  dropout: 0.0
  shortener: {{kind: delete_gate, layer: 2, bias_init: 3.0, noise: logistic}}
"""
SMALL_GATE = """\
# The first half of the steps deletes nothing. Then the weight of the gate loss rises until the gate reaches
# the target deletion rate; half of these steps use hard deletion, as in evaluation.
loss:
  score_coefficient: 0.5
  regularizer_delay: {delay}
  hard_delete_probability: 0.5

controller:
  kind: pi_two_sided
  target_deletion_rate: 0.4
  k_p: 0.6
  k_i: 5.0e-4
  alpha_max: 0.08
"""
PAPERS_GATE = """\
# The paper's controller: the weight of the gate loss rises until the gate reaches the target deletion rate.
controller:
  kind: pi
  target_deletion_rate: 0.5
  k_p: 0.5
  k_i: 1.0e-5
"""
PAPERS_SHORTENER = {"kind": "delete_gate", "layer": 3, "norm": "rms", "bias_init": 1.0}
MOST_COLUMNS = 20
"""Maximum number of columns to list in comments."""


@dataclass(frozen=True)
class Setup:
    """The model that a recipe trains, and its training settings.

    Attributes:
        command: "pretrain" or "finetune".
        why: a sentence on the choice of the starting model.
        model: YAML text of the section `model`.
        gate: YAML text of the sections `loss` and `controller`.
    """

    command: str
    why: str
    model: str
    gate: str
    batch_size: int
    max_steps: int
    learning_rate: str
    precision: str


def to_yaml(
    draft: Draft, command: str, device: torch.device, start: str | None, code: Sequence[str] = ()
) -> str:
    """The text of a recipe whose training step fits the device, with comments on what was found.

    Args:
        command: command line that the recipe names as its origin.
        start: model to start from, or "scratch"; None chooses by the device.
        code: --code options for the training command.

    Raises:
        RecipeError: a given value, such as the name, is not valid in a recipe.
    """
    before = (
        RunDir(Path(start)).recipe().model if start and RunDir(Path(start)).recipe_path.is_file() else None
    )
    positions = before.max_positions if before and before.positions == "absolute" else MOST_INPUT
    lengths = tuple(
        min(positions, _length(tokens, most))
        for tokens, most in ((draft.inputs, MOST_INPUT), (draft.targets, MOST_TARGET))
    )
    setup = _setup(draft, lengths, device, start, before)
    batch = setup.batch_size
    while True:
        text = "\n".join(
            [
                _head_of(draft, setup, command, code),
                _task(draft, lengths),
                setup.model,
                setup.gate,
                _training(setup, batch),
            ]
        )
        try:
            recipe = Recipe.model_validate(parse(text).tree)
        except ValidationError as error:
            found = [(words.dotted(place), problem) for place, problem in words.problems(error)]
            raise RecipeError(f"the recipe for {draft.data}", found) from None
        if batch == 1 or _fits(recipe, device):
            return text
        batch //= 2


def _fits(recipe: Recipe, device: torch.device) -> bool:
    """Whether a training step fits in 80 % of a GPU's memory, or half of the machine's."""
    sizes, on_gpu = sizes_of(recipe, shape_of(recipe)), device.type == "cuda"
    batch, attention = recipe.training.device_batch_size, "sdpa" if on_gpu else "packed"
    step = Step(recipe, sizes, parameters(sizes), batch, attention, on_gpu)
    return step.memory().total <= (0.8 if on_gpu else 0.5) * machine.memory(device)


def _length(tokens: Sequence[int], most: int) -> int:
    """The 99th percentile, or the maximum if it is not much longer, rounded up to a multiple of `STEP`."""
    ordered = sorted(tokens)
    most_rows, all_rows = (
        math.ceil(length / STEP) * STEP
        for length in (ordered[math.ceil(0.99 * len(tokens)) - 1], ordered[-1])
    )
    return min(most, all_rows if all_rows <= LITTLE_MORE * most_rows else most_rows)


def _setup(
    draft: Draft, lengths: Sequence[int], device: torch.device, start: str | None, before: ModelSection | None
) -> Setup:
    """The model and training settings for sources and targets of these lengths in byte tokens.

    Args:
        before: the model section of the starting run; None if `start` is not a run.
    """
    tokens, on_gpu = sum(lengths), device.type == "cuda"
    why = "chosen with --from"
    if start is None:
        start = PRETRAINED if on_gpu else "scratch"
        why = f"the default for {machine.device_name(device)}; --from chooses another"
    if start == "scratch":
        batch = 64 if tokens <= 256 else 32 if tokens <= 1024 else 16
        most = min(3000, BUDGET // (batch * tokens), EPOCHS * len(draft.inputs) // batch)
        steps = max(500, most // 100 * 100)
        model, gate = SMALL_MODEL.format(positions=max(lengths)), SMALL_GATE.format(delay=steps // 2)
        why = f"Train a small model from scratch ({why})."
        return Setup("pretrain", why, model, gate, batch, steps, "3.0e-3", "fp32")
    batch = 64 if on_gpu else 16
    steps = max(200, min(3000, 10 * len(draft.inputs) // batch // 100 * 100))
    precision = "bf16" if on_gpu else "fp32"
    why = f"Fine-tune a trained model ({why})."
    model = _model_from(start, before)
    return Setup("finetune", why, model, PAPERS_GATE, batch, steps, "1.0e-4", precision)


def _model_from(start: str, before: ModelSection | None) -> str:
    """The model section for a starting model: like that of a run, else like the published models."""
    model: dict[str, object] = {"start": start, "shortener": PAPERS_SHORTENER}
    if before is not None:
        if before.positions == "absolute":
            model |= {"positions": "absolute", "max_positions": before.max_positions}
        if before.shortener.kind == "delete_gate":
            model["shortener"] = before.shortener.model_dump(mode="json", exclude_defaults=True)
        elif before.shape is not None:
            model["shortener"] = PAPERS_SHORTENER | {"layer": min(3, before.shape.num_layers - 1)}
    return "model:\n" + "".join(f"  {key}: {inline(value)}\n" for key, value in model.items())


def _head_of(draft: Draft, setup: Setup, command: str, code: Sequence[str]) -> str:
    rows = draft.sample.rows
    counts = ", ".join(f"{len(some):,} of {split}" for split, some in rows.items())
    seen = f"{'all' if draft.sample.whole else 'the first'} rows ({counts}):"
    found = []
    for one in draft.columns[:MOST_COLUMNS]:
        count = f"{len(one.values):,}" if len(one.values) <= MOST_CHOICES else "many"
        name = _on_one_line(shortened(one.name))
        found.append(f"#   {name}: {one.kind}, {one.mean:.0f} bytes on average, {count} distinct")
    if more := len(draft.columns) - len(found):
        found.append(f"#   and {more:,} more columns")
    train = _on_one_line(shlex.join(["mrt5", setup.command, "THIS.yaml", *code]))
    lines = [
        "# A starting point to edit, written by",
        f"#   {_on_one_line(command)}",
        "# `mrt5 recipe schema task.text2text` explains its keys.",
        f"# Columns of {seen}",
        *found,
        *([f"# Chosen: {draft.chosen}.", "# --input and --target choose others."] if draft.chosen else []),
        "# Train it, after a few seconds with a tiny model as a test, and evaluate it:",
        f"#   {train} --smoke && {train}",
        f"#   mrt5 evaluate runs/{draft.name}-seed42",
        "",
        f"name: {inline(draft.name)}",
        f"description: {inline(shortened(f'MrT5 writes {draft.target} for {draft.input}'))}",
        "seed: 42",
        "",
    ]
    return "\n".join(lines)


def _on_one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _task(draft: Draft, lengths: Sequence[int]) -> str:
    inputs, targets = (
        sum(one > length for one in tokens)
        for tokens, length in zip((draft.inputs, draft.targets), lengths, strict=True)
    )
    longest = f"the longest input has {max(draft.inputs):,}, the longest target {max(draft.targets):,}"
    lines = [f"# Lengths are in byte tokens: {longest}."]
    if inputs + targets:
        lines.append(f"# {counted(inputs, 'input')} and {counted(targets, 'target')} will be truncated.")
    split = ""
    if draft.missing:
        share = 0.1 if len(draft.sample.rows["train"]) < FEW_ROWS else 0.05
        split = f", split: {{{', '.join(f'{name}: {share}' for name in draft.missing)}}}"
        which = " and ".join(draft.missing)
        lines.append(f"# There are no {which} files, so a hash of the input selects rows to hold out.")
    if draft.choices:
        lines.append(f"# There are only {len(draft.choices)} distinct targets: the task is classification.")
    lines += [
        "task:",
        "  kind: text2text",
        f"  source: {{kind: files, path: {inline(draft.data)}{split}}}",
        f"  input: {json.dumps(draft.input, ensure_ascii=False)}",
        f"  target: {json.dumps(draft.target, ensure_ascii=False)}",
        f"  input_length: {lengths[0]}",
        f"  target_length: {lengths[1]}",
        f"  metrics: {'[accuracy]' if draft.choices else '[exact_match, cer]'}",
    ]
    lines += [f"  choices: {inline(draft.choices)}"] if draft.choices else []
    lines += [f"  language_column: {inline(draft.language)}"] if draft.language else []
    return "\n".join([*lines, ""])


def _training(setup: Setup, batch: int) -> str:
    steps = setup.max_steps
    return f"""\
# {setup.why}
training:
  max_steps: {steps}
  batch_size: {setup.batch_size}
  device_batch_size: {batch}
  learning_rate: {setup.learning_rate}
  warmup_steps: {steps // 20}
  precision: {setup.precision}
  save_steps: {max(1, steps // 4)}

evaluation:
  examples: 2000
  batch_size: 64
"""
