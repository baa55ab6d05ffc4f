"""The figures of a report: what runs, analyses and the paper give each kind of figure to draw."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import TOTAL, Json, Row
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.published import Published, published
from mrt5cli.paper.tolerances import AVERAGES, DECREASE, LOSSES, REDUCTION, TIMES
from mrt5cli.report.results import Ran, Results, mean
from mrt5cli.report.verdicts import Compared

if TYPE_CHECKING:
    from mrt5cli.report.figures.style import Drawing

WHOLE = (*AVERAGES, TOTAL, "English", "English (10000 examples)")
"""Published subsets that stand for all of a test set."""
RARE = 0.005
"""Kinds of byte with a smaller share of the text are left out of a figure, not of the table."""


def draw(name: str, results: Results, compared: Sequence[Compared]) -> list[Drawing]:
    """The drawings of one of `FIGURES`; none where there is nothing to draw yet. Needs matplotlib.

    Args:
        results: of the experiment.
        compared: its published numbers.

    Raises:
        UserError: there is no such figure.
    """
    if name not in FIGURES:
        raise UserError(f"no figure is called {name!r}", f"there are: {', '.join(FIGURES)}")
    return FIGURES[name](results, compared, f"{results.experiment.id}-{name}")


def _loss_against_reduction(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.against_reduction import loss_against_reduction
    from mrt5cli.report.figures.style import Point

    metric, unit, number = _loss_of(compared)
    points = []
    for runs in results.runs.values():
        rows = [found[0] for ran in runs if (found := ran.own(number)) is not None]
        if rows:
            losses = [row.known(number) for row in rows]
            gone = 100 * statistics.fmean(row.deletion_rate or 0.0 for row in rows)
            middle = statistics.fmean(losses)
            points.append(Point(runs[0].family, gone, middle, interval_of_mean(losses)))
    for (model, _), values in _whole(compared).items():
        if metric in values:
            points.append(Point(model, values.get(REDUCTION, 0.0), values[metric], published=True))
    if not points:
        return []
    caption = f"{unit.capitalize()} against the reduction of the sequence length, a point a model."
    if any(point.interval for point in points):
        caption += " Bars: 95 % over seeds."
    return [loss_against_reduction(points, unit=unit, name=name, caption=caption)]


def _per_language(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.per_language import Model, per_language

    metric, unit, number = _loss_of(compared)
    languages: dict[str, None] = {}
    models = []
    for recipe, runs in results.runs.items():
        lines = [_by_language(ran) for ran in runs]
        lines = [line for line in lines if line]
        of_recipe = [one.row for one in compared if one.recipe == recipe and one.row.subset not in WHOLE[:-2]]
        known, gone = (
            {row.subset: row.value for row in of_recipe if row.metric == which and row.subset}
            for which in (metric, REDUCTION)
        )
        names = list(dict.fromkeys(name for line in lines for name in line)) or list(known)
        languages |= dict.fromkeys(names)
        alone = [_short(name) for name in results.runs].count(_short(recipe)) == 1
        model = Model(
            label=_short(recipe) if alone else recipe,
            family=runs[0].family if runs else "MrT5",
            loss=_means(lines, names, number, 1.0),
            reduction=_means(lines, names, "deletion_rate", 100.0),
            published_loss=known,
            published_reduction=gone,
        )
        if model.loss or model.published_loss:
            models.append(model)
    if not models:
        return []
    caption = f"{unit.capitalize()} and reduction of the sequence length by language."
    return [per_language(models, list(languages), unit=unit, name=name, caption=caption)]


def _by_language(ran: Ran) -> dict[str, Row]:
    """Rows by language of the first of its evaluations that has several, else of its first."""
    several = [one for one in ran.evaluations if len(one.rows) > 1]
    for one in [*several, *ran.evaluations][:1]:
        rows = {row.subset: row for row in one.rows if row.subset != TOTAL}
        return {LANGUAGES[name].name if name in LANGUAGES else name: row for name, row in rows.items()}
    return {}


def _means(
    lines: Sequence[Mapping[str, Row]], names: Sequence[str], number: str, unit: float
) -> dict[str, float]:
    found = {name: mean(line[name].number(number) for line in lines if name in line) for name in names}
    return {name: unit * value for name, value in found.items() if value is not None}


def _gate_placement(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.gate_placement import gate_placement
    from mrt5cli.report.figures.style import Point

    metric, unit, number = _loss_of(compared)
    lines = (results.analysis("gate_placement") or {"runs": []})["runs"]
    known: dict[int, dict[str, float]] = {}
    for one in compared:
        layer = one.row.setting.get("gate_after_layer")
        if layer is not None:
            what = DECREASE if one.row.metric in TIMES else one.row.metric
            known.setdefault(int(layer), {})[what] = one.value
    timed = any(line["decrease_percent"] is not None for line in lines)
    timed = timed or any(DECREASE in values for values in known.values())

    def points(ours: str, factor: float, published: str) -> list[Point]:
        layers = dict.fromkeys(line["after_layer"] for line in lines)
        means = {one: mean(line[ours] for line in lines if line["after_layer"] == one) for one in layers}
        found = [Point("", layer, factor * value) for layer, value in means.items() if value is not None]
        return found + [
            Point("", layer, values[published], published=True)
            for layer, values in known.items()
            if published in values
        ]

    losses = points(number, 1, metric)
    others = points("decrease_percent", 1, DECREASE) if timed else points("deletion_rate", 100, REDUCTION)
    if not losses and not others:
        return []
    other = "less time than ByT5 (%)" if timed else "reduction of the sequence length (%)"
    caption = f"{unit.capitalize()} (left axis) and {other} (right axis) against the gate's layer."
    return [gate_placement(losses, others, unit=unit, other=other, name=name, caption=caption)]


def _macs(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.against_reduction import macs

    document = results.analysis("compute")
    if document is None:
        return []
    runs: dict[str, list[tuple[float, float]]] = {}
    for line in document["runs"]:
        if line["deletion_rate"]:
            runs.setdefault(line["family"], []).append((100 * line["deletion_rate"], 100 * line["relative"]))
    paper, exact = (
        [(100 * point["deletion_rate"], 100 * point[which]) for point in document["curve"]]
        for which in ("paper_relative", "relative")
    )
    known = [
        (100 * float(one.row.setting["delta"]), 100 * one.value)
        for one in compared
        if one.row.metric == "macs_relative_to_byt5"
    ]
    sizes = document["sizes"]
    caption = (
        f"Multiply-accumulates of a forward pass, {document['source']:,} positions in and "
        f"{document['target']:,} out, width {sizes['d_model']:,}, {sizes['encoder_layers']} + "
        f"{sizes['decoder_layers']} layers, gate after layer {sizes['gate_layer']}."
    )
    return [macs(paper=paper, exact=exact, published=known, runs=runs, name=name, caption=caption)]


def _per_sample(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.per_sample import Scatter, per_sample

    document = results.analysis("per_sample")
    if document is None or not document["models"]:
        return []
    known = {one.recipe: one.value for one in compared if one.row.metric == "pearson_r"}
    several = len({model["seed"] for model in document["models"]}) > 1 and bool(results.experiment.seeds)
    scatters = [
        Scatter(
            label=_short(model["recipe"]) + (f", seed {model['seed']}" if several else ""),
            family=model["family"],
            deleted=model["deleted_percent"],
            increase=model["loss_increase_percent"],
            r=model["r"],
            published_r=known.get(model["recipe"]),
        )
        for model in document["models"]
    ]
    families = [scatter.family for scatter in scatters]
    scatters.sort(key=lambda scatter: families.index(scatter.family))
    return [
        per_sample(
            scatters,
            name=name,
            caption=f"{document['samples']:,} samples, batch size 1: rise of each sample's loss over "
            "ByT5's against the share deleted from it, with the line of least squares.",
        )
    ]


def _deletion_patterns(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.deletion_patterns import Pattern, deletion_patterns

    document = results.analysis("deletion_patterns")
    if document is None:
        return []
    tasks: dict[str, list[Json]] = {}
    for model in document["models"]:
        tasks.setdefault(model["task"], []).append(model)
    drawings = []
    for task, models in tasks.items():
        letters = any(model["letters"] for model in models)
        patterns = [
            Pattern(
                label=_model(model, models),
                rates=_rates(model, letters),
                published=_published_rates(model["recipe"], compared) if letters else {},
                text=_text(model),
            )
            for model in models
        ]
        what = "kind of letter" if letters else "kind of byte"
        shown = ", and one of them, deleted bytes marked (¶ is its end)" if patterns[0].text else ""
        examples = f"{models[0]['examples']:,} test examples{shown}"
        caption = f"{task}: what is deleted, by {what}, of {examples}."
        drawings.append(deletion_patterns(patterns, name=f"{name}-{task}", caption=caption))
    return drawings


def _rates(model: Json, letters: bool) -> dict[str, float]:
    lines = model["letters"] if letters else model["kinds"]
    rare = 0 if letters else RARE * model["positions"]
    return {line["kind"].replace("_", " "): 100 * line["rate"] for line in lines if line["count"] > rare}


def _published_rates(recipe: str, compared: Sequence[Compared]) -> dict[str, float]:
    return {
        one.row.metric.partition("[")[2].rstrip("]").replace("_", " "): one.value
        for one in compared
        if one.recipe == recipe and one.row.metric.startswith("deletion_rate[")
    }


def _text(model: Json) -> list[tuple[str, bool]]:
    """The first example as characters with their fate; nothing where a cell a character cannot show it."""
    cells: list[tuple[str, bool]] = []
    for text, state in model["shown"][0]["runs"] if model["shown"] else ():
        if state not in ("kept", "deleted"):
            return []
        cells += [(character, state == "deleted") for character in text.replace("⟨EOS⟩", "¶").strip("\n")]
    drawable = all(character.isascii() or character in "¶␣⏎⇥⟨⟩" for character, _ in cells)
    return cells if drawable else []


def _runtime(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    from mrt5cli.report.figures.against_reduction import runtime
    from mrt5cli.report.figures.style import Point

    document = results.analysis("runtime") or {"runs": []}
    points, promised = [], []
    for line in document["runs"]:
        if line["recipe"] != results.experiment.baseline:
            gone = 100 * (line["deletion_rate"] or 0.0)
            points.append(Point(line["family"], gone, line["decrease_percent"]))
            promised.append((gone, line["macs_decrease_percent"]))
    for one in compared:
        reduction = _published_reduction(one.row)
        if one.row.metric == DECREASE and one.verdict != "not compared" and reduction is not None:
            points.append(Point(one.row.model, reduction, one.value, published=True))
    if not points:
        return []
    caption = "Time of a forward pass, percent less than ByT5's."
    if document["runs"]:
        caption += f" Ours: {document['device_name']}, batches of {document['batch_size']}."
    return [runtime(points, promised, name=name, caption=caption)]


FIGURES: Mapping[str, Callable[[Results, Sequence[Compared], str], list[Drawing]]] = {
    "loss_against_reduction": _loss_against_reduction,
    "per_language": _per_language,
    "gate_placement": _gate_placement,
    "macs": _macs,
    "per_sample": _per_sample,
    "deletion_patterns": _deletion_patterns,
    "runtime": _runtime,
}


# --- shared ----------------------------------------------------------------------------------------------


def _short(recipe: str) -> str:
    return recipe.rpartition("/")[2]


def _model(model: Json, models: Sequence[Json]) -> str:
    """A recipe's name, with the seed where it has several."""
    seeds = sum(other["recipe"] == model["recipe"] for other in models)
    return _short(model["recipe"]) + (f", seed {model['seed']}" if seeds > 1 else "")


def _loss_of(compared: Sequence[Compared]) -> tuple[str, str, str]:
    """The loss that the paper gives here, or bits per byte: its metric, in words, and our number."""
    metrics = {one.row.metric for one in compared if one.row.metric in LOSSES}
    if metrics == {"test_cross_entropy"}:
        return "test_cross_entropy", "cross-entropy (nats per token)", "loss"
    return "bits_per_byte", "bits per byte", "bits_per_byte"


def _whole(compared: Sequence[Compared]) -> dict[tuple[str, str], dict[str, float]]:
    """Published values over a whole test set, by model and setting."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    averages = any(one.row.subset in (*AVERAGES, TOTAL) for one in compared)
    wanted = (*AVERAGES, TOTAL) if averages else WHOLE  # English is a part where there is an average
    for one in compared:
        if one.row.subset in wanted:
            found.setdefault((one.row.model, str(one.row.setting)), {})[one.row.metric] = one.row.value
    return found


def _published_reduction(row: Published) -> float | None:
    """What the model of a published number deletes, wherever that was published."""
    for other in published().values():
        if (
            other.metric == REDUCTION
            and other.subset in WHOLE
            and (other.version, other.model, other.setting) == (row.version, row.model, row.setting)
        ):
            return other.value
    return None
