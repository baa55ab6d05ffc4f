"""XQuAD: questions about English Wikipedia passages and their translations (Artetxe et al. 2020).

Trained and validated on English SQuAD v1.1, tested on 12 languages. The authors' code has the task, but they
published no results on it.
"""

from __future__ import annotations

from mrt5cli.recipe.tasks import XQUAD_LANGUAGES, XQuADTask
from mrt5cli.tasks.base import register
from mrt5cli.tasks.qa import QuestionAnswering
from mrt5cli.tasks.tables import HubSplit


@register("xquad")
class XQuAD(QuestionAnswering):
    section: XQuADTask
    languages, trained_on = tuple(XQUAD_LANGUAGES), "en"

    def hub_split(self, split: str, part: str) -> HubSplit:
        """SQuAD's splits; the test is XQuAD's validation split, one configuration per language."""
        if split == "test":
            return HubSplit(self.dataset_name("google/xquad"), f"xquad.{part}", "validation")
        return HubSplit("rajpurkar/squad", None, split, pinned=False)
