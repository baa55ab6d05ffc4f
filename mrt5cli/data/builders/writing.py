"""Where a data set goes: a folder that is whole or absent, with a manifest of what it was made from."""

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
"""How the name begins of whatever writes a data set here."""

Manifest = dict[str, Any]
Thing = TypeVar("Thing")


def with_progress(things: Iterable[Thing], what: str, total: int | None = None) -> Iterable[Thing]:
    """Things as they come, with a bar on a terminal that says what is done with them."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(things, what, total, console=console, transient=True, disable=not console.is_terminal)


def lot(seed: int, *parts: object) -> int:
    """A number from 0 to 2**64 drawn for these parts: the same in every process, machine and Python version.

    Drawing by content instead of from a generator also keeps what was drawn when a source grows.
    """
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def share(seed: int, *parts: object) -> float:
    """`lot` as a fraction, 0 to below 1."""
    return (lot(seed, *parts) >> 11) / 2**53


def split_at(held_out: Mapping[str, float], place: float) -> str:
    """The split of something drawn at `place`, 0 to below 1; `held_out`: the share of each but training."""
    for split, fraction in held_out.items():
        if place < fraction:
            return split
        place -= fraction
    return "train"


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds something, before any work is done; only data sets are ever replaced."""
    check_writable(out, "new folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_made_here(out):
        raise UserError(f"{out} is there and was not made by `{MADE_BY}`", "give a new folder")
    if not overwrite:
        raise UserError(f"{out} holds a data set already", "--overwrite replaces it, or give another folder")


def is_made_here(out: Path) -> bool:
    """Whether a folder holds a data set of this package: not the published data, whatever its form."""
    try:
        manifest = parse((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("made_by", "")).startswith(MAKERS)


def write_data_set(
    out: Path, made_by: str, files: Mapping[str, bytes], details: Mapping[str, Any], *, overwrite: bool
) -> Manifest:
    """Write files and their manifest, all or nothing.

    Args:
        made_by: the command; its beginning is one of `MAKERS`.
        files: content by name, folders in it separated by slashes.
        details: of the manifest; `files` there may hold more about each file.
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
    """Files `<language>/{train,validation,test}.jsonl`, and how much is in each.

    Args:
        rows: of each language, with a `text` and the name `doc` that it shares with its translations.
        split_of: the split of all texts of a name.
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
    """Rows of input and output, tab-separated, without a header: the form of the published files."""
    return "".join(f"{source}\t{target}\n" for source, target in rows).encode()
