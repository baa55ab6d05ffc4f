"""Recipe sections of the tasks and of their sources of text and rows; `mrt5cli.tasks` implements them."""

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

REVISION = "commit, tag or branch of the dataset; null: the main branch when the run starts"


class EmbeddedSource(Section):
    """The documentation included in Python: real English prose, without a network."""

    kind: Literal["embedded"]


class FilesSource(Section):
    """Local text: one file or a directory of .txt, .jsonl, .json, .csv, .tsv or .parquet files."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["my_texts"],
        description="a file or a directory, optionally with a folder per language and train, validation and "
        "test files",
    )
    text_column: Line = Field("text", description="column with the text, in files of rows")
    streaming: bool = Field(
        False, description="read the text from disk in every epoch instead of holding it in memory"
    )


class HubSource(Section):
    """A streamed Hugging Face dataset, such as mC4 (`allenai/c4`, one configuration per language)."""

    kind: Literal["hub"]
    name: Line = Field("allenai/c4", description="Hub id of the dataset")
    text_column: Line = Field("text", description="column with the text")
    configurations: dict[Language, Line] = Field(
        {},
        max_length=bounds.LANGUAGES,
        description="the dataset's configuration for each language whose configuration is not its code",
    )
    revision: Line | None = Field(None, description=REVISION)
    shuffle_shards: bool = Field(True, description="shuffle the order of the dataset's files by the seed")
    patience: Duration = Field(
        "30m",
        description="how long to wait for an unreachable Hub in mid-stream, such as 90s, 30m or 2h; after "
        "that, training saves a checkpoint and stops",
    )
    skip_corrupt: bool = Field(
        False,
        description="skip, and count, invalid lines and the rest of a damaged file; false: stop there",
    )


def seconds_of(duration: str) -> float:
    """A `Duration` in seconds."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


Source = Annotated[EmbeddedSource | FilesSource | HubSource, Field(discriminator="kind")]

NAME_IN_MIXTURE = "name in plans and evaluations; null: "


class Mixed(Section):
    """Settings of a source of text in a mixture."""

    weight: Weight = Field(
        1.0, description="share of examples from it, relative to the other sources' weights"
    )
    languages: Languages | None = Field(
        None, description="languages of this source, sampled uniformly; null: task.languages"
    )


class MixedEmbedded(Mixed, EmbeddedSource):
    """The documentation included in Python, as a source of a mixture."""

    name: Line = Field("embedded", description="name in plans and evaluations")


class MixedFiles(Mixed, FilesSource):
    """Local text, as a source of a mixture."""

    name: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}that of its file or folder")


class MixedHub(Mixed, HubSource):
    """A streamed Hugging Face dataset, as a source of a mixture."""

    label: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}the last part of the Hub id")


MixedSource = Annotated[MixedEmbedded | MixedFiles | MixedHub, Field(discriminator="kind")]


class SourceInUse(NamedTuple):
    """A source of text with the languages and the weight in effect."""

    name: str
    source: EmbeddedSource | FilesSource | HubSource
    languages: list[str]
    weight: float

    @property
    def is_streamed(self) -> bool:
        """Whether its text is read in order instead of being held in memory."""
        return isinstance(self.source, HubSource) or getattr(self.source, "streaming", False)


def name_of(source: Any) -> str:
    """The name of a source in a mixture."""
    if source.kind == "hub":
        return getattr(source, "label", None) or source.name.rpartition("/")[2] or source.name
    own: str | None = getattr(source, "name", None)
    if own is None and source.kind == "files":
        own = PurePath(source.path).name.partition(".")[0]
    return own or source.kind


class TaskBase(Section):
    """Base class of tasks."""

    @property
    def longest_source(self) -> int:
        """Maximum byte tokens of a source; 0 if no setting limits it."""
        return getattr(self, "input_length", None) or 0

    @property
    def longest_target(self) -> int | None:
        """Maximum byte tokens of a target; None if no setting limits it."""
        return getattr(self, "answer_length", None) or getattr(self, "target_length", None)

    @property
    def every_source(self) -> list[Any]:
        """The sources of its text or rows: one, those of a mixture, or none if all examples are generated."""
        lone = getattr(self, "source", None)
        return list(getattr(self, "sources", ())) if lone is None else [lone]

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from twice("languages", getattr(self, "languages", []))


