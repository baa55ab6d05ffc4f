"""What analyses found, as the report's tables and marked texts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.results import TOTAL, Json
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.report.results import short_name
from mrt5cli.report.tables import MISSING, Table, interval, number, percent, tabulated
from mrt5cli.text import counted

Line = Mapping[str, Any]


def analysis_tables(name: str, document: Json) -> list[Table]:
    """What an analysis found."""
    return _ANALYSES[name](document)


def _of(key: str, show: Callable[..., str] = str, *how: Any) -> Callable[[Line], str]:
    """A column: a line's value of that key, as it is shown."""
    return lambda line: show(line[key], *how)


_MODEL = {"model": _of("recipe"), "seed": _of("seed")}
_DELETED = {"deleted, %": _of("deletion_rate", percent)}


def _chance(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else number(p, 3)


def _per_sample(document: Json) -> list[Table]:
    def r(model: Line) -> str:
        ends = None if model["low"] is None else (model["low"], model["high"])
        return number(model["r"], 3) + interval(ends, 3)

    title = f"Pearson's r over {document['samples']:,} of {document['available']:,} samples"
    table = tabulated(document["models"], {**_MODEL, "r [95 %]": r, "p": _of("p_value", _chance)}, title)
    means = document["families"].items()
    return [table.and_rows((f"mean of {name} (Fisher's z)", "", number(mean, 3), "") for name, mean in means)]


def _compute(document: Json) -> list[Table]:
    columns = {
        "deleted, %": _of("deletion_rate", percent, 0),
        "the paper's formula, MACs": _of("paper_macs", "{:,}".format),
        "the paper's formula, % left": _of("paper_relative", percent, 2),
        "exact, MACs": _of("macs", "{:,}".format),
        "exact, % left": _of("relative", percent, 2),
    }
    return [tabulated(document["curve"], columns, "Multiply-accumulates", folded=True, words=0)]


def _runtime(document: Json) -> list[Table]:
    columns = {
        **_MODEL,
        **_DELETED,
        "ms an example": _of("ms_per_example", number, 2),
        "less time, %": _of("decrease_percent", number, 1),
        "fewer MACs, %": _of("macs_decrease_percent", number, 1),
    }
    title = (
        f"Time on {document['device_name']}, {document['dtype']}, {counted(document['threads'], 'thread')}, "
        f"batches of {document['batch_size']}"
    )
    return [tabulated(document["runs"], columns, title)]


def _gate_placement(document: Json) -> list[Table]:
    columns = {
        "after layer": _of("after_layer"),
        **_MODEL,
        "loss, nats": _of("loss", number),
        "bits per byte": _of("bits_per_byte", number),
        **_DELETED,
        "less time, %": _of("decrease_percent", number, 1),
    }
    return [tabulated(document["runs"], columns, "By the gate's layer", words=2)]


def _softmax1(document: Json) -> list[Table]:
    lines: list[dict[str, Any]] = []
    gaps: dict[str, list[float]] = {}
    for pair in document["pairs"]:
        whole = (TOTAL, pair["differences"][-1]["subset"])
        for found in pair["differences"]:
            if found["measure"] == "loss" and found["subset"] in whole:
                gaps.setdefault(pair["recipe"], []).append(found["difference"])
                rates = (percent(pair[one]["deletion_rate"]) for one in ("softmax1", "softmax"))
                gap = number(found["difference"]) + interval((found["low"], found["high"]), 4)
                lines.append(pair | found | {"gap": gap, "rates": " / ".join(rates)})
    columns = {
        "softmax1": _of("recipe"),
        "softmax": _of("without"),
        "seed": _of("seed"),
        "loss": _of("first", number),
        "loss without": _of("second", number),
        "difference [95 %]": _of("gap"),
        "p": _of("p_value", _chance),
        "deleted, %": _of("rates"),
    }
    title = "Softmax1 minus softmax: intervals over test examples, the mean's over seeds"
    means = []
    for recipe, values in gaps.items():
        if len(values) > 1:
            mean = number(statistics.fmean(values)) + interval(interval_of_mean(values), 4)
            means.append((recipe, f"mean of {len(values)} seeds", "", "", "", mean, "", ""))
    return [tabulated(lines, columns, title, words=2).and_rows(means)]


def _deletion_patterns(document: Json) -> list[Table]:
    models = document["models"]
    columns = {
        **_MODEL,
        "examples": _of("examples", "{:,}".format),
        **_DELETED,
        "gate precision": _of("gate_precision", number, 3),
        "gate recall": _of("gate_recall", number, 3),
    }
    tables = [tabulated(models, columns, "What is deleted")]
    for key, title in (("letters", "kind of letter"), ("kinds", "kind of byte")):
        tables += _by_part(models, key, "kind", "rate", (title,), lambda kind: (kind.replace("_", " "),))
    several = [model for model in models if len(model["subsets"]) > 1]
    return tables + _by_part(several, "subsets", "subset", "deletion_rate", ("language", "script"), _language)


def _by_part(
    models: Sequence[Line],
    key: str,
    part: str,
    rate: str,
    headers: tuple[str, ...],
    words: Callable[[str], tuple[str, ...]],
) -> list[Table]:
    """What each model deletes of each part of its examples: a row a part, a column a model."""
    models = [model for model in models if model[key]]
    if not models:
        return []
    rates = [{line[part]: line[rate] for line in model[key]} for model in models]
    parts = dict.fromkeys(name for of in rates for name in of)
    lines = [(*words(name), *(percent(of.get(name)) for of in rates)) for name in parts]
    title = f"Deleted of each {headers[0]}, %"
    return [Table((*headers, *map(_labelled, models)), lines, title, folded=True, words=len(headers))]


def _language(code: str) -> tuple[str, str]:
    """Its name and script."""
    return (LANGUAGES[code].name, LANGUAGES[code].script) if code in LANGUAGES else (code, MISSING)


def _labelled(model: Line) -> str:
    return f"{short_name(model['recipe'])}, seed {model['seed']}"


_ANALYSES: Mapping[str, Callable[[Json], list[Table]]] = {
    "per_sample": _per_sample,
    "compute": _compute,
    "runtime": _runtime,
    "gate_placement": _gate_placement,
    "softmax1": _softmax1,
    "deletion_patterns": _deletion_patterns,
}


def examples_of(document: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Texts of a deletion-pattern analysis: whose, how much is deleted, and runs of (text, state)."""
    found = []
    for model in document["models"]:
        for shown in model["shown"]:
            where = f", {_language(shown['subset'])[0]}" if shown["subset"] else ""
            cut = ", the beginning" if shown["cut"] else ""
            label = f"{_labelled(model)}{where}: {percent(shown['deletion_rate'])} % deleted{cut}"
            found.append((label, shown["runs"]))
    return found
