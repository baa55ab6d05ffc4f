"""The results of an experiment's runs and analyses on disk, for verdicts, claims, tables and figures.

Only units and the decrease of runtime relative to the baseline are computed here.
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
"""Task kinds in recipes by published experiment; the diagnostic tasks are below."""
PUBLISHED_DIAGNOSTICS = {
    "simple_vowel_removal": "vowel_removal",
    "contextual_vowel_removal": "contextual_vowel_removal",
    "sequence_merge": "merge_ABC",
}
"""Diagnostic task kinds by published name, which is listed where other experiments name a language."""

_CODES = {language.name: code for code, language in LANGUAGES.items()}


@dataclass(frozen=True)
class Ours:
    """Our value of a published number.

    Attributes:
        values: one value per seed, in the published row's unit.
        examples: number of test examples per value; None if that has no meaning.
        bounds: least and greatest possible value.
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
    """We have no number to compare; the message gives the reason."""


@dataclass(frozen=True)
class Ran(ExperimentRun):
    """A run of an experiment with the job that trains it and the reasons why some files cannot be read."""

    job: TrainJob = field(kw_only=True)
    damaged: list[str] = field(default_factory=list, kw_only=True)

    def read(self, path: Path) -> SavedEvaluation | None:
        try:
            return super().read(path)
        except UserError as error:
            self.damaged.append(error.message)
            return None

    def why_missing(self) -> str:
        """The reason why it has no results."""
        if self.damaged:
            return self.damaged[0]
        if self.job.status in ("done", "changed"):
            return "not evaluated"
        return self.job.reason or {"missing": "not trained"}.get(self.job.status, self.job.status)


@dataclass(frozen=True)
class Evidence:
    """The evidence for an experiment's claims so far.

    Attributes:
        runs: one row per run (see `evaluated_run`), in the experiment's order, by seed.
        missing: names of runs and analyses that do not exist yet.
        analyses: documents of the existing analyses, by name.
    """

    runs: pd.DataFrame
    missing: Sequence[str] = ()
    analyses: Mapping[str, Json] = field(default_factory=dict)


def evaluated_run(recipe: str, rows: Sequence[Row], **more: object) -> Json:
    """One run's evaluation on its own task, as the row that claims read.

    In addition to the numbers of the last row (the total or the only subset), NaN where missing, it has:

    - `recipe`, its shipped name; `model`, the same without its folder; `seed`; `task`, its kind;
    - `kind` of its shortener in recipes ("none" is ByT5); `softmax1`, whether the model uses it;
    - `target`, the target deletion rate or NaN; `deleted`, the measured rate;
    - `rows`, one per subset; `config`, the saved configuration, or empty.
    """
    line = {name: math.nan if value is None else value for name, value in (vars(rows[-1]) | more).items()}
    deleted = rows[-1].deletion_rate or 0.0
    return line | {"recipe": recipe, "model": short_name(recipe), "deleted": deleted, "rows": rows}


class Results:
    """The results of an experiment's runs and analyses.

    Attributes:
        runs: runs by recipe, in the experiment's order, by seed.
        analyses: documents of the finished analyses, by name.
        damaged: reasons why files cannot be read, one sentence each, so far.
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
        """The document of an analysis; empty if it is missing, damaged or made with other code."""
        path = self.plan.analysis(self.experiment, name)
        found = self._read(path)
        if MADE in found and found[MADE].get("code") != code_version("analyse"):
            self.damaged.append(f"{path} was made with other code; the next run of the suite makes it again")
            return {}
        return found

    def _read(self, path: Path) -> Json:
        """The document in a file; empty if it is missing or cannot be read."""
        try:
            return read_object(path, HINT) if path.is_file() else {}
        except UserError as error:
            self.damaged.append(error.message)
            return {}

    @cached_property
    def evidence(self) -> Evidence:
        """Each run's evaluation on its own task, preferably a timed one, and the analyses, for claims."""
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
        """Our value of a published number, in its unit; of a time, its decrease relative to the baseline.

        Args:
            row: the published row.
            recipe: the recipe whose runs it belongs to; None for a number that an analysis of several runs
                finds.

        Raises:
            Missing: we have no number to compare.
        """
        if row.experiment in _ANALYSED:
            name, find = _ANALYSED[row.experiment]
            if name not in self.analyses:
                raise Missing("not analyzed")
            return find(row, recipe, self.analyses[name])
        metric = BY_PUBLISHED_NAME.get(DECREASE if row.metric in TIMES else row.metric)
        if recipe is not None and metric is BY_PUBLISHED_NAME[DECREASE]:
            return self._decrease(row, recipe)
        if recipe is None or metric is None or metric.name not in METRICS:
            raise Missing("no run produces it")
        rows = self._rows(row, recipe, metric.name)
        values = tuple(metric.factor * found.known(metric.name) for found, _ in rows)
        return Ours(values, rows[0][0].examples, metric.printed_bounds)

    def _rows(self, row: Published, recipe: str, number: str) -> list[tuple[Row, SavedEvaluation]]:
        """The row and evaluation of each run that has the number; at least one."""
        if not self.runs.get(recipe):
            raise Missing("its run is not in this plan")
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
            raise Missing("the experiment has no baseline for times")
        base = self._rows(row, self.experiment.baseline, "ms_per_example")
        if len({one.timed_on for _, one in (*rows, *base)}) > 1:
            raise Missing("timed under other conditions than the baseline")
        before = [found for found, _ in base]
        return Ours(tuple(time_saved(found, before) for found, _ in rows), rows[0][0].examples)


def _find_row(row: Published, ran: Ran, number: str, smoke: bool) -> tuple[Row, SavedEvaluation]:
    """The row of a run's results that corresponds to a published number, and its evaluation."""
    if not ran.evaluations:
        raise Missing(ran.why_missing())
    kind = TASKS.get(row.experiment, "span_corruption")
    if row.experiment.startswith("diagnostic"):
        kind = PUBLISHED_DIAGNOSTICS.get(row.subset or "", "")
    evaluations = [one for one in ran.evaluations if one.task == kind]
    if row.experiment.startswith("per_language"):  # the run's own task may be English only
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
        only = smoke and len(one.rows) == 1  # a smoke task has a single language
        return whole and (ours == TOTAL or only)
    if published in PUBLISHED_DIAGNOSTICS:
        return ours == "all"
    name = "English" if published in ENGLISH else published
    return ours == _CODES.get(name or "", name)


def _per_sample(row: Published, recipe: str | None, document: Json) -> Ours:
    if row.metric == "fisher_average_r":
        mean = document["families"].get(row.model)
        if mean is None:
            raise Missing(f"no run of {row.model} was analyzed")
        return Ours((mean,), document["samples"])
    values = [one["r"] for one in document["models"] if one["recipe"] == recipe and one["r"] is not None]
    if not values:
        raise Missing("its run was not analyzed, or its rate does not vary")
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
        raise Missing("its run was not analyzed")
    return Ours(tuple(rates), models[0]["examples"])


_ANALYSED: Mapping[str, tuple[str, Callable[[Published, str | None, Json], Ours]]] = {
    "per_sample": ("per_sample", _per_sample),
    "compute_savings": ("compute", _compute),
    "diagnostic_deletion_patterns": ("deletion_patterns", _deletion_patterns),
}
"""By published experiment: the analysis that finds its numbers, and the function that looks them up."""


def short_name(recipe: str) -> str:
    """A recipe's name without its folder, for sentences and figures."""
    return recipe.rpartition("/")[2]
