"""The text of a task: embedded, local files or a Hub dataset, in memory or streamed.

`open_source` checks what can be checked at once and raises `UserError`, so that a wrong path or column
shows before a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mrt5cli.data.corpus import Corpus, hold_out, split_of
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.formats import DataFile
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.splits import HELD_OUT, SPLITS
from mrt5cli.data.streams import SKIP_HINT, DocumentStream, LeftOut
from mrt5cli.data.texts import Found, find_files, read_documents, text_files
from mrt5cli.errors import UserError
from mrt5cli.recipe import EmbeddedSource, FilesSource, HubSource
from mrt5cli.recipe.tasks import seconds_of
from mrt5cli.text import Tell, byte_size, listed, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.data.streams import Counts

# The paper's validation set is the first examples of English's validation split, its test set the others.
ENGLISH = "en"
ENGLISH_VALIDATION_EXAMPLES = 16_000


@dataclass
class MemoryText:
    """Text held in memory, so that every position can be reached at once.

    Attributes:
        corpora: of each language, one for each split. Languages without texts of their own share theirs.
        name: what the text is, for people.
        splits: a line a split, with its files.
        notes: what the user should know of it, a sentence each.
    """

    corpora: dict[str, dict[str, Corpus]]
    name: str
    splits: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Bytes of all text."""
        once = {id(corpus): corpus for splits in self.corpora.values() for corpus in splits.values()}
        return sum(corpus.size for corpus in once.values())

    @property
    def description(self) -> str:
        """One phrase, with the size in decimal units."""
        return f"{self.name} ({byte_size(self.size)})"

    def remarks(self) -> list[str]:
        """What the user should know of the text."""
        return list(self.notes)

    def corpus(self, language: str, split: str, at_least: int) -> Corpus:
        """Documents of a language and split that fill at least one example of `at_least` bytes.

        Raises:
            UserError: there is too little text.
        """
        corpus = self.corpora[language].get(split)
        if corpus is None:
            raise UserError(f"{self.name} has no {split} text", f"add a file named {split}.*")
        if len(corpus.buffer) < at_least:
            raise UserError(
                f"too little {split} text in {self.name} ({language}): {corpus.size} bytes in "
                f"{len(corpus.lengths)} documents, and one example takes {at_least}",
                f"add text, add a file named {split}.*, or lower task.input_length",
            )
        return corpus


class FilesOfLanguages(Protocol):
    """Where streamed text is: files by language and split."""

    def splits(self, language: str) -> list[str]:
        """Splits that have files of their own."""

    def files(self, language: str, split: str, tell: Tell) -> list[DataFile]:
        """Files of a split; `tell` is told of what keeps them from being read meanwhile."""


@dataclass(frozen=True)
class HubFiles:
    """Files of a Hub dataset, a configuration a language.

    Attributes:
        configurations: of languages whose own code is not its name.
        seconds: to wait for a Hub that is away.
    """

    dataset: HubDataset
    configurations: dict[str, str]
    seconds: float

    def configuration(self, language: str) -> str:
        """The configuration of a language.

        Raises:
            UserError: the dataset does not have it.
        """
        return self.dataset.configuration(self.configurations.get(language, language))

    def splits(self, language: str) -> list[str]:
        return self.dataset.splits(self.configuration(language))

    def files(self, language: str, split: str, tell: Tell) -> list[DataFile]:
        names = self.dataset.files(self.configuration(language), split)
        opened = partial(self.dataset.open, seconds=self.seconds, tell=tell)
        return text_files(
            [DataFile(f"{self.dataset.name}, {name}", partial(opened, name), remote=True) for name in names]
        )


