"""Benchmark of teacher-forced forward passes: dense, and with hard deletion, padded and packed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mrt5cli.benchmark.card import products
from mrt5cli.benchmark.models import Shapes, Variant, implementations, named, on_gpu, ours, plain
from mrt5cli.benchmark.suite import Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.switch import fast_paths

EAGER, SDPA = "transformers eager", "transformers sdpa"


def forward(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """transformers' models and ours, in each precision.

    `padded` and `eager` compute every row at the length of the longest remaining row. On a GPU our eager path
    serves only as the oracle.
    """
    suite, checked = Suite("forward"), dict[str, Variant]()
    fast, *others = implementations(base)
    dense = {how: ours(base, how, deletion_type="none") for how in {"eager", fast, *others}}
    deleting = {how: ours(base, how) for how in ("eager", "sdpa", fast)}

    def add(
        name: str,
        model: PreTrainedModel,
        against: Sequence[str],
        kept: Sequence[int] | None = None,
        *,
        check: bool = False,
    ) -> None:
        """Add a case in each precision, compared with `against` and with the plain model in float32."""
        for precision in shapes.precisions:
            variant, each = Variant(model, shapes, kept, precision), named(name, precision)
            work = variant.macs(padded=not name.startswith("packed"))
            others = [named(other, precision) for other in against] + [EAGER] * (precision != "fp32")
            call = partial(logits, variant)
            suite.cases[each] = Case(call, others, work, 2 * work, precision=precision)
            if check:
                checked[each] = variant

    add(EAGER, plain(base, "eager"), [])
    add(SDPA, plain(base, "sdpa"), [EAGER])
    if not on_gpu(base):
        add("eager", dense["eager"], [EAGER])
    add("dense", dense[fast], [EAGER, SDPA], check=True)
    for how in others:
        add(f"dense by {how}", dense[how], [EAGER, SDPA], check=True)
    for tag, kept in shapes.deletions():
        if not on_gpu(base):
            add(f"eager {tag}", deleting["eager"], ["eager"], kept)
        add(f"padded {tag}", deleting["sdpa"], ["dense", f"eager {tag}"], kept, check=True)
        if fast != "sdpa":
            add(f"packed {tag}", deleting[fast], ["dense", f"padded {tag}", SDPA, EAGER], kept, check=True)
    if on_gpu(base):
        suite.cases |= products(base, shapes)

    def checks() -> Checks:
        @cache
        def oracle(kept: Sequence[int] | None, *precision: Any) -> Tensor:
            with fast_paths(False):
                return logits(Variant((deleting if kept else dense)["eager"], shapes, kept, *precision))

        def parity(variant: Variant) -> Parity:
            kept = variant.kept and tuple(variant.kept)
            rounded = None if variant.precision == "fp32" else oracle(kept, variant.precision)
            return Parity.of(oracle(kept), logits(variant), rounded)

        def of_transformers() -> Parity:
            softmax, precision = (
                ours(base, fast, deletion_type="none", use_softmax1=False),
                shapes.precisions[0],
            )
            theirs = [Variant(plain(base, "eager"), shapes, None, each) for each in ("fp32", precision)]
            exact, rounded = map(logits, theirs)
            return Parity.of(exact, logits(Variant(softmax, shapes, None, precision)), rounded)

        yield "dense with softmax, from transformers", of_transformers
        for name, variant in checked.items():
            yield name, partial(parity, variant)

    suite.checks = checks
    return suite


def logits(variant: Variant) -> Tensor:
    """(B, T, vocabulary) logits, without gradients."""
    with torch.inference_mode():
        return variant().logits
