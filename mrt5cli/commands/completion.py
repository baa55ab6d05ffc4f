"""What a shell completes behind `mrt5`: recipes, runs, tasks, devices, keys of a recipe and their values.

It answers at once, so nothing here imports torch, or reads more than which files there are.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mrt5cli import own_code, runtime

if TYPE_CHECKING:
    from mrt5cli.recipe.words import Key, Node

ASKED_BY_BASH = "_MRT5_COMPLETE", "complete_bash"
"""The variable by which bash asks, and its value; see `answer_bash`."""
BREAKS = re.compile("[:=@]+")
"""A word that bash has cut out of another one."""


def of(metavar: str | None) -> Callable[..., list[str]] | None:
    """The function that completes what a metavar stands for; None leaves that to the shell."""
    return _FOUND_BY.get(metavar or "")


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Directories of runs, and of weights; in a folder that is neither, those in it. Behind an @ the
    checkpoints of a run; where none is of one, as in `mrt5 runs`, names below runs/ are runs, too."""
    from mrt5cli.rundir import DEFAULT_FOLDER

    found = _printable(_models(incomplete, deeper=True))
    if ctx.command_path.split()[-2:-1] != ["runs"]:
        return found or _printable(_checkpoints(incomplete), incomplete)
    below = f"{DEFAULT_FOLDER}/"
    found = found or _printable(_models(below + incomplete, deeper=True))
    return [name if incomplete.startswith(below) else name.removeprefix(below) for name in found]


def _models(begun: str, *, deeper: bool) -> Iterator[str]:
    for folder in sorted(glob(f"{escape(begun)}*/")):
        if own_code.is_run(Path(folder)) or Path(folder, "config.json").is_file():
            yield folder.rstrip("/")
        elif deeper:
            yield from _models(folder, deeper=False)


def _checkpoints(begun: str) -> Iterator[str]:
    from mrt5cli.rundir import RunDir

    name, at, _ = begun.rpartition("@")
    run = RunDir(Path(name))
    if at and run.is_run:
        saved, best = run.saved_steps(), run.best_steps()
        words = [f"step-{step}" for step in saved] + ["last"] * bool(saved) + ["best"] * bool(best)
        yield from (f"{name}@{word}" for word in words)


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Shipped recipes and files of YAML; where there are none, the keys that may be set beside a recipe. What
    trains on is a run."""
    if ctx.params.get("continue_for"):
        return runs(ctx, incomplete)
    from mrt5cli.recipe.loading import shipped

    begun = escape(incomplete)
    files = (file for pattern in ("*.y*ml", "*/*.y*ml") for file in sorted(glob(f"{begun}{pattern}")))
    found = _printable([*shipped(), *files], incomplete)
    takes_keys = any("--set" in param.opts for param in ctx.command.params)
    return found or (keys(incomplete) if takes_keys else [])


def tasks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Kinds of tasks, and recipes."""
    from mrt5cli.recipe.tasks import kinds

    return [*_printable(kinds(), incomplete), *recipes(ctx, incomplete)]


def suites(incomplete: str) -> list[str]:
    """Shipped suites; files are left to the shell."""
    from mrt5cli.suite.suites import suite_names

    return _printable(suite_names(), incomplete)


def devices(incomplete: str) -> list[str]:
    """Devices, the GPUs as their driver counts them; behind a comma, another one."""
    before, comma, begun = incomplete.rpartition(",")
    gpus = len(list(runtime.DRIVER.glob("gpus/*")))
    known = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    return [f"{before}{comma}{name}" for name in _printable(known, begun)]


def doc_topics(incomplete: str) -> list[str]:
    """Topics of the documentation."""
    from mrt5cli.documentation import topics

    return _printable(topics(), incomplete)


def key_names(incomplete: str) -> list[str]:
    """Sections and keys of a recipe."""
    return _printable((path.replace("[]", "") for path in _keys()), incomplete)


