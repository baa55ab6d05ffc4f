"""The look of every figure, and its conversion to SVG.

Colors are Okabe and Ito's, which color-blind readers can distinguish; each family of models has its own
marker, so that figures are readable in greyscale. Our values are filled, published ones hollow.

Figures are black on white; a dark page inverts them (`page.css`), and a standalone file inverts itself if its
reader prefers dark pages. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("agg")  # no window, whatever the user's settings

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.errors import UserError, not_written
from mrt5cli.report.tables import Table, in_powers, interval, number
from mrt5cli.text import listed
from mrt5cli.writing import write_bytes

INK, FAINT = "#000000", "#8a8a8a"
NARROW = 3.5
"""Width of a figure for phones, in inches of 96 CSS pixels."""
DARK = "@media (prefers-color-scheme: dark) {svg:root {filter: invert(1) hue-rotate(180deg)}}"
"""The rule of `page.css` for a standalone figure; in a page, the root is another element."""
STYLE = Path(__file__).with_name("report.mplstyle")
HOLLOW: dict[str, Any] = {"markerfacecolor": "#ffffff", "markeredgewidth": 1.1, "linewidth": 1.0}
"""Marker style of published values."""


class Look(NamedTuple):
    """Colour and marker of a model family."""

    colour: str
    marker: str


LOOKS = {
    "ByT5": Look(INK, "*"),
    "MrT5": Look("#0072B2", "o"),
    "Random": Look("#D55E00", "^"),
    "Fixed": Look("#009E73", "s"),
    "BP": Look("#CC79A7", "D"),
    "CP": Look("#E69F00", "v"),
}
OTHER_LOOKS = (Look("#56B4E9", "P"), Look(FAINT, "X"))


def look_of(family: str) -> Look:
    """The look of a family; families that are not in the paper share the remaining looks."""
    return LOOKS.get(family) or OTHER_LOOKS[sum(map(ord, family)) % len(OTHER_LOOKS)]


def looks_of(families: Sequence[str]) -> list[Look]:
    """One look per model: its family's, or an unused one if an earlier model has that."""
    looks: list[Look] = []
    for family in families:
        free = (look for look in (look_of(family), *LOOKS.values(), *OTHER_LOOKS) if look not in looks)
        looks.append(next(free, look_of(family)))
    return looks


class Point(NamedTuple):
    """One model of a family in a figure with numeric axes; `interval` is of y, over seeds."""

    family: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    published: bool = False


def plot_line(axes: Axes, points: Sequence[Point], look: Look, label: str, linestyle: str = "-") -> None:
    """Plot points from left to right: ours filled, published ones hollow and dotted."""
    for published, style in (
        (False, {"linestyle": linestyle, "zorder": 3}),
        (True, {"linestyle": ":", **HOLLOW}),
    ):
        line = sorted((one for one in points if one.published is published), key=lambda one: one.x)
        if not line:
            continue
        x, y = [one.x for one in line], [one.y for one in line]
        axes.plot(x, y, color=look.colour, marker=look.marker, label=label, **style)
        label = ""  # only our line is labeled if there are both
        for one in line:
            if one.interval is not None:
                axes.vlines(one.x, *one.interval, color=look.colour, linewidth=1.0)


def numbers(headers: Sequence[str], rows: Sequence[tuple[str, ...]], words: int = 1) -> Table:
    """A folded table of a figure's values, for readers who cannot see it or want exact numbers."""
    return Table(tuple(headers), rows, "The figure in numbers", folded=True, words=words)


def numbers_of(points: Sequence[Point], x: str, y: str) -> Table:
    """The table of a figure with axes named `x` and `y`, one row per point."""
    powers = in_powers(one.y for one in points)
    rows = [
        (
            one.family,
            "published" if one.published else "ours",
            number(one.x, 1),
            number(one.y, 4, powers) + interval(one.interval, 4, powers),
        )
        for one in points
    ]
    return numbers(("", "source", x, y), rows, words=2)


def hollow(published: bool) -> str:
    """The end of a caption that explains hollow marks; empty if nothing is published."""
    return "; hollow marks are published" if published else ""


