"""Dates as people write them in 15 languages, with ISO 8601: "am Freitag, dem 3. März 1995" is 1995-03-03.

Every date can be inferred from its text. The order of day and month in digits is that of the text's language,
which its words or separators reveal: the day precedes dots, dashes and slashes, except in American English,
whose slashes always accompany an English weekday. Years have four digits.
"""

# ruff: noqa: RUF001 - letters of other scripts that look like Latin ones are intended
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import count
from pathlib import Path

import mrt5cli
from mrt5cli.data.builders.writing import (
    MADE_BY,
    Manifest,
    check_target,
    lot,
    share,
    split_at,
    tsv,
    with_progress,
    write_data_set,
)
from mrt5cli.data.splits import SPLITS
from mrt5cli.errors import UserError
from mrt5cli.text import counted

FIRST, LAST = date(1900, 1, 1), date(2049, 12, 31)
HELD_OUT_DATES = {"validation": 0.05, "test": 0.10}
COLUMNS = ("written", "iso", "language")


@dataclass(frozen=True)
class Options:
    """The options of `mrt5 data build dates`, whose help describes them."""

    seed: int = 42
    train: int = 20_000
    validation: int = 1_000
    test: int = 2_000


@dataclass(frozen=True)
class Language:
    """How dates are written in a language.

    Forms contain {d} and {m} for numbers, {dd} and {mm} for two digits, {y} for the year, {nth} for the day
    as an ordinal, {month} and {mon} for the month's name and abbreviation, and {weekday}.

    Attributes:
        months, weekdays: from January and from Monday, as written in a date, separated by spaces.
        dates: the forms of a date alone.
        around: the phrases around one, with {} for the date; never with a second weekday.
        short: abbreviated months, if forms have any.
        ordinals: suffixes of days; 0 is the suffix of all other days.
    """

    months: str
    weekdays: str
    dates: tuple[str, ...]
    around: tuple[str, ...]
    short: str = ""
    ordinals: tuple[tuple[int, str], ...] = ()

    def forms(self) -> list[str]:
        """Every form of a date in every phrase."""
        return [
            around.replace("{}", form)
            for form in self.dates
            for around in self.around
            if not ("{weekday}" in form and "{weekday}" in around)
        ]

    def written(self, day: date, form: str) -> str:
        """A date in one of the forms."""
        months, weekdays, short = self.months.split(), self.weekdays.split(), self.short.split()
        ordinals = dict(self.ordinals)
        return form.format(
            d=day.day,
            m=day.month,
            dd=f"{day.day:02}",
            mm=f"{day.month:02}",
            y=day.year,
            nth=f"{day.day}{ordinals.get(day.day, ordinals.get(0, ''))}",
            month=months[day.month - 1],
            mon=short[day.month - 1] if short else "",
            weekday=weekdays[day.weekday()],
        )


