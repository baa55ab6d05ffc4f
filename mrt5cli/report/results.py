"""What an experiment's runs and analyses have left on disk: for verdicts, claims, tables and figures alike.

Nothing is computed anew but units, and the decrease of runtime against the baseline's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mrt5cli.analysis.runs import HINT, ExperimentRun
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.json_files import read_object
from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, METRICS
from mrt5cli.metrics.results import TOTAL, Json, Row, SavedEvaluation
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.published import Published
from mrt5cli.paper.tolerances import AVERAGES, DECREASE, TIMES
from mrt5cli.suite.jobs import Experiment, SuitePlan, TrainJob

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
        seeds: of the runs.
        examples: test examples each is over; None where that has no meaning.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    examples: int | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean over seeds; None with one seed."""
        return interval_of_mean(self.values)


class Missing(Exception):
    """There is no number of ours; the message says why, in words."""


@dataclass(frozen=True)
class Ran(ExperimentRun):
    """A run of an experiment, with the job that trains it."""

    job: TrainJob = field(kw_only=True)

    def why_missing(self) -> str:
        """Why there are no results of it, in words."""
        if self.job.status in ("done", "changed"):
            return "not evaluated"
        return self.job.reason or {"missing": "not trained"}.get(self.job.status, self.job.status)


@dataclass(frozen=True)
class EvaluatedRun:
    """One run and its evaluation on its own task, as claims see it.

    Attributes:
        recipe: shipped name.
        seed: it was trained with.
        kind: of its shortener, as recipes name it; "none" is ByT5.
        task: kind of its task.
        softmax1: whether its attention may attend to nothing.
        target: deletion rate its controller aimed at, 0 to 1, or None.
        rows: of the evaluation, one a subset, the total last when there are several.
        config: of the model, as saved; empty when it is not there.
    """

    recipe: str
    seed: int
    kind: str
    task: str
    softmax1: bool
    target: float | None
    rows: Sequence[Row]
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, ran: Ran, rows: Sequence[Row]) -> EvaluatedRun:
        """Of a run of the experiment."""
        recipe, config = ran.recipe, ran.run.model / "config.json"
        return cls(
            recipe=ran.name,
            seed=recipe.seed,
            kind=recipe.model.shortener.kind,
            task=recipe.task.kind,
            softmax1=recipe.model.softmax1,
            target=recipe.target_deletion_rate,
            rows=rows,
            config=read_object(config, HINT) if config.is_file() else {},
        )

    @property
    def name(self) -> str:
        """What to call it in a sentence: the recipe's name without its folder."""
        return self.recipe.rpartition("/")[2]

    @property
    def total(self) -> Row:
        """The total, or the only subset's row."""
        return self.rows[-1]

    @property
    def rate(self) -> float:
        """Share of non-pad positions that are gone, 0 to 1."""
        return self.total.deletion_rate or 0.0

    @property
    def loss(self) -> float:
        """Nats per target token."""
        assert self.total.loss is not None  # what is not finite is not in files
        return self.total.loss


@dataclass(frozen=True)
class Evidence:
    """All that an experiment has to show for its claims so far.

    Attributes:
        results: of the runs that are there and evaluated, in the experiment's order, by seed.
        missing: what is not there yet, in words.
        analyses: documents of the experiment's analyses that are there, by name.
    """

    results: Sequence[EvaluatedRun]
    missing: Sequence[str] = ()
    analyses: Mapping[str, Json] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[EvaluatedRun]:
        """Results of these shorteners."""
        return [result for result in self.results if result.kind in kinds]


