"""The weight files of a directory: whether they are whole, and the tensors in them.

safetensors files hold numbers and nothing else, and are preferred. A pickle may ask for code to be run when
it is read; torch's weights-only reader runs none.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor

from mrt5cli import manifest
from mrt5cli.errors import CheckpointError
from mrt5cli.json_files import parse
from mrt5cli.stand_ins import but
from mrt5cli.text import first_line, listed, shortened

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LONGEST_NAME = 255
"""Characters of a file's name on every system."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be stored in."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a directory's files: by name, on the CPU, mapped from the files where the format allows
    it, so that they take no memory of their own.

    Raises:
        CheckpointError: as `check_files`; or code in a pickle, no tensors by name, or quantised ones.
    """
    tensors: dict[str, Tensor] = {}
    read = _read_pickle if check_files(folder) else _read_safetensors
    for file in _files(folder)[1]:
        tensors |= read(file)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: {name} is stored as {_name(tensor.dtype)}; expected "
                f"{', '.join(map(_name, DTYPES))} (a quantised checkpoint?)"
            )
    return tensors


def weight_names(folder: Path) -> list[str]:
    """Names of the weights in a directory's files; none where it has no such file."""
    return list(read_weights(folder)) if _files(folder)[1] else []


def check_files(folder: Path) -> bool:
    """Whether a directory's weights are in pickles alone, having checked that all files are there.

    Raises:
        CheckpointError: no weights, or half of them.
    """
    pickled, files = _files(folder)
    if not files:
        found = listed(sorted(path.name for path in folder.iterdir()))
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: it has no {SAFE} and no {PICKLE}, only {found}"
        )
    for file in files if not pickled else ():
        with _safetensors(file):  # which compares the header with the file's length
            pass
    return pickled


def pickles_refused(where: str) -> CheckpointError:
    """The error for weights that are in pickles only, where none may be read."""
    return CheckpointError(
        f"{where} has its weights in pickles only, which --no-pickle (allow_pickle=False) refuses; rewrite "
        f"them where they may be read: mrt5 convert {where} DEST --to mrt5"
    )


def stored_dtype(folder: Path) -> str:
    """What most bytes of a directory's weights are stored in, like "float32"."""
    sizes: Counter[str] = Counter()
    for tensor in read_weights(folder).values():
        sizes[_name(tensor.dtype)] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def seal(folder: Path, *, step: int, metrics: bytes) -> None:
    """Write the manifest of a folder in which weights, and all that belongs beside them, are saved.

    Args:
        step, metrics: as `manifest.write`.
    """
    manifest.write(folder, step=step, finite=not not_finite(read_weights(folder)), metrics=metrics)


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of weights in which there is a NaN or an infinity."""
    # The extremes of a tensor with a NaN are NaN; one pass, where `isfinite` makes a mask of it first.
    filled = [(name, weight) for name, weight in weights.items() if weight.numel()]
    return [name for name, weight in filled if not torch.stack(weight.aminmax()).isfinite().all()]


def shards_in(index: Path) -> list[str]:
    """The names of the weight files that an index lists, each in the index's folder or below it."""
    with _reading(index, "an index of weights"):
        names: list[object] = list(parse(index.read_bytes())["weight_map"].values())
        for name in names:
            if not _is_below(name):
                raise ValueError(f"it names {shortened(repr(name))}, which is no file beside it")
        return sorted({str(name) for name in names})


def _is_below(name: object) -> bool:
    """Whether a name leads to a file in its folder or below; a link there may lead anywhere."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = PurePath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and max(map(len, parts)) <= LONGEST_NAME


def _files(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a directory's weights are in pickles alone, and the files that they are in."""
    for single, index in ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            return single == PICKLE, [folder / single]
        if (folder / index).is_file():
            shards = [folder / name for name in shards_in(folder / index)]
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder} is not a whole checkpoint: {len(missing)} of the {len(shards)} weight files "
                    f"that {index} names are missing, first {missing[0]}"
                )
            return single == PICKLE, shards
    return False, []


def _read_pickle(file: Path) -> dict[str, Tensor]:
    with _reading(file, "a whole pickle"):
        # Mapped, a file is not held in memory twice; the format of before 2020 cannot be.
        mapped = zipfile.is_zipfile(file)
        try:
            content: object = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError as error:  # torch says mostly how to run the code anyway
            raise ValueError("damaged, or with more in it than numbers; nothing in it was run") from error
    # Training scripts write `{"state_dict": ..., "epoch": 3}` and the like.
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file} holds more than tensors by name; expected a state dict, saved by itself"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _safetensors(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def _safetensors(file: Path) -> Iterator[safe_open]:
    """A safetensors file, opened: its names without its tensors."""
    # Opened by Python first, which says why a file cannot be; the library says that it does not exist.
    with _reading(file, "a whole safetensors file"), file.open("rb") as held:
        # The library takes no name that is not UTF-8.
        name = file if str(file).isprintable() else f"/dev/fd/{held.fileno()}"
        with safe_open(name, "pt") as opened:
            yield opened


@contextmanager
def _reading(file: Path, what: str) -> Iterator[None]:
    """What goes wrong while a file is read, as a `CheckpointError` that names it and what was expected."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # bytes that are no pickle make torch's reader fail in any way
        instead = but(file) or f" ({first_line(error)}); copy or download it again"
        raise CheckpointError(f"{file} is not {what}{instead}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
