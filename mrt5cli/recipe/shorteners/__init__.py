"""Every kind of shortener that a recipe can name, and what is said of it; no torch.

The modules that compute them are in `mrt5cli.models.shorteners`, whose README.md says how to add one.
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
"""Every kind, in the order that messages list them."""


def register(section: type[ShortenerSection]) -> type[ShortenerSection]:
    """Make a kind known to recipes; also as a decorator.

    Raises:
        ValueError: another one has its kind, or one of its deletion types.
    """
    for other in SHORTENERS:
        taken = {*other.kinds(), *other.deletion_types} & {*section.kinds(), *section.deletion_types}
        if taken:
            whose = f"{other.__name__}{own_code.brought_by(other.__module__)}"
            raise ValueError(f"there is a shortener {min(taken)!r} already: {whose}")
    SHORTENERS.append(section)
    take_in_added_kinds()
    return section


def of_type(deletion_type: str) -> type[ShortenerSection]:
    """The kind that a configuration's `deletion_type` means.

    Raises:
        ValueError: none does.
    """
    for section in SHORTENERS:
        if deletion_type in section.deletion_types:
            return section
    raise ValueError(
        f"no kind of shortener has deletion_type {deletion_type!r}; a file given with --code may, or an "
        "installed package"
    )


def of_config(config: Configuration) -> ShortenerSection:
    """The settings that a model's configuration stands for."""
    return of_type(config.deletion_type).of_config(config)