def keys(incomplete: str) -> list[str]:
    """Keys of a recipe with an equals sign; of a single one, the values that it may have, as far as known."""
    name, equals, _ = incomplete.partition("=")
    known = {path: found for path, found in _keys().items() if "[]" not in path}
    matching = [name] * (name in known) if equals else _printable(known, name)
    if len(matching) > 1:
        # A section is no value, but for those who write it whole.
        return [f"{path}=" for path in matching if not any(other.startswith(f"{path}.") for other in known)]
    found = [f"{path}={value}" for path in matching for value in _values(known[path])]
    if not equals:
        # Were there but one answer, a shell would end the word with a space.
        found = [*(f"{path}=" for path in matching), *(found or [f"{path}=..." for path in matching])]
    return _printable(found, incomplete)


def _keys() -> dict[str, list[Key]]:
    """The keys of a recipe by their paths, with all sections that have one there."""
    from mrt5cli.recipe import words

    found: dict[str, list[Key]] = {}
    for key in words.all_keys():
        found.setdefault(key.path, []).append(key)
    return found


def _values(found: Iterable[Key]) -> list[str]:
    """What a key may be set to, as far as its schemas list it, and its defaults."""

    def of_schema(node: Node) -> Iterator[Any]:
        for option in node.get("anyOf", [node]):
            yield from option.get("enum", [option["const"]] if "const" in option else [])
            yield from (True, False) if option.get("type") == "boolean" else ()
        if isinstance(node.get("default", ""), (bool, int, float, str)) and "default" in node:
            yield node["default"]

    values = [value for key in found for value in of_schema(key.schema)]
    return list(dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values))


def _printable(names: Iterable[str], begun: str = "") -> list[str]:
    """The names that begin so, each once, and none that would be several lines to a shell."""
    return [name for name in dict.fromkeys(names) if name.startswith(begun) and name.isprintable()]


_FOUND_BY: dict[str, Callable[..., list[str]]] = {
    **{"RUN": runs, "RUN[@STEP]": runs, "SOURCE": runs, "RECIPE": recipes, "TASK": tasks, "SUITE": suites},
    **{"TOPIC": doc_topics, "DEVICE": devices, "DEVICE,...": devices, "KEY=VALUE": keys, "KEY": key_names},
}


# --- bash ---------------------------------------------------------------------------------------------------


def answer_bash(app: Callable[..., Any]) -> None:
    """Have typer answer bash, in whose way of asking colons and equals signs cut words, and spaces an answer.

    bash hands over `cuda:1` as three words, and takes for an answer what stands in place of the last one;
    what it is given is inserted as it is. typer reads the words as if none were cut, and quotes nothing.
    """
    cut = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
    words, kept = whole_words(cut)
    os.environ["COMP_WORDS"] = shlex.join(map(_unquoted, words))
    os.environ["COMP_CWORD"] = str(len(words) - 1)
    quoted = words[-1][:1] in ("'", '"')
    answer = io.StringIO()
    try:
        with redirect_stdout(answer):
            app()
    finally:
        for line in answer.getvalue().splitlines():
            line = line.removeprefix(kept)
            print(line if quoted else re.sub(r"([^\w@%+=:,./~-])", r"\\\1", line))


def whole_words(cut: list[str]) -> tuple[list[str], str]:
    """The words that were cut, and what of the last one's value stands before the place of an answer."""
    words = [cut[0]]
    kept, glued = "", False
    for word in cut[1:]:
        breaks = BREAKS.fullmatch(word) is not None and len(words) > 1
        if word and (breaks or glued):
            kept = words[-1] + word if breaks else words[-1]
            words[-1] += word
        else:
            words.append(word)
            kept = ""
        glued = breaks
    kept = kept.removesuffix("@")  # bash cuts there, too, and replaces it with what follows
    if kept.startswith("-"):
        kept = kept.partition("=")[2]  # of --device=cuda:1 typer answers with the value alone
    return words, _unquoted(kept)


def _unquoted(word: str) -> str:
    """A word as a shell reads it that may not be complete."""
    for rest in ("", "'", '"', "\\"):
        try:
            return "".join(shlex.split(word + rest))
        except ValueError:  # a quote is open
            continue
    return word
