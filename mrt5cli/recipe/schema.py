"""The schema of recipes, section by section.

Every section is a closed, frozen, strict pydantic model: an unknown key, a string where a number belongs or a
setting of another kind is an error that names the file, the key and what was expected. Defaults are the
paper's (MrT5, ICLR 2025) wherever the paper has one.
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
    """Sizes of a model built from scratch; the defaults are ByT5-small's."""

    d_model: Width = Field(1472, description="width of the hidden states")
    d_ff: Width = Field(3584, description="width of the feed-forward layers")
    d_kv: Annotated[int, Field(ge=1, le=bounds.HEAD_WIDTH)] = Field(
        64, description="width of one attention head"
    )
    num_heads: Annotated[int, Field(ge=1, le=bounds.HEADS)] = Field(6, description="attention heads")
    num_layers: Layers = Field(12, description="encoder blocks")
    num_decoder_layers: Layers = Field(4, description="decoder blocks")
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=bounds.HEAD_WIDTH)] = Field(
        32, description="buckets of relative distances"
    )
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=bounds.LENGTH)] = Field(
        128, description="distances beyond it share the last bucket"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        half = self.relative_attention_num_buckets // 2
        if self.relative_attention_max_distance <= half:
            text = f"must be above half of relative_attention_num_buckets, {half}"
            yield "relative_attention_max_distance", text


class ModelSection(Section):
    """What is trained."""

    start: Start = Field(
        "google/byt5-small",
        description="'scratch', a run directory, a checkpoint directory or a Hub id; {seed} in it stands for "
        "the recipe's seed",
    )
    revision: Line | None = Field(
        None, description="branch, tag or commit of a Hub model; null: what its main branch is then"
    )
    shape: Shape | None = Field(None, description="only with start: scratch; null: ByT5-small's")
    initialization: Literal["t5", "depth_scaled"] = Field(
        "t5",
        description="only with start: scratch; 'depth_scaled' is the reference's from-scratch initialisation",
    )
    shortener: Shortener = Field(
        NoShortener(kind="none"), description="what shortens the sequence, and where"
    )
    softmax1: bool = Field(True, description="softmax1 in every attention: a head may attend to nothing")
    positions: Literal["relative", "absolute"] = Field(
        "relative", description="T5's relative bias, or learned absolute positions"
    )
    max_positions: TargetLength = Field(1024, description="only with positions: absolute")
    dropout: DropProbability = Field(0.1, description="probability of dropping a unit")
    attention_dropout: DropProbability | None = Field(
        None,
        description="probability of dropping an attention weight; null: as dropout, which is the paper's",
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        scratch = self.start == "scratch"
        if scratch and self.revision is not None:
            yield "revision", "is only for a Hub model; start: scratch has random weights"
        if not scratch and self.shape is not None:
            yield "shape", "is only for start: scratch; a checkpoint brings its own"
        if not scratch and self.initialization != "t5":
            yield "initialization", "is only for start: scratch; a checkpoint brings its own weights"
        if self.positions == "relative" and not self.is_default("max_positions"):
            yield "max_positions", "is only for model.positions: absolute, and those are relative"
        layers = (self.shape or Shape()).num_layers
        layer = getattr(self.shortener, "layer", None)
        if scratch and layer is not None and layer >= layers:
            text = f"{layer} is not below the encoder's {layers} layers; it would never be reached"
            yield "shortener.layer", text


# --- loss and controller ------------------------------------------------------------------------------------


class LossSection(Section):
    """Total loss = cross-entropy + alpha * gate loss + score_coefficient * score loss (paper 3.2, app. D)."""

    gate_loss: Literal["gate_mean", "clamped_logits_mean", "logits_mean", "gate_variance"] = Field(
        "gate_mean", description="what alpha weighs; the paper's is the mean gate value of non-pad bytes"
    )
    entropy_coefficient_1: Coefficient = Field(
        0.0, description="reference's first entropy term, outside alpha"
    )
    entropy_coefficient_2: Coefficient = Field(
        0.0, description="reference's second entropy term, outside alpha"
    )
    score_coefficient: NonNegative = Field(0.0, description="beta: weight of the attention-score regulariser")
    score_per: Literal["row", "batch"] = Field(
        "row",
        description="what the score loss is a mean over: each row's own pairs of positions, or, as in the "
        "reference, all that the batch has room for, padding included",
    )
    average_per: Literal["optimizer_step", "micro_batch"] = Field(
        "optimizer_step",
        description="what each part of the loss is a mean over: all that an optimizer step has of target "
        "tokens, source bytes and so on, on all devices; or 'micro_batch', as in the reference, the mean of "
        "the means of each forward pass, where what is in a short batch weighs more",
    )
    regularizer_delay: StepsOrNone = Field(
        0, description="optimizer steps before the gate loss and the controller start"
    )
    hard_delete_probability: Fraction = Field(
        0.0, description="share of training batches run with hard deletion"
    )


class ConstantController(Section):
    """A fixed deletion coefficient alpha."""

    kind: Literal["constant"]
    alpha: Coefficient = Field(0.0, description="weight of the gate loss")


class SteeringController(Section):
    """A controller that moves alpha until the share of deleted bytes is what it should be."""

    kind: str
    target_deletion_rate: Rate = Field(description="fraction of non-pad bytes to delete")
    every_steps: Steps = Field(1, description="optimizer steps between updates")
    update_per: Literal["optimizer_step", "micro_batch"] = Field(
        "optimizer_step",
        description="'micro_batch' is the reference's: the gain then grows with gradient accumulation",
    )


class PController(SteeringController):
    """v1 of the paper: alpha <- max(0, alpha + k_p * error), every few steps."""

    kind: Literal["p"]
    every_steps: Steps = Field(10, description="optimizer steps between updates")
    k_p: NonNegative = Field(1e-6, description="gain")
    alpha_start: NonNegative = Field(0.0, description="alpha before the first update")


class PIController(SteeringController):
    """Camera-ready: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i)."""

    kind: Literal["pi"]
    k_p: NonNegative = Field(0.5, description="proportional gain")
    k_i: NonNegative = Field(1e-5, description="integral gain")
    alpha_start: Coefficient = Field(
        0.0, description="used until the first update, then forgotten, as in the reference"
    )


class TwoSidedPIController(SteeringController):
    """PI whose alpha may turn negative, which pushes back when too much is deleted, with anti-windup."""

    kind: Literal["pi_two_sided"]
    k_p: NonNegative = Field(0.5, description="proportional gain")
    k_i: NonNegative = Field(1e-5, description="integral gain")
    alpha_max: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.COEFFICIENT)] = Field(
        1.0, description="alpha stays within plus and minus this; the integral stops there"
    )
    k_d: NonNegative = Field(
        0.0,
        description="derivative gain: takes k_d times what the rate rises an update from alpha; 20 times k_p "
        "damps a rate that swings",
    )


