"""The two kinds without a module: nothing is deleted, or the whole source is."""

from __future__ import annotations

from typing import ClassVar, Literal

from mrt5cli.recipe.shorteners.base import ShortenerSection, Steering


class NoShortener(ShortenerSection):
    """Plain ByT5: nothing is deleted."""

    deletion_types: ClassVar[tuple[str, ...]] = ("none",)
    paper_name: ClassVar[str] = "ByT5"
    aliases: ClassVar[tuple[str, ...]] = ("byt5",)
    called: ClassVar[str] = "no shortener"
    about: ClassVar[str] = "ByT5: {model}, without any deletion."

    kind: Literal["none"]

    def phrase(self) -> str:
        return "nothing deleted"

    def listed(self, controller: Steering) -> str:
        return self.paper_name


class SourceRemoved(ShortenerSection):
    """Baseline: the decoder alone; the encoder sees one EOS whatever the source is."""

    deletion_types: ClassVar[tuple[str, ...]] = ("source_removed",)
    paper_name: ClassVar[str] = "no source"
    aliases: ClassVar[tuple[str, ...]] = ("decoder_only", "decoder_baseline")
    called: ClassVar[str] = "no source"
    about: ClassVar[str] = (
        "A baseline for MrT5: {model} whose encoder sees a lone EOS whatever its input is, so that the "
        "decoder alone models text."
    )
    reads_source: ClassVar[bool] = False

    kind: Literal["source_removed"]

    def phrase(self) -> str:
        return "source removed: the encoder sees one EOS"

    def listed(self, controller: Steering) -> str:
        return "decoder only"
