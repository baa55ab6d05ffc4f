"""The models of a benchmark: one set of weights under several implementations, on random bytes without
padding.

Shapes: B rows, L source and T target positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.models import BYT5_SHAPES, MrT5Config, MrT5ForConditionalGeneration, load, read_config
from mrt5cli.models.checkpoint import sharing_weights
from mrt5cli.models.fast.kernels import runs_on

TINY = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2}
SIZES: dict[str, Json] = {
    "tiny": TINY,
    **{name.removeprefix("google/"): shape for name, shape in BYT5_SHAPES.items()},
}


Precision = Literal["fp32", "bf16", "tf32"]
"""Precision of matrix products: exact float32; bfloat16 (autocast or weights); float32 rounded to 10 bits."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "tf32": torch.float32}


DROPOUT = 0.1
"""The paper's dropout in training, of attention weights and of everything else."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a benchmark's inputs.

    Attributes:
        batch, length, target: B, L and T.
        rates: deletion rates, from 0 to below 1.
        spreads: distributions of kept lengths over rows: "even", "wide" or both.
        precisions: precisions to time.
    """

    batch: int
    length: int
    target: int
    rates: Sequence[float] = ()
    spreads: Sequence[str] = ("even",)
    precisions: Sequence[Precision] = ("fp32",)

    def deletions(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The name of each deletion to time, and the number of positions that each row keeps."""
        for rate in self.rates:
            for spread in self.spreads if rate else ():
                yield f"{100 * rate:g} % {spread}", kept_lengths(self.batch, self.length, rate, spread)


def named(name: str, precision: Precision) -> str:
    """The name of a case in a precision."""
    return name if precision == "fp32" else f"{name} {precision}"


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """A context in which float32 products are exact, or with "tf32" rounded by a GPU's matrix units."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def on_gpu(base: MrT5ForConditionalGeneration) -> bool:
    """Whether the weights are on a GPU, which adds cases and omits slow ones."""
    return base.device.type == "cuda"


def implementations(base: MrT5ForConditionalGeneration) -> list[str]:
    """Our attention implementations on the weights' device, except eager; the first is the fastest."""
    if not on_gpu(base):
        return ["packed"]
    return ["triton", "sdpa"] if runs_on(base.device, base.config.d_kv) else ["sdpa"]


def kept_lengths(rows: int, length: int, deleted: float, spread: str) -> Sequence[int]:
    """The number of positions that each row keeps, equal or spread around the same mean.

    Args:
        rows: number of rows.
        length: source positions.
        deleted: mean deletion rate, 0 to 1.
        spread: "even", or "wide": shares up to 0.3 below and above the mean, limited to two thirds of the
            distance to 0 and 1: 20 to 80 % at a rate of 0.5, 10 to 50 % at 0.7.
    """
    kept = 1 - deleted
    room = 0.0 if spread == "even" or rows == 1 else min(0.3, 2 / 3 * min(kept, deleted))
    shares = [kept + room * (2 * row / max(1, rows - 1) - 1) for row in range(rows)]
    return [max(1, round(length * share)) for share in shares]


def base_model(model: str | None, size: str, device: str = "cpu") -> MrT5ForConditionalGeneration:
    """The weights to run, with a gate: a checkpoint's, on the CPU, or random ones of a size.

    Random weights are sampled on the device, which saves seconds on a GPU.

    Raises:
        UserError: the checkpoint shortens with something other than a delete gate.
    """
    if model is None:
        torch.manual_seed(0)
        with torch.device(device):
            return MrT5ForConditionalGeneration(MrT5Config(**SIZES[size], use_softmax1=True))
    config = read_config(model)
    kind = config.deletion_type
    if kind == "none":
        layer = min(MrT5Config.delete_gate_layer, config.num_layers - 1)
        return load(model, deletion_type=MrT5Config.deletion_type, delete_gate_layer=layer, use_softmax1=True)
    if kind != MrT5Config.deletion_type:
        raise UserError(
            f"{model} shortens with {kind!r}; the benchmark needs a delete gate",
            "pass a ByT5 or an MrT5, or omit the model",
        )
    return load(model)


def ours(base: MrT5ForConditionalGeneration, attention: str, **fields: Any) -> MrT5ForConditionalGeneration:
    """Another of our models that shares the weights."""
    model = sharing_weights(base, **fields)
    model.set_attn_implementation(attention)
    return model.train(False)


def plain(base: MrT5ForConditionalGeneration, attention: str, **fields: Any) -> T5ForConditionalGeneration:
    """transformers' T5 (with softmax) that shares the weights.

    Raises:
        UserError: the weights have learned positions, which transformers' T5 does not support.
    """
    if base.config.has_absolute_position_embeddings:
        raise UserError(
            "this model has learned positions, which transformers' T5, its baseline, does not support",
            "time its training or attention (--what train,attention), or a model with a relative bias",
        )
    theirs = {"model_type": "t5", "scale_decoder_outputs": False, **fields}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config.from_dict({**base.config.to_dict(), **theirs}))
    model.config.tie_word_embeddings = False  # older versions decide by this whether to scale
    model.lm_head.weight = torch.nn.Parameter(base.lm_head.weight)  # untied: T5 shares it with the embedding
    model.load_state_dict(base.state_dict(), strict=False, assign=True)
    for part in (
        model,
        model.encoder,
        model.decoder,
    ):  # transformers 5.17 does not set copies of a configuration
        part.set_attn_implementation(attention)
    return model.train(False)


