"""What one model deletes from some rows, or pools, counted for `mrt5 inspect-deletions`."""

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
        inside_characters: that start at a byte that is not the first of its UTF-8 character.
        dropped_positions: that are in no segment.
        lengths: how many there are of each length in positions, short ones first.
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
    """What one model deletes from some rows, or pools.

    Attributes:
        name: of the model.
        threshold: of its gate values.
        lowest: gate value that deletes, whatever the threshold; values run from it to 0, which keeps.
        fixed: why no other threshold has a meaning, after the model's name; None where it has one.
        requested: deletion rate, 0 to 1, that the threshold requests; None unless the gate is conditioned on
            a rate.
    """

    name: str
    deletion_type: str
    threshold: float
    rows: Sequence[InspectedRow]
    lowest: float = 0.0
    fixed: str | None = None
    requested: float | None = None

    @property
    def movable(self) -> bool:
        """Whether its gate values alone tell what another threshold deletes, as of this one they do."""
        told = (np.array_equal(row.deleted_at(self.threshold), row.deleted) for row in self.rows)
        return not self.fixed and not self.pools and all(told)

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
        """Gate precision and recall; None where no task says what can go."""
        if self.pools or all(row.deletable is None for row in self.rows):
            return None
        return agreement(self.rows)

    def document(self) -> Json:
        """Everything, exactly, for JSON; `threshold` and `gate` are null where bytes are pooled.

        A gate value is the number itself, in full: one that is rounded may fall on the other side of a
        threshold, and as a threshold it would not be the value it was read from.
        """
        document: Json = {
            "name": self.name,
            "deletion_type": self.deletion_type,
            "threshold": None if self.pools else self.threshold,
            "positions": self.rate.count,
            "deleted": int(self.rate.total),
            "deletion_rate": self.rate.value,
        }
        if self.requested is not None:
            document["requested_deletion_rate"] = self.requested
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
