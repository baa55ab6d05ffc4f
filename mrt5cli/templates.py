"""Templates of texts, with columns in braces: `Correct: {noisy}`, `{translation.en}`.

What a recipe calls `input` and `target`, and what `mrt5 generate` makes of a row. `{{` and `}}` are braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import pyarrow as pa

_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_BRACES = "for a brace itself write {{ or }}"


@dataclass(frozen=True)
class Template:
    """A text with columns in it.

    Attributes:
        text: as it was written.
        pieces: what the text consists of: a literal, which may be empty, and the column after it, or None.
    """

    text: str
    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The template that a text stands for.

        Raises:
            ValueError: a brace lacks its pair, or braces hold no name of a column.
        """
        pieces: list[tuple[str, str | None]] = []
        literal, end = "", 0
        for part in _PARTS.finditer(text):
            literal += text[end : part.start()]
            end = part.end()
            if part[0] in ("{{", "}}"):
                literal += part[0][0]
            elif part[1] is None:
                raise ValueError(f"the {part[0]} at character {part.start() + 1} lacks its pair; {_BRACES}")
            else:
                pieces.append((literal, _checked(part[1])))
                literal = ""
        return cls(text, (*pieces, (literal + text[end:], None)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once, in their order."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    @property
    def lone_column(self) -> str | None:
        """The column that is all there is of it: of "{clean}"; else None."""
        return self.columns[0] if len(self.columns) == 1 and self.text == f"{{{self.columns[0]}}}" else None

    def render(self, values: Mapping[str, str]) -> str:
        """The text of a row, whose columns hold these texts."""
        return "".join(
            literal if column is None else literal + values[column] for literal, column in self.pieces
        )

    def render_table(self, table: pa.Table) -> pa.LargeStringArray:
        """The texts of the rows of a table, whose columns are large strings without nulls."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.lone_column is not None:
            return table[self.lone_column].combine_chunks()
        text = pa.large_string()
        pieces: list[pa.Scalar | pa.ChunkedArray] = []
        for literal, column in self.pieces:
            pieces.append(pa.scalar(literal, text))
            if column is not None:
                pieces.append(table[column])
        if not self.columns:
            return pa.array([self.render({})] * len(table), text)
        return pc.binary_join_element_wise(*pieces, pa.scalar("", text)).combine_chunks()


def _checked(column: str) -> str:
    if not column.strip():
        raise ValueError(f"braces without the name of a column; {_BRACES}")
    if column != column.strip():
        raise ValueError(f"{{{column}}} has spaces around the column's name; write {{{column.strip()}}}")
    if mark := next((mark for mark in ":!" if mark in column), None):
        raise ValueError(
            f"{{{column}}} is not the name of a column alone: there are no formats or conversions after "
            f"{mark!r}; a column with such a name must be renamed"
        )
    return column
