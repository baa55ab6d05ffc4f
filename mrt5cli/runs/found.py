"""Finding the runs below a folder, and reading just enough of each for a list."""

from __future__ import annotations

import difflib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object
from mrt5cli.locks import Holder
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.places import shown
from mrt5cli.rundir import COUNTED_WITH, DEFAULT_FOLDER, FINISHED, RunDir, metrics_row
from mrt5cli.text import first_line, shortened

State = Literal["running", "finished", "interrupted", "failed", "stale", "damaged"]
STATES: tuple[State, ...] = ("running", "finished", "interrupted", "failed", "stale", "damaged")
"""States of a run. A stale run was killed: it is marked as running, but no process holds its lock. The
meta.json or recipe.yaml of a damaged run cannot be read."""
DEEPEST = 6
"""Levels of folders to search; suites nest runs in folders of recipes."""
TAGS = "tags.json"
LARGEST = 1e100
"""Bound on numbers; larger ones do not come from a training."""
_TAIL = 2**13
"""Bytes to read first from the end of metrics.jsonl; a validation line may be longer."""
_LONGEST_TAIL = 2**22
GLANCED = {
    "name": "name",
    "seed": "seed",
    "task": "task.kind",
    "start": "model.start",
    "shortener": "model.shortener.kind",
    "target": "controller.target_deletion_rate",
    "steps": "training.max_steps",
}
"""Values that a list needs from a recipe, with their keys in the file."""


@dataclass(frozen=True)
class Entry:
    """A run as a list shows it. Unknown values are None.

    Attributes:
        name: path as it can be typed in every command.
        why: reason for a failure or damage, as a clause.
        holder: the process that trains it.
        recipe: values of `GLANCED`.
        logged: the last line of training metrics; empty if there is none.
        meta: contents of meta.json; empty if it cannot be read.
        notes: sentences about other unreadable files.
    """

    run: RunDir
    name: str
    state: State
    why: str | None = None
    holder: Holder | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str | None:
        return self.recipe.get("task")

    @property
    def steps(self) -> int | None:
        return self.recipe.get("steps")

    @property
    def step(self) -> int:
        """Optimizer steps done, from the last line of metrics or meta.json."""
        return max(int(self.logged.get("step", 0)), self.meta.get("step") or 0)

    @property
    def target(self) -> float | None:
        return self.logged.get("target", self.recipe.get("target"))

    @cached_property
    def last_sign(self) -> float | None:
        """Time of the last activity, in seconds since 1970."""
        if self.holder is not None and self.holder.beat:
            return self.holder.beat
        if self.meta.get("ended"):
            return datetime.fromisoformat(self.meta["ended"]).timestamp()
        files = (self.run.metrics_path, self.run.meta_path, self.run.recipe_path, self.run.path)
        try:
            return next((file.stat().st_mtime for file in files if file.exists()), None)
        except OSError:
            return None

    @property
    def age(self) -> float | None:
        """Seconds since the last activity."""
        return None if self.last_sign is None else max(0.0, time.time() - self.last_sign)

    @cached_property
    def size(self) -> int:
        """Bytes on disk, without the targets of links."""
        return size_of(self.run.path)

    @cached_property
    def _results(self) -> tuple[list[tuple[Path, SavedEvaluation]], list[str]]:
        found, notes = [], []
        folder = self.run.eval("").parent
        try:
            files = sorted(path for path in folder.glob("*.json") if path.is_file())
        except OSError as error:
            return [], [f"{folder} cannot be read: {error.strerror}"]
        for path in files:
            try:
                found.append((path, SavedEvaluation.read(path)))
            except UserError as error:
                notes.append(error.message)
        return [(path, one) for path, one in found if one.models and one.rows], notes

    @property
    def evaluations(self) -> list[tuple[Path, SavedEvaluation]]:
        return self._results[0]

    @property
    def all_notes(self) -> list[str]:
        return [*self.notes, *self._results[1]]

    def own_evaluation(self) -> SavedEvaluation | None:
        """The finished model's evaluation on its task, preferring test data and hard deletion."""
        own = [one for _, one in self.evaluations if one.of_the_model_itself and one.task == self.task]
        order = lambda one: (one.split != "test", one.deletion != "hard", -one.rows[-1].examples)
        return min(own, key=order, default=None)

    def number(self, key: str) -> float | None:
        """A number by its key: a column of the list, a logged metric, or one of `own_evaluation`."""
        if key in ("step", "steps", "size", "age", "target"):
            value: float | None = getattr(self, key)
            return value
        if key in ("seed", "parameters"):
            return as_number(self.recipe.get(key, self.meta.get(key)))
        if key in self.logged:
            return self.logged[key]
        one = self.own_evaluation()
        return None if one is None else one.rows[-1].number(key)

    def document(self) -> dict[str, Any]:
        """All values for JSON."""
        holder = self.holder
        return {
            "run": self.name,
            "path": str(self.run.path.absolute()),
            "state": self.state,
            "why": self.why,
            "process": holder
            and {"pid": holder.pid, "host": holder.host, "started": holder.started, "beat": holder.beat},
            "step": self.step,
            "steps": self.steps,
            "target": self.target,
            **{key: self.recipe.get(key) for key in ("task", "shortener", "start", "seed")},
            "logged": self.logged or None,
            "best": self.meta.get("best"),
            "evaluations": [
                {
                    "file": str(path),
                    **one.model_dump(mode="json", include={"task", "split", "deletion", "limit", "data"}),
                    "step": one.models[0].step,
                    "calibration": one.models[0].calibration,
                    "rows": [row.to_json() for row in one.rows],
                }
                for path, one in self.evaluations
            ],
            **{key: self.meta.get(key) for key in ("started", "ended", "parameters", "device", "commit")},
            "age_seconds": self.age,
            "bytes": self.size,
            "tags": list(self.tags),
            "notes": self.all_notes,
        }