LANGUAGES = {
    "ar": Language(
        "يناير فبراير مارس أبريل مايو يونيو يوليو أغسطس سبتمبر أكتوبر نوفمبر ديسمبر",
        "الاثنين الثلاثاء الأربعاء الخميس الجمعة السبت الأحد",
        ("{d} {month} {y}",),
        ("{}", "{weekday}، {}", "في {}", "بتاريخ {}"),
    ),
    "de": Language(
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
        ("{d}. {month} {y}", "{d}. {mon} {y}", "{dd}.{mm}.{y}", "{d}.{m}.{y}"),
        ("{}", "{weekday}, {}", "am {}", "am {weekday}, dem {}", "geboren am {}", "Berlin, den {}"),
        "Jan. Feb. März Apr. Mai Juni Juli Aug. Sept. Okt. Nov. Dez.",
    ),
    "el": Language(
        "Ιανουαρίου Φεβρουαρίου Μαρτίου Απριλίου Μαΐου Ιουνίου Ιουλίου Αυγούστου Σεπτεμβρίου Οκτωβρίου "
        "Νοεμβρίου Δεκεμβρίου",
        "Δευτέρα Τρίτη Τετάρτη Πέμπτη Παρασκευή Σάββατο Κυριακή",
        ("{d} {month} {y}", "{dd}/{mm}/{y}"),
        ("{}", "{weekday} {}", "{weekday}, {}", "Αθήνα, {}"),
    ),
    "en": Language(
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        (
            *("{month} {d}, {y}", "{d} {month} {y}", "{mon} {d}, {y}", "{d} {mon} {y}"),
            *("{month} {nth}, {y}", "the {nth} of {month} {y}", "{weekday}, {m}/{d}/{y}"),
        ),
        ("{}", "{weekday}, {}", "on {}", "on {weekday}, {}", "born on {}", "the meeting on {}"),
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
        ((0, "th"), (1, "st"), (2, "nd"), (3, "rd"), (21, "st"), (22, "nd"), (23, "rd"), (31, "st")),
    ),
    "es": Language(
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "lunes martes miércoles jueves viernes sábado domingo",
        ("{d} de {month} de {y}", "{d} {mon} {y}", "{dd}/{mm}/{y}"),
        ("{}", "{weekday}, {}", "el {}", "el {weekday} {}", "Madrid, {}"),
        "ene feb mar abr may jun jul ago sept oct nov dic",
    ),
    "fr": Language(
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "lundi mardi mercredi jeudi vendredi samedi dimanche",
        ("{nth} {month} {y}", "{nth} {mon} {y}", "{dd}/{mm}/{y}"),
        ("{}", "{weekday} {}", "le {}", "le {weekday} {}", "Paris, le {}"),
        "janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc.",
        ((1, "er"),),
    ),
    "hi": Language(
        "जनवरी फ़रवरी मार्च अप्रैल मई जून जुलाई अगस्त सितंबर अक्टूबर नवंबर दिसंबर",
        "सोमवार मंगलवार बुधवार गुरुवार शुक्रवार शनिवार रविवार",
        ("{d} {month} {y}",),
        ("{}", "{weekday}, {}", "{} को"),
    ),
    "it": Language(
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "lunedì martedì mercoledì giovedì venerdì sabato domenica",
        ("{nth} {month} {y}", "{d} {mon} {y}", "{dd}/{mm}/{y}"),
        ("{}", "{weekday} {}", "in data {}", "Roma, {}"),
        "gen feb mar apr mag giu lug ago set ott nov dic",
        ((1, "º"),),
    ),
    "ja": Language(
        "1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        "月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
        ("{y}年{month}{d}日", "{y}/{mm}/{dd}"),
        ("{}", "{}{weekday}", "{}（{weekday}）", "日付：{}"),
    ),
    "nl": Language(
        "januari februari maart april mei juni juli augustus september oktober november december",
        "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag",
        ("{d} {month} {y}", "{d} {mon} {y}", "{dd}-{mm}-{y}"),
        ("{}", "{weekday} {}", "op {}", "op {weekday} {}", "geboren op {}"),
        "jan feb mrt apr mei jun jul aug sep okt nov dec",
    ),
    "pl": Language(
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
        "poniedziałek wtorek środa czwartek piątek sobota niedziela",
        ("{d} {month} {y}", "{d} {month} {y} r.", "{d} {mon} {y}", "{dd}.{mm}.{y}"),
        ("{}", "{weekday}, {}", "dnia {}", "Warszawa, {}"),
        "sty lut mar kwi maj cze lip sie wrz paź lis gru",
    ),
    "pt": Language(
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "segunda-feira terça-feira quarta-feira quinta-feira sexta-feira sábado domingo",
        ("{d} de {month} de {y}", "{d} de {mon} de {y}", "{dd}/{mm}/{y}"),
        ("{}", "{weekday}, {}", "em {}", "Lisboa, {}"),
        "jan. fev. mar. abr. mai. jun. jul. ago. set. out. nov. dez.",
    ),
    "ru": Language(
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        "понедельник вторник среда четверг пятница суббота воскресенье",
        ("{d} {month} {y}", "{d} {month} {y} г.", "{d} {month} {y} года", "{dd}.{mm}.{y}"),
        ("{}", "{weekday}, {}", "от {}"),
    ),
    "tr": Language(
        "Ocak Şubat Mart Nisan Mayıs Haziran Temmuz Ağustos Eylül Ekim Kasım Aralık",
        "Pazartesi Salı Çarşamba Perşembe Cuma Cumartesi Pazar",
        ("{d} {month} {y}", "{d} {mon} {y}", "{dd}.{mm}.{y}"),
        ("{}", "{} {weekday}", "{}, {weekday}", "Tarih: {}"),
        "Oca Şub Mar Nis May Haz Tem Ağu Eyl Eki Kas Ara",
    ),
    "zh": Language(
        "1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
        "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
        ("{y}年{month}{d}日", "{y}/{m}/{d}"),
        ("{}", "{}{weekday}", "{} {weekday}", "日期：{}"),
    ),
}


