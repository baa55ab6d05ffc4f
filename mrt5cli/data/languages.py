"""The paper's languages, and the rule that matches the name of a language with the requested ones.

The first 15 are XNLI's, on which the paper also trains; the others occur only in other tasks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Language(NamedTuple):
    """A language: its English name, its Unicode script and its ISO 639-3 code."""

    name: str
    script: str
    letters: str


LANGUAGES: dict[str, Language] = {
    "en": Language("English", "Latin", "eng"),
    "fr": Language("French", "Latin", "fra"),
    "es": Language("Spanish", "Latin", "spa"),
    "de": Language("German", "Latin", "deu"),
    "el": Language("Greek", "Greek", "ell"),
    "bg": Language("Bulgarian", "Cyrillic", "bul"),
    "ru": Language("Russian", "Cyrillic", "rus"),
    "tr": Language("Turkish", "Latin", "tur"),
    "ar": Language("Arabic", "Arabic", "ara"),
    "vi": Language("Vietnamese", "Latin", "vie"),
    "th": Language("Thai", "Thai", "tha"),
    "zh": Language("Chinese", "Han", "zho"),
    "hi": Language("Hindi", "Devanagari", "hin"),
    "sw": Language("Swahili", "Latin", "swa"),
    "ur": Language("Urdu", "Arabic", "urd"),
    "bn": Language("Bengali", "Bengali", "ben"),
    "fi": Language("Finnish", "Latin", "fin"),
    "id": Language("Indonesian", "Latin", "ind"),
    "ko": Language("Korean", "Hangul", "kor"),
    "ro": Language("Romanian", "Latin", "ron"),
    "te": Language("Telugu", "Telugu", "tel"),
}

_CODES = {other: code for code, known in LANGUAGES.items() for other in (known.name.lower(), known.letters)}


@lru_cache(maxsize=1024)
def language_meant(said: str, wanted: tuple[str, ...]) -> str | None:
    """The wanted language that a name means, or None.

    "EN", "en_US", "eng_Latn" and "English" all mean "en", and "zh_tw" means "zh-TW" if that is wanted, else
    "zh". A name without a region does not mean a language with one: "zh" is not "zh-TW".
    """
    known = {_tag(code): code for code in reversed(wanted)}
    tag = _tag(said)
    while tag not in known and "-" in tag:
        tag = tag.rpartition("-")[0]
    return known.get(tag)


def _tag(name: str) -> str:
    """A code in lower case with hyphens, with the two-letter code of a known language."""
    first, *rest = name.strip().lower().replace("_", "-").split("-")
    return "-".join([_CODES.get(first, first), *rest])
