"""What a benchmark is made of: cases to time against each other, and checks that their results agree.

A machine is slower one minute and faster the next. Cases are therefore timed in turn, in a rotated order, and
ratios are taken within rounds, whose cases share their minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.models import Shapes
from mrt5cli.benchmark.precision import PrecisionRow
from mrt5cli.evaluation.timing import wait
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.text import counted

LOGIT_TOLERANCE = 2e-4
"""Largest absolute difference of a fast path's float32 logits from the oracle's, for logits up to 5."""
GRADIENT_TOLERANCE = 1e-3
"""The same of gradients, relative to the largest entry of each weight's."""
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
    def of(cls, oracle: Tensor, other: Tensor) -> Parity:
        """Of two results in float32; rounding grows with their size."""
        size = float(oracle.abs().max())
        return cls(float((oracle - other).abs().max()), size, LOGIT_TOLERANCE * max(1.0, size / 5))


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
        against: names of the cases it is compared with.
        macs: multiply-accumulates of a forward pass, or None where they say nothing.
        operations: floating-point operations of the call that count, or None.
        loss: of a training step, the forward pass alone, whose graph is kept for the backward pass.
        compiling: of a compiled case, what compiling it cost.
        rounds: the seconds of each.
        ratios: one for each name in `against`.
        memory: of the case in a process of its own, if that was measured.
    """

    call: Callable[[], Any]
    against: Sequence[str] = ()
    macs: int | None = None
    operations: int | None = None
    loss: Callable[[], Tensor] | None = None
    compiling: Costs | None = None
    rounds: Sequence[float] = ()
    ratios: list[Ratio] = field(default_factory=list)
    memory: Memory | None = None

    @property
    def seconds(self) -> float:
        """The median of the rounds'."""
        return median(self.rounds)

    @property
    def operations_per_second(self) -> float | None:
        return None if self.operations is None else self.operations / self.seconds

    def to_json(self) -> Json:
        """What was measured, without what was called."""
        return {
            "seconds": self.seconds,
            "rounds": self.rounds,
            "macs": self.macs,
            "operations_per_second": self.operations_per_second,
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "memory": None if self.memory is None else asdict(self.memory),
            "compiling": None if self.compiling is None else asdict(self.compiling),
        }


@dataclass
class Suite:
    """A kind of benchmark, and its results: cases timed against each other, or precisions.

    Attributes:
        cases: by name.
        checks: runs fast paths and oracles, and gives the parity of each fast path.
        parity: what the checks gave.
        notes: what else is to be said, a sentence each.
        rows: of the kind "precision", which has no cases.
    """

    what: str
    cases: dict[str, Case] = field(default_factory=dict)
    checks: Callable[[], Iterator[tuple[str, Parity]]] = lambda: iter(())
    parity: dict[str, Parity] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[PrecisionRow] = field(default_factory=list)

    def to_json(self) -> Json:
        """The results."""
        return {
            "what": self.what,
            "cases": [{"name": name, **case.to_json()} for name, case in self.cases.items()],
            "parity": {name: {**asdict(one), "holds": one.holds} for name, one in self.parity.items()},
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }


Builder = Callable[[MrT5ForConditionalGeneration, Shapes], Suite]


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> dict[str, list[float]]:
    """Time every call once a round, each round beginning with another one; a first round warms up.

    Args:
        rounds: that count, at least 1.
        device: waited for before a clock is read.
        done: called after each call with the number of those that are done, and of all.

    Returns:
        The seconds of each, a round each.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for place, name in enumerate(names[turn:] + names[:turn], 1):
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
            done(number * len(names) + place, (rounds + 1) * len(names))
    return seconds
