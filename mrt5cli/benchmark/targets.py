"""What was set out to be reached, beside what was measured.

A speed target is met by the median of the ratios within rounds; where the ratio of the fastest rounds says
otherwise, it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mrt5cli.benchmark.forward import EAGER
from mrt5cli.benchmark.startup import FIRST_STEP, HELP
from mrt5cli.benchmark.training_step import REFERENCE

Document = Mapping[str, Any]
LENGTH, TARGET = 1024, 189


@dataclass(frozen=True)
class Found:
    """A measured number, and what it would be by the fastest rounds."""

    value: float
    fastest: float | None = None


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Attributes:
        name: what it is.
        find: the number in a suite's document, or None where it was not measured.
        what: the suite.
        must, stretch: the floor and the goal; None where there is no goal.
        device: "cpu", "cuda", or "any".
        less: whether it is met from below.
        unit: "times", "seconds", or "share" (of 1).
    """

    name: str
    what: str
    find: Callable[[Document], Found | None]
    must: float
    stretch: float | None = None
    device: str = "cpu"
    less: bool = False
    unit: str = "times"


def _case(suite: Document, name: str) -> Document | None:
    return next((case for case in suite["cases"] if case["name"] == name), None)


def _ratio(case: str, baseline: str, key: str = "median") -> Callable[[Document], Found | None]:
    def find(suite: Document) -> Found | None:
        found = _case(suite, case)
        for ratio in found["ratios"] if found is not None else ():
            if ratio["baseline"] == baseline and ratio[key] is not None:
                return Found(ratio[key], ratio["fastest"] if key == "median" else None)
        return None

    return find


def _live(case: str, baseline: str) -> Callable[[Document], Found | None]:
    """The ratio of what is held between forward and backward pass."""

    def find(suite: Document) -> Found | None:
        held = [(_case(suite, name) or {}).get("memory") or {} for name in (case, baseline)]
        ours, theirs = (memory.get("live") for memory in held)
        return None if not theirs or ours is None else Found(ours / theirs)

    return find


def _seconds(case: str) -> Callable[[Document], Found | None]:
    def find(suite: Document) -> Found | None:
        found = _case(suite, case)
        return None if found is None else Found(found["seconds"], min(found["rounds"]))

    return find


HALF_WIDE, FUSED = "packed 50 % wide", "fused, score loss"
TARGETS = (
    Target("dense over transformers eager", "forward", _ratio("dense", EAGER), 1.15, 1.35),
    Target("50 % deleted, even, over dense", "forward", _ratio("packed 50 % even", "dense"), 1.35, 1.5),
    Target("50 % deleted, wide, over dense", "forward", _ratio(HALF_WIDE, "dense"), 1.4, 1.5),
    Target("50 % deleted, wide, over transformers eager", "forward", _ratio(HALF_WIDE, EAGER), 1.8, 2.1),
    Target(
        "70 % deleted, wide, over transformers eager", "forward", _ratio("packed 70 % wide", EAGER), 2.3, 2.7
    ),
    Target(
        "70 % deleted, wide, bf16, over transformers eager",
        "forward",
        _ratio("packed 70 % wide bf16", EAGER),
        4.0,
        5.0,
    ),
    Target("packed over padded, 50 % wide", "forward", _ratio(HALF_WIDE, "padded 50 % wide"), 1.25, 1.35),
    Target(
        "attention over written out", "attention", _ratio("fused forward", "written out forward"), 5.0, 5.5
    ),
    Target("soft training step over reference-like", "train", _ratio(FUSED, REFERENCE), 1.1, 1.2),
    Target("its live memory", "train", _live(FUSED, REFERENCE), 0.5, less=True),
    Target(
        "its live memory, recomputing blocks",
        "train",
        _live(f"{FUSED}, recomputing blocks", REFERENCE),
        0.5,
        0.15,
        less=True,
    ),
    Target(
        "dense over transformers eager, bf16",
        "forward",
        _ratio("dense bf16", f"{EAGER} bf16"),
        2.0,
        None,
        "cuda",
    ),
    Target(
        "50 % deleted, even, bf16: share of the ideal over dense",
        "forward",
        _ratio("packed 50 % even bf16", "dense bf16", "share_of_ideal"),
        0.9,
        None,
        "cuda",
        unit="share",
    ),
    Target(
        "50 % deleted, wide, bf16: share of the ideal over dense",
        "forward",
        _ratio("packed 50 % wide bf16", "dense bf16", "share_of_ideal"),
        0.85,
        None,
        "cuda",
        unit="share",
    ),
    Target(
        "soft training step over reference-like, bf16",
        "train",
        _ratio(f"{FUSED} bf16", f"{REFERENCE} bf16"),
        2.5,
        None,
        "cuda",
    ),
    Target(
        "its live memory",
        "train",
        _live(f"{FUSED} bf16", f"{REFERENCE} bf16"),
        0.35,
        None,
        "cuda",
        less=True,
    ),
    Target("loader over training", "data", lambda suite: Found(suite["factor"]), 10.0, None, "any"),
    Target(HELP, "startup", _seconds(HELP), 0.4, None, "any", less=True, unit="seconds"),
    Target(FIRST_STEP, "startup", _seconds(FIRST_STEP), 10.0, None, "any", less=True, unit="seconds"),
)


def judged(setting: Document, suites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets that a run measured: measured, must, stretch and a verdict.

    The verdict is "stretch", "met", "missed" or "open"; None where the setting is not that of the targets
    (byt5-small, 1024 -> 189), save for the start-up, which has no model.
    """
    return list(_judged(setting, {suite["what"]: suite for suite in suites}))


def _judged(setting: Document, suites: Mapping[str, Document]) -> Iterator[dict[str, Any]]:
    size = (setting["shape"], setting["length"], setting["target"]) == ("byt5-small", LENGTH, TARGET)
    for target in TARGETS:
        if target.what not in suites or target.device not in ("any", setting["device"].split(":")[0]):
            continue
        found = target.find(suites[target.what])
        if found is None:
            continue
        fits = size or target.what == "startup"
        yield {
            "name": target.name,
            "what": target.what,
            "unit": target.unit,
            "measured": found.value,
            "fastest": found.fastest,
            "must": target.must,
            "stretch": target.stretch,
            "less": target.less,
            "verdict": verdict(target, found) if fits else None,
        }


def verdict(target: Target, found: Found) -> str:
    """What a measured number means for a target."""

    def reaches(value: float, limit: float) -> bool:
        return value <= limit if target.less else value >= limit

    if found.fastest is not None and reaches(found.value, target.must) != reaches(found.fastest, target.must):
        return "open"
    if not reaches(found.value, target.must):
        return "missed"
    return "stretch" if target.stretch is not None and reaches(found.value, target.stretch) else "met"
