"""The columns of a table of pairs, and which of them are the input and the target."""

from __future__ import annotations

import difflib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from mrt5cli.bounds import NAME
from mrt5cli.data.columns import Row, cell, cell_column, other_mark, read_cell
from mrt5cli.data.formats import PARQUET, TABLES, Damaged, DataFile, without_suffix
from mrt5cli.data.reading import usable_rows
from mrt5cli.data.splits import HELD_OUT, SPLITS
from mrt5cli.data.tables import RowFolder
from mrt5cli.errors import UserError
from mrt5cli.templates import Template
from mrt5cli.text import announced, first_line, listed, say_on_stderr, shortened

if TYPE_CHECKING:
    pass

SAMPLE = 10_000
"""Rows of each split to inspect."""
HEAD_BYTES = 2**22
"""Bytes of a TSV file to read first; reading its rows needs the complete file, because of quotes."""
FURTHER = "-further"
"""Suffix of a recipe's name if the run that it starts from has the same name."""
MOST_CHOICES, LONGEST_CHOICE = 50, 64
"""Maximum number of distinct targets, and bytes of each, of a classification task."""
ROWS_A_CHOICE = 5
"""Minimum rows per distinct target of a classification task."""
INPUTS = (
    *("input", "source", "src", "noisy", "question", "prompt", "ocr", "wrong", "incorrect", "misspelled"),
    *("raw", "grapheme", "graphemes", "word", "sentence", "original", "text"),
)
TARGETS = (
    *("target", "output", "tgt", "clean", "answer", "answers", "label", "corrected", "correct", "correction"),
    *("gold", "response", "phonemes", "pronunciation", "normalized", "translation", "reference", "summary"),
)
"""Common names of columns of pairs, the most certain first."""
WORDS_OF_A_ROW = 4
"""Number of words from which a column name looks like a text."""
NEITHER = ("id", "idx", "index", "key", "uuid", "guid", "url", "split", "license")
LANGUAGE = ("language", "lang", "locale")


@dataclass(frozen=True)
class Found:
    """A column of the rows.

    Attributes:
        name: its name in templates; "a.b" is field b of column a.
        kind: "text", "numbers", "lists of texts" or "nothing".
        mean: mean bytes of a value.
        filled: whether every row has a value.
        values: the first distinct values.
    """

    name: str
    kind: str
    mean: float
    filled: bool
    values: tuple[str, ...]

    @property
    def may_be_chosen(self) -> bool:
        """Whether it may be chosen as input or target by default, and can be named in a template."""
        try:
            Template.parse(f"{{{self.name}}}")
        except ValueError:
            return False
        return self.kind != "nothing" and self.words[0] not in (*NEITHER, *LANGUAGE)

    @property
    def words(self) -> list[str]:
        """The last part of its name, in lower case: complete, then word by word."""
        last = self.name.rpartition(".")[2]
        parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", last)
        return [last.lower(), *(part.lower() for part in parts)]


class Sample(NamedTuple):
    """The inspected rows by split, and whether they are all rows of the data."""

    rows: dict[str, list[Row]]
    whole: bool


@dataclass(frozen=True)
class Draft:
    """The facts about a table of pairs from which a recipe is written.

    Attributes:
        chosen: how the input and the target were chosen, as text; empty if both were given.
        inputs, targets: (R,) lengths of the inspected rows in byte tokens, including EOS.
        choices: all targets of a classification task; None for another task.
        missing: held-out splits for which the data have no rows.
    """

    data: str
    name: str
    input: str
    target: str
    chosen: str
    columns: list[Found]
    sample: Sample
    inputs: list[int]
    targets: list[int]
    choices: list[str] | None
    language: str | None
    missing: list[str]


def inspect_pairs(
    data: str, *, input_: str | None, target: str | None, name: str | None, start: str | None = None
) -> Draft:
    """Inspect a file or folder of pairs.

    Args:
        data: path of the file or folder.
        input_, target: templates; by default, columns chosen by their names, else by their order.
        name: name of the recipe; by default the name of the data, changed if `start` is a run of that name.
        start: model to start from.

    Raises:
        UserError: the data do not exist, have fewer than two columns of text, or lack a template's column.
    """
    folder = RowFolder(data, [], Counter(), part_of=lambda split, path: None, plain=True)
    with announced(f"inspecting {data} ...", say_on_stderr):
        sample = _sample(folder, data)
        columns = list(_columns(row for rows in sample.rows.values() for row in rows))
    source, wanted, chosen = _choose(data, columns, input_, target)
    for file in folder.files("train"):
        _first_rows(file, [*source.columns, *wanted.columns], 1)
        _doubt_names(file, [*source.columns, *wanted.columns])
    inputs, targets, distinct = _rendered(sample, source, wanted)
    if not inputs:
        raise UserError(
            f"{data}: no row has both {source.text} and {wanted.text}",
            "check the columns, or name others with --input and --target",
        )
    used = {*source.columns, *wanted.columns}
    spoken = [one for one in columns if one.words[0] in LANGUAGE and one.filled and one.name not in used]
    return Draft(
        data=data,
        name=name or _plain_name(data, start),
        input=source.text,
        target=wanted.text,
        chosen=chosen,
        columns=columns,
        sample=sample,
        inputs=inputs,
        targets=targets,
        choices=_choices(distinct, len(targets)),
        language=next((one.name for one in spoken if 2 <= len(one.values) <= MOST_CHOICES), None),
        missing=[split for split in HELD_OUT if split not in sample.rows],
    )


