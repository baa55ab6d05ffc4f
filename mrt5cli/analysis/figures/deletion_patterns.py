"""Which bytes go: a row of text a model with what is deleted marked, and the rate of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.patches import Rectangle

from mrt5cli.analysis.figures.style import FAINT, INK, Drawing, Look, drawn, look_of, sheet, styled

COLUMNS = 84
"""Characters a line of text."""
LINES = 2
"""Of text a model at most."""
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
    lines = sum(1 + _lines(pattern) for pattern in texts)
    explained = len(patterns) > 1 or any(pattern.published for pattern in patterns) or not texts
    below = max(1.3, 0.5 + 0.27 * len(kinds))
    with styled():
        above = 0.19 * lines
        if texts:
            height = above + below + 0.19 * explained * -(-(len(patterns) + 1) // 2)
            figure, (top, axes) = sheet(height=height, nrows=2, height_ratios=[above, below])
            _texts(top, texts, lines)
        else:
            figure, axes = sheet(height=below + 0.19 * -(-(len(patterns) + 1) // 2))
        _rates(axes, patterns, kinds)
        if explained:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return drawn(figure, name, caption)


def _lines(pattern: Pattern) -> int:
    return min(LINES, -(-len(pattern.text) // COLUMNS))


def _texts(axes: Any, patterns: Sequence[Pattern], lines: int) -> None:
    """A cell a character: deleted ones stand on colour, struck out."""
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines, 0)
    line = 0
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
        line += 1


def _rates(axes: Any, patterns: Sequence[Pattern], kinds: Sequence[str]) -> None:
    """A line a kind, a mark a model."""
    places = {kind: place for place, kind in enumerate(kinds)}
    for place in range(0, len(kinds), 2):
        axes.axhspan(place - 0.5, place + 0.5, facecolor=FAINT, alpha=0.12, linewidth=0)
    axes.grid(axis="y", visible=False)
    step = 0.62 / max(1, len(patterns) - 1)
    for number, pattern in enumerate(patterns):
        look = _LOOKS[number % len(_LOOKS)]
        offset = number * step - 0.31 if len(patterns) > 1 else 0.0
        axes.plot(
            list(pattern.published.values()),
            [places[kind] + offset for kind in pattern.published],
            marker=look.marker, linestyle="", color=look.colour, markerfacecolor="none", markersize=8.5,
            clip_on=False,
        )  # fmt: skip
        axes.plot(
            list(pattern.rates.values()),
            [places[kind] + offset for kind in pattern.rates],
            marker=look.marker, linestyle="", color=look.colour, markersize=4.5, clip_on=False,
            label=pattern.label,
        )  # fmt: skip
    if any(pattern.published for pattern in patterns):
        axes.plot(
            [], [], marker="o", linestyle="", color=INK, markerfacecolor="none", markersize=8.5,
            label="hollow, around: published",
        )  # fmt: skip
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("deleted (%)")
    axes.tick_params(axis="y", length=0)
