"""Benchmark of softmax1 attention in one encoder layer with its bias, written out and fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from mrt5cli.benchmark import card
from mrt5cli.benchmark.models import DROPOUT, DTYPES, Precision, Shapes, float32_products, named, on_gpu
from mrt5cli.benchmark.models import implementations as of_device
from mrt5cli.benchmark.suite import Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.attention import IMPLEMENTATIONS, AttentionOptions
from mrt5cli.models.deletion import distance_bias
from mrt5cli.models.fast.fused import STEP, bias_dtype
from mrt5cli.models.fast.kernels import Packed, grid
from mrt5cli.models.fast.kernels.device_layout import DeviceRows
from mrt5cli.models.score_loss import ScorePenalty

Attention = Callable[..., tuple[Tensor, Any]]
BOTH_WAYS, SCORE_LOSS = "forward and backward", "with score loss"
KINDS: dict[str, dict[str, Any]] = {
    "forward": {},
    BOTH_WAYS: {"backward": True},
    f"{BOTH_WAYS} {SCORE_LOSS}": {"backward": True, "score_loss": True},
}
"""Arguments of `Core.run` by case."""
DROPPING = {
    f"{BOTH_WAYS} {SCORE_LOSS} and dropout": {"backward": True, "score_loss": True, "dropout": DROPOUT}
}
"""Cases with dropout on a GPU; each function samples differently, so results are not compared."""
BARE = "PyTorch's softmax without bias"
"""Name of the case without a bias, on a GPU."""


def implementations(base: MrT5ForConditionalGeneration) -> dict[str, Attention]:
    """Our attention functions by name; the first is the oracle."""
    registered: Mapping[str, Attention] = AttentionInterface()  # type: ignore[no-untyped-call]
    eager = registered[IMPLEMENTATIONS["eager"]]
    if not on_gpu(base):
        return {"eager": eager, "fused": registered[IMPLEMENTATIONS["packed"]]}
    found: dict[str, Attention] = {"eager": partial(_padded, eager)}
    for name in reversed(of_device(base)):
        found[name] = _packed if name == "triton" else partial(_padded, registered[IMPLEMENTATIONS[name]])
    return found


def _padded(
    function: Attention, layer: Any, query: Tensor, *others: Any, position_bias: Tensor, **rest: Any
) -> Any:
    """Expand the bias of every pair, which models do once for all layers."""
    length, far = query.shape[2], position_bias.shape[1] // 2
    distances = torch.arange(1 - length, length, device=query.device).clamp(-far, far)
    by_distance = position_bias.to(bias_dtype(query) or position_bias.dtype)[:, distances + far]
    return function(
        layer, query, *others, position_bias=distance_bias(by_distance, None, length, STEP), **rest
    )


def _packed(
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    dropout: float,
    position_bias: Tensor,
    score_penalty: ScorePenalty | None,
) -> tuple[Tensor, None]:
    rows, heads, length, width = query.shape
    q, k, v = (
        part.transpose(1, 2).reshape(1, -1, heads, width).transpose(1, 2) for part in (query, key, value)
    )
    options = AttentionOptions(layer.config.use_softmax1, dropout, penalty=score_penalty)
    output = DeviceRows(_full(rows, length, query.device), position_bias).attend(q, k, v, options)
    return output.view(rows, length, heads, width), None


@cache
@torch.inference_mode(False)
def _full(rows: int, length: int, device: torch.device) -> Packed:
    positions = torch.arange(length, dtype=torch.int32, device=device).repeat(rows)
    return replace(grid(rows, length, device), positions=positions)


def _bare(layer: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class Core:
    """Inputs of one encoder layer's attention, for any attention function.

    Attributes:
        layer: the layer whose configuration the functions read.
        parts: queries, keys and values (B, N, L, H), and the bias: (1, N, L, L), or on a GPU (N, 2 far + 1)
            by distance, as in models.
    """

    layer: torch.nn.Module
    parts: Sequence[Tensor]

    @classmethod
    def of(cls, base: MrT5ForConditionalGeneration, shapes: Shapes, dtype: torch.dtype) -> Core:
        """Random scores with a standard deviation of about 3, some above the ceiling of the score loss."""
        generator = torch.Generator().manual_seed(0)
        heads, width, length = base.config.num_heads, base.config.d_kv, shapes.length
        far = min(length - 1, base.config.relative_attention_max_distance)

        def drawn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(base.device)

        if on_gpu(base):  # laid out as a projection leaves them
            q, *others = (drawn(shapes.batch, length, heads, width).transpose(1, 2) for _ in range(3))
            bias = drawn(heads, 2 * far + 1)
        else:
            q, *others = (drawn(shapes.batch, heads, length, width) for _ in range(3))
            bias = drawn(1, heads, length, length)
        states = [part.to(dtype) for part in (q * (3 * width**-0.5), *others)]
        return cls(base.get_submodule("encoder.block.0.layer.0.SelfAttention"), [*states, bias])

    def run(
        self, function: Attention, *, backward: bool = False, score_loss: bool = False, dropout: float = 0.0
    ) -> list[Tensor]:
        """The output, or the gradients of the parts."""
        given = [part.detach().requires_grad_(backward) for part in self.parts]
        penalty, (*states, bias) = ScorePenalty("row") if score_loss else None, given
        with torch.inference_mode(not backward):
            call = partial(function, position_bias=bias, score_penalty=penalty)
            output: Tensor = call(self.layer, *states, None, dropout)[0]
        if not backward:
            return [output]
        total = output.float().square().sum()
        (total if penalty is None else total + 100 * penalty.mean()).backward()  # type: ignore[no-untyped-call]
        return [part.grad for part in given if part.grad is not None]


def attention(
    base: MrT5ForConditionalGeneration, shapes: Shapes, functions: Mapping[str, Attention] | None = None
) -> Suite:
    """The attention suite, in each precision: forward; forward and backward; with score loss; on a GPU also
    with dropout.

    Each function is compared with the functions before it.
    """
    suite, functions = Suite("attention"), functions or implementations(base)
    cores = {precision: Core.of(base, shapes, DTYPES[precision]) for precision in shapes.precisions}

    def add(name: str, function: Attention, kinds: Mapping[str, Any], against: Sequence[str]) -> None:
        for precision, core in cores.items():
            query = core.parts[0]
            for kind, how in kinds.items():
                # Number of products of that size, and of tensors of that size read or written.
                products, tensors = (6, 12) if how.get("backward") else (2, 4)
                suite.cases[named(f"{name} {kind}", precision)] = Case(
                    partial(core.run, function, **how),
                    [named(f"{other} {kind}", precision) for other in against],
                    operations=products * 2 * query.numel() * shapes.length,
                    moved=tensors * query.numel() * query.element_size(),
                    precision=precision,
                )

    for place, (name, function) in enumerate(functions.items()):
        add(name, function, KINDS | DROPPING if on_gpu(base) else KINDS, list(functions)[:place])
    if on_gpu(base):
        add(BARE, _bare, {kind: KINDS[kind] for kind in ("forward", BOTH_WAYS)}, list(functions))
        suite.cases["copy"] = card.copy(base.device)
    suite.cases |= card.products(base, shapes)

    def checks() -> Checks:
        (_, oracle), *fused = functions.items()

        def parity(how: dict[str, Any], function: Attention, precision: Precision) -> Parity:
            core = cores[precision]
            exact = replace(core, parts=[part.float() for part in core.parts]).run(oracle, **how)
            with float32_products(precision):
                found, rounded = core.run(function, **how), core.run(oracle, **how)
            parities = []
            for wanted, *others in zip(exact, found, rounded, strict=True):
                scale = wanted.abs().max() if how else 1.0  # gradients are taken by their largest entry
                parts = [part.float() / scale for part in (wanted, *others)]
                parities.append(Parity.of(*parts[: 2 if precision == "fp32" else 3]))
            return max(parities, key=lambda one: (not one.holds, one.difference / one.allowed))

        for precision in cores:
            for kind, how in KINDS.items():
                for name, function in fused:
                    yield named(f"{name} {kind}", precision), partial(parity, how, function, precision)

    suite.checks = checks
    return suite
