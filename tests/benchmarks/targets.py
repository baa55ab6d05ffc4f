"""Times what was set out to be reached, and says whether it was.

    python tests/benchmarks/targets.py --batch 2
    python tests/benchmarks/targets.py --batch 2 --what products
    python tests/benchmarks/targets.py --read bench-forward.json bench-train.json

A speed target is met by the median of the ratios within rounds; where the ratio of the fastest rounds says
otherwise, it is open.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from loading import GIVES, TAKES, loader_rates
from products import products
from reference import attention_beside_reference
from startup import FIRST_STEP, HELP, startup

from mrt5cli import runtime
from mrt5cli.benchmark.forward import EAGER, SDPA, forward
from mrt5cli.benchmark.generation import generate
from mrt5cli.benchmark.models import Shapes
from mrt5cli.benchmark.run import Benchmark, Report, default_threads
from mrt5cli.benchmark.suite import Builder, Suite
from mrt5cli.benchmark.training_step import DROPPING, REFERENCE, train
from mrt5cli.commands.bench import present
from mrt5cli.commands.tables import print_table
from mrt5cli.text import number, say

SIZE, LENGTH, TARGET = "byt5-small", 1024, 189
"""What the targets are for."""
BUILDERS: dict[str, Builder] = {
    "forward": forward,
    "attention": attention_beside_reference,
    "train": partial(train, reference=True),
    "generate": generate,
    "products": products,
}
SLOW = ("forward", "train", "generate")
"""Of these only what has a target is timed, and a GPU's matrix products."""
GENERATED = 8
"""Rows that a GPU is to generate at once."""
STARTUP_ROUNDS = 5


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Attributes:
        name: what it is.
        what: the suite it is measured in.
        case, baseline: of that suite.
        must, stretch: the floor and the goal; None where there is no goal beyond the floor.
        quantity: "speed" (times as fast as the baseline), "share_of_ideal" or
            "share_of_products" (0 to 1), "live" (memory held between forward and backward pass, of the
            baseline's), or "seconds".
        device: "cpu", "cuda", or "any".
    """

    name: str
    what: str
    case: str
    baseline: str | None
    must: float
    stretch: float | None = None
    quantity: Literal["speed", "share_of_ideal", "share_of_products", "live", "seconds"] = "speed"
    device: str = "cpu"

    @property
    def less(self) -> bool:
        """Whether it is met from below."""
        return self.quantity in ("live", "seconds")


HALF, HALF_WIDE, MORE_WIDE = "packed 50 % even", "packed 50 % wide", "packed 70 % wide"
FUSED, LEAN = "fused, score loss", "fused, score loss, recomputing blocks"
BF16, AS_PAPER = " bf16", f"{DROPPING} bf16"
DENSE, TRAINED, PLAINLY = f"dense{BF16}", f"{FUSED}{AS_PAPER}", f"{SDPA}{BF16}"
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
    Target("dense over transformers sdpa", "forward", DENSE, PLAINLY, 2.0, device="cuda"),
    *(
        Target(
            f"50 % deleted, {rows}: share of the ideal", "forward", *of, 0.9, None, "share_of_ideal", "cuda"
        )
        for rows, of in (("even", (HALF + BF16, DENSE)), ("wide", (HALF_WIDE + BF16, DENSE)))
    ),
    Target("training step over reference-like", "train", TRAINED, REFERENCE + AS_PAPER, 2.5, device="cuda"),
    Target("... over transformers sdpa, dense", "train", TRAINED, SDPA + AS_PAPER, 1.5, device="cuda"),
    Target("its live memory", "train", TRAINED, REFERENCE + AS_PAPER, 0.35, None, "live", "cuda"),
    Target("its share of a product's rate", "train", TRAINED, None, 0.4, None, "share_of_products", "cuda"),
    Target("greedy decoding over transformers'", "generate", DENSE, PLAINLY, 3.0, device="cuda"),
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
    """The cases that the targets look at; what is checked stays."""
    needed = {
        name for target in on(device) if target.what == suite.what for name in (target.case, target.baseline)
    }
    cases = {name: case for name, case in suite.cases.items() if name in needed or case.yardstick}
    return Suite(suite.what, cases, suite.checks)


def measured(benchmark: Benchmark, what: str) -> Suite:
    """A suite's results, with the memory of its training steps."""
    if what == "data":
        return loader_rates(benchmark.base, benchmark.shapes, benchmark.done)
    if what == "startup":
        with tempfile.TemporaryDirectory() as folder:
            rounds = min(benchmark.rounds, STARTUP_ROUNDS)
            short = replace(benchmark, rounds=rounds, memory=False, device=runtime.device("cpu"))
            suite = startup(Path(folder), benchmark.threads)
            short.time(suite)
            return suite
    build, shapes = BUILDERS[what], benchmark.shapes
    suite = build(benchmark.base, replace(shapes, batch=GENERATED) if what == "generate" else shapes)
    if what in SLOW:
        suite = only_targeted(suite, str(benchmark.device))
    benchmark.time(suite)
    if what == "train":
        benchmark.add_memory(suite, build)
    return suite


def judged(document: Any) -> list[Judged]:
    """The targets that a document of this script or of `mrt5 bench --out` has measured."""
    setting = document["setting"]
    fits = (setting["shape"], setting["length"], setting["target"]) == (SIZE, LENGTH, TARGET)
    suites = {suite["what"]: {case["name"]: case for case in suite["cases"]} for suite in document["suites"]}
    found = []
    for target in on(setting["device"]):
        cases = suites.get(target.what, {})
        if all(cases.get(name, {}).get("rounds") for name in (target.case, target.baseline) if name):
            value, fastest = measure_of(target, cases)
            here = fits or target.what == "startup"
            found.append(Judged(target, value, fastest, verdict(target, value, fastest) if here else None))
    return found


def measure_of(target: Target, cases: Any) -> tuple[float, float | None]:
    """The number of a target, and what it would be by the fastest rounds."""
    case = cases[target.case]
    if target.quantity == "seconds":
        return case["seconds"], min(case["rounds"])
    if target.quantity == "share_of_products":
        return case["share_of_products"], None
    if target.quantity == "live":
        return case["memory"]["live"] / cases[target.baseline]["memory"]["live"], None
    [ratio] = [ratio for ratio in case["ratios"] if ratio["baseline"] == target.baseline]
    if target.quantity == "share_of_ideal":
        return ratio["share_of_ideal"], None
    return ratio["median"], ratio["fastest"]


def verdict(target: Target, value: float, fastest: float | None) -> str:
    """What a measured number means for a target."""

    def reaches(value: float, limit: float) -> bool:
        return value <= limit if target.less else value >= limit

    if fastest is not None and reaches(value, target.must) != reaches(fastest, target.must):
        return "open: median and fastest rounds disagree"
    if not reaches(value, target.must):
        return "missed"
    return "stretch" if target.stretch is not None and reaches(value, target.stretch) else "met"


def show(document: Any) -> list[Judged]:
    """Print the verdicts."""
    found = judged(document)
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
    say("targets")
    print_table(["", "measured", "fastest\nrounds", "must", "stretch", ""], lines)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", help="what has targets on the device, by default; and products")
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
    parser.add_argument("--read", type=Path, nargs="+", help="only judge what `mrt5 bench --out` wrote")
    given = parser.parse_args()
    if given.read:
        if absent := [str(path) for path in given.read if not path.is_file()]:
            sys.exit(f"--read: no such file: {', '.join(absent)}; `mrt5 bench --out FILE` writes one")
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in given.read]
        show({**documents[0], "suites": [suite for one in documents for suite in one["suites"]]})
        return 0

    device = runtime.device(given.device)
    precisions = ("bf16",) if device.type == "cuda" else ("fp32", "bf16")
    kinds = given.what.split(",") if given.what else list(dict.fromkeys(one.what for one in on(str(device))))
    benchmark = Benchmark(
        None,
        size=given.size,
        shapes=Shapes(given.batch, given.length, given.target, (0.5, 0.7), ("even", "wide"), precisions),
        rounds=given.rounds,
        device=device,
        threads=given.threads or default_threads(),
        memory=True,
        done=lambda what, finished, total: print(f"{what}: {finished} of {total}", file=sys.stderr),
    )
    benchmark.check([])
    report = Report({}, [measured(benchmark, what) for what in kinds])
    report = replace(report, setting=benchmark.setting())
    present(report)
    document = report.to_json()
    document["targets"] = [asdict(each) for each in show(document)]
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return 1 if report.broken_parity() or report.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
