"""Random words in the script of a language, for runs without data, whose results mean nothing."""

from __future__ import annotations

from random import Random

from mrt5cli.data.languages import LANGUAGES

# The first and last letter of a range in each script.
LETTERS = {
    "Latin": "az",
    "Greek": "αω",
    "Cyrillic": "ая",
    "Arabic": "بي",
    "Thai": "กฮ",
    "Han": "一仿",
    "Devanagari": "कह",
    "Bengali": "কহ",
    "Telugu": "కహ",
    "Hangul": "가꿿",
}
# Scripts written without spaces between words.
UNSPACED = {"Thai", "Han"}


def words(draw: Random, count: int, language: str = "en") -> list[str]:
    """`count` different words of two to eight letters, or of one or two characters in Chinese."""
    script = LANGUAGES[language].script if language in LANGUAGES else "Latin"
    stretch = LETTERS[script]
    letters = [chr(code) for code in range(ord(stretch[0]), ord(stretch[-1]) + 1) if chr(code).isalpha()]
    shortest, longest = (1, 2) if script == "Han" else (2, 8)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(letters, k=draw.randint(shortest, longest)))] = None
    return list(found)


def space(language: str) -> str:
    """The separator between the words of a language."""
    return "" if language in LANGUAGES and LANGUAGES[language].script in UNSPACED else " "