Controller = Annotated[
    ConstantController | PController | PIController | TwoSidedPIController, Field(discriminator="kind")
]


# --- training and evaluation --------------------------------------------------------------------------------


def _chooser(name: str) -> str:
    # Not a `Literal`: a file of the user's own may register metrics later.
    if name not in choosers():
        *some, last = map(repr, choosers())
        raise ValueError(f"expected {', '.join(some)} or {last}, not {name!r}")
    return name


BestMetric = Annotated[str, AfterValidator(_chooser), WithJsonSchema({"enum": choosers()})]


class LoraSection(Section):
    """Changes of low rank (LoRA), trained in place of weights; the shortener is trained as a whole."""

    rank: Annotated[int, Field(ge=1, le=bounds.HEAD_WIDTH)] = Field(8, description="rank of each change")
    alpha: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.COEFFICIENT)] = Field(
        16.0, description="changes are scaled by alpha / rank"
    )
    targets: list[Literal["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]] = Field(
        ["q", "v"],
        min_length=1,
        max_length=8,
        description="weight matrices that are changed, in every layer: queries, keys, values and outputs of "
        "self- and cross-attention (q, k, v, o), the feed-forward layer (wi_0, wi_1, wo), the head (lm_head)",
    )
    dropout: DropProbability = Field(0.0, description="probability of dropping an input of a change")


class TrainingSection(Section):
    """The optimizer, its schedule, and what is written when."""

    max_steps: Steps = Field(description="optimizer steps")
    continues_from: StepsOrNone = Field(
        0,
        description="steps of a finished run that --continue-for goes on from, and writes here; warmup and "
        "schedule begin there",
    )
    batch_size: BatchSize = Field(1024, description="examples an optimizer step, over all devices")
    device_batch_size: BatchSize = Field(8, description="examples a forward pass on one device")
    batch_tokens: Annotated[int, Field(ge=1, le=bounds.BATCH_TOKENS)] | None = Field(
        None,
        description="in place of device_batch_size, for examples of unlike length: byte tokens a forward "
        "pass on one device, which are its rows times its longest source and longest target together; the "
        "examples of each optimizer step are sorted by length and divided by this",
    )
    learning_rate: Annotated[float, Field(ge=bounds.SMALLEST, le=1e3)] = Field(
        1e-4, description="peak learning rate of AdamW"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warmup, to 0 at max_steps"
    )
    warmup_steps: StepsOrNone = Field(
        0, description="optimizer steps over which the learning rate rises from 0"
    )
    weight_decay: Annotated[float, Field(ge=0.0, le=1e3)] = Field(0.0, description="AdamW's decay")
    adam_beta1: Rate = Field(0.9, description="AdamW's first decay rate")
    adam_beta2: Rate = Field(0.999, description="AdamW's second decay rate")
    adam_epsilon: Annotated[float, Field(ge=bounds.SMALLEST, le=1.0)] = Field(
        1e-8, description="AdamW's epsilon"
    )
    max_grad_norm: Annotated[float, Field(ge=bounds.SMALLEST, le=bounds.LARGEST)] = Field(
        1.0, description="gradients are clipped to this norm"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast; fp16 overflows in T5")
    lora: LoraSection | None = Field(
        None,
        description="train small changes of some weights, and the shortener, in place of all weights; needs "
        "the package peft; null: all weights",
    )
    recompute: Literal["none", "selective", "blocks"] = Field(
        "none",
        description="computed again in backward instead of kept: 'selective', norms, activations, dropout; "
        "'blocks', everything inside each block",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="what several processes hold of weights, gradients and Adam's moments: 'none', all of "
        "them; 'fsdp', each its share, by PyTorch's FSDP2",
    )
    compile: bool = Field(
        False, description="torch.compile the feed-forward half of each block, for any length"
    )
    data_workers: Annotated[int, Field(ge=0, le=bounds.WORKERS)] = Field(
        0, description="processes that prepare batches beside the training process"
    )
    logging_steps: Steps = Field(10, description="a line of metrics every so many steps")
    eval_steps: StepsOrNone = Field(
        0, description="evaluate on validation data every so many steps; 0: only `mrt5 evaluate`"
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [],
        max_length=3,
        description="trackers that each line of metrics is sent to as well, by transformers' callbacks; each "
        "needs the package of its name",
    )
    save_steps: Steps = Field(100, description="a checkpoint every so many steps, and at the end")
    keep_checkpoints: Annotated[int, Field(ge=1, le=bounds.CHECKPOINTS)] = Field(
        2, description="older checkpoints are deleted"
    )
    best_metric: BestMetric | None = Field(
        None,
        description="keep the weights that are best by this number on validation data, under the evaluation "
        "section's deletion; needs eval_steps; null: the last ones",
    )
    patience: Steps | None = Field(
        None, description="stop after so many evaluations without a better best_metric; null: never"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.continues_from >= self.max_steps:
            yield "continues_from", f"{self.continues_from} is not below training.max_steps {self.max_steps}"
        elif self.warmup_steps > (steps := self.max_steps - self.continues_from):
            most = f"the {steps} steps to go on for" if self.continues_from else f"training.max_steps {steps}"
            yield (
                "warmup_steps",
                f"{self.warmup_steps} is above {most}; the learning rate would "
                "never reach training.learning_rate; lower it too",
            )
        if self.best_metric is not None and not self.eval_steps:
            yield "best_metric", "needs eval_steps above 0: it is measured on validation data"
        if self.sharding == "fsdp" and self.lora is not None:
            yield "sharding", "must be none with training.lora, which leaves little to share out"
        if self.sharding == "fsdp" and self.compile:
            yield "sharding", "must be none with training.compile, whose graphs read whole weights"
        if self.patience is not None and self.best_metric is None:
            yield "patience", "needs best_metric: it counts evaluations without a better one"
        if len({*self.report_to}) < len(self.report_to):
            yield "report_to", "names a tracker twice"

    def lacks(self) -> tuple[str, str] | None:
        """What `report_to` needs and is not installed here, and the command that installs it: the recipe is
        right without, but cannot be trained."""
        specs = {name: importlib.util.find_spec(name) for name in self.report_to}
        # A folder wandb/ where one stands, as wandb leaves it, passes for a package, but without an origin.
        missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
        if not missing:
            return None
        packages = "package" if len(missing) == 1 else "packages"
        return f"needs the {packages} {' and '.join(missing)}, not installed here", how_to_install(*missing)


class GenerationSection(Section):
    """How answers are generated that are scored."""

    num_beams: Annotated[int, Field(ge=1, le=bounds.BEAMS)] = Field(1, description="1: greedy decoding")
    max_new_tokens: TargetLength | None = Field(
        None,
        description="byte tokens at most, EOS included; null: the longest that the task's targets may be",
    )
    length_penalty: Annotated[float, Field(ge=-bounds.PENALTY, le=bounds.PENALTY)] = Field(
        1.0, description="exponent of the length that a beam's score is divided by; above 0 favours long ones"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.num_beams == 1 and not self.is_default("length_penalty"):
            yield "length_penalty", "is only for beams, and num_beams is 1"

    def named(self) -> list[str]:
        """What differs from the defaults, as parts of a file's name."""
        names = {"num_beams": "beams", "max_new_tokens": "longest", "length_penalty": "penalty"}
        return [f"{name}{getattr(self, key):g}" for key, name in names.items() if not self.is_default(key)]


class EvaluationSection(Section):
    """What `mrt5 evaluate` measures when no flag says otherwise."""

    examples: Examples = Field(10_000, description="held-out examples a language or split")
    batch_size: BatchSize = Field(16, description="examples a forward pass")
    hard_delete: bool = Field(
        True, description="delete for real, as at inference; false: soft gates as in training"
    )
    generation: GenerationSection = Field(
        GenerationSection(), description="how answers are generated, if a metric of the task scores them"
    )


class PaperSection(Section):
    """Which published numbers the run is compared with."""

    version: Literal["v1", "v3"] = Field(description="v1: arXiv October 2024; v3: ICLR camera-ready")
    experiment: Line = Field(description="the paper's experiment")
    rows: list[Line] = Field([], max_length=bounds.LANGUAGES, description="ids in the published results")
    note: Text | None = Field(None, description="what the comparison must keep in mind")


def with_seed_filled_in(tree: Any) -> Any:
    """What is to be a recipe, with its own seed in the place of `{seed}` in `model.start`."""
    match tree:
        case {"model": {"start": str(start), **model}}:
            seed = tree.get("seed", Recipe.model_fields["seed"].default)
            if type(seed) is int and 0 <= seed <= bounds.SEED:  # another is refused with the recipe
                return {**tree, "model": {**model, "start": start.replace(SEED, str(seed))}}
    return tree


class Recipe(Section):
    """One run, whole. What it starts from is settled as soon as there is a recipe: a copy with another seed
    starts from the same."""

    name: Name = Field(description="names the run directory")
    description: Text = Field(description="one sentence: what is trained, and what for")
    seed: Seed = Field(42, description="of weights, data order, dropout and random deletion")
    task: TaskSection = Field(description="the data, and what is learned from it")
    model: ModelSection = Field(ModelSection(), description="what is trained")
    loss: LossSection = Field(LossSection(), description="what is minimised")
    controller: Controller = Field(
        ConstantController(kind="constant"), description="how alpha, the weight of the gate loss, is set"
    )
    training: TrainingSection = Field(description="the optimizer, its schedule, and what is written when")
    evaluation: EvaluationSection = Field(
        EvaluationSection(), description="what `mrt5 evaluate` measures when no flag says otherwise"
    )
    paper: PaperSection | None = Field(None, description="published numbers the run is compared with")

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
                    yield "model.max_positions", f"{self.model.max_positions} is below task.{key} {length}"
            if (most := self.evaluation.generation.max_new_tokens or 0) > self.model.max_positions:
                yield (
                    "evaluation.generation.max_new_tokens",
                    f"{most} is more than model.max_positions {self.model.max_positions}",
                )

    def _misfits_of_batch_tokens(self) -> Iterator[tuple[str, str]]:
        """Settings by which forward passes count one by one, which are unlike then."""
        for key, value in (
            ("loss.average_per", self.loss.average_per),
            ("controller.update_per", getattr(self.controller, "update_per", None)),
        ):
            if value == "micro_batch":
                yield key, "'micro_batch' would depend on how training.batch_tokens divides a step"

    def _misfits_of_gates(self) -> Iterator[tuple[str, str]]:
        """Settings about a delete gate that the shortener is not, or that never come to act on it."""
        shortener, delay, steps = self.model.shortener, self.loss.regularizer_delay, self.training.max_steps
        steering = self.controller != ConstantController(kind="constant")
        if steering and not shortener.steered:
            yield (
                "controller",
                f"{self.controller.kind!r} has nothing to control: model.shortener is "
                f"{shortener.kind!r}, not 'delete_gate'; leave it out or give alpha: 0",
            )
        if steering and shortener.steered and delay >= steps:
            yield (
                "loss.regularizer_delay",
                f"{delay} is not below training.max_steps {steps}; the gate would never be trained to delete",
            )
        if not shortener.steered:
            for key in ("gate_loss", "entropy_coefficient_1", "entropy_coefficient_2", "regularizer_delay"):
                if not self.loss.is_default(key):
                    yield f"loss.{key}", f"is about a delete gate, and model.shortener is {shortener.kind!r}"
        if self.loss.hard_delete_probability and not shortener.gates:
            text = f"model.shortener is {shortener.kind!r}: only gates delete softly or hard"
            yield "loss.hard_delete_probability", text

    def remarks(self) -> list[str]:
        """Settings that change nothing beside the others, a sentence each: odd, but no reason to refuse."""
        training, found = self.training, []
        if training.eval_steps > training.max_steps and training.best_metric is None:
            found.append(
                f"training.eval_steps {training.eval_steps} is above training.max_steps "
                f"{training.max_steps}: nothing is measured on validation data"
            )
        if training.lora is not None and self.model.start == "scratch":
            found.append("training.lora leaves the random weights of model.start: scratch nearly as they are")
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
                yield f"{named}, which is not in {languages}: it is not read"

    @property
    def target_deletion_rate(self) -> float | None:
        """The controller's target, a fraction of non-pad positions, or None."""
        return getattr(self.controller, "target_deletion_rate", None)

    @property
    def is_finetuning(self) -> bool:
        """Whether an existing model is trained on a downstream task."""
        return isinstance(self.task, RowTask) and self.model.start != "scratch"


@when_kinds_are_added
def _with_added_kinds() -> None:
    """Let recipes have every kind of shortener and task that is registered by now."""
    ModelSection.model_fields["shortener"].annotation = union_of(SHORTENERS)
    Recipe.model_fields["task"].annotation = union_of(tasks.SECTIONS)
    for section in (ModelSection, Recipe):
        section.model_rebuild(force=True)
