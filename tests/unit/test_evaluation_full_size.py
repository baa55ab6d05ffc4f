"""The evaluation of whole test sets, with a model that costs nothing: 15 languages of XNLI, 9 of TyDi QA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mrt5cli.evaluation.evaluate import measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.evaluation.significance import differences
from mrt5cli.recipe import GeneratedRows, TyDiQATask, XnliTask
from mrt5cli.tasks.base import build_task

pytestmark = pytest.mark.slow


class Guesser(torch.nn.Module):
    """Right in a given share of examples: by what their targets are made of, not by their order."""

    config = SimpleNamespace(threshold=-15.0)
    generation_config = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.share = share

    def _knows(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids.sum(1) * 7919 % 1000) < 1000 * self.share

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*labels.shape, 384)
        said = torch.where(self._knows(input_ids)[:, None], labels.clamp(min=0), 5)
        logits.scatter_(-1, said[..., None], 9.0)
        kept = (input_ids != 0).sum(1)
        return SimpleNamespace(
            logits=logits,
            delete_gate_output=None,
            keep_mask=None,
            kept_lengths=kept,
            encoder_last_hidden_state=torch.zeros(len(input_ids), 1, 1),
        )

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        # The passage's last words: now and then the answer.
        ends = (input_ids != 0).sum(1)
        rows = [row[max(0, end - 10) : end] for row, end in zip(input_ids, ends, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return torch.nn.functional.pad(padded, (1, 0))


def quick(batch_size: int) -> EvaluationOptions:
    return EvaluationOptions(batch_size=batch_size, source_removed=False)


def test_xnli() -> None:
    section = XnliTask(kind="xnli", source=GeneratedRows(kind="generated", examples=5010))
    task = build_task(section)

    one, other = (measure(Guesser(share), task, quick(64)) for share in (0.65, 0.6))

    total = one.rows[-1]
    assert (len(one.rows), total.examples) == (16, 75_150)
    assert total.sequence_accuracy == pytest.approx(0.65, abs=0.02)
    assert total.sequence_accuracy_95[1] - total.sequence_accuracy_95[0] < 0.01
    found = differences(one.outcomes, other.outcomes, "xnli", task.measures)
    assert len(found) == 2 * 16
    accuracy = next(d for d in found if (d.measure, d.subset) == ("sequence_accuracy", "total"))
    assert accuracy.difference == pytest.approx(total.sequence_accuracy - other.rows[-1].sequence_accuracy)
    assert accuracy.p_value < 1e-6
    loss = next(d for d in found if (d.measure, d.subset) == ("loss", "total"))
    assert loss.low < loss.difference < loss.high < 0
    assert loss.difference == pytest.approx(total.loss - other.rows[-1].loss)


def test_tydiqa() -> None:
    section = TyDiQATask(kind="tydiqa", source=GeneratedRows(kind="generated", examples=564))
    task = build_task(section)

    told = measure(Guesser(0.5), task, quick(16))
    by_32 = measure(Guesser(0.5), task, quick(32))

    assert (len(told.rows), told.rows[-1].examples) == (10, 9 * 564)
    assert told.rows[-1].f1 > 0
    assert 0 <= told.rows[-1].f1_95[0] < told.rows[-1].f1 < told.rows[-1].f1_95[1]
    for language, outcomes in told.outcomes.items():
        np.testing.assert_array_equal(outcomes.scores["f1"], by_32.outcomes[language].scores["f1"])
