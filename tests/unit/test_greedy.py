"""Greedy decoding by a loop of our own: the tokens of transformers' loop, by operations that a GPU records.

What a graph does with a step is imitated (`tests/replayed.py`): everything here holds for operations that are
replayed, and none of them makes the host wait.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import replayed
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList, MinLengthLogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput
from variants import KINDS, batch_of, random_rows, tiny, writer

from mrt5cli.benchmark.generation import generate
from mrt5cli.benchmark.models import Shapes, base_model
from mrt5cli.byte_tokens import EOS
from mrt5cli.generation.decoding import Decoding, generate_answers
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.cache_name import CACHE
from mrt5cli.models.fast import greedy
from mrt5cli.models.fast.switch import fast_paths

pytestmark = pytest.mark.usefixtures("fast")

LENGTHS = [9, 23, 14, 40, 30, 17]
HARD = {"hard_delete": True}
LETTERS = [ord(letter) + 3 for letter in "aei"]


def lively(variant: str, **fields: Any) -> MrT5ForConditionalGeneration:
    """A writer whose next token follows from those before, from their distance and from the source."""
    model = writer(variant, **fields)
    model.shared.weight.data *= 0.3
    for block in model.decoder.block:
        attention = block.layer[0].SelfAttention
        attention.o.weight.data *= 20
        if attention.has_relative_attention_bias:
            attention.relative_attention_bias.weight.data *= 3
    return model


def tokens(model: MrT5ForConditionalGeneration, **wanted: Any) -> Tensor:
    """(B, 1 + t) of rows of unequal lengths, 20 tokens at most unless something else is wanted."""
    ids, mask = batch_of(random_rows(wanted.pop("lengths", LENGTHS), seed=wanted.pop("seed", 3)))
    found = model.generate(ids, attention_mask=mask, **{"max_new_tokens": 20, "do_sample": False, **wanted})
    return found if isinstance(found, Tensor) else found.sequences


def same(model: MrT5ForConditionalGeneration, **wanted: Any) -> Tensor:
    """The tokens, which are transformers', also when operations are replayed that were recorded on others."""
    found = tokens(model, **wanted)
    tokens(model, **{**wanted, "seed": 9})
    assert torch.equal(found, tokens(model, **wanted))
    with fast_paths(False):
        assert torch.equal(found, tokens(model, **wanted))
    return found


FIELDS: dict[str, dict[str, Any]] = {
    "T5": {},
    "softmax1": {"use_softmax1": True},
    "learned positions": {"has_absolute_position_embeddings": True},
    "unused positions": {"has_absolute_position_embeddings": True, "learned_positions": "unused"},
    "umT5": {"relative_bias_per_layer": True, "use_softmax1": True},
}


@pytest.mark.parametrize("deletion", [HARD, {}], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "variant, fields", [*((variant, "T5") for variant in KINDS), *(("mrt5", name) for name in FIELDS)]
)
def test_tokens_are_those_of_transformers_loop(
    variant: str, fields: str, deletion: dict[str, Any], own_loop: list[Any]
) -> None:
    found = same(lively(variant, **FIELDS[fields]), **deletion)

    assert len(own_loop) == 3
    if variant != "source_removed":
        assert len(set(map(tuple, found.tolist()))) > 2


def test_rows_end_one_after_the_other(own_loop: list[Any]) -> None:
    found = same(lively("hnet"), **HARD)

    assert len(set(found.ne(EOS).int().cumprod(dim=1).sum(dim=1).tolist())) > 3
    assert own_loop


