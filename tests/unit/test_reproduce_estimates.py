"""Estimates: hours from exact multiply-accumulates, disk from parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reproduction import experiment, recipe

from mrt5cli import recipe as recipes
from mrt5cli.analysis.compute import macs
from mrt5cli.analysis.throughput import LEAST, core_rate, gpu_rate
from mrt5cli.recipe import Recipe, Shape
from mrt5cli.suite.estimates import assumption, estimate, machine_for
from mrt5cli.suite.jobs import Evaluation, Machine
from mrt5cli.suite.planning import make_plan
from mrt5cli.suite.suites import load_suite
from mrt5cli.training.estimates import (
    SHAPES,
    disk,
    lengths_of,
    parameters,
    shape_of,
    sizes_of,
    task_lengths,
)

GATE = {"kind": "delete_gate", "layer": 1}


def test_sizes_are_those_of_the_published_models() -> None:
    from mrt5cli.models import BYT5_SHAPES

    for name, shape in SHAPES.items():
        published = BYT5_SHAPES[f"google/byt5-{name}"]
        assert {key: getattr(shape, key) for key in published} == published


@pytest.mark.parametrize("size, millions", [("small", 300), ("base", 582), ("large", 1228)])
def test_parameters_are_those_of_the_published_models(size: str, millions: int) -> None:
    counted = parameters(sizes_of(recipe("x"), SHAPES[size]))
    assert counted == pytest.approx(millions * 1e6, rel=0.01)


def test_parameters_are_those_of_a_model_that_is_built() -> None:
    from mrt5cli.models import build

    small = recipe("x", model={"positions": "relative", "max_positions": 1024})
    weights = sum(weight.numel() for weight in build(small.model).parameters())
    assert parameters(sizes_of(small, shape_of(small))) == pytest.approx(weights, rel=0.05)


@given(
    batch=st.integers(1, 64),
    steps=st.integers(1, 1000),
    tflops=st.floats(0.1, 1000),
    width=st.sampled_from([16, 64]),
)
def test_training_hours_are_six_operations_for_each_multiplication(
    batch: int, steps: int, tflops: float, width: int
) -> None:
    own = recipe(
        "x",
        model={"shape": {**Shape().model_dump(), "d_model": width}},
        training={"batch_size": batch, "device_batch_size": batch, "max_steps": steps},
    )
    plan = make_plan("mine", [experiment("a", "x", evaluations=())], Path("nowhere"), known={"x": own})
    estimate(plan, tflops)
    sizes = sizes_of(own, shape_of(own))
    expected = 6 * macs(sizes, [16], [16], [16]) * batch * steps / (tflops * 1e12) / 3600
    # Of the launching of 12 + 4 blocks at least, once a step.
    assert plan.jobs[0].hours == pytest.approx(max(expected, steps * (0.002 + 16 * 0.0015) / 3600))


def test_hours_of_tiny_models_are_what_their_steps_take_at_least() -> None:
    training = {"max_steps": 20_000, "batch_size": 8, "device_batch_size": 2}
    plan = make_plan(
        "mine", [experiment("a", "x")], Path("nowhere"), known={"x": recipe("x", training=training)}
    )
    for machine in get_args(Machine):
        estimate(plan, machine=machine)
        # Three blocks, four passes a step; evaluating is not a step.
        assert plan.jobs[0].hours == pytest.approx(20_000 * (0.002 + 3 * 4 * 0.0015) / 3600)
        assert plan.jobs[1].hours < 1e-5
        assert assumption(machine).endswith(f"; a training takes at least {LEAST}")


@pytest.fixture
def arithmetic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrt5cli.suite.estimates.least_seconds", lambda *_: 0.0)


@pytest.mark.parametrize(
    ("suite", "smoke", "device", "tflops", "machine"),
    [
        ("cpu", False, "auto", None, "cpu"),
        ("cpu", False, "cuda", None, "gpu"),
        ("cpu", False, "auto", 10.0, "gpu"),
        ("gpu", False, "auto", None, "gpu"),
        ("gpu", False, "cpu", None, "cpu"),
        ("gpu", True, "auto", None, "cpu"),
        ("gpu", True, "cuda:1", None, "gpu"),
    ],
)
@pytest.mark.usefixtures("arithmetic_alone")
def test_hours_are_those_of_what_jobs_run_on(
    suite: Machine, smoke: bool, device: str, tflops: float | None, machine: Machine
) -> None:
    asked = replace(experiment("a", "x", evaluations=()), machine=suite)
    plan = make_plan("mine", [asked], Path("nowhere"), known={"x": recipe("x")}, smoke=smoke)
    assert machine_for(plan, device, tflops) == machine
    estimate(plan, tflops, machine)
    here = plan.jobs[0].hours
    estimate(plan, 1.0, "gpu")
    width = sizes_of(recipe("x"), shape_of(recipe("x"))).d_model
    of_gpu = gpu_rate("fp32").flops if tflops is None else tflops * 1e12
    speed = of_gpu if machine == "gpu" else core_rate(width, shared=True).flops
    assert plan.jobs[0].hours == pytest.approx(here * speed / 1e12)
    assert ("core" in assumption(machine, tflops)) == (machine == "cpu")


MEASURED = ("seeds", "controllers", "any_rate", "diagnostics", "per_sample", "softmax1")
"""Experiments of the miniature whose trainings were measured: 99 in 117 minutes, two at a time. Since then
three came and three became longer: 4 minutes more, by runs like them."""


def test_the_miniature_is_for_a_cpu_and_takes_about_what_was_measured() -> None:
    measured = [one for one in load_suite("miniature") if one.id in MEASURED]
    plan = make_plan("miniature", measured, Path("nowhere"))
    assert machine_for(plan, "auto") == "cpu"
    estimate(plan, machine="cpu")
    assert len(plan.trainings) == 102
    assert sum(job.hours for job in plan.trainings) == pytest.approx(121 / 60, rel=0.1)


@pytest.mark.usefixtures("arithmetic_alone")
def test_bf16_is_assumed_faster() -> None:
    known: dict[str, Recipe] = {name: recipe(name, training={"precision": name}) for name in ("fp32", "bf16")}
    plan = make_plan("mine", [experiment("a", *known, evaluations=())], Path("nowhere"), known=known)
    estimate(plan)
    slow, fast = (job.hours for job in plan.jobs)
    assert slow / fast == pytest.approx(gpu_rate("bf16").flops / gpu_rate("fp32").flops)
    estimate(plan, gpu="NVIDIA H200")
    assert slow / plan.jobs[0].hours == pytest.approx(67 / 19.5)
    words = assumption("gpu", gpu="NVIDIA H200")
    assert "one NVIDIA H200, at 40.2 TFLOP/s in fp32 (from arithmetic, not measured) and 316 TFLOP/s" in words


def test_a_run_has_the_sizes_of_what_it_starts_from() -> None:
    starts = {"a": "runs/base-seed1", "b": "runs/base-seed1/checkpoints/step-00000002"}
    known = {"base": recipe("base"), **{name: recipe(name, start) for name, start in starts.items()}}
    plan = make_plan("mine", [experiment("all", *known, evaluations=())], Path("nowhere"), known=known)
    estimate(plan)
    assert len({job.hours for job in plan.jobs}) == 1 and plan.jobs[0].hours > 0
    assert shape_of(recipe("x", "google/byt5-large")) == SHAPES["large"]
    assert shape_of(recipe("x", "somebody/else")) == SHAPES["small"]


@pytest.mark.parametrize(
    "shortener, hard, kept",
    [
        ({"kind": "none"}, True, 16),
        ({"kind": "source_removed"}, True, 1),
        ({"kind": "random", "layer": 1, "rate": 0.25}, True, 12),
        ({"kind": "random", "layer": 1, "rate": 0.25}, False, 16),
        ({"kind": "fixed", "layer": 1, "amount": 0.5}, True, 8),
        ({"kind": "boundary_predictor", "layer": 1, "prior": 0.25}, False, 4),
        ({"kind": "convolution", "layer": 1, "stride": 4}, False, 4),
    ],
)
def test_what_is_left_of_a_source(shortener: dict[str, object], hard: bool, kept: int) -> None:
    shortened = recipe("x", model={"shortener": shortener})
    assert lengths_of(shortened, shortened.task, hard=hard).kept == kept


def test_hard_steps_count_in_training() -> None:
    gated = recipe(
        "x",
        model={"shortener": GATE},
        controller={"kind": "pi", "target_deletion_rate": 0.5},
        loss={"hard_delete_probability": 0.5},
    )
    assert lengths_of(gated, gated.task, hard=False).kept == 12
    assert lengths_of(gated, gated.task, hard=True).kept == 8


def test_lengths_of_tasks() -> None:
    assert task_lengths(recipes.load("pctrl40").task) == (1024, 189)
    assert task_lengths(recipes.load("xnli_v3/byt5").task)[1] < 20
    assert task_lengths(recipes.load("word_search_v3/byt5").task) == (128, 16)
    assert task_lengths(recipes.load("tydiqa_v3/byt5").task)[0] == 2048


def test_evaluations_cost_by_examples_languages_and_passes() -> None:
    asked = (Evaluation(), Evaluation(limit=4), Evaluation(runtime=True))
    plan = make_plan(
        "mine", [experiment("a", "x", evaluations=asked)], Path("nowhere"), known={"x": recipe("x")}
    )
    estimate(plan)
    whole, half, timed = (job.hours for job in plan.jobs if job.kind == "evaluate")
    assert whole == pytest.approx(2 * half) and 4 * whole < timed < 7 * whole


@given(st.integers(1, 5), st.integers(1, 10**9), st.booleans())
def test_disk_is_what_training_checks_for(kept: int, weights: int, best: bool) -> None:
    training = {"keep_checkpoints": kept} | ({"best_metric": "loss", "eval_steps": 1} if best else {})
    taken = disk(recipe("x", training=training), weights)
    assert taken == weights * (12 * kept + 4 + (4 * (1 + kept) if best else 0))
