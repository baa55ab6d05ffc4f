"""The catalog of metrics, measured or published: name, titles, unit, direction.

A built-in metric is an entry here, a field of its name in `results.Row`, and the function that counts it; a
custom one is added by `register`, and its numbers are in `Row.others`. Tables, model cards, verdicts and the
recipe's `training.best_metric` iterate this list. Importing it is cheap.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from mrt5cli import own_code
from mrt5cli.text import listed, number

if TYPE_CHECKING:
    import evaluate


Unit = Literal["share", "number", "nats", "ms", "count"]
Better = Literal["lower", "higher"]
Scores = Literal["right", "graded", "summed"]


@dataclass(frozen=True)
class Metric:
    """The description of one metric.

    Attributes:
        name: field of `results.Row`, or key of its `others`.
        title: name in sentences.
        header: header of a narrow column, with line breaks; empty if it is not shown in one.
        unit: unit of the number; a "share" is 0 to 1 and printed in percent.
        digits: decimals to print.
        better: the better direction; None if neither is better.
        published: name in `published.yaml`, or empty.
        chooses: whether a recipe may keep the weights that are best by it.
        in_cards: whether model cards show it. Lengths repeat the deletion rate; times are a machine's.
        answers: whether it scores generated answers; others are measured given the true targets.
        scores: kind of a measure that a task may have: a share of "right" outcomes, a mean of "graded" scores
            between 0 and 1, or a function of statistics "summed" over examples. None for numbers that every
            evaluation has besides the measures, such as lengths and losses.
        bounds: smallest and largest possible number of a row.
    """

    name: str
    title: str
    header: str = ""
    unit: Unit = "number"
    digits: int = 2
    better: Better | None = None
    published: str = ""
    chooses: bool = False
    in_cards: bool = True
    answers: bool = False
    scores: Scores | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def factor(self) -> float:
        """Factor from a row's number to the printed and published one."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def printed_bounds(self) -> tuple[float, float]:
        """The bounds of printed numbers."""
        low, high = self.bounds
        return self.factor * low, self.factor * high

    def text(self, value: float | None, digits: int | None = None) -> str:
        """A row's number as the text of a table's cell."""
        scaled = None if value is None else self.factor * value
        return number(scaled, self.digits if digits is None else digits)

    @property
    def column(self) -> str:
        """The header of a narrow column, with its unit."""
        if self.unit != "share":
            return self.header
        return self.header + (" %" if "\n" in self.header else "\n%")

    @property
    def heading(self) -> str:
        """The title, with its unit."""
        sign = {"share": "%", "nats": "nats"}.get(self.unit)
        return f"{self.title}, {sign}" if sign else self.title

    def on(self, task: str) -> Metric:
        """The metric with a task's wording: on XNLI, whose targets are labels, it is plain accuracy."""
        labels = task == "xnli" and self.name == WHOLE_TARGETS
        return replace(self, title="accuracy", header="acc.") if labels else self

    def load(self, **options: object) -> evaluate.Metric:
        """The metric as an `evaluate.Metric`, without a network.

        Its `compute` accepts predictions and references, which are

        - for token and sequence accuracy: rows of predicted and true ids; -100 and padding are ignored;
        - for bits per byte: the summed cross-entropy in nats of a row, a batch or a shard, and its number of
          target tokens;
        - for the deletion rate: rows of gate values (`scale` to 0) and input ids, and a `threshold`;
        - for metrics of answers: answers and the accepted texts of each, a `language` and, for exact match
          and F1, a `rule`, as in `answers.normalise`.

        It returns the number, None if nothing was counted, and the `count` that it is over.

        Args:
            options: options of `evaluate.Metric`, such as `cache_dir`.

        Raises:
            ValueError: the metric, such as a time, is not counted from such pairs.
        """
        from mrt5cli.metrics.evaluate_metrics import CountedMetric

        return CountedMetric(self.name, **options)


A_SHARE, POSITIVE = (0.0, 1.0), (0.0, math.inf)
_share = partial(Metric, unit="share", better="higher", bounds=A_SHARE)
_right = partial(_share, scores="right", chooses=True)
_answers = partial(Metric, scores="summed", answers=True, chooses=True)
_not_in_cards = partial(Metric, in_cards=False, bounds=POSITIVE)
_loss = partial(Metric, unit="nats", digits=4, bounds=POSITIVE)
_of_gate = partial(Metric, digits=3, better="higher", bounds=A_SHARE)

MEASURED = (
    _not_in_cards("examples", "test examples", "examples", "count", 0, published="num_examples"),
    Metric("deletion_rate", "deleted", "deleted", "share", 1, published="seq_len_reduction", bounds=A_SHARE),
    _loss("loss", "cross-entropy", "loss", better="lower", published="test_cross_entropy", chooses=True),
    _loss("source_removed_loss", "cross-entropy without source", "source\nremoved"),
    Metric(
        *("bits_per_byte", "bits per byte", "bits/\nbyte", "number", 3, "lower", "bits_per_byte"),
        bounds=POSITIVE,
    ),
    _not_in_cards("kept_length", "kept length", "kept\nmean", digits=1),
    _not_in_cards("new_length", "new length", "kept\nlongest", digits=1, published="new_seq_len"),
    _right("token_accuracy", "token accuracy", "token\nacc.", published="token_accuracy"),
    _right("sequence_accuracy", "sequence accuracy", "seq.\nacc.", published="sequence_accuracy"),
    _right("accuracy", "accuracy among choices", "choice\nacc."),
    _right("exact_match", "exact match", "EM", published="exact_match", answers=True),
    _share("f1", "F1", "F1", published="f1", chooses=True, answers=True, scores="graded"),
    _answers("cer", "character error rate", "CER", "share", better="lower"),
    _answers("wer", "word error rate", "WER", "share", better="lower"),
    _answers("chrf", "chrF", "chrF", better="higher"),
    _answers("bleu", "BLEU", "BLEU", better="higher"),
    _of_gate("gate_precision", "gate precision", "gate\nprec."),
    _of_gate("gate_recall", "gate recall", "gate\nrecall"),
    _not_in_cards(
        "ms_per_example", "ms an example", "ms per\nexample", "ms", 2, "lower", "runtime_per_example"
    ),
)
"""The metrics that an evaluation measures, in column order."""

