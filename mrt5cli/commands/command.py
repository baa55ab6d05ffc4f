"""What all commands share: the layout of their help, and assignments without `--set`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from typer.core import TyperCommand

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=", re.ASCII)
"""The beginning of an assignment to a recipe key; see `recipe.loading.KEY`."""
_EXAMPLE = re.compile(r"\s+(echo .* \| )?mrt5 ")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")


class Command(TyperCommand):
    """A command whose examples can be pasted, and which reads `a.b=c` as `--set a.b=c`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            hidden: Any = param
            if param.param_type_name == "argument":
                # The metavar is enough; typer would add the Python type.
                hidden.display_type_rich = lambda ctx: None
            # Bounds such as 1<=x<=100000000000 only reject nonsense; the error message names them.
            hidden._get_number_range_help_str = lambda: None
            if isinstance(hidden.show_default, str):  # typer would add parentheses
                hidden._get_default_string = lambda default=hidden.show_default, **_: default

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # typer puts braces around required arguments: {RUN}.
        return [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        formatter.write_paragraph()
        with formatter.indentation():
            width = formatter.width - formatter.current_indent
            formatter.write_text(
                "\n\n".join(
                    f"\b\n{pasteable(text, width)}" if _EXAMPLE.match(text) else text for text in paragraphs
                )
            )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any("--set" in param.opts for param in self.params):
            args = list(self._settings_named(args))
        return super().parse_args(ctx, args)

    def _settings_named(self, args: Sequence[str]) -> Iterator[str]:
        """The words, with `--set` before each assignment that is neither an option's value nor a file."""
        valued = {name for param in self.params if not getattr(param, "is_flag", True) for name in param.opts}
        words = iter(args)
        for word in words:
            if ASSIGNMENT.match(word) and not os.path.exists(word):
                yield "--set"
            yield word
            if word == "--":
                yield from words
            elif word in valued:
                yield from islice(words, 1)


def pasteable(line: str, width: int) -> str:
    """A shell command wrapped to `width` characters where its words permit, with `\\` at the line ends.

    An option and its value stay on one line.
    """
    indent = " " * (len(line) - len(line.lstrip()))
    parts: list[str] = []
    for word in _WORD.findall(line):
        follows = parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-")
        parts[-1:] = [f"{parts[-1]} {word}"] if follows else [*parts[-1:], word]
    lines = [indent + parts[0]]
    for place, part in enumerate(parts[1:], 2):
        room = width - (0 if place == len(parts) else 2)
        if len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(f"{indent}    {part}")
    return "\n".join(lines)
