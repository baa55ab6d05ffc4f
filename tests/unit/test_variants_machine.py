"""Every variant in half precision, with gradient checkpointing, and compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import labelled
from variants import GATES, KINDS, VARIANTS, batch_of, labels_for, random_rows, segment_ends, tiny

from mrt5cli.models.shorteners import Sequences

IDS, MASK = batch_of(random_rows([14, 6, 1]), 2)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
MODES = [
    pytest.param(variant, hard, id=f"{variant}-{'hard' if hard else 'soft'}")
    for variant in VARIANTS
    for hard in ((False, True) if variant in GATES else (True,))
]


def forward(model: Any, hard: bool, **arguments: Any) -> Any:
    if model.training and model.config.boundary_predictor_type != "gumbel":
        arguments["segment_ends"] = segment_ends(IDS)
    torch.manual_seed(1)  # of the draws of random deletion and boundaries
    return model(IDS, attention_mask=MASK, labels=labels_for(IDS), hard_delete=hard, **arguments)


def total(out: Any) -> torch.Tensor:
    """A loss that reaches whatever there is to train."""
    loss = out.loss
    if out.delete_gate_logits is not None:
        loss = loss + 0.01 * out.delete_gate_output.mean()
    if out.score_loss is not None:
        loss = loss + out.score_loss
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- half precision
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("one", [False, True], ids=["softmax", "softmax1"])
@pytest.mark.parametrize(("variant", "hard"), MODES)
def test_bfloat16(variant, hard, one, how):
    model = tiny(variant, use_softmax1=one).train()
    exact = forward(model, hard)
    if how == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = forward(model, hard, output_score_loss=True)
        total(out).backward()
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.item() == pytest.approx(exact.loss.item(), abs=0.2)
    found = gradients(model)
    shortener = model.encoder.shortener
    # Hard deletion passes no gradient to what decided it, but the loss on the gate values does.
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert shortener is None or all(p.grad.isfinite().all() for p in shortener.parameters())
    assert all(grad.isfinite().all() for grad in found.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_on_the_embeddings_changes_nothing_in_what_is_kept(variant):
    """Before block 0 nothing has been rounded, so a shortener there says exactly the same."""
    model = tiny(variant, delete_gate_layer=0, d_model=32)
    exact = forward(model, True)
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(model, True)
    for name in ("keep_mask", "delete_gate_output", "delete_gate_logits", "boundary_logits", "kept_lengths"):
        expected = getattr(exact, name)
        if expected is not None:
            assert torch.equal(getattr(found, name), expected), name


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("none", "source_removed")])
def test_what_is_kept_is_decided_in_float32(variant, how):
    """Whatever precision its input has, a shortener keeps what its float32 copy keeps of the same input."""
    model = tiny(variant)
    given: list[Sequences] = []
    model.encoder.shortener.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    if how == "weights":
        model.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = forward(model, True)
    exact = copy.deepcopy(model.encoder.shortener).float()
    in_float32 = replace(
        given[0],
        states=given[0].states.float(),
        normed=None if given[0].normed is None else given[0].normed.float(),
    )
    with torch.no_grad():
        expected = exact(in_float32, hard=True, threshold=None)
    assert torch.equal(found.keep_mask, expected.keep_mask)
    if expected.boundary_logits is not None:
        assert torch.equal(found.boundary_logits, expected.boundary_logits)
    if expected.delete_gate_logits is not None:
        assert torch.equal(found.delete_gate_logits, expected.delete_gate_logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_residual_stream_keeps_its_precision_under_autocast(variant):
    model = tiny(variant)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = forward(model, True, output_hidden_states=True)
    assert {states.dtype for states in out.encoder_hidden_states} == {torch.float32}


# --- gradient checkpointing
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "hard"), MODES)
def test_checkpointing_gives_the_same_gradients(variant, hard):
    found = []
    for checkpointing in (False, True):
        model = tiny(variant, use_softmax1=True).train()
        runs = [0]
        model.encoder.block[-1].layer[0].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        if checkpointing:
            # The name since transformers 5.20 or so, and the one before.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        out = forward(model, hard, output_score_loss=True)
        total(out).backward()
        found.append(gradients(model))
        assert sum(runs) == 1 + checkpointing, "blocks run again in the backward pass, or they do not"
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, atol=1e-6, rtol=1e-4, msg=labelled(name))


# --- compiled
# --------------------------------------------------------------------------------------------------------

# torch.compile's own, about its own code.
upstream = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(autouse=True)
def dynamo() -> Iterator[None]:
    """No test inherits what another has compiled, and graph breaks are judged here, not logged."""
    import logging

    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    logger.setLevel(level)


def breaks() -> list[str]:
    """Why graphs broke in this test so far.

    Asking for `fullgraph` would not do: it then takes values off the device inside the graph.
    """
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    return list(counters["graph_break"])


COMPILED = {"mrt5", "hnet", "none"}
"""Kinds that are compiled at every commit, the others on request: each takes seconds."""


@upstream
@pytest.mark.parametrize(
    "variant", [kind if kind in COMPILED else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@pytest.mark.parametrize("stack", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_blocks_compile_without_a_break(variant, stack):
    model = tiny(variant).train()
    block = getattr(model, stack).block[-1]
    calls: list[tuple[Any, Any, Any]] = []
    block.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    for hard in (False, True):
        forward(model, hard, use_cache=False)
    compiled = torch.compile(copy.deepcopy(block), backend="eager")
    compiled._orig_mod._forward_hooks.clear()
    for positional, named, expected in list(calls):
        found = compiled(*positional, **named)
        torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert not breaks()


@upstream
@pytest.mark.parametrize(
    ("variant", "score"), [("mrt5", True), pytest.param("cp_3", False, marks=pytest.mark.slow)]
)
def test_training_compiles_whole(variant, score):
    """Soft gates and convolutions: not one break, and the same loss and gradients."""
    found = []
    for compiled in (False, True):
        model = tiny(variant, num_layers=2, num_decoder_layers=1, use_softmax1=True).train()
        callee = torch.compile(model, backend="eager") if compiled else model
        out = forward(callee, False, output_score_loss=score)
        total(out).backward()
        found.append((out.logits, gradients(model)))
    assert not breaks()
    (logits, grads), (compiled_logits, compiled_grads) = found
    torch.testing.assert_close(compiled_logits, logits, **CLOSE)
    assert grads.keys() == compiled_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(compiled_grads[name], grad, atol=1e-6, rtol=1e-4, msg=labelled(name))


@upstream
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "hard"), MODES)
def test_the_whole_model_compiled_is_the_same_model(variant, hard):
    model = tiny(variant, num_layers=2, num_decoder_layers=1)
    with torch.no_grad():
        out = forward(torch.compile(model, backend="eager"), hard)
        expected = forward(model, hard)
    torch.testing.assert_close(out.logits, expected.logits, **CLOSE)
    if (variant in GATES and hard) or variant.startswith("bp"):
        # Real removal must know how many positions are left; nothing else breaks the graph.
        (reason,) = breaks()
        assert "Tensor.item()" in reason or "_local_scalar_dense" in reason  # the same, of one or of several
    else:
        assert not breaks()


@upstream
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mrt5", "bp_gumbel", "cp_3"])
def test_inductor(variant):
    """Really compiled, with a C++ compiler, forward and backward."""
    found = []
    for compiled in (False, True):
        model = tiny(variant, num_layers=2, num_decoder_layers=1).train()
        # Its own random numbers are others than eager's, and boundaries are drawn.
        with torch._inductor.config.patch(fallback_random=True):
            out = forward(torch.compile(model) if compiled else model, False)
            total(out).backward()
        found.append((out, gradients(model)))
    (out, grads), (compiled_out, compiled_grads) = found
    torch.testing.assert_close(compiled_out.logits, out.logits, **CLOSE)
    for name, grad in grads.items():
        torch.testing.assert_close(compiled_grads[name], grad, atol=1e-5, rtol=1e-3, msg=labelled(name))
