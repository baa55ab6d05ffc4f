"""Teacher-forced forward passes: dense, and deleted for real with and without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mrt5cli.analysis.compute import macs
from mrt5cli.benchmark.cases import Case, Parity, Suite
from mrt5cli.benchmark.inputs import Shapes, batch
from mrt5cli.benchmark.models import ours, plain, sizes_of, steer
from mrt5cli.models import MrT5ForConditionalGeneration

EAGER, SDPA = "transformers eager", "transformers sdpa"


def forward(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The plain models and ours; `padded` and `eager` compute what is left of the longest row for all."""
    ids, mask, labels = batch(base, shapes)
    suite, sizes = Suite("forward"), sizes_of(base)
    full, targets = [shapes.length] * shapes.batch, [shapes.target] * shapes.batch

    def logits(model: PreTrainedModel, **how: Any) -> Tensor:
        with torch.inference_mode():
            return model(ids, attention_mask=mask, labels=labels, use_cache=False, **how).logits

    def add(
        name: str,
        model: PreTrainedModel,
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        *,
        half: bool = False,
    ) -> None:
        def call() -> Tensor:
            if kept is not None:
                steer(model, kept, shapes.length)
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
                return logits(model, **({} if kept is None else {"hard_delete": True}))

        computed = full if kept is None else kept
        if kept is not None and not name.startswith("packed"):
            computed = [max(kept)] * shapes.batch
        suite.cases[name] = Case(call, against, macs(sizes, full, computed, targets))

    def both(
        name: str,
        model: PreTrainedModel,
        against: Sequence[str],
        half: Sequence[str],
        kept: Sequence[int] | None = None,
    ) -> None:
        add(name, model, against, kept)
        if shapes.bf16:
            add(f"{name} bf16", model, half, kept, half=True)

    both(EAGER, plain(base, "eager"), [], [EAGER])
    both(SDPA, plain(base, "sdpa"), [EAGER], [f"{EAGER} bf16"])
    add("eager", ours(base, "eager", deletion_type="none"), [EAGER])
    both("dense", ours(base, "packed", deletion_type="none"), [EAGER, SDPA], [EAGER, f"{EAGER} bf16"])
    models = {name: ours(base, name) for name in ("eager", "sdpa", "packed")}
    for tag, kept in shapes.deletions():
        add(f"eager {tag}", models["eager"], ["eager"], kept)
        add(f"padded {tag}", models["sdpa"], ["dense", f"eager {tag}"], kept)
        against = ["dense", f"padded {tag}", EAGER]
        both(f"packed {tag}", models["packed"], against, ["dense bf16", EAGER, f"{EAGER} bf16"], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        result = {name: suite.cases[name].call for name in suite.cases}
        yield "dense", Parity.of(result["eager"](), result["dense"]())
        plain_softmax = ours(base, "packed", deletion_type="none", use_softmax1=False)
        yield "dense with softmax, from transformers", Parity.of(result[EAGER](), logits(plain_softmax))
        for tag, _ in shapes.deletions():
            oracle = result[f"eager {tag}"]()
            for name in (f"padded {tag}", f"packed {tag}"):
                yield name, Parity.of(oracle, result[name]())

    suite.checks = checks
    return suite
