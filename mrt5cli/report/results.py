"""What an experiment's runs and analyses have left on disk: for verdicts, claims, tables and figures alike.

Nothing is computed anew but units, and the decrease of runtime against the baseline's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from mrt5cli.analysis.runs import HINT, ExperimentRun
from mrt5cli.analysis.runtime import time_saved
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import code_version
from mrt5cli.json_files import read_object
from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, METRICS
from mrt5cli.metrics.results import TOTAL, Json, Row, SavedEvaluation
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.published import Published
from mrt5cli.paper.tolerances import AVERAGES, DECREASE, ENGLISH, TIMES
from mrt5cli.suite.jobs import Experiment, SuitePlan, TrainJob
from mrt5cli.suite.states import MADE

ALL_LANGUAGES = 15

TASKS = {
    "xnli": "xnli",
    "tydiqa_goldp": "tydiqa",
    "spelling_correction_contextual": "spelling_correction_contextual",
    "word_search": "word_search",
}
"""Published experiments whose task is called like this in recipes; the others' are below."""
PUBLISHED_DIAGNOSTICS = {
    "simple_vowel_removal": "vowel_removal",
    "contextual_vowel_removal": "contextual_vowel_removal",
    "sequence_merge": "merge_ABC",
}
"""Published names of the diagnostic tasks, which stand where other experiments name a language."""

_CODES = {language.name: code for code, language in LANGUAGES.items()}


