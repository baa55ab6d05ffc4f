"""Outputs for any number of inputs: `from mrt5cli import generate`, and the work of `mrt5 generate`.

    inputs -> windows -> batches of similar length -> outputs in input order

One window of inputs is in memory at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol, TypedDict, Unpack, get_args

import torch

from mrt5cli import own_code, runtime
from mrt5cli.errors import UserError
from mrt5cli.generation.calibration import Calibration, conditional_threshold
from mrt5cli.generation.decoding import Decoding
from mrt5cli.generation.inputs import BARE, Input, Prompt, TaskOfRun, choose_prompt
from mrt5cli.generation.workers import Workers
from mrt5cli.generation.writing import (
    BATCH_TOKENS,
    INPUT_LENGTH,
    OUTPUT_LENGTH,
    WINDOW,
    WINDOW_BYTES,
    Options,
    Pen,
    Progress,
    Text,
    Written,
)
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, read_config
from mrt5cli.recipe.schema import EvaluationSection, GenerationSection
from mrt5cli.recipe.shorteners import of_config
from mrt5cli.subject import Subject, check_stays, find_subject, load_model
from mrt5cli.text import counted, warn_once

OnError = Literal["error", "skip", "empty"]


@dataclass(frozen=True)
class Generated:
    """One output.

    Attributes:
        index: number of its input, from 0.
        input: the text that the model read, prompt included; invalid UTF-8 is replaced.
        output: the output as text; invalid UTF-8 is replaced or escaped, see `as_text`.
        score: log-probability of the output in nats, see `Written`; None if not requested.
        deleted: share of the input's positions that the model deleted, EOS included, 0 to 1.
        kept: number of positions that remain.
        truncated: whether the input was longer than the model reads, and was cut.
        bytes: the output as bytes.
    """

    index: int
    input: str
    output: str
    score: float | None
    deleted: float
    kept: int
    truncated: bool
    bytes: bytes


@dataclass(frozen=True)
class Settings:
    """The user's settings. None means what the run's recipe sets, or a default.

    Attributes:
        prompt: a template with columns in braces; for lines and Python inputs, with one column. Default: the
            prompt of the run's task.
        column: the column whose texts fill the prompt's only place.
        raw: use no prompt.
        input_length: maximum byte tokens of an input, EOS included. Default: the task's, or 1,024.
        max_new_tokens: maximum byte tokens of an output, EOS included. Default: as the recipe evaluates, else
            the task's, or 256.
        num_beams, length_penalty: see `Decoding`. Default: as the recipe evaluates, or greedy; no beams when
            outputs are sampled.
        sample, temperature, top_p, num_return, seed, valid_utf8: see `Decoding`.
        escapes: see `as_text`.
        hard_delete: remove positions, or gate softly. Default: as the recipe evaluates, or True.
        threshold: gate value up to which bytes are deleted. Default: the model's own.
        deletion_rate: share of positions to delete, with a threshold found on the first window of inputs; a
            quantile gate is conditioned on the rate and needs no text.
        batch_tokens: see `Options`. Default: by the kind of device.
        scores: also compute the log-probability of each output, in another pass of the decoder.
        precision: precision of weights and products.
        device: devices as for `runtime.devices`; several share the work.

    Raises:
        UserError: settings contradict each other.
    """

    prompt: str | None = None
    column: str | None = None
    raw: bool = False
    input_length: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    num_return: int = 1
    seed: int = 0
    valid_utf8: bool = False
    escapes: bool = False
    hard_delete: bool | None = None
    threshold: float | None = None
    deletion_rate: float | None = None
    batch_tokens: int | None = None
    scores: bool = True
    precision: runtime.Precision = "fp32"
    device: str = "auto"

    def __post_init__(self) -> None:
        counts = {"num_beams": 1, "num_return": 1, "max_new_tokens": 1, "input_length": 1, "batch_tokens": 1}
        for name, least in {**counts, "seed": 0}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(
                    f"{name} is {value}, expected {least} or more", "leave it out for its default"
                )
        if not (0 < self.temperature < math.inf and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature is {self.temperature:g} and top_p {self.top_p:g}; expected a temperature above "
                "0, and top_p above 0 and at most 1",
                "for example a temperature of 0.8 and a top_p of 0.95",
            )
        if self.precision not in get_args(runtime.Precision):
            raise UserError(
                f"precision is {self.precision!r}, expected fp32 or bf16", "leave it out for fp32"
            )
        sampling = {"--temperature": self.temperature != 1, "--top-p": self.top_p != 1}
        for name in (name for name, given in sampling.items() if given and not self.sample):
            raise UserError(f"{name} applies to sampling only", "add --sample")
        if self.sample and (self.num_beams or 1) > 1:
            raise UserError(
                "--sample and --num-beams contradict each other: one samples outputs, the other searches for "
                "the likeliest",
                "for several samples, use --sample --num-return 4",
            )
        if self.num_beams is not None and not self.sample and self.num_return > self.num_beams:
            raise UserError(
                f"--num-return {self.num_return}: {counted(self.num_beams, 'beam')} cannot return "
                f"{self.num_return} outputs",
                f"add --num-beams {self.num_return}, or --sample",
            )
        if self.deletion_rate is not None and not 0 <= self.deletion_rate < 1:
            raise UserError(
                f"--deletion-rate {self.deletion_rate:g}: expected a share of positions, 0 to below 1",
                "for example --deletion-rate 0.5",
            )
        moved = {"--threshold": self.threshold, "--deletion-rate": self.deletion_rate}
        if None not in moved.values():
            raise UserError(
                "--deletion-rate finds a threshold, and --threshold sets one", "leave one of them out"
            )

    def filled(self, evaluation: EvaluationSection) -> Settings:
        """The settings with missing ones filled in from an `evaluation` section.

        Raises:
            UserError: they contradict each other.
        """
        how = GenerationSection() if self.sample or self.num_beams is not None else evaluation.generation
        return replace(
            self,
            max_new_tokens=self.max_new_tokens or evaluation.generation.max_new_tokens,
            num_beams=self.num_beams or how.num_beams,
            length_penalty=how.length_penalty if self.length_penalty is None else self.length_penalty,
            hard_delete=evaluation.hard_delete if self.hard_delete is None else self.hard_delete,
        )

    def options(self, task: TaskOfRun, config: MrT5Config, device: torch.device) -> Options:
        """The options of a pen for a model with this configuration; these settings must be `filled`."""
        assert self.num_beams is not None and self.length_penalty is not None and self.hard_delete is not None
        longest = config.max_position_embeddings if config.has_absolute_position_embeddings else None
        decoding = Decoding(
            self.max_new_tokens or _least(task.output_length or OUTPUT_LENGTH, longest),
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            sample=self.sample,
            temperature=self.temperature,
            top_p=self.top_p,
            num_return=self.num_return,
            seed=self.seed,
            valid_utf8=self.valid_utf8,
        )
        return Options(
            decoding,
            input_length=self.input_length or _least(task.input_length or INPUT_LENGTH, longest),
            hard_delete=self.hard_delete,
            threshold=self.threshold,
            batch_tokens=self.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]),
            scores=self.scores,
        )


class Given(TypedDict, total=False):
    """`Settings` as keyword arguments, for type checkers."""

    prompt: str | None
    column: str | None
    raw: bool
    input_length: int | None
    max_new_tokens: int | None
    num_beams: int | None
    length_penalty: float | None
    sample: bool
    temperature: float
    top_p: float
    num_return: int
    seed: int
    valid_utf8: bool
    escapes: bool
    hard_delete: bool | None
    threshold: float | None
    deletion_rate: float | None
    batch_tokens: int | None
    scores: bool
    precision: runtime.Precision
    device: str


def _least(length: int, longest: int | None) -> int:
    return length if longest is None else min(length, longest)


def as_text(raw: bytes, *, escapes: bool = False) -> str:
    r"""Decode bytes as text; invalid UTF-8 is replaced by U+FFFD.

    Args:
        escapes: write invalid bytes as \xff and double backslashes, so that the bytes can be restored.
    """
    if not escapes:
        return raw.decode("utf-8", "replace")
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


# --- a model at work ----------------------------------------------------------------------------------------


class Pens(Protocol):
    """A `Pen`, or several on `Workers` or a `Cluster`."""

    def threshold_for(self, rate: float, texts: Sequence[Text]) -> Calibration: ...
    def move_threshold(self, threshold: float) -> None: ...
    def write_all(
        self, windows: Iterable[Sequence[Text]], progress: Progress = ...
    ) -> Iterator[list[list[Written]]]: ...


@dataclass(frozen=True)
class Job:
    """A model, and everything that determines its outputs.

    Attributes:
        model: the loaded model, or where to load it from.
        settings: the user's settings, filled in.
        prompt: prompt of inputs; None for no prompt.
    """

    model: Subject | MrT5ForConditionalGeneration
    settings: Settings
    options: Options
    prompt: Prompt | None
    devices: Sequence[torch.device]

    @classmethod
    def of(cls, model: Subject | MrT5ForConditionalGeneration, settings: Settings) -> Job:
        """Resolve settings for a model.

        Raises:
            UserError: they contradict each other.
        """
        recipe = model.recipe if isinstance(model, Subject) else None
        task = TaskOfRun.of(recipe)
        settings = settings.filled(EvaluationSection() if recipe is None else recipe.evaluation)
        if isinstance(model, Subject):
            config, devices = read_config(model.source), runtime.devices(settings.device)
        else:
            check_stays(settings.device, settings.precision)
            config, devices = model.config, [next(model.parameters()).device]
        options = settings.options(task, config, devices[0])
        moved = {"--threshold": settings.threshold, "--deletion-rate": settings.deletion_rate}
        for name in (name for name, value in moved.items() if value is not None and not options.hard_delete):
            raise UserError(
                f"{name} requires hard deletion; soft gates delete nothing", "leave out --soft, or add --hard"
            )
        if settings.deletion_rate is not None:
            options = replace(options, threshold=conditional_threshold(config, settings.deletion_rate))
            if beyond := of_config(config).beyond_training(settings.deletion_rate):
                warn_once(f"the model {beyond}; requested: {100 * settings.deletion_rate:g} %")
        prompt = choose_prompt(
            task.prompt, template=settings.prompt, column=settings.column, raw=settings.raw
        )
        if settings.deletion_rate == 0 and options.threshold is None:
            name = model.name if isinstance(model, Subject) else "the model"
            raise UserError(
                f"--deletion-rate 0: {name} has no gate conditioned on a deletion rate, and no threshold "
                "calibrated on texts deletes nothing",
                "choose a rate above 0, or --soft, which removes no bytes",
            )
        return cls(model, settings, options, prompt, devices)

    @property
    def rate_to_find(self) -> float | None:
        """The deletion rate to calibrate on the inputs; None if no calibration is needed."""
        return self.settings.deletion_rate if self.options.threshold is None else None

    @contextmanager
    def pens(self) -> Iterator[Pens]:
        """The pen, or one for each of several devices.

        Raises:
            UserError: the model cannot be loaded, or does not support the options.
        """
        if not isinstance(self.model, Subject):
            yield Pen(self.model, self.options)
            return
        make = partial(make_pen, self.model.source, self.model.name, self.options, self.settings.precision)
        if len(self.devices) == 1:
            yield make([], str(self.devices[0]))
            return
        with Workers(partial(make, own_code.files()), [str(device) for device in self.devices]) as workers:
            yield workers


def make_pen(
    source: str, name: str, options: Options, precision: runtime.Precision, code: Sequence[Path], device: str
) -> Pen:
    """A pen with the model of a folder; imports the user's own files first, as a new process needs."""
    for file in code:
        own_code.import_file(file)
    own_code.take_in_packages()
    subject = Subject(name, source, None, None)
    return Pen(load_model(subject, torch.device(device), precision), options, name)


