"""Answers as texts: the multilingual rule on the scripts it is for, and laws that hold for any text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrt5cli.metrics.answers import NORMALIZATIONS, exact_match, f1, normalise
from mrt5cli.metrics.catalog import METRICS

texts = st.text(max_size=30)
rules = st.sampled_from(NORMALIZATIONS)
languages = st.sampled_from([None, "en", "de", "ar", "zh", "zh-TW", "th"])


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("北京。", "北京", "zh"),
        ("「東京 タワー」", "東京タワー", "ja"),
        ("กรุงเทพ มหานคร", "กรุงเทพมหานคร", "th"),
        ("«Москва»", "москва", "ru"),
        ("القاهرة، مصر", "القاهرة مصر", "ar"),
        ("١٩٩٩؟", "١٩٩٩", "ar"),
        ("दिल्ली।", "दिल्ली", "hi"),
        ("STRASSE", "Straße", "de"),
        ("\uff2e\uff21\uff34\uff2f", "nato", "zh"),
        ("cafe\u0301", "café", "fr"),
        ("e\u200d\u0301te…", "éte", "fr"),
        ("a\u00a0b\u3000c", "a b c", "fr"),
        ("The Beatles", "beatles", "en"),
        ("the\u200b Beatles", "Beatles", "en-GB"),
        ("$1,000", "1000", "en"),
    ],
)
def test_texts_that_say_the_same(one: str, other: str, language: str) -> None:
    assert exact_match(one, [other], "multilingual", language) == 1.0
    assert f1(one, [other], "multilingual", language) == 1.0


def test_the_official_rule_misses_what_is_not_ascii() -> None:
    assert exact_match("北京。", ["北京"]) == 0.0
    assert f1("กรุงเทพ มหานคร", ["กรุงเทพมหานคร"]) == 0.0


def test_articles_are_english() -> None:
    assert normalise("the a la", "multilingual", "en") == "la"
    assert normalise("the a la", "multilingual", "fr") == "the a la"
    assert normalise("the a la", "multilingual") == "the a la"
    assert normalise("the a la") == "la", "the official rule asks for no language"


def test_f1_without_spaces_is_over_characters() -> None:
    assert f1("北京大学", ["北京"], "multilingual", "zh") == pytest.approx(2 * (2 / 4) * 1 / (2 / 4 + 1))
    assert f1("北京大学", ["北京"], "multilingual", "fr") == 0.0
    assert normalise("在1998年 iPhone", "multilingual", "zh") == "在 1998 年 iphone"
    assert f1("1998年", ["1999年"], "multilingual", "zh") == pytest.approx(0.5), "a number is right or wrong"


def test_the_best_reference_counts() -> None:
    assert f1("new york", ["york", "new york city"]) == pytest.approx(0.8)
    assert exact_match("new york", ["york", "New York!"]) == 1.0
    with pytest.raises(ValueError, match="at least one reference"):
        f1("new york", [])


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'bleu' is not a normalization; expected squad, multilingual"):
        normalise("x", "bleu")  # type: ignore[arg-type]


@given(text=texts, rule=rules, language=languages)
def test_what_is_normalised_stays_so(text: str, rule: str, language: str | None) -> None:
    once = normalise(text, rule, language)

    assert normalise(once, rule, language) == once


@given(one=texts, other=texts, rule=rules, language=languages)
@example(one="\x1f", other="", rule="multilingual", language="zh")
def test_scores(one: str, other: str, rule: str, language: str | None) -> None:
    assert exact_match(one, [one], rule, language) == 1.0
    assert f1(one, [one], rule, language) == float(bool(normalise(one, rule, language)))
    score = f1(one, [other], rule, language)
    assert 0 <= score <= 1
    assert score == pytest.approx(f1(other, [one], rule, language))
    if score == 1.0:
        assert sorted(normalise(one, rule, language)) == sorted(normalise(other, rule, language))
    assert f1(one, [one, other], rule, language) >= score


@pytest.mark.parametrize("name", ["exact_match", "f1"])
def test_the_metrics_take_rule_and_language(name: str, tmp_path: Path) -> None:
    given = {"predictions": ["北京。", "上海"], "references": [["北京"], ["广州", "深圳"]]}
    metric = METRICS[name].load(cache_dir=str(tmp_path))

    assert metric.compute(**given) == {name: 0.0, "count": 2}
    assert metric.compute(**given, rule="multilingual", language="zh") == {name: 0.5, "count": 2}


def test_scoring_answers_needs_neither_torch_nor_evaluate() -> None:
    heavy = "{'torch', 'evaluate', 'datasets'}"
    code = f"import sys, mrt5cli.metrics.answers; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
