"""Shorteners: what can stand between two encoder blocks and leave fewer positions."""

from __future__ import annotations

from collections.abc import Callable

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.shorteners.base import Sequences, Shortener, Shortening, norm_in_float32, refuse_threshold
from mrt5cli.models.shorteners.baselines import FixedGate, RandomGate
from mrt5cli.models.shorteners.boundary import BoundaryPredictor
from mrt5cli.models.shorteners.convolution import Convolution
from mrt5cli.models.shorteners.gate import DeleteGate, Gate, with_fillers_in_sight

SHORTENERS: dict[str, Callable[[MrT5Config], Shortener]] = {
    "scaled_sigmoid": DeleteGate,
    "log_sigmoid": DeleteGate,
    "random": RandomGate,
    "fixed": FixedGate,
    "boundary_predictor": BoundaryPredictor,
    "convolution": Convolution,
}
"""`deletion_type` and the shortener it means; the two types without one are "none" and "source_removed"."""

__all__ = [
    "SHORTENERS",
    "BoundaryPredictor",
    "Convolution",
    "DeleteGate",
    "FixedGate",
    "Gate",
    "RandomGate",
    "Sequences",
    "Shortener",
    "Shortening",
    "norm_in_float32",
    "refuse_threshold",
    "with_fillers_in_sight",
]
