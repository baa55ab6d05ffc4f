"""Benchmark of greedy decoding to a fixed number of bytes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.card import products
from mrt5cli.benchmark.forward import EAGER, SDPA
from mrt5cli.benchmark.models import Shapes, Variant, implementations, named, on_gpu, ours, plain
from mrt5cli.benchmark.suite import LOGIT_TOLERANCE, SLACK, Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.switch import fast_paths

SLOW = "dense, fast paths off"


def generate(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """transformers' models and ours, dense and deleted, in each precision; bf16 refers to the weights."""
    suite, fast, gpu = Suite("generate"), implementations(base)[0], on_gpu(base)
    checked: dict[str, tuple[MrT5ForConditionalGeneration, Variant]] = {}

    def add(name: str, variant: Variant, against: list[str], check: Any = None) -> None:
        call, precision = partial(_slowly if name == SLOW else greedy, variant), variant.precision
        others = [named(other, precision) for other in against]
        suite.cases[named(name, precision)] = Case(call, others, precision=precision)
        if check is not None:
            checked[named(name, precision)] = check, variant

    for precision in shapes.precisions:
        weights = copy.deepcopy(base).to(torch.bfloat16) if precision == "bf16" else base
        dense, deleting = ours(weights, fast, deletion_type="none"), ours(weights, fast)
        build = partial(Variant, shapes=shapes, precision=precision)
        if not gpu:
            add(EAGER, build(plain(weights, "eager")), [])
        add(SDPA, build(plain(weights, "sdpa")), [EAGER])
        if gpu:
            add(SLOW, build(dense), [SDPA])
        add("dense", build(dense), [EAGER, SDPA, SLOW], weights)
        for tag, kept in shapes.deletions():
            add(f"deleted {tag}", build(deleting, kept=kept), ["dense", SDPA, EAGER], weights)
    if gpu:
        suite.cases |= products(base, shapes)

    def parity(name: str, weights: MrT5ForConditionalGeneration, variant: Variant) -> Parity:
        kept, fields = variant.kept, {} if variant.kept else {"deletion_type": "none"}
        oracle, rounded = (ours(each, "eager", **fields) for each in (base, weights))
        tokens, exact = suite.cases[name].run(), Variant(oracle, shapes, kept)
        if variant.precision == "fp32":
            return greedy_parity(exact, tokens)
        return greedy_parity(exact, tokens, Variant(rounded, shapes, kept, variant.precision))

    def checks() -> Checks:
        for name, given in checked.items():
            yield name, partial(parity, name, *given)

    suite.checks = checks
    return suite


def greedy(variant: Variant) -> Tensor:
    """(B, 1 + T) tokens; no row ends early."""
    model: Any = variant.model
    target, steered = variant.labels.shape[1], variant.steer()
    how = {"do_sample": False, "num_beams": 1, "min_new_tokens": target, "max_new_tokens": target}
    return model.generate(variant.ids, attention_mask=variant.mask, **how, **steered)


def _slowly(variant: Variant) -> Tensor:
    with fast_paths(False):
        return greedy(variant)


def greedy_parity(oracle: Variant, tokens: Tensor, rounded: Variant | None = None) -> Parity:
    """The largest gap in logits between the oracle's best token and the chosen one, given the same prefix.

    The oracle's own output is no criterion: after a near tie it may diverge for good.

    Args:
        oracle: the oracle.
        tokens: (B, 1 + T) chosen tokens.
        rounded: the oracle in the precision of the tokens, if that is not float32.
    """

    def scores(variant: Variant) -> Tensor:
        with torch.inference_mode(), fast_paths(False):
            return variant(labels=None, decoder_input_ids=tokens[:, :-1]).logits.float()

    logits = scores(oracle).clone()
    size = float(logits.abs().max())
    allowed = 2 * LOGIT_TOLERANCE * max(1.0, size / 5)
    if rounded is not None:
        allowed = max(allowed, 2 * SLACK * float((logits - scores(rounded)).abs().max()))
    logits[..., oracle.model.config.eos_token_id] = -torch.inf  # answers cannot end early
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    return Parity(float((logits.amax(dim=-1) - chosen).max()), size, allowed)
