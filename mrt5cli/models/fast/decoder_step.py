"""A step of cached generation without the preparations of transformers' stack.

A small decoder spends as much time on those as in its layers: on masks that hide nothing from a single query,
and on recording outputs that were not requested.

Legend: B batch, T new target positions, S encoder output positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.t5.modeling_t5 import T5Stack

from mrt5cli.models.cache_name import CACHE
from mrt5cli.models.deletion import hiding
from mrt5cli.models.fast.switch import fast_paths_are_on


def is_step(
    decoder: T5Stack,
    states: Tensor,
    cache: Cache | None,
    attention_mask: Tensor | None = None,
    **_: object,
) -> bool:
    """Whether `step` supports a call on states (B, T, D): one new position that sees a complete cache."""
    return (
        fast_paths_are_on()
        and states.shape[1] == 1
        and attention_mask is None
        and isinstance(cache, EncoderDecoderCache)
        and type(cache.self_attention_cache) is DynamicCache
        and not decoder.training
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def step(
    decoder: T5Stack,
    states: Tensor,
    cache: Cache | None,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor | None = None,
    attention_mask: None = None,
    use_cache: bool | None = None,
    **options: object,
) -> BaseModelOutputWithPastAndCrossAttentions:
    """`T5Stack.forward` for a single query of each row.

    Args:
        states: (B, 1, D), embedded.
        cache: the previous positions; this one is added.
        encoder_hidden_states: (B, S, D).
        encoder_attention_mask: (B, S), 0 at hidden positions, or None.
        **options: options of the attention function.
    """
    mask = encoder_attention_mask
    source_bias = states.new_zeros(1, 1, 1, 1) if mask is None else hiding(mask, states.dtype)
    position_bias = None
    for block in decoder.block:
        states, position_bias, _ = block(
            states,
            position_bias=position_bias,
            encoder_hidden_states=encoder_hidden_states,
            encoder_decoder_position_bias=source_bias,
            **{CACHE: cache},
            **options,
        )
    return BaseModelOutputWithPastAndCrossAttentions(decoder.final_layer_norm(states), cache)
