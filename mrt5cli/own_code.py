"""Custom code: Python files given with --code and entry points of installed packages, imported for the tasks,
shorteners and metrics they register.

A run's meta.json records the files that it was made with, by path and hash. Opening the run imports them
again if they are unchanged. Nothing else imports code implicitly: neither a Hub model nor a file inside a run
directory, because directories are passed on, and other people's code must only run when the user names it.
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
"""Files of a run directory; see `rundir.RunDir`."""
GROUPS = {"mrt5.tasks": "task", "mrt5.shorteners": "shortener", "mrt5.metrics": "metric"}
"""Entry point groups and what their modules register. An entry point is named like what it registers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFile:
    """A custom file that this process has imported.

    Attributes:
        given: its path as the user, or a run, named it.
        module: its name in `sys.modules`.
        sha256: the hash of its content.
        named: whether --code named it, rather than a run.
    """

    given: str
    module: str
    sha256: str
    named: bool


IMPORTED: dict[Path, OwnFile] = {}
"""The custom files that this process has imported, by resolved path."""


def import_file(path: Path, *, named: bool = True) -> None:
    """Import a file once per process, like any module; a copy with equal content counts as the same file.

    Args:
        named: whether --code named it.

    Raises:
        UserError: the file does not exist, or importing it fails.
    """
    file, content = path.resolve(), _content(path)
    digest = sha256(content).hexdigest()
    if file in IMPORTED or _imported(digest):
        return
    name = f"mrt5_code_{len(IMPORTED)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"--code {path} is not a Python file", "pass a file whose name ends in .py")
    # Dataclasses and pydantic look up a class's module by name.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    IMPORTED[file] = OwnFile(str(path), name, digest, named)
    try:
        # Execute the content that was hashed; the loader would read the file again or use a cached version.
        exec(spec.loader.source_to_code(content, str(file)), module.__dict__)
    except (Exception, SystemExit) as error:  # custom code may raise anything
        where = f" ({place})" if (place := place_in(error)) else ""
        del sys.modules[name], IMPORTED[file]
        what = f"{type(error).__name__}: {error}{where}"
        given = f"--code {path}" if named else f"{path}, which a run was made with,"
        raise UserError(f"{given} cannot be imported: {what}") from error


def _content(path: Path) -> bytes:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"--code {path} {what}", "pass a Python file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--code {path} cannot be read: {error.strerror}", "pass a readable file") from None


def _imported(digest: object) -> bool:
    return any(file.sha256 == digest for file in IMPORTED.values())


# --- of runs ------------------------------------------------------------------------------------------------


def record() -> list[dict[str, str]]:
    """The imported files as recorded in a run's meta.json."""
    return [{"path": str(path), "sha256": file.sha256} for path, file in IMPORTED.items()]


def is_run(folder: Path) -> bool:
    """Whether a directory is a run directory."""
    return (folder / RECIPE).is_file() and (folder / META).is_file()


def import_again(path: Path) -> None:
    """Import the custom files that a run was made with, if they are unchanged.

    A file named with --code replaces one of the same name, or one that has changed or disappeared.

    Args:
        path: a run directory or a recipe or checkpoint in it; for any other path nothing is done.

    Raises:
        UserError: a file has changed, was deleted or is in a run directory, and --code names no replacement.
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
            warn_once(f"{shown(run)} was made with another version of {file.name}; using {instead}")
        else:
            again = f"--code {file}" if os.path.isfile(file) else "--code FILE"
            raise UserError(
                f"{shown(run)} was made with {file}, which {why}",
                f"to use the current code, add {again} to the command",
            )


def unchanged(meta: Mapping[str, Any]) -> bool:
    """Whether the files that a run was made with are imported in the same versions."""
    return all(map(_imported, _recorded(meta).values()))


def _recorded(meta: Mapping[str, Any]) -> dict[Path, str]:
    """The files that a run's meta.json records, with their hashes; empty for an old run."""
    try:
        return {Path(entry["path"]): str(entry["sha256"]) for entry in meta.get("code", [])}
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{META} is damaged: its code is {shortened(repr(meta['code']))}",
            "restore it from a copy, or empty `code` in it and pass the files with --code",
        ) from None


