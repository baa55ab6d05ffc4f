"""Several models on one task: same examples, same deletion, and one document that says how it was done."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.evaluation.calibration import Calibration, calibrate
from mrt5cli.evaluation.evaluate import measure
from mrt5cli.evaluation.names import result_name
from mrt5cli.evaluation.published import PublishedRow, published_rows
from mrt5cli.evaluation.rows import TOTAL, Outcomes, Row
from mrt5cli.evaluation.significance import Difference, compare_means, compare_right
from mrt5cli.evaluation.subject import Subject, check_fits, load_model
from mrt5cli.evaluation.timing import PASSES, conditions
from mrt5cli.fingerprint import code_version
from mrt5cli.metrics.answers import Normalization
from mrt5cli.recipe.shorteners import of_type
from mrt5cli.rundir import write_json
from mrt5cli.tasks.base import build_task, check_held_out
from mrt5cli.text import first_line


@dataclass(frozen=True)
class Result:
    """One model's rows: a subset each, the total last when there are several.

    Attributes:
        deletion_type: what shortens the source, as the model's configuration names it.
        outcomes: of the examples of each subset.
        calibration: the threshold it was run at, where that is not the model's own.
    """

    subject: Subject
    rows: list[Row]
    conditions: dict[str, Any]
    deletion_type: str = "none"
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def label(self) -> str:
        """What to call it in a table: the model, and the rate it was set to."""
        if self.calibration is None:
            return self.subject.name
        return f"{self.subject.name} at {100 * self.calibration.rate:g} %"

    @property
    def pools(self) -> bool:
        """Whether bytes become one position together, soft or hard, instead of being deleted."""
        return of_type(self.deletion_type).pools

    @property
    def reads_source(self) -> bool:
        """Whether the encoder sees anything of the source."""
        return of_type(self.deletion_type).reads_source

    @property
    def summary(self) -> Row:
        """The total, or the only subset's row."""
        return self.rows[-1]

    @property
    def target_deletion_rate(self) -> float | None:
        """What the run's controller, or the threshold, aimed at, a share of non-pad positions."""
        if self.calibration is not None:
            return self.calibration.rate
        return None if self.subject.recipe is None else self.subject.recipe.target_deletion_rate

    @property
    def train_seconds(self) -> float | None:
        """Time the run spent training up to this model, over all its resumes, as its metrics.jsonl says."""
        try:
            rows = [] if self.subject.run is None else self.subject.run.metrics()
        except UserError:  # damaged, or for its owner's eyes only: no reason to lose what was measured
            rows = []
        step = math.inf if self.subject.step is None else self.subject.step
        return next(
            (row["seconds"] for row in reversed(rows) if "seconds" in row and row["step"] <= step), None
        )

    @property
    def run_ended(self) -> str | None:
        """When the run's training ended: which of several trainings in that place was measured."""
        return None if self.subject.run is None else self.subject.run.meta().get("ended")


