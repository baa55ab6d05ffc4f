"""Greedy decoding by CUDA graphs gives the tokens of transformers' loop. On request: `make test-gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from variants import KINDS, batch_of, random_rows, writer

from mrt5cli.byte_tokens import EOS
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast import greedy
from mrt5cli.models.fast.switch import fast_paths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("fast"),
    pytest.mark.usefixtures("exact_float32"),
]

HARD = {"hard_delete": True}
LENGTHS = [9, 23, 14, 40, 30, 17, 2, 31]


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The replay of each step that was recorded."""
    made: list[Any] = []
    record = greedy.recorded

    def recorded(step: Any) -> Any:
        made.append(record(step))
        return made[-1]

    monkeypatch.setattr(greedy, "recorded", recorded)
    return made


def batch(seed: int = 3) -> dict[str, Tensor]:
    ids, mask = batch_of(random_rows(LENGTHS, seed=seed))
    return {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}


def tokens(model: MrT5ForConditionalGeneration, **wanted: Any) -> Tensor:
    return model.generate(**{**batch(), "max_new_tokens": 20, "do_sample": False, **wanted})


def agree(
    model: MrT5ForConditionalGeneration, deletion: dict[str, Any] = HARD, seed: int = 3, **wanted: Any
) -> Tensor:
    """The tokens: those of transformers' loop, or as good as the best, given the same tokens before. The
    source is encoded once, as rounding may flip a gate."""
    with torch.no_grad():
        wanted |= {**batch(seed), "encoder_outputs": model.encoder(**batch(seed), **deletion)}
    found = tokens(model, **wanted)
    with fast_paths(False):
        if torch.equal(found, tokens(model, **wanted)):
            return found
        with torch.no_grad():
            encoded = wanted["encoder_outputs"]
            logits = model(encoder_outputs=encoded, decoder_input_ids=found[:, :-1]).logits.float()
    ended = found.eq(EOS).cumsum(dim=1)[:, :-1] > 0
    logits[:, : wanted.get("min_new_tokens", 0), EOS] = -torch.inf
    short = logits.amax(dim=2) - logits.gather(2, found[:, 1:, None])[..., 0]
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")
    assert short[~ended].max() <= (1e-4 if exact else 0.05) * logits[logits.isfinite()].abs().max()
    return found


@pytest.mark.parametrize("deletion", [HARD, {}], ids=["hard", "soft"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("variant", KINDS)
def test_tokens(variant: str, precision: str, deletion: dict[str, Any], recordings: list[Any]) -> None:
    model = writer(variant).cuda()
    if precision == "bfloat16":
        model.bfloat16()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "autocast"):
        for seed in (3, 4, 5):  # the second is recorded, and replays what is not its own batch
            agree(model, deletion, seed)
        agree(model, deletion, min_new_tokens=20)
    assert len(recordings) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"use_softmax1": True},
        {"has_absolute_position_embeddings": True},
        {"relative_bias_per_layer": True, "use_softmax1": True},
        {"d_kv": 64},
    ],
    ids=str,
)
def test_kinds_of_attention(fields: dict[str, Any], recordings: list[Any]) -> None:
    model = writer("mrt5", **fields).cuda()
    for seed in (3, 4, 5):
        agree(model, seed=seed)
    assert len(recordings) == 1


def test_changed_and_replaced_weights_are_seen_by_the_graph(recordings: list[Any]) -> None:
    model = writer("mrt5").cuda()
    before = agree(model)
    assert torch.equal(agree(model), before)
    wi = model.decoder.block[1].layer[2].DenseReluDense.wi_1
    wi.weight.data *= -9
    changed = agree(model)
    wi.weight = torch.nn.Parameter(wi.weight.detach() / -9)
    again = agree(model)

    assert not torch.equal(before, changed)
    assert torch.equal(before, again)
    assert len(recordings) == 1


def test_inference_mode_larger_batches_and_another_precision(recordings: list[Any]) -> None:
    model = writer("mrt5").cuda()
    with torch.inference_mode():
        first = tokens(model, **HARD)
        assert torch.equal(tokens(model, **HARD), first)
    for _ in range(2):
        agree(model, max_new_tokens=100)
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):
            agree(model)
    for _ in range(2):
        assert torch.equal(tokens(model, **HARD), first)
    assert len(recordings) == 4, "two shapes, and the first again after each change of precision"


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    ids = torch.tensor(random_rows([20, 20]), device="cuda:1")
    model = writer("mrt5").to("cuda:1")
    for _ in range(2):
        found = model.generate(ids, max_new_tokens=20, do_sample=False)
    with fast_paths(False):
        assert torch.equal(found, model.generate(ids, max_new_tokens=20, do_sample=False))


def test_steps_do_not_wait_for_the_device() -> None:
    model = writer("mrt5").cuda()
    for _ in range(2):
        tokens(model, min_new_tokens=20)
    (step,) = greedy._KEPT[model].steps.values()
    assert step.replay is not None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            step.replay()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_memory_goes_with_the_model() -> None:
    def rest() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    model = writer("mrt5").cuda()
    for _ in range(2):
        tokens(model)
    without = rest()
    assert greedy._KEPT.pop(model) is not None
    assert rest() < without
