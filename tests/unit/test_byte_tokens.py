"""Bytes to ids and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.byte_tokens import EOS, OFFSET, PAD, VOCAB_SIZE, decode, encode, to_bytes
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.recipe.tasks import TYDIQA_LANGUAGES, XNLI_LANGUAGES, XQUAD_LANGUAGES


@given(st.text())
def test_text_survives(text: str) -> None:
    clean = text.encode("utf-8", errors="replace")
    ids = encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == [byte + OFFSET for byte in clean]
    assert to_bytes(ids) == clean
    assert decode(ids) == clean.decode()


@given(st.binary())
def test_bytes_survive(raw: bytes) -> None:
    ids = encode(raw, add_eos=True)
    assert ids[-1] == EOS
    assert len(ids) == len(raw) + 1
    assert to_bytes(ids) == raw


@given(st.lists(st.integers(-100, VOCAB_SIZE + 10)))
def test_decoding_takes_anything(ids: list[int]) -> None:
    assert decode(ids) == bytes(i - 3 for i in ids if 3 <= i <= 258).decode("utf-8", errors="ignore")


def test_nothing_in_text_is_special() -> None:
    assert encode("</s>").tolist() == [63, 50, 118, 65]
    assert EOS not in encode("a</s><pad>b")


def test_special_ids_and_halves_of_characters_drop_out() -> None:
    euro = encode("€")
    assert decode([PAD, *encode("a"), EOS, *euro[:2], *encode("b"), 300, -100]) == "ab"
    assert decode(np.stack([euro, euro])) == "€€"


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert decode(encode("a\udcffb")) == "a?b"


def test_languages_with_names_and_scripts() -> None:
    assert list(LANGUAGES)[:15] == [
        "en",
        "fr",
        "es",
        "de",
        "el",
        "bg",
        "ru",
        "tr",
        "ar",
        "vi",
        "th",
        "zh",
        "hi",
        "sw",
        "ur",
    ], "the 15 of the paper's training, in its order"
    assert set(LANGUAGES) >= {*XNLI_LANGUAGES, *TYDIQA_LANGUAGES, *XQUAD_LANGUAGES}
    assert LANGUAGES["sw"] == ("Swahili", "Latin", "swa")
    assert {language.script for language in LANGUAGES.values()} == {
        "Latin", "Greek", "Cyrillic", "Arabic", "Thai", "Han", "Devanagari", "Bengali", "Hangul", "Telugu",
    }  # fmt: skip


@pytest.mark.parametrize(
    "module",
    ["byte_tokens", *(f"data.{name}" for name in ("languages", "corpus", "span_noise", "sources", "tables"))],
)
def test_data_needs_neither_torch_nor_datasets(module: str) -> None:
    code = (
        f"import sys, mrt5cli.{module}; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'datasets', 'transformers', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
