"""What `mrt5 bench` is made of: rounds, ratios, baselines, checks that can fail, memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.benchmark import attention, forward, generation, training_step
from mrt5cli.benchmark.card import LARGEST
from mrt5cli.benchmark.compiling import compiling_costs
from mrt5cli.benchmark.memory import Gauge, measure
from mrt5cli.benchmark.models import Shapes, Variant, base_model, kept_lengths, ours, plain
from mrt5cli.benchmark.suite import OTHER_LENGTHS, Parity, Ratio, interleave
from mrt5cli.models.compiling import compile_blocks
from mrt5cli.models.fast.switch import fast_paths

CPU = torch.device("cpu")
SMALL = Shapes(batch=2, length=24, target=5, rates=(0.5,), spreads=("wide",))


@pytest.fixture(scope="module")
def base() -> Any:
    return base_model(None, "tiny")


# --- rounds -------------------------------------------------------------------------------------------------


def test_every_round_begins_with_another_case():
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name) or 1.0) for name in "abc"}
    done = [{name: len(taken) for name, taken in found.items()} for found in interleave(cases, rounds=3)]
    assert "".join(order) == "bca" + "cab" + "abc"
    assert done == [dict.fromkeys("abc", number) for number in (1, 2, 3)]


def test_ratios_are_taken_within_rounds():
    ratio = Ratio.of("slow", [4.0, 40.0, 6.0], [2.0, 10.0, 1.0], ideal=8.0)
    assert (ratio.median, ratio.least, ratio.most, ratio.fastest) == (4.0, 2.0, 6.0, 4.0)
    assert ratio.share_of_ideal == 0.5


@given(st.integers(1, 9), st.integers(8, 2000), st.floats(0.05, 0.95), st.sampled_from(["even", "wide"]))
def test_kept_lengths(rows: int, length: int, deleted: float, spread: str):
    kept = kept_lengths(rows, length, deleted, spread)
    assert len(kept) == rows and all(1 <= count <= length for count in kept)
    assert sum(kept) / rows == pytest.approx(max(1, length * (1 - deleted)), abs=1)
    if spread == "even":
        assert len(set(kept)) == 1
    else:
        assert list(kept) == sorted(kept)


def test_wide_rows():
    assert kept_lengths(4, 100, 0.5, "wide") == [20, 40, 60, 80]
    assert kept_lengths(2, 100, 0.5, "wide") == [20, 80]
    assert kept_lengths(2, 100, 0.7, "wide") == [10, 50]
    assert kept_lengths(1, 100, 0.5, "wide") == [50]


# --- models -------------------------------------------------------------------------------------------------


def test_models_share_the_weights(base: Any):
    for model in (ours(base, "packed"), plain(base, "eager")):
        mine = dict(model.named_parameters())
        for name, weight in base.named_parameters():
            if "delete_gate" not in name or name in mine:
                assert mine[name].data_ptr() == weight.data_ptr()
        assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()


def test_a_steered_gate_keeps_as_many_as_it_should(base: Any):
    model = ours(base, "packed")
    for kept in ([5, 19], [1, 24], [12, 12]):
        with torch.inference_mode():
            assert Variant(model, SMALL, kept)().kept_lengths.tolist() == kept


# --- checks -------------------------------------------------------------------------------------------------


def test_a_difference_beyond_rounding_is_seen():
    one = torch.tensor([5.0, -3.0])
    assert Parity.of(one, one + 1e-4).holds
    assert not Parity.of(one, one + 3e-4).holds
    assert Parity.of(10 * one, 10 * one + 1e-3).holds  # rounding grows with the numbers
    assert not Parity.of(one, one * float("nan")).holds


def test_gradients_are_compared_weight_by_weight():
    oracle = {"large": torch.tensor([1000.0]), "small": torch.tensor([1e-3, 0.0])}
    parity = training_step.gradient_parity
    assert parity(oracle, {name: grad * 1.0005 for name, grad in oracle.items()}).holds
    assert not parity(oracle, {**oracle, "small": torch.tensor([1e-3, 2e-6])}).holds
    assert not parity(oracle, {"large": oracle["large"]}).holds  # a weight that got none
    assert not parity(oracle, {**oracle, "large": torch.tensor([float("nan")])}).holds


def test_a_step_whose_score_loss_is_lost_is_seen(base: Any, monkeypatch):
    def losing(base: Any, attention: str, **fields: Any) -> Any:
        model = ours(base, attention, **fields)
        if attention == "packed":
            model.register_forward_hook(lambda _, __, out: setattr(out, "score_loss", torch.zeros(())))
        return model

    monkeypatch.setattr(training_step, "ours", losing)
    monkeypatch.setattr(training_step, "SCORE_COEFFICIENT", 1e5)  # scores of fresh weights hardly exceed 5
    checks = dict(training_step.train(base, Shapes(batch=2, length=200, target=20)).checks())
    assert not checks["gradients of fused, score loss"]().holds


def test_a_wrong_token_is_seen(base: Any):
    oracle = Variant(ours(base, "eager", deletion_type="none"), SMALL)
    tokens = generation.greedy(oracle)
    assert generation.greedy_parity(oracle, tokens).holds
    tokens[1, 4] = 3 + (int(tokens[1, 4]) + 50) % 256
    assert not generation.greedy_parity(oracle, tokens).holds


def test_every_step_frees_its_gradients(base: Any, monkeypatch):
    built, models = training_step.ours, []
    monkeypatch.setattr(training_step, "ours", lambda *a, **k: models.append(built(*a, **k)) or models[-1])
    suite = training_step.train(base, SMALL)
    assert len(models) == 6
    for case in suite.cases.values():
        assert case.loss is not None
        case.loss().backward()
    assert all(any(weight.grad is not None for weight in model.parameters()) for model in models)
    for case in suite.cases.values():
        case.call()
    assert all(weight.grad is None for model in models for weight in model.parameters())


# --- memory -------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


@linux
def test_a_gauge_tells_what_is_held_and_what_was():
    gauge = Gauge(CPU)
    tensor = torch.ones(20_000_000)  # 80 MB
    assert gauge.now() == pytest.approx(80e6, rel=0.1)
    del tensor
    assert gauge.now() < 20e6
    assert gauge.peak() == pytest.approx(80e6, rel=0.1)


in_this_process = ExitStack()


def noted_base(made: Path) -> Any:
    """Made in the process that forks those that measure: the fixture `fast` does not reach them."""
    in_this_process.enter_context(fast_paths(True))
    with made.open("a") as file:
        file.write("once ")
    return base_model(None, "tiny")


@linux
def test_memory_is_that_of_the_case_and_a_case_that_fails_says_why(tmp_path: Path):
    shapes = Shapes(batch=2, length=600, target=20, rates=())
    cases = [LARGEST, "eager forward", "fused forward", "no such case"]
    made = tmp_path / "made"
    found = dict(measure(attention.attention, partial(noted_base, made), shapes, cases, 1))
    assert list(found) == cases
    scores = 4 * 2 * 4 * 600 * 600  # bytes of 600 x 600 scores, 4 heads, 2 rows
    assert scores <= found["eager forward"].peak < 6 * scores
    assert found["fused forward"].peak < scores
    assert found["no such case"].peak is None
    assert "KeyError" in str(found["no such case"].problem)
    assert made.read_text() == "once "  # all cases share the weights


def dying() -> Any:
    os._exit(3)


@linux
def test_a_measuring_process_that_dies_is_no_silence():
    [(name, memory)] = measure(forward.forward, dying, SMALL, ["dense"], 1)
    assert name == "dense" and memory.peak is None
    assert "terminated abruptly" in str(memory.problem)


# --- compiled -----------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[None]:
    """Nothing that another test has compiled is there."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    logger.setLevel(level)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.usefixtures("dynamo")
def test_compiled_blocks_serve_every_length(base: Any, hard: bool):
    model, other = ours(base, "packed"), ours(base, "packed")
    names = list(model.state_dict())
    compile_blocks(model, backend="eager")
    assert list(model.state_dict()) == names
    seen: list[int] = []

    def call(length: int) -> torch.Tensor:
        seen.append(length)
        shapes = Shapes(2, length, 5)
        kept = kept_lengths(2, length, 0.5, "wide") if hard else None
        outputs = [forward.logits(Variant(each, shapes, kept)) for each in (model, other)]
        torch.testing.assert_close(*outputs)
        return outputs[0]

    costs = compiling_costs(call, 40)
    assert costs.graphs >= 1
    assert costs.recompiled == 0
    assert len(set(seen)) == OTHER_LENGTHS + 1
