"""Multiply-accumulates left, in percent, against the share of bytes that is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrt5cli.report.figures.style import FAINT, HOLLOW, INK, Drawing, draw, legend_beside, look_of
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

Curve = Sequence[tuple[float, float]]
"""Percent deleted, and percent of the multiply-accumulates left."""


def macs(
    *, paper: Curve, exact: Curve, published: Curve, runs: Mapping[str, Curve], name: str, caption: str
) -> Drawing:
    """Draw it.

    Args:
        paper: by the paper's formula.
        exact: as the matrices multiply.
        published: the paper's values.
        runs: where evaluated runs lie, by family.
    """
    blue = look_of("MrT5").colour

    def paint(figure: Any, axes: Any) -> None:
        def plot(curve: Curve, label: str, colour: str, **style: Any) -> None:
            if curve:
                axes.plot(*zip(*curve, strict=True), color=colour, label=label, **style)

        plot(paper, "the paper's formula", blue)
        plot(exact, "exact", INK, linestyle="--")
        plot([(0, 100), (100, 0)], "in proportion", FAINT, linestyle=(0, (1, 3)), linewidth=0.8)
        plot(published, "published", blue, marker="o", linestyle="", **HOLLOW)
        for family, points in runs.items():
            look = look_of(family)
            plot(points, f"runs of {family}", look.colour, marker=look.marker, linestyle="")
        axes.set(xlim=(-2, 102), ylim=(0, 104))
        axes.set(xlabel="bytes deleted (%)", ylabel="multiply-accumulates left (%)")
        legend_beside(axes)

    return draw(paint, name, caption, height=3.6)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    document = results.analyses.get("compute")
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
