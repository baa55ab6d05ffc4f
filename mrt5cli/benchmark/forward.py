"""Teacher-forced forward passes: dense, and deleted for real with and without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.benchmark.inputs import batch
from mrt5cli.benchmark.models import ours, plain, steer
from mrt5cli.benchmark.rounds import kept_lengths
from mrt5cli.benchmark.suite import Case, Parity, Shapes, Suite

EAGER, SDPA = "transformers eager", "transformers sdpa"


def forward(base: Any, shapes: Shapes) -> Suite:
    """The plain models and ours; `padded` and `eager` compute what is left of the longest row for all."""
    ids, mask, labels = batch(base, shapes)
    suite, sizes = Suite("forward"), Sizes.of(base.config)
    full, targets = [shapes.length] * shapes.batch, [shapes.target] * shapes.batch

    def add(
        name: str,
        model: Any,
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        *,
        half: bool = False,
    ) -> None:
        deleted = kept is not None

        def call() -> Tensor:
            if kept is not None:
                steer(model, kept, shapes.length)
            how = {"hard_delete": True} if deleted else {}
            with torch.inference_mode(), torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
                logits: Tensor = model(ids, attention_mask=mask, labels=labels, use_cache=False, **how).logits
                return logits

        computed = full if kept is None else kept
        if kept is not None and not name.startswith("packed"):
            computed = [max(kept)] * shapes.batch
        suite.cases[name] = Case(call, against, macs(sizes, full, computed, targets))

    def both(
        name: str, model: Any, against: Sequence[str], half: Sequence[str], kept: Sequence[int] | None = None
    ) -> None:
        add(name, model, against, kept)
        if shapes.bf16:
            add(f"{name} bf16", model, half, kept, half=True)

    both(EAGER, plain(base, "eager"), [], [EAGER])
    both(SDPA, plain(base, "sdpa"), [EAGER], [f"{EAGER} bf16"])
    add("eager", ours(base, "eager", deletion_type="none"), [EAGER])
    both("dense", ours(base, "packed", deletion_type="none"), [EAGER, SDPA], [EAGER, f"{EAGER} bf16"])
    models = {name: ours(base, name) for name in ("eager", "sdpa", "packed")}
    for tag, rate, spread in shapes.deletions():
        kept = kept_lengths(shapes.batch, shapes.length, rate, spread)
        add(f"eager {tag}", models["eager"], ["eager"], kept)
        add(f"padded {tag}", models["sdpa"], ["dense", f"eager {tag}"], kept)
        against = ["dense", f"padded {tag}", EAGER]
        both(f"packed {tag}", models["packed"], against, ["dense bf16", EAGER, f"{EAGER} bf16"], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        def result(name: str) -> Tensor:
            logits: Tensor = suite.cases[name].call()
            return logits

        yield "dense", Parity.of(result("eager"), result("dense"))
        plain_softmax = ours(base, "packed", deletion_type="none", use_softmax1=False)
        with torch.inference_mode():
            mine = plain_softmax(ids, attention_mask=mask, labels=labels, use_cache=False).logits
        yield "dense with softmax, from transformers", Parity.of(result(EAGER), mine)
        for tag, _, _ in shapes.deletions():
            oracle = result(f"eager {tag}")
            for name in (f"padded {tag}", f"packed {tag}"):
                yield name, Parity.of(oracle, result(name))

    suite.checks = checks
    return suite


Builder = Callable[[Any, Shapes], Suite]
