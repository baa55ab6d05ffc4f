"""Paths as users mean them: `~` works wherever a path is read, and libraries always find a home directory."""

from __future__ import annotations

import getpass
import math
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Literal

from mrt5cli.errors import UserError, of_the_system


def place(text: str) -> str:
    """A path, a recipe name or a Hub id, with a leading `~` or `~user` expanded to the home directory.

    A shell does so only at the start of a word, not after `--out=`, and not in a recipe.

    Raises:
        UserError: the home directory is unknown, or the text is empty.
    """
    if not text.strip():
        raise UserError(
            "a name is empty; expected a path or a name", "check for a shell variable that is unset"
        )
    found = os.path.expanduser(text)
    if found.startswith("~"):
        who = text.partition("/")[0]
        raise UserError(
            f"{text}: there is no user {who[1:]!r} with a home directory",
            f"for a folder of that name, use ./{text}",
        )
    return found


def path(text: str | Path) -> Path:
    """`place` as a path."""
    return Path(place(str(text)))


def shown(path: Path) -> str:
    """A path for messages: relative to the working directory if it is below it, otherwise absolute."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def find_home() -> None:
    """Set HOME and LOGNAME if the user has no home directory or name; called once, at startup.

    Otherwise libraries would create a folder named `~`, or fail to look up the user's name.
    """
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # an empty one would be the root of the file system
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = _private_folder()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())


def _private_folder() -> str:
    """A temporary folder that only this user can access; the same one at each call if possible."""
    try:
        folder = Path(tempfile.gettempdir(), f"mrt5-home-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_mode == stat.S_IFDIR | 0o700 and found.st_uid == os.getuid():
            return str(folder)
        return tempfile.mkdtemp(prefix="mrt5-home-")
    except OSError:  # nothing is writable; a later write fails and names this path
        return "/nonexistent"


def room(path: Path) -> float:
    """Free bytes on the file system of a path, which need not exist yet."""
    total, _, free = shutil.disk_usage(_nearest(path))
    return free if total else math.inf  # some file systems report nothing


def check_writable(path: Path, kind: Literal["file", "folder", "new folder"]) -> None:
    """Refuse a file or folder that cannot be written, before any work is done for it.

    Args:
        kind: a "new folder" is created next to its path and renamed, a "file" next to the target of a link.

    Raises:
        UserError: the name is taken by something else, or its folder is not writable.
    """
    try:
        nearest = _nearest(path if kind == "folder" else Path(os.path.realpath(path)).parent)
        if kind == "file" and path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be written: it is not a file", "choose another name")
        if not nearest.is_dir():
            raise UserError(f"{path} cannot be written: {nearest} is not a folder", "choose another name")
        with tempfile.TemporaryFile(dir=nearest):
            pass  # permissions are not enough: root has them all in /proc, where no file can be created
    except OSError as error:
        _, hint = of_the_system(error)
        raise UserError(f"{path} cannot be written: {error.strerror}", hint) from error


def new_file(text: str | Path) -> Path:
    """`path` for a file that a command writes at the end of its work; see `check_writable`."""
    file = path(text)
    check_writable(file, "file")
    return file


def _nearest(path: Path) -> Path:
    """The path, or the innermost of the folders above it that exists."""
    return next(one for one in [path, *path.parents] if one.exists())