def twice(key: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Report names, such as languages, that are listed more than once."""
    if found := sorted({name for name in names if names.count(name) > 1}):
        yield key, f"listed twice: {listed(found)}"


def one_or_several(task: TaskBase, kinds: str) -> Iterator[tuple[str, str]]:
    """Check a task that needs either one `source` of these kinds or a mixture of `sources`."""
    lone, several = getattr(task, "source", None), getattr(task, "sources", [])
    if lone is not None and several:
        yield "sources", "cannot be combined with source; `source: null` removes that of a base"
    if lone is None and not several:
        yield "source", f"missing; expected a section with kind {kinds}, or `sources`, a list of them"


def misfits_of_names(sources: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Report sources of a mixture with equal names, and datasets with two revisions."""
    first: dict[str, int] = {}
    revisions: dict[str, str | None] = {}
    for number, one in enumerate(sources):
        if (before := first.setdefault(name := name_of(one), number)) != number:
            key = "label" if one.kind == "hub" else "name"
            text = f"sources[{before}] is named {name!r}, too; give each source a different {key}"
            yield f"sources.{number}.{key}", text
        if one.kind == "hub" and revisions.setdefault(one.name, one.revision) != one.revision:
            yield f"sources.{number}.revision", f"{one.name} has a different revision in an earlier source"


class SpanCorruptionTask(TaskBase):
    """ByT5's pre-training task: sentinels replace spans of bytes, which the target spells out."""

    kind: Literal["span_corruption"]
    source: Source | None = Field(
        None,
        examples=[{"kind": "embedded"}],
        description="source of the text",
        exclude_if=lambda source: source is None,
    )
    sources: list[MixedSource] = Field(
        [],
        max_length=bounds.SOURCES,
        description="replaces source: a mixture of several, each with a weight and reported separately",
        exclude_if=lambda sources: not sources,
    )
    languages: Languages = Field(
        ["en"], description="languages, sampled uniformly per example; evaluation reports each one"
    )
    input_length: InputLength = Field(1024, description="length of the encoder input, in byte tokens")
    noise_density: Rate = Field(0.15, description="fraction of bytes to corrupt")
    mean_span_length: Annotated[float, Field(ge=1.0, le=bounds.LENGTH)] = Field(
        20.0, description="mean length of a corrupted span, in bytes"
    )
    shuffle: Literal["documents", "examples"] = Field(
        "documents",
        description="what each epoch shuffles; with 'documents', the examples of a long document stay "
        "together, so a batch may show only one or two; 'examples' needs the text in memory",
    )

    def in_use(self) -> list[SourceInUse]:
        """The single source, or those of the mixture, with defaults from the task filled in."""
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
                way_out = "; set languages: [en] for that source" if self.sources and own is None else ""
                yield key, f"the embedded text is English and has no {listed(others)}{way_out}"
        yield from misfits_of_names(self.sources)
        if self.shuffle == "examples" and any(one.is_streamed for one in used):
            yield "shuffle", "must be 'documents', because a streamed text is read in order; leave it out"


class DiagnosticTask(TaskBase):
    """The paper's diagnostic tasks on random letter strings, with a known set of deletable bytes."""

    kind: Literal["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]
    length: Annotated[int, Field(ge=8, le=bounds.LENGTH)] = Field(
        64, description="length of the encoder input, in byte tokens, '#' and EOS included"
    )
    train_examples: Examples = Field(
        6_400_000, description="number of distinct training strings, after which they repeat"
    )
    eval_examples: Examples = Field(32_000, description="number of strings in each of validation and test")
    mean_insertions: Annotated[float, Field(ge=1e-6, le=bounds.LENGTH)] | None = Field(
        None,
        description="mean number of pairs (contextual) or ABCs (merge) inserted into a string; null: the "
        "paper's, 25 and 5 at length 64, proportional at other lengths",
    )

    @property
    def longest_source(self) -> int:
        return self.length

    @property
    def longest_target(self) -> int:
        return self.length

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.mean_insertions is not None and self.kind in ("copy", "vowel_removal"):
            yield "mean_insertions", f"has no effect, because {self.kind!r} inserts nothing; leave it out"


class HubRows(Section):
    """A task's published dataset on the Hugging Face Hub."""

    kind: Literal["hub"]
    name: Line | None = Field(
        None, description="Hub id of another dataset with the same columns; null: the task's"
    )
    revision: Line | None = Field(None, description=f"{REVISION}; for xquad, of the test dataset")


class FileRows(Section):
    """A folder of local files with the task's columns: .jsonl, .json, .csv, .tsv or .parquet."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["my_rows"],
        description="folder with a file per split (train.jsonl, test.csv ...); if the task has languages, in "
        "a folder per language or with a language column",
    )


class GeneratedRows(Section):
    """Random rows in the task's columns, for smoke runs and tests: the numbers mean nothing."""

    kind: Literal["generated"]
    examples: HeldExamples = Field(
        64, description="number of rows in each split, or in each language of a split"
    )


RowSource = Annotated[HubRows | FileRows | GeneratedRows, Field(discriminator="kind")]

PublishedRows = Annotated[RowSource, Field(description="source of the rows")]
TestLanguages = Annotated[
    Languages, Field(description="languages of the test set; training and validation are in English")
]
SourceLength = Annotated[
    InputLength,
    Field(description="maximum source length in byte tokens; longer ones are truncated and counted"),
]
AnswerLength = Annotated[TargetLength, Field(description="maximum byte tokens of a generated answer")]

XNLI_LANGUAGES = ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur"]
TYDIQA_LANGUAGES = ["ru", "ar", "bn", "te", "fi", "sw", "ko", "id", "en"]
XQUAD_LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh", "ro"]


class RowTask(TaskBase):
    """Base class of tasks whose examples are rows of a dataset: a prompt, a target, a language or split."""


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
"""Maximum input and target lengths of the character tasks in the paper, in byte tokens."""


class CharacterTask(RowTask):
    """The character-level tasks (Huang et al. 2023): pairs of input and output in TSV files."""

    kind: Literal["spelling_correction_contextual", "word_search"]
    source: Annotated[FileRows | GeneratedRows, Field(discriminator="kind")] = Field(
        examples=[{"kind": "files", "path": "my_rows"}],
        description="folder with train, validation and test*.tsv files of input and output columns",
    )
    input_length: InputLength | None = Field(
        None, description="maximum source length in byte tokens; null: 64 for spelling, 128 for word search"
    )
    target_length: TargetLength | None = Field(
        None, description="maximum target length in byte tokens; null: 64 for spelling, 16 for word search"
    )

    @property
    def longest_source(self) -> int:
        return self.input_length or CHARACTER_LENGTHS[self.kind][0]

    @property
    def longest_target(self) -> int:
        return self.target_length or CHARACTER_LENGTHS[self.kind][1]


def _in_quotes(value: object) -> object:
    if isinstance(value, dict):
        raise ValueError('must be quoted, because YAML reads braces as a mapping: "{column}"')
    return value


def _with_columns(text: str) -> str:
    if not Template.parse(text).columns:
        raise ValueError("uses no column; write one in braces, such as {text}")
    return text


Prompt = Annotated[Text, AfterValidator(_with_columns), BeforeValidator(_in_quotes)]
"""A template; see `Template`."""
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Shares(Section):
    """Held-out splits taken from the training rows if they have no rows of their own."""

    validation: Share = Field(0.05, description="fraction of the training rows; 0: none")
    test: Share = Field(0.05, description="fraction of the training rows; 0: none")

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.validation + self.test >= 1:
            yield "test", "leaves no rows for training; validation and test together must be less than 1"


class SplitNames(Section):
    """Names of the splits of a Hub dataset."""

    train: Line | None = Field(None, description="name of the training split; null: train")
    validation: Line | None = Field(
        None, description="name of the validation split; null: validation, valid, dev ..."
    )
    test: Line | None = Field(None, description="name of the test split; null: test")


HeldOutShares = Annotated[
    Shares,
    Field(
        description="fractions of the training rows to use for splits without rows of their own; a hash of "
        "the input selects them, so that rows with equal inputs stay together"
    ),
]


class PairFiles(Section):
    """Local files with any columns: .jsonl, .json, .csv, .tsv or .parquet, also packed."""

    kind: Literal["files"]
    path: Place = Field(
        examples=["pairs.tsv"],
        description="a file, or a folder with a file per split (train.tsv, test.tsv ...)",
    )
    split: HeldOutShares = Shares()


class GivenFiles(PairFiles):
    """Files given with --data: complete for any requested split, unless their names indicate one."""


class PairDataset(Section):
    """A dataset on the Hugging Face Hub with any columns."""

    kind: Literal["hub"]
    name: Line = Field(description="Hub id of the dataset")
    configuration: Line | None = Field(
        None, description="configuration of the dataset; null: the only one, or the default"
    )
    revision: Line | None = Field(None, description=REVISION)
    splits: SplitNames = Field(SplitNames(), description="names of the splits in the dataset")
    split: HeldOutShares = Shares()


PairSource = PairFiles | PairDataset | GeneratedRows


class Weighted(Section):
    """Settings of a source of rows in a mixture."""

    weight: Weight = Field(
        1.0, description="share of examples from it, relative to the other sources' weights"
    )
    input: Prompt | None = Field(None, description="template of the source text; null: the task's")
    target: Prompt | None = Field(None, description="template of the target text; null: the task's")


class WeightedFiles(PairFiles, Weighted):
    """Local files in a mixture."""

    name: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}that of its file or folder")


class WeightedDataset(PairDataset, Weighted):
    """A Hub dataset in a mixture."""

    label: Line | None = Field(None, description=f"{NAME_IN_MIXTURE}the last part of the Hub id")


class WeightedRows(GeneratedRows, Weighted):
    """Random rows in a mixture."""

    name: Line = Field("generated", description="name in plans and evaluations")


WeightedSource = WeightedFiles | WeightedDataset | WeightedRows


class Text2TextTask(RowTask):
    """Text from any columns to text: pairs from local files or the Hub, configured by the recipe alone."""

    kind: Literal["text2text"]
    source: Annotated[PairSource, Field(discriminator="kind")] | None = Field(
        None,
        examples=[{"kind": "files", "path": "pairs.tsv"}],
        description="source of the rows",
        exclude_if=lambda source: source is None,
    )
    sources: list[Annotated[WeightedSource, Field(discriminator="kind")]] = Field(
        [],
        max_length=bounds.SOURCES,
        description="replaces source: a mixture of several, each with a weight and reported separately",
        exclude_if=lambda sources: not sources,
    )
    input: Prompt = Field(
        examples=["Correct: {noisy}"],
        description="template of the text that the model reads, with columns in braces; {a.b} is column b "
        "within a; {{ is a brace",
    )
    target: Prompt = Field(
        examples=["{clean}"],
        description="template of the text that the model should write; a single column may contain lists of "
        "texts, which are all correct; the first one is trained on",
    )
    input_length: InputLength = Field(
        256, description="maximum source length in byte tokens; longer ones are truncated and counted"
    )
    target_length: TargetLength = Field(256, description="maximum target length in byte tokens, EOS included")
    metrics: Annotated[list[Line], Field(min_length=1, max_length=bounds.LANGUAGES)] = Field(
        ["exact_match"], description="metrics of evaluations, the main one first"
    )
    language_column: Line | None = Field(
        None, description="column with each row's language; evaluations report each language"
    )
    references_column: Line | None = Field(
        None, description="column with further correct texts: one text or a list"
    )
    choices: Annotated[list[Text], Field(min_length=2, max_length=bounds.LANGUAGES)] | None = Field(
        None, description="all possible targets, if there are few; needed for accuracy"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        yield from one_or_several(self, "files or hub")
        yield from misfits_of_names(self.sources)
        yield from twice("metrics", self.metrics)
        yield from (("metrics", wrong) for wrong in map(misfit, self.metrics) if wrong)
        yield from twice("choices", self.choices or [])
        if "accuracy" in self.metrics and self.choices is None:
            yield "choices", "missing; accuracy needs the list of all possible targets"

    def named_sources(self) -> dict[str, PairSource | WeightedSource]:
        """Sources by name; a single source is named "all"."""
        return {name_of(one): one for one in self.sources} if self.source is None else {"all": self.source}


class AddedTask(RowTask):
    """A custom task, registered by a file given with --code."""

    kind: str
    source: RowSource = Field(
        examples=[{"kind": "files", "path": "my_rows"}], description="source of the rows"
    )
    languages: list[Language] = Field(
        [], max_length=bounds.LANGUAGES, description="languages, if the task has any"
    )
    input_length: InputLength = Field(256, description="maximum source length in byte tokens")
    target_length: TargetLength = Field(256, description="maximum target length in byte tokens")


SECTIONS: list[type[TaskBase]] = [
    SpanCorruptionTask,
    DiagnosticTask,
    XnliTask,
    TyDiQATask,
    XQuADTask,
    CharacterTask,
    Text2TextTask,
]
"""The sections of all kinds of tasks, in the order in which messages list them."""


def kinds() -> list[str]:
    """All kinds of tasks that are registered now."""
    return [kind for section in SECTIONS for kind in section.kinds()]


def register(kind: str, section: type[TaskBase] | None = None) -> None:
    """Register a kind of task for recipes.

    Args:
        section: the class of its settings, which has this kind; by default that of `AddedTask`.
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
