"""Greedy decoding of as many bytes as the target has, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.cases import LOGIT_TOLERANCE, Case, Parity, Suite
from mrt5cli.benchmark.forward import EAGER, SDPA
from mrt5cli.benchmark.inputs import Shapes, batch
from mrt5cli.benchmark.models import ours, plain, steer

LOOP = "transformers' loop"


def generate(base: Any, shapes: Shapes) -> Suite:
    """transformers' models and ours, dense and deleted; every call prepares its decoder anew."""
    ids, mask, _ = batch(base, shapes)
    suite = Suite("generate")

    def add(
        name: str, model: Any, against: Sequence[str], kept: Sequence[int] | None = None, loop: bool = False
    ) -> None:
        how: dict[str, Any] = {} if kept is None else {"hard_delete": True}
        if loop:  # a call that asks for more than tokens is left to transformers
            how["return_dict_in_generate"] = True

        def call() -> Tensor:
            if kept is not None:
                steer(model, kept, shapes.length)
            told = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                min_new_tokens=shapes.target,
                max_new_tokens=shapes.target,
                **how,
            )
            tokens: Tensor = told.sequences if loop else told
            return tokens

        suite.cases[name] = Case(call, against)

    add(EAGER, plain(base, "eager"), [])
    add(SDPA, plain(base, "sdpa"), [EAGER])
    dense, model = ours(base, "packed", deletion_type="none"), ours(base, "packed")
    add(f"dense, {LOOP}", dense, [EAGER], loop=True)
    add("dense", dense, [EAGER, SDPA, f"dense, {LOOP}"])
    lengths = {f"deleted {tag}": kept for tag, kept in shapes.deletions()}
    for name, kept in lengths.items():
        add(f"{name}, {LOOP}", model, [EAGER], kept, loop=True)
        add(name, model, ["dense", EAGER, f"{name}, {LOOP}"], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        oracle = ours(base, "eager")
        plainly = ours(base, "eager", deletion_type="none")
        for name in (f"dense, {LOOP}", "dense"):
            yield name, greedy_parity(plainly, ids, mask, suite.cases[name].call())
        for name, kept in lengths.items():
            steer(oracle, kept, shapes.length)
            yield name, greedy_parity(oracle, ids, mask, suite.cases[name].call(), hard_delete=True)

    suite.checks = checks
    return suite


def greedy_parity(oracle: Any, ids: Tensor, mask: Tensor, tokens: Tensor, **how: Any) -> Parity:
    """How far below the oracle's best token the chosen ones lie, in logits, given the same tokens before.

    Not whether the oracle generates the same: at a near tie it may go another way, and never come back.
    """
    with torch.inference_mode():
        given = {"attention_mask": mask, "decoder_input_ids": tokens[:, :-1], "use_cache": False, **how}
        logits = oracle(ids, **given).logits
    logits = logits.clone()
    logits[..., oracle.config.eos_token_id] = -torch.inf  # generation was told not to end
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    size = float(logits[logits.isfinite()].abs().max())
    short = float((logits.amax(dim=-1) - chosen).max())
    return Parity(short, size, 2 * LOGIT_TOLERANCE * max(1.0, size / 5))
