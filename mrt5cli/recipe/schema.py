"""The schema of recipes, section by section.

Every section is a closed, frozen, strict pydantic model: an unknown key, a string instead of a number, or a
setting of another kind is an error that names the file, the key and what was expected. Defaults are the
paper's (MrT5, ICLR 2025) wherever it specifies one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from mrt5cli import bounds
from mrt5cli.extras import how_to_install
from mrt5cli.metrics.catalog import choosers
from mrt5cli.recipe import tasks
from mrt5cli.recipe.section import (
    SEED,
    BatchSize,
    Coefficient,
    DropProbability,
    Examples,
    Fraction,
    Layers,
    Line,
    Name,
    NonNegative,
    Rate,
    Section,
    Seed,
    Start,
    Steps,
    StepsOrNone,
    TargetLength,
    Text,
    Width,
    union_of,
    when_kinds_are_added,
)
from mrt5cli.recipe.shorteners import SHORTENERS, NoShortener, ShortenerSection
from mrt5cli.recipe.tasks import DiagnosticTask, RowTask, TaskSection
from mrt5cli.text import listed

# --- model --------------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    Shortener = ShortenerSection
else:
    Shortener = Annotated[union_of(SHORTENERS), Field(discriminator="kind")]


class Shape(Section):
    """Sizes of a model built from scratch; the defaults are those of ByT5-small."""

    d_model: Width = Field(1472, description="width of the hidden states")
    d_ff: Width = Field(3584, description="width of the feed-forward layers")
    d_kv: Annotated[int, Field(ge=1, le=bounds.HEAD_WIDTH)] = Field(
        64, description="width of one attention head"
    )
    num_heads: Annotated[int, Field(ge=1, le=bounds.HEADS)] = Field(
        6, description="number of attention heads"
    )
    num_layers: Layers = Field(12, description="number of encoder blocks")
    num_decoder_layers: Layers = Field(4, description="number of decoder blocks")
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=bounds.HEAD_WIDTH)] = Field(
        32, description="number of buckets for relative distances"
    )
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=bounds.LENGTH)] = Field(
        128, description="distances beyond it share the last bucket"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        half = self.relative_attention_num_buckets // 2
        if self.relative_attention_max_distance <= half:
            text = f"must be greater than half of relative_attention_num_buckets, {half}"
            yield "relative_attention_max_distance", text


class ModelSection(Section):
    """The model to train."""

    start: Start = Field(
        "google/byt5-small",
        description="initial weights: 'scratch', a run directory, a checkpoint directory or a Hub id; {seed} "
        "is replaced by the recipe's seed",
    )
    revision: Line | None = Field(
        None, description="branch, tag or commit of a Hub model; null: the current main branch"
    )
    shape: Shape | None = Field(
        None, description="sizes of the model, only with start: scratch; null: ByT5-small's"
    )
    initialization: Literal["t5", "depth_scaled"] = Field(
        "t5",
        description="initialization of the weights, only with start: scratch; 'depth_scaled' is what the "
        "reference uses from scratch",
    )
    shortener: Shortener = Field(
        NoShortener(kind="none"), description="the module that shortens the sequence, and where it sits"
    )
    softmax1: bool = Field(
        True, description="use softmax1 in every attention layer, so that a head may attend to nothing"
    )
    positions: Literal["relative", "absolute"] = Field(
        "relative", description="T5's relative position bias, or learned absolute positions"
    )
    max_positions: TargetLength = Field(
        1024, description="number of learned positions, only with positions: absolute"
    )
    dropout: DropProbability = Field(0.1, description="probability of dropping a unit")
    attention_dropout: DropProbability | None = Field(
        None,
        description="probability of dropping an attention weight; null: same as dropout, as in the paper",
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        scratch = self.start == "scratch"
        if scratch and self.revision is not None:
            yield "revision", "only applies to a Hub model; start: scratch has random weights"
        if not scratch and self.shape is not None:
            yield "shape", "only applies to start: scratch; a checkpoint has its own shape"
        if not scratch and self.initialization != "t5":
            yield "initialization", "only applies to start: scratch; a checkpoint has its own weights"
        if self.positions == "relative" and not self.is_default("max_positions"):
            yield "max_positions", "only applies to positions: absolute, but positions is relative"
        layers = (self.shape or Shape()).num_layers
        layer = getattr(self.shortener, "layer", None)
        if scratch and layer is not None and layer >= layers:
            text = f"must be less than the {layers} layers of the encoder, not {layer}"
            yield "shortener.layer", text


# --- loss and controller ------------------------------------------------------------------------------------


class LossSection(Section):
    """Total loss = cross-entropy + alpha * gate loss + score_coefficient * score loss (paper 3.2, app. D)."""

    gate_loss: Literal["gate_mean", "clamped_logits_mean", "logits_mean", "gate_variance"] = Field(
        "gate_mean", description="the term that alpha weighs; the paper's is the mean gate of non-pad bytes"
    )
    entropy_coefficient_1: Coefficient = Field(
        0.0, description="weight of the reference's first entropy term; alpha does not scale it"
    )
    entropy_coefficient_2: Coefficient = Field(
        0.0, description="weight of the reference's second entropy term; alpha does not scale it"
    )
    score_coefficient: NonNegative = Field(0.0, description="beta: weight of the attention-score regulariser")
    score_per: Literal["row", "batch"] = Field(
        "row",
        description="how the score loss is averaged: over each row's own pairs of positions, or, as in the "
        "reference, over all pairs of the padded batch",
    )
    average_per: Literal["optimizer_step", "micro_batch"] = Field(
        "optimizer_step",
        description="how each part of the loss is averaged: over all target tokens, source bytes and so on "
        "of an optimizer step, on all devices; or, as in the reference, first within each forward pass and "
        "then over passes, so that tokens of a short batch weigh more",
    )
    regularizer_delay: StepsOrNone = Field(
        0, description="optimizer steps before the gate loss and the controller start"
    )
    hard_delete_probability: Fraction = Field(
        0.0, description="fraction of training batches that use hard deletion"
    )


class ConstantController(Section):
    """A fixed deletion coefficient alpha."""

    kind: Literal["constant"]
    alpha: Coefficient = Field(0.0, description="weight of the gate loss")


class SteeringController(Section):
    """A controller that adjusts alpha to reach a target deletion rate."""

    kind: str
    target_deletion_rate: Rate = Field(description="fraction of non-pad bytes to delete")
    every_steps: Steps = Field(1, description="optimizer steps between updates")
    update_per: Literal["optimizer_step", "micro_batch"] = Field(
        "optimizer_step",
        description="update once per optimizer step, or, as in the reference, once per micro-batch, where "
        "the gain grows with gradient accumulation",
    )


class PController(SteeringController):
    """The paper's v1: alpha <- max(0, alpha + k_p * error), every few steps."""

    kind: Literal["p"]
    every_steps: Steps = Field(10, description="optimizer steps between updates")
    k_p: NonNegative = Field(1e-6, description="gain")
    alpha_start: NonNegative = Field(0.0, description="alpha before the first update")


