"""Which bytes go: a row of text a model with what is deleted marked, and the rate of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mrt5cli.report.figures.style import FAINT, INK, Drawing, Look, draw, entry, look_of

COLUMNS = 84
"""Characters a line of text."""
LINES = 2
"""Of text a model at most."""
LINE, GAP = 0.165, 0.5
"""Inches a line of text, and lines between two models' texts."""
GONE = "#D55E00"
_LOOKS = (
    look_of("MrT5"), look_of("Random"), look_of("Fixed"), look_of("BP"), look_of("CP"),
    Look("#56B4E9", "P"), Look(FAINT, "X"), Look(INK, "*"),
)  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """One model.

    Attributes:
        label: in legends and beside its text.
        rates: percent deleted of each kind.
        published: the same, published, by the same names.
        text: characters of an example, in printable ASCII, with whether each is deleted; empty for none.
    """

    label: str
    rates: Mapping[str, float]
    published: Mapping[str, float] = field(default_factory=dict)
    text: Sequence[tuple[str, bool]] = ()


def deletion_patterns(patterns: Sequence[Pattern], *, name: str, caption: str) -> Drawing:
    """Draw it.

    Args:
        patterns: at least one.
    """
    kinds = list(dict.fromkeys(kind for pattern in patterns for kind in (*pattern.rates, *pattern.published)))
    texts = [pattern for pattern in patterns if pattern.text]
    lines = sum(1 + _lines(pattern) + GAP for pattern in texts)
    heights = [LINE * lines] if texts else []
    heights.append(max(1.3, 0.5 + len(kinds) * max(0.24, 0.09 * len(patterns))))
    explained = len(patterns) > 1 or any(pattern.published for pattern in patterns) or not texts
    below = 0.19 * -(-(len(patterns) + 1) // 2) if explained else 0.0

    def paint(figure: Any, grid: Any) -> None:
        *top, [rates] = grid
        for [axes] in top:
            _texts(axes, texts, lines)
        entries = _rates(rates, patterns, kinds)
        if explained:
            figure.legend(handles=entries, loc="outside lower center", ncols=2)

    return draw(
        paint, name, caption, height=sum(heights) + below, nrows=len(heights), height_ratios=heights,
        squeeze=False,
    )  # fmt: skip


def _lines(pattern: Pattern) -> int:
    return min(LINES, -(-len(pattern.text) // COLUMNS))


def _texts(axes: Any, patterns: Sequence[Pattern], lines: float) -> None:
    """A cell a character: deleted ones stand on colour, struck out."""
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines, 0)
    line = 0.0
    for pattern in patterns:
        axes.text(0, line + 0.8, pattern.label, fontsize=7.5, color=INK, va="baseline")
        for start in range(0, min(len(pattern.text), LINES * COLUMNS), COLUMNS):
            line += 1
            for place, (character, gone) in enumerate(pattern.text[start : start + COLUMNS]):
                if gone:
                    cell = Rectangle((place, line + 0.06), 1, 0.88, facecolor=GONE, alpha=0.25, linewidth=0)
                    axes.add_patch(cell)
                    axes.hlines(line + 0.5, place, place + 1, color=GONE, linewidth=0.6)
                if character != " ":
                    axes.text(
                        place + 0.5, line + 0.75, character,
                        fontsize=7.5, family="DejaVu Sans Mono", ha="center", va="baseline",
                        color=INK,
                    )  # fmt: skip
        line += 1 + GAP


def _rates(axes: Any, patterns: Sequence[Pattern], kinds: Sequence[str]) -> list[Line2D]:
    """A line a kind, a mark a model. Returns the entries of a legend."""
    places = {kind: place for place, kind in enumerate(kinds)}
    for place in range(0, len(kinds), 2):
        axes.axhspan(place - 0.5, place + 0.5, facecolor=FAINT, alpha=0.12, linewidth=0)
    axes.grid(axis="y", visible=False)
    step = 0.62 / max(1, len(patterns) - 1)
    entries = []
    for number, pattern in enumerate(patterns):
        look = _LOOKS[number % len(_LOOKS)]
        offset = number * step - 0.31 if len(patterns) > 1 else 0.0
        style: dict[str, Any] = {"marker": look.marker, "linestyle": "", "color": look.colour}
        for values, more in (
            (pattern.published, {"markerfacecolor": "none", "markersize": 8.5}),
            (pattern.rates, {"markersize": 4.5}),
        ):
            if values:  # a line without marks would have a place all the same, and be made room for
                y = [places[kind] + offset for kind in values]
                axes.plot(list(values.values()), y, clip_on=False, **style, **more)
        entries.append(entry(pattern.label, look.colour, marker=look.marker, linestyle="", markersize=4.5))
    if any(pattern.published for pattern in patterns):
        around: dict[str, Any] = {"markerfacecolor": "none", "markersize": 8.5}
        entries.append(entry("hollow, around: published", marker="o", linestyle="", **around))
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("deleted (%)")
    axes.tick_params(axis="y", length=0)
    return entries
