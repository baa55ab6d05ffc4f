"""The paper's languages: the 15 of XNLI, which it also trains on, then those that only a task has."""

from __future__ import annotations

from typing import NamedTuple


class Language(NamedTuple):
    """A language: its English name and its Unicode script."""

    name: str
    script: str


LANGUAGES: dict[str, Language] = {
    "en": Language("English", "Latin"),
    "fr": Language("French", "Latin"),
    "es": Language("Spanish", "Latin"),
    "de": Language("German", "Latin"),
    "el": Language("Greek", "Greek"),
    "bg": Language("Bulgarian", "Cyrillic"),
    "ru": Language("Russian", "Cyrillic"),
    "tr": Language("Turkish", "Latin"),
    "ar": Language("Arabic", "Arabic"),
    "vi": Language("Vietnamese", "Latin"),
    "th": Language("Thai", "Thai"),
    "zh": Language("Chinese", "Han"),
    "hi": Language("Hindi", "Devanagari"),
    "sw": Language("Swahili", "Latin"),
    "ur": Language("Urdu", "Arabic"),
    "bn": Language("Bengali", "Bengali"),
    "fi": Language("Finnish", "Latin"),
    "id": Language("Indonesian", "Latin"),
    "ko": Language("Korean", "Hangul"),
    "ro": Language("Romanian", "Latin"),
    "te": Language("Telugu", "Telugu"),
}
