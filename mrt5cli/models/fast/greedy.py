"""Greedy decoding on a GPU, with one launch per step of the decoder.

A step of transformers' loop consists of hundreds of small operations, which the host issues more slowly than
a GPU computes them. Here a step is a function of buffers with fixed addresses. The second batch of a shape
records it as a CUDA graph, and later batches replay the graph. Tokens are those of transformers' loop, except
that rounding may decide differently when two logits nearly tie.

Legend: B rows, S and T slots of source and target (positions, rounded up), n layers, N heads, H head width, D
    model width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.models.t5.modeling_t5 import T5Block

from mrt5cli.models.deletion import HIDES
from mrt5cli.models.fast.kernels import float32_is_exact
from mrt5cli.models.fast.parts import FAST
from mrt5cli.models.fast.switch import gpu_paths_are_on
from mrt5cli.models.outputs import MrT5EncoderOutput
from mrt5cli.models.stack import LearnedPositions, MrT5Decoder, self_attention

logger = logging.getLogger(__name__)

DTYPES = {torch.float32, torch.bfloat16}
SLOTS = 64
"""Lengths are rounded up to a multiple of this: few graphs serve all lengths, and masks are aligned."""
LONGEST = 2048
"""Longest supported target: a step reads every slot of its buffers, transformers' only those in use."""
LOOK = 8
"""Steps between two checks of whether all rows have ended. A check makes the GPU pause for part of a step; up
to LOOK - 1 steps after the last end are wasted."""
TAKE_BIASES = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""PyTorch's kernels that add biases, also of -inf: the first on a GPU, the second on a CPU."""
GRAPHS = 16
"""Number of graphs that a model keeps, for the most recent shapes."""

PARTS = {
    *(*FAST.values(), MrT5Decoder, T5Block, NewGELUActivation, LearnedPositions),
    *(nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList),
}
"""Module types of a plain decoder: no adapter, quantized weight or other activation."""
IDLE_HOOKS = {"transformers.utils.output_capturing", "mrt5cli.models.stack"}
"""Modules whose hooks may be skipped: they record outputs, or set a layer's own bias, as this loop does."""
CONSUMED = {"hard_delete", "deletion_threshold", "segment_ends", "real_bytes", "attention_mask"}
"""Arguments of a call that only the encoder reads."""


class Asked(NamedTuple):
    """A call's settings of the loop.

    Attributes:
        steps: most tokens of a row.
        least: number of tokens before one may end a row.
        ends: (E) ids that end a row, or None.
        pad: id that follows an end, or None without ends.
        dtype: precision of matrix products.
    """

    steps: int
    least: int
    ends: Tensor | None
    pad: Tensor | None
    dtype: torch.dtype


def asked_for(
    model: T5ForConditionalGeneration,
    prompt: Tensor,
    logits_processor: processors.LogitsProcessorList,
    stopping_criteria: criteria.StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: object = None,
    encoder_outputs: object = None,
    past_key_values: object = None,
    cache: object = None,
    use_cache: bool | None = None,
    **given: object,
) -> Asked | None:
    """The settings of `decode` for a call of transformers' `_sample`; None if it does not support the call.

    That is the case on other devices, for anything but greedy tokens, for rules that are not about length,
    and for modified decoders.
    """
    settings: Any = generation_config
    kind, ends = prompt.device.type, settings._eos_token_tensor
    more = settings.do_sample or settings.return_dict_in_generate or settings.is_assistant
    if more or synced_gpus or streamer is not None or prompt.shape[1] != 1:
        return None
    if any(value is not None and name not in CONSUMED for name, value in given.items()):
        return None
    ready = gpu_paths_are_on(prompt) and use_cache and _is_new(past_key_values if cache is None else cache)
    if not ready or not _is_plain(model, prompt.device):
        return None
    lengths, positions = _lengths([*stopping_criteria, *logits_processor], ends), _positions(model.decoder)
    longest = LONGEST if positions is None else min(LONGEST, len(positions))
    weights = model.lm_head.weight.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights
    if lengths is None or not 0 < lengths[0] <= longest or not {dtype, weights} <= DTYPES:
        return None
    return Asked(*lengths, ends, settings._pad_token_tensor, dtype)


