"""Writing a data set: a folder that is complete or absent, with a manifest of its sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, TypeVar

import mrt5cli
from mrt5cli.data.splits import SPLITS
from mrt5cli.errors import UserError
from mrt5cli.json_files import parse
from mrt5cli.places import check_writable
from mrt5cli.writing import whole_directory

MANIFEST = "manifest.json"
MADE_BY = "mrt5 data build"
MAKERS = (MADE_BY, "mrt5's recipes/")
"""Prefixes of `made_by` in the manifests of data sets that this project builds."""

Manifest = dict[str, Any]
Thing = TypeVar("Thing")


def with_progress(things: Iterable[Thing], what: str, total: int | None = None) -> Iterable[Thing]:
    """The same things, with a progress bar on a terminal; `what` describes the work."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(things, what, total, console=console, transient=True, disable=not console.is_terminal)


def lot(seed: int, *parts: object) -> int:
    """A pseudorandom number, 0 to 2**64 - 1, for these parts, the same on every machine and Python version.

    Numbers depend on content, not on a generator, so that they stay the same when a source grows.
    """
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def share(seed: int, *parts: object) -> float:
    """`lot` as a fraction in [0, 1)."""
    return (lot(seed, *parts) >> 11) / 2**53


def split_at(held_out: Mapping[str, float], place: float) -> str:
    """The split at `place` in [0, 1), given the share of each held-out split; the rest is "train"."""
    for split, fraction in held_out.items():
        if place < fraction:
            return split
        place -= fraction
    return "train"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Check that a data set can be written to `out`, before any work is done.

    Raises:
        UserError: it is not empty, and is not a data set or `overwrite` is False.
    """
    check_writable(out, "new folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_made_here(out):
        raise UserError(f"{out} exists and was not made by `{MADE_BY}`", "give a new folder")
    if not overwrite:
        raise UserError(f"{out} contains a data set already", "pass --overwrite, or give another folder")


def is_made_here(out: Path) -> bool:
    """Whether a folder contains a data set built by this package, as opposed to published data."""
    try:
        manifest = parse((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("made_by", "")).startswith(MAKERS)


def write_data_set(
    out: Path, made_by: str, files: Mapping[str, bytes], details: Mapping[str, Any], *, overwrite: bool
) -> Manifest:
    """Write files and their manifest atomically.

    Args:
        made_by: the command; it begins with one of `MAKERS`.
        files: contents by path, with slashes.
        details: further entries of the manifest; `files` in it may have details of each file.
    """
    check_target(out, overwrite=overwrite)
    manifest: Manifest = {"made_by": made_by, "mrt5cli": mrt5cli.__version__, **details}
    manifest["files"] = {
        name: {
            **details["files"].get(name, {}),
            "bytes": len(content),
            "sha256": sha256(content).hexdigest(),
        }
        for name, content in files.items()
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_directory(out) as folder:
        for name, content in {**files, MANIFEST: text.encode()}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return manifest


def texts_by_language(
    rows: Mapping[str, Iterable[Mapping[str, str]]], split_of: Callable[[str], str]
) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
    """The contents of `<language>/{train,validation,test}.jsonl`, and the size of each.

    Args:
        rows: the rows of each language, with a `text` and a name `doc` that translations share.
        split_of: the split of all texts with a name.
    """
    files: dict[str, bytes] = {}
    details: dict[str, dict[str, int]] = {}
    for language, found in rows.items():
        for split in SPLITS:
            part = [row for row in found if split_of(row["doc"]) == split]
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            name = f"{language}/{split}.jsonl"
            files[name] = "".join(lines).encode()
            size = sum(len(row["text"].encode()) for row in part)
            details[name] = {"documents": len(part), "text_bytes": size}
    return files, details


def tsv(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows of cells, tab-separated, without column names."""
    return "".join("\t".join(row) + "\n" for row in rows).encode()
