"""What tasks made of rows share: a prompt around a row's columns, a target, splits, languages, an order.

A task of rows is a `TableTask` with its columns, its prompt and where its rows are; `xnli` is the shortest
example. Rows stay text in Arrow tables and are encoded a batch at a time.

Letters: B rows, L byte tokens of the longest source, T of the longest target.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from string import Formatter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, OFFSET, PAD
from mrt5cli.data.characters import shown
from mrt5cli.data.columns import Column, Row, collect, empty_texts, language_column
from mrt5cli.data.generated import generator
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.tables import HUB_WAYS_OUT, RowFolder, hub_tables
from mrt5cli.errors import UserError
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
from mrt5cli.tasks.base import subset_of as checked
from mrt5cli.text import counted

# What the order of training rows is drawn for, beside the seed.
ORDER = 0
# Rows encoded at a time, about.
AT_ONCE = 64
# The share of texts that are cut from which on it is worth a word, and the share that a better length keeps.
MUCH, WHOLE = 0.2, 0.95


RowsSection = XnliTask | TyDiQATask | XQuADTask | CharacterTask | AddedTask


class HubSplit(NamedTuple):
    """Where the Hub has the rows of a split; None is the dataset's only configuration.

    `pinned` says whether the recipe's revision is of this dataset.
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
        target: column with the target; of a list of texts the first is taken.
        input_length, target_length: byte tokens at most, EOS included, which stays when a text is cut.
    """

    prompt: str
    target: str
    input_length: int
    target_length: int

    def batch(self, table: pa.Table) -> Batch:
        """The rows of a table, each padded to the longest."""
        return make_batch(
            token_ids(self._sources(table), self.input_length, PAD),
            token_ids(self._targets(table), self.target_length, IGNORED_LABEL),
        )

    def source_lengths(self, table: pa.Table) -> NDArray[np.int64]:
        """Byte tokens (B,) of whole sources, EOS included."""
        literal = sum(len(text.encode()) for text, _ in self._pieces())
        lengths = np.full(len(table), literal + 1, dtype=np.int64)
        for _, column in self._pieces():
            if column is not None:
                lengths += pc.binary_length(table[column]).to_numpy()
        return lengths

    def target_lengths(self, table: pa.Table) -> NDArray[np.int64]:
        """Byte tokens (B,) of whole targets, EOS included."""
        return pc.binary_length(self._targets(table)).to_numpy().astype(np.int64) + 1

    def sources_cut(self, table: pa.Table) -> int:
        """How many sources are longer than `input_length`."""
        return int((self.source_lengths(table) > self.input_length).sum())

    def targets_cut(self, table: pa.Table) -> int:
        """How many targets are longer than `target_length`."""
        return int((self.target_lengths(table) > self.target_length).sum())

    def _pieces(self) -> Iterator[tuple[str, str | None]]:
        for literal, column, _, _ in Formatter().parse(self.prompt):
            yield literal, column

    def _sources(self, table: pa.Table) -> pa.LargeStringArray:
        text = pa.large_string()
        pieces: list[Any] = []
        for literal, column in self._pieces():
            pieces.append(pa.scalar(literal, text))
            if column is not None:
                pieces.append(table[column])
        return pc.binary_join_element_wise(*pieces, pa.scalar("", text)).combine_chunks()

    def _targets(self, table: pa.Table) -> pa.LargeStringArray:
        column = table[self.target].combine_chunks()
        return pc.list_element(column, 0) if pa.types.is_list(column.type) else column


def token_ids(texts: pa.LargeStringArray, at_most: int, fill: int) -> NDArray[np.int64]:
    """Ids (B, L) of texts, each followed by EOS, filled up to the longest; long ones are cut before EOS."""
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


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(rows)


class Shuffled:
    """Training examples: indices (B,) to a batch. Each pass over the rows has an order of its own."""

    def __init__(self, table: pa.Table, encoding: Encoding, seed: int) -> None:
        self._table, self._encoding, self._seed = table, encoding, seed

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which row each example (B,) is."""
        epochs, places = np.divmod(indices, len(self._table))
        rows = np.empty_like(indices)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            rows[of_epoch] = _order(len(self._table), self._seed, int(epoch))[places[of_epoch]]
        return rows

    def __call__(self, indices: NDArray[np.int64]) -> Batch:
        return self._encoding.batch(self._table.take(self.rows(indices)))


def _much_is_cut(split: str, texts: str, lengths: NDArray[np.int64], key: str, limit: int) -> list[str]:
    """A sentence where many of the texts of a split are longer than the recipe's key lets them be.

    Args:
        lengths: byte tokens (B,) of whole texts.
    """
    cut = int((lengths > limit).sum())
    if cut < MUCH * len(lengths):
        return []
    enough = int(np.quantile(lengths, WHOLE, method="higher"))
    share, whole = f"{100 * cut / len(lengths):.0f} %", f"{100 * WHOLE:.0f} %"
    return [
        f"{share} of the {split} {texts} ({cut:,} of {len(lengths):,}) are longer than {key}, {limit} byte "
        f"tokens, and lose their end; {key}: {enough} would leave {whole} whole"
    ]


