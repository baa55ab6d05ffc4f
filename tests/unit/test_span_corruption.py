"""Span corruption: lengths for any input, targets that restore the text, held-out examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mrt5cli.byte_tokens import EOS, OFFSET
from mrt5cli.data.corpus import IDS_OF_BYTES
from mrt5cli.data.span_noise import (
    FIRST_SENTINEL,
    MOST_SPANS,
    SpanLengths,
    corrupt,
    draw_spans,
    noise_mask,
    plan_lengths,
)
from mrt5cli.errors import UserError
from mrt5cli.recipe import SpanCorruptionTask
from mrt5cli.tasks import build_task
from mrt5cli.tasks.span_corruption import SpanCorruption


def task_of(source: dict[str, Any], **settings: Any) -> SpanCorruption:
    # Short spans, for several in a short input: a single one would always be the row's end.
    small = {"input_length": 64, "mean_span_length": 3.0}
    section = {"kind": "span_corruption", "source": source, **small, **settings}
    task = build_task(SpanCorruptionTask.model_validate(section))
    assert isinstance(task, SpanCorruption)
    return task


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text in three languages, of different sizes."""
    folder = tmp_path_factory.mktemp("languages")
    generator = np.random.default_rng(0)
    for language, count in (("en", 120), ("fr", 60), ("ru", 40)):
        (folder / language).mkdir()
        words = [f"{language}{n}" if language != "ru" else f"слово{n}" for n in range(100)]
        paragraphs = [" ".join(generator.choice(words, 30)) for _ in range(count)]
        (folder / language / "text.txt").write_text("\n\n".join(paragraphs))
    return folder


@given(st.integers(16, 3000), st.floats(0.01, 0.95), st.floats(1.0, 60.0))
def test_every_input_length_comes_out_exactly(length: int, density: float, mean: float) -> None:
    plan = plan_lengths(length, density, mean)
    assert plan.inputs == length
    assert plan.spans >= 1 and plan.spans <= plan.noise and plan.spans <= plan.kept
    assert plan.noise + plan.kept == plan.raw
    assert abs(plan.noise - density * plan.raw) <= max(1, 0.5)


@given(
    st.integers(16, 300), st.floats(0.05, 0.9), st.floats(1.0, 30.0), st.integers(1, 5), st.integers(0, 2**32)
)
def test_a_target_restores_its_source(length: int, density: float, mean: float, rows: int, seed: int) -> None:
    plan = plan_lengths(length, density, mean)
    assume(plan.spans <= MOST_SPANS)
    generator = np.random.default_rng(seed)
    # Bytes under 128 and ends of documents: never equal to a sentinel.
    raw = generator.choice(np.array([*range(OFFSET, 120), 255], dtype=np.uint8), (rows, plan.raw))
    kept_ends, noise_ends = draw_spans([generator] * rows, rows, plan)
    inputs, targets = corrupt(raw, kept_ends, noise_ends)
    assert inputs.shape == (rows, length) and targets.shape == (rows, plan.targets)
    assert inputs.dtype == targets.dtype == np.int64
    sentinels = FIRST_SENTINEL - np.arange(plan.spans)
    for row in range(rows):
        assert inputs[row, -1] == targets[row, -1] == EOS
        shown, hidden = inputs[row, :-1], targets[row, :-1]
        places = [np.flatnonzero(ids == sentinel) for ids in (shown, hidden) for sentinel in sentinels]
        assert all(len(place) == 1 for place in places), "each sentinel occurs once in each"
        cuts = np.concatenate(places)[: plan.spans], np.concatenate(places)[plan.spans :]
        assert (np.diff(cuts[0]) > 0).all() and cuts[1][0] == 0
        restored: list[int] = []
        for kept, noise in zip(np.split(shown, cuts[0]), np.split(hidden, cuts[1]), strict=True):
            restored += [*noise[1:], *kept[1:]] if restored or len(noise) else [*kept]
        np.testing.assert_array_equal(restored, IDS_OF_BYTES[raw[row]])


def test_noise_is_where_the_spans_say() -> None:
    mask = noise_mask(np.array([[2, 5]]), np.array([[1, 3]]))
    assert mask.astype(int).tolist() == [[0, 0, 1, 0, 0, 0, 1, 1]]


