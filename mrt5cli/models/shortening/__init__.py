"""Shorteners: what can stand between two encoder blocks and leave fewer positions."""

from __future__ import annotations

from collections.abc import Callable

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.shortening.base import Shortener, Shortening
from mrt5cli.models.shortening.baselines import RandomGate
from mrt5cli.models.shortening.gate import DeleteGate, Gate

SHORTENERS: dict[str, Callable[[MrT5Config], Shortener]] = {
    "scaled_sigmoid": DeleteGate,
    "log_sigmoid": DeleteGate,
    "random": RandomGate,
}
"""`deletion_type` and the shortener it means; "none" means none."""

__all__ = ["SHORTENERS", "DeleteGate", "Gate", "RandomGate", "Shortener", "Shortening"]
