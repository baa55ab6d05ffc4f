"""Outputs of the encoder and of the model: one type each, for every kind of shortener.

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
    """Encoder states, and what the decoder, the losses and the analyses read about them.

    Attributes:
        attention_mask: (B, S), 1 at positions of `last_hidden_state` that contain input; None if all do.
        key_gate: (B, S) soft gate values for cross-attention, or None.
        packed: the same states without padding, (1, n, D), and where each row lies in them, for a decoder
            that is called immediately; or None.
    """

    attention_mask: Tensor | None = None
    key_gate: Tensor | None = None
    packed: tuple[Tensor, Rows] | None = None

    @classmethod
    def of(cls, encoded: Any, attention_mask: Tensor | None) -> MrT5EncoderOutput:
        """This output, or one made from a tuple or another output whose first item is the states.

        Raises:
            ValueError: states and mask have different lengths.
        """
        if isinstance(encoded, cls):
            return encoded
        if attention_mask is not None and attention_mask.shape[1] != encoded[0].shape[1]:
            raise ValueError(
                f"encoder_outputs has {encoded[0].shape[1]} positions and attention_mask "
                f"{attention_mask.shape[1]}; after hard deletion, pass the encoder's output unchanged, "
                "because it contains its own mask"
            )
        return cls(last_hidden_state=encoded[0], attention_mask=attention_mask)

    def mean_pooled(self) -> Tensor:
        """(B, D), the mean of each row's states over the bytes that survive: a vector of the text.

        Soft deletion counts the bytes that hard deletion would keep. Padding is excluded by the mask that
        the encoder was called with.
        """
        states = self.last_hidden_state
        assert states is not None  # set by every encoder
        stays = states.new_ones(states.shape[:2]) if self.attention_mask is None else self.attention_mask
        if self.key_gate is not None and self.keep_mask is not None:
            stays = stays * self.keep_mask
        weights = stays.float()[..., None]
        mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return mean.to(states.dtype)

    def for_decoder(self) -> dict[str, Tensor | Rows | None]:
        """Keyword arguments of the decoder."""
        states, rows = self.packed or (self.last_hidden_state, None)
        mask = self.attention_mask
        if rows is not None or (mask is not None and hides_nothing(mask)):
            mask = None  # otherwise every layer adds a tensor of zeros
        source = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        return {**source, "encoder_key_gate": self.key_gate, "encoder_rows": rows}

    def for_output(self) -> dict[str, Any]:
        """The fields of `MrT5Output` that come from the encoder."""
        mask, states = self.attention_mask, self.last_hidden_state
        assert states is not None  # set by every encoder
        return {
            "encoder_last_hidden_state": states,
            "encoder_hidden_states": self.hidden_states,
            "encoder_attentions": self.attentions,
            "encoder_attention_mask": states.new_ones(states.shape[:2]).long() if mask is None else mask,
            **self.deletion(),
        }


@dataclass
class MrT5Output(Deletion, Seq2SeqLMOutput):
    """The output of every model.

    Attributes:
        loss: the training loss, see `MrT5ForConditionalGeneration.forward`; in eval mode the cross-entropy.
        cross_entropy: mean over labels other than -100, in nats.
        logits: (B, T, V).
        encoder_last_hidden_state: (B, S, D).
        encoder_attention_mask: (B, S), 1 at positions that contain input.
        score_loss: scalar, with `output_score_loss`.
        score_loss_parts: (2,), its contributions from the encoder and from cross-attention.
    """

    encoder_attention_mask: Tensor | None = None
    cross_entropy: Tensor | None = None
    score_loss: Tensor | None = None
    score_loss_parts: Tensor | None = None
