"""The paper's languages: the 15 of XNLI, which it also trains on, then those that only a task has.

And the one rule by which a folder, a file or a row that names a language is matched with the requested ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Language(NamedTuple):
    """A language: its English name, its Unicode script and its three letters in ISO 639-3."""

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
    """Which of the wanted languages a name stands for; None where it is none of them.

    "EN", "en_US", "eng_Latn" and "English" all stand for "en", and "zh_tw" stands for "zh-TW" where that is
    wanted, else for "zh". A name without a region does not stand for a language with one: "zh" is not
    "zh-TW".
    """
    known = {_tag(code): code for code in reversed(wanted)}
    tag = _tag(said)
    while tag not in known and "-" in tag:
        tag = tag.rpartition("-")[0]
    return known.get(tag)


def _tag(name: str) -> str:
    """A code in lower case with hyphens, the language in two letters where we know them."""
    first, *rest = name.strip().lower().replace("_", "-").split("-")
    return "-".join([_CODES.get(first, first), *rest])
