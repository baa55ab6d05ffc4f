"""Every model of the paper as a tiny one, awake: shorteners that really shorten, by about half."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from mrt5cli.byte_tokens import EOS, OFFSET
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.shorteners import SHORTENERS, Gate
from mrt5cli.recipe.shorteners import of_type

SIZES = {"d_model": 16, "d_ff": 24, "d_kv": 6, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 2}

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"deletion_type": "none"},
    "mrt5": {"deletion_type": "scaled_sigmoid"},
    "log_sigmoid": {"deletion_type": "log_sigmoid"},
    "random": {"deletion_type": "random", "random_deletion_probability": 0.4},
    "fixed": {"deletion_type": "fixed", "fixed_deletion_amount": 0.4},
    "bp_gumbel": {"deletion_type": "boundary_predictor"},
    "bp_entropy": {"deletion_type": "boundary_predictor", "boundary_predictor_type": "entropy"},
    "bp_unigram": {"deletion_type": "boundary_predictor", "boundary_predictor_type": "unigram"},
    "cp_2": {"deletion_type": "convolution", "downsampling_rate": 2},
    "cp_3": {"deletion_type": "convolution", "downsampling_rate": 3},
    "cp_4": {"deletion_type": "convolution", "downsampling_rate": 4},
    "source_removed": {"deletion_type": "source_removed"},
}
"""By the names of the paper's tables; below them what else is registered, by its deletion type."""
VARIANTS |= {
    name: {"deletion_type": name}
    for name in SHORTENERS
    if name not in {fields["deletion_type"] for fields in VARIANTS.values()}
}

KINDS = {
    name: VARIANTS[name] for name in VARIANTS if name not in ("bp_entropy", "bp_unigram", "cp_2", "cp_4")
}
"""One of each that computes something of its own once it is trained."""

GATES = tuple(
    name
    for name, fields in VARIANTS.items()
    if issubclass(SHORTENERS.get(fields["deletion_type"], object), Gate)
)
LEARNED_GATES = tuple(
    name for name in GATES if of_type(VARIANTS[name]["deletion_type"]).refuses_threshold is None
)
TAUGHT = ("bp_entropy", "bp_unigram")


def tiny(variant: str, *, seed: int = 0, awake: bool = True, **fields: Any) -> MrT5ForConditionalGeneration:
    """A model in eval mode whose shortener, if it learns, parts positions by about half."""
    torch.manual_seed(seed)
    settings = {**SIZES, "delete_gate_layer": 1, "dropout_rate": 0.0, "max_position_embeddings": 48}
    model = MrT5ForConditionalGeneration(MrT5Config(**{**settings, **VARIANTS[variant], **fields}))
    if awake:
        wake(model)
    return model.eval()


def wake(model: MrT5ForConditionalGeneration) -> None:
    """Make a shortener that learns delete, or end segments, here and there."""
    for name, parameter in model.named_parameters():
        if name.endswith("delete_gate.knots"):
            parameter.data.mul_(20)  # the quantiles of the scores, which the weights below scale
        elif "delete_gate.feed_forward" in name or "boundary_predictor.boundary_predictor.2" in name:
            if name.endswith("bias"):
                parameter.data.zero_()
            else:
                parameter.data.mul_(20)


@cache
def shared(variant: str, fields: tuple[tuple[str, Any], ...] = ()) -> MrT5ForConditionalGeneration:
    """The same model to many tests; none of them may change it."""
    return tiny(variant, **dict(fields))


def writer(variant: str, **fields: Any) -> MrT5ForConditionalGeneration:
    """A tiny model that writes small letters, and ends some answers early."""
    model = tiny(variant, seed=7, **fields)
    silent = torch.ones(384, dtype=torch.bool)
    silent[[EOS, *range(ord("a") + OFFSET, ord("z") + OFFSET + 1)]] = False
    model.lm_head.weight.data[silent] = 0.0
    model.lm_head.weight.data[~silent] *= 30
    model.lm_head.weight.data[EOS] *= 2
    # The source decides: without it every answer of a random model is the same.
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.o.weight.data *= 20
    return model


def batch_of(rows: list[list[int]], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) of rows of ids, right-padded with `extra` more, and their attention mask."""
    length = max(map(len, rows)) + extra
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).long()


def random_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Rows of random byte ids of these lengths, each with an EOS at its end."""
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(3, 259, (length - 1,), generator=generator).tolist(), 1] for length in lengths]


LABELS = torch.randint(3, 259, (1, 6), generator=torch.Generator().manual_seed(5))


def labels_for(ids: torch.Tensor) -> torch.Tensor:
    """(B, 6), the same targets for every row."""
    return LABELS.expand(len(ids), -1).contiguous()


def segment_ends(ids: torch.Tensor) -> torch.Tensor:
    """(B, L) bool, a segment ends at every third byte."""
    return (torch.arange(ids.shape[1]) % 3 == 2).expand(ids.shape)
