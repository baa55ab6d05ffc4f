"""Timing several things against each other: in turn, in a rotated order, round after round.

A machine is slower one minute and faster the next. What is timed in the same round shares its minute, so
ratios are taken within rounds, and their median and range are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


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


def speedup(baseline: str, slow: Sequence[float], fast: Sequence[float], ideal: float | None = None) -> Ratio:
    """Of something over the baseline, by the seconds that both took in each round."""
    ratios = [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]
    middle = median(ratios)
    share = None if ideal is None else middle / ideal
    return Ratio(baseline, middle, min(ratios), max(ratios), min(slow) / min(fast), ideal, share)


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    device: torch.device,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time every call once a round, each round beginning with another one; a first round warms up.

    Args:
        rounds: that count, at least 1.
        device: waited for before a clock is read.
        done: called after each call.

    Returns:
        The seconds of each, a round each.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
            done()
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
