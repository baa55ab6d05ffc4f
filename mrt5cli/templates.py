"""Text templates with columns in braces: `Correct: {noisy}`, `{translation.en}`.

Used for `input` and `target` in recipes and for the prompt of `mrt5 generate`. `{{` and `}}` are braces.
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
    """A parsed template.

    Attributes:
        text: the template as written.
        pieces: pairs of a literal, possibly empty, and the column that follows it, or None at the end.
    """

    text: str
    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a template.

        Raises:
            ValueError: a brace is unmatched, or braces do not contain a column name.
        """
        pieces: list[tuple[str, str | None]] = []
        literal, end = "", 0
        for part in _PARTS.finditer(text):
            literal += text[end : part.start()]
            end = part.end()
            if part[0] in ("{{", "}}"):
                literal += part[0][0]
            elif part[1] is None:
                raise ValueError(f"unmatched {part[0]} at character {part.start() + 1}; {_BRACES}")
            else:
                pieces.append((literal, _checked(part[1])))
                literal = ""
        return cls(text, (*pieces, (literal + text[end:], None)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it uses, each once, in order of first use."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    @property
    def lone_column(self) -> str | None:
        """The column if the template is nothing but one column, such as "{clean}"; otherwise None."""
        return self.columns[0] if len(self.columns) == 1 and self.text == f"{{{self.columns[0]}}}" else None

    def render(self, values: Mapping[str, str]) -> str:
        """Fill in the columns of one row."""
        return "".join(
            literal if column is None else literal + values[column] for literal, column in self.pieces
        )

    def render_table(self, table: pa.Table) -> pa.LargeStringArray:
        """Fill in each row of a table whose columns are large strings without nulls."""
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
        raise ValueError(f"empty braces; write a column name in them, and {_BRACES}")
    if column != column.strip():
        raise ValueError(f"{{{column}}} has spaces around the column name; write {{{column.strip()}}}")
    if mark := next((mark for mark in ":!" if mark in column), None):
        raise ValueError(
            f"{{{column}}} is not a plain column name: formats and conversions after {mark!r} are not "
            "supported, and a column with such a name must be renamed"
        )
    return column
