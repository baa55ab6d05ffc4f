"""Decode outputs: greedy search, beam search or sampling.

Letters: B rows, L byte tokens of the longest source, T of an output, R outputs per source, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, PAD, decode
from mrt5cli.generation.utf8 import OnlyUtf8
from mrt5cli.models import MrT5ForConditionalGeneration


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Attributes:
        max_new_tokens: maximum byte tokens, EOS included.
        num_beams: hypotheses of the beam search; 1 is greedy.
        length_penalty: exponent of the length by which a beam's log-probability is divided: values above 0
            favor longer outputs, values below 0 shorter ones.
        sample: sample tokens instead of taking the likeliest.
        temperature: divisor of the logits before sampling, above 0.
        top_p: sample from the fewest tokens whose probabilities add up to this, above 0 and at most 1.
        num_return: R, outputs per source: the best beams, or samples.
        seed: seed of samples, which depend only on it and on the source's number.
        valid_utf8: allow only bytes that continue UTF-8, and EOS only between characters.
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    num_return: int = 1
    seed: int = 0
    valid_utf8: bool = False


class Watch(Protocol):
    """Times a call that processes a number of rows."""

    def time(self, forward: Callable[[], object], rows: int, /) -> None: ...


def generate_answers(
    model: MrT5ForConditionalGeneration,
    sources: Sequence[Tensor],
    *,
    decoding: Decoding,
    batch_size: int,
    deletion: dict[str, bool | float],
    watch: Watch | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """The model's answer to each source, in order; the best one if there are several.

    Sources of similar length share a batch, the longest first, so that there is little padding and lack of
    memory is detected at once. Padding changes no answer.

    Args:
        model: in eval mode.
        sources: ids (L,) without padding.
        deletion: keyword arguments of the encoder, such as hard_delete.
        watch: times a forward pass over each batch and its answers, as the paper does.
        progress: called with the number of answers so far.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    answers = [""] * len(sources)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        given = {**padded([sources[place] for place in places], device), **deletion}
        generated = sequences(model, given, decoding, places)[:: decoding.num_return]
        for place, row in zip(places, generated.cpu().numpy(), strict=True):
            ends = np.flatnonzero(row == EOS)
            answers[place] = decode(row[: ends[0]] if len(ends) else row)
        if watch is not None:
            forward = partial(model, **given, labels=generated.masked_fill(generated == PAD, IGNORED_LABEL))
            forward()
            watch.time(forward, len(places))
        progress(start + len(places))
    return answers


def padded(rows: Sequence[Tensor], device: torch.device) -> dict[str, Any]:
    """Pad sources to a batch on a device: input_ids and attention_mask (B, L)."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=PAD).to(device)
    return {"input_ids": ids, "attention_mask": ids.ne(PAD).long()}


def sequences(
    model: MrT5ForConditionalGeneration, given: dict[str, Any], decoding: Decoding, numbers: Sequence[int]
) -> Tensor:
    """(B R, T) tokens of the outputs, those of a source adjacent, padded with PAD.

    Args:
        given: arguments of the model: sources (B, L) or the encoder's output for them, and their mask.
        numbers: B numbers of the sources, which seed their samples.
    """
    own, draws = model.generation_config, 1
    beams: dict[str, Any] = {}
    if decoding.sample and decoding.num_return > 1:
        draws = decoding.num_return
        if "encoder_outputs" in given:
            _, given = model._expand_inputs_for_generation(draws, True, None, **given)
        else:
            tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
            given |= {name: value.repeat_interleave(draws, dim=0) for name, value in tensors.items()}
    if decoding.num_beams > 1:
        beams = {
            "num_beams": decoding.num_beams,
            "length_penalty": decoding.length_penalty,
            "num_return_sequences": decoding.num_return,
        }
    rules = _rules(model, decoding, [(number, draw) for number in numbers for draw in range(draws)])
    # `generate` takes missing arguments from the checkpoint's generation settings: hide them.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        found = model.generate(  # type: ignore[misc]  # typed for transformers' own models
            **given,
            **beams,
            logits_processor=rules,
            do_sample=False,  # `Noise` samples
            use_cache=True,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=EOS,
            pad_token_id=PAD,
            decoder_start_token_id=PAD,
        )
    finally:
        model.generation_config = own
    return found[:, 1:]


def _rules(
    model: MrT5ForConditionalGeneration, decoding: Decoding, rows: Sequence[tuple[int, int]]
) -> LogitsProcessorList:
    """Processors of token scores; empty for greedy decoding, which has a faster loop on GPUs."""
    rules = LogitsProcessorList()
    device = next(model.parameters()).device
    if decoding.valid_utf8:
        rules.append(OnlyUtf8(model.config.vocab_size, decoding.max_new_tokens, device))
    if decoding.sample:
        if decoding.temperature != 1:
            rules.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_p < 1:
            rules.append(TopPLogitsWarper(decoding.top_p))
        rules.append(Noise(decoding.seed, rows))
    return rules


class Noise(LogitsProcessor):
    """Turns greedy decoding into sampling: the largest logit with Gumbel noise is a sample from the softmax.

    Each row has its own random generator, so that its samples do not depend on the batch.

    Args:
        rows: for each row, the numbers of its source and of its sample.
    """

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]]) -> None:
        self._draws = [np.random.default_rng((seed, *row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([draw.gumbel(size=scores.shape[1]) for draw in self._draws])
        return scores + torch.from_numpy(noise).to(scores.device, scores.dtype)
