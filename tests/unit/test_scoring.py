"""Measures of generated answers: against independent counts and sacrebleu's own, alone and all together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from own_kinds import forgotten

from mrt5cli.errors import UserError
from mrt5cli.metrics import catalog, scoring
from mrt5cli.metrics.catalog import METRICS, Metric, generates, measures, metric_of, misfit, register, short
from mrt5cli.metrics.scoring import alone, interval, number, scored, signature, value

words = st.text("ab ç北\r\n", max_size=8)


def by_hand(one: Sequence[str], other: Sequence[str]) -> int:
    """Wagner and Fischer's edit distance, written out."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_error_rates_are_edits_by_length_divided_once(pairs: list[tuple[str, str]]) -> None:
    said, wanted = zip(*pairs, strict=True)
    for name, parted in (("cer", list), ("wer", str.split)):
        edits = sum(by_hand(parted(one), parted(other)) for one, other in pairs)
        length = sum(len(parted(other)) for other in wanted)
        expected = edits / length if length else (None if edits else 0.0)
        assert number(name, said, [(text,) for text in wanted]) == expected


def test_error_rates_of_a_known_case() -> None:
    said, accepted = ["kitten", "a b c"], [("sitting",), ("a x c d",)]
    assert number("cer", said, accepted) == (3 + 3) / (7 + 7)
    assert number("wer", said, accepted) == (1 + 2) / (1 + 4)
    assert number("cer", ["abcdef"], [("a",)]) == 5.0, "more than everything may be wrong"


def test_the_reference_with_the_lowest_rate_counts() -> None:
    """Two of four is better than one of one, and an empty reference is best where nothing is said."""
    assert scored("cer", ["ab"], [("b", "abcd")]).tolist() == [[2, 4]]
    assert scored("cer", [""], [("b", "")]).tolist() == [[0, 0]]
    assert scored("cer", ["x"], [("", "xy")]).tolist() == [[1, 2]]


def test_empty_references_count_their_edits_and_no_length() -> None:
    assert number("cer", ["ab", "cd"], [("",), ("cdef",)]) == 4 / 4
    assert number("cer", ["", ""], [("",), ("",)]) == 0.0
    assert number("wer", ["a"], [("",)]) is None
    assert number("cer", [], []) is None
    assert alone("cer", scored("cer", ["a", ""], [("",), ("",)])) == [None, 0.0]


def test_words_of_a_language_without_spaces_are_its_characters() -> None:
    pair = ["他在1998年来"], [("他在1999年来",)]
    assert number("wer", *pair, language="zh-TW") == 1 / 5, "a number is one word"
    assert number("wer", *pair, language="fr") == 1.0
    assert number("wer", *pair) == 1.0


texts = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ".", "北京"]), max_size=7).map(
    " ".join
)


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_bleu_and_chrf_are_sacrebleus(rows: list[tuple[str, list[str]]]) -> None:
    said, accepted = [row[0] for row in rows], [row[1] for row in rows]
    streams = [[each[k] if k < len(each) else None for each in accepted] for k in range(3)]
    streams = [stream for stream in streams if any(text is not None for text in stream)]
    assert number("bleu", said, accepted) == sacrebleu.corpus_bleu(said, streams).score
    assert number("chrf", said, accepted) == sacrebleu.corpus_chrf(said, streams).score
    for one, answer, wanted in zip(
        alone("chrf", scored("chrf", said, accepted)), said, accepted, strict=True
    ):
        assert one == sacrebleu.sentence_chrf(answer, wanted).score
    for one, answer, wanted in zip(
        alone("bleu", scored("bleu", said, accepted)), said, accepted, strict=True
    ):
        assert one == sacrebleu.sentence_bleu(answer, wanted).score