class Variant:
    """One way to run the common batch: a model, the positions that its gate keeps, and a precision.

    Attributes:
        ids, mask: (B, L).
        labels: (B, T).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: Shapes,
        kept: Sequence[int] | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """`kept` is the number of positions per row, spread evenly, or None for all; "bf16" is autocast."""
        self.model, self.kept, self.precision = model, kept, precision
        generator, device = torch.Generator().manual_seed(1), model.lm_head.weight.device
        self.ids = torch.randint(3, 259, (shapes.batch, shapes.length), generator=generator).to(device)
        self.labels = torch.randint(3, 259, (shapes.batch, shapes.target), generator=generator).to(device)
        self.mask = torch.ones_like(self.ids)
        if kept is not None:
            self._gates = torch.full(self.ids.shape, float(model.config.sigmoid_mask_scale))
            for row, count in zip(self._gates, kept, strict=True):
                row[torch.linspace(0, shapes.length - 1, count).round().long()] = 0.0
            self._gates = self._gates.to(device)

    def steer(self) -> dict[str, bool]:
        """Make the model's gate, which other variants may share, keep this variant's positions.

        Returns:
            Keyword arguments for the model.
        """
        if self.kept is None:
            return {}
        gate: Any = self.model.get_encoder().shortener
        gate.score = lambda states, padding, input_ids: (self._gates, None)
        return {"hard_delete": True}

    def __call__(self, **options: Any) -> Any:
        """A teacher-forced forward pass."""
        given = {"attention_mask": self.mask, "labels": self.labels, "use_cache": False, **options}
        if isinstance(self.model, MrT5ForConditionalGeneration):
            given["real_bytes"] = self.ids.numel()  # collators count these
        half = torch.autocast(self.ids.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with float32_products(self.precision), half:
            return self.model(self.ids, **given, **self.steer())

    def macs(self, *, padded: bool = False) -> int:
        """Multiply-accumulates of a forward pass; `padded` counts every row at the longest kept length."""
        rows, length = self.ids.shape
        kept = [length] * rows if self.kept is None else self.kept
        computed = [max(kept)] * rows if padded else kept
        sizes = Sizes.of(self.model.config.to_dict())
        return macs(sizes, [length] * rows, computed, [self.labels.shape[1]] * rows)