def _lengths(rules: list[Any], ends: Tensor | None) -> tuple[int, int] | None:
    """`steps` and `least` of `Asked`; None with other rules than those about length."""
    least, steps = 0, 0
    for rule in rules:
        if type(rule) is criteria.MaxLengthCriteria:
            steps = min(steps or rule.max_length, rule.max_length - 1)
            continue
        if type(rule) is processors.MinLengthLogitsProcessor:
            least = max(least, rule.min_length - 1)
        elif type(rule) is processors.MinNewTokensLengthLogitsProcessor:
            least = max(least, rule.prompt_length_to_skip + rule.min_new_tokens - 1)
        elif type(rule) is not criteria.EosTokenCriteria:
            return None
        if rule.eos_token_id is not ends:
            return None
    return steps, least


def _is_new(cache: object) -> bool:
    """Whether it is the unused cache that `generate` creates by default."""
    if type(cache) is not EncoderDecoderCache or getattr(cache, "_is_user_defined", False):
        return False
    own: Any = cache.self_attention_cache
    return type(own) is DynamicCache and not own.offloading and own.get_seq_length() == 0


def _is_plain(model: T5ForConditionalGeneration, device: torch.device) -> bool:
    """Whether decoder and head are unmodified, with weights of one precision on the device."""
    parts = [*model.decoder.modules(), model.lm_head]
    if not {type(part) for part in parts} <= PARTS or any(part.training for part in parts):
        return False
    if any("forward" in vars(part) or getattr(part, "bias", None) is not None for part in (model, *parts)):
        return False
    tables = [table for part in (model, *parts) for table in (part._forward_hooks, part._forward_pre_hooks)]
    hooks: list[Any] = [hook for table in tables for hook in table.values()]
    head = model.lm_head.weight
    return {getattr(hook, "__module__", None) for hook in hooks} <= IDLE_HOOKS and all(
        (type(weight.data), weight.dtype, weight.device) == (Tensor, head.dtype, device)
        for weight in (*model.decoder.parameters(), head)
    )


def _positions(decoder: Any) -> Tensor | None:
    """(positions, D), learned positions if the model adds them, else None."""
    table = decoder.absolute_pos_embed
    return None if table is None or decoder.config.learned_positions == "unused" else table.weight


# --- weights ------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer's weights; matrices that multiply the same states are one."""

    norms: Tensor
    qkv: Tensor
    o: Tensor
    source_q: Tensor
    source_o: Tensor
    wi: Tensor
    wo: Tensor


class Weights(NamedTuple):
    """The weights of decoding; `source` is k and v of every layer's cross-attention."""

    embedding: Tensor
    positions: Tensor | None
    layers: list[Layer]
    source: Tensor
    norm: Tensor
    head: Tensor


def weights_of(model: Any, dtype: torch.dtype, lay: Callable[[list[Tensor], torch.dtype], Tensor]) -> Weights:
    """A model's weights: `lay` joins several into one tensor; matrices are in `dtype`."""
    own, layers, source = model.lm_head.weight.dtype, [], []
    for block in model.decoder.block:
        first, second, third = block.layer
        inner, outer, ff = first.SelfAttention, second.EncDecAttention, third.DenseReluDense
        norms = lay([part.layer_norm.weight for part in block.layer], own)
        joint = [inner.q, inner.k, inner.v], [inner.o], [outer.q], [outer.o], [ff.wi_0, ff.wi_1], [ff.wo]
        layers.append(Layer(norms, *(lay([part.weight for part in parts], dtype) for parts in joint)))
        source += [outer.k.weight, outer.v.weight]
    positions = _positions(model.decoder)
    return Weights(
        lay([model.decoder.embed_tokens.weight], own),
        None if positions is None else lay([positions], own),
        layers,
        lay(source, dtype),
        lay([model.decoder.final_layer_norm.weight], own),
        lay([model.lm_head.weight], dtype),
    )


