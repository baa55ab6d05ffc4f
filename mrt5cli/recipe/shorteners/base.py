"""What every kind of shortener says of itself without torch: its settings, its names, what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field

from mrt5cli.recipe.section import LayerIndex, Section

SHARED = {"layer": "delete_gate_layer", "per": "shortening_per", "scale": "sigmoid_mask_scale"}
"""Settings that many kinds have -> the fields of `MrT5Config` that they are."""


class Configuration(Protocol):
    """A model's configuration: `MrT5Config`, or anything else with its fields."""

    @property
    def deletion_type(self) -> str: ...

    def __getattribute__(self, name: str, /) -> Any: ...


class ShortenerSection(Section):
    """A recipe's `model.shortener`: the settings of one kind, and all that is said about it.

    The module of the same name in `mrt5cli.models.shorteners` computes it. The sentences below follow the
    name of a model, or stand alone in a table.

    Attributes:
        deletion_types: what a configuration calls it; several where a setting chooses.
        fields: its own settings -> the fields of `MrT5Config` that they are; see `config_names`.
        paper_name: what the paper calls such a model.
        called: what it is called in a sentence, after "a" or "the".
        about: what a model with it is, for its card.
        baseline: the paper sets it beside MrT5, and claims that MrT5 loses less.
        gates: marks bytes, softly in training, and removes them in hard deletion.
        pools: makes several bytes one position, in training too.
        reads_source: False where the encoder sees nothing of the source.
        has_weights: is trained, so that a checkpoint may bring it.
        shaped_by: the settings that decide which weights fit into it.
        steered: a controller's alpha sets how much it deletes.
        refuses_threshold: why a threshold has no meaning, after the model's name; None where it has one.
            Settings may stand in it in braces.
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
        """The settings that a model's configuration stands for; what it does not hold has its default.

        Unchecked: a configuration may hold what no recipe would.
        """
        settings = {key: getattr(config, field) for key, field in cls.config_names().items()}
        # pydantic's plugin for mypy knows the type of this class alone.
        return cls.model_construct(None, kind=cls.kinds()[0], **settings)  # type: ignore[return-value]

    @classmethod
    def config_names(cls) -> dict[str, str]:
        """The settings that `MrT5Config` holds -> its fields, those that many kinds have among them."""
        return {key: SHARED[key] for key in cls.model_fields if key in SHARED} | dict(cls.fields)

    def config_fields(self) -> dict[str, Any]:
        """The fields of `MrT5Config` that these settings are."""
        values = {field: getattr(self, key) for key, field in self.config_names().items()}
        return {"deletion_type": self.deletion_types[0], **values}

    # --- in words -------------------------------------------------------------------------------------------

    def phrase(self) -> str:
        """What it does, in a few words, without its place."""
        return self.called

    def placed(self) -> str:
        """What it does and where."""
        layer = getattr(self, "layer", None)
        return self.phrase() if layer is None else f"{self.phrase()} before encoder block {layer}"

    def listed(self) -> str:
        """What a recipe with it trains, for the list of recipes: "CP stride 3"."""
        return self.paper_name

    def details(self) -> str:
        """What else a model's card says of it, after its place; for settings of a model's configuration."""
        if getattr(self, "per", "row") == "batch":
            return ", as the reference does, over the whole batch"
        return ""

    # --- what it means for others ---------------------------------------------------------------------------

    def beyond_training(self, rate: float) -> str | None:
        """Why it has not learned a deletion rate, 0 to 1, after "the model"; None where it may have."""
        return None

    @property
    def own_loss_per_position(self) -> bool:
        """Whether its own loss is a mean over a batch's real source positions; else it is one over rows."""
        return False

    @property
    def own_loss(self) -> str | None:
        """The name of the term it adds to the training loss itself, or None."""
        return None

    @property
    def labels(self) -> str | None:
        """What it is taught by, a key of `training.boundaries.LABELLERS`; None where it needs no labels."""
        return None

    @property
    def window(self) -> int | None:
        """Positions that always become one, or None."""
        return None

    @property
    def lowest_gate_value(self) -> float:
        """Below it lies no gate value; for shorteners with a threshold."""
        return getattr(self, "scale", float("-inf"))

    def share_deleted(self, target: float | None) -> float:
        """Share of positions that are expected to be deleted, given the controller's target."""
        return 0.0

    def smallest(self) -> dict[str, int]:
        """The most that a smoke run leaves of its settings that take time or room."""
        return {}


class Placed(ShortenerSection):
    """A shortener that stands between two encoder blocks."""

    layer: LayerIndex = Field(
        3, description="it sits before this 0-based encoder block, i.e. after that many layers"
    )
