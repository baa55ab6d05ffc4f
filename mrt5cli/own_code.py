"""Python files of the user's own, imported before a recipe or a model is read, for what they register."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from mrt5cli.errors import UserError

IMPORTED: dict[Path, str] = {}
"""The files that this process has imported, and what the user called them."""


def import_file(path: Path) -> None:
    """Import a file, once in the life of the process, like any module.

    Raises:
        UserError: there is no such file, or it raises something.
    """
    file = path.resolve()
    if file in IMPORTED:
        return
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "there is no such file"
        raise UserError(f"--code {path}: {what}", "give a Python file")
    name = f"mrt5_code_{len(IMPORTED)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--code {path} is not a Python file", "give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look a class's module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it may do anything
        del sys.modules[name]
        raise UserError(f"--code {path} cannot be imported: {type(error).__name__}: {error}") from error
    IMPORTED[file] = str(path)


def place_in(error: BaseException) -> str | None:
    """The line of such a file that an error comes from, as "FILE, line N"; None where it passed none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (name := IMPORTED.get(Path(frame.filename))) is not None:
            return f"{name}, line {frame.lineno}"
    return None


def files() -> list[Path]:
    """The files that were imported, in that order."""
    return [Path(path) for path in IMPORTED.values()]


def as_options() -> list[str]:
    """The words of a command line that import the same files again."""
    return [word for path in IMPORTED.values() for word in ("--code", path)]
