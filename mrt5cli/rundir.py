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


@dataclass(frozen=True)
class RunDir:
    """One run's directory; a value, nothing is touched by making it.

    Attributes:
        recipe_path: the resolved recipe; training it again repeats the run.
        metrics_path: one JSON object a line, one line a logging step.
        model: the finished model in Hugging Face layout; absent until the run has finished.
        best: weights that were the best on validation data when they were measured, a directory a step.
        boundaries: where segments end, for runs whose shortener is taught that; fitted before the first step.
    """

    path: Path

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def meta_path(self) -> Path:
        return self.path / "meta.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def boundaries(self) -> Path:
        return self.path / "boundaries.npz"

    def eval(self, task: str) -> Path:
        """The evaluation results of a task."""
        return self.path / "eval" / f"{task}.json"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def best_weights(self, step: int) -> Path:
        """The model that was the best after so many optimizer steps, in Hugging Face layout."""
        return self.best / f"step-{step:08d}"

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The optimizer steps after which one of a run's checkpoints was written."""
        return int(checkpoint.name.removeprefix("step-"))

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order; half-written ones still carry a temporary name."""
        return _steps_in(self.checkpoints)

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
    def is_run(self) -> bool:
        return self.recipe_path.is_file() and self.meta_path.is_file()

    @property
    def is_finished(self) -> bool:
        return self.meta().get("status") == "finished"

    def state(self) -> tuple[bool, list[int], dict[str, Any]]:
        """Whether there is a run, its checkpoints and what meta.json says: what a plan for it rests on."""
        return self.is_run, self.saved_steps(), self.meta()

    @property
    def command(self) -> str:
        """The `mrt5` command that trains this run's recipe."""
        return "finetune" if self.recipe().is_finetuning else "pretrain"

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        words = ["mrt5", self.command, str(self.recipe_path), "--out", str(self.path), "--resume"]
        return shlex.join([*words, *own_code.as_options()])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a kill cut short is left out.

        Raises:
            UserError: a line is no line of metrics.
        """
        content = self.metrics_path.read_bytes() if self.metrics_path.is_file() else b""
        rows = []
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                try:
                    row = parse(line)
                    row["step"]
                except (ValueError, LookupError, TypeError) as error:
                    raise UserError(
                        f"{self.metrics_path}, line {number} is no line of metrics: {line[:40]!r}",
                        "delete that line, or restore the file from a copy",
                    ) from error
                rows.append(row)
        return rows

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Write one more line of metrics."""
        with _naming(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep_metrics_until(self, step: int) -> None:
        """Drop metric lines after a step, so that a resumed run's curve is continuous."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_text(self.metrics_path, "".join(kept))

    def check_not_foreign(self) -> None:
        """Refuse a directory that holds something and is no run: a run is never mixed into other files.

        Raises:
            UserError: it does.
        """
        if self.is_run or not self.path.is_dir():
            return
        ours = {self.recipe_path, self.meta_path, self.metrics_path, self.checkpoints}
        foreign = sorted(path.name for path in {*self.path.iterdir()} - ours if TEMPORARY not in path.name)
        if foreign:
            raise UserError(
                f"{self.path} is not empty and not a run directory: it holds {', '.join(foreign[:3])}",
                "choose another directory with --out",
            )

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """The directory of a run, made if it is missing; what a kill left half-written is cleared away.

        Raises:
            UserError: something else is there.
        """
        run = cls(Path(path))
        run.path.mkdir(parents=True, exist_ok=True)
        run.check_not_foreign()
        run.checkpoints.mkdir(exist_ok=True)
        for place in (run.path, run.checkpoints, run.best):
            for leftover in place.glob(f"{TEMPORARY}*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        run.metrics_path.touch()
        return run

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that trains here; made if it is missing. A process that dies lets go.

        Raises:
            UserError: another one does not end within seconds.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            give_up = time.monotonic() + LOCK_SECONDS
            while not _locked(descriptor):
                if time.monotonic() > give_up:
                    raise UserError(
                        f"another process is training in {self.path}",
                        "wait for it or stop it, or choose another directory with --out",
                    )
                time.sleep(0.1)
            yield
        finally:
            # Processes that prepare batches hold it too, until they have ended.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def default_directory(recipe: Recipe) -> Path:
    """Where a recipe's run goes when nobody says otherwise."""
    return Path(DEFAULT_FOLDER, f"{recipe.name}-seed{recipe.seed}")


def resolve_model(path_or_hub_id: str | Path) -> tuple[str, RunDir | None]:
    """What to load for a run directory, a checkpoint directory or a Hub id, and the run it belongs to.

    A run stands for its finished model, or for its latest checkpoint while there is none.

    Raises:
        UserError: none of the three.
    """
    where, path = str(path_or_hub_id), Path(path_or_hub_id)
    if not where.strip():
        raise UserError("the model has no name; expected a run directory, a checkpoint directory or a Hub id")
    run = RunDir(path)
    if run.is_run:
        if (run.model / "config.json").is_file():
            return str(run.model), run
        if steps := run.saved_steps():
            return str(run.checkpoint(steps[-1])), run
        raise UserError(
            f"{where} has no model yet: the run is {run.meta().get('status', 'unfinished')} and has saved "
            "nothing",
            f"train it: {run.resume_command}",
        )
    if (path / "config.json").is_file():
        above = (RunDir(folder) for folder in path.absolute().parents[:2])
        return where, next((run for run in above if run.is_run), None)
    if path.is_file():
        raise UserError(f"{where} is a file; expected a run directory, a checkpoint directory or a Hub id")
    if path.is_dir():
        inside = ", ".join(_runs_in(path)[:5])
        raise UserError(
            f"{where} is neither a run (no recipe.yaml) nor a checkpoint (no config.json)",
            f"runs in it: {inside}" if inside else None,
        )
    # `runs/mine` has the form of a Hub id; beside other runs it is a path that was mistyped.
    # So is a name below the folder where runs go by default.
    beside = _runs_in(path.parent)
    if beside or path.parts[:1] == (DEFAULT_FOLDER,) or not HUB_ID.fullmatch(where):
        nearest = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {path.parent / nearest[0]}?" if nearest else None
        raise UserError(f"{where} does not exist", hint)
    return where, None


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if RunDir(path).is_run) if folder.is_dir() else []


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        return True
    return True


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
            temporary.write_bytes(content)
            _sync(temporary)
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
    if not leader:
        with _naming(path):
            yield temporary
        return
    with _naming(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _give_ordinary_modes(temporary)
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(path.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory; a kill on the way leaves none that still has its name."""
    doomed = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def _give_ordinary_modes(folder: Path) -> None:
    """Let files be read by whom the umask lets: safetensors makes its own for their owner alone, and a run
    that a group shares could be evaluated by nobody else."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask | file.stat().st_mode & 0o111)


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