@dataclass(frozen=True)
class Comparison:
    """Models on one task.

    Attributes:
        task: its kind, version and settings.
        limit: examples a subset that were asked for.
        measures: names of the task's own numbers, the headline first; none where the loss is.
        constrained: whether choices were made, too.
        normalization: of answers; None where there are none.
        languages: subsets that were asked for; None for all.
        data: what replaces the task's source, or None.
        published: numbers of the same experiment.
        differences: of two models that were to be compared.
        label: set apart, by the name of their files, results whose other settings would share one.
        remarks: what the user should know of the data, a sentence each.
        unfinished: why it stops short of the last subset or model; its results have no total then.
    """

    task: dict[str, Any]
    split: str
    hard_delete: bool
    limit: int
    batch_size: int
    results: list[Result]
    measures: tuple[str, ...] = ()
    constrained: bool = False
    normalization: Normalization | None = None
    languages: tuple[str, ...] | None = None
    data: str | None = None
    published: list[PublishedRow] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    label: str = ""
    remarks: list[str] = field(default_factory=list)
    unfinished: str | None = None

    def document(self, results: Sequence[Result] | None = None) -> dict[str, Any]:
        """Everything, for JSON; numbers that are not finite become null."""
        return {
            "task": self.task,
            "split": self.split,
            "deletion": "hard" if self.hard_delete else "soft",
            **({} if self.unfinished is None else {"unfinished": self.unfinished}),
            "limit": self.limit,
            "batch_size": self.batch_size,
            "constrained": self.constrained,
            "normalization": self.normalization,
            "languages": None if self.languages is None else list(self.languages),
            "timed_passes": PASSES,
            "code": code_version("evaluate"),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("mrt5cli", "torch", "transformers")},
            },
            "models": [
                {
                    "name": result.subject.name,
                    "source": result.subject.source if result.subject.commit is None else result.subject.name,
                    "commit": result.subject.commit,
                    "deletion_type": result.deletion_type,
                    "target_deletion_rate": result.target_deletion_rate,
                    "calibration": None if result.calibration is None else asdict(result.calibration),
                    "train_seconds": result.train_seconds,
                    "run_ended": None
                    if result.subject.run is None
                    else result.subject.run.meta().get("ended"),
                    **result.conditions,
                    "rows": [_finite(asdict(row)) for row in result.rows],
                }
                for result in (self.results if results is None else results)
            ],
            "published": [asdict(row) for row in self.published],
            # One model's own file says nothing of another it was once compared with.
            "differences": [
                _finite({**asdict(one), "difference": one.difference})
                for one in (self.differences if results is None else ())
            ],
        }

    def save(self) -> list[str]:
        """Write each run's own results into its directory; models that come from no run have nowhere to go.

        Returns:
            A line for each run: where its results are, or why they could not be written there.
        """
        lines = []
        for place, result in enumerate(self.results):
            subject = result.subject
            earlier = [before.subject for before in self.results[:place]]
            if subject.run is None or subject in earlier:
                continue
            own = [other for other in self.results if other.subject == subject]
            path = subject.run.eval(self._file_name(subject))
            document = self.document(own)
            try:
                write_json(path, document)
                lines.append(f"saved {path}")
            except OSError as error:  # somebody else's run, say: the results are still printed
                lines.append(f"note: results not saved, {path} cannot be written: {error.strerror}")
        return lines

    def _file_name(self, subject: Subject) -> str:
        # In a folder of its own, which nobody takes for whole results.
        return ("" if self.unfinished is None else "unfinished/") + result_name(
            self.task["kind"],
            split=self.split,
            hard_delete=self.hard_delete,
            constrained=self.constrained,
            normalization=self.normalization,
            languages=self.languages,
            at_rates=any(result.calibration for result in self.results),
            data=self.data,
            checkpoint=None if subject.step is None else Path(subject.source).name,
            label=self.label,
        )


