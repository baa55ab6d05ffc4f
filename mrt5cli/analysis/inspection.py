"""Counts of what one model deletes or pools, for `mrt5 inspect-deletions`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mrt5cli.analysis.deletions import (
    InspectedRow,
    agreement,
    kind_lines,
    kind_table,
    script_table,
    total_rate,
)
from mrt5cli.analysis.marked_text import plain
from mrt5cli.metrics.counts import Ratio
from mrt5cli.metrics.results import Json


@dataclass(frozen=True)
class Segments:
    """Pooled segments of some rows.

    Attributes:
        count: number of segments.
        mean_length: mean length in positions.
        inside_characters: number of segments that start inside a UTF-8 character.
        dropped_positions: number of positions that belong to no segment.
        lengths: number of segments by length in positions, in ascending order.
    """

    count: int
    mean_length: float
    inside_characters: int
    dropped_positions: int
    lengths: dict[int, int]

    @classmethod
    def of(cls, rows: Sequence[InspectedRow]) -> Segments:
        lengths = Counter(length for row in rows for _, length in row.segments or [])
        return cls(
            count=lengths.total(),
            mean_length=sum(length * number for length, number in lengths.items()) / lengths.total(),
            inside_characters=sum(
                int(row.starts[character.start + 1 : character.start + len(character.ids)].sum())
                for row in rows
                for character in row.characters
            ),
            dropped_positions=sum(row.dropped for row in rows),
            lengths=dict(sorted(lengths.items())),
        )


@dataclass(frozen=True)
class Inspection:
    """What one model deletes or pools in some rows.

    Attributes:
        name: the model's name.
        threshold: the gate threshold.
        rows: the inspected rows.
        lowest: the lowest gate value, which always deletes; values range from it to 0 (keep).
        fixed: predicate that explains why other thresholds have no meaning; None if they do.
    """

    name: str
    deletion_type: str
    threshold: float
    rows: Sequence[InspectedRow]
    lowest: float = 0.0
    fixed: str | None = None

    @property
    def movable(self) -> bool:
        """Whether gate values alone determine what a threshold deletes, as checked at the current one."""
        reproduced = (np.array_equal(row.deleted_at(self.threshold), row.deleted) for row in self.rows)
        return not self.fixed and not self.pools and all(reproduced)

    @property
    def pools(self) -> bool:
        return self.rows[0].gate is None

    @property
    def rate(self) -> Ratio:
        return total_rate(self.rows)

    @property
    def kinds(self) -> dict[str, Ratio]:
        return kind_table(self.rows)

    @property
    def scripts(self) -> dict[str, Ratio]:
        return script_table(self.rows)

    @property
    def agreement(self) -> tuple[float | None, float | None] | None:
        """Gate precision and recall; None if no task knows which bytes can be deleted."""
        if self.pools or all(row.deletable is None for row in self.rows):
            return None
        return agreement(self.rows)

    def document(self) -> Json:
        """Everything as a JSON object; `threshold` and `gate` are null for a pooling model.

        Gate values are not rounded: a rounded value might fall on the other side of a threshold, or differ
        from the value it came from when used as one.
        """
        document: Json = {
            "name": self.name,
            "deletion_type": self.deletion_type,
            "threshold": None if self.pools else self.threshold,
            "positions": self.rate.count,
            "deleted": int(self.rate.total),
            "deletion_rate": self.rate.value,
        }
        if self.agreement is not None:
            document["gate_precision"], document["gate_recall"] = self.agreement
        if self.pools:
            segments = Segments.of(self.rows)
            lengths = [{"length": length, "count": n} for length, n in segments.lengths.items()]
            document["segments"] = {**asdict(segments), "lengths": lengths}
        document["kinds"] = kind_lines(self.kinds)
        document["scripts"] = kind_lines(self.scripts, "script")
        document["rows"] = [
            {
                "label": row.label,
                "marked": plain(row.marked),
                "ids": row.ids.tolist(),
                "deleted": row.deleted.astype(int).tolist(),
                "gate": None if row.gate is None else row.gate.tolist(),
                "segments": row.segments,
                "deletable": None if row.deletable is None else row.deletable.astype(int).tolist(),
                "target": None if row.target is None else row.target.tolist(),
                "deletion_rate": row.rate.value,
            }
            for row in self.rows
        ]
        return document
