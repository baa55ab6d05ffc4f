"""The tasks that a recipe can name, and where their text and rows come from; `mrt5cli.tasks` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from mrt5cli import bounds
from mrt5cli.metrics.catalog import misfit
from mrt5cli.recipe.section import (
    Duration,
    Examples,
    HeldExamples,
    InputLength,
    Language,
    Languages,
    Line,
    Place,
    Rate,
    Section,
    TargetLength,
    Text,
    Weight,
    take_in_added_kinds,
    union_of,
)
from mrt5cli.templates import Template
from mrt5cli.text import listed

REVISION = "commit, tag or branch of the dataset; null: its main branch as it is when a run starts"


class EmbeddedSource(Section):
    """The documentation that ships inside Python itself: real English prose, no network."""

    kind: Literal["embedded"]


class FilesSource(Section):
    """Local text: one file or a directory of .txt, .jsonl, .json, .csv, .tsv or .parquet files."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["my_texts"],
        description="a file, or a directory: it may hold a folder a language, and train/validation/test "
        "files",
    )
    text_column: Line = Field("text", description="column that holds the text, in files of rows")
    streaming: bool = Field(
        False, description="read from disk again and again instead of holding the text in memory"
    )


class HubSource(Section):
    """A streamed Hugging Face dataset, e.g. mC4 (`allenai/c4`, one configuration a language)."""

    kind: Literal["hub"]
    name: Line = Field("allenai/c4", description="Hub id of the dataset")
    text_column: Line = Field("text", description="column that holds the text")
    configurations: dict[Language, Line] = Field(
        {},
        max_length=bounds.LANGUAGES,
        description="the dataset's configuration for a language, where it is not the language's code",
    )
    revision: Line | None = Field(None, description=REVISION)
    shuffle_shards: bool = Field(True, description="read the dataset's files in an order drawn from the seed")
    patience: Duration = Field(
        "30m",
        description="how long to wait for a Hub that is away in mid-stream, 90s, 30m or 2h; then a training "
        "saves a checkpoint and stops",
    )
    skip_corrupt: bool = Field(
        False,
        description="leave out, and count, lines that are no rows and what is left of a damaged file; false: "
        "stop there",
    )