@dataclass(frozen=True)
class Result:
    """An input and its outputs; a bad input has none."""

    index: int
    input: Input
    written: Sequence[Written]


Window = list[tuple[int, Input]]


def windows(
    inputs: Iterable[Input], on_error: OnError, *, first: int = 0, size: int = WINDOW
) -> Iterator[Window]:
    """Group inputs, numbered from `first`, into windows of at most `size`, or about WINDOW_BYTES of text.

    The inputs before an error are yielded before it is raised.

    Raises:
        UserError: an input is bad and `on_error` is "error", or the inputs cannot be read.
    """
    held: Window = []
    room = WINDOW_BYTES
    try:
        for index, one in enumerate(inputs, first):
            if one.problem is not None and on_error == "error":
                ways = "--on-error skip leaves such inputs out, --on-error empty gives them an empty output"
                raise UserError(str(one.problem.message), "; ".join(filter(None, (one.problem.hint, ways))))
            held.append((index, one))
            room -= len(one.text)
            if len(held) == size or room < 0:
                yield held
                held, room = [], WINDOW_BYTES
    except UserError:
        if held:
            yield held
        raise
    if held:
        yield held


def _texts(window: Window) -> list[Text]:
    return [Text(index, one.text) for index, one in window if one.problem is None]


def calibrated(pens: Pens, found: Iterator[Window], rate: float) -> tuple[Calibration, Iterator[Window]]:
    """Calibrate on the first window that has a text, and set the threshold; also returns all windows.

    Raises:
        UserError: there is no text, or the model has no learned gate.
    """
    before: list[Window] = []
    for window in found:
        before.append(window)
        if _texts(window):
            break
    calibration = pens.threshold_for(rate, _texts(before[-1]) if before else [])
    pens.move_threshold(calibration.threshold)
    return calibration, chain(before, found)


