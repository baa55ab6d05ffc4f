"""What the encoder hands to the decoder, and what the whole model returns: one type for every variant.

Legend: B batch, L input bytes, S encoder output positions, T target bytes, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from mrt5cli.models.attention import Rows
from mrt5cli.models.shorteners.base import Shortening


@dataclass
class PackedStates:
    """Encoder states of a batch laid end to end.

    Attributes:
        states: (1, n, D).
        rows: where each row lies in them.
    """

    states: Tensor
    rows: Rows


@dataclass
class MrT5EncoderOutput(BaseModelOutput):
    """Encoder states and what the decoder, the losses and the analysis need to know about them.

    Attributes:
        attention_mask: (B, S), 1 where `last_hidden_state` holds something, or None when all of it does.
        key_gate: (B, S) soft gate values for cross-attention, or None.
        delete_gate_output, delete_gate_logits, keep_mask, boundary_logits: (B, L) or None.
        kept_lengths: (B) int64.
        auxiliary_loss: scalar or None.
        packed: the states of `last_hidden_state` without its padding, for a decoder that is called at once,
            or None.
    """

    attention_mask: Tensor | None = None
    key_gate: Tensor | None = None
    delete_gate_output: Tensor | None = None
    delete_gate_logits: Tensor | None = None
    keep_mask: Tensor | None = None
    kept_lengths: Tensor | None = None
    boundary_logits: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    packed: PackedStates | None = None

    @classmethod
    def of(cls, shortening: Shortening, states: Tensor, packed: PackedStates | None) -> MrT5EncoderOutput:
        """The last states (B, S, D), with what is known of the shortening before them."""
        return cls(
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


@dataclass
class MrT5Output(Seq2SeqLMOutput):
    """The output of every variant.

    Attributes:
        loss: mean cross-entropy in nats over labels other than -100.
        logits: (B, T, V).
        encoder_last_hidden_state: (B, S, D).
        encoder_attention_mask: (B, S), 1 where it holds something.
        delete_gate_output: (B, L) gate values from `scale` (delete) to 0 (keep), or None without a gate.
        delete_gate_logits: (B, L) or None.
        keep_mask: (B, L) bool, bytes that stay under hard deletion, or None where nothing shortens. Where
            bytes are pooled, the first of those that became one.
        kept_lengths: (B) int64, their number in each row.
        score_loss: scalar, when `output_score_loss` asks for it.
        score_loss_parts: (2,), what of it comes from the encoder and what from cross-attention.
        boundary_logits: (B, L), positive where the boundary predictor ends a segment, or None.
        auxiliary_loss: scalar a shortener adds to the training loss, or None.
    """

    encoder_attention_mask: Tensor | None = None
    delete_gate_output: Tensor | None = None
    delete_gate_logits: Tensor | None = None
    keep_mask: Tensor | None = None
    kept_lengths: Tensor | None = None
    boundary_logits: Tensor | None = None
    score_loss: Tensor | None = None
    score_loss_parts: Tensor | None = None
    auxiliary_loss: Tensor | None = None
