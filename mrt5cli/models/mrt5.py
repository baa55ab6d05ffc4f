"""MrT5: a T5 encoder-decoder with at most one shortener between two encoder blocks.

What differs from transformers' T5, and nothing else:

- before encoder block `delete_gate_layer` a shortener (models/shorteners) may gate or remove positions;
- soft gates join the additive bias of every later encoder block and of all cross-attention;
- after hard deletion the encoder output carries its own mask, and the decoder reads it from there, so
  generation, beams and padded batches all see the shortened source;
- position biases come from the original positions of what is left;
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
    """ByT5 and every model of the paper: T5 v1.1 whose encoder may delete bytes on the way.

    Attributes:
        fresh_weights: names of those that the checkpoint it was loaded from does not hold.
        deletion_control: what sets the coefficient of the gate loss in `loss`, in place of the configuration;
            a `DeletionRateController`, or None.
    """

    encoder: MrT5Encoder
    fresh_weights: Sequence[str] = ()
    deletion_control: DeletionControl | None = None
    # `loss` is divided by the targets of a whole optimizer step, if a trainer passes their number.
    accepts_loss_kwargs: ClassVar[bool] = True
    # The head is its own: only the two embeddings follow the shared one.
    _tied_weights_keys: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: MrT5Config) -> None:
        # T5's own constructor would first build, and initialise, two stacks that are thrown away.
        super(T5ForConditionalGeneration, self).__init__(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        # No copy, so that the encoder, which `generate` calls alone, sees what is changed in `model.config`.
        self.encoder = MrT5Encoder(config)
        decoder_config = copy.deepcopy(config)
        decoder_config.is_decoder = True
        # The decoder is a stack of its own depth, and nothing is deleted in it.
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
            # Mesh TensorFlow's untied T5 v1.1 head: logits of unit scale. transformers would leave it at 1.
            init.normal_(self.lm_head.weight, mean=0.0, std=self.config.d_model**-0.5)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], *rest: Any, **how: Any
    ) -> None:
        """As transformers'; 5.17 forgets encoder and decoder, whose configurations are copies of this one."""
        super().set_attn_implementation(attn_implementation, *rest, **how)
        for stack in (self.encoder, self.decoder):
            stack.set_attn_implementation(attn_implementation, *rest, **how)

    def _prepare_generation_config(self, generation_config: Any, **asked: Any) -> tuple[Any, dict[str, Any]]:
        # What a call says comes first: the `max_new_tokens` of a checkpoint would beat the `max_length` that
        # trainers and harnesses pass.
        if generation_config is None and asked.get("max_length") is not None:
            asked.setdefault("max_new_tokens", None)
        return super()._prepare_generation_config(generation_config, **asked)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # Beams repeat every tensor of the encoder's output row by row; a training loss has no rows. And where
        # attentions are wanted, transformers leaves an empty `cross_attentions` beside the fields.
        encoded = kwargs.get("encoder_outputs")
        if isinstance(encoded, MrT5EncoderOutput):
            rows = {field.name for field in fields(encoded)} - {"auxiliary_loss"}
            kwargs["encoder_outputs"] = MrT5EncoderOutput(**{name: encoded.get(name) for name in rows})
        return super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]

    def _sample(self, input_ids: Any, **wanted: Any) -> Any:  # type: ignore[override]  # all else by name
        # Where transformers decodes greedily, or samples.
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> MrT5Output:
        """Encode, shorten, decode.

        Args:
            input_ids: (B, L) byte ids, 0 is padding.
            attention_mask: (B, L), 0 where nothing attends. None attends everywhere, padding included.
            decoder_input_ids: (B, T); taken from `labels`, shifted right, when absent.
            labels: (B, T), IGNORED_LABEL (-100) where the loss does not look.
            hard_delete: remove bytes (True) or gate them (False). None is what `inference_deletion` of the
                configuration says in eval mode, and gates in training mode.
            deletion_threshold: replaces the configured threshold for this call; only hard deletion has one.
            segment_ends: (B, L) bool, true at the last byte of each segment; what boundary predictors of
                type "entropy" and "unigram" are taught, needed in training only.
            output_score_loss: also compute the score regulariser (paper, appendix D).
            score_loss_per: the mean is over each "row"'s own pairs of positions, in the source those that are
                not hidden, in the target those that `decoder_attention_mask` or, without one, `labels` count;
                or, as in the reference, over all that the "batch" has room for.
            real_bytes: how many positions the mask leaves, if it hides just padding; spares a GPU a wait.
            num_items_in_batch: what to divide the summed loss by, in place of the number of labels that count
                here: their number in all the batches of an optimizer step. transformers' trainers pass it.
                Regularisers then count for as much of the step as this batch has of its labels.

        Returns:
            With `labels`, `loss` is what to minimise: in training mode cross-entropy + alpha * gate loss +
            beta * score loss (paper, section 3.2 and appendix D) + `auxiliary_loss`, by which boundary
            predictors, routers and quantile gates learn. Alpha is `gate_loss` of the configuration, or what
            `deletion_control` says; beta is `score_loss`. In eval mode it is the cross-entropy, which
            `cross_entropy` is in both.
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
                "encoder_outputs have lost their gates: in training, pass what the encoder returned as it "
                "is, not a tuple of its parts"
            )
        encoded = MrT5EncoderOutput.of(encoded, attention_mask)

        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "there is nothing to decode: give labels, decoder_input_ids or decoder_inputs_embeds; for "
                "the states of a source, call model.encoder"
            )
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
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
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            score_loss=None if penalty is None else penalty.mean(),
            score_loss_parts=None if penalty is None else penalty.parts(),
            **encoded.for_output(),
        )

    def _added_loss(
        self,
        encoded: MrT5EncoderOutput,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        penalty: ScorePenalty | None,
    ) -> Tensor | None:
        """What a model in training mode adds to its cross-entropy, or None; the control counts deletions."""
        counted, control = None, self.deletion_control
        if encoded.delete_gate_output is not None:
            mask = encoded.attention_mask if attention_mask is None else attention_mask
            counted = counted_positions(input_ids, mask, encoded.delete_gate_output)
        added = regularizers(self.config, encoded, counted, penalty, control)
        if control is not None and counted is not None:
            control.count(deletion_counts(encoded, counted, self.config.threshold))
        return added


def _loss(logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    """Mean cross-entropy over the labels that count, or their sum divided by `count`."""
    reduction = "mean" if count is None else "sum"
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )
    return loss if count is None else loss / count


def _counted(labels: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """(B, T) bool, target positions that are no padding; None where all are known to count."""
    counted = None
    if mask is not None:
        counted = mask != 0
    elif labels is not None:
        counted = labels != IGNORED_LABEL
    return None if counted is None or hides_nothing(counted) else counted
