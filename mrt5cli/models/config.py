"""The configuration of every model: T5's fields plus those of the shorteners.

Field names are those of the authors' published checkpoints, so their `config.json` loads as it is. A field
those checkpoints lack defaults to their behavior, or to the correct one where theirs is an accident; the
docstring of `MrT5Config` tells which.
"""

# No `from __future__ import annotations` here: `strict` checks the annotated types, and not strings.
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, T5Config
from transformers.activations import ACT2FN

from mrt5cli.models.shorteners import SHORTENERS, WITHOUT_MODULE, Shortener
from mrt5cli.models.shorteners.base import ABOUT_DELETION

BYT5_SHAPES = {
    f"google/byt5-{name}": dict(
        zip(("d_model", "d_ff", "num_heads", "num_layers", "num_decoder_layers"), sizes, strict=True)
    )
    for name, sizes in {
        "small": (1472, 3584, 6, 12, 4),
        "base": (1536, 3968, 12, 18, 6),
        "large": (1536, 3840, 16, 36, 12),
    }.items()
}
"""Sizes of the published ByT5 models, for plans and meta-device builds without weights."""

LEAST_VOCABULARY = 259
"""Byte ids run from 3 to 258."""
GREATEST_NUMBER = (2 - 2**-23) * 2.0**127
"""The largest finite float32."""
SIZES: tuple[str, ...] = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers")
SIZES += ("relative_attention_num_buckets",)


