"""The base class of a shortener's settings, names and requirements, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field

from mrt5cli.recipe.section import LayerIndex, Section

SHARED = {"layer": "delete_gate_layer", "per": "shortening_per", "scale": "sigmoid_mask_scale"}
"""Settings shared by many kinds, mapped to the fields of `MrT5Config`."""


class Configuration(Protocol):
    """A model's configuration: `MrT5Config`, or any object with its fields."""

    @property
    def deletion_type(self) -> str: ...

    def __getattribute__(self, name: str, /) -> Any: ...


class ShortenerSection(Section):
    """A recipe's `model.shortener`: the settings of one kind and everything that describes it.

    The module of the same name in `mrt5cli.models.shorteners` computes it. The texts below follow the name of
    a model in a sentence, or stand alone in a table.

    Attributes:
        deletion_types: its `deletion_type` in configurations; several if a setting selects one.
        fields: its own settings, mapped to the fields of `MrT5Config`; see `config_names`.
        paper_name: the paper's name for such a model.
        called: its name in a sentence, after "a" or "the".
        about: description of a model with it, for the model card.
        baseline: whether the paper compares MrT5 with it and claims that MrT5 loses less.
        gates: whether it marks bytes, softly in training, and removes them in hard deletion.
        pools: whether it merges several bytes into one position, in training too.
        reads_source: False if the encoder sees nothing of the source.
        has_weights: whether it is trained, so that a checkpoint may contain it.
        shaped_by: the settings that determine the shapes of its weights.
        steered: whether a controller's alpha determines how much it deletes.
        refuses_threshold: why it has no threshold, after the model's name; None if it has one. May contain
            settings in braces.
        refuses_inspection: why there are no deleted bytes to show, after the model's name; None if there are.
    """

    deletion_types: ClassVar[tuple[str, ...]]
    fields: ClassVar[Mapping[str, str]] = {}
    paper_name: ClassVar[str]
    called: ClassVar[str]
    about: ClassVar[str]
    baseline: ClassVar[bool] = False
    gates: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    reads_source: ClassVar[bool] = True
    has_weights: ClassVar[bool] = False
    shaped_by: ClassVar[tuple[str, ...]] = ()
    steered: ClassVar[bool] = False
    refuses_threshold: ClassVar[str | None] = None
    refuses_inspection: ClassVar[str | None] = None

    kind: str

    @classmethod
    def of_config(cls, config: Configuration) -> Self:
        """The settings that correspond to a model's configuration; others have their defaults.

        They are not validated: a configuration may have values that no recipe allows.
        """
        settings = {key: getattr(config, field) for key, field in cls.config_names().items()}
        # pydantic's mypy plugin knows only the type of this class.
        return cls.model_construct(None, kind=cls.kinds()[0], **settings)  # type: ignore[return-value]

    @classmethod
    def config_names(cls) -> dict[str, str]:
        """Own and shared settings that `MrT5Config` contains, mapped to its fields."""
        return {key: SHARED[key] for key in cls.model_fields if key in SHARED} | dict(cls.fields)

    def config_fields(self) -> dict[str, Any]:
        """The fields of `MrT5Config` for these settings."""
        values = {field: getattr(self, key) for key, field in self.config_names().items()}
        return {"deletion_type": self.deletion_types[0], **values}

    # --- descriptions ---------------------------------------------------------------------------------------

    def phrase(self) -> str:
        """A short description without its position."""
        return self.called

    def placed(self) -> str:
        """A short description with its position."""
        layer = getattr(self, "layer", None)
        return self.phrase() if layer is None else f"{self.phrase()} before encoder block {layer}"

    def listed(self) -> str:
        """Its entry in the list of recipes, such as "CP stride 3"."""
        return self.paper_name

    def details(self) -> str:
        """Further details for a model card, after its position; for settings from a model's configuration."""
        if getattr(self, "per", "row") == "batch":
            return ", over the entire batch as in the reference"
        return ""

    # --- what it means for others ---------------------------------------------------------------------------

    def beyond_training(self, rate: float) -> str | None:
        """Why it cannot have learned a deletion rate (0 to 1), after "the model"; None if it may have."""
        return None

    @property
    def own_loss_per_position(self) -> bool:
        """Whether its own loss averages over a batch's real source positions rather than over rows."""
        return False

    @property
    def own_loss(self) -> str | None:
        """The name of the term that it adds to the training loss, or None."""
        return None

    @property
    def labels(self) -> str | None:
        """Its source of labels, a key of `training.boundaries.LABELLERS`; None if it needs no labels."""
        return None

    @property
    def window(self) -> int | None:
        """The fixed number of positions that become one, or None."""
        return None

    @property
    def lowest_gate_value(self) -> float:
        """Lower bound of gate values, for shorteners with a threshold."""
        return getattr(self, "scale", float("-inf"))

    def share_deleted(self, target: float | None) -> float:
        """Expected fraction of deleted positions, given the controller's target (both 0 to 1)."""
        return 0.0

    def smallest(self) -> dict[str, int]:
        """Upper bounds that a smoke run applies to settings that take time or memory."""
        return {}


class Placed(ShortenerSection):
    """A shortener between two encoder blocks."""

    layer: LayerIndex = Field(3, description="number of encoder blocks before the shortener")
