"""What a run will take: memory beside bytes that are counted, hours, and where each number is from."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import accumulate, product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_kernels import NEEDS_TRITON
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mrt5cli import runtime
from mrt5cli.analysis.throughput import GPUS, LEAST, NARROW, WIDE, core_rate, described, gpu_rate, kind_of
from mrt5cli.errors import UserError
from mrt5cli.models import build
from mrt5cli.models.fast import fused
from mrt5cli.models.fast.choice import Choice
from mrt5cli.models.recomputation import Recompute, recompute
from mrt5cli.recipe import Recipe, Shape, load
from mrt5cli.runtime import Precision, Runtime
from mrt5cli.training.estimates import longest_batch, parameters, sizes_of, step_flops
from mrt5cli.training.forecast import Forecast, forecast
from mrt5cli.training.lora import add_lora
from mrt5cli.training.memory import TILES, Step, StepMemory

# --- memory, beside what PyTorch allocates ------------------------------------------------------------------

SMALL = "{d_model: 96, d_ff: 224, d_kv: 16, num_heads: 3, num_layers: 4, num_decoder_layers: 2}"
KERNELS = "mrt5cli.models.fast.kernels"
MARK = 777
"""Bytes of an allocation that tells where in the profile forward ends; nothing else has that size."""


def small(*overrides: str) -> Recipe:
    return load("local_text", ["task.input_length=128", f"model.shape={SMALL}", *overrides])


def allocated(call: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes that are held after a forward pass, and at the peak of its backward; gradients exist before."""
    call().backward()  # type: ignore[no-untyped-call]  # gradients
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = call()
        torch.empty(MARK, dtype=torch.uint8)
        loss.backward()  # type: ignore[no-untyped-call]
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    forward = sizes.index(MARK)
    return sum(sizes[:forward]), max(accumulate(sizes))


DROPPED, WEIGHTS_KEPT, SCORED = "model.dropout=0.1", "model.attention_dropout=0", "loss.score_coefficient=0.1"
NOT_STEERED = ("controller={kind: constant}", "loss.regularizer_delay=0")
CASES = {
    "paper": (DROPPED,),
    "paper, scored": (DROPPED, SCORED),
    "weights kept": (DROPPED, WEIGHTS_KEPT),
    "weights kept, scored": (DROPPED, WEIGHTS_KEPT, SCORED),
    "no dropout": (),
}
LORA = "training.lora={{targets: [{}]}}"
CHANGED = {
    "lora": (DROPPED, LORA.format("q, v")),
    "lora everywhere": (DROPPED, LORA.format("q, k, v, o, wi_0, wi_1, wo")),
}
OTHERS = {
    "no gate": ("model.shortener={kind: none}", DROPPED, WEIGHTS_KEPT, *NOT_STEERED),
    "no source": ("model.shortener={kind: source_removed}", DROPPED, *NOT_STEERED),
    "pooled": ("model.shortener={kind: convolution, layer: 1, stride: 2}", *NOT_STEERED),
}


