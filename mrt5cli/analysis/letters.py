"""What becomes of each kind of letter in the diagnostic tasks' strings, by the names the paper's data have.

A kind is a set of positions of a string; kinds may overlap ("all" holds every position).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.deletions import InspectedRow, KindRow
from mrt5cli.byte_tokens import EOS, encode

START = int(encode("#")[0])
UPPER, LOWER = encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), encode("abcdefghijklmnopqrstuvwxyz")
VOWELS = encode("AEIOUaeiou")


def letter_kinds(task: str, ids: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """(n,) masks of the kinds of letter of one string, markers and EOS included.

    Args:
        task: kind of a diagnostic task.
        ids: (n,) of a source, without padding.
    """
    start, end = ids == START, ids == EOS
    kinds = {"all": np.ones(len(ids), dtype=np.bool_)}
    vowel = np.isin(ids, VOWELS)
    consonant = np.isin(ids, np.concatenate([UPPER, LOWER])) & ~vowel
    if task == "merge_ABC":
        a, b, c = encode("ABC")
        starts = np.zeros(len(ids), dtype=np.bool_)
        starts[:-2] = (ids[:-2] == a) & (ids[1:-1] == b) & (ids[2:] == c)
        second, third = _shifted(starts, 1), _shifted(starts, 2)
        kinds |= {"A_in_ABC": starts, "B_in_ABC": second, "C_in_ABC": third}
        kinds["outside_ABC_incl_markers"] = ~(starts | second | third)
    elif task == "contextual_vowel_removal":
        after = vowel & _shifted(np.isin(ids, np.setdiff1d(LOWER, VOWELS)), 1)
        kinds |= {"vowel_after_lowercase_consonant": after, "other_vowel": vowel & ~after}
        kinds["consonant"] = consonant
    else:
        kinds |= {"vowel": vowel, "consonant": consonant}
    return kinds | {"start_marker_#": start, "eos": end}


def _shifted(mask: NDArray[np.bool_], places: int) -> NDArray[np.bool_]:
    """The mask moved towards the end of the row."""
    moved = np.zeros_like(mask)
    moved[places:] = mask[:-places]
    return moved


def letter_table(task: str, rows: Iterable[InspectedRow]) -> list[KindRow]:
    """Positions and deletions of each kind of letter, of the kinds that occur."""
    count: dict[str, int] = {}
    gone: dict[str, int] = {}
    for row in rows:
        for kind, mask in letter_kinds(task, row.ids).items():
            count[kind] = count.get(kind, 0) + int(mask.sum())
            gone[kind] = gone.get(kind, 0) + int((mask & row.deleted).sum())
    return [KindRow(kind, count[kind], gone[kind]) for kind in count if count[kind]]