@dataclass(frozen=True)
class Ours:
    """A number of ours.

    Attributes:
        values: one a seed, in the published row's unit.
        examples: test examples each is over; None where that has no meaning.
        bounds: that none can be outside of.
    """

    values: tuple[float, ...]
    examples: int | None = None
    bounds: tuple[float, float] = field(default=(-math.inf, math.inf), compare=False)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean over seeds; None with one seed."""
        return interval_of_mean(self.values, self.bounds)


class Missing(Exception):
    """There is no number of ours; the message says why."""


@dataclass(frozen=True)
class Ran(ExperimentRun):
    """A run of an experiment, with the job that trains it, and why some of its files cannot be read."""

    job: TrainJob = field(kw_only=True)
    damaged: list[str] = field(default_factory=list, kw_only=True)

    def read(self, path: Path) -> SavedEvaluation | None:
        try:
            return super().read(path)
        except UserError as error:
            self.damaged.append(error.message)
            return None

    def why_missing(self) -> str:
        """Why there are no results of it."""
        if self.damaged:
            return self.damaged[0]
        if self.job.status in ("done", "changed"):
            return "not evaluated"
        return self.job.reason or {"missing": "not trained"}.get(self.job.status, self.job.status)


@dataclass(frozen=True)
class Evidence:
    """All that an experiment has to show for its claims so far.

    Attributes:
        runs: see `evaluated_run`; in the experiment's order, by seed.
        missing: what is not there yet, in words.
        analyses: documents of the experiment's analyses that are there, by name.
    """

    runs: pd.DataFrame
    missing: Sequence[str] = ()
    analyses: Mapping[str, Json] = field(default_factory=dict)


def evaluated_run(recipe: str, rows: Sequence[Row], **more: object) -> Json:
    """A line about a run and its evaluation on its own task, as claims see it.

    Beside the numbers of the last row, the total or the only subset, which are NaN where there are none:

    - `recipe`, its shipped name, and `model`, the same without its folder; `seed`; `task`, its kind;
    - `kind` of its shortener, as recipes name it, where "none" is ByT5; `softmax1`, whether it has that;
    - `target`, the deletion rate its controller aimed at, or NaN; `deleted`, the rate it came to;
    - `rows`, one a subset; `config` of the model, as saved, or nothing.
    """
    line = {name: math.nan if value is None else value for name, value in (vars(rows[-1]) | more).items()}
    deleted = rows[-1].deletion_rate or 0.0
    return line | {"recipe": recipe, "model": short_name(recipe), "deleted": deleted, "rows": rows}


class Results:
    """What an experiment's runs and analyses came to.

    Attributes:
        runs: by recipe, in the experiment's order, by seed.
        analyses: documents of those that are done, by name.
        damaged: why files cannot be read, a sentence each; of those that have been read so far.
    """

    def __init__(self, plan: SuitePlan, experiment: Experiment) -> None:
        self.plan, self.experiment = plan, experiment
        self.runs: dict[str, list[Ran]] = {name: [] for name in experiment.recipes}
        self.damaged: list[str] = []
        jobs = plan.runs(experiment).values()
        for run, job in zip(plan.experiment_runs(experiment).runs, jobs, strict=True):
            self.runs[run.name].append(Ran(run.name, run.recipe, run.run, run.outputs, run.shown, job=job))
        self.analyses = {name: found for name in experiment.analyses if (found := self._analysis(name))}

    def _analysis(self, name: str) -> Json:
        """The document of an analysis; empty where it is missing, damaged, or of code with other fields."""
        path = self.plan.analysis(self.experiment, name)
        found = self._read(path)
        if MADE in found and found[MADE].get("code") != code_version("analyse"):
            self.damaged.append(f"{path} was made by other code; the next run of the suite makes it again")
            return {}
        return found

    def _read(self, path: Path) -> Json:
        """The document in a file; empty without one that can be read."""
        try:
            return read_object(path, HINT) if path.is_file() else {}
        except UserError as error:
            self.damaged.append(error.message)
            return {}

    @cached_property
    def evidence(self) -> Evidence:
        """For claims: each run's evaluation on its own task, a timed one before others, and the analyses."""
        found, missing = [], []
        for ran in (ran for runs in self.runs.values() for ran in runs):
            own = ran.own("ms_per_example") or ran.own()
            if own is None:
                missing.append(ran.title)
                continue
            recipe, model = ran.recipe, ran.recipe.model
            said = {"task": recipe.task.kind, "target": recipe.target_deletion_rate, "seed": recipe.seed}
            said |= {"kind": model.shortener.kind, "softmax1": model.softmax1}
            config = self._read(ran.run.model / "config.json")
            found.append(evaluated_run(ran.name, own[1].rows, config=config, **said))
        missing += [f"analysis {name}" for name in self.experiment.analyses if name not in self.analyses]
        for name, document in self.analyses.items():
            missing += [f"{run} in analysis {name}" for run in document.get("missing", ())]
        return Evidence(pd.DataFrame(found), missing, self.analyses)

    def value(self, row: Published, recipe: str | None) -> Ours:
        """Our value of a published number, in its unit; of a time, its decrease in percent of the baseline's.

        Args:
            row: published.
            recipe: whose runs it belongs to; None for what an analysis finds of several.

        Raises:
            Missing: there is none.
        """
        if row.experiment in _ANALYSED:
            name, find = _ANALYSED[row.experiment]
            if name not in self.analyses:
                raise Missing("not analysed")
            return find(row, recipe, self.analyses[name])
        metric = BY_PUBLISHED_NAME.get(DECREASE if row.metric in TIMES else row.metric)
        if recipe is not None and metric is BY_PUBLISHED_NAME[DECREASE]:
            return self._decrease(row, recipe)
        if recipe is None or metric is None or metric.name not in METRICS:
            raise Missing("no run makes it")
        rows = self._rows(row, recipe, metric.name)
        values = tuple(metric.factor * found.known(metric.name) for found, _ in rows)
        return Ours(values, rows[0][0].examples, metric.printed_bounds)

    def _rows(self, row: Published, recipe: str, number: str) -> list[tuple[Row, SavedEvaluation]]:
        """The row of each run that has the number, and its evaluation; at least one."""
        if not self.runs.get(recipe):
            raise Missing("its run is not part of this plan")
        found, reasons = [], []
        for ran in self.runs[recipe]:
            try:
                found.append(_find_row(row, ran, number, self.plan.smoke))
            except Missing as missing:
                reasons.append(missing)
        if not found:
            raise reasons[0]
        return found

    def _decrease(self, row: Published, recipe: str) -> Ours:
        rows = self._rows(row, recipe, "ms_per_example")
        if recipe == self.experiment.baseline:
            return Ours((0.0,) * len(rows))
        if self.experiment.baseline is None:
            raise Missing("there is no baseline to compare times with")
        base = self._rows(row, self.experiment.baseline, "ms_per_example")
        if len({one.timed_on for _, one in (*rows, *base)}) > 1:
            raise Missing("it and the baseline were timed under different conditions")
        before = [found for found, _ in base]
        return Ours(tuple(time_saved(found, before) for found, _ in rows), rows[0][0].examples)


