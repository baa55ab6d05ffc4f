"""Runs the kinds of benchmark and makes one report of what they measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch

from mrt5cli.benchmark.attention import attention
from mrt5cli.benchmark.compiling import Costs, compiled
from mrt5cli.benchmark.forward import forward
from mrt5cli.benchmark.generation import generate
from mrt5cli.benchmark.memory import Memory, measure
from mrt5cli.benchmark.models import SIZES, Shapes, base_model
from mrt5cli.benchmark.precision import PrecisionRow, precision_rows
from mrt5cli.benchmark.suite import Builder, Parity, Ratio, Suite, interleave
from mrt5cli.benchmark.training_step import train
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.runtime import device_name, usable_cpus
from mrt5cli.subject import Subject
from mrt5cli.text import byte_size

BUILDERS: dict[str, Builder] = {
    "forward": forward,
    "train": train,
    "generate": generate,
    "attention": attention,
    "compile": compiled,
}
"""The kinds whose cases are calls on one set of weights; "precision" is the other."""


@dataclass(frozen=True)
class Result:
    """What was measured of a case: seconds, which are the median of the rounds', and what a `Case` has."""

    name: str
    seconds: float
    rounds: list[float]
    macs: int | None
    operations_per_second: float | None
    ratios: list[Ratio]
    memory: Memory | None = None
    compiling: Costs | None = None


@dataclass
class Measured:
    """The results of a kind of benchmark: timed cases and the parity of each fast path, or precisions."""

    what: str
    cases: list[Result] = field(default_factory=list)
    parity: dict[str, Parity] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[PrecisionRow] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What `mrt5 bench` prints, and as JSON writes: what the numbers depend on, and the numbers."""

    setting: dict[str, Any]
    suites: list[Measured]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def broken_parity(self) -> list[str]:
        """Of each fast path that is not the oracle's equal, a sentence."""
        return [
            f"{suite.what}, {name}: {found.difference:.1e} from the oracle, on values up to "
            f"{found.size:.1f}; {found.allowed:.1e} is rounding"
            for suite in self.suites
            for name, found in suite.parity.items()
            if not found.holds
        ]


@dataclass
class Benchmark:
    """What to time, and on what.

    Attributes:
        subject: the model, or None for random weights of `size`.
        rounds: that count.
        threads: of the CPU.
        memory: whether each case also runs once in a process of its own.
        limit: examples a subset that precision is measured on.
        done: called with a kind, the calls done and their number (0: not known).
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

    @cached_property
    def base(self) -> MrT5ForConditionalGeneration:
        """The weights, made when first needed: precision does without."""
        return self._make_base()

    @property
    def _make_base(self) -> Callable[[], MrT5ForConditionalGeneration]:
        source = None if self.subject is None else self.subject.source
        return partial(base_model, source, self.size, self.device)

    def run(self, kinds: Sequence[str]) -> Report:
        """Time the kinds one after the other; see `mrt5 bench`.

        Raises:
            UserError: something that cannot be timed here; then nothing was.
        """
        self.check(kinds)
        torch.set_num_threads(self.threads)
        suites = [self.measured(kind) for kind in kinds]
        return Report(self.setting(), suites)

    def check(self, kinds: Sequence[str]) -> None:
        """Refuse what cannot be timed, before anything is; see `run`."""
        if self.size not in SIZES:
            raise UserError(f"--size {self.size} is not known", f"choose from {', '.join(SIZES)}")
        if "wide" in self.shapes.spreads and self.shapes.batch == 1:
            raise UserError("--rows wide: one row cannot be longer than another", "use --batch 2 or more")
        if "precision" in kinds and (self.subject is None or self.subject.recipe is None):
            raise UserError(
                "--what precision needs a trained run, with its recipe",
                "name its directory: mrt5 bench runs/NAME --what precision",
            )

    def measured(self, kind: str) -> Measured:
        if kind == "precision":
            assert self.subject is not None and self.subject.recipe is not None  # `check` saw to it
            source, recipe = self.subject.source, self.subject.recipe
            done = lambda batches: self.done(kind, batches, 0)
            rows, of = precision_rows(source, recipe, device=self.device, limit=self.limit, done=done)
            return Measured(kind, notes=[of], rows=rows)
        found = self.timed(BUILDERS[kind](self.base, self.shapes))
        if self.memory and kind != "compile":
            self.add_memory(found, BUILDERS[kind])
        return found

    def timed(self, suite: Suite) -> Measured:
        """Check all of a suite's results and time its cases."""
        parity = dict(suite.checks())
        calls = {name: case.call for name, case in suite.cases.items()}
        done = partial(self.done, suite.what)
        seconds = interleave(calls, rounds=self.rounds, device=self.device, done=done)
        costs = {name: case.compiling for name, case in suite.cases.items() if case.compiling}
        notes = [f"{name}: {cost.sentence()}" for name, cost in costs.items()]
        return Measured(suite.what, [_result(suite, name, seconds) for name in calls], parity, notes)

    def add_memory(self, found: Measured, build: Builder) -> None:
        """Measure each case's memory in a process of its own."""
        names = [case.name for case in found.cases]
        memory: dict[str, Memory] = {}
        for name, of_case in measure(build, self._make_base, self.shapes, names, self.threads):
            memory[name] = of_case
            self.done(f"memory of {found.what}", len(memory), len(names))
        found.cases = [replace(case, memory=memory[case.name]) for case in found.cases]
        weights = sum(weight.numel() * weight.element_size() for weight in self.base.parameters())
        found.notes += [
            f"memory is beside the model's {byte_size(weights)}, each case in a process of its own",
            *(f"{name}: no memory, {of.problem}" for name, of in memory.items() if of.problem),
        ]

    def setting(self) -> dict[str, Any]:
        """What the numbers depend on."""
        built = self.base if "base" in self.__dict__ else None
        return {
            "model": self.size if self.subject is None else self.subject.name,
            "shape": None if built is None else next(filter(partial(_has_size, built), SIZES), None),
            "parameters": None if built is None else built.num_parameters(),
            "batch": self.shapes.batch,
            "length": self.shapes.length,
            "target": self.shapes.target,
            "rows": ",".join(self.shapes.spreads),
            "rates": list(self.shapes.rates),
            "rounds": self.rounds,
            "torch": torch.__version__,
            "device": str(self.device),
            "device_name": device_name(self.device),
            "dtype": "float32",
            "threads": self.threads,
        }


def default_threads() -> int:
    """What a command takes when nobody says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return min(torch.get_num_threads(), usable_cpus())


def _has_size(model: MrT5ForConditionalGeneration, name: str) -> bool:
    return SIZES[name].items() <= model.config.to_dict().items()


def _result(suite: Suite, name: str, seconds: dict[str, list[float]]) -> Result:
    case, middle, ratios = suite.cases[name], median(seconds[name]), []
    for other in case.against:
        work = suite.cases[other].macs
        ideal = None if case.macs is None or work is None else work / case.macs
        ratios.append(Ratio.of(other, seconds[other], seconds[name], ideal))
    rate = None if case.operations is None else case.operations / middle
    return Result(name, middle, seconds[name], case.macs, rate, ratios, compiling=case.compiling)
