"""What all commands have in common: how their help looks, and what may be typed in place of `--set`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from typer.core import TyperCommand

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=", re.ASCII)
"""How what sets a key of a recipe begins; see `recipe.loading.KEY`."""
_EXAMPLE = re.compile(r"\s+(echo .* \| )?mrt5 ")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")


class Command(TyperCommand):
    """A command whose help can be read and pasted from, and which takes `a.b=c` for `--set a.b=c`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            hidden: Any = param
            if param.param_type_name == "argument":
                # A metavar says what it is; typer would add Python's type.
                hidden.display_type_rich = lambda ctx: None
            # Bounds keep nonsense out, and are no advice: 1<=x<=100000000000. Whoever is beyond is told.
            hidden._get_number_range_help_str = lambda: None

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
    """A command that can be pasted into a shell, in lines of at most `width` where its words permit.

    It is broken between words, an option staying with its value.
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
