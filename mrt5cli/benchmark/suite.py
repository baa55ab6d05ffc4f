"""The parts of a benchmark: cases to time against each other, and checks that their results agree.

A machine is slower in one minute than in the next. Cases are therefore timed in turn, in rotated order, and
ratios are taken within rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from torch import Tensor

from mrt5cli.benchmark.models import Precision, Shapes, float32_products
from mrt5cli.benchmark.precision import PrecisionRow
from mrt5cli.json_files import finite
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.text import counted

LOGIT_TOLERANCE = 2e-4
"""Largest allowed difference between float32 logits of a fast path and the oracle, for logits up to 5."""
GRADIENT_TOLERANCE = 1e-3
"""The same for gradients, relative to the largest entry of each weight's gradient."""
SLACK = 3
"""How many times as far off as the oracle's own path a fast path in bf16 or tf32 may be."""
OTHER_LENGTHS = 10
"""Number of further source lengths at which compiled blocks should not recompile."""


@dataclass(frozen=True)
class Parity:
    """The distance of a fast path's result from the oracle's.

    Attributes:
        difference: largest absolute difference.
        size: largest absolute value of the oracle.
        allowed: largest difference that counts as rounding.
    """

    difference: float
    size: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference is at most rounding; False for NaN."""
        return self.difference <= self.allowed

    @classmethod
    def of(cls, oracle: Tensor, other: Tensor, rounded: Tensor | None = None) -> Parity:
        """The parity of two results; the allowed rounding grows with their size.

        Args:
            oracle: the oracle's result in float32.
            other: the fast path's result.
            rounded: the oracle's result in the precision of `other`, if that is not float32.
        """
        size = float(oracle.abs().max())
        allowed = LOGIT_TOLERANCE * max(1.0, size / 5)
        if rounded is not None:
            allowed = max(allowed, SLACK * float((oracle - rounded.float()).abs().max()))
        return cls(float((oracle - other.float()).abs().max()), size, allowed)

    def to_json(self) -> Json:
        return {**finite(asdict(self)), "holds": self.holds}


@dataclass(frozen=True)
class Costs:
    """The cost of compilation.

    Attributes:
        first_call_seconds: duration of the first call.
        graphs: number of graphs compiled in it.
        recompiled: number of graphs compiled in calls at `OTHER_LENGTHS` other lengths.
    """

    first_call_seconds: float
    graphs: int
    recompiled: int

    def __str__(self) -> str:
        return (
            f"the first call compiles {counted(self.graphs, 'graph')} in {self.first_call_seconds:,.1f} s; "
            f"{OTHER_LENGTHS} other lengths compile {self.recompiled} more"
        )


@dataclass(frozen=True)
class Memory:
    """Bytes allocated by a case, in addition to those before it.

    Attributes:
        peak: largest allocation at any moment, including gradients; None if it could not be measured.
        live: for a training step, the allocation between its forward and its backward pass.
        problem: reason for a missing peak.
    """

    peak: int | None
    live: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times faster a case is than a baseline.

    Attributes:
        baseline: name of the baseline.
        median, least, most: statistics of the ratio over rounds.
        fastest: ratio of both sides' fastest rounds; a question on which it and the median disagree is open.
        ideal: ratio of multiply-accumulates, or None if they are not counted.
        share_of_ideal: `median` divided by `ideal`.
    """

    baseline: str
    median: float
    least: float
    most: float
    fastest: float
    ideal: float | None = None
    share_of_ideal: float | None = None

    @classmethod
    def of(cls, baseline: str, slow: Sequence[float], fast: Sequence[float], ideal: float | None) -> Ratio:
        """The ratio from the seconds of the baseline and of the case in each round."""
        ratios = [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]
        middle = median(ratios)
        share = None if ideal is None else middle / ideal
        return cls(baseline, middle, min(ratios), max(ratios), min(slow) / min(fast), ideal, share)


