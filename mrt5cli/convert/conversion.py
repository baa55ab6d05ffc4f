"""One conversion, from what the user names to a whole new directory, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mrt5cli.convert.layouts import LAYOUTS, Job
from mrt5cli.errors import FULL, RunFailed, UserError
from mrt5cli.hub import check_can_push, push
from mrt5cli.models.checkpoint import Description, dtype_name, load, of_a_shortener
from mrt5cli.models.checkpoint import describe as describe_checkpoint
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.layouts import PLAIN
from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration
from mrt5cli.models.shorteners import SHORTENERS
from mrt5cli.models.weights import stored_dtype
from mrt5cli.places import room
from mrt5cli.recipe import shorteners
from mrt5cli.rundir import resolve_model, whole_directory
from mrt5cli.subject import find_subjects
from mrt5cli.text import byte_size

ROOM = 1.05
"""Free space asked for, in sizes of the weights: configuration, code and tokenizer are small."""


@dataclass
class Outcome:
    """What was converted.

    Attributes:
        source, destination: as the user named them.
        read: whose layout the source was in.
        layout: what was written.
        model: one phrase about the model.
        weights: number of parameters.
        dtype: of the weights written.
        commit: of the Hub repository that the source is, or None.
        fresh: weights that the source did not hold.
        notes: what the user should know.
        files: names of what was written.
        url: of the Hub repository it was pushed to, or None.
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


