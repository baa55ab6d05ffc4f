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
from mrt5cli.models import MrT5ForConditionalGeneration


def generate(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """transformers' models and ours, dense and deleted."""
    ids, mask, _ = batch(base, shapes)
    suite = Suite("generate")

    def add(name: str, model: Any, against: Sequence[str], kept: Sequence[int] | None = None) -> None:
        how = {} if kept is None else {"hard_delete": True}

        def call() -> Tensor:
            if kept is not None:
                steer(model, kept, shapes.length)
            tokens: Tensor = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                min_new_tokens=shapes.target,
                max_new_tokens=shapes.target,
                **how,
            )
            return tokens

        suite.cases[name] = Case(call, against)

    add(EAGER, plain(base, "eager"), [])
    add(SDPA, plain(base, "sdpa"), [EAGER])
    add("dense", ours(base, "packed", deletion_type="none"), [EAGER, SDPA])
    model = ours(base, "packed")
    lengths = {f"deleted {tag}": kept for tag, kept in shapes.deletions()}
    for name, kept in lengths.items():
        add(name, model, ["dense", EAGER], kept)

    def checks() -> Iterator[tuple[str, Parity]]:
        plainly = ours(base, "eager", deletion_type="none")
        yield "dense", greedy_parity(plainly, ids, mask, suite.cases["dense"].call())
        oracle = ours(base, "eager")
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
    logits[..., oracle.config.eos_token_id] = -torch.inf  # no answer may end before its last token
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    size = float(logits[logits.isfinite()].abs().max())
    short = float((logits.amax(dim=-1) - chosen).max())
    return Parity(short, size, 2 * LOGIT_TOLERANCE * max(1.0, size / 5))
