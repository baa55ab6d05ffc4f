"""Every number that is measured or was published: its name, its words, its unit, which way is better.

A new metric is one entry here, the field of its name in `results.Row`, and the function that counts it.
Tables, model cards, verdicts and the recipe's `training.best_metric` ask this list. It imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mrt5cli.text import number

Unit = Literal["share", "number", "nats", "ms", "count"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One of them.

    Attributes:
        name: of the field of `results.Row`; of what the paper alone has, most often its published name.
        title: in words.
        header: of a narrow column, its lines parted by line breaks; of what no such column has, empty.
        unit: a "share" is 0 to 1 and printed in percent; the others are printed as they are.
        digits: decimals that are printed.
        better: which direction is; None where neither.
        published: its names in `published.yaml`.
        chooses: a recipe may keep the weights that are best by it.
        in_cards: model cards show it. Lengths repeat the deletion rate, and times belong to a machine.
        answers: the function that scores one generated answer by it, as "module:name"; empty for what is
            measured given the true targets.
        graded: a mean of scores between 0 and 1, and not of what is right or wrong.
        implementation: its `evaluate.Metric`, as "module:name"; empty where there is none.
    """

    name: str
    title: str
    header: str = ""
    unit: Unit = "number"
    digits: int = 2
    better: Better | None = None
    published: tuple[str, ...] = ()
    chooses: bool = False
    in_cards: bool = False
    answers: str = ""
    graded: bool = False
    implementation: str = ""

    @property
    def factor(self) -> float:
        """From a row's number to what is printed and published."""
        return 100.0 if self.unit == "share" else 1.0

    def text(self, value: float | None, digits: int | None = None) -> str:
        """A row's number in a cell of a terminal's table."""
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

    def score(self, answer: str, accepted: tuple[str, ...], *how: Any) -> float:
        """How good one generated answer is by it; see `answers.f1`."""
        return float(_named(self.answers)(answer, accepted, *how))

    def load(self) -> Any:
        """Its `evaluate.Metric`, a class; importing it takes seconds."""
        return _named(self.implementation)


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


_OWN = "mrt5cli.metrics.evaluate_metrics"
_ANSWERS = "mrt5cli.metrics.answers"

MEASURED = (
    Metric("examples", "test examples", "examples", "count", 0, published=("num_examples",)),
    Metric(
        "deletion_rate",
        "deleted",
        "deleted",
        "share",
        1,
        published=("seq_len_reduction",),
        in_cards=True,
        implementation=f"{_OWN}:DeletionRate",
    ),
    Metric(
        "loss",
        "cross-entropy",
        "loss",
        "nats",
        4,
        "lower",
        ("test_cross_entropy",),
        chooses=True,
        in_cards=True,
    ),
    Metric(
        "source_removed_loss", "cross-entropy without source", "source\nremoved", "nats", 4, in_cards=True
    ),
    Metric(
        "bits_per_byte",
        "bits per byte",
        "bits/\nbyte",
        digits=3,
        better="lower",
        published=("bits_per_byte",),
        in_cards=True,
        implementation=f"{_OWN}:BitsPerByte",
    ),
    Metric("kept_length", "kept length", "kept\nmean", digits=1),
    Metric("new_length", "new length", "kept\nlongest", digits=1, published=("new_seq_len",)),
    Metric(
        "token_accuracy",
        "token accuracy",
        "token\nacc.",
        "share",
        2,
        "higher",
        ("token_accuracy",),
        chooses=True,
        in_cards=True,
        implementation=f"{_OWN}:TokenAccuracy",
    ),
    Metric(
        "sequence_accuracy",
        "sequence accuracy",
        "seq.\nacc.",
        "share",
        2,
        "higher",
        ("sequence_accuracy",),
        chooses=True,
        in_cards=True,
        implementation=f"{_OWN}:SequenceAccuracy",
    ),
    Metric("constrained_accuracy", "accuracy among choices", "constr.", "share", 2, "higher", in_cards=True),
    Metric(
        "exact_match",
        "exact match",
        "EM",
        "share",
        2,
        "higher",
        ("exact_match",),
        chooses=True,
        in_cards=True,
        answers=f"{_ANSWERS}:exact_match",
        implementation=f"{_OWN}:ExactMatch",
    ),
    Metric(
        "f1",
        "F1",
        "F1",
        "share",
        2,
        "higher",
        ("f1",),
        chooses=True,
        in_cards=True,
        answers=f"{_ANSWERS}:f1",
        graded=True,
        implementation=f"{_OWN}:F1",
    ),
    Metric("gate_precision", "gate precision", "gate\nprec.", digits=3, better="higher", in_cards=True),
    Metric("gate_recall", "gate recall", "gate\nrecall", digits=3, better="higher", in_cards=True),
    Metric(
        "ms_per_example",
        "ms an example",
        "ms per\nexample",
        "ms",
        better="lower",
        published=("runtime_per_example",),
    ),
)
"""What an evaluation measures, in the order of columns."""

PUBLISHED_ONLY = (
    Metric("total_eval_time", "seconds in all", better="lower"),
    Metric("runtime_decrease_vs_byt5", "less time, %", better="higher"),
    Metric("pearson_r", "Pearson r"),
    Metric("fisher_average_r", "mean r (Fisher)"),
    Metric("macs", "MACs"),
    Metric("macs_relative_to_byt5", "MACs, share"),
    Metric("max_seq_len_reduction", "highest reduction, %"),
    Metric("total_parameters", "parameters"),
    Metric("delete_gate_parameters", "the gate's parameters"),
    Metric("deletion_rate_of_a_kind", "deleted, %: ", published=("deletion_rate",)),
)
"""What only the paper, and an analysis of several runs, has a number of."""

METRICS = {metric.name: metric for metric in MEASURED}
"""What an evaluation measures, by name."""

BY_PUBLISHED_NAME = {
    name: metric
    for metric in (*MEASURED, *PUBLISHED_ONLY)
    for name in metric.published or ((metric.name,) if metric in PUBLISHED_ONLY else ())
}
"""All that was published. A published deletion rate is one of a kind of letter, which follows in brackets."""

WHOLE_TARGETS = "sequence_accuracy"
"""The one of targets that are right throughout: for tasks that bring no measure of their own."""

ANSWERED = tuple(metric for metric in MEASURED if metric.answers)
"""Those of answers that a model has to generate, which takes far longer than scoring given targets."""

if TYPE_CHECKING:
    BestMetric = str
else:
    BestMetric = Literal[tuple(metric.name for metric in MEASURED if metric.chooses)]
"""What a recipe's `training.best_metric` may be."""
