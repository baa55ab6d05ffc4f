"""The text of a task: embedded, local files or a Hub dataset, in memory or streamed.

`open_source` checks everything it can at once and raises `UserError`, so that a wrong path or column is
detected before a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrt5cli.data.corpus import Corpus, Order, hold_out, split_of
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.formats import DataFile
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.splits import HELD_OUT, SPLITS
from mrt5cli.data.streams import DocumentStream, LeftOut
from mrt5cli.data.texts import Found, find_files, read_documents, text_files
from mrt5cli.errors import UserError
from mrt5cli.recipe import EmbeddedSource, FilesSource, HubSource
from mrt5cli.recipe.tasks import MixedHub, seconds_of
from mrt5cli.text import Tell, byte_size, listed, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.data.streams import Counts

# As in the authors' code, the first examples of the English validation split are the validation set, and the
# rest are the test set.
ENGLISH = "en"
ENGLISH_VALIDATION_EXAMPLES = 16_000
# Hints for a row or file that cannot be read.
REPAIR_HINT = "repair it, or remove it from the data"
MIXED_HINT = (
    "set skip_corrupt: true in this source of task.sources to leave it out and count it; to evaluate a run, "
    "set it in the run's recipe.yaml"
)
SKIP_HINT = (
    "pass --set task.source.skip_corrupt=true to leave it out and count it; to evaluate a run, set the key "
    "in the run's recipe.yaml"
)


@dataclass
class MemoryText:
    """Text in memory, with random access.

    Attributes:
        corpora: for each language, one corpus per split; languages without separate text share one.
        name: the text's name in messages.
        splits: one line per split, with its files.
        notes: remarks for the user, one sentence each.
    """

    corpora: dict[str, dict[str, Corpus]]
    name: str
    splits: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def description(self) -> str:
        """One phrase, with the size in decimal units."""
        once = {id(corpus): corpus.size for splits in self.corpora.values() for corpus in splits.values()}
        return f"{self.name} ({byte_size(sum(once.values()))})"

    def remarks(self) -> list[str]:
        """Remarks for the user, one sentence each."""
        return list(self.notes)

    def corpus(self, language: str, split: str, at_least: int) -> Corpus:
        """The documents of a split.

        Raises:
            UserError: they do not fill one example of `at_least` bytes.
        """
        corpus = self.corpora[language].get(split)
        if corpus is None:
            raise UserError(f"{self.name} has no {split} text", f"add a file named {split}.*")
        if len(corpus.buffer) < at_least:
            raise UserError(
                f"too little {split} text in {self.name} ({language}): {corpus.size} bytes in "
                f"{len(corpus.lengths)} documents, and one example needs {at_least}",
                f"add text, add a file named {split}.*, or lower task.input_length",
            )
        return corpus

    def held_out(self, language: str, split: str, example_bytes: int) -> Order:
        """The documents of a split in their original order."""
        return Order(self.corpus(language, split, example_bytes))


@dataclass(frozen=True)
class HubFiles:
    """The files of a Hub dataset with one configuration per language.

    Attributes:
        configurations: the configuration of each language whose code is not its name.
        seconds: how long to wait for an unreachable Hub.
        lines, remarks: as in `Found`; empty, because the Hub assigns files to splits.
    """

    dataset: HubDataset
    configurations: dict[str, str]
    seconds: float
    lines: Sequence[str] = ()
    remarks: Sequence[str] = ()

    def configuration(self, language: str) -> str:
        """The configuration of a language; `UserError` if the dataset does not have it."""
        return self.dataset.configuration(self.configurations.get(language, language))

    def splits(self, language: str) -> list[str]:
        """The splits of a language that have files."""
        return self.dataset.splits(self.configuration(language))

    def files(self, language: str, split: str, tell: Tell) -> list[DataFile]:
        """The files of a split; `tell` receives notes while reading waits for the Hub."""
        opened = partial(self.dataset.open, seconds=self.seconds, tell=tell)
        return text_files(
            [
                DataFile(f"{self.dataset.name}, {name}", partial(opened, name), remote=True)
                for name in self.dataset.files(self.configuration(language), split)
            ]
        )


class StreamedText:
    """Text that is read repeatedly, in order.

    For local text, splits without files are held out of the training documents by their fingerprints, and
    rows in other languages than the requested one are left out.

    Attributes:
        description: the text, as one phrase.
        left_out: counts what cannot be read; None makes it an error.
    """

    def __init__(self, source: FilesSource | HubSource, files: Found | HubFiles) -> None:
        self.files, self._column = files, source.text_column
        self._local = isinstance(source, FilesSource)
        if isinstance(source, FilesSource):
            self.description, self._hint = f"text of {Path(source.path)}, streamed", REPAIR_HINT
            self._shuffled, skips = True, False
        else:
            self.description, self._hint = f"{source.name} from the Hub", SKIP_HINT
            if isinstance(source, MixedHub):
                self._hint = MIXED_HINT
            self._shuffled, skips = source.shuffle_shards, source.skip_corrupt
        self.left_out = LeftOut(np.zeros(2, dtype=np.int64)) if skips else None

    def train(
        self,
        language: str,
        *,
        key: Sequence[int],
        counts: Counts | None = None,
        tell: Tell = say_on_stderr,
    ) -> DocumentStream:
        """Endless training text of a language.

        Args:
            counts: counters of what is left out, see `LeftOut`.
            tell: receives notes about that, and about an unreachable Hub.
        """
        own = self.files.splits(language)
        # If a split has files, no training documents are held out for it.
        elsewhere = {split for split in HELD_OUT if self._local and split not in own}
        return replace(
            self._stream(language, "train", tell),
            key=key if self._shuffled else None,
            keep=(lambda document: split_of(document) not in elsewhere) if elsewhere else None,
            left_out=self.left_out if self.left_out is None or counts is None else LeftOut(counts, tell),
        )

    def held_out(self, language: str, split: str, example_bytes: int) -> DocumentStream:
        """One pass over held-out text, from its first example."""
        own = self.files.splits(language)
        if self._local and split not in own:
            stream = self._stream(language, "train")
            return replace(stream, endless=False, keep=lambda document: split_of(document) == split)
        of_validation = split == "test" and split not in own and "validation" in own
        stream = replace(self._stream(language, "validation" if of_validation else split), endless=False)
        if of_validation and language == ENGLISH:
            for _ in range(ENGLISH_VALIDATION_EXAMPLES):
                stream.take(example_bytes)
        return stream

    @property
    def splits(self) -> Sequence[str]:
        """As in `MemoryText`."""
        return self.files.lines

    def remarks(self) -> list[str]:
        """Remarks for the user, and what was left out, except for what training streams count themselves."""
        return [*self.files.remarks, *(self.left_out.sentences() if self.left_out else [])]

    def _stream(self, language: str, split: str, tell: Tell = say_on_stderr) -> DocumentStream:
        if split not in (own := self.files.splits(language)):
            raise UserError(
                f"{self.description} has no {split} split for {language!r}; it has {', '.join(own)}",
                "choose another dataset or split",
            )
        return DocumentStream(
            self.files.files(language, split, tell),
            self._column,
            language=language if self._local else None,
            left_out=self.left_out,
            hint=self._hint,
            tell=tell,
        )


def open_source(
    source: EmbeddedSource | FilesSource | HubSource, languages: Sequence[str]
) -> MemoryText | StreamedText:
    """The text of a recipe's source in these languages.

    Raises:
        UserError: something cannot be found, reached or read.
    """
    if isinstance(source, EmbeddedSource):
        return MemoryText({"en": _with_held_out({"train": list(embedded_documents())})}, "embedded text")
    if isinstance(source, HubSource):
        dataset = HubDataset(source.name, source.revision)
        files = HubFiles(dataset, source.configurations, seconds_of(source.patience))
        for language in languages:
            files.configuration(language)
        return StreamedText(source, files)
    path = Path(source.path)
    found = find_files(path, languages)
    if not source.streaming:
        return _in_memory(source, found, languages)
    if len(languages) > 1 and not found.by_language:
        raise UserError(
            f"streaming several languages from {path} needs one folder per language",
            f"make {path / languages[0]}/, {path / languages[1]}/ and so on, or set streaming: false",
        )
    return StreamedText(source, found)


def _in_memory(source: FilesSource, found: Found, languages: Sequence[str]) -> MemoryText:
    remarks = list(found.remarks)
    corpora: dict[str, dict[str, Corpus]] = {}
    for group in [[language] for language in languages] if found.by_language else [list(languages)]:
        documents = {
            split: read_documents(found.files(group[0], split), source.text_column, group, remarks.append)
            for split in found.splits(group[0])
        }
        for language in group:
            own = {split: of_split[language] for split, of_split in documents.items()}
            for split, some in own.items():
                if not some:
                    files = listed(found.languages[language][split], 3)
                    raise UserError(f"there is no text in {files}", "add text, or remove the files")
            corpora[language] = _with_held_out(own)
    return MemoryText(corpora, f"text of {Path(source.path)}", found.lines, remarks)


def _with_held_out(documents: dict[str, list[bytes]]) -> dict[str, Corpus]:
    """The corpora of all splits; splits without documents are held out of the training documents."""
    if "train" in documents:
        missing = [split for split in HELD_OUT if split not in documents]
        documents = {**documents, **hold_out(documents["train"], missing)}
    return {split: Corpus(documents[split]) for split in SPLITS if split in documents}