def _unfit(file: Path, digest: str) -> str | None:
    """Why a file that a run records must not be imported implicitly, or None if it may be."""
    if not os.path.isfile(file):  # also False for an invalid name
        return "no longer exists"
    # A relative path, or /proc/self/cwd, would lead to files that were passed on together with the run.
    if file != file.resolve():
        return "resolves to another path"
    if any(map(is_run, file.parents)):
        return "is in a run directory, from which code is not imported automatically"
    return None if sha256(_content(file)).hexdigest() == digest else "has changed since"


# --- of installed packages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """An installed distribution and a module that it declares as an entry point."""

    name: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


PACKAGES: list[Package] | None = None
"""Packages whose modules were imported; None before the first request."""
FAILED: dict[tuple[str, str], str] = {}
"""Why an entry point failed, by what it should register: ("task", "reversal")."""


def take_in_packages(asked: Collection[str] = ()) -> None:
    """Import the modules that installed packages declare as entry points, once per process.

    Args:
        asked: names that the caller needs. If one fails, the caller reports it with `why_missing`; the
            failure of any other is logged here.
    """
    global PACKAGES
    if PACKAGES is not None:
        return
    from importlib.metadata import entry_points  # importing it is a tenth of the time of `mrt5 --help`

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
        FAILED[what] = f"{both} both provide the {what[0]} {what[1]!r}, so neither is used: uninstall one"
        return
    PACKAGES.append(packages[0])
    try:
        importlib.import_module(packages[0].module)
    except (Exception, SystemExit) as error:  # other people's code may raise anything
        PACKAGES.pop()
        FAILED[what] = (
            f"the {what[0]} {what[1]!r} of the installed {packages[0]} cannot be imported: "
            f"{type(error).__name__}: {error}"
        )


def _package(entry: EntryPoint) -> Package:
    assert entry.dist is not None  # true of every result of `entry_points`
    return Package(entry.dist.name, entry.dist.version, entry.module)


def why_missing(kind: str, name: str) -> str:
    """A clause on why no "task", "shortener" or "metric" of a name is registered."""
    if (kind, name) in FAILED:
        return FAILED[kind, name]
    if IMPORTED:
        given = listed([file.given for file in IMPORTED.values()])
        return f"{given} {'registers' if len(IMPORTED) == 1 else 'register'} no {kind} of that name"
    return "a custom one needs --code FILE or an installed package"


# --- whose --------------------------------------------------------------------------------------------------


def package_of(module: str) -> Package | None:
    """The installed package that a module belongs to, or None."""
    top = module.partition(".")[0]
    return next((one for one in PACKAGES or () if one.module.partition(".")[0] == top), None)


def brought_by(module: str) -> str:
    """ ", of nth.py" or ", of some-package 1.0": where a module comes from; empty for our own modules."""
    file = next((file.given for file in IMPORTED.values() if file.module == module), None)
    whose = file or package_of(module)
    return "" if whose is None else f", of {whose}"


def place_in(error: BaseException) -> str | None:
    """The line of custom code that an error comes from, as "FILE, line N", or None."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, file = frame.f_globals.get("__name__", ""), Path(frame.f_code.co_filename)
        if file in IMPORTED:
            return f"{IMPORTED[file].given}, line {line}"
        if (package := package_of(module)) is not None:
            return f"{file.name} of {package}, line {line}"
    return None


def files() -> list[Path]:
    """The imported files, in order of import."""
    return [Path(file.given) for file in IMPORTED.values()]


def as_options(meta: Mapping[str, Any]) -> list[str]:
    """The --code options needed to import again the files that a run does not record."""
    known = _recorded(meta)
    return [word for path, file in IMPORTED.items() if path not in known for word in ("--code", file.given)]
