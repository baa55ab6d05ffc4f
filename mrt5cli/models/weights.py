"""The weight files of a directory: whether they are whole, and the tensors in them.

safetensors files hold numbers and nothing else, and are preferred. A pickle may ask for code to be run when
it is read; torch's weights-only reader runs none, and what is more than tensors by name is refused.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mrt5cli.errors import CheckpointError
from mrt5cli.json_files import parse
from mrt5cli.stand_ins import but
from mrt5cli.text import HALF_CHARACTER, first_line, listed

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""What weights may be stored in, by the names of safetensors."""


OTHERS = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".npz", ".index")
"""How the names of files end that may hold weights and are not looked for."""


@dataclass(frozen=True)
class Weights:
    """What the weight files of a directory hold.

    Attributes:
        tensors: by name, on the CPU, mapped from the files where the format allows it, so that they take no
            memory of their own.
        pickle: the pickle that they were read from, or the first of several, or None.
        below: where they stand in that pickle, if it holds more, such as "state_dict", or None.
    """

    tensors: dict[str, Tensor]
    pickle: Path | None = None
    below: str | None = None


def read_weights(folder: Path) -> Weights:
    """The weights in a directory's files.

    Raises:
        CheckpointError: as `check_files`; code in a pickle, no whole file, or no tensors by name.
    """
    if not check_files(folder):
        state: dict[str, Tensor] = {}
        for file in _safetensors_files(folder):
            state |= _read_safetensors(file)
        return Weights(state)
    parts = [_read_pickle(file) for file in _pickles(folder)]
    tensors = {name: value for part in parts for name, value in part.tensors.items()}
    return Weights(tensors, parts[0].pickle, parts[0].below)


def weight_names(folder: Path) -> list[str]:
    """Names of the weights in a directory's files; none where it has no such file.

    Raises:
        CheckpointError: as `read_weights`.
    """
    if safe := _safetensors_files(folder):
        names: list[str] = []
        for file in safe:
            with _safetensors(file) as opened:
                names += opened.keys()
        return names
    return [name for file in _pickles(folder) for name in _read_pickle(file).tensors]


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
        found = sorted(path.name for path in folder.iterdir() if path.suffix in OTHERS)
        others = f" nor {PICKLE}, only {listed(found, 3)}" if found else f" and no {PICKLE}"
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
    with _safetensors(file) as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A file that may not be read, as a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error


def _read_pickle(file: Path) -> Weights:
    with _readable(file):
        if file.stat().st_size == 0:
            raise CheckpointError(f"{file} is empty; copy or download it again")
        zipped = zipfile.is_zipfile(file)
        # Of what torch cannot read alone; text can be a pickle of an old kind.
        instead = "" if zipped else _but_safetensors(file) or but(file)
    try:
        # Mapped, a file is not held in memory twice; the format of before 2020 cannot be.
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (RuntimeError, OSError) as error:
        # Without what torch says, which is mostly how to run the code all the same.
        again = instead or "; copy or download it again"
        raise CheckpointError(f"{file} is not a whole pickle{again}") from error
    except Exception as error:  # bytes that are no pickle make torch's reader fail in any way
        if instead:
            raise CheckpointError(f"{file} is not a whole pickle{instead}") from error
        raise CheckpointError(
            f"{file} holds more than numbers, or is no whole pickle; nothing in it was run; get its weights "
            "as safetensors from who made them"
        ) from error
    below, tensors = _state_dict(content, file)
    for name, value in tensors.items():
        _check_dtype(file, name, str(value.dtype).removeprefix("torch."), DTYPES.values())
    return Weights(tensors, file, below)


def _but_safetensors(file: Path) -> str:
    try:
        with _safetensors(file):
            return f" but a safetensors file; call it {SAFE}"
    except CheckpointError:
        return ""


def _state_dict(content: Any, file: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The tensors by name in what a pickle holds, and where in it they stand if it is more than that.

    Training scripts write `{"state_dict": ..., "epoch": 3}` and the like.
    """
    found = dict(_mappings_of_tensors(content))
    if len(found) > 1:
        raise CheckpointError(
            f"{file} holds {len(found)} sets of weights ({listed(list(found))}); save the one that is meant "
            "by itself, as a state dict"
        )
    if not found:
        raise CheckpointError(f"{file} does not hold tensors by name; expected a state dict")
    [(below, tensors)] = found.items()
    return below or None, tensors


def _mappings_of_tensors(content: Any, below: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping from names to tensors in nested mappings, with where it stands."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return
    if content and all(isinstance(value, Tensor) for value in content.values()):
        # Below the top, moments of an optimizer and states of generators are tensors by name too.
        if not below or any(name.endswith(".weight") for name in content):
            yield below, content
        return
    for name, value in content.items():
        yield from _mappings_of_tensors(value, f"{below}.{name}" if below else name)


def shards_in(index: Path) -> list[str]:
    """The names of the weight files that an index lists.

    Raises:
        CheckpointError: it is none.
    """
    with _readable(index):
        try:
            names = set(parse(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            instead = but(index) or ": it has no object weight_map"
            raise CheckpointError(f"{index} is not an index of weights{instead}") from error
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
        CheckpointError: it is not whole, or something else than weights is stored in it.
    """
    sizes: Counter[str] = Counter()
    with _safetensors(file) as opened:
        names = opened.keys()
        for name in names:
            weight = opened.get_slice(name)
            _check_dtype(file, name, weight.get_dtype(), DTYPES)
            dtype = DTYPES[weight.get_dtype()]
            sizes[dtype] += math.prod(weight.get_shape()) * getattr(torch, dtype).itemsize
    return sizes


def _check_dtype(file: Path, name: str, dtype: str, expected: Iterable[str]) -> None:
    if dtype not in expected:
        raise CheckpointError(
            f"{file}: {name} is stored as {dtype}; expected {', '.join(expected)} (a quantised checkpoint?)"
        )


@contextmanager
def _safetensors(file: Path) -> Iterator[Any]:
    """A safetensors file, opened: its names, dtypes and shapes without its tensors.

    Raises:
        CheckpointError: it is none, or not all the bytes are there that its header promises.
    """
    with _readable(file), file.open("rb") as held:
        # The library wants names in UTF-8; the system has another for what is open.
        name = f"/dev/fd/{held.fileno()}" if HALF_CHARACTER.search(str(file)) else file
        try:
            with safe_open(name, "pt") as opened:
                yield opened
        except SafetensorError as error:
            if not file.stat().st_size:
                raise CheckpointError(f"{file} is empty; copy or download it again") from error
            instead = " but a pickle; call it pytorch_model.bin" if zipfile.is_zipfile(file) else but(file)
            again = f" ({first_line(error)}); copy or download it again"
            raise CheckpointError(f"{file} is not a whole safetensors file{instead or again}") from error
