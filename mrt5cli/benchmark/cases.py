"""What a benchmark is made of: calls to set against each other, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mrt5cli.benchmark.inputs import Shapes
from mrt5cli.models import MrT5ForConditionalGeneration

LOGIT_TOLERANCE = 2e-4
"""Largest absolute difference of a fast path's float32 logits from the oracle's, for logits up to 5."""
GRADIENT_TOLERANCE = 1e-3
"""The same of gradients, relative to the largest entry of each weight's."""


@dataclass(frozen=True)
class Parity:
    """How far a fast path's result is from the oracle's.

    Attributes:
        difference: the largest absolute one.
        size: the oracle's largest absolute value.
        allowed: the largest difference that is rounding.
        holds: False for a NaN, too.
    """

    difference: float
    size: float
    allowed: float
    holds: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", self.difference <= self.allowed)

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


Checks = Callable[[], Iterator[tuple[str, Parity]]]
"""Runs fast paths and oracles, and says of each fast path how far it is off."""


@dataclass
class Suite:
    """Cases to time against each other, by name; nothing runs before it is called."""

    what: str
    cases: dict[str, Case] = field(default_factory=dict)
    checks: Checks = lambda: iter(())

    def ideal(self, case: str, baseline: str) -> float | None:
        """The ratio of their multiply-accumulates, or None where they are not counted."""
        ours, theirs = self.cases[case].macs, self.cases[baseline].macs
        return None if ours is None or theirs is None else theirs / ours


Builder = Callable[[MrT5ForConditionalGeneration, Shapes], Suite]
