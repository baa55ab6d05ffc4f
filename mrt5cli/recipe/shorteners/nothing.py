"""The two kinds without a module: nothing is deleted, or the whole source is."""

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
    """Baseline: the decoder alone; the encoder sees one EOS whatever the source is."""

    deletion_types = ("source_removed",)
    paper_name = "no source"
    called = "no source"
    about = (
        "A baseline for MrT5: {model} whose encoder sees a lone EOS whatever its input is, so that the "
        "decoder alone models text."
    )
    reads_source = False
    refuses_inspection = "reads no source: its encoder sees a lone EOS, whatever the text is"

    kind: Literal["source_removed"]

    def phrase(self) -> str:
        return "source removed: the encoder sees one EOS"
