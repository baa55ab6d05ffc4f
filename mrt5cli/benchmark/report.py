"""Runs the kinds of benchmark and makes one document of what they measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mrt5cli.benchmark.compiling import compiled
from mrt5cli.benchmark.kinds import BUILDERS
from mrt5cli.benchmark.loading import loader_rates
from mrt5cli.benchmark.memory import Memory, measure
from mrt5cli.benchmark.models import SIZES, base_model
from mrt5cli.benchmark.precision import precision_rows
from mrt5cli.benchmark.rounds import Timing, interleave, speedup
from mrt5cli.benchmark.startup import startup
from mrt5cli.benchmark.suite import Shapes, Suite
from mrt5cli.benchmark.targets import judged, needed
from mrt5cli.errors import UserError
from mrt5cli.runtime import check_compiler, processor_name, usable_cpus
from mrt5cli.subject import Subject
from mrt5cli.text import byte_size

Done = Callable[[str, int, int], None]
STARTUP_ROUNDS = 5
SLOW = ("forward", "train")


@dataclass
class Benchmark:
    """What to time, and on what.

    Attributes:
        subject: the model, or None for random weights of `size`.
        rounds: that count.
        threads: of the CPU.
        memory: whether each case also runs once in a process of its own.
        limit: examples a subset that precision is measured on.
        targets: time just what has a target, of the suites where that takes long.
        done: told a kind, the calls done and their number (0: not known).
    """

    subject: Subject | None
    size: str
    shapes: Shapes
    rounds: int
    device: torch.device
    threads: int
    memory: bool
    limit: int
    targets: bool
    done: Done

    @cached_property
    def base(self) -> Any:
        """The weights, made when first asked for: start-up and precision do without."""
        source = None if self.subject is None else self.subject.source
        return base_model(source, self.size, self.device)

    def run(self, kind: str) -> dict[str, Any]:
        """The document of one kind."""
        if kind in BUILDERS:
            suite = BUILDERS[kind](self.base, self.shapes)
            only = needed(kind, str(self.device)) if self.targets and kind in SLOW else None
            document = self.timed(suite, self.rounds, only)
            return self._with_memory(document) if self.memory else document
        match kind:
            case "data":
                return loader_rates(self.base, self.shapes, self.done)
            case "compile":
                suite, costs = compiled(self.base, self.shapes)
                document = self.timed(suite, self.rounds)
                for case in document["cases"]:
                    case["compiling"] = asdict(costs[case["name"]]) if case["name"] in costs else None
                document["notes"] = [f"{name}: {cost.sentence()}" for name, cost in costs.items()]
                return document
            case "precision":
                assert self.subject is not None  # `check` saw to it
                return precision_rows(self.subject, device=self.device, limit=self.limit, done=self.done)
            case "startup":
                with tempfile.TemporaryDirectory() as folder:
                    suite = startup(Path(folder), self.threads)
                    return self.timed(suite, min(self.rounds, STARTUP_ROUNDS))
        raise ValueError(f"{kind!r} is no kind of benchmark")

    def timed(self, suite: Suite, rounds: int, only: Container[str] | None = None) -> dict[str, Any]:
        """Check all of a suite's results, time its cases or some of them, and say so."""
        parity = dict(suite.checks())
        calls = {name: case.call for name, case in suite.cases.items() if only is None or name in only}
        total, finished = (rounds + 1) * len(calls), 0

        def tick(_round: int, _name: str) -> None:
            nonlocal finished
            finished += 1
            self.done(suite.what, finished, total)

        timings = interleave(calls, rounds=rounds, device=self.device, done=tick)
        return {
            "what": suite.what,
            "cases": [_case(suite, name, timings) for name in calls],
            "parity": {name: {**asdict(found), "holds": found.holds} for name, found in parity.items()},
            "notes": suite.notes(timings),
        }

    def _with_memory(self, document: dict[str, Any]) -> dict[str, Any]:
        names = [case["name"] for case in document["cases"]]
        found: dict[str, Memory] = {}
        source = None if self.subject is None else self.subject.source
        for name, memory in measure(
            document["what"],
            names,
            source=source,
            size=self.size,
            shapes=self.shapes,
            device=self.device,
            threads=self.threads,
        ):
            found[name] = memory
            self.done(f"memory of {document['what']}", len(found), len(names))
        for case in document["cases"]:
            case["memory"] = asdict(found[case["name"]])
        problems = [
            f"{name}: no memory, {memory.problem}" for name, memory in found.items() if memory.problem
        ]
        weights = sum(weight.numel() * weight.element_size() for weight in self.base.parameters())
        note = f"memory is beside the model's {byte_size(weights)}, each case in a process of its own"
        return {**document, "notes": [*document["notes"], note, *problems]}

    def setting(self) -> dict[str, Any]:
        """What the numbers depend on."""
        built = self.base if "base" in self.__dict__ else None
        shape = None
        if built is not None:
            same = (
                name
                for name, fields in SIZES.items()
                if all(getattr(built.config, key) == value for key, value in fields.items())
            )
            shape = next(same, None)
        on_gpu = self.device.type == "cuda"
        return {
            "model": self.size if self.subject is None else self.subject.name,
            "shape": shape,
            "parameters": None if built is None else sum(weight.numel() for weight in built.parameters()),
            "batch": self.shapes.batch,
            "length": self.shapes.length,
            "target": self.shapes.target,
            "rows": ",".join(self.shapes.spreads),
            "rates": list(self.shapes.rates),
            "rounds": self.rounds,
            "torch": torch.__version__,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if on_gpu else processor_name(),
            "dtype": "float32",
            "threads": self.threads,
        }


