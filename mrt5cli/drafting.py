"""`mrt5 recipe new`: a table of pairs is looked at, and a recipe that runs is written for it."""

from __future__ import annotations

import difflib
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from mrt5cli import runtime as machine
from mrt5cli.bounds import NAME
from mrt5cli.data.columns import Row, cell, cell_column, other_mark, read_cell
from mrt5cli.data.formats import PARQUET, TABLES, Damaged, DataFile, without_suffix
from mrt5cli.data.reading import usable_rows
from mrt5cli.data.splits import HELD_OUT, SPLITS
from mrt5cli.data.tables import RowFolder
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import ModelSection, Recipe, words
from mrt5cli.recipe.strict_yaml import inline, parse
from mrt5cli.rundir import RunDir
from mrt5cli.templates import Template
from mrt5cli.text import announced, counted, first_line, listed, say_on_stderr, shortened
from mrt5cli.training.estimates import parameters, shape_of, sizes_of
from mrt5cli.training.memory import Step

if TYPE_CHECKING:
    import torch

SAMPLE = 10_000
"""Rows of each split that are looked at."""
HEAD_BYTES = 2**22
"""Of a TSV file, which is otherwise read as a whole, because any quote in it may decide how it is read."""
FURTHER = "-further"
"""What the name of a recipe ends with that starts from a run which is called the same."""
MOST_CHOICES, LONGEST_CHOICE = 50, 64
"""Different targets, and bytes of one, up to which a task is one of choosing."""
ROWS_A_CHOICE = 5
"""Rows that there must be for each."""
STEP = 16
MOST_INPUT, MOST_TARGET = 2048, 512
"""Byte tokens, as multiples of `STEP`; a row that is longer is cut."""
LITTLE_MORE = 1.5
"""Times as long as 99 of 100 rows need."""
FEW_ROWS = 2000
"""Training rows below which more of them are held out."""
INPUTS = (
    *("input", "source", "src", "noisy", "question", "prompt", "ocr", "wrong", "incorrect", "misspelled"),
    *("raw", "grapheme", "graphemes", "word", "sentence", "original", "text"),
)
TARGETS = (
    *("target", "output", "tgt", "clean", "answer", "answers", "label", "corrected", "correct", "correction"),
    *("gold", "response", "phonemes", "pronunciation", "normalized", "translation", "reference", "summary"),
)
"""What the columns of pairs are often called, the surest first."""
WORDS_OF_A_ROW = 4
"""From which on the name of a column looks like a text."""
NEITHER = ("id", "idx", "index", "key", "uuid", "guid", "url", "split", "license")
LANGUAGE = ("language", "lang", "locale")


@dataclass(frozen=True)
class Found:
    """A column of the rows.

    Attributes:
        name: as templates name it; "a.b" is b within a.
        kind: "text", "numbers" or "lists of texts".
        mean: bytes of a value.
        filled: whether every row has a value.
        values: the first different ones.
    """

    name: str
    kind: str
    mean: float
    filled: bool
    values: tuple[str, ...]

    @property
    def may_be_chosen(self) -> bool:
        """Whether it may be an input or a target without being named as one, and has a name for templates."""
        try:
            Template.parse(f"{{{self.name}}}")
        except ValueError:
            return False
        return self.kind != "nothing" and self.words[0] not in (*NEITHER, *LANGUAGE)

    @property
    def words(self) -> list[str]:
        """The last part of its name, whole and word by word."""
        last = self.name.rpartition(".")[2]
        parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", last)
        return [last.lower(), *(part.lower() for part in parts)]


class Sample(NamedTuple):
    """The rows that were looked at, by split, and whether those are all."""

    rows: dict[str, list[Row]]
    whole: bool