def build(out: Path, options: Options, *, overwrite: bool = False) -> Manifest:
    """Write train, validation and test, which have no date in common; returns the manifest."""
    check_target(out, overwrite=overwrite)
    days = days_of_splits(options.seed)
    sizes = {"train": options.train, "validation": options.validation, "test": options.test}
    made = {f"{split}.tsv": rows(split, days[split], sizes[split], options.seed) for split in SPLITS}
    about = {
        "task": "dates",
        "note": f"Dates from {FIRST} to {LAST} as people write them in {len(LANGUAGES)} languages; no date "
        "is in two files. Randomly generated: it may be copied freely.",
        "seed": options.seed,
        "options": {key: value for key, value in asdict(options).items() if key != "seed"},
        "sources": [
            {"name": "the tables of mrt5cli", "version": mrt5cli.__version__, "licence": "Apache-2.0"}
        ],
        "files": {
            name: {"examples": len(found), "dates": len({iso for _, iso, _ in found})}
            for name, found in made.items()
        },
    }
    files = {name: tsv([COLUMNS, *found]) for name, found in made.items()}
    return write_data_set(out, f"{MADE_BY} dates", files, about, overwrite=overwrite)


def days_of_splits(seed: int) -> dict[str, list[date]]:
    """Every day from `FIRST` to `LAST`, in exactly one split."""
    days: dict[str, list[date]] = {split: [] for split in SPLITS}
    for number in range((LAST - FIRST).days + 1):
        day = FIRST + timedelta(number)
        days[split_at(HELD_OUT_DATES, share(seed, "day", day))].append(day)
    return days


def rows(split: str, days: list[date], size: int, seed: int) -> list[tuple[str, str, str]]:
    """`size` different rows of written date, ISO date and language.

    Raises:
        UserError: `size` is more than half of all possible rows.
    """
    possible = len(days) * sum(len(language.forms()) for language in LANGUAGES.values())
    if 2 * size > possible:  # sampling the last ones would take a long time
        raise UserError(
            f"{size:,} {split} examples of {counted(len(days), 'date')} are more than half of all possible "
            "ones",
            f"request at most {possible // 2:,}",
        )
    found: dict[tuple[str, str, str], None] = {}
    for row in with_progress(_draws(split, days, seed), f"writing {split} dates", size):
        found[row] = None
        if len(found) == size:
            break
    return list(found)


def _draws(split: str, days: list[date], seed: int) -> Iterator[tuple[str, str, str]]:
    """Endless random rows; all languages, and all forms in a language, are equally likely."""
    codes = list(LANGUAGES)
    forms = {code: language.forms() for code, language in LANGUAGES.items()}
    for number in count():
        draw = lot(seed, split, number)
        draw, place = divmod(draw, len(days))
        draw, which = divmod(draw, len(codes))
        day, code = days[place], codes[which]
        yield LANGUAGES[code].written(day, forms[code][draw % len(forms[code])]), day.isoformat(), code
