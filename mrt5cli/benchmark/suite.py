"""What a benchmark is made of: cases to time against each other, and checks that their results agree.

A machine is slower one minute and faster the next. Cases are therefore timed in turn, in a rotated order, and
ratios are taken within rounds, whose cases share their minute.
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
"""Largest absolute difference of a fast path's float32 logits from the oracle's, for logits up to 5."""
GRADIENT_TOLERANCE = 1e-3
"""The same of gradients, relative to the largest entry of each weight's."""
SLACK = 3
"""A fast path in bf16 or tf32 may be so many times as far from the float32 oracle as the oracle's own path is
in that precision."""
OTHER_LENGTHS = 10
"""Source lengths that compiled blocks must serve without compiling again."""


@dataclass(frozen=True)
class Parity:
    """How far a fast path's result is from the oracle's.

    Attributes:
        difference: the largest absolute one.
        size: the oracle's largest absolute value.
        allowed: the largest difference that is rounding.
    """

    difference: float
    size: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is no more than rounding; False for a NaN, too."""
        return self.difference <= self.allowed

    @classmethod
    def of(cls, oracle: Tensor, other: Tensor, rounded: Tensor | None = None) -> Parity:
        """Of two results; rounding grows with their size.

        Args:
            rounded: what the oracle's path gives in the precision of `other`, where that is not float32.
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
    """What compiling cost.

    Attributes:
        first_call_seconds: of the first call.
        graphs: compiled in it.
        recompiled: graphs compiled when the same was called on `OTHER_LENGTHS` other lengths.
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
    """Bytes beside those that were there before the case.

    Attributes:
        peak: the most it held at any moment, gradients included; None where it could not be measured.
        live: of a training step, what is held between its forward and its backward pass.
        problem: why there is no peak.
    """

    peak: int | None
    live: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times faster than a baseline, round by round.

    Attributes:
        median, least, most: of the rounds' ratios.
        fastest: the ratio of both sides' fastest rounds. Where it and the median disagree about something,
            that is open.
        ideal: what the arithmetic that is saved would give, or None where it is not counted.
        share_of_ideal: the median's.
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
        """By the seconds that the baseline and the faster one took in each round."""
        ratios = [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]
        middle = median(ratios)
        share = None if ideal is None else middle / ideal
        return cls(baseline, middle, min(ratios), max(ratios), min(slow) / min(fast), ideal, share)


@dataclass
class Case:
    """One thing to time, and what was measured of it.

    Attributes:
        call: does it once.
        against: names of the cases it is compared with, where the suite has them.
        macs: multiply-accumulates of a forward pass, or None where they say nothing.
        operations: floating-point operations of the call that count, or None.
        moved: bytes that the call must at least read and write, where that may be what bounds it.
        precision: of its matrix products.
        yardstick: it shows what the device can do; its `operations` or its `moved` are all there is to it.
        loss: of a training step, the forward pass alone, whose graph is kept for the backward pass.
        compiling: of a compiled case, what compiling it cost.
        rounds: the seconds of each that is done.
        ratios: one for each of the others in `against`, and for the same case in float32.
        share_of_products: its operations a second, of the fastest matrix product's of the same precision.
        share_of_roofline: the seconds that products and memory would need at their best, of those it takes.
        memory: of the case alone, if that was measured.
        waits: how often the host waited for a GPU in a call; None on a CPU.
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
        """Call it in its precision."""
        with float32_products(self.precision):
            return self.call()

    @property
    def seconds(self) -> float:
        """The median of the rounds', of which there is at least one."""
        return median(self.rounds)

    @property
    def operations_per_second(self) -> float | None:
        return self.operations / self.seconds if self.operations and self.rounds else None

    def to_json(self) -> Json:
        """What was measured, without what was called."""
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
"""Of a case, as JSON holds them, too."""

Checks = Iterator[tuple[str, Callable[[], Parity]]]


@dataclass
class Suite:
    """A kind of benchmark, and its results: cases timed against each other, or precisions.

    Attributes:
        cases: by name.
        checks: for each fast path what runs it and its oracle, and gives its parity.
        parity: what the checks gave.
        problems: of what could not be run, why.
        notes: what else is to be said, a sentence each.
        rows: of the kind "precision", which has no cases.
    """

    what: str
    cases: dict[str, Case] = field(default_factory=dict)
    checks: Callable[[], Checks] = lambda: iter(())
    parity: dict[str, Parity] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[PrecisionRow] = field(default_factory=list)

    def compare(self) -> None:
        """Set each case beside the others, and beside itself in float32, by the rounds that are done."""
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
        """The results."""
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
    """Time every call once a round, each round beginning with another one.

    Args:
        calls: each gives the seconds that it took.
        rounds: at least 1.
        done: called after each call.

    Yields:
        After each round the seconds of each call, a round each.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(calls[name]())
            done()
        yield seconds
