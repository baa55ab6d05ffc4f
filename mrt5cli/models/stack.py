"""The base of encoder and decoder, T5's stack with optional learned positions, and the decoder.

Legend: B batch, T target bytes, D model width.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.t5.modeling_t5 import T5Attention, T5PreTrainedModel, T5Stack

from mrt5cli.models.attention import DEFAULT, IMPLEMENTATIONS, Rows
from mrt5cli.models.cache_name import CACHE
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.decoder_step import is_step, step
from mrt5cli.models.fast.kernels.device_layout import DeviceRows, causal_rows
from mrt5cli.models.shorteners import Shortener


class LearnedPositions(nn.Embedding):
    """One learned vector per position, the alternative to T5's relative bias."""


class MrT5PreTrainedModel(T5PreTrainedModel):
    """Base of encoder, decoder and model: initialization and the choice of attention."""

    config: MrT5Config
    config_class = MrT5Config
    base_model_prefix = "model"
    _supports_flex_attn = False

    def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """PyTorch's `to`, whose signature transformers hides."""
        return super().to(*args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers initializes "custom" models with a generic rule, which would give attention and
        # feed-forward weights a standard deviation of 1.
        return False

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *_: object, **__: object
    ) -> str:
        name = attn_implementation or DEFAULT
        if name not in (*IMPLEMENTATIONS, *IMPLEMENTATIONS.values()):
            raise ValueError(
                f"attn_implementation {name!r} is not one of {', '.join(IMPLEMENTATIONS)}; other kernels do "
                "not support T5's bias, the delete gate and softmax1"
            )
        return IMPLEMENTATIONS.get(name, name)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Shortener):
            module.initialise(self.config)
        elif isinstance(module, LearnedPositions):
            init.normal_(module.weight, mean=0.0, std=float(self.config.initializer_factor))


class MrT5Stack(MrT5PreTrainedModel, T5Stack):
    """T5's stack with optional learned positions; base of our encoder and our decoder."""

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.absolute_pos_embed: LearnedPositions | None = None
        if config.has_absolute_position_embeddings:
            self.absolute_pos_embed = LearnedPositions(config.max_position_embeddings, config.d_model)
            first = self_attention(self.block[0])
            del first.relative_attention_bias
            first.has_relative_attention_bias = False
        if config.relative_bias_per_layer:
            for block in self.block:
                _own_relative_bias(self_attention(block))
        for name, attention in self.named_modules():
            if isinstance(attention, T5Attention):
                attention.is_cross_attention = name.endswith("EncDecAttention")
                if config.attention_dropout_rate is not None:
                    attention.dropout = config.attention_dropout_rate
        self.post_init()

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, past: int = 0) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        device = inputs_embeds.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if torch.float16 in (inputs_embeds.dtype, autocast):
            raise ValueError(
                "T5's activations overflow in float16, so outputs would be meaningless; use torch.bfloat16, "
                "which has the range, or torch.float32"
            )
        if self.absolute_pos_embed is not None and self.config.learned_positions == "added":
            length = inputs_embeds.shape[1]
            if past + length > self.absolute_pos_embed.num_embeddings:
                raise ValueError(
                    f"{past + length} positions are more than the {self.absolute_pos_embed.num_embeddings} "
                    "that this model learned (max_position_embeddings)"
                )
            positions = torch.arange(past, past + length, device=inputs_embeds.device)
            inputs_embeds = inputs_embeds + self.absolute_pos_embed(positions)
        return inputs_embeds


def self_attention(block: nn.Module) -> T5Attention:
    """The self-attention of a block."""
    return cast(T5Attention, block.get_submodule("layer.0.SelfAttention"))


def _own_relative_bias(attention: T5Attention) -> None:
    """Give a self-attention its own relative bias, which it uses instead of the first block's."""
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = nn.Embedding(
        attention.relative_attention_num_buckets, attention.n_heads
    )
    if attention.is_decoder:  # our encoder passes each block its own bias

        def forget_bias(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs if kwargs.get("rows") is not None else kwargs | {"position_bias": None}

        attention.register_forward_pre_hook(forget_bias, with_kwargs=True)


class MrT5Decoder(MrT5Stack):
    """T5's decoder; learned positions of cached steps continue from the cache's length."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        cache = past_key_values if cache is None else cache
        past = cache.get_seq_length() if cache is not None else 0
        states = self._embed(input_ids, inputs_embeds, past)
        if not self.config.watches_layers(kwargs):
            if is_step(self, states, cache, **kwargs):
                return step(self, states, cache, **kwargs)
            if self._is_packed_pass(cache, **kwargs):
                return self._packed_pass(states, **kwargs)
        return super().forward(inputs_embeds=states, **{CACHE: cache}, **kwargs)

    def _is_packed_pass(
        self,
        cache: Cache | None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_rows: Rows | None = None,
        **_: object,
    ) -> bool:
        """Whether `_packed_pass` applies: complete targets, causal attention alone, a source in our kernels.

        A mask that hides nothing but padding at the end would work too, but checking that waits for the GPU.
        """
        wants_cache = self.config.wants("use_cache", {"use_cache": use_cache})
        alone = cache is None and not wants_cache and attention_mask is None
        return alone and isinstance(encoder_rows, DeviceRows)

    def _packed_pass(
        self,
        states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: None = None,
        attention_mask: None = None,
        use_cache: bool | None = None,
        **options: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """`T5Stack.forward` on (B, T, D), with our kernels for the targets too.

        It avoids the mask (B, 1, T, T), the bias (1, N, T, T) and, for packed sources of S positions, the
        zeros (1, N, T, S) that transformers prepares.
        """
        nothing, rows = states.new_zeros(1), None
        states = self.dropout(states)
        for block in self.block:
            if rows is None or self.config.relative_bias_per_layer:
                rows = causal_rows(self_attention(block), states)
            # Positional arguments of a block: masks and biases are empty, because the rows contain them.
            inputs = states, None, nothing, encoder_hidden_states, None, nothing
            states, _, _ = block(*inputs, rows=rows, **options)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(self.final_layer_norm(states))
        )
