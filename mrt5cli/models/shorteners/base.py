"""What every shortener takes and gives. The encoder continues with a `Shortening`, whoever made it.

Legend: B batch, L input bytes, S positions after shortening, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

if TYPE_CHECKING:  # a configuration knows its shorteners
    from mrt5cli.models.config import MrT5Config


@dataclass
class Sequences:
    """What a shortener is given.

    Attributes:
        states: (B, L, D).
        mask: (B, L) attention mask, or None.
        padding: (B, L) bool, positions that hold no input.
        input_ids: (B, L), or None when the model was given embeddings.
        normed: (B, L, D) in float32, `states` after the norm of shorteners that have one, or None.
        segment_ends: (B, L) bool, True at the last byte of each segment, or None.
    """

    states: Tensor
    mask: Tensor | None
    padding: Tensor
    input_ids: Tensor | None
    normed: Tensor | None = None
    segment_ends: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """(B, L) bool, positions that hold input and are not hidden."""
        return ~self.padding if self.mask is None else ~self.padding & (self.mask != 0)


@dataclass(kw_only=True)
class Deletion:
    """What is known about a deletion, from the shortener to the output of the model.

    Attributes:
        delete_gate_output: (B, L) gate values from `scale` (delete) to 0 (keep), or None without a gate.
        delete_gate_logits: (B, L) or None.
        keep_mask: (B, L) bool, bytes that stay under hard deletion, or None where nothing shortens. Where
            bytes are pooled, the first of those that became one.
        kept_lengths: (B) int64, positions that hold something; in soft deletion the bytes a hard deletion
            would keep.
        boundary_logits: (B, L), positive where the boundary predictor ends a segment, or None.
        auxiliary_loss: scalar that a shortener adds to the training loss, or None. In training mode it is in
            the `loss` of a model's output.
    """

    delete_gate_output: Tensor | None = None
    delete_gate_logits: Tensor | None = None
    keep_mask: Tensor | None = None
    kept_lengths: Tensor | None = None
    boundary_logits: Tensor | None = None
    auxiliary_loss: Tensor | None = None

    def deletion(self) -> dict[str, Any]:
        """These fields alone."""
        return {name: getattr(self, name) for name in ABOUT_DELETION}


# Read once: torch.compile cannot look fields up.
ABOUT_DELETION = tuple(field.name for field in fields(Deletion))


@dataclass
class Shortening(Deletion):
    """The sequence after the shortener.

    Attributes:
        states: (B, S, D).
        mask: (B, S), 1 where a position holds something, or None when all do.
        positions: (B, S) original positions, or None when nothing moved.
        self_mask: (B, S), what later encoder blocks attend to, where that is not `mask`: only in the
            reference's ways that mix rows.
        key_gate: (B, S) to add to the attention scores of each key from here on, or None.
        mask_count: how many 1s `mask` has, if the host knows without asking the device.
    """

    states: Tensor
    mask: Tensor | None
    positions: Tensor | None
    self_mask: Tensor | None = None
    key_gate: Tensor | None = None
    mask_count: int | None = None


@dataclass(frozen=True)
class Reference:
    """How the authors' code holds a shortener.

    Attributes:
        architecture: its class of models.
        model_type: what its config.json is called.
        fields: of our configuration, that its own has under the same names.
        renamed: its names of other fields -> ours.
        fixed: fields of ours whose value its code cannot change.
    """

    architecture: str
    model_type: str
    fields: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


class Shortener(nn.Module):
    """A module between two encoder blocks that leaves fewer positions, or marks those to ignore.

    Attributes:
        deletion_types: what a configuration calls it, in `deletion_type`.
        name: of the module in its block; weights carry this name in checkpoints.
        normalises: whether its block has a norm `down_ln` for it, beside it, as the reference's do.
        own_fields: of the configuration, which are there for this shortener alone, with their defaults. Those
            of the published checkpoints are declared in `MrT5Config` and stand in every config.json.
        reference: how the authors' code holds it; None where they have nothing like it.
        per_row: see `shortening_per` of the configuration.
    """

    deletion_types: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "delete_gate"
    normalises: ClassVar[bool] = False
    own_fields: ClassVar[Mapping[str, Any]] = {}
    reference: ClassVar[Reference | None] = None
    per_row = True

    @property
    def sees_batch(self) -> bool:
        """Whether what it leaves of a row in evaluation depends on the rest of the batch."""
        return not self.per_row

    @classmethod
    def default_threshold(cls, config: MrT5Config) -> float:
        """Gate value that parts deleted from kept bytes where the configuration does not say."""
        return config.sigmoid_mask_scale / 2

    @classmethod
    def threshold_at(cls, config: MrT5Config, rate: float) -> float | None:
        """The threshold that deletes a share, 0 to below 1, of any text; None where the text decides."""
        return None

    @classmethod
    def rate_at(cls, config: MrT5Config, threshold: float) -> float | None:
        """The deletion rate, 0 to 1, that a threshold requests: the inverse of `threshold_at`."""
        return None

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        """Raise ValueError if its fields of a configuration do not make sense."""

    def initialise(self, config: MrT5Config) -> None:
        """Draw new weights, by `transformers.initialization`, which spares those that were loaded."""

    def forward(self, given: Sequences, *, hard: bool, threshold: float | None) -> Shortening:
        """Shorten.

        Args:
            hard: really remove positions (inference), or only gate them (training). Pooling always removes.
            threshold: replaces the configured deletion threshold in hard deletion.

        Raises:
            ValueError: the shortener has no threshold, or needs something it was not given.
        """
        raise NotImplementedError


class Pooling(Shortener):
    """Base of the poolings, which make one position of several: subclasses say how in `pool`.

    Attributes:
        hidden_once: later encoder blocks see pooled positions by what was hidden before they were pooled, as
            in the reference, which masks its position bias in the first block and hands it on. A shortener
            before that block comes first, and learned positions leave no bias to hand on.
    """

    normalises = True

    def __init__(self, config: MrT5Config) -> None:
        super().__init__()
        self.per_row = config.shortening_per == "row"
        inherits_bias = config.delete_gate_layer > 0 and not config.has_absolute_position_embeddings
        self.hidden_once = inherits_bias and not self.per_row

    def pool(self, given: Sequences, normed: Tensor) -> Shortening:
        """What `pooled` makes of it; `normed` are the states after the norm, (B, L, D) in float32."""
        raise NotImplementedError

    def forward(self, given: Sequences, *, hard: bool, threshold: float | None) -> Shortening:
        refuse_threshold(threshold, f"a {self.deletion_types[0].replace('_', ' ')}")
        assert given.normed is not None  # this class normalises
        return self.pool(given, given.normed)


def pooled(
    given: Sequences, states: Tensor, positions: Tensor, valid: Tensor, self_mask: Tensor | None
) -> Shortening:
    """What pooling leaves: states (B, S, D), positions (B, S) of the first byte of each slot, and which slots
    hold something, (B, S) bool."""
    mask = valid.long()
    kept = mask.new_zeros(given.padding.shape).scatter_add(1, positions, mask).bool()
    return Shortening(states, mask, positions, self_mask, kept_lengths=valid.sum(dim=1), keep_mask=kept)


def refuse_threshold(threshold: float | None, what: str) -> None:
    """Raise ValueError if a threshold is given to a shortener without one."""
    if threshold is not None:
        raise ValueError(f"{what} has no deletion threshold; leave deletion_threshold out")


def norm_in_float32(norm: T5LayerNorm | nn.LayerNorm, states: Tensor) -> Tensor:
    """`norm(states)` (B, L, D) in float32, whatever the weights are: T5's own norm rounds to their precision.

    What is deleted, and where segments end, follows from it.
    """
    states, shape, weight = states.float(), states.shape[-1:], norm.weight.float()
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(states, shape, weight, norm.bias.float(), norm.eps)
    return F.rms_norm(states, shape, weight, norm.variance_epsilon)


def check_share(config: MrT5Config, name: str) -> None:
    """Raise ValueError if a field is no share of positions."""
    if not 0 <= getattr(config, name) <= 1:
        raise ValueError(f"{name} is a share of positions, 0 to 1, not {getattr(config, name)}")