@strict
class MrT5Config(T5Config):
    """T5 v1.1 / ByT5 configuration with a shortener between two encoder blocks.

    Args:
        delete_gate_layer: the 0-based encoder block that the shortener precedes, 0 to `num_layers` - 1
            (paper: after the third layer, i.e. 3).
        deletion_type: the shortener: "none" (ByT5); "source_removed", the decoder-only baseline, whose
            encoder sees a lone EOS; or a type registered in `models.shorteners`, such as "scaled_sigmoid"
            (MrT5), which may add fields.
        sigmoid_mask_scale: gate value of a fully deleted byte, below 0; kept bytes have 0.
        deletion_threshold: hard deletion keeps gate values above it. None is the middle of the gate's range:
            `sigmoid_mask_scale` / 2, or log 0.5 for the log-sigmoid gate.
        deletion_rate: fraction of positions that `deletion_threshold` was calibrated to delete, 0 to 1; None
            if it was not calibrated, or has been changed since. The quantile gate derives its default
            threshold from it.
        inference_deletion: what a model in eval mode does if a call does not specify it: "hard" removes
            bytes, "soft" only gates them. The default is soft, as in the authors' code; models that this
            toolkit builds store "hard". In training mode deletion is soft unless a call requests otherwise.
        gate_loss: alpha, the coefficient of the gate loss that a model in training mode adds to its loss
            (paper, section 3.2); 0 adds none, a negative value penalizes deletion. A
            `DeletionRateController` overrides it.
        score_loss: beta, the coefficient of the score loss, 0 or more (paper, appendix D).
        gate_layer_norm: whether the delete gate normalizes its input.
        gate_layer_norm_type: "rms" (T5's, camera-ready) or "layer" (with bias, v1 of the paper).
        gate_bias_init: initial bias of the gate's linear layer; above 0 keeps every byte at first.
        use_gumbel_noise: add noise to the gate's logits in training.
        gumbel_noise_law: "difference" of two Gumbel samples (logistic, zero mean) or the reference's "single"
            sample (mean 0.58).
        random_deletion_probability: expected fraction of positions the random gate deletes, 0 to 1.
        fixed_deletion_amount: fraction of each word the fixed gate deletes from its end, 0 to 1.
        boundary_predictor_type: how boundaries are learned: "gumbel" (sampled, pulled toward `prior`), or
            from labels: "entropy" (spikes in a byte model's uncertainty) or "unigram" (a tokenizer's tokens).
        prior: expected fraction of positions that end a segment, 0 to 1; only for "gumbel".
        boundary_temperature: temperature of "gumbel"'s relaxed Bernoulli, above 0.
        boundary_sampling: sample boundaries in "training" only, or "always", as the reference does.
        downsampling_rate: width and stride of the convolution, 2 or more.
        shortening_per: unit that the baselines work on. "row": each row's own non-pad bytes, so a row's
            result depends on nothing else. "batch": as in the reference, which mixes rows and padding: one
            random sample per batch; fixed segments counted over all rows; pooled slots of longer rows
            visible in shorter ones; windows over the padded batch that drop its tail.
        attention_dropout_rate: probability of dropping an attention weight in training; None is
            `dropout_rate`, as in T5.
        relative_bias_per_layer: every layer has its own relative bias (umT5), not only the first.
        hard_delete_positions: "original" keeps the distances between the bytes of the source after deletion.
            "compacted" is what the reference does with a gate at layer 0, before any bias exists.
        row_without_survivors: a row with no byte above the threshold keeps its "best" byte, or the "first"
            one as in the reference.
        use_softmax1: exp(x) / (1 + sum exp(x)) in every attention of encoder and decoder.
        has_absolute_position_embeddings: learned positions instead of T5's relative bias.
        max_position_embeddings: number of learned positions.
        learned_positions: learned positions are "added" to the embeddings, or "unused", as in the
            reference's poolings.
    """

    model_type = "mrt5"
    # A list, because transformers' trainers append to it.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [  # type: ignore[misc]
        *("past_key_values", "cache", "encoder_last_hidden_state", "encoder_attention_mask", "cross_entropy"),
        *ABOUT_DELETION,
    ]

    vocab_size: int = 384
    d_model: int = 1472
    d_ff: int = 3584
    num_layers: int = 12
    num_decoder_layers: int | None = 4
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0

    delete_gate_layer: int = 3
    deletion_type: str = "scaled_sigmoid"
    sigmoid_mask_scale: float | int = -30.0
    deletion_threshold: float | int | None = None
    deletion_rate: float | int | None = None
    inference_deletion: Literal["hard", "soft"] = "soft"
    gate_loss: float | int = 0.0
    score_loss: float | int = 0.0
    gate_layer_norm: bool = True
    gate_layer_norm_type: Literal["rms", "layer"] = "rms"
    gate_bias_init: float | int = 1.0
    use_gumbel_noise: bool = False
    gumbel_noise_law: Literal["difference", "single"] = "difference"
    random_deletion_probability: float | int = 0.5
    fixed_deletion_amount: float | int = 0.5
    boundary_predictor_type: Literal["gumbel", "entropy", "unigram"] = "gumbel"
    prior: float | int = 0.2
    boundary_temperature: float | int = 0.5
    boundary_sampling: Literal["training", "always"] = "training"
    downsampling_rate: int = 4
    shortening_per: Literal["row", "batch"] = "row"
    hard_delete_positions: Literal["original", "compacted"] = "original"
    row_without_survivors: Literal["best", "first"] = "best"
    use_softmax1: bool = False
    has_absolute_position_embeddings: bool = False
    max_position_embeddings: int = 1024
    learned_positions: Literal["added", "unused"] = "added"
    attention_dropout_rate: float | int | None = None
    relative_bias_per_layer: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers 5 reads `tie_word_embeddings` as "scale the decoder's output", which only T5 v1.0 does.
        kwargs.pop("tie_word_embeddings", None)
        kwargs.pop("scale_decoder_outputs", None)
        super().__post_init__(tie_word_embeddings=False, **kwargs)
        shortener = SHORTENERS.get(self.deletion_type, Shortener)
        for name, value in shortener.own_fields.items():
            if not hasattr(self, name):
                setattr(self, name, value)
        if self.deletion_threshold is None:
            rate = self.deletion_rate
            self.deletion_threshold = shortener.default_threshold(self)
            self.deletion_rate = rate

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "deletion_threshold":
            super().__setattr__("deletion_rate", None)  # it belonged to the previous threshold

    @property
    def threshold(self) -> float:
        """The deletion threshold of a call that passes none."""
        if self.deletion_threshold is None:
            return float(SHORTENERS.get(self.deletion_type, Shortener).default_threshold(self))
        return float(self.deletion_threshold)

    @property
    def drops_weights(self) -> bool:
        """Whether attention weights are dropped in training."""
        rate = self.attention_dropout_rate
        return bool(self.dropout_rate if rate is None else rate)

    def wants(self, name: str, arguments: Mapping[str, object]) -> bool:
        """The flag `name` of a call: from its arguments, else from this configuration, else False."""
        value = arguments.get(name)
        return bool(getattr(self, name, False) if value is None else value)

    def deletes_hard(self, asked: bool | None, *, training: bool) -> bool:
        """Whether a call removes bytes: its `hard_delete`, else the default of eval or training mode."""
        return not training and self.inference_deletion == "hard" if asked is None else asked

    def watches_layers(self, arguments: Mapping[str, object]) -> bool:
        """Whether transformers records every layer of a call, so that states must be laid out padded."""
        return any(self.wants(name, arguments) for name in ("output_attentions", "output_hidden_states"))

    def validate_numbers(self) -> None:
        """Part of `@strict` validation: ValueError for a size below 1, a number that is not finite, distances
        or an activation that T5 does not support, or an id outside the vocabulary."""
        for name in SIZES:
            if (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name, value in vars(self).items():
            if isinstance(value, float) and not abs(value) <= GREATEST_NUMBER:
                raise ValueError(f"{name} is {value}; expected a finite 32-bit number")
        for name in ("output_attentions", "output_hidden_states"):
            if not isinstance(value := getattr(self, name), bool | None):
                raise ValueError(f"{name} is {value!r}; expected true or false")
        if not 0 <= (self.deletion_rate or 0) <= 1:
            raise ValueError(f"deletion_rate is {self.deletion_rate}; expected a fraction from 0 to 1")
        if self.score_loss < 0:
            raise ValueError(f"score_loss is {self.score_loss}; expected a coefficient, 0 or more")
        nearest = self.relative_attention_num_buckets // 2  # each distance up to here has its own bucket
        if self.relative_attention_max_distance <= nearest:
            found = f"relative_attention_max_distance is {self.relative_attention_max_distance}"
            raise ValueError(f"{found}; expected more than half of relative_attention_num_buckets, {nearest}")
        if self.dense_act_fn not in ACT2FN:
            raise ValueError(f"dense_act_fn is {self.dense_act_fn!r}; expected one of transformers' ACT2FN")
        if self.vocab_size < LEAST_VOCABULARY:
            expected = f"{LEAST_VOCABULARY} or more: byte b is id b + 3"
            raise ValueError(f"vocab_size is {self.vocab_size}; expected {expected}")
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            token = getattr(self, name)
            if not isinstance(token, int) or not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} is {token}; expected an id below vocab_size {self.vocab_size}")
        for name, value in vars(self).items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"{name} has {len(str(value))} digits; expected a 64-bit integer")

    def validate_shortener(self) -> None:
        """Part of `@strict` validation: ValueError for an unknown shortener, or fields it cannot run with."""
        known = (*WITHOUT_MODULE, *SHORTENERS)
        if self.deletion_type not in known:
            raise ValueError(f"deletion_type {self.deletion_type!r} is not one of {', '.join(known)}")
        if self.sigmoid_mask_scale >= 0:
            raise ValueError(f"sigmoid_mask_scale must be below 0, not {self.sigmoid_mask_scale}")
        if self.deletion_type in SHORTENERS:
            if not 0 <= self.delete_gate_layer < self.num_layers:
                raise ValueError(
                    f"delete_gate_layer {self.delete_gate_layer} is not below num_layers {self.num_layers}"
                )
            SHORTENERS[self.deletion_type].check(self)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The configuration of one side, the decoder's with its own depth, by which caches are sized."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder and self.is_encoder_decoder:
            config.num_layers = self.num_decoder_layers
        return config

    def to_dict(self) -> dict[str, Any]:
        """The saved form, which marks the head as untied for readers before transformers 5."""
        saved = super().to_dict()
        saved["tie_word_embeddings"] = False
        saved.pop("scale_decoder_outputs", None)
        return saved
