"""MrT5: a T5 encoder-decoder with at most one shortener between two encoder blocks.

What differs from transformers' T5, and nothing else:

- before encoder block `delete_gate_layer` a shortener (models/shortening) may gate or remove positions;
- soft gates join the additive bias of every later encoder block and of all cross-attention;
- after hard deletion the encoder output carries its own mask, and the decoder reads it from there, so
  generation, beams and padded batches all see the shortened source;
- position biases come from the original positions of what is left;
- softmax1, learned absolute positions, an untied and unscaled output head.

Legend: B batch, L input bytes, S encoder output positions, T target bytes, D model width, N heads, V
    vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import (
    T5LayerNorm,
    T5LayerSelfAttention,
    T5PreTrainedModel,
    T5Stack,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mrt5cli.models.attention import IMPLEMENTATIONS, Rows, ScorePenalty
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.feed_forward import use_fast_activation
from mrt5cli.models.kernels import runs_on
from mrt5cli.models.kernels.plan import Plan
from mrt5cli.models.kernels.rows import DeviceRows
from mrt5cli.models.outputs import MrT5EncoderOutput, MrT5Output, PackedStates
from mrt5cli.models.packing import Packing, distance_bias, hides_nothing, last_position
from mrt5cli.models.plain_generation import answer_plainly
from mrt5cli.models.shortening import (
    SHORTENERS,
    BoundaryPredictor,
    Convolution,
    DeleteGate,
    Sequences,
    Shortener,
    Shortening,
    norm_in_float32,
    refuse_threshold,
)

CAPTURED = ("output_attentions", "output_hidden_states")
"""Requests that transformers answers by watching every layer, whose states must then be in their places."""


class LearnedPositions(nn.Embedding):
    """One vector a position, added to the embeddings; the alternative to T5's relative bias."""


class MrT5PreTrainedModel(T5PreTrainedModel):
    """What encoder, decoder and whole model share: initialisation and the choice of attention."""

    config_class = MrT5Config
    base_model_prefix = "model"
    _supports_flex_attn = False

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers initialises the containers of "custom" models with its generic rule, which would leave
        # attention and feed-forward weights at a standard deviation of 1.
        return False

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *_: Any, **__: Any
    ) -> str:
        if attn_implementation is None:
            return IMPLEMENTATIONS["packed"]
        if attn_implementation in IMPLEMENTATIONS.values():
            return attn_implementation
        if attn_implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation {attn_implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}: "
                "no other kernel has T5's bias, the delete gate and softmax1"
            )
        return IMPLEMENTATIONS[attn_implementation]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeleteGate):
            init.xavier_uniform_(module.feed_forward.weight)
            init.constant_(module.feed_forward.bias, float(self.config.gate_bias_init))
        elif isinstance(module, BoundaryPredictor):
            for linear in (module.boundary_predictor[0], module.boundary_predictor[2]):
                init.xavier_uniform_(linear.weight)
                init.constant_(linear.bias, -1.0)
        elif isinstance(module, Convolution):
            # PyTorch's own law, which the reference leaves in place.
            bound = (module.conv.in_channels * module.rate) ** -0.5
            init.uniform_(module.conv.weight, -bound, bound)
            init.uniform_(module.conv.bias, -bound, bound)
        elif isinstance(module, MrT5ForConditionalGeneration):
            # Mesh TensorFlow's untied T5 v1.1 head: logits of unit scale. transformers would leave it at 1.
            init.normal_(module.lm_head.weight, mean=0.0, std=self.config.d_model**-0.5)
        elif isinstance(module, LearnedPositions):
            init.normal_(module.weight, mean=0.0, std=float(self.config.initializer_factor))


