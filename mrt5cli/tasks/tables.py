"""The base of tasks made of rows: a prompt around a row's columns, a target, splits, languages, an order.

A task of rows is a `TableTask` with its columns, its prompt and the place of its rows; `xnli` is the shortest
example. Rows stay text in Arrow tables and are encoded one batch at a time.

Letters: R rows of a table, B rows of a batch, L byte tokens of the longest source, T of the longest target.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import PurePath
from random import Random
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, OFFSET, PAD
from mrt5cli.data.characters import shown
from mrt5cli.data.columns import Column, Row, language_column
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.mixtures import draw_sources
from mrt5cli.data.tables import RowFolder, blank, collect, first_texts, hub_tables, rows_left_out
from mrt5cli.errors import UserError
from mrt5cli.metrics.catalog import generates
from mrt5cli.recipe.tasks import (
    AddedTask,
    CharacterTask,
    GeneratedRows,
    HubRows,
    TyDiQATask,
    XnliTask,
    XQuADTask,
)
from mrt5cli.tasks.base import Batch, BatchStream, SeekableStream, Task, batches_of, make_batch
from mrt5cli.templates import Template
from mrt5cli.text import counted, listed

# Added to the seed for the order of training rows, and for the choice of sources.
ORDER, MIXTURE = 0, 1
# Roughly how many rows are encoded at a time.
AT_ONCE = 64
# The only part of an undivided split.
ALL = "all"

RowsSection = XnliTask | TyDiQATask | XQuADTask | CharacterTask | AddedTask


class HubSplit(NamedTuple):
    """The place of a split's rows on the Hub.

    Attributes:
        configuration: None is the dataset's default.
        pinned: whether the recipe's revision refers to this dataset.
    """

    name: str
    configuration: str | None
    split: str
    pinned: bool = True


# --- encoding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """How a row becomes a source and a target.

    Attributes:
        prompt: the source, with columns in braces.
        target: the column with the target; the first text of a list is used.
        input_length, target_length: the most byte tokens, EOS included, which is kept when a text is cut.
    """

    prompt: str
    target: str
    input_length: int
    target_length: int

    def batch(self, table: pa.Table) -> Batch:
        """The rows of a table as a batch, padded to the longest."""
        sources, targets = self._texts(table)
        return make_batch(
            token_ids(sources, self.input_length, PAD),
            token_ids(targets, self.target_length, IGNORED_LABEL),
        )

    def cut(self, table: pa.Table) -> tuple[int, int]:
        """The numbers of sources and of targets that are longer than allowed."""
        sources, targets = self._lengths(table)
        return int((sources > self.input_length).sum()), int((targets > self.target_length).sum())

    def sizes(self, table: pa.Table) -> NDArray[np.int64]:
        """(R,) byte tokens of each row's source and target together, after cutting."""
        sources, targets = self._lengths(table)
        return np.minimum(sources, self.input_length) + np.minimum(targets, self.target_length)

    def _lengths(self, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(R,) byte tokens of sources and of targets before cutting, EOS included."""
        sources, targets = (pc.binary_length(texts).to_numpy() + 1 for texts in self._texts(table))
        return sources, targets

    def _texts(self, table: pa.Table) -> tuple[pa.LargeStringArray, pa.LargeStringArray]:
        """Sources and targets before cutting."""
        sources = Template.parse(self.prompt).render_table(table)
        return sources, first_texts(table[self.target]).combine_chunks()


def token_ids(texts: pa.LargeStringArray, at_most: int, fill: int) -> NDArray[np.int64]:
    """Ids (B, L) of texts with at most `at_most` byte tokens, each ending in EOS, padded with `fill`."""
    _, offsets, content = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw = np.frombuffer(content or b"", dtype=np.uint8)
    lengths = np.minimum(np.diff(bounds), at_most - 1)
    ids = np.full((len(texts), lengths.max() + 1), fill, dtype=np.int64)
    places = np.arange(ids.shape[1])
    inside = places < lengths[:, None]
    ids[inside] = raw[(bounds[:-1, None] + places)[inside]].astype(np.int64) + OFFSET
    ids[np.arange(len(ids)), lengths] = EOS
    return ids


# --- order --------------------------------------------------------------------------------------------------


class RowOrder:
    """The row of each training example; every pass over the rows has a different order.

    Args:
        rows: the number of rows.
        key: numbers that seed the orders.
    """

    def __init__(self, rows: int, key: Sequence[int]) -> None:
        self._rows, self._key = rows, tuple(key)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers (B,) of the examples with these indices (B,)."""
        epochs, places = np.divmod(indices, self._rows)
        drawn = np.empty_like(indices)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            drawn[of_epoch] = self._order(epoch)[places[of_epoch]]
        return drawn

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            for other in list(self._orders)[:-1]:  # a batch may begin in one pass and end in the next
                del self._orders[other]
            self._orders[epoch] = np.random.default_rng((*self._key, epoch)).permutation(self._rows)
        return self._orders[epoch]


class TrainingRows:
    """Makes batches of training rows.

    Args:
        tables: one table per source, each read in a separate order.
        weights: the relative frequency of each source.
    """

    def __init__(
        self, tables: Sequence[pa.Table], weights: Sequence[float], encoding: Encoding, seed: int
    ) -> None:
        self._table = pa.concat_tables(tables).combine_chunks()
        self._starts = np.cumsum([0, *map(len, tables)])
        self._encoding, self._weights, self._seed = encoding, weights, seed
        self._orders = [
            RowOrder(len(table), (seed, ORDER, *([number] if number else [])))
            for number, table in enumerate(tables)
        ]

    def __call__(self, indices: NDArray[np.int64]) -> Batch:
        """The batch of the examples with these indices (B,)."""
        return self._encoding.batch(self._table.take(self._places(indices)))

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) byte tokens of the examples with these indices (B,)."""
        return self._sizes_of_rows[self._places(indices)]

    @cached_property
    def _sizes_of_rows(self) -> NDArray[np.int64]:
        return self._encoding.sizes(self._table)

    def _places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) the rows of examples in the concatenated table."""
        sources, numbers = draw_sources(self._weights, (self._seed, MIXTURE), indices)
        places = np.empty_like(indices)
        for source in np.unique(sources).tolist():
            own = sources == source
            places[own] = self._starts[source] + self._orders[source](numbers[own])
        return places