@dataclass
class StreamedText:
    """Text read again and again, in order.

    Attributes:
        files: where it is.
        description: what the text is, one phrase.
        column: with the text.
        shuffle_files: read files in an order drawn from the seed.
        hashed: splits without files of their own are taken from the training documents by their fingerprints.
        hint: the way out for those who are stopped by a row or a file that cannot be read.
        left_out: counts these instead; None stops there.
        by_rows: rows that say they are in another language than the one they are read as are left out.
        splits, notes: as in `MemoryText`.
    """

    files: FilesOfLanguages
    description: str
    column: str
    shuffle_files: bool
    hashed: bool
    hint: str
    left_out: LeftOut | None = None
    by_rows: bool = False
    splits: Sequence[str] = ()
    notes: Sequence[str] = ()

    def train(
        self,
        language: str,
        *,
        key: Sequence[int],
        shard: int,
        shards: int,
        counts: Counts | None = None,
        tell: Tell = say_on_stderr,
    ) -> DocumentStream:
        """Endless training text of a language: the part of one shard.

        Args:
            counts: of what is left out, see `LeftOut`.
            tell: is told of that, and of a Hub that is away.
        """
        keep = None
        if self.hashed:
            own = self.files.splits(language)
            # A split with files of its own leaves its share of the training documents in training.
            elsewhere = {split for split in HELD_OUT if split not in own}
            keep = (lambda document: split_of(document) not in elsewhere) if elsewhere else None
        left_out = self.left_out if self.left_out is None or counts is None else LeftOut(counts, tell)
        return DocumentStream(
            self._files(language, "train", tell),
            self.column,
            key=key if self.shuffle_files else None,
            shard=shard,
            shards=shards,
            keep=keep,
            language=language if self.by_rows else None,
            left_out=left_out,
            hint=self.hint,
            tell=tell,
        )

    def held_out(self, language: str, split: str, example_bytes: int) -> DocumentStream:
        """One pass over held-out text, from its first example on."""
        own = self.files.splits(language)
        source, keep = split, None
        if split not in own and self.hashed:
            source, keep = "train", lambda document: split_of(document) == split
        elif split not in own and split == "test" and "validation" in own:
            source = "validation"
        stream = DocumentStream(
            self._files(language, source, say_on_stderr),
            self.column,
            keep=keep,
            language=language if self.by_rows else None,
            endless=False,
            left_out=self.left_out,
            hint=self.hint,
        )
        if source != split and source == "validation" and language == ENGLISH:
            for _ in range(ENGLISH_VALIDATION_EXAMPLES):
                stream.take(example_bytes)
        return stream

    def remarks(self) -> list[str]:
        """What the user should know, and what was left out beside what training streams count themselves."""
        return [*self.notes, *(self.left_out.sentences() if self.left_out else [])]

    def _files(self, language: str, split: str, tell: Tell) -> list[DataFile]:
        if split not in (own := self.files.splits(language)):
            raise UserError(
                f"{self.description} has no {split} split for {language!r}; it has {', '.join(own)}",
                "choose another dataset or split",
            )
        return self.files.files(language, split, tell)


def open_source(
    source: EmbeddedSource | FilesSource | HubSource, languages: Sequence[str]
) -> MemoryText | StreamedText:
    """The text of a recipe's source in these languages.

    Raises:
        UserError: anything that cannot be found, reached or read.
    """
    if isinstance(source, EmbeddedSource):
        return MemoryText({"en": _with_held_out({"train": list(embedded_documents())})}, "embedded text")
    if isinstance(source, FilesSource):
        return _streamed_files(source, languages) if source.streaming else _files(source, languages)
    dataset = HubDataset(source.name, source.revision)
    files = HubFiles(dataset, source.configurations, seconds_of(source.patience))
    for language in languages:
        files.configuration(language)
    return StreamedText(
        files,
        f"{source.name} from the Hub",
        source.text_column,
        shuffle_files=source.shuffle_shards,
        hashed=False,
        hint=SKIP_HINT,
        left_out=LeftOut(np.zeros(2, dtype=np.int64)) if source.skip_corrupt else None,
    )


def _files(source: FilesSource, languages: Sequence[str]) -> MemoryText:
    path = Path(source.path)
    found = find_files(path, languages)
    remarks = list(found.remarks)
    groups = [[language] for language in languages] if found.apart else [list(languages)]
    corpora: dict[str, dict[str, Corpus]] = {}
    for group in groups:
        files = found.languages[group[0]]
        documents = {
            split: read_documents(some, source.text_column, group, remarks.append)
            for split, some in files.items()
        }
        for language in group:
            own = {split: of_split[language] for split, of_split in documents.items()}
            corpora[language] = _with_held_out(own)
            for split, some in own.items():
                if not any(some):
                    raise UserError(f"there is no text in {listed(files[split], 3)}")
    return MemoryText(corpora, f"text of {path}", _splits(found), remarks)


def _splits(found: Found) -> list[str]:
    """A line a split, those that are held out of the training documents included."""
    there = set.intersection(*(set(files) for files in found.languages.values()))
    missing = [split for split in HELD_OUT if split not in there] if "train" in there else []
    return [*found.lines, *(f"{split}: held out from the training documents" for split in missing)]


def _with_held_out(documents: dict[str, list[bytes]]) -> dict[str, Corpus]:
    """Corpora of all splits; those without documents of their own are taken from the training documents."""
    if "train" in documents:
        missing = [split for split in HELD_OUT if split not in documents]
        documents = {**documents, **hold_out(documents["train"], missing)}
    return {split: Corpus(documents[split]) for split in SPLITS if split in documents}


def _streamed_files(source: FilesSource, languages: Sequence[str]) -> StreamedText:
    path = Path(source.path)
    found = find_files(path, languages)
    if len(languages) > 1 and not found.apart:
        raise UserError(
            f"streaming several languages from {path} needs one folder a language",
            f"make {path / languages[0]}/, {path / languages[1]}/ ..., or --set task.source.streaming=false",
        )
    return StreamedText(
        found,
        f"text of {path}, streamed",
        source.text_column,
        shuffle_files=True,
        hashed=True,
        hint="repair it, or take it out of task.source.path",
        by_rows=True,
        splits=_splits(found),
        notes=found.remarks,
    )
