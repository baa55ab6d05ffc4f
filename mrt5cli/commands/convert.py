"""`mrt5 convert`: a checkpoint in another layout."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mrt5cli import bounds, places
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, named, option
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import say, shortened

if TYPE_CHECKING:
    from mrt5cli.convert.conversion import Outcome

LAYOUTS = {
    "mrt5": "this toolkit's layout",
    "byt5": "plain T5 v1.1, without the shortener",
    "reference": "the authors' layout",
    "reference-v1": "that of the first version of their code",
    "hub": "for plain transformers with trust_remote_code, with a model card",
    "onnx": "encoder and decoder for onnxruntime",
}


def _shard_size(text: str) -> str:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}(KB|MB|GB)", text.upper()):
        raise UserError(f"--max-shard-size '{shortened(text)}' is not a size", "for example 500MB or 5GB")
    return text


Source = Annotated[str, argument(f"{options.ANY_MODEL[:-1]}, whoever made it.", "SOURCE")]
Destination = Annotated[Path, argument("A directory that is not there yet.", "DEST", places.path)]
Layout = Annotated[
    Literal["mrt5", "byt5", "reference", "reference-v1", "hub", "onnx"],
    option("; ".join(f"{name}: {what}" for name, what in LAYOUTS.items()) + "."),
]
Layer = Annotated[
    int | None,
    amount("A new delete gate sits before this 0-based encoder block. Default: 3.", bounds.LAYERS - 1, 0),
]
Gate = Annotated[
    Literal["scaled_sigmoid", "log_sigmoid", "none"] | None,
    option("A new delete gate's activation. Default: scaled_sigmoid for a plain ByT5."),
]
Softmax1 = Annotated[
    bool | None,
    option("Attention. Default: the source's; softmax1 for an MrT5 start.", "--softmax1/--softmax"),
]
RecipeOfGate = Annotated[
    str | None, named("Take a new shortener, and softmax1, from this recipe.", metavar="RECIPE")
]
InferenceDeletion = Annotated[
    Literal["hard", "soft"] | None,
    option(
        "How the model deletes outside of training where a call from Python does not say (commands follow "
        "their recipe). Default: the source's, which is soft where it does not say; hard for a new gate."
    ),
]
Threshold = Annotated[
    float | None,
    amount(
        "Delete gate values up to this one from now on. Default: the source's.",
        bounds.COEFFICIENT,
        -bounds.COEFFICIENT,
        metavar="NUMBER",
    ),
]
Rate = Annotated[
    str | None,
    option(
        "Find the threshold that deletes this share of a task's validation text, and store both. A model "
        "with a quantile gate is told the rate.",
        metavar="RATE",
    ),
]
Task = Annotated[
    str | None,
    named("Of --deletion-rate: a task, or a recipe. Default: the source's own.", metavar="TASK"),
]
Data = Annotated[
    Path | None, options.path("Of --deletion-rate: examples in local files, in place of the task's own.")
]
Seed = Annotated[int, amount("Seed of a new shortener's weights.", bounds.SEED, 0)]
Dtype = Annotated[Literal["float32", "bfloat16"] | None, option("Of the weights. Default: the source's.")]
ShardSize = Annotated[
    str, typer.Option(parser=_shard_size, metavar="SIZE", help="Weights above it go into several files.")
]
Push = Annotated[
    str | None, option("With --to hub: upload too; a new repository is public.", metavar="OWNER/NAME")
]
License = Annotated[
    str | None,
    option(
        "With --to hub: the Hub's name of the weights' licence, such as apache-2.0. Default: what an earlier "
        "card says.",
        metavar="ID",
    ),
]
LicenseLink = Annotated[
    str | None,
    option("Where a licence is that the Hub has no name for; --license is its name then.", metavar="URL"),
]
Private = Annotated[bool, option("With --push: a new repository is seen by its owner only.", "--private")]


def convert(
    source: Source,
    destination: Destination,
    to: Layout,
    revision: options.Revision = None,
    layer: Layer = None,
    gate: Gate = None,
    softmax1: Softmax1 = None,
    recipe: RecipeOfGate = None,
    inference_deletion: InferenceDeletion = None,
    threshold: Threshold = None,
    deletion_rate: Rate = None,
    task: Task = None,
    data: Data = None,
    seed: Seed = 42,
    dtype: Dtype = None,
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    overwrite: options.Overwrite = False,
    max_shard_size: ShardSize = "5GB",
    push: Push = None,
    private: Private = False,
    license: License = None,
    license_link: LicenseLink = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a checkpoint in another layout; DEST appears whole or not at all.

    What is read: runs and models of this toolkit, the authors' checkpoints of every class, models published
    on the Hub (their code is not run), and plain ByT5, T5 v1.1, mT5 and umT5, which become an MrT5 start.

    Examples:

      mrt5 convert google/byt5-small mrt5-start --to mrt5

      mrt5 convert runs/mrt5-seed40 mrt5-mine --to hub --push me/mrt5-mine --license apache-2.0

      mrt5 convert their_checkpoint ours --to mrt5
    """
    if push is not None and to != "hub":
        raise UserError(f"--push uploads what --to hub makes, not --to {to}", "add --to hub")
    if private and push is None:
        raise UserError(
            "--private is of the repository that --push makes", "add --push REPO, or leave it out"
        )
    if (license or license_link) is not None and to != "hub":
        raise UserError("--license is stated in the model card, which --to hub writes", "add --to hub")
    if license is None and license_link is not None:
        raise UserError("--license-link is of a licence, and none is named", "add --license NAME")
    from mrt5cli.convert.license import stated

    licence = None if license is None else stated(license, license_link)
    rate = None
    if deletion_rate is not None:
        rate, *more = options.shares("--deletion-rate", deletion_rate)
        if more or threshold is not None:
            raise UserError("a model has one deletion threshold", "give one --deletion-rate, or --threshold")
    elif task is not None or data is not None:
        raise UserError("--task and --data are what --deletion-rate looks at", "add it, or leave them out")
    fields = _fields(layer, gate, softmax1, recipe)
    stored = {"inference_deletion": inference_deletion, "deletion_threshold": threshold}
    fields |= {name: value for name, value in stored.items() if value is not None}
    from rich.console import Console
    from rich.text import Text

    from mrt5cli.convert.conversion import ConversionOptions
    from mrt5cli.convert.conversion import convert as run

    conversion = ConversionOptions(
        to,
        revision=revision,
        fields=fields,
        deletion_rate=rate,
        task=task,
        data=None if data is None else str(data),
        dtype=dtype,
        allow_pickle=not no_pickle,
        seed=seed,
        overwrite=overwrite,
        shard_size=max_shard_size,
        repo_id=push,
        private=private,
        license=licence,
    )
    # Shown on a terminal only: reading and writing gigabytes takes a while.
    spinner = Console(stderr=True).status(Text(f"converting {source}"), spinner="line")
    outcome = run(source, destination, conversion, spinner)
    if as_json:
        print_json(asdict(outcome))
    else:
        present(outcome)