# --- finding ------------------------------------------------------------------------------------------------


def looks_like_a_run(folder: Path) -> bool:
    """Whether a folder is a run, possibly one that has lost a file."""
    if own_code.is_run(folder):
        return True
    parts = (
        folder / own_code.META,
        folder / own_code.RECIPE,
        folder / "metrics.jsonl",
        folder / "checkpoints",
    )
    return sum(part.exists() for part in parts) > 1


def find(folder: Path, deepest: int = DEEPEST) -> Iterator[Path]:
    """Yield the runs in a folder and its subfolders, or the folder itself if it is a run.

    A run with several links to it is yielded once. An unreadable folder is yielded too, since it may contain
    a run.

    Args:
        deepest: levels of subfolders to search.
    """
    seen: set[tuple[int, int]] = set()

    def search(place: Path, depth: int) -> Iterator[Path]:
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            if looks_like_a_run(place):
                yield place
                return
            if depth == deepest:
                return
            with os.scandir(place) as entries:
                inside = sorted(entries, key=lambda one: (one.is_symlink(), one.name))
            folders = [Path(one.path) for one in inside if not one.name.startswith(".") and one.is_dir()]
        except OSError:
            yield place
            return
        for one in folders:
            yield from search(one, depth + 1)

    yield from search(folder, 0)


def resolve(text: str) -> RunDir:
    """The run at a path, or with a name below runs/.

    Raises:
        UserError: there is none; the hint suggests a similar name.
    """
    places = [Path(text), Path(DEFAULT_FOLDER, text)]
    if not text.strip():
        raise UserError("the name of the run is empty; expected a run directory, or its name below runs/")
    for place in places:
        if looks_like_a_run(place):
            return RunDir(place)
    folder = next((place for place in places if place.is_dir()), None)
    names = {shown(path): path for path in find(Path(DEFAULT_FOLDER)) if looks_like_a_run(path)}
    names |= {shown(path): path for path in find(folder, 2) if looks_like_a_run(path)} if folder else {}
    by_name = {path.name: name for name, path in names.items()} | {name: name for name in names}
    near = [by_name[one] for one in difflib.get_close_matches(Path(text).name, by_name, n=1)]
    near = near or [by_name[one] for one in difflib.get_close_matches(text, by_name, n=1)]
    hint = f"did you mean {near[0]}?" if near else "run `mrt5 runs` to list all runs"
    if folder is not None:
        inside = [name for name, path in names.items() if path.is_relative_to(folder)]
        hint = f"runs in it: {', '.join(inside[:5])}" if inside else hint
        raise UserError(f"{text} is not a run: it has no {own_code.RECIPE} and {own_code.META}", hint)
    raise UserError(f"there is no run named {text}, here or below {DEFAULT_FOLDER}/", hint)


# --- reading ------------------------------------------------------------------------------------------------


def read(path: Path, name: str | None = None) -> Entry:
    """Read a run. Damage is described in the entry; nothing is raised.

    Args:
        name: name in the list; by default its path.
    """
    run, name = RunDir(path), str(path) if name is None else name
    try:
        holder = run.holder()
        tags, notes = _tags(path)
        logged = last_logged(run.metrics_path)
        missing = [one.name for one in (run.meta_path, run.recipe_path) if not one.is_file()]
        if missing and holder is None:
            os.listdir(path)  # raises if the folder is not readable
            return Entry(run, name, "damaged", f"it has no {' and no '.join(missing)}", None, tags=tags)
        recipe, meta = glance(run.recipe_path), run.meta()
    except UserError as error:
        return Entry(run, name, "damaged", error.message)
    except OSError as error:
        return Entry(
            run, name, "damaged", f"{error.filename or path} cannot be read: {error.strerror or error}"
        )
    except ValueError as error:
        return Entry(run, name, "damaged", f"{run.recipe_path} is damaged: {first_line(error)}")
    why = meta.get("error") if meta.get("status") == "failed" and holder is None else None
    return Entry(run, name, _state(meta, holder), why, holder, recipe, logged, meta, tags, tuple(notes))


