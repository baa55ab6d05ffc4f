"""Greedy decoding against the model itself: every token it writes is the one the model finds likeliest."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import KINDS, batch_of, random_rows, tiny

from mrt5cli.models import MrT5ForConditionalGeneration, mrt5
from mrt5cli.models.fast import packed_linear, plain_generation
from mrt5cli.models.fast.decoding import STEPS_BEFORE_PACKING, Answers, GreedyDecoder, Source, greedy
from mrt5cli.models.fast.packed_linear import StackedLinear, can_pack

pytestmark = pytest.mark.drawn

EOS, TOKENS = 1, 14
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax1": {"use_softmax1": True},
    "absolute": {"has_absolute_position_embeddings": True, "use_softmax1": True},
    "own biases": {"relative_bias_per_layer": True},
    "not gated": {"feed_forward_proj": "relu", "use_softmax1": True},
    "packed": {"attn_implementation": "packed", "use_softmax1": True},
}
LENGTHS = [5, 23, 9, 31, 2, 14]


def writer(variant: str = "mrt5", **fields: Any) -> MrT5ForConditionalGeneration:
    """A tiny model whose source decides what it writes, and that ends some answers early."""
    attention = fields.pop("attn_implementation", "eager")
    model = tiny(variant, seed=7, **fields)
    model.set_attn_implementation(attention)
    silent = torch.ones(384, dtype=torch.bool)
    silent[[EOS, *range(100, 126)]] = False
    model.lm_head.weight.data[silent] = 0.0
    model.lm_head.weight.data *= 3
    model.lm_head.weight.data[EOS] *= -1 if fields.get("feed_forward_proj") == "relu" else 3
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.o.weight.data *= 20
    return model


def by_transformers(model: Any, ids: torch.Tensor, mask: torch.Tensor, **how: Any) -> torch.Tensor:
    """What transformers' own loop generates: who asks for logits is not answered by ours."""
    settings = {"max_new_tokens": TOKENS, "do_sample": False, **how}
    out = model.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
    )
    return out.sequences


def assert_likeliest(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    told: torch.Tensor,
    tolerance: float,
    **deletion: Any,
) -> None:
    """Given the tokens before it, each token is the model's likeliest, to within a difference of logits."""
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, decoder_input_ids=told[:, :-1], **deletion).logits.float()
    for row, answer in enumerate(told[:, 1:].tolist()):
        length = answer.index(EOS) + 1 if EOS in answer else len(answer)
        chosen = logits[row, torch.arange(length), torch.tensor(answer[:length])]
        assert bool((chosen >= logits[row, :length].amax(dim=-1) - tolerance).all())
        assert not any(answer[length:]), "padding follows the end"


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", KINDS)
def test_answers_equal_those_of_transformers(variant: str, architecture: str, hard: bool) -> None:
    model = writer(variant, **ARCHITECTURES[architecture])
    ids, mask = batch_of(random_rows(LENGTHS), extra=3)

    told = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=hard)

    assert torch.equal(told, by_transformers(model, ids, mask, hard_delete=hard))
    assert_likeliest(model, ids, mask, told, 1e-4, hard_delete=hard)
    if variant not in ("source_removed", "random"):
        assert len({tuple(row) for row in told.tolist()}) > 2, "a test of equal answers would show nothing"


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    extra=st.integers(0, 4),
    tokens=st.integers(1, 20),
    least=st.integers(0, 20),
    variant=st.sampled_from(sorted(KINDS)),
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    hard=st.booleans(),
    seed=st.integers(0, 3),
)
def test_ragged_sources_of_any_length(
    lengths: list[int],
    extra: int,
    tokens: int,
    least: int,
    variant: str,
    architecture: str,
    hard: bool,
    seed: int,
) -> None:
    model = writer(variant, **ARCHITECTURES[architecture])
    ids, mask = batch_of(random_rows(lengths, seed), extra)
    with torch.no_grad():
        encoded = model.encoder(input_ids=ids, attention_mask=mask, hard_delete=hard)

    told = GreedyDecoder(model).decode(encoded, max_new_tokens=tokens, min_new_tokens=min(least, tokens))

    expected = model.generate(
        encoder_outputs=encoded,
        max_new_tokens=tokens,
        min_new_tokens=min(least, tokens),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for row, (answer, wanted) in enumerate(zip(told.tolist(), expected.sequences.tolist(), strict=True)):
        for step, (token, other) in enumerate(zip(answer[1:], wanted[1:], strict=False)):
            if token != other:
                logits = expected.logits[step][row]
                assert abs(float(logits[token] - logits[other])) < 1e-4, "only a near-tie may go either way"
                break
        else:
            assert len(answer) == len(wanted) or told.shape[1] > expected.sequences.shape[1]


def test_each_row_gets_what_it_gets_alone() -> None:
    model, rows = writer("mrt5", use_softmax1=True), random_rows(LENGTHS)
    ids, mask = batch_of(rows)

    together = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=True)

    for row, answer in zip(rows, together.tolist(), strict=True):
        alone = greedy(model, torch.tensor([row]), max_new_tokens=TOKENS, hard_delete=True)[0].tolist()
        assert answer[: len(alone)] == alone


