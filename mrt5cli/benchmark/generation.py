"""Greedy decoding of as many bytes as the target has, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.forward import EAGER, SDPA
from mrt5cli.benchmark.models import Shapes, Variant, ours, plain
from mrt5cli.benchmark.suite import LOGIT_TOLERANCE, Case, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration


def generate(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """transformers' models and ours, dense and deleted."""
    models = {
        EAGER: (plain(base, "eager"), []),
        SDPA: (plain(base, "sdpa"), [EAGER]),
        "dense": (ours(base, "packed", deletion_type="none"), [EAGER, SDPA]),
    }
    variants = {name: (Variant(model, shapes), against) for name, (model, against) in models.items()}
    deleting = ours(base, "packed")
    deleted = {f"deleted {tag}": Variant(deleting, shapes, kept) for tag, kept in shapes.deletions()}
    variants |= {name: (variant, ["dense", EAGER]) for name, variant in deleted.items()}
    cases = {name: Case(partial(greedy, variant), against) for name, (variant, against) in variants.items()}

    def checks() -> Iterator[tuple[str, Parity]]:
        plainly = Variant(ours(base, "eager", deletion_type="none"), shapes)
        yield "dense", greedy_parity(plainly, cases["dense"].call())
        oracle = ours(base, "eager")
        for name, variant in deleted.items():
            yield name, greedy_parity(Variant(oracle, shapes, variant.kept), cases[name].call())

    return Suite("generate", cases, checks)


def greedy(variant: Variant) -> Tensor:
    """(B, 1 + T) tokens, of which none ends a row before its time."""
    model: Any = variant.model
    target, steered = variant.labels.shape[1], variant.steer()
    how = {"do_sample": False, "num_beams": 1, "min_new_tokens": target, "max_new_tokens": target}
    return model.generate(variant.ids, attention_mask=variant.mask, **how, **steered)


def greedy_parity(oracle: Variant, tokens: Tensor) -> Parity:
    """How far below the oracle's best token the chosen ones lie, in logits, given the same tokens before.

    Not whether the oracle generates the same: at a near tie it may go another way, and never come back.
    """
    given = {"attention_mask": oracle.mask, "decoder_input_ids": tokens[:, :-1], "use_cache": False}
    with torch.inference_mode():
        logits = oracle.model(oracle.ids, **given, **oracle.steer()).logits
    logits = logits.clone()
    logits[..., oracle.model.config.eos_token_id] = -torch.inf  # no answer may end before its last token
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    size = float(logits[logits.isfinite()].abs().max())
    short = float((logits.amax(dim=-1) - chosen).max())
    return Parity(short, size, 2 * LOGIT_TOLERANCE * max(1.0, size / 5))
