"""Gates without parameters, the paper's baselines for what a learned gate must beat.

Legend: B batch, L input bytes.
"""

from __future__ import annotations

import string

import torch
from torch import Tensor

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.shorteners.gate import Gate

BYTE_OFFSET = 3
"""Byte b is token b + 3."""

SEPARATORS = ("\t\n " + string.punctuation).encode()
"""Bytes at which the fixed gate starts a word."""

RATE_SPREAD = 0.05
"""Standard deviation of the deletion rate that is drawn around the configured one."""


class RandomGate(Gate):
    """Deletes random bytes, in training and in evaluation.

    Per row, each row's rate is drawn around the configured one and applies to its non-pad bytes. In
    evaluation the draw is a function of the row's own bytes, so that a result neither changes from run to run
    nor depends on the batch. Per batch is the reference's law: one rate, positions drawn over the whole
    batch, padding included.
    """

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.rate = float(config.random_deletion_probability)
        self.per_row = config.shortening_per == "row"
        self.spares_padding = not self.per_row

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, None]:
        if not self.per_row:
            draw = self.rate + RATE_SPREAD * torch.randn(()).item()
            deleted = delete_over_batch(draw, padding)
        else:
            if input_ids is None and not self.training:
                raise ValueError(
                    "random deletion in evaluation draws from input_ids, so that results repeat themselves; "
                    "it cannot run on inputs_embeds"
                )
            deleted = self._delete_by_row(padding, None if self.training else input_ids)
        values = torch.zeros(padding.shape, dtype=torch.float32, device=padding.device)
        return values.masked_fill(deleted | padding, self.scale), None

    def _delete_by_row(self, padding: Tensor, input_ids: Tensor | None) -> Tensor:
        if input_ids is None:
            spread = torch.randn(padding.shape[0], device=padding.device)
            order = torch.rand(padding.shape, device=padding.device)
        else:
            uniform = _uniform_from_bytes(input_ids.masked_fill(padding, 0))
            order, first, second = uniform[:, :-2], uniform[:, -2], uniform[:, -1]
            spread = torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * torch.pi * second)  # Box-Muller
        lengths = (~padding).sum(dim=1)
        rate = (self.rate + RATE_SPREAD * spread).clamp(0, 1)
        count = (rate * lengths).round().long()
        # Stable, because draws may tie and padding must not decide which of them goes first.
        rank = order.masked_fill(padding, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        return rank < count[:, None]


def delete_over_batch(draw: float, padding: Tensor) -> Tensor:
    """The reference's random deletion: (B, L) bool, the drawn share of all positions of the batch."""
    # The reference lets a negative draw wrap around and delete nearly everything; nothing depends on that.
    count = int(min(max(draw, 0.0), 1.0) * padding.numel())
    deleted = torch.zeros(padding.numel(), dtype=torch.bool, device=padding.device)
    deleted[torch.randperm(padding.numel(), device=padding.device)[:count]] = True
    return deleted.view(padding.shape)


class FixedGate(Gate):
    """Deletes the end of every word: of its bytes the first ceil((1 - amount) * length) stay.

    A word starts at a separator (tab, newline, space, ASCII punctuation, EOS) and at the start of a row. Per
    batch is the reference's law: the lengths of the n-th words of all rows are added up, padding being part
    of each row's last word, and one mask that follows from these sums serves all rows. There, the bytes
    before a row's first separator are its word 0, which is empty in a row that begins with one.
    """

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        # In float32, as the reference multiplies: the ceiling of a product near an integer depends on it.
        self.kept_share = 1 - float(config.fixed_deletion_amount)
        self.per_row = config.shortening_per == "row"
        self.spares_padding = not self.per_row
        self.eos = config.eos_token_id

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, None]:
        if input_ids is None:
            raise ValueError("fixed deletion looks for words in input_ids; it cannot run on inputs_embeds")
        separators = self._separators(input_ids)
        if self.per_row:
            kept = self._keep_by_row(separators, ~padding)
        else:
            kept = self._keep_over_batch(separators).expand_as(padding)
        values = torch.zeros(padding.shape, dtype=torch.float32, device=padding.device)
        return values.masked_fill(~kept | padding, self.scale), None

    def _separators(self, ids: Tensor) -> Tensor:
        separators = [self.eos, *(byte + BYTE_OFFSET for byte in SEPARATORS)]
        return torch.isin(ids, torch.tensor(separators, device=ids.device))

    def _keep_by_row(self, starts: Tensor, real_BL: Tensor) -> Tensor:
        starts[:, 0] = True
        word_BL = starts.long().cumsum(dim=1) - 1
        lengths = torch.zeros_like(word_BL).scatter_add(1, word_BL, real_BL.long())
        position = torch.arange(word_BL.shape[1], device=word_BL.device)
        start_BL = (position * starts).cummax(dim=1).values
        return position - start_BL < self._kept(lengths).gather(1, word_BL)

    def _keep_over_batch(self, separators: Tensor) -> Tensor:
        # A word's number is that of the separators up to it, so word 0 of a row may be empty.
        word_BL = separators.long().cumsum(dim=1)
        # Every position lies in some word, if need be in one of length 0 beyond the last.
        lengths = torch.bincount(word_BL.flatten(), minlength=word_BL.shape[1] + 1)
        ends = lengths.cumsum(dim=0)
        position = torch.arange(word_BL.shape[1], device=word_BL.device)
        word = torch.searchsorted(ends, position, right=True)
        return position - (ends - lengths)[word] < self._kept(lengths)[word]

    def _kept(self, lengths: Tensor) -> Tensor:
        return torch.ceil(lengths.float() * self.kept_share).long()


def _uniform_from_bytes(ids: Tensor) -> Tensor:
    """Uniforms in (0, 1), (B, L + 2) from ids (B, L): the same for a row whatever padding follows it."""
    position = torch.arange(1, ids.shape[1] + 3, device=ids.device)
    key = _mix(ids * 1_000_003 + position[:-2] * ids.ne(0)).mul(ids.ne(0)).sum(dim=1, keepdim=True)
    # The last two columns must not depend on where padding ends, so they are numbered from below.
    position[-2:] = torch.tensor([-1, -2], device=ids.device)
    return (_mix(key + position * 7_919).bitwise_and(0xFFFFFF).float() + 0.5) / 0x1000000


def _mix(value: Tensor) -> Tensor:
    """A 31-bit integer hash in int64 arithmetic that never overflows."""
    value = value.bitwise_and(0x7FFFFFFF)
    for _ in range(2):
        value = value.bitwise_xor(value >> 15)
        value = (value * 0x2C1B3C6D).bitwise_and(0x7FFFFFFF)
        value = value.bitwise_xor(value >> 12)
    return value
