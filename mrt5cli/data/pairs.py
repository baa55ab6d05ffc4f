"""Pairs of texts from rows with any columns: the rows of one source of `text2text`.

Splits come from the names of files, or from the Hub. A split without rows is held out of the training rows by
a hash of each row's input: a row stays in its split when others are added, moved or reordered and when a
prompt is reworded, and rows with equal inputs are never in two splits.
"""

from __future__ import annotations

import difflib
from collections import Counter
from functools import cached_property
from pathlib import PurePath
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.columns import Column, Row, Unusable, cell, cell_column, cells_column, read_cell, shown
from mrt5cli.data.corpus import fingerprint
from mrt5cli.data.generated import words
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.splits import HELD_OUT, read_name
from mrt5cli.data.tables import AT_ONCE, RowFolder, blank, collect, hub_tables, rows_left_out
from mrt5cli.errors import UserError
from mrt5cli.recipe.tasks import (
    GeneratedRows,
    GivenFiles,
    PairDataset,
    PairFiles,
    PairSource,
    Text2TextTask,
    Weighted,
    WeightedSource,
)
from mrt5cli.templates import Template
from mrt5cli.text import announced, counted, listed, say_on_stderr

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of the resulting tables.
INPUT, TARGETS = "input", "targets"
HINT = "name existing columns in the braces of task.input and task.target; CSV and TSV name them in line 1"
GENERATED_LANGUAGE = "en"
Groups = dict[str | None, "pa.Table"]
"""Tables by the language of their rows; under None without a language column."""


