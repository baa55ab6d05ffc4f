"""The two kinds without a module: nothing is deleted, or the entire source."""

from __future__ import annotations

from typing import Literal

from mrt5cli.recipe.shorteners.base import ShortenerSection


class NoShortener(ShortenerSection):
    """Plain ByT5: nothing is deleted."""

    deletion_types = ("none",)
    paper_name = "ByT5"
    called = "no shortener"
    about = "ByT5: {model}, without any deletion."
    refuses_inspection = "has no delete gate: a plain ByT5 deletes nothing"

    kind: Literal["none"]


class SourceRemoved(ShortenerSection):
    """Baseline: the decoder alone; the encoder sees a single EOS instead of the source."""

    deletion_types = ("source_removed",)
    paper_name = "no source"
    called = "no source"
    about = (
        "A baseline for MrT5: {model} whose encoder sees a single EOS instead of its input, so that the "
        "decoder alone models the text."
    )
    reads_source = False
    refuses_inspection = "reads no source: its encoder sees a single EOS instead of the text"

    kind: Literal["source_removed"]

    def phrase(self) -> str:
        return "source removed: the encoder sees one EOS"
