"""`training.batch_tokens`: rows of like length together, within a budget, whichever rows a step has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.batching import divided
from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.training.micro_batches import in_equal_number, micro_batches

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=30)


def batch_of(lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Rows of these source and target lengths; a row's tokens are its number and 3."""
    ids = torch.full((len(lengths), max(source for source, _ in lengths)), PAD)
    labels = torch.full((len(lengths), max(1, *(target for _, target in lengths))), IGNORED_LABEL)
    for row, (source, target) in enumerate(lengths):
        ids[row, :source], labels[row, :target] = row + 3, row + 3
    return {"input_ids": ids, "attention_mask": ids.ne(PAD).long(), "labels": labels, "segment_ends": ids > 7}


@given(LENGTHS, st.integers(1, 400))
def test_all_rows_once_and_within_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    found = micro_batches(batch_of(lengths), budget)
    rows = [row for each in found for row in (each["input_ids"][:, 0] - 3).tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    sources = [lengths[row][0] for row in rows]
    assert sources == sorted(sources, reverse=True)
    for each in found:
        numbers = (each["input_ids"][:, 0] - 3).tolist()
        width, target = (max(lengths[row][place] for row in numbers) for place in (0, 1))
        assert each["input_ids"].shape == each["attention_mask"].shape == (len(numbers), width)
        assert each["segment_ends"].shape == (len(numbers), width)
        assert each["labels"].shape == (len(numbers), max(1, target))
        assert len(numbers) * (width + target) <= budget or len(numbers) == 1
        for row, ids, labels in zip(numbers, each["input_ids"], each["labels"], strict=True):
            assert (ids == row + 3).sum() == lengths[row][0] and (labels == row + 3).sum() == lengths[row][1]


def test_what_is_left_over_is_shared_out() -> None:
    sizes = [rows.stop - rows.start for rows in divided([10] * 32, [2] * 32, 120)]
    assert sizes == [8, 8, 8, 8]


def test_a_long_target_counts_for_its_neighbours() -> None:
    assert [*divided([4, 4, 4], [1, 9, 1], 15)] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert [*divided([4, 4, 4], [1, 9, 1], 26)] == [slice(0, 2), slice(2, 3)]


@given(LENGTHS, st.integers(1, 400), st.integers(0, 30))
def test_processes_have_as_many(lengths: list[tuple[int, int]], budget: int, more: int) -> None:
    before = micro_batches(batch_of(lengths), budget)
    number = min(len(before) + more, len(lengths))
    found = in_equal_number(before, number)
    assert len(found) == number and all(len(each["labels"]) for each in found)
    rows = sorted(row for each in found for row in (each["input_ids"][:, 0] - 3).tolist())
    assert rows == list(range(len(lengths)))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_equal_rows_keep_their_order(order: list[int]) -> None:
    batch = {name: part[order] for name, part in batch_of([(5, 2)] * 3).items()}
    [found] = micro_batches(batch, 100)
    assert torch.equal(found["input_ids"], batch["input_ids"])