@dataclass(frozen=True)
class Draft:
    """All that a recipe is written from.

    Attributes:
        chosen: how the input and the target were chosen, in words.
        inputs, targets: (R,) byte tokens of the rows that were looked at, EOS included.
        choices: every target, where they are few.
        missing: held-out splits without rows of their own.
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


def look(
    data: str, *, input_: str | None, target: str | None, name: str | None, start: str | None = None
) -> Draft:
    """What a file or folder of pairs holds.

    Args:
        data: its path.
        input_, target: templates; by default columns that are found by their names, else by their order.
        name: of the recipe; by default that of the data, and another one than the run's that it starts from.
        start: a model to start from.

    Raises:
        UserError: there are no such data, no two columns of text in them, or not the columns of a template.
    """
    folder = RowFolder(data, [], Counter(), part_of=lambda split, path: None, plain=True)
    with announced(f"looking at {data} ...", say_on_stderr):
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
            "see what the columns hold, or name others with --input and --target",
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
        other = f"by its name it is for {' and '.join(rows)}: rename it, or give the folder that it is in"
        hint = other if rows else "expected a row a line, below a line of column names"
        raise UserError(f"{data} holds no training rows", hint)
    return Sample(rows, whole)


def _first_rows(file: DataFile, names: Sequence[str], count: int) -> tuple[list[Row], bool]:
    """Rows from the beginning of a file, and whether it has no others beside those that are too many.

    Args:
        names: columns that it must have, once each.
    """
    columns = [cell_column(name) for name in names]
    head = _head(file) if file.suffix == ".tsv" and count else None
    try:
        return [row for _, row in islice(usable_rows(head or file, columns), count)], head is None
    except UserError:
        if head is None:
            raise
    # The end of the head may be in the middle of a cell in quotes.
    return [row for _, row in islice(usable_rows(file, columns), count)], True


def _doubt_names(file: DataFile, names: Sequence[str]) -> None:
    """Say so where the first line of a table looks like a row."""
    if file.suffix in TABLES and (odd := [one for one in names if len(one.split()) >= WORDS_OF_A_ROW]):
        say_on_stderr(
            f"note: the first line of {file.name} is taken for the names of its columns, such as "
            f"{shortened(odd[0])!r}; if it is a row, put a line of names above it"
        )


def _head(file: DataFile) -> DataFile | None:
    """The first lines of a file as one; None where it is no longer, or cannot be read."""
    try:
        with file.unpacked() as stream:
            head = stream.read(HEAD_BYTES)
            longer = bool(stream.read(1))
    except Damaged:
        return None  # as reading the rows will say
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
            f"{file.name} cannot be read as Parquet: {first_line(error)}", "get the file again"
        ) from error


def _columns(rows: Iterable[Row]) -> Iterator[Found]:
    """The columns of rows, in the order in which they are first met; columns within others one by one."""
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
    """What a cell holds, empty for nothing, and its text."""
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
    """Byte tokens of the inputs and of the targets, and the different targets, of rows that have both."""
    inputs, targets, distinct = [], [], dict[str, None]()
    for row in (row for rows in sample.rows.values() for row in rows):
        try:
            texts = [
                template.render({name: _text(row, name) for name in template.columns})
                for template in (input_, target)
            ]
        except (KeyError, ValueError, IndexError):
            continue  # of a kind that training refuses, with its line, or leaves out
        inputs.append(len(texts[0].encode()) + 1)
        targets.append(len(texts[1].encode()) + 1)
        if len(distinct) <= MOST_CHOICES:
            distinct[texts[1]] = None
    return inputs, targets, distinct


def _text(row: Row, name: str) -> str:
    value = cell(row, name)
    return read_cell(value[0] if isinstance(value, list) else value)


# --- what is chosen -----------------------------------------------------------------------------------------


def _choose(
    data: str, columns: Sequence[Found], input_: str | None, target: str | None
) -> tuple[Template, Template, str]:
    """The templates of the input and the target, and how those that nobody gave were found."""
    given = {
        option: _given(data, columns, option, text)
        for option, text in (("--input", input_), ("--target", target))
        if text is not None
    }
    used = {name for template in given.values() for name in template.columns}
    free = [one for one in columns if one.name not in used and one.may_be_chosen]
    ways: dict[str, str] = {}
    # The target first: its names are the surer ones, and any text may be called a text.
    for option, names in (("--target", TARGETS), ("--input", INPUTS)):
        several = option == "--target"  # right ones, of which any will do
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
    """The column with the surest of these names, or with one that has it among its words."""
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
    beside = f", beside {listed(others)}" if others else ""
    return UserError(
        f"{data}: an input and a target take two columns of text, and there is {found}{beside}",
        other_mark([one.name for one in columns])
        or "name what is to be used with --input and --target; span_corruption learns from texts without "
        "targets (mrt5 recipe copy local_text)",
    )


def _choices(distinct: dict[str, None], rows: int) -> list[str] | None:
    few = 2 <= len(distinct) <= min(MOST_CHOICES, rows // ROWS_A_CHOICE)
    short = all(text.strip() and len(text.encode()) <= LONGEST_CHOICE for text in distinct)
    return sorted(distinct) if few and short else None


def _plain_name(data: str, start: str | None) -> str:
    """A recipe's name from that of its data; a run's directory is not its next one's, too."""
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePath(without_suffix(data)).name.lower()).strip("._-")
    name = name[: NAME - len(FURTHER)] or "pairs"
    taken = start is not None and re.fullmatch(rf"{re.escape(name)}(-seed\d+)?", PurePath(start).name)
    return name + FURTHER if taken else name


