"""What was written into a folder of weights: manifest.json lists the size and a hash of every file in it.

It is written last, and what a file holds is compared with it before anything is read from that file. So a
bit that flipped, or a file of another step, is an error and no other result. Folders without one, of an
older version or of somebody else, are taken as they are.

    {"files": {"model.safetensors": {"size": 1198583628, "xxh3_128": "..."}, ...},
     "finite": true,        none of the weights is NaN or infinite, so that loading need not look
     "metrics": {...},      of the run's metrics.jsonl up to then, as of a file
     "step": 500,           optimizer steps; a folder that is named by a step is named by this one
     "xxh3_128": "..."}     of all that
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from mrt5cli.errors import CheckpointError
from mrt5cli.json_files import parse
from mrt5cli.writing import write_json

NAME, HASH = "manifest.json", "xxh3_128"
STEP_NAME = re.compile(r"step-(\d{8,})")
_OF_A_MODEL = re.compile(r"(generation_)?config\.json|(pytorch_)?model[\w.-]*\.(safetensors|bin|json)")
_BLOCK = 1 << 18
"""Bytes that are hashed at once: they are still in the cache of the core that has read them."""


@dataclass(frozen=True)
class Manifest:
    """What a folder's manifest.json says; see there."""

    files: dict[str, dict[str, Any]]
    finite: bool
    metrics: dict[str, Any]
    step: int


def write(folder: Path, *, step: int, finite: bool, metrics: bytes) -> None:
    """List all files of a folder, in which nothing is to be written any more.

    Args:
        step: optimizer steps that the weights have seen.
        finite: whether no weight is NaN or infinite.
        metrics: the content of the run's metrics.jsonl.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    content = {
        "files": {name: {"size": path.stat().st_size, HASH: _hash(path)} for name, path in files.items()},
        "finite": finite,
        "metrics": {"size": len(metrics), HASH: hash_of(metrics)},
        "step": step,
    }
    write_json(folder / NAME, {**content, HASH: _own_hash(content)})


def check(folder: Path, of: Callable[[str], bool] = lambda _: True) -> Manifest | None:
    """What a folder's manifest says, having compared the folder with it; None where it has none.

    Args:
        of: which files to look at, by name.

    Raises:
        CheckpointError: a file is missing or not what was written.
    """
    if why := fault(folder, of):
        raise CheckpointError(f"{folder} is not a whole checkpoint: {why}", what_to_do(folder))
    return read(folder)


def fault(folder: Path, of: Callable[[str], bool] = lambda _: True, *, content: bool = True) -> str | None:
    """What is wrong in a folder that has a manifest, as a clause that names the file, or None.

    Args:
        of: which files to look at, by name.
        content: False compares no more than the files' sizes.
    """
    try:
        manifest = read(folder)
    except ValueError as error:
        return f"{NAME} {error}"
    if manifest is None:
        return None
    named = STEP_NAME.fullmatch(folder.name)
    if named and int(named[1]) != manifest.step:
        return f"{NAME} says that it is of step {manifest.step}"
    listed = {name: entry for name, entry in manifest.files.items() if of(name)}
    for name, entry in listed.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        if (size := (folder / name).stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes, and {entry['size']:,} were written"
    for name in sorted(path.name for path in folder.iterdir()):
        if name not in manifest.files and of(name) and of_the_model(name):
            return f"{name} was added, which is read in place of what was written"
    for name, entry in listed.items() if content else ():
        try:
            if _hash(folder / name) != entry[HASH]:
                return f"{name} is not what was written: it was damaged, or changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def read(folder: Path) -> Manifest | None:
    """What a folder's manifest says, or None where it has none.

    Raises:
        ValueError: it is damaged; a clause without a subject.
    """
    if not (folder / NAME).is_file():
        return None
    try:
        content = parse((folder / NAME).read_bytes())
        if content.pop(HASH) != _own_hash(content):
            raise ValueError("it is not what was written")
        return Manifest(**content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("is damaged, or of another version") from error


def of_the_model(name: str) -> bool:
    """Whether a file is one that loading a model reads, which a checkpoint holds more than."""
    return _OF_A_MODEL.fullmatch(name) is not None


def what_to_do(folder: Path) -> str:
    """The hint for a folder in which something is not what was written."""
    named = STEP_NAME.fullmatch(folder.name) is not None
    others = (folder.parent if named else folder.parent / "checkpoints").glob("step-*")
    found = sorted(path for path in others if STEP_NAME.fullmatch(path.name))
    if named:
        found = [path for path in found if path.name < folder.name]
    instead = f"take {found[-1]}" if found else "bring the file back from a copy"
    return f"{instead}; if it was changed on purpose, delete {folder / NAME}"


def hash_of(content: bytes) -> str:
    """The hash of a text that is kept beside it."""
    return xxh3_128(content).hexdigest()


def _own_hash(content: dict[str, Any]) -> str:
    return hash_of(json.dumps(content, sort_keys=True).encode())


def _hash(path: Path) -> str:
    """Of a file's content. It is read and not mapped: what a disk refuses is an error then, and no signal."""
    digest, block = xxh3_128(), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()
