"""Constrain decoding to valid UTF-8.

The bytes allowed next depend on at most three bytes before: the lead byte of an incomplete character sets how
many bytes follow, and restricts the first of them to rule out overlong forms, surrogates and code points
above U+10FFFF (Unicode, table 3-7).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mrt5cli.byte_tokens import EOS, OFFSET

WHOLE = 0
"""The state between characters."""
LEADS = {
    **{(0xC2, 0xDF): 1, (0xE1, 0xEC): 2, (0xEE, 0xEF): 2, (0xF1, 0xF3): 3},
    **{(0xE0, 0xE0): 4, (0xED, 0xED): 5, (0xF0, 0xF0): 6, (0xF4, 0xF4): 7},
}
"""Ranges of lead bytes, and the state after each."""
NEXT = {
    1: (0x80, 0xBF, WHOLE),
    2: (0x80, 0xBF, 1),
    3: (0x80, 0xBF, 2),
    4: (0xA0, 0xBF, 1),
    5: (0x80, 0x9F, 1),
    6: (0x90, 0xBF, 2),
    7: (0x80, 0x8F, 2),
}
"""For each state within a character: the first and last byte allowed next, and the state after it."""
MISSING = [0, 1, 2, 3, 2, 2, 3, 3]
"""Bytes that the character still needs, by state."""


def steps() -> Tensor:
    """(8, 256) the state after each byte, or -1 where the byte is not allowed."""
    table = torch.full((len(MISSING), 256), -1, dtype=torch.long)
    table[WHOLE, :0x80] = WHOLE
    for (first, last), state in LEADS.items():
        table[WHOLE, first : last + 1] = state
    for state, (first, last, after) in NEXT.items():
        table[state, first : last + 1] = after
    return table


class OnlyUtf8(LogitsProcessor):
    """Forbids tokens that do not continue UTF-8, EOS within a character, and characters that do not fit.

    Args:
        vocabulary: V, number of ids that the model scores.
        length: maximum tokens of an output, besides the start token.
    """

    def __init__(self, vocabulary: int, length: int, device: torch.device) -> None:
        after = torch.full((len(MISSING), vocabulary), -1, dtype=torch.long)
        after[:, OFFSET : OFFSET + 256] = steps()
        missing = torch.tensor(MISSING)
        needed = torch.where(
            after >= 0, 1 + missing[after.clamp(min=0)], 9
        )  # (8, V) tokens, this one included
        needed[WHOLE, EOS] = 1
        left = torch.arange(5)[:, None, None]
        self._barred = torch.zeros(5, *needed.shape).masked_fill_(needed > left, -torch.inf).to(device)
        # Only the last three bytes are read; a continuation byte without its lead ends a character.
        self._after = after.clamp(min=WHOLE).to(device)
        self._length = length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        state = torch.zeros_like(input_ids[:, 0])
        for ids in input_ids[:, -3:].unbind(dim=1):
            state = self._after[state, ids]
        left = self._length + 1 - input_ids.shape[1]
        return scores + self._barred[min(left, 4), state]