class Results:
    """What an experiment's runs and analyses came to.

    Args:
        plan: whose runs are read.
        experiment: of the plan.
    """

    def __init__(self, plan: SuitePlan, experiment: Experiment) -> None:
        self.plan, self.experiment = plan, experiment
        self.runs: dict[str, list[Ran]] = {name: [] for name in experiment.recipes}
        jobs = plan.runs(experiment).values()
        for run, job in zip(plan.experiment_runs(experiment).runs, jobs, strict=True):
            self.runs[run.name].append(Ran(run.name, run.recipe, run.run, run.outputs, run.shown, job=job))
        self._analyses: dict[str, Json | None] = {}

    def analysis(self, name: str) -> Json | None:
        """The document of an analysis, or None while there is none."""
        if name not in self._analyses:
            path = self.plan.analysis(self.experiment, name)
            self._analyses[name] = read_object(path, HINT) if path.is_file() else None
        return self._analyses[name]

    @property
    def baseline(self) -> list[Ran]:
        """The runs of the recipe that others are compared with."""
        return self.runs.get(self.experiment.baseline or "", [])

    @cached_property
    def evidence(self) -> Evidence:
        """For claims: each run's evaluation on its own task, a timed one before others, and the analyses."""
        found, missing = [], []
        for ran in (ran for runs in self.runs.values() for ran in runs):
            own = ran.own("ms_per_example") or ran.own()
            if own is None:
                missing.append(f"{ran.name} seed {ran.seed}")
            else:
                found.append(EvaluatedRun.of(ran, own[1].rows))
        analyses = {name: self.analysis(name) for name in self.experiment.analyses}
        missing += [f"analysis {name}" for name, document in analyses.items() if document is None]
        return Evidence(found, missing, {name: one for name, one in analyses.items() if one})

    def value(self, row: Published, recipe: str | None) -> Ours:
        """Our value of a published number, in its unit; of a time, its decrease in percent of the baseline's.

        Args:
            row: published.
            recipe: whose runs it belongs to; None for what an analysis finds of several.

        Raises:
            Missing: there is none.
        """
        if row.experiment in ANALYSED:
            return self._analysed(row, recipe)
        if recipe is None:
            raise Missing("no run makes it")
        if row.metric in (*TIMES, DECREASE):
            return self._decrease(row, recipe)
        metric = BY_PUBLISHED_NAME.get(row.metric)
        if metric is None or metric.name not in METRICS:
            raise Missing("no run makes it")
        rows = self._rows(row, recipe, metric.name)
        return Ours(
            tuple(metric.factor * found.known(metric.name) for _, found, _ in rows),
            tuple(ran.seed for ran, _, _ in rows),
            rows[0][1].examples,
        )

    def _runs_of(self, recipe: str) -> list[Ran]:
        runs = self.runs.get(recipe) or []
        if not runs:
            raise Missing("its run is not part of this plan")
        return runs

    def _rows(self, row: Published, recipe: str, number: str) -> list[tuple[Ran, Row, SavedEvaluation]]:
        """Of each run that has the number: the run, the row and its document."""
        found, reasons = [], []
        for ran in self._runs_of(recipe):
            try:
                found.append((ran, *find_row(row, ran, number, smoke=self.plan.smoke)))
            except Missing as missing:
                reasons.append(str(missing))
        if not found:
            raise Missing(reasons[0])
        return found

    def _decrease(self, row: Published, recipe: str) -> Ours:
        rows = self._rows(row, recipe, "ms_per_example")
        if recipe == self.experiment.baseline:
            return Ours(tuple(0.0 for _ in rows), tuple(ran.seed for ran, _, _ in rows))
        if self.experiment.baseline is None:
            raise Missing("there is no baseline to compare times with")
        base = self._rows(row, self.experiment.baseline, "ms_per_example")
        conditions = {one.timed_on for _, _, one in (*rows, *base)}
        if len(conditions) > 1:
            raise Missing("it and the baseline were timed under different conditions")
        before = statistics.fmean(found.known("ms_per_example") for _, found, _ in base)
        return Ours(
            tuple(100 * (1 - found.known("ms_per_example") / before) for _, found, _ in rows),
            tuple(ran.seed for ran, _, _ in rows),
            rows[0][1].examples,
        )

    def _analysed(self, row: Published, recipe: str | None) -> Ours:
        name = ANALYSED[row.experiment]
        document = self.analysis(name)
        if document is None:
            raise Missing("not analysed")
        return _FINDERS[name](row, recipe, document)


def find_row(row: Published, ran: Ran, number: str, *, smoke: bool = False) -> tuple[Row, SavedEvaluation]:
    """The row of a run's results that a published number is about, and the evaluation it is of.

    Args:
        number: that the row must have.
        smoke: take the only subset for a total: a smoke task has one language.

    Raises:
        Missing: there is none.
    """
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
    if published in AVERAGES or published == TOTAL:
        whole = ran.is_own_task(one) or len(one.rows) == ALL_LANGUAGES + 1
        return whole and (ours == TOTAL or (smoke and len(one.rows) == 1))
    if published in PUBLISHED_DIAGNOSTICS:
        return ours == "all"
    name = "English" if published and published.startswith("English") else published
    return ours == _CODES.get(name or "", name)


# --- analyses --------------------------------------------------------------------------------------------

ANALYSED = {
    "per_sample": "per_sample",
    "compute_savings": "compute",
    "diagnostic_deletion_patterns": "deletion_patterns",
}
"""Published experiments whose numbers an analysis finds."""


def _per_sample(row: Published, recipe: str | None, document: Json) -> Ours:
    models = document["models"]
    if row.metric == "fisher_average_r":
        mean = document["families"].get(row.model)
        if mean is None:
            raise Missing(f"no run of {row.model} was analysed")
        of_family = [model for model in models if model["family"] == row.model]
        return Ours((mean,), tuple(sorted({model["seed"] for model in of_family})), of_family[0]["samples"])
    found = [model for model in models if model["recipe"] == recipe and model["r"] is not None]
    if not found:
        raise Missing("its run was not analysed, or does not vary")
    return Ours(
        tuple(model["r"] for model in found), tuple(model["seed"] for model in found), found[0]["samples"]
    )


def _compute(row: Published, recipe: str | None, document: Json) -> Ours:
    name = {"macs": "paper_macs", "macs_relative_to_byt5": "paper_relative"}[row.metric]
    for point in document["curve"]:
        if abs(point["deletion_rate"] - float(row.setting["delta"])) < 1e-9:
            return Ours((point[name],), ())
    raise Missing("not on the curve")


def _deletion_patterns(row: Published, recipe: str | None, document: Json) -> Ours:
    name = row.metric.partition("[")[2].rstrip("]")
    found = [
        (model["seed"], model["examples"], kind["rate"])
        for model in document["models"]
        if model["recipe"] == recipe
        for kind in model["letters"]
        if kind["kind"] == name
    ]
    if not found:
        raise Missing("its run was not analysed")
    return Ours(tuple(100 * rate for _, _, rate in found), tuple(seed for seed, _, _ in found), found[0][1])


_FINDERS: Mapping[str, Callable[[Published, str | None, Json], Ours]] = {
    "per_sample": _per_sample,
    "compute": _compute,
    "deletion_patterns": _deletion_patterns,
}


def mean(values: Iterable[float | None]) -> float | None:
    """Of those there are."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
