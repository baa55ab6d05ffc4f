"""The `mrt5` command: the Typer app, its commands, and the one place where errors become sentences."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)


@app.callback()
def _mrt5() -> None:
    """Train, evaluate and inspect byte-level models that delete the bytes they do not need."""


def main() -> None:
    app()