class MrT5Stack(MrT5PreTrainedModel, T5Stack):
    """T5's stack with optional learned positions; base of our encoder and our decoder."""

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.absolute_pos_embed: LearnedPositions | None = None
        if config.has_absolute_position_embeddings:
            self.absolute_pos_embed = LearnedPositions(config.max_position_embeddings, config.d_model)
            first = self.block[0].layer[0].SelfAttention
            del first.relative_attention_bias
            first.has_relative_attention_bias = False
        for block in self.block:
            if config.relative_bias_per_layer:
                _own_relative_bias(block.layer[0].SelfAttention)
            for layer in block.layer[:-1]:
                is_self = isinstance(layer, T5LayerSelfAttention)
                attention = layer.SelfAttention if is_self else layer.EncDecAttention
                attention.is_cross_attention = not is_self
                if config.attention_dropout_rate is not None:
                    attention.dropout = config.attention_dropout_rate
            use_fast_activation(block.layer[-1], config)
        self.post_init()

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, past: int = 0) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.absolute_pos_embed is not None:
            length = inputs_embeds.shape[1]
            if past + length > self.absolute_pos_embed.num_embeddings:
                raise ValueError(
                    f"{past + length} positions are more than the {self.absolute_pos_embed.num_embeddings} "
                    "this model learned (max_position_embeddings)"
                )
            positions = torch.arange(past, past + length, device=inputs_embeds.device)
            inputs_embeds = inputs_embeds + self.absolute_pos_embed(positions)
        return inputs_embeds


def _asked(name: str, config: MrT5Config, arguments: dict[str, Any]) -> bool:
    """Whether a call wants what `name` says, by its arguments or, without a word there, by configuration."""
    value = arguments.get(name)
    return bool(getattr(config, name, False) if value is None else value)


def _own_relative_bias(attention: nn.Module) -> None:
    """Give a self-attention a relative bias that it uses in place of the one handed down from the first."""
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = nn.Embedding(
        attention.relative_attention_num_buckets, attention.n_heads
    )
    if attention.is_decoder:  # our encoder hands down each block's own

        def forget_bias(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"position_bias": None}

        attention.register_forward_pre_hook(forget_bias, with_kwargs=True)


