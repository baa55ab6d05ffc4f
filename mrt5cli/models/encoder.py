"""The encoder: T5's, with a shortener between two of its blocks.

Legend: B batch, L input bytes, S encoder output positions, D model width, N heads.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from dataclasses import replace
from typing import Unpack, cast

import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.deletion import last_position
from mrt5cli.models.fast.packed_rows import fast_layout
from mrt5cli.models.layout import Layout
from mrt5cli.models.outputs import MrT5EncoderOutput
from mrt5cli.models.score_loss import ScorePenalty
from mrt5cli.models.shorteners import SHORTENERS, Sequences, Shortener, Shortening
from mrt5cli.models.shorteners.base import norm_in_float32, refuse_threshold
from mrt5cli.models.shorteners.gate import with_visible_fillers
from mrt5cli.models.stack import MrT5Stack, self_attention


class MrT5Encoder(MrT5Stack):
    """T5's encoder with a shortener before one block."""

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        if config.deletion_type in SHORTENERS:
            shortener = SHORTENERS[config.deletion_type](config)
            block = self.block[config.delete_gate_layer]
            block.add_module(shortener.name, shortener)
            if shortener.normalises:
                block.down_ln = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
            self.post_init()

    @property
    def shortener(self) -> Shortener | None:
        """The module that shortens the sequence, or None."""
        kind = SHORTENERS.get(self.config.deletion_type)
        if kind is None:
            return None
        # Looked up by name: PEFT replaces it with a wrapper of two copies, and selects the trained one.
        return cast(Shortener, getattr(self.block[self.config.delete_gate_layer], kind.name))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hard_delete: bool | None = None,
        deletion_threshold: float | None = None,
        segment_ends: Tensor | None = None,
        score_penalty: ScorePenalty | None = None,
        keep_packed: bool = False,
        real_bytes: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MrT5EncoderOutput:
        """Encode and shorten; the other arguments are those of the complete model.

        Args:
            input_ids: (B, L), 0 is padding; or `inputs_embeds` (B, L, D), whose padding is known from the
                mask alone.
            score_penalty: collects the score loss from the gated block on.
            keep_packed: also return the states without padding, if they were computed that way.
        """
        source = self._source(input_ids, attention_mask, inputs_embeds, segment_ends)
        source, shortening = self._begin(source, real_bytes)
        shortener, length = self.shortener, source.padding.shape[1]
        if shortener is None:
            refuse_threshold(deletion_threshold, f"a model with deletion_type {self.config.deletion_type!r}")
        if score_penalty is not None:
            score_penalty.count_in(source.mask)
        layout = Layout()
        if not self.config.watches_layers(kwargs):
            known = shortening.mask_count
            layout = fast_layout(self.config, source, score_penalty, known, training=self.training)
        states = layout.lay_out(source.states)
        position_bias = mask = rows = penalty = None
        for index, block in enumerate(self.block):
            shortened = False
            if shortener is not None and index == self.config.delete_gate_layer:
                source = replace(source, states=layout.restore(states))
                hard = self.config.deletes_hard(hard_delete, training=self.training)
                shortening = self._shorten(source, shortener, score_penalty, hard, deletion_threshold)
                layout = layout.after(shortening)
                states, shortened, penalty = layout.lay_out(shortening.states), True, score_penalty
                if rows is not None or shortening.positions is not None:
                    position_bias = None
            if position_bias is None or self.config.relative_bias_per_layer:
                own = block if self.config.relative_bias_per_layer else self.block[0]
                position_bias, rows = layout.bias(self_attention(own), length, shortening)
            if index == 0 or shortened:
                mask = layout.mask(shortening) if rows is None else None
            options = {"rows": rows, "key_gate": shortening.key_gate, "score_penalty": penalty}
            states, _, _ = block(states, mask, position_bias, **options, **kwargs)
        states = self.dropout(self.final_layer_norm(states))
        return MrT5EncoderOutput(
            last_hidden_state=layout.restore(states),
            attention_mask=shortening.mask,
            key_gate=shortening.key_gate,
            packed=(states, rows) if keep_packed and rows is not None else None,
            **shortening.deletion(),
        )

    def _source(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        segment_ends: Tensor | None,
    ) -> Sequences:
        """Embed the input. Ids reveal padding even without a mask; a mask may also hide real bytes."""
        states = self._embed(input_ids, inputs_embeds)
        if input_ids is not None:
            padding = input_ids.eq(self.config.pad_token_id)  # type: ignore[arg-type]
        elif attention_mask is not None:
            padding = attention_mask == 0
        else:
            padding = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
        return Sequences(states, attention_mask, padding, input_ids, segment_ends=segment_ends)

    def _begin(self, source: Sequences, real_bytes: int | None) -> tuple[Sequences, Shortening]:
        """The source, or a lone EOS in its place, and a `Shortening` that has not removed anything yet."""
        keep_mask = None
        if self.config.deletion_type == "source_removed":
            keep_mask = last_position(~source.padding)
            real_bytes, eos = len(keep_mask), self.config.eos_token_id
            ids = torch.full((real_bytes, 1), eos, device=keep_mask.device)  # type: ignore[arg-type]
            source = self._source(ids, None, None, None)
        source = replace(source, states=self.dropout(source.states))
        nothing = Shortening(source.states, source.mask, None, mask_count=real_bytes)
        return source, replace(nothing, kept_lengths=(~source.padding).sum(dim=1), keep_mask=keep_mask)

    def _shorten(
        self,
        source: Sequences,
        shortener: Shortener,
        score_penalty: ScorePenalty | None,
        hard: bool,
        threshold: float | None,
    ) -> Shortening:
        """Run the shortener, and adjust its result to the score loss and the configured positions."""
        if shortener.normalises:
            norm = cast(T5LayerNorm, self.block[self.config.delete_gate_layer].down_ln)
            source = replace(source, normed=norm_in_float32(norm, source.states))
        shortening: Shortening = shortener(source, hard=hard, threshold=threshold)
        if score_penalty is not None:
            if score_penalty.per == "batch":
                shortening = with_visible_fillers(shortening, source)
            score_penalty.count_in(shortening.mask)
        compacted = self.config.delete_gate_layer == 0 and self.config.hard_delete_positions == "compacted"
        if shortening.positions is not None and compacted:
            # Survivors count as neighbors, as in the reference with its gate at layer 0.
            slots = torch.arange(shortening.positions.shape[1], device=shortening.positions.device)
            shortening = replace(shortening, positions=slots.expand_as(shortening.positions))
        return shortening
