"""Run directories: the only place that names, writes and reads the files of a run.

runs/<name>-seed<seed>/  recipe.yaml (resolved)  meta.json (versions, commit, device, command, times)
                         metrics.jsonl  checkpoints/step-00000500/  model/  eval/<task>.json
                         boundaries.npz (only for boundary predictors trained on labels)
                         best/step-00000300/ (only with training.best_metric: the best weights so far)
                         checkpoints/damaged-step-00000500/ (found damaged when the run was resumed)
                         segments/step-00000500/ (after --continue-for: the recipe up to that step and
                         the results, eval/, of the model at that step)
                         tensorboard/ wandb/ (only with training.report_to)
                         .mrt5.lock (the process that trains here; empty if there is none)
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from mrt5cli import locks, manifest, own_code
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.json_files import finite, parse, read_object
from mrt5cli.locks import Holder
from mrt5cli.manifest import STEP_NAME
from mrt5cli.text import counted, listed, shortened, warn_once
from mrt5cli.writing import (
    TEMPORARY,
    check_link,
    make_directory,
    naming,
    remove_directory,
    write_bytes,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
DEFAULT_FOLDER = "runs"
CONFIG = "config.json"
"""Present in every checkpoint; readers lock this file, see `locks.read_on`."""
ADAPTER = "adapter_config.json"
"""Written by PEFT next to an adapter's weights."""
FINISHED = "finished"
"""Status in meta.json of a run that reached its last step."""
DAMAGED = "damaged-"
"""Prefix of a damaged checkpoint that was renamed."""
_TEXT, _NUMBER = (str,), (int, NoneType)
SESSION_TYPES = dict.fromkeys(("started", "status", "code", "recipe"), _TEXT) | {"ended": (str, NoneType)}
META_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "name", "started", "attention", "device", "precision", "error"), _TEXT),
    **dict.fromkeys(("ended", "device_name", "commit"), (str, NoneType)),
    **dict.fromkeys(("step", "seed", "parameters", "processes", "threads"), _NUMBER),
    **dict.fromkeys(("data", "hub_commits", "versions"), (dict,)),
    **{"best": (dict, NoneType), "sessions": (list,)},
}
"""Types of the meta.json fields that resuming, reports and model cards read, and of those of a session."""
COUNTED_WITH = ("loss", "cross_entropy", "deletion_rate", "target", "seconds")
"""Fields of a metrics line that summaries and displays read: each a number or null."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """Progress of a run at the time a plan is made.

    Attributes:
        saved: steps with a checkpoint, in ascending order.
        meta: the content of meta.json; empty if there is no run.
    """

    saved: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.meta.get("status") == FINISHED)

    @property
    def last_step(self) -> int | None:
        """The last step that an ended run logged or saved."""
        step: int | None = self.meta.get("step")
        return step


@dataclass(frozen=True)
class RunDir:
    """The directory of one run. Constructing it does not touch the file system.

    Attributes:
        recipe_path: the resolved recipe; training it again repeats the run.
        metrics_path: JSON lines, one per logging step.
        model: the finished model in Hugging Face layout; absent until the run has finished.
        best: one directory per step whose weights were the best on validation data at that time.
        kept_room: a placeholder, deleted on a full disk to make space for the final status of the run.
        boundaries: segment ends for shorteners that learn from them; fitted before the first step.
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
    def segments(self) -> Path:
        return self.path / "segments"

    @property
    def lock(self) -> Path:
        return self.path / ".mrt5.lock"

    @property
    def kept_room(self) -> Path:
        return self.path / f"{TEMPORARY}room"

    def eval(self, task: str) -> Path:
        """The file of a task's evaluation results."""
        return self.path / "eval" / f"{task}.json"

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def best_weights(self, step: int) -> Path:
        """The directory of the best model as of `step` optimizer steps, in Hugging Face layout."""
        return self.best / f"step-{step:08d}"

    def segment(self, step: int) -> Path:
        """The directory that keeps recipe and results of the run as it finished at `step`."""
        return self.segments / f"step-{step:08d}"

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The optimizer step of a checkpoint directory."""
        return int(checkpoint.name.removeprefix("step-"))

    def saved_steps(self) -> list[int]:
        """Steps with a checkpoint, in order; an unfinished one still has a temporary name."""
        return _steps_in(self.checkpoints)

    def best_steps(self) -> list[int]:
        """Steps whose weights are kept as the best at that time, in order."""
        return _steps_in(self.best)

    def meta(self) -> dict[str, Any]:
        """The content of meta.json; empty if the file does not exist.

        Raises:
            UserError: it cannot be read, or a field has an unexpected type.
        """
        if not self.meta_path.is_file():
            return {}
        meta = read_object(self.meta_path, "restore it from a copy")
        if not meta:
            raise UserError(f"{self.meta_path} is damaged: it is an empty object", "restore it from a copy")
        for key, value in _odd(meta, META_TYPES):
            raise UserError(
                f"{self.meta_path} is damaged: its {key} is {shortened(repr(value))}",
                "restore it from a copy",
            )
        return meta

    def recipe(self) -> Recipe:
        """Load the resolved recipe."""
        from mrt5cli import recipe

        loaded: Recipe = recipe.load(self.recipe_path)
        return loaded

    def recipe_of(self, model: Path) -> Recipe:
        """The recipe that trained one of the run's models: in a continued run, that of the model's segment.

        Until a segment ends, the run's model is that of the segment before.
        """
        from mrt5cli import recipe

        ends, step = _steps_in(self.segments), self._step_before
        if STEP_NAME.fullmatch(model.name):
            step = self.step_of(model)
        kept = [self.segment(end) / own_code.RECIPE for end in ends if step and step <= end]
        return recipe.load(kept[0]) if kept and kept[0].is_file() else self.recipe()

    @property
    def _step_before(self) -> int | None:
        """The step of the run's model if the run is being continued and has not ended, otherwise None."""
        if not self.segments.is_dir() or self.is_finished:
            return None
        return self.recipe().training.continues_from or None

    @property
    def is_run(self) -> bool:
        return own_code.is_run(self.path)

    @property
    def is_finished(self) -> bool:
        return self.state().finished

    def state(self) -> RunState:
        """The current progress of the run."""
        return RunState(self.saved_steps(), self.meta()) if self.is_run else RunState()

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        command = "finetune" if self.recipe().is_finetuning else "pretrain"
        words = ["mrt5", command, str(self.recipe_path), "--out", str(self.path), "--resume"]
        return shlex.join([*words, *own_code.as_options(self.meta())])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without an unfinished last one and, with one warning, damaged ones."""
        return [row for _, row in self._lines()]

    def metrics_content(self) -> bytes:
        """The raw content of metrics.jsonl; empty if the file does not exist."""
        return self.metrics_path.read_bytes() if self.metrics_path.is_file() else b""

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        """The complete lines of metrics.jsonl, raw and parsed."""
        *lines, _ = self.metrics_content().split(b"\n")
        read = [(line + b"\n", metrics_row(line)) for line in lines]
        if broken := [number for number, (_, row) in enumerate(read, 1) if row is None]:
            warn_once(
                f"{self.metrics_path}: skipped {counted(len(broken), 'damaged line')}, the first is "
                f"line {broken[0]}"
            )
        return [(line, row) for line, row in read if row is not None]

    def _metrics_up_to(self, step: int) -> bytes:
        return b"".join(line for line, row in self._lines() if row["step"] <= step)

    def metrics_lost(self, step: int) -> str | None:
        """What metrics.jsonl has lost since a checkpoint, as a sentence; None if it is complete.

        Without a manifest in the checkpoint, only the logging interval shows whether lines are missing.
        """
        held, written = self._metrics_up_to(step), manifest.read(self.checkpoint(step))
        if written is not None:
            size = written.metrics["size"]
            if size and not self.metrics_path.exists():
                return f"{self.metrics_path} is missing: the curve of this run is lost up to step {step}"
            if len(held) != size:
                return (
                    f"{self.metrics_path} has {len(held):,} bytes of lines up to step {step}, but {size:,} "
                    "were written: the curve of this run has a gap"
                )
            if manifest.hash_of(held) != written.metrics[manifest.HASH]:
                return f"{self.metrics_path} differs from what was written up to step {step}"
            return None
        last = max((row["step"] for row in self.metrics() if row["step"] <= step), default=0)
        if last >= step - step % self.recipe().training.logging_steps:
            return None
        return f"{self.metrics_path} has no line between steps {last} and {step}: the curve has a gap"

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.check_held()
        line = json.dumps(finite(row), allow_nan=False) + "\n"
        with naming(self.metrics_path, len(line)), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)

    def recipe_changed(self) -> str | None:
        """A sentence if recipe.yaml differs from what the run wrote, otherwise None."""
        written = [session["recipe"] for session in self.meta().get("sessions", []) if "recipe" in session]
        if not written or manifest.hash_of(self.recipe_path.read_bytes()) in written:
            return None
        return f"{self.recipe_path} differs from what the run wrote: it was edited or damaged"

    def go_back_to(self, step: int) -> None:
        """Discard what is later than the step a run resumes from: lines of metrics and best weights.

        Later checkpoints are the damaged ones that were skipped; they are kept under another name.
        """
        write_bytes(self.metrics_path, self._metrics_up_to(step))
        for later in self.saved_steps():
            if later > step:
                set_aside = self.checkpoints / f"{DAMAGED}{self.checkpoint(later).name}"
                if set_aside.exists():
                    remove_directory(set_aside)
                self.checkpoint(later).rename(set_aside)
        for later in self.best_steps():
            if later > step:
                remove_directory(self.best_weights(later))

    def keep_results(self, step: int) -> None:
        """Move the results of the run's model, which will be replaced, into the segment that ended at `step`.

        Results of checkpoints stay.
        """
        for path in self.eval("").parent.glob("*.json"):
            if not re.search(STEP_NAME, path.stem):
                make_directory(self.segment(step) / "eval")
                shutil.move(path, self.segment(step) / "eval" / path.name)

    def prune(self, checkpoints: int) -> None:
        """Keep the last `checkpoints` checkpoints and delete best weights that nothing needs any more.

        The run needs its latest best weights, and resuming from a checkpoint needs the latest ones before it.
        Directories that another process is reading stay until a later call.
        """
        for step in self.saved_steps()[:-checkpoints]:
            _remove_unread(self.checkpoint(step))
        best = self.best_steps()
        needed = {max((step for step in best if step <= saved), default=None) for saved in self.saved_steps()}
        for step in best[:-1]:
            if step not in needed:
                _remove_unread(self.best_weights(step))

    def check_not_foreign(self) -> None:
        """Refuse a directory that contains other files: a run is never mixed with them.

        Raises:
            UserError: it contains other files, or it is or contains a dangling link.
        """
        for place in (self.path, *self._folders):
            check_link(place)
        if self.is_run or not self.path.is_dir():
            return
        if self.saved_steps() and not self._replaced.exists():
            raise self._torn()
        foreign = sorted(path.name for path in self._foreign())
        if foreign:
            raise UserError(
                f"{self.path} is not a run directory and not empty: it contains {', '.join(foreign[:3])}",
                "choose another directory with --out",
            )

    def _torn(self) -> UserError:
        lost = self.meta_path if self.recipe_path.is_file() else self.recipe_path
        return UserError(
            f"{self.path} contains the checkpoints of a run but no {lost.name}",
            f"restore {lost.name} from a copy",
        )

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.checkpoints, self.best, self.model

    @property
    def _replaced(self) -> Path:
        """A marker that exists while an earlier run is being deleted; a kill may leave it behind."""
        return self.path / f"{TEMPORARY}replaced"

    def _foreign(self) -> list[Path]:
        """Entries that no run wrote, or that belong to a run without meta.json."""
        ours = {self.recipe_path, self.meta_path, self.metrics_path, self.lock}
        ours |= {place for place in self._folders if not (place.is_dir() and any(place.iterdir()))}
        if self.is_run or self._replaced.exists():
            ours |= {*self._folders, self.boundaries, self.eval("").parent, self.segments}
        return [path for path in {*self.path.iterdir()} - ours if TEMPORARY not in path.name]

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """Create the directory of a run if needed, and delete temporary files that a kill left.

        Raises:
            UserError: the directory contains other files.
        """
        run = cls(Path(path))
        make_directory(run.path)
        run.check_not_foreign()
        make_directory(run.checkpoints)
        for place in (run.path, *run._folders):
            for leftover in place.glob(f"{TEMPORARY}*"):
                _remove(leftover)
        run.metrics_path.touch()
        return run

    def _clear(self) -> None:
        """Delete an earlier run. A kill in between leaves the run, or a remainder that may be cleared.

        Links to folders of the run are kept; only what the run wrote behind them is deleted.
        """
        for entry in self._foreign():
            _remove(entry)
        if self.meta_path.is_file():
            self.meta_path.replace(self._replaced)
        for place in self._folders:
            if place.is_symlink() and place.is_dir():
                for entry in place.iterdir():
                    if place == self.model or STEP_NAME.fullmatch(entry.name):
                        _remove(entry)
        for entry in self.path.iterdir():
            linked = entry in self._folders and entry.is_symlink()
            if entry not in (self.lock, self._replaced) and not linked:
                _remove(entry)

    @contextmanager
    def opened(
        self, recipe: Recipe, meta: Mapping[str, Any], *, step: int, found: RunState | None
    ) -> Iterator[None]:
        """Lock the directory for training and write the initial recipe.yaml and meta.json.

        Args:
            meta: the content of meta.json.
            step: training starts after this step; whatever is later is discarded.
            found: the run's progress when it was planned; None replaces an existing run.

        Raises:
            UserError: another process trains here or has done so since, or there are other files.
            RunFailed: the directory was deleted or replaced during training.
        """
        from mrt5cli.recipe import dump

        with self.hold():
            if found is not None and self.state() != found:
                raise UserError(
                    f"another process has trained in {self.path} in the meantime",
                    "run the command again, or choose another directory with --out",
                )
            if found is None or not self.is_run:
                self._clear()
            RunDir.create(self.path)
            self.go_back_to(step)
            if self.is_run and self.recipe().training.continues_from < recipe.training.continues_from:
                kept = self.segment(recipe.training.continues_from) / own_code.RECIPE
                write_bytes(kept, self.recipe_path.read_bytes())
            # In this order, so that meta.json knows the recipe in place whenever a kill comes. Only the
            # recipe records that a segment has begun.
            write_json(self.meta_path, meta)
            write_text(self.recipe_path, dump(recipe))
            try:
                yield
            except OSError:
                self.check_held()
                raise

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the directory for training, creating it if needed. The lock dies with its process.

        Raises:
            UserError: another process holds the lock and does not end within seconds.
        """
        self.check_not_foreign()
        make_directory(self.path)
        lock = self._wait()
        try:
            yield
        finally:
            lock.release()

    def _wait(self) -> locks.Lock:
        found = locks.wait_for(self.lock)
        if isinstance(found, Holder):
            raise UserError(
                f"another process is training in {self.path}: {found}",
                f"wait for it, {found.how_to_stop}, or choose another directory with --out",
            )
        return found

    def check_free(self) -> None:
        """Refuse a directory in which another process trains, before any work is done.

        Raises:
            UserError: that process does not end within seconds.
        """
        if self.holder() is not None:
            self._wait().release()

    def holder(self) -> Holder | None:
        """The process that trains here now, by its lock and last heartbeat, or None."""
        return locks.holder_of(self.lock)

    def check_held(self) -> None:
        """Refuse to continue in a directory that was deleted or replaced since this process locked it.

        Directories that this process has not locked are not checked.

        Raises:
            RunFailed: it was deleted or replaced.
        """
        lock = locks.HELD.get(os.path.abspath(self.lock))
        if lock is None:
            return
        lost, what = lock.lost(), self.path
        parts = (self.recipe_path, self.meta_path, self.metrics_path, self.checkpoints)
        if lost is None and (gone := [part for part in parts if not part.exists()]):
            lost, what = "was deleted", gone[0] if len(gone) < len(parts) else self.path
        if lost is not None:
            where = "it" if what == self.path else self.path
            raise RunFailed(
                f"{what} {lost} while this process trained in {where}",
                "restore it from a copy and resume, or train again",
            )


