"""Run directories: the names of everything a run writes, made and read back in one place.

runs/<name>-seed<seed>/  recipe.yaml (resolved)  meta.json (versions, commit, device, command, times)
                         metrics.jsonl  checkpoints/step-00000500/  model/  eval/<task>.json
                         boundaries.npz (only where a boundary predictor is taught by labels)
                         best/step-00000300/ (only with training.best_metric: the weights best so far)
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.json_files import finite, parse, read_object
from mrt5cli.writing import TEMPORARY, naming, remove_directory, write_json, write_text

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe

STEP_NAME = re.compile(r"step-(\d{8,})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LOCK_SECONDS = 10.0
"""How long to wait for another process that trains in the same directory, and may be ending."""
DEFAULT_FOLDER = "runs"
ADAPTER = "adapter_config.json"
"""What PEFT writes beside an adapter's weights."""
FINISHED = "finished"
"""What meta.json says of a run that came to its end."""


@dataclass(frozen=True)
class RunState:
    """How far a run is, which a plan to train it rests on.

    Attributes:
        saved: steps with a whole checkpoint, in order.
        meta: what meta.json says; empty where there is no run.
    """

    saved: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.meta.get("status") == FINISHED)


@dataclass(frozen=True)
class RunDir:
    """One run's directory; a value, nothing is touched by making it.

    Attributes:
        recipe_path: the resolved recipe; training it again repeats the run.
        metrics_path: one JSON object a line, one line a logging step.
        model: the finished model in Hugging Face layout; absent until the run has finished.
        best: weights that were the best on validation data when they were measured, a directory a step.
        kept_room: a file that makes room for the last words of a run on a disk that has filled up.
        boundaries: where segments end, for runs whose shortener is taught that; fitted before the first step.
    """

    path: Path

    @property
    def recipe_path(self) -> Path:
        return self.path / own_code.RECIPE

    @property
    def meta_path(self) -> Path:
        return self.path / own_code.META

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

    @property
    def kept_room(self) -> Path:
        return self.path / f"{TEMPORARY}room"

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
        return own_code.is_run(self.path)

    @property
    def is_finished(self) -> bool:
        return self.state().finished

    def state(self) -> RunState:
        """How far the run is."""
        return RunState(self.saved_steps(), self.meta()) if self.is_run else RunState()

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        command = "finetune" if self.recipe().is_finetuning else "pretrain"
        words = ["mrt5", command, str(self.recipe_path), "--out", str(self.path), "--resume"]
        return shlex.join([*words, *own_code.as_options(self.meta())])

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
        line = _line(row)
        with naming(self.metrics_path, len(line)), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)

    def go_back_to(self, step: int) -> None:
        """Delete what a run that is resumed has left of later steps: lines of metrics and best weights."""
        kept = [_line(row) for row in self.metrics() if row["step"] <= step]
        write_text(self.metrics_path, "".join(kept))
        for later in self.best_steps():
            if later > step:
                remove_directory(self.best_weights(later))

    def prune(self, checkpoints: int) -> None:
        """Delete all but the last so many checkpoints, and best weights that nothing needs any more: neither
        this run nor a resume from a checkpoint, for which its best are the last ones kept before it."""
        for step in self.saved_steps()[:-checkpoints]:
            remove_directory(self.checkpoint(step))
        best = self.best_steps()
        needed = {max((step for step in best if step <= saved), default=None) for saved in self.saved_steps()}
        for step in best[:-1]:
            if step not in needed:
                remove_directory(self.best_weights(step))

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
    def opened(
        self, recipe: Recipe, meta: Mapping[str, Any], *, step: int, found: RunState | None
    ) -> Iterator[None]:
        """Be the only process that trains here, in a directory that holds what a run begins with.

        Args:
            meta: what meta.json is to say.
            step: the one that training begins after; what a run before has left of later ones goes.
            found: how far the run was when it was planned; None replaces whatever run there is.

        Raises:
            UserError: another process trains here or has done so since, or something else is here.
        """
        from mrt5cli.recipe import dump

        with ExitStack() as held:
            held.enter_context(self.hold())
            if found is None and self.is_run:
                remove_directory(self.path)
                held.enter_context(self.hold())  # another directory of that name
            elif found is not None and self.state() != found:
                raise UserError(
                    f"another process has trained in {self.path} in the meantime",
                    "give the command again, or choose another directory with --out",
                )
            RunDir.create(self.path)
            self.go_back_to(step)
            write_text(self.recipe_path, dump(recipe))
            write_json(self.meta_path, meta)
            yield

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

    A run stands for its finished model, or for its latest checkpoint while there is none. What the run was
    made with of the user's own code is imported; a Hub model never brings any.

    Raises:
        UserError: none of the three, or the code of a run has changed.
    """
    where, path = str(path_or_hub_id), Path(path_or_hub_id)
    if not where.strip():
        raise UserError("the model has no name; expected a run directory, a checkpoint directory or a Hub id")
    own_code.take_in_packages()
    run = RunDir(path)
    if run.is_run:
        own_code.import_again(path)
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
        own_code.import_again(path)
        above = (RunDir(folder) for folder in path.absolute().parents[:2])
        return where, next((run for run in above if run.is_run), None)
    if (path / ADAPTER).is_file():
        raise adapter_refused(where, read_object(path / ADAPTER).get("base_model_name_or_path"))
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


def adapter_refused(where: str, base: str | None = None) -> UserError:
    """The error for an adapter that is named as a model.

    Args:
        base: the model that it belongs to, as it says itself.
    """
    load = f"load({base!r})" if base else "load(ITS_MODEL)"
    return UserError(
        f"{where} is an adapter of PEFT ({ADAPTER}), not a whole model",
        f"merge it and name what that saves: PeftModel.from_pretrained({load}, {where!r}).merge_and_unload()"
        ".save_pretrained(FOLDER)",
    )


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


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"


def _steps_in(folder: Path) -> list[int]:
    names = (STEP_NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in names if match)