# --- a step -------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Key of a recorded step: B, S, T, whether attention uses softmax1, and whether float32 is exact."""

    rows: int
    source: int
    target: int
    softmax1: bool
    exact: bool


class Step:
    """A step of the decoder, from tokens to tokens, on buffers with fixed addresses.

    softmax1 is a softmax over one more key with score and value 0, in the last slot of source and target.

    Attributes:
        token: (B), ids that a step reads and overwrites.
        position: (1), the position of these ids.
        written: (B, T), ids found so far.
        done: (B) bool, rows that have ended.
        ends: (V) bool, ids that end a row.
        pad: (), id that follows an end.
        barred: (T, V), -inf where an id is not allowed after a position, else 0.
        source, target: (n, 2, B, N, S or T, H), keys and values.
        hidden: (B, 1, 1, S), added to the scores of cross-attention.
        bias: (n or 1, N or 1, 2 T), added to the scores of self-attention: -inf for T - 1 positions ahead,
            then the bias of the current and earlier positions, then 0 for the additional key.
        window: (T), index in `bias` of each slot, relative to the current position.
        moves: (T), 1, or 0 for the additional key, whose index is constant.
        replay: the recorded step, or None.
    """

    def __init__(self, decoder: Any, weights: Weights, shape: Shape, pairs: Tensor) -> None:
        self.shape, self.weights, self.epsilon = shape, weights, decoder.config.layer_norm_epsilon
        self.source, self.target = torch.split(pairs, [shape.source, shape.target], dim=4)
        rows, slots, vocabulary = shape.rows, shape.target, len(weights.head)
        make = partial(torch.zeros, device=pairs.device)
        self.token, self.written = (make(size, dtype=torch.long) for size in ((rows,), (rows, slots)))
        self.position, self.pad = (make(size, dtype=torch.long) for size in ((1,), ()))
        self.done, self.ends = (make(size, dtype=torch.bool) for size in (rows, vocabulary))
        self.barred = make(slots, vocabulary)
        self.hidden = make(rows, 1, 1, shape.source, dtype=pairs.dtype)
        self.bias = self._bias(decoder).to(pairs.dtype)
        self.moves = torch.ones_like(self.written[0])
        self.moves[slots - shape.softmax1 :].zero_()
        self.window = torch.empty_like(self.moves)
        self.replay: Callable[[], object] | None = None

    def step(self) -> None:
        """Compute the next token of each row, without waiting for the device."""
        weights, (heads, width) = self.weights, self.source.shape[3::2]
        states = weights.embedding.index_select(0, self.token)
        if weights.positions is not None:
            states += weights.positions.index_select(0, self.position)
        biases = self.bias.index_select(2, self.window)[:, None, :, None]  # each (1, N or 1, 1, T)
        for index, layer in enumerate(weights.layers):
            to_self, to_source, to_inner = layer.norms.view(3, -1)
            joint = self._product(states, to_self, layer.qkv).view(-1, 3, heads, width)
            self.target[index].index_copy_(3, self.position, joint[:, 1:].transpose(0, 1)[..., None, :])
            bias = biases[index % len(biases)]
            _add(states, _attended(joint[:, 0], self.target[index], bias), layer.o)
            query = self._product(states, to_source, layer.source_q).view(-1, heads, width)
            _add(states, _attended(query, self.source[index], self.hidden), layer.source_o)
            gate, factor = self._product(states, to_inner, layer.wi).chunk(2, dim=1)
            _add(states, F.gelu(gate, approximate="tanh") * factor, layer.wo)
        barred = self.barred.index_select(0, self.position)
        best = (self._product(states, weights.norm, weights.head) + barred).argmax(dim=1)
        torch.where(self.done, self.pad, best, out=self.token)
        self.written.index_copy_(1, self.position, self.token[:, None])
        self.done |= self.ends.index_select(0, self.token)
        self.position += 1
        self.window += self.moves

    def _product(self, states: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(F.rms_norm(states, norm.shape, norm, self.epsilon).to(matrix.dtype), matrix)

    def begin(self, decoder: Any, prompt: Tensor, asked: Asked, encoded: MrT5EncoderOutput) -> None:
        """Load a batch into the buffers: its first tokens (B, 1) and its encoder's output."""
        for buffer in (self.position, self.done, self.ends, self.barred, self.target):
            buffer.zero_()  # the target too, because an attention weight of 0 does not cancel NaN
        self.token.copy_(prompt[:, 0])
        self.bias.copy_(self._bias(decoder))
        slots = self.shape.target
        torch.arange(slots - 1, -1, -1, out=self.window).masked_fill_(self.moves == 0, 2 * slots - 1)
        if asked.ends is not None and asked.pad is not None:
            self.ends.copy_(torch.isin(torch.arange(len(self.ends), device=prompt.device), asked.ends))
            self.pad.copy_(asked.pad.squeeze())
            self.barred[: asked.least].masked_fill_(self.ends, -torch.inf)
        states, mask, gate = encoded.last_hidden_state, encoded.attention_mask, encoded.key_gate
        assert states is not None  # set by every encoder
        length, seen = states.shape[1], self.hidden[..., : states.shape[1]]
        self.hidden.fill_(-torch.inf)
        if self.shape.softmax1:
            self.hidden[..., -1:].zero_()
        seen.copy_(torch.zeros_like(seen) if gate is None else gate[:, None, None])
        if mask is not None:
            seen.masked_fill_(mask[:, None, None] == 0, HIDES)
        layers, _, rows, heads, _, width = self.source.shape
        pairs = F.linear(states.to(seen.dtype), self.weights.source).view(
            rows, length, layers, 2, heads, width
        )
        self.source[..., :length, :].copy_(pairs.permute(2, 3, 0, 4, 1, 5))
        self.source[..., length:, :].zero_()

    def _bias(self, decoder: Any) -> Tensor:
        slots, layers = self.shape.target, [self_attention(block) for block in decoder.block]
        rules: Any = [part.compute_bias for part in layers if part.has_relative_attention_bias]
        ahead = self.hidden.new_full((slots - 1,), -torch.inf)
        backward = [rule(1, slots, past_seen_tokens=slots - 1)[0, :, 0].flip(1) for rule in rules]
        known = torch.stack(backward) if backward else self.hidden.new_zeros(1, 1, slots)
        return torch.cat([ahead.expand(*known.shape[:2], -1), known, torch.zeros_like(known[..., :1])], dim=2)

    def run(self, asked: Asked) -> Tensor:
        """(B, t) tokens, until every row has ended or `steps` is reached."""
        count, go = 0, self.replay or self.step
        while count < asked.steps:
            go()
            count += 1
            if asked.ends is not None and count % LOOK == 0 and bool(self.done.all()):
                break
        tokens = self.written[:, :count].clone()
        ends = self.ends[tokens]
        lengths = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, count)
        return tokens[:, : int(lengths.max())]