@pytest.mark.parametrize("deletion", [HARD, {}], ids=["hard", "soft"])
@pytest.mark.parametrize("fields", FIELDS)
def test_logits_are_the_models(
    fields: str, deletion: dict[str, Any], own_loop: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, logits = lively("mrt5", **FIELDS[fields]), []
    argmax = Tensor.argmax

    def spying(scores: Tensor, *args: Any, **given: Any) -> Tensor:
        if scores.shape[-1] == model.config.vocab_size:
            logits.append(scores)
        return argmax(scores, *args, **given)

    monkeypatch.setattr(Tensor, "argmax", spying)
    found = tokens(model, eos_token_id=-1, **deletion)
    monkeypatch.undo()
    ids, mask = batch_of(random_rows(LENGTHS, seed=3))
    with torch.no_grad(), fast_paths(False):
        due = model(ids, attention_mask=mask, decoder_input_ids=found[:, :-1], **deletion).logits
    torch.testing.assert_close(torch.stack(logits, dim=1), due, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wanted",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": None, "max_length": 9},
        {"min_new_tokens": 7},
        {"min_new_tokens": 20},
        {"max_new_tokens": None, "min_length": 6, "max_length": 15},
        {"eos_token_id": LETTERS, "min_new_tokens": 3},
        {"eos_token_id": LETTERS, "pad_token_id": 7},
        {"eos_token_id": -1},
        {"max_new_tokens": 63},
        {"max_new_tokens": 64},
        {"max_new_tokens": 65},
        {"lengths": [63]},
        {"lengths": [64, 2]},
        {"lengths": [65, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("softmax1", [False, True], ids=["softmax", "softmax1"])
def test_what_may_be_asked(wanted: dict[str, Any], softmax1: bool, own_loop: list[Any]) -> None:
    fields = {"use_softmax1": softmax1, "max_position_embeddings": 128}
    same(lively("mrt5", **fields), **HARD, **wanted)

    assert len(own_loop) == 3


def test_nothing_ends_a_row_without_an_id_that_does(own_loop: list[Any]) -> None:
    model = lively("mrt5")
    model.generation_config = GenerationConfig(pad_token_id=0, decoder_start_token_id=0)
    model.config.eos_token_id = None

    assert same(model).shape == (6, 21)
    assert own_loop[0].ends is None


def test_all_rows_may_end_at_once(own_loop: list[Any]) -> None:
    model = tiny("mrt5")
    model.lm_head.weight.data.zero_()[EOS] = 1.0
    model.decoder.final_layer_norm.weight.data.abs_()
    model.shared.weight.data.abs_()
    found = [same(model, eos_token_id=[EOS, 0]), same(model, min_new_tokens=2, eos_token_id=[EOS, 0])]

    assert [one.shape[1] for one in found] == [2, 4]
    assert len(own_loop) == 6


@pytest.mark.parametrize("kind", ["ours", "theirs", "a tuple"])
def test_encoder_outputs_may_be_given(kind: str, own_loop: list[Any]) -> None:
    model = lively("mrt5")
    ids, mask = batch_of(random_rows(LENGTHS, seed=3))
    with torch.no_grad():
        encoded = model.encoder(ids, attention_mask=mask, hard_delete=kind == "ours")
    states = encoded.last_hidden_state
    given = {"ours": encoded, "theirs": BaseModelOutput(states), "a tuple": BaseModelOutput(states)}[kind]
    found = same(model, encoder_outputs=given, **(HARD if kind == "ours" else {}))

    assert len(own_loop) == 3
    assert kind != "ours" or torch.equal(found, tokens(model, **HARD))


# --- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("softmax1", [False, True], ids=["softmax", "softmax1"])
def test_bfloat16(how: str, softmax1: bool, own_loop: list[Any]) -> None:
    """Where rounding chooses among near ties, no token is far from the best one."""
    model = writer("mrt5", use_softmax1=softmax1)
    if how == "weights":
        model.to(torch.bfloat16)
    ids, mask = batch_of(random_rows(LENGTHS, seed=3))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = tokens(model, **HARD)
    assert own_loop[0].dtype == torch.bfloat16

    model.float()
    with torch.no_grad(), fast_paths(False):
        logits = model(ids, attention_mask=mask, decoder_input_ids=found[:, :-1], **HARD).logits
    chosen = logits.gather(2, found[:, 1:, None])[..., 0]
    before = found.eq(EOS).cumsum(dim=1)[:, :-1] == 0
    short = (logits.amax(dim=2) - chosen)[before]
    assert short.max() < 0.05 * logits.abs().max()
    assert (short == 0).float().mean() > 0.8


def test_a_model_may_change_its_precision(own_loop: list[Any]) -> None:
    model = lively("mrt5")
    first = same(model, **HARD)
    tokens(model.to(torch.bfloat16), **HARD)
    with torch.autocast("cpu", torch.bfloat16):
        tokens(model.float(), **HARD)

    model = lively("mrt5")
    assert torch.equal(same(model, **HARD), first)
    assert [asked.dtype for asked in own_loop[2:]] == [
        torch.float32,
        *[torch.bfloat16] * 2,
        *[torch.float32] * 3,
    ]


def test_calls_may_be_in_inference_mode_or_not(own_loop: list[Any]) -> None:
    model = lively("mrt5")
    with torch.inference_mode():
        first = tokens(model, **HARD)
    second = tokens(model, **HARD)
    with torch.inference_mode():
        assert torch.equal(first, tokens(model, **HARD))
    assert torch.equal(first, second)
    assert len(own_loop) == 3


# --- what is kept -------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(own_loop: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations of each recorded step."""
    made: list[Any] = []

    def recorded(step: Any) -> Any:
        replay = replayed.recorded(step)
        made.append(replay.__self__.operations)
        return replay

    monkeypatch.setattr(greedy, "recorded", recorded)
    return made


def test_batches_of_a_shape_share_a_recording(recordings: list[Any]) -> None:
    model = lively("mrt5", max_position_embeddings=128)
    for seed in range(4):
        same(model, seed=seed)
    same(model, lengths=[5, 9, 50, 31, 2, 9], max_new_tokens=47)
    assert len(recordings) == 1

    same(model, lengths=[5, 9, 50])
    same(model, lengths=[5, 9, 70, 31, 2, 9])
    same(model, max_new_tokens=70)
    assert len(recordings) == 4, "rows, source and target differ"
    model.decoder.config.use_softmax1 = True  # which a step reads, and the encoder of its own configuration
    same(model)
    assert len(recordings) == 5


def test_larger_batches_take_the_memory_of_smaller_ones(recordings: list[Any]) -> None:
    model = lively("mrt5")
    for lengths in ([9, 5], [70, 9, 9], [9, 5], [70, 3, 8], [9, 4]):
        same(model, lengths=lengths)

    kept = greedy._KEPT[model]
    assert len(recordings) == 3, "that of the small batch was recorded again, in the larger memory"
    assert len(kept.steps) == 2
    begins = {step.source.untyped_storage().data_ptr() for step in kept.steps.values()}
    assert begins == {kept.memory.untyped_storage().data_ptr()}


def test_a_step_that_cannot_be_recorded_is_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    for name, stand_in in {"CUDAGraph": object, "current_device": lambda: 0, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(greedy, "_stream", lambda _: None)
    step = lambda: None
    assert greedy.recorded(step) is step
    assert "was not recorded as a CUDA graph, and runs more slowly: operation not permitted" in caplog.text


def test_no_more_graphs_are_kept_than_wanted(recordings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "GRAPHS", 2)
    model = lively("mrt5")
    for rows in (3, 2, 3, 1, 3, 2):
        same(model, lengths=[9] * rows)

    assert [shape.rows for shape in greedy._KEPT[model].steps] == [3, 2]
    assert len(recordings) == 4


def test_what_is_kept_goes_with_the_model(own_loop: list[Any]) -> None:
    gc.collect()
    before = len(greedy._KEPT)
    model = lively("mrt5")
    tokens(model)
    assert len(greedy._KEPT) == before + 1
    del model
    gc.collect()
    assert len(greedy._KEPT) == before


def _in_place(model: MrT5ForConditionalGeneration) -> None:
    with torch.no_grad():
        for part in model.decoder.parameters():
            part.mul_(1.3)


def _behind_its_back(model: MrT5ForConditionalGeneration) -> None:
    for part in model.decoder.parameters():
        part.data *= 1.3


def _replaced(model: MrT5ForConditionalGeneration) -> None:
    for block in model.decoder.block:
        wi = block.layer[2].DenseReluDense.wi_1
        wi.weight = nn.Parameter(wi.weight.detach() * -9)


def _biases(model: MrT5ForConditionalGeneration) -> None:
    model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data *= -90


def _larger(model: MrT5ForConditionalGeneration) -> None:
    model.resize_token_embeddings(400, mean_resizing=False)
    model.lm_head.weight.data[390] = model.lm_head.weight.data[ord("e") + 3] * 3
    model.eval()  # the new head is in training mode


@pytest.mark.parametrize("change", [_in_place, _behind_its_back, _replaced, _biases, _larger])
def test_changed_weights_are_seen(change: Any, recordings: list[Any]) -> None:
    model = lively("mrt5")
    before = same(model)
    change(model)

    assert not torch.equal(same(model), before)
    assert len(recordings) == (2 if change is _larger else 1)


def test_what_is_no_number_does_not_outlive_its_batch(own_loop: list[Any]) -> None:
    model = lively("mrt5")
    before = same(model)
    weights = model.decoder.block[0].layer[0].SelfAttention.v.weight, model.encoder.final_layer_norm.weight
    kept = [weight.clone() for weight in weights]
    for weight in weights:
        weight.data.fill_(torch.nan)
    tokens(model, lengths=[60, 60, 60, 60])
    for weight, was in zip(weights, kept, strict=True):
        weight.data.copy_(was)

    assert torch.equal(tokens(model), before)


def test_the_host_looks_now_and_then(recordings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go in groups, and end with the group in which the last row ends."""
    model = lively("mrt5")
    steps: list[int] = []
    replay = replayed.Recording.replay
    monkeypatch.setattr(replayed.Recording, "replay", lambda self: (steps.append(1), replay(self))[1])
    wanted = {**HARD, "max_new_tokens": 60, "eos_token_id": [EOS, *range(100, 113)]}
    length = same(model, **wanted).shape[1] - 1
    steps.clear()
    tokens(model, **wanted)

    assert length % greedy.LOOK, "a test of a row that ends with its group would show less"
    assert len(steps) == -(-length // greedy.LOOK) * greedy.LOOK < 60


# --- what is not for it -------------------------------------------------------------------------------------


class Listener(BaseStreamer):
    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


def cache(model: MrT5ForConditionalGeneration) -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


@pytest.mark.parametrize(
    "wanted",
    [
        {"num_beams": 2},
        {"do_sample": True, "top_k": 1},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {CACHE: cache},
        {"decoder_input_ids": torch.tensor([[0, 100]] * 6)},
        {"decoder_attention_mask": torch.ones(6, 1, dtype=torch.long)},
        {"return_dict_in_generate": True, "output_scores": True},
        {"return_dict_in_generate": True},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"streamer": Listener()},
        {"repetition_penalty": 1.5},
        {"forced_eos_token_id": EOS},
        {"suppress_tokens": LETTERS},
        {"max_time": 100.0},
        {"max_new_tokens": greedy.LONGEST + 1, "eos_token_id": [EOS, *range(29, 123)]},
        {"logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(5, LETTERS)])},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
    ids=" ".join,  # the keys: a value may say where in memory it lies
)
def test_what_it_cannot_do_goes_transformers_way(wanted: dict[str, Any], own_loop: list[Any]) -> None:
    model = lively("mrt5")
    wanted = {name: cache(model) if value is cache else value for name, value in wanted.items()}
    if "streamer" in wanted:
        model.generate(torch.tensor(random_rows([9])), max_new_tokens=4, **wanted)
    elif CACHE in wanted:
        tokens(model, **wanted)
        assert wanted[CACHE].get_seq_length() > 3
    else:
        same(model, **wanted)

    assert not own_loop


def _hooked(model: MrT5ForConditionalGeneration) -> None:
    model.decoder.block[1].register_forward_hook(lambda module, args, output: (output[0] * 0.5, *output[1:]))


def _wrapped(model: MrT5ForConditionalGeneration) -> None:
    forward = model.forward
    model.forward = lambda *args, **given: forward(*args, **given)  # type: ignore[method-assign]


def _adapted(model: MrT5ForConditionalGeneration) -> None:
    class Adapted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model.decoder.block[0].layer[0].SelfAttention.o.__class__ = Adapted


def _mixed(model: MrT5ForConditionalGeneration) -> None:
    model.bfloat16()
    for block in model.decoder.block:
        block.layer[2].DenseReluDense.wo.float()


def _dropping(model: MrT5ForConditionalGeneration) -> None:
    model.decoder.block[0].train()


@pytest.mark.parametrize("change", [_hooked, _wrapped, _adapted, _mixed, _dropping, nn.Module.double])
def test_an_unusual_decoder_goes_transformers_way(change: Any, own_loop: list[Any]) -> None:
    model = lively("mrt5")
    change(model)
    tokens(model)

    assert not own_loop


def test_another_activation_and_a_class_of_the_users_own_go_transformers_way(own_loop: list[Any]) -> None:
    class Own(MrT5ForConditionalGeneration):
        pass

    same(lively("mrt5", feed_forward_proj="gated-silu"))
    model = lively("mrt5")
    model.__class__ = Own
    same(model)

    assert not own_loop


def test_positions_that_were_not_learned_are_refused_as_ever(own_loop: list[Any]) -> None:
    model = lively("mrt5", has_absolute_position_embeddings=True, max_position_embeddings=40)
    same(model, min_new_tokens=40, max_new_tokens=40)
    with pytest.raises(ValueError, match="41 positions are more than the 40"):
        tokens(model, min_new_tokens=41, max_new_tokens=41)

    assert len(own_loop) == 3


def test_float16_is_refused_as_ever(own_loop: list[Any]) -> None:
    with pytest.raises(ValueError, match="overflow in float16"):
        tokens(lively("mrt5").half())

    assert not own_loop


def test_hooks_that_record_outputs_do_not_count(own_loop: list[Any]) -> None:
    model = lively("mrt5")
    tokens(model, output_attentions=True, return_dict_in_generate=True)
    assert not own_loop
    same(model)
    assert own_loop


def test_the_answers_of_an_evaluation_are_its(own_loop: list[Any]) -> None:
    rows = [torch.tensor(row) for row in random_rows(LENGTHS)]
    with torch.inference_mode():
        generate_answers(lively("mrt5"), rows, decoding=Decoding(9), batch_size=4, deletion=HARD)

    assert [asked.steps for asked in own_loop] == [9, 9]


def test_mrt5_bench_times_this_loop(own_loop: list[Any]) -> None:
    shapes = Shapes(batch=2, length=24, target=5, rates=(0.5,), spreads=("wide",))
    cases = generate(base_model(None, "tiny"), shapes).cases
    taken = []
    for name, case in cases.items():
        before = len(own_loop)
        case.call()
        taken += [name] * (len(own_loop) - before)

    assert taken == ["dense", "deleted 50 % wide"]


def test_a_cpu_has_transformers_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "decode", None)  # what decodes here would fail
    tokens(lively("mrt5"))
