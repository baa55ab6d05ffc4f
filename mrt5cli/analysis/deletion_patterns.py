"""Which bytes the models of an experiment delete: by kind of letter and byte, by language, and in examples.

Kinds of letter describe the strings of the diagnostic tasks and have the names of the paper's data. They are
sets of positions and may overlap ("all" contains every position).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.deletions import (
    InspectedRow,
    agreement,
    inspect_task,
    kind_lines,
    kind_table,
    total_rate,
)
from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.byte_tokens import EOS, encode
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.metrics.counts import Ratio
from mrt5cli.metrics.results import Json

EXAMPLES = 1000
"""Number of examples over all subsets, as in the authors' script."""
SHOWN = 3
"""Number of examples per model whose text the document contains."""
SHOWN_POSITIONS = 160
LETTER_TASKS = ("vowel_removal", "contextual_vowel_removal", "merge_ABC")
"""Tasks that know which letters of their strings can be deleted."""

START = int(encode("#")[0])
UPPER, LOWER = encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), encode("abcdefghijklmnopqrstuvwxyz")
VOWELS = encode("AEIOUaeiou")


def deletion_patterns(runs: ExperimentRuns) -> Json:
    """The bytes that each run with a shortener deletes from test examples of its own task.

    Raises:
        UserError: no run with a shortener is finished.
    """
    shortening = [run for run in runs.trained if run.family not in ("ByT5", "no source")]
    if not shortening:
        raise UserError(f"no finished run of {runs.experiment} deletes anything")
    return {"models": [_pattern(runs, run) for run in shortening]}


def _pattern(runs: ExperimentRuns, run: ExperimentRun) -> Json:
    kind = run.recipe.task.kind
    by_subset = _inspected(runs, run)
    rows = [row for part in by_subset.values() for row in part]
    rate, (precision, recall) = total_rate(rows), agreement(rows)
    first = [(subset, part[0]) for subset, part in by_subset.items()]
    shown = first if len(first) > 1 else [("", row) for row in rows]
    letters = letter_table(kind, rows) if kind in LETTER_TASKS else {}
    return {
        **run.line(),
        "task": kind,
        "examples": len(rows),
        "positions": rate.count,
        "deletion_rate": rate.value,
        "gate_precision": precision,
        "gate_recall": recall,
        "letters": kind_lines(letters),
        "kinds": kind_lines(kind_table(rows)),
        "subsets": [
            {
                "subset": subset,
                "script": LANGUAGES[subset].script if subset in LANGUAGES else None,
                "examples": len(part),
                "deletion_rate": total_rate(part).value,
            }
            for subset, part in by_subset.items()
        ],
        "shown": [_shown(subset, row) for subset, row in shown[:SHOWN]],
    }


def _inspected(runs: ExperimentRuns, run: ExperimentRun) -> dict[str, list[InspectedRow]]:
    import torch

    from mrt5cli.tasks.base import build_task

    task = build_task(run.recipe.task)
    subsets = task.subsets("test")
    most = run.recipe.evaluation.examples if runs.smoke else EXAMPLES
    shares = dict.fromkeys(subsets, max(1, most // len(subsets)))
    model = run.load(runs.device)
    torch.manual_seed(0)  # the authors' formulas sample in evaluation too
    return inspect_task(model, task, shares, batch_size=16, progress=partial(runs.progress, run.title))


def _shown(subset: str, row: InspectedRow) -> Json:
    """The beginning of an example, as runs of text with their states (see `marked_text`)."""
    cut = slice(SHOWN_POSITIONS)
    beginning = replace(row, ids=row.ids[cut], deleted=row.deleted[cut])
    return {
        "subset": subset,
        "deletion_rate": row.rate.value,
        "cut": len(row.ids) > SHOWN_POSITIONS,
        "runs": [tuple(run) for run in beginning.marked],
    }


def letter_kinds(task: str, ids: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """(n,) bool masks of the kinds of letter in one string, including markers and EOS.

    Args:
        task: kind of a diagnostic task.
        ids: (n,) ids of a source without padding.
    """
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
    return kinds | {"start_marker_#": ids == START, "eos": ids == EOS}


def _shifted(mask: NDArray[np.bool_], places: int) -> NDArray[np.bool_]:
    """The mask shifted toward the end of the row."""
    return np.concatenate([np.zeros(places, dtype=np.bool_), mask[:-places]])


def letter_table(task: str, rows: Iterable[InspectedRow]) -> dict[str, Ratio]:
    """The ratio of deleted positions to all positions, by kind of letter."""
    found: defaultdict[str, Ratio] = defaultdict(Ratio)
    for row in rows:
        for kind, mask in letter_kinds(task, row.ids).items():
            found[kind] += Ratio(int((mask & row.deleted).sum()), int(mask.sum()))
    return found
