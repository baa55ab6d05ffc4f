"""Estimates the cost of a plan: hours of a GPU or of a CPU core, and disk space.

Each training is estimated as in `training.estimates`. The token-by-token decoding of answers in evaluations
is not counted.
"""

from __future__ import annotations

from typing import get_args

from mrt5cli.analysis.throughput import LEAST, NARROW_SHARED, WIDE, core_rate, described, gpu_rate
from mrt5cli.recipe import Shape
from mrt5cli.runtime import Precision
from mrt5cli.suite.jobs import EvaluateJob, Job, Machine, SuitePlan, TrainJob
from mrt5cli.training.estimates import (
    Lengths,
    disk,
    forward_macs,
    least_seconds,
    lengths_of,
    parameters,
    shape_of,
    sizes_of,
    step_flops,
)

PASSES = 6  # additional forward passes of each timed batch


def machine_for(plan: SuitePlan, device: str, tflops: float | None = None) -> Machine:
    """The kind of machine that a plan's hours refer to.

    Args:
        device: the value of `--device`.
        tflops: the value of `--gpu-tflops`, which implies a GPU.
    """
    if tflops is not None or device.startswith("cuda"):
        return "gpu"
    made_for = {one.machine for one in plan.experiments}
    return "cpu" if device == "cpu" or plan.smoke or made_for == {"cpu"} else "gpu"


def estimate(plan: SuitePlan, tflops: float | None = None, machine: Machine = "gpu", gpu: str = "") -> None:
    """Set every job's hours on one GPU or core, and its disk space.

    Args:
        tflops: sustained TFLOP/s of the GPU in either precision; by default from `analysis.throughput`.
        machine: the result of `machine_for`.
        gpu: name of the GPU.
    """
    plan.machine = machine
    shapes: dict[Job, Shape] = {}
    for job in plan.jobs:
        precision: Precision = "fp32"
        least = 0.0
        if isinstance(job, TrainJob):
            shape = shapes[job] = shape_of(job.recipe, next((shapes[need] for need in job.needs), None))
            sizes, precision = sizes_of(job.recipe, shape), job.recipe.training.precision
            steps = job.recipe.training.max_steps
            flops, least = step_flops(job.recipe, sizes) * steps, least_seconds(job.recipe, sizes) * steps
            job.gigabytes = disk(job.recipe, parameters(sizes)) / 1e9
        elif isinstance(job, EvaluateJob):
            recipe, sizes = job.train.recipe, sizes_of(job.train.recipe, shapes[job.train])
            lengths = lengths_of(recipe, job.task, hard=recipe.evaluation.hard_delete)
            one = (1 + (PASSES if job.evaluation.runtime else 0)) * forward_macs(sizes, lengths)
            one += forward_macs(sizes, Lengths(1, 1, lengths.target))
            flops = 2 * one * (job.options.limit or 0) * max(1, len(getattr(job.task, "languages", [])))
        else:
            continue
        rate = gpu_rate(precision, gpu) if machine == "gpu" else core_rate(sizes.d_model, shared=True)
        job.hours = max(least, flops / (tflops * 1e12 if tflops else rate.flops)) / 3600


def assumption(machine: Machine, tflops: float | None = None, gpu: str = "") -> str:
    """The assumptions behind the hours, as text."""
    if machine == "cpu":
        kinds = {"narrow": NARROW_SHARED, "wide": WIDE}
        listed = ", ".join(f"{rate} for {kind} models ({rate.origin})" for kind, rate in kinds.items())
        rates = f" for one core, at {listed}; --gpu-tflops estimates those of a GPU"
    elif tflops is not None:
        rates = f", at an assumed {tflops:g} TFLOP/s"
    else:
        found = [(gpu_rate(each, gpu), each) for each in get_args(Precision)]
        listed = " and ".join(f"{rate} in {precision} ({rate.origin})" for rate, precision in found)
        rates = f" for one {described(gpu)}, at {listed}; --gpu-tflops sets another rate"
    return f"hours are estimates{rates}; a training takes at least {LEAST}"