PUBLISHED_ONLY = (
    Metric("eval_seconds", "seconds in all", better="lower", published="total_eval_time"),
    Metric("time_saved", "less time, %", better="higher", published="runtime_decrease_vs_byt5"),
    Metric("correlation", "Pearson r", published="pearson_r"),
    Metric("mean_correlation", "mean r (Fisher)", published="fisher_average_r"),
    Metric("macs", "MACs", published="macs"),
    Metric("relative_macs", "MACs, share", published="macs_relative_to_byt5"),
    Metric("highest_deletion_rate", "highest reduction, %", published="max_seq_len_reduction"),
    Metric("parameters", "parameters", published="total_parameters"),
    Metric("gate_parameters", "the gate's parameters", published="delete_gate_parameters"),
    Metric("deletion_rate_of_a_kind", "deleted, %: ", published="deletion_rate"),
)
"""Metrics of the paper and of analyses of several runs only."""

METRICS = {metric.name: metric for metric in MEASURED}
"""The metrics that an evaluation measures, custom ones included once they are registered, by name."""

BY_PUBLISHED_NAME = {metric.published: metric for metric in (*MEASURED, *PUBLISHED_ONLY) if metric.published}
"""Published metrics by name. The `deletion_rate` published is of a kind of letter, named in brackets."""

TOKENS = "token_accuracy"
"""The metric of single target tokens."""
WHOLE_TARGETS = "sequence_accuracy"
"""The metric of targets that are right throughout: for tasks without measures of their own."""

ACCURACY = "accuracy"
"""Whether the likeliest of the task's choices is right, which needs a forward pass per choice."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NEAR_OURS = ("bleurt",)
"""Metrics of `evaluate.load` whose names look like misspellings of ours."""


def register(metric: Metric, score: Callable[[str, Sequence[str]], float]) -> None:
    """Add a custom metric of generated answers; its number is the mean of the answers' scores.

    Args:
        score: called with an answer and its accepted texts, at least one, the target first; returns a finite
            number.

    Raises:
        ValueError: a metric of that name exists already.
    """
    from mrt5cli.metrics.scoring import OWN

    if metric.name in METRICS:
        whose = own_code.brought_by(getattr(OWN.get(metric.name), "__module__", ""))
        raise ValueError(f"a metric {metric.name!r} exists already{whose}")
    METRICS[metric.name] = replace(metric, answers=True, scores="summed", chooses=metric.better is not None)
    OWN[metric.name] = score


def measures() -> list[str]:
    """Names of the metrics that a task may be measured by, registered ones included."""
    return [metric.name for metric in METRICS.values() if metric.scores is not None]


def choosers() -> list[str]:
    """Names of the metrics that a recipe may keep the best weights by."""
    return [metric.name for metric in METRICS.values() if metric.chooses]


def misfit(name: str) -> str | None:
    """What is wrong with the name of a task's measure; None for `measures` and for what may be loaded.

    Nothing is loaded here: whether a metric to be loaded exists is checked when an evaluation starts.
    """
    ours = measures()
    if name in ours:
        return None
    if name in METRICS:
        return f"{name} is always measured and cannot be a task's metric; use {listed(ours, len(ours))}"
    if ("metric", name) in own_code.FAILED:
        return own_code.FAILED["metric", name]
    if is_path(name):
        return None
    if not _HUB_NAME.fullmatch(name):
        return (
            f"{name!r} is neither one of {listed(ours, len(ours))}, nor a name or a path for `evaluate.load`"
        )
    near = [one for one in ours if METRICS[one].header.lower() == name.lower()]  # "EM"
    near = near or difflib.get_close_matches(name.lower(), ours, n=1, cutoff=0.75)
    return f"{name!r} is not a metric; did you mean {near[0]}?" if near and name not in _NEAR_OURS else None


def is_path(name: str) -> bool:
    """Whether a measure is the path of a script for `evaluate.load`, or of its folder."""
    return name.endswith(".py") or name.startswith((".", "/", "~")) or name.count("/") > 1


def short(name: str) -> str:
    """The name of a loaded metric's numbers: short, unless the catalog has that name."""
    own = PurePath(name).stem if is_path(name) else name.rpartition("/")[2]
    return name if own in METRICS else own


def metric_of(name: str) -> Metric:
    """The catalog's metric, or a minimal description of a loaded metric or one of its numbers."""
    if name in METRICS:
        return METRICS[name]
    title = short(name)
    return Metric(name, title, title.replace(".", ".\n"), digits=4, answers=True)


def is_measured(name: str, measures: Sequence[str], choices: bool) -> bool:
    """Whether evaluations of a task with these measures, or with choices, have a number of the catalog."""
    return name in measures or (choices if name == ACCURACY else not METRICS[name].answers)


def generates(names: Sequence[str]) -> bool:
    """Whether one of these measures needs generated answers, which are slow."""
    return any(metric_of(name).answers for name in names)