def test_rows_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer("fixed", has_absolute_position_embeddings=True)
    ids, mask = batch_of(random_rows(LENGTHS))
    sizes, widths = [], []
    step = GreedyDecoder._logits

    def watched(self: Any, states: Any, place: Any, answers: Answers, source: Source) -> Any:
        sizes.append(len(states))
        widths.append(source.keys[0].shape[2])
        assert source.keys[1].shape[:2] == answers.layers[1].shape[1:3] == (len(states), 2)
        return step(self, states, place, answers, source)

    monkeypatch.setattr(GreedyDecoder, "_logits", watched)
    told = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=True)

    assert sizes[0] == len(LENGTHS) > sizes[-1]
    assert widths[0] >= widths[-1]
    assert len(sizes) == told.shape[1] - 1
    assert torch.equal(told, by_transformers(model, ids, mask, hard_delete=True))


def test_the_last_row_to_end_decides_the_width() -> None:
    model = writer("mrt5")
    model.lm_head.weight.data.zero_()  # every token is as likely, and the first of them is padding
    ids, mask = batch_of(random_rows([4, 7]))
    with torch.no_grad():
        encoded = model.encoder(input_ids=ids, attention_mask=mask)
    decoder = GreedyDecoder(model)

    assert decoder.decode(encoded, max_new_tokens=5, eos=(0,)).tolist() == [[0, 0]] * 2
    assert decoder.decode(encoded, max_new_tokens=5, eos=()).tolist() == [[0] * 6] * 2
    assert decoder.decode(encoded, max_new_tokens=5, min_new_tokens=3, eos=(0, 1)).tolist() == (
        [[0, 2, 2, 2, 0]] * 2
    )
    assert decoder.decode(encoded, max_new_tokens=1, start=torch.tensor([7, 8])).tolist() == [[7, 0], [8, 0]]


def test_a_source_of_padding_alone_harms_no_other() -> None:
    for fields in ({}, {"use_softmax1": True}):
        model, row = writer("none", **fields), random_rows([9])[0]
        ids, mask = batch_of([row, [0]])

        told = greedy(model, ids, mask, max_new_tokens=TOKENS)

        alone = greedy(model, torch.tensor([row]), max_new_tokens=TOKENS)[0].tolist()
        assert told[0, : len(alone)].tolist() == alone


def test_more_tokens_than_learned_positions_are_refused_where_they_are_reached() -> None:
    model = writer("none", has_absolute_position_embeddings=True, max_position_embeddings=6)
    ids = torch.tensor(random_rows([5]))

    with pytest.raises(ValueError, match="7 positions are more than the 6"):
        greedy(model, ids, max_new_tokens=9, min_new_tokens=9)
    model.lm_head.weight.data[2:] = 0.0
    model.lm_head.weight.data[0] = -model.lm_head.weight.data[EOS]
    short = greedy(model, ids, max_new_tokens=9)
    assert short.shape[1] < 9


# --- precision ---


@pytest.mark.parametrize("variant", ["none", "mrt5"])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16(variant: str, how: str) -> None:
    model = writer(variant, use_softmax1=True)
    if how == "weights":
        model.bfloat16()
    ids, mask = batch_of(random_rows(LENGTHS))

    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        told = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=True)
        # Logits of about 10 have steps of 1/16 in bfloat16, and some roundings are behind them.
        assert_likeliest(model, ids, mask, told, 0.3, hard_delete=True)
        decoder = GreedyDecoder(model)
    assert {stack.dtype for layer in decoder._layers for stack in layer.stacks} == {torch.bfloat16}
    assert len({tuple(row) for row in told.tolist()}) > 2


