"""MrT5: a T5 encoder-decoder with at most one shortener between two encoder blocks.

The complete list of differences from transformers' T5:

- before encoder block `delete_gate_layer`, a shortener (models/shorteners) may gate or remove positions;
- soft gates join the additive bias of every later encoder block and of all cross-attention;
- after hard deletion the encoder's output contains its own mask, which the decoder reads, so generation,
  beams and padded batches see the shortened source;
- position biases come from the original positions of the survivors;
- softmax1, learned absolute positions, an untied and unscaled output head.

Legend: B batch, L input bytes, S encoder output positions, T target bytes, D model width, N heads, V
    vocabulary.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from mrt5cli.byte_tokens import IGNORED_LABEL
from mrt5cli.models.cache_name import CACHE
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.deletion import hides_nothing
from mrt5cli.models.encoder import MrT5Encoder
from mrt5cli.models.fast.greedy import asked_for, decode
from mrt5cli.models.fast.parts import use_fast
from mrt5cli.models.outputs import MrT5EncoderOutput, MrT5Output
from mrt5cli.models.score_loss import ScorePenalty
from mrt5cli.models.stack import MrT5Decoder, MrT5PreTrainedModel
from mrt5cli.models.whole_loss import (
    DeletionControl,
    counted_positions,
    deletion_counts,
    regularizers,
    share_of_step,
)


class MrT5ForConditionalGeneration(MrT5PreTrainedModel, T5ForConditionalGeneration):
    """ByT5 and every model of the paper: T5 v1.1 whose encoder may delete bytes.

    Attributes:
        fresh_weights: names of the weights that its checkpoint lacked.
        deletion_control: overrides the configured coefficient of the gate loss in `loss`: a
            `DeletionRateController`, or None.
    """

    encoder: MrT5Encoder
    fresh_weights: Sequence[str] = ()
    deletion_control: DeletionControl | None = None
    # Tells trainers to pass the number of targets of an optimizer step, by which `loss` is then divided.
    accepts_loss_kwargs: ClassVar[bool] = True
    # The head is untied: only the two embeddings follow the shared one.
    _tied_weights_keys: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: MrT5Config) -> None:
        # T5's constructor would build and initialize two stacks only to discard them.
        super(T5ForConditionalGeneration, self).__init__(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        # Not a copy, so that the encoder, which `generate` calls directly, sees changes of `model.config`.
        self.encoder = MrT5Encoder(config)
        decoder_config = copy.deepcopy(config)
        decoder_config.is_decoder = True
        # The decoder has its own depth, and deletes nothing.
        decoder_config.deletion_type = "none"
        decoder_config.num_layers = config.num_decoder_layers  # type: ignore[assignment]
        self.decoder = MrT5Decoder(decoder_config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        use_fast(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # Mesh TensorFlow's untied T5 v1.1 head, for logits of unit scale; transformers would use std 1.
            init.normal_(self.lm_head.weight, mean=0.0, std=self.config.d_model**-0.5)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], *rest: Any, **how: Any
    ) -> None:
        """As transformers', but also for encoder and decoder, which 5.17 skips."""
        super().set_attn_implementation(attn_implementation, *rest, **how)
        for stack in (self.encoder, self.decoder):
            stack.set_attn_implementation(attn_implementation, *rest, **how)

    def _prepare_generation_config(self, generation_config: Any, **asked: Any) -> tuple[Any, dict[str, Any]]:
        # A call takes precedence: otherwise a checkpoint's `max_new_tokens` would override the `max_length`
        # that trainers and harnesses pass.
        if generation_config is None and asked.get("max_length") is not None:
            asked.setdefault("max_new_tokens", None)
        return super()._prepare_generation_config(generation_config, **asked)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # Beams repeat every tensor of the encoder's output by rows, which a training loss does not have; and
        # when attentions are requested, transformers adds an empty `cross_attentions` to the fields.
        encoded = kwargs.get("encoder_outputs")
        if isinstance(encoded, MrT5EncoderOutput):
            rows = {field.name for field in fields(encoded)} - {"auxiliary_loss"}
            kwargs["encoder_outputs"] = MrT5EncoderOutput(**{name: encoded.get(name) for name in rows})
        return super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]

    def _sample(self, input_ids: Any, **wanted: Any) -> Any:  # type: ignore[override]  # all else by name
        # transformers calls this for greedy decoding and for sampling.
        asked = asked_for(self, input_ids, **wanted) if type(self) is MrT5ForConditionalGeneration else None
        if asked is None:
            return super()._sample(input_ids, **wanted)  # type: ignore[misc]
        encoded = MrT5EncoderOutput.of(wanted["encoder_outputs"], wanted.get("attention_mask"))
        return decode(self, input_ids, asked, encoded)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # names one of transformers' keywords itself
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: MrT5EncoderOutput | BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        hard_delete: bool | None = None,
        deletion_threshold: float | None = None,
        segment_ends: Tensor | None = None,
        output_score_loss: bool = False,
        score_loss_per: Literal["row", "batch"] = "row",
        real_bytes: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MrT5Output:
        """Encode, shorten, decode.

        Args:
            input_ids: (B, L) byte ids; 0 is padding.
            attention_mask: (B, L), 0 at hidden positions. None hides nothing, not even padding.
            decoder_input_ids: (B, T); default: `labels`, shifted right.
            labels: (B, T), IGNORED_LABEL (-100) where the loss ignores a position.
            hard_delete: remove bytes (True) or gate them (False). None follows the configuration's
                `inference_deletion` in eval mode, and gates in training mode.
            deletion_threshold: overrides the configured threshold of hard deletion for this call.
            segment_ends: (B, L) bool, true at the last byte of each segment: the labels of boundary
                predictors of type "entropy" and "unigram", needed in training only.
            output_score_loss: also compute the score loss (paper, appendix D).
            score_loss_per: pairs that the score loss is the mean of. "row": each row's own pairs of source
                positions that are not hidden, and of target positions that `decoder_attention_mask` or,
                without one, `labels` count. "batch": every pair of slots in the batch, as in the reference.
            real_bytes: number of positions that the mask leaves, if it hides padding and nothing else; saves
                a wait for the GPU.
            past_key_values, cache: keys and values of earlier target bytes; two names of one argument.
            num_items_in_batch: number of labels in all batches of an optimizer step, by which the summed loss
                is divided instead of the number here. transformers' trainers pass it. Regularizers are then
                scaled by this batch's share of the step's labels.

        Returns:
            `logits` (B, T, V), and the other fields of `MrT5Output`.

            With `labels`, `loss` is the quantity to minimize: in training mode cross-entropy + alpha * gate
            loss + beta * score loss (paper, section 3.2 and appendix D) + `auxiliary_loss`, from which
            boundary predictors, routers and quantile gates learn; in eval mode the cross-entropy. Alpha is
            the configuration's `gate_loss`, or set by `deletion_control`; beta is `score_loss`.
            `cross_entropy` is the cross-entropy in both modes.

        Raises:
            ValueError: there is nothing to decode, the source is padding alone (where packed), or an argument
                does not fit the model or the others.
        """
        learns = self.training and labels is not None
        penalty = None
        if output_score_loss or (learns and self.config.score_loss):
            penalty = ScorePenalty(score_loss_per, _counted(labels, decoder_attention_mask))
        encoded = encoder_outputs
        if encoded is None:
            encoded = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                hard_delete=hard_delete,
                deletion_threshold=deletion_threshold,
                segment_ends=segment_ends,
                score_penalty=penalty,
                keep_packed=True,
                real_bytes=real_bytes,
                use_cache=False,
                **kwargs,
            )
        if learns and self.encoder.shortener is not None and not isinstance(encoded, MrT5EncoderOutput):
            raise ValueError(
                "encoder_outputs have lost their gates: in training, pass the encoder's output unchanged, "
                "not a tuple of its parts"
            )
        encoded = MrT5EncoderOutput.of(encoded, attention_mask)

        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "there is nothing to decode: pass labels, decoder_input_ids or decoder_inputs_embeds; for "
                "encoder states alone, call model.encoder"
            )
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values if cache is None else cache,
            use_cache=use_cache,
            score_penalty=penalty,
            **encoded.for_decoder(),
            **kwargs,
        )
        logits = self.lm_head(decoded.last_hidden_state)
        loss = cross_entropy = None
        if labels is not None:
            loss = cross_entropy = _loss(logits, labels, num_items_in_batch)
        if loss is not None and labels is not None and learns:
            added = self._added_loss(encoded, input_ids, attention_mask, penalty)
            loss = loss if added is None else loss + added * share_of_step(labels, num_items_in_batch)
        return MrT5Output(
            loss=loss,
            cross_entropy=cross_entropy,
            logits=logits,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            score_loss=None if penalty is None else penalty.mean(),
            score_loss_parts=None if penalty is None else penalty.parts(),
            **{CACHE: getattr(decoded, CACHE)},
            **encoded.for_output(),
        )

    def _added_loss(
        self,
        encoded: MrT5EncoderOutput,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        penalty: ScorePenalty | None,
    ) -> Tensor | None:
        """The regularizers of a model in training mode, or None; also counts deletions for the control."""
        counted, control = None, self.deletion_control
        if encoded.delete_gate_output is not None:
            mask = encoded.attention_mask if attention_mask is None else attention_mask
            counted = counted_positions(input_ids, mask, encoded.delete_gate_output)
        added = regularizers(self.config, encoded, counted, penalty, control)
        if control is not None and counted is not None:
            control.count(deletion_counts(encoded, counted, self.config.threshold))
        return added


def _loss(logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    """Mean cross-entropy over the labels that count, or its sum divided by `count`."""
    reduction = "mean" if count is None else "sum"
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )
    return loss if count is None else loss / count


def _counted(labels: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """(B, T) bool, target positions that are not padding; None if all are known to count."""
    counted = None
    if mask is not None:
        counted = mask != 0
    elif labels is not None:
        counted = labels != IGNORED_LABEL
    return None if counted is None or hides_nothing(counted) else counted
