"""A run's results as the `model-index` of its card, which the Hub lists next to the model.

The Hub shows the numbers of a task and dataset together, each by its name only. So every quality is
published with its deletion rate, every name states how bytes were deleted, and `args` repeat both for
programs that read a single number. Results of random rows, or of data other than the task's own, are left
out, because no dataset can be named for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from huggingface_hub import EvalResult
from pydantic import ValidationError

from mrt5cli.errors import UserError
from mrt5cli.metrics.catalog import METRICS, Metric
from mrt5cli.metrics.results import TOTAL, Json, Row, SavedEvaluation
from mrt5cli.recipe import Recipe, SpanCorruptionTask, Text2TextTask
from mrt5cli.recipe.tasks import SECTIONS, TaskBase, name_of
from mrt5cli.rundir import HUB_ID
from mrt5cli.tasks.base import build_task
from mrt5cli.tasks.tables import TableTask

if TYPE_CHECKING:
    from mrt5cli.recipe.tasks import TaskSection

PIPELINE = "text-generation"
"""The Hub's pipeline for text-to-text models; `text2text-generation` is only a tag by now."""
PIPELINES = {"xnli": "text-classification", "tydiqa": "question-answering", "xquad": "question-answering"}
"""The Hub's names of tasks; any other task is `PIPELINE`."""
HUB_METRICS = {name: name for name in ("accuracy", "exact_match", "f1", "cer", "wer", "chrf")}
HUB_METRICS |= {"bleu": "sacrebleu"}
"""Our names to ids of equivalent Hub metrics. Shares are 0 to 1 there, too."""
ELSEWHERE = {
    "embedded": "the English documentation inside Python",
    "files": "local files",
    "letters": "generated letter strings",
    "mixture": "all sources of a mixture",
}
"""Names of data that is not on the Hub."""
DELETED, CONTROL = "deletion_rate", "source_removed_loss"


class Result(NamedTuple):
    """A row of an evaluation.

    Attributes:
        conditions: conditions that distinguish it from other results, besides soft or hard deletion.
    """

    evaluation: SavedEvaluation
    conditions: list[str]
    row: Row


def eval_results(
    results: Sequence[Result], metrics: Sequence[Metric], recipe: Recipe | None, *, gates: bool
) -> list[EvalResult]:
    """The results for a card's metadata: for each row, its deletion rate and then its quality.

    Args:
        metrics: metrics of the card; the loss without a source is shown in the card only.
        recipe: recipe of the run, whose task an evaluation has unless it records another.
        gates: whether the model has a gate, which deletes softly or hard.
    """
    found: list[EvalResult] = []
    rated = [metric for metric in metrics if metric.name not in (DELETED, CONTROL)]
    for one, conditions, row in results:
        how = [f"{one.deletion} deletion"] if gates else []
        dataset = None if one.data is not None else _dataset(one, _section(one, recipe), row.subset)
        rate = row.number(DELETED)
        if dataset is None or rate is None:
            continue
        part = [] if row.subset in ("all", dataset["dataset_config"]) else [row.subset]
        arguments = {"deletion": one.deletion} if gates else {}
        for metric in (METRICS[DELETED], *rated):
            if (value := row.number(metric.name)) is None:
                continue
            worded = metric.on(one.task)
            details = ["nats"] * (metric.unit == "nats") + part + how + conditions
            result = EvalResult(
                task_type=PIPELINES.get(one.task, PIPELINE),
                task_name=one.task.replace("_", " "),
                **dataset,
                metric_type=_type(worded),
                metric_name=worded.title + (f" ({', '.join(details)})" if details else ""),
                metric_value=round(value, 4),
                metric_args={**arguments, DELETED: round(rate, 4), "examples": row.examples},
            )
            if result not in found:  # evaluations at several thresholds repeat the model's own
                found.append(result)
    return found


def hub_metrics(results: Sequence[EvalResult]) -> list[str]:
    """Names of the results' metrics that are the Hub's own."""
    return [
        name for name in dict.fromkeys(one.metric_type for one in results) if name in HUB_METRICS.values()
    ]


def _type(metric: Metric) -> str:
    """The Hub's id of a metric, else our name; for a local script, never its path."""
    if metric.title in HUB_METRICS:  # in the task's wording
        return HUB_METRICS[metric.title]
    return HUB_METRICS.get(metric.name, metric.name if metric.name in METRICS else metric.title)


def _section(one: SavedEvaluation, recipe: Recipe | None) -> TaskBase | None:
    """The evaluated task's section; None if this version does not know the task or its settings."""
    if not one.settings:
        return recipe.task if recipe is not None and recipe.task.kind == one.task else None
    kind = next((section for section in SECTIONS if one.task in section.kinds()), None)
    try:
        return None if kind is None else kind.model_validate_json(json.dumps(one.settings))
    except ValidationError:
        return None


def _dataset(one: SavedEvaluation, section: TaskBase | None, subset: str) -> Json | None:
    """The dataset of a row, in the fields of `EvalResult`; None for random rows, or if unknown."""
    if section is None:
        return None
    sources, called = section.every_source, subset.partition("/")[0]
    own = sources if len(sources) == 1 else [source for source in sources if name_of(source) == called]
    source = own[0] if own else None
    kind = source.kind if source is not None else "mixture" if sources else "letters"
    if kind == "generated":
        return None
    name, configuration, split = f"mrt5-{one.task}-{kind}", None, one.split
    if kind == "hub":
        try:
            name, configuration, split = _place(one, section, source, subset)
        except UserError:  # a task that can no longer be built
            return None
        if not HUB_ID.fullmatch(name):
            return None
    return {
        "dataset_type": name,
        "dataset_name": ELSEWHERE.get(kind, name),
        "dataset_config": configuration,
        "dataset_split": split,
        "dataset_revision": one.commits.get(name),
    }


def _place(one: SavedEvaluation, section: TaskBase, source: Any, subset: str) -> tuple[str, str | None, str]:
    """A Hub dataset, its configuration and its split, as arguments of `load_dataset`."""
    if isinstance(section, Text2TextTask):
        return source.name, source.configuration, getattr(source.splits, one.split) or one.split
    if isinstance(section, SpanCorruptionTask):
        languages = source.languages if getattr(source, "languages", None) else section.languages
        last = subset.rpartition("/")[2]
        code = last if last in languages else languages[0] if len(languages) == 1 else None
        return source.name, source.configurations.get(code, code), one.split
    task = build_task(cast("TaskSection", section))
    if not isinstance(task, TableTask):  # custom code, which reads in its own way
        return source.name or "", None, one.split
    name, configuration, split, _ = task.hub_split(one.split, subset)
    # All languages together are not a configuration.
    return name, None if configuration and configuration.endswith(TOTAL) else configuration, split
