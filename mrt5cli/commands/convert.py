"""`mrt5 convert`: convert a checkpoint to another layout."""

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
    "reference-v1": "the layout of the authors' first code version",
    "hub": "for transformers with trust_remote_code, with a model card",
    "onnx": "encoder and decoder for onnxruntime",
}


def _shard_size(text: str) -> str:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}(KB|MB|GB)", text.upper()):
        raise UserError(f"--max-shard-size '{shortened(text)}' is not a size", "for example 500MB or 5GB")
    return text


Source = Annotated[str, argument(options.ANY_MODEL, "SOURCE")]
Destination = Annotated[Path, argument("New directory to write.", "DEST", places.path)]
Layout = Annotated[
    Literal["mrt5", "byt5", "reference", "reference-v1", "hub", "onnx"],
    option("Layout to write: " + "; ".join(f"{name}, {what}" for name, what in LAYOUTS.items()) + "."),
]
Layer = Annotated[
    int | None,
    amount(
        "Encoder block, counted from 0, before which to insert a new delete gate.",
        bounds.LAYERS - 1,
        0,
        default="3",
    ),
]
Gate = Annotated[
    Literal["scaled_sigmoid", "log_sigmoid", "none"] | None,
    option("Activation of a new delete gate.", default="scaled_sigmoid if the source has no shortener"),
]
Softmax1 = Annotated[
    bool | None,
    option("Attention function.", "--softmax1/--softmax", default="the source's; softmax1 with a new gate"),
]
RecipeOfGate = Annotated[
    str | None, named("Recipe whose shortener and attention function to add.", metavar="RECIPE")
]
InferenceDeletion = Annotated[
    Literal["hard", "soft"] | None,
    option(
        "Deletion in evaluation mode, for Python callers that do not choose (commands follow the recipe).",
        default="the source's, soft if it has none; hard with a new gate",
    ),
]
Threshold = Annotated[
    float | None,
    amount(
        "Deletion threshold to store: the gate value at or below which a byte is deleted.",
        bounds.COEFFICIENT,
        -bounds.COEFFICIENT,
        metavar="NUMBER",
        default="the source's",
    ),
]
Rate = Annotated[
    str | None,
    option(
        "Deletion rate to store, with the threshold that reaches it on a task's validation data; a quantile "
        "gate is conditioned on the rate instead.",
        metavar="RATE",
    ),
]
Task = Annotated[
    str | None,
    named("Task, or recipe, whose data --deletion-rate uses.", metavar="TASK", default="the source's"),
]
Data = Annotated[
    Path | None,
    options.path(
        "Local file or folder of examples that replaces the task's data, for --deletion-rate.",
        default="the task's",
    ),
]
Seed = Annotated[int, amount("Random seed for the weights of a new shortener.", bounds.SEED, 0)]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, option("Data type of the weights.", default="the source's")
]
ShardSize = Annotated[
    str,
    typer.Option(
        parser=_shard_size, metavar="SIZE", help="Maximum size of a weight file; more weights are split."
    ),
]
Push = Annotated[
    str | None,
    option(
        "Hub repository to upload to, with --to hub; a new repository is public without --private.",
        metavar="OWNER/NAME",
    ),
]
License = Annotated[
    str | None,
    option(
        "License of the weights for the model card, by its Hub name, such as apache-2.0; with --to hub.",
        metavar="ID",
        default="that of the source's card",
    ),
]
LicenseLink = Annotated[
    str | None,
    option("Address of a license that has no Hub name; --license is then its title.", metavar="URL"),
]
Private = Annotated[bool, option("Make a new --push repository private.", "--private")]


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
    """Convert a checkpoint to another layout; DEST is written completely or not at all.

    Reads runs and models of this toolkit, all of the authors' checkpoints, published Hub models (without
    running their code), and plain ByT5, T5 v1.1, mT5 and umT5, to which --to mrt5 adds a new delete gate.

    Examples:

      mrt5 convert google/byt5-small mrt5-start --to mrt5

      mrt5 convert runs/mrt5-seed40 mrt5-mine --to hub --push me/mrt5-mine --license apache-2.0

      mrt5 convert their_checkpoint ours --to mrt5
    """
    if push is not None and to != "hub":
        raise UserError(f"--push uploads the output of --to hub, not of --to {to}", "use --to hub")
    if private and push is None:
        raise UserError("--private needs --push", "add --push OWNER/NAME, or leave --private out")
    if (license or license_link) is not None and to != "hub":
        raise UserError("--license is for the model card, which only --to hub writes", "use --to hub")
    if license is None and license_link is not None:
        raise UserError("--license-link needs the name of the license", "add --license NAME")
    from mrt5cli.convert.license import stated

    card_license = None if license is None else stated(license, license_link)
    rate = None
    if deletion_rate is not None:
        rate, *more = options.shares("--deletion-rate", deletion_rate)
        if more or threshold is not None:
            raise UserError(
                "a model stores one deletion threshold", "give one --deletion-rate, or --threshold"
            )
    elif task is not None or data is not None:
        raise UserError("--task and --data need --deletion-rate", "add it, or leave them out")
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
        license=card_license,
    )
    # Reading and writing gigabytes takes a while; the spinner appears on a terminal only.
    spinner = Console(stderr=True).status(Text(f"converting {source}"), spinner="line")
    outcome = run(source, destination, conversion, spinner)
    if as_json:
        print_json(asdict(outcome))
    else:
        present(outcome)


def present(outcome: Outcome) -> None:
    """Print what was written, which weights are new, and the notes."""
    say(
        f"{outcome.source} ({outcome.read}) -> {outcome.destination}: {LAYOUTS[outcome.layout]}\n"
        f"{outcome.model}; {outcome.weights:,} weights, {outcome.dtype}"
    )
    if outcome.fresh:
        say(f"randomly initialized: {', '.join(outcome.fresh)}")
    for note in outcome.notes:
        say(f"note: {note}")
    if outcome.url:
        say(f"pushed: {outcome.url}")


def _fields(layer: int | None, gate: str | None, softmax1: bool | None, recipe: str | None) -> dict[str, Any]:
    """The configuration fields that the options set."""
    fields: dict[str, Any] = {}
    if recipe is not None:
        if layer is not None or gate is not None:
            raise UserError("--recipe already defines the gate", "leave --layer and --gate out")
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
