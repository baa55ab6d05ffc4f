"""Evaluation: known models give known numbers, and the batch size changes none of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrt5cli.errors import UserError
from mrt5cli.evaluation.compare import Comparison, Result
from mrt5cli.evaluation.counting import total
from mrt5cli.evaluation.evaluate import measure, without_source
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.evaluation.timing import Stopwatch, conditions
from mrt5cli.metrics.results import Row
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.subject import Subject
from mrt5cli.tasks.base import Task

THRESHOLD = -15.0
VOWELS = torch.tensor([byte + 3 for byte in b"aeiouAEIOU"])


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


class VowelStrings(Task):
    """A task of this test: words of unequal length, targets without their vowels."""

    name = "vowel strings"
    words = (b"tree", b"oak", b"plum", b"aspen", b"i", b"sycamore", b"fig")

    def subsets(self, split: str) -> list[str]:
        return ["all"]

    def held_out(self, split: str, subset: str, *, batch_size: int, limit: int | None) -> Iterator[dict]:
        words = self.words[:limit]
        for start in range(0, len(words), batch_size):
            chunk = words[start : start + batch_size]
            ids = pad([[byte + 3 for byte in word] + [1] for word in chunk], 0)
            targets = [[byte + 3 for byte in word if byte not in b"aeiou"] + [1] for word in chunk]
            yield {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": pad(targets, -100)}

    def deletable(self, input_ids: torch.Tensor, gate: object = None) -> torch.Tensor:
        return torch.isin(torch.as_tensor(input_ids), VOWELS)

    def train_stream(self, **_: Any) -> Any:
        raise AssertionError("evaluation never trains")

    describe = example = train_stream


class TwoLanguages(VowelStrings):
    """The same with two subsets of unequal size."""

    def subsets(self, split: str) -> list[str]:
        return ["first", "rest"]

    def held_out(self, split: str, subset: str, *, batch_size: int, limit: int | None) -> Iterator[dict]:
        one = VowelStrings()
        one.words = self.words[:2] if subset == "first" else self.words[2:]
        return one.held_out(split, subset, batch_size=batch_size, limit=limit)

    def deletable(self, input_ids: torch.Tensor, gate: object = None) -> None:
        return None


class Oracle(torch.nn.Module):
    """Deletes all vowels and a given share of the rest; predicts the label, or nothing at all.

    It reads its answer from the labels unless its source was removed.
    """

    config = SimpleNamespace(threshold=THRESHOLD)

    def __init__(self, knows: bool = True, also_deletes: bytes = b"", gated: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.knows, self.gated = knows, gated
        self.doomed = torch.cat([VOWELS, torch.tensor([byte + 3 for byte in also_deletes], dtype=torch.long)])

    def forward(self, input_ids, attention_mask, labels, hard_delete, real_bytes, use_cache):
        assert real_bytes == attention_mask.sum()  # a GPU is not asked for it
        logits = torch.zeros(*labels.shape, 384)
        if self.knows and input_ids.shape[1] > 1:
            logits.scatter_(-1, labels.clamp(min=0)[..., None], 50.0)
        gone = torch.isin(input_ids, self.doomed)
        kept = ((input_ids != 0) & ~gone).sum(1) if self.gated else (input_ids != 0).sum(1)
        length = int(kept.max()) if hard_delete else input_ids.shape[1]
        gate = torch.where(gone | (input_ids == 0), -30.0, 0.0)
        return SimpleNamespace(
            logits=logits,
            delete_gate_output=gate if self.gated else None,
            keep_mask=None,
            kept_lengths=kept,
            encoder_last_hidden_state=torch.zeros(len(input_ids), length, 8),
        )


def evaluate_model(model: Any, task: Task, *, progress: Any = lambda *at: None, **options: Any) -> list[Row]:
    return measure(model, task, EvaluationOptions(**options), progress=progress).rows


def test_a_perfect_model() -> None:
    (row,) = evaluate_model(Oracle(), VowelStrings(), batch_size=3)

    letters = sum(len(word) + 1 for word in VowelStrings.words)
    vowels = sum(word.count(v) for word in VowelStrings.words for v in b"aeiou")
    assert row.examples == 7
    assert row.target_tokens == letters - vowels
    assert row.loss == pytest.approx(0.0, abs=1e-6)
    assert (row.token_accuracy, row.sequence_accuracy) == (1.0, 1.0)
    assert row.deletion_rate == pytest.approx(vowels / letters)
    assert row.kept_length == pytest.approx((letters - vowels) / 7)
    assert (row.gate_precision, row.gate_recall) == (1.0, 1.0)
    assert row.source_removed_loss == pytest.approx(math.log(384))
    assert row.source_removed_token_accuracy == 0.0
    assert row.sequence_accuracy_95 is not None
    assert row.sequence_accuracy_95[0] < 0.7


def test_a_model_that_knows_nothing() -> None:
    (row,) = evaluate_model(Oracle(knows=False), VowelStrings())

    assert row.loss == pytest.approx(math.log(384))
    assert row.bits_per_byte == pytest.approx(math.log2(384))
    assert (row.token_accuracy, row.sequence_accuracy) == (0.0, 0.0)


def test_precision_and_recall_of_a_greedy_gate() -> None:
    (row,) = evaluate_model(Oracle(also_deletes=b"s"), VowelStrings())

    vowels = sum(word.count(v) for word in VowelStrings.words for v in b"aeiou")
    assert row.gate_recall == 1.0
    assert row.gate_precision == pytest.approx(vowels / (vowels + 2))


def test_a_model_without_a_gate_deletes_nothing() -> None:
    (row,) = evaluate_model(Oracle(gated=False), VowelStrings())

    assert row.deletion_rate == 0.0
    assert row.kept_length == row.input_length
    assert (row.gate_precision, row.gate_recall) == (None, None)


def test_new_length_is_the_longest_kept_row_of_its_batch() -> None:
    (row,) = evaluate_model(Oracle(), VowelStrings(), batch_size=3)

    # tree oak plum | aspen i sycamore | fig, without vowels and with EOS: 4, 6 and 3 positions.
    assert row.new_length == pytest.approx((3 * 4 + 3 * 6 + 1 * 3) / 7)
    (soft,) = evaluate_model(Oracle(), VowelStrings(), batch_size=3, hard_delete=False)
    assert soft.new_length == pytest.approx((3 * 5 + 3 * 9 + 1 * 4) / 7)
    assert soft.kept_length == row.kept_length


def test_the_total_is_weighted_by_examples() -> None:
    first, rest, both = evaluate_model(Oracle(also_deletes=b"f"), TwoLanguages())

    assert (first.subset, rest.subset, both.subset) == ("first", "rest", "total")
    assert both.examples == 7
    assert both.deletion_rate == pytest.approx((2 * first.deletion_rate + 5 * rest.deletion_rate) / 7)
    assert both.gate_precision is None
    assert first.deletion_rate != pytest.approx(rest.deletion_rate)


def test_a_total_has_no_number_that_a_subset_lacks() -> None:
    (row,) = evaluate_model(Oracle(), VowelStrings())
    without = Row(**{**asdict(row), "gate_recall": None})

    assert total([row, without]).gate_recall is None
    assert total([row, row]).gate_recall == 1.0


def test_a_diverged_model_is_null_in_json_and_nan_in_the_row() -> None:
    class Diverged(Oracle):
        def forward(self, **batch):
            output = super().forward(**batch)
            output.logits[:] = float("nan")
            return output

    (row,) = evaluate_model(Diverged(), VowelStrings())

    assert row.loss is not None
    assert math.isnan(row.loss)
    result = Result(Subject("diverged", "nowhere", None, None), [row], {})
    told = Comparison({"kind": "copy"}, EvaluationOptions(), [result]).document()["models"][0]["rows"][0]
    assert told["loss"] is None
    assert told["deletion_rate"] == row.deletion_rate


def test_limit_and_choice_of_subsets() -> None:
    (row,) = evaluate_model(Oracle(), TwoLanguages(), subsets=["rest"], limit=3, batch_size=2)

    assert (row.subset, row.examples) == ("rest", 3)


def test_a_subset_without_examples_is_answered() -> None:
    with pytest.raises(UserError, match="no validation examples for 'all'"):
        evaluate_model(Oracle(), VowelStrings(), split="validation", limit=0)


def test_progress_counts_examples() -> None:
    seen: list[tuple[str, int]] = []

    evaluate_model(Oracle(), VowelStrings(), batch_size=3, progress=lambda *at: seen.append(at))

    assert seen == [("all", 3), ("all", 6), ("all", 7)]


def test_source_removed_leaves_the_targets() -> None:
    batch = next(VowelStrings().held_out("test", "all", batch_size=7, limit=None))

    bare = without_source(batch)

    assert bare["input_ids"].tolist() == [[1]] * 7
    assert bare["attention_mask"].tolist() == [[1]] * 7
    assert bare["labels"] is batch["labels"]


# --- the real model ---


def tiny(**settings: object) -> MrT5ForConditionalGeneration:
    torch.manual_seed(5)
    config = MrT5Config(
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=1,
        delete_gate_layer=1,
        use_softmax1=True,
        **settings,
    )
    model = MrT5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "delete_gate.feed_forward" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("hard_delete", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["none", "scaled_sigmoid", "random"])
def test_results_do_not_depend_on_the_batch_size(kind: str, hard_delete: bool) -> None:
    model = tiny(deletion_type=kind)

    rows = [
        asdict(evaluate_model(model, VowelStrings(), batch_size=size, hard_delete=hard_delete)[0])
        for size in (1, 3, 7)
    ]

    for row in rows:
        for name in ("new_length", "token_accuracy_95", "sequence_accuracy_95", "others", "others_95"):
            row.pop(name)
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], abs=1e-5)
    assert (rows[0]["deletion_rate"] > 0) == (kind != "none")


def test_the_loss_is_the_models_own() -> None:
    model = tiny().eval()
    batch = next(VowelStrings().held_out("test", "all", batch_size=7, limit=None))

    (row,) = evaluate_model(model, VowelStrings(), batch_size=7)

    assert row.loss == pytest.approx(model(**batch, hard_delete=True).loss.item(), abs=1e-6)


def test_batchwise_random_deletion_repeats_itself_and_leaves_the_callers_generator_alone() -> None:
    model = tiny(deletion_type="random", shortening_per="batch").train()
    torch.manual_seed(11)
    first = evaluate_model(model, VowelStrings())
    torch.manual_seed(12)
    before = torch.random.get_rng_state()
    second = evaluate_model(model, VowelStrings())

    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training


def test_runtime_is_reported_when_asked_for() -> None:
    model = tiny()

    (timed,) = evaluate_model(model, VowelStrings(), runtime=True, batch_size=3)

    assert timed.ms_per_example is not None
    assert 0 < timed.ms_per_example < 1000
    assert timed.median_ms_per_example is not None
    assert evaluate_model(model, VowelStrings())[0].ms_per_example is None


def test_a_batch_is_timed_over_consecutive_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 40.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls: list[int] = []
    watch = Stopwatch(torch.device("cpu"))

    watch.time(lambda: calls.append(1), rows=4)
    watch.time(lambda: calls.append(1), rows=2)

    assert len(calls) == 10
    assert watch.ms_per_example == pytest.approx(1000 * (1.0 + 6.0) / 6)
    assert watch.median_ms_per_example == pytest.approx(1000 * (0.25 + 3.0) / 2)
    assert Stopwatch(torch.device("cpu")).ms_per_example is None


def test_conditions_name_what_a_time_depends_on() -> None:
    told = conditions(tiny())

    assert told.pop("device_name")
    assert told.pop("attention") in ("packed", "sdpa")  # without fast paths
    assert told == {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads()}
