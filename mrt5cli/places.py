"""Paths as users mean them: `~` is a home directory wherever a path enters, and libraries always find one."""

from __future__ import annotations

import getpass
import math
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Literal

from mrt5cli.errors import UserError, of_the_system


def place(text: str) -> str:
    """A path, a recipe's name or a Hub id, with a `~` or `~user` at its start replaced by the home directory.

    A shell does that only to a word of its own, not to what follows `--out=`, and a recipe has no shell.

    Raises:
        UserError: nobody knows the home directory, or the text is empty, as a variable that is not set.
    """
    if not text.strip():
        raise UserError("a name is empty; expected a path or a name", "look for a variable that is not set")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        who = text.partition("/")[0]
        raise UserError(
            f"{text}: there is no user {who[1:]!r} with a home directory",
            f"for a folder of that name: ./{text}",
        )
    return found


def path(text: str | Path) -> Path:
    """`place` as a path."""
    return Path(place(str(text)))


def shown(path: Path) -> str:
    """A path as messages name it: from the working directory, where it lies below."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def find_home() -> None:
    """Give libraries a home for their caches where the user has none, and a name; called once, at the entry.

    They would make a folder called `~` wherever they are, or look up a name that nobody has.
    """
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # an empty one would be the root of the file system
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = _private_folder()
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):  # ImportError: Windows has no pwd
        if sys.platform == "win32":
            os.environ["USERNAME"] = "user"
        else:
            os.environ["LOGNAME"] = str(os.getuid())


def _private_folder() -> str:
    """A folder among temporary files that is this user's alone; the same at every call, if it can be had."""
    try:
        if sys.platform == "win32":
            return tempfile.mkdtemp(prefix="mrt5-home-")
        folder = Path(tempfile.gettempdir(), f"mrt5-home-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_mode == stat.S_IFDIR | 0o700 and found.st_uid == os.getuid():
            return str(folder)
        return tempfile.mkdtemp(prefix="mrt5-home-")
    except OSError:  # nothing can be written anywhere; whoever needs to says so, by this name
        return "/nonexistent"


def room(path: Path) -> float:
    """Bytes that are free where a path is, or will be made."""
    total, _, free = shutil.disk_usage(_nearest(path))
    return free if total else math.inf  # some file systems do not say


def check_writable(path: Path, kind: Literal["file", "folder", "new folder"]) -> None:
    """Refuse a file or folder that cannot be written, before any work is done for it.

    Args:
        kind: a "new folder" is made beside its place and renamed, a "file" beside what a link points to.

    Raises:
        UserError: something else has that name, or its folder takes nothing new.
    """
    try:
        nearest = _nearest(path if kind == "folder" else Path(os.path.realpath(path)).parent)
        if kind == "file" and path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be written: it is not a file", "give another name")
        if not nearest.is_dir():
            raise UserError(f"{path} cannot be written: {nearest} is not a folder", "give another name")
        with tempfile.TemporaryFile(dir=nearest):
            pass  # permissions do not say it: root has them all in /proc, which takes no files
    except OSError as error:
        _, hint = of_the_system(error)
        raise UserError(f"{path} cannot be written: {error.strerror}", hint) from error


def new_file(text: str | Path) -> Path:
    """`path` for a file that a command writes when its work is done; see `check_writable`."""
    file = path(text)
    check_writable(file, "file")
    return file


def _nearest(path: Path) -> Path:
    """The path, or the innermost of the folders above it that exists."""
    return next(one for one in [path, *path.parents] if one.exists())
