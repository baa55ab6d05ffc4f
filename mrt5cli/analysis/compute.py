"""Multiply-accumulates of a forward pass and their saving by deletion, by the paper's formula and exactly.

The paper's formula assumes that attention's inner width is d_model and that there are two feed-forward
matrices; ByT5 has an inner width of 384 at a d_model of 1472, and three matrices. The paper's savings are
reproduced with its formula, ours are counted exactly. Neither counts norms, softmax or biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mrt5cli.analysis.runs import ExperimentRuns
from mrt5cli.metrics.results import Json, Row

SOURCE, TARGET = 1024, 189
"""Source and target positions of a span-corruption example in the paper's count."""


@dataclass(frozen=True)
class Sizes:
    """The model sizes that a count depends on; the defaults are ByT5-small's.

    Attributes:
        inner: number of attention heads times head width.
        heads: number of attention heads, which memory depends on.
        gate_layer: number of encoder blocks at full length.
        gated: whether the feed-forward layers are gated (three matrices).
    """

    d_model: int = 1472
    d_ff: int = 3584
    inner: int = 384
    heads: int = 6
    encoder_layers: int = 12
    decoder_layers: int = 4
    gate_layer: int = 3
    vocabulary: int = 384
    gated: bool = True

    @classmethod
    def of(cls, config: Json) -> Sizes:
        """The sizes in a model's configuration file."""
        return cls(
            d_model=config["d_model"],
            d_ff=config["d_ff"],
            inner=config["num_heads"] * config["d_kv"],
            heads=config["num_heads"],
            encoder_layers=config["num_layers"],
            decoder_layers=config["num_decoder_layers"] or config["num_layers"],
            gate_layer=config["delete_gate_layer"],
            vocabulary=config["vocab_size"],
            gated=config["feed_forward_proj"].startswith("gated"),
        )


def paper_macs(sizes: Sizes, source: int, target: int, kept: float) -> int:
    """Multiply-accumulates of a forward pass by the paper's formula (section on compute savings).

    Args:
        source, target: positions of the example.
        kept: share (0 to 1) of the source that remains after the gate.
    """
    width, remaining = sizes.d_model, int(source * kept)

    def layer(length: int) -> int:
        return 4 * length * width**2 + 2 * length**2 * width + 2 * length * width * sizes.d_ff

    encoder = sizes.gate_layer * layer(source) + (sizes.encoder_layers - sizes.gate_layer) * layer(remaining)
    cross = 2 * remaining * width**2 + 2 * target * width**2 + 2 * remaining * target * width
    return encoder + sizes.decoder_layers * (layer(target) + cross)


def macs(sizes: Sizes, source: Sequence[int], kept: Sequence[int], target: Sequence[int]) -> int:
    """Exact multiply-accumulates of a forward pass of a batch without padding.

    Args:
        sizes: the model's sizes.
        source: input positions of each row.
        kept: positions of each row after the gate.
        target: decoder positions of each row; causal masking does not reduce the count of self-attention.
    """
    width, inner = sizes.d_model, sizes.inner
    feed_forward = (3 if sizes.gated else 2) * width * sizes.d_ff

    def layer(lengths: Sequence[int]) -> int:
        positions = sum(lengths)
        attention = 2 * inner * sum(length**2 for length in lengths)
        return positions * (4 * width * inner + feed_forward) + attention

    pairs = sum(keys * queries for keys, queries in zip(kept, target, strict=True))
    cross = 2 * width * inner * (sum(target) + sum(kept)) + 2 * inner * pairs
    after = sizes.encoder_layers - sizes.gate_layer
    encoder = sizes.gate_layer * layer(source) + after * layer(kept)
    decoder = sizes.decoder_layers * (layer(target) + cross)
    return encoder + decoder + sum(target) * width * sizes.vocabulary


def compute(runs: ExperimentRuns) -> Json:
    """The curve of multiply-accumulates over deletion rates, and the experiment's evaluated runs.

    The curve uses the sizes and mean lengths of the first trained run, else ByT5-small's sizes and the
    paper's lengths, on which the published numbers rest. `relative` numbers are shares of the count without
    deletion.
    """
    sizes, source, target = Sizes(), SOURCE, TARGET
    counted = [(run, found[0]) for run in runs.trained if (found := run.own("deletion_rate")) is not None]
    if counted:
        gated = next((run for run, _ in counted if run.family != "ByT5"), counted[0][0])
        sizes = Sizes.of(gated.config)
        source, target = _lengths(counted[0][1])
    whole, paper_whole = macs(sizes, [source], [source], [target]), paper_macs(sizes, source, target, 1.0)
    curve = []
    for rate in (tenth / 10 for tenth in range(11)):
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
            {**run.line(), "deletion_rate": row.deletion_rate, "relative": relative_macs(run.config, row)}
            for run, row in counted
        ],
    }


def relative_macs(config: Json, row: Row) -> float:
    """Exact multiply-accumulates of a run's mean example, as a share of the count without deletion.

    The shortener's own cost, negligible except for the pooling baselines, is not counted.

    Args:
        config: the model's configuration.
        row: a result with the run's lengths and deletion rate.
    """
    sizes = Sizes.of(config)
    source, target = _lengths(row)
    kept = source - round(source * (row.deletion_rate or 0.0))
    return macs(sizes, [source], [kept], [target]) / macs(sizes, [source], [source], [target])


def _lengths(row: Row) -> tuple[int, int]:
    """Mean source and target positions of an example, rounded."""
    return round(row.known("input_length")), max(1, round(row.target_tokens / row.examples))
