"""The `mrt5` command: the Typer app, its commands, and the one boundary where errors become sentences.

Nothing here or in `commands/` imports torch or transformers before a command runs: help must feel instant.
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

from mrt5cli import __version__, own_code, stopping
from mrt5cli.commands import (
    bench,
    convert,
    data,
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
"""What a shell reports for a program that SIGPIPE ended: in `mrt5 recipe list | head`, nothing failed."""


HEADINGS = PREPARE, TRAIN, MEASURE, USE, MACHINE = ("Prepare", "Train", "Measure", "Use", "This machine")
"""Of the commands in the help, in the order of a newcomer's way."""


MISTYPED = cast("type[Exception]", typer.BadParameter.__base__)
"""What typer raises for a command line that is none: an option that there is not, a value that is missing."""


class Boundary(TyperGroup):
    """Turns what a user can cause into a sentence and an exit code; everything else goes up to `main`."""

    def main(self, args: Any = None, prog_name: str | None = None, *more: Any, **kwargs: Any) -> Any:
        # Also for `python -m mrt5cli`: what it says can be typed, and shells ask the same way.
        return super().main(args, prog_name or "mrt5", *more, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)  # prints --help and --version
        except MISTYPED as error:
            raise _mistyped(error) from None
        except BrokenPipeError:
            raise _closed_pipe() from None

    def invoke(self, ctx: Any) -> Any:
        try:
            _check_place()
            return super().invoke(ctx)
        except MISTYPED as error:
            raise _mistyped(error) from None
        except UserError as error:
            _report(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            raise _closed_pipe() from None
        except KeyboardInterrupt as error:
            _report(str(stopping.Stopped(stopping.number_of(error))))
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands a line each, under the headings that they were given."""
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
    """What the library logs, a line each on stderr, from the leading process only."""

    def emit(self, record: logging.LogRecord) -> None:
        if leads():
            say_on_stderr(f"note: {record.getMessage()}")


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(f"mrt5 {__version__}")
        raise typer.Exit


@app.callback()
def _mrt5(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train, evaluate and inspect MrT5: byte-level language models that delete the bytes they do not need."""
    ours = logging.getLogger("mrt5cli")
    if not any(isinstance(handler, Notes) for handler in ours.handlers):
        ours.addHandler(Notes(logging.WARNING))


app.add_typer(
    recipe.app, name="recipe", short_help="List, show, check, copy, explain recipes.", rich_help_panel=PREPARE
)
app.add_typer(data.app, name="data", short_help="Make data sets without a data hub.", rich_help_panel=PREPARE)
app.add_typer(
    runs.app, name="runs", short_help="List, show, compare, tag, move, remove runs.", rich_help_panel=MEASURE
)
for function, group, line in (
    (training.pretrain, TRAIN, "Train a model as its recipe says."),
    (training.finetune, TRAIN, "Fine-tune an existing model on a task."),
    (reproduce.reproduce, TRAIN, "Reproduce the paper, or its claims in miniature."),
    (evaluate.evaluate, MEASURE, "Measure loss, accuracy and deletion."),
    (inspect_deletions.inspect_deletions, MEASURE, "Show which bytes a model deletes."),
    (bench.bench, MEASURE, "Time models against each other."),
    (generate.generate, USE, "Write outputs for a file of inputs."),
    (convert.convert, USE, "Write a checkpoint in another layout."),
    (env.env, MACHINE, "Say what a report of a bug needs."),
):
    app.command(short_help=line, rich_help_panel=group)(function)


def _give_manners(group: typer.Typer) -> None:
    """Have every command of a group, and of the groups in it, be a `Command`."""
    for command in group.registered_commands:
        command.cls = Command
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        _give_manners(inner.typer_instance)


_give_manners(app)


def main() -> None:
    """The console command.

    Exit codes: 0 done, 1 the run or the program failed, 2 bad input, or a model or data that cannot be had at
    the start, 128 + its number where a signal stopped it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1.
    """
    try:
        with stopping.raised():
            _run()
    except KeyboardInterrupt as error:
        sys.exit(stopping.exit_code(error))
    except SystemExit as end:
        # typer makes a code of its own of an interruption, the same for all signals.
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
        except OSError:  # a full disk, say
            lead_nowhere(sys.stdout)
        sys.exit(code)


def _unexpected(error: Exception) -> tuple[str, str, int]:
    """A sentence, a hint and an exit code for an error that nobody foresaw."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("mrt5cli"):
        return f"the package {error.name!r} is not installed", "`pip check` lists what is missing", 1
    text = " ".join(str(error).split())
    if "InvalidCxxCompiler" in text:
        return (
            "torch.compile needs a C++ compiler on a CPU, and finds none",
            "install g++ or clang++, or name another one with the variable CXX",
            UserError.exit_code,
        )
    # On a CPU torch raises a RuntimeError like others.
    full = "OutOfMemory" in type(error).__name__ or "can't allocate memory" in text
    if full or isinstance(error, MemoryError):
        return "out of memory", "use smaller batches, shorter texts or a smaller model", 1
    if isinstance(error, OSError) and error.strerror:
        code = UserError.exit_code if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR) else 1
        return *of_the_system(error), code
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own = own_code.place_in(error)
    if own is not None:
        return f"{own}: {what}", "MRT5_DEBUG=1 shows how it got there", 1
    return what, "this is a bug in mrt5cli; MRT5_DEBUG=1 shows where it happened", 1


def _mistyped(error: Any) -> Exception:
    """The end when a command line is none, told like every error; where it is empty, typer shows help."""
    if error.ctx is not None and error.message == error.ctx.get_help():
        return error
    message = " ".join(error.format_message().split())
    message = message.replace("Value error, ", "")  # pydantic's, which checks for typer
    shown = None if error.ctx is None else f"`{error.ctx.command_path} --help` shows what it takes"
    _report(message[:1].lower() + message[1:].rstrip("."), shown)
    return typer.Exit(UserError.exit_code)


def _closed_pipe() -> typer.Exit:
    """The end when nobody reads on."""
    lead_nowhere(sys.stdout)
    return typer.Exit(CLOSED_PIPE)


def _check_place() -> None:
    """Refuse to work in a folder that is gone, where libraries fail in ways of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder is gone: it was removed or moved", "cd to another one") from None


def _report(message: str, hint: str | None = None) -> None:
    """Print a problem to stderr; with MRT5_DEBUG=1, after the traceback of the exception at hand."""
    if os.environ.get("MRT5_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    for label, text in (("error:", message), ("hint:", hint)):
        if text:
            rest = wrapped(f"{label} {text}", columns(sys.stderr)).removeprefix(label)
            colour = "red" if label == "error:" else None
            bold = typer.style(label, fg=colour, bold=True) if sys.stderr.isatty() else label
            print(bold + rest, file=sys.stderr)
