"""Estimates the cost of a training from its recipe alone: model sizes, lengths, arithmetic and disk.

Time is the exact number of multiply-accumulates of the matrices (`analysis.compute`) divided by a throughput
(`analysis.throughput`), with a minimum per step. Lengths are the longest that a recipe allows, which
overestimates tasks with mostly shorter rows; loading and data are not counted, which underestimates small
models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.analysis.throughput import BLOCK_SECONDS, STEP_SECONDS
from mrt5cli.recipe import Recipe, Shape, SpanCorruptionTask
from mrt5cli.recipe.tasks import TaskSection

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.models.config import MrT5Config

SHAPES: Mapping[str, Shape] = {
    "small": Shape(),
    "base": Shape(d_model=1536, d_ff=3968, num_heads=12, num_layers=18, num_decoder_layers=6),
    "large": Shape(d_model=1536, d_ff=3840, num_heads=16, num_layers=36, num_decoder_layers=12),
}
"""The shapes of ByT5. Hub models are recognized by the end of their name; any other counts as small."""

XNLI_TARGET = 14  # the longest label and EOS
ANSWER = 32  # most answers are far shorter than the limit of generation


class Lengths(NamedTuple):
    """Maximum positions of one example: of the source, the shortened source, and the target."""

    source: int
    kept: int
    target: int


def step_flops(recipe: Recipe, sizes: Sizes) -> int:
    """Floating-point operations of an optimizer step, over all devices; a multiply-accumulate is two.

    The backward pass costs twice the forward pass, or as much as it with LoRA, under which nearly all weights
    have no gradient; recomputing blocks costs another forward pass.
    """
    training = recipe.training
    passes = (2 if training.lora else 3) + (training.recompute == "blocks")
    one = forward_macs(sizes, lengths_of(recipe, recipe.task, hard=False))
    return 2 * passes * training.batch_size * one


def least_seconds(recipe: Recipe, sizes: Sizes, devices: int = 1) -> float:
    """Minimum seconds of an optimizer step on `devices` devices, however fast they compute."""
    passes = math.ceil(recipe.training.batch_size / devices / longest_batch(recipe, devices))
    return STEP_SECONDS + passes * (sizes.encoder_layers + sizes.decoder_layers) * BLOCK_SECONDS


def longest_batch(recipe: Recipe, processes: int = 1) -> int:
    """Examples per forward pass on one device if all are as long as the recipe allows."""
    training = recipe.training
    if training.batch_tokens is None:
        return training.device_batch_size
    lengths = lengths_of(recipe, recipe.task, hard=False)
    fitting = training.batch_tokens // (lengths.source + lengths.target)
    return min(max(1, fitting), training.batch_size // processes)


def forward_macs(sizes: Sizes, lengths: Lengths) -> int:
    """Multiply-accumulates of one example's forward pass."""
    return macs(sizes, [lengths.source], [lengths.kept], [lengths.target])


def shape_of(recipe: Recipe, trained: Shape | None = None) -> Shape:
    """The shape of the model that a recipe trains; `trained` is that of the run it starts from, if known."""
    start = recipe.model.start
    if start == "scratch":
        return recipe.model.shape or SHAPES["small"]
    return trained or next((SHAPES[name] for name in SHAPES if start.endswith(name)), SHAPES["small"])


def sizes_of(recipe: Recipe, shape: Shape | MrT5Config) -> Sizes:
    """The sizes that the arithmetic depends on."""
    assert shape.num_decoder_layers is not None  # configurations always set it
    return Sizes(
        d_model=shape.d_model,
        d_ff=shape.d_ff,
        inner=shape.num_heads * shape.d_kv,
        heads=shape.num_heads,
        encoder_layers=shape.num_layers,
        decoder_layers=shape.num_decoder_layers,
        gate_layer=getattr(recipe.model.shortener, "layer", shape.num_layers),
    )


def parameters(sizes: Sizes) -> int:
    """Parameters of matrices, embeddings and head; norms, biases and gates are negligible."""
    attention, feed_forward = 4 * sizes.d_model * sizes.inner, 3 * sizes.d_model * sizes.d_ff
    encoder = sizes.encoder_layers * (attention + feed_forward)
    decoder = sizes.decoder_layers * (2 * attention + feed_forward)
    return encoder + decoder + 2 * sizes.vocabulary * sizes.d_model


def disk(recipe: Recipe, weights: int) -> int:
    """Bytes on disk of a finished run: the model, and checkpoints of weights and Adam's two moments."""
    kept, one = recipe.training.keep_checkpoints, 4 * weights
    moments = 0 if recipe.training.lora else 2  # with LoRA, they are negligible
    # Each kept checkpoint may refer to its own best weights, which have no moments.
    best = 0 if recipe.training.best_metric is None else (1 + kept) * one
    return (1 + moments) * one * kept + one + best


def saved_bytes(model: MrT5ForConditionalGeneration, *, moments: bool) -> int:
    """Bytes of a model's weights on disk, and with `moments` also of Adam's two moments."""
    return 4 * model.num_parameters() + 8 * moments * model.num_parameters(only_trainable=True)


def lengths_of(recipe: Recipe, task: TaskSection, *, hard: bool) -> Lengths:
    """Lengths of a task's example after shortening by a recipe's model.

    Args:
        hard: assume hard deletion; pooling always shortens.
    """
    source, target = task_lengths(task)
    shortener = recipe.model.shortener
    if not shortener.reads_source:
        return Lengths(1, 1, target)
    rate = shortener.share_deleted(recipe.target_deletion_rate)
    if not (hard or shortener.pools):
        rate *= recipe.loss.hard_delete_probability
    return Lengths(source, max(1, round(source * (1 - rate))), target)


def task_lengths(section: TaskSection) -> tuple[int, int]:
    """Maximum source and target positions of an example before deletion."""
    from mrt5cli.data.span_noise import plan_lengths

    if isinstance(section, SpanCorruptionTask):
        spans = plan_lengths(section.input_length, section.noise_density, section.mean_span_length)
        return spans.inputs, spans.targets
    target = section.longest_target
    if target is None:
        target = XNLI_TARGET
    elif hasattr(section, "answer_length"):
        target = min(ANSWER, target)
    return section.longest_source, target
