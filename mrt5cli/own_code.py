"""Python that is not this package's own, imported for the tasks, shorteners and metrics it registers: files
that the user names with --code, and modules that installed packages name as entry points.

A run's meta.json names the files that it was made with, by path and content. Whatever opens the run imports
them again, where each is still what it was. That is all that ever brings code along by itself: a Hub model
does not, and no file inside a run directory is taken, because directories are what people pass on, and code
that came from somebody else must not run unless it is asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object
from mrt5cli.places import shown
from mrt5cli.text import listed, shortened, warn_once

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

RECIPE, META = "recipe.yaml", "meta.json"
"""What a run directory holds; see `rundir.RunDir`."""
GROUPS = {"mrt5.tasks": "task", "mrt5.shorteners": "shortener", "mrt5.metrics": "metric"}
"""Groups of entry points, and what their modules register. An entry point has the name of what it brings."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFile:
    """A file that this process has imported.

    Attributes:
        given: what the user, or a run, called it.
        module: its name in `sys.modules`.
        sha256: of its content.
        named: with --code, and not by a run.
    """

    given: str
    module: str
    sha256: str
    named: bool


IMPORTED: dict[Path, OwnFile] = {}
"""The files that this process has imported, where they really are."""


def import_file(path: Path, *, named: bool = True) -> None:
    """Import a file, once in the life of the process, like any module; a copy of it is the same file.

    Args:
        named: with --code.

    Raises:
        UserError: there is no such file, or it raises something.
    """
    file, content = path.resolve(), _content(path)
    digest = sha256(content).hexdigest()
    if file in IMPORTED or _imported(digest):
        return
    name = f"mrt5_code_{len(IMPORTED)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"--code {path} is not a Python file", "give one whose name ends in .py")
    # Dataclasses and pydantic look a class's module up by its name.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    IMPORTED[file] = OwnFile(str(path), name, digest, named)
    try:
        # The content that the hash is of; the loader would read it again, or take what Python has cached.
        exec(spec.loader.source_to_code(content, str(file)), module.__dict__)
    except (Exception, SystemExit) as error:  # it may do anything
        where = f" ({place})" if (place := place_in(error)) else ""
        del sys.modules[name], IMPORTED[file]
        what = f"{type(error).__name__}: {error}{where}"
        given = f"--code {path}" if named else f"{path}, which a run was made with,"
        raise UserError(f"{given} cannot be imported: {what}") from error


def _content(path: Path) -> bytes:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"--code {path}: {what}", "give a Python file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--code {path} cannot be read: {error.strerror}", "give a file to read") from None


def _imported(digest: object) -> bool:
    return any(file.sha256 == digest for file in IMPORTED.values())


# --- of runs ------------------------------------------------------------------------------------------------


def record() -> list[dict[str, str]]:
    """The files that were imported, as a run's meta.json names them."""
    return [{"path": str(path), "sha256": file.sha256} for path, file in IMPORTED.items()]


def is_run(folder: Path) -> bool:
    """Whether a directory is that of a run."""
    return (folder / RECIPE).is_file() and (folder / META).is_file()


def import_again(path: Path) -> None:
    """Import the files that a run was made with, where they are what they were.

    What is named with --code takes the place of one that has the same name, or cannot be had as it was.

    Args:
        path: the directory of the run, or what lies in it: a recipe, a checkpoint; else nothing is done.

    Raises:
        UserError: a file has changed, is gone or lies in a run directory, and none is named in its place.
    """
    absolute = path.absolute()
    run = next((folder for folder in (absolute, *absolute.parents[:3]) if is_run(folder)), None)
    if run is None:
        return
    named = {at.name: one.given for at, one in IMPORTED.items() if one.named}
    for file, digest in _recorded(read_object(run / META, "restore it from a copy")).items():
        if _imported(digest):
            continue
        why = _unfit(file, digest)
        if why is None and file.name not in named:
            import_file(file, named=False)
        elif named:
            instead = named.get(file.name, listed([*named.values()]))
            warn_once(f"{shown(run)} was made with {file.name} as it was before; {instead} is used")
        else:
            again = f"--code {file}" if os.path.isfile(file) else "--code FILE"
            raise UserError(
                f"{shown(run)} was made with {file}, which {why}",
                f"to go on with the code as it is now, add {again} to the command",
            )


def unchanged(meta: Mapping[str, Any]) -> bool:
    """Whether the files that a run was made with have been imported as they were then."""
    return all(map(_imported, _recorded(meta).values()))


