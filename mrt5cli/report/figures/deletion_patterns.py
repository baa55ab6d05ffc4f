"""Which bytes are deleted: a marked example per model, and the deletion rate of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mrt5cli.metrics.results import Json
from mrt5cli.report.figures.against_reduction import DELETED
from mrt5cli.report.figures.style import FAINT, NARROW, Drawing, draw, hollow, looks_of, numbers
from mrt5cli.report.results import Results, short_name
from mrt5cli.report.tables import number as in_digits
from mrt5cli.report.verdicts import Compared

COLUMNS, NARROW_COLUMNS = 84, 32
"""Characters per line of text, in a figure as wide as a page and in a narrow one."""
CHARACTERS = 2 * COLUMNS
"""Largest number of characters shown per model."""
LINE, GAP = 0.165, 0.5
"""Height of a line of text in inches, and of the gap between two models' texts in lines."""
RARE = 0.005
"""Kinds of byte below this share of the text appear in the table, not in the figure."""
GONE = "#D55E00"

Rates = Mapping[str, float]
"""Percent deleted, by kind."""
Text = Sequence[tuple[str, bool]]
"""An example's characters, in printable ASCII, each with whether it is deleted."""


def deletion_patterns(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """One drawing per task of the analyzed models."""
    tasks: dict[str, list[Json]] = {}
    for model in results.analyses.get("deletion_patterns", {"models": ()})["models"]:
        tasks.setdefault(model["task"], []).append(model)
    return [_of_task(task, models, compared, f"{name}-{task}") for task, models in tasks.items()]


def _of_task(task: str, models: Sequence[Json], compared: Sequence[Compared], name: str) -> Drawing:
    letters = any(model["letters"] for model in models)
    recipes = [model["recipe"] for model in models]
    labels = [
        short_name(model["recipe"])
        + (f", seed {model['seed']}" if recipes.count(model["recipe"]) > 1 else "")
        for model in models
    ]
    ours = [_kinds(model, letters) for model in models]
    known = [_published(recipe, compared) if letters else {} for recipe in recipes]
    kinds = list(dict.fromkeys(kind for rates in (*ours, *known) for kind in rates))
    texts = [(label, text) for label, model in zip(labels, models, strict=True) if (text := _text(model))]
    legend = len(models) > 1 or not texts

    def sized(columns: int, legend_columns: int) -> tuple[float, Json]:
        """Inches of a figure with so many characters per line, and its grid."""
        heights = [LINE * _lines(texts, columns)] if texts else []
        heights.append(max(1.3, 0.5 + len(kinds) * max(0.24, 0.09 * len(models))))
        below = 0.19 * -(-(len(models) + 1) // legend_columns) if legend else 0.0
        return sum(heights) + below, {"nrows": len(heights), "height_ratios": heights}

    def paint(figure: Figure, *grid: Axes) -> None:
        wide = figure.get_figwidth() > NARROW
        if texts:
            _texts(grid[0], texts, COLUMNS if wide else NARROW_COLUMNS)
        _rates(grid[-1], kinds, labels, ours, known)
        if not wide:
            grid[-1].set_yticks(range(len(kinds)), [fill(kind, 20) for kind in kinds])
        if legend:
            figure.legend(loc="outside lower center", ncols=2 if wide else 1)

    what = "kind of letter" if letters else "kind of byte"
    shown = ", and one example with deleted bytes marked (¶ is its end)" if texts else ""
    examples = f"{models[0]['examples']:,} test examples"
    caption = f"{task}: percent deleted by {what} over {examples}{shown}{hollow(any(known))}."
    columns = [(label, rates) for label, rates in zip(labels, ours, strict=True)]
    columns += [(f"{label}, published", rates) for label, rates in zip(labels, known, strict=True) if rates]
    in_numbers = numbers(
        (f"deleted of each {what}, %", *(label for label, _ in columns)),
        [(kind, *(in_digits(rates.get(kind), 1) for _, rates in columns)) for kind in kinds],
    )
    height, grid = sized(COLUMNS, 2)
    narrow_height, narrow = sized(NARROW_COLUMNS, 1)
    row = narrow_height / narrow["nrows"]
    return draw(paint, name, caption, in_numbers, height=height, narrow=narrow, row=row, **grid)


def _lines(texts: Sequence[tuple[str, Text]], columns: int) -> float:
    """Height of the models' texts, in lines of so many characters."""
    return sum(1 - (-len(text) // columns) + GAP for _, text in texts)


def _texts(axes: Axes, texts: Sequence[tuple[str, Text]], columns: int) -> None:
    """One cell per character; a deleted one is colored and struck out."""
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(_lines(texts, columns), 0)
    top = 0.0
    for label, text in texts:
        axes.text(0, top + 0.8, label, fontsize=7.5)
        for line, start in enumerate(range(0, len(text), columns), 1):
            for column, (character, gone) in enumerate(text[start : start + columns]):
                y = top + line
                if gone:
                    cell = Rectangle((column, y + 0.06), 1, 0.88, facecolor=GONE, alpha=0.25, linewidth=0)
                    axes.add_patch(cell)
                    axes.hlines(y + 0.5, column, column + 1, color=GONE, linewidth=0.6)
                if character != " ":
                    style = {"ha": "center", "fontsize": 7.5, "family": "DejaVu Sans Mono"}
                    axes.text(column + 0.5, y + 0.75, character, style)
        top += _lines([(label, text)], columns)


def _rates(
    axes: Axes, kinds: Sequence[str], labels: Sequence[str], ours: Sequence[Rates], known: Sequence[Rates]
) -> None:
    """One line per kind, one mark per model; hollow marks around it are published."""
    for place in range(0, len(kinds), 2):
        axes.axhspan(place - 0.5, place + 0.5, facecolor=FAINT, alpha=0.12, linewidth=0)
    axes.grid(axis="y", visible=False)
    step = 0.62 / max(1, len(labels) - 1)
    for number, look in enumerate(looks_of(["MrT5"] * len(labels))):
        offset = number * step - 0.31 if len(labels) > 1 else 0.0
        for rates, inside, size, label in (
            (known[number], "none", 8.5, None),
            (ours[number], look.colour, 4.5, labels[number]),
        ):
            if rates:  # an empty line would still be given a position and room
                lines = [kinds.index(kind) + offset for kind in rates]
                axes.plot(
                    list(rates.values()), lines, look.marker, color=look.colour, markerfacecolor=inside,
                    markersize=size, label=label, clip_on=False,
                )  # fmt: skip
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(DELETED)
    axes.tick_params(axis="y", length=0)


def _kinds(model: Json, letters: bool) -> dict[str, float]:
    lines = model["letters"] if letters else model["kinds"]
    rare = 0 if letters else RARE * model["positions"]
    return {line["kind"].replace("_", " "): 100 * line["rate"] for line in lines if line["count"] > rare}


def _published(recipe: str, compared: Sequence[Compared]) -> dict[str, float]:
    return {
        one.row.metric.partition("[")[2].rstrip("]").replace("_", " "): one.value
        for one in compared
        if one.recipe == recipe and one.row.metric.startswith("deletion_rate[")
    }


def _text(model: Json) -> Text:
    """The beginning of the first example; empty if cells of one character each cannot show it."""
    cells: list[tuple[str, bool]] = []
    for text, state in model["shown"][0]["runs"] if model["shown"] else ():
        if state not in ("kept", "deleted"):
            return []
        cells += [(character, state == "deleted") for character in text.replace("⟨EOS⟩", "¶").strip("\n")]
    drawable = all(character.isascii() or character in "¶␣⏎⇥⟨⟩" for character, _ in cells)
    return cells[:CHARACTERS] if drawable else []