# --- packed weights ---


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    outputs=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    half=st.booleans(),
)
def test_packed_weights_multiply_like_others(rows: int, width: int, outputs: list[int], half: bool) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    weights = [torch.randn(size, width) for size in outputs]
    states = torch.randn(rows, width)
    stack = StackedLinear(weights, dtype)
    before = stack(states)
    stack.pack()
    stack.pack()

    assert stack.is_packed == can_pack(dtype, "cpu")
    for plain, packed, weight in zip(before, stack(states), weights, strict=True):
        expected = F.linear(states.to(dtype), weight.to(dtype))
        assert packed.dtype == plain.dtype == dtype
        assert packed.shape == (rows, len(weight))
        torch.testing.assert_close(plain, expected)
        torch.testing.assert_close(packed, expected, rtol=2e-2 if half else 1e-5, atol=0.1 if half else 1e-4)


def test_weights_are_not_copied_before_they_must_be() -> None:
    weight = torch.randn(3, 4)
    stack = StackedLinear([weight])
    states = torch.randn(2, 4)
    weight.mul_(2)

    torch.testing.assert_close(stack(states)[0], F.linear(states, weight))


def breaks(*_: Any) -> torch.Tensor:
    raise RuntimeError("no such kernel")


def lies(states: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return states.new_zeros(len(states), 48)


@pytest.mark.parametrize("kernel", [breaks, lies])
def test_a_kernel_that_fails_is_not_used(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "multiply", kernel)

    assert not can_pack.__wrapped__(torch.float32, "cpu")
    assert not can_pack.__wrapped__(torch.float16, "cpu")
    assert not can_pack.__wrapped__(torch.float32, "cuda")


@pytest.mark.parametrize("able", [True, False])
def test_long_answers_pack_and_stay_the_same(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if able and not can_pack(torch.float32, "cpu"):
        pytest.skip("no packed kernel in this build of torch")
    monkeypatch.setattr(packed_linear, "can_pack", lambda *_: able)
    model = writer("mrt5")
    ids, mask = batch_of(random_rows(LENGTHS))
    with torch.no_grad():
        encoded = model.encoder(input_ids=ids, attention_mask=mask, hard_delete=True)
    decoder = GreedyDecoder(model)
    stacks = [stack for layer in decoder._layers for stack in layer.stacks]

    decoder.decode(encoded, max_new_tokens=STEPS_BEFORE_PACKING, min_new_tokens=STEPS_BEFORE_PACKING)
    assert not any(stack.is_packed for stack in stacks)
    tokens = 2 * STEPS_BEFORE_PACKING
    first = decoder.decode(encoded, max_new_tokens=tokens, min_new_tokens=tokens)
    assert all(stack.is_packed == able for stack in stacks)
    again = decoder.decode(encoded, max_new_tokens=tokens, min_new_tokens=tokens)

    expected = by_transformers(
        model, ids, mask, hard_delete=True, max_new_tokens=tokens, min_new_tokens=tokens
    )
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)


# --- generate ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of `generate`, whether it was answered plainly."""
    told: list[bool] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        answer = plain_generation.answer_plainly(*args, **kwargs)
        told.append(answer is not None)
        return answer

    monkeypatch.setattr(mrt5, "answer_plainly", watched)
    return told


PLAIN: list[dict[str, Any]] = [
    {},
    {"min_new_tokens": 9},
    {"min_length": 7},
    {"eos_token_id": [1, 40]},
    {"num_return_sequences": 1, "num_beams": 1},
]
NOT_PLAIN: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 1e-4},
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 2},
    {"return_dict_in_generate": True},
    {"use_cache": False},
    {"decoder_input_ids": torch.tensor([[0, 77]] * len(LENGTHS))},
    {"stop_strings": None, "max_time": 1e9},
    {"cache_implementation": "static"},
]


@pytest.mark.parametrize("how", PLAIN, ids=str)
def test_generate_answers_plain_calls_so(how: dict[str, Any], asked: list[bool]) -> None:
    model = writer("mrt5", use_softmax1=True)
    ids, mask = batch_of(random_rows(LENGTHS))

    told = model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, hard_delete=True, **how)

    assert asked == [True]
    assert torch.equal(told, by_transformers(model, ids, mask, hard_delete=True, **how))


@pytest.mark.parametrize("how", NOT_PLAIN, ids=str)
def test_generate_leaves_the_rest_to_transformers(how: dict[str, Any], asked: list[bool]) -> None:
    model = writer("mrt5")
    ids, mask = batch_of(random_rows(LENGTHS))

    model.generate(ids, attention_mask=mask, max_new_tokens=4, hard_delete=True, **how)

    assert asked == [False]


