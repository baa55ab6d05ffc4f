"""Greedy decoding without the general machinery: what one step of a small decoder needs, and nothing else.

- Keys and values of cross-attention are computed once, for all decoder layers, over the bytes that are left.
- Keys and values of self-attention go into memory that is there from the start; position biases are one
  vector of distances, of which each step reads a slice.
- softmax1 is a softmax over one more key, whose score and value are 0: it lies in the same memory.
- Rows that have ended leave the batch.
- Weights are put into the kernel's order once they have been used a few times (models/packed_linear).

Answers equal those of `generate` but for steps where two tokens are as good as equally likely.

Legend: B rows, T tokens at most, N heads, H head width, D model width, S source positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt5cli.models.fast.packed_linear import StackedLinear
from mrt5cli.models.outputs import MrT5EncoderOutput

STEPS_BEFORE_PACKING = 8
"""Packing the weights takes as long as a few steps with them: shorter answers are better off without."""

STEPS_BETWEEN_LOOKS = 8
"""On a GPU, asking whether rows have ended makes the host wait for it; so often it does, in steps."""

SHARE_TO_SHRINK = 0.75
"""A batch shrinks, which copies its memory, when no more than this share of its rows goes on."""


class Source:
    """Keys and values that cross-attention reads: of each row what is left of its source, then nothing.

    Attributes:
        keys, values: a layer each, (B, N, 1 or 0 + S, H); the one is softmax1's.
        bias: (B, 1, 1, 1 or 0 + S), key gate and what hides padding, or None where neither is.
        lengths: positions that each row has.
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], bias: Tensor | None, lengths: list[int]
    ) -> None:
        self.keys, self.values, self.bias, self.lengths = keys, values, bias, lengths

    def keep(self, rows: Tensor) -> None:
        """Let the other rows go; the rest is as wide as its longest row asks."""
        slots = self.keys[0].shape[2] - max(self.lengths)
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        width = slots + max(self.lengths)
        for layers in (self.keys, self.values):
            for number, layer in enumerate(layers):
                layers[number] = layer[:, :, :width].index_select(0, rows)
        if self.bias is not None:
            self.bias = self.bias[..., :width].index_select(0, rows)
            if min(self.lengths) == max(self.lengths) and not self.bias.any():
                self.bias = None


