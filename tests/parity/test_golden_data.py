"""Lengths, noise, chunks and rules equal to those of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, OFFSET, PAD, encode
from mrt5cli.data.corpus import END_OF_DOCUMENT, IDS_OF_BYTES, Corpus, Order
from mrt5cli.data.span_noise import corrupt, draw_spans, noise_mask, plan_lengths, spans_of
from mrt5cli.tasks.diagnostic import target_of

DATA = Path(__file__).parents[1] / "fixtures" / "golden" / "data"
RUNS = json.loads((DATA / "span_corruption.json").read_text())
LENGTHS = json.loads((DATA / "span_lengths.json").read_text())["rows"]
DIAGNOSTICS = ["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]


def test_lengths_of_the_paper() -> None:
    plan = plan_lengths(1024, 0.15, 20.0)
    assert (plan.raw, plan.inputs, plan.targets, plan.noise, plan.spans) == (1193, 1024, 189, 179, 9)


def test_lengths_wherever_the_reference_works() -> None:
    """It crashes where its length helper and its masker disagree: no span at all, ties at density 0.5."""
    compared = 0
    for row in LENGTHS:
        wanted, *noise = row["inputs_length"], row["noise_density"], row["mean_noise_span_length"]
        plan = plan_lengths(wanted, *noise)
        assert plan.inputs == wanted
        masked = spans_of(row["tokens_length"], *noise)
        if (masked.inputs, masked.targets) == (wanted, row["targets_length"]):
            assert (plan.raw, plan.targets) == (row["tokens_length"], row["targets_length"])
            compared += 1
    assert (compared, len(LENGTHS)) == (83, 90)


@pytest.mark.parametrize("run", RUNS["runs"], ids=lambda run: f"L{run['input_length']}-seed{run['seed']}")
def test_span_corruption(run: dict[str, int]) -> None:
    golden = np.load(DATA / "span_corruption.npz")
    plan = plan_lengths(run["input_length"], 0.15, 20.0)
    assert (plan.raw, plan.targets) == (run["raw_length"], run["target_length"])
    generator = np.random.default_rng(run["seed"])
    for call in run["calls_in_order"]:  # type: ignore[attr-defined]
        prefix = f"L{run['input_length']}.seed{run['seed']}.{call}."
        tokens = golden[prefix + "tokens"].astype(np.int64)
        raw = np.where(tokens == EOS, END_OF_DOCUMENT, tokens - OFFSET).astype(np.uint8)
        inputs, targets = corrupt(raw, *draw_spans([generator] * len(raw), len(raw), plan))
        np.testing.assert_array_equal(inputs, golden[prefix + "input_ids"])
        np.testing.assert_array_equal(targets, golden[prefix + "labels"])


@pytest.mark.parametrize(
    ("name", "seed", "law"),
    [
        ("mask.L73.seed99", 99, (73, 0.15, 20.0)),
        ("mask.L148.seed99", 99, (148, 0.15, 20.0)),
        ("mask.L1193.seed99", 99, (1193, 0.15, 20.0)),
        ("mask.len60.nd0.3.ms3.0.seed3", 3, (60, 0.3, 3.0)),
        ("mask.len7.nd0.15.ms20.0.seed3", 3, (7, 0.15, 20.0)),
        ("mask.len200.nd0.5.ms4.0.seed3", 3, (200, 0.5, 4.0)),
    ],
)
def test_noise_masks(name: str, seed: int, law: tuple[int, float, float]) -> None:
    golden = np.load(DATA / "span_corruption.npz")[name]
    generator = np.random.default_rng(seed)
    np.testing.assert_array_equal(
        noise_mask(*draw_spans([generator] * len(golden), len(golden), spans_of(*law))), golden
    )


def test_documents_joined_and_cut() -> None:
    given = RUNS["tokenize_and_chunk"]
    corpus = Corpus([text.encode() for text in given["texts"]])
    for result in given["results"]:
        size, chunks = result["chunk_size"], result["chunks"]
        assert len(corpus.buffer) // size == len(chunks)
        cut = Order(corpus).read(0, len(chunks) * size).reshape(-1, size)
        np.testing.assert_array_equal(IDS_OF_BYTES[cut], chunks)


@pytest.mark.parametrize("key", [*DIAGNOSTICS, "copy.given", "vowel_removal.given"])
def test_rules_of_the_diagnostic_tasks(key: str) -> None:
    golden = np.load(DATA / "diagnostics.npz")
    inputs = golden[f"{key}.input_ids"].astype(np.int64)
    labels = golden[f"{key}.labels"].astype(np.int64)
    ours = target_of(key.removesuffix(".given"), inputs)
    assert len(inputs) == (4 if key.endswith("given") else 200)
    # The reference pads labels with 0 and to the length of the input.
    padded = np.full_like(labels, PAD)
    padded[:, : ours.shape[1]] = np.where(ours == IGNORED_LABEL, PAD, ours)
    np.testing.assert_array_equal(padded, labels)


def test_given_texts_are_encoded_as_ours_are() -> None:
    facts = json.loads((DATA / "diagnostics.json").read_text())["tasks"]["copy"]
    inputs = np.load(DATA / "diagnostics.npz")["copy.given.input_ids"]
    assert len(facts["given_texts"]) == len(inputs)
    for text, ids in zip(facts["given_texts"], inputs, strict=True):
        np.testing.assert_array_equal(encode("#" + text, add_eos=True), ids[ids != PAD])
