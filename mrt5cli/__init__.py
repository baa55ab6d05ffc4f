"""MrT5 toolkit: train, evaluate and inspect byte-level models that delete the bytes they do not need."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrt5cli.generation.generate import generate as generate

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`generate`, which brings torch along, when somebody asks for it."""
    if name == "generate":
        return import_module("mrt5cli.generation.generate").generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
