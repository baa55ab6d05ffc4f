"""What is timed: forward passes, training steps, generation and the attention core.

Each function gives a `Suite`: the calls to set against each other, the baseline of each, the ratio that the
saved arithmetic alone would give, and how far results of fast paths are from the oracle's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.benchmark.models import ours, plain, steer
from mrt5cli.benchmark.rounds import kept_lengths
from mrt5cli.models.attention import _eager, fused, has_fused


@dataclass(frozen=True)
class Shapes:
    """Sizes of a benchmark's inputs."""

    batch: int
    length: int
    target: int
    rows: str
    rates: Sequence[float]


@dataclass
class Suite:
    """Calls to time against each other.

    Attributes:
        calls: by name.
        baseline: of each call but the baselines themselves, the names of what it is compared with.
        ideal: by (call, baseline): the ratio of their multiply-accumulates, where that says something.
        parity: by call: largest absolute difference of its result from the oracle's, and the oracle's
            largest absolute value.
        macs: by call: multiply-accumulates.
    """

    what: str
    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)
    baseline: dict[str, list[str]] = field(default_factory=dict)
    parity: dict[str, tuple[float, float]] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def ideal(self, call: str, baseline: str) -> float | None:
        """The ratio of their multiply-accumulates, or None where they are not counted."""
        if call not in self.macs or baseline not in self.macs:
            return None
        return self.macs[baseline] / self.macs[call]


THEIRS = ("transformers eager", "transformers sdpa")


def forward(base: Any, shapes: Shapes, *, bf16: bool) -> Suite:
    """Teacher-forced forward passes: dense, and deleted for real with and without padding."""
    ids, mask, labels = _batch(base, shapes)
    suite, sizes = Suite("forward"), Sizes.of(base.config)
    full, targets = [shapes.length] * shapes.batch, [shapes.target] * shapes.batch

    def add(
        name: str, model: Any, kept: Sequence[int], against: list[str], half: bool = False, **how: Any
    ) -> None:
        def call() -> Tensor:
            with torch.inference_mode(), torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
                logits: Tensor = model(ids, attention_mask=mask, labels=labels, use_cache=False, **how).logits
                return logits

        suite.calls[name], suite.baseline[name] = call, against
        suite.macs[name] = macs(sizes, full, kept, targets)

    add(THEIRS[0], plain(base, "eager"), full, [])
    add(THEIRS[1], plain(base, "sdpa"), full, [THEIRS[0]])
    dense = {"deletion_type": "none"}
    add("eager", ours(base, "eager", **dense), full, [THEIRS[0]])
    add("dense", ours(base, "packed", **dense), full, [THEIRS[0]])
    if bf16:
        add("dense bf16", ours(base, "packed", **dense), full, [THEIRS[0]], half=True)
    suite.parity["dense"] = _difference(suite.calls["eager"](), suite.calls["dense"]())
    softmax = ours(base, "packed", use_softmax1=False, **dense)
    with torch.inference_mode():
        suite.parity["dense, softmax"] = _difference(
            suite.calls[THEIRS[0]](), softmax(ids, attention_mask=mask, labels=labels).logits
        )
    for rate in shapes.rates:
        if not rate:
            continue
        kept = kept_lengths(shapes.batch, shapes.length, rate, shapes.rows)
        models = {name: ours(base, name) for name in ("eager", "sdpa", "packed")}
        for model in models.values():
            steer(model, kept, shapes.length)
        tag = f"{100 * rate:g} %"
        add(f"eager {tag}", models["eager"], kept, ["eager"], hard_delete=True)
        oracle = suite.calls[f"eager {tag}"]
        add(f"padded {tag}", models["sdpa"], kept, ["dense", f"eager {tag}"], hard_delete=True)
        add(f"packed {tag}", models["packed"], kept, ["dense", f"padded {tag}", THEIRS[0]], hard_delete=True)
        if bf16:
            add(
                f"packed {tag} bf16",
                models["packed"],
                kept,
                ["dense bf16", THEIRS[0]],
                True,
                hard_delete=True,
            )
        for name in ("padded", "packed"):
            suite.parity[f"{name} {tag}"] = _difference(oracle(), suite.calls[f"{name} {tag}"]())
    return suite