# --- what is written ----------------------------------------------------------------------------------------

PRETRAINED = "stanfordnlp/mrt5-small"
BUDGET = 12_000_000
"""Byte tokens that a small model is trained on, about four minutes on two cores; fewer where they would come
again and again."""
EPOCHS = 200
SMALL_MODEL = """\
# Learned positions, because a model trained from scratch takes long to learn from T5's relative bias where a
# byte stands; noise on the gate's logits, so that gates end up open or shut and not in between.
model:
  start: scratch
  shape: {{d_model: 64, d_ff: 256, d_kv: 16, num_heads: 4, num_layers: 3, num_decoder_layers: 2}}
  positions: absolute
  max_positions: {positions}
  dropout: 0.0
  shortener: {{kind: delete_gate, layer: 2, bias_init: 3.0, noise: logistic}}
"""
SMALL_GATE = """\
# Nothing is deleted in the first half of the steps. Then the gate's weight in the loss rises until the target
# share of bytes is deleted; in half of those steps they are really removed, as in evaluation.
loss:
  score_coefficient: 0.5
  regularizer_delay: {delay}
  hard_delete_probability: 0.5

controller:
  kind: pi_two_sided
  target_deletion_rate: 0.4
  k_p: 0.6
  k_i: 5.0e-4
  alpha_max: 0.08
"""
PAPERS_GATE = """\
# The paper's controller: the gate's weight in the loss rises until the target share of bytes is deleted.
controller:
  kind: pi
  target_deletion_rate: 0.5
  k_p: 0.5
  k_i: 1.0e-5
"""
PAPERS_SHORTENER = {"kind": "delete_gate", "layer": 3, "norm": "rms", "bias_init": 1.0}
MOST_COLUMNS = 20
"""That are listed in comments."""


@dataclass(frozen=True)
class Setup:
    """The model that a recipe trains, and how.

    Attributes:
        command: that trains it.
        why: where it starts, in words.
        model, gate: the sections of the model, and of loss and controller.
    """

    command: str
    why: str
    model: str
    gate: str
    batch_size: int
    max_steps: int
    learning_rate: str
    precision: str