def _attended(query: Tensor, pair: Tensor, bias: Tensor) -> Tensor:
    """Attention of queries (B, N, H) over keys and values (2, B, N, ..., H), as (B, N H)."""
    key, value = pair
    with sdpa_kernel(TAKE_BIASES):
        found = F.scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=bias, scale=1.0)
    return found.flatten(1)


def _add(states: Tensor, vectors: Tensor, matrix: Tensor) -> None:
    """states += vectors @ matrix.T, in one operation if the precisions are equal."""
    if states.dtype == matrix.dtype:
        states.addmm_(vectors, matrix.t())
    else:
        states += F.linear(vectors, matrix)


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The stream that records all steps: libraries keep a workspace for each stream they see."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def recorded(step: Callable[[], None]) -> Callable[[], object]:
    """`step` as a CUDA graph. It must have run before, so that libraries are loaded and kernels chosen."""
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    # "thread_local" lets other threads allocate and pin memory.
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:  # an operation that this GPU's libraries cannot record
        logger.warning("a decoding step was not recorded as a CUDA graph, and runs more slowly: %s", error)
        return step
    return graph.replay


# --- state kept with a model --------------------------------------------------------------------------------


class Kept:
    """The recorded steps of a model, with the weights and the memory for keys and values that they share.

    Weights are copied in each call, because changes cannot be detected reliably: 0.1 ms for byt5-small at the
    bandwidth of an H200.
    """

    def __init__(self, model: T5ForConditionalGeneration, dtype: torch.dtype) -> None:
        self.kind, self.buffers = _kind(model, dtype), list[Tensor]()
        self.memory = model.lm_head.weight.new_empty(0, dtype=dtype)
        self.steps: OrderedDict[Shape, Step] = OrderedDict()

        def lay(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
            self.buffers.append(torch.cat(parts).to(dtype))
            return self.buffers[-1]

        self.weights = weights_of(model, dtype, lay)

    def step(self, model: T5ForConditionalGeneration, shape: Shape) -> Step:
        """The step for a shape, with current weights."""
        buffers, dtype = iter(self.buffers), self.memory.dtype
        weights_of(model, dtype, lambda parts, _: torch.cat(parts, out=next(buffers)))
        if shape not in self.steps:
            decoder: Any = model.decoder
            attention, slots = self_attention(decoder.block[0]), shape.source + shape.target
            heads, width = attention.n_heads, attention.key_value_proj_dim
            size = torch.Size((len(decoder.block), 2, shape.rows, heads, slots, width))
            if len(self.memory) < size.numel():
                self.steps.clear()  # their graphs point to the old memory
                self.memory = self.memory.new_empty(size.numel())
            self.steps[shape] = Step(decoder, self.weights, shape, self.memory[: size.numel()].view(size))
            if len(self.steps) > GRAPHS:
                self.steps.popitem(last=False)
        elif self.steps[shape].replay is None:
            # Recording takes longer than a few steps, so a shape that occurs once is not recorded.
            self.steps[shape].replay = recorded(self.steps[shape].step)
        self.steps.move_to_end(shape)
        return self.steps[shape]


def _kind(model: T5ForConditionalGeneration, dtype: torch.dtype) -> list[object]:
    weights = (*model.decoder.parameters(), model.lm_head.weight)
    return [dtype, *((weight.shape, weight.dtype, weight.device) for weight in weights)]


_KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()
_LOCK = Lock()
"""Concurrent calls would write to the same buffers."""


def decode(
    model: T5ForConditionalGeneration, prompt: Tensor, asked: Asked, encoded: MrT5EncoderOutput
) -> Tensor:
    """(B, 1 + t) tokens, starting with the prompt (B, 1), as transformers' loop returns them."""
    states, softmax1 = encoded.last_hidden_state, bool(model.decoder.config.use_softmax1)
    assert states is not None  # set by every encoder
    source, target = (-(-(count + softmax1) // SLOTS) * SLOTS for count in (states.shape[1], asked.steps))
    shape = Shape(len(prompt), source, target, softmax1, float32_is_exact())
    with (
        _LOCK,
        torch.cuda.device_of(prompt),  # type: ignore[no-untyped-call]
        torch.inference_mode(False),  # otherwise later calls outside it could not write to the buffers
        torch.no_grad(),
        torch.autocast(prompt.device.type, enabled=False),
    ):
        kept = _KEPT.get(model)
        if kept is None or kept.kind != _kind(model, asked.dtype):
            kept = _KEPT[model] = Kept(model, asked.dtype)
        step = kept.step(model, shape)
        step.begin(model.decoder, prompt, asked, encoded)
        return torch.cat([prompt, step.run(asked)], dim=1)
