"""Runs the suites and makes one document of what they measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from mrt5cli.benchmark.cases import SUITES, Shapes, Suite, forward
from mrt5cli.benchmark.loading import loader_rates
from mrt5cli.benchmark.models import SIZES, base_model
from mrt5cli.benchmark.rounds import Timing, interleave, speedup
from mrt5cli.errors import UserError
from mrt5cli.evaluation.timing import conditions

Done = Callable[[str, int, int], None]


def run(
    model: str | None,
    *,
    size: str,
    kinds: Sequence[str],
    rates: Sequence[float],
    rows: str,
    batch: int,
    length: int,
    target: int,
    rounds: int,
    bf16: bool,
    device: torch.device,
    done: Done,
) -> dict[str, Any]:
    """Time the kinds one after the other; see `mrt5 bench`.

    Raises:
        UserError: a size that is not known, or a model that cannot be steered.
    """
    if size not in SIZES:
        raise UserError(f"--size {size} is not known", f"choose from {', '.join(SIZES)}")
    source = None
    if model is not None:
        from mrt5cli.evaluation.subject import find_subject

        source = find_subject(model).source
    base = base_model(source, size, device)
    shapes = Shapes(batch, length, target, rows, rates)
    suites = []
    for kind in kinds:
        if kind == "data":
            suites.append(loader_rates(base, shapes, done))
            continue
        suite = forward(base, shapes, bf16=bf16) if kind == "forward" else SUITES[kind](base, shapes)
        total = (rounds + 1) * len(suite.calls)
        finished = 0

        def tick(_round: int, _name: str, kind: str = kind, total: int = total) -> None:
            nonlocal finished
            finished += 1
            done(kind, finished, total)

        suites.append(_document(suite, interleave(suite.calls, rounds=rounds, device=device, done=tick)))
    return {
        "setting": {
            "model": model or size,
            "parameters": sum(weight.numel() for weight in base.parameters()),
            "batch": batch,
            "length": length,
            "target": target,
            "rows": rows,
            "rates": list(rates),
            "rounds": rounds,
            "torch": torch.__version__,
            **conditions(base),
        },
        "suites": suites,
    }


def _document(suite: Suite, timings: dict[str, Timing]) -> dict[str, Any]:
    cases = []
    for name, timing in timings.items():
        ratios = [
            {"baseline": other, "ideal": suite.ideal(name, other), **asdict(speedup(timings[other], timing))}
            for other in suite.baseline[name]
        ]
        cases.append(
            {
                "name": name,
                "seconds": timing.median,
                "shown": f"{1000 * timing.median:,.1f} ms",
                "rounds": timing.seconds,
                "macs": suite.macs.get(name),
                "ratios": ratios,
            }
        )
    parity = {name: {"difference": d, "size": s} for name, (d, s) in suite.parity.items()}
    return {"what": suite.what, "cases": cases, "parity": parity, "notes": []}
