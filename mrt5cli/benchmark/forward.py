"""Teacher-forced forward passes: dense, and deleted for real with and without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mrt5cli.benchmark.models import Shapes, Variant, ours, plain
from mrt5cli.benchmark.suite import Case, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration

EAGER, SDPA = "transformers eager", "transformers sdpa"
EAGER_BF16 = f"{EAGER} bf16"


def forward(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The plain models and ours; `padded` and `eager` compute what is left of the longest row for all."""
    suite = Suite("forward")

    def add(
        name: str,
        model: PreTrainedModel,
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        half: Sequence[str] | None = None,
    ) -> None:
        """Add a case, and one under bfloat16 autocast where `half` names what that is compared with."""
        compared = {name: (against, False)}
        if shapes.bf16 and half is not None:
            compared[f"{name} bf16"] = half, True
        for each, (others, in_half) in compared.items():
            variant = Variant(model, shapes, kept, in_half)
            work = variant.macs(padded=not name.startswith("packed"))
            suite.cases[each] = Case(partial(logits, variant), others, work)

    add(EAGER, plain(base, "eager"), [], half=[EAGER])
    add(SDPA, plain(base, "sdpa"), [EAGER], half=[EAGER_BF16])
    add("eager", ours(base, "eager", deletion_type="none"), [EAGER])
    add("dense", ours(base, "packed", deletion_type="none"), [EAGER, SDPA], half=[EAGER, EAGER_BF16])
    models = {name: ours(base, name) for name in ("eager", "sdpa", "packed")}
    for tag, kept in shapes.deletions():
        add(f"eager {tag}", models["eager"], ["eager"], kept)
        add(f"padded {tag}", models["sdpa"], ["dense", f"eager {tag}"], kept)
        against, half = ["dense", f"padded {tag}", EAGER], ["dense bf16", EAGER, EAGER_BF16]
        add(f"packed {tag}", models["packed"], against, kept, half)

    def checks() -> Iterator[tuple[str, Parity]]:
        result = {name: case.call for name, case in suite.cases.items()}
        yield "dense", Parity.of(result["eager"](), result["dense"]())
        softmax = Variant(ours(base, "packed", deletion_type="none", use_softmax1=False), shapes)
        yield "dense with softmax, from transformers", Parity.of(result[EAGER](), logits(softmax))
        for tag, _ in shapes.deletions():
            oracle = result[f"eager {tag}"]()
            for name in (f"padded {tag}", f"packed {tag}"):
                yield name, Parity.of(oracle, result[name]())

    suite.checks = checks
    return suite


def logits(variant: Variant) -> Tensor:
    """(B, T, vocabulary), without a graph."""
    with torch.inference_mode():
        return variant().logits