class PIController(SteeringController):
    """The camera-ready's: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i)."""

    kind: Literal["pi"]
    k_p: NonNegative = Field(0.5, description="proportional gain")
    k_i: NonNegative = Field(1e-5, description="integral gain")
    alpha_start: Coefficient = Field(
        0.0, description="alpha before the first update, which discards it, as in the reference"
    )


class TwoSidedPIController(SteeringController):
    """A PI controller with anti-windup whose alpha may be negative, to push back if too much is deleted."""

    kind: Literal["pi_two_sided"]
    k_p: NonNegative = Field(0.5, description="proportional gain")
    k_i: NonNegative = Field(1e-5, description="integral gain")
    alpha_max: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.COEFFICIENT)] = Field(
        1.0, description="bound of alpha's absolute value; the integral stops there"
    )
    k_d: NonNegative = Field(
        0.0,
        description="derivative gain: subtracts k_d times the change of the rate per update from alpha; 20 "
        "times k_p damps an oscillating rate",
    )


Controller = Annotated[
    ConstantController | PController | PIController | TwoSidedPIController, Field(discriminator="kind")
]


# --- training and evaluation --------------------------------------------------------------------------------


def _chooser(name: str) -> str:
    # Not a `Literal`, because custom code may register metrics later.
    if name not in choosers():
        *some, last = map(repr, choosers())
        raise ValueError(f"expected {', '.join(some)} or {last}, not {name!r}")
    return name


BestMetric = Annotated[str, AfterValidator(_chooser), WithJsonSchema({"enum": choosers()})]


