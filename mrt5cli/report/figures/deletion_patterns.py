"""Which bytes go: a row of text a model with what is deleted marked, and the rate of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.patches import Rectangle

from mrt5cli.report.figures.against_reduction import DELETED
from mrt5cli.report.figures.style import FAINT, INK, Drawing, draw, looks_of
from mrt5cli.report.results import Results, short_name
from mrt5cli.report.verdicts import Compared

if TYPE_CHECKING:
    from mrt5cli.analysis.deletion_patterns import ModelPattern

COLUMNS = 84
"""Characters a line of text."""
LINES = 2
"""Of text a model at most."""
LINE, GAP = 0.165, 0.5
"""Inches a line of text, and lines between two models' texts."""
RARE = 0.005
"""Kinds of byte with a smaller share of the text are left out of a figure, not of the table."""
GONE = "#D55E00"


class Pattern(NamedTuple):
    """One model: percent deleted of each kind, ours and published, and the text of an example.

    The text is characters in printable ASCII, each with whether it is deleted; empty for none.
    """

    label: str
    rates: Mapping[str, float]
    published: Mapping[str, float] = {}
    text: Sequence[tuple[str, bool]] = ()

    @property
    def lines(self) -> int:
        return min(LINES, -(-len(self.text) // COLUMNS))


def deletion_patterns(patterns: Sequence[Pattern], *, name: str, caption: str) -> Drawing:
    """Draw it.

    Args:
        patterns: at least one.
    """
    kinds = list(dict.fromkeys(kind for pattern in patterns for kind in (*pattern.rates, *pattern.published)))
    texts = [pattern for pattern in patterns if pattern.text]
    lines = sum(1 + pattern.lines + GAP for pattern in texts)
    heights = [LINE * lines] if texts else []
    heights.append(max(1.3, 0.5 + len(kinds) * max(0.24, 0.09 * len(patterns))))
    explained = len(patterns) > 1 or not texts
    below = 0.19 * -(-(len(patterns) + 1) // 2) if explained else 0.0

    def paint(figure: Any, grid: Any) -> None:
        *top, [rates] = grid
        for [axes] in top:
            _texts(axes, texts, lines)
        _rates(rates, patterns, kinds)
        if explained:
            figure.legend(loc="outside lower center", ncols=2)

    return draw(
        paint, name, caption, height=sum(heights) + below, nrows=len(heights), height_ratios=heights,
        squeeze=False,
    )  # fmt: skip


def _texts(axes: Any, patterns: Sequence[Pattern], lines: float) -> None:
    """A cell a character: deleted ones stand on colour, struck out."""
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines, 0)
    top = 0.0
    for pattern in patterns:
        axes.text(0, top + 0.8, pattern.label, fontsize=7.5, color=INK, va="baseline")
        for place, (character, gone) in enumerate(pattern.text[: LINES * COLUMNS]):
            line, column = top + 1 + place // COLUMNS, place % COLUMNS
            if gone:
                cell = Rectangle((column, line + 0.06), 1, 0.88, facecolor=GONE, alpha=0.25, linewidth=0)
                axes.add_patch(cell)
                axes.hlines(line + 0.5, column, column + 1, color=GONE, linewidth=0.6)
            if character != " ":
                axes.text(
                    column + 0.5, line + 0.75, character,
                    fontsize=7.5, family="DejaVu Sans Mono", ha="center", va="baseline", color=INK,
                )  # fmt: skip
        top += pattern.lines + 1 + GAP


def _rates(axes: Any, patterns: Sequence[Pattern], kinds: Sequence[str]) -> None:
    """A line a kind, a mark a model; hollow ones around it are published."""
    places = {kind: place for place, kind in enumerate(kinds)}
    for place in range(0, len(kinds), 2):
        axes.axhspan(place - 0.5, place + 0.5, facecolor=FAINT, alpha=0.12, linewidth=0)
    axes.grid(axis="y", visible=False)
    step = 0.62 / max(1, len(patterns) - 1)
    for number, (pattern, look) in enumerate(zip(patterns, looks_of(["MrT5"] * len(patterns)), strict=True)):
        offset = number * step - 0.31 if len(patterns) > 1 else 0.0
        style: dict[str, Any] = {
            "marker": look.marker,
            "linestyle": "",
            "color": look.colour,
            "clip_on": False,
        }
        for values, more in (
            (pattern.published, {"markerfacecolor": "none", "markersize": 8.5}),
            (pattern.rates, {"markersize": 4.5, "label": pattern.label}),
        ):
            if values:  # a line without marks would have a place all the same, and be made room for
                axes.plot(list(values.values()), [places[kind] + offset for kind in values], **style, **more)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(DELETED)
    axes.tick_params(axis="y", length=0)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    tasks: dict[str, list[ModelPattern]] = {}
    for model in results.analyses.get("deletion_patterns", {"models": ()})["models"]:
        tasks.setdefault(model["task"], []).append(model)
    drawings = []
    for task, models in tasks.items():
        letters = any(model["letters"] for model in models)
        recipes = [model["recipe"] for model in models]
        patterns = []
        for model in models:
            recipe = model["recipe"]
            label = short_name(recipe) + (f", seed {model['seed']}" if recipes.count(recipe) > 1 else "")
            known = _published(recipe, compared) if letters else {}
            patterns.append(Pattern(label, _kinds(model, letters), known, _text(model)))
        what = "kind of letter" if letters else "kind of byte"
        shown = ", and one of them, deleted bytes marked (¶ is its end)" if patterns[0].text else ""
        caption = f"{task}: what is deleted, by {what}, of {models[0]['examples']:,} test examples{shown}."
        if any(pattern.published for pattern in patterns):
            caption += " Hollow marks around others are published."
        drawings.append(deletion_patterns(patterns, name=f"{name}-{task}", caption=caption))
    return drawings


def _kinds(model: ModelPattern, letters: bool) -> dict[str, float]:
    lines = model["letters"] if letters else model["kinds"]
    rare = 0 if letters else RARE * model["positions"]
    return {line["kind"].replace("_", " "): 100 * line["rate"] for line in lines if line["count"] > rare}


def _published(recipe: str, compared: Sequence[Compared]) -> dict[str, float]:
    return {
        one.row.metric.partition("[")[2].rstrip("]").replace("_", " "): one.value
        for one in compared
        if one.recipe == recipe and one.row.metric.startswith("deletion_rate[")
    }


def _text(model: ModelPattern) -> list[tuple[str, bool]]:
    """The first example as characters with their fate; nothing where a cell a character cannot show it."""
    cells: list[tuple[str, bool]] = []
    for text, state in model["shown"][0]["runs"] if model["shown"] else ():
        if state not in ("kept", "deleted"):
            return []
        cells += [(character, state == "deleted") for character in text.replace("⟨EOS⟩", "¶").strip("\n")]
    drawable = all(character.isascii() or character in "¶␣⏎⇥⟨⟩" for character, _ in cells)
    return cells if drawable else []
