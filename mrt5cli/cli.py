"""The `mrt5` command: the Typer app, its commands, and the one place where errors become messages.

Neither this module nor `commands/` imports torch or transformers before a command runs, so help is instant.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

import mrt5cli
from mrt5cli import own_code, stopping
from mrt5cli.commands import (
    bench,
    convert,
    data,
    docs,
    env,
    evaluate,
    generate,
    inspect_deletions,
    recipe,
    reproduce,
    runs,
    training,
)
from mrt5cli.commands.command import Command
from mrt5cli.commands.completion import ASKED_BY_BASH, answer_bash
from mrt5cli.errors import UserError, of_the_system
from mrt5cli.output import lead_nowhere, prepare
from mrt5cli.places import find_home
from mrt5cli.runtime import leads
from mrt5cli.text import columns, say_on_stderr, wrapped

CLOSED_PIPE = 141
"""The exit code of a program that SIGPIPE ended; `mrt5 recipe list | head` is not a failure."""
HEADINGS = PREPARE, TRAIN, MEASURE, USE, HELP = ("Prepare", "Train", "Measure", "Use", "Help")
"""Groups of commands in the help, in the order in which a new user needs them."""
MISTYPED = cast("type[Exception]", typer.BadParameter.__base__)
"""What typer raises for an invalid command line: an unknown option, a missing value."""


class Boundary(TyperGroup):
    """Turns errors that a user can cause into a message and an exit code; others propagate to `main`."""

    def main(self, args: Any = None, prog_name: str | None = None, *more: Any, **kwargs: Any) -> Any:
        # `python -m mrt5cli` is called mrt5 too, so that the commands it prints can be typed.
        return super().main(args, prog_name or "mrt5", *more, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)  # prints --help and --version
        except MISTYPED as error:
            raise _invalid(error) from None
        except BrokenPipeError:
            raise _closed_pipe() from None

    def invoke(self, ctx: Any) -> Any:
        try:
            _check_working_directory()
            return super().invoke(ctx)
        except MISTYPED as error:
            raise _invalid(error) from None
        except UserError as error:
            _report(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            raise _closed_pipe() from None
        except KeyboardInterrupt as error:
            _report(str(stopping.Stopped(stopping.number_of(error))))
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one line per command, grouped under headings."""
        width = max(map(len, self.commands))
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for name, command in self.commands.items():
            if command.hidden:
                continue
            heading = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(heading, []).append((name.ljust(width), command.short_help or ""))
        for heading in filter(groups.get, groups):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])


class Notes(logging.Handler):
    """Prints log messages of the library to stderr, one line each, in the leading process only."""

    def emit(self, record: logging.LogRecord) -> None:
        if leads():
            say_on_stderr(f"note: {record.getMessage()}")


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(f"mrt5 {mrt5cli.__version__}")
        raise typer.Exit