def test_a_decoder_that_was_changed_is_asked_itself(asked: list[bool]) -> None:
    ids, mask = batch_of(random_rows(LENGTHS))
    generate = partial(MrT5ForConditionalGeneration.generate, inputs=ids, attention_mask=mask)

    hooked = writer("mrt5")
    before = generate(hooked, max_new_tokens=6)
    feed_forward = hooked.decoder.block[1].layer[2].DenseReluDense
    feed_forward.wo.register_forward_hook(lambda module, args, output: -output)
    after = generate(hooked, max_new_tokens=6)
    assert asked == [True, False]
    assert not torch.equal(before, after)

    class Adapted(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return -super().forward(states)

    adapted = writer("mrt5")
    linear = adapted.decoder.block[1].layer[2].DenseReluDense
    replaced = Adapted(*reversed(linear.wo.weight.shape), bias=False)
    replaced.weight = linear.wo.weight
    linear.wo = replaced.eval()
    assert torch.equal(generate(adapted, max_new_tokens=6), after)

    training = writer("mrt5", dropout_rate=0.5).train()
    generate(training, max_new_tokens=3)
    own_biases = writer("mrt5", relative_bias_per_layer=True)
    generate(own_biases, max_new_tokens=3)
    assert asked == [True, False, False, False, True]


def test_generate_sees_weights_that_changed() -> None:
    model = writer("mrt5")
    ids, mask = batch_of(random_rows(LENGTHS))
    least = STEPS_BEFORE_PACKING + 2
    generate = partial(model.generate, ids, attention_mask=mask, min_new_tokens=least, max_new_tokens=least)
    with plain_generation.unchanging(model):
        before = generate()
    model.decoder.block[0].layer[2].DenseReluDense.wo.weight.data *= -30

    after = generate()

    assert not torch.equal(before, after)
    assert torch.equal(after, by_transformers(model, ids, mask, min_new_tokens=least, max_new_tokens=least))


def test_one_decoder_serves_all_batches_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    build = GreedyDecoder.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(GreedyDecoder, "__init__", counted)
    model = writer("mrt5")
    ids = torch.tensor(random_rows([6]))

    with plain_generation.unchanging(model):
        for _ in range(3):
            model.generate(ids, max_new_tokens=3)
        assert len(made) == 1
        with plain_generation.unchanging(model):
            model.generate(ids, max_new_tokens=3)
        model.generate(ids, max_new_tokens=3)
        assert len(made) == 1
        with torch.autocast("cpu", torch.bfloat16):
            model.generate(ids, max_new_tokens=3)
        assert len(made) == 2, "another precision has other weights"
    model.generate(ids, max_new_tokens=3)
    assert len(made) == 3


# --- compiled ---


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch.compile makes from now on, and runs as it is."""
    made: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return made


@pytest.mark.parametrize("architecture", ["softmax", "softmax1", "absolute"])
def test_a_compiled_step_is_one_graph_for_all_steps(architecture: str, graphs: list[object]) -> None:
    model = writer("mrt5", **ARCHITECTURES[architecture])
    ids, mask = batch_of(random_rows(LENGTHS))

    told = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=True, compile=True)

    assert len(graphs) == 1
    assert torch.equal(told, by_transformers(model, ids, mask, hard_delete=True))


def test_a_compiled_step_serves_batches_of_any_shape(graphs: list[object]) -> None:
    """More of them than the compiler's limit of graphs, which a step that is one graph may not exceed."""
    model = writer("mrt5", **ARCHITECTURES["softmax1"])
    decoder = GreedyDecoder(model, compile=True)
    for extra in range(6):
        for rows in (2, 3):
            ids, mask = batch_of(random_rows([5 + extra] * rows))
            with torch.no_grad():
                encoded = model.encoder(input_ids=ids, attention_mask=mask)
            tokens = TOKENS + extra
            told = decoder.decode(encoded, max_new_tokens=tokens, min_new_tokens=tokens)
            plain = GreedyDecoder(model).decode(encoded, max_new_tokens=tokens, min_new_tokens=tokens)
            assert torch.equal(told, plain)

    assert len(graphs) <= 3


# --- GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", KINDS)
def test_on_a_gpu(variant: str) -> None:
    torch.set_float32_matmul_precision("highest")
    model = writer(variant, use_softmax1=True).cuda()
    ids, mask = (tensor.cuda() for tensor in batch_of(random_rows(LENGTHS)))

    told = greedy(model, ids, mask, max_new_tokens=TOKENS, hard_delete=True)

    assert torch.equal(told, by_transformers(model, ids, mask, hard_delete=True))
