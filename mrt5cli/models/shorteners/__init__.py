"""Shorteners: modules between two encoder blocks that leave fewer positions.

README.md works through adding one.
"""

from __future__ import annotations

from mrt5cli.models.shorteners.base import Reference, Sequences, Shortener, Shortening
from mrt5cli.models.shorteners.boundary_predictor import BoundaryPredictor
from mrt5cli.models.shorteners.convolution import Convolution
from mrt5cli.models.shorteners.delete_gate import DeleteGate
from mrt5cli.models.shorteners.fixed import FixedGate
from mrt5cli.models.shorteners.gate import Gate
from mrt5cli.models.shorteners.hnet import Router
from mrt5cli.models.shorteners.quantile_gate import QuantileGate
from mrt5cli.models.shorteners.random import RandomGate

__all__ = ["SHORTENERS", "WITHOUT_MODULE", "Gate", "Reference", "Sequences", "Shortener", "Shortening"]

SHORTENERS: dict[str, type[Shortener]] = {}
"""`deletion_type` -> shortener."""
WITHOUT_MODULE = ("none", "source_removed")
"""Values of `deletion_type` that need no module between two blocks."""


def register(shortener: type[Shortener]) -> type[Shortener]:
    """Register a shortener under its deletion types; usable as a decorator.

    Raises:
        ValueError: one of its deletion types is taken.
    """
    for deletion_type in shortener.deletion_types:
        if deletion_type in (*WITHOUT_MODULE, *SHORTENERS):
            raise ValueError(f"a shortener with deletion_type {deletion_type!r} exists already")
    SHORTENERS.update(dict.fromkeys(shortener.deletion_types, shortener))
    return shortener


for _shortener in (DeleteGate, RandomGate, FixedGate, BoundaryPredictor, Convolution, Router, QuantileGate):
    register(_shortener)