class Pairs:
    """The rows of one source as inputs and targets.

    Args:
        task: the recipe's section.
        source: one of its sources.
        left_out: counts rows that are left out, by reason.

    Attributes:
        origin: where the rows come from, for messages.
        empty: the number of rows with an empty text in each split that has been read.

    Raises:
        UserError: the file or folder does not exist. Rows are read on demand.
    """

    def __init__(
        self, task: Text2TextTask, source: PairSource | WeightedSource, left_out: Counter[str]
    ) -> None:
        own = source if isinstance(source, Weighted) else None
        self._input = Template.parse((own and own.input) or task.input)
        self._target = Template.parse((own and own.target) or task.target)
        self._texts = tuple(dict.fromkeys((*self._input.columns, *self._target.columns)))
        self._task, self._source, self._left_out = task, source, left_out
        self._columns = self._named_columns()
        self._read: dict[str, Groups] = {}
        self.empty = Counter[str]()
        self.files: RowFolder | None = None
        self.origin = "generated rows"
        if isinstance(source, PairFiles):
            self.origin = f"rows of {source.path}"
            self.files = RowFolder(
                source.path,
                list(self._columns.values()),
                left_out,
                language_of=self._checked,
                part_of=lambda split, path: None,
                plain=True,
                whole=isinstance(source, GivenFiles),
            )
        elif isinstance(source, PairDataset):
            self.origin = f"{source.name} from the Hub"

    def has(self, split: str) -> bool:
        """Whether "train", "validation" or "test" has rows; finding out may read them."""
        if self._place(split) is not None:
            return True
        return bool(self._share(split)) and any(map(len, self.tables(split).values()))

    def tables(self, split: str) -> Groups:
        """The rows of a split, with the columns `INPUT`, a text, and `TARGETS`, the accepted texts.

        Raises:
            UserError: they cannot be read, or one is invalid.
        """
        if split not in self._read:
            with announced(f"reading {self.origin} ...", say_on_stderr):
                self._read |= self._divided(split if self._place(split) is not None else "train")
        return self._read[split]

    def splits(self) -> list[str]:
        """One line per split with the place of its rows, as far as it is known."""
        lines = [] if self.files is None else list(self.files.splits)
        if isinstance(self._source, PairDataset) and self.dataset_if_open is not None:
            places = {split: self._place(split) for split in ("train", *HELD_OUT)}
            lines = [
                f"{split}: {place} of {self._source.name}"
                for split, place in places.items()
                if place is not None
            ]
        sizes = {split: sum(map(len, groups.values())) for split, groups in self._read.items()}
        for split in HELD_OUT if "train" in sizes else ():
            if self._place(split) is None and (share := self._share(split)):
                rows = sum(sizes[name] for name in ("train", *HELD_OUT) if name in sizes)
                lines.append(
                    f"{split}: {sizes[split] or 'none'} of {rows:,} training rows, {100 * share:g} % held "
                    "out by a hash of their inputs"
                )
        return lines

    # --- places of splits -------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> HubDataset:
        """The Hub dataset, opened."""
        assert isinstance(self._source, PairDataset)
        return HubDataset(self._source.name, self._source.revision, cached=True)

    @property
    def dataset_if_open(self) -> HubDataset | None:
        """The Hub dataset, if it has been opened."""
        return self.__dict__.get("dataset")

    def _place(self, split: str) -> str | None:
        """The name that a split has in the source; None if it has no rows there."""
        if self.files is not None:
            return split if self.files.has(split) else None
        return self._hub_split(split) if isinstance(self._source, PairDataset) else split

    def _hub_split(self, split: str) -> str | None:
        assert isinstance(self._source, PairDataset)
        name, there = self._source.name, self.dataset.splits(self._configuration)
        said = {each: getattr(self._source.splits, each) for each in ("train", *HELD_OUT)}
        if (own := said[split]) is not None:
            if own in there:
                return str(own)
            near = next(iter(difflib.get_close_matches(own, there, 1)), None)
            raise UserError(
                f"{name} ({self._configuration}) has no {own} split; it has {listed(there)}"
                + (f"; did you mean {near}?" if near else ""),
                "correct task.source.splits",
            )
        if split in there:
            return split
        meant = [
            one for one in there if read_name(PurePath(one)).splits == {split} and one not in said.values()
        ]
        if len(meant) > 1:
            raise UserError(
                f"{name} ({self._configuration}): each of {listed(meant)} could be the {split} split",
                f"choose one: task.source.splits: {{{split}: {meant[0]}}}",
            )
        if not meant and split == "train":
            raise UserError(
                f"{name} ({self._configuration}) has no train split; it has {listed(there)}",
                f"choose one to train on: task.source.splits: {{train: {there[0]}}}",
            )
        return meant[0] if meant else None

    @property
    def _configuration(self) -> str:
        assert isinstance(self._source, PairDataset)
        return self.dataset.configuration(self._source.configuration)

    def _share(self, split: str) -> float:
        """The share of the training rows for a split without rows, 0 to 1."""
        if isinstance(self._source, GeneratedRows) or (
            self.files is not None and not self.files.has("train")
        ):
            return 0.0
        share: float = getattr(self._source.split, split, 0.0)
        return share

    # --- rows -------------------------------------------------------------------------------------------

    def _named_columns(self) -> dict[str, Column]:
        """The columns that a row must have. A target's only column may contain lists if no input uses it."""
        columns = {name: cell_column(name, HINT) for name in self._texts}
        if (lone := self._target.lone_column) is not None and lone not in self._input.columns:
            columns[lone] = cells_column(lone, HINT)
        if (language := self._task.language_column) is not None:
            columns.setdefault(language, cell_column(language, "correct task.language_column"))
        if (also := self._task.references_column) is not None:
            columns.setdefault(also, cells_column(also, "correct task.references_column", may_be_empty=True))
        return columns

    def _checked(self, row: Row) -> str | None:
        """The language of a row, None without a column for it; raises as `collect` expects."""
        try:
            empty = all(_is_nothing(cell(row, name)) for name in self._texts)
            language = None if self._task.language_column is None else cell(row, self._task.language_column)
        except KeyError:
            return None  # reported with all the columns that a row must have
        if empty:
            raise Unusable("with only empty columns")
        if self._task.choices is not None:
            self._check_choice(row, self._task.choices)
        if self._task.language_column is None:
            return None
        try:
            said = read_cell(language).strip()
        except ValueError as found:
            raise ValueError(f"column {self._task.language_column!r} {found}, expected a language") from None
        if not said:
            raise ValueError(f"column {self._task.language_column!r} is empty, expected a language")
        return said

    def _check_choice(self, row: Row, choices: list[str]) -> None:
        found = {name: cell(row, name) for name in self._target.columns}
        try:
            firsts = {name: value[0] if isinstance(value, list) else value for name, value in found.items()}
            target = self._target.render({name: read_cell(value) for name, value in firsts.items()})
        except (ValueError, IndexError):
            return  # reported with the column that is not as expected
        if target not in choices:
            raise ValueError(
                f"the target is {shown(target)}, which is not in task.choices: {listed(choices)}"
            )

    def _divided(self, place: str) -> dict[str, Groups]:
        """The rows of a split of the source, divided into it and the splits that are held out of it."""
        import pyarrow as pa

        held = [
            split
            for split in HELD_OUT
            if place == "train" and self._place(split) is None and self._share(split)
        ]
        found: dict[str, Groups] = {split: {} for split in (place, *held)}
        for language, table in self._groups(place).items():
            pieces: dict[str, list[pa.Table]] = {split: [] for split in found}
            for start in range(0, max(1, len(table)), AT_ONCE):
                some = table.slice(start, AT_ONCE)
                homes, pairs, blank = self._homes(some, held), self._pairs(some), self._blank(some)
                for number, split in enumerate(found):
                    own = homes == number
                    self.empty[split] += int((blank & own).sum())
                    pieces[split].append(pairs.filter(pa.array(own)) if held else pairs)
            for split, tables in pieces.items():
                found[split][language] = pa.concat_tables(tables).combine_chunks()
        rows = sum(len(table) for groups in found.values() for table in groups.values())
        if not rows:
            why = "; ".join(rows_left_out(self._left_out))
            raise UserError(f"{self.origin}: no {place} rows", why or "the source is empty")
        if not any(map(len, found[place].values())):
            raise UserError(
                f"{self.origin}: the hash of the inputs assigns {counted(rows, 'row')} to "
                f"{' or '.join(held)}, and none to {place}",
                "add rows, or lower task.source.split",
            )
        return found

    def _groups(self, place: str) -> Groups:
        columns = list(self._columns.values())
        if self.files is not None:
            return self.files.groups(place)
        if isinstance(self._source, PairDataset):
            split = self._hub_split(place)
            assert split is not None
            return hub_tables(
                self.dataset,
                self._configuration,
                split,
                columns,
                language_of=self._checked,
                left_out=self._left_out,
            )
        assert isinstance(self._source, GeneratedRows)
        rows = (
            (f"generated {place}, row {number}", self._generated(Random(f"text2text/{place}/{number}")))
            for number in range(self._source.examples)
        )
        language = self._task.language_column and GENERATED_LANGUAGE
        return collect(rows, columns, lambda row: language, self._left_out)

    def _generated(self, draw: Random) -> Row:
        """Words in every column; if the task has choices, a target of one column is one of them."""
        row: dict[str, object] = {name: " ".join(words(draw, draw.randint(1, 4))) for name in self._columns}
        if self._task.choices and (lone := self._target.lone_column) is not None:
            row[lone] = draw.choice(self._task.choices)
        return row

    def _homes(self, table: pa.Table, held: list[str]) -> NDArray[np.int64]:
        """(R,) the split of each row: 0 for "train", k for the k-th of `held`."""
        homes = np.zeros(len(table), dtype=np.int64)
        if not held:
            return homes
        inputs = zip(*(table[name].to_pylist() for name in self._input.columns), strict=True)
        drawn = (
            np.array([fingerprint("\0".join(texts).encode()) for texts in inputs], dtype=np.uint64) / 2**64
        )
        # From opposite ends, so that changing the share of one split does not move rows of the other.
        for number, split in enumerate(held, start=1):
            share = self._share(split)
            homes[drawn < share if split == HELD_OUT[0] else drawn >= 1 - share] = number
        return homes

    def _pairs(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        targets = self._targets(table)
        if (also := self._task.references_column) is not None:
            more = ([one] if isinstance(one, str) else one for one in table[also].to_pylist())
            both = [
                list(dict.fromkeys([*own, *others]))
                for own, others in zip(targets.to_pylist(), more, strict=True)
            ]
            targets = pa.array(both, pa.list_(pa.large_string()))
        return pa.table({INPUT: self._input.render_table(table), TARGETS: targets})

    def _targets(self, table: pa.Table) -> pa.ChunkedArray | pa.ListArray:
        import pyarrow as pa

        if (lone := self._target.lone_column) is not None and self._columns[lone].many:
            return table[lone]
        texts = self._target.render_table(table)
        return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1, dtype=np.int32)), texts)

    def _blank(self, table: pa.Table) -> NDArray[np.bool_]:
        """(R,) whether the columns of a row's input, or of its target, are all blank."""

        def empty(template: Template) -> NDArray[np.bool_]:
            return np.logical_and.reduce([blank(table[name]) for name in template.columns])

        return empty(self._input) | empty(self._target)


def _is_nothing(value: object) -> bool:
    return not value.strip() if isinstance(value, str) else value is None or value == []
