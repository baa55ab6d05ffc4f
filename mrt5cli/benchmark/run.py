"""Runs the kinds of benchmark and collects their results in one report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import transformers

from mrt5cli.benchmark.attention import attention
from mrt5cli.benchmark.card import Clock, host_waits
from mrt5cli.benchmark.compiling import compiled
from mrt5cli.benchmark.forward import forward
from mrt5cli.benchmark.generation import generate
from mrt5cli.benchmark.memory import Gauge, measure, memory_of
from mrt5cli.benchmark.models import DTYPES, SIZES, Shapes, base_model, ours
from mrt5cli.benchmark.precision import precision_rows
from mrt5cli.benchmark.suite import Builder, Case, Memory, Suite, interleave
from mrt5cli.benchmark.training_step import train
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5ForConditionalGeneration, read_config
from mrt5cli.models.attention import DEFAULT
from mrt5cli.models.fast.choice import Choice, choose
from mrt5cli.runtime import device_name, usable_cpus
from mrt5cli.subject import Subject
from mrt5cli.text import byte_size, first_line

BUILDERS: dict[str, Builder] = {
    "forward": forward,
    "train": train,
    "generate": generate,
    "attention": attention,
    "compile": compiled,
}
"""The kinds whose cases are calls on one set of weights; the remaining kind is "precision"."""


@dataclass(frozen=True)
class Report:
    """The output of `mrt5 bench`: the setting on which the numbers depend, and the numbers."""

    setting: Json
    suites: Sequence[Suite]

    def to_json(self) -> Json:
        return {"setting": self.setting, "suites": [suite.to_json() for suite in self.suites]}

    def broken_parity(self) -> list[str]:
        """One sentence per fast path that differs from the oracle by more than rounding."""
        return [
            f"{suite.what}, {name}: {found.difference:.1e} from the oracle, on values up to "
            f"{found.size:.1f}; {found.allowed:.1e} is rounding"
            for suite in self.suites
            for name, found in suite.parity.items()
            if not found.holds
        ]

    def problems(self) -> list[str]:
        """One sentence per case that could not run."""
        return [
            f"{suite.what}, {name}: {why}" for suite in self.suites for name, why in suite.problems.items()
        ]


@dataclass
class Benchmark:
    """What to time, and on what.

    Attributes:
        subject: the model, or None for random weights of `size`.
        size: a key of `SIZES`.
        shapes: input sizes, deletion rates and precisions.
        rounds: number of rounds that count.
        device: where to run.
        threads: number of CPU threads.
        memory: whether to measure memory too; on a CPU in a separate process.
        limit: examples per subset for the precision kind.
        done: called with a kind, the number of calls done and their total (0 if unknown).
        save: called with the report whenever there are new results.
        suites: the results so far.
    """

    subject: Subject | None
    size: str
    shapes: Shapes
    rounds: int
    device: torch.device
    threads: int
    memory: bool = False
    limit: int = 1000
    done: Callable[[str, int, int], None] = lambda kind, finished, total: None
    save: Callable[[Report], None] = lambda report: None
    suites: list[Suite] = field(default_factory=list)

    @cached_property
    def base(self) -> MrT5ForConditionalGeneration:
        """The weights, built when first needed; the precision kind does not need them."""
        return self._make_base(device=str(self.device)).to(self.device)

    @property
    def _make_base(self) -> Callable[..., MrT5ForConditionalGeneration]:
        return partial(base_model, None if self.subject is None else self.subject.source, self.size)

    def run(self, kinds: Sequence[str]) -> Report:
        """Time the kinds one after the other; see `mrt5 bench`.

        Raises:
            UserError: a kind cannot be timed here; nothing was timed.
        """
        self.check(kinds)
        torch.set_num_threads(self.threads)
        for kind in kinds:
            self.measure(kind)
        return self.report()

    def report(self) -> Report:
        """The results so far."""
        return Report(self.setting(), self.suites)

    def check(self, kinds: Sequence[str]) -> None:
        """Refuse, before timing anything, what cannot be timed; see `run`."""
        if self.size not in SIZES:
            raise UserError(f"--size {self.size} is unknown", f"choose from {', '.join(SIZES)}")
        if "wide" in self.shapes.spreads and self.shapes.batch == 1:
            raise UserError("--rows wide needs at least two rows per batch", "use --batch-size 2 or more")
        config = None if self.subject is None else read_config(self.subject.source)
        timed = set(kinds) - {"precision"}  # precision reads the model's own task
        if timed and config is not None and config.has_absolute_position_embeddings:
            most, longest = config.max_position_embeddings, max(self.shapes.length, self.shapes.target)
            if longest > most:
                raise UserError(
                    f"this model has learned {most:,} positions, fewer than the requested {longest:,}",
                    f"use --length and --target-length of at most {most}",
                )
        if "precision" in kinds and (self.subject is None or self.subject.recipe is None):
            raise UserError(
                "--what precision needs a trained run with its recipe",
                "pass its directory: mrt5 bench runs/NAME --what precision",
            )

    def measure(self, kind: str) -> None:
        if kind == "precision":
            self.suites.append(self._precisions())
        else:
            suite = BUILDERS[kind](self.base, self.shapes)
            self.time(suite)
            if self.memory and kind != "compile":
                self.add_memory(suite, BUILDERS[kind])
            if self.device.type == "cuda":
                suite.notes.append(f"attn_implementation auto is {self._auto(trains=kind == 'train')}")
        self.save(self.report())

    def _auto(self, trains: bool) -> Choice:
        """The attention implementation that "auto" selects."""
        config, dtype = ours(self.base, DEFAULT).config, DTYPES[self.shapes.precisions[-1]]
        return choose(
            config, self.device, dtype, drops=trains, score_per="row" if trains else None, trains=trains
        )

    def _precisions(self) -> Suite:
        assert self.subject is not None and self.subject.recipe is not None  # see `check`
        source, recipe = self.subject.source, self.subject.recipe
        done = lambda batches: self.done("precision", batches, 0)
        rows, of = precision_rows(source, recipe, device=self.device, limit=self.limit, done=done)
        return Suite("precision", notes=[of], rows=rows)

    def time(self, suite: Suite) -> None:
        """Add a suite to the report, check its results and time its cases."""
        self.suites.append(suite)
        for name, check in suite.checks():
            with self._tried(suite, name):
                suite.parity[name] = check()
        clock, calls = Clock(self.device), {}
        finished, total = 0, (self.rounds + 1) * len(suite.cases)

        def done() -> None:
            nonlocal finished
            finished += 1
            self.done(suite.what, finished, total)

        for name, case in suite.cases.items():
            with self._tried(suite, name):
                calls[name] = partial(clock.seconds, case.run, clock.warm_up(case.run))
                if self.device.type == "cuda":
                    self._inspect(case)
            done()
        for seconds in interleave(calls, rounds=self.rounds, done=done) if calls else ():
            for name, rounds in seconds.items():
                suite.cases[name].rounds = rounds
            suite.compare()
            self.save(self.report())
        suite.notes += [f"{name}: {case.compiling}" for name, case in suite.cases.items() if case.compiling]

    def _inspect(self, case: Case) -> None:
        """Measure host waits and memory of a case on a GPU, in as few calls as possible."""
        of_step = memory_of(case, self.device) if case.loss else None
        gauge = Gauge(self.device)
        case.waits = host_waits(case.run, self.device)  # this also frees the step's gradients
        case.memory = (of_step or Memory(gauge.peak())) if self.memory else None

    @contextmanager
    def _tried(self, suite: Suite, name: str) -> Iterator[None]:
        """On a GPU, record a case's failure (often lack of memory) and continue with the others."""
        try:
            yield
        except Exception as error:
            if self.device.type != "cuda":
                raise
            suite.problems[name] = f"{type(error).__name__}: {first_line(error)}"
            for weight in self.base.parameters():  # free gradients that a failed step left on shared weights
                weight.grad = None

    def add_memory(self, suite: Suite, build: Builder) -> None:
        """Note the model's memory, and on a CPU measure that of each case in a separate process."""
        weights = sum(weight.numel() * weight.element_size() for weight in self.base.parameters())
        suite.notes.append(f"memory is that of each case, in addition to the model's {byte_size(weights)}")
        if self.device.type == "cuda":
            return
        memory = measure(build, self._make_base, self.shapes, list(suite.cases), self.threads)
        for number, (name, found) in enumerate(memory, 1):
            suite.cases[name].memory = found
            if found.problem:
                suite.notes.append(f"{name}: memory not measured, {found.problem}")
            self.done(f"memory of {suite.what}", number, len(suite.cases))

    def setting(self) -> Json:
        """The setting on which the numbers depend."""
        built = self.base if "base" in self.__dict__ else None
        fields = {} if built is None else built.config.to_dict()
        return {
            "model": self.size if self.subject is None else self.subject.name,
            "shape": next((name for name in SIZES if SIZES[name].items() <= fields.items()), None),
            "parameters": None if built is None else built.num_parameters(),
            "batch": self.shapes.batch,
            "length": self.shapes.length,
            "target": self.shapes.target,
            "rows": ",".join(self.shapes.spreads),
            "rates": list(self.shapes.rates),
            "rounds": self.rounds,
            "precisions": list(self.shapes.precisions),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(self.device),
            "device_name": device_name(self.device),
            "dtype": "float32",
            "threads": self.threads,
        }


def default_threads() -> int:
    """The default number of CPU threads: OMP_NUM_THREADS, else as many as the process may use."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return min(torch.get_num_threads(), usable_cpus())
