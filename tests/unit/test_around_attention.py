"""What is around attention on a GPU: kernels of the norm and the gated activation, products that are one.

Without a GPU the kernels run in Triton's interpreter; with one, tests/parity/test_gpu_parts.py runs the same
cases compiled. All else needs no triton: there the model takes this CPU for a GPU, and gets the kernels'
formulas written out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import labelled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_kernels import HAS_TRITON, NEEDS_TRITON
from row_kernels import (
    LAUNCHED,
    SHAPES,
    WIDTHS,
    Gated,
    compare_added,
    compare_gated,
    compare_norm,
    dropped,
    written_out,
)
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
from variants import tiny

from mrt5cli.models.fast import kernels, products
from mrt5cli.models.fast.kernels.randomness import draw_seed
from mrt5cli.models.fast.parts import Attention, RMSNorm
from mrt5cli.models.fast.products import Linear, joins, joint
from mrt5cli.models.fast.switch import fast_paths, fast_paths_are_on
from mrt5cli.models.recomputation import recompute

pytestmark = [pytest.mark.drawn, pytest.mark.usefixtures("fast")]

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=NEEDS_TRITON)
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a CUDA device is here: -m gpu runs these cases compiled"
)
HALF, FULL = torch.float16, torch.float32  # the interpreter rounds bfloat16 towards 0


# --- kernels ------------------------------------------------------------------------------------------------


@needs_triton
@interpreted
@settings(max_examples=12, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS,
    of_states=st.sampled_from([FULL, HALF]),
    of_weight=st.sampled_from([FULL, HALF]),
    of_output=st.sampled_from([None, HALF]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
@example((1100,), 3, FULL, FULL, None, 1.0)  # more tiles than a program has rows
@example((3, 23), 1472, FULL, FULL, HALF, 1.0)
def test_the_norm(rows, width, of_states, of_weight, of_output, scale):
    compare_norm((*rows, width), of_states, of_weight, of_output, "cpu", scale)


@needs_triton
@interpreted
def test_a_weight_gradient_of_several_rows_a_program(monkeypatch):
    monkeypatch.setattr(f"{LAUNCHED}.PROGRAMS", 3)
    monkeypatch.setattr(f"{LAUNCHED}.TILE", 64)
    for rows in (1, 2, 7, 12, 13):
        compare_norm((rows, 40), FULL, FULL, None, "cpu")


@needs_triton
@interpreted
@settings(max_examples=12, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS,
    joint=st.booleans(),
    rate=st.sampled_from([0.0, 0.1, 0.75]),
    dtype=st.sampled_from([FULL, HALF]),
    of_weight=st.sampled_from([None, FULL]),
)
@example((3, 23), 3584, True, 0.1, FULL, None)
def test_the_gated_activation(rows, width, joint, rate, dtype, of_weight):
    compare_gated(Gated((*rows, width), joint, rate, dtype, of_weight), "cpu")


@needs_triton
@interpreted
@settings(max_examples=10, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS,
    of_states=st.sampled_from([FULL, HALF]),
    of_update=st.sampled_from([FULL, HALF]),
    rate=st.sampled_from([0.1, 0.75]),
)
@example((3, 23), 1472, FULL, HALF, 0.1)
def test_the_residual(rows, width, of_states, of_update, rate):
    compare_added((*rows, width), of_states, of_update, rate, "cpu")


@needs_triton
@interpreted
def test_the_share_that_is_dropped():
    from mrt5cli.models.fast.kernels.around_attention import gated_output

    torch.manual_seed(5)
    gate = torch.full((64, 256), 30.0)  # gelu(30) is 30
    outputs = [gated_output(gate, gate / 900, torch.eye(256), 0.3) for _ in range(2)]
    assert not torch.equal(*outputs)
    for output in outputs:
        torch.testing.assert_close(output, (output > 0) / 0.7)
        assert output.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / output.numel()) ** 0.5)


@needs_triton
@interpreted
@pytest.mark.parametrize("what", ["right", "wrong", "broken"])
def test_kernels_that_are_wrong_are_not_taken(what: str, monkeypatch):
    from mrt5cli.models.fast.kernels import around_attention

    def lying(*given_: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        to_gate, to_factor, hidden = honest(*given_)
        return to_gate * 1.1, to_factor, hidden

    def breaking(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    honest = around_attention._gate_gradients
    if what != "right":
        monkeypatch.setattr(around_attention, "_gate_gradients", lying if what == "wrong" else breaking)
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert around_attention.right_on.__wrapped__(torch.device("cpu")) == (what == "right")
    assert torch.equal(torch.get_rng_state(), state)
    said = {"wrong": "its gradient differs by", "broken": "RuntimeError: no such instruction"}
    assert [said[what] in str(warning.message) for warning in caught] == [True] * (what != "right")


COMPILE = """
import json, pathlib, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mrt5cli.models.fast.kernels import around_attention, elementwise

