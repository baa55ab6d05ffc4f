"""What a benchmark runs: one set of weights under several implementations, on random bytes without padding.

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
"""Of matrix products: exact float32; bfloat16, by autocast or of the weights; float32 rounded to 10 bits."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "tf32": torch.float32}


DROPOUT = 0.1
"""The paper's, of attention weights and of everything else in training."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a benchmark's inputs.

    Attributes:
        batch, length, target: B, L and T.
        rates: deletion rates, 0 to below 1.
        spreads: "even", "wide" or both: how kept lengths are spread over the rows.
        precisions: what is timed in each of these.
    """

    batch: int
    length: int
    target: int
    rates: Sequence[float] = ()
    spreads: Sequence[str] = ("even",)
    precisions: Sequence[Precision] = ("fp32",)

    def deletions(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The name of each deletion to time, and the positions that each row keeps."""
        for rate in self.rates:
            for spread in self.spreads if rate else ():
                yield f"{100 * rate:g} % {spread}", kept_lengths(self.batch, self.length, rate, spread)


def named(name: str, precision: Precision) -> str:
    """The name of a case in a precision."""
    return name if precision == "fp32" else f"{name} {precision}"


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Products of float32 matrices within are exact, or in "tf32" as a GPU's matrix units make them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def on_gpu(base: MrT5ForConditionalGeneration) -> bool:
    """Whether the weights lie on one: then there is more to compare with, and less that is slow."""
    return base.device.type == "cuda"


def implementations(base: MrT5ForConditionalGeneration) -> list[str]:
    """How our models attend where the weights lie, but for the written-out way; the first is the fast one."""
    if not on_gpu(base):
        return ["packed"]
    return ["triton", "sdpa"] if runs_on(base.device, base.config.d_kv) else ["sdpa"]


def kept_lengths(rows: int, length: int, deleted: float, spread: str) -> Sequence[int]:
    """Positions that each row keeps: all the same, or from few to many around the same mean.

    Args:
        deleted: mean share of positions, 0 to 1.
        spread: "even", or "wide": shares up to 0.3 below and above the mean, but at most two thirds of the
            way to nothing and to all: 20 to 80 % at a rate of 0.5, 10 to 50 % at 0.7.
    """
    kept = 1 - deleted
    room = 0.0 if spread == "even" or rows == 1 else min(0.3, 2 / 3 * min(kept, deleted))
    shares = [kept + room * (2 * row / max(1, rows - 1) - 1) for row in range(rows)]
    return [max(1, round(length * share)) for share in shares]


def base_model(model: str | None, size: str) -> MrT5ForConditionalGeneration:
    """The weights to run, on the CPU: a checkpoint's, or random ones of a size; with a gate to steer."""
    if model is None:
        torch.manual_seed(0)
        return MrT5ForConditionalGeneration(MrT5Config(**SIZES[size], use_softmax1=True))
    config = read_config(model)
    kind = config.deletion_type
    if kind == "none":
        layer = min(MrT5Config.delete_gate_layer, config.num_layers - 1)
        return load(model, deletion_type=MrT5Config.deletion_type, delete_gate_layer=layer, use_softmax1=True)
    if kind != MrT5Config.deletion_type:
        raise UserError(
            f"{model} shortens by {kind!r}; the benchmark steers a delete gate",
            "give a ByT5 or an MrT5, or leave the model out",
        )
    return load(model)


def ours(base: MrT5ForConditionalGeneration, attention: str, **fields: Any) -> MrT5ForConditionalGeneration:
    """Another model of the same weights, not copied."""
    model = sharing_weights(base, **fields)
    model.set_attn_implementation(attention)
    return model.train(False)


def plain(base: MrT5ForConditionalGeneration, attention: str, **fields: Any) -> T5ForConditionalGeneration:
    """transformers' own T5 of the same weights, not copied; it computes softmax.

    Raises:
        UserError: learned positions, which it has not.
    """
    if base.config.has_absolute_position_embeddings:
        raise UserError(
            "this model has learned positions, and transformers' T5, which it is timed against, has none",
            "time its training or attention (--what train,attention), or a model with a relative bias",
        )
    theirs = {"model_type": "t5", "scale_decoder_outputs": False, **fields}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config.from_dict({**base.config.to_dict(), **theirs}))
    model.config.tie_word_embeddings = False  # to older versions this says whether to scale
    model.lm_head.weight = torch.nn.Parameter(base.lm_head.weight)  # its own: built, it is the embedding's
    model.load_state_dict(base.state_dict(), strict=False, assign=True)
    model.set_attn_implementation(attention)
    return model.train(False)


class Variant:
    """A model, what its gate is to keep, and the precision: one way to run the batch that all are given.

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
        """`kept`: positions of each row, spread evenly, or None for all; "bf16" is by autocast."""
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
        """Make the gate of the model, which other variants may share, keep what this one does.

        Returns:
            What to call the model with.
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
            given["real_bytes"] = self.ids.numel()  # which collators count
        half = torch.autocast(self.ids.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with float32_products(self.precision), half:
            return self.model(self.ids, **given, **self.steer())

    def macs(self, *, padded: bool = False) -> int:
        """Multiply-accumulates of a forward pass; `padded`: every row as long as the longest that is kept."""
        rows, length = self.ids.shape
        kept = [length] * rows if self.kept is None else self.kept
        computed = [max(kept)] * rows if padded else kept
        sizes = Sizes.of(self.model.config.to_dict())
        return macs(sizes, [length] * rows, computed, [self.labels.shape[1]] * rows)
