"""What an evaluation's results are called in a run's eval/ folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def result_name(
    kind: str,
    *,
    split: str = "test",
    hard_delete: bool = True,
    constrained: bool = False,
    normalization: str | None = None,
    languages: Sequence[str] | None = None,
    at_rates: bool = False,
    data: str | None = None,
    checkpoint: str | None = None,
    label: str = "",
) -> str:
    """The file's stem. Whatever makes results differ is in it: none overwrites another.

    Args:
        kind: of task.
        at_rates: by thresholds other than the model's own, too.
        data: what replaces the task's source.
        checkpoint: its folder, unless it is the finished model.
        label: what else sets it apart.
        split, hard_delete, constrained, normalization, languages: as in `compare.Comparison`.
    """
    parts = [
        kind,
        "" if split == "test" else split,
        "" if hard_delete else "soft",
        "constrained" if constrained else "",
        "" if normalization in (None, "squad") else normalization,
        "" if languages is None else "+".join(languages),
        "rates" if at_rates else "",
        "" if data is None else f"data-{Path(data).resolve().name}",
        checkpoint or "",
        label,
    ]
    return "-".join(part for part in parts if part)
