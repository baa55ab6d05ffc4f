"""Multiply-accumulates of a forward pass: the paper's formula, and what the matrices really cost.

The paper's takes the attention's inner width for d_model and two feed-forward matrices; ByT5 has an inner
width of 384 beside a d_model of 1472, and three. Its savings are reproduced with its own formula, ours are
counted with the exact one. Neither counts norms, softmax or biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The sizes that a count depends on; the defaults are ByT5-small's.

    Attributes:
        inner: attention heads times their width.
        gate_layer: encoder blocks at full length.
    """

    d_model: int = 1472
    d_ff: int = 3584
    inner: int = 384
    encoder_layers: int = 12
    decoder_layers: int = 4
    gate_layer: int = 3
    vocabulary: int = 384
    gated: bool = True

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """The sizes of a model's configuration."""
        return cls(
            d_model=config.d_model,
            d_ff=config.d_ff,
            inner=config.num_heads * config.d_kv,
            encoder_layers=config.num_layers,
            decoder_layers=config.num_decoder_layers,
            gate_layer=config.delete_gate_layer,
            vocabulary=config.vocab_size,
            gated=config.is_gated_act,
        )


def paper_layer_macs(length: int, d_model: int, d_ff: int) -> int:
    """One layer of `length` positions by the paper's formula (section on compute savings)."""
    return 4 * length * d_model**2 + 2 * length**2 * d_model + 2 * length * d_model * d_ff


def paper_macs(sizes: Sizes, source: int, target: int, kept: float) -> int:
    """A forward pass by the paper's formula, in which a share `kept` of the source remains after the gate."""
    width, remaining = sizes.d_model, int(source * kept)

    def layer(length: int) -> int:
        return paper_layer_macs(length, width, sizes.d_ff)

    encoder = sizes.gate_layer * layer(source) + (sizes.encoder_layers - sizes.gate_layer) * layer(remaining)
    cross = 2 * remaining * width**2 + 2 * target * width**2 + 2 * remaining * target * width
    return encoder + sizes.decoder_layers * (layer(target) + cross)


def macs(sizes: Sizes, source: Sequence[int], kept: Sequence[int], target: Sequence[int]) -> int:
    """A forward pass of a batch without padding, as the matrices multiply.

    Args:
        sizes: of the model.
        source: input positions of each row.
        kept: positions of each row from the gate on.
        target: decoder positions of each row; its self-attention is counted without the causal saving.
    """
    width, inner = sizes.d_model, sizes.inner
    feed_forward = (3 if sizes.gated else 2) * width * sizes.d_ff

    def layer(lengths: Sequence[int]) -> int:
        positions = sum(lengths)
        attention = 2 * inner * sum(length**2 for length in lengths)
        return positions * (4 * width * inner + feed_forward) + attention

    pairs = sum(keys * queries for keys, queries in zip(kept, target, strict=True))
    cross = 2 * width * inner * (sum(target) + sum(kept)) + 2 * inner * pairs
    after = sizes.encoder_layers - sizes.gate_layer
    encoder = sizes.gate_layer * layer(source) + after * layer(kept)
    decoder = sizes.decoder_layers * (layer(target) + cross)
    return encoder + decoder + sum(target) * width * sizes.vocabulary
