"""Text on a terminal: broken between words, with nothing lost, and commands that can be pasted."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.text import byte_size, columns, duration, first_line, say, wrapped

WORDS = st.text(st.sampled_from("ab.:-=é"), min_size=1, max_size=6)


@given(
    words=st.lists(WORDS, min_size=1, max_size=30),
    margin=st.integers(0, 6),
    width=st.integers(20, 60),
)
def test_lines_are_broken_between_words_and_no_word_is_lost(
    words: list[str], margin: int, width: int
) -> None:
    lines = wrapped(" " * margin + " ".join(words), width).split("\n")
    assert [word for line in lines for word in line.split()] == words
    assert all(len(line) <= width for line in lines)
    assert all(line.startswith(" " * (margin + 2)) for line in lines[1:])


def test_what_fits_and_what_goes_into_a_pipe_stays_as_it_is() -> None:
    text = "a  line   of\n\n   text"
    assert wrapped(text, 20) == wrapped(text, None) == text
    assert wrapped("x" * 30, 20) == "x" * 30
    assert wrapped("see " + "x" * 30, 20) == "see\n  " + "x" * 30


def test_a_label_keeps_its_column() -> None:
    assert wrapped("model    12.3 M parameters, delete gate", 30).split("\n") == [
        "model    12.3 M parameters,",
        "         delete gate",
    ]
    assert wrapped("  training.lerning_rate  unknown key; did you mean learning_rate?", 40).split("\n") == [
        "  training.lerning_rate  unknown key;",
        "    did you mean learning_rate?",
    ]


def test_a_command_can_be_pasted() -> None:
    command = "hint: to go on: mrt5 pretrain local_text --set 'task.source={kind: files, path: my texts}'"
    assert wrapped(command, 30) == command


def test_the_width_is_the_terminals_or_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    assert columns(file) is None
    for given_, expected in {"40": 40, "0": None, "wide": None, "": None}.items():
        monkeypatch.setenv("COLUMNS", given_)
        assert columns(file) == expected
    monkeypatch.setenv("COLUMNS", "20")
    say("one two three four five", file)
    assert file.getvalue() == "one two three four\n  five\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.2, "3 s"),
        (90, "90 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (600, "10 min"),
        (3_599, "1 h"),
        (5_940, "1 h 39 min"),
        (7_200, "2 h"),
        (11_100, "3 h 05 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (12_345, "12.3 kB"),
        (2.5e6, "2.5 MB"),
        (999_600_000, "1 GB"),
        (1.234e9, "1.23 GB"),
        (1.234e13, "12,340 GB"),
    ],
)
def test_sizes_in_bytes(count: float, words: str) -> None:
    assert byte_size(count) == words


def test_the_first_line_of_an_exception() -> None:
    assert first_line(ValueError("\nwrong\nand more")) == "wrong"
    assert first_line(TimeoutError()) == "TimeoutError"