@app.callback()
def _mrt5(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train, evaluate and run MrT5: byte-level language models that learn which bytes to delete."""
    ours = logging.getLogger("mrt5cli")
    if not any(isinstance(handler, Notes) for handler in ours.handlers):
        ours.addHandler(Notes(logging.WARNING))


app.add_typer(
    recipe.app,
    name="recipe",
    short_help="List, check, copy, write, explain recipes.",
    rich_help_panel=PREPARE,
)
app.add_typer(
    data.app, name="data", short_help="Build data sets without a data hub.", rich_help_panel=PREPARE
)
app.add_typer(
    runs.app, name="runs", short_help="List, show, compare, tag, move, remove runs.", rich_help_panel=MEASURE
)
for function, group, line in (
    (training.pretrain, TRAIN, "Train a model from a recipe."),
    (training.finetune, TRAIN, "Fine-tune an existing model on a task."),
    (reproduce.reproduce, TRAIN, "Reproduce the paper, or its claims at toy scale."),
    (evaluate.evaluate, MEASURE, "Measure loss, accuracy and deletion rate."),
    (inspect_deletions.inspect_deletions, MEASURE, "Show which bytes a model deletes."),
    (bench.bench, MEASURE, "Benchmark speed, memory and precision."),
    (generate.generate, USE, "Generate outputs for a file of inputs."),
    (convert.convert, USE, "Convert a checkpoint to another layout."),
    (docs.docs, HELP, "Read the documentation."),
    (env.env, HELP, "Print what a bug report needs."),
):
    app.command(short_help=line, rich_help_panel=group)(function)


def _use_command_class(group: typer.Typer) -> None:
    """Make every command of a group and of its subgroups a `Command`."""
    for command in group.registered_commands:
        command.cls = Command
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        _use_command_class(inner.typer_instance)


_use_command_class(app)


def main() -> None:
    """The console command.

    Exit codes: 0, success; 1, the run or the program failed; 2, invalid input, or a model or data unavailable
    at the start; 128 + N, stopped by signal N (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1).
    """
    try:
        with stopping.raised():
            _run()
    except KeyboardInterrupt as error:
        sys.exit(stopping.exit_code(error))
    except SystemExit as end:
        # typer exits with the same code for every signal.
        cause = end.__context__ and end.__context__.__cause__
        if isinstance(cause, KeyboardInterrupt):
            sys.exit(stopping.exit_code(cause))
        raise


def _run() -> None:
    prepare()
    find_home()
    try:
        try:
            answer_bash(app) if os.environ.get(ASKED_BY_BASH[0]) == ASKED_BY_BASH[1] else app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(_closed_pipe().exit_code)
    except Exception as error:
        message, hint, code = _unexpected(error)
        _report(message, hint)
        try:
            sys.stdout.flush()
        except OSError:  # such as a full disk
            lead_nowhere(sys.stdout)
        sys.exit(code)


def _unexpected(error: Exception) -> tuple[str, str, int]:
    """A message, a hint and an exit code for an error that is not a `UserError`."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("mrt5cli"):
        return f"the package {error.name!r} is not installed", "`pip check` lists missing packages", 1
    text = " ".join(str(error).split())
    if "InvalidCxxCompiler" in text:
        return (
            "torch.compile needs a C++ compiler on a CPU, and none was found",
            "install g++ or clang++, or set the environment variable CXX to another compiler",
            UserError.exit_code,
        )
    # On a CPU torch raises a plain RuntimeError.
    full = "OutOfMemory" in type(error).__name__ or "can't allocate memory" in text
    if full or isinstance(error, MemoryError):
        return "out of memory", "use smaller batches, shorter texts or a smaller model", 1
    if isinstance(error, OSError) and error.strerror:
        code = UserError.exit_code if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR) else 1
        return *of_the_system(error), code
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own = own_code.place_in(error)
    if own is not None:
        return f"{own}: {what}", "set MRT5_DEBUG=1 for the traceback", 1
    return what, "this is a bug in mrt5cli; set MRT5_DEBUG=1 for the traceback, and please report it", 1


def _invalid(error: Any) -> Exception:
    """Report an invalid command line like every error; an empty one shows the help."""
    if error.ctx is not None and error.message == error.ctx.get_help():
        return error
    message = " ".join(error.format_message().split())
    # Typer validates with pydantic: its prefixes become our words.
    message = message.replace("Value error, ", "").replace("Input should be ", "expected a number ")
    wanted = "a list of commands" if "no such command" in message.lower() else "its arguments and options"
    shown = None if error.ctx is None else f"run `{error.ctx.command_path} --help` for {wanted}"
    _report(message[:1].lower() + message[1:].rstrip("."), shown)
    return typer.Exit(UserError.exit_code)


def _closed_pipe() -> typer.Exit:
    """The exit when the reader of stdout has closed it."""
    lead_nowhere(sys.stdout)
    return typer.Exit(CLOSED_PIPE)


def _check_working_directory() -> None:
    """Refuse to run in a deleted folder, where libraries fail with obscure errors."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "the current folder no longer exists: it was removed or moved", "cd to another folder"
        ) from None


def _report(message: str, hint: str | None = None) -> None:
    """Print an error to stderr; with MRT5_DEBUG=1, after the traceback of the current exception."""
    if os.environ.get("MRT5_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    for label, text in (("error:", message), ("hint:", hint)):
        if text:
            rest = wrapped(f"{label} {text}", columns(sys.stderr)).removeprefix(label)
            colour = "red" if label == "error:" else None
            bold = typer.style(label, fg=colour, bold=True) if sys.stderr.isatty() else label
            print(bold + rest, file=sys.stderr)