capability, width, inner, folder = (*map(int, sys.argv[1:4]), pathlib.Path(sys.argv[4]))
FLOATS = {"states", "d_states", "inverse", "weight", "d_weight"}
block, height, warps = around_attention._rows_at_once(width)
(_, gate), (_, add) = (around_attention._tiles(1, size, 0.1) for size in (inner, width))
norm = {"WIDTH": width, "BLOCK": block, "ROWS": height, "SPAN": 16, "WEIGHT_GRAD": True}
tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
found = {}
programs = [f"{what}_{way}" for what in ("norm", "gate", "add") for way in ("forward", "backward")]
for name in programs:
    kernel = getattr(elementwise, name)
    constants = norm if name.startswith("norm") else gate if name.startswith("gate") else add
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {
        key: "constexpr" if key in constants
        else "*i64" if key == "seed"
        else "fp32" if key in ("epsilon", "scale")
        else "i32" if key == "rows" or key.startswith("stride")
        else "*fp32" if key in FLOATS or name == "add_forward" and key == "output"
        else "*bf16"
        for key in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, key in enumerate(types) if types[key][0] == "*" or key.startswith("stride")
    }
    built = compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps if name.startswith("norm") else 4},
    )
    file = folder / f"{name}.cubin"
    file.write_bytes(built.asm["cubin"])
    used = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    wide = re.findall(r"ld\\.global\\S*\\.v(4\\.b32|2\\.b64|8\\.b32)", built.asm["ptx"])
    found[name] = {key: int(used.split(key + ":")[1].split()[0]) for key in ("REG", "STACK", "LOCAL")}
    found[name] |= {"shared": built.metadata.shared, "wide loads": len(wide)}
print(json.dumps(found))
"""


@needs_triton
@pytest.mark.parametrize(
    "capability, width, inner",
    [
        pytest.param(90, 1472, 3584, id="90"),  # byt5-small, and below the diagnostic models
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((80, 1472, 3584), (100, 1472, 3584))),
        *(pytest.param(capability, 512, 2048, marks=pytest.mark.slow) for capability in (80, 90, 100)),
    ],
)
def test_programs_fit(tmp_path, capability: int, width: int, inner: int):
    """The compiler takes every kernel at the widths of the paper's models: 4 programs or more fit a
    multiprocessor, nothing lies outside registers, and 16 bytes are loaded at a time."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, *map(str, (capability, width, inner, tmp_path))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    for name, used in found.items():
        assert used["REG"] <= 128 and used["STACK"] == used["LOCAL"] == 0, (name, used)
        assert used["shared"] <= 16 * 1024 and used["wide loads"] > 0, (name, used)


# --- where they run -----------------------------------------------------------------------------------------


