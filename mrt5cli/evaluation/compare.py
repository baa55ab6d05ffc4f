"""Evaluate several models on one task, on the same examples, and record the conditions in one document."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

import mrt5cli
from mrt5cli.errors import HubAway, RunFailed, UserError
from mrt5cli.evaluation import predictions
from mrt5cli.evaluation.counting import Outcomes
from mrt5cli.evaluation.evaluate import measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.evaluation.published import PublishedRow, published_rows
from mrt5cli.evaluation.significance import Difference, differences
from mrt5cli.evaluation.timing import PASSES, conditions
from mrt5cli.fingerprint import code_version
from mrt5cli.generation.calibration import Calibration, calibrate_on_task
from mrt5cli.json_files import finite
from mrt5cli.metrics import loaded, scoring
from mrt5cli.metrics.answers import Normalization
from mrt5cli.metrics.catalog import ACCURACY, METRICS, generates
from mrt5cli.metrics.results import VERSION, Json, Row
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.recipe.shorteners import of_type
from mrt5cli.recipe.shorteners.base import ShortenerSection
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.subject import Subject, check_fits, load_model
from mrt5cli.tasks.base import Task, build_task, check_held_out
from mrt5cli.text import first_line
from mrt5cli.writing import write_json

Progress = Callable[[str, str, int], object]
RULED = frozenset(scoring.GRADED)
"""Measures that normalize answers before they compare them."""


@dataclass
class Result:
    """The results of one model.

    Attributes:
        rows: one per subset; the total comes last if there are several subsets and all are measured.
        conditions: what a time or a rounding depends on (see `timing`).
        deletion_type: the shortener, as the model's configuration names it.
        outcomes: outcomes of the examples, by subset.
        calibration: the threshold that replaced the model's own; None if none did.
        threshold: gate value up to which bytes were deleted; None without a learned gate or with soft gates.
    """

    subject: Subject
    rows: list[Row]
    conditions: Mapping[str, str | int]
    deletion_type: str = "none"
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    calibration: Calibration | None = None
    threshold: float | None = None

    @property
    def label(self) -> str:
        """Its name in tables: the model, and the rate it was calibrated to."""
        moved = "" if self.calibration is None else f" at {100 * self.calibration.rate:g} %"
        return f"{self.subject.name}{moved}"

    @property
    def shortener(self) -> type[ShortenerSection]:
        """The recipe section of the model's shortener."""
        return of_type(self.deletion_type)

    @property
    def summary(self) -> Row:
        """The total, or the only subset's row."""
        return self.rows[-1]

    @property
    def target_deletion_rate(self) -> float | None:
        """Target of the threshold or of the run's controller, a share of non-pad positions, 0 to 1."""
        if self.calibration is not None:
            return self.calibration.rate
        return None if self.subject.recipe is None else self.subject.recipe.target_deletion_rate

    @property
    def train_seconds(self) -> float | None:
        """Training time up to this model, summed over resumes, from metrics.jsonl; None if unknown."""
        run, recipe = self.subject.run, self.subject.recipe
        step = self.subject.step if recipe is None else self.subject.step or recipe.training.max_steps
        try:
            rows = [] if run is None else run.metrics()
        except UserError:  # damaged or unreadable: no reason to lose the measurements
            return None
        times = [row["seconds"] for row in rows if "seconds" in row and (step is None or row["step"] <= step)]
        return times[-1] if times else None

    def to_json(self) -> Json:
        """The model's entry in a results file."""
        subject = self.subject
        return {
            "name": subject.name,
            "source": subject.source if subject.commit is None else subject.name,
            "commit": subject.commit,
            "step": subject.step,
            "deletion_type": self.deletion_type,
            "target_deletion_rate": self.target_deletion_rate,
            "threshold": self.threshold,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "train_seconds": self.train_seconds,
            # Distinguishes successive trainings in the same directory.
            "run_ended": None if subject.run is None else subject.run.meta().get("ended"),
            **self.conditions,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Comparison:
    """The results of several models on one task.

    Attributes:
        task: kind, version and settings of the task, and the commits of its data.
        results: one per model and calibrated rate.
        measures: names of the task's own measures, the headline first; empty if the loss is the headline.
        normalization: the rule that answers were normalized by; None if no measure uses one.
        published: the paper's numbers for the same experiment.
        differences: significance tests between two models.
        remarks: sentences about the data for the user.
        unfinished: why a later subset or model is missing, in which case there is no total; else None.
    """

    task: Json
    options: EvaluationOptions
    results: Sequence[Result]
    measures: Sequence[str] = ()
    normalization: Normalization | None = None
    published: Sequence[PublishedRow] = ()
    differences: Sequence[Difference] = ()
    remarks: Sequence[str] = ()
    unfinished: str | None = None

    @property
    def rows(self) -> Sequence[Row]:
        """The first model's rows."""
        return self.results[0].rows

    @property
    def summary(self) -> Row:
        """The first model's total, or its only subset's row."""
        return self.results[0].summary

    @property
    def numbers(self) -> list[str]:
        """Names of the measures' numbers in rows; a loaded metric may have several."""
        others = self.results[0].rows[0].others
        found = ([name] if name in METRICS else loaded.numbers_of(name, [*others]) for name in self.measures)
        return [name for names in found for name in names]

    @property
    def made_by(self) -> dict[str, str]:
        """What computes measures from outside the toolkit: sacrebleu's signature, or a script's source."""
        found = {
            name: scoring.signature(name) if name in METRICS else loaded.load(name).source
            for name in self.measures
        }
        return {name: made for name, made in found.items() if made is not None}

    def document(self) -> Json:
        """The complete comparison for JSON; numbers that are not finite become null."""
        options = self.options
        return {
            "version": VERSION,
            "task": self.task,
            "split": options.split,
            "deletion": options.deletion,
            **({} if self.unfinished is None else {"unfinished": self.unfinished}),
            "limit": options.limit,
            "batch_size": options.batch_size,
            "constrained": options.constrained,
            "normalization": self.normalization,
            "generation": options.generation.model_dump() if generates(self.measures) else None,
            "metrics": self.made_by,
            "languages": None if options.subsets is None else list(options.subsets),
            "data": options.data,
            "timed_passes": PASSES,
            "code": code_version("evaluate"),
            "versions": {
                "python": platform.python_version(),
                "mrt5cli": mrt5cli.__version__,
                **{name: version(name) for name in ("torch", "transformers")},
            },
            "models": [result.to_json() for result in self.results],
            "published": [asdict(row) for row in self.published],
            "differences": [
                finite({**asdict(one), "difference": one.difference}) for one in self.differences
            ],
        }

    def _result_kind(self, subject: Subject) -> str:
        """The task in a results file's name: two text2text tasks may have nothing in common."""
        kind, own = str(self.task["kind"]), None if subject.recipe is None else subject.recipe.task
        if kind != "text2text" or not self.options.recipe or own is None:
            return kind
        ignored = {"metrics", "source", "sources"} if self.options.data else {"metrics"}
        same = own.model_dump(mode="json", exclude=ignored) == {
            key: value for key, value in self.task["settings"].items() if key not in ignored
        }
        return kind if same else f"{kind}-{Path(self.options.recipe).stem}"

    def save(self) -> list[str]:
        """Write each run's results into its directory, and the generated answers where the options specify.

        Models without a run are not saved. An unfinished evaluation writes its answers to a separate file.

        Returns:
            One line per file written, or the reason why a run's results could not be saved.
        """
        lines = []
        if (file := self.options.predictions) is not None:
            path = file if self.unfinished is None else file.with_name(f"unfinished-{file.name}")
            predictions.write(path, [(one.label, one.outcomes) for one in self.results], self.measures)
            lines.append(f"saved {path}")
        for subject in {one.subject.source: one.subject for one in self.results}.values():
            if subject.run is None:
                continue
            own = [result for result in self.results if result.subject.source == subject.source]
            checkpoint = None if subject.step is None else Path(subject.source).name
            name = self.options.result_name(self._result_kind(subject), checkpoint)
            # In a separate folder, so that unfinished results are never read as complete ones.
            path = subject.run.eval(name if self.unfinished is None else f"unfinished/{name}")
            try:
                # A model's own file does not depend on the model it was compared with.
                write_json(path, replace(self, results=own, differences=()).document())
                lines.append(f"saved {path}")
            except OSError as error:  # such as another user's run; the results are still printed
                lines.append(f"note: results not saved, {path} cannot be written: {error.strerror}")
        return lines


def compare(
    subjects: Sequence[Subject],
    section: TaskSection,
    options: EvaluationOptions,
    *,
    device: torch.device | str | None = None,
    progress: Progress = lambda name, subset, done: None,
    unfinished: Callable[[Comparison], object] = lambda comparison: None,
) -> Comparison:
    """Evaluate each subject on the task, one after the other.

    Args:
        section: the task's recipe section.
        device: CPU by default.
        progress: called with the subject's name, the subset and the number of its examples done.
        unfinished: called with the results so far, if there are any, when a later subset or subject fails.

    Raises:
        UserError: the task lacks a requested subset or has no choices, or a metric cannot be loaded.
        RunFailed: the Hub became unreachable after something was measured.
    """
    task = build_task(section)
    options = _checked(options, task, section.kind)
    if options.predictions is not None:
        trained = [subject.recipe.task for subject in subjects if subject.recipe is not None]
        predictions.check(options.predictions, task, [section, *trained])
    loaded.load_all([name for name in task.measures if name not in METRICS])
    check_held_out(task, options.split, options.subsets or task.subsets(options.split))
    longest_answer = max(section.longest_target or 0, options.generation.max_new_tokens or 0)
    results: list[Result] = []
    try:
        for subject in subjects:
            model = load_model(subject, device, options.precision)
            check_fits(model, section, subject.name, longest_answer)
            kind = of_type(model.config.deletion_type)
            moves = options.hard_delete and kind.gates and not kind.refuses_threshold
            for calibration in _calibrations(model, task, options, subject.name, progress):
                own = model.config.threshold if moves else None
                result = Result(
                    subject,
                    [],
                    conditions(model),
                    model.config.deletion_type,
                    calibration=calibration,
                    threshold=own if calibration is None else calibration.threshold,
                )
                results.append(result)
                _measure(result, model, task, options, progress)
    except BaseException as error:
        if measured := [result for result in results if result.rows]:
            unfinished(_comparison(measured, section, task, options, unfinished=first_line(error)))
            if isinstance(error, HubAway):  # after work was done: a failed run, not bad input
                raise RunFailed(error.message, error.hint) from error
        raise
    comparison = _comparison(results, section, task, options)
    if options.test_difference:
        first, second = (result.outcomes for result in results)
        tested = differences(first, second, section.kind, comparison.measures)
        comparison = replace(comparison, differences=tested)
    if task.measures and options.split == "test":
        papers = [subject.recipe.paper for subject in subjects if subject.recipe is not None]
        named = {row for paper in papers if paper is not None for row in paper.rows}
        published = published_rows(task, options.subsets or task.subsets("test"), named)
        comparison = replace(comparison, published=published)
    return comparison


def _calibrations(
    model: MrT5ForConditionalGeneration,
    task: Task,
    options: EvaluationOptions,
    name: str,
    progress: Progress,
) -> list[Calibration | None]:
    """The thresholds to evaluate at: the model's own (None), then one per requested rate."""
    if not options.deletion_rates:
        return [None]
    found = calibrate_on_task(
        model,
        task,
        options.deletion_rates,
        name,
        batch_size=options.batch_size,
        limit=options.limit,
        progress=lambda subset, done: progress(name, f"{subset}, validation", done),
    )
    return [None, *found]


def _measure(
    result: Result,
    model: MrT5ForConditionalGeneration,
    task: Task,
    options: EvaluationOptions,
    progress: Progress,
) -> None:
    """Fill in a result; finished rows stay in it if a later subset fails."""
    if result.calibration is not None:
        options = replace(options, threshold=result.calibration.threshold)

    def finished(row: Row, outcomes: Outcomes) -> None:
        result.rows.append(row)
        result.outcomes[row.subset] = outcomes

    report = partial(progress, result.label)
    result.rows = measure(model, task, options, progress=report, finished=finished).rows


def _comparison(
    results: Sequence[Result],
    section: TaskSection,
    task: Task,
    options: EvaluationOptions,
    unfinished: str | None = None,
) -> Comparison:
    """The comparison, with the commits and remarks that are known once the data has been read."""
    described = {
        "kind": section.kind,
        "version": task.version,
        "settings": section.model_dump(mode="json"),
        "commits": task.commits(),
    }
    constrained = [ACCURACY] if options.constrained and ACCURACY not in task.measures else []
    return Comparison(
        described,
        options,
        results,
        (*constrained, *task.measures),
        normalization=options.normalization or task.normalization if RULED & {*task.measures} else None,
        remarks=task.remarks(),
        unfinished=unfinished,
    )


def _checked(options: EvaluationOptions, task: Task, kind: str) -> EvaluationOptions:
    """The options, with subsets in the task's order and the normalization only if it is not the task's."""
    known, split = list(task.subsets(options.split)), options.split
    unknown = [name for name in options.subsets or () if name not in known]
    if unknown:
        raise UserError(
            f"the {split} split of {kind} has no {', '.join(unknown)}, only {', '.join(known)}",
            "pass some of these to --languages, or leave it out",
        )
    if options.constrained and task.choices is None:
        raise UserError(
            f"--constrained requires a task with a few possible targets, and {kind} has no such list",
            "leave it out, or use --task xnli",
        )
    if options.normalization is not None and not RULED & {*task.measures}:
        raise UserError(
            f"--normalization applies to exact match and F1, and {kind} is measured by neither",
            "leave it out",
        )
    return replace(
        options,
        subsets=options.subsets and tuple(name for name in known if name in options.subsets),
        normalization=None if options.normalization == task.normalization else options.normalization,
    )