def train(base: Any, shapes: Shapes) -> Suite:
    """Forward and backward of a soft-deletion step with the score loss, and of a hard step without."""
    ids, mask, labels = _batch(base, shapes)
    suite = Suite("train")

    def add(name: str, model: Any, against: list[str], step: Callable[[Any], Tensor]) -> None:
        model.train()

        def call() -> None:
            for parameter in model.parameters():
                parameter.grad = None
            step(model).backward()  # type: ignore[no-untyped-call]

        suite.calls[name], suite.baseline[name] = call, against

    def returned_scores(model: Any) -> Tensor:
        # How the authors get the score loss: every layer's attention tensor is returned and kept.
        out = model(ids, attention_mask=mask, labels=labels, output_attentions=True, use_cache=False)
        kept = (*out.encoder_attentions, *out.cross_attentions)
        penalty = sum((scores.clamp(min=5).mean() - 5) for scores in kept) / len(kept)
        total: Tensor = out.loss + 0.5 * penalty + 1e-3 * out.delete_gate_output.mean()
        return total

    def soft(model: Any, score: bool) -> Tensor:
        out = model(ids, attention_mask=mask, labels=labels, output_score_loss=score, use_cache=False)
        total: Tensor = out.loss + 1e-3 * out.delete_gate_output.mean()
        return total + 0.5 * out.score_loss if score else total

    def hard(model: Any) -> Tensor:
        loss: Tensor = model(ids, attention_mask=mask, labels=labels, hard_delete=True, use_cache=False).loss
        return loss

    no_dropout = {"dropout_rate": 0.0}
    first = "eager, returned scores"
    add(first, ours(base, "eager", **no_dropout), [], returned_scores)
    add("eager, score loss", ours(base, "eager", **no_dropout), [first], lambda model: soft(model, True))
    add("fused, score loss", ours(base, "packed", **no_dropout), [first], lambda model: soft(model, True))
    add("fused", ours(base, "packed", **no_dropout), [first], lambda model: soft(model, False))
    for rate in shapes.rates:
        if rate:
            model = ours(base, "packed", **no_dropout)
            steer(model, kept_lengths(shapes.batch, shapes.length, rate, shapes.rows), shapes.length)
            add(f"fused, hard step {100 * rate:g} %", model, ["fused"], hard)
    return suite


def generate(base: Any, shapes: Shapes) -> Suite:
    """Greedy decoding of as many bytes as the target has, whatever they are."""
    ids, mask, _ = _batch(base, shapes)
    suite = Suite("generate")

    def add(name: str, model: Any, against: list[str], **how: Any) -> None:
        def call() -> Tensor:
            tokens: Tensor = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=shapes.target,
                max_new_tokens=shapes.target,
                **how,
            )
            return tokens

        suite.calls[name], suite.baseline[name] = call, against

    add(THEIRS[0], plain(base, "eager"), [])
    add(THEIRS[1], plain(base, "sdpa"), [THEIRS[0]])
    add("dense", ours(base, "packed", deletion_type="none"), [THEIRS[0]])
    for rate in shapes.rates:
        if rate:
            model = ours(base, "packed")
            steer(model, kept_lengths(shapes.batch, shapes.length, rate, shapes.rows), shapes.length)
            add(f"deleted {100 * rate:g} %", model, ["dense", THEIRS[0]], hard_delete=True)
    return suite


def attention(base: Any, shapes: Shapes) -> Suite:
    """softmax1 attention of one encoder layer with its bias: written out, and fused."""
    config = base.config
    suite = Suite("attention")
    device = next(base.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (shapes.batch, config.num_heads, shapes.length, config.d_kv)
    q, k, v = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    bias = torch.randn(1, config.num_heads, shapes.length, shapes.length, generator=generator).to(device)
    if not has_fused(q):
        return suite
    cores: dict[str, Callable[..., Tensor]] = {
        "eager": lambda q, k, v, bias: _eager(q, k, v, bias, True, 0.0)[0],
        "fused": lambda q, k, v, bias: fused(q, k, v, bias, True),
    }
    for name, core in cores.items():

        def inference(core: Any = core) -> Tensor:
            with torch.inference_mode():
                output: Tensor = core(q, k, v, bias)
                return output

        def both_ways(core: Any = core) -> None:
            parts = [part.detach().requires_grad_() for part in (q, k, v, bias)]
            core(*parts).sum().backward()

        suite.calls[f"{name} forward"], suite.calls[f"{name} forward and backward"] = inference, both_ways
        against = name == "fused"
        suite.baseline[f"{name} forward"] = ["eager forward"] if against else []
        suite.baseline[f"{name} forward and backward"] = ["eager forward and backward"] if against else []
    suite.parity["fused forward"] = _difference(
        suite.calls["eager forward"](), suite.calls["fused forward"]()
    )
    return suite


def _batch(base: Any, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    device = next(base.parameters()).device
    ids = torch.randint(3, 259, (shapes.batch, shapes.length), generator=generator)
    labels = torch.randint(3, 259, (shapes.batch, shapes.target), generator=generator)
    return ids.to(device), torch.ones_like(ids).to(device), labels.to(device)


def _difference(oracle: Tensor, other: Tensor) -> tuple[float, float]:
    return float((oracle - other).abs().max()), float(oracle.abs().max())


SUITES: dict[str, Callable[[Any, Shapes], Suite]] = {
    "train": train,
    "generate": generate,
    "attention": attention,
}
"""Beside `forward`, which also takes the precision."""
