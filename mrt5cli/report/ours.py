"""Our value of a published number: which run, which results document, which row, and in the row's unit.

Everything here reads what `evaluate` and the analyses wrote; nothing is computed anew but units, and the
decrease of runtime against the baseline's.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.json_files import read_object
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.published import Published
from mrt5cli.paper.tolerances import AVERAGES, DECREASE, TIMES
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.suite.jobs import Experiment, Job, Plan

TOTAL = "total"
ALL_LANGUAGES = 15

NUMBERS = {
    "test_cross_entropy": ("loss", 1.0),
    "bits_per_byte": ("bits_per_byte", 1.0),
    "seq_len_reduction": ("deletion_rate", 100.0),
    "new_seq_len": ("new_length", 1.0),
    "token_accuracy": ("token_accuracy", 100.0),
    "sequence_accuracy": ("sequence_accuracy", 100.0),
    "exact_match": ("exact_match", 100.0),
    "f1": ("f1", 100.0),
    "num_examples": ("examples", 1.0),
}
"""Published metrics: the number of an evaluation's row that each is, and what it is multiplied by."""

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

OTHER_RESULTS = ("rates", "data", "step")
"""Words in the names of results (`evaluation.names`) with other thresholds, other data, other weights."""

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
class Ran:
    """One run of an experiment, with what is known of it.

    Attributes:
        name: of its shipped recipe.
        recipe: that it was trained by; in a smoke plan, shrunk.
        job: that trains it.
        outputs: files of its evaluations in the plan, those that its experiment asks for first; empty where
            the plan evaluates nothing.
        asked: how many of them its experiment asks for.
    """

    name: str
    recipe: Recipe
    job: Job
    outputs: tuple[Path, ...] = ()
    asked: int = 0

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def family(self) -> str:
        """What the paper calls such a model."""
        return self.recipe.model.shortener.paper_name

    @property
    def run(self) -> RunDir:
        assert self.job.run is not None  # training jobs have one
        return self.job.run

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        """Its results on test data, deleting as the recipe says.

        Those that the experiment asks for come first, then those on the recipe's own task.
        Of a plan, they are the plan's evaluations; else, whatever is in the run's eval folder, but for what
        was run at other thresholds, on other data or with the weights of another step.
        """
        own = self.recipe.task.model_dump(mode="json")
        deletion = "hard" if self.recipe.evaluation.hard_delete else "soft"
        found = []
        for place, path in enumerate(self.outputs or sorted((self.run.path / "eval").glob("*.json"))):
            if not path.is_file() or any(f"-{word}-" in f"{path.stem}-" for word in OTHER_RESULTS):
                continue
            document = read_document(path)
            if document["split"] == "test" and document["deletion"] == deletion:
                found.append((place >= self.asked, document["task"]["settings"] != own, place, document))
        return [document for *_, document in sorted(found, key=lambda entry: entry[:3])]

    def is_own_task(self, document: Mapping[str, Any]) -> bool:
        """Whether a document is on the recipe's own task, all of it."""
        own = self.recipe.task.model_dump(mode="json")
        return bool(document["task"]["settings"] == own and document["languages"] is None)

    def meta(self) -> dict[str, Any]:
        """Of the run; empty before it has begun."""
        return self.run.meta()

    def why_missing(self) -> str:
        """Why there are no results of it, in words."""
        if self.job.status in ("done", "changed"):
            return "not evaluated"
        return self.job.reason or {"missing": "not trained"}.get(self.job.status, self.job.status)


def read_document(path: Any) -> dict[str, Any]:
    """A JSON object that `evaluate` or an analysis wrote.

    Raises:
        UserError: it is none.
    """
    return read_object(path, "delete it, and reproduce makes it anew")