def default_directory(recipe: Recipe) -> Path:
    """The default run directory of a recipe."""
    return Path(DEFAULT_FOLDER, f"{recipe.name}-seed{recipe.seed}")


def name_and_seed(directory: str) -> tuple[str, int]:
    """Split the name of a default run directory into recipe name and seed; the seed is -1 if it has none."""
    name, _, seed = directory.rpartition("-seed")
    return (name, int(seed)) if re.fullmatch("[0-9]{1,10}", seed) else (directory, -1)


def resolve_model(path_or_hub_id: str | Path) -> tuple[str, RunDir | None]:
    """Resolve a run directory, a checkpoint directory or a Hub id to what to load and the run it belongs to.

    A run resolves to its finished model, or to its latest checkpoint until there is one; RUN@step-500,
    RUN@500, RUN@best and RUN@last name one of its checkpoints. Custom code that the run was made with is
    imported; a Hub model never brings any.

    Raises:
        UserError: it is none of the three, or the code of the run has changed.
    """
    where, path = str(path_or_hub_id), Path(path_or_hub_id)
    if not where.strip():
        raise UserError(
            "the name of the model is empty; expected a run directory, a checkpoint directory or a Hub id"
        )
    own_code.take_in_packages()
    if (at := run_and_step(where)) is not None:
        run, step = at
        where = str(path := _at_step(run, step))
    run = RunDir(path)
    if run.is_run:
        own_code.import_again(path)
        if (run.model / CONFIG).is_file():
            locks.read_on(run.model / CONFIG)
            if (since := run._step_before) is not None:
                warn_once(
                    f"{run.path} is being continued from step {since}; its model is the one at that step"
                )
            return str(run.model), run
        if checkpoint := _newest_model(run):
            return str(checkpoint), run
        if holder := run.holder():
            raise UserError(
                f"{where} has no model yet: it is being trained and has not saved a checkpoint: {holder}",
                "wait for its first checkpoint",
            )
        status = run.meta().get("status", "unfinished")
        how = "was killed" if status == "running" else f"is {status}"
        raise UserError(
            f"{where} has no model yet: the run {how} and has not saved a checkpoint",
            f"train it: {run.resume_command}",
        )
    if (path / CONFIG).is_file():
        locks.read_on(path / CONFIG)
        own_code.import_again(path)
        above = (RunDir(folder) for folder in path.absolute().parents[:2])
        return where, next((run for run in above if run.is_run), None)
    if (path / ADAPTER).is_file():
        raise adapter_refused(where, read_object(path / ADAPTER).get("base_model_name_or_path"))
    if path.is_file():
        raise UserError(f"{where} is a file; expected a run directory, a checkpoint directory or a Hub id")
    if path.is_dir() and run.saved_steps():
        raise run._torn()
    if path.is_dir():
        inside = ", ".join(_runs_in(path)[:5])
        raise UserError(
            f"{where} is neither a run (no recipe.yaml) nor a checkpoint (no config.json)",
            f"choose one of the runs in it: {inside}" if inside else None,
        )
    # `runs/mine` looks like a Hub id; next to other runs it is a mistyped path. So is a name below the
    # default folder of runs, with or without that folder.
    beside, below = _runs_in(path.parent), Path(DEFAULT_FOLDER, where)
    is_below = "/" not in where and RunDir(Path(DEFAULT_FOLDER, where.partition("@")[0])).is_run
    if beside or is_below or path.parts[:1] == (DEFAULT_FOLDER,) or not HUB_ID.fullmatch(where):
        nearest = [below] if is_below else []
        nearest += [path.parent / name for name in difflib.get_close_matches(path.name, beside, n=1)]
        hint = f"did you mean {nearest[0]}?" if nearest else "`mrt5 runs` lists the runs below runs/"
        if "@" in path.name and not nearest:
            hint = "use RUN@step-500 for a local run, and --revision for a Hub model"
        raise UserError(f"{where} does not exist", hint)
    return where, None


