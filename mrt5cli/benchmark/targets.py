"""What was set out to be reached, beside what was measured.

A speed target is met by the median of the ratios within rounds; where the ratio of the fastest rounds says
otherwise, it is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mrt5cli.benchmark.forward import EAGER
from mrt5cli.benchmark.startup import FIRST_STEP, HELP
from mrt5cli.benchmark.training_step import REFERENCE

Document = Mapping[str, Any]
SIZE, LENGTH, TARGET = "byt5-small", 1024, 189
"""What the targets are for."""


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Attributes:
        name: what it is.
        what: the suite it is measured in.
        case, baseline: of that suite; None where there is nothing to compare with.
        must, stretch: the floor and the goal; None where there is no goal beyond the floor.
        quantity: "speed" (times as fast as the baseline), "share_of_ideal" (0 to 1), "live" (memory held
            between forward and backward pass, of the baseline's), "seconds", or "factor" (of the loader).
        device: "cpu", "cuda", or "any".
    """

    name: str
    what: str
    case: str | None
    baseline: str | None
    must: float
    stretch: float | None = None
    quantity: Literal["speed", "share_of_ideal", "live", "seconds", "factor"] = "speed"
    device: str = "cpu"

    @property
    def less(self) -> bool:
        """Whether it is met from below."""
        return self.quantity in ("live", "seconds")

    def on(self, device: str) -> bool:
        """Whether it is a target on cpu, cuda or cuda:1."""
        return self.device in ("any", device.split(":")[0])


@dataclass(frozen=True)
class Found:
    """A measured number, and what it would be by the fastest rounds, or None where that says nothing."""

    value: float
    fastest: float | None = None


HALF, HALF_WIDE, MORE_WIDE = "packed 50 % even", "packed 50 % wide", "packed 70 % wide"
FUSED = "fused, score loss"
LEAN = "fused, score loss, recomputing blocks"
TARGETS = (
    Target("dense over transformers eager", "forward", "dense", EAGER, 1.15, 1.35),
    Target("50 % deleted, even, over dense", "forward", HALF, "dense", 1.35, 1.5),
    Target("50 % deleted, wide, over dense", "forward", HALF_WIDE, "dense", 1.4, 1.5),
    Target("50 % deleted, wide, over transformers eager", "forward", HALF_WIDE, EAGER, 1.8, 2.1),
    Target("70 % deleted, wide, over transformers eager", "forward", MORE_WIDE, EAGER, 2.3, 2.7),
    Target("the same in bf16", "forward", f"{MORE_WIDE} bf16", EAGER, 4.0, 5.0),
    Target("packed over padded, 50 % wide", "forward", HALF_WIDE, "padded 50 % wide", 1.25, 1.35),
    Target("attention over written out", "attention", "fused forward", "written out forward", 5.0, 5.5),
    Target("soft training step over reference-like", "train", FUSED, REFERENCE, 1.1, 1.2),
    Target("its live memory", "train", FUSED, REFERENCE, 0.5, None, "live"),
    Target("its live memory, recomputing blocks", "train", LEAN, REFERENCE, 0.5, 0.15, "live"),
    Target(
        "dense over transformers eager, both bf16",
        "forward",
        "dense bf16",
        f"{EAGER} bf16",
        2.0,
        device="cuda",
    ),
    Target(
        "50 % deleted, even, bf16: share of the ideal over dense",
        "forward",
        f"{HALF} bf16",
        "dense bf16",
        0.9,
        None,
        "share_of_ideal",
        "cuda",
    ),
    Target(
        "50 % deleted, wide, bf16: share of the ideal over dense",
        "forward",
        f"{HALF_WIDE} bf16",
        "dense bf16",
        0.85,
        None,
        "share_of_ideal",
        "cuda",
    ),
    Target(
        "soft training step over reference-like, both bf16",
        "train",
        f"{FUSED} bf16",
        f"{REFERENCE} bf16",
        2.5,
        device="cuda",
    ),
    Target(
        "its live memory, both bf16",
        "train",
        f"{FUSED} bf16",
        f"{REFERENCE} bf16",
        0.35,
        None,
        "live",
        "cuda",
    ),
    Target("loader over training", "data", None, None, 10.0, None, "factor", "any"),
    Target(HELP, "startup", HELP, None, 0.4, None, "seconds", "any"),
    Target(FIRST_STEP, "startup", FIRST_STEP, None, 10.0, None, "seconds", "any"),
)


def needed(what: str, device: str) -> set[str]:
    """The cases of a suite that the targets on a device look at."""
    of_suite = [target for target in TARGETS if target.what == what and target.on(device)]
    return {name for target in of_suite for name in (target.case, target.baseline) if name is not None}


def judged(setting: Document, suites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets that a run measured: measured, must, stretch and a verdict.

    The verdict is "stretch", "met", "missed" or "open"; None where the setting is not that of the targets
    (byt5-small, 1024 -> 189), save for the start-up, which has no model.
    """
    return list(_judged(setting, {suite["what"]: suite for suite in suites}))


def _judged(setting: Document, suites: Mapping[str, Document]) -> Iterator[dict[str, Any]]:
    fits = (setting["shape"], setting["length"], setting["target"]) == (SIZE, LENGTH, TARGET)
    for target in TARGETS:
        if target.what not in suites or not target.on(setting["device"]):
            continue
        found = _find(target, suites[target.what])
        if found is not None:
            yield {
                "name": target.name,
                "what": target.what,
                "quantity": target.quantity,
                "measured": found.value,
                "fastest": found.fastest,
                "must": target.must,
                "stretch": target.stretch,
                "less": target.less,
                "verdict": verdict(target, found) if fits or target.what == "startup" else None,
            }


def _find(target: Target, suite: Document) -> Found | None:
    """The number in a suite's document, or None where it was not measured."""
    if target.quantity == "factor":
        return Found(suite["factor"])
    cases = {case["name"]: case for case in suite["cases"]}
    if target.case not in cases:
        return None
    case = cases[target.case]
    if target.quantity == "seconds":
        return Found(case["seconds"], min(case["rounds"]))
    if target.quantity == "live":
        held = [(cases.get(name) or {}).get("memory") or {} for name in (target.case, target.baseline)]
        ours, theirs = (memory.get("live") for memory in held)
        return None if ours is None or not theirs else Found(ours / theirs)
    for ratio in case["ratios"]:
        if ratio["baseline"] == target.baseline:
            if target.quantity == "share_of_ideal":
                return Found(ratio["share_of_ideal"])
            return Found(ratio["median"], ratio["fastest"])
    return None


def verdict(target: Target, found: Found) -> str:
    """What a measured number means for a target."""

    def reaches(value: float, limit: float) -> bool:
        return value <= limit if target.less else value >= limit

    if found.fastest is not None and reaches(found.value, target.must) != reaches(found.fastest, target.must):
        return "open"
    if not reaches(found.value, target.must):
        return "missed"
    return "stretch" if target.stretch is not None and reaches(found.value, target.stretch) else "met"
