"""The weight files of a directory: whether they are whole, and pickles for those who ask for them.

safetensors files hold numbers and nothing else. A pickle may run code when it is read, so one is read only
on request, and then by a reader that knows no code.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mrt5cli.models.layouts import CheckpointError, first_line

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LARGEST_HEADER = 100_000_000
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""What weights may be stored in, by the names of safetensors."""


def check_files(folder: Path, *, allow_pickle: bool) -> bool:
    """Whether a directory's weights are in pickles, having checked that safetensors files are whole.

    Raises:
        CheckpointError: no weights, half of them, or only pickles without leave to read them.
    """
    safe = _safetensors_files(folder)
    if safe:
        for file in safe:
            _bytes_by_dtype(file)
        return False
    pickles = sorted(folder.glob("*.bin"))
    if not pickles:
        raise CheckpointError(f"{folder} is not a whole checkpoint: it has no {SAFE}")
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickles[0].name}), which may run code; rewrite them once: "
            f"mrt5 convert {folder} DEST --to mrt5 --allow-pickle"
        )
    return True


def stored_dtype(folder: Path) -> str | None:
    """What most bytes of a directory's safetensors files are stored in, like "float32"; None if it has none.

    Raises:
        CheckpointError: they are not whole, or hold something else.
    """
    sizes: Counter[str] = Counter()
    for file in _safetensors_files(folder) if folder.is_dir() else []:
        sizes.update(_bytes_by_dtype(file))
    return sizes.most_common(1)[0][0] if sizes else None


def weight_names(folder: Path) -> list[str]:
    """Names of the weights in a directory's safetensors files; none where it has no such file.

    Raises:
        CheckpointError: they are not whole.
    """
    return [name for file in _safetensors_files(folder) for name, *_ in _entries(file)]


def _safetensors_files(folder: Path) -> list[Path]:
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    return _shards(folder, SAFE_INDEX) if (folder / SAFE_INDEX).is_file() else []


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a directory's safetensors files, on the CPU."""
    state: dict[str, Tensor] = {}
    for file in _safetensors_files(folder):
        state |= load_file(file)
    return state


def read_pickles(folder: Path) -> dict[str, Tensor]:
    """The tensors of pytorch_model.bin, or of its shards, on the CPU; no code in them is run.

    Raises:
        CheckpointError: code in the pickle, no whole pickle, or no tensors by name.
    """
    files = [folder / PICKLE]
    if not files[0].is_file():
        files = _shards(folder, PICKLE_INDEX) if (folder / PICKLE_INDEX).is_file() else []
    if not files:
        found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))[:3])
        raise CheckpointError(f"{folder} has neither {PICKLE} nor {PICKLE_INDEX}, only {found}")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= _read_pickle(file)
    return state


def not_only_numbers(where: str | Path) -> CheckpointError:
    """The error for a pickle that was not read."""
    # Without what torch says, which is mostly how to run the code all the same.
    return CheckpointError(
        f"{where} holds more than numbers, or is no whole pickle; nothing in it was run; get its weights as "
        "safetensors from who made them"
    )


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole pickle: {first_line(error)}") from error
    except Exception as error:  # bytes that are no pickle make torch's reader fail in any way
        raise not_only_numbers(file) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} does not hold tensors by name; expected a state dict")
    return content


def _shards(folder: Path, index: str) -> list[Path]:
    path = folder / index
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of weights: it has no object weight_map") from error
    shards = [folder / str(name) for name in sorted(names)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: {len(missing)} of the {len(shards)} weight files that "
            f"{index} names are missing, first {missing[0]}"
        )
    return shards


def _bytes_by_dtype(file: Path) -> dict[str, int]:
    """How much of a safetensors file is stored in each dtype.

    Raises:
        CheckpointError: as `_entries`, or something else than weights is stored in it.
    """
    sizes: Counter[str] = Counter()
    for name, dtype, size in _entries(file):
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: {name} is stored as {dtype}; expected {', '.join(DTYPES)} (a quantised checkpoint?)"
            )
        sizes[DTYPES[dtype]] += size
    return sizes


def _entries(file: Path) -> list[tuple[str, str, int]]:
    """Name, dtype and size in bytes of each tensor of a safetensors file.

    Raises:
        CheckpointError: it has no header, or not all the bytes that its header promises.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
        if size == 0:
            raise CheckpointError(f"{file} is empty; copy or download it again")
        if length is None or length > LARGEST_HEADER:
            raise CheckpointError(f"{file} is not a safetensors file")
        if length > size - 8:
            raise CheckpointError(
                f"{file} is cut off in its header ({size:,} bytes); copy or download it again"
            )
        try:
            header = json.loads(opened.read(length))
            tensors = [
                (name, str(entry["dtype"]), int(entry["data_offsets"][0]), int(entry["data_offsets"][1]))
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{file} is not a safetensors file: its header is no table of tensors"
            ) from error
    expected = 8 + length + max((end for *_, end in tensors), default=0)
    if size < expected:
        raise CheckpointError(
            f"{file} is cut off: its header promises {expected:,} bytes, it has {size:,}; copy or download "
            "it again"
        )
    return [(name, dtype, end - start) for name, dtype, start, end in tensors]