class Results:
    """What an experiment's runs and analyses came to.

    Args:
        plan: whose runs are read.
        experiment: of the plan.
    """

    def __init__(self, plan: Plan, experiment: Experiment) -> None:
        self.plan, self.experiment = plan, experiment
        self.runs: dict[str, list[Ran]] = {name: [] for name in experiment.recipes}
        for (name, _), job in plan.runs(experiment).items():
            assert job.recipe is not None
            of_run = [other for other in plan.jobs if other.kind == "evaluate" and other.run == job.run]
            of_run.sort(key=lambda other: other.evaluation not in experiment.evaluations)
            asked = sum(other.evaluation in experiment.evaluations for other in of_run)
            outputs = tuple(other.output for other in of_run if other.output is not None)
            self.runs[name].append(Ran(name, job.recipe, job, outputs, asked))
        self._analyses: dict[str, dict[str, Any] | None] = {}

    def analysis(self, name: str) -> dict[str, Any] | None:
        """The document of an analysis, or None while there is none."""
        if name not in self._analyses:
            path = self.plan.analysis(self.experiment, name)
            self._analyses[name] = read_document(path) if path.is_file() else None
        return self._analyses[name]

    @property
    def baseline(self) -> list[Ran]:
        """The runs of the recipe that others are compared with."""
        return self.runs.get(self.experiment.baseline or "", [])

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
        if row.metric not in NUMBERS:
            raise Missing("no run makes it")
        name, unit = NUMBERS[row.metric]
        rows = self._rows(row, recipe, name)
        return Ours(
            tuple(unit * found[name] for _, found, _ in rows),
            tuple(ran.seed for ran, _, _ in rows),
            rows[0][1]["examples"],
        )

    def _runs_of(self, recipe: str) -> list[Ran]:
        runs = self.runs.get(recipe) or []
        if not runs:
            raise Missing("its run is not part of this plan")
        return runs

    def _rows(
        self, row: Published, recipe: str, number: str
    ) -> list[tuple[Ran, dict[str, Any], dict[str, Any]]]:
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
        conditions = {timed_on(document) for _, _, document in (*rows, *base)}
        if len(conditions) > 1:
            raise Missing("it and the baseline were timed under different conditions")
        before = statistics.fmean(found["ms_per_example"] for _, found, _ in base)
        return Ours(
            tuple(100 * (1 - found["ms_per_example"] / before) for _, found, _ in rows),
            tuple(ran.seed for ran, _, _ in rows),
            rows[0][1]["examples"],
        )

    def _analysed(self, row: Published, recipe: str | None) -> Ours:
        name = ANALYSED[row.experiment]
        document = self.analysis(name)
        if document is None:
            raise Missing("not analysed")
        return _FINDERS[name](row, recipe, document)


def find_row(
    row: Published, ran: Ran, number: str, *, smoke: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a run's results that a published number is about, and its document.

    Args:
        number: that the row must have.
        smoke: take the only subset for a total: a smoke task has one language.

    Raises:
        Missing: there is none.
    """
    documents = ran.documents
    if not documents:
        raise Missing(ran.why_missing())
    kind = TASKS.get(row.experiment, "span_corruption")
    if row.experiment.startswith("diagnostic"):
        kind = PUBLISHED_DIAGNOSTICS.get(row.subset or "", "")
    documents = [document for document in documents if document["task"]["kind"] == kind]
    if row.experiment.startswith("per_language"):  # the run's own task may be English alone
        documents.sort(key=lambda document: -len(document["models"][0]["rows"]))
    without = False
    for document in documents:
        for found in document["models"][0]["rows"]:
            if _is_subset(row.subset, found["subset"], ran, document, smoke):
                if found.get(number) is not None:
                    return found, document
                without = True
    if without:
        raise Missing("not timed" if number.startswith("ms_") else f"evaluated without its {number}")
    raise Missing(f"not evaluated on {row.subset}")


def _is_subset(published: str | None, ours: str, ran: Ran, document: Mapping[str, Any], smoke: bool) -> bool:
    rows = document["models"][0]["rows"]
    if published in AVERAGES or published == TOTAL:
        whole = ran.is_own_task(document) or len(rows) == ALL_LANGUAGES + 1
        return whole and (ours == TOTAL or (smoke and len(rows) == 1))
    if published in PUBLISHED_DIAGNOSTICS:
        return ours == "all"
    name = "English" if published and published.startswith("English") else published
    return ours == _CODES.get(name or "", name)


def timed_on(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a time depends on besides the model."""
    model = document["models"][0]
    return *(model[key] for key in ("device_name", "dtype", "threads")), document["batch_size"]


# --- analyses --------------------------------------------------------------------------------------------

ANALYSED = {
    "per_sample": "per_sample",
    "compute_savings": "compute",
    "diagnostic_deletion_patterns": "deletion_patterns",
}
"""Published experiments whose numbers an analysis finds."""


def _per_sample(row: Published, recipe: str | None, document: Mapping[str, Any]) -> Ours:
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


def _compute(row: Published, recipe: str | None, document: Mapping[str, Any]) -> Ours:
    name = {"macs": "paper_macs", "macs_relative_to_byt5": "paper_relative"}[row.metric]
    for point in document["curve"]:
        if abs(point["deletion_rate"] - float(row.setting["delta"])) < 1e-9:
            return Ours((point[name],), ())
    raise Missing("not on the curve")


def _deletion_patterns(row: Published, recipe: str | None, document: Mapping[str, Any]) -> Ours:
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


_FINDERS = {"per_sample": _per_sample, "compute": _compute, "deletion_patterns": _deletion_patterns}


def first_row(ran: Ran, number: str = "loss") -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A run's summary on its own task, the total or the only subset, with its document; None without."""
    for document in ran.documents:
        if ran.is_own_task(document):
            row = document["models"][0]["rows"][-1]
            if row.get(number) is not None:
                return row, document
    return None


def mean(values: Iterable[float | None]) -> float | None:
    """Of those there are."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