def run_and_step(where: str) -> tuple[RunDir, str] | None:
    """The run and the checkpoint that a name such as RUN@step-500 refers to.

    None for any other name and for an existing path.
    """
    folder, at, step = where.rpartition("@")
    run = RunDir(Path(folder))
    return (run, step) if at and folder and run.is_run and not os.path.exists(where) else None


def _at_step(run: RunDir, step: str) -> Path:
    """The checkpoint of a run that the part after the @ names.

    Raises:
        UserError: the checkpoint does not exist.
    """
    saved = {each: run.checkpoint(each) for each in run.saved_steps()}
    best = {each: run.best_weights(each) for each in run.best_steps()}
    if step == "last" and (newest := _newest_model(run)):
        return newest
    if step == "best" and best:
        return best[max(best)]
    number = re.fullmatch(r"(?:step-)?0*(\d{1,18})", step)
    if number and (found := (best | saved).get(int(number[1]))):
        return found
    kept = [f"{run.path}@step-{each}" for each in saved]
    kept += [f"{run.path}@step-{each} (best then)" for each in best if each not in saved]
    what = f"no checkpoint of step {number[1]}" if number else f"no checkpoint '{shortened(step)}'"
    if step == "best":
        what = "no best weights: its recipe sets no training.best_metric, or nothing was measured yet"
    hint = f"choose one of {listed(kept)}" if kept else "wait for its first checkpoint"
    raise UserError(f"{run.path} has {what}", hint)


