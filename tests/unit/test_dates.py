"""Written dates: what each says is read back by rules of this test's own."""
# ruff: noqa: RUF001 - letters of other scripts that look like Latin ones are meant

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest

from mrt5cli.data.builders import dates
from mrt5cli.data.splits import SPLITS
from mrt5cli.errors import UserError

FULL = {  # the third of March 1995, a Friday, as the Unicode consortium's CLDR writes it in full
    "ar": "الجمعة، 3 مارس 1995",
    "de": "Freitag, 3. März 1995",
    "el": "Παρασκευή 3 Μαρτίου 1995",
    "en": "Friday, March 3, 1995",
    "es": "viernes, 3 de marzo de 1995",
    "fr": "vendredi 3 mars 1995",
    "hi": "शुक्रवार, 3 मार्च 1995",
    "it": "venerdì 3 marzo 1995",
    "ja": "1995年3月3日金曜日",
    "nl": "vrijdag 3 maart 1995",
    "pl": "piątek, 3 marca 1995",
    "pt": "sexta-feira, 3 de março de 1995",
    "ru": "пятница, 3 марта 1995 г.",
    "tr": "3 Mart 1995 Cuma",
    "zh": "1995年3月3日星期五",
}
STEMS = {  # how the names of months and their abbreviations begin
    "ar": "ين فب مار أب ماي يوني يول أغ سب أك نو دي",
    "de": "Ja F Mär Ap Mai Jun Jul Au S O N D",
    "el": "Ια Φ Μαρ Απ Μαΐ Ιουν Ιουλ Αυ Σ Ο Ν Δ",
    "en": "Ja F Mar Ap May Jun Jul Au S O N D",
    "es": "e f mar ab may jun jul ag s o n d",
    "fr": "ja f mar av mai juin juil ao s o n d",
    "hi": "जन फ़ मार् अप् मई जून जुल अग सि अक् न दि",
    "it": "ge f mar ap mag gi lu ag s o n d",
    "nl": "ja f m ap mei jun jul au s o n d",
    "pl": "st lu mar k maj cz lip si w p lis g",
    "pt": "ja f mar ab mai jun jul ag s o n d",
    "ru": "я ф мар ап мая июн июл ав с о н д",
    "tr": "O Ş Mar N May H T Ağ Ey Ek K A",
}
DAY_FIRST = re.compile(r"(\d{1,2})(?:\.|st|nd|rd|th|er|º)?(?: de| of)? ([^\s\d.,]+)\.?(?: de)? (\d{4})")
MONTH_FIRST = re.compile(r"([^\s\d.,]+) (\d{1,2})(?:st|nd|rd|th)?, (\d{4})")
YEAR_FIRST = re.compile(r"(\d{4})[年/](\d{1,2})[月/](\d{1,2})")
FIGURES = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})")


def date_in(written: str, language: str) -> date:
    """The date that a text says; the language is only for the names of its months."""
    if found := YEAR_FIRST.search(written):
        return date(*map(int, found.groups()))
    if found := FIGURES.search(written):
        first, sign, second, year = found.groups()
        # Americans alone put months first, and here never without an English weekday.
        american = sign == "/" and re.search(r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", written)
        day, month = (second, first) if american else (first, second)
        return date(int(year), int(month), int(day))
    if found := DAY_FIRST.search(written):
        day, name, year = found.groups()
    else:
        name, day, year = MONTH_FIRST.search(written).groups()
    fits = [stem for stem in STEMS[language].split() if name.startswith(stem)]
    longest = max(fits, key=len)
    return date(int(year), STEMS[language].split().index(longest) + 1, int(day))


def rows(file: Path) -> list[tuple[str, str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        header, *found = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["written", "iso", "language"]
    return [(written, iso, language) for written, iso, language in found]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dates") / "out"
    dates.build(out, dates.Options())
    return out


def test_every_row_says_its_date(made: Path) -> None:
    for split in SPLITS:
        for written, iso, language in rows(made / f"{split}.tsv"):
            assert date_in(written, language).isoformat() == iso, written


def test_every_form_of_every_language_says_its_date() -> None:
    for code, language in dates.LANGUAGES.items():
        for form in language.forms():
            for month in range(1, 13):
                for day in (date(1995, month, 1), date(2031, month, 12), date(1904, month, 23)):
                    written = language.written(day, form)
                    assert date_in(written, code) == day, written
                    assert len(written.encode()) <= 62, (
                        written
                    )  # with EOS, within the 64 tokens of recipes/dates
                    assert written == written.strip() and "\t" not in written


@pytest.mark.parametrize("code", FULL)
def test_a_full_date_is_what_the_unicode_consortium_writes(code: str) -> None:
    language = dates.LANGUAGES[code]
    assert FULL[code] in {language.written(date(1995, 3, 3), form) for form in language.forms()}


def test_weekdays_are_right_and_often_there(made: Path) -> None:
    named = 0
    for written, iso, language in rows(made / "train.tsv"):
        days = dates.LANGUAGES[language].weekdays.split()
        found = max((day for day in days if day in written), key=len, default=None)
        assert found in (None, days[date.fromisoformat(iso).weekday()]), written
        named += found is not None
    assert 0.25 < named / 20_000 < 0.55


def test_one_text_never_means_two_dates(made: Path) -> None:
    meant: dict[str, str] = {}
    for split in SPLITS:
        for written, iso, _ in rows(made / f"{split}.tsv"):
            assert meant.setdefault(written, iso) == iso


def test_no_date_is_in_two_splits_and_no_row_comes_twice(made: Path) -> None:
    found = {split: rows(made / f"{split}.tsv") for split in SPLITS}
    for split, one in found.items():
        assert len(set(one)) == len(one) == {"train": 20_000, "validation": 1_000, "test": 2_000}[split]
        assert {language for _, _, language in one} == set(dates.LANGUAGES)
    days = [{iso for _, iso, _ in one} for one in found.values()]
    assert sum(map(len, days)) == len(set.union(*days))


def test_the_manifest_says_what_is_there(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["task"], manifest["made_by"], manifest["seed"]) == ("dates", "mrt5 data build dates", 42)
    for split in SPLITS:
        entry, file = manifest["files"][f"{split}.tsv"], made / f"{split}.tsv"
        assert entry["sha256"] == sha256(file.read_bytes()).hexdigest()
        assert entry["examples"] == len(rows(file))
        assert entry["dates"] == len({iso for _, iso, _ in rows(file)})


def test_the_same_seed_gives_the_same_bytes_in_every_process(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mrt5cli.data.builders import dates\n"
        "dates.build(Path(sys.argv[1]), dates.Options(seed=int(sys.argv[1])))"
    )
    for seed in ("42", "7"):
        command = [sys.executable, "-c", code, seed]
        subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed})
    for file in made.iterdir():
        assert (tmp_path / "42" / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "7" / "train.tsv").read_bytes() != (made / "train.tsv").read_bytes()


def test_a_longer_set_begins_as_a_shorter_one(made: Path, tmp_path: Path) -> None:
    dates.build(tmp_path / "out", dates.Options(train=500, validation=2, test=1))
    assert rows(tmp_path / "out" / "train.tsv") == rows(made / "train.tsv")[:500]


def test_more_than_there_are_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2,000,000 test examples of [\d,]+ dates") as error:
        dates.build(tmp_path / "out", dates.Options(train=10, validation=1, test=2_000_000))
    most = int(re.search(r"request at most ([\d,]+)", str(error.value))[1].replace(",", ""))
    assert 100_000 < most < 2_000_000 and not (tmp_path / "out").exists()