class MrT5Decoder(MrT5Stack):
    """T5's decoder; positions of cached steps count on from the cache."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return super().forward(
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            inputs_embeds=self._embed(input_ids, inputs_embeds, past),
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


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
        boundary_labels: Tensor | None = None,
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
            boundary_labels: (B, L) bool, true at the last byte of each segment; what boundary predictors of
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
        need_weights = _asked("output_attentions", self.config, kwargs)
        packing = self._packing(attention_mask, padding, score_penalty, real_bytes, kwargs)
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
                    boundary_labels=boundary_labels,
                )
                shortening = shortener(given, hard=hard_delete, threshold=deletion_threshold)
                states, bias = shortening.states, None
                if packs and shortening.positions is not None:
                    packing = self._pack_survivors(shortening, score_penalty)
                if packing is not None:
                    states = packing.pack(states)
            if bias is None or self.config.relative_bias_per_layer:
                if packing is None:
                    bias, rows = self._bias(block, shortening, padding.shape[1]), None
                else:
                    # Blocks hand a bias on; what counts in a packed batch is in its rows.
                    bias = states.new_zeros(1)
                    find = self._device_rows if isinstance(packing, Plan) else self._rows
                    rows = find(block, shortening, packing, padding.shape[1])
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

    def _packing(
        self,
        attention_mask: Tensor | None,
        padding: Tensor,
        score_penalty: ScorePenalty | None,
        real_bytes: int | None,
        asked: dict[str, Any],
    ) -> Packing | Plan | None:
        """How the input would be packed, or None where packing cannot be: without the kernel, without a mask
        that hides just the padding, or where every layer's scores or states are wanted in their places."""
        if self.config._attn_implementation != IMPLEMENTATIONS["packed"] or torch.compiler.is_compiling():
            return None
        if any(_asked(name, self.config, asked) for name in CAPTURED):
            return None
        if self.config.shortening_per == "batch":  # the reference's laws look at padding
            return None
        if runs_on(padding.device, self.config.d_kv):
            return self._plan(attention_mask, padding, score_penalty, real_bytes)
        if score_penalty is not None or padding.device.type != "cpu":
            return None
        if padding.any() if attention_mask is None else not torch.equal(attention_mask != 0, ~padding):
            return None
        return Packing(~padding)

    def _plan(
        self,
        attention_mask: Tensor | None,
        padding: Tensor,
        score_penalty: ScorePenalty | None,
        real_bytes: int | None,
    ) -> Plan | None:
        """The same for a GPU's kernels, which drop no attention weights. They get full batches too, because
        they need no L x L bias. With a score loss they get those alone: it looks at scores of padding."""
        if self.training and self.block[0].layer[0].SelfAttention.dropout > 0:
            return None
        if real_bytes is None:
            attended = torch.ones_like(padding) if attention_mask is None else attention_mask != 0
            # Both numbers in one answer. Waiting for it and, later, for the number of survivors are all the
            # times a forward waits for the device: neither Plan nor the kernels' launches ask it anything.
            real_bytes, differing = torch.stack([(~padding).sum(), (attended == padding).sum()]).tolist()
            if differing:
                return None
        plan = Plan(~padding, real_bytes)
        return plan if score_penalty is None or plan.is_full else None

    def _pack_survivors(
        self, shortening: Shortening, score_penalty: ScorePenalty | None
    ) -> Packing | Plan | None:
        """How what is left is packed; None where a law of the reference lets rows see each other."""
        if shortening.self_mask is not None or shortening.mask is None or score_penalty is not None:
            return None
        if runs_on(shortening.mask.device, self.config.d_kv):
            positions = None if self._positions_start_afresh else shortening.positions
            return Plan(shortening.mask != 0, shortening.mask_count, positions)
        return Packing(shortening.mask != 0)

    def _device_rows(self, block: nn.Module, shortening: Shortening, plan: Plan, length: int) -> DeviceRows:
        """What a GPU's kernels need to know about the rows; they look the position bias up themselves."""
        # From max_distance on all distances share a bucket.
        far = min(length - 1, self.config.relative_attention_max_distance)
        gate = None if shortening.key_gate is None else plan.pack(shortening.key_gate)[0]
        return DeviceRows(plan.packed, self._bias_by_distance(block, far + 1), gate)

    def _rows(self, block: nn.Module, shortening: Shortening, packing: Packing, length: int) -> Rows:
        """Each row's position bias, (1, N, n, n), and key gate (n)."""
        by_distance = self._bias_by_distance(block, length)
        gates = None if shortening.key_gate is None else packing.rows(shortening.key_gate)
        afresh = shortening.positions is None or self._positions_start_afresh
        positions = None if afresh else packing.rows(shortening.positions)
        biases: list[Tensor | None] = []
        of_length: dict[int, Tensor] = {}
        for row, place in enumerate(packing):
            count = place.stop - place.start
            if by_distance is None or count == 0:
                bias = None
            elif positions is not None:
                bias = distance_bias(by_distance, positions[row][None], length)
            else:
                if count not in of_length:
                    window = by_distance[:, length - count : length + count - 1]
                    of_length[count] = distance_bias(window, None, count)
                bias = of_length[count]
            biases.append(bias)
        return Rows(packing.bounds, biases, gates)

    def _padding(self, input_ids: Tensor | None, attention_mask: Tensor | None, states: Tensor) -> Tensor:
        """(B, L) bool. Ids tell padding even where no mask is passed; a mask may also hide real bytes."""
        if input_ids is not None:
            return input_ids.eq(self.config.pad_token_id)
        if attention_mask is not None:
            return attention_mask == 0
        return torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)

    def _bias_by_distance(self, block: nn.Module, length: int) -> Tensor | None:
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
        by_distance = self._bias_by_distance(block, length)
        if by_distance is None:
            bias = states.new_zeros(1, 1, 1, 1)
        elif positions is not None and self._positions_start_afresh:
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
    def _positions_start_afresh(self) -> bool:
        return self.config.delete_gate_layer == 0 and self.config.hard_delete_positions == "compacted"