# --- task ---------------------------------------------------------------------------------------------------


class TableTask(Task):
    """A task whose examples are rows of local files, of a Hub dataset, or generated.

    Args:
        section: of the recipe.
        encoding: of a row.

    Attributes:
        columns: what a row must have.
        languages: that the published dataset has.
        header: whether CSV and TSV files must begin with the columns' names.
        by_language: parts of splits are languages.
        target_key: the recipe's key that says where targets are cut.

    Raises:
        UserError: the folder or a language is not there. Rows are read when they are asked for.
    """

    columns: ClassVar[tuple[Column, ...]]
    languages: ClassVar[tuple[str, ...]] = ()
    header: ClassVar[bool] = True
    by_language: ClassVar[bool] = True
    target_key: ClassVar[str] = "task.target_length"

    def __init__(self, section: RowsSection, encoding: Encoding) -> None:
        self.name = section.kind
        self.section, self.encoding = section, encoding
        self.files: RowFolder | None = None
        languages = [] if isinstance(section, CharacterTask) else section.languages
        if section.source.kind == "files":
            self.files = RowFolder(
                section.source.path,
                self.columns,
                languages=[*languages, *self.languages] if self.by_language else (),
                header=self.header,
                language_of=self.row_language if self.by_language else None,
                own_name=self.own_file_name,
                part_of=None if self.by_language else self.part_of_file,
                parts=self.parts if self.by_language else None,
            )
        elif section.source.kind == "hub" and section.source.name is None and self.by_language:
            self._check_languages(languages)
        self._tables: dict[tuple[str, str], pa.Table] = {}
        self._hub: dict[HubSplit, dict[str | None, pa.Table]] = {}
        self._datasets: dict[str, HubDataset] = {}
        self._left_out: Counter[str] = Counter()

    # What a task says of itself.

    def parts(self, split: str) -> list[str]:
        """Languages or subsets of "train", "validation" or "test": the recipe's languages, or just "all"."""
        if not self.by_language or isinstance(self.section, CharacterTask):
            return ["all"]
        return list(self.section.languages)

    def hub_split(self, split: str, part: str) -> HubSplit:
        """Where the Hub has the rows of a part: by default the recipe's dataset, in a split of the same name.

        Parts may share a place: `row_language` tells them apart.
        """
        source = self.section.source
        name = source.name if isinstance(source, HubRows) else None
        if name is None:
            raise UserError(
                f"{self.name} has no dataset of its own on the Hub",
                "name one of the same columns: --set task.source.name=OWNER/NAME",
            )
        return HubSplit(name, None, split)

    @abstractmethod
    def generate(self, draw: Random, part: str, number: int) -> Row:
        """A random row in the task's columns."""

    def row_language(self, row: Row) -> str | None:
        """The language a row says it is in; a `ValueError` says that it names one that cannot be."""
        return language_column(row)

    def own_file_name(self, name: str) -> str | None:
        """A file's path without its suffix and without what is the task's own in it; None: another task's."""
        return name

    def part_of_file(self, split: str, name: str) -> str | None:
        """The part of a split that a file of this own name is; only asked where parts are no languages."""
        return None

    # What training and evaluation use.

    def subsets(self, split: str) -> list[str]:
        return self.parts(split)

    def language_of(self, subset: str) -> str | None:
        return subset if self.by_language else None

    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        """Training batches; see `Task`. Any batch can be the first."""
        read = Shuffled(self._training(), self.encoding, seed)
        return SeekableStream(read, batch_size=batch_size, rank=rank, world_size=world_size, at_once=AT_ONCE)

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterable[Batch]:
        """Batches in the order of the rows; see `Task`."""
        return self._batches(self.rows(split, subset, limit), batch_size)

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        return self.encoding.sources_cut(self.rows(split, subset, limit))

    def remarks(self) -> list[str]:
        """How many of the rows read so far have an empty text, and whether many are cut."""
        counts = Counter[str]()
        lengths: dict[tuple[str, str], list[NDArray[np.int64]]] = defaultdict(list)
        for (split, _), table in self._tables.items():
            counts[split] += empty_texts(table)
            lengths[split, "sources"].append(self.encoding.source_lengths(table))
            lengths[split, "targets"].append(self.encoding.target_lengths(table))
        found = [f"{count:,} of {split}" for split, count in counts.items() if count]
        remarks = [] if self.files is None else self.files.remarks()
        remarks += [f"{counted(count, 'row')} left out, {reason}" for reason, count in self._left_out.items()]
        if found:
            remarks.append(f"rows with an empty text, taken as they are: {', '.join(found)}")
        if self.section.source.kind == "generated":
            return remarks
        limits = {
            "sources": ("task.input_length", self.encoding.input_length),
            "targets": (self.target_key, self.encoding.target_length),
        }
        for (split, texts), parts in lengths.items():
            remarks += _much_is_cut(split, texts, np.concatenate(parts), *limits[texts])
        return remarks

    def splits(self) -> list[str]:
        return [] if self.files is None else self.files.splits

    def commits(self) -> dict[str, str]:
        return {name: dataset.commit for name, dataset in self._datasets.items()}

    def describe(self) -> str:
        """One line: task, source, rows of training and validation, languages, lengths, what is cut."""
        tables = {}
        if self._has("train"):
            tables["training"] = self._training()
        if self._has("validation"):
            tables["validation"] = pa.concat_tables(
                [self.rows("validation", part) for part in self.parts("validation")]
            )
        counts = " and ".join(f"{len(table):,} {name}" for name, table in tables.items())
        facts = [self.name, self._origin(), f"{counts} rows{self._places('train')}" if counts else ""]
        if self._has("test") and self.parts("test") != self.parts("train"):
            facts.append(f"test{self._places('test')}")
        longest_target = self.answer_length or self.encoding.target_length
        lengths = f"{self.encoding.input_length} -> {longest_target} byte tokens at most"
        counters = {"source": self.encoding.sources_cut, "target": self.encoding.targets_cut}
        cut = [
            counted(number, what)
            for what, count in counters.items()
            if (number := sum(map(count, tables.values())))
        ]
        return ", ".join(filter(None, [*facts, lengths])) + (f" ({', '.join(cut)} cut)" if cut else "")

    def example(self, split: str) -> tuple[str, str]:
        """Source and target of the first row, as cut."""
        batch = self.encoding.batch(self.rows(split, self.parts(split)[0], 1))
        return shown(batch["input_ids"][0].tolist()), shown(batch["labels"][0].tolist())

    def rows(self, split: str, part: str, limit: int | None = None) -> pa.Table:
        """The first rows of a part of "train", "validation" or "test"; by default all.

        Raises:
            UserError: they cannot be had, or one is not as expected.
        """
        key = split, checked(self, split, part)
        if key not in self._tables:
            table = self._read(split, part)
            if not len(table):
                counts = self._left_out + (Counter() if self.files is None else self.files.left_out)
                why = "; ".join(f"{counted(count, 'row')} left out, {why}" for why, count in counts.items())
                raise UserError(f"{self._origin()}: no {split} rows of {part}", why or None)
            self._tables[key] = table.combine_chunks()
        return self._tables[key].slice(0, limit)

    def _read(self, split: str, part: str) -> pa.Table:
        """Rows of a part from where they are; called once for each."""
        if self.files is not None:
            return self.files.table(split, part, self.parts(split))
        source = self.section.source
        if isinstance(source, GeneratedRows):
            rows = (
                (f"generated {split}, row {number}", self.generate(draw, part, number))
                for number in range(source.examples)
                for draw in [generator(self.name, split, part, number)]
            )
            return collect(rows, self.columns)[None]
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
            self._datasets[place.name] = HubDataset(place.name, revision, ways_out=HUB_WAYS_OUT, cached=True)
        return self._datasets[place.name]

    def dataset_name(self, published: str) -> str:
        """The Hub dataset that the recipe names, or the published one."""
        source = self.section.source
        return (source.name if isinstance(source, HubRows) else None) or published

    def _check_languages(self, wanted: list[str]) -> None:
        for language in wanted:
            if language not in self.languages:
                raise UserError(
                    f"{self._origin()} has no language {language!r}; it has {', '.join(self.languages)}",
                    "see task.languages",
                )

    def _has(self, split: str) -> bool:
        return self.files is None or self.files.has(split)

    def _training(self) -> pa.Table:
        tables = [self.rows("train", part) for part in self.parts("train")]
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()

    def _batches(self, table: pa.Table, batch_size: int) -> Iterator[Batch]:
        group = batch_size * max(1, AT_ONCE // batch_size)
        for start in range(0, len(table), group):
            yield from batches_of(self.encoding.batch(table.slice(start, group)), batch_size)

    def _origin(self) -> str:
        if self.files is not None:
            return self.files.description
        if self.section.source.kind == "generated":
            return "generated rows"
        return f"{self.hub_split('train', self.parts('train')[0]).name} from the Hub"

    def _places(self, split: str) -> str:
        parts = self.parts(split)
        if not self.by_language:
            return "" if parts == ["all"] else f" of {counted(len(parts), 'part')}"
        return f" in {parts[0]}" if len(parts) == 1 else f" in {len(parts)} languages"
