"""The weight files of a directory: whether they are whole, and the tensors in them.

safetensors files hold numbers and nothing else, and are preferred. A pickle may ask for code to be run when
it is read; torch's weights-only reader runs none, and what is more than tensors by name is refused.
"""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mrt5cli.json_files import parse
from mrt5cli.models.layouts import CheckpointError
from mrt5cli.text import first_line

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LARGEST_HEADER = 100_000_000
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""What weights may be stored in, by the names of safetensors."""


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path | None]:
    """The tensors of a directory's weight files, by name, on the CPU.

    They are mapped from the files where the format allows it, so that they take no memory of their own.

    Returns:
        The tensors; the pickle they were read from, or the first of several, or None.

    Raises:
        CheckpointError: as `check_files`; code in a pickle, no whole file, or no tensors by name.
    """
    pickled = check_files(folder)
    files = _pickles(folder) if pickled else _safetensors_files(folder)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= _read_pickle(file) if pickled else _read_safetensors(file)
    return state, files[0] if pickled else None


def weight_names(folder: Path) -> list[str]:
    """Names of the weights in a directory's files; none where it has no such file.

    Raises:
        CheckpointError: as `read_weights`.
    """
    if safe := _safetensors_files(folder):
        return [name for file in safe for name, *_ in _entries(file)]
    return [name for file in _pickles(folder) for name in _read_pickle(file)]


def check_files(folder: Path) -> bool:
    """Whether a directory's weights are in pickles, having checked that all files are there.

    Raises:
        CheckpointError: no weights, or half of them.
    """
    safe = _safetensors_files(folder)
    if safe:
        for file in safe:
            _bytes_by_dtype(file)
        return False
    if not _pickles(folder):
        found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))[:3])
        others = f" nor {PICKLE}, only {found}" if found else f" and no {PICKLE}"
        raise CheckpointError(f"{folder} is not a whole checkpoint: it has no {SAFE}{others}")
    return True


def pickles_refused(where: str) -> CheckpointError:
    """The error for weights that are in pickles only, where none may be read."""
    return CheckpointError(
        f"{where} has its weights in pickles only, which --no-pickle (allow_pickle=False) refuses; rewrite "
        f"them where they may be read: mrt5 convert {where} DEST --to mrt5"
    )


def stored_dtype(folder: Path) -> str | None:
    """What most bytes of a directory's safetensors files are stored in, like "float32"; None if it has none.

    Raises:
        CheckpointError: they are not whole, or hold something else.
    """
    sizes: Counter[str] = Counter()
    for file in _safetensors_files(folder) if folder.is_dir() else []:
        sizes.update(_bytes_by_dtype(file))
    return sizes.most_common(1)[0][0] if sizes else None


def _safetensors_files(folder: Path) -> list[Path]:
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    return _shards(folder, SAFE_INDEX) if (folder / SAFE_INDEX).is_file() else []


def _pickles(folder: Path) -> list[Path]:
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    return _shards(folder, PICKLE_INDEX) if (folder / PICKLE_INDEX).is_file() else []


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} could not be read: {first_line(error)}") from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        # Mapped, a file is not held in memory twice; the format of before 2020 cannot be.
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole pickle: {first_line(error)}") from error
    except Exception as error:  # bytes that are no pickle make torch's reader fail in any way
        # Without what torch says, which is mostly how to run the code all the same.
        raise CheckpointError(
            f"{file} holds more than numbers, or is no whole pickle; nothing in it was run; get its weights "
            "as safetensors from who made them"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file} does not hold tensors by name; expected a state dict")
    for name, value in content.items():
        _check_dtype(file, name, str(value.dtype).removeprefix("torch."), DTYPES.values())
    return content


def shards_in(index: Path) -> list[str]:
    """The names of the weight files that an index lists.

    Raises:
        CheckpointError: it is none.
    """
    try:
        names = set(parse(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: it has no object weight_map") from error
    return sorted(str(name) for name in names)


def _shards(folder: Path, index: str) -> list[Path]:
    shards = [folder / name for name in shards_in(folder / index)]
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
        _check_dtype(file, name, dtype, DTYPES)
        sizes[DTYPES[dtype]] += size
    return sizes


def _check_dtype(file: Path, name: str, dtype: str, expected: Iterable[str]) -> None:
    if dtype not in expected:
        raise CheckpointError(
            f"{file}: {name} is stored as {dtype}; expected {', '.join(expected)} (a quantised checkpoint?)"
        )


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
            header = parse(opened.read(length))
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
