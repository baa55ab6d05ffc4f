"""The manifest of a folder of weights: manifest.json lists size and hash of every file in it.

It is written last, and a file is verified against it before it is read. So a flipped bit, or a file from
another step, is an error instead of a different result. Folders without a manifest, written by an older
version or another program, are accepted as they are.

    {"files": {"model.safetensors": {"size": 1198583628, "xxh3_128": "..."}, ...},
     "finite": true,        no weight is NaN or infinite, so that loading need not check
     "metrics": {...},      size and hash of the run's metrics.jsonl up to this step
     "step": 500,           optimizer steps; must match the name of a step-... folder
     "xxh3_128": "..."}     hash of all of the above
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
"""Bytes to hash at a time, few enough to be in the CPU's cache still."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; see above."""

    files: dict[str, dict[str, Any]]
    finite: bool
    metrics: dict[str, Any]
    step: int


def write(folder: Path, *, step: int, finite: bool, metrics: bytes) -> None:
    """Write the manifest of a folder that is otherwise complete.

    Args:
        step: optimizer steps that the weights have been trained for.
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
    """Verify a folder against its manifest and return that; None if the folder has none.

    Args:
        of: which files to verify, by name.

    Raises:
        CheckpointError: a file is missing or differs from what was written.
    """
    if why := fault(folder, of):
        raise CheckpointError(f"{folder} is not a complete checkpoint: {why}", what_to_do(folder))
    return read(folder)


def fault(folder: Path, of: Callable[[str], bool] = lambda _: True, *, content: bool = True) -> str | None:
    """How a folder differs from its manifest, as a clause that names the file, or None.

    Args:
        of: which files to verify, by name.
        content: False compares sizes only.
    """
    try:
        manifest = read(folder)
    except ValueError as error:
        return f"{NAME} {error}"
    if manifest is None:
        return None
    named = STEP_NAME.fullmatch(folder.name)
    if named and int(named[1]) != manifest.step:
        return f"{NAME} belongs to step {manifest.step}"
    listed = {name: entry for name, entry in manifest.files.items() if of(name)}
    for name, entry in listed.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        if (size := (folder / name).stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes, but {entry['size']:,} were written"
    for name in sorted(path.name for path in folder.iterdir()):
        if name not in manifest.files and of(name) and of_the_model(name):
            return f"{name} was added and would be read instead of the original files"
    for name, entry in listed.items() if content else ():
        try:
            if _hash(folder / name) != entry[HASH]:
                return f"{name} differs from what was written: it was edited or damaged"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if it has none.

    Raises:
        ValueError: it is damaged; the message is a clause without a subject.
    """
    if not (folder / NAME).is_file():
        return None
    try:
        content = parse((folder / NAME).read_bytes())
        if content.pop(HASH) != _own_hash(content):
            raise ValueError("hash mismatch")
        return Manifest(**content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("is damaged or from another version") from error


def of_the_model(name: str) -> bool:
    """Whether loading a model reads this file; a checkpoint also contains others."""
    return _OF_A_MODEL.fullmatch(name) is not None


def what_to_do(folder: Path) -> str:
    """The hint for a folder that differs from its manifest."""
    named = STEP_NAME.fullmatch(folder.name) is not None
    others = (folder.parent if named else folder.parent / "checkpoints").glob("step-*")
    found = sorted(path for path in others if STEP_NAME.fullmatch(path.name))
    if named:
        found = [path for path in found if path.name < folder.name]
    instead = f"use {found[-1]}" if found else "restore the file from a copy"
    return f"{instead}; if the change was intended, delete {folder / NAME}"


def hash_of(content: bytes) -> str:
    """The hash of some bytes, as manifests store it."""
    return xxh3_128(content).hexdigest()


def _own_hash(content: dict[str, Any]) -> str:
    return hash_of(json.dumps(content, sort_keys=True).encode())


def _hash(path: Path) -> str:
    """The hash of a file. It is read, not mapped, so that a read error is an exception and not a signal."""
    digest, block = xxh3_128(), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()
