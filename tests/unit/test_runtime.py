"""Devices and places among processes, on a machine with or without GPUs: torch's answers are stood in for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mrt5cli import runtime
from mrt5cli.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu():
    assert runtime.device(None) == runtime.device("auto") == runtime.device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"--device {name}") as caught:
            runtime.device(name)
        assert caught.value.hint == "use --device cpu"


@pytest.mark.usefixtures("two_gpus")
def test_with_two_gpus(monkeypatch: pytest.MonkeyPatch):
    assert runtime.device("cpu") == torch.device("cpu")
    assert runtime.device("auto") == runtime.device("cuda") == torch.device("cuda", 0)
    assert runtime.device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="2 GPUs, numbered from 0"):
        runtime.device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_each_process_of_a_group_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert runtime.processes() == (5, 8)
    assert runtime.device("auto") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="names one GPU for several processes"):
        runtime.device("cuda:0")


LEFT = {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "x", "MASTER_PORT": "1"}


def test_what_other_launches_left_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LEFT | {"ACCELERATE_MIXED_PRECISION": "fp16", "LOCAL_RANK": "3"}).items():
        monkeypatch.setenv(name, value)
    started = runtime.start("cpu")
    assert (started.rank, started.world_size, started.leads) == (0, 1, True)
    assert not [name for name in os.environ if name.startswith(runtime.LAUNCHERS)]


def test_a_group_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    started = runtime.start("cpu")
    assert (started.rank, started.world_size) == (1, 2) and not runtime.leads()
    assert {name: os.environ[name] for name in group} == group


def test_a_launchers_precision_does_not_replace_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "fp16"}.items():
        monkeypatch.setenv(name, value)
    for precision in ("fp32", "bf16"):
        with pytest.raises(UserError, match=f"--mixed_precision fp16, but the recipe .*: {precision}"):
            runtime.start("cpu", precision=precision)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert runtime.start("cpu", precision="bf16").world_size == 2


@pytest.mark.parametrize(
    ("variables", "told", "hint"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed, which mrt5 does not", "sharding=fsdp"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "--use_megatron_lm, which mrt5 does not", "sharding=fsdp"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config", "sharding=fsdp"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params", "use more processes"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing", "recompute=blocks"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "--dynamo_backend inductor", "training.compile=true"),
        ({"PJRT_DEVICE": "TPU"}, "does not support TPUs", "GPU"),
    ],
)
@pytest.mark.parametrize("world_size", ["1", "2"])
def test_what_else_accelerate_can_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str, hint: str, world_size: str
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": world_size, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told) as raised:
        runtime.start("cpu", sharding="fsdp")
    assert hint in str(raised.value.hint)


def test_a_launchers_sharding_does_not_replace_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_OFFLOAD_PARAMS": "false"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **launched}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--use_fsdp with --fsdp_version 1"):
        runtime.start("cpu", sharding="fsdp")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"--use_fsdp, but the recipe sets training\.sharding") as raised:
        runtime.start("cpu")
    assert "training.sharding=fsdp" in str(raised.value.hint)
    assert runtime.start("cpu", sharding="fsdp").world_size == 2
    assert not any("FSDP" in name for name in os.environ), "accelerate would shard as well"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", "0"])
def test_not_a_device(name: str):
    with pytest.raises(UserError, match="is not a device"):
        runtime.device(name)


@pytest.mark.usefixtures("two_gpus")
def test_bf16_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match="Some GPU does not support bf16"):
        runtime.start("cuda", precision="bf16")
    assert runtime.start("cpu", precision="bf16").precision == "bf16"


def test_starting_seeds_everything():
    import random

    import numpy as np

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    found = []
    for seed in (3, 3, 4):
        runtime.start("cpu", seed=seed)
        found.append(draws())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "limit, cores", [("max 100000\n", 4), ("150000 100000\n", 2), ("1000 100000\n", 1), ("gone", 4)]
)
def test_no_more_threads_than_the_container_has_cores(
    limit: str, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, encoding: limit)
    assert runtime.usable_cpus() == cores
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runtime.start("cpu")
        assert torch.get_num_threads() == min(3, cores)
    finally:
        torch.set_num_threads(before)


def test_what_is_told():
    here = runtime.start("cpu")
    assert here.leads
    assert here.describe()["processes"] == 1
    assert here.sentence().startswith("cpu (")
    assert here.sentence().endswith("), fp32")


def test_the_driver_tells_a_gpu_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "DRIVER", tmp_path)
    assert runtime.installed_gpu() == ""
    for place in ("0000:65:00.0", "0000:17:00.0"):
        (tmp_path / "gpus" / place).mkdir(parents=True)
        facts = f"Model: \t\t NVIDIA H200 at {place}\nIRQ:   \t\t 1\n"
        (tmp_path / "gpus" / place / "information").write_text(facts)
    assert runtime.installed_gpu() == "NVIDIA H200 at 0000:17:00.0"
