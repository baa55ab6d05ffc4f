"""Write outputs as rows, window by window, and resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mrt5cli.data.formats import PARQUET, TABLES, UNPACKED_BY, suffix_of
from mrt5cli.errors import UserError
from mrt5cli.generation.generate import Job, OnError, Pens, Result, calibrated, outputs_of, results, windows
from mrt5cli.generation.inputs import Input
from mrt5cli.generation.outputs import Done, Format, Output, RowFormat, format_of
from mrt5cli.generation.writing import WINDOW
from mrt5cli.models import read_config
from mrt5cli.recipe.shorteners import RandomGate
from mrt5cli.subject import Subject

COLUMNS = ("index", "input", "output", "score", "deleted", "kept", "truncated")


@dataclass(frozen=True)
class Table:
    """The columns and format of the output.

    Attributes:
        format: "lines" writes outputs only.
        added: name of the output column in the table of inputs; None writes a separate table.
        escapes: see `as_text`.
    """

    format: Format = "lines"
    added: str | None = None
    escapes: bool = False

    @classmethod
    def of(
        cls, format: Format | None, out: Path | None, file: str, added: str | None, escapes: bool
    ) -> Table:
        """The format of --format, else of the suffix of --out or of the input table.

        Raises:
            UserError: outputs cannot be written in that format.
        """
        name = "" if out is None else out.name.lower()
        if name.endswith((*UNPACKED_BY, *PARQUET, ".json")) and format is None:
            raise UserError(
                f"--out {out}: outputs are written as lines, .jsonl, .csv or .tsv, without compression",
                "choose one of these names, or set the format with --format",
            )
        found: Format = format or format_of(name)
        if added is not None and found == "lines" and format is None:
            found = format_of(suffix_of(file)) if suffix_of(file) in TABLES else "jsonl"
        if added is not None and found == "lines":
            raise UserError(
                "--add-column writes a table, and --format lines is not one", "use --format jsonl, csv or tsv"
            )
        return cls(found, added, escapes)

    @property
    def scores(self) -> bool:
        """Whether the table has a column for log-probabilities."""
        return self.format != "lines" and self.added is None

    def rows(self, result: Result, several: int) -> Iterator[dict[str, Any]]:
        """The rows of an input; for a bad one, `several` rows with empty outputs."""
        outputs = [asdict(one) for one in outputs_of(result, self.escapes)]
        outputs = outputs or [{**dict.fromkeys(COLUMNS), "index": result.index, "output": ""}] * several
        for one in outputs:
            if self.added is None:
                yield {name: _rounded(one[name]) for name in COLUMNS}
                continue
            yield {**(result.input.row or {}), self.added: one["output"]}

    def columns(self, kept: Sequence[Result]) -> list[str]:
        """Columns of the rows, taken from the first input that could be read."""
        if self.added is None:
            return list(COLUMNS)
        row = next((result.input.row for result in kept if result.input.row is not None), {})
        return [*row, self.added]


def _rounded(value: Any) -> Any:
    """Round to digits that do not depend on the rest of the batch."""
    return round(value, 4) if isinstance(value, float) else value


def settings_of(job: Job, table: Table, on_error: OnError) -> dict[str, Any]:
    """All settings that determine the output, to verify that a resumed file has the same."""
    assert isinstance(job.model, Subject)
    options = asdict(job.options)
    if read_config(job.model.source).deletion_type not in RandomGate.deletion_types:  # sampled per batch
        del options["batch_tokens"]  # affects speed only
    prompt = None if job.prompt is None else [list(piece) for piece in job.prompt.template.pieces]
    return {
        **options.pop("decoding"),
        **options,
        "weights": _digest_of_weights(Path(job.model.source)),
        "precision": job.settings.precision,
        "deletion_rate": job.settings.deletion_rate,
        "prompt": prompt,
        "on_error": on_error,
        "window": WINDOW,
        "format": table.format,
        "add_column": table.added,
        "bytes": table.escapes,
    }


def _digest_of_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(chain(folder.glob("*.safetensors"), folder.glob("*.bin"))):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def write(
    job: Job,
    pens: Pens,
    inputs: Iterable[Input],
    output: Output,
    table: Table,
    *,
    on_error: OnError = "error",
    window: int = WINDOW,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Write the outputs of all inputs, starting from `output.done`, which records the progress.

    Args:
        window: inputs per window.
        progress: called with the number of inputs done by this call.

    Raises:
        UserError: an input is bad, see `windows`; or the finished inputs have changed.
    """
    done, seen, stream = output.done, hashlib.blake2b(digest_size=16), iter(inputs)
    for one in islice(stream, done.inputs):
        _add(seen, one)
    if done.inputs and seen.hexdigest() != done.digest:
        raise UserError(
            f"--resume: the first {done.inputs:,} inputs have changed since the file was started",
            "use the same inputs, or delete the output and its .unfinished.json to start over",
        )
    output.begin()
    found = windows(stream, on_error, first=done.inputs, size=window)
    if done.threshold is not None:
        pens.move_threshold(done.threshold)
    elif job.rate_to_find is not None:
        calibration, found = calibrated(pens, found, job.rate_to_find)
        done.threshold, done.reached = calibration.threshold, calibration.reached
    for part in results(pens, found, progress):
        kept = [result for result in part if result.written or on_error == "empty"]
        rows = [row for result in kept for row in table.rows(result, job.settings.num_return)]
        first = done.columns is None and bool(rows)
        form = RowFormat(table.format, table.columns(kept) if first else done.columns or [])
        text = (form.head() if first else "") + "".join(map(form.row, rows))
        done.columns = list(form.columns) or None
        _count(done, seen, part, len(rows))
        output.write(text)
    if done.columns is None and table.added is None:
        output.write(RowFormat(table.format, COLUMNS).head())


def _count(done: Done, seen: hashlib.blake2b, part: Iterable[Result], rows: int) -> None:
    for result in part:
        _add(seen, result.input)
        done.inputs += 1
        done.bad += result.input.problem is not None
        done.cut += any(one.truncated for one in result.written)
    done.outputs += rows
    done.digest = seen.hexdigest()


def _add(seen: hashlib.blake2b, one: Input) -> None:
    seen.update(len(one.text).to_bytes(8, "little") + one.text)
    if one.row is not None:
        seen.update(json.dumps(one.row, default=str).encode())
