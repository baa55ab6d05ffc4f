"""Templates: what is parsed, what is refused, and the same text of a row and of a table."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mrt5cli.templates import Template


@pytest.mark.parametrize(
    ("text", "columns", "lone"),
    [
        ("{clean}", ("clean",), "clean"),
        ("Correct: {noisy}", ("noisy",), None),
        ("{a}{b} and {a}", ("a", "b"), None),
        ("{translation.en}", ("translation.en",), "translation.en"),
        ("{a column, so called}", ("a column, so called",), "a column, so called"),
        ("{{{a}}}", ("a",), None),
        ("{{a}} {b}", ("b",), None),
        ("no column", (), None),
    ],
)
def test_what_a_template_names(text: str, columns: tuple[str, ...], lone: str | None) -> None:
    template = Template.parse(text)
    assert (template.columns, template.lone_column) == (columns, lone)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a", "unmatched { at character 1"),
        ("b: a}", "unmatched } at character 5"),
        ("{a {b}", "unmatched { at character 1"),
        ("{}", "empty braces; write a column name"),
        ("{ }", "empty braces; write a column name"),
        ("{ a}", "spaces around the column name; write {a}"),
        ("{a:>3}", "formats and conversions after ':' are not"),
        ("{a!r}", "formats and conversions after '!' are not"),
    ],
)
def test_what_is_no_template(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Template.parse(text)
    assert said in str(error.value)


def test_a_row_and_a_table_give_the_same_texts() -> None:
    rows = [{"a": "é", "b.c": ""}, {"a": "{x}", "b.c": "\n\0"}, {"a": "", "b.c": "2"}]
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.large_string()) for name in ("a", "b.c")]))
    for text in ("{{{a}}} -> {b.c}{a}", "{a}", "constant"):
        template = Template.parse(text)
        rendered = template.render_table(pa.concat_tables([table[:1], table[1:]]))
        assert rendered.to_pylist() == [template.render(row) for row in rows]
        assert isinstance(rendered, pa.LargeStringArray)
    assert Template.parse("{{{a}}} -> {b.c}").render(rows[1]) == "{{x}} -> \n\0"
