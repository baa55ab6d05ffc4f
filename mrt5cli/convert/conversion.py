"""Convert a checkpoint to a complete new directory, or to nothing if it fails."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mrt5cli.convert.files import Job
from mrt5cli.convert.layouts import LAYOUTS
from mrt5cli.convert.license import license_name, of_card
from mrt5cli.errors import FULL, RunFailed, UserError
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.generation.calibration import calibrate_on_task, check_threshold
from mrt5cli.hub import card_of, check_can_push, push
from mrt5cli.metrics.results import Json
from mrt5cli.models.checkpoint import Description, describe, dtype_name, load, of_a_shortener
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.layouts import PLAIN
from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration
from mrt5cli.models.shorteners import SHORTENERS
from mrt5cli.models.weights import stored_dtype
from mrt5cli.places import check_writable
from mrt5cli.recipe import EvaluationSection, shorteners
from mrt5cli.rundir import resolve_model
from mrt5cli.subject import Subject, choose_task, find_subjects
from mrt5cli.tasks.base import build_task
from mrt5cli.writing import whole_directory

STORED = {"deletion_threshold", "inference_deletion"}
"""Configuration fields that set how a shortener deletes; a conversion may change them."""


@dataclass
class Outcome:
    """The outcome of a conversion.

    Attributes:
        read: the source's layout.
        weights: number of weights written.
        commit: commit of the source's Hub repository, or None.
        fresh: names of weights that the source lacks.
        url: URL of the Hub repository it was pushed to, or None.
    """

    source: str
    destination: str
    read: str
    layout: str
    model: str
    weights: int
    dtype: str
    commit: str | None = None
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    url: str | None = None


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion.

    Attributes:
        layout: one of `layouts.LAYOUTS`.
        revision: branch, tag or commit of a Hub id.
        fields: fields of `MrT5Config` to change; the weights of a new gate are initialized from `seed`.
        deletion_rate: also calibrate the threshold to delete this share of a task's validation text, 0 to
            below 1.
        task, data: the task to calibrate on and its data, see `choose_task`.
        dtype: "float32" or "bfloat16"; None keeps the source's, except that float16 becomes float32.
        overwrite: replace a checkpoint at the destination.
        shard_size: maximum size of a file of weights, such as "5GB".
        repo_id: also push to this Hub repository.
        private: make a new Hub repository private.
        license: license in the card's metadata, see `license.stated`; None keeps that of an earlier card.
    """

    layout: str
    revision: str | None = None
    fields: Json = field(default_factory=dict)
    deletion_rate: float | None = None
    task: str | None = None
    data: str | None = None
    dtype: str | None = None
    allow_pickle: bool = True
    seed: int = 42
    overwrite: bool = False
    shard_size: str = "5GB"
    repo_id: str | None = None
    private: bool = False
    license: Json | None = None


def convert(
    source: str,
    destination: Path,
    options: ConversionOptions,
    busy: AbstractContextManager[object] | None = None,
) -> Outcome:
    """Read a checkpoint in any known layout, and write it in another.

    Args:
        source: a run directory, a checkpoint directory or a Hub id.
        destination: a directory that does not exist, or with `overwrite` a checkpoint.
        busy: context in which weights are read and written, such as a spinner; downloads show progress bars.

    Raises:
        UserError: options contradict each other or the model, or the destination cannot be used.
        CheckpointError: the source is incomplete or damaged.
        RunFailed: the disk is full. After any error, nothing has been written.
    """
    hub_card = None
    if options.repo_id is not None:
        check_can_push(options.repo_id)
        hub_card = card_of(options.repo_id)
    _check_place(Path(resolve_model(source)[0]), destination, options.overwrite)
    (subject,) = find_subjects([source], options.revision, allow_pickle=options.allow_pickle)
    with busy or nullcontext():
        folder = Path(subject.source)
        described = describe(folder)
        stored = _stored_dtype(described, folder)
        dtype = dtype_name(options.dtype or ("bfloat16" if stored == "bfloat16" else "float32"))
        torch.manual_seed(options.seed)
        changes = _changes(described, source, options)
        threshold = changes.pop("deletion_threshold", None)
        model = load(folder, dtype=dtype, **changes)
        if threshold is not None:
            check_threshold(model.config, source, threshold)
            model.config.deletion_threshold = threshold
        moved = [] if options.deletion_rate is None else _calibrate(model, subject, options)
        license, kept = _license(options, hub_card, [destination, folder])
        threshold = described.fields.get("deletion_threshold")
        job = Job(
            model,
            subject.recipe,
            subject.run,
            options.shard_size,
            options.repo_id,
            license,
            moved=threshold not in (None, model.config.deletion_threshold),
        )
        notes, files = _write(job, options.layout, destination)
        notes += moved + kept
    if stored == "float16":
        notes.insert(
            0, f"the source stores float16, in which T5 overflows; the weights are written in {dtype}"
        )
    weights, phrase = _size_and_phrase(model, options.layout)
    return Outcome(
        source=source,
        destination=str(destination),
        read=described.writer,
        layout=options.layout,
        model=phrase,
        weights=weights,
        dtype=dtype,
        commit=subject.commit,
        fresh=list(model.fresh_weights),
        notes=notes,
        files=files,
        url=options.repo_id and push(destination, options.repo_id, private=options.private),
    )


