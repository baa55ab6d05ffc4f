"""Several models on one task: same examples, same deletion, and one document that says how it was done."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrt5cli.evaluation.evaluate import evaluate_model
from mrt5cli.evaluation.rows import Row
from mrt5cli.evaluation.subject import Subject, check_fits, load_model
from mrt5cli.evaluation.timing import PASSES, conditions
from mrt5cli.rundir import write_json
from mrt5cli.tasks.base import build_task


@dataclass(frozen=True)
class Result:
    """One model's rows: a subset each, the total last when there are several.

    Attributes:
        deletion_type: what shortens the source, as the model's configuration names it.
    """

    subject: Subject
    rows: list[Row]
    conditions: dict[str, Any]
    deletion_type: str = "none"

    @property
    def pools(self) -> bool:
        """Whether bytes become one position together, soft or hard, instead of being deleted."""
        return self.deletion_type in ("boundary_predictor", "convolution")

    @property
    def summary(self) -> Row:
        """The total, or the only subset's row."""
        return self.rows[-1]

    @property
    def target_deletion_rate(self) -> float | None:
        """What the run's controller aimed at, a share of non-pad positions."""
        return None if self.subject.recipe is None else self.subject.recipe.target_deletion_rate

    @property
    def train_seconds(self) -> float | None:
        """Time the run spent training up to this model, over all its resumes, as its metrics.jsonl says."""
        rows = [] if self.subject.run is None else self.subject.run.metrics()
        step = math.inf if self.subject.step is None else self.subject.step
        return next(
            (row["seconds"] for row in reversed(rows) if "seconds" in row and row["step"] <= step), None
        )


@dataclass(frozen=True)
class Comparison:
    """Models on one task; `limit` is the number of examples a subset that was asked for."""

    task: dict[str, Any]
    split: str
    hard_delete: bool
    limit: int
    batch_size: int
    results: list[Result]

    def document(self, results: Sequence[Result] | None = None) -> dict[str, Any]:
        """Everything, for JSON; numbers that are not finite become null."""
        return {
            "task": self.task,
            "split": self.split,
            "deletion": "hard" if self.hard_delete else "soft",
            "limit": self.limit,
            "batch_size": self.batch_size,
            "timed_passes": PASSES,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("mrt5cli", "torch", "transformers")},
            },
            "models": [
                {
                    "name": result.subject.name,
                    "source": result.subject.source,
                    "deletion_type": result.deletion_type,
                    "target_deletion_rate": result.target_deletion_rate,
                    "train_seconds": result.train_seconds,
                    **result.conditions,
                    "rows": [_finite(asdict(row)) for row in result.rows],
                }
                for result in (self.results if results is None else results)
            ],
        }

    def save(self) -> list[str]:
        """Write each run's own results into its directory; models that come from no run have nowhere to go.

        Returns:
            A line for each run: where its results are, or why they could not be written there.
        """
        lines = []
        for result in self.results:
            if result.subject.run is None:
                continue
            path = result.subject.run.eval(self._file_name(result.subject))
            try:
                write_json(path, self.document([result]))
                lines.append(f"saved {path}")
            except OSError as error:  # somebody else's run, say: the results are still printed
                lines.append(f"not saved, {path} cannot be written: {error.strerror}")
        return lines

    def _file_name(self, subject: Subject) -> str:
        # Hard and soft, splits and checkpoints are different results: none overwrites another.
        parts = [
            self.task["kind"],
            "" if self.split == "test" else self.split,
            "" if self.hard_delete else "soft",
            "" if subject.step is None else Path(subject.source).name,
        ]
        return "-".join(part for part in parts if part)


def compare(
    subjects: Sequence[Subject],
    section: Any,
    *,
    split: str,
    hard_delete: bool,
    batch_size: int,
    limit: int,
    runtime: bool = False,
    device: Any = None,
    progress: Callable[[str, str, int], None] | None = None,
) -> Comparison:
    """Evaluate each subject on the task, one after the other.

    Args:
        section: the recipe section of the task.
        limit: examples a subset.
        progress: called with the subject's name, the subset and the number of its examples done.
        split, hard_delete, batch_size, runtime, device: as `evaluate_model`.
    """
    task = build_task(section)
    results = []
    for subject in subjects:
        model = load_model(subject, device)
        check_fits(model, section, subject.name)
        report = None if progress is None else _for_model(progress, subject.name)
        rows = evaluate_model(
            model,
            task,
            split=split,
            hard_delete=hard_delete,
            batch_size=batch_size,
            limit=limit,
            runtime=runtime,
            progress=report,
        )
        results.append(Result(subject, rows, conditions(model), model.config.deletion_type))
    about = {"kind": section.kind, "version": task.version, "settings": section.model_dump(mode="json")}
    return Comparison(about, split, hard_delete, limit, batch_size, results)


def _for_model(progress: Callable[[str, str, int], None], name: str) -> Callable[[str, int], None]:
    return lambda subset, done: progress(name, subset, done)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
