"""Recipes: one run, whole, in one YAML file. This module is the schema and the only reader of recipe YAML.

Every section is a closed, frozen, strict pydantic model: an unknown key, a string where a number belongs or a
setting of another kind is an error that names the file, the key and what was expected. Defaults are the paper's
(MrT5, ICLR 2025) wherever the paper has one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of every section: unknown keys refused, values immutable, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


# --- data -----------------------------------------------------------------------------------------------------------


class EmbeddedSource(Section):
    """The documentation that ships inside Python itself: real English prose, no network."""

    kind: Literal["embedded"]


class FilesSource(Section):
    """Local text: one file or a directory of .txt, .jsonl, .parquet or .csv files."""

    kind: Literal["files"]
    path: Annotated[str, Field(min_length=1)] = Field(
        description="a file or a directory; a directory may hold one folder a language and train/validation/test files"
    )
    text_column: str = Field("text", description="column of jsonl, parquet and csv files that holds the text")
    streaming: bool = Field(False, description="read from disk again and again instead of holding the text in memory")


class HubSource(Section):
    """A streamed Hugging Face dataset, e.g. mC4 (`allenai/c4`, one configuration a language)."""

    kind: Literal["hub"]
    name: Annotated[str, Field(min_length=1)] = Field("allenai/c4", description="Hub id of the dataset")
    text_column: str = Field("text", description="column that holds the text")
    shuffle_shards: bool = Field(True, description="read the dataset's files in an order drawn from the seed")


Source = Annotated[EmbeddedSource | FilesSource | HubSource, Field(discriminator="kind")]


class SpanCorruptionTask(Section):
    """ByT5's pre-training task: spans of bytes are replaced by sentinels, the target spells them out."""

    kind: Literal["span_corruption"]
    source: Source
    languages: Annotated[list[str], Field(min_length=1)] = Field(
        ["en"], description="drawn uniformly, one example at a time; evaluation reports each one"
    )
    input_length: Annotated[int, Field(ge=16)] = Field(1024, description="encoder input, in byte tokens")
    noise_density: Rate = Field(0.15, description="fraction of bytes that are corrupted")
    mean_span_length: Annotated[float, Field(ge=1.0)] = Field(20.0, description="mean corrupted span, in bytes")


class DiagnosticTask(Section):
    """The paper's toy tasks on random letter strings, generated, with a known set of deletable bytes."""

    kind: Literal["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]
    length: Annotated[int, Field(ge=8)] = Field(64, description="encoder input, in byte tokens, '#' and EOS included")
    train_examples: PositiveInt = Field(6_400_000, description="distinct training strings; then they come again")
    eval_examples: PositiveInt = Field(32_000, description="strings in each of validation and test")
    mean_insertions: PositiveFloat | None = Field(
        None,
        description="mean number of pairs (contextual) or ABCs (merge) planted in a string; null: the paper's, "
        "25 and 5 at length 64, in proportion at others",
    )


TaskSection = Annotated[SpanCorruptionTask | DiagnosticTask, Field(discriminator="kind")]


# --- model ----------------------------------------------------------------------------------------------------------


class NoShortener(Section):
    """Plain ByT5: nothing is deleted."""

    kind: Literal["none"]


class DeleteGate(Section):
    """MrT5's learned delete gate (paper section 3.1)."""

    kind: Literal["delete_gate"]
    layer: Count = Field(3, description="gate sits before this 0-based encoder block, i.e. after that many layers")
    activation: Literal["scaled_sigmoid", "log_sigmoid"] = "scaled_sigmoid"
    scale: Annotated[float, Field(lt=0.0)] = Field(-30.0, description="gate value of a fully deleted byte")
    threshold: float | None = Field(
        None, description="bytes with a gate value above it are kept; null: half the scale (scaled) or log 0.5 (log)"
    )
    norm: Literal["rms", "layer", "none"] = Field("rms", description="'rms' is the camera-ready's, 'layer' v1's")
    bias_init: float = Field(1.0, description="above 0 starts by keeping everything; v1 of the paper used -1")
    noise: Literal["none", "logistic", "gumbel"] = Field(
        "none", description="added to the gate's logits in training; 'gumbel' is the reference's single, biased sample"
    )


class RandomGate(Section):
    """Baseline: random positions are deleted, in training and evaluation."""

    kind: Literal["random"]
    layer: Count = 3
    rate: Rate = Field(description="expected fraction of positions deleted")
    per: Literal["batch", "row"] = Field(
        "row", description="'row': the rate of every row's non-pad bytes; 'batch': the reference's one draw a batch, pads included"
    )
    scale: Annotated[float, Field(lt=0.0)] = -30.0


Shortener = Annotated[NoShortener | DeleteGate | RandomGate, Field(discriminator="kind")]


class Shape(Section):
    """Sizes of a model built from scratch; the defaults are ByT5-small's."""

    d_model: PositiveInt = 1472
    d_ff: PositiveInt = 3584
    d_kv: PositiveInt = 64
    num_heads: PositiveInt = 6
    num_layers: PositiveInt = Field(12, description="encoder blocks")
    num_decoder_layers: PositiveInt = Field(4, description="decoder blocks")
    relative_attention_num_buckets: Annotated[int, Field(ge=4)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=4)] = 128