@dataclass
class Case:
    """One call to time, and its measurements.

    Attributes:
        call: makes the call.
        against: names of the cases it is compared with, if the suite has them.
        macs: multiply-accumulates of a forward pass, or None if they have no meaning.
        operations: floating-point operations of the call that count, or None.
        moved: bytes that the call must read and write at least, if memory may bound it; else None.
        precision: precision of its matrix products.
        yardstick: whether the case only shows the device's rate in `operations` or `moved` bytes.
        loss: for a training step, its forward pass, which keeps the graph.
        compiling: for a compiled case, the cost of compilation.
        rounds: seconds of each finished round.
        ratios: ratios to the cases in `against` and to the same case in float32.
        share_of_products: operations per second relative to the fastest matrix product in the same precision.
        share_of_roofline: least possible seconds by products and memory, relative to the seconds measured.
        memory: memory of the case, if measured.
        waits: number of times the host waits for a GPU in a call; None on a CPU.
    """

    call: Callable[[], Any]
    against: Sequence[str] = ()
    macs: int | None = None
    operations: int | None = None
    moved: int | None = None
    precision: Precision = "fp32"
    yardstick: bool = False
    loss: Callable[[], Tensor] | None = None
    compiling: Costs | None = None
    rounds: Sequence[float] = ()
    ratios: list[Ratio] = field(default_factory=list)
    share_of_products: float | None = None
    share_of_roofline: float | None = None
    memory: Memory | None = None
    waits: int | None = None

    def run(self) -> Any:
        """Make the call in the case's precision."""
        with float32_products(self.precision):
            return self.call()

    @property
    def seconds(self) -> float:
        """Median seconds over the rounds, at least one."""
        return median(self.rounds)

    @property
    def operations_per_second(self) -> float | None:
        return self.operations / self.seconds if self.operations and self.rounds else None

    def to_json(self) -> Json:
        """The measurements as a JSON object."""
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            "seconds": self.seconds if self.rounds else None,
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "memory": self.memory and asdict(self.memory),
            "compiling": self.compiling and asdict(self.compiling),
        }


NUMBERS = (
    *("precision", "rounds", "macs", "operations_per_second", "share_of_products", "share_of_roofline"),
    "waits",
)
"""Fields of a case that its JSON object contains unchanged."""

Checks = Iterator[tuple[str, Callable[[], Parity]]]


@dataclass
class Suite:
    """A kind of benchmark with its results: cases timed against each other, or precisions.

    Attributes:
        what: name of the kind.
        cases: cases by name.
        checks: yields a name and a function that returns its parity, for each fast path.
        parity: results of the checks.
        problems: reasons why cases could not run, by name.
        notes: further remarks, one sentence each.
        rows: results of the kind "precision", which has no cases.
    """

    what: str
    cases: dict[str, Case] = field(default_factory=dict)
    checks: Callable[[], Checks] = lambda: iter(())
    parity: dict[str, Parity] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[PrecisionRow] = field(default_factory=list)

    def compare(self) -> None:
        """Compute each case's ratios to its baselines and to itself in float32, over the finished rounds."""
        timed = {name: case for name, case in self.cases.items() if case.rounds}
        for name, case in timed.items():
            case.ratios, exact = [], [name.removesuffix(f" {case.precision}")]
            for other in dict.fromkeys([*case.against, *exact]):
                if other not in timed or other == name:
                    continue
                work, slow = timed[other].macs, timed[other].rounds
                ideal = None if case.macs is None or work is None else work / case.macs
                case.ratios.append(Ratio.of(other, slow, case.rounds, ideal))
            measures = [other for other in timed.values() if other.yardstick]
            same = [other for other in measures if other.precision == case.precision]
            products = max((other.operations_per_second or 0 for other in same), default=0)
            copies = max(((other.moved or 0) / other.seconds for other in measures), default=0)
            if products and case.operations:
                least = case.operations / products
                case.share_of_products = least / case.seconds
                if copies and case.moved:
                    case.share_of_roofline = max(least, case.moved / copies) / case.seconds

    def to_json(self) -> Json:
        """The results as a JSON object."""
        return {
            "what": self.what,
            "cases": [{"name": name, **case.to_json()} for name, case in self.cases.items()],
            "parity": {name: one.to_json() for name, one in self.parity.items()},
            "problems": self.problems,
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }


Builder = Callable[[MrT5ForConditionalGeneration, Shapes], Suite]


def interleave(
    calls: Mapping[str, Callable[[], float]], *, rounds: int, done: Callable[[], None] = lambda: None
) -> Iterator[dict[str, list[float]]]:
    """Time every call once per round, starting each round with a different call.

    Args:
        calls: functions that return their own duration in seconds, by name.
        rounds: number of rounds, at least 1.
        done: called after each call.

    Yields:
        After each round, the seconds of each call in all rounds so far.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(calls[name]())
            done()
        yield seconds