# --- rows ---------------------------------------------------------------------------------------------------


def _sample(folder: RowFolder, data: str) -> Sample:
    rows: dict[str, list[Row]] = {}
    whole = True
    for split in SPLITS:
        taken: list[Row] = []
        for file in folder.files(split):
            names = _names(file) if file.suffix in PARQUET else []
            more, all_of_it = _first_rows(file, names, SAMPLE + 1 - len(taken))
            taken += more
            whole = whole and all_of_it
        if taken:
            whole = whole and len(taken) <= SAMPLE
            rows[split] = taken[:SAMPLE]
    if "train" not in rows:
        other = f"its name marks it as {' and '.join(rows)} data: rename it, or give the folder it is in"
        hint = other if rows else "expected a line of column names, then one row per line"
        raise UserError(f"{data} contains no training rows", hint)
    return Sample(rows, whole)


def _first_rows(file: DataFile, names: Sequence[str], count: int) -> tuple[list[Row], bool]:
    """The first rows of a file, at most `count`, and whether the complete file was read.

    Args:
        names: columns that must exist exactly once.
    """
    columns = [cell_column(name) for name in names]
    head = _head(file) if file.suffix == ".tsv" and count else None
    try:
        return [row for _, row in islice(usable_rows(head or file, columns), count)], head is None
    except UserError:
        if head is None:
            raise
    # The head may end inside a quoted cell.
    return [row for _, row in islice(usable_rows(file, columns), count)], True


def _doubt_names(file: DataFile, names: Sequence[str]) -> None:
    """Print a note if the first line of a table looks like a row."""
    if file.suffix in TABLES and (odd := [one for one in names if len(one.split()) >= WORDS_OF_A_ROW]):
        say_on_stderr(
            f"note: the first line of {file.name} is read as its column names, such as "
            f"{shortened(odd[0])!r}; if it is a row, add a line of column names above it"
        )


def _head(file: DataFile) -> DataFile | None:
    """A file of the first lines; None if the complete file is not longer, or cannot be read."""
    try:
        with file.unpacked() as stream:
            head = stream.read(HEAD_BYTES)
            longer = bool(stream.read(1))
    except Damaged:
        return None  # reading the rows reports the error
    name = file.name[: -len(PurePath(file.name).suffix)] if file.name[-4:].lower() != ".tsv" else file.name
    return DataFile(name, partial(io.BytesIO, head[: head.rfind(b"\n") + 1])) if longer else None


