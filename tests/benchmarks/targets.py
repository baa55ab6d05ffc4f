"""Times what was set out to be reached, and says whether it was.

    python tests/benchmarks/targets.py --batch 2
    python tests/benchmarks/targets.py --batch 2 --what products

A speed target is met by the median of the ratios within rounds; where the ratio of the fastest rounds says
otherwise, it is open.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from loading import GIVES, TAKES, loader_rates
from products import products
from reference import REFERENCE, attention_beside_reference, train_beside_reference
from startup import FIRST_STEP, HELP, startup

from mrt5cli import runtime
from mrt5cli.benchmark.forward import EAGER, forward
from mrt5cli.benchmark.models import Shapes
from mrt5cli.benchmark.run import Benchmark, Report, default_threads
from mrt5cli.benchmark.suite import Builder, Suite
from mrt5cli.commands.bench import present
from mrt5cli.commands.tables import print_table
from mrt5cli.text import number, say

SIZE, LENGTH, TARGET = "byt5-small", 1024, 189
"""What the targets are for."""
BUILDERS: dict[str, Builder] = {
    "forward": forward,
    "attention": attention_beside_reference,
    "train": train_beside_reference,
    "products": products,
}
TARGETED = ("forward", "attention", "train", "data", "startup")
SLOW = ("forward", "train")
"""Of these only what has a target is timed."""
STARTUP_ROUNDS = 5


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Attributes:
        name: what it is.
        what: the suite it is measured in.
        case, baseline: of that suite.
        must, stretch: the floor and the goal; None where there is no goal beyond the floor.
        quantity: "speed" (times as fast as the baseline), "share_of_ideal" (0 to 1), "live" (memory held
            between forward and backward pass, of the baseline's), or "seconds".
        device: "cpu", "cuda", or "any".
    """

    name: str
    what: str
    case: str
    baseline: str | None
    must: float
    stretch: float | None = None
    quantity: Literal["speed", "share_of_ideal", "live", "seconds"] = "speed"
    device: str = "cpu"

    @property
    def less(self) -> bool:
        """Whether it is met from below."""
        return self.quantity in ("live", "seconds")


HALF, HALF_WIDE, MORE_WIDE = "packed 50 % even", "packed 50 % wide", "packed 70 % wide"
FUSED, LEAN = "fused, score loss", "fused, score loss, recomputing blocks"
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
    Target("loader over training", "data", GIVES, TAKES, 10.0, device="any"),
    Target(HELP, "startup", HELP, None, 0.4, None, "seconds", "any"),
    Target(FIRST_STEP, "startup", FIRST_STEP, None, 10.0, None, "seconds", "any"),
)


@dataclass(frozen=True)
class Judged:
    """A target, what was measured, what it would be by the fastest rounds (None where that says nothing), and
    the verdict: "stretch", "met", "missed" or "open"; None in another setting than the targets'."""

    target: Target
    measured: float
    fastest: float | None
    verdict: str | None


def on(device: str) -> list[Target]:
    """The targets on cpu, cuda or cuda:1."""
    return [target for target in TARGETS if target.device in ("any", device.split(":")[0])]


def only_targeted(suite: Suite, device: str) -> Suite:
    """The cases that the targets look at; what is checked stays, and is checked now."""
    needed = {
        name for target in on(device) if target.what == suite.what for name in (target.case, target.baseline)
    }
    checked = list(suite.checks())
    cases = {
        name: replace(case, against=[other for other in case.against if other in needed])
        for name, case in suite.cases.items()
        if name in needed
    }
    return Suite(suite.what, cases, lambda: iter(checked))


def measured(benchmark: Benchmark, what: str) -> Suite:
    """A suite's results, with the memory of its training steps."""
    if what == "data":
        return loader_rates(benchmark.base, benchmark.shapes, benchmark.done)
    if what == "startup":
        with tempfile.TemporaryDirectory() as folder:
            short = replace(benchmark, rounds=min(benchmark.rounds, STARTUP_ROUNDS))
            suite = startup(Path(folder), benchmark.threads)
            short.time(suite)
            return suite
    build = BUILDERS[what]
    suite = build(benchmark.base, benchmark.shapes)
    if what in SLOW:
        suite = only_targeted(suite, str(benchmark.device))
    benchmark.time(suite)
    if what == "train":
        benchmark.add_memory(suite, build)
    return suite


def judged(report: Report) -> list[Judged]:
    """The targets that a run measured."""
    setting = report.setting
    fits = (setting["shape"], setting["length"], setting["target"]) == (SIZE, LENGTH, TARGET)
    suites = {suite.what: suite for suite in report.suites}
    found = []
    for target in on(setting["device"]):
        if target.what in suites:
            value, fastest = measure_of(target, suites[target.what])
            here = fits or target.what == "startup"
            found.append(Judged(target, value, fastest, verdict(target, value, fastest) if here else None))
    return found


def measure_of(target: Target, suite: Suite) -> tuple[float, float | None]:
    """The number of a target, and what it would be by the fastest rounds."""
    cases, case = suite.cases, suite.cases[target.case]
    if target.quantity == "seconds":
        return case.seconds, min(case.rounds)
    if target.quantity == "live":
        ours, theirs = (cases[name].memory for name in (target.case, target.baseline))
        return ours.live / theirs.live, None
    [ratio] = [ratio for ratio in case.ratios if ratio.baseline == target.baseline]
    if target.quantity == "share_of_ideal":
        return ratio.share_of_ideal, None
    return ratio.median, ratio.fastest


def verdict(target: Target, value: float, fastest: float | None) -> str:
    """What a measured number means for a target."""

    def reaches(value: float, limit: float) -> bool:
        return value <= limit if target.less else value >= limit

    if fastest is not None and reaches(value, target.must) != reaches(fastest, target.must):
        return "open: median and fastest rounds disagree"
    if not reaches(value, target.must):
        return "missed"
    return "stretch" if target.stretch is not None and reaches(value, target.stretch) else "met"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default=",".join(TARGETED), help=f"of {', '.join(TARGETED)}, products")
    parser.add_argument("--size", default=SIZE)
    for name, default in (
        ("batch", 4),
        ("length", LENGTH),
        ("target", TARGET),
        ("rounds", 7),
        ("threads", None),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    parser.add_argument("--out", type=Path, help="also write JSON to this file")
    given = parser.parse_args()

    benchmark = Benchmark(
        None,
        size=given.size,
        shapes=Shapes(given.batch, given.length, given.target, (0.5, 0.7), ("even", "wide"), bf16=True),
        rounds=given.rounds,
        device=runtime.device(given.device),
        threads=given.threads or default_threads(),
        memory=True,
        done=lambda what, finished, total: print(f"{what}: {finished} of {total}", file=sys.stderr),
    )
    benchmark.check([])
    report = Report({}, [measured(benchmark, what) for what in given.what.split(",")])
    report = replace(report, setting=benchmark.setting())
    present(report)
    found = judged(report)
    say("targets")
    lines = [
        [
            each.target.name,
            number(each.measured, 2),
            number(each.fastest, 2),
            ("at most " if each.target.less else "") + number(each.target.must, 2),
            number(each.target.stretch, 2),
            each.verdict or "another setting",
        ]
        for each in found
    ]
    print_table(["", "measured", "fastest\nrounds", "must", "stretch", ""], lines)
    if given.out is not None:
        document = {**report.to_json(), "targets": [asdict(each) for each in found]}
        given.out.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return 1 if report.broken_parity() else 0


if __name__ == "__main__":
    sys.exit(main())
