"""Run directories: the names of everything a run writes, made and read back in one place.

    runs/<name>-seed<seed>/  recipe.yaml (resolved)  meta.json (versions, commit, device, command, times)
                             metrics.jsonl  checkpoints/step-00000500/  model/  eval/<task>.json
                             boundaries.npz (only where a boundary predictor is taught by labels)
                             best/step-00000300/ (only with training.best_metric: the weights best so far)

Every file that must be whole or absent is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.json_files import parse, read_object

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe

STEP_NAME = re.compile(r"step-(\d{8,})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TEMPORARY = ".tmp-"
LOCK_SECONDS = 10.0
"""How long to wait for another process that trains in the same directory, and may be ending."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_CUT_SHORT = re.compile(r"inline_container.*unexpected pos|PytorchStreamWriter failed")
DEFAULT_FOLDER = "runs"
LONGEST_SHOWN = 200
"""Characters of a path that are repeated in an error."""


@dataclass(frozen=True)
class RunDir:
    """One run's directory; a value, nothing is touched by making it."""

    path: Path

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe; training it again repeats the run."""
        return self.path / "recipe.yaml"

    @property
    def meta_path(self) -> Path:
        return self.path / "meta.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line, one line a logging step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished model in Hugging Face layout; absent until the run has finished."""
        return self.path / "model"

    @property
    def best(self) -> Path:
        """Weights that were the best on validation data when they were measured, a directory a step."""
        return self.path / "best"

    @property
    def boundaries(self) -> Path:
        """Where segments end, for runs whose shortener is taught that; fitted before the first step."""
        return self.path / "boundaries.npz"

    def eval(self, task: str) -> Path:
        """The evaluation results of a task."""
        return self.path / "eval" / f"{task}.json"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The optimizer steps after which one of a run's checkpoints was written."""
        return int(checkpoint.name.removeprefix("step-"))

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order; half-written ones still carry a temporary name."""
        return _steps_in(self.checkpoints)

    def best_weights(self, step: int) -> Path:
        """The model that was the best after so many optimizer steps, in Hugging Face layout."""
        return self.best / f"step-{step:08d}"

    def best_steps(self) -> list[int]:
        """Steps whose weights are kept as the best of their time, in order."""
        return _steps_in(self.best)

    def meta(self) -> dict[str, Any]:
        """What meta.json says; empty when there is none."""
        return read_object(self.meta_path) if self.meta_path.is_file() else {}

    def recipe(self) -> Recipe:
        """The resolved recipe, read back."""
        from mrt5cli import recipe

        loaded: Recipe = recipe.load(self.recipe_path)
        return loaded

    @property
    def command(self) -> str:
        """The `mrt5` command that trains this run's recipe."""
        return "finetune" if self.recipe().is_finetuning else "pretrain"

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        words = ["mrt5", self.command, str(self.recipe_path), "--out", str(self.path), "--resume"]
        return shlex.join([*words, *own_code.as_options()])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a kill cut short is left out."""
        return [row for _, row in self._metric_lines()]

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Write one more line of metrics."""
        with _naming(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep_metrics_until(self, step: int) -> None:
        """Drop metric lines after a step, so that a resumed run's curve is continuous."""
        kept = [line for line, row in self._metric_lines() if row["step"] <= step]
        write_text(self.metrics_path, "".join(kept))

    def _metric_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.metrics_path.is_file():
            return
        try:
            content = self.metrics_path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.metrics_path} cannot be read: {error.strerror}") from error
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = parse(line)
                row["step"]
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self.metrics_path}, line {number} is no line of metrics: {line[:40]!r}",
                    "delete that line, or restore the file from a copy",
                ) from error
            yield line.decode("utf-8"), row

    @property
    def is_run(self) -> bool:
        return self.recipe_path.is_file() and self.meta_path.is_file()

    @property
    def is_finished(self) -> bool:
        return self.meta().get("status") == "finished"

    def check_not_foreign(self) -> None:
        """Refuse a directory that holds something and is no run: a run is never mixed into other files.

        Raises:
            UserError: it does.
        """
        if self.is_run or not self.path.is_dir():
            return
        ours = {self.recipe_path, self.meta_path, self.metrics_path, self.checkpoints}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry not in ours and not entry.name.startswith(TEMPORARY)
        )
        if foreign:
            raise UserError(
                f"{self.path} is not empty and not a run directory: it holds {', '.join(foreign[:3])}",
                "choose another directory with --out",
            )

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """The directory of a run, made if it is not there; what a kill left half-written is cleared away.

        Raises:
            UserError: something else is there, or it cannot be written to.
        """
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.check_not_foreign()
            run.checkpoints.mkdir(exist_ok=True)
            places = (run.path, run.checkpoints, run.best)
            for leftover in [entry for place in places for entry in place.glob(f"{TEMPORARY}*")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            before = run.metrics_path.read_bytes() if run.metrics_path.is_file() else b""
            write_bytes(run.metrics_path, before)
        except OSError as error:
            raise cannot_write(run.path, error.strerror or str(error)) from error
        return run

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that trains here; made if it is not there. A process that dies lets go.

        Raises:
            UserError: another one does not end within seconds, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise cannot_write(self.path, error.strerror or str(error)) from error
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            # Processes that prepare batches hold it too, until they have ended.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def state(self) -> tuple[bool, list[int], str | None]:
        """Whether there is a run, its checkpoints and its status: what a plan for it rests on."""
        return self.is_run, self.saved_steps(), self.meta().get("status")

    def remove(self) -> None:
        """Delete a run and everything in it.

        Raises:
            ValueError: this is no run, and so not ours to delete.
        """
        if not self.is_run:
            raise ValueError(f"{self.path} is not a run")
        remove_directory(self.path)


def cannot_write(path: Path, why: str) -> UserError:
    """The error for a place where no run can be."""
    return UserError(f"cannot write to {path}: {why}", "choose another directory with --out")


def default_directory(recipe: Recipe) -> Path:
    """Where a recipe's run goes when nobody says otherwise."""
    return Path(DEFAULT_FOLDER, f"{recipe.name}-seed{recipe.seed}")


def resolve_model(path_or_hub_id: str | Path) -> tuple[str, RunDir | None]:
    """What to load for a run directory, a checkpoint directory or a Hub id, and the run it belongs to.

    A run stands for its finished model, or for its latest checkpoint while there is none.

    Raises:
        UserError: none of the three.
    """
    if not isinstance(path_or_hub_id, str | os.PathLike) or not str(path_or_hub_id).strip():
        raise UserError(
            f"{path_or_hub_id!r} names no model; expected a run directory, a checkpoint directory or a Hub id"
        )
    where = str(path_or_hub_id)
    try:
        return _resolved(where, Path(path_or_hub_id))
    except OSError as error:  # longer than any name, in a directory of somebody else's ...
        shown = where if len(where) < LONGEST_SHOWN else f"{where[:LONGEST_SHOWN]}..."
        raise UserError(f"{shown} cannot be read: {error.strerror}") from error


def _resolved(where: str, path: Path) -> tuple[str, RunDir | None]:
    run = RunDir(path)
    if run.is_run:
        if (run.model / "config.json").is_file():
            return str(run.model), run
        steps = run.saved_steps()
        if not steps:
            status = run.meta().get("status", "unfinished")
            raise UserError(
                f"{where} has no model yet: the run is {status} and has saved nothing",
                f"train it: {run.resume_command}",
            )
        return str(run.checkpoint(steps[-1])), run
    if (path / "config.json").is_file():
        for ancestor in (path.absolute().parent, path.absolute().parent.parent):
            if RunDir(ancestor).is_run:
                return where, RunDir(ancestor)
        return where, None
    if path.is_dir():
        raise UserError(
            f"{where} is neither a run (no recipe.yaml) nor a checkpoint (no config.json)", _nearby(path)
        )
    if path.exists():
        raise UserError(f"{where} is a file; expected a run directory, a checkpoint directory or a Hub id")
    # `runs/mine` has the form of a Hub id; beside other runs it is a path that was mistyped.
    # So is a name below the folder where runs go by default.
    among_runs = path.parent.is_dir() and any(RunDir(entry).is_run for entry in path.parent.iterdir())
    if among_runs or path.parts[:1] == (DEFAULT_FOLDER,) or not HUB_ID.fullmatch(where):
        raise UserError(f"{where} does not exist", _nearby(path))
    return where, None


def _nearby(path: Path) -> str | None:
    """The nearest run to a name that is none, or the runs inside a folder."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if RunDir(entry).is_run)
        return f"runs in it: {', '.join(inside[:5])}" if inside else None
    if not path.parent.is_dir():
        return None
    runs = [entry.name for entry in path.parent.iterdir() if RunDir(entry).is_run]
    nearest = difflib.get_close_matches(path.name, runs, n=1)
    return f"did you mean {path.parent / nearest[0]}?" if nearest else None


def _lock(descriptor: int, path: Path) -> None:
    """Lock a run's directory, waiting a little for a process that is ending."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise UserError(
                    f"another process is training in {path}",
                    "wait for it or stop it, or choose another directory with --out",
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system that knows no locks
            return


def _steps_in(folder: Path) -> list[int]:
    names = (STEP_NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in names if match)


# --- atomic writing --------------------------------------------------------------------------------------


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
    """Write a file whole or not at all, making its folder if needed."""
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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
        path: the final name.
        leader: False in all but one of the processes that fill the folder together; those only get its name.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with _naming(path):
        if leader:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException:
            if leader:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if not leader:
            return
        give_ordinary_modes(temporary)
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(path.parent)


def give_ordinary_modes(folder: Path) -> None:
    """Let files be read by whom the umask, or the folder's own access list, lets read what is written there.

    safetensors writes its files under a temporary name, and those are for their owner alone, whatever the
    umask is; a run that a group shares could then be evaluated by nobody else.
    """
    probe = folder / f"{TEMPORARY}mode"
    probe.touch()
    ordinary = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for entry in folder.rglob("*"):
        mode = entry.lstat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o666 != ordinary:
            entry.chmod(ordinary | mode & 0o111)


def remove_directory(path: Path) -> None:
    """Delete a directory; a kill on the way leaves none that still has its name."""
    doomed = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
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
        text = str(error)
        if number := _OS_ERROR.search(text):  # safetensors
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if _CUT_SHORT.search(text):  # torch, which does not say why
            raise OSError(errno.EIO, "a file could not be written to its end", str(path)) from error
        raise


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
