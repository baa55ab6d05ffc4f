"""Answers compared as texts: what is taken off before, exact match, and F1 over tokens.

Three rules. "none" takes texts as they are, byte for byte. "squad" is the official SQuAD v1.1 script's, which
the published numbers use for every language: lower case, no ASCII punctuation, no English article, single
spaces. "multilingual" is right for the other languages too:

- NFKC and case folding, so that full-width forms and "ß" compare as readers see them;
- no punctuation of any script, no ASCII symbols, no invisible format characters, any Unicode white space;
- articles go only where the language is English: "la" is one in French and a note in music, and nobody says;
- languages written without spaces (`NO_SPACES`) have no words to count: F1 is over characters there, and
  white space means nothing. Runs of digits, and of letters that have a case (Latin, Greek, Cyrillic), stay
  one token even there: 1998 is not three quarters of 1999.
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
"""Languages, as codes, whose writing does not part words."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKS = regex.compile(r"[\p{P}\p{Cf}" + re.escape(string.punctuation) + "]")
_CHARACTERS = regex.compile(r"\p{Nd}+|[\p{Ll}\p{Lu}\p{Lt}]+|\S")


def normalise(text: str, rule: Normalization = "squad", language: str | None = None) -> str:
    """The text as answers are compared; by all rules but "none", tokens parted by single spaces.

    Args:
        rule: see above.
        language: its code, e.g. "zh" or "zh-TW"; only "multilingual" looks at it. None is a language with
            spaces and without articles.
    """
    if rule == "none":
        return text
    if rule == "squad":
        # ASCII punctuation goes before articles: "a." is an article, too.
        plain = text.lower().translate(_ASCII_PUNCTUATION)
        return " ".join(_ARTICLES.sub(" ", plain).split())
    if rule != "multilingual":
        raise ValueError(f"{rule!r} is no normalisation, only {', '.join(NORMALIZATIONS)}")
    # NFKC yields capitals and punctuation, folding undoes compositions, and a mark may have stood between two
    # characters that compose: hence three times.
    folded = _nfkc(_nfkc(text).casefold())
    plain = _nfkc(_MARKS.sub("", folded))
    if _base(language) == "en":
        plain = _ARTICLES.sub(" ", plain)
    # What parts words is Python's to say: control characters that `\S` takes for characters do, too.
    return " ".join(tokens(plain, language))


def tokens(text: str, language: str | None = None) -> list[str]:
    """What there is between white space; of a language written without spaces, the characters (see above)."""
    words = text.split()
    return _CHARACTERS.findall(" ".join(words)) if _base(language) in NO_SPACES else words


def exact_match(
    prediction: str, references: Sequence[str], rule: Normalization = "squad", language: str | None = None
) -> float:
    """1.0 if the prediction is one of the references once all are normalised, else 0.0.

    Two answers of which nothing is left are the same.
    """
    said, accepted = _all_normalised(prediction, references, rule, language)
    return float(said in accepted)


def f1(
    prediction: str, references: Sequence[str], rule: Normalization = "squad", language: str | None = None
) -> float:
    """The best F1, 0 to 1, of the prediction's tokens against one reference's, repeated ones counted.

    0 where they share no token: also where both are empty, as in the official script.
    """
    said, accepted = _all_normalised(prediction, references, rule, language)
    # What the other rules return has its tokens parted already.
    parted = partial(tokens, language=language if rule == "none" else None)
    return max(_overlap(parted(said), parted(one)) for one in accepted)


def _base(language: str | None) -> str:
    return "" if language is None else language.replace("_", "-").split("-")[0].lower()


_nfkc = partial(unicodedata.normalize, "NFKC")
_normalised = lru_cache(maxsize=1024)(normalise)  # both measures are of the same texts, one after the other


def _all_normalised(
    prediction: str, references: Sequence[str], rule: Normalization, language: str | None
) -> tuple[str, list[str]]:
    if not references:
        raise ValueError("an answer is compared with one reference at least")
    said, *accepted = (_normalised(text, rule, language) for text in (prediction, *references))
    return said, accepted


def _overlap(said: Sequence[str], wanted: Sequence[str]) -> float:
    same = sum((Counter(said) & Counter(wanted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)