def seconds_of(duration: str) -> float:
    """A `Duration` in seconds."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


Source = Annotated[EmbeddedSource | FilesSource | HubSource, Field(discriminator="kind")]

NAME_IN_MIXTURE = "what plans and evaluations call it; null: "


class Mixed(Section):
    """What a source of a mixture says beside where its text is."""

    weight: Weight = Field(
        1.0, description="how many examples are drawn from it, in proportion to the other sources' weights"
    )
    languages: Languages | None = Field(
        None, description="drawn uniformly from this source; null: task.languages"
    )


class MixedEmbedded(Mixed, EmbeddedSource):
    """The documentation inside Python, as a source of a mixture."""

    name: Line = Field("embedded", description="what plans and evaluations call it")


class MixedFiles(Mixed, FilesSource):
    """Local text, as a source of a mixture."""

    name: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}as its file or folder")


class MixedHub(Mixed, HubSource):
    """A streamed Hugging Face dataset, as a source of a mixture."""

    label: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}the last part of the Hub id")


MixedSource = Annotated[MixedEmbedded | MixedFiles | MixedHub, Field(discriminator="kind")]


class SourceInUse(NamedTuple):
    """A source of text, and what is drawn from it."""

    name: str
    source: EmbeddedSource | FilesSource | HubSource
    languages: list[str]
    weight: float

    @property
    def is_streamed(self) -> bool:
        """Whether its text is read in order instead of held in memory."""
        return isinstance(self.source, HubSource) or getattr(self.source, "streaming", False)


def name_of(source: Any) -> str:
    """What a source of text or rows is called beside others."""
    if source.kind == "hub":
        return getattr(source, "label", None) or source.name.rpartition("/")[2] or source.name
    own: str | None = getattr(source, "name", None)
    if own is None and source.kind == "files":
        own = PurePath(source.path).name.partition(".")[0]
    return own or source.kind


class TaskBase(Section):
    """What every task says of itself."""

    @property
    def longest_source(self) -> int:
        """Byte tokens of a source at most; 0 where no setting says so."""
        return getattr(self, "input_length", None) or 0

    @property
    def longest_target(self) -> int | None:
        """Byte tokens of a target at most, where a setting says so."""
        return getattr(self, "answer_length", None) or getattr(self, "target_length", None)

    @property
    def every_source(self) -> list[Any]:
        """Where its rows or text come from: one source, those of a mixture, or none where all is made up."""
        lone = getattr(self, "source", None)
        return list(getattr(self, "sources", ())) if lone is None else [lone]

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from twice("languages", getattr(self, "languages", []))


def twice(key: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """The misfit of names, such as languages, that are listed more than once."""
    if found := sorted({name for name in names if names.count(name) > 1}):
        yield key, f"listed twice: {listed(found)}"


def one_or_several(task: TaskBase, kinds: str) -> Iterator[tuple[str, str]]:
    """The misfits of a task that takes either one `source`, of these kinds, or a mixture of `sources`."""
    lone, several = getattr(task, "source", None), getattr(task, "sources", [])
    if lone is not None and several:
        yield "sources", "give either source or sources; `source: null` takes away that of a base"
    if lone is None and not several:
        yield "source", f"missing; expected a section with kind {kinds}, or `sources`, a list of them"


def misfits_of_names(sources: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The misfits of a mixture in which two are called the same, or a dataset has two revisions."""
    first: dict[str, int] = {}
    revisions: dict[str, str | None] = {}
    for number, one in enumerate(sources):
        if (before := first.setdefault(name := name_of(one), number)) != number:
            key = "label" if one.kind == "hub" else "name"
            text = f"sources[{before}] is called {name!r} too; give each a {key} of its own"
            yield f"sources.{number}.{key}", text
        if one.kind == "hub" and revisions.setdefault(one.name, one.revision) != one.revision:
            yield f"sources.{number}.revision", f"{one.name} has another revision in a source above"


class SpanCorruptionTask(TaskBase):
    """ByT5's pre-training task: spans of bytes are replaced by sentinels, the target spells them out."""

    kind: Literal["span_corruption"]
    source: Source | None = Field(
        None,
        examples=[{"kind": "embedded"}],
        description="where the text comes from",
        exclude_if=lambda source: source is None,
    )
    sources: list[MixedSource] = Field(
        [],
        max_length=bounds.SOURCES,
        description="in place of source: a mixture of several, each with a weight and reported apart",
        exclude_if=lambda sources: not sources,
    )
    languages: Languages = Field(
        ["en"], description="drawn uniformly, one example at a time; evaluation reports each one"
    )
    input_length: InputLength = Field(1024, description="encoder input, in byte tokens")
    noise_density: Rate = Field(0.15, description="fraction of bytes that are corrupted")
    mean_span_length: Annotated[float, Field(ge=1.0, le=bounds.LENGTH)] = Field(
        20.0, description="mean corrupted span, in bytes"
    )
    shuffle: Literal["documents", "examples"] = Field(
        "documents",
        description="whose order each epoch draws; with 'documents' the examples of a long one follow each "
        "other, and a batch shows one or two; 'examples' needs the text in memory",
    )

    def in_use(self) -> list[SourceInUse]:
        """The lone source, or those of the mixture, with what they leave to the task filled in."""
        if self.source is not None:
            return [SourceInUse(name_of(self.source), self.source, self.languages, 1.0)]
        return [
            SourceInUse(name_of(one), one, one.languages or self.languages, one.weight)
            for one in self.sources
        ]

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        yield from one_or_several(self, "embedded, files or hub")
        used = self.in_use()
        for number, one in enumerate(used):
            own = getattr(one.source, "languages", None)
            key = "languages" if own is None else f"sources.{number}.languages"
            yield from twice(key, own or [])
            others = [code for code in one.languages if code != "en"]
            if others and isinstance(one.source, EmbeddedSource):
                way_out = "; give that source languages: [en]" if self.sources and own is None else ""
                yield key, f"the embedded text is English; there is no {listed(others)} in it{way_out}"
        yield from misfits_of_names(self.sources)
        if self.shuffle == "examples" and any(one.is_streamed for one in used):
            text = "a streamed text is read in order, so only 'documents' can be drawn; leave it out"
            yield "shuffle", text


