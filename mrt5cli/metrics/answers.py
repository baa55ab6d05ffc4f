"""Compare answers as texts: normalization, exact match, and F1 over tokens.

There are three rules of normalization. "none" compares texts byte for byte. "squad" is the rule of the
official SQuAD v1.1 script, which the published numbers use for every language: lower case, no ASCII
punctuation, no English articles, single spaces. "multilingual" is correct for other languages, too:

- NFKC and case folding, so that full-width forms and "ß" compare as readers see them;
- no punctuation of any script, no ASCII symbols, no invisible format characters, any Unicode white space;
- articles are removed in English only: "la" is an article in French and a note in music;
- languages written without spaces (`NO_SPACES`) have no words to count, so F1 is over characters and white
  space is ignored. Runs of digits, and of letters with a case (Latin, Greek, Cyrillic), stay one token: 1998
  is not three quarters of 1999.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal

import regex

Normalization = Literal["squad", "multilingual", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("squad", "multilingual", "none")

NO_SPACES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})
"""Codes of languages written without spaces between words."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKS = regex.compile(r"[\p{P}\p{Cf}" + re.escape(string.punctuation) + "]")
_CHARACTERS = regex.compile(r"\p{Nd}+|[\p{Ll}\p{Lu}\p{Lt}]+|\S")


def normalise(text: str, rule: Normalization = "squad", language: str | None = None) -> str:
    """The normalized text; with rules other than "none", its tokens separated by single spaces.

    Args:
        rule: see the module's docstring.
        language: code such as "zh" or "zh-TW", used by "multilingual" only. None means a language with spaces
            and without articles.

    Raises:
        ValueError: the rule does not exist.
    """
    if rule == "none":
        return text
    if rule == "squad":
        # Remove ASCII punctuation before articles: "a." is an article, too.
        plain = text.lower().translate(_ASCII_PUNCTUATION)
        return " ".join(_ARTICLES.sub(" ", plain).split())
    if rule != "multilingual":
        raise ValueError(f"{rule!r} is not a normalization; expected {', '.join(NORMALIZATIONS)}")
    # NFKC produces capitals and punctuation, folding undoes compositions, and removing a mark may bring two
    # characters together that compose: hence three passes.
    folded = _nfkc(_nfkc(text).casefold())
    plain = _nfkc(_MARKS.sub("", folded))
    if _base(language) == "en":
        plain = _ARTICLES.sub(" ", plain)
    # Split as Python does: it treats some control characters as white space that `\S` matches.
    return " ".join(tokens(plain, language))


def tokens(text: str, language: str | None = None) -> list[str]:
    """The words of a text; for languages written without spaces, its characters (see above)."""
    words = text.split()
    return _CHARACTERS.findall(" ".join(words)) if _base(language) in NO_SPACES else words


def exact_match(
    prediction: str, references: Sequence[str], rule: Normalization = "squad", language: str | None = None
) -> float:
    """1.0 if the normalized prediction equals a normalized reference, else 0.0; empty texts are equal."""
    answer, accepted = _all_normalised(prediction, references, rule, language)
    return float(answer in accepted)


def f1(
    prediction: str, references: Sequence[str], rule: Normalization = "squad", language: str | None = None
) -> float:
    """The best F1 over the references, 0 to 1, between multisets of tokens.

    0 without a common token: also if both texts are empty, as in the official script.
    """
    answer, accepted = _all_normalised(prediction, references, rule, language)
    # The other rules have separated tokens by spaces already.
    split = partial(tokens, language=language if rule == "none" else None)
    return max(_overlap(split(answer), split(one)) for one in accepted)


def _base(language: str | None) -> str:
    return "" if language is None else language.replace("_", "-").split("-")[0].lower()


_nfkc = partial(unicodedata.normalize, "NFKC")
_normalised = lru_cache(maxsize=1024)(normalise)  # both measures normalize the same texts


def _all_normalised(
    prediction: str, references: Sequence[str], rule: Normalization, language: str | None
) -> tuple[str, list[str]]:
    if not references:
        raise ValueError("at least one reference is required")
    answer, *accepted = (_normalised(text, rule, language) for text in (prediction, *references))
    return answer, accepted


def _overlap(answer: Sequence[str], wanted: Sequence[str]) -> float:
    same = (Counter(answer) & Counter(wanted)).total()
    if not same:
        return 0.0
    precision, recall = same / len(answer), same / len(wanted)
    return 2 * precision * recall / (precision + recall)