def _newest_model(run: RunDir) -> Path | None:
    """The last checkpoint of a run whose model is complete, judged by names and sizes of its files.

    It is protected from deletion while this process reads it. None if there are no checkpoints.

    Raises:
        UserError: there are checkpoints, and none is complete.
    """
    folder = None
    for _ in range(50):
        passed_over: list[str] = []
        for step in reversed(run.saved_steps()):
            folder = run.checkpoint(step)
            if not locks.read_on(folder / CONFIG):
                break  # it is being deleted, so there is a newer one
            why = manifest.fault(folder, manifest.of_the_model, content=False)
            if why is None and not (folder / CONFIG).is_file():
                why = f"it has no {CONFIG}"
            if why is None:
                for text in passed_over:
                    logger.warning("%s; using %s", text, folder)
                return folder
            passed_over.append(f"{folder} is not a complete checkpoint: {why}")
        else:
            if not passed_over:
                return None
            raise UserError(passed_over[0], "restore the files from a copy", passed_over[1:])
        time.sleep(locks.POLL_SECONDS)
    return folder


def adapter_refused(where: str, base: str | None = None) -> UserError:
    """The error for an adapter given as a model.

    Args:
        base: the base model recorded in the adapter.
    """
    load = f"load({base!r})" if base else "load(ITS_MODEL)"
    return UserError(
        f"{where} is a PEFT adapter ({ADAPTER}), not a complete model",
        f"merge it and use the result: PeftModel.from_pretrained({load}, {where!r}).merge_and_unload()"
        ".save_pretrained(FOLDER)",
    )


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if RunDir(path).is_run) if folder.is_dir() else []