def _names(file: DataFile) -> list[str]:
    """The columns of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with file.unpacked() as stream:
            source = stream if file.name.lower().endswith(PARQUET) else io.BytesIO(stream.read())
            return list(parquet.ParquetFile(source).schema_arrow.names)
    except (pa.ArrowException, Damaged) as error:
        raise UserError(
            f"{file.name} cannot be read as Parquet: {first_line(error)}", "copy or download the file again"
        ) from error


def _columns(rows: Iterable[Row]) -> Iterator[Found]:
    """The columns of rows in order of first appearance, with nested columns one by one."""
    kinds: dict[str, Counter[str]] = {}
    sizes, values, total = Counter[str](), dict[str, dict[str, None]](), 0
    for row in rows:
        total += 1
        for name, value in _leaves(row):
            kind, text = _kind(value)
            kinds.setdefault(name, Counter())[kind] += 1
            sizes[name] += len(text.encode("utf-8", "replace"))
            seen = values.setdefault(name, {})
            if len(seen) <= MOST_CHOICES:
                seen[text] = None
    for name, of in kinds.items():
        del of[""]
        kind = next((kind for kind in ("lists of texts", "text", "numbers") if of[kind]), "nothing")
        count = sum(of.values())
        yield Found(name, kind, sizes[name] / max(1, count), count == total, tuple(values[name]))


def _leaves(row: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _kind(value: object) -> tuple[str, str]:
    """The kind of a cell, "" for an empty one, and its text."""
    if isinstance(value, list):
        kind, text = _kind(value[0] if value else None)
        return ("lists of texts" if kind else ""), text
    try:
        text = read_cell(value)
    except ValueError:
        return "", ""
    if not text.strip():
        return "", ""
    return ("text" if isinstance(value, str | bytes) and not _is_number(text) else "numbers"), text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rendered(
    sample: Sample, input_: Template, target: Template
) -> tuple[list[int], list[int], dict[str, None]]:
    """Lengths of the inputs and of the targets, and the distinct targets, of the rows that have both."""
    inputs, targets, distinct = [], [], dict[str, None]()
    for row in (row for rows in sample.rows.values() for row in rows):
        try:
            texts = [
                template.render({name: _text(row, name) for name in template.columns})
                for template in (input_, target)
            ]
        except (KeyError, ValueError, IndexError):
            continue  # training refuses such a row, naming its line, or skips it
        inputs.append(len(texts[0].encode()) + 1)
        targets.append(len(texts[1].encode()) + 1)
        if len(distinct) <= MOST_CHOICES:
            distinct[texts[1]] = None
    return inputs, targets, distinct


def _text(row: Row, name: str) -> str:
    value = cell(row, name)
    return read_cell(value[0] if isinstance(value, list) else value)


# --- choosing columns ---------------------------------------------------------------------------------------


def _choose(
    data: str, columns: Sequence[Found], input_: str | None, target: str | None
) -> tuple[Template, Template, str]:
    """The templates of input and target, and how the ones that were not given were chosen."""
    given = {
        option: _given(data, columns, option, text)
        for option, text in (("--input", input_), ("--target", target))
        if text is not None
    }
    used = {name for template in given.values() for name in template.columns}
    free = [one for one in columns if one.name not in used and one.may_be_chosen]
    ways: dict[str, str] = {}
    # The target first, because its names are less ambiguous: any column may be called "text".
    for option, names in (("--target", TARGETS), ("--input", INPUTS)):
        several = option == "--target"  # a list is one of several correct answers
        may_be = [one for one in free if several or one.kind != "lists of texts"]
        if option not in given and (found := _by_name(names, may_be)):
            given[option], ways[option] = Template.parse(f"{{{found.name}}}"), "by its name"
            free.remove(found)
    for option in ("--input", "--target"):
        if option not in given:
            found = next((one for one in free if one.kind == "text"), None)
            if found is None:
                raise _too_few(data, columns)
            given[option] = Template.parse(f"{{{found.name}}}")
            ways[option] = f"as the first {'other ' if used or ways else ''}column of text"
            free.remove(found)
    found_by = [f"the {option[2:]} {ways[option]}" for option in ("--input", "--target") if option in ways]
    return given["--input"], given["--target"], " and ".join(found_by)


def _by_name(names: Sequence[str], columns: Sequence[Found]) -> Found | None:
    """The first column with one of these names, or with one of them among the words of its name."""
    whole = (one for name in names for one in columns if one.words[0] == name)
    in_part = (one for name in names for one in columns if name in one.words)
    return next(whole, None) or next(in_part, None)


def _given(data: str, columns: Sequence[Found], option: str, text: str) -> Template:
    there = [one.name for one in columns]
    try:
        template = Template.parse(text)
    except ValueError as error:
        raise UserError(f"{option} {shortened(text)!r}: {error}") from None
    if not template.columns:
        example = there[0] if there else "text"
        raise UserError(
            f"{option} {shortened(text)!r} names no column", f"write one in braces: {{{example}}}"
        )
    for name in template.columns:
        if name not in there:
            near = next(iter(difflib.get_close_matches(name, there, 1)), None)
            raise UserError(
                f"{option}: {data} has no column {name!r}; it has {listed(there) or 'none'}",
                f"did you mean {{{near}}}?" if near else None,
            )
    return template


def _too_few(data: str, columns: Sequence[Found]) -> UserError:
    texts = [repr(one.name) for one in columns if one.kind == "text" and one.may_be_chosen]
    others = [repr(one.name) for one in columns if one.kind != "text" or not one.may_be_chosen]
    found = f"only {listed(texts)}" if texts else "none"
    beside = f" besides {listed(others)}" if others else ""
    return UserError(
        f"{data}: an input and a target need two columns of text, but there is {found}{beside}",
        other_mark([one.name for one in columns])
        or "name columns with --input and --target; for texts without targets, use span_corruption: "
        "mrt5 recipe copy local_text mine.yaml",
    )


def _choices(distinct: dict[str, None], rows: int) -> list[str] | None:
    few = 2 <= len(distinct) <= min(MOST_CHOICES, rows // ROWS_A_CHOICE)
    short = all(text.strip() and len(text.encode()) <= LONGEST_CHOICE for text in distinct)
    return sorted(distinct) if few and short else None


def _plain_name(data: str, start: str | None) -> str:
    """A recipe's name from the name of its data, different from that of the run it starts from."""
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePath(without_suffix(data)).name.lower()).strip("._-")
    name = name[: NAME - len(FURTHER)] or "pairs"
    taken = start is not None and re.fullmatch(rf"{re.escape(name)}(-seed\d+)?", PurePath(start).name)
    return name + FURTHER if taken else name