def _find_row(row: Published, ran: Ran, number: str, smoke: bool) -> tuple[Row, SavedEvaluation]:
    """The row of a run's results that a published number is about, with that number, and its evaluation."""
    if not ran.evaluations:
        raise Missing(ran.why_missing())
    kind = TASKS.get(row.experiment, "span_corruption")
    if row.experiment.startswith("diagnostic"):
        kind = PUBLISHED_DIAGNOSTICS.get(row.subset or "", "")
    evaluations = [one for one in ran.evaluations if one.task == kind]
    if row.experiment.startswith("per_language"):  # the run's own task may be English alone
        evaluations.sort(key=lambda one: -len(one.rows))
    found = [
        (part, one)
        for one in evaluations
        for part in one.rows
        if _is_subset(row.subset, part.subset, ran, one, smoke)
    ]
    for part, one in found:
        if part.number(number) is not None:
            return part, one
    if found:
        raise Missing("not timed" if number.startswith("ms_") else f"evaluated without its {number}")
    raise Missing(f"not evaluated on {row.subset}")


def _is_subset(published: str | None, ours: str, ran: Ran, one: SavedEvaluation, smoke: bool) -> bool:
    if published in AVERAGES:
        whole = ran.is_own_task(one) or len(one.rows) == ALL_LANGUAGES + 1
        only = smoke and len(one.rows) == 1  # a smoke task has one language
        return whole and (ours == TOTAL or only)
    if published in PUBLISHED_DIAGNOSTICS:
        return ours == "all"
    name = "English" if published in ENGLISH else published
    return ours == _CODES.get(name or "", name)


def _per_sample(row: Published, recipe: str | None, document: Json) -> Ours:
    if row.metric == "fisher_average_r":
        mean = document["families"].get(row.model)
        if mean is None:
            raise Missing(f"no run of {row.model} was analysed")
        return Ours((mean,), document["samples"])
    values = [one["r"] for one in document["models"] if one["recipe"] == recipe and one["r"] is not None]
    if not values:
        raise Missing("its run was not analysed, or does not vary")
    return Ours(tuple(values), document["samples"])


def _compute(row: Published, recipe: str | None, document: Json) -> Ours:
    name = {"macs": "paper_macs", "macs_relative_to_byt5": "paper_relative"}[row.metric]
    for point in document["curve"]:
        if abs(point["deletion_rate"] - float(row.setting["delta"])) < 1e-9:
            return Ours((point[name],))
    raise Missing("not on the curve")


def _deletion_patterns(row: Published, recipe: str | None, document: Json) -> Ours:
    name = row.metric.partition("[")[2].rstrip("]")
    models = [model for model in document["models"] if model["recipe"] == recipe]
    rates = [100 * line["rate"] for model in models for line in model["letters"] if line["kind"] == name]
    if not rates:
        raise Missing("its run was not analysed")
    return Ours(tuple(rates), models[0]["examples"])


_ANALYSED: Mapping[str, tuple[str, Callable[[Published, str | None, Json], Ours]]] = {
    "per_sample": ("per_sample", _per_sample),
    "compute_savings": ("compute", _compute),
    "diagnostic_deletion_patterns": ("deletion_patterns", _deletion_patterns),
}
"""Published experiments whose numbers an analysis finds: which, and how."""


def short_name(recipe: str) -> str:
    """What to call a run in a sentence or a figure: its recipe's name without the folder."""
    return recipe.rpartition("/")[2]
