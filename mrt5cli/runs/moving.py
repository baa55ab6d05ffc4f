"""Removing and moving runs: completely or not at all, and never while a process trains or reads them.

References to a run contain its path: the `model.start` of other runs, meta.json and result files. A move
updates them. The recorded command line of a run does not change.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mrt5cli import locks, manifest, own_code
from mrt5cli.errors import UserError, of_the_system
from mrt5cli.json_files import read_object
from mrt5cli.locks import Holder
from mrt5cli.places import shown
from mrt5cli.rundir import CONFIG, DEFAULT_FOLDER, RunDir, run_and_step
from mrt5cli.runs.found import DEEPEST, find, glance, looks_like_a_run
from mrt5cli.writing import make_directory, remove_directory, whole_directory, write_json, write_text

LONGEST_PATH = 4096
"""Maximum characters of a path."""
AS_TYPED = "command"
"""The key of meta.json whose paths are never updated."""


@contextmanager
def untouched(run: RunDir, what: str, *, only: tuple[Path, ...] | None = None) -> Iterator[None]:
    """Lock a run against trainings and readers.

    Args:
        what: the operation as a participle, such as "removed", for error messages.
        only: folders to lock against readers; by default, all that contain weights.

    Raises:
        UserError: another process trains or reads the run.
    """
    check_own_place(run, what)
    lock = _lock(run, what)
    try:
        with ExitStack() as stack:
            for folder in only if only is not None else weights(run):
                if not stack.enter_context(locks.unread(folder / CONFIG)):
                    raise UserError(
                        f"{run.path} cannot be {what}: another process reads {folder}",
                        "wait until that process ends, and try again",
                    )
            yield
    finally:
        os.ftruncate(lock.descriptor, 0)  # a file that moved with the run must not name a holder
        lock.release()


def _lock(run: RunDir, what: str) -> locks.Lock:
    if not os.access(run.path, os.W_OK):
        raise UserError(
            f"{run.path} cannot be {what}: you do not have write permission", "ask the owner of the run"
        )
    try:
        found = locks.take(run.lock)
    except OSError as error:
        raise UserError(f"{run.path} cannot be {what}: {error.strerror}", of_the_system(error)[1]) from error
    if isinstance(found, Holder):
        raise _trained(run, what, found)
    return found


def check_own_place(run: RunDir, what: str) -> None:
    """Raise UserError unless a path is a run, and not a link to one."""
    if run.path.is_symlink():
        target = os.path.realpath(run.path)
        raise UserError(
            f"{run.path} cannot be {what}: it is a link to {target}",
            f"name {target} for the run itself, or delete the link with `rm`",
        )
    if not looks_like_a_run(run.path):
        raise UserError(f"{run.path} is not a run", "name a run directory")


def check_not_trained(run: RunDir, what: str) -> None:
    """Raise UserError if a run is being trained; called before asking for confirmation."""
    if holder := run.holder():
        raise _trained(run, what, holder)


def _trained(run: RunDir, what: str, holder: Holder) -> UserError:
    return UserError(
        f"{run.path} cannot be {what}: it is being trained, {holder}", f"{holder.how_to_stop} first"
    )


def weights(run: RunDir) -> list[Path]:
    """The folders with weights: the finished model, all checkpoints, and the best weights."""
    steps = [run.checkpoint(step) for step in run.saved_steps()]
    return [run.model, *steps, *(run.best_weights(step) for step in run.best_steps())]


def outside(run: RunDir) -> list[Path]:
    """Links in a run; removing the run keeps their targets."""
    return [path for path in run.path.rglob("*") if path.is_symlink()]


def remove(run: RunDir) -> None:
    """Remove a run atomically, and keep the targets of links. Raises UserError as `untouched`."""
    with untouched(run, "removed"):
        remove_directory(run.path)


def check_has_model(run: RunDir) -> None:
    """Raise UserError unless a run has a finished model besides its checkpoints."""
    if not (run.model / CONFIG).is_file():
        raise UserError(
            f"{run.path} has no finished model, only checkpoints",
            f"finish it with `{run.resume_command}`, or remove the run with its checkpoints",
        )


def remove_checkpoints(run: RunDir) -> None:
    """Remove the checkpoints of a run, and keep its model, metrics and results. Raises UserError as
    `untouched`, or if the run has no finished model."""
    check_has_model(run)
    checkpoints = [run.checkpoint(step) for step in run.saved_steps()]
    with untouched(run, "changed", only=tuple(checkpoints)):
        for checkpoint in checkpoints:
            remove_directory(checkpoint)


# --- references to a run ------------------------------------------------------------------------------------


def others(run: RunDir) -> list[RunDir]:
    """The other runs below runs/, and those in the folder of a run."""
    found: dict[str, RunDir] = {}
    for folder, deepest in ((Path(DEFAULT_FOLDER), DEEPEST), (run.path.parent, 1)):
        for path in find(folder, deepest) if folder.is_dir() else ():
            if own_code.is_run(path) and not path.is_symlink():
                found.setdefault(os.path.realpath(path), RunDir(path))
    found.pop(os.path.realpath(run.path), None)
    return [*found.values()]


def starting_from(run: RunDir) -> list[RunDir]:
    """The runs whose starting model is in a run."""
    found = []
    for other in others(run):
        try:
            start = glance(other.recipe_path).get("start")
        except (OSError, ValueError):  # damaged
            continue
        if isinstance(start, str) and _below(start, run.path) is not None:
            found.append(other)
    return found


def _below(text: str, folder: Path) -> str | None:
    """The rest of a path after a folder, such as "", "/model" or "@step-500"; None for any other text."""
    if os.path.basename(folder) not in text or len(text) > LONGEST_PATH:
        return None
    path, step = os.path.expanduser(text), ""
    try:
        if (named := run_and_step(path)) is not None:
            path, step = str(named[0].path), f"@{named[1]}"
        at, place = os.path.realpath(path), os.path.realpath(folder)
    except ValueError:  # characters that are invalid in a path
        return None
    if at == place or at.startswith(place + os.sep):
        return at[len(place) :] + step
    return None


def _renamed(text: str, old: Path, new: Path) -> str:
    """A text with a path into the old folder replaced by the new one; absolute if it was absolute, or if the
    new folder is outside the working directory."""
    rest = _below(text, old)
    if rest is None:
        return text
    return (os.path.abspath(new) if os.path.isabs(text) else shown(new)) + rest


def _rewritten(tree: Any, old: Path, new: Path) -> Any:
    """A JSON value with all paths into the old folder replaced."""
    if isinstance(tree, Mapping):
        return {
            key: value if key == AS_TYPED else _rewritten(value, old, new)
            for key, value in ((_renamed(key, old, new), value) for key, value in tree.items())
        }
    if isinstance(tree, list):
        return [_rewritten(value, old, new) for value in tree]
    return _renamed(tree, old, new) if isinstance(tree, str) else tree


# --- moving -------------------------------------------------------------------------------------------------


def move(run: RunDir, new: Path) -> list[Path]:
    """Move a run, update all references to it, and return the other runs that refer to it.

    During the move, the old path is a link to the new one, so that references stay valid even after a kill.

    Raises:
        UserError: another process trains or reads the run; the new path exists or is inside a run; a run that
            refers to it is being trained.
    """
    old = run.path
    check_own_place(run, "moved")
    if new.exists() or new.is_symlink():
        raise UserError(f"{new} already exists", "choose another name, or remove it first")
    if os.path.realpath(new).startswith(os.path.realpath(old) + os.sep):
        raise UserError(f"{old} cannot be moved into itself, to {new}", "choose another place")
    for above in new.absolute().parents:
        if looks_like_a_run(above):
            raise UserError(f"{new} would be inside the run {above}", "choose another place")
    referring = starting_from(run)
    for other in referring:
        if holder := other.holder():
            raise UserError(
                f"{old} cannot be moved: {other.path} starts from it and is being trained, {holder}",
                "wait until that training ends",
            )
    with untouched(run, "moved"):
        make_directory(new.parent)
        changes = _changes(run, referring, new)
        _relocate(old, new)
        for path, content in changes.items():
            path = new / path.relative_to(old) if path.is_relative_to(old) else path
            write_text(path, content) if isinstance(content, str) else write_json(path, content)
        if old.is_symlink():
            old.unlink()
    return [other.path for other in referring]


def _changes(run: RunDir, referring: list[RunDir], new: Path) -> dict[Path, str | dict[str, Any]]:
    """The files that contain a run's path, with their new contents; UserError if one cannot be read."""
    from mrt5cli.recipe import strict_yaml

    old = run.path
    changes: dict[Path, str | dict[str, Any]] = {}
    for file in _results(run):
        before = read_object(file, f"remove {file}, or restore it from a copy")
        if (after := _rewritten(before, old, new)) != before:
            changes[file] = after
    for each in (run, *referring):
        if not each.meta_path.is_file():
            continue
        meta = read_object(each.meta_path, "restore it from a copy")
        after = _rewritten(meta, old, new)
        # A continued run stores the recipe of each segment.
        for file in [each.recipe_path, *each.segments.glob("*/recipe.yaml")] if each is not run else ():
            text = file.read_text(encoding="utf-8")
            tree = strict_yaml.parse(text).tree
            start = tree["model"]["start"] = _renamed(tree["model"]["start"], old, new)
            if {*"{}"} & {*start}:
                raise UserError(
                    f"{each.path} would start from {start}, but a recipe's model.start cannot contain braces",
                    "choose another name",
                )
            changes[file] = renamed = strict_yaml.dump(tree)
            # Sessions record the hash of recipe.yaml; without an update, a resume would report a change.
            for session in after.get("sessions", []):
                if session.get("recipe") == _hash(text):
                    session["recipe"] = _hash(renamed)
        if after != meta:
            changes[each.meta_path] = after
    return changes