def _calibrate(
    model: MrT5ForConditionalGeneration, subject: Subject, options: ConversionOptions
) -> list[str]:
    """Calibrate the model's threshold to the requested rate; returns notes."""
    assert options.deletion_rate is not None
    task = build_task(choose_task(options.task, subject, options.data))
    how = EvaluationOptions.of(EvaluationSection() if subject.recipe is None else subject.recipe.evaluation)
    rates = [options.deletion_rate]
    (found,) = calibrate_on_task(model, task, rates, subject.name, batch_size=how.batch_size, limit=how.limit)
    model.config.deletion_threshold, model.config.deletion_rate = found.threshold, found.rate
    return [f"the model now has, on the text of {task.name}, {found.described()}"]


def _license(options: ConversionOptions, hub_card: str | None, folders: list[Path]) -> tuple[Json, list[str]]:
    """The license for the card, and notes about earlier cards, whose content is replaced.

    Args:
        hub_card: the card of the Hub repository that is pushed to, or None.
        folders: folders that may contain an earlier card of the model.
    """
    notes, found = [], {} if options.license is None else options.license
    cards: list[tuple[str, str | Path]] = [(str(folder), folder / "README.md") for folder in folders]
    if hub_card is not None and options.repo_id is not None:
        cards.insert(0, (options.repo_id, hub_card))
        notes.append(
            f"README.md of {options.repo_id} is replaced; the old one stays in the repository's history"
        )
    if options.license is None and options.layout == "hub":
        for where, card in cards:
            if found := of_card(card):
                notes.append(f"the license, {license_name(found)}, is taken from the card in {where}")
                break
    return found, notes


def _stored_dtype(described: Description, folder: Path) -> str:
    """The dtype of the weight files; config.json may differ."""
    stated = described.raw.get("dtype") or described.raw.get("torch_dtype") or "float32"
    return stored_dtype(folder) or str(stated)


def _write(job: Job, layout: str, destination: Path) -> tuple[list[str], list[str]]:
    """Write the complete directory or nothing; returns notes and the names of the files."""
    try:
        needs = sum(weight.nbytes for weight in job.model.parameters())
        with whole_directory(destination, needs=needs) as new:
            notes = LAYOUTS[layout](job, new)
            return notes, sorted(path.name for path in new.iterdir())
    except OSError as error:
        kind = RunFailed if error.errno in FULL else UserError
        raise kind(
            f"{destination} cannot be written: {error.strerror or error}; no files were left behind",
            "choose a writable place with enough free space",
        ) from error


def _size_and_phrase(model: MrT5ForConditionalGeneration, layout: str) -> tuple[int, str]:
    """The number of weights written, and a phrase about the model's depth and shortener."""
    weights, shortener = dict(model.named_parameters()), shorteners.of_config(model.config)
    if layout == "byt5":
        weights = {name: weight for name, weight in weights.items() if not of_a_shortener(name)}
        shortener = shorteners.NoShortener(kind="none")
    depth = f"{model.config.num_layers} + {model.config.num_decoder_layers} layers"
    return sum(weight.numel() for weight in weights.values()), f"{depth}, {shortener.placed()}"


def _check_place(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse to write into the source, or to replace anything but a checkpoint."""
    here, there = source.resolve(), destination.resolve()
    if here.is_dir() and (there == here or here in there.parents or there in here.parents):
        raise UserError(
            f"{destination} is inside the source {source}, or contains it",
            "choose a separate directory as the destination",
        )
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise UserError(f"{destination} is a file or a link", "choose a directory that does not exist")
    if destination.is_dir() and any(destination.iterdir()):
        if not overwrite:
            raise UserError(
                f"{destination} exists already", "add --overwrite to replace it, or choose another directory"
            )
        if not (destination / "config.json").is_file():
            raise UserError(
                f"{destination} is not a checkpoint (no config.json) and is not replaced",
                "choose another directory",
            )
    check_writable(destination, "new folder")


def _changes(described: Description, where: str, options: ConversionOptions) -> Json:
    """Configuration fields to change: an MrT5 start gets a gate; no other shortener may be exchanged."""
    own, fields, layout = described.fields, options.fields, options.layout
    has = own.get("deletion_type", MrT5Config.deletion_type)
    place = own.get("delete_gate_layer", MrT5Config.delete_gate_layer)
    placed = has in SHORTENERS
    moved = placed and fields.get("delete_gate_layer", place) != place
    if has != "none" and (fields.get("deletion_type", has) != has or moved):
        at = f" before encoder block {place}" if placed else ""
        raise UserError(
            f"{where} already has a shortener ({has}{at}), which a conversion does not exchange",
            f"leave the gate's options out, or remove it first: mrt5 convert {where} DEST --to byt5",
        )
    depth, layer = own.get("num_layers", MrT5Config.num_layers), fields.get("delete_gate_layer", 0)
    if isinstance(depth, int) and layer >= depth:
        raise UserError(
            f"layer {layer} (of --layer or --recipe) does not exist: {where} has {depth} encoder blocks",
            f"use a layer from 0 to {depth - 1}",
        )
    if layout == "byt5" and fields.get("deletion_type", "none") != "none":
        raise UserError("--to byt5 removes the shortener, but the options add one", "leave them out")
    if layout == "byt5" and (options.deletion_rate is not None or STORED & fields.keys()):
        raise UserError(
            "--to byt5 removes the shortener, so deletion options have no effect", "leave them out"
        )
    # The authors' T5 records its softmax and is kept as it is; a plain T5 becomes an MrT5 start.
    plain = described.raw.get("model_type") in PLAIN and has == "none" and "use_softmax1" not in described.raw
    if layout == "mrt5" and plain:
        return {"deletion_type": MrT5Config.deletion_type, "use_softmax1": True, **fields}
    return dict(fields)
