"""A step of cached generation by the short way equals the long one, to the bit, and is taken where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Stack
from variants import KINDS, batch_of, random_rows, tiny

from mrt5cli.models import MrT5ForConditionalGeneration, stack
from mrt5cli.models.fast.switch import fast_paths

pytestmark = pytest.mark.usefixtures("fast")

TOKENS = 6


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of `T5Stack.forward` has: of a decoder, as our encoder has its own."""
    counts: list[int] = []
    forward = T5Stack.forward

    def counted(self: T5Stack, *arguments: Any, **options: Any) -> Any:
        counts.append(options["inputs_embeds"].shape[1])
        return forward(self, *arguments, **options)

    monkeypatch.setattr(T5Stack, "forward", counted)
    return counts


def generated(model: MrT5ForConditionalGeneration, **how: Any) -> Any:
    """Tokens and logits for rows of unequal lengths."""
    ids, mask = batch_of(random_rows([9, 23, 14], seed=3))
    wanted = {"return_dict_in_generate": True, "output_logits": True, "min_new_tokens": TOKENS}
    return model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, **wanted, **how)


@pytest.mark.parametrize("deletion", [{"hard_delete": True}, {}], ids=["hard", "soft"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("variant", [*KINDS, "positions"])
def test_a_step_is_that_of_the_stack(
    variant: str,
    beams: int,
    deletion: dict[str, Any],
    long_ways: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"has_absolute_position_embeddings": True} if variant == "positions" else {}
    model = tiny("mrt5" if fields else variant, **fields)

    short = generated(model, num_beams=beams, **deletion)
    assert not long_ways
    monkeypatch.setattr(stack, "is_step", lambda *_, **__: False)
    long = generated(model, num_beams=beams, **deletion)

    assert long_ways == [1] * TOKENS
    assert torch.equal(short.sequences, long.sequences)
    assert all(map(torch.equal, short.logits, long.logits))


def test_a_layer_with_a_bias_of_its_own_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mrt5", relative_bias_per_layer=True)
    short = generated(model)
    monkeypatch.setattr(stack, "is_step", lambda *_, **__: False)

    assert all(map(torch.equal, short.logits, generated(model).logits))


@pytest.mark.parametrize(
    "asked",
    [
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"cache_implementation": "static"},
        {"decoder_attention_mask": torch.ones(3, 1, dtype=torch.long)},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_step_cannot_do_goes_the_long_way(asked: dict[str, Any], long_ways: list[int]) -> None:
    model = tiny("mrt5")
    if "cache_implementation" in asked:  # which transformers compiles, where it can
        asked = {**asked, "disable_compile": True}

    generated(model, **asked)

    assert len(long_ways) == TOKENS


def test_training_dropout_gradients_and_the_switch_go_the_long_way(long_ways: list[int]) -> None:
    model = tiny("mrt5")
    with fast_paths(False):
        generated(model)
    generated(model.train())
    model.eval()
    ids = torch.tensor(random_rows([9]))
    out = model(ids, decoder_input_ids=ids[:, :1], use_cache=True)
    model(ids, decoder_input_ids=ids[:, 1:2], past_key_values=out.past_key_values)

    assert len(long_ways) == 2 * TOKENS + 2