def _state(meta: dict[str, Any], holder: Holder | None) -> State:
    if holder is not None:
        return "running"
    status = meta.get("status")
    if status in (FINISHED, "interrupted", "failed"):
        known: State = status
        return known
    return "stale"


def glance(path: Path) -> dict[str, Any]:
    """The values of `GLANCED` in a recipe written by a run, a hundred times faster than a YAML parser.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a recipe.
    """
    text = path.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        key, colon, value = line.strip().partition(":")
        if not colon or indent % 2 or indent // 2 > len(keys) or line.lstrip(" ").startswith(("#", "-")):
            continue
        keys = [*keys[: indent // 2], key]
        found.setdefault(".".join(keys), value.strip())
    try:
        values = {name: _scalar(found[key]) for name, key in GLANCED.items() if key in found}
    except ValueError:  # quoted text, possibly on several lines
        values = _parsed(text)
    if not {"name", "task", "steps"} <= values.keys():
        raise ValueError("it is not a recipe written by a run")
    if not isinstance(values["steps"], int) or not isinstance(values["task"], str):
        raise ValueError(f"it sets training.max_steps: {shortened(str(values['steps']))}")
    if not isinstance(values.get("target"), int | float | None):
        raise ValueError(f"it sets controller.target_deletion_rate: {shortened(str(values['target']))}")
    return values


def _scalar(text: str) -> Any:
    """The value of a plain YAML scalar."""
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text):
        return {"null": None, "true": True, "false": False}.get(text, text)
    return float(text) if "." in text else int(text)


def _parsed(text: str) -> dict[str, Any]:
    from mrt5cli.recipe import strict_yaml

    tree = strict_yaml.parse(text).tree
    values = {}
    for name, key in GLANCED.items():
        value = tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            values[name] = value
    return values


def as_number(value: object) -> float | None:
    """A number that can be plotted and compared, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
        return None
    return float(value)


def last_logged(path: Path) -> dict[str, float]:
    """The numbers of the last complete line of training metrics in metrics.jsonl, read from its end."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        size, window = os.fstat(file.fileno()).st_size, _TAIL
        while True:
            start = max(0, size - window)
            file.seek(start)
            for line in reversed(file.read(size - start).split(b"\n")):  # an incomplete line is not JSON
                row = metrics_row(line)
                if row is not None and row.keys() >= {*COUNTED_WITH}:
                    return {key: value for key, value in row.items() if as_number(value) is not None}
            if not start or window >= _LONGEST_TAIL:
                return {}
            window *= 8


def size_of(folder: Path) -> int:
    """Total bytes of the files in a folder, without links and unreadable folders."""
    total, left = 0, [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        status = entry.stat(follow_symlinks=False)
                        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        except OSError:  # being deleted, or not readable
            continue
    return total


# --- tags ---------------------------------------------------------------------------------------------------


def tags_of(path: Path) -> list[str]:
    """The tags of a run; UserError if they cannot be read."""
    file = path / TAGS
    if not file.exists():
        return []
    tags = read_object(file, f"delete {file}").get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{file} is damaged: its tags are {shortened(repr(tags))}", f"delete {file}")
    return tags


def _tags(path: Path) -> tuple[tuple[str, ...], list[str]]:
    try:
        return tuple(tags_of(path)), []
    except UserError as error:
        return (), [error.message]


def tag(run: RunDir, add: list[str], remove: list[str]) -> list[str]:
    """Add and remove tags of a run, and return its tags. Their file is never written by a training.

    Raises:
        UserError: a tag is invalid, or a tag to remove does not exist.
    """
    from mrt5cli.writing import write_json

    for one in (*add, *remove):
        if not re.fullmatch(r"[\w.+:@/-]{1,60}", one):
            raise UserError(
                f"{shortened(one)!r} is not a tag: expected at most 60 letters, digits and ._+:@/-",
                "for example baseline, or paper/table-2",
            )
    before = tags_of(run.path)
    if missing := [one for one in remove if one not in before]:
        has = f"its tags are {', '.join(before)}" if before else "it has none"
        raise UserError(f"{run.path} has no tag {', '.join(missing)}", has)
    after = [one for one in dict.fromkeys([*before, *add]) if one not in remove]
    if after != before:
        write_json(run.path / TAGS, {"tags": after})
    return after
