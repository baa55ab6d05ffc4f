"""What `mrt5 bench` does on a GPU, on a CPU that is taken for one: its cases, clock, memory, waits, rates."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packed_kernels import written_out

from mrt5cli.benchmark import attention, card, forward, generation, models, training_step
from mrt5cli.benchmark.card import MOST_TIMES, Clock, host_waits
from mrt5cli.benchmark.models import Shapes, base_model, float32_products
from mrt5cli.benchmark.run import Benchmark, Report
from mrt5cli.benchmark.suite import Case, Memory, Parity, Suite
from mrt5cli.commands.bench import present
from mrt5cli.evaluation.timing import Stopwatch, seconds_of

pytestmark = pytest.mark.usefixtures("fast")
GPU = torch.device("cuda")


class Event:
    """A queue that executes immediately, with a clock that is ten times too fast."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, queue: str) -> None:
        assert queue == "the current one"
        self.time = 10 * time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.time - self.time)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is asked of torch.cuda; every time it is asked, another 100 bytes are allocated."""
    state = SimpleNamespace(mode=0, allocated=0, waited=0)

    def allocated(device: object) -> int:
        state.allocated += 100
        return state.allocated

    def synchronize(device: object) -> None:
        state.waited += 1
        if state.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    for name, fake in {
        "Event": Event,
        "current_stream": lambda device: "the current one",
        "synchronize": synchronize,
        "get_sync_debug_mode": lambda: state.mode,
        "set_sync_debug_mode": lambda mode: setattr(state, "mode", mode),
        "memory_allocated": allocated,
        "max_memory_allocated": lambda device: state.allocated + 1000,
        "reset_peak_memory_stats": lambda device: None,
        "get_device_name": lambda device: "a CPU in disguise",
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(card, "space", lambda size, device: torch.empty(16, dtype=torch.int8))
    monkeypatch.setattr(card, "LARGE", {"cuda": 64})
    return state


@pytest.fixture
def gpu(cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The CPU's weights are taken for a GPU's, which has kernels."""
    for module in (attention, card, forward, generation, models, training_step):
        monkeypatch.setattr(module, "on_gpu", lambda base: True)
    monkeypatch.setattr(models, "runs_on", lambda device, width: True)
    monkeypatch.setattr("mrt5cli.models.fast.choice.obstacle", lambda *_: None)
    monkeypatch.setattr("mrt5cli.models.fast.choice.fault", lambda work: "")
    kernels = SimpleNamespace(attend=written_out)
    monkeypatch.setitem(sys.modules, "mrt5cli.models.fast.kernels.varlen", kernels)
    return cuda


def benchmark(shapes: Shapes, saved: list[Any], rounds: int = 2) -> Benchmark:
    def save(report: Report) -> None:
        saved.append(json.loads(json.dumps(report.to_json()["suites"], allow_nan=False)))

    found = Benchmark(None, "tiny", shapes, rounds, GPU, threads=1, memory=True, save=save)
    found.__dict__["base"] = base_model(None, "tiny")
    return found


# --- every case ---------------------------------------------------------------------------------------------

