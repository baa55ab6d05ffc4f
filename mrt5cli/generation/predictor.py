"""A model as a function that adds its outputs to a batch of columns.

For engines that distribute rows over processes and machines: Ray Data's `map_batches`, `map` of datasets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from mrt5cli import own_code, runtime
from mrt5cli.data.columns import holder, missing_column, our_names
from mrt5cli.errors import UserError
from mrt5cli.generation.generate import Generated, Given, Job, Result, Settings, make_pen, outputs_of
from mrt5cli.generation.inputs import NAME_IT, Input, row_of
from mrt5cli.generation.writing import BATCH_TOKENS, Options, Pen, Text
from mrt5cli.models.hub_files import locate
from mrt5cli.recipe.words import either
from mrt5cli.runtime import Precision
from mrt5cli.subject import Subject, find_subject

FIELDS = tuple(field.name for field in fields(Generated) if field.name != "index")


@dataclass(frozen=True)
class PenElsewhere:
    """Makes the pen of a job in another process, or on another machine.

    Attributes:
        source: absolute path of the checkpoint directory, or a Hub id.
        commit: commit of the Hub model, the same everywhere; None for a directory.
        batch_tokens: see `Options`; None means the default of the kind of device.
        device: device of the other machine, as for `runtime.device`.
        code: the user's own files, imported first.
    """

    source: str
    commit: str | None
    name: str
    options: Options
    batch_tokens: int | None
    precision: Precision
    device: str
    code: tuple[Path, ...]

    @classmethod
    def of(cls, job: Job, device: str, batch_tokens: int | None) -> PenElsewhere:
        """For a job whose model is not loaded yet."""
        subject = job.model
        assert isinstance(subject, Subject)
        source = subject.name if subject.commit else str(Path(subject.source).absolute())
        code = tuple(file.absolute() for file in own_code.files())
        how = job.options, batch_tokens, job.settings.precision, device, code
        return cls(source, subject.commit, subject.name, *how)

    def __call__(self) -> Pen:
        """The pen; each process loads the model once.

        Raises:
            UserError: the model or device does not exist on that machine.
        """
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(elsewhere: PenElsewhere) -> Pen:
    device = runtime.device(elsewhere.device)
    folder = str(locate(elsewhere.source, revision=elsewhere.commit).folder)
    tokens = elsewhere.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    options = replace(elsewhere.options, batch_tokens=tokens)
    return make_pen(folder, elsewhere.name, options, elsewhere.precision, elsewhere.code, str(device))


class Predictor:
    """Called with a batch of columns, returns the batch with the model's outputs in added columns.

    It is small and can be pickled; each process loads the model once, at its first call. Outputs are those of
    `generate`, with the prompt of the model's run.

    Args:
        model: a run directory, a checkpoint directory or a Hub id. It is resolved now, so that workers that
            start later, in other directories, load the same weights; all must see the directory.
        added: names of the added columns by content: "output", "score", "deleted", "kept", "truncated",
            "input" or "bytes", as in `Generated`. Default: a column `output`. If `num_return` is above 1,
            each cell is a list of that length.
        number: the column that numbers rows; samples (`sample=True`) depend on it.
        on_error: "error" raises for a row whose text is missing or not text; "empty" adds an empty output.
        revision, allow_pickle: see `load`.
        **settings: settings of `generate`: `column` or `prompt` names the columns to read, `device` is each
            worker's own.

    Raises:
        UserError: the model does not exist, or settings contradict it or each other.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        added: Mapping[str, str] | None = None,
        number: str | None = None,
        on_error: Literal["error", "empty"] = "error",
        revision: str | None = None,
        allow_pickle: bool = True,
        **settings: Unpack[Given],
    ) -> None:
        self._added = dict(added or {"output": "output"})
        if wrong := [name for name in self._added if name not in FIELDS]:
            raise UserError(f"added: an output has no {wrong[0]!r}", f"use {either(FIELDS)}")
        asked = Settings(**{"scores": "score" in self._added, **settings})  # type: ignore[arg-type]
        if asked.device == "all" or "," in asked.device:
            raise UserError(
                f"device {asked.device!r} names several devices, but a worker has one", "use 'cuda' or 'auto'"
            )
        if asked.sample and number is None:
            raise UserError(
                "sample=True requires the number of each row, which seeds its samples",
                "name the column of numbers: number='id'",
            )
        subject = find_subject(str(model), revision=revision, allow_pickle=allow_pickle)
        job = Job.of(subject, replace(asked, device="cpu"))
        if job.rate_to_find is not None:
            raise UserError(
                "deletion_rate needs the first inputs to find a threshold, and workers do not see them",
                "pass the threshold that `mrt5 generate --deletion-rate` reports at its end",
            )
        if job.prompt is None:
            raise UserError(f"{subject.name}: no column is named as its input", NAME_IT)
        self._pen = PenElsewhere.of(job, asked.device, asked.batch_tokens)
        self._prompt, self._number, self._on_error = job.prompt, number, on_error
        self._several, self._escapes = asked.num_return, asked.escapes

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The columns of the batch, and the added columns as lists.

        Raises:
            UserError: a column is missing or exists already, a row is bad, or the model cannot be loaded.
        """
        if taken := [name for name in self._added.values() if name in batch]:
            raise UserError(f"the batch already has a column {taken[0]!r}", "choose another name in added")
        rows = list(self._inputs(batch))
        count = range(len(rows))
        numbers = count if self._number is None else [int(number) for number in batch[self._number]]
        if len(set(numbers)) < len(rows):
            raise UserError(
                f"column {self._number!r} has the same number in two rows", "number the rows uniquely"
            )
        for row in rows:
            if row.problem is not None and self._on_error == "error":
                raise row.problem
        texts = [Text(numbers[k], rows[k].text) for k in count if rows[k].problem is None]
        written = iter(self._pen().write(texts))
        outputs = [
            list(outputs_of(Result(numbers[k], row, next(written)), self._escapes))
            if row.problem is None
            else []
            for k, row in enumerate(rows)
        ]
        return {
            **batch,
            **{name: [self._cell(row, field) for row in outputs] for field, name in self._added.items()},
        }

    def _inputs(self, batch: Mapping[str, Sequence[Any]]) -> Iterator[Input]:
        """The rows of a batch as inputs."""
        ours = our_names(batch, self._prompt.columns)
        heads = {one.name: holder(ours, one.name) for one in self._prompt.columns}
        for name in (name for name, head in heads.items() if head is None):
            raise missing_column("the batch", name, batch.keys(), self._prompt.columns)
        read = {
            name: column for name, column in zip(ours, batch.values(), strict=True) if name in heads.values()
        }
        for k, cells in enumerate(zip(*read.values(), strict=True)):
            plain = (cell.item() if isinstance(cell, np.generic) else cell for cell in cells)
            row = dict(zip(read, plain, strict=True))
            yield row_of(f"row {k + 1} of the batch", row, self._prompt, kept=False)

    def _cell(self, outputs: Sequence[Generated], field: str) -> Any:
        """A row's cell in an added column; for a bad row, "" in `output` and None elsewhere."""
        values = [getattr(one, field) for one in outputs] or [
            "" if field == "output" else None
        ] * self._several
        return values if self._several > 1 else values[0]
