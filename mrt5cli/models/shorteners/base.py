"""The interface of shorteners: `Sequences` in, a `Shortening` out, whatever the kind.

Legend: B batch, L input bytes, S positions after shortening, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config


@dataclass
class Sequences:
    """The input of a shortener.

    Attributes:
        states: (B, L, D).
        mask: (B, L) attention mask, or None.
        padding: (B, L) bool, True at padding.
        input_ids: (B, L), or None if the model was called with embeddings.
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
        """(B, L) bool, positions that contain input and are not hidden."""
        return ~self.padding if self.mask is None else ~self.padding & (self.mask != 0)


@dataclass(kw_only=True)
class Deletion:
    """What a shortener reports about its deletion; also part of the encoder's and the model's output.

    Attributes:
        delete_gate_output: (B, L) gate values from `scale` (delete) to 0 (keep), or None without a gate.
        delete_gate_logits: (B, L) or None.
        keep_mask: (B, L) bool, bytes that survive hard deletion; with pooling, the first byte of each pooled
            position; None if nothing shortens.
        kept_lengths: (B) int64, number of positions in each row; in soft deletion the number of bytes that
            hard deletion would keep.
        boundary_logits: (B, L), positive where the boundary predictor ends a segment, or None.
        auxiliary_loss: scalar that a shortener adds to the training loss, or None. In training mode the
            `loss` of a model's output includes it.
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


# Computed once, because torch.compile does not support `fields`.
ABOUT_DELETION = tuple(field.name for field in fields(Deletion))


@dataclass
class Shortening(Deletion):
    """The sequence after the shortener.

    Attributes:
        states: (B, S, D).
        mask: (B, S), 1 at positions that contain something; None if all do.
        positions: (B, S) original positions; None if nothing moved.
        self_mask: (B, S), the mask of later encoder blocks if it differs from `mask`, which happens only in
            the reference's modes that mix rows.
        key_gate: (B, S), to add to the attention scores of each key from here on, or None.
        mask_count: number of 1s in `mask`, if the host knows it without waiting for the device.
    """

    states: Tensor
    mask: Tensor | None
    positions: Tensor | None
    self_mask: Tensor | None = None
    key_gate: Tensor | None = None
    mask_count: int | None = None


@dataclass(frozen=True)
class Reference:
    """How the authors' code represents a shortener.

    Attributes:
        architecture: their model class.
        model_type: the `model_type` in their config.json.
        fields: fields with the same names in their configuration and ours.
        renamed: their names of other fields -> ours.
        fixed: our fields whose values their code cannot change.
    """

    architecture: str
    model_type: str
    fields: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


class Shortener(nn.Module):
    """A module between two encoder blocks that removes positions, or marks those to ignore.

    Attributes:
        deletion_types: its names in the configuration's `deletion_type`.
        name: the module's name in its block, and so in the names of its weights.
        normalises: whether its block has a norm `down_ln` for it, next to it, as in the reference.
        own_fields: configuration fields that exist for this shortener alone -> their defaults. Fields of the
            published checkpoints are declared in `MrT5Config` instead, and are part of every config.json.
        reference: how the authors' code represents it; None if it does not.
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
        """Whether its result for a row depends on the rest of the batch, in evaluation."""
        return not self.per_row

    @classmethod
    def default_threshold(cls, config: MrT5Config) -> float:
        """The deletion threshold of a configuration that does not set one."""
        return config.sigmoid_mask_scale / 2

    @classmethod
    def threshold_at(cls, config: MrT5Config, rate: float) -> float | None:
        """The threshold for a deletion rate, 0 to below 1; None if it has to be calibrated on text."""
        return None

    @classmethod
    def rate_at(cls, config: MrT5Config, threshold: float) -> float | None:
        """The deletion rate, 0 to 1, that a threshold requests: the inverse of `threshold_at`."""
        return None

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        """Raise ValueError if its fields of a configuration are not valid."""

    def initialise(self, config: MrT5Config) -> None:
        """Draw new weights through `transformers.initialization`, which leaves loaded ones unchanged."""

    def forward(self, given: Sequences, *, hard: bool, threshold: float | None) -> Shortening:
        """Shorten the sequences.

        Args:
            hard: remove positions (inference) instead of gating them (training). Pooling always removes.
            threshold: overrides the configured deletion threshold in hard deletion.

        Raises:
            ValueError: the shortener has no threshold, or an input that it needs is missing.
        """
        raise NotImplementedError


class Pooling(Shortener):
    """Base of the poolings, which replace several positions with one; subclasses implement `pool`.

    Attributes:
        hidden_once: later encoder blocks use the mask from before pooling, as in the reference, which masks
            its position bias in the first block and passes it on. This needs a block before the shortener,
            and a position bias.
    """

    normalises = True

    def __init__(self, config: MrT5Config) -> None:
        super().__init__()
        self.per_row = config.shortening_per == "row"
        inherits_bias = config.delete_gate_layer > 0 and not config.has_absolute_position_embeddings
        self.hidden_once = inherits_bias and not self.per_row

    def pool(self, given: Sequences, normed: Tensor) -> Shortening:
        """Pool the states; `normed` are the states after the norm, (B, L, D) in float32."""
        raise NotImplementedError

    def forward(self, given: Sequences, *, hard: bool, threshold: float | None) -> Shortening:
        refuse_threshold(threshold, f"a {self.deletion_types[0].replace('_', ' ')}")
        assert given.normed is not None  # because `normalises` is True
        return self.pool(given, given.normed)


def pooled(
    given: Sequences, states: Tensor, positions: Tensor, valid: Tensor, self_mask: Tensor | None
) -> Shortening:
    """The result of pooling to states (B, S, D), from the first byte of each slot, positions (B, S), and the
    slots that are not empty, valid (B, S) bool."""
    mask = valid.long()
    kept = mask.new_zeros(given.padding.shape).scatter_add(1, positions, mask).bool()
    return Shortening(states, mask, positions, self_mask, kept_lengths=valid.sum(dim=1), keep_mask=kept)


def refuse_threshold(threshold: float | None, what: str) -> None:
    """Raise ValueError if a threshold is passed to a shortener without one."""
    if threshold is not None:
        raise ValueError(f"{what} has no deletion threshold; leave out deletion_threshold")


def norm_in_float32(norm: T5LayerNorm | nn.LayerNorm, states: Tensor) -> Tensor:
    """`norm(states)` (B, L, D) in float32; T5's own norm rounds to the precision of the weights.

    The result decides what is deleted and where segments end, so it must not depend on precision.
    """
    states, shape, weight = states.float(), states.shape[-1:], norm.weight.float()
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(states, shape, weight, norm.bias.float(), norm.eps)
    return F.rms_norm(states, shape, weight, norm.variance_epsilon)


def check_share(config: MrT5Config, name: str) -> None:
    """Raise ValueError if a field is not a fraction from 0 to 1."""
    if not 0 <= getattr(config, name) <= 1:
        raise ValueError(f"{name} is {getattr(config, name)}; expected a fraction from 0 to 1")