class Answers:
    """Keys and values of the tokens so far, and the position biases of all steps.

    Attributes:
        layers: (2, B, N, 1 or 0 + T, H) each.
        biases: (N, 2 T - 1) each, or one for all layers: of key 0 at step T - 1, up to key T - 1 at step 0;
            those of keys to come are -inf.
    """

    def __init__(self, layers: list[Tensor], biases: list[Tensor], null: int) -> None:
        self.layers, self.biases, self.null = layers, biases, null

    def keep(self, rows: Tensor, step: int) -> None:
        """Let the other rows go; `step` tokens have been read."""
        for number, layer in enumerate(self.layers):
            smaller = layer.new_zeros(2, len(rows), *layer.shape[2:])
            used = self.null + step
            smaller[:, :, :, :used] = layer[:, :, :, :used].index_select(1, rows)
            self.layers[number] = smaller

    def bias(self, layer: int, step: int | Tensor) -> Tensor:
        """(N, 1, keys), what is added to the scores of a layer at a step.

        A step that is a tensor gets all T keys, so that every step has the same shapes.
        """
        by_distance = self.biases[min(layer, len(self.biases) - 1)]
        tokens = (by_distance.shape[1] + 1) // 2
        if isinstance(step, int):
            bias = by_distance[:, tokens - 1 - step : tokens]
        else:
            places = torch.arange(tokens, device=by_distance.device) + (tokens - 1 - step)
            bias = by_distance.index_select(1, places)
        return F.pad(bias, (self.null, 0))[:, None]

    def add(self, layer: int, key: Tensor, value: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Keep the newest token's key and value, (B, N, H) each; all to attend to, (B, N, keys, H) each."""
        memory = self.layers[layer]
        if isinstance(step, int):
            memory[0, :, :, self.null + step] = key
            memory[1, :, :, self.null + step] = value
            used = self.null + step + 1
            return memory[0, :, :, :used], memory[1, :, :, :used]
        memory.index_copy_(3, (self.null + step)[None], torch.stack((key, value))[:, :, :, None])
        return memory[0], memory[1]


class GreedyDecoder:
    """A model's decoder and head, ready to answer batch after batch.

    Weights may be copied into another order or dtype: a model that has changed needs a new one. It computes
    as the model does where it is made: in the weights' precision, or autocast's.

    Args:
        model: an `MrT5ForConditionalGeneration` in eval mode.
        compile: compile a step, which then has the same shapes at every step: rows that have ended stay, and
            weights are not packed. Up to three graphs serve all batches, and each takes a while. On a CPU it
            is slower than without (`mrt5 bench --what compile`).
    """

    def __init__(self, model: Any, *, compile: bool = False) -> None:
        self._model, self._decoder = model, model.decoder
        device = model.lm_head.weight.device
        self.autocast = (
            torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        )
        self._null = int(model.config.use_softmax1)
        self._layers = [_Layer(block, self.autocast) for block in self._decoder.block]
        cross = [block.layer[1].EncDecAttention for block in self._decoder.block]
        self._source = StackedLinear(
            [w for one in cross for w in (one.k.weight, one.v.weight)], self.autocast
        )
        self._head = StackedLinear([model.lm_head.weight], self.autocast)
        self._fixed = compile
        self._next: Callable[[Tensor, int | Tensor, Answers, Source], Tensor] = self._logits
        if compile:
            self._next = torch.compile(self._logits, fullgraph=True)

    @torch.no_grad()
    def decode(
        self,
        encoded: MrT5EncoderOutput,
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        start: int | Tensor = 0,
        eos: Sequence[int] = (1,),
        pad: int = 0,
    ) -> Tensor:
        """Greedy answers to a batch of sources.

        Args:
            encoded: what the model's encoder returned.
            max_new_tokens: T, at least 1.
            min_new_tokens: no answer ends before it has so many tokens.
            start: the token every answer starts from, or (B) of them.
            eos: tokens that end an answer.
            pad: what follows them.

        Returns:
            (B, 1 + the longest answer's length) int64: start, tokens, the token that ends them, padding.

        Raises:
            ValueError: more tokens than the model has learned positions.
        """
        with torch.autocast(encoded.last_hidden_state.device.type, enabled=False):
            return self._decode(encoded, max_new_tokens, min_new_tokens, start, tuple(eos), pad)

    def _decode(
        self,
        encoded: MrT5EncoderOutput,
        limit: int,
        least: int,
        start: int | Tensor,
        eos: tuple[int, ...],
        pad: int,
    ) -> Tensor:
        rows, device = len(encoded.last_hidden_state), encoded.last_hidden_state.device
        source, answers = self._read(encoded), self._memory(rows, limit)
        ends = torch.tensor(eos, dtype=torch.long, device=device)
        told = torch.full((rows, 1 + limit), pad, dtype=torch.long, device=device)
        told[:, 0] = start
        newest = told[:, 0].clone()
        going = torch.arange(rows, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        for step in range(limit):
            if step == STEPS_BEFORE_PACKING and not self._fixed:
                self._pack(len(going))
            states = self._decoder._embed(newest[:, None], None, past=step)[:, 0]
            place = torch.tensor(step, device=device) if self._fixed else step
            logits = self._next(states, place, answers, source)
            if step < least:
                logits[:, ends] = float("-inf")
            newest = logits.argmax(dim=-1).masked_fill(ended, pad)
            told[going, step + 1] = newest
            ended = ended | torch.isin(newest, ends)
            if device.type != "cpu" and (step + 1) % STEPS_BETWEEN_LOOKS:
                continue
            left = torch.nonzero(~ended)[:, 0]
            if not len(left):
                break
            if not self._fixed and len(left) <= SHARE_TO_SHRINK * len(going):
                source.keep(left)
                answers.keep(left, step + 1)
                going, newest, ended = going[left], newest[left], ended[left]
        before_end = (torch.isin(told[:, 1:], ends).cumsum(dim=1) == 0).sum(dim=1)
        return told[:, : 2 + int(before_end.clamp(max=limit - 1).max())]

    def _logits(self, states: Tensor, step: int | Tensor, answers: Answers, source: Source) -> Tensor:
        """(B, V) float32 after one more token, embedded (B, D)."""
        for number, layer in enumerate(self._layers):
            states = layer(states, number, step, answers, source)
        (logits,) = self._head(self._decoder.final_layer_norm(states))
        return logits.float()

    def _pack(self, rows: int) -> None:
        every = [self._source, self._head, *(stack for layer in self._layers for stack in layer.stacks)]
        for stack in every:
            if rows > 1 or stack.dtype == torch.bfloat16:
                stack.pack()

    def _read(self, encoded: MrT5EncoderOutput) -> Source:
        """Keys and values of all layers from the encoder's states, over what is no padding."""
        states, mask, gate = encoded.last_hidden_state, encoded.attention_mask, encoded.key_gate
        rows, width = states.shape[:2]
        if mask is None or bool((mask != 0).all()):
            valid, lengths, flat = None, [width] * rows, states.flatten(0, 1)
        else:
            valid = mask != 0
            lengths, flat = valid.sum(dim=1).tolist(), states[valid]
            width = max(lengths)
        read = self._source(flat)
        heads, head_width = self._decoder.config.num_heads, self._decoder.config.d_kv
        memories = []
        for part in read:
            memory = part.new_zeros(rows, heads, self._null + width, head_width)
            at = 0
            for row, length in enumerate(lengths):
                piece = part[at : at + length].view(length, heads, head_width)
                memory[row, :, self._null : self._null + length] = piece.transpose(0, 1)
                at += length
            memories.append(memory)
        return Source(memories[0::2], memories[1::2], self._source_bias(valid, gate, lengths), lengths)

    def _source_bias(self, valid: Tensor | None, gate: Tensor | None, lengths: list[int]) -> Tensor | None:
        """(B, 1, 1, keys): the gate of each source position, hidden past each row's end."""
        if gate is None and min(lengths) == max(lengths):
            return None
        if gate is not None and valid is None:
            bias = gate.float()
        else:
            assert valid is not None
            hidden = torch.finfo(torch.float32).min
            bias = torch.full((len(lengths), max(lengths)), hidden, device=valid.device)
            slots = torch.arange(max(lengths), device=valid.device)
            there = slots < torch.tensor(lengths, device=valid.device)[:, None]
            bias[there] = 0.0 if gate is None else gate[valid].float()
        return F.pad(bias, (self._null, 0))[:, None, None]

    def _memory(self, rows: int, tokens: int) -> Answers:
        config, first = self._decoder.config, self._layers[0]
        shape = (2, rows, config.num_heads, self._null + tokens, config.d_kv)
        device = self._model.lm_head.weight.device
        layers = [torch.zeros(shape, dtype=first.stacks[0].dtype, device=device) for _ in self._layers]
        attentions = [block.layer[0].SelfAttention for block in self._decoder.block]
        of_layers = attentions if config.relative_bias_per_layer else attentions[:1]
        return Answers(layers, [_bias_by_distance(one, tokens) for one in of_layers], self._null)


class _Layer:
    """One block of the decoder."""

    def __init__(self, block: nn.Module, dtype: torch.dtype | None) -> None:
        first, second, last = block.layer
        own, cross, forward = first.SelfAttention, second.EncDecAttention, last.DenseReluDense
        self.norms = [first.layer_norm, second.layer_norm, last.layer_norm]
        # transformers writes `gelu_new` out in eight passes; this is the same function in one.
        one_pass = own.config.dense_act_fn == "gelu_new"
        self.act = nn.GELU(approximate="tanh") if one_pass else forward.act
        inner = [forward.wi_0, forward.wi_1] if hasattr(forward, "wi_0") else [forward.wi]
        groups = ([own.q, own.k, own.v], [own.o], [cross.q], [cross.o], inner, [forward.wo])
        self.stacks = [StackedLinear([linear.weight for linear in group], dtype) for group in groups]
        self.heads = own.n_heads

    def __call__(
        self, states: Tensor, number: int, step: int | Tensor, answers: Answers, source: Source
    ) -> Tensor:
        own, own_out, cross, cross_out, inner, outer = self.stacks
        query, key, value = (self._by_head(part) for part in own(self.norms[0](states)))
        keys, values = answers.add(number, key, value, step)
        read = _attend(query, keys, values, answers.bias(number, step))
        states = states + own_out(read)[0]
        query = self._by_head(cross(self.norms[1](states))[0])
        read = _attend(query, source.keys[number], source.values[number], source.bias)
        states = states + cross_out(read)[0]
        active, *factors = inner(self.norms[2](states))
        active = self.act(active)
        for factor in factors:
            active = active * factor
        return states + outer(active)[0]

    def _by_head(self, states: Tensor) -> Tensor:
        return states.view(len(states), self.heads, -1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N H) attention of one query (B, N, H) over keys and values (B, N, K, H), plus bias (.., 1, K)."""
    scores = torch.matmul(query[:, :, None], keys.transpose(-1, -2))  # [B, N, 1, K]
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(weights, values).flatten(1)


def _bias_by_distance(attention: Any, tokens: int) -> Tensor:
    """(N, 2 T - 1) float32; see `Answers.biases`."""
    device = attention.q.weight.device
    to_come = torch.full((attention.n_heads, tokens - 1), float("-inf"), device=device)
    if not attention.has_relative_attention_bias:
        return torch.cat((to_come.new_zeros(attention.n_heads, tokens), to_come), dim=1)
    bucket = attention._relative_position_bucket(
        torch.arange(-(tokens - 1), 1, device=device),
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return torch.cat((attention.relative_attention_bias(bucket).t().float(), to_come), dim=1)


def greedy(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    compile: bool = False,
    **deletion: Any,
) -> Tensor:
    """Greedy answers of a model in eval mode: start token, answer, EOS, padding; see `GreedyDecoder.decode`.

    Args:
        model: an `MrT5ForConditionalGeneration`.
        input_ids: (B, L), 0 is padding.
        attention_mask: (B, L), or None.
        deletion: keywords of the encoder, such as hard_delete.
    """
    with torch.no_grad():
        encoded = model.encoder(input_ids=input_ids, attention_mask=attention_mask, **deletion)
    config = model.config
    return GreedyDecoder(model, compile=compile).decode(
        encoded,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        start=config.decoder_start_token_id,
        eos=(config.eos_token_id,),
        pad=config.pad_token_id,
    )
