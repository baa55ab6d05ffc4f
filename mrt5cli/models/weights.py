"""Checks and reads the weight files of a directory.

safetensors files contain only tensors, and are preferred. A pickle may request that code runs while it is
read; torch's weights-only reader runs none.
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
"""Most characters a file name may have on every system."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types that weights may be stored in."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a directory by name, on the CPU, memory-mapped where the format allows it.

    Raises:
        CheckpointError: as `check_files`; or code in a pickle, a file of anything but named tensors, or
            quantized tensors.
    """
    tensors: dict[str, Tensor] = {}
    read = _read_pickle if check_files(folder) else _read_safetensors
    for file in _files(folder)[1]:
        tensors |= read(file)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: {name} is stored as {_name(tensor.dtype)}; expected "
                f"{', '.join(map(_name, DTYPES))}",
                "if the checkpoint is quantized, load the original weights",
            )
    return tensors


def weight_names(folder: Path) -> list[str]:
    """Names of the weights in a directory's files, or none without such files."""
    return list(read_weights(folder)) if _files(folder)[1] else []


def check_files(folder: Path) -> bool:
    """Check that all weight files exist, and return whether they are pickles.

    Raises:
        CheckpointError: there are no weights, or some files are missing or truncated.
    """
    pickled, files = _files(folder)
    if not files:
        found = listed(sorted(path.name for path in folder.iterdir()))
        raise CheckpointError(
            f"{folder} is not a complete checkpoint: it has no {SAFE} and no {PICKLE}, only {found}",
            "copy or download it again",
        )
    for file in files if not pickled else ():
        with _safetensors(file):  # which compares the header with the file's length
            pass
    return pickled


def pickles_refused(where: str) -> CheckpointError:
    """The error for a model that has only pickles, where pickles are refused."""
    return CheckpointError(
        f"{where} has its weights in pickles only, which --no-pickle (allow_pickle=False) refuses",
        "ask the publisher for safetensors weights, or convert it where pickles may be read: "
        f"`mrt5 convert {where} DEST --to mrt5`",
    )


def stored_dtype(folder: Path) -> str:
    """The type, such as "float32", that most bytes of a directory's weights are stored in."""
    sizes: Counter[str] = Counter()
    for tensor in read_weights(folder).values():
        sizes[_name(tensor.dtype)] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def seal(folder: Path, *, step: int, metrics: bytes) -> None:
    """Write the manifest of a folder in which weights and their companion files are saved.

    Args:
        step, metrics: as for `manifest.write`.
    """
    manifest.write(folder, step=step, finite=not not_finite(read_weights(folder)), metrics=metrics)


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of weights that contain NaN or infinity."""
    # The extremes of a tensor with a NaN are NaN. This is one pass; `isfinite` would build a mask first.
    filled = [(name, weight) for name, weight in weights.items() if weight.numel()]
    return [name for name, weight in filled if not torch.stack(weight.aminmax()).isfinite().all()]


def shards_in(index: Path) -> list[str]:
    """The weight files that an index lists, each in the index's folder or below it."""
    with _reading(index, "an index of weights"):
        names: list[object] = list(parse(index.read_bytes())["weight_map"].values())
        for name in names:
            if not _is_below(name):
                raise ValueError(f"it names {shortened(repr(name))}, which is not a file in its folder")
        return sorted({str(name) for name in names})


def _is_below(name: object) -> bool:
    """Whether a name points to a file in its folder or below; a link there may point anywhere."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = PurePath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and max(map(len, parts)) <= LONGEST_NAME


def _files(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a directory's weights are pickles, and their files."""
    for single, index in ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            return single == PICKLE, [folder / single]
        if (folder / index).is_file():
            shards = [folder / name for name in shards_in(folder / index)]
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder} is not a complete checkpoint: {len(missing)} of the {len(shards)} weight "
                    f"files that {index} names are missing, first {missing[0]}",
                    "copy or download them again",
                )
            return single == PICKLE, shards
    return False, []


def _read_pickle(file: Path) -> dict[str, Tensor]:
    with _reading(file, "a complete pickle"):
        # Mapping avoids a second copy in memory; the format from before 2020 cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        try:
            content: object = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError as error:  # torch's message mostly explains how to run the code anyway
            raise ValueError("damaged, or it contains more than tensors; nothing in it was run") from error
    # Training scripts write `{"state_dict": ..., "epoch": 3}` and the like.
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} contains more than named tensors; expected a state dict alone")
    return {str(name): tensor for name, tensor in content.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _safetensors(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def _safetensors(file: Path) -> Iterator[safe_open]:
    """Open a safetensors file, which reads its names but not its tensors."""
    # Python opens it first because it reports the reason of a failure; the library says "does not exist".
    with _reading(file, "a complete safetensors file"), file.open("rb") as held:
        # The library accepts only UTF-8 names.
        name = file if str(file).isprintable() else f"/dev/fd/{held.fileno()}"
        with safe_open(name, "pt") as opened:
            yield opened


@contextmanager
def _reading(file: Path, what: str) -> Iterator[None]:
    """Turn any failure to read a file into a `CheckpointError` that names it and what was expected."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # torch's reader may raise anything on bytes that are not a pickle
        instead = but(file) or f" ({first_line(error)}); copy or download it again"
        raise CheckpointError(f"{file} is not {what}{instead}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
