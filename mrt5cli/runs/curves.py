"""Curves of a run's metrics, and their plots in text characters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mrt5cli.errors import UserError
from mrt5cli.runs.choosing import check_key
from mrt5cli.runs.found import Entry, as_number
from mrt5cli.text import duration, rounded

By = Literal["step", "seconds", "bytes"]
TITLES = {
    "cross_entropy": "cross-entropy, nats per token",
    "deletion_rate": "deleted, %",
    "alpha": "alpha",
    "loss": "total loss with gate terms",
    "gate_loss": "gate term of the loss",
    "score_loss": "score term of the loss",
    "bytes_per_second": "bytes/s",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
SHARES = ("deletion_rate",)
AXES: dict[By, str] = {"step": "step", "seconds": "time", "bytes": "bytes read"}
SHOWN = ("cross_entropy", "deletion_rate", "alpha")
"""Default metrics; a constant one is left out."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        x: step, seconds or bytes of each point.
        y: values; a share is in percent.
        target: target value of the metric; None without a target.
    """

    label: str
    x: list[float]
    y: list[float]
    target: float | None = None


@dataclass(frozen=True)
class Panel:
    """Curves of one metric on the same axes."""

    metric: str
    curves: list[Curve]
    by: By = "step"

    @property
    def title(self) -> str:
        return TITLES.get(self.metric, self.metric.replace("_", " "))


def panels(runs: Sequence[tuple[str, Entry]], metrics: Sequence[str], by: By = "step") -> list[Panel]:
    """A panel per metric, with a curve for each run that has it.

    Args:
        runs: pairs of a label and a run.
        metrics: keys of metrics.jsonl, with the prefix "validation_" for the validation results over all
            subsets; empty for those of `SHOWN` that are not constant.

    Raises:
        UserError: no run has one of the metrics.
    """
    rows = {label: [_with_validation(row) for row in run.run.metrics()] for label, run in runs}
    known = sorted({key for lines in rows.values() for row in lines for key in row if _number(row, key)})
    found = []
    for metric in metrics or SHOWN:
        curves = [curve for label, lines in rows.items() if (curve := _curve(label, lines, metric, by)).y]
        if metrics and not curves:
            if not known:
                raise UserError(
                    "there are no curves: no run has logged anything yet", "wait for the first step"
                )
            check_key("--metric", metric, [key for key in known if key not in ("step", "seconds", "target")])
        if metrics or len({value for curve in curves for value in curve.y}) > 1:
            found.append(Panel(metric, curves, by))
    return found


def _with_validation(row: dict[str, Any]) -> dict[str, Any]:
    subsets = row.get("validation")
    numbers = [*subsets.values()][-1] if isinstance(subsets, dict) and subsets else {}
    if not isinstance(numbers, dict):
        return row
    return row | {f"validation_{name}": value for name, value in numbers.items()}


def _number(row: dict[str, Any], key: str) -> bool:
    return as_number(row.get(key)) is not None


def _curve(label: str, rows: Sequence[dict[str, Any]], metric: str, by: By) -> Curve:
    x, y, target, read, before = [], [], None, 0.0, 0.0
    scale = 100.0 if metric in SHARES else 1.0
    for row in rows:
        if _number(row, "bytes_per_second") and _number(row, "seconds"):
            read += row["bytes_per_second"] * max(0.0, row["seconds"] - before)
            before = row["seconds"]
        if not _number(row, metric) or (by != "bytes" and not _number(row, by)):
            continue
        x.append(read if by == "bytes" else float(row[by]))
        y.append(scale * row[metric])
        if metric == "deletion_rate" and _number(row, "target"):
            target = scale * row["target"]
    return Curve(label, x, y, target)


# --- plots --------------------------------------------------------------------------------------------------

MARKS = ("braille", "x", "o", "+", "#", "%", "@", "=", "&", "$")
"""Characters that distinguish the curves, which have no colors; the target is a dotted line."""
DOT, TARGET = "\N{BRAILLE PATTERN DOTS-135}", "\N{MIDDLE DOT}"
_PLAIN = str.maketrans({**dict.fromkeys("┌┐└┘┤┬├┴┼", "+"), "─": "-", "│": "|", TARGET: ".", DOT: "*"})
"""Replacements for streams that only support ASCII."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def drawn(panel: Panel, width: int, height: int = 12, *, plain: bool = False) -> str:
    """A panel as lines of text without colors.

    Args:
        width, height: size in characters, without the heading and the legend above the plot.
        plain: use ASCII only.
    """
    marks = ["*" if plain and mark == "braille" else mark for mark in MARKS]
    curves = [(curve, marks[place % len(marks)]) for place, curve in enumerate(panel.curves)]
    targets = sorted({curve.target for curve in panel.curves if curve.target is not None})
    xs = [value for curve in panel.curves for value in curve.x]
    ys = [value for curve in panel.curves for value in curve.y] + targets
    axes = (min(0.0, *xs), max(0.0, *xs) or 1.0), _widened(min(ys), max(ys))
    x_ticks, y_ticks = _ticks(*axes[0], max(2, width // 14)), _ticks(*axes[1], max(2, height // 3))
    lines = [([*axes[0]], [target, target], "." if plain else TARGET) for target in targets]
    lines += [(curve.x, curve.y, mark) for curve, mark in curves]
    labels = [_x_label(value, panel.by) for value in x_ticks], _y_labels(y_ticks)
    body = _plotted(lines, (width, height), axes, (x_ticks, y_ticks), labels)
    names = [f"{(DOT if mark == 'braille' else mark)} {curve.label}" for curve, mark in curves]
    goal = [f"{TARGET} target {', '.join(f'{target:g}' for target in targets)}"] if targets else []
    head = [f"{panel.title} by {AXES[panel.by]}"]
    if len(names) > 1 or goal:
        head += [f"  {name}" for name in [*(names if len(names) > 1 else []), *goal]]
    text = "\n".join([*head, *body])
    return text.translate(_PLAIN) if plain else text


def _plotted(
    lines: Sequence[tuple[Sequence[float], Sequence[float], str]],
    size: tuple[int, int],
    limits: Sequence[tuple[float, float]],
    ticks: Sequence[list[float]],
    labels: Sequence[list[str]],
) -> list[str]:
    """Plot lines and axes with plotext 5 or 6, whose interfaces differ completely."""
    import plotext

    if hasattr(plotext, "plot"):
        plotext.clear_figure()
        plotext.limit_size(False, False)
        plotext.plotsize(*size)
        plotext.theme("clear")
        for xs, ys, mark in lines:
            plotext.plot(xs, ys, marker=mark)
        plotext.xticks(ticks[0], labels[0])
        plotext.yticks(ticks[1], labels[1])
        plotext.xlim(*limits[0])
        plotext.ylim(*limits[1])
        text = plotext.build()
    else:
        figure = plotext.figure
        figure.clear()
        figure.theme("colorless")
        figure.plot_size(*size)
        for xs, ys, mark in lines:
            signal = figure.signal(xs, ys, marker=mark)
            signal.lines()
            figure.draw(signal)
        for axis, places, texts, (low, high) in zip("xy", ticks, labels, limits, strict=True):
            figure.ruler(axis).ticks(places, texts)
            figure.ruler(axis).lim(low, high)
        text = str(figure.build())
    return [line.rstrip() for line in _ANSI.sub("", text).rstrip("\n").split("\n")]


def _widened(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis, widened around a constant value."""
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At least two round numbers within the limits; the limits themselves if there are none."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [step * number for number in range(first, last + 1)]
    return found if len(found) > 1 else [low, high]


def _y_labels(ticks: Sequence[float]) -> list[str]:
    """Numbers of equal width, with enough digits to distinguish them."""
    step, largest = ticks[1] - ticks[0], max(map(abs, ticks))
    if largest >= 1e6 or largest < 1e-3:
        texts = [f"{tick:.3g}" for tick in ticks]
    else:
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += round(step * 10**digits, 6) % 1 != 0
        texts = [f"{tick + 0.0:,.{digits}f}" for tick in ticks]
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]


def _x_label(value: float, by: By) -> str:
    if by == "seconds":
        return duration(value)
    return rounded(round(value)) if by == "step" else f"{value / 1e6:g} MB"