def _results(run: RunDir) -> list[Path]:
    """The result files of a run, without those behind links."""
    folders = [run.eval("").parent, *run.segments.glob("*/eval")]
    return sorted(file for folder in folders if not folder.is_symlink() for file in folder.rglob("*.json"))


def _hash(text: str) -> str:
    return manifest.hash_of(text.encode("utf-8", "backslashreplace"))


def _relocate(old: Path, new: Path) -> None:
    """Move a directory, and leave a link under its old name."""
    try:
        old.rename(new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with whole_directory(new) as folder:
            mine = shutil.ignore_patterns(RunDir(old).lock.name)
            shutil.copytree(old, folder, symlinks=True, dirs_exist_ok=True, ignore=mine)
            _check_copy(old, folder)
        remove_directory(old)
    try:
        old.symlink_to(new.absolute())
    except OSError:  # a file system without links; `move` updates the references right away
        return


def _check_copy(old: Path, copy: Path) -> None:
    """Raise UserError unless a copied run equals the original, and its weights match their manifests."""
    for path in (path for path in old.rglob("*") if path != RunDir(old).lock):
        there = copy / path.relative_to(old)
        if path.is_symlink() or path.is_dir():
            same = there.is_symlink() == path.is_symlink() and there.exists() == path.exists()
        else:
            same = there.is_file() and filecmp.cmp(path, there, shallow=False)
        if not same:
            raise UserError(
                f"the copy of {path} differs from it; nothing was moved", "check the disk, and try again"
            )
    for folder in weights(RunDir(copy)):
        if folder.is_dir() and (why := manifest.fault(folder)):
            raise UserError(
                f"{old} is damaged, and was not moved: in {folder.relative_to(copy)}, {why}",
                manifest.what_to_do(old / folder.relative_to(copy)),
            )
