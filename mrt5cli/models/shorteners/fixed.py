"""Fixed deletion, the paper's baseline: a gate without weights.

Legend: B batch, L input bytes.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrt5cli.byte_tokens import OFFSET
from mrt5cli.models.shorteners.gate import WeightlessGate

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config

SEPARATORS = tuple(byte + OFFSET for byte in ("\t\n " + string.punctuation).encode())
"""Ids of the bytes that start a word."""


class FixedGate(WeightlessGate):
    """Deletes the end of every word; its first ceil((1 - amount) * length) bytes survive.

    A word starts at a separator (tab, newline, space, ASCII punctuation, EOS) and at the start of a row. Per
    batch, the reference's mode, the lengths of the n-th words of all rows are added up, where padding belongs
    to each row's last word, and the sums define one mask for all rows. There, the bytes before a row's first
    separator are its word 0, which is empty in a row that begins with a separator.
    """

    deletion_types = ("fixed",)
    share = "fixed_deletion_amount"

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        # `_kept` multiplies in float32, as the reference does: ceilings near an integer depend on it.
        self.kept_share = 1 - float(config.fixed_deletion_amount)
        self.eos = config.eos_token_id

    def deleted(self, padding: Tensor, input_ids: Tensor | None) -> Tensor:
        if input_ids is None:
            raise ValueError("fixed deletion searches input_ids for words; it cannot run on inputs_embeds")
        separators = torch.tensor([self.eos, *SEPARATORS], device=input_ids.device)
        starts = torch.isin(input_ids, separators)
        if self.per_row:
            return ~self._keep_by_row(starts, ~padding)
        return ~self._keep_over_batch(starts).expand_as(padding)

    def _keep_by_row(self, starts: Tensor, real_BL: Tensor) -> Tensor:
        starts[:, 0] = True
        word_BL = starts.long().cumsum(dim=1) - 1
        lengths = torch.zeros_like(word_BL).scatter_add(1, word_BL, real_BL.long())
        position = torch.arange(word_BL.shape[1], device=word_BL.device)
        start_BL = (position * starts).cummax(dim=1).values
        return position - start_BL < self._kept(lengths).gather(1, word_BL)

    def _keep_over_batch(self, separators: Tensor) -> Tensor:
        # A word's number counts the separators up to it, so word 0 of a row may be empty.
        word_BL = separators.long().cumsum(dim=1)
        # Every position belongs to a word, possibly to one of length 0 beyond the last.
        lengths = torch.bincount(word_BL.flatten(), minlength=word_BL.shape[1] + 1)
        ends = lengths.cumsum(dim=0)
        position = torch.arange(word_BL.shape[1], device=word_BL.device)
        word = torch.searchsorted(ends, position, right=True)
        return position - (ends - lengths)[word] < self._kept(lengths)[word]

    def _kept(self, lengths: Tensor) -> Tensor:
        return torch.ceil(lengths.float() * self.kept_share).long()