def test_where_the_kernels_run(monkeypatch):
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    monkeypatch.setitem(
        sys.modules, LAUNCHED, SimpleNamespace(right_on=lambda device: asked.append(device) or True)
    )
    asked: list[torch.device] = []
    states = SimpleNamespace(device=torch.device("cuda"), data=torch.ones(1), dtype=FULL, shape=(2, 8))
    weight = torch.ones(8)

    def run(**other: Any) -> bool:
        return kernels.rows_run_on(SimpleNamespace(**{**vars(states), **other}), weight)

    assert run() and asked == [torch.device("cuda")]
    assert not kernels.rows_run_on(torch.ones(2, 8), weight)
    assert (
        not run(dtype=torch.float64) and not run(shape=(2, 2**14 + 1)) and not run(data=nn.Parameter(weight))
    )
    with fast_paths(False):
        assert not run()
    torch.use_deterministic_algorithms(True)
    try:
        assert not run()
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not run()
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert not run()
    assert len(asked) == 1


# --- a CPU taken for a GPU ----------------------------------------------------------------------------------


def normalize(states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    norm = T5LayerNorm(len(weight), epsilon)
    return torch.func.functional_call(norm, {"weight": weight}, (states,)).to(dtype)


def added(states: Tensor, update: Tensor, rate: float) -> Tensor:
    return states + dropped(update, rate, draw_seed(states.device))


def gated_output(gate: Tensor, factor: Tensor | None, weight: Tensor, rate: float) -> Tensor:
    both = gate if factor is None else torch.cat((gate, factor), dim=-1)
    seed = draw_seed(gate.device)
    with torch.autocast("cpu", enabled=False):
        return written_out(both.float(), weight.float(), rate, seed).to(weight.dtype)


KERNELS = ("normalize", "gated_output", "added")


@pytest.fixture(params=["written out", pytest.param("triton", marks=[needs_triton, interpreted])])
def as_on_a_gpu(request, monkeypatch) -> Iterator[SimpleNamespace]:
    """The model takes this CPU for a GPU with kernels; `calls` counts what they are asked for."""
    found = SimpleNamespace(calls=dict.fromkeys((*KERNELS, "joint"), 0), kernels=request.param)

    def counted(name: str, core: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given_: Any) -> Any:
            found.calls[name] += 1
            return core(*given_)

        return call

    if request.param == "triton":
        from mrt5cli.models.fast.kernels import around_attention as launched
    else:
        launched = SimpleNamespace(normalize=normalize, gated_output=gated_output, added=added)
    stand_in = {name: counted(name, getattr(launched, name)) for name in KERNELS}
    monkeypatch.setitem(sys.modules, LAUNCHED, SimpleNamespace(**stand_in, right_on=lambda device: True))
    monkeypatch.setattr("mrt5cli.models.fast.parts.joint", counted("joint", joint))
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    for module in (kernels, products):
        monkeypatch.setattr(
            module, "gpu_paths_are_on", lambda tensor: on() and not torch.compiler.is_compiling()
        )
    on = fast_paths_are_on
    return found


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 259, (3, 23), generator=generator)
    for row, length in enumerate((23, 9, 1)):
        ids[row, length:] = 0
    labels = torch.randint(3, 259, (3, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "use_cache": False}


def gradients(model: nn.Module, *, autocast: bool, **how: Any) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**batch(), **how)
    out.loss.backward()
    return out, {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("recomputed", ["none", "selective", "blocks"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_model(as_on_a_gpu, autocast: bool, recomputed: Any):
    """A relative bias in every layer and one in the first, learned positions; encoder, decoder and gate."""
    for fields in ({}, {"relative_bias_per_layer": True}, {"has_absolute_position_embeddings": True}):
        model = tiny("mrt5", use_softmax1=True, **fields)
        model.set_attn_implementation("sdpa")
        with fast_paths(False):
            expected, due = gradients(model, autocast=autocast, output_score_loss=True)
        recompute(model.train(), recomputed)
        before = dict(as_on_a_gpu.calls)
        out, grads = gradients(model, autocast=autocast, output_score_loss=True)
        assert all(as_on_a_gpu.calls[name] > before[name] for name in before if name != "added")
        share, least = (0.06, 2e-3) if autocast else (1e-4, 1e-6)
        torch.testing.assert_close(out.logits, expected.logits, atol=share, rtol=share)
        torch.testing.assert_close(out.score_loss, expected.score_loss, atol=share, rtol=share)
        assert grads.keys() == due.keys()
        for name, wanted in due.items():
            away = (grads[name] - wanted).norm().item()
            assert away <= least + 4 * share * wanted.norm().item(), name


def test_dropout_is_drawn_once_for_a_block_and_its_recomputation(as_on_a_gpu):
    found = []
    for recomputed in ("none", "blocks", "selective"):
        as_on_a_gpu.calls["added"] = 0
        model = tiny("mrt5", dropout_rate=0.2, attention_dropout_rate=0.0).train()
        recompute(model, recomputed)
        torch.manual_seed(4)
        found.append(gradients(model, autocast=False)[1])
        assert as_on_a_gpu.calls["added"] == (3 * 2 + 2 * 3) * (1 if recomputed == "none" else 2)
    for other in found[1:]:
        for name, wanted in found[0].items():
            torch.testing.assert_close(other[name], wanted, msg=labelled(name))


def test_generation_and_evaluation(as_on_a_gpu):
    """Products are one in training alone; a norm is a kernel everywhere."""
    model = tiny("mrt5")
    ids = batch()["input_ids"]
    with fast_paths(False), torch.no_grad():
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
    assert as_on_a_gpu.calls["joint"] == 0 and as_on_a_gpu.calls["normalize"] > 0


def test_hidden_states_and_attentions_are_seen(as_on_a_gpu):
    model = tiny("mrt5")
    with fast_paths(False):
        expected = model(**batch(), output_hidden_states=True, output_attentions=True)
    found = model(**batch(), output_hidden_states=True, output_attentions=True)
    assert as_on_a_gpu.calls["normalize"]
    for name in ("encoder_hidden_states", "decoder_hidden_states", "encoder_attentions", "cross_attentions"):
        assert len(found[name]) == len(expected[name]) > 0
        for ours, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_compiled_half_is_the_plain_formula(as_on_a_gpu):
    from mrt5cli.models.compiling import compile_blocks

    model = tiny("none")
    with torch.no_grad():
        expected = model(**batch()).logits
        compile_blocks(model, backend="eager")
        before = dict(as_on_a_gpu.calls)
        found = model(**batch()).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert before["gated_output"] == as_on_a_gpu.calls["gated_output"] > 0
    norms_of_attention_and_ends = 3 + 2 * 2 + 2
    assert as_on_a_gpu.calls["normalize"] == before["normalize"] + norms_of_attention_and_ends


def test_norms_within_blocks_write_what_products_read(as_on_a_gpu):
    model = tiny("mrt5")
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch())
    outside = {name for name, dtype in seen.items() if dtype == torch.float32}
    assert outside == {"encoder.final_layer_norm", "decoder.final_layer_norm"}
    assert sum(dtype == torch.bfloat16 for dtype in seen.values()) == 3 * 2 + 2 * 3


# --- products that are one ----------------------------------------------------------------------------------


def layers(*sizes: int, width: int = 12, dtype: torch.dtype = FULL) -> list[Linear]:
    torch.manual_seed(0)
    made = [Linear(width, size, bias=False).to(dtype) for size in sizes]
    return made


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("shape", [(0, 12), (1, 12), (3, 7, 12)], ids=str)
def test_a_joint_product_is_the_products(shape: tuple[int, ...], autocast: bool):
    theirs, ours = layers(5, 3, 8), layers(5, 3, 8)
    ours[1].weight.requires_grad_(False)
    states = torch.randn(shape).requires_grad_()
    again = states.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = torch.cat([layer(states) for layer in theirs], dim=-1)
        found = joint(again, ours)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    found.backward(grad)
    near = {"atol": 0.05, "rtol": 0.05} if autocast else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(again.grad, states.grad, **near)
    assert ours[1].weight.grad is None
    for one, other in ((ours[0], theirs[0]), (ours[2], theirs[2])):
        assert one.weight.grad is not None and one.weight.grad.dtype == FULL
        torch.testing.assert_close(one.weight.grad, other.weight.grad, **near)


def test_when_products_are_one(monkeypatch):
    inner = layers(6, 6)
    few, many = torch.ones(7, 12), torch.ones(8, 12)
    assert not joins(many, inner)  # on a CPU
    monkeypatch.setattr(products, "gpu_paths_are_on", lambda tensor: True)
    assert joins(many, inner) and not joins(few, inner)  # 3 * 8 * 1 >= 2 * 12
    assert joins(torch.ones(4, 12), layers(4, 4, 4))  # each product saves as much
    with torch.autocast("cpu", torch.bfloat16):
        assert joins(few, inner)
        assert not joins(few.double(), inner)
    with torch.no_grad():
        assert not joins(many, inner)
    assert not joins(many.bfloat16(), inner)
    assert not joins(many, [inner[0], nn.Linear(12, 6)])
    handle = inner[0].register_forward_hook(lambda *_: None)
    assert not joins(many, inner)
    handle.remove()
    assert joins(many, inner)


def test_an_adapted_layer_keeps_its_own_product(as_on_a_gpu):
    class Adapted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * F.linear(input, self.weight)

    model = tiny("none")
    for block in (*model.encoder.block, *model.decoder.block):
        block.layer[0].SelfAttention.v.__class__ = Adapted
        block.layer[-1].DenseReluDense.wi_1.__class__ = Adapted
    with fast_paths(False):
        expected, due = gradients(model, autocast=True)
    out, grads = gradients(model, autocast=True)
    torch.testing.assert_close(out.logits, expected.logits, atol=0.05, rtol=0.05)
    assert grads.keys() == due.keys()
    assert as_on_a_gpu.calls["joint"] == 1  # k|v of the decoder's second block: its first makes the bias


def test_views_of_one_product_are_attended_to(as_on_a_gpu, monkeypatch):
    """The attention function gets (B, N, n, H) parts of one tensor, and nothing is copied on the way."""
    model, seen = tiny("none"), []

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **how: Any) -> Any:
        seen.append([(part.untyped_storage().data_ptr(), part.stride(-1)) for part in (query, key, value)])
        return attend(module, query, key, value, *rest, **how)

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.encoder.config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS[name]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, spy)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch())
    of_encoder = seen[:3]
    for parts in of_encoder:
        assert len({pointer for pointer, _ in parts}) == 1 and {stride for _, stride in parts} == {1}
    assert isinstance(model.encoder.block[0].layer[0].SelfAttention, Attention)
    assert isinstance(model.encoder.block[0].layer[0].SelfAttention, T5Attention)


# --- memory -------------------------------------------------------------------------------------------------


def kept_bytes(call: Callable[[], Tensor], beside: set[int]) -> int:
    """What lies between forward and backward, in bytes, without the tensors `beside`."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call()
    kept_ = sum(size for pointer, size in sizes.items() if pointer not in beside)
    del output
    return kept_


def test_what_a_feed_forward_half_keeps_under_autocast(as_on_a_gpu):
    """Of R rows: x in float32, its norm in bfloat16 and a number a row; gate and factor; the weights."""
    if as_on_a_gpu.kernels != "triton":
        pytest.skip("formulas written out keep all they make")
    model = tiny("none", dropout_rate=0.1, d_model=32, d_ff=64).train()
    half = model.encoder.block[0].layer[-1]
    states = torch.randn(2, 50, 32, requires_grad=True)
    beside = {part.untyped_storage().data_ptr() for part in half.parameters()}

    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return half(states)

    rows, weights = 100, 3 * 32 * 64 * 2
    seeds = 2 * 8
    expected = rows * (32 * 4 + 32 * 2 + 4 + 2 * 64 * 2) + weights + seeds
    assert kept_bytes(call, beside) == expected
    with fast_paths(False):
        assert kept_bytes(call, beside) > 2 * expected