def measured(
    overrides: tuple[str, ...], attention: str, how: Recompute, precision: Precision, *, on_gpu: bool = False
) -> tuple[int, int, StepMemory]:
    """What a step holds and takes at its peak beside its weights, and what is expected."""
    recipe = small(*overrides, f"training.precision={precision}", f"training.recompute={how}")
    torch.manual_seed(0)
    model = build(recipe.model).train()
    if recipe.training.lora is not None:
        add_lora(model, recipe.training.lora)
    model.set_attn_implementation(attention)
    recompute(model, how)
    sizes, weights = sizes_of(recipe, model.config), model.num_parameters()
    trained = model.num_parameters(only_trainable=True)
    step = Step(recipe, sizes, weights, 4, attention, on_gpu=on_gpu, trained=trained)
    ids, labels = (torch.randint(3, 259, (4, n)) for n in (step.lengths.source, step.lengths.target))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = model(ids, labels=labels, output_score_loss=step.scored, use_cache=False)
        parts = (out.loss, out.score_loss, out.delete_gate_output)
        return sum((part.mean() for part in parts if part is not None), torch.zeros(()))

    assert step.memory().weights == 4 * weights + 12 * trained
    return *allocated(loss), step.memory()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize(
    ("case", "attention", "how"),
    [
        *product(("paper", "paper, scored"), ("eager",), get_args(Recompute)),
        *product(CASES, ("packed",), get_args(Recompute)),
        *product(CHANGED, ("packed",), get_args(Recompute)),
        *product(OTHERS, ("packed",), ("none",)),
    ],
)
def test_memory_is_what_a_step_allocates(
    case: str, attention: str, how: Recompute, precision: Precision
) -> None:
    """Within 12 % what is held; within 15 % below and 35 % above its peak, gradients of activations included:
    at this size single tensors of a backward pass weigh much."""
    held, peak, expected = measured((CASES | CHANGED | OTHERS)[case], attention, how, precision)
    assert expected.held + expected.copies == pytest.approx(held, rel=0.12)
    assert 0.85 * peak < expected.total - expected.weights < 1.35 * peak


@pytest.mark.usefixtures("fast")
def test_the_parts_are_what_autograd_saves() -> None:
    """Beside the model's weights, and without what lies in no block."""
    recipe = small(DROPPED, WEIGHTS_KEPT)
    model = build(recipe.model).train()
    step = Step(recipe, sizes_of(recipe, model.config), model.num_parameters(), 4, "packed", on_gpu=False)
    saved: dict[int, int] = {weight.untyped_storage().data_ptr(): 0 for weight in model.parameters()}
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)
        saved.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    ids, labels = (torch.randint(3, 259, (4, n)) for n in (step.lengths.source, step.lengths.target))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, labels=labels)
    assert sum(saved.values()) == pytest.approx(step.memory().held, rel=0.05)


@pytest.mark.parametrize(
    ("attention", "how", "gigabytes"),
    [
        ("triton", "none", (9.6, 22.2, 39.0)),
        ("triton", "blocks", (6.1, 10.1, 15.3)),
        ("sdpa", "none", (9.6, 22.3, 38.7)),
        ("eager", "none", (14.8, 42.9, 80.5)),
    ],
)
def test_memory_of_the_classic_run_on_a_gpu(attention: str, how: str, gigabytes: Any) -> None:
    """A bf16 step of pctrl40 (300 million parameters, 1024 -> 189) at device batches of 8, 32 and 64."""
    recipe = load("pctrl40", ["training.precision=bf16", f"training.recompute={how}"])
    sizes = sizes_of(recipe, Shape())
    steps = [Step(recipe, sizes, parameters(sizes), batch, attention, on_gpu=True) for batch in (8, 32, 64)]
    totals = [step.memory().total / 1e9 for step in steps]
    assert totals == pytest.approx(gigabytes, rel=0.02)
    # What is held grows with the batch, and the weights take 16 bytes each.
    held = [step.memory().held for step in steps]
    assert held[2] - held[1] == pytest.approx(32 / 24 * (held[1] - held[0]), rel=0.01)
    assert steps[0].memory().weights == 16 * parameters(sizes)


def test_tiles_are_those_of_the_core() -> None:
    assert {False: fused.TILES["cpu"], True: fused.TILES["cuda"]} == TILES


def test_several_processes_hold_gradients_twice() -> None:
    recipe = small()
    one = Step(recipe, sizes_of(recipe, Shape()), 1000, 4, "packed", on_gpu=False)
    assert replace(one, processes=2).memory().weights - one.memory().weights == 4000