EXPECTED = {
    "forward": {"transformers sdpa", "dense", "dense by sdpa", "padded 50 % wide", "packed 50 % wide"},
    "train": {
        *(f"{name}{how}" for name in ("reference-like", "transformers sdpa") for how in ("", ", dropout")),
        *("fused, score loss", "fused, score loss, dropout", "sdpa, score loss, dropout", "fused"),
        *("fused, score loss, dropout, with AdamW's step", "fused, hard step 50 % wide"),
    },
    "generate": {"transformers sdpa", "dense, fast paths off", "dense", "deleted 50 % wide"},
    "attention": {
        *("eager forward", "triton forward", "sdpa forward and backward", "copy"),
        *("triton forward and backward with score loss and dropout", "large matmul"),
    },
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_timed_on_a_gpu(kind: str, gpu: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    shapes = Shapes(2, 24, 5, (0.5,), ("wide",), ("fp32", "bf16", "tf32"))
    saved: list[Any] = []
    report = benchmark(shapes, saved).run([kind])
    assert not report.problems() and not report.broken_parity()
    [suite], [found] = report.suites, report.to_json()["suites"]
    assert suite.notes[-1].startswith("attn_implementation auto is triton")
    precisions = ("", " bf16", " tf32")
    assert {f"{name}{how}" for name in EXPECTED[kind] - {"copy"} for how in precisions} <= set(suite.cases)
    cases = {case["name"]: case for case in found["cases"]}
    assert all(len(case["rounds"]) == 2 for case in cases.values())
    assert all(case["memory"]["peak"] >= 900 for case in cases.values())
    assert all(case["waits"] == 0 for case in cases.values())
    assert {parity.removeprefix("gradients of ") for parity in suite.parity} & set(cases)
    assert max(case["share_of_products"] or 0 for case in cases.values()) == pytest.approx(1.0)
    present(report)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("matmul", "waits", *(name for name in cases if "bf16" in name)))
    assert ("roofline" in shown) == (kind == "attention")
    # What is done is there after every round.
    rounds = [{len(case["rounds"]) for case in suites[0]["cases"]} for suites in saved]
    assert rounds == [{1}, {2}, {2}]


def test_what_has_a_target_is_timed(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import targets

    shapes = Shapes(2, 24, 5, (0.5, 0.7), ("even", "wide"), ("bf16",))
    base, cases = base_model(None, "tiny"), []
    wanted = [one for one in targets.TARGETS if one.device == "cuda"]
    for what in {one.what for one in wanted}:
        suite = targets.BUILDERS[what](base, shapes)
        assert {one.case for one in wanted if one.what == what} <= set(suite.cases)
        for case in suite.cases.values():
            case.rounds, case.memory, case.share_of_products = [1.0, 2.0], Memory(5, 4), 0.5
        suite.compare()
        cases.append(suite.to_json())
    shape = {"shape": "byt5-small", "length": 1024, "target": 189, "device": "cuda:0"}
    found = {one.target.name: one for one in targets.judged({"setting": shape, "suites": cases})}
    assert set(found) == {one.name for one in wanted}
    assert found["its share of a product's rate"].verdict == "met"
    assert found["greedy decoding over transformers'"].verdict == "missed"
    assert found["its live memory"].measured == 1.0


def test_a_precision_is_that_of_its_products(gpu: SimpleNamespace):
    shapes = Shapes(2, 24, 5, (), ("even",), ("fp32", "bf16", "tf32"))
    base, seen = base_model(None, "tiny"), []

    def noted(module: Any, given: Any, output: torch.Tensor) -> None:
        seen.append((output.dtype, torch.get_float32_matmul_precision()))

    suite = forward.forward(base, shapes)
    for name in ("dense", "dense bf16", "dense tf32"):
        variant = suite.cases[name].call.args[0]
        with variant.model.encoder.block[0].layer[0].SelfAttention.o.register_forward_hook(noted):
            suite.cases[name].run()
    assert seen == [(torch.float32, "highest"), (torch.bfloat16, "highest"), (torch.float32, "high")]

    step = training_step.train(base, shapes).cases["fused, score loss tf32"]
    backward: list[str] = []
    assert step.loss is not None
    model = step.loss.args[0].model
    model.lm_head.weight.register_hook(lambda _: backward.append(torch.get_float32_matmul_precision()))
    step.run()
    assert backward == ["high"]


def test_a_bf16_path_may_be_as_far_off_as_bf16_is():
    oracle, rounded = torch.tensor([5.0, -3.0]), torch.tensor([5.0, -2.99])
    assert Parity.of(oracle, oracle + 0.02, rounded).holds
    assert not Parity.of(oracle, oracle + 0.04, rounded).holds
    weights = {"one": torch.tensor([1.0, 0.5]), "other": torch.tensor([1e-3])}
    lost = {"one": torch.tensor([1.0, 0.49]), "other": torch.tensor([1.001e-3])}
    near = {**weights, "one": torch.tensor([1.0, 0.475])}
    assert training_step.gradient_parity(weights, near, lost).holds
    assert not training_step.gradient_parity(weights, near).holds
    for far in ({**weights, "one": torch.tensor([1.0, 0.46])}, {**weights, "other": torch.tensor([1.02e-3])}):
        assert not training_step.gradient_parity(weights, far, lost).holds


def test_an_optimizers_step_leaves_the_weights_of_others(gpu: SimpleNamespace):
    base = base_model(None, "tiny")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    suite = training_step.train(base, Shapes(2, 24, 5))
    suite.cases[training_step.WHOLE].run()
    assert all(torch.equal(before[name], weight) for name, weight in base.named_parameters())


def test_what_cannot_be_run_leaves_the_others_theirs(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    def checks() -> Iterator[Any]:
        yield "a check", lambda: 1 / 0
        yield "another", lambda: Parity(0.0, 1.0, 1.0)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")

    suite = Suite("forward", {"full": Case(full), "fits": Case(lambda: None, ["full"])}, checks)
    found = benchmark(Shapes(2, 24, 5), [])
    found.time(suite)
    assert set(suite.parity) == {"another"} and len(suite.cases["fits"].rounds) == 2
    found.time(Suite("train", {"full": Case(full)}))
    assert found.report().problems() == [
        "forward, a check: ZeroDivisionError: division by zero",
        "forward, full: OutOfMemoryError: CUDA out of memory. Tried",
        "train, full: OutOfMemoryError: CUDA out of memory. Tried",
    ]


# --- clock --------------------------------------------------------------------------------------------------


def test_a_gpus_calls_are_timed_by_its_events(cuda: SimpleNamespace):
    assert 0.1 <= seconds_of(lambda: time.sleep(0.01), GPU) < 1
    watch = Stopwatch(GPU)
    watch.time(lambda: time.sleep(0.002), rows=2)
    assert 0.02 <= watch.seconds[0] < 0.2 and cuda.waited == 1


def test_a_gpus_cache_is_cold_before_each_call(cuda: SimpleNamespace):
    clock, seen = Clock(GPU), []

    def call() -> None:
        seen.append(int(clock._cache.sum()))
        clock._cache.fill_(1)

    call()
    clock.seconds(call, times=3)
    assert seen[1:] == [0, 0, 0]


def test_warming_up_ends_when_calls_are_steady(cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    def calls_and_times(*seconds: float) -> tuple[int, int]:
        left = list(seconds)
        monkeypatch.setattr(card, "seconds_of", lambda call, device: left.pop(0))
        times = Clock(GPU).warm_up(lambda: None)
        return len(seconds) - len(left), times

    assert calls_and_times(30.0, 2.0, 1.0, 1.05, 1.0) == (4, 1)
    assert calls_and_times(5.0, 4.0, 3.0, 2.0, 1.0, 0.5) == (5, 1)  # never steady
    assert calls_and_times(0.004, 0.004) == (2, 5)  # short ones are timed several at once
    assert calls_and_times(1e-5, 1e-5) == (2, MOST_TIMES)
    monkeypatch.setattr(card, "seconds_of", lambda call, device: 1.0)
    assert Clock(torch.device("cpu")).warm_up(lambda: None) == 1


def test_waits_of_the_host_are_counted(cuda: SimpleNamespace):
    cuda.mode = "default"

    def call() -> None:
        warnings.warn("something else", stacklevel=1)
        torch.cuda.synchronize(GPU)
        torch.cuda.synchronize(GPU)

    assert host_waits(call, GPU) == 2
    assert cuda.mode == "default"


# --- what the device can do ---------------------------------------------------------------------------------


def test_shares_of_what_the_device_can_do():
    def done(seconds: float, **about: Any) -> Case:
        return Case(lambda: None, rounds=[seconds], **about)

    cases = {
        "product": done(1.0, operations=100, yardstick=True),
        "smaller product": done(1.0, operations=50, yardstick=True),
        "product bf16": done(1.0, operations=400, yardstick=True, precision="bf16"),
        "copy": done(1.0, moved=10, yardstick=True),
        "bound by products": done(2.0, operations=100, moved=5),
        "bound by memory": done(2.0, operations=100, moved=15),
        "bf16": done(2.0, operations=100, precision="bf16", against=["bound by memory", "not there"]),
    }
    Suite("attention", cases).compare()
    shares = {name: (case.share_of_products, case.share_of_roofline) for name, case in cases.items()}
    assert shares["smaller product"] == (0.5, None)
    assert shares["bound by products"] == (0.5, 0.5)
    assert shares["bound by memory"] == (0.5, 0.75)
    assert shares["bf16"] == (0.125, None)
    assert [ratio.baseline for ratio in cases["bf16"].ratios] == ["bound by memory"]
    assert [ratio.baseline for ratio in cases["product bf16"].ratios] == ["product"]  # itself in float32


def test_products_are_exact_again_afterwards():
    with pytest.raises(KeyError), float32_products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