def _recorded(meta: Mapping[str, Any]) -> dict[Path, str]:
    """The files that a run's meta.json names, and the hash of each; an old run names none."""
    try:
        return {Path(entry["path"]): str(entry["sha256"]) for entry in meta.get("code", [])}
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{META} names code in another way than it is written: {shortened(repr(meta['code']))}",
            "restore it from a copy, or empty `code` in it and give the files with --code",
        ) from None


def _unfit(file: Path, digest: str) -> str | None:
    """Why a file that a run names is not imported by itself; None where it may be."""
    if not os.path.isfile(file):  # False, too, of a name that no system takes
        return "is gone"
    # As it was written. A relative path, or /proc/self/cwd, would lead to whatever came along with the run.
    if file != file.resolve():
        return "leads to another place"
    if any(map(is_run, file.parents)):
        return "lies in a run directory, and code in one is not imported by itself"
    return None if sha256(_content(file)).hexdigest() == digest else "has changed since"


# --- of installed packages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """An installed distribution, and a module that it names as an entry point."""

    name: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


PACKAGES: list[Package] | None = None
"""Those whose modules were imported; None before anything has asked for them."""
FAILED: dict[tuple[str, str], str] = {}
"""Why an entry point brings nothing, by what it should bring: ("task", "reversal")."""


def take_in_packages(asked: Collection[str] = ()) -> None:
    """Import the modules that installed packages name as entry points, once in the life of the process.

    Args:
        asked: names that are wanted now: why one of them is not there is for who asked to say, with
            `why_missing`, and of the others is a note.
    """
    global PACKAGES
    if PACKAGES is not None:
        return
    from importlib.metadata import entry_points  # a tenth of what `mrt5 --help` takes

    PACKAGES = []
    found: dict[tuple[str, str], list[EntryPoint]] = defaultdict(list)
    for entry in (entry for group in GROUPS for entry in entry_points(group=group)):
        found[GROUPS[entry.group], entry.name].append(entry)
    for what, entries in found.items():
        _take_in(what, entries)
        if what in FAILED and what[1] not in asked:
            logger.warning("%s", FAILED[what])


def _take_in(what: tuple[str, str], entries: list[EntryPoint]) -> None:
    assert PACKAGES is not None
    packages = [_package(entry) for entry in entries]
    if len(packages) > 1:
        both = " and ".join(map(str, packages))
        FAILED[what] = f"{both} both bring the {what[0]} {what[1]!r}, and neither is used: uninstall one"
        return
    PACKAGES.append(packages[0])
    try:
        importlib.import_module(packages[0].module)
    except (Exception, SystemExit) as error:  # it may do anything
        PACKAGES.pop()
        FAILED[what] = (
            f"the {what[0]} {what[1]!r} of the installed {packages[0]} cannot be imported: "
            f"{type(error).__name__}: {error}"
        )


def _package(entry: EntryPoint) -> Package:
    assert entry.dist is not None  # as of all that `entry_points` finds
    return Package(entry.dist.name, entry.dist.version, entry.module)


def why_missing(kind: str, name: str) -> str:
    """What to say where no "task", "shortener" or "metric" of a name is registered."""
    if (kind, name) in FAILED:
        return FAILED[kind, name]
    if IMPORTED:
        given = listed([file.given for file in IMPORTED.values()])
        return f"{given} {'registers' if len(IMPORTED) == 1 else 'register'} no {kind} of that name"
    return "one of your own comes with --code FILE, or with a package that is installed"


# --- whose --------------------------------------------------------------------------------------------------


def package_of(module: str) -> Package | None:
    """The installed package that brought a module, or None."""
    top = module.partition(".")[0]
    return next((one for one in PACKAGES or () if one.module.partition(".")[0] == top), None)


def brought_by(module: str) -> str:
    """ ", of nth.py" or ", of some-package 1.0": who brought what a module registers; empty for our own."""
    file = next((file.given for file in IMPORTED.values() if file.module == module), None)
    whose = file or package_of(module)
    return "" if whose is None else f", of {whose}"


def place_in(error: BaseException) -> str | None:
    """The line of such code that an error comes from, as "FILE, line N"; None where it passed none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, file = frame.f_globals.get("__name__", ""), Path(frame.f_code.co_filename)
        if file in IMPORTED:
            return f"{IMPORTED[file].given}, line {line}"
        if (package := package_of(module)) is not None:
            return f"{file.name} of {package}, line {line}"
    return None


def files() -> list[Path]:
    """The files that were imported, in that order."""
    return [Path(file.given) for file in IMPORTED.values()]


def as_options(meta: Mapping[str, Any]) -> list[str]:
    """The words of a command line that import again those files that a run does not name itself."""
    known = _recorded(meta)
    return [word for path, file in IMPORTED.items() if path not in known for word in ("--code", file.given)]
