"""What analyses found, as the report's tables and marked texts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.results import TOTAL
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.report.tables import MISSING, Table, interval, number, percent
from mrt5cli.text import counted


@dataclass(frozen=True)
class Example:
    """A text with what is deleted from it.

    Attributes:
        label: whose, and how much.
        runs: (text, state), see `marked_text`.
    """

    label: str
    runs: list[tuple[str, str]] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """With deleted characters in [-...-], on one line."""
        parts = (f"[-{text}-]" if state == "deleted" else text for text, state in self.runs)
        return "".join(parts).replace("\n", "")


def analysis_tables(name: str, document: Mapping[str, Any]) -> list[Table]:
    """What an analysis found."""
    return _ANALYSES[name](document)


def _per_sample(document: Mapping[str, Any]) -> list[Table]:
    lines = []
    for model in document["models"]:
        ends = None if model["low"] is None else (model["low"], model["high"])
        p = model["p_value"]
        chance = MISSING if p is None else "< 0.001" if p < 0.001 else number(p, 3)
        lines.append((model["recipe"], str(model["seed"]), number(model["r"], 3) + interval(ends, 3), chance))
    for family, mean in document["families"].items():
        lines.append((f"mean of {family} (Fisher's z)", "", number(mean, 3), ""))
    title = f"Pearson's r over {document['samples']:,} of {document['available']:,} samples"
    return [Table(("model", "seed", "r [95 %]", "p"), lines, title, words=1)]


def _compute(document: Mapping[str, Any]) -> list[Table]:
    lines = [
        (
            percent(point["deletion_rate"], 0),
            f"{point['paper_macs']:,}",
            percent(point["paper_relative"], 2),
            f"{point['macs']:,}",
            percent(point["relative"], 2),
        )
        for point in document["curve"]
    ]
    headers = ("deleted, %", "the paper's formula, MACs", "%", "exact, MACs", "%")
    return [Table(headers, lines, "Multiply-accumulates", folded=True, words=0)]


def _runtime(document: Mapping[str, Any]) -> list[Table]:
    lines = [
        (
            run["recipe"],
            str(run["seed"]),
            percent(run["deletion_rate"]),
            number(run["ms_per_example"], 2),
            number(run["decrease_percent"], 1),
            number(run["macs_decrease_percent"], 1),
        )
        for run in document["runs"]
    ]
    headers = ("model", "seed", "deleted, %", "ms an example", "less time, %", "fewer MACs, %")
    title = (
        f"Time on {document['device_name']}, {document['dtype']}, {counted(document['threads'], 'thread')}, "
        f"batches of {document['batch_size']}"
    )
    return [Table(headers, lines, title)]


def _gate_placement(document: Mapping[str, Any]) -> list[Table]:
    lines = [
        (
            str(run["after_layer"]),
            run["recipe"],
            str(run["seed"]),
            number(run["loss"]),
            number(run["bits_per_byte"]),
            percent(run["deletion_rate"]),
            number(run["decrease_percent"], 1),
        )
        for run in document["runs"]
    ]
    headers = ("after layer", "model", "seed", "loss, nats", "bits per byte", "deleted, %", "less time, %")
    return [Table(headers, lines, "By the gate's layer", words=2)]


def _softmax1(document: Mapping[str, Any]) -> list[Table]:
    lines = []
    gaps: dict[str, list[float]] = {}
    for pair in document["pairs"]:
        for found in pair["differences"]:
            if found["measure"] != "loss":
                continue
            last = found["subset"] in (TOTAL, pair["differences"][-1]["subset"])
            if not last:
                continue
            gaps.setdefault(pair["recipe"], []).append(found["difference"])
            p = found["p_value"]
            lines.append(
                (
                    pair["recipe"],
                    pair["without"],
                    str(pair["seed"]),
                    number(found["first"]),
                    number(found["second"]),
                    number(found["difference"]) + interval((found["low"], found["high"]), 4),
                    "< 0.001" if p < 0.001 else number(p, 3),
                    " / ".join(percent(pair[one]["deletion_rate"]) for one in ("softmax1", "softmax")),
                )
            )
    for recipe, values in gaps.items():
        if len(values) > 1:
            told = number(statistics.fmean(values)) + interval(interval_of_mean(values), 4)
            lines.append((recipe, f"mean of {len(values)} seeds", "", "", "", told, "", ""))
    headers = (
        "softmax1", "softmax", "seed", "loss", "loss", "difference [95 %]", "p", "deleted, %"
    )  # fmt: skip
    title = "Softmax1 minus softmax: intervals over test examples, the mean's over seeds"
    return [Table(headers, lines, title, words=2)]


def _deletion_patterns(document: Mapping[str, Any]) -> list[Table]:
    models = document["models"]
    lines = [
        (
            model["recipe"],
            str(model["seed"]),
            f"{model['examples']:,}",
            percent(model["deletion_rate"]),
            number(model["gate_precision"], 3),
            number(model["gate_recall"], 3),
        )
        for model in models
    ]
    headers = ("model", "seed", "examples", "deleted, %", "gate precision", "gate recall")
    tables = [Table(headers, lines, "What is deleted")]
    for key, title in (("letters", "kind of letter"), ("kinds", "kind of byte")):
        of = [model for model in models if model[key]]
        if of:
            tables.append(_by_kind(of, key, title))
    languages = [model for model in models if len(model["subsets"]) > 1]
    if languages:
        tables.append(_by_language(languages))
    return tables


def _by_kind(models: Sequence[Mapping[str, Any]], key: str, title: str) -> Table:
    kinds = list(dict.fromkeys(line["kind"] for model in models for line in model[key]))
    rates = [{line["kind"]: line for line in model[key]} for model in models]
    lines = [
        (
            kind.replace("_", " "),
            *(percent(rate[kind]["rate"]) if kind in rate else MISSING for rate in rates),
        )
        for kind in kinds
    ]
    headers = (title, *(_labelled(model) for model in models))
    return Table(headers, lines, f"Deleted of each {title}, %", folded=True)


def _by_language(models: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(line["subset"] for model in models for line in model["subsets"]))
    rates = [{line["subset"]: line["deletion_rate"] for line in model["subsets"]} for model in models]
    lines = [
        (
            LANGUAGES[name].name if name in LANGUAGES else name,
            LANGUAGES[name].script if name in LANGUAGES else MISSING,
            *(percent(rate.get(name)) for rate in rates),
        )
        for name in names
    ]
    headers = ("language", "script", *(_labelled(model) for model in models))
    return Table(headers, lines, "Deleted of each language, %", folded=True, words=2)


def _labelled(model: Mapping[str, Any]) -> str:
    return f"{model['recipe'].rpartition('/')[2]}, seed {model['seed']}"


_ANALYSES: Mapping[str, Callable[[Mapping[str, Any]], list[Table]]] = {
    "per_sample": _per_sample,
    "compute": _compute,
    "runtime": _runtime,
    "gate_placement": _gate_placement,
    "softmax1": _softmax1,
    "deletion_patterns": _deletion_patterns,
}


def examples_of(document: Mapping[str, Any]) -> list[Example]:
    """Texts of a deletion-pattern analysis, with what each model deletes from them."""
    return [
        Example(
            f"{_labelled(model)}{f', {_language(shown)}' if shown['subset'] else ''}: "
            f"{percent(shown['deletion_rate'])} % deleted{', the beginning' if shown['cut'] else ''}",
            [(text, state) for text, state in shown["runs"]],
        )
        for model in document["models"]
        for shown in model["shown"]
    ]


def _language(shown: Mapping[str, Any]) -> str:
    name = shown["subset"]
    return LANGUAGES[name].name if name in LANGUAGES else str(name)