def written(
    draft: Draft, command: str, device: torch.device, start: str | None, code: Sequence[str] = ()
) -> str:
    """A recipe with comments on what was found, a step of which fits the device.

    Args:
        command: that it comes from.
        start: a model to start from, or "scratch"; None chooses by the device.
        code: options that name the Python files to train with.

    Raises:
        RecipeError: what was given, such as the name, is not what a recipe can say.
    """
    before = (
        RunDir(Path(start)).recipe().model if start and RunDir(Path(start)).recipe_path.is_file() else None
    )
    positions = before.max_positions if before and before.positions == "absolute" else MOST_INPUT
    lengths = tuple(
        min(positions, _length(tokens, most))
        for tokens, most in ((draft.inputs, MOST_INPUT), (draft.targets, MOST_TARGET))
    )
    setup = _setup(draft, lengths, device, start, before)
    batch = setup.batch_size
    while True:
        text = "\n".join(
            [
                _head_of(draft, setup, command, code),
                _task(draft, lengths),
                setup.model,
                setup.gate,
                _training(setup, batch),
            ]
        )
        try:
            recipe = Recipe.model_validate(parse(text).tree)
        except ValidationError as error:
            found = [(words.dotted(place), problem) for place, problem in words.problems(error)]
            raise RecipeError(f"the recipe for {draft.data}", found) from None
        if batch == 1 or _fits(recipe, device):
            return text
        batch //= 2


def _fits(recipe: Recipe, device: torch.device) -> bool:
    """Whether a training step takes no more memory than is safe; half of a machine's own is for others."""
    sizes, on_gpu = sizes_of(recipe, shape_of(recipe)), device.type == "cuda"
    batch, attention = recipe.training.device_batch_size, "sdpa" if on_gpu else "packed"
    step = Step(recipe, sizes, parameters(sizes), batch, attention, on_gpu)
    return step.memory().total <= (0.8 if on_gpu else 0.5) * machine.memory(device)


def _length(tokens: Sequence[int], most: int) -> int:
    """The 99th percentile, or what holds all rows if that is little more, as a multiple of `STEP`."""
    ordered = sorted(tokens)
    most_rows, all_rows = (
        math.ceil(length / STEP) * STEP
        for length in (ordered[math.ceil(0.99 * len(tokens)) - 1], ordered[-1])
    )
    return min(most, all_rows if all_rows <= LITTLE_MORE * most_rows else most_rows)