def test_every_way_of_cutting_is_equally_likely() -> None:
    """5 tokens in 2 spans: 4 ways each, so 16 together."""
    rows = 8000
    plan = SpanLengths(raw=10, noise=5, spans=2)
    kept_ends, noise_ends = draw_spans([np.random.default_rng(5)] * rows, rows, plan)
    ways, counts = np.unique(np.stack([kept_ends[:, 0], noise_ends[:, 0]]), axis=1, return_counts=True)
    assert ways.shape == (2, 16)
    assert abs(counts - rows / 16).max() < 5 * (rows / 16) ** 0.5


def test_too_many_spans_for_the_sentinels() -> None:
    with pytest.raises(UserError, match=r"needs 250 corrupted spans per example, .* only 128 sentinels"):
        task_of({"kind": "embedded"}, input_length=1000, noise_density=0.5, mean_span_length=3.0)


# --- the task
# -------------------------------------------------------------------------------------------------------


def test_batches_are_what_models_take(languages: Path) -> None:
    task = task_of({"kind": "files", "path": str(languages)}, languages=["en", "fr"])
    batch = next(iter(task.train_stream(batch_size=4, seed=1)))
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert batch["input_ids"].shape == (4, 64) and batch["labels"].shape == (4, task.lengths.targets)
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in batch.values())
    assert batch["attention_mask"].all()
    assert (batch["labels"] > 0).all(), "nothing is padded"
    assert task.deletable(batch["input_ids"]) is None


def test_held_out_examples_do_not_depend_on_the_batch_size(languages: Path) -> None:
    task = task_of({"kind": "files", "path": str(languages)}, languages=["en", "fr", "ru"])
    assert task.subsets("test") == ["en", "fr", "ru"]
    for subset in ("en", "ru"):
        one, many = (
            torch.cat(
                [
                    torch.cat([b["input_ids"], b["labels"]], 1)
                    for b in task.held_out("test", subset, batch_size=size)
                ]
            )
            for size in (1, 7)
        )
        assert torch.equal(one, many) and len(one) > 10
        some = list(task.held_out("test", subset, batch_size=4, limit=6))
        assert [len(batch["labels"]) for batch in some] == [4, 2]
        assert torch.equal(torch.cat([batch["input_ids"] for batch in some]), one[:6, :64])


def test_asking_for_more_than_there_is_gives_what_there_is(languages: Path) -> None:
    task = task_of({"kind": "files", "path": str(languages)})
    held_out = list(task.held_out("validation", "en", batch_size=1000, limit=10**6))
    corpus = task.parts[0].text.corpus("en", "validation", 1)  # type: ignore[union-attr]
    assert [len(batch["labels"]) for batch in held_out] == [len(corpus.buffer) // task.lengths.raw]


def test_held_out_noise_is_the_same_for_every_language_and_text(languages: Path) -> None:
    masks = []
    for settings in ({"kind": "embedded"}, {"kind": "files", "path": str(languages)}):
        batch = next(iter(task_of(settings).held_out("test", "en", batch_size=5)))
        masks.append(batch["input_ids"] > FIRST_SENTINEL - 4)
    assert torch.equal(*masks)
    assert masks[0].any(1).all()


def test_no_held_out_text_is_said_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n\n" * 3 + "text " * 100)
    task = task_of({"kind": "files", "path": str(tmp_path / "a.txt")})
    next(iter(task.train_stream(batch_size=2, seed=0)))
    with pytest.raises(UserError, match=r"too little validation text .* one example needs 70"):
        next(iter(task.held_out("validation", "en", batch_size=2)))


def test_what_people_see(languages: Path) -> None:
    task = task_of({"kind": "embedded"}, input_length=1024, mean_span_length=20.0)
    assert task.describe().endswith("English, 1024 -> 189 byte tokens")
    source, target = task.example("validation")
    assert [f"⟨S{n}⟩" in source for n in range(10)] == [True] * 9 + [False]
    assert target.startswith("⟨S0⟩")
    assert task.example("validation") == (source, target)
    assert task.example("train") != task.example("test")
    # The sentinels' bytes are no text: what is left of both, put together, is.
    several = task_of({"kind": "files", "path": str(languages)}, languages=["ru", "en"])
    assert " kB), 2 languages, 64 -> 14" in several.describe()
    assert "слово" in several.example("train")[0]
