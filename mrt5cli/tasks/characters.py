"""The character-level tasks: spelling correction in context, and word search (Huang et al. 2023).

Rows are pairs of an input and an output, in TSV files with or without a line of column names. A folder as the
authors publish it, with `word_search_train.tsv`, `word_search_val.tsv`, `word_search_test_oov.tsv` and so on
for both tasks, can be read unchanged.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from random import Random

from mrt5cli.data.builders.writing import is_made_here
from mrt5cli.data.columns import Row, text_column
from mrt5cli.data.generated import words
from mrt5cli.recipe import CharacterTask
from mrt5cli.recipe.tasks import CHARACTER_LENGTHS
from mrt5cli.tasks.base import register
from mrt5cli.tasks.tables import Encoding, TableTask

# Parts of the published tests, in the paper's order.
TEST_PARTS = {
    "spelling_correction_contextual": ["test_context_dependent", "test_context_independent"],
    "word_search": ["test_oov", "test_paraphrase", "test_overlap", "test_paraphrase_overlap"],
}
_TEST_NAME = re.compile(r"test([-_.]\w[\w.-]*)?", re.IGNORECASE)
_BETWEEN = re.compile(r"[-. ]")
_PIECE = re.compile(r"-\d+(-of-\d+)?$")


@register(*CHARACTER_LENGTHS)
class Characters(TableTask):
    """Pairs of input and output; the parts of the test are its files, by name. See `TableTask`."""

    section: CharacterTask
    measures = ("sequence_accuracy",)
    columns = (text_column("input"), text_column("output"))
    header = False
    by_language = False

    def __init__(self, section: CharacterTask) -> None:
        # Data made here is not the paper's, so results on it must not appear next to published ones.
        made_here = section.source.kind == "files" and is_made_here(Path(section.source.path))
        self.experiment = None if made_here else section.kind
        lengths = section.longest_source, section.longest_target
        super().__init__(section, Encoding("{input}", "output", *lengths))

    def parts(self, split: str) -> list[str]:
        """The parts of the test; just "all" for the other splits."""
        if split != "test":
            return super().parts(split)
        known = TEST_PARTS[self.section.kind]
        if self.files is None:
            return known
        own = self.files.parts("test")
        return [part for part in known if part in own] + [part for part in own if part not in known]

    def own_file_name(self, name: str) -> str | None:
        """The name without the task's prefix; None if it has the other task's."""
        kept: list[str] = []
        for part in PurePath(name).parts:
            plain = _BETWEEN.sub("_", part.lower())
            for kind in TEST_PARTS:
                if plain == kind or plain.startswith(f"{kind}_"):
                    if kind != self.name:
                        return None
                    part = part[len(kind) + 1 :]
            kept.append(part)
        return str(PurePath(*filter(None, kept)))

    def part_of_file(self, split: str, path: PurePath) -> str | None:
        """The part of the test that a file is, such as "test_oov"."""
        if split != "test":
            return None
        last = _PIECE.sub("", path.name)
        found = _TEST_NAME.search(last)
        return found[0].lower() if found else f"test_{last}" if path.parent.name else "test"

    def generate(self, draw: Random, part: str, number: int) -> Row:
        """Words, two letters of one swapped; or a word's first letter and letters that hide the word."""
        if self.section.kind == "word_search":
            [word] = words(draw, 1)
            around = words(draw, 4)
            hidden = word if draw.random() < 0.5 else word[::-1]
            return {"input": f"{word[0]}: {around[0]}{around[1]}{hidden}{around[2]}", "output": word}
        right = words(draw, draw.randint(3, 6))
        place = draw.randrange(len(right))
        wrong = [*right[:place], right[place][1] + right[place][0] + right[place][2:], *right[place + 1 :]]
        return {"input": " ".join(wrong), "output": " ".join(right)}
