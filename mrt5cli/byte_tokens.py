"""Text as byte tokens: an id is a byte plus 3, so that both directions are one vectorised addition.

Ids 0, 1 and 2 are padding, end of sequence and unknown; 3 to 258 are the bytes; 259 to 383 exist in the
vocabulary of the published checkpoints but have no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

PAD = 0
EOS = 1
UNK = 2
OFFSET = 3
VOCAB_SIZE = 384
LAST_BYTE_ID = OFFSET + 255
IGNORED_LABEL = -100
"""Label of a position that losses and metrics ignore; PyTorch's convention."""


def encode(text: str | bytes, *, add_eos: bool = False) -> NDArray[np.int64]:
    """Ids (n,) of a text's UTF-8 bytes, or of raw bytes.

    Unlike in a tokenizer, no string is special: "</s>" is four bytes. A lone surrogate, which UTF-8 cannot
    encode, becomes "?".
    """
    raw = text.encode("utf-8", errors="replace") if isinstance(text, str) else text
    ids = np.empty(len(raw) + add_eos, dtype=np.int64)
    np.add(np.frombuffer(raw, dtype=np.uint8), OFFSET, out=ids[: len(raw)], casting="unsafe", dtype=np.int64)
    if add_eos:
        ids[-1] = EOS
    return ids


def to_bytes(ids: ArrayLike | Sequence[int]) -> bytes:
    """The bytes among ids of any shape, in order; padding, EOS and other special ids are skipped."""
    flat = np.asarray(ids, dtype=np.int64).reshape(-1)
    return (flat[(flat >= OFFSET) & (flat <= LAST_BYTE_ID)] - OFFSET).astype(np.uint8).tobytes()


def decode(ids: ArrayLike | Sequence[int]) -> str:
    """The text of ids; ids that are not bytes, and bytes that are not valid UTF-8, are skipped."""
    return to_bytes(ids).decode("utf-8", errors="ignore")
