"""Diagnostic tasks: rules, the distribution of the strings, splits, and the same strings everywhere."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, PAD, decode, encode
from mrt5cli.recipe import DiagnosticTask
from mrt5cli.tasks import Task, build_task
from mrt5cli.tasks.diagnostic import START, draw_strings, target_of, unneeded

KINDS = ["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]

# The rules in other words than the code's.
PATTERNS = {
    "copy": lambda text: text,
    "vowel_removal": lambda text: re.sub("[aeiouAEIOU]", "", text),
    "contextual_vowel_removal": lambda text: re.sub("(?<=[b-df-hj-np-tv-z])[aeiouAEIOU]", "", text),
    "merge_ABC": lambda text: text.replace("ABC", "D"),
}


def task_of(kind: str, **settings: object) -> Task:
    return build_task(DiagnosticTask.model_validate({"kind": kind, **settings}))


def strings(
    kind: str, split: str, count: int, *, seed: int = 7, length: int = 64, mean: float = 0.0
) -> list[str]:
    mean = mean or {"contextual_vowel_removal": 25.0, "merge_ABC": 5.0}.get(kind, 0.0) * length / 64
    ids = draw_strings(kind, split, np.arange(count), seed=seed, length=length, mean_insertions=mean)
    assert (ids[:, 0] == START).all() and (ids[:, -1] == EOS).all() and ids.shape == (count, length)
    return [decode(row) for row in ids]


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.text("ABCDabcdeiouEIzZ# .", max_size=30), min_size=1, max_size=5))
def test_rules(kind: str, texts: list[str]) -> None:
    length = max(map(len, texts)) + 4
    ids = np.full((len(texts), length), PAD, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) + 1] = encode(text, add_eos=True)
    labels = target_of(kind, ids)
    assert [decode(row) for row in labels] == [PATTERNS[kind](text) for text in texts]
    for row in labels:
        end = row.tolist().index(EOS)
        assert (row[end + 1 :] == IGNORED_LABEL).all()
    assert labels.shape[1] == max((row != IGNORED_LABEL).sum() for row in labels), "no longer than needed"
    # What may go, and what has to stay: dropping it (and writing D for A) is the target.
    gone = unneeded(kind, ids)
    assert not gone[ids <= EOS].any()
    for row, mask, label in zip(ids, gone, labels, strict=True):
        rest = row[~mask & (row != PAD)]
        kept = label[label != IGNORED_LABEL]
        assert len(rest) == len(kept)
        assert set(zip(rest[rest != kept].tolist(), kept[rest != kept].tolist(), strict=True)) <= {
            (encode("A")[0], encode("D")[0])
        }


def test_what_may_go() -> None:
    def gone(kind: str, text: str) -> str:
        mask = task_of(kind).deletable(torch.from_numpy(encode(text, add_eos=True)[None]))
        assert mask is not None and mask.dtype == np.bool_
        return "".join("x" if deleted else "." for deleted in mask[0])

    text = "#ABCzoZoeABC"
    assert gone("copy", text) == "............."
    assert gone("vowel_removal", text) == ".x...x.xxx..."
    assert gone("contextual_vowel_removal", text) == ".....x......."
    assert gone("merge_ABC", text) == "..xx......xx."


def test_any_letter_of_an_abc_may_carry_the_d() -> None:
    """The one that the gate would delete last; of equals, the first."""
    ids = encode("#ABCxABCABCA", add_eos=True)[None]
    gate = np.full(ids.shape, -30.0, dtype=np.float32)
    gate[0, [1, 2, 3]] = [-9.0, -8.0, -2.0]
    gate[0, [5, 6, 7]] = [-9.0, -1.0, -1.0]
    mask = task_of("merge_ABC").deletable(ids, gate)
    assert mask is not None
    assert "".join("x" if gone else "." for gone in mask[0]) == ".xx..x.x.xx.."


FROZEN = {
    "copy": "7003842f1d9a95b3",
    "vowel_removal": "7003842f1d9a95b3",
    "contextual_vowel_removal": "2492be9c6ca66a96",
    "merge_ABC": "2993433cdc25d08f",
}


def fingerprints() -> dict[str, str]:
    drawn = {
        kind: draw_strings(kind, "test", np.arange(100), seed=5, length=40, mean_insertions=4.0)
        for kind in KINDS
    }
    return {kind: hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16] for kind, ids in drawn.items()}


def test_the_same_strings_everywhere() -> None:
    """The numbers are frozen: another machine, numpy, process or hash seed must not change held-out data."""
    assert fingerprints() == FROZEN
    code = "from test_diagnostic import FROZEN, fingerprints; assert fingerprints() == FROZEN"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("kind", KINDS)
@given(
    split=st.sampled_from(["train", "validation", "test"]),
    indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    length=st.integers(8, 90),
)
def test_a_string_depends_on_its_number_alone(kind: str, split: str, indices: list[int], length: int) -> None:
    def draw(wanted: list[int]) -> np.ndarray:
        return draw_strings(kind, split, np.array(wanted), seed=3, length=length, mean_insertions=3.0)

    together = draw(indices)
    for place in (0, -1):
        np.testing.assert_array_equal(draw(indices[place:][:1])[0], together[place])


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_string(kind: str) -> None:
    """Short strings, so that they would."""
    length, mean = 8, 1.0 if kind == "merge_ABC" else 2.0
    drawn = {
        split: set(strings(kind, split, 20_000, seed=1, length=length, mean=mean))
        for split in ("train", "validation", "test")
    }
    assert drawn["train"].isdisjoint(drawn["validation"] | drawn["test"])
    assert drawn["validation"].isdisjoint(drawn["test"])
    other = set(strings(kind, "train", 20_000, seed=2, length=length, mean=mean))
    assert other.isdisjoint(drawn["validation"] | drawn["test"]), "whatever the seed"
    if kind == "merge_ABC":
        again = set(strings(kind, "test", 20_000, seed=2, length=length, mean=mean))
        assert len(again & drawn["test"]) > 100, "strings do come again, only never in another split"


def test_letters_are_uniform() -> None:
    for kind in ("copy", "vowel_removal"):
        text = "".join(line[1:] for line in strings(kind, "train", 4000))
        letters, counts = np.unique(list(text), return_counts=True)
        assert len(letters) == 52 and text.isalpha() and text.isascii()
        assert abs(counts - len(text) / 52).max() < 5 * (len(text) / 52) ** 0.5


def test_no_letter_depends_on_its_neighbour() -> None:
    ids = draw_strings("copy", "train", np.arange(4000), seed=1, length=64, mean_insertions=0.0)[:, 1:-1]
    centred = ids - ids.mean(0)
    correlations = (centred.T @ centred) / len(ids) / ids.std() ** 2 - np.eye(62)
    assert abs(correlations).max() < 5 / 4000**0.5


def test_merge_plants_as_many_as_the_reference() -> None:
    """max(1, int(N(5, 2.5))) has a mean of 4.55; the golden strings hold 4.58 on average."""
    counts = np.array([line.count("ABC") for line in strings("merge_ABC", "train", 4000)])
    assert counts.min() == 1 and counts.max() >= 11
    assert abs(counts.mean() - 4.55) < 5 * counts.std() / 4000**0.5
    firsts = np.bincount(
        [line.index("ABC") for line in strings("merge_ABC", "train", 4000, mean=0.1)], minlength=61
    )
    assert abs(firsts[1:] - 4000 / 60).max() < 5 * (4000 / 60) ** 0.5, "anywhere"


def test_contextual_plants_as_many_as_the_reference() -> None:
    """The golden strings hold 11.33 +- 0.24 deletable vowels, 22.66 +- 0.34 consonants before vowels."""
    lines = strings("contextual_vowel_removal", "train", 4000)
    deletable = np.array([len(re.findall("[b-df-hj-np-tv-z][aeiouAEIOU]", line)) for line in lines])
    pairs = np.array(
        [len(re.findall("[b-df-hj-np-tv-zB-DF-HJ-NP-TV-Z][aeiouAEIOU]", line)) for line in lines]
    )
    assert abs(deletable.mean() - 11.33) < 0.7 and abs(pairs.mean() - 22.66) < 1.0
    assert deletable.min() <= 2 and pairs.max() <= 31


@pytest.mark.parametrize("kind", ["contextual_vowel_removal", "merge_ABC"])
@pytest.mark.parametrize(("length", "mean"), [(8, 500.0), (9, 1.0), (64, 500.0), (128, 0.01)])
def test_pieces_always_fit(kind: str, length: int, mean: float) -> None:
    piece = 3 if kind == "merge_ABC" else 2
    pattern = "ABC" if kind == "merge_ABC" else "[B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z][AEIOUaeiou]"
    counts = np.array(
        [len(re.findall(pattern, line)) for line in strings(kind, "test", 500, length=length, mean=mean)]
    )
    assert counts.min() >= 1 and counts.max() <= (length - 2) // piece
    if mean == 500.0:
        # No place for one more: gaps are shorter than a piece. (Some draw a count below 1 and get one.)
        assert np.quantile(counts, 0.1) >= (length - 2 - piece + 1) // (2 * piece - 1)


# --- the task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_what_models_take(kind: str) -> None:
    task = task_of(kind, length=24)
    assert task.subsets("test") == ["all"] and task.name == kind
    batch = next(iter(task.train_stream(batch_size=16, seed=1)))
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert batch["input_ids"].shape == (16, 24) and batch["attention_mask"].all()
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in batch.values())
    sources, targets = ([decode(row) for row in batch[name]] for name in ("input_ids", "labels"))
    assert targets == [PATTERNS[kind](source) for source in sources]
    ends = (batch["labels"] == EOS).sum(1)
    assert (ends == 1).all() and (batch["labels"] != IGNORED_LABEL).any(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_examples_do_not_depend_on_the_batch_size(kind: str) -> None:
    task = task_of(kind, length=16, eval_examples=1500)

    def rows(**settings: int) -> list[tuple[str, str]]:
        batches = task.held_out("test", "all", **settings)
        return [
            (decode(a), decode(b))
            for batch in batches
            for a, b in zip(batch["input_ids"], batch["labels"], strict=True)
        ]

    whole = rows(batch_size=64)
    assert len(whole) == 1500
    assert rows(batch_size=7, limit=100) == whole[:100] == rows(batch_size=2000, limit=100)
    assert rows(batch_size=500, limit=10**6) == whole
    assert task.example("test") == whole[0]
    validation = {
        decode(row)
        for batch in task.held_out("validation", "all", batch_size=64)
        for row in batch["input_ids"]
    }
    assert validation.isdisjoint(source for source, _ in whole)


def test_training_strings_come_again_after_the_last() -> None:
    stream = task_of("copy", length=16, train_examples=10).train_stream(batch_size=5, seed=1)
    first, second, third, _ = (batch["input_ids"] for batch, _ in zip(stream, range(4), strict=False))
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_what_people_see() -> None:
    described = task_of("merge_ABC").describe()
    assert "merge_ABC" in described and "64 byte tokens" in described and "5 pieces" in described
    source, target = task_of("vowel_removal").example("train")
    assert source.startswith("#") and target == PATTERNS["vowel_removal"](source)


def test_every_kind_of_the_schema_is_registered() -> None:
    for kind in KINDS:
        assert task_of(kind).name == kind
