"""Answers that a model gives itself: generated greedily, or chosen among the few that a task has.

Letters: B rows, L byte tokens of the longest source, T of an answer, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, PAD, decode, encode
from mrt5cli.evaluation.timing import Stopwatch
from mrt5cli.models import MrT5EncoderOutput, MrT5ForConditionalGeneration


def generate_answers(
    model: MrT5ForConditionalGeneration,
    sources: Sequence[Tensor],
    *,
    answer_length: int,
    batch_size: int,
    deletion: dict[str, bool | float],
    watch: Stopwatch | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """The model's greedy answer to each source, in the order given.

    Sources of like length share a batch, the longest first, so that little is padded and what does not fit
    into memory shows at once. Padding changes no answer.

    Args:
        model: in eval mode.
        sources: ids (L,) without padding.
        answer_length: byte tokens at most, EOS included.
        deletion: keywords of the encoder, such as hard_delete.
        watch: times a forward pass over each batch and its answers, as the paper does.
        progress: called with the number of answers so far.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    answers = [""] * len(sources)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = [sources[place] for place in places]
        ids = pad_sequence(rows, batch_first=True, padding_value=PAD).to(device)
        given = {"input_ids": ids, "attention_mask": ids.ne(PAD).long(), **deletion}
        generated = _greedy(model, given, answer_length)
        for place, row in zip(places, generated.cpu().numpy(), strict=True):
            ends = np.flatnonzero(row == EOS)
            answers[place] = decode(row[: ends[0]] if len(ends) else row)
        if watch is not None:
            forward = partial(model, **given, labels=generated.masked_fill(generated == PAD, IGNORED_LABEL))
            forward()
            watch.time(forward, len(places))
        progress(start + len(places))
    return answers


def _greedy(model: MrT5ForConditionalGeneration, given: dict[str, Any], answer_length: int) -> Tensor:
    """(B, T) tokens of the greedy answers."""
    own = model.generation_config
    # From a checkpoint's settings `generate` fills in whatever it is not given.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        sequences = model.generate(  # type: ignore[misc]  # its protocol is not that of their own models
            **given,
            do_sample=False,
            use_cache=True,
            max_new_tokens=answer_length,
            eos_token_id=EOS,
            pad_token_id=PAD,
            decoder_start_token_id=PAD,
        )
    finally:
        model.generation_config = own
    return sequences[:, 1:]


def choose(
    model: MrT5ForConditionalGeneration, encoded: MrT5EncoderOutput, choices: Sequence[str], rows: int
) -> NDArray[np.int64]:
    """(B,) the choice to which the model gives the most probability, EOS included, by its place.

    Args:
        model: in eval mode.
        encoded: its encoder's output for B = `rows` sources, read once for each of the C choices.
    """
    device = next(model.parameters()).device
    scores = []
    for choice in choices:
        labels = torch.from_numpy(encode(choice, add_eos=True)).to(device).expand(rows, -1).contiguous()
        logits = model(encoder_outputs=encoded, labels=labels).logits
        nats = logits.float().log_softmax(-1).gather(-1, labels[..., None])
        scores.append(nats.double().sum(dim=(1, 2)))
    return torch.stack(scores, dim=1).argmax(dim=1).cpu().numpy()
