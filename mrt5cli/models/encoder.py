"""The encoder: T5's, with a shortener between two of its blocks.

Legend: B batch, L input bytes, S encoder output positions, D model width, N heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mrt5cli.models.attention import ScorePenalty
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.encoder_rows import pack_input, pack_survivors, rows_of
from mrt5cli.models.outputs import MrT5EncoderOutput, PackedStates
from mrt5cli.models.packing import distance_bias, hides_nothing, last_position
from mrt5cli.models.shorteners import (
    SHORTENERS,
    Sequences,
    Shortener,
    Shortening,
    norm_in_float32,
    refuse_threshold,
    with_fillers_in_sight,
)
from mrt5cli.models.stack import MrT5Stack, asked


class MrT5Encoder(MrT5Stack):
    """T5's encoder with the shortener."""

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
        """What shortens the sequence, wherever it sits."""
        return next((module for module in self.modules() if isinstance(module, Shortener)), None)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hard_delete: bool = False,
        deletion_threshold: float | None = None,
        segment_ends: Tensor | None = None,
        score_penalty: ScorePenalty | None = None,
        keep_packed: bool = False,
        real_bytes: int | None = None,
        **kwargs: Any,
    ) -> MrT5EncoderOutput:
        """Encode.

        Args:
            input_ids: (B, L), 0 is padding; or `inputs_embeds` (B, L, D), where the mask alone tells padding.
            attention_mask: (B, L); None means every position is attended to, padding too.
            hard_delete: remove the bytes under the threshold instead of gating them.
            deletion_threshold: replaces the configured one; soft gating has no threshold and ignores it.
            segment_ends: (B, L) bool, true at the last byte of each segment; what boundary predictors of
                type "entropy" and "unigram" learn from.
            score_penalty: collects the score loss from the gated block on.
            keep_packed: also return the states without their padding, if they were computed so.
            real_bytes: how many positions of the whole batch are no padding, from a caller who knows that the
                mask hides just the padding; then a GPU is not asked for it.
        """
        states = self._embed(input_ids, inputs_embeds)
        padding = self._padding(input_ids, attention_mask, states)
        keep_mask = None
        if self.config.deletion_type == "source_removed":
            # One EOS is all the encoder sees; it stands where the source ends.
            keep_mask = last_position(~padding)
            input_ids = padding.new_full((len(states), 1), self.config.eos_token_id, dtype=torch.long)
            states, attention_mask = self._embed(input_ids, None), None
            padding, real_bytes = torch.zeros_like(input_ids, dtype=torch.bool), len(input_ids)
        states = self.dropout(states)
        shortener = self.shortener
        if shortener is None:
            refuse_threshold(deletion_threshold, f"a model with deletion_type {self.config.deletion_type!r}")
        gate_layer = self.config.delete_gate_layer if shortener is not None else None
        shortening = Shortening(
            states, attention_mask, None, kept_lengths=(~padding).sum(dim=1), keep_mask=keep_mask
        )
        if score_penalty is not None:
            score_penalty.look_at(attention_mask)
        need_weights = asked("output_attentions", self.config, kwargs)
        packing = pack_input(self, attention_mask, padding, score_penalty, real_bytes, kwargs)
        packs = packing is not None
        if packs and not packing.saves:
            packing = None
        if packing is not None:
            states = packing.pack(states)
        bias, rows = None, None

        for index, block in enumerate(self.block):
            if index == gate_layer:
                if packing is not None:
                    states = packing.unpack(states)
                given = Sequences(
                    states,
                    attention_mask,
                    padding,
                    input_ids,
                    normed=norm_in_float32(block.down_ln, states) if shortener.normalises else None,
                    segment_ends=segment_ends,
                )
                shortening = shortener(given, hard=hard_delete, threshold=deletion_threshold)
                if score_penalty is not None:
                    if score_penalty.per == "batch":
                        shortening = with_fillers_in_sight(shortening, given)
                    score_penalty.look_at(shortening.mask)
                states, bias = shortening.states, None
                if packs and shortening.positions is not None:
                    packing = pack_survivors(self, shortening, score_penalty)
                if packing is not None:
                    states = packing.pack(states)
            if bias is None or self.config.relative_bias_per_layer:
                if packing is None:
                    bias, rows = self._bias(block, shortening, padding.shape[1]), None
                else:
                    # Blocks hand a bias on; what counts in a packed batch is in its rows.
                    bias = states.new_zeros(1)
                    rows = rows_of(self, block, shortening, packing, padding.shape[1])
            after_gate = gate_layer is not None and index >= gate_layer
            states, _, _ = block(
                states,
                None,
                bias,
                key_gate=shortening.key_gate,
                score_penalty=score_penalty if after_gate else None,
                rows=rows,
                need_weights=need_weights,
                **kwargs,
            )

        states = self.dropout(self.final_layer_norm(states))
        packed = None
        if packing is not None:
            packed = PackedStates(states, rows.as_source()) if keep_packed else None
            states = packing.unpack(states)
        return MrT5EncoderOutput(
            last_hidden_state=states,
            attention_mask=shortening.mask,
            key_gate=shortening.key_gate,
            delete_gate_output=shortening.gate_values,
            delete_gate_logits=shortening.gate_logits,
            keep_mask=shortening.keep_mask,
            kept_lengths=shortening.kept_lengths,
            boundary_logits=shortening.boundary_logits,
            auxiliary_loss=shortening.auxiliary_loss,
            packed=packed,
        )

    def _padding(self, input_ids: Tensor | None, attention_mask: Tensor | None, states: Tensor) -> Tensor:
        """(B, L) bool. Ids tell padding even where no mask is passed; a mask may also hide real bytes."""
        if input_ids is not None:
            return input_ids.eq(self.config.pad_token_id)
        if attention_mask is not None:
            return attention_mask == 0
        return torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)

    def bias_by_distance(self, block: nn.Module, length: int) -> Tensor | None:
        """(N, 2 L - 1), the bias of every signed distance in a block; None with learned positions."""
        if not self.config.relative_bias_per_layer:
            block = self.block[0]
        attention = block.layer[0].SelfAttention
        if not attention.has_relative_attention_bias:
            return None
        distance = torch.arange(-(length - 1), length, device=attention.relative_attention_bias.weight.device)
        bucket = attention._relative_position_bucket(
            distance,
            bidirectional=True,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return attention.relative_attention_bias(bucket).t()

    def _bias(self, block: nn.Module, shortening: Shortening, length: int) -> Tensor:
        """Position bias and mask as one additive tensor, broadcasting to (B, N, S, S)."""
        states, positions = shortening.states, shortening.positions
        by_distance = self.bias_by_distance(block, length)
        if by_distance is None:
            bias = states.new_zeros(1, 1, 1, 1)
        elif positions is not None and self.positions_start_afresh:
            # The reference at gate layer 0: survivors count as neighbours, whatever stood between them.
            middle, kept = length - 1, positions.shape[1]
            bias = distance_bias(by_distance[:, middle - kept + 1 : middle + kept], None, kept)
        else:
            bias = distance_bias(by_distance, positions, length)
        mask = shortening.mask if shortening.self_mask is None else shortening.self_mask
        if mask is not None and not hides_nothing(mask):
            hidden = mask[:, None, None, :] == 0
            bias = bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
        return bias

    @property
    def positions_start_afresh(self) -> bool:
        """Whether what is left counts as neighbours, as in the reference with its gate at layer 0."""
        return self.config.delete_gate_layer == 0 and self.config.hard_delete_positions == "compacted"
