"""Timing several things against each other: in turn, in a rotated order, round after round.

A machine is slower one minute and faster the next. What is timed in the same round shares its minute, so
ratios are taken within rounds, and their median and range are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """One thing's seconds, a round each; the warm-up round is not among them."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times faster than a baseline, round by round.

    Attributes:
        median, least, most: of the rounds' ratios.
        fastest: the ratio of both sides' fastest rounds. Where it and the median disagree about something,
            that is open.
    """

    median: float
    least: float
    most: float
    fastest: float


def speedup(baseline: Timing, other: Timing) -> Ratio:
    """Of `other` over `baseline`, round by round."""
    ratios = [slow / fast for slow, fast in zip(baseline.seconds, other.seconds, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios), min(baseline.seconds) / min(other.seconds))


def interleave(
    cases: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    device: torch.device,
    done: Callable[[int, str], None] | None = None,
) -> dict[str, Timing]:
    """Time every case once a round, each round beginning with another one; a first round warms up.

    Args:
        cases: what to call, by name.
        rounds: that count, at least 1.
        device: waited for before a clock is read.
        done: told the round, 0 for the warm-up, and the case just finished.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wait(device)
            start = time.perf_counter()
            cases[name]()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
            if done is not None:
                done(number, name)
    return {name: Timing(name, taken) for name, taken in seconds.items()}


def kept_lengths(rows: int, length: int, deleted: float, spread: str) -> Sequence[int]:
    """Positions that each row keeps: all the same, or from few to many around the same mean.

    Args:
        deleted: mean share of positions, 0 to 1.
        spread: "even", or "wide": shares up to 0.3 below and above the mean, but at most two thirds of the
            way to nothing and to all: 20 to 80 % at a rate of 0.5, 10 to 50 % at 0.7.
    """
    kept = 1 - deleted
    room = 0.0 if spread == "even" else min(0.3, 2 / 3 * min(kept, deleted))
    if rows == 1:
        room = 0.0
    shares = [kept + room * (2 * row / max(1, rows - 1) - 1) for row in range(rows)]
    return [max(1, round(length * share)) for share in shares]


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
