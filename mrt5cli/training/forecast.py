"""Estimates a run's hours and memory before it starts, and suggests settings that fit a small GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mrt5cli import runtime as machine
from mrt5cli.analysis.throughput import LEAST, WIDE, Rate, core_rate, described, gpu_rate
from mrt5cli.errors import UserError
from mrt5cli.recipe import Recipe
from mrt5cli.runtime import Runtime
from mrt5cli.text import byte_size, counted, duration
from mrt5cli.training.estimates import least_seconds, longest_batch, sizes_of, step_flops
from mrt5cli.training.memory import Step

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.models.fast.choice import Choice

NEAR = 0.9
"""Fraction of a GPU's memory above which a step may not fit: libraries and fragmentation need some, too."""


@dataclass(frozen=True)
class Forecast:
    """The time and memory that a run needs.

    Attributes:
        rate: sustained throughput of one GPU, or of one CPU core.
        seconds: remaining time of the run, on all its GPUs or on one core.
        least: lower bound of `seconds`, as if arithmetic took no time.
        bytes_per_second: source text trained on, in bytes per second of `seconds`.
        step: the micro-batch whose memory is counted.
        available: memory of the device, in bytes.
    """

    runtime: Runtime
    rate: Rate
    seconds: float
    least: float
    bytes_per_second: float
    step: Step
    available: int

    @property
    def on_gpu(self) -> bool:
        return self.runtime.device.type == "cuda"

    @property
    def is_tiny(self) -> bool:
        """Whether fixed costs, not arithmetic, determine the time."""
        return self.seconds <= self.least

    @property
    def device(self) -> str:
        """The name of the device that the hours refer to."""
        if not self.on_gpu:
            return "one core"
        of = f"{self.runtime.world_size} x " if self.runtime.world_size > 1 else ""
        return of + described(machine.device_name(self.runtime.device))

    def facts(self) -> dict[str, str]:
        """The plan's lines on time and memory."""
        where = self.device if not self.on_gpu or self.runtime.world_size > 1 else f"one {self.device}"
        takes = (
            f"about {duration(self.seconds)} on {where}, {self.bytes_per_second:,.0f} bytes per second "
            f"({LEAST if self.is_tiny else f'{self.rate}, {self.rate.origin}'})"
        )
        threads = self.runtime.describe()["threads"]
        # More threads do not speed up narrow models.
        if self.rate is WIDE and threads > 1 and not self.is_tiny:
            takes += f"; {counted(threads, 'thread')} need at least 1/{threads} of that"
        memory = self.step.memory()
        parts = {
            "weights, gradients and Adam's moments": memory.weights,
            "copies of weights": memory.copies,
            f"activations of {counted(self.step.batch, 'example')}": memory.held,
            "temporary in the backward pass": memory.temporary,
        }
        listed = ", ".join(f"{byte_size(size)} {what}" for what, size in parts.items() if size)
        return {
            "takes": takes,
            "memory": f"about {byte_size(memory.total)} of {byte_size(self.available)}: {listed}",
        }

    def document(self) -> dict[str, Any]:
        """The JSON form, for scripts."""
        memory = self.step.memory()
        return {
            "device": self.device,
            "hours": self.seconds / 3600,
            "least_hours": self.least / 3600,
            "bytes_per_second": self.bytes_per_second,
            "flops_per_second": self.rate.flops,
            "measured": self.rate.measured or None,
            "memory": {**asdict(memory), "total": memory.total, "available": self.available},
        }

    def advice(self) -> Iterator[str]:
        """Yield a note if another precision is much faster."""
        if self.on_gpu and self.runtime.precision == "fp32" and not self.is_tiny:
            half = gpu_rate("bf16", machine.device_name(self.runtime.device))
            seconds = max(self.least, self.seconds * self.rate.flops / half.flops)
            yield (
                "float32 products do not use the GPU's matrix units; with --set training.precision=bf16 "
                f"the run takes about {duration(seconds)} ({half.origin})"
            )

    def notes(self) -> Iterator[str]:
        """Yield a note if memory may not suffice.

        Raises:
            UserError: the step cannot fit on the GPU.
        """
        needed, name = self.step.memory().total, str(self.runtime.device)
        if needed <= (NEAR if self.on_gpu else 1.0) * self.available:
            return
        problem = (
            f"a training step of {counted(self.step.batch, 'example')} needs about {byte_size(needed)}, and "
            f"{name} has {byte_size(self.available)}"
        )
        ways = " or ".join(self.ways_to_fit()) or "no smaller batch fits: use a GPU with more memory"
        if self.on_gpu and needed > self.available:
            raise UserError(problem, ways)
        yield f"{problem}; if memory runs out: {ways}" if self.on_gpu else problem

    def ways_to_fit(self) -> Iterator[str]:
        """Yield settings that each make the step fit with room to spare, or else one combination of both."""
        training, lengths = self.step.recipe.training, self.step.lengths
        at_once = training.batch_size // self.step.processes
        by_tokens = training.batch_tokens is not None
        smaller = [size for size in range(self.step.batch - 1, 0, -1) if by_tokens or at_once % size == 0]
        blocks = {"training": training.model_copy(update={"recompute": "blocks"})}
        recomputing = replace(self.step, recipe=self.step.recipe.model_copy(update=blocks))
        key, unit = (
            ("batch_tokens", lengths.source + lengths.target) if by_tokens else ("device_batch_size", 1)
        )
        batches = f"--set training.{key}="
        found = next((size for size in smaller if self._fits(replace(self.step, batch=size))), None)
        if found is not None:
            yield f"{batches}{found * unit}"
        if self._fits(recomputing):
            yield "--set training.recompute=blocks"
        elif found is None:
            both = next((size for size in smaller if self._fits(replace(recomputing, batch=size))), None)
            if both is not None:
                yield f"{batches}{both * unit} --set training.recompute=blocks"

    def _fits(self, step: Step) -> bool:
        return step.memory().total <= NEAR * self.available


def forecast(
    recipe: Recipe, model: MrT5ForConditionalGeneration, runtime: Runtime, attention: Choice, done: int
) -> Forecast:
    """Estimate the remaining time of a run and the memory of its step.

    Args:
        attention: the attention implementation that the run uses.
        done: optimizer steps already completed.
    """
    on_gpu, training = runtime.device.type == "cuda", recipe.training
    sizes = sizes_of(recipe, model.config)
    gpu = machine.device_name(runtime.device) if on_gpu else ""
    rate = gpu_rate(training.precision, gpu) if on_gpu else core_rate(sizes.d_model)
    devices, left = runtime.world_size if on_gpu else 1, training.max_steps - done
    least = least_seconds(recipe, sizes, devices)
    seconds = max(least, step_flops(recipe, sizes) / rate.flops / devices)
    parameters, batch = model.num_parameters(), longest_batch(recipe, runtime.world_size)
    trained = model.num_parameters(only_trainable=True)
    step = Step(
        recipe, sizes, parameters, batch, attention.implementation, on_gpu, runtime.world_size, trained
    )
    return Forecast(
        runtime,
        rate,
        seconds * left,
        least * left,
        training.batch_size * step.lengths.source / seconds,
        step,
        machine.memory(runtime.device),
    )