def results(
    pens: Pens, found: Iterable[Window], progress: Progress = lambda done: None
) -> Iterator[list[Result]]:
    """The results of each window, in input order."""
    held: deque[Window] = deque()

    def texts() -> Iterator[list[Text]]:
        for window in found:
            held.append(window)
            yield _texts(window)

    for written in pens.write_all(texts(), progress):
        outputs = iter(written)
        yield [
            Result(index, one, next(outputs) if one.problem is None else ()) for index, one in held.popleft()
        ]


# --- in Python ----------------------------------------------------------------------------------------------


def generate(
    model: str | Path | MrT5ForConditionalGeneration,
    inputs: Iterable[str | bytes],
    *,
    revision: str | None = None,
    allow_pickle: bool = True,
    **settings: Unpack[Given],
) -> Iterator[Generated]:
    """Generate `num_return` outputs for each input, in input order.

    Inputs are read one window at a time, and texts of similar length share a batch; no output depends on
    other inputs. (Random deletion is sampled per batch, and is the same for the same inputs.)

    Args:
        model: a run directory, a checkpoint directory, a Hub id, or a model from `load`, which stays on its
            device and in its precision.
        inputs: texts, or bytes in any encoding, used as they are: lines of an open file keep their line
            breaks, which `mrt5 generate` removes. They fill the run's prompt, which must have one column.
        revision, allow_pickle: see `load`.
        **settings: settings such as `num_beams=4` or `device="cuda:0,cuda:1"`; `Settings` documents all of
            them: `help(mrt5cli.generation.generate.Settings)`.

    Raises:
        UserError: the model does not exist, or settings contradict it or each other.
        TypeError: `inputs` is a single text, an input is neither text nor bytes, or a setting does not exist.
    """
    if isinstance(inputs, str | bytes):
        raise TypeError("inputs must be an iterable of texts, not one text")
    found = model
    if not isinstance(found, MrT5ForConditionalGeneration):
        found = find_subject(str(found), revision=revision, allow_pickle=allow_pickle)  # type: ignore[assignment]
    job = Job.of(found, Settings(**settings))  # type: ignore[arg-type]
    prompt = job.prompt or Prompt.of(BARE)
    if prompt.lone is None:
        names = ", ".join(column.name for column in prompt.columns)
        raise UserError(
            f"each input is one text, but the run's prompt has several columns: {names}",
            "build the complete prompts yourself, and pass raw=True",
        )
    with ExitStack() as stack:
        pens = stack.enter_context(job.pens())
        return _generated(pens, (_input(prompt, one) for one in inputs), job, stack.pop_all())


def _input(prompt: Prompt, text: str | bytes) -> Input:
    if not isinstance(text, str | bytes):
        raise TypeError(f"an input must be str or bytes, not {type(text).__name__}")
    assert prompt.lone is not None
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return Input("", prompt.around({prompt.lone: raw}))


def _generated(pens: Pens, inputs: Iterable[Input], job: Job, last: ExitStack) -> Iterator[Generated]:
    with last:
        found = windows(inputs, "error")
        if job.rate_to_find is not None:
            _, found = calibrated(pens, found, job.rate_to_find)
        for window in results(pens, found):
            for result in window:
                yield from outputs_of(result, job.settings.escapes)


def outputs_of(result: Result, escapes: bool = False) -> Iterator[Generated]:
    """The outputs of one input."""
    text = as_text(result.input.text)
    for one in result.written:
        output = as_text(one.raw, escapes=escapes)
        yield Generated(result.index, text, output, one.score, one.deleted, one.kept, one.truncated, one.raw)