class LoraSection(Section):
    """Low-rank adapters (LoRA), trained instead of the weights; the shortener is still trained in full."""

    rank: Annotated[int, Field(ge=1, le=bounds.HEAD_WIDTH)] = Field(8, description="rank of each adapter")
    alpha: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.COEFFICIENT)] = Field(
        16.0, description="adapters are scaled by alpha / rank"
    )
    targets: list[Literal["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]] = Field(
        ["q", "v"],
        min_length=1,
        max_length=8,
        description="weight matrices with an adapter, in every layer: queries, keys, values and outputs of "
        "self- and cross-attention (q, k, v, o), the feed-forward layer (wi_0, wi_1, wo), the head (lm_head)",
    )
    dropout: DropProbability = Field(0.0, description="probability of dropping an input of an adapter")


class TrainingSection(Section):
    """The optimizer, its schedule, and when to log, evaluate and save."""

    max_steps: Steps = Field(description="total optimizer steps")
    continues_from: StepsOrNone = Field(
        0,
        description="step of a finished run from which --continue-for continues, which sets this key; warmup "
        "and schedule start there",
    )
    batch_size: BatchSize = Field(1024, description="examples per optimizer step, over all devices")
    device_batch_size: BatchSize = Field(8, description="examples per forward pass on one device")
    batch_tokens: Annotated[int, Field(ge=1, le=bounds.BATCH_TOKENS)] | None = Field(
        None,
        description="replaces device_batch_size for examples of different lengths: byte tokens per forward "
        "pass on one device, counted as rows times the sum of the longest source and the longest target; the "
        "examples of each optimizer step are sorted by length and divided accordingly",
    )
    learning_rate: Annotated[float, Field(ge=bounds.SMALLEST, le=1e3)] = Field(
        1e-4, description="peak learning rate of AdamW"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="decay of the learning rate after the warmup, to 0 at max_steps"
    )
    warmup_steps: StepsOrNone = Field(
        0, description="optimizer steps over which the learning rate rises from 0"
    )
    weight_decay: Annotated[float, Field(ge=0.0, le=1e3)] = Field(0.0, description="AdamW's weight decay")
    adam_beta1: Rate = Field(0.9, description="AdamW's decay rate of the first moment")
    adam_beta2: Rate = Field(0.999, description="AdamW's decay rate of the second moment")
    adam_epsilon: Annotated[float, Field(ge=bounds.SMALLEST, le=1.0)] = Field(
        1e-8, description="AdamW's epsilon"
    )
    max_grad_norm: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.LARGEST)] = Field(
        1.0, description="gradients are clipped to this norm"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32, or bf16 by autocast; fp16 is not supported, because T5 overflows in it"
    )
    lora: LoraSection | None = Field(
        None,
        description="train low-rank adapters (LoRA) and the shortener instead of all weights; needs the "
        "package peft; null: all weights",
    )
    recompute: Literal["none", "selective", "blocks"] = Field(
        "none",
        description="what the backward pass recomputes to save memory: 'selective', norms, activations and "
        "dropout; 'blocks', everything inside each block",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="how several processes store weights, gradients and Adam's moments: 'none', each stores "
        "all of them; 'fsdp', each stores its shard, with PyTorch's FSDP2",
    )
    compile: bool = Field(
        False, description="torch.compile the feed-forward half of each block, once for all lengths"
    )
    data_workers: Annotated[int, Field(ge=0, le=bounds.WORKERS)] = Field(
        0, description="processes that prepare batches in parallel with the training process"
    )
    logging_steps: Steps = Field(10, description="optimizer steps between lines of metrics")
    eval_steps: StepsOrNone = Field(
        0, description="optimizer steps between evaluations on validation data; 0: none during training"
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [],
        max_length=3,
        description="experiment trackers that also receive the metrics, through transformers' callbacks; "
        "each needs the package of its name",
    )
    save_steps: Steps = Field(
        100, description="optimizer steps between checkpoints; one is also saved at the end"
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=bounds.CHECKPOINTS)] = Field(
        2, description="number of checkpoints to keep; older ones are deleted"
    )
    best_metric: BestMetric | None = Field(
        None,
        description="keep the weights that are best by this metric on validation data, with the evaluation "
        "section's deletion; needs eval_steps; null: keep the last weights",
    )
    patience: Steps | None = Field(
        None, description="evaluations without a better best_metric before training stops; null: never"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.continues_from >= self.max_steps:
            text = f"must be less than training.max_steps {self.max_steps}, not {self.continues_from}"
            yield "continues_from", text
        elif self.warmup_steps > (steps := self.max_steps - self.continues_from):
            most = f"the {steps} remaining steps" if self.continues_from else f"training.max_steps {steps}"
            yield (
                "warmup_steps",
                f"{self.warmup_steps} exceeds {most}, so the learning rate would never reach "
                "training.learning_rate; lower it too",
            )
        if self.best_metric is not None and not self.eval_steps:
            yield "best_metric", "needs eval_steps above 0, because it is measured on validation data"
        if self.sharding == "fsdp" and self.lora is not None:
            yield "sharding", "must be none with training.lora, which leaves little to shard"
        if self.sharding == "fsdp" and self.compile:
            yield "sharding", "must be none with training.compile, whose graphs read complete weights"
        if self.patience is not None and self.best_metric is None:
            yield "patience", "needs best_metric, because it counts evaluations without a better one"
        if len({*self.report_to}) < len(self.report_to):
            yield "report_to", "lists a tracker twice"

    def lacks(self) -> tuple[str, str] | None:
        """The packages that `report_to` needs and that are not installed, with the command to install them.

        The recipe is valid without them, but it cannot be trained.
        """
        specs = {name: importlib.util.find_spec(name) for name in self.report_to}
        # A folder wandb/ in the working directory, which wandb creates, is a package without an origin.
        missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
        if not missing:
            return None
        noun, verb = ("package", "is") if len(missing) == 1 else ("packages", "are")
        text = f"needs the {noun} {' and '.join(missing)}, which {verb} not installed"
        return text, how_to_install(*missing)


class GenerationSection(Section):
    """How answers are generated for scoring."""

    num_beams: Annotated[int, Field(ge=1, le=bounds.BEAMS)] = Field(
        1, description="number of beams; 1: greedy decoding"
    )
    max_new_tokens: TargetLength | None = Field(
        None,
        description="maximum byte tokens of an answer, EOS included; null: the task's maximum target length",
    )
    length_penalty: Annotated[float, Field(ge=-bounds.PENALTY, le=bounds.PENALTY)] = Field(
        1.0,
        description="a beam's score is divided by its length to this power; above 0 favors long answers",
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.num_beams == 1 and not self.is_default("length_penalty"):
            yield "length_penalty", "only applies to beam search, but num_beams is 1"

    def named(self) -> list[str]:
        """The settings that differ from the defaults, as parts of a file name."""
        names = {"num_beams": "beams", "max_new_tokens": "longest", "length_penalty": "penalty"}
        return [f"{name}{getattr(self, key):g}" for key, name in names.items() if not self.is_default(key)]


class EvaluationSection(Section):
    """The defaults of `mrt5 evaluate`."""

    examples: Examples = Field(10_000, description="held-out examples per language or split")
    batch_size: BatchSize = Field(16, description="examples per forward pass")
    hard_delete: bool = Field(
        True, description="remove bytes, as at inference; false: soft deletion, as in training"
    )
    generation: GenerationSection = Field(
        GenerationSection(), description="how answers are generated, if a metric of the task scores them"
    )


class PaperSection(Section):
    """The published numbers that the run is compared with."""

    version: Literal["v1", "v3"] = Field(
        description="version of the paper; v1: arXiv, October 2024; v3: ICLR camera-ready"
    )
    experiment: Line = Field(description="name of the paper's experiment")
    rows: list[Line] = Field(
        [], max_length=bounds.LANGUAGES, description="ids of rows of the published results"
    )
    note: Text | None = Field(None, description="a caveat of the comparison")


def with_seed_filled_in(tree: Any) -> Any:
    """A recipe's tree with `{seed}` in `model.start` replaced by its seed."""
    match tree:
        case {"model": {"start": str(start), **model}}:
            seed = tree.get("seed", Recipe.model_fields["seed"].default)
            if type(seed) is int and 0 <= seed <= bounds.SEED:  # any other is reported by validation
                return {**tree, "model": {**model, "start": start.replace(SEED, str(seed))}}
    return tree


class Recipe(Section):
    """A complete run. `{seed}` in `model.start` is replaced once: a copy with another seed keeps it."""

    name: Name = Field(description="name of the run, part of its directory's name")
    description: Text = Field(description="one sentence: what is trained, and for what purpose")
    seed: Seed = Field(42, description="seed of weights, data order, dropout and random deletion")
    task: TaskSection = Field(description="the data and the objective")
    model: ModelSection = Field(ModelSection(), description="the model to train")
    loss: LossSection = Field(LossSection(), description="the training loss")
    controller: Controller = Field(
        ConstantController(kind="constant"), description="how alpha, the weight of the gate loss, is set"
    )
    training: TrainingSection = Field(
        description="the optimizer, its schedule, and when to log, evaluate and save"
    )
    evaluation: EvaluationSection = Field(EvaluationSection(), description="the defaults of `mrt5 evaluate`")
    paper: PaperSection | None = Field(None, description="published numbers to compare the run with")

    @model_validator(mode="before")
    @classmethod
    def _settled(cls, tree: Any) -> Any:
        return with_seed_filled_in(tree)

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from self._misfits_of_gates()
        training = self.training
        if training.batch_tokens is not None:
            yield from self._misfits_of_batch_tokens()
        elif training.batch_size % training.device_batch_size:
            yield (
                "training.batch_size",
                f"{training.batch_size} is not a multiple of training.device_batch_size "
                f"{training.device_batch_size}",
            )
        if self.model.positions == "absolute":
            own = "length" if isinstance(self.task, DiagnosticTask) else "input_length"
            lengths = {own: self.task.longest_source} | {
                key: getattr(self.task, key, None) or 0 for key in ("answer_length", "target_length")
            }
            for key, length in lengths.items():
                if length > self.model.max_positions:
                    text = f"{self.model.max_positions} is less than task.{key} {length}"
                    yield "model.max_positions", text
            if (most := self.evaluation.generation.max_new_tokens or 0) > self.model.max_positions:
                yield (
                    "evaluation.generation.max_new_tokens",
                    f"{most} exceeds model.max_positions {self.model.max_positions}",
                )

    def _misfits_of_batch_tokens(self) -> Iterator[tuple[str, str]]:
        """Settings that treat forward passes individually, which then differ in size."""
        for key, value in (
            ("loss.average_per", self.loss.average_per),
            ("controller.update_per", getattr(self.controller, "update_per", None)),
        ):
            if value == "micro_batch":
                yield key, "must not be micro_batch with training.batch_tokens, which divides steps unevenly"

    def _misfits_of_gates(self) -> Iterator[tuple[str, str]]:
        """Settings that need a delete gate that the model lacks, or that never take effect."""
        shortener, delay, steps = self.model.shortener, self.loss.regularizer_delay, self.training.max_steps
        steering = self.controller != ConstantController(kind="constant")
        if steering and not shortener.steered:
            yield (
                "controller",
                f"{self.controller.kind!r} has nothing to control: model.shortener is "
                f"{shortener.kind!r}, not 'delete_gate'; leave it out, or set it to "
                "{kind: constant}",
            )
        if steering and shortener.steered and delay >= steps:
            yield (
                "loss.regularizer_delay",
                f"must be less than training.max_steps {steps}, not {delay}; otherwise the gate never learns "
                "to delete",
            )
        if not shortener.steered:
            for key in ("gate_loss", "entropy_coefficient_1", "entropy_coefficient_2", "regularizer_delay"):
                if not self.loss.is_default(key):
                    text = f"needs a delete gate, but model.shortener is {shortener.kind!r}"
                    yield f"loss.{key}", text
        if self.loss.hard_delete_probability and not shortener.gates:
            text = f"needs a shortener with gates, but model.shortener is {shortener.kind!r}"
            yield "loss.hard_delete_probability", text

    def remarks(self) -> list[str]:
        """Settings without effect in this combination, one sentence each: odd, but not an error."""
        training, found = self.training, []
        if training.eval_steps > training.max_steps and training.best_metric is None:
            found.append(
                f"training.eval_steps {training.eval_steps} exceeds training.max_steps "
                f"{training.max_steps}: nothing is measured on validation data"
            )
        if training.lora is not None and self.model.start == "scratch":
            found.append("training.lora hardly changes the random weights of model.start: scratch")
        found += self._unused_configurations()
        return found

    def _unused_configurations(self) -> Iterator[str]:
        for number, source in enumerate(self.task.every_source):
            own, of_task = getattr(source, "languages", None), getattr(self.task, "languages", ())
            configured = getattr(source, "configurations", {})
            if unused := [code for code in configured if code not in (own or of_task)]:
                key = f"task.sources[{number}]" if getattr(self.task, "sources", ()) else "task.source"
                languages = f"{key}.languages" if own else "task.languages"
                named = f"{key}.configurations names {listed(unused)}"
                yield f"{named}, which is not in {languages} and therefore not used"

    @property
    def target_deletion_rate(self) -> float | None:
        """The controller's target, as a fraction (0 to 1) of non-pad positions, or None."""
        return getattr(self.controller, "target_deletion_rate", None)

    @property
    def is_finetuning(self) -> bool:
        """Whether an existing model is trained on a downstream task."""
        return isinstance(self.task, RowTask) and self.model.start != "scratch"


@when_kinds_are_added
def _with_added_kinds() -> None:
    """Rebuild the schema with every kind of shortener and task that is registered now."""
    ModelSection.model_fields["shortener"].annotation = union_of(SHORTENERS)
    Recipe.model_fields["task"].annotation = union_of(tasks.SECTIONS)
    for section in (ModelSection, Recipe):
        section.model_rebuild(force=True)
