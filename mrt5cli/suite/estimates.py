"""What a plan will take, before any of it is done: hours of a GPU or of a CPU's core, and disk.

Hours are the exact multiply-accumulates of the matrices (`analysis.compute`), a training step being three
forward passes, over a sustained throughput that is assumed, not measured. Lengths are the longest that a
recipe allows, so tasks whose rows are mostly shorter come out too high; decoding of answers one token at a
time, loading and data are not counted, so small models come out too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.recipe import Recipe, Shape, SpanCorruptionTask
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.suite.jobs import EvaluateJob, Job, Machine, SuitePlan, TrainJob

GPU = "NVIDIA A100"
SUSTAINED = {"fp32": 12e12, "bf16": 100e12}
"""Floating-point operations a second that it is assumed to sustain: 60 and 32 % of what it is sold with."""
CORE = 14e9
"""Those of one core of an AMD EPYC over all trainings of the miniature, which took 100 minutes of one core;
wide models are several times faster there."""

SHAPES: Mapping[str, Shape] = {
    "small": Shape(),
    "base": Shape(d_model=1536, d_ff=3968, num_heads=12, num_layers=18, num_decoder_layers=6),
    "large": Shape(d_model=1536, d_ff=3840, num_heads=16, num_layers=36, num_decoder_layers=12),
}
"""ByT5's; models of the Hub are known by the end of their name, and taken for small where it says nothing."""

XNLI_TARGET = 14  # the longest label and EOS
ANSWER = 32  # most answers are far shorter than what may be generated
PASSES = 6  # of a timed batch, beside the one that is measured


class Lengths(NamedTuple):
    """Positions of one example, at most: of the source, of what is left of it, of the target."""

    source: int
    kept: int
    target: int


def machine_for(plan: SuitePlan, device: str, tflops: float | None = None) -> Machine:
    """Whose hours a plan will take: of what its jobs will run on, as far as that is said.

    Args:
        device: as `--device` says it.
        tflops: given where the hours are to be a GPU's.
    """
    if tflops is not None or device.startswith("cuda"):
        return "gpu"
    made_for = {one.machine for one in plan.experiments}
    return "cpu" if device == "cpu" or plan.smoke or made_for == {"cpu"} else "gpu"


def estimate(plan: SuitePlan, tflops: float | None = None, machine: Machine = "gpu") -> None:
    """Give every job its hours on one GPU or core, and what it leaves on disk.

    Args:
        tflops: sustained by the GPU, in either precision; by default `SUSTAINED`.
        machine: `machine_for` says which.
    """
    plan.machine = machine
    shapes: dict[Job, Shape] = {}
    for job in plan.jobs:
        if isinstance(job, TrainJob):
            shapes[job] = shape_of(job.recipe, next((shapes[need] for need in job.needs), None))
            sizes = sizes_of(job.recipe, shapes[job])
            training, precision = job.recipe.training, job.recipe.training.precision
            one = _forward(sizes, lengths_of(job.recipe, job.recipe.task, hard=False))
            # Forward, and twice that backward.
            passes = 3 * one * training.batch_size * training.max_steps
            job.gigabytes = disk(job.recipe, parameters(sizes)) / 1e9
        elif isinstance(job, EvaluateJob):
            recipe, precision = job.train.recipe, "fp32"
            sizes = sizes_of(recipe, shapes[job.train])
            lengths = lengths_of(recipe, job.task, hard=recipe.evaluation.hard_delete)
            one = (1 + (PASSES if job.evaluation.runtime else 0)) * _forward(sizes, lengths)
            one += _forward(sizes, Lengths(1, 1, lengths.target))
            passes = one * (job.options.limit or 0) * max(1, len(getattr(job.task, "languages", [])))
        else:
            continue
        speed = tflops * 1e12 if tflops else SUSTAINED[precision] if machine == "gpu" else CORE
        job.hours = 2 * passes / speed / 3600  # two operations for each multiply-accumulate


def assumption(machine: Machine, tflops: float | None = None) -> str:
    """What the hours rest on, in words."""
    if machine == "cpu":
        return (
            f"hours are estimates for one core, assumed to sustain {CORE / 1e9:g} GFLOP/s, as small models "
            "do on an AMD EPYC; --gpu-tflops estimates those of a GPU"
        )
    if tflops is not None:
        return f"hours are estimates, at an assumed {tflops:g} TFLOP/s"
    fp32, bf16 = (f"{SUSTAINED[name] / 1e12:g}" for name in ("fp32", "bf16"))
    return (
        f"hours are estimates for one {GPU}, assumed to sustain {fp32} TFLOP/s in fp32 and {bf16} in bf16; "
        "--gpu-tflops sets another"
    )


def shape_of(recipe: Recipe, trained: Shape | None = None) -> Shape:
    """The sizes of the model that a recipe trains; `trained`: those of the run that it starts from."""
    start = recipe.model.start
    if start == "scratch":
        return recipe.model.shape or SHAPES["small"]
    return trained or next((SHAPES[name] for name in SHAPES if start.endswith(name)), SHAPES["small"])


def sizes_of(recipe: Recipe, shape: Shape) -> Sizes:
    """The sizes that a count depends on."""
    return Sizes(
        d_model=shape.d_model,
        d_ff=shape.d_ff,
        inner=shape.num_heads * shape.d_kv,
        encoder_layers=shape.num_layers,
        decoder_layers=shape.num_decoder_layers,
        gate_layer=getattr(recipe.model.shortener, "layer", shape.num_layers),
    )


def parameters(sizes: Sizes) -> int:
    """Weights of the matrices, embeddings and head; norms, biases and gates hardly count."""
    attention, feed_forward = 4 * sizes.d_model * sizes.inner, 3 * sizes.d_model * sizes.d_ff
    encoder = sizes.encoder_layers * (attention + feed_forward)
    decoder = sizes.decoder_layers * (2 * attention + feed_forward)
    return encoder + decoder + 2 * sizes.vocabulary * sizes.d_model


def disk(recipe: Recipe, weights: int) -> int:
    """Bytes a finished run takes: the model, and checkpoints of weights and Adam's two moments."""
    kept, one = recipe.training.keep_checkpoints, 4 * weights
    # A kept checkpoint may come with best weights of its own, without the moments.
    best = 0 if recipe.training.best_metric is None else (1 + kept) * one
    return 3 * one * kept + one + best


def lengths_of(recipe: Recipe, task: TaskSection, *, hard: bool) -> Lengths:
    """Lengths of an example of a task, as a recipe's model shortens it.

    Args:
        hard: positions are deleted for real; pooling always does.
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
    """Source and target positions of an example at most, before anything is deleted."""
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


def _forward(sizes: Sizes, lengths: Lengths) -> int:
    return macs(sizes, [lengths.source], [lengths.kept], [lengths.target])
