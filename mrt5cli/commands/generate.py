"""`mrt5 generate`: what a model writes for a file of inputs, or for whatever stdin brings."""

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
    from mrt5cli.generation.inputs import Source
    from mrt5cli.generation.outputs import Output

Run = Annotated[str, argument(options.ANY_MODEL, "RUN")]
File = Annotated[
    str,
    argument(
        "Inputs: a table (.jsonl, .json, .csv, .tsv, .parquet), or lines; compressed files "
        "too. - reads lines from stdin.",
        "FILE",
    ),
]
Text = Annotated[str | None, option("The only input, in place of FILE.", metavar="TEXT")]
Column = Annotated[
    str | None, option("The column of a table that holds the input; a.b is b within a.", metavar="NAME")
]
Prompt = Annotated[
    str | None,
    option(
        "The text to give to the model, with columns in braces: 'Correct: {noisy}'. Of lines, {line} is the "
        "line. Default: the prompt of the run's task, whose one column a line stands for.",
        metavar="TEMPLATE",
    ),
]
Raw = Annotated[bool, option("Give texts as they are, without the run's prompt.", "--raw")]
Out = Annotated[
    Path | None,
    written("Write to this file, not to stdout; what is there is replaced.", "--out", "-o"),
]
Format = Annotated[
    Literal["lines", "jsonl", "csv", "tsv"] | None,
    option(
        "Outputs alone, a line each, a line break in one as \\n; or rows of index, input, output, score, "
        "deleted, kept and truncated. Default: by the end of --out's name, or lines."
    ),
]
AddColumn = Annotated[
    str | None,
    option("Write the table of inputs with the outputs in a new column of this name.", metavar="NAME"),
]
Resume = Annotated[bool, option("Go on with an unfinished --out.", "--resume")]
OnError = Annotated[
    Literal["error", "skip", "empty"],
    option("An input that is not UTF-8, lacks its column or has no text: stop, skip it, or write nothing."),
]
NumBeams = Annotated[
    int | None,
    amount(
        "Width of the beam search; 1 is greedy: the likeliest byte each time. Default: as the recipe "
        "evaluates, or 1.",
        bounds.BEAMS,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    amount("Bytes of an output at most. Default: as the recipe evaluates, or 256.", bounds.LENGTH),
]
Sample = Annotated[bool, option("Draw bytes at random by their probability, not the likeliest.", "--sample")]
Temperature = Annotated[
    float,
    amount(
        "Above 1 flattens the distribution that is drawn from, below 1 sharpens it.",
        bounds.COEFFICIENT,
        1e-6,
        metavar="NUMBER",
    ),
]
TopP = Annotated[
    float, amount("Draw from the likeliest bytes that have this probability.", 1, 1e-6, metavar="RATE")
]
NumReturn = Annotated[int, amount("Outputs for each input: the best beams, or so many draws.", 1024)]
Seed = Annotated[
    int, amount("Seed of the draws, which depend on it and on the input's number.", bounds.SEED, 0)
]
Rate = Annotated[
    float | None,
    amount(
        "Delete this share of the bytes, by a threshold found on the first 2,048 inputs. A model with a "
        "quantile gate is told the rate.",
        1,
        0,
        metavar="RATE",
    ),
]
BatchTokens = Annotated[
    int | None,
    amount(
        "Byte tokens in a batch, padding included: rows x beams x (longest input + --max-new-tokens). "
        "Default: 16,384, on a GPU 131,072.",
        bounds.LENGTH * 1024,
    ),
]
Devices = Annotated[
    str,
    option(
        f"{options.DEVICE} Several with commas, or all: a process on each.",
        "--device",
        metavar="DEVICE,...",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    option("Where the model works: on this machine, or on the Ray cluster of RAY_ADDRESS (needs ray)."),
]
Workers = Annotated[
    int | None,
    amount(
        "Of --engine ray. Default: one a GPU of the cluster, or without any one a 4 cores.", bounds.WORKERS
    ),
]
Bytes = Annotated[
    bool, option(r"Write bytes that are not UTF-8 as \xff and a backslash as two; else as U+FFFD.", "--bytes")
]
ValidUtf8 = Annotated[bool, option("Permit only bytes that continue UTF-8.", "--valid-utf8")]


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
    """Write a model's output for each input, in their order, however many there are.

    An output does not depend on the other inputs. With --out, what is done is kept when the command is
    stopped, and --resume goes on.

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
    from mrt5cli.generation.outputs import Output
    from mrt5cli.generation.table import Table, settings_of, write
    from mrt5cli.generation.writing import WINDOW
    from mrt5cli.subject import find_subjects

    out = None if out == Path("-") else out
    if text is not None and file != "-":
        raise UserError("--text is the input, and FILE has others", "leave one of them out")
    if resume and out is None:
        raise UserError("--resume goes on with a file", "name it with --out")
    if add_column is not None and num_return > 1:
        raise UserError("--add-column has room for one output a row", "leave --num-return out")
    if workers is not None and engine == "local":
        raise UserError("--workers are of --engine ray", "on this machine, --device says on how many GPUs")
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
        device=device if engine == "local" else "cpu",  # the machines of a cluster have theirs
    )
    (subject,) = find_subjects([run], revision, allow_pickle=not no_pickle)
    job = Job.of(subject, settings)
    inputs = Source(
        file,
        job.prompt,
        text=None if text is None else os.fsencode(text),
        added=add_column,
    )
    if column is not None and not inputs.is_table:
        raise UserError(
            f"--column is of a table, and {inputs.name} has lines",
            "leave it out: a line stands for the prompt's one column",
        )
    if out is not None and out.exists() and Path(file).exists() and out.samefile(file):
        raise UserError(f"--out {out} is the file of inputs", "choose another name")
    at_terminal = file == "-" and text is None and sys.stdin.isatty()
    if at_terminal:
        say_on_stderr("a line at a time from the terminal; Ctrl-D ends")
    with ExitStack() as stack:
        cluster = None if engine == "local" else stack.enter_context(Cluster(device, workers))
        if cluster is not None:
            job = cluster.adapted(job)
            say_on_stderr(str(cluster))
        recorded = {} if out is None else settings_of(job, table, on_error)
        stack.enter_context(inputs)
        output = stack.enter_context(Output(out, recorded, resume=resume))
        stack.enter_context(_told(output, out, inputs, job.options.input_length))
        pens = stack.enter_context(job.pens()) if cluster is None else cluster.started(job)
        before = output.done.inputs
        # On a terminal the outputs themselves show how far it is.
        silent = at_terminal or text is not None or (out is None and sys.stdout.isatty())
        bar = None if silent else stack.enter_context(bars("generating", "inputs"))

        def progress(done: int) -> None:
            if bar is not None:
                bar(inputs.name, before + done, inputs.estimate or 0)

        write(
            job,
            pens,
            inputs,
            output,
            table,
            on_error=on_error,
            window=1 if at_terminal else WINDOW,
            progress=progress,
        )
        output.finish()


@contextmanager
def _told(output: Output, out: Path | None, inputs: Source, length: int) -> Iterator[None]:
    """Say on stderr what was done, and where it was not all, how to go on."""
    before, begun = output.done.inputs, time.monotonic()
    try:
        yield
    except BaseException:
        if output.begun:
            so_far = counted(output.done.inputs, "input")
            say_on_stderr(f"{so_far} done in {out}; the same command with --resume goes on")
        raise
    done, seconds = output.done, time.monotonic() - begun
    rate = f" ({(done.inputs - before) / seconds:,.1f} a second)" if seconds >= 1 else ""
    if inputs.name != "--text":
        say_on_stderr(f"{counted(done.inputs, 'input')}, {counted(done.outputs, 'output')}{rate}")
    if done.bad:
        say_on_stderr(f"{counted(done.bad, 'input')} could not be used")
    if done.cut:
        say_on_stderr(f"{counted(done.cut, 'input')} cut to {length:,} byte tokens")
    if done.threshold is not None:
        share = "" if done.reached is None else f": {100 * done.reached:.1f} % of the first inputs' positions"
        say_on_stderr(f"gate values up to {done.threshold:.4g} were deleted{share}")
