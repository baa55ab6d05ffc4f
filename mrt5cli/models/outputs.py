"""What the encoder hands to the decoder, and what the whole model returns: one type for every variant.

Legend: B batch, L input bytes, S encoder output positions, T target bytes, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from mrt5cli.models.attention import Rows


@dataclass
class Deletion:
    """What both outputs say about the deletion.

    Attributes:
        delete_gate_output: (B, L) gate values from `scale` (delete) to 0 (keep), or None without a gate.
        delete_gate_logits: (B, L) or None.
        keep_mask: (B, L) bool, bytes that stay under hard deletion, or None where nothing shortens. Where
            bytes are pooled, the first of those that became one.
        kept_lengths: (B) int64, their number in each row.
        boundary_logits: (B, L), positive where the boundary predictor ends a segment, or None.
        auxiliary_loss: scalar a shortener adds to the training loss, or None.
    """

    delete_gate_output: Tensor | None = None
    delete_gate_logits: Tensor | None = None
    keep_mask: Tensor | None = None
    kept_lengths: Tensor | None = None
    boundary_logits: Tensor | None = None
    auxiliary_loss: Tensor | None = None

    def deletion(self) -> dict[str, Any]:
        """These fields alone."""
        return {name: getattr(self, name) for name in ABOUT_DELETION}


# Read once: torch.compile cannot look fields up.
ABOUT_DELETION = tuple(field.name for field in fields(Deletion))


@dataclass
class MrT5EncoderOutput(Deletion, BaseModelOutput):
    """Encoder states and what the decoder, the losses and the analysis need to know about them.

    Attributes:
        attention_mask: (B, S), 1 where `last_hidden_state` holds something, or None when all of it does.
        key_gate: (B, S) soft gate values for cross-attention, or None.
        packed: the states of `last_hidden_state` laid end to end without its padding, (1, n, D), and where
            each row lies in them, for a decoder that is called at once; or None.
    """

    attention_mask: Tensor | None = None
    key_gate: Tensor | None = None
    packed: tuple[Tensor, Rows] | None = None


@dataclass
class MrT5Output(Deletion, Seq2SeqLMOutput):
    """The output of every variant.

    Attributes:
        loss: mean cross-entropy in nats over labels other than -100.
        logits: (B, T, V).
        encoder_last_hidden_state: (B, S, D).
        encoder_attention_mask: (B, S), 1 where it holds something.
        score_loss: scalar, when `output_score_loss` asks for it.
        score_loss_parts: (2,), what of it comes from the encoder and what from cross-attention.
    """

    encoder_attention_mask: Tensor | None = None
    score_loss: Tensor | None = None
    score_loss_parts: Tensor | None = None
