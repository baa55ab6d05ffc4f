"""What a benchmark is made of: sizes, calls to set against each other, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mrt5cli.benchmark.rounds import Timing

LOGIT_TOLERANCE = 2e-4
"""Largest absolute difference of a fast path's float32 logits from the oracle's, for logits up to 5."""
GRADIENT_TOLERANCE = 1e-3
"""The same of gradients, relative to the largest entry of each weight's."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a benchmark's inputs.

    Attributes:
        batch: rows.
        length, target: source and target positions of a row.
        rates: deletion rates, 0 to below 1.
        spreads: "even", "wide" or both: how kept lengths are spread over the rows.
        bf16: whether bfloat16 autocast is timed too.
    """

    batch: int
    length: int
    target: int
    rates: Sequence[float]
    spreads: Sequence[str] = ("even",)
    bf16: bool = False

    def deletions(self) -> Iterator[tuple[str, float, str]]:
        """(what to call it, rate, spread) of each deletion to time."""
        for rate in self.rates:
            for spread in self.spreads if rate else ():
                yield f"{100 * rate:g} % {spread}", rate, spread


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
        return self.difference <= self.allowed  # False for a NaN

    @classmethod
    def of(cls, oracle: Tensor, other: Tensor) -> Parity:
        """Of two results in float32; rounding grows with their size."""
        size = float(oracle.abs().max())
        return cls(float((oracle - other).abs().max()), size, LOGIT_TOLERANCE * max(1.0, size / 5))


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        call: does it once.
        against: names of the cases it is compared with.
        macs: multiply-accumulates of a forward pass, or None where they say nothing.
        operations: floating-point operations of the call that count, or None.
        loss: of a training step, the forward pass alone, whose graph is kept for the backward pass.
    """

    call: Callable[[], Any]
    against: Sequence[str] = ()
    macs: int | None = None
    operations: int | None = None
    loss: Callable[[], Tensor] | None = None


def _no_checks() -> Iterator[tuple[str, Parity]]:
    return iter(())


def _no_notes(_: Mapping[str, Timing]) -> list[str]:
    return []


@dataclass
class Suite:
    """Cases to time against each other.

    Attributes:
        what: the kind of benchmark.
        cases: by name. Nothing runs before it is called.
        checks: runs fast paths and oracles, and says of each fast path how far it is off.
        notes: what the times say together, a sentence each.
    """

    what: str
    cases: dict[str, Case] = field(default_factory=dict)
    checks: Callable[[], Iterator[tuple[str, Parity]]] = _no_checks
    notes: Callable[[Mapping[str, Timing]], list[str]] = _no_notes

    def ideal(self, case: str, baseline: str) -> float | None:
        """The ratio of their multiply-accumulates, or None where they are not counted."""
        ours, theirs = self.cases[case].macs, self.cases[baseline].macs
        return None if ours is None or theirs is None else theirs / ours
