"""MrT5 toolkit: train, evaluate and inspect byte-level models that delete the bytes they do not need.

The names in `__all__` are the public interface, documented in mrt5cli/API.md. They are imported on first use,
because most of them import torch, which takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrt5cli.evaluation.request import evaluate
    from mrt5cli.generation.generate import generate
    from mrt5cli.generation.predictor import Predictor
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, load
    from mrt5cli.training.pretrain import pretrain
    from mrt5cli.training.rate_controller import DeletionRateController

__version__ = "0.1.0"

__all__ = [
    "DeletionRateController",
    "MrT5Config",
    "MrT5ForConditionalGeneration",
    "Predictor",
    "evaluate",
    "generate",
    "load",
    "pretrain",
]

_HOMES = {
    "DeletionRateController": "training.rate_controller",
    "MrT5Config": "models",
    "MrT5ForConditionalGeneration": "models",
    "Predictor": "generation.predictor",
    "evaluate": "evaluation.request",
    "generate": "generation.generate",
    "load": "models",
    "pretrain": "training.pretrain",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
