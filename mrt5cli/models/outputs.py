"""What the encoder hands to the decoder, and what the whole model returns: one type for every variant.

Legend: B batch, L input bytes, S encoder output positions, T target bytes, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from mrt5cli.models.attention import Rows
from mrt5cli.models.deletion import hides_nothing
from mrt5cli.models.shorteners.base import Deletion


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

    @classmethod
    def of(cls, encoded: Any, attention_mask: Tensor | None) -> MrT5EncoderOutput:
        """What a caller has of an encoder: this, or its states first among other things, with their mask."""
        if isinstance(encoded, cls):
            return encoded
        if attention_mask is not None and attention_mask.shape[1] != encoded[0].shape[1]:
            raise ValueError(
                f"encoder_outputs hold {encoded[0].shape[1]} positions and attention_mask "
                f"{attention_mask.shape[1]}: after hard deletion, pass what the encoder returned as it is, "
                "because its mask comes with it"
            )
        return cls(last_hidden_state=encoded[0], attention_mask=attention_mask)

    def mean_pooled(self) -> Tensor:
        """(B, D), the mean of each row's states over the bytes that stay: a vector of the text.

        After soft deletion, too, these are the bytes that a hard one would leave; padding is hidden by the
        mask that the encoder was given.
        """
        states = self.last_hidden_state
        assert states is not None  # an encoder's
        stays = states.new_ones(states.shape[:2]) if self.attention_mask is None else self.attention_mask
        if self.key_gate is not None and self.keep_mask is not None:
            stays = stays * self.keep_mask
        weights = stays.float()[..., None]
        mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return mean.to(states.dtype)

    def for_decoder(self) -> dict[str, Tensor | Rows | None]:
        """What the decoder and its cross-attention are called with."""
        states, rows = self.packed or (self.last_hidden_state, None)
        mask = self.attention_mask
        if rows is not None or (mask is not None and hides_nothing(mask)):
            mask = None  # else every layer adds a tensor of zeros
        source = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        return {**source, "encoder_key_gate": self.key_gate, "encoder_rows": rows}

    def for_output(self) -> dict[str, Any]:
        """The fields of `MrT5Output` that are the encoder's."""
        mask, states = self.attention_mask, self.last_hidden_state
        assert states is not None  # an encoder's
        return {
            "encoder_last_hidden_state": states,
            "encoder_hidden_states": self.hidden_states,
            "encoder_attentions": self.attentions,
            "encoder_attention_mask": states.new_ones(states.shape[:2]).long() if mask is None else mask,
            **self.deletion(),
        }


@dataclass
class MrT5Output(Deletion, Seq2SeqLMOutput):
    """The output of every variant.

    Attributes:
        loss: what to minimise, see `MrT5ForConditionalGeneration.forward`; in eval mode the cross-entropy.
        cross_entropy: mean in nats over labels other than -100.
        logits: (B, T, V).
        encoder_last_hidden_state: (B, S, D).
        encoder_attention_mask: (B, S), 1 where it holds something.
        score_loss: scalar, with `output_score_loss`.
        score_loss_parts: (2,), what of it comes from the encoder and what from cross-attention.
    """

    encoder_attention_mask: Tensor | None = None
    cross_entropy: Tensor | None = None
    score_loss: Tensor | None = None
    score_loss_parts: Tensor | None = None
