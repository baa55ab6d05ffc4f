"""Draws the pictures of terminals that READMEs show, from what commands print in a real one.

    python tests/pictures.py training.svg 100 --at 'step 4../500' -- mrt5 pretrain quickstart

The command runs in tmux, in a window of the given width; its content when it ends, or when --at
matches, becomes a self-contained SVG in light colors.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROWS = 150
INK = (27, 31, 36)
COLOURS = [(179, 40, 40), (0, 115, 79), (154, 103, 0), (11, 92, 173), (130, 80, 160), (0, 110, 120)]
LIGHT = TerminalTheme((255, 255, 255), INK, [INK, *COLOURS, (95, 104, 114)])
SVG = """<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}"
xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", "Noto Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<g transform="translate({terminal_x}, 4)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def captured(command: list[str], columns: int, at: str | None, seconds: int = 600) -> str:
    """The content of a terminal of `columns` columns, with its colors.

    Raises:
        TimeoutError: nothing matched, or the command has not ended.
    """

    def tmux(*words: str) -> str:
        return subprocess.run(
            ["tmux", "-L", "pictures", *words], capture_output=True, text=True, check=True
        ).stdout

    tmux("new-session", "-d", "-x", str(columns), "-y", str(ROWS), f"{shlex.join(command)}; sleep {seconds}")
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.2)
            pane = tmux("capture-pane", "-epJ")
            ended = tmux("display-message", "-p", "#{pane_current_command}").strip() == "sleep"
            if re.search(at, Text.from_ansi(pane).plain) if at else ended:
                return pane
        raise TimeoutError(f"{shlex.join(command)} did not print what --at matches")
    finally:
        tmux("kill-server")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("columns", type=int)
    parser.add_argument("--at", help="capture when this pattern matches instead of at the end")
    parser.add_argument("--lines", type=int, help="number of lines to keep, from the first")
    parser.add_argument("command", nargs="+")
    wanted = parser.parse_args()
    lines = captured(wanted.command, wanted.columns, wanted.at).rstrip().split("\n")
    console = Console(record=True, width=wanted.columns, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {shlex.join(wanted.command)}", style="bold"))
    for line in lines[: wanted.lines]:
        console.print(Text.from_ansi(line), soft_wrap=True)
    svg = console.export_svg(theme=LIGHT, code_format=SVG, unique_id="t")
    wanted.picture.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