def present(outcome: Outcome) -> None:
    """Print what was written, what is new in it, and what to know."""
    say(
        f"{outcome.source} ({outcome.read}) -> {outcome.destination}: {LAYOUTS[outcome.layout]}\n"
        f"{outcome.model}; {outcome.weights:,} weights, {outcome.dtype}"
    )
    if outcome.fresh:
        say(f"new, drawn at random: {', '.join(outcome.fresh)}")
    for note in outcome.notes:
        say(f"note: {note}")
    if outcome.url:
        say(f"pushed: {outcome.url}")


def _fields(layer: int | None, gate: str | None, softmax1: bool | None, recipe: str | None) -> dict[str, Any]:
    """Configuration fields that the options stand for."""
    fields: dict[str, Any] = {}
    if recipe is not None:
        if layer is not None or gate is not None:
            raise UserError("--recipe brings its own gate; leave --layer and --gate out")
        from mrt5cli import recipe as recipes

        section = recipes.load(recipes.find(recipe)).model
        fields = section.shortener.config_fields() | {"use_softmax1": section.softmax1}
    if layer is not None or gate is not None:
        fields["deletion_type"] = gate or "scaled_sigmoid"
    if layer is not None:
        fields["delete_gate_layer"] = layer
    if softmax1 is not None:
        fields["use_softmax1"] = softmax1
    return fields