class DiagnosticTask(TaskBase):
    """The paper's toy tasks on random letter strings, generated, with a known set of deletable bytes."""

    kind: Literal["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]
    length: Annotated[int, Field(ge=8, le=bounds.LENGTH)] = Field(
        64, description="encoder input, in byte tokens, '#' and EOS included"
    )
    train_examples: Examples = Field(6_400_000, description="distinct training strings; then they come again")
    eval_examples: Examples = Field(32_000, description="strings in each of validation and test")
    mean_insertions: Annotated[float, Field(ge=1e-6, le=bounds.LENGTH)] | None = Field(
        None,
        description="mean number of pairs (contextual) or ABCs (merge) planted in a string; null: the "
        "paper's, 25 and 5 at length 64, in proportion at others",
    )

    @property
    def longest_source(self) -> int:
        return self.length

    @property
    def longest_target(self) -> int:
        return self.length

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.mean_insertions is not None and self.kind in ("copy", "vowel_removal"):
            yield "mean_insertions", f"nothing is planted in the strings of {self.kind!r}; leave it out"


class HubRows(Section):
    """A task's published dataset on the Hugging Face Hub."""

    kind: Literal["hub"]
    name: Line | None = Field(None, description="another Hub dataset of the same columns; null: the task's")
    revision: Line | None = Field(None, description=f"{REVISION}; xquad: of the test's dataset")


class FileRows(Section):
    """A folder of local files with the task's columns: .jsonl, .json, .csv, .tsv or .parquet."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["my_rows"],
        description="folder with a file a split (train.jsonl, test.csv ...), in folders a language or with a "
        "language column where the task has languages",
    )


class GeneratedRows(Section):
    """Random rows in the task's columns, for smoke runs and tests: the numbers mean nothing."""

    kind: Literal["generated"]
    examples: HeldExamples = Field(
        64, description="rows in each split; of a split by language, in each language"
    )


RowSource = Annotated[HubRows | FileRows | GeneratedRows, Field(discriminator="kind")]

PublishedRows = Annotated[RowSource, Field(description="where the rows come from")]
TestLanguages = Annotated[
    Languages, Field(description="languages of the test; training and validation are in English")
]
SourceLength = Annotated[
    InputLength,
    Field(description="source at most, in byte tokens; what is longer is cut, and counted"),
]
AnswerLength = Annotated[TargetLength, Field(description="byte tokens generated at most")]

XNLI_LANGUAGES = ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur"]
TYDIQA_LANGUAGES = ["ru", "ar", "bn", "te", "fi", "sw", "ko", "id", "en"]
XQUAD_LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh", "ro"]


class RowTask(TaskBase):
    """Base of the tasks whose examples are rows of a dataset: a prompt, a target, a language or split."""


class XnliTask(RowTask):
    """Natural language inference: trained on English, tested on 15 languages (Conneau et al. 2018)."""

    kind: Literal["xnli"]
    source: PublishedRows = HubRows(kind="hub")
    languages: TestLanguages = XNLI_LANGUAGES
    input_length: SourceLength = 1024


class TyDiQATask(RowTask):
    """TyDi QA, gold passage: questions and passages in 9 languages (Clark et al. 2020)."""

    kind: Literal["tydiqa"]
    source: PublishedRows = HubRows(kind="hub")
    languages: Languages = Field(TYDIQA_LANGUAGES, description="languages of training and test")
    input_length: SourceLength = 2048
    answer_length: AnswerLength = 256


class XQuADTask(RowTask):
    """XQuAD: trained on English SQuAD, tested on 12 languages (Artetxe et al. 2020)."""

    kind: Literal["xquad"]
    source: PublishedRows = HubRows(kind="hub")
    languages: TestLanguages = XQUAD_LANGUAGES
    input_length: SourceLength = 2048
    answer_length: AnswerLength = 256


CHARACTER_LENGTHS = {"spelling_correction_contextual": (64, 64), "word_search": (128, 16)}
"""Input and target lengths of the character tasks as the paper cuts them, in byte tokens."""


class CharacterTask(RowTask):
    """The character-level tasks (Huang et al. 2023): pairs of input and output in TSV files."""

    kind: Literal["spelling_correction_contextual", "word_search"]
    source: Annotated[FileRows | GeneratedRows, Field(discriminator="kind")] = Field(
        examples=[{"kind": "files", "path": "my_rows"}],
        description="folder with train, validation and test*.tsv files of input and output columns",
    )
    input_length: InputLength | None = Field(
        None, description="source at most, in byte tokens; null: 64 for spelling, 128 for word search"
    )
    target_length: TargetLength | None = Field(
        None, description="target at most, in byte tokens; null: 64 for spelling, 16 for word search"
    )

    @property
    def longest_source(self) -> int:
        return self.input_length or CHARACTER_LENGTHS[self.kind][0]

    @property
    def longest_target(self) -> int:
        return self.target_length or CHARACTER_LENGTHS[self.kind][1]


def _in_quotes(value: object) -> object:
    if isinstance(value, dict):
        raise ValueError('put it in quotes, because YAML reads braces as a mapping: "{column}"')
    return value


def _with_columns(text: str) -> str:
    if not Template.parse(text).columns:
        raise ValueError("names no column; write one in braces, such as {text}")
    return text


Prompt = Annotated[Text, AfterValidator(_with_columns), BeforeValidator(_in_quotes)]
"""A text with columns in braces; see `Template`."""
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Shares(Section):
    """Held-out splits that have no rows of their own, as shares of the training rows."""

    validation: Share = Field(0.05, description="of the training rows; 0: none")
    test: Share = Field(0.05, description="of the training rows; 0: none")

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.validation + self.test >= 1:
            yield "test", "with validation leaves no row for training; together they must be below 1"


class SplitNames(Section):
    """What a Hub dataset calls the splits."""

    train: Line | None = Field(None, description="null: train")
    validation: Line | None = Field(None, description="null: validation, valid, dev ...")
    test: Line | None = Field(None, description="null: test")


HeldOutShares = Annotated[
    Shares,
    Field(
        description="of a split without rows of its own, the share of the training rows that is its, by a "
        "hash of a row's input: rows with one input stay together, wherever they stand"
    ),
]


class PairFiles(Section):
    """Local files with any columns: .jsonl, .json, .csv, .tsv or .parquet, also packed."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["pairs.tsv"],
        description="a file, or a folder with a file a split (train.tsv, test.tsv ...)",
    )
    split: HeldOutShares = Shares()


class GivenFiles(PairFiles):
    """Those given with --data: whole for whichever split is asked for, unless their names say which."""


class PairDataset(Section):
    """A dataset on the Hugging Face Hub with any columns."""

    kind: Literal["hub"]
    name: Line = Field(description="Hub id of the dataset")
    configuration: Line | None = Field(None, description="null: its only one, or its default")
    revision: Line | None = Field(None, description=REVISION)
    splits: SplitNames = Field(SplitNames(), description="what it calls the splits")
    split: HeldOutShares = Shares()


PairSource = PairFiles | PairDataset | GeneratedRows


class Weighted(Section):
    """A source of a mixture."""

    weight: Weight = Field(
        1.0, description="how many examples are drawn from it, in proportion to the other sources' weights"
    )
    input: Prompt | None = Field(None, description="null: the task's")
    target: Prompt | None = Field(None, description="null: the task's")


class WeightedFiles(PairFiles, Weighted):
    """Local files in a mixture."""

    name: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}as its file or folder")


class WeightedDataset(PairDataset, Weighted):
    """A Hub dataset in a mixture."""

    label: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}the last part of the Hub id")


class WeightedRows(GeneratedRows, Weighted):
    """Random rows in a mixture."""

    name: Line = Field("generated", description="what plans and evaluations call it")


WeightedSource = WeightedFiles | WeightedDataset | WeightedRows


class Text2TextTask(RowTask):
    """Any columns in, a text out: pairs of texts from local files or the Hub, by a recipe alone."""

    kind: Literal["text2text"]
    source: Annotated[PairSource, Field(discriminator="kind")] | None = Field(
        None,
        examples=[{"kind": "files", "path": "pairs.tsv"}],
        description="where the rows come from",
        exclude_if=lambda source: source is None,
    )
    sources: list[Annotated[WeightedSource, Field(discriminator="kind")]] = Field(
        [],
        max_length=bounds.SOURCES,
        description="in place of source: a mixture of several, each with a weight and reported apart",
        exclude_if=lambda sources: not sources,
    )
    input: Prompt = Field(
        examples=["Correct: {noisy}"],
        description="what the model reads: text with columns in braces; {a.b} is column b within a; {{ is a "
        "brace",
    )
    target: Prompt = Field(
        examples=["{clean}"],
        description="what it is to write; a lone column may hold lists of texts: all are right, and the "
        "first is trained on",
    )
    input_length: InputLength = Field(
        256, description="source at most, in byte tokens; what is longer is cut, and counted"
    )
    target_length: TargetLength = Field(256, description="target at most, in byte tokens, EOS included")
    metrics: Annotated[list[Line], Field(min_length=1, max_length=bounds.LANGUAGES)] = Field(
        ["exact_match"], description="what evaluations measure, the headline first"
    )
    language_column: Line | None = Field(
        None, description="column with each row's language; evaluations report every language"
    )
    references_column: Line | None = Field(
        None, description="column with more texts that are right: one, or a list"
    )
    choices: Annotated[list[Text], Field(min_length=2, max_length=bounds.LANGUAGES)] | None = Field(
        None, description="every target there is, where they are few; for accuracy"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        yield from one_or_several(self, "files or hub")
        yield from misfits_of_names(self.sources)
        yield from twice("metrics", self.metrics)
        yield from (("metrics", wrong) for wrong in map(misfit, self.metrics) if wrong)
        yield from twice("choices", self.choices or [])
        if "accuracy" in self.metrics and self.choices is None:
            yield "choices", "missing; accuracy chooses among every target there is"

    def named_sources(self) -> dict[str, PairSource | WeightedSource]:
        """Sources by what evaluations call them; the only one is called "all"."""
        return {name_of(one): one for one in self.sources} if self.source is None else {"all": self.source}


class AddedTask(RowTask):
    """A task of the user's own, which a file given with --code registers."""

    kind: str
    source: RowSource = Field(
        examples=[{"kind": "files", "path": "my_rows"}], description="where the rows come from"
    )
    languages: list[Language] = Field(
        [], max_length=bounds.LANGUAGES, description="languages, where the task has any"
    )
    input_length: InputLength = Field(256, description="source at most, in byte tokens")
    target_length: TargetLength = Field(256, description="target at most, in byte tokens")


SECTIONS: list[type[TaskBase]] = [
    SpanCorruptionTask,
    DiagnosticTask,
    XnliTask,
    TyDiQATask,
    XQuADTask,
    CharacterTask,
    Text2TextTask,
]
"""Of every kind of task, in the order that messages list them."""


def kinds() -> list[str]:
    """Every kind of task that a recipe can name by now."""
    return [kind for section in SECTIONS for kind in section.kinds()]


def register(kind: str, section: type[TaskBase] | None = None) -> None:
    """Make a kind of task known to recipes.

    Args:
        section: its settings, one of whose kinds it is; by default those of `AddedTask`.
    """
    if section is None:
        own: Any = (Literal[kind], ...)
        section = create_model(f"{kind}_task", __base__=AddedTask, kind=own)
    SECTIONS.append(section)
    take_in_added_kinds()


if TYPE_CHECKING:
    TaskSection = (
        SpanCorruptionTask
        | DiagnosticTask
        | XnliTask
        | TyDiQATask
        | XQuADTask
        | CharacterTask
        | Text2TextTask
        | AddedTask
    )
else:
    TaskSection = Annotated[union_of(SECTIONS), Field(discriminator="kind")]