def convert(
    source: str,
    destination: Path,
    layout: str,
    *,
    revision: str | None = None,
    fields: dict[str, Any] | None = None,
    dtype: str | None = None,
    allow_pickle: bool = True,
    seed: int = 42,
    overwrite: bool = False,
    shard_size: str = "5GB",
    repo_id: str | None = None,
    private: bool = False,
    busy: AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Read a checkpoint, whoever wrote it, and write it in another layout.

    Args:
        source: a run directory, a checkpoint directory or a Hub id.
        destination: a directory that is not there; it appears whole or not at all.
        layout: one of `layouts.LAYOUTS`.
        revision: of a Hub id: branch, tag or commit.
        fields: of `MrT5Config`, to change on the way; with a new gate its weights are drawn from `seed`.
        dtype: "float32" or "bfloat16"; None keeps what the source has, float16 becoming float32.
        allow_pickle: read weights from pickles where there is nothing else, running no code in them.
        seed: of the weights of a new shortener.
        overwrite: replace a checkpoint that is at the destination.
        shard_size: weights above it go into several files.
        repo_id: also push to this Hub repository.
        private: make it a private one, if it is not there yet.
        busy: what to be in while weights are read and written, such as a spinner; downloads show bars.

    Raises:
        UserError, CheckpointError: it cannot be done; then nothing was written.
    """
    if repo_id is not None:
        check_can_push(repo_id)
    with _place(destination):
        _check_place(resolve_model(source)[0], destination, overwrite)
    (subject,) = find_subjects([source], revision, allow_pickle=allow_pickle)
    with busy or nullcontext():
        folder = Path(subject.source)
        described = describe_checkpoint(folder)
        raw = described.raw
        # What the files hold counts; config.json may say something else, or nothing.
        said = raw.get("dtype") or raw.get("torch_dtype") or "float32"
        stored = stored_dtype(folder) or str(said)
        dtype = dtype_name(dtype or ("bfloat16" if stored == "bfloat16" else "float32"))
        changes = _changes(described, source, fields or {}, layout)
        torch.manual_seed(seed)
        model = load(folder, dtype=dtype, **changes)
        notes = _oddities(stored, dtype)
        _check_room(model, dtype, destination)

        job = Job(model, subject.recipe, subject.run, dtype, shard_size, repo_id)
        # Resolved, so that the temporary name is really beside the final one.
        with _place(destination), whole_directory(destination.resolve()) as new:
            notes += LAYOUTS[layout](job, new)
            files = sorted(path.name for path in new.iterdir())
    outcome = Outcome(
        source=source,
        destination=str(destination),
        read=described.writer,
        layout=layout,
        model=describe(model.config, layout),
        weights=_size(model, layout),
        dtype=dtype,
        commit=subject.commit,
        fresh=list(model.fresh_weights),
        notes=notes,
        files=files,
    )
    if repo_id is not None:
        outcome.url = push(destination, repo_id, private=private)
    return outcome


def describe(config: shorteners.Configuration, layout: str = "mrt5") -> str:
    """A model in a phrase: its depth, and what shortens it where."""
    shortener = shorteners.NoShortener(kind="none") if layout == "byt5" else shorteners.of_config(config)
    return f"{config.num_layers} + {config.num_decoder_layers} layers, {shortener.placed()}"


def _changes(described: Description, where: str, fields: dict[str, Any], layout: str) -> dict[str, Any]:
    """What to change while reading: an MrT5 start gets a gate, and nothing else may change its kind."""
    raw, own = described.raw, described.fields
    has = own.get("deletion_type", MrT5Config.deletion_type)
    place = own.get("delete_gate_layer", MrT5Config.delete_gate_layer)
    placed = has in SHORTENERS
    moved = placed and fields.get("delete_gate_layer", place) != place
    if has != "none" and (fields.get("deletion_type", has) != has or moved):
        at = f" before encoder block {place}" if placed else ""
        raise UserError(
            f"{where} has a shortener of its own ({has}{at}); a conversion does not exchange it",
            f"leave the gate's options out, or strip it first: mrt5 convert {where} DEST --to byt5",
        )
    if layout == "byt5" and fields.get("deletion_type", "none") != "none":
        raise UserError("--to byt5 leaves every shortener out, and the options ask for one", "leave them out")
    # The authors' T5 says which softmax it was made with, and stays what it is; a plain one is a start.
    plain = raw.get("model_type") in PLAIN and has == "none" and "use_softmax1" not in raw
    if layout == "mrt5" and plain:
        return {"deletion_type": MrT5Config.deletion_type, "use_softmax1": True, **fields}
    return fields


def _size(model: MrT5ForConditionalGeneration, layout: str) -> int:
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if layout != "byt5" or not of_a_shortener(name)
    )


def _oddities(stored: str, dtype: str) -> list[str]:
    if stored != "float16":
        return []
    return [f"the weights are stored in float16, in which T5 overflows; they are written in {dtype}"]


@contextmanager
def _place(destination: Path) -> Iterator[None]:
    """What the file system objects to, as a sentence."""
    try:
        yield
    except OSError as error:
        kind = RunFailed if error.errno in FULL else UserError
        raise kind(
            f"{destination} cannot be written: {error.strerror or error}; nothing is left of it",
            "choose a place that is writable and has room",
        ) from error


def _check_place(source: str, destination: Path, overwrite: bool) -> None:
    here, there = Path(source).resolve(), destination.resolve()
    if here.is_dir() and (there == here or here in there.parents):
        raise UserError(
            f"{destination} lies in the source {source}; a conversion never writes there",
            "name another directory",
        )
    if here.is_dir() and there in here.parents:
        raise UserError(f"{destination} holds the source {source}", "name another directory")
    if destination.is_symlink() or not destination.exists():
        if destination.is_symlink():
            raise UserError(f"{destination} is a link", "name a directory that is not there")
        return
    if not destination.is_dir():
        raise UserError(f"{destination} is a file", "name a directory that is not there")
    if not any(destination.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{destination} is there already", "add --overwrite to replace it, or name another")
    if not (destination / "config.json").is_file():
        raise UserError(
            f"{destination} is not a checkpoint (no config.json), so it is not replaced",
            "name another directory",
        )


def _check_room(model: MrT5ForConditionalGeneration, dtype: str, destination: Path) -> None:
    size = 2 if dtype == "bfloat16" else 4
    needed = int(ROOM * size * sum(weight.numel() for weight in model.parameters()))
    free = room(destination)
    if free < needed:
        raise UserError(
            f"{destination} needs {byte_size(needed)}, and {byte_size(free)} are free",
            "make room, choose another place, or --dtype bfloat16",
        )
