"""`mrt5 generate`: generate an output for each input of a file, or of stdin as it arrives."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mrt5cli import bounds
from mrt5cli.bars import bars
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, option, written
from mrt5cli.errors import UserError
from mrt5cli.text import counted, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.generation.cluster import Cluster
    from mrt5cli.generation.generate import Job
    from mrt5cli.generation.generate import OnError as OnErrorName
    from mrt5cli.generation.inputs import Source
    from mrt5cli.generation.outputs import Output
    from mrt5cli.generation.table import Table

Run = Annotated[str, argument(options.ANY_MODEL, "RUN")]
File = Annotated[
    str,
    argument(
        "Inputs: a table (.jsonl, .json, .csv, .tsv or .parquet) or a text file with one input per line, "
        "compressed or not; - reads lines from stdin.",
        "FILE",
    ),
]
Text = Annotated[str | None, option("Single input, in place of FILE.", metavar="TEXT")]
Column = Annotated[
    str | None,
    option(
        "Column of a table that contains the input; a.b is field b of column a.",
        metavar="NAME",
        default="the column of the prompt",
    ),
]
Prompt = Annotated[
    str | None,
    option(
        "Text for the model, with columns in braces: 'Correct: {noisy}'. {line} is a line of a text file.",
        metavar="TEMPLATE",
        default="the prompt of the run's task",
    ),
]
Raw = Annotated[bool, option("Pass inputs to the model unchanged, without the task's prompt.", "--raw")]
Out = Annotated[
    Path | None, written("Write to this file, replacing an existing one.", "--out", "-o", default="stdout")
]
Format = Annotated[
    Literal["lines", "jsonl", "csv", "tsv"] | None,
    option(
        r"Output format: lines, one output per line, line breaks as \n; others, rows of index, input, "
        "output, score, deleted, kept and truncated.",
        default="by the suffix of --out, else lines",
    ),
]
AddColumn = Annotated[
    str | None, option("Write the input table with the outputs in a new column of this name.", metavar="NAME")
]
Resume = Annotated[bool, option("Resume an unfinished --out file.", "--resume")]
OnError = Annotated[
    Literal["error", "skip", "empty"],
    option(
        "Handling of an input that is not UTF-8, lacks its column or is empty: stop with an error, skip it, "
        "or write an empty output."
    ),
]
NumBeams = Annotated[
    int | None,
    amount("Width of the beam search; 1 is greedy decoding.", bounds.BEAMS, default="the recipe's, or 1"),
]
MaxNewTokens = Annotated[
    int | None, amount("Maximum bytes of an output.", bounds.LENGTH, default="the recipe's, or 256")
]
Sample = Annotated[
    bool, option("Sample each byte from the model's distribution instead of the likeliest.", "--sample")
]
Temperature = Annotated[
    float,
    amount(
        "Sampling temperature; above 1 flattens the distribution, below 1 sharpens it.",
        bounds.COEFFICIENT,
        1e-6,
        metavar="NUMBER",
    ),
]
TopP = Annotated[
    float, amount("Total probability of the likeliest bytes to sample from.", 1, 1e-6, metavar="RATE")
]
NumReturn = Annotated[int, amount("Outputs per input: the best beams, or that many samples.", 1024)]
Seed = Annotated[
    int, amount("Random seed of the samples, which depend on it and on the input's index.", bounds.SEED, 0)
]
Rate = Annotated[
    float | None,
    amount(
        "Fraction of bytes to delete, by a threshold calibrated on the first 2,048 inputs; a quantile gate "
        "is conditioned on the rate instead.",
        1,
        0,
        metavar="RATE",
    ),
]
BatchTokens = Annotated[
    int | None,
    amount(
        "Maximum byte tokens per batch, padding included: rows x beams x (longest input + --max-new-tokens).",
        bounds.LENGTH * 1024,
        default="16,384; 131,072 on a GPU",
    ),
]
Devices = Annotated[
    str,
    option(
        f"{options.DEVICE} Several, separated by commas, or all: one process per device.",
        "--device",
        metavar="DEVICE,...",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    option("Where to run the model: on this machine, or on the Ray cluster at RAY_ADDRESS (needs ray)."),
]
Workers = Annotated[
    int | None,
    amount(
        "Number of workers, with --engine ray.",
        bounds.WORKERS,
        default="one per GPU of the cluster; without GPUs, one per 4 cores",
    ),
]
Bytes = Annotated[
    bool,
    option(r"Write bytes that are not UTF-8 as \xff, and a backslash as two, instead of U+FFFD.", "--bytes"),
]
ValidUtf8 = Annotated[bool, option("Restrict outputs to valid UTF-8.", "--valid-utf8")]


def generate(
    run: Run,
    file: File = "-",
    text: Text = None,
    column: Column = None,
    prompt: Prompt = None,
    raw: Raw = False,
    out: Out = None,
    format: Format = None,
    add_column: AddColumn = None,
    resume: Resume = False,
    on_error: OnError = "error",
    max_new_tokens: MaxNewTokens = None,
    num_beams: NumBeams = None,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    num_return: NumReturn = 1,
    seed: Seed = 0,
    valid_utf8: ValidUtf8 = False,
    bytes: Bytes = False,
    hard: options.Hard = None,
    threshold: options.Threshold = None,
    deletion_rate: Rate = None,
    batch_tokens: BatchTokens = None,
    precision: options.Precision = "fp32",
    device: Devices = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    revision: options.Revision = None,
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
) -> None:
    """Generate an output for each input, in input order.

    Inputs are streamed, so a file may be larger than memory, and an output does not depend on other inputs.
    With --out, an interrupted command keeps its outputs, and --resume continues from there.

    Examples:

      echo "tset" | mrt5 generate runs/mrt5-seed1

      mrt5 generate runs/mrt5-seed1 lines.txt --out outputs.txt

      mrt5 generate runs/mrt5-seed1 noisy.tsv --column noisy --out outputs.jsonl --num-beams 4

      mrt5 generate runs/mrt5-seed1 noisy.csv --prompt "Correct: {noisy}" --add-column clean --out clean.csv

      mrt5 generate runs/mrt5-seed1 --text "tset" --sample --temperature 0.8 --num-return 5

      mrt5 generate runs/mrt5-seed1 many.parquet --column text --out outputs.jsonl --engine ray
    """
    from mrt5cli.generation.cluster import Cluster
    from mrt5cli.generation.generate import Job, Settings
    from mrt5cli.generation.inputs import Source
    from mrt5cli.generation.table import Table
    from mrt5cli.subject import find_subjects

    out = None if out == Path("-") else out
    if text is not None and file != "-":
        raise UserError("--text and FILE both give inputs", "leave one of them out")
    if resume and out is None:
        raise UserError("--resume needs the file to resume", "name it with --out")
    if add_column is not None and num_return > 1:
        raise UserError("--add-column stores one output per row", "leave --num-return out")
    if workers is not None and engine == "local":
        raise UserError("--workers needs --engine ray", "on this machine, choose GPUs with --device")
    table = Table.of(format, out, file, add_column, bytes)
    settings = Settings(
        prompt=prompt,
        column=column,
        raw=raw,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        sample=sample,
        temperature=temperature,
        top_p=top_p,
        num_return=num_return,
        seed=seed,
        valid_utf8=valid_utf8,
        escapes=bytes,
        hard_delete=hard,
        threshold=threshold,
        deletion_rate=deletion_rate,
        batch_tokens=batch_tokens,
        scores=table.scores,
        precision=precision,
        device=device if engine == "local" else "cpu",  # the workers of a cluster choose their own
    )
    (subject,) = find_subjects([run], revision, allow_pickle=not no_pickle)
    job = Job.of(subject, settings)
    inputs = Source(file, job.prompt, text=None if text is None else os.fsencode(text), added=add_column)
    if column is not None and not inputs.is_table:
        raise UserError(
            f"--column needs a table, and {inputs.name} has lines",
            "leave it out: the whole line is the input",
        )
    if out is not None and out.exists() and Path(file).exists() and out.samefile(file):
        raise UserError(f"--out {out} is also the input file", "choose another name")
    cluster = None if engine == "local" else Cluster(device, workers)
    _write_outputs(job, inputs, table, out, cluster, resume=resume, on_error=on_error)


def _write_outputs(
    job: Job,
    inputs: Source,
    table: Table,
    out: Path | None,
    cluster: Cluster | None,
    *,
    resume: bool,
    on_error: OnErrorName,
) -> None:
    """Generate on this machine or a cluster, with a progress bar unless outputs appear on the terminal."""
    from mrt5cli.generation.outputs import Output
    from mrt5cli.generation.table import settings_of, write
    from mrt5cli.generation.writing import WINDOW

    at_terminal = inputs.name == "stdin" and sys.stdin.isatty()
    if at_terminal:
        say_on_stderr("type one input per line; Ctrl-D ends")
    with ExitStack() as stack:
        if cluster is not None:
            stack.enter_context(cluster)
            job = cluster.adapted(job)
            say_on_stderr(str(cluster))
        recorded = {} if out is None else settings_of(job, table, on_error)
        stack.enter_context(inputs)
        output = stack.enter_context(Output(out, recorded, resume=resume))
        stack.enter_context(_reported(output, out, inputs, job.options.input_length))
        pens = stack.enter_context(job.pens()) if cluster is None else cluster.started(job)
        before = output.done.inputs
        silent = at_terminal or inputs.name == "--text" or (out is None and sys.stdout.isatty())
        bar = None if silent else stack.enter_context(bars("generating", "inputs"))

        def progress(done: int) -> None:
            if bar is not None:
                bar(inputs.name, before + done, inputs.estimate or 0)

        window = 1 if at_terminal else WINDOW
        write(job, pens, inputs, output, table, on_error=on_error, window=window, progress=progress)
        output.finish()


@contextmanager
def _reported(output: Output, out: Path | None, inputs: Source, length: int) -> Iterator[None]:
    """Report the counts on stderr at the end; after an interruption, how to resume."""
    before, begun = output.done.inputs, time.monotonic()
    try:
        yield
    except BaseException:
        if output.begun:
            so_far = counted(output.done.inputs, "input")
            say_on_stderr(f"{so_far} done in {out}; run the same command with --resume to continue")
        raise
    done, seconds = output.done, time.monotonic() - begun
    rate = f" ({(done.inputs - before) / seconds:,.1f} per second)" if seconds >= 1 else ""
    if inputs.name != "--text":
        say_on_stderr(f"{counted(done.inputs, 'input')}, {counted(done.outputs, 'output')}{rate}")
    if done.bad:
        say_on_stderr(f"{counted(done.bad, 'input')} could not be used")
    if done.cut:
        say_on_stderr(f"{counted(done.cut, 'input')} truncated to {length:,} byte tokens")
    if done.threshold is not None:
        share = "" if done.reached is None else f": {100 * done.reached:.1f} % of the first inputs' positions"
        say_on_stderr(f"gate values up to {done.threshold:.4g} were deleted{share}")