def _odd(entry: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> Iterator[tuple[str, object]]:
    """The fields of meta.json, or of one of its sessions, whose values have an unexpected type."""
    for key, kind in kinds.items():
        value: Any = entry.get(key, kind[0]())
        if not issubclass(type(value), kind) or (
            key in ("started", "ended") and value and not _is_time(value)
        ):
            yield key, value
        elif kind == (list,):
            for one in value:
                yield from _odd(one, SESSION_TYPES) if isinstance(one, dict) else [(key, value)]


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _remove(path: Path) -> None:
    """Delete a file, a folder or a link, but not a link's target."""
    remove_directory(path) if path.is_dir() else path.unlink()


def _remove_unread(folder: Path) -> None:
    with locks.unread(folder / CONFIG) as free:
        if free:
            remove_directory(folder)


def _steps_in(folder: Path) -> list[int]:
    # An empty folder is not a damaged checkpoint: someone created it.
    filled = (path for path in folder.glob("step-*") if path.is_dir() and any(path.iterdir()))
    names = (STEP_NAME.fullmatch(path.name) for path in filled)
    return sorted(int(match[1]) for match in names if match)


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """A parsed line of metrics, or None if it lacks a step or has other values where numbers are read."""
    try:
        row = parse(line)
        numbers = all(isinstance(row.get(key), int | float | None) for key in COUNTED_WITH)
        return row if numbers and type(row["step"]) is int else None
    except (ValueError, LookupError, AttributeError):
        return None
