"""The options that every command has which takes a model of the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub model. [default: main]", show_default=False)
]
NoPickle = Annotated[
    bool, typer.Option("--no-pickle", help="Refuse pickled weights, though no code in them is ever run.")
]
