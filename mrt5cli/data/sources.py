"""The text of a task: embedded, local files or a Hub dataset, in memory or streamed.

`open_source` checks what can be checked at once and raises `UserError`, so that a wrong path or column
shows before a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mrt5cli.data.corpus import Corpus, hold_out, split_of
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.files import SPLITS, FilesOfSplits, find_files, read_documents
from mrt5cli.data.streams import (
    Builder,
    DocumentStream,
    hub_builder,
    hub_failure,
    local_builder,
    local_failure,
    opener,
    splits_of,
)
from mrt5cli.errors import UserError
from mrt5cli.recipe import EmbeddedSource, FilesSource, HubSource

HELD_OUT = ("validation", "test")
# The paper's validation set is the first examples of English's validation split, its test set those after
# them.
ENGLISH = ("en", "en-multi")
ENGLISH_VALIDATION_EXAMPLES = 16_000


class MemoryText:
    """Text held in memory, so that every position can be reached at once.

    Args:
        corpora: of each language, one for each split.
        name: what the text is, for people.
    """

    def __init__(self, corpora: dict[str, dict[str, Corpus]], name: str) -> None:
        self._corpora, self._name = corpora, name
        # Languages without texts of their own share corpora.
        self.size = sum(
            corpus.size
            for corpus in {id(c): c for splits in corpora.values() for c in splits.values()}.values()
        )

    @property
    def description(self) -> str:
        """One phrase, with the size in decimal units."""
        size = f"{self.size / 1e6:.1f} MB" if self.size >= 1e6 else f"{self.size / 1e3:.1f} kB"
        return f"{self._name} ({size})"

    def corpus(self, language: str, split: str, at_least: int) -> Corpus:
        """Documents of a language and split that fill at least one example of `at_least` bytes.

        Raises:
            UserError: there is too little text.
        """
        corpus = self._corpora[language].get(split)
        if corpus is None:
            raise UserError(f"{self._name} has no {split} text", f"add a file named {split}.*")
        if len(corpus.buffer) < at_least:
            raise UserError(
                f"too little {split} text in {self._name} ({language}): {corpus.size} bytes in "
                f"{len(corpus.lengths)} documents, and one example takes {at_least}",
                f"add text, add a file named {split}.*, or lower task.input_length",
            )
        return corpus


class StreamedText:
    """Text read again and again, in order.

    Args:
        builder_of: gives the builder of a language; called once for each.
        name: what the text is, for people.
        column: with the text.
        shuffle_files: read files in an order drawn from the seed.
        failure: makes an exception of a reader into ours.
        hashed: splits without files of their own are taken from the training documents by their fingerprints.
    """

    def __init__(
        self,
        builder_of: Callable[[str], Builder],
        name: str,
        column: str,
        *,
        shuffle_files: bool,
        failure: Callable[[Exception], UserError],
        hashed: bool,
    ) -> None:
        self._builder_of, self.description, self._column = builder_of, name, column
        self._shuffle_files, self._failure, self._hashed = shuffle_files, failure, hashed
        self._builders: dict[str, Builder] = {}

    def train(self, language: str, *, key: Sequence[int], shard: int, shards: int) -> DocumentStream:
        """Endless training text of a language: the part of one shard."""
        opened = self._opener(language, "train", key if self._shuffle_files else None, shard, shards)
        keep = None
        if self._hashed:
            own = splits_of(self._builder(language))
            # A split with files of its own leaves its share of the training documents in training.
            elsewhere = {split for split in HELD_OUT if split not in own}
            keep = (lambda document: split_of(document) not in elsewhere) if elsewhere else None
        return DocumentStream(opened, self._column, keep=keep, failure=self._failure)

    def held_out(self, language: str, split: str, example_bytes: int) -> DocumentStream:
        """One pass over held-out text, from its first example on."""
        own = splits_of(self._builder(language))
        keep = None
        if split in own:
            source = split
        elif self._hashed:
            source, keep = "train", lambda document: split_of(document) == split
        elif split == "test" and "validation" in own:
            source = "validation"
        else:
            raise UserError(
                f"{self.description} has no {split} split for {language!r}; it has {', '.join(own)}",
                "choose another dataset or split",
            )
        stream = DocumentStream(
            self._opener(language, source, None, 0, 1),
            self._column,
            keep=keep,
            endless=False,
            failure=self._failure,
        )
        if source != split and source == "validation" and language in ENGLISH:
            for _ in range(ENGLISH_VALIDATION_EXAMPLES):
                stream.take(example_bytes)
        return stream

    def check(self, languages: Sequence[str]) -> None:
        """Open every language, so that what cannot be had shows now.

        Raises:
            UserError: from the first that cannot.
        """
        for language in languages:
            self._builder(language)

    def _builder(self, language: str) -> Builder:
        if language not in self._builders:
            self._builders[language] = self._builder_of(language)
        return self._builders[language]

    def _opener(
        self, language: str, split: str, key: Sequence[int] | None, shard: int, shards: int
    ) -> Callable[[int], object]:
        builder = self._builder(language)
        if split not in (own := splits_of(builder)):
            raise UserError(
                f"{self.description} has no {split} split for {language!r}; it has {', '.join(own)}"
            )
        return opener(builder, split, key=key, shard=shard, shards=shards)


def open_source(
    source: EmbeddedSource | FilesSource | HubSource, languages: Sequence[str]
) -> MemoryText | StreamedText:
    """The text of a recipe's source in these languages.

    Raises:
        UserError: anything that cannot be found, reached or read.
    """
    if len(set(languages)) < len(languages):
        raise UserError(f"task.languages names a language twice: {', '.join(languages)}")
    if isinstance(source, EmbeddedSource):
        return _embedded(languages)
    if isinstance(source, FilesSource):
        return _streamed_files(source, languages) if source.streaming else _files(source, languages)
    text = StreamedText(
        lambda language: hub_builder(source.name, source.configurations.get(language, language)),
        f"{source.name} from the Hub",
        source.text_column,
        shuffle_files=source.shuffle_shards,
        failure=partial(hub_failure, source.name),
        hashed=False,
    )
    text.check(languages[:1])
    return text


def _embedded(languages: Sequence[str]) -> MemoryText:
    if others := [language for language in languages if language != "en"]:
        raise UserError(
            f"the embedded text is English; task.languages asks for {', '.join(others)}",
            "use task.source.kind=files or hub for other languages",
        )
    return MemoryText({"en": _with_held_out({"train": list(embedded_documents())})}, "embedded text")


def _files(source: FilesSource, languages: Sequence[str]) -> MemoryText:
    path = Path(source.path).expanduser()
    found = find_files(path, languages)
    shared = found[languages[0]]
    corpora: dict[str, dict[str, Corpus]] = {}
    if len(languages) > 1 and all(files is shared for files in found.values()):
        rows = {
            split: read_documents(files, source.text_column, languages) for split, files in shared.items()
        }
        for language in languages:
            corpora[language] = _with_held_out({split: groups[language] for split, groups in rows.items()})
    else:
        for language, files in found.items():
            documents = {
                split: read_documents(group, source.text_column)[None] for split, group in files.items()
            }
            corpora[language] = _with_held_out(documents)
    text = MemoryText(corpora, f"text of {path}")
    for language, splits in corpora.items():
        for split, group in found[language].items():
            if not splits[split].size:
                names = ", ".join(str(file) for file in group[:3])
                raise UserError(f"there is no text in {names}{' ...' if len(group) > 3 else ''}")
    return text


def _with_held_out(documents: dict[str, list[bytes]]) -> dict[str, Corpus]:
    """Corpora of all splits; those without documents of their own are taken from the training documents."""
    if "train" in documents:
        missing = [split for split in HELD_OUT if split not in documents]
        documents = {**documents, **hold_out(documents["train"], missing)}
    return {split: Corpus(documents[split]) for split in SPLITS if split in documents}


def _streamed_files(source: FilesSource, languages: Sequence[str]) -> StreamedText:
    path = Path(source.path).expanduser()
    found = find_files(path, languages)
    shared: FilesOfSplits = found[languages[0]]
    if len(languages) > 1 and all(files is shared for files in found.values()):
        raise UserError(
            f"streaming several languages from {path} needs one folder a language",
            f"make {path / languages[0]}/, {path / languages[1]}/ ..., or --set task.source.streaming=false",
        )
    text = StreamedText(
        partial(local_builder, found),
        f"text of {path}, streamed",
        source.text_column,
        shuffle_files=True,
        failure=partial(local_failure, path),
        hashed=True,
    )
    text.check(languages)
    return text
