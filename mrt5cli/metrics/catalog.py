"""Every number that is measured or was published: its name, its words, its unit, which way is better.

A new metric is one entry here, the field of its name in `results.Row`, and the function that counts it.
Tables, model cards, verdicts and the recipe's `training.best_metric` iterate this list. It imports nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from mrt5cli.text import number

if TYPE_CHECKING:
    import evaluate

    from mrt5cli.metrics.answers import Normalization

Unit = Literal["share", "number", "nats", "ms", "count"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One of them.

    Attributes:
        name: of the field of `results.Row`.
        title: in words.
        header: of a narrow column, its lines parted by line breaks; of what no such column has, empty.
        unit: a "share" is 0 to 1 and printed in percent; the others are printed as they are.
        digits: decimals that are printed.
        better: which direction is; None where neither.
        published: its name in `published.yaml`, or empty.
        chooses: a recipe may keep the weights that are best by it.
        in_cards: model cards show it. Lengths repeat the deletion rate, and times belong to a machine.
        answers: scores a generated answer, by the function of its name in `answers`, and is not measured
            given the true targets.
        graded: a mean of scores between 0 and 1, and not of what is right or wrong.
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
    graded: bool = False

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

    def on(self, task: str) -> Metric:
        """The metric as a task words it: on XNLI, whose targets are labels, it is plain accuracy."""
        labels = task == "xnli" and self.name == WHOLE_TARGETS
        return replace(self, title="accuracy", header="acc.") if labels else self

    def score(
        self, answer: str, accepted: Sequence[str], rule: Normalization = "squad", language: str | None = None
    ) -> float:
        """How good one generated answer is by it; see `answers.f1`."""
        from mrt5cli.metrics import answers

        return float(getattr(answers, self.name)(answer, accepted, rule, language))

    def load(self, **options: object) -> evaluate.Metric:
        """The metric as an `evaluate.Metric`, without a network.

        Its `compute` takes predictions and references, which are for

        - token and sequence accuracy: rows of predicted and of true ids; -100 and padding do not count;
        - bits per byte: the summed cross-entropy in nats of a row, a batch or a shard, and its number of
          target tokens;
        - deletion rate: rows of gate values (`scale` to 0) and of input ids, and a `threshold`;
        - exact match and F1: answers and the texts accepted for each, and a `rule` and a `language` as in
          `answers.normalise`.

        It returns the number, which is None over nothing, and the `count` of what it is over.

        Args:
            options: of `evaluate.Metric`, such as `cache_dir`.

        Raises:
            ValueError: it is not counted from such pairs, as a time is not.
        """
        from mrt5cli.metrics.evaluate_metrics import COUNTED, CountedMetric

        if self.name not in COUNTED:
            raise ValueError(f"{self.name} is not counted from pairs, as {', '.join(COUNTED)} are")
        return CountedMetric(self.name, **options)


_share = partial(Metric, unit="share", better="higher")
_not_in_cards = partial(Metric, in_cards=False)

MEASURED = (
    _not_in_cards("examples", "test examples", "examples", "count", 0, published="num_examples"),
    Metric("deletion_rate", "deleted", "deleted", "share", 1, published="seq_len_reduction"),
    Metric("loss", "cross-entropy", "loss", "nats", 4, "lower", "test_cross_entropy", chooses=True),
    Metric("source_removed_loss", "cross-entropy without source", "source\nremoved", "nats", 4),
    Metric("bits_per_byte", "bits per byte", "bits/\nbyte", "number", 3, "lower", "bits_per_byte"),
    _not_in_cards("kept_length", "kept length", "kept\nmean", digits=1),
    _not_in_cards("new_length", "new length", "kept\nlongest", digits=1, published="new_seq_len"),
    _share("token_accuracy", "token accuracy", "token\nacc.", published="token_accuracy", chooses=True),
    _share(
        "sequence_accuracy", "sequence accuracy", "seq.\nacc.", published="sequence_accuracy", chooses=True
    ),
    _share("constrained_accuracy", "accuracy among choices", "constr."),
    _share("exact_match", "exact match", "EM", published="exact_match", chooses=True, answers=True),
    _share("f1", "F1", "F1", published="f1", chooses=True, answers=True, graded=True),
    Metric("gate_precision", "gate precision", "gate\nprec.", digits=3, better="higher"),
    Metric("gate_recall", "gate recall", "gate\nrecall", digits=3, better="higher"),
    _not_in_cards(
        "ms_per_example", "ms an example", "ms per\nexample", "ms", 2, "lower", "runtime_per_example"
    ),
)
"""What an evaluation measures, in the order of columns."""

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
"""What only the paper, and an analysis of several runs, has a number of."""

METRICS = {metric.name: metric for metric in MEASURED}
"""What an evaluation measures, by name."""

BY_PUBLISHED_NAME = {metric.published: metric for metric in (*MEASURED, *PUBLISHED_ONLY) if metric.published}
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
