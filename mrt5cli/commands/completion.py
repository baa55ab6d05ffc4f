"""Shell completion for `mrt5`: recipes, runs, tasks, devices, recipe keys and their values.

Completion must be instant, so nothing here imports torch, or reads more than file names.
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
"""The environment variable with which bash asks for completions, and its value; see `answer_bash`."""
BREAKS = re.compile("[:=@]+")
"""A separator at which bash splits words."""


def of(metavar: str | None) -> Callable[..., list[str]] | None:
    """The function that completes values of a metavar; None leaves completion to the shell."""
    return _FOUND_BY.get(metavar or "")


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Run and checkpoint directories, also inside other folders; after an @, the checkpoints of a run. For
    `mrt5 runs`, names below runs/ instead of checkpoints."""
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
    """Shipped recipes and YAML files; if none match, recipe keys to set. With --continue-for, runs."""
    if ctx.params.get("continue_for"):
        return runs(ctx, incomplete)
    from mrt5cli.recipe.loading import shipped

    begun = escape(incomplete)
    files = (file for pattern in ("*.y*ml", "*/*.y*ml") for file in sorted(glob(f"{begun}{pattern}")))
    found = _printable([*shipped(), *files], incomplete)
    takes_keys = any("--set" in param.opts for param in ctx.command.params)
    return found or (keys(incomplete) if takes_keys else [])


def tasks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of tasks, and recipes."""
    from mrt5cli.recipe.tasks import kinds

    return [*_printable(kinds(), incomplete), *recipes(ctx, incomplete)]


def suites(incomplete: str) -> list[str]:
    """Shipped suites; the shell completes files."""
    from mrt5cli.suite.suites import suite_names

    return _printable(suite_names(), incomplete)


def devices(incomplete: str) -> list[str]:
    """Devices, with the GPUs that the driver lists; after a comma, another device."""
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
    """Recipe keys with an equals sign; for a single match, its values as far as they are known."""
    name, equals, _ = incomplete.partition("=")
    known = {path: found for path, found in _keys().items() if "[]" not in path}
    matching = [name] * (name in known) if equals else _printable(known, name)
    if len(matching) > 1:
        # Leave out sections, because their keys are in the list.
        return [f"{path}=" for path in matching if not any(other.startswith(f"{path}.") for other in known)]
    found = [f"{path}={value}" for path in matching for value in _values(known[path])]
    if not equals:
        # A second answer, because after a single one the shell ends the word with a space.
        found = [*(f"{path}=" for path in matching), *(found or [f"{path}=..." for path in matching])]
    return _printable(found, incomplete)


def _keys() -> dict[str, list[Key]]:
    """The keys of a recipe by path, from all kinds of sections with a key at that path."""
    from mrt5cli.recipe import words

    found: dict[str, list[Key]] = {}
    for key in words.all_keys():
        found.setdefault(key.path, []).append(key)
    return found


def _values(found: Iterable[Key]) -> list[str]:
    """The values that the schemas of a key list, and its defaults."""

    def of_schema(node: Node) -> Iterator[Any]:
        for option in node.get("anyOf", [node]):
            yield from option.get("enum", [option["const"]] if "const" in option else [])
            yield from (True, False) if option.get("type") == "boolean" else ()
        if isinstance(node.get("default", ""), (bool, int, float, str)) and "default" in node:
            yield node["default"]

    values = [value for key in found for value in of_schema(key.schema)]
    return list(dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values))


def _printable(names: Iterable[str], begun: str = "") -> list[str]:
    """The distinct names with this beginning, without names that contain line breaks."""
    return [name for name in dict.fromkeys(names) if name.startswith(begun) and name.isprintable()]


_FOUND_BY: dict[str, Callable[..., list[str]]] = {
    **{"RUN": runs, "RUN[@STEP]": runs, "SOURCE": runs, "RECIPE": recipes, "TASK": tasks, "SUITE": suites},
    **{"TOPIC": doc_topics, "DEVICE": devices, "DEVICE,...": devices, "KEY=VALUE": keys, "KEY": key_names},
}


# --- bash ---------------------------------------------------------------------------------------------------


def answer_bash(app: Callable[..., Any]) -> None:
    """Answer a completion request of bash, which splits words at colons and equals signs.

    bash passes `cuda:1` as three words, and inserts an answer unquoted in place of the last one. typer
    expects complete words, and does not quote its answers.
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
    """The complete words, and the part of the last word's value that precedes the inserted answer."""
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
    kept = kept.removesuffix("@")  # bash splits there too, but replaces the @ with the answer
    if kept.startswith("-"):
        kept = kept.partition("=")[2]  # for --device=cuda:1, typer answers with the value alone
    return words, _unquoted(kept)


def _unquoted(word: str) -> str:
    """A word without its quotes, the last of which may be missing."""
    for rest in ("", "'", '"', "\\"):
        try:
            return "".join(shlex.split(word + rest))
        except ValueError:  # a quote is open
            continue
    return word
