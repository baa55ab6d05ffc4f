"""Files and folders that are whole or absent: written under a temporary name, synced and renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError

TEMPORARY = ".tmp-"
_REFUSED = re.compile(r"\(os error (\d+)\)|inline_container.*unexpected pos|PytorchStreamWriter failed")
"""How safetensors and torch tell of what the system refused; torch does not say why."""


def write_json(path: str | Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        ValueError: the content holds a NaN or an infinity, which are not JSON.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, making its folder if needed.

    Half a character, as file names that are not UTF-8 have them, becomes an escape that JSON reads back.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder if needed; a link is followed."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def whole_directory(path: Path, *, leader: bool = True) -> Iterator[Path]:
    """A folder to fill that gets its name only once everything in it is on disk.

    A kill at any moment leaves either the whole directory or one with a temporary name, which the next call
    for the same path clears away. An existing directory is replaced.

    Args:
        path: the final name; a link is followed, and stays.
        leader: False in all but one of the processes that fill the folder together; those only get its name.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    if not leader:
        with naming(path):
            yield temporary
        return
    with naming(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _give_ordinary_modes(temporary)
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        temporary.replace(path)
        _sync(path.parent)


def make_directory(path: Path) -> None:
    """Make a folder if it is missing, through a link to one too.

    Raises:
        UserError: see `check_link`.
    """
    check_link(path)
    Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)


def check_link(path: Path) -> None:
    """Refuse a link below a folder that is missing, as that of a disk that is not mounted is.

    Raises:
        UserError: it is one.
    """
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.parent.is_dir():
        raise UserError(
            f"{path} is a link to {target}, and {target.parent} is not there",
            "mount the disk or make the folder, or delete the link",
        )


def remove_directory(path: Path) -> None:
    """Delete a directory; a kill on the way leaves none that still has its name. Of a link, only the link."""
    if path.is_symlink():
        path.unlink()
        return
    doomed = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def _give_ordinary_modes(folder: Path) -> None:
    """Let files and folders be read by whom the umask lets: safetensors makes its own for their owner alone,
    and a run that a group shares could be evaluated by nobody else."""
    umask = os.umask(0)
    os.umask(umask)
    for entry in folder.rglob("*"):
        if not entry.is_symlink():
            mode = entry.stat().st_mode
            # A folder that hands its group on to what is made in it goes on doing so.
            kept = 0o777 | mode & 0o7000 if entry.is_dir() else 0o666 | mode & 0o111
            entry.chmod(kept & ~umask)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have what a disk refuses be an OSError that names the file or folder, whichever library was writing.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename and TEMPORARY not in str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (UserError, ValueError):
        raise
    except Exception as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        number = int(refused[1] or errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