def _setup(
    draft: Draft,
    lengths: Sequence[int],
    device: torch.device,
    start: str | None,
    before: ModelSection | None,
) -> Setup:
    """How long and by what to train, for byte tokens of sources and targets.

    Args:
        before: the model of the run that it starts from, if it is one.
    """
    tokens, on_gpu = sum(lengths), device.type == "cuda"
    why = "as --from says"
    if start is None:
        start = PRETRAINED if on_gpu else "scratch"
        why = f"chosen for {machine.device_name(device)}; --from chooses another"
    if start == "scratch":
        batch = 64 if tokens <= 256 else 32 if tokens <= 1024 else 16
        most = min(3000, BUDGET // (batch * tokens), EPOCHS * len(draft.inputs) // batch)
        steps = max(500, most // 100 * 100)
        model, gate = SMALL_MODEL.format(positions=max(lengths)), SMALL_GATE.format(delay=steps // 2)
        why = f"A small model, trained from scratch ({why})."
        return Setup("pretrain", why, model, gate, batch, steps, "3.0e-3", "fp32")
    batch = 64 if on_gpu else 16
    steps = max(200, min(3000, 10 * len(draft.inputs) // batch // 100 * 100))
    precision = "bf16" if on_gpu else "fp32"
    why = f"A trained model is trained further ({why})."
    model = _model_from(start, before)
    return Setup("finetune", why, model, PAPERS_GATE, batch, steps, "1.0e-4", precision)


def _model_from(start: str, before: ModelSection | None) -> str:
    """The section of a model that starts from another: as that of a run, else as published models."""
    model: dict[str, object] = {"start": start, "shortener": PAPERS_SHORTENER}
    if before is not None:
        if before.positions == "absolute":
            model |= {"positions": "absolute", "max_positions": before.max_positions}
        if before.shortener.kind == "delete_gate":
            model["shortener"] = before.shortener.model_dump(mode="json", exclude_defaults=True)
        elif before.shape is not None:
            model["shortener"] = PAPERS_SHORTENER | {"layer": min(3, before.shape.num_layers - 1)}
    return "model:\n" + "".join(f"  {key}: {inline(value)}\n" for key, value in model.items())


def _head_of(draft: Draft, setup: Setup, command: str, code: Sequence[str]) -> str:
    rows = draft.sample.rows
    counts = ", ".join(f"{len(some):,} of {split}" for split, some in rows.items())
    seen = f"{'all' if draft.sample.whole else 'the first'} rows ({counts}):"
    found = []
    for one in draft.columns[:MOST_COLUMNS]:
        count = f"{len(one.values):,}" if len(one.values) <= MOST_CHOICES else "many"
        name = _on_one_line(shortened(one.name))
        found.append(f"#   {name}: {one.kind}, {one.mean:.0f} bytes on average, {count} different")
    if more := len(draft.columns) - len(found):
        found.append(f"#   and {more:,} more columns")
    train = _on_one_line(shlex.join(["mrt5", setup.command, "THIS.yaml", *code]))
    lines = [
        "# A starting point, to be changed freely, written by",
        f"#   {_on_one_line(command)}",
        "# `mrt5 recipe schema task.text2text` explains its keys.",
        f"# Found in {seen}",
        *found,
        *([f"# Chosen: {draft.chosen}.", "# --input and --target name others."] if draft.chosen else []),
        "# To run it, with a few seconds of a tiny model first:",
        f"#   {train} --smoke && {train}",
        f"#   mrt5 evaluate runs/{draft.name}-seed42",
        "",
        f"name: {inline(draft.name)}",
        f"description: {inline(shortened(f'MrT5 writes {draft.target} for {draft.input}'))}",
        "seed: 42",
        "",
    ]
    return "\n".join(lines)


def _on_one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _task(draft: Draft, lengths: Sequence[int]) -> str:
    inputs, targets = (
        sum(one > length for one in tokens)
        for tokens, length in zip((draft.inputs, draft.targets), lengths, strict=True)
    )
    longest = f"the longest input has {max(draft.inputs):,}, the longest target {max(draft.targets):,}"
    lines = [f"# Lengths are in byte tokens: {longest}."]
    if inputs + targets:
        lines.append(f"# {counted(inputs, 'input')} and {counted(targets, 'target')} will be cut.")
    split = ""
    if draft.missing:
        share = 0.1 if len(draft.sample.rows["train"]) < FEW_ROWS else 0.05
        split = f", split: {{{', '.join(f'{name}: {share}' for name in draft.missing)}}}"
        which = " and ".join(draft.missing)
        lines.append(f"# No file is for {which}, so shares of the rows are held out by a hash of the input.")
    if draft.choices:
        lines.append(f"# Only {len(draft.choices)} different targets were seen: the task is to choose one.")
    lines += [
        "task:",
        "  kind: text2text",
        f"  source: {{kind: files, path: {inline(draft.data)}{split}}}",
        f"  input: {json.dumps(draft.input, ensure_ascii=False)}",
        f"  target: {json.dumps(draft.target, ensure_ascii=False)}",
        f"  input_length: {lengths[0]}",
        f"  target_length: {lengths[1]}",
        f"  metrics: {'[accuracy]' if draft.choices else '[exact_match, cer]'}",
    ]
    lines += [f"  choices: {inline(draft.choices)}"] if draft.choices else []
    lines += [f"  language_column: {inline(draft.language)}"] if draft.language else []
    return "\n".join([*lines, ""])


def _training(setup: Setup, batch: int) -> str:
    steps = setup.max_steps
    return f"""\
# {setup.why}
training:
  max_steps: {steps}
  batch_size: {setup.batch_size}
  device_batch_size: {batch}
  learning_rate: {setup.learning_rate}
  warmup_steps: {steps // 20}
  precision: {setup.precision}
  save_steps: {max(1, steps // 4)}

evaluation:
  examples: 2000
  batch_size: 64
"""
