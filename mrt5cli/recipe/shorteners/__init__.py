"""Settings and descriptions of every kind of shortener, without torch.

The modules that compute them are in `mrt5cli.models.shorteners`; its README.md explains how to add one.
"""

from __future__ import annotations

from mrt5cli import own_code
from mrt5cli.recipe.section import take_in_added_kinds
from mrt5cli.recipe.shorteners.base import Configuration as Configuration
from mrt5cli.recipe.shorteners.base import Placed as Placed
from mrt5cli.recipe.shorteners.base import ShortenerSection as ShortenerSection
from mrt5cli.recipe.shorteners.boundary_predictor import BoundaryPredictor as BoundaryPredictor
from mrt5cli.recipe.shorteners.convolution import Convolution as Convolution
from mrt5cli.recipe.shorteners.delete_gate import DeleteGate as DeleteGate
from mrt5cli.recipe.shorteners.fixed import FixedGate as FixedGate
from mrt5cli.recipe.shorteners.hnet import HNet as HNet
from mrt5cli.recipe.shorteners.nothing import NoShortener as NoShortener
from mrt5cli.recipe.shorteners.nothing import SourceRemoved as SourceRemoved
from mrt5cli.recipe.shorteners.quantile_gate import QuantileGate as QuantileGate
from mrt5cli.recipe.shorteners.random import RandomGate as RandomGate

SHORTENERS: list[type[ShortenerSection]] = [
    NoShortener,
    DeleteGate,
    RandomGate,
    FixedGate,
    BoundaryPredictor,
    Convolution,
    HNet,
    QuantileGate,
    SourceRemoved,
]
"""All kinds, in the order in which messages list them."""


def register(section: type[ShortenerSection]) -> type[ShortenerSection]:
    """Register a kind for recipes; usable as a decorator.

    Raises:
        ValueError: its kind, or one of its deletion types, is taken.
    """
    for other in SHORTENERS:
        taken = {*other.kinds(), *other.deletion_types} & {*section.kinds(), *section.deletion_types}
        if taken:
            whose = f"{other.__name__}{own_code.brought_by(other.__module__)}"
            raise ValueError(f"the shortener {min(taken)!r} exists already: {whose}")
    SHORTENERS.append(section)
    take_in_added_kinds()
    return section


def of_type(deletion_type: str) -> type[ShortenerSection]:
    """The kind with the given `deletion_type` of a model's configuration.

    Raises:
        ValueError: no shortener has it.
    """
    for section in SHORTENERS:
        if deletion_type in section.deletion_types:
            return section
    raise ValueError(
        f"no shortener has deletion_type {deletion_type!r}; a custom one needs --code FILE or an installed "
        "package"
    )


def of_config(config: Configuration) -> ShortenerSection:
    """The recipe settings that correspond to a model's configuration."""
    return of_type(config.deletion_type).of_config(config)
