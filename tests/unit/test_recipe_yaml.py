"""Strict YAML: every surprise of YAML 1.1 that a recipe could meet, and every complaint."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt5cli.recipe.strict_yaml import YamlProblem, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000_000", 1_000_000),
        ("+7", 7),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("0x1f", "0x1f"),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("[en, no, 1e-3]", ["en", "no", 1e-3]),
        ("{kind: none}", {"kind": "none"}),
    ],
)
def test_scalars_mean_what_a_reader_sees(text: str, value: object) -> None:
    found = parse(f"key: {text}").tree["key"]
    assert found == value and type(found) is type(value)


def test_infinity_and_nan_are_floats() -> None:
    assert parse("a: -.inf").tree == {"a": -math.inf}
    assert math.isnan(parse("a: .nan").tree["a"])


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 3000 + "}" * 3000, "- " * 3000 + "x"])
def test_depth_is_refused_where_it_goes_too_far(text: str) -> None:
    with pytest.raises(YamlProblem, match="nested too deeply"):
        parse(text)


def test_a_number_that_python_does_not_read_is_refused() -> None:
    with pytest.raises(YamlProblem, match=r"^line 1, column 4: it contains .* more than 4,300 digits"):
        parse("a: -" + "9" * 5000)


def test_a_merge_key_is_an_ordinary_key() -> None:
    assert parse("<<: {a: 1}").tree == {"<<": {"a": 1}}


def test_no_as_a_key_stays_text() -> None:
    assert parse("no: 1").tree == {"no": 1}


def test_lines_of_keys_and_items() -> None:
    document = parse("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - y: 3\n")
    assert document.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "d"): 4,
        ("b", "d", 0): 5,
        ("b", "d", 1): 6,
        ("b", "d", 1, "y"): 6,
    }


def test_an_empty_file_is_an_empty_document() -> None:
    assert parse("# only a comment\n").tree is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice, on lines 1 and 3"),
        ("x:\n  a: 1\n  a: 2", "'a' is given twice, on lines 2 and 3"),
        ("{a: 1, 'a': 2}", "'a' is given twice, on lines 1 and 1"),
        ("1: x", "line 1, column 1: a key must be text; quote 1"),
        ("ok: 1\ntrue: x", "line 2, column 1: a key must be text; quote True"),
        ("? [a]\n: 1", "line 1, column 3: a key must be text; quote ['a']"),
        ("a:\n\tb: 1", "line 2, column 1: tabs are not allowed; indent with spaces"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\nb\nc: 1", "line 3, column 1: while scanning a simple key: could not find expected ':'"),
        (
            "a: 1\n---\nb: 2",
            "line 2, column 1: expected a single document in the stream: but found another document",
        ),
        (
            "a: &x 1",
            "line 1, column 4: anchors and aliases (& and *) are not allowed in recipes; "
            "repeat the value, or quote text that starts with & or *",
        ),
        (
            "a: *glob",
            "line 1, column 4: anchors and aliases (& and *) are not allowed in recipes; "
            "repeat the value, or quote text that starts with & or *",
        ),
        ("a: !!python/object:os.system x", "line 1, column 4: tags (!) are not allowed in recipes"),
        (
            "a: @x",
            "line 1, column 4: while scanning for the next token: "
            "found character '@' that cannot start any token",
        ),
        (
            "a: [1, 2",
            "line 1, column 9: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'",
        ),
        ("a: 1\nb: \x07", "line 2: the character U+0007 is not allowed"),
    ],
)
def test_every_complaint_is_one_sentence_with_its_line(text: str, message: str) -> None:
    with pytest.raises(YamlProblem) as caught:
        parse(text)
    assert str(caught.value) == message


# What PyYAML takes for line breaks within a text does not survive it.
TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(
        [
            "no",
            "1e-4",
            "1E5",
            "true",
            "null",
            "~",
            "",
            "010",
            "1:30",
            "<<",
            "&a",
            "*a",
            "!x",
            "1_0",
        ]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)  # other processes may have the machine
@given(st.dictionaries(TEXT, TREES, max_size=4))
def test_dump_is_read_back_to_an_equal_tree(tree: dict[str, object]) -> None:
    assert repr(parse(dump(tree)).tree) == repr(tree)


@settings(deadline=None)  # other processes may have the machine
@given(st.dictionaries(TEXT.filter(bool), SCALARS, max_size=4))
def test_readers_of_yaml_1_1_see_the_same_text(tree: dict[str, object]) -> None:
    assert yaml.safe_load(dump(tree)) == tree


def test_dump_keeps_order_and_writes_lists_on_one_line() -> None:
    assert dump({"b": {"z": 1, "a": [1, "no"]}, "a": 1e-6}) == "b:\n  z: 1\n  a: [1, 'no']\na: 1.0e-06\n"