def test_shards_are_shared_out() -> None:
    whole, shards = small(), small("training.sharding=fsdp")
    sizes = sizes_of(whole, Shape())
    one = Step(whole, sizes, parameters(sizes), 4, "packed", on_gpu=False, processes=8).memory()
    share = Step(shards, sizes, parameters(sizes), 4, "packed", on_gpu=False, processes=8).memory()
    assert share.weights == 2 * parameters(sizes) == one.weights // 10
    assert 0 < share.copies - one.copies < 2 * parameters(sizes)
    assert (share.held, share.temporary) == (one.held, one.temporary)
    alone = Step(shards, sizes, parameters(sizes), 4, "packed", on_gpu=False).memory()
    assert alone == Step(whole, sizes, parameters(sizes), 4, "packed", on_gpu=False).memory()


# --- hours, and where they are from -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A1000", None),
        ("", None),
    ],
)
def test_kinds_of_gpus(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind
    for precision in get_args(Precision):
        assert gpu_rate(precision, name) == GPUS[kind or "A100"][precision]
    words = {"": "NVIDIA A100", "NVIDIA RTX A1000": "NVIDIA RTX A1000 (unknown kind, estimated as an A100)"}
    assert described(name) == words.get(name, name)


def test_every_rate_says_where_it_is_from() -> None:
    for rates in GPUS.values():
        assert 5e12 < rates["fp32"].flops < rates["bf16"].flops < 1e15
        assert all(bool(rate.measured) == ("arithmetic" not in rate.origin) for rate in rates.values())
    # 40 % of what a large product was measured to reach.
    assert gpu_rate("bf16", "NVIDIA H200").flops == pytest.approx(0.4 * 790e12, rel=0.01)
    assert str(gpu_rate("bf16", "NVIDIA H200")) == "316 TFLOP/s"
    assert core_rate(64).origin.startswith("measured with `make quickstart`")
    assert core_rate(64, shared=True).origin.startswith("measured with `mrt5 reproduce miniature`, two jobs")
    assert core_rate(1472).flops > max(core_rate(64).flops, core_rate(64, shared=True).flops)


def test_blocks_that_are_computed_again_cost_a_forward_pass() -> None:
    plain, again = (small(f"training.recompute={how}") for how in ("none", "blocks"))
    sizes = sizes_of(plain, Shape())
    assert step_flops(again, sizes) * 3 == step_flops(plain, sizes) * 4


def foretold(recipe: Recipe, device: str = "cpu", processes: int = 1, done: int = 0) -> Forecast:
    model = build(recipe.model)
    where = Runtime(torch.device(device), recipe.training.precision, 1, 0, processes)
    return forecast(recipe, model, where, Choice("packed", "a test"), done)


def test_hours_of_a_cpu_are_those_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    recipe = small()
    whole, half = foretold(recipe), foretold(recipe, done=recipe.training.max_steps // 2)
    assert whole.seconds == 2 * half.seconds and whole.bytes_per_second == half.bytes_per_second
    assert "on one core, " in whole.facts()["takes"]
    told = [replace(whole, rate=rate).facts()["takes"] for rate in (NARROW, WIDE)]
    assert [each.endswith("; 4 threads need at least 1/4 of that") for each in told] == [False, True]
    flops = step_flops(recipe, sizes_of(recipe, recipe.model.shape or Shape())) * recipe.training.max_steps
    assert whole.document()["hours"] == pytest.approx(flops / core_rate(96).flops / 3600)


def test_quickstart_takes_about_what_was_measured() -> None:
    """A minute and a half on one core."""
    recipe = load("quickstart_byt5")
    assert foretold(recipe).seconds / recipe.training.max_steps * 650 == pytest.approx(90, rel=0.15)


TINY = "{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 3, num_decoder_layers: 2}"


@pytest.mark.parametrize(
    ("batches", "passes"), [((8, 8), 1), ((8, 2), 4), ((1, 1), 1), ("training.batch_tokens=128", 4)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_step_of_a_tiny_model_takes_what_python_takes(
    monkeypatch: pytest.MonkeyPatch, device: str, batches: tuple[int, int] | str, passes: int
) -> None:
    """2 ms, and 1.5 ms for each of five blocks in each pass: 11 ms were measured with one, 38 with four."""
    monkeypatch.setattr(runtime, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(runtime, "memory", lambda device: 80_000_000_000)
    settings = [f"training.batch_size={8 if isinstance(batches, str) else batches[0]}"]
    settings.append(batches if isinstance(batches, str) else f"training.device_batch_size={batches[1]}")
    tiny = load("quickstart_byt5", [f"model.shape={TINY}", "training.max_steps=20000", *settings])
    found = foretold(tiny, device)
    assert found.seconds == pytest.approx(20_000 * (0.002 + passes * 5 * 0.0015)) and found.is_tiny
    assert found.bytes_per_second == pytest.approx(20_000 * tiny.training.batch_size * 32 / found.seconds)
    assert f"({LEAST})" in found.facts()["takes"] and not list(found.advice())
    half = foretold(tiny, device, done=10_000)
    assert half.seconds == pytest.approx(found.seconds / 2) and half.is_tiny
    wide = foretold(small("training.batch_size=4096", "training.device_batch_size=4096"), device)
    assert not wide.is_tiny and str(wide.rate) in wide.facts()["takes"]
    assert len(list(wide.advice())) == (device != "cpu")


def test_passes_are_shared_by_gpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(runtime, "memory", lambda device: 80_000_000_000)
    tiny = load("quickstart_byt5", [f"model.shape={TINY}", "training.device_batch_size=8"])
    one, four = (foretold(tiny, "cuda:0", processes) for processes in (1, 4))
    steps = tiny.training.max_steps
    assert one.seconds - 0.002 * steps == pytest.approx(4 * (four.seconds - 0.002 * steps))


def test_several_gpus_share_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(runtime, "memory", lambda device: 80_000_000_000)
    large = small("training.batch_size=4096", "training.device_batch_size=4096")
    one, two = (foretold(large, "cuda:0", processes) for processes in (1, 2))
    assert one.seconds == 2 * two.seconds
    assert two.device == "2 x NVIDIA H100"


def test_estimates_need_no_torch() -> None:
    asked = "import sys, mrt5cli.suite.estimates, mrt5cli.training.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


# --- a GPU that is too small --------------------------------------------------------------------------------


@cache
def of_192(batch: int) -> Recipe:
    return small("training.batch_size=192", f"training.device_batch_size={batch}")


@given(st.integers(100, 12_000), st.sampled_from([24, 48, 96]), st.sampled_from([1, 2]))
def test_what_does_not_fit_is_refused_and_what_is_proposed_fits(
    megabytes: int, batch: int, processes: int
) -> None:
    recipe, sizes = of_192(batch), sizes_of(of_192(batch), Shape())
    step = Step(recipe, sizes, parameters(sizes), batch, "triton", on_gpu=True, processes=processes)
    gpu = Runtime(torch.device("cuda", 0), "fp32", 1, 0, processes)
    here = Forecast(gpu, gpu_rate("fp32"), 1.0, 0.5, 1.0, step, megabytes * 10**6)
    share = step.memory().total / here.available
    if share > 1:
        with pytest.raises(UserError, match=r"a training step of .* needs about .* cuda:0 has ") as refused:
            list(here.notes())
        assert all(way in (refused.value.hint or "") for way in here.ways_to_fit())
    else:
        assert len(list(here.notes())) == (share > 0.9)
    for way in here.ways_to_fit():
        settings = dict(each.split("=") for each in way.replace("--set ", "").split())
        size = int(settings.get("training.device_batch_size", batch))
        how = settings.get("training.recompute", "none")
        training = recipe.training.model_copy(update={"recompute": how})
        proposed = replace(step, batch=size, recipe=recipe.model_copy(update={"training": training}))
        assert 192 // processes % size == 0 and (size < batch or how == "blocks")
        assert proposed.memory().total <= 0.9 * here.available


def test_byte_tokens_that_do_not_fit_are_refused_with_fewer() -> None:
    settings = ["training.precision=bf16", "controller.update_per=optimizer_step"]
    recipe = load("pctrl40", [*settings, "training.batch_tokens=90000"])
    sizes, batch = sizes_of(recipe, Shape()), longest_batch(recipe)
    assert batch == 90000 // (1024 + 189)
    assert longest_batch(recipe, processes=1024) == 1  # of a step's 1,024 examples
    step = Step(recipe, sizes, parameters(sizes), batch, "triton", on_gpu=True)
    gpu = Runtime(torch.device("cuda", 0), "bf16", 1, 0, 1)
    here = Forecast(gpu, gpu_rate("bf16"), 1.0, 0.5, 1.0, step, 24 * 10**9)
    with pytest.raises(UserError, match=r"of 74 examples needs about") as refused:
        list(here.notes())
    found = re.search(r"--set training.batch_tokens=(\d+) or --set", refused.value.hint or "")
    assert found is not None, refused.value.hint
    fitting = load("pctrl40", [*settings, f"training.batch_tokens={found[1]}"])
    less = replace(step, recipe=fitting, batch=longest_batch(fitting))
    assert less.memory().total <= 0.9 * 24e9 < replace(less, batch=less.batch + 1).memory().total


def test_the_classic_run_at_64_does_not_fit_24_gigabytes() -> None:
    recipe = load("pctrl40", ["training.precision=bf16", "training.device_batch_size=64"])
    sizes = sizes_of(recipe, Shape())
    step = Step(recipe, sizes, parameters(sizes), 64, "triton", on_gpu=True)
    gpu = Runtime(torch.device("cuda", 0), "bf16", 1, 0, 1)
    with pytest.raises(UserError, match=r"of 64 examples needs about 39 GB, and cuda:0 has 24 GB") as refused:
        list(Forecast(gpu, gpu_rate("bf16"), 1.0, 0.5, 1.0, step, 24 * 10**9).notes())
    expected = "--set training.device_batch_size=16 or --set training.recompute=blocks"
    assert refused.value.hint == expected


class Unlaunched:
    """A Triton program that is never run: what it would write stays as it was allocated."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


def dropout_of_a_gpu(states: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
    return torch.native_dropout(states, p, True)[0] if training and p > 0 else states


PROGRAMS = {
    "varlen": ("forward", "backward_queries", "backward_keys"),
    "around_attention": [
        f"{what}_{way}" for what in ("norm", "gate", "add") for way in ("forward", "backward")
    ],
}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the CPU goes the way of a GPU, with kernels that allocate and compute nothing."""
    for module, names in PROGRAMS.items():
        for name in names:
            monkeypatch.setattr(f"{KERNELS}.{module}.{name}", Unlaunched())
    monkeypatch.setattr(f"{KERNELS}.around_attention.right_on", lambda device: True)
    monkeypatch.setattr("mrt5cli.models.fast.choice.obstacle", lambda *_: None)
    for module in (KERNELS, "mrt5cli.models.fast.products"):
        monkeypatch.setattr(f"{module}.gpu_paths_are_on", lambda tensor: True)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout_of_a_gpu)


@pytest.mark.usefixtures("fast", "as_on_a_gpu")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NEEDS_TRITON)
@pytest.mark.parametrize("how", get_args(Recompute))
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("case", CASES)
def test_memory_on_a_gpu_is_what_a_step_allocates(precision: Precision, case: str, how: Recompute) -> None:
    held, peak, expected = measured(CASES[case], "triton", how, precision, on_gpu=True)
    assert expected.held + expected.copies == pytest.approx(held, rel=0.12)
    assert 0.85 * peak < expected.total - expected.weights < 1.35 * peak
