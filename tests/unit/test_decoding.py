"""How outputs are found: beams, draws, and nothing but UTF-8."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor
from variants import random_rows, writer

from mrt5cli.byte_tokens import EOS, OFFSET, PAD, to_bytes
from mrt5cli.generation.decoding import Decoding, Noise, generate_answers, padded, sequences
from mrt5cli.generation.utf8 import MISSING, WHOLE, OnlyUtf8, steps

LENGTHS = [5, 23, 9, 9, 31, 2, 14, 40]
HARD = {"hard_delete": True}
CPU = torch.device("cpu")


def rows() -> list[torch.Tensor]:
    return [torch.tensor(row) for row in random_rows(LENGTHS, seed=1)]


def hesitant() -> Any:
    """A writer that likes several tokens nearly as well."""
    model = writer("mrt5")
    model.lm_head.weight.data /= 20
    return model


def written(model: Any, decoding: Decoding, size: int = 8, deletion: dict[str, Any] = HARD) -> list[bytes]:
    found: list[bytes] = []
    with torch.inference_mode():
        for start in range(0, len(LENGTHS), size):
            batch = {**padded(rows()[start : start + size], CPU), **deletion}
            numbers = range(start, start + len(batch["input_ids"]))
            for row in sequences(model, batch, decoding, numbers).tolist():
                found.append(to_bytes(row[: row.index(EOS)] if EOS in row else row))
    return found


@pytest.mark.parametrize("deletion", [HARD, {"hard_delete": False}], ids=["hard", "soft"])
def test_beams_are_those_of_the_model_alone(deletion: dict[str, Any]) -> None:
    model = hesitant()
    decoding = Decoding(12, num_beams=3, length_penalty=0.5)

    by_hand = []
    for row in rows():
        ids = model.generate(row[None], **deletion, num_beams=3, length_penalty=0.5, max_new_tokens=12)
        by_hand.append(to_bytes(ids[0].tolist()))

    assert written(model, decoding, 8, deletion) == written(model, decoding, 3, deletion) == by_hand
    assert by_hand != written(model, Decoding(12), 8, deletion), "beams found no other"


def test_several_beams_come_best_first() -> None:
    model = hesitant()
    best = written(model, Decoding(12, num_beams=3))
    three = written(model, Decoding(12, num_beams=3, num_return=3))

    assert three[::3] == best
    assert len(set(three)) > len(set(best))
    with torch.inference_mode():
        told = generate_answers(
            model, rows(), decoding=Decoding(12, num_beams=3, num_return=3), batch_size=8, deletion=HARD
        )
    assert told == [text.decode("utf-8", "ignore") for text in best]


@pytest.mark.parametrize("only", [{}, {"valid_utf8": True}, {"temperature": 2.0, "top_p": 0.9}], ids=str)
def test_draws_do_not_depend_on_the_batch(only: dict[str, Any]) -> None:
    model = hesitant()
    decoding = Decoding(12, sample=True, seed=3, num_return=2, **only)

    found = written(model, decoding)

    assert found == written(model, decoding, 1) == written(model, decoding, 3)
    assert found != written(model, replace(decoding, seed=4))
    assert found[::2] != found[1::2], "two draws for a source are two"
    assert found[::2] == written(model, replace(decoding, num_return=1))


def test_noise_draws_tokens_as_often_as_the_softmax_says() -> None:
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    scores = torch.tensor(np.log(chances)).expand(20_000, 4)
    noise = Noise(0, [(number, 0) for number in range(20_000)])

    drawn = noise(torch.zeros(20_000, 1), scores).argmax(1).numpy()

    assert np.bincount(drawn) / 20_000 == pytest.approx(chances, abs=0.015)


def test_a_small_top_p_draws_the_likeliest() -> None:
    model = hesitant()
    assert written(model, Decoding(12, sample=True, top_p=1e-6)) == written(model, Decoding(12))
    assert written(model, Decoding(12, sample=True, temperature=1e-4)) == written(model, Decoding(12))


# --- UTF-8 ---


def test_every_character_passes_and_nothing_else() -> None:
    table = steps()

    def passes(raw: bytes) -> bool:
        state = WHOLE
        for byte in raw:
            state = int(table[state, byte]) if state >= 0 else -1
        return state == WHOLE

    texts = [chr(point) for point in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)]
    assert all(passes(text.encode()) for text in texts)
    wrong = ["80", "c080", "c1bf", "e08080", "e09fbf", "eda080", "edbfbf", "f0808080", "f08fbfbf", "f4908080"]
    wrong += ["f5808080", "ff", "c3", "e282", "f09f98", "c3c3", "e28280c0"]
    assert not any(passes(bytes.fromhex(raw)) for raw in wrong)
    by_state = Counter(int(table[WHOLE, text.encode()[0]]) for text in map(chr, range(0x80, 0xD800)))
    assert all(MISSING[state] for state in by_state)


class Wild(LogitsProcessor):
    """Scores that have nothing to do with the model."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.randn(scores.shape, generator=self.draw) * 3


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.sampled_from([{}, {"num_beams": 3, "num_return": 2}, {"sample": True}]),
)
def test_whatever_the_logits_outputs_decode(seed: int, length: int, how: dict[str, Any]) -> None:
    model, wild = writer("mrt5"), Wild(seed)
    model.lm_head.register_forward_hook(lambda _, __, logits: wild(logits, logits[:, :, :] * 0))
    with torch.inference_mode():
        batch = padded(rows()[:3], CPU)
        found = sequences(model, batch, Decoding(length, valid_utf8=True, seed=seed, **how), range(3))
    for row in found.tolist():
        kept = row[: row.index(EOS)] if EOS in row else row
        assert all(OFFSET <= i < OFFSET + 256 for i in kept if i != PAD)
        bytes(i - OFFSET for i in kept if i != PAD).decode("utf-8")


def test_without_the_rule_they_do_not() -> None:
    model, wild = writer("mrt5"), Wild(0)
    model.lm_head.register_forward_hook(lambda _, __, logits: wild(logits, logits * 0))
    with pytest.raises(UnicodeDecodeError):
        for raw in written(model, Decoding(9)):
            raw.decode("utf-8")


def test_characters_are_not_begun_that_cannot_be_finished() -> None:
    rule = OnlyUtf8(384, 4, CPU)
    prompt = torch.zeros(1, 1, dtype=torch.long)

    def allowed(*raw: int) -> set[int]:
        ids = torch.cat([prompt, torch.tensor([[byte + OFFSET for byte in raw]], dtype=torch.long)], dim=1)
        return set(rule(ids, torch.zeros(1, 384))[0].isfinite().nonzero()[:, 0].tolist())

    assert 0xF0 + OFFSET in allowed()
    assert max(allowed(0x41)) == 0xEF + OFFSET
    assert max(allowed(0x41, 0x41)) == 0xDF + OFFSET
    assert allowed(0x41, 0x41, 0x41) == {EOS, *range(OFFSET, OFFSET + 0x80)}
    assert allowed(0xE0) == set(range(OFFSET + 0xA0, OFFSET + 0xC0))
    assert EOS in allowed(0xC3, 0xA9)
    assert EOS not in allowed(0xE2, 0x82)
