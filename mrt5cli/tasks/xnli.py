"""XNLI: does a premise entail a hypothesis, contradict it, or neither?

Trained and validated on English, tested on 15 languages (Conneau et al. 2018). The target is one digit.
"""

from __future__ import annotations

from random import Random

from mrt5cli.data.columns import Row, label_column, text_column
from mrt5cli.data.generated import space, words
from mrt5cli.recipe import XnliTask
from mrt5cli.recipe.tasks import XNLI_LANGUAGES
from mrt5cli.tasks.base import register
from mrt5cli.tasks.tables import Encoding, HubSplit, TableTask

LABELS = ("entailment", "neutral", "contradiction")


@register("xnli")
class Xnli(TableTask):
    """Sentence pairs and one of three labels; see `TableTask`."""

    section: XnliTask
    measures = ("sequence_accuracy",)
    experiment = "xnli"
    choices = ("0", "1", "2")
    languages, trained_on = tuple(XNLI_LANGUAGES), "en"
    # The other names are those in the files of XNLI and MultiNLI.
    columns = (
        text_column("premise", "sentence1"),
        text_column("hypothesis", "sentence2", "hypo"),
        label_column("label", LABELS, "gold_label", also={"contradictory": "contradiction"}),
    )

    def __init__(self, section: XnliTask) -> None:
        prompt = "Premise: {premise} Hypothesis: {hypothesis}"
        # A digit and EOS.
        super().__init__(section, Encoding(prompt, "label", section.input_length, target_length=2))

    def hub_split(self, split: str, part: str) -> HubSplit:
        """One configuration per language."""
        return HubSplit(self.dataset_name("facebook/xnli"), part, split)

    def generate(self, draw: Random, part: str, number: int) -> Row:
        """Words, and some of them (entailment), others (neutral) or some reversed (contradiction)."""
        label = draw.randrange(len(LABELS))
        premise = words(draw, draw.randint(6, 16), part)
        hypothesis = (premise[1:5], words(draw, 4, part), premise[4:0:-1])[label]
        gap = space(part)
        return {"premise": gap.join(premise), "hypothesis": gap.join(hypothesis), "label": label}
