"""Files and folders that are whole or absent: written under a temporary name, synced and renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrt5cli.errors import FULL, UserError
from mrt5cli.places import room
from mrt5cli.text import byte_size

TEMPORARY = ".tmp-"
NAME_BYTES = 200
"""Of a name that is made of others; a suffix, and what a temporary file has before it, still fit."""
FORBIDDEN = '/\\%:*?"<>|' if sys.platform == "win32" else "/\\%"
"""Characters that a file's name cannot have, and the one that stands for them."""
_REFUSED = re.compile(
    r"\(os error (\d+)\)|inline_container.*unexpected pos|PytorchStreamWriter failed|problem writing element"
)
"""How safetensors, torch and numpy tell of what the system refused; the last two do not say why."""


def write_json(path: str | Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        ValueError: the content holds a NaN or an infinity, which are not JSON.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_file_name(name: str) -> str:
    """A name from data, such as a language's, as that of one file: of each another, none leading away."""
    kept = "".join(
        c if c.isprintable() and c not in FORBIDDEN else quote(c, safe="", errors="surrogatepass")
        for c in name
    )
    if len(os.fsencode(kept)) <= NAME_BYTES:
        return kept
    start = os.fsencode(kept)[: NAME_BYTES - 13].decode(errors="ignore")
    return f"{start}-{sha256(kept.encode()).hexdigest()[:12]}"


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, making its folder if needed.

    Half a character, as file names that are not UTF-8 have them, becomes an escape that JSON reads back.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder if needed; a link is followed."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with naming(path, len(content)):
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
def whole_directory(path: Path, *, leader: bool = True, needs: int | None = None) -> Iterator[Path]:
    """A folder to fill that gets its name only once everything in it is on disk.

    A kill at any moment leaves either the whole directory or one with a temporary name, which the next call
    for the same path clears away. An existing directory is replaced.

    Args:
        path: the final name; a link is followed, and stays.
        leader: False in all but one of the processes that fill the folder together; those only get its name.
        needs: bytes that it will take, for the error where the disk has no room; None: at least what was
            written by then.
    """
    named, path = path, Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    if not leader:
        with naming(named):
            yield temporary
        return
    with naming(named, needs) as failure:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _give_ordinary_modes(temporary)
            for entry in [*temporary.rglob("*"), temporary]:
                _sync(entry)
        except BaseException:
            failure.written = _size(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
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


@dataclass
class Failure:
    """What `naming` is told of a failure; `written`: bytes that were written before, and are gone again."""

    written: int = 0


@contextmanager
def naming(path: Path, needs: int | None = None) -> Iterator[Failure]:
    """Have what a disk refuses be an OSError that names the file or folder, whichever library was writing;
    where there is no room for it, it says how much there is.

    Args:
        needs: bytes to be written, where they are known.

    Raises:
        OSError: it cannot be written.
    """
    failure = Failure()
    try:
        yield failure
    except (UserError, ValueError):
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None and (said := _REFUSED.search(str(error))):
            number = int(said[1] or 0)
        name = str(getattr(error, "filename", None) or path)
        if number is None or (TEMPORARY not in name and name != str(path)):
            raise
        raise _refused(number, path, needs, failure.written) from error


def _refused(number: int, path: Path, needs: int | None, written: int) -> OSError:
    """What the system said, and how much room there is.

    Args:
        number: of its error; 0 where a library kept it to itself.
    """
    limit, free = _largest_file(), room(path)
    if not number:
        full = free < max(needs or 0, written)
        number = errno.ENOSPC if full else errno.EIO if limit is None else errno.EFBIG
    said = os.strerror(number)
    if number in FULL:
        size = f"it takes {byte_size(needs)}" if needs else f"it takes more than {byte_size(written)}"
        there = f"{byte_size(free)} are free"
        if number == errno.EFBIG and limit is not None:
            there = f"ulimit -f allows a file {byte_size(limit)}"
        said = f"{said} ({size}, and {there})"
    return OSError(number, said, str(path))


def _largest_file() -> int | None:
    """The bytes that `ulimit -f` allows a file; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk.

    Windows cannot sync a folder, and syncs a file only if it is open for writing.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