def compare(
    subjects: Sequence[Subject],
    section: Any,
    *,
    split: str,
    hard_delete: bool,
    batch_size: int,
    limit: int,
    languages: Sequence[str] | None = None,
    constrained: bool = False,
    normalization: Normalization | None = None,
    data: str | None = None,
    test_difference: bool = False,
    deletion_rates: Sequence[float] = (),
    runtime: bool = False,
    device: Any = None,
    progress: Callable[[str, str, int], None] | None = None,
    unfinished: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Evaluate each subject on the task, one after the other.

    Args:
        section: the recipe section of the task.
        limit: examples a subset.
        languages: subsets; by default all.
        normalization: of answers; by default the published one.
        data: what replaced the section's source, for the record.
        test_difference: say whether the two subjects differ.
        deletion_rates: also run the only subject with its threshold moved to each of these rates, found on
            `limit` validation examples a subset.
        progress: called with the subject's name, the subset and the number of its examples done.
        unfinished: called with what has been measured, if anything, where a later subset or subject fails.
        split, hard_delete, batch_size, constrained, runtime, device: as `measure`.

    Raises:
        UserError: the task has no such subset, no choices to be constrained to, or no answers to normalise.
    """
    task = build_task(section)
    subsets = _check(task, section.kind, split, languages, constrained, normalization)
    check_held_out(task, section, split, subsets)
    rule = None if task.answer_length is None else normalization or "squad"
    recipes = [subject.recipe for subject in subjects if subject.recipe is not None]
    named = {row for recipe in recipes if recipe.paper is not None for row in recipe.paper.rows}
    measures = (*(["constrained_accuracy"] if constrained else []), *task.measures)
    results: list[Result] = []

    def comparison(**more: Any) -> Comparison:
        return Comparison(
            {
                "kind": section.kind,
                "version": task.version,
                "settings": section.model_dump(mode="json"),
                "commits": task.commits(),
            },
            split,
            hard_delete,
            limit,
            batch_size,
            [result for result in results if result.rows],
            measures,
            constrained,
            rule,
            None if languages is None else tuple(subsets),
            data,
            remarks=task.remarks(),
            **more,
        )

    try:
        for subject in subjects:
            model = load_model(subject, device)
            check_fits(model, section, subject.name)
            calibrations: list[Calibration | None] = [None]
            if deletion_rates:
                text = _validation_batches(task, batch_size, limit)
                calibrations += calibrate(model, text, deletion_rates, subject.name)
            for calibration in calibrations:
                result = Result(
                    subject, [], conditions(model), model.config.deletion_type, calibration=calibration
                )
                results.append(result)
                measured = measure(
                    model,
                    task,
                    split=split,
                    subsets=subsets,
                    hard_delete=hard_delete,
                    threshold=None if calibration is None else calibration.threshold,
                    batch_size=batch_size,
                    limit=limit,
                    constrained=constrained,
                    normalization=rule or "squad",
                    runtime=runtime,
                    progress=None if progress is None else _for_model(progress, result.label),
                    finished=lambda row, _: results[-1].rows.append(row),
                )
                results[-1] = replace(result, rows=measured.rows, outcomes=measured.outcomes)
    except BaseException as error:
        if unfinished is not None and any(result.rows for result in results):
            unfinished(comparison(unfinished=first_line(error)))
        raise
    return comparison(
        published=published_rows(task, subsets, named) if task.measures and split == "test" else [],
        differences=differences(results[0], results[1], section.kind, measures) if test_difference else [],
    )


def _check(
    task: Any,
    kind: str,
    split: str,
    languages: Sequence[str] | None,
    constrained: bool,
    normalization: str | None,
) -> list[str]:
    """The subsets to evaluate, once everything asked for is something the task has."""
    there = list(task.subsets(split))
    unknown = [] if languages is None else [name for name in languages if name not in there]
    if unknown:
        raise UserError(
            f"the {split} split of {kind} has no {', '.join(unknown)}, only {', '.join(there)}",
            "name some of these with --languages, or leave it out",
        )
    if constrained and task.choices is None:
        raise UserError(
            f"--constrained chooses among the possible targets, and those of {kind} are not few",
            "leave it out, or use --task xnli",
        )
    if normalization is not None and task.answer_length is None:
        raise UserError(
            f"--normalization is of generated answers, and {kind} has none",
            "leave it out, or use --task tydiqa or xquad",
        )
    return there if languages is None else [name for name in there if name in languages]


def differences(first: Result, second: Result, kind: str, measures: Sequence[str]) -> list[Difference]:
    """Each measure and the loss of two results on the same examples, a subset each and all together."""
    names = list(first.outcomes)
    groups = [(name, [name]) for name in names] + ([(TOTAL, names)] if len(names) > 1 else [])
    if not measures and kind != "span_corruption":  # whose targets nobody spells right throughout
        measures = ("sequence_accuracy",)
    found = []
    for measure_ in (*measures, "loss"):
        for subset, parts in groups:
            one, other = ([result.outcomes[part] for part in parts] for result in (first, second))
            if measure_ == "loss":
                tokens = [outcomes.tokens for outcomes in one]
                nats, others = ([outcomes.nats for outcomes in side] for side in (one, other))
                found.append(compare_means(subset, measure_, nats, others, tokens))
            else:
                test = compare_means if measure_ == "f1" else compare_right
                sides = ([getattr(outcomes, measure_) for outcomes in side] for side in (one, other))
                found.append(test(subset, measure_, *sides))
    return found


def _validation_batches(task: Any, batch_size: int, limit: int) -> Iterator[Any]:
    for subset in task.subsets("validation"):
        yield from task.held_out("validation", subset, batch_size=batch_size, limit=limit)


def _for_model(progress: Callable[[str, str, int], None], name: str) -> Callable[[str, int], None]:
    return lambda subset, done: progress(name, subset, done)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
