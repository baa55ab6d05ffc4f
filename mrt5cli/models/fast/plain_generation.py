"""Which calls of transformers' `generate` the greedy decoder answers, and with which decoder.

A call is plain when nothing but the most probable tokens is asked for: no sampling, no beams, no processor of
logits but a least length, no stopping rule but a length and EOS, no scores or states, and a decoder that is
as it was built. Everything else is left to transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from mrt5cli.models.fast.decoding import GreedyDecoder
from mrt5cli.models.fast.products import is_its_weight
from mrt5cli.models.outputs import MrT5EncoderOutput

ENCODERS = frozenset({"attention_mask", "hard_delete", "deletion_threshold", "segment_ends"})
"""Keywords that have done their work once the encoder has run."""

_PREPARED: WeakKeyDictionary[Any, GreedyDecoder | None] = WeakKeyDictionary()


@contextmanager
def unchanging(model: Any) -> Iterator[None]:
    """While a model's weights stay as they are, its calls of `generate` share what they lay out once."""
    before = _PREPARED.get(model)
    _PREPARED.setdefault(model, None)
    try:
        yield
    finally:
        if before is None:
            _PREPARED.pop(model, None)


def answer_plainly(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    encoder_outputs: Any = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    **others: Any,
) -> Tensor | None:
    """What `generate` returns for a plain call, (B, 1 + T) token ids; None where the call is not plain.

    Args:
        input_ids: (B, 1), what the decoder starts from.
    """
    settings = generation_config
    asks = settings.do_sample or settings.return_dict_in_generate or settings.is_assistant
    asks = asks or settings.cache_implementation not in (None, "dynamic")
    cached = use_cache and _is_fresh(past_key_values)
    if asks or synced_gpus or streamer is not None or not cached or others.keys() - ENCODERS:
        return None
    processors = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)
    if any(type(one) not in processors for one in logits_processor):
        return None
    if any(type(one) not in (MaxLengthCriteria, EosTokenCriteria) for one in stopping_criteria):
        return None
    limit = stopping_criteria.max_length
    if limit is None or limit < 2 or input_ids.shape[1] != 1:
        return None
    if not isinstance(encoder_outputs, MrT5EncoderOutput) or not _as_built(model):
        return None
    eos, pad = settings._eos_token_tensor, settings._pad_token_tensor
    if len(logits_processor) and eos is None:
        return None
    return _decoder(model).decode(
        encoder_outputs,
        max_new_tokens=limit - 1,
        min_new_tokens=max((_least(one) for one in logits_processor), default=0),
        start=input_ids[:, 0],
        eos=() if eos is None else eos.tolist(),
        pad=0 if pad is None else int(pad),
    )


def _is_fresh(cache: Any) -> bool:
    """Whether it is `generate`'s own cache, with nothing in it yet, that nobody will look at."""
    return cache is None or not (getattr(cache, "_is_user_defined", False) or cache.get_seq_length())


def _least(processor: MinLengthLogitsProcessor | MinNewTokensLengthLogitsProcessor) -> int:
    if isinstance(processor, MinLengthLogitsProcessor):
        return int(processor.min_length) - 1  # it counts the start token
    return int(processor.min_new_tokens)


def _as_built(model: nn.Module) -> bool:
    """Whether decoder and head do just what their classes say: no hook, no adapter, no quantised weight, no
    dropout, one device."""
    device = model.lm_head.weight.device
    for module in (*model.decoder.modules(), model.lm_head):
        if module.training or module._forward_hooks or "forward" in vars(module):
            return False
        if module._forward_pre_hooks and not getattr(module, "has_relative_attention_bias", False):
            return False  # ours are those of relative biases that each layer has for itself
        for weight in module.parameters(recurse=False):
            if weight.device != device or type(weight.data) is not Tensor:
                return False
        if isinstance(module, nn.Linear) and not is_its_weight(module):
            return False
    return True


def _decoder(model: Any) -> GreedyDecoder:
    device = model.lm_head.weight.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    prepared = _PREPARED.get(model)
    if prepared is None or prepared.autocast != autocast:
        prepared = GreedyDecoder(model)
        if model in _PREPARED:
            _PREPARED[model] = prepared
    return prepared
