"""Export a model as two ONNX graphs: an encoder that removes bytes, and a decoder with a cache.

Legend: B batch, L input bytes, S kept slots (the longest row's count), T new target bytes, P earlier target
bytes, D model width, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention

from mrt5cli.convert.files import Job, write_configurations, write_recipe, write_tokenizer
from mrt5cli.errors import UserError
from mrt5cli.extras import how_to_install
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.checkpoint import sharing_weights
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.shorteners.delete_gate import DeleteGate

PACKAGES = ("onnx", "onnxscript")
KINDS = ("none", *DeleteGate.deletion_types)
EXAMPLE = {"batch": 3, "length": 11, "kept": 7, "new": 2, "past": 5}
"""Sizes of the example that a graph is traced from. All differ, because equal sizes would be identified; the
graph accepts any others, including 1 and, for `past`, 0."""


class EncoderGraph(nn.Module):
    """Encodes, removes bytes, and computes the cross-attention's keys and values once."""

    def __init__(self, model: MrT5ForConditionalGeneration) -> None:
        super().__init__()
        self.encoder, self.blocks = model.encoder, model.decoder.block

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask (B, L) -> states (B, S, D), their mask (B, S), kept bytes (B, L) bool, and for each
        block of the decoder the keys and the values of its cross-attention, (B, N, S, H)."""
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, hard_delete=True)
        states, mask, kept = encoded.last_hidden_state, encoded.attention_mask, encoded.keep_mask
        source = []
        for block in self.blocks:
            attention = cast(T5Attention, block.get_submodule("layer.1.EncDecAttention"))
            heads = (attention.n_heads, attention.key_value_proj_dim)
            source += [
                linear(states).unflatten(-1, heads).transpose(1, 2) for linear in (attention.k, attention.v)
            ]
        return states, mask.clone(), attention_mask != 0 if kept is None else kept, *source


class DecoderGraph(nn.Module):
    """Decodes more target bytes, all at once or one per step."""

    def __init__(self, model: MrT5ForConditionalGeneration) -> None:
        super().__init__()
        self.decoder, self.head = model.decoder, model.lm_head

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_attention_mask: Tensor,
        source: list[Tensor],
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Target ids (B, T), the encoder's mask (B, S), its keys and values (B, N, S, H), those of the target
        so far (B, N, P, H) -> logits (B, T, V), keys and values of the target (B, N, P + T, H)."""
        cache = EncoderDecoderCache(
            *(DynamicCache(zip(of[::2], of[1::2], strict=True)) for of in (past, source))
        )
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            # Only the dtype and shape of these states are used: their keys and values are in the cache.
            encoder_hidden_states=encoder_attention_mask[..., None].to(past[0].dtype),
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        present = []
        for layer in cast(list[DynamicLayer], cache.self_attention_cache.layers):
            present += [layer.keys, layer.values]
        return self.head(decoded.last_hidden_state), *present


def write_onnx(job: Job, folder: Path) -> list[str]:
    """Write the two graphs, and the files needed to call them.

        encoder.onnx  decoder.onnx  *.onnx.data (their weights)  config.json  generation_config.json
        tokenizer_config.json, added_tokens.json (ByT5's)  recipe.yaml (no local paths)

    The encoder's outputs are the decoder's inputs of the same names; `present.0.key` is `past.0.key` of the
    next step.

    Raises:
        UserError: packages are missing, or the model cannot be exported.
    """
    _check(job)
    config = job.config
    model = sharing_weights(job.model, deletion_threshold=config.deletion_threshold).train(False)
    model.set_attn_implementation("eager")
    layers = [f"{block}.{part}" for block in range(len(model.decoder.block)) for part in ("key", "value")]
    source, past, present = (
        [f"{kind}.{layer}" for layer in layers] for kind in ("source", "past", "present")
    )
    names = ["input_ids", "attention_mask"], ["decoder_input_ids", "encoder_attention_mask"]
    heads, width = config.num_heads, config.d_kv
    _write(
        folder / "encoder.onnx",
        EncoderGraph(model),
        dict.fromkeys(names[0], ("batch", "length")),
        names[0],
        ["last_hidden_state", "encoder_attention_mask", "keep_mask", *source],
    )
    _write(
        folder / "decoder.onnx",
        DecoderGraph(model),
        {
            "decoder_input_ids": ("batch", "new"),
            "encoder_attention_mask": ("batch", "kept"),
            "source": [("batch", heads, "kept", width)] * len(source),
            "past": [("batch", heads, "past", width)] * len(past),
        },
        [*names[1], *source, *past],
        ["logits", *present],
    )
    write_configurations(config.to_dict(), config, folder)
    write_tokenizer(config, folder)
    notes = write_recipe(job, folder)
    if config.deletion_type != "none" and config.inference_deletion == "soft":
        notes.append("config.json sets inference_deletion: soft, but encoder.onnx always removes bytes")
    return notes


def _check(job: Job) -> None:
    """Refuse models that cannot be exported, before minutes are spent."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {' and '.join(missing)}", how_to_install("onnx"))
    if job.config.deletion_type not in KINDS:
        raise UserError(
            "--to onnx supports MrT5's learned gates and models without a shortener; this model has "
            f"deletion_type {job.config.deletion_type!r}",
            "use --to hub, and run it with PyTorch",
        )
    if job.config.has_absolute_position_embeddings:
        raise UserError(
            "--to onnx supports T5's relative bias only; this model has learned positions",
            "use --to hub, and run it with PyTorch",
        )
    if job.dtype != "float32":
        raise UserError(
            f"--to onnx writes float32, but these weights are {job.dtype}, which onnxruntime hardly supports",
            "add --dtype float32",
        )


Sizes = tuple[str | int, ...]
"""Sizes of a tensor; those with a name are dynamic."""


def _write(
    path: Path,
    graph: nn.Module,
    inputs: dict[str, Sizes | list[Sizes]],
    input_names: list[str],
    output_names: list[str],
) -> None:
    """Trace a graph from an example, and write it with its weights."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _quietly(), fast_paths(False), torch.no_grad():
        program = torch.onnx.export(
            graph,
            kwargs={name: _of_each(_example, sizes) for name, sizes in inputs.items()},
            dynamic_shapes={name: _of_each(_free, sizes) for name, sizes in inputs.items()},
            input_names=input_names,
            output_names=output_names,
            verbose=False,
        )
    assert program is not None  # always, with the exporter based on torch.export
    ClearMetadataAndDocStringPass()(program.model)  # nodes contain paths of this machine
    program.save(path, external_data=True)


def _of_each(make: Callable[[Sizes], Any], sizes: Sizes | list[Sizes]) -> Any:
    return [make(each) for each in sizes] if isinstance(sizes, list) else make(sizes)


def _example(sizes: Sizes) -> Tensor:
    shape = [EXAMPLE[size] if isinstance(size, str) else size for size in sizes]
    return torch.ones(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32)


def _free(sizes: Sizes) -> dict[int, str]:
    return {place: size for place, size in enumerate(sizes) if isinstance(size, str)}


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's messages about optional packages and PyTorch's deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