def run(benchmark: Benchmark, kinds: Sequence[str]) -> dict[str, Any]:
    """Time the kinds one after the other; see `mrt5 bench`.

    Raises:
        UserError: what was asked for cannot be timed here.
    """
    check(benchmark, kinds)
    torch.set_num_threads(benchmark.threads)
    suites = [benchmark.run(kind) for kind in kinds]
    setting = benchmark.setting()
    return {"setting": setting, "suites": suites, "targets": judged(setting, suites)}


def check(benchmark: Benchmark, kinds: Sequence[str]) -> None:
    """Refuse what cannot be timed, before anything is.

    Raises:
        UserError: see there.
    """
    if benchmark.size not in SIZES:
        raise UserError(f"--size {benchmark.size} is not known", f"choose from {', '.join(SIZES)}")
    if "wide" in benchmark.shapes.spreads and benchmark.shapes.batch == 1:
        raise UserError("--rows wide: one row cannot be longer than another", "use --batch 2 or more")
    if "precision" in kinds and benchmark.subject is None:
        raise UserError(
            "--what precision needs a trained run",
            "name its directory: mrt5 bench runs/NAME --what precision",
        )
    if "compile" in kinds:
        check_compiler(benchmark.device, "--what compile")


def default_threads() -> int:
    """What a command takes when nobody says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return min(torch.get_num_threads(), usable_cpus())


def broken_parity(document: dict[str, Any]) -> list[str]:
    """Of each fast path that is not the oracle's equal, a sentence."""
    return [
        f"{suite['what']}, {name}: {found['difference']:.1e} from the oracle, on values up to "
        f"{found['size']:.1f}; {found['allowed']:.1e} is rounding"
        for suite in document["suites"]
        for name, found in suite["parity"].items()
        if not found["holds"]
    ]


def _case(suite: Suite, name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    case, timing = suite.cases[name], timings[name]
    ratios = []
    for other in (name for name in case.against if name in timings):
        ratio, ideal = speedup(timings[other], timing), suite.ideal(name, other)
        share = None if ideal is None else ratio.median / ideal
        ratios.append({"baseline": other, "ideal": ideal, "share_of_ideal": share, **asdict(ratio)})
    seconds = timing.median
    return {
        "name": name,
        "seconds": seconds,
        "shown": f"{1000 * seconds:,.1f} ms" if seconds < 10 else f"{seconds:,.2f} s",
        "rounds": timing.seconds,
        "macs": case.macs,
        "operations_per_second": None if case.operations is None else case.operations / seconds,
        "memory": None,
        "ratios": ratios,
    }
