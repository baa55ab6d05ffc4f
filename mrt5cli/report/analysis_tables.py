"""Tables and marked texts of analyses; `analysis_tables.yaml` specifies the columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from statistics import fmean

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.results import TOTAL, Json
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.report.results import short_name
from mrt5cli.report.tables import MISSING, Table, in_powers, interval, number, percent
from mrt5cli.text import counted


@cache
def _specified() -> Mapping[str, Json]:
    import yaml

    text = (resources.files("mrt5cli.report") / "analysis_tables.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def analysis_tables(name: str, document: Json) -> list[Table]:
    """The tables of an analysis's document."""
    if name == "softmax1":
        document = document | {"losses": list(_losses(document))}
    spec, lines = _specified()[name], document[_specified()[name]["lines"]]
    columns = [_column(lines, *column) for column in spec["columns"].values()]
    rows: list[tuple[str, ...]] = list(zip(*columns, strict=True))
    title = spec["title"].format(**document | {"threads": counted(document.get("threads") or 0, "thread")})
    table = Table(tuple(spec["columns"]), rows + _means(name, document), title, **spec.get("how", {}))
    if name != "deletion_patterns":
        return [table]
    # Each task has its own kinds of letters; most cells of a table of several tasks would be empty.
    by_task: dict[str, list[Json]] = {}
    for model in document["models"]:
        by_task.setdefault(model["task"], []).append(model)
    of = "" if len(by_task) < 2 else " of {}"
    return [table, *(part for task, models in by_task.items() for part in _parts(models, of.format(task)))]


def _column(
    lines: Sequence[Json], key: str, show: str = "", digits: int | None = None, of: str = ""
) -> list[str]:
    """The cells of a column: the values of `key`, formatted; `of` is the suffix of the interval's keys."""
    # An older version of the toolkit may have written a document without the key.
    values = [line.get(key) for line in lines]
    if not show:
        return [str(value) for value in values]
    if show == "count":
        return [f"{value:,}" for value in values]
    if show == "percent":
        return [percent(value, 1 if digits is None else digits) for value in values]
    if show == "chance":
        return ["< 0.001" if value is not None and value < 0.001 else number(value, 3) for value in values]
    decimals = 4 if digits is None else digits
    powers = in_powers(values, decimals)
    shown = [number(value, decimals, powers) for value in values]
    if show == "interval":
        for place, line in enumerate(lines):
            if values[place] is not None and line[f"low{of}"] is not None:
                shown[place] += interval((line[f"low{of}"], line[f"high{of}"]), decimals, powers)
    return shown


def _losses(document: Json) -> Iterable[Json]:
    """The loss difference over the complete test set of each pair that differs only in softmax1."""
    for pair in document["pairs"]:
        whole = (TOTAL, pair["differences"][-1]["subset"])
        deleted = " / ".join(percent(pair[one]["deletion_rate"]) for one in ("softmax1", "softmax"))
        for found in pair["differences"]:
            if found["measure"] == "loss" and found["subset"] in whole:
                yield pair | found | {"deleted": deleted}


def _means(name: str, document: Json) -> list[tuple[str, ...]]:
    """Rows that follow an analysis's lines: means over model families or over seeds."""
    if name == "per_sample":
        means, nats = document["families"], document.get("families_nats", {})
        return [
            (f"mean of {family} (Fisher's z)", "", "", number(mean, 3), "", number(nats.get(family), 3), "")
            for family, mean in means.items()
        ]
    gaps: dict[str, list[float]] = {}
    for line in document.get("losses", ()):
        gaps.setdefault(line["recipe"], []).append(line["difference"])
    return [
        (
            recipe,
            f"mean of {len(of)} seeds",
            *[""] * 3,
            number(fmean(of)) + interval(interval_of_mean(of), 4),
            "",
            "",
        )
        for recipe, of in gaps.items()
        if len(of) > 1
    ]


Rates = Sequence[dict[tuple[str, ...], float]]
"""For each model, the deletion rate (0 to 1) of each part of its examples, by the part's names."""


def _parts(models: Sequence[Json], of_task: str) -> list[Table]:
    """Deletion rates by kind of letter, by kind of byte and by language, one column per model."""

    def of_kinds(key: str) -> Rates:
        return [{(line["kind"].replace("_", " "),): line["rate"] for line in model[key]} for model in models]

    languages: Rates = [
        {_language(line["subset"]): line["deletion_rate"] for line in model["subsets"]} for model in models
    ]
    tables = []
    for headers, rates in (
        (("kind of letter",), of_kinds("letters")),
        (("kind of byte",), of_kinds("kinds")),
        (("language", "script"), [of if len(of) > 1 else {} for of in languages]),
    ):
        parts = dict.fromkeys(part for of in rates for part in of)
        lines = [(*part, *(percent(of.get(part)) for of in rates if of)) for part in parts]
        labels = [_labelled(model) for model, of in zip(models, rates, strict=True) if of]
        title = f"Deleted of each {headers[0]}{of_task}, %"
        tables.append(Table((*headers, *labels), lines, title, folded=True, words=len(headers)))
    return [table for table in tables if table.rows]


def _language(code: str) -> tuple[str, str]:
    """A language's name and script."""
    return (LANGUAGES[code].name, LANGUAGES[code].script) if code in LANGUAGES else (code, MISSING)


def _labelled(model: Json) -> str:
    return f"{short_name(model['recipe'])}, seed {model['seed']}"


def examples_of(document: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Examples of a deletion-pattern analysis: a label, and runs of (text, state)."""
    found = []
    for model in document["models"]:
        for shown in model["shown"]:
            where = f", {_language(shown['subset'])[0]}" if shown["subset"] else ""
            cut = ", beginning" if shown["cut"] else ""
            label = f"{_labelled(model)}{where}: {percent(shown['deletion_rate'])} % deleted{cut}"
            found.append((label, shown["runs"]))
    return found