def plot_families(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """One line per family, with a legend next to the axes."""
    for family in dict.fromkeys(point.family for point in points):
        plot_line(axes, [point for point in points if point.family == family], look_of(family), family)
    legend_beside(figure, axes)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """A legend to the right of the axes; below them in a narrow figure."""
    if figure.get_figwidth() > NARROW:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        longest = max(map(len, axes.get_legend_handles_labels()[1]))
        figure.legend(loc="outside lower center", ncols=3 if longest < 12 else 2)


def legend_above(figure: Figure, columns: int = 4) -> None:
    """One legend above all axes, with every label once."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if figure.get_figwidth() <= NARROW:
        columns = min(columns, 2 if max(map(len, named)) < 20 else 1)
    figure.legend([*named.values()], [*named], loc="outside upper center", ncols=columns)


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG.

    Attributes:
        name: name of its file and prefix of its ids.
        caption: one or two sentences about its content.
        svg: the standalone SVG file.
        numbers: its values as a folded table; None if the page already shows them.
        narrow: an SVG for narrow windows with letters of the same size; None if readers have to scroll
            sideways.
    """

    name: str
    caption: str
    svg: str
    numbers: Table | None = None
    narrow: str | None = None

    @property
    def inline(self) -> str:
        """The SVG for embedding in a page."""
        return self._inline(self.svg)

    @property
    def inline_narrow(self) -> str:
        """The narrow SVG for embedding in a page, or an empty string."""
        return "" if self.narrow is None else self._inline(self.narrow)

    def _inline(self, svg: str) -> str:
        return f'<svg role="img" aria-label="{escape(self.caption)}"{svg.partition("<svg")[2]}'


def draw(
    paint: Callable[..., None],
    name: str,
    caption: str,
    numbers: Table | None = None,
    *,
    width: float = 7.2,
    height: float = 4.0,
    narrow: Mapping[str, Any] | None = None,
    row: float | None = None,
    **grid: Any,
) -> Drawing:
    """Draw a figure as reproducible SVG; its ids start with its name, so that a page can contain several.

    Args:
        paint: fills the figure; called with it and each of its axes.
        name: the figure's name.
        caption: one or two sentences about its content.
        numbers: its values as a table.
        width, height: size in inches; the default is as wide as a page of text.
        narrow: the grid of the narrow figure; None if there is no narrow figure.
        row: height of each row of the narrow figure in inches; by default `height`, but at most 3.4.
        grid: arguments of `Figure.subplots`.
    """
    small = None
    if narrow is not None:
        rows = narrow.get("nrows", 1)
        small = _svg(paint, f"{name}-narrow", NARROW, rows * (row or min(height, 3.4)), narrow)
    return Drawing(name, caption, _svg(paint, name, width, height, grid), numbers, small)


def _svg(paint: Callable[..., None], name: str, width: float, height: float, grid: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    with matplotlib.style.context([STYLE, {"svg.hashsalt": name}], after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure, *figure.subplots(squeeze=False, **grid).flat)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = text.replace("</style>", f"{DARK}</style>", 1)
    text = text.replace("'DejaVu Sans Mono'", "'DejaVu Sans Mono', Menlo, Consolas, monospace")
    return text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif")


def save_picture(
    path: Path, paint: Callable[..., None], *, width: float = 7.2, height: float = 4.0, **grid: Any
) -> None:
    """Write a figure to a file in the format of its suffix; the other arguments are those of `draw`.

    Raises:
        UserError: the file cannot be written, or the format is not supported.
    """
    kind = path.suffix.removeprefix(".").lower()
    with matplotlib.style.context([STYLE, {"savefig.dpi": 200}], after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        kinds = figure.canvas.get_supported_filetypes()
        if kind not in kinds:
            raise UserError(
                f"{path}: pictures of this format cannot be written",
                f"end its name in .png or {listed(sorted(kinds), 20)}",
            )
        paint(figure, *figure.subplots(squeeze=False, **grid).flat)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise not_written(error) from error