class MrT5ForConditionalGeneration(MrT5PreTrainedModel, T5ForConditionalGeneration):
    """ByT5 and every model of the paper: T5 v1.1 whose encoder may delete bytes on the way."""

    # The head is its own: only the two embeddings follow the shared one.
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: MrT5Config) -> None:
        # T5's own constructor would first build, and initialise, two stacks that are thrown away.
        super(T5ForConditionalGeneration, self).__init__(config)
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        encoder_config = copy.deepcopy(config)
        encoder_config.is_decoder = False
        encoder_config.use_cache = False
        self.encoder = MrT5Encoder(encoder_config)
        decoder_config = copy.deepcopy(config)
        decoder_config.is_decoder = True
        # The decoder is a stack of its own depth, and nothing is deleted in it.
        decoder_config.deletion_type = "none"
        decoder_config.num_layers = config.num_decoder_layers
        self.decoder = MrT5Decoder(decoder_config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        # What `generate` calls for greedy decoding too, with all it has made of its settings.
        answers = None if args else answer_plainly(self, input_ids, **kwargs)
        return super()._sample(input_ids, *args, **kwargs) if answers is None else answers

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # Beams repeat every tensor of the encoder's output row by row; a training loss has no rows.
        encoded = kwargs.get("encoder_outputs")
        if isinstance(encoded, MrT5EncoderOutput):
            rows = {name: value for name, value in encoded.items() if name != "auxiliary_loss"}
            kwargs["encoder_outputs"] = MrT5EncoderOutput(**rows)
        return super()._expand_inputs_for_generation(*args, **kwargs)

    @can_return_tuple
    def forward(
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
        hard_delete: bool = False,
        deletion_threshold: float | None = None,
        boundary_labels: Tensor | None = None,
        output_score_loss: bool = False,
        real_bytes: int | None = None,
        **kwargs: Any,
    ) -> MrT5Output:
        """Encode, shorten, decode.

        Args:
            input_ids: (B, L) byte ids, 0 is padding.
            attention_mask: (B, L), 1 where `input_ids` counts. None attends everywhere, padding included.
            decoder_input_ids: (B, T); taken from `labels`, shifted right, when absent.
            labels: (B, T), -100 where the loss does not look.
            hard_delete: remove bytes (inference) instead of gating them (training).
            deletion_threshold: replaces the configured threshold for this call; only hard deletion has one.
            boundary_labels: (B, L) bool, true at the last byte of each segment; what boundary predictors of
                type "entropy" and "unigram" are taught, needed in training only.
            output_score_loss: also compute the score regulariser (paper, appendix D).
            real_bytes: how many of `input_ids` are no padding, if the caller knows; see the encoder.
        """
        penalty = ScorePenalty() if output_score_loss else None
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                hard_delete=hard_delete,
                deletion_threshold=deletion_threshold,
                boundary_labels=boundary_labels,
                score_penalty=penalty,
                keep_packed=True,
                real_bytes=real_bytes,
                **kwargs,
            )
        elif not isinstance(encoder_outputs, MrT5EncoderOutput):
            encoder_outputs = MrT5EncoderOutput(
                last_hidden_state=encoder_outputs[0], attention_mask=attention_mask
            )

        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        packed = encoder_outputs.packed
        source_mask = None if packed is not None else encoder_outputs.attention_mask
        if source_mask is not None and hides_nothing(source_mask):
            source_mask = None  # else every layer adds a tensor of zeros
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_outputs.last_hidden_state if packed is None else packed.states,
            encoder_attention_mask=source_mask,
            use_cache=use_cache,
            encoder_key_gate=encoder_outputs.key_gate,
            encoder_rows=None if packed is None else packed.rows,
            score_penalty=penalty,
            need_weights=_asked("output_attentions", self.config, kwargs),
            **kwargs,
        )
        logits = self.lm_head(decoder_outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

        mask = encoder_outputs.attention_mask
        if mask is None:
            mask = torch.ones(
                encoder_outputs.last_hidden_state.shape[:2], dtype=torch.long, device=logits.device
            )
        return MrT5Output(
            loss=loss,
            logits=logits,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            encoder_attention_mask=mask,
            delete_gate_output=encoder_outputs.delete_gate_output,
            delete_gate_logits=encoder_outputs.delete_gate_logits,
            keep_mask=encoder_outputs.keep_mask,
            kept_lengths=encoder_outputs.kept_lengths,
            boundary_logits=encoder_outputs.boundary_logits,
            score_loss=penalty.mean() if penalty is not None else None,
            auxiliary_loss=encoder_outputs.auxiliary_loss,
        )