class ModelSection(Section):
    """What is trained."""

    start: Annotated[str, Field(min_length=1)] = Field(
        "google/byt5-small", description="'scratch', a run directory, a checkpoint directory or a Hub id"
    )
    shape: Shape | None = Field(None, description="only with start: scratch; null: ByT5-small's")
    initialization: Literal["t5", "depth_scaled"] = Field(
        "t5", description="only with start: scratch; 'depth_scaled' is the reference's from-scratch initialisation"
    )
    shortener: Shortener = NoShortener(kind="none")
    softmax1: bool = Field(True, description="softmax1 in every attention: a head may attend to nothing")
    positions: Literal["relative", "absolute"] = "relative"
    max_positions: PositiveInt = Field(1024, description="only with positions: absolute")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        if self.start != "scratch" and self.shape is not None:
            raise ValueError("shape is only for start: scratch; a checkpoint brings its own")
        if self.start != "scratch" and self.initialization != "t5":
            raise ValueError("initialization is only for start: scratch")
        shape = self.shape or Shape()
        layer = getattr(self.shortener, "layer", None)
        if self.start == "scratch" and layer is not None and layer >= shape.num_layers:
            raise ValueError(
                f"shortener.layer {layer} is not below the encoder's {shape.num_layers} layers; nothing would be deleted"
            )
        return self


# --- loss and controller --------------------------------------------------------------------------------------------


class LossSection(Section):
    """Total loss = cross-entropy + alpha * gate loss + score_coefficient * score loss (paper section 3.2, app. D)."""

    gate_loss: Literal["gate_mean", "clamped_logits_mean", "logits_mean", "gate_variance"] = "gate_mean"
    entropy_coefficient_1: float = Field(0.0, description="reference's first entropy term, outside alpha")
    entropy_coefficient_2: float = Field(0.0, description="reference's second entropy term, outside alpha")
    score_coefficient: NonNegativeFloat = Field(0.0, description="beta: weight of the attention-score regulariser")
    regularizer_delay: Count = Field(0, description="optimizer steps before the gate loss and the controller start")
    hard_delete_probability: Fraction = Field(0.0, description="share of training batches run with hard deletion")


class ConstantController(Section):
    """A fixed deletion coefficient alpha."""

    kind: Literal["constant"]
    alpha: float = 0.0


class PController(Section):
    """v1 of the paper: alpha <- max(0, alpha + k_p * error), every few steps."""

    kind: Literal["p"]
    target_deletion_rate: Rate
    k_p: NonNegativeFloat = 1e-6
    alpha_start: NonNegativeFloat = 0.0
    every_steps: PositiveInt = 10
    update_per: Literal["optimizer_step", "micro_batch"] = Field(
        "optimizer_step", description="'micro_batch' is the reference's: the gain then grows with gradient accumulation"
    )


class PIController(Section):
    """Camera-ready: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i)."""

    kind: Literal["pi"]
    target_deletion_rate: Rate
    k_p: NonNegativeFloat = 0.5
    k_i: NonNegativeFloat = 1e-5
    alpha_start: float = Field(0.0, description="used until the first update, then forgotten, as in the reference")
    every_steps: PositiveInt = 1
    update_per: Literal["optimizer_step", "micro_batch"] = "optimizer_step"


class TwoSidedPIController(Section):
    """PI whose alpha may turn negative, which pushes back when too much is deleted, with anti-windup."""

    kind: Literal["pi_two_sided"]
    target_deletion_rate: Rate
    k_p: NonNegativeFloat = 0.5
    k_i: NonNegativeFloat = 1e-5
    alpha_max: PositiveFloat = Field(1.0, description="alpha stays within plus and minus this; the integral stops there")
    every_steps: PositiveInt = 1
    update_per: Literal["optimizer_step", "micro_batch"] = "optimizer_step"


Controller = Annotated[
    ConstantController | PController | PIController | TwoSidedPIController, Field(discriminator="kind")
]


# --- training and evaluation ----------------------------------------------------------------------------------------


class TrainingSection(Section):
    """The optimizer, its schedule, and what is written when."""

    max_steps: PositiveInt = Field(description="optimizer steps")
    batch_size: PositiveInt = Field(1024, description="examples an optimizer step, over all devices")
    device_batch_size: PositiveInt = Field(8, description="examples a forward pass on one device")
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Count = 0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast; fp16 overflows in T5")
    compile: bool = Field(False, description="torch.compile the model")
    data_workers: Count = Field(0, description="processes that prepare batches beside the training process")
    logging_steps: PositiveInt = 10
    eval_steps: Count = Field(0, description="evaluate on validation data every so many steps; 0: only `mrt5 evaluate`")
    save_steps: PositiveInt = Field(500, description="a checkpoint every so many steps, and at the end")
    keep_checkpoints: PositiveInt = Field(2, description="older checkpoints are deleted")


class EvaluationSection(Section):
    """What `mrt5 evaluate` measures when no flag says otherwise."""

    examples: PositiveInt = Field(10_000, description="held-out examples a language or split")
    batch_size: PositiveInt = 16
    hard_delete: bool = Field(True, description="delete for real, as at inference; false: soft gates as in training")


class PaperSection(Section):
    """Which published numbers the run is compared with."""

    version: Literal["v1", "v3"] = Field(description="v1: arXiv October 2024; v3: ICLR camera-ready")
    experiment: str
    rows: list[str] = Field([], description="ids in the published results")
    note: str | None = None


class Recipe(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")] = Field(description="names the run directory")
    description: str
    seed: Count = 42
    task: TaskSection
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    controller: Controller = ConstantController(kind="constant")
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    paper: PaperSection | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        gated = self.model.shortener.kind == "delete_gate"
        if not gated and self.controller != ConstantController(kind="constant"):
            raise ValueError(f"a controller needs model.shortener.kind: delete_gate, not {self.model.shortener.kind!r}")
        if self.training.batch_size % self.training.device_batch_size:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not a multiple of "
                f"training.device_batch_size {self.training.device_batch_size}"
            )
        return self

    @property
    def target_deletion_rate(self) -> float | None:
        """The controller's target, a fraction of non-pad positions, or None."""
        return getattr(self.controller, "target_deletion_rate", None)
