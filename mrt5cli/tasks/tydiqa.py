"""TyDi QA, gold passage: questions and answers in 9 languages (Clark et al. 2020).

The published dataset has no test split. As in the paper, its validation split is our test split, and a fifth
of its training rows, chosen by a hash of the id, is our validation split.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mrt5cli.data.columns import Row, language_column
from mrt5cli.data.corpus import fingerprint
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.recipe.tasks import TYDIQA_LANGUAGES, TyDiQATask
from mrt5cli.tasks.base import register
from mrt5cli.tasks.qa import QuestionAnswering
from mrt5cli.tasks.tables import HubSplit

# The first words of ids such as finnish-7633091408814529542-0.
LANGUAGE_NAMES = {LANGUAGES[code].name.lower(): code for code in sorted(TYDIQA_LANGUAGES)}
# One of this many training rows is held out for validation.
HELD_OUT_ONE_IN = 5


@register("tydiqa")
class TyDiQA(QuestionAnswering):
    """Trained and tested on the recipe's languages; see `TableTask`."""

    section: TyDiQATask
    experiment = "tydiqa_goldp"
    languages = tuple(TYDIQA_LANGUAGES)

    def hub_split(self, split: str, part: str) -> HubSplit:
        """The same split for all languages; training and validation share one too."""
        name = self.dataset_name("google-research-datasets/tydiqa")
        return HubSplit(name, "secondary_task", "validation" if split == "test" else "train")

    def row_language(self, row: Row) -> str | None:
        """The language column, or else the first word of the id."""
        if language := language_column(row):
            return language
        if "id" not in row:
            return None  # reported with all the columns that a row must have
        beginning = str(row["id"]).partition("-")[0]
        if beginning in LANGUAGE_NAMES:
            return LANGUAGE_NAMES[beginning]
        raise ValueError(
            f"column 'id' is {row['id']!r}, which names no language of TyDi QA; expected it to begin with "
            f"one of {', '.join(f'{name}-' for name in LANGUAGE_NAMES)}, or a column 'language'"
        )

    def _read(self, split: str, part: str) -> pa.Table:
        if split == "test" or not self._held_out_of_training():
            return super()._read(split, part)
        table = super()._read("train", part)
        if not len(table):
            return table
        held_out = np.array(
            [fingerprint(key.encode()) % HELD_OUT_ONE_IN == 0 for key in table["id"].to_pylist()]
        )
        return table.filter(pa.array(held_out if split == "validation" else ~held_out))

    def _has(self, split: str) -> bool:
        return super()._has("train" if split == "validation" and self._held_out_of_training() else split)

    def _held_out_of_training(self) -> bool:
        """Whether validation rows are taken from the training rows, because there are no others."""
        if self.files is not None:
            return not self.files.has("validation")
        return bool(self.section.source.kind == "hub")
