"""Time saved against the share of bytes that is gone, beside what the multiply-accumulates promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrt5cli.paper.published import Published, published
from mrt5cli.paper.tolerances import DECREASE, REDUCTION
from mrt5cli.report.figures.against_reduction import REDUCTION_LABEL, WHOLE
from mrt5cli.report.figures.style import INK, Drawing, Point, draw, entry, legend_beside, plot_families
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared


def runtime(
    points: Sequence[Point], promised: Sequence[tuple[float, float]], *, name: str, caption: str
) -> Drawing:
    """Draw it.

    Args:
        points: at least one: percent of positions that are gone, and percent less time than ByT5.
        promised: percent of positions that are gone, and percent fewer multiply-accumulates.
    """

    def paint(figure: Any, axes: Any) -> None:
        entries = plot_families(axes, points)
        marks: dict[str, Any] = {"marker": "_", "linestyle": ""}
        if promised:
            axes.plot(*zip(*sorted(promised), strict=True), color=INK, **marks)
            entries.append(entry("multiply-accumulates saved", **marks))
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel=REDUCTION_LABEL, ylabel="less time than ByT5 (%)")
        legend_beside(axes, entries)

    return draw(paint, name, caption, height=3.6)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    document = results.analyses.get("runtime", {"runs": []})
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


def _published_reduction(row: Published) -> float | None:
    """What the model of a published number deletes, wherever that was published."""
    run = row.version, row.model, row.setting
    for other in published().values():
        if other.metric == REDUCTION and other.subset in WHOLE:
            if (other.version, other.model, other.setting) == run:
                return other.value
    return None