# --- task ---------------------------------------------------------------------------------------------------


class RowsTask(Task):
    """The base of tasks of rows, wherever these come from.

    Attributes:
        encoding: how a row of its tables becomes a source and a target.
    """

    def __init__(self, name: str, encoding: Encoding) -> None:
        self.name, self.encoding = name, encoding
        if self.answer_length is None and generates(self.measures):
            self.answer_length = encoding.target_length
        # Numbers of rows, by reason.
        self._left_out: Counter[str] = Counter()
        self._tables: dict[tuple[str, str], pa.Table] = {}

    @abstractmethod
    def parts(self, split: str) -> list[str]:
        """The parts of "train", "validation" or "test": languages, subsets, sources, or just "all"."""

    @abstractmethod
    def _read(self, split: str, part: str) -> pa.Table:
        """Read the rows of a part; called once for each."""

    @abstractmethod
    def _has(self, split: str) -> bool:
        """Whether a split exists."""

    @abstractmethod
    def _origin(self) -> str:
        """The place of the rows, for messages."""

    @abstractmethod
    def _empty(self) -> dict[str, int]:
        """The number of rows with an empty text among those read so far, by split."""

    def _weights(self) -> Sequence[float] | None:
        """The relative frequency of each part of the training rows; None: every row is equally frequent."""
        return None

    def subsets(self, split: str) -> list[str]:
        return self.parts(split)

    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        tables, weights = [self.rows("train", part) for part in self.parts("train")], self._weights()
        if weights is None:
            tables, weights = [pa.concat_tables(tables)], [1.0]
        read = TrainingRows(tables, weights, self.encoding, seed)
        ranks = {"rank": rank, "world_size": world_size}
        return SeekableStream(read, batch_size=batch_size, **ranks, at_once=AT_ONCE, sizes=read.sizes)

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        table, group = self.rows(split, subset, limit), batch_size * max(1, AT_ONCE // batch_size)
        groups = (table.slice(start, group) for start in range(0, len(table), group))
        return chain.from_iterable(batches_of(self.encoding.batch(rows), batch_size) for rows in groups)

    def references(self, split: str, subset: str, limit: int | None = None) -> list[tuple[str, ...]] | None:
        """The accepted targets of each example, the first of which is trained on; see `Task`."""
        if not generates(self.measures):
            return None
        targets = self.rows(split, subset, limit)[self.encoding.target].to_pylist()
        return [(target,) if isinstance(target, str) else tuple(target) for target in targets]

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        return self.encoding.cut(self.rows(split, subset, limit))[0]

    def remarks(self) -> list[str]:
        """The numbers of rows that are left out, and of rows read so far with an empty text."""
        remarks = rows_left_out(self._left_out)
        if found := [f"{count:,} of {split}" for split, count in self._empty().items() if count]:
            remarks.append(f"rows with an empty text, which are kept: {', '.join(found)}")
        return remarks

    def describe(self) -> str:
        counts, cut = [], Counter[str]()
        for split, name in (("train", "training"), ("validation", "validation")):
            tables = [self.rows(split, part) for part in self.parts(split)] if self._has(split) else []
            counts += [f"{sum(map(len, tables)):,} {name}"] if tables else []
            for table in tables:
                cut.update(dict(zip(("source", "target"), self.encoding.cut(table), strict=True)))
        facts = [self.name, self._origin(), *([f"{' and '.join(counts)} rows"] if counts else [])]
        if self._has("test") and self.parts("test") != self.parts("train"):
            facts.append(f"test of {listed(self.parts('test'), 3)}")
        longest_target = self.answer_length or self.encoding.target_length
        facts.append(f"at most {self.encoding.input_length} -> {longest_target} byte tokens")
        cuts = [counted(number, noun) for noun, number in cut.items() if number]
        return ", ".join(facts) + (f" ({', '.join(cuts)} cut)" if cuts else "")

    def example(self, split: str) -> tuple[str, str]:
        batch = self.encoding.batch(self.rows(split, self.parts(split)[0], 1))
        return shown(batch["input_ids"][0].tolist()), shown(batch["labels"][0].tolist())

    def rows(self, split: str, part: str, limit: int | None = None) -> pa.Table:
        """The rows of a part of "train", "validation" or "test", or the first `limit` of them.

        Raises:
            UserError: there are none, they cannot be read, or one is invalid.
        """
        key = split, part
        if key not in self._tables:
            table = self._read(split, part)
            if not len(table):
                why = "; ".join(rows_left_out(self._left_out))
                raise UserError(f"{self._origin()}: no {split} rows of {part}", why or None)
            self._tables[key] = table.combine_chunks()
        return self._tables[key].slice(0, limit)


class TableTask(RowsTask):
    """A task whose examples are rows of local files, of a Hub dataset, or generated.

    Attributes:
        columns: the columns that a row must have.
        languages: the languages of the published dataset.
        trained_on: the only language of training and validation; None if they have the recipe's languages.
        header: whether CSV and TSV files must begin with the column names.
        by_language: whether the parts of splits are languages.

    Raises:
        UserError: the folder or a language does not exist. Rows are read on demand.
    """

    columns: ClassVar[tuple[Column, ...]]
    languages: ClassVar[tuple[str, ...]] = ()
    trained_on: ClassVar[str | None] = None
    header: ClassVar[bool] = True
    by_language: ClassVar[bool] = True

    def __init__(self, section: RowsSection, encoding: Encoding) -> None:
        super().__init__(section.kind, encoding)
        self.section = section
        self.files: RowFolder | None = None
        languages = [] if isinstance(section, CharacterTask) else section.languages
        if section.source.kind == "files":
            self.files = RowFolder(
                section.source.path,
                self.columns,
                self._left_out,
                languages=[*languages, *self.languages] if self.by_language else (),
                header=self.header,
                language_of=self.row_language if self.by_language else None,
                own_name=self.own_file_name,
                part_of=None if self.by_language else self.part_of_file,
                parts=self.parts if self.by_language else None,
            )
        published = section.source.kind == "hub" and section.source.name is None
        others = sorted(set(languages) - set(self.languages)) if published and self.languages else []
        if others:
            raise UserError(
                f"{self._origin()} has no language {others[0]!r}; it has {', '.join(self.languages)}",
                "correct task.languages",
            )
        self._hub: dict[HubSplit, dict[str | None, pa.Table]] = {}
        self._datasets: dict[str, HubDataset] = {}

    # What a subclass may override.

    def parts(self, split: str) -> list[str]:
        """The parts of "train", "validation" or "test": the recipe's languages, or just "all"."""
        if not self.by_language or isinstance(self.section, CharacterTask):
            return [ALL]
        return [self.trained_on] if self.trained_on and split != "test" else list(self.section.languages)

    def hub_split(self, split: str, part: str) -> HubSplit:
        """The place of a part on the Hub: by default the recipe's dataset, and the split of the same name.

        Parts may share a place; then `row_language` assigns the rows to them.
        """
        return HubSplit(self.dataset_name(), None, split)

    @abstractmethod
    def generate(self, draw: Random, part: str, number: int) -> Row:
        """A random row with the task's columns."""

    def row_language(self, row: Row) -> str | None:
        """The language of a row, None if it has none; raises `ValueError` if it is not a language."""
        return language_column(row)

    def own_file_name(self, name: str) -> str | None:
        """A file's path without its suffix and the task's name; None if it is another task's file."""
        return name

    def part_of_file(self, split: str, path: PurePath) -> str | None:
        """The part of a split that a file contains, for tasks whose parts are not languages."""
        return None

    def dataset_name(self, published: str | None = None) -> str:
        """The Hub dataset that the recipe names, or the published one.

        Raises:
            UserError: there is neither.
        """
        source = self.section.source
        name = (source.name if isinstance(source, HubRows) else None) or published
        if name is None:
            raise UserError(
                f"{self.name} has no published dataset on the Hub",
                "name one with the same columns: --set task.source.name=OWNER/NAME",
            )
        return name

    # What training and evaluation use.

    def language_of(self, subset: str) -> str | None:
        return subset if self.by_language else None

    def remarks(self) -> list[str]:
        return [*([] if self.files is None else self.files.remarks), *super().remarks()]

    def splits(self) -> list[str]:
        return [] if self.files is None else self.files.splits

    def commits(self) -> dict[str, str]:
        return {name: dataset.commit for name, dataset in self._datasets.items()}

    def _read(self, split: str, part: str) -> pa.Table:
        if self.files is not None:
            return self.files.table(split, None if part == ALL else part, self.parts(split))
        source = self.section.source
        if isinstance(source, GeneratedRows):
            rows = (
                (f"generated {split}, row {number}", self.generate(draw, part, number))
                for number in range(source.examples)
                for draw in [Random(f"{self.name}/{split}/{part}/{number}")]
            )
            return collect(rows, self.columns, lambda row: None, self._left_out)[None]
        place = self.hub_split(split, part)
        shared = any(self.hub_split(split, other) == place for other in self.parts(split) if other != part)
        if place not in self._hub:
            self._hub[place] = hub_tables(
                self._dataset(place),
                place.configuration,
                place.split,
                self.columns,
                language_of=self.row_language if shared else lambda row: None,
                left_out=self._left_out,
            )
        return self._hub[place].get(part if shared else None, pa.table({}))

    def _dataset(self, place: HubSplit) -> HubDataset:
        if place.name not in self._datasets:
            source = self.section.source
            revision = source.revision if isinstance(source, HubRows) and place.pinned else None
            self._datasets[place.name] = HubDataset(place.name, revision, cached=True)
        return self._datasets[place.name]

    def _empty(self) -> dict[str, int]:
        empty = Counter[str]()
        for (split, _), table in self._tables.items():
            empty[split] += int(np.logical_or.reduce([blank(column) for column in table.columns]).sum())
        return empty

    def _has(self, split: str) -> bool:
        return self.files is None or self.files.has(split)

    def _origin(self) -> str:
        if self.files is not None:
            return f"rows of {self.files.path}"
        if self.section.source.kind == "generated":
            return "generated rows"
        return f"{self.hub_split('train', self.parts('train')[0]).name} from the Hub"
