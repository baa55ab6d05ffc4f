"""Atomic files and folders: written under a temporary name, synced and renamed."""

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
"""Maximum bytes of a composed file name; leaves room for a suffix and the prefix of temporary files."""
FORBIDDEN = '/\\%:*?"<>|' if sys.platform == "win32" else "/\\%"
"""Characters that file names cannot contain, and the escape character."""
_REFUSED = re.compile(
    r"\(os error (\d+)\)|inline_container.*unexpected pos|PytorchStreamWriter failed|problem writing element"
)
"""Messages of safetensors, torch and numpy for a refused write; torch and numpy omit the error number."""


def write_json(path: str | Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: the content has a NaN or infinity, which JSON cannot represent.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_file_name(name: str) -> str:
    """Turn a name from data, such as a language, into a unique and safe file name."""
    kept = "".join(
        c if c.isprintable() and c not in FORBIDDEN else quote(c, safe="", errors="surrogatepass")
        for c in name
    )
    if len(os.fsencode(kept)) <= NAME_BYTES:
        return kept
    start = os.fsencode(kept)[: NAME_BYTES - 13].decode(errors="ignore")
    return f"{start}-{sha256(kept.encode()).hexdigest()[:12]}"


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file atomically, creating its folder if needed.

    Lone surrogates, which occur in file names that are not UTF-8, become escapes that JSON reads back.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically, creating its folder if needed; a symbolic link is followed."""
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
    """Yield a temporary folder to fill, which gets its final name once everything in it is on disk.

    A kill at any moment leaves either the complete directory or one with a temporary name, which the next
    call for the same path deletes. An existing directory is replaced.

    Args:
        path: the final name; a symbolic link is followed and kept.
        leader: False in all but one of the processes that fill the folder together; they only get its path.
        needs: expected size in bytes, for the error on a full disk; None: what was written by then.
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
    """Create a folder if it is missing, following a symbolic link.

    Raises:
        UserError: see `check_link`.
    """
    check_link(path)
    Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)


def check_link(path: Path) -> None:
    """Refuse a symbolic link into a missing folder, such as one on a disk that is not mounted.

    Raises:
        UserError: the target's parent folder does not exist.
    """
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.parent.is_dir():
        raise UserError(
            f"{path} is a link to {target}, but {target.parent} does not exist",
            "mount the disk, create the folder or delete the link",
        )


def remove_directory(path: Path) -> None:
    """Delete a directory, or only the symbolic link; if killed, no partial one keeps the name."""
    if path.is_symlink():
        path.unlink()
        return
    doomed = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def _give_ordinary_modes(folder: Path) -> None:
    """Apply the umask to files and folders: safetensors creates files that only their owner can read, so a
    run in a shared folder could not be evaluated by others."""
    umask = os.umask(0)
    os.umask(umask)
    for entry in folder.rglob("*"):
        if not entry.is_symlink():
            mode = entry.stat().st_mode
            # Keep the setgid bit of a folder that passes its group on to new entries.
            kept = 0o777 | mode & 0o7000 if entry.is_dir() else 0o666 | mode & 0o111
            entry.chmod(kept & ~umask)


@dataclass
class Failure:
    """Details for the error of `naming`; `written`: bytes that had been written, and are deleted again."""

    written: int = 0


@contextmanager
def naming(path: Path, needs: int | None = None) -> Iterator[Failure]:
    """Turn a refused write by any library into an OSError that names the path, the size and the free space.

    Args:
        needs: bytes to be written, if known.

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
    """The system's error, with the free space if the disk is full.

    Args:
        number: the error number; 0 if the library did not report it.
    """
    limit, free = _largest_file(), room(path)
    if not number:
        full = free < max(needs or 0, written)
        number = errno.ENOSPC if full else errno.EIO if limit is None else errno.EFBIG
    said = os.strerror(number)
    if number in FULL:
        size = f"it needs {byte_size(needs)}" if needs else f"it needs more than {byte_size(written)}"
        there = f"{byte_size(free)} are free"
        if number == errno.EFBIG and limit is not None:
            there = f"ulimit -f allows {byte_size(limit)} per file"
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
