"""Multiply-accumulates against the share deleted: the paper's formula, and what the matrices cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mrt5cli.analysis.across_runs.shared import Asked, config_of, described
from mrt5cli.analysis.compute import Sizes, macs, paper_macs
from mrt5cli.metrics.results import Row
from mrt5cli.report.results import Ran

SOURCE, TARGET = 1024, 189
"""Positions in the paper's count, of a span-corruption example."""
RATES = tuple(tenth / 10 for tenth in range(11))


def compute(asked: Asked) -> dict[str, Any]:
    """The curve, and where the experiment's evaluated runs lie on it.

    With trained runs the curve is of the first one's sizes and mean lengths, else of ByT5-small's and of the
    paper's lengths, with which the published numbers were made.
    """
    sizes, source, target = Sizes(), SOURCE, TARGET
    runs = [(ran, found[0]) for ran in asked.trained if (found := ran.own("deletion_rate")) is not None]
    if runs:
        gated = next((ran for ran, _ in runs if ran.family != "ByT5"), runs[0][0])
        sizes = Sizes.of(config_of(gated))
        source, target = _lengths(runs[0][1])
    whole, paper_whole = macs(sizes, [source], [source], [target]), paper_macs(sizes, source, target, 1.0)
    curve = []
    for rate in RATES:
        paper = paper_macs(sizes, source, target, 1 - rate)
        exact = macs(sizes, [source], [int(source * (1 - rate))], [target])
        curve.append(
            {
                "deletion_rate": rate,
                "paper_macs": paper,
                "paper_relative": paper / paper_whole,
                "macs": exact,
                "relative": exact / whole,
            }
        )
    return {
        "sizes": asdict(sizes),
        "source": source,
        "target": target,
        "curve": curve,
        "runs": [
            {**described(ran), "deletion_rate": row.deletion_rate, "relative": relative_macs(ran, row)}
            for ran, row in runs
        ],
        "missing": asked.missing,
    }


def relative_macs(ran: Ran, row: Row) -> float:
    """Exact multiply-accumulates of a run's mean example, as a share of those with nothing deleted.

    What a shortener itself costs is not counted: next to nothing, but for the pooling baselines.

    Args:
        row: of its evaluation, with its lengths and its deletion rate.
    """
    sizes = Sizes.of(config_of(ran))
    source, target = _lengths(row)
    kept = source - round(source * (row.deletion_rate or 0.0))
    return macs(sizes, [source], [kept], [target]) / macs(sizes, [source], [source], [target])


def _lengths(row: Row) -> tuple[int, int]:
    """Mean source and target positions of an example, rounded."""
    return round(row.input_length or 0), max(1, round(row.target_tokens / row.examples))
