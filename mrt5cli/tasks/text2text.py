"""Text to text: any columns of local files or Hub datasets in, a text out, from a recipe alone.

Rows are read as pairs of an input and its accepted targets (`data/pairs.py`), then encoded, ordered and
measured like every table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from mrt5cli.data.mixtures import shares
from mrt5cli.data.pairs import INPUT, TARGETS, Pairs
from mrt5cli.recipe import Text2TextTask
from mrt5cli.tasks.base import register
from mrt5cli.tasks.tables import Encoding, RowsTask


@register("text2text")
class Text2Text(RowsTask):
    """The parts of training are its sources; those of other splits may also be languages."""

    normalization = "none"

    def __init__(self, section: Text2TextTask) -> None:
        lengths = section.input_length, section.target_length
        super().__init__(section.kind, Encoding(f"{{{INPUT}}}", TARGETS, *lengths))
        self.section, self.answer_length = section, section.target_length
        self.measures = tuple(section.metrics)
        self.choices = None if section.choices is None else tuple(section.choices)
        self._sources = {
            name: Pairs(section, source, self._left_out) for name, source in section.named_sources().items()
        }
        # Source and language by part.
        self._halves: dict[str, tuple[str, str]] = {}

    def parts(self, split: str) -> list[str]:
        if split == "train":
            return list(self._sources)
        found = [name for name, source in self._sources.items() if source.has(split)]
        if self.section.language_column is None:
            return found
        return [part for name in found for part in self._by_language(name, split)]

    def language_of(self, subset: str) -> str | None:
        return self._halves[subset][1] if subset in self._halves else None

    def remarks(self) -> list[str]:
        files = [source.files for source in self._sources.values() if source.files is not None]
        return [*(remark for each in files for remark in each.remarks), *super().remarks()]

    def splits(self) -> list[str]:
        several = len(self._sources) > 1
        return [
            f"{name}, {line}" if several else line
            for name, source in self._sources.items()
            for line in source.splits()
        ]

    def commits(self) -> dict[str, str]:
        opened = [source.dataset_if_open for source in self._sources.values()]
        return {dataset.name: dataset.commit for dataset in opened if dataset is not None}

    def shares(self) -> dict[str, float]:
        several = len(self._sources) > 1
        return dict(zip(self._sources, shares(self._weights()), strict=True)) if several else {}

    def _read(self, split: str, part: str) -> pa.Table:
        if part in self._sources:
            return pa.concat_tables(self._sources[part].tables(split).values())
        if part not in self._halves:
            self.parts(split)
        name, language = self._halves[part]
        return self._sources[name].tables(split)[language]

    def _by_language(self, name: str, split: str) -> list[str]:
        """The parts of a source's split: its languages, sorted, after its name if sources are several."""
        before = f"{name}/" if len(self._sources) > 1 else ""
        tables = self._sources[name].tables(split)
        spoken = [language for language, table in tables.items() if language and len(table)]
        parts = {f"{before}{language}": (name, language) for language in sorted(spoken)}
        self._halves |= parts
        return list(parts)

    def _weights(self) -> Sequence[float]:
        return [getattr(source, "weight", 1.0) for source in self.section.named_sources().values()]

    def _has(self, split: str) -> bool:
        return any(source.has(split) for source in self._sources.values())

    def _empty(self) -> dict[str, int]:
        return sum((source.empty for source in self._sources.values()), Counter[str]())

    def _origin(self) -> str:
        if not (drawn := self.shares()):
            return next(iter(self._sources.values())).origin
        return " and ".join(f"{100 * share:.3g} % {name}" for name, share in drawn.items())
