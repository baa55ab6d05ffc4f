"""A step of cached generation by the short way equals the long one, to the bit, and is taken where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Stack
from transformers.utils import generic
from variants import KINDS, batch_of, random_rows, tiny

from mrt5cli.models import MrT5ForConditionalGeneration, stack
from mrt5cli.models.cache_name import CACHE
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.stack import self_attention

pytestmark = pytest.mark.usefixtures("fast")

TOKENS = 6


NAMES = "past_key_values", "cache"
"""Before transformers 5.24 and since."""


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
    model(ids, decoder_input_ids=ids[:, 1:2], past_key_values=out[CACHE])

    assert len(long_ways) == 2 * TOKENS + 2


@pytest.mark.parametrize("quick", [True, False], ids=["step", "stack"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_has_two_names_with_every_transformers(
    name: str, quick: bool, long_ways: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []  # of transformers' logger, which warns once in a process
    monkeypatch.setattr(generic.logger, "warning_once", warnings.append)
    model = tiny("mrt5")
    ids = torch.tensor(random_rows([9]))
    with fast_paths(quick), torch.no_grad():
        wanted = model(ids, decoder_input_ids=ids[:, :5], use_cache=False).logits
        long_ways.clear()
        cache, logits = None, []
        for place in range(5):
            out = model(ids, decoder_input_ids=ids[:, place : place + 1], use_cache=True, **{name: cache})
            cache = out[CACHE]
            assert cache.get_seq_length() == place + 1
            logits.append(out.logits)
        one = EncoderDecoderCache(DynamicCache(), DynamicCache())
        found = generated(model, **{CACHE: one})

    torch.testing.assert_close(torch.cat(logits, dim=1), wanted)
    assert one.get_seq_length() == TOKENS == len(found.logits)
    assert long_ways == ([1] if quick else [1] * (5 + TOKENS))
    assert not warnings


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_given_its_cache_by_either_name(name: str) -> None:
    layer = self_attention(tiny("mrt5").decoder.block[0])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    layer(torch.randn(2, 3, layer.d_model), **{name: cache})

    assert cache.get_seq_length(layer.layer_idx) == 3