def test_signatures_name_the_defaults_of_sacrebleu() -> None:
    assert signature("bleu").startswith("sacrebleu, nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signature("chrf").startswith("sacrebleu, nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert signature("cer") is None


def test_texts_are_taken_as_they_are() -> None:
    same = "e\u0301\r\n", "\u00e9\n"
    assert number("exact_match", [same[0]], [(same[1],)], "none") == 0.0
    assert number("exact_match", ["The Cat."], [("cat",)], "squad") == 1.0
    assert number("exact_match", ["The Cat."], [("cat",)], "none") == 0.0
    assert number("exact_match", [same[0]], [(same[0],)], "none") == 1.0
    assert number("exact_match", ["a\r\n", " a"], [("a\n", "a"), ("a",)], "none") == 0.0
    assert number("f1", ["a B  c"], [("B\tc x",)], "none") == pytest.approx(2 / 3)
    assert number("f1", ["北京大"], [("北京",)], "none", "zh") == pytest.approx(0.8)
    assert number("cer", ["The Cat."], [("the cat",)], "squad") == 3 / 7, "whatever the rule"


# --- intervals ---


def test_the_interval_of_a_ratio_is_that_of_the_delta_method() -> None:
    draw = np.random.default_rng(1)
    lengths = draw.integers(5, 40, 3000)
    sums = np.stack([draw.binomial(lengths, 0.2), lengths], axis=1).astype(float)
    rate = value("cer", sums.sum(axis=0))
    assert rate is not None

    ends = interval("cer", [sums])

    half = 1.96 * (sums[:, 0] - rate * sums[:, 1]).std() / lengths.mean() / 3000**0.5
    assert ends is not None
    assert ends == pytest.approx((rate - half, rate + half), abs=0.25 * half)
    apart = interval("cer", [sums[:1000], sums[1000:]])
    assert apart == pytest.approx(ends, abs=0.25 * half), "subsets keep their share"


def test_a_bootstrap_repeats_itself_and_says_nothing_of_what_has_no_number() -> None:
    said, accepted = ["a b", "b", "c c d e"], [("a b",), ("c",), ("c d e f",)]
    for name in ("cer", "wer", "chrf", "bleu"):
        statistics = scored(name, said, accepted)
        low, high = interval(name, [statistics]) or (math.nan, math.nan)
        whole = value(name, statistics.sum(axis=0))
        assert whole is not None and low <= whole <= high
        assert interval(name, [statistics]) == (low, high)
    assert interval("cer", [scored("cer", ["a"], [("",)])]) is None
    assert interval("cer", [scored("cer", ["a"], [("a",)])]) is None, "one example says nothing of others"


# --- the user's own, and names ---


@pytest.fixture
def half() -> Iterator[str]:
    """A metric that gives half a point to whatever is not the same."""
    with forgotten():
        register(
            Metric("half", "halves", "half", "share", better="higher"),
            lambda answer, accepted: 1.0 if answer in accepted else 0.5,
        )
        yield "half"


def test_a_metric_of_the_users_own(half: str) -> None:
    assert number(half, ["a", "b"], [("a", "x"), ("x",)]) == 0.75
    assert alone(half, scored(half, ["a", "b"], [("a",), ("x",)])) == [1.0, 0.5]
    assert interval(half, [scored(half, ["a", "b"] * 20, [("a",)] * 40)]) is not None
    assert METRICS[half].chooses and METRICS[half].answers and half in measures() and misfit(half) is None
    with pytest.raises(ValueError, match="a metric 'half' exists already"):
        register(Metric("half", "halves"), lambda answer, accepted: 0.0)
    with pytest.raises(ValueError, match="a metric 'cer' exists already"):
        register(Metric("cer", "mine"), lambda answer, accepted: 0.0)


@pytest.mark.parametrize("score", [lambda *_: 1 / 0, lambda *_: math.nan, lambda *_: "much"])
def test_a_metric_of_the_users_own_that_fails_is_named(
    half: str, score: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.OWN, half, score)
    with pytest.raises(UserError, match="the metric half "):
        number(half, ["a"], [("b",)])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, None) for name in ("cer", "accuracy", "rouge", "bleurt", "ter", "owner/metric")),
        *((name, None) for name in ("./my metric.py", "/where/ever", "~/metrics/mine", "a/mine/mine.py")),
        ("excat_match", "'excat_match' is not a metric; did you mean exact_match?"),
        ("CER", "'CER' is not a metric; did you mean cer?"),
        ("EM", "'EM' is not a metric; did you mean exact_match?"),
        ("chrF", "'chrF' is not a metric; did you mean chrf?"),
        ("loss", "loss is always measured and cannot be a task's metric; use token_accuracy, "),
        ("a metric", "'a metric' is neither one of token_accuracy, "),
    ],
)  # fmt: skip
def test_names_that_a_recipe_may_say(name: str, told: str | None) -> None:
    found = misfit(name)
    assert found == told or (told is not None and found is not None and found.startswith(told))


def test_measures_of_a_recipe() -> None:
    ours = "token_accuracy sequence_accuracy accuracy exact_match f1 cer wer chrf bleu"
    assert measures() == ours.split()
    assert generates(["sequence_accuracy", "cer"]) and generates(["rouge"])
    assert not generates(["sequence_accuracy", "token_accuracy", "accuracy"])
    assert {name for name in measures() if METRICS[name].better == "lower"} == {"cer", "wer"}
    assert all(METRICS[name].chooses for name in measures())


def test_what_is_loaded_is_called_by_its_own_name() -> None:
    assert [short(name) for name in ("rouge", "owner/mine", "./here/mine.py", "~/a/mine")] == [
        "rouge"
    ] + 3 * ["mine"]
    assert [short("./cer.py"), short("owner/cer")] == ["./cer.py", "owner/cer"], "that name is taken"
    assert metric_of("rouge.rougeL").column == "rouge.\nrougeL"
    assert catalog.is_measured("cer", ("cer",), False) and not catalog.is_measured("cer", (), True)
    assert catalog.is_measured("accuracy", (), True) and not catalog.is_measured("accuracy", (), False)
