"""Greedy decoding of as many bytes as the target has, whatever they are."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.card import products
from mrt5cli.benchmark.forward import EAGER, SDPA
from mrt5cli.benchmark.models import (
    Precision,
    Shapes,
    Variant,
    float32_products,
    implementations,
    named,
    on_gpu,
    ours,
    plain,
)
from mrt5cli.benchmark.suite import LOGIT_TOLERANCE, SLACK, Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.switch import fast_paths

SLOW = "dense, fast paths off"


def generate(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """transformers' models and ours, dense and deleted, in each precision; bf16 is that of the weights."""
    suite, checked = Suite("generate"), dict[str, tuple[MrT5ForConditionalGeneration, Variant]]()
    for precision in shapes.precisions:
        weights = copy.deepcopy(base).to(torch.bfloat16) if precision == "bf16" else base
        for name, (variant, against) in _variants(weights, shapes, precision).items():
            call = partial(_slowly if name == SLOW else greedy, variant)
            each, others = named(name, precision), [named(other, precision) for other in against]
            suite.cases[each] = Case(call, others, precision=precision)
            if name.startswith("de") and name != SLOW:
                checked[each] = weights, variant
    if on_gpu(base):
        suite.cases |= products(base, shapes)

    def parity(name: str, weights: MrT5ForConditionalGeneration, variant: Variant) -> Parity:
        fields = {} if variant.kept else {"deletion_type": "none"}
        exact = Variant(ours(base, "eager", **fields), shapes, variant.kept)
        rounded = Variant(ours(weights, "eager", **fields), shapes, variant.kept, variant.precision)
        tokens = suite.cases[name].run()
        return greedy_parity(exact, tokens, None if variant.precision == "fp32" else rounded)

    def checks() -> Checks:
        for name, given in checked.items():
            yield name, partial(parity, name, *given)

    suite.checks = checks
    return suite


def _variants(
    weights: MrT5ForConditionalGeneration, shapes: Shapes, precision: Precision
) -> dict[str, tuple[Variant, list[str]]]:
    """What generates, and what it is compared with."""
    fast = implementations(weights)[0]
    build = partial(Variant, shapes=shapes, precision=precision)
    dense, deleting = ours(weights, fast, deletion_type="none"), ours(weights, fast)
    found: dict[str, tuple[Variant, list[str]]] = {}
    if not on_gpu(weights):
        found[EAGER] = build(plain(weights, "eager")), []
    found[SDPA] = build(plain(weights, "sdpa")), [EAGER]
    if on_gpu(weights):
        found[SLOW] = build(dense), [SDPA]
    found["dense"] = build(dense), [EAGER, SDPA, SLOW]
    for tag, kept in shapes.deletions():
        found[f"deleted {tag}"] = build(deleting, kept=kept), ["dense", SDPA if on_gpu(weights) else EAGER]
    return found


def greedy(variant: Variant) -> Tensor:
    """(B, 1 + T) tokens, of which none ends a row before its time."""
    model: Any = variant.model
    target, steered = variant.labels.shape[1], variant.steer()
    how = {"do_sample": False, "num_beams": 1, "min_new_tokens": target, "max_new_tokens": target}
    return model.generate(variant.ids, attention_mask=variant.mask, **how, **steered)


def _slowly(variant: Variant) -> Tensor:
    with fast_paths(False):
        return greedy(variant)


def greedy_parity(oracle: Variant, tokens: Tensor, rounded: Variant | None = None) -> Parity:
    """How far below the oracle's best token the chosen ones lie, in logits, given the same tokens before.

    Not whether the oracle generates the same: at a near tie it may go another way, and never come back.

    Args:
        rounded: the oracle in the precision that the tokens were chosen in, where that is not float32.
    """
    given = {"attention_mask": oracle.mask, "decoder_input_ids": tokens[:, :-1], "use_cache": False}

    def scores(variant: Variant) -> Tensor:
        with torch.inference_mode(), float32_products(variant.precision):
            return variant.model(variant.ids, **given, **variant.steer()).logits.float()

    logits = scores(oracle).clone()
    size = float(logits.abs().max())
    allowed = 2 * LOGIT_TOLERANCE * max(1.0, size / 5)
    if rounded is not None:
        allowed = max(allowed, 2 * SLACK * float((logits - scores(rounded)).abs().max()))
    logits[..., oracle.model.config.eos_token_id] = -torch.inf  # no answer may end before its last token
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    return Parity(float((logits.amax(dim=-1) - chosen).max()), size, allowed)
