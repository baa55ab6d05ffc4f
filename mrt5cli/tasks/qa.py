"""The base of the question answering tasks: SQuAD's columns, the prompt, generated answers.

The target in training is the first answer. In evaluation the model generates an answer, which is compared
with all accepted answers of the question.
"""

from __future__ import annotations

from random import Random

from mrt5cli.data.columns import Row, answers_column, text_column
from mrt5cli.data.generated import space, words
from mrt5cli.recipe import TyDiQATask, XQuADTask
from mrt5cli.tasks.tables import Encoding, TableTask


class QuestionAnswering(TableTask):
    """Questions, passages, and answers that are spans of the passages; see `TableTask`."""

    section: TyDiQATask | XQuADTask
    measures = ("exact_match", "f1")
    columns = (
        text_column("id"),
        text_column("question"),
        text_column("context"),
        answers_column("answers"),
    )

    def __init__(self, section: TyDiQATask | XQuADTask) -> None:
        prompt = "Question: {question} Context: {context}"
        length = section.input_length
        self.answer_length = section.answer_length
        # As in the reference, targets have the limit of sources; `answer_length` is for generation.
        super().__init__(section, Encoding(prompt, "answers", length, target_length=length))

    def generate(self, draw: Random, part: str, number: int) -> Row:
        """A passage of words, two or three of which are the answer; the question is the word before them."""
        passage = words(draw, draw.randint(20, 60), part)
        start = draw.randint(1, len(passage) - 3)
        gap = space(part)
        answer = gap.join(passage[start : start + draw.randint(2, 3)])
        before = gap.join(passage[:start]) + gap
        return {
            "id": f"{part}-{number}",
            "question": f"{passage[start - 1]}?",
            "context": gap.join(passage),
            "answers": {"text": [answer], "answer_start": [len(before)]},
        }
