"""A model as two ONNX graphs, for onnxruntime: an encoder that deletes bytes, and a decoder with its cache.

Legend: B batch, L input bytes, S kept slots (the longest row's count), T new target positions, P those before
them, D model width, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mrt5cli.convert.files import Job, write_recipe, write_tokenizer
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.shorteners.delete_gate import DeleteGate
from mrt5cli.writing import write_json

PACKAGES = ("onnx", "onnxscript")
EXPORTED = ("none", *DeleteGate.deletion_types)
OPSET = 20

# All sizes of the example differ: torch.export takes equal ones for one. It assumes nothing else from them.
BATCH, LENGTH, KEPT, NEW, PAST = 3, 11, 7, 2, 5


class EncoderGraph(nn.Module):
    """ids and mask (B, L) -> states (B, S, D), their mask (B, S), kept bytes (B, L) bool; then for every decoder
    layer the keys and the values of its cross-attention, (B, N, S, H), which no step changes."""

    def __init__(self, model: MrT5ForConditionalGeneration) -> None:
        super().__init__()
        self.encoder, self.blocks = model.encoder, model.decoder.block

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, hard_delete=True)
        states, mask, kept = encoded.last_hidden_state, encoded.attention_mask, encoded.keep_mask
        source = []
        for block in self.blocks:
            attention = block.get_submodule("layer.1.EncDecAttention")
            heads = attention.n_heads, attention.key_value_proj_dim
            source += [part(states).unflatten(-1, heads).transpose(1, 2) for part in (attention.k, attention.v)]
        return states, mask.clone(), attention_mask != 0 if kept is None else kept, *source


class DecoderGraph(nn.Module):
    """Target ids (B, T), mask of the source (B, S), its keys and values, and those of the target so far
    (B, N, P, H) -> logits (B, T, V) and the keys and values of the target, (B, N, P + T, H)."""

    def __init__(self, model: MrT5ForConditionalGeneration) -> None:
        super().__init__()
        self.decoder, self.head = model.decoder, model.lm_head

    def forward(
        self, decoder_input_ids: Tensor, encoder_attention_mask: Tensor, source: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        pairs = [list(zip(tensors[::2], tensors[1::2], strict=True)) for tensors in (past, source)]
        cache = EncoderDecoderCache(*map(DynamicCache, pairs))
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            # Keys and values are there already: of these states only the number of positions is looked at.
            encoder_hidden_states=encoder_attention_mask[..., None].to(source[0].dtype),
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        layers = cache.self_attention_cache.layers
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return self.head(decoded.last_hidden_state), *present


def write_onnx(job: Job, folder: Path) -> list[str]:
    """Two graphs, each with its weights beside it, and what tells how to call them.

        encoder.onnx  decoder.onnx  *.onnx.data (weights)  config.json  generation_config.json
        tokenizer_config.json, added_tokens.json (ByT5's)  recipe.yaml

    Raises:
        UserError: packages are missing, or the model has no such graphs.
    """
    refuse(job)
    model = copy.deepcopy(job.model).eval()
    model.set_attn_implementation("eager")
    config, layers = model.config, range(len(model.decoder.block))
    names = {
        what: [f"{what}.{layer}.{part}" for layer in layers for part in ("key", "value")]
        for what in ("source", "past", "present")
    }
    batch, length, kept, new, past = (Dim(name) for name in ("batch", "length", "kept", "new", "past"))

    def ids(positions: int) -> Tensor:
        return torch.ones(BATCH, positions, dtype=torch.long)

    heads = config.num_heads, config.d_kv

    def cached(positions: int) -> list[Tensor]:
        return [torch.zeros(BATCH, heads[0], positions, heads[1]) for _ in names["past"]]

    with quiet_export(), fast_paths(False), torch.no_grad():
        _write(
            EncoderGraph(model),
            {"input_ids": ids(LENGTH), "attention_mask": ids(LENGTH)},
            {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
            ["input_ids", "attention_mask"],
            ["last_hidden_state", "encoder_attention_mask", "keep_mask", *names["source"]],
            folder / "encoder.onnx",
        )
        _write(
            DecoderGraph(model),
            {
                "decoder_input_ids": ids(NEW),
                "encoder_attention_mask": ids(KEPT),
                "source": cached(KEPT),
                "past": cached(PAST),
            },
            {
                "decoder_input_ids": {0: batch, 1: new},
                "encoder_attention_mask": {0: batch, 1: kept},
                "source": [{0: batch, 2: kept}] * len(names["source"]),
                "past": [{0: batch, 2: past}] * len(names["past"]),
            },
            ["decoder_input_ids", "encoder_attention_mask", *names["source"], *names["past"]],
            ["logits", *names["present"]],
            folder / "decoder.onnx",
        )
    write_json(folder / "config.json", config.to_dict())
    write_tokenizer(config, folder)
    return write_recipe(job, folder)


def refuse(job: Job) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {' and '.join(missing)}", "pip install 'mrt5cli[onnx]'")


def _write(graph, inputs, shapes, input_names, output_names, path):
    exported = torch.export.export(graph, (), inputs, dynamic_shapes=shapes)
    program = torch.onnx.export(exported, input_names=input_names, output_names=output_names, opset_version=OPSET, verbose=False)
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=True)


@contextmanager
def quiet_export() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
