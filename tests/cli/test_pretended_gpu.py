"""Plans on a machine that pretends to have a GPU: hours and memory with where they are from, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.models.fast import choice

pytestmark = pytest.mark.usefixtures("one_thread", "fast")

Pretend = Callable[..., None]
OFFLINE = ("model.start=scratch", "task.source={kind: embedded}")
TINY = "model.shape={d_model: 64, d_ff: 128, d_kv: 16, num_heads: 2, num_layers: 4, num_decoder_layers: 1}"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pretend]:
    """Pretends to have GPUs of a name and a size; the model of a plan stays on the CPU."""
    monkeypatch.chdir(tmp_path)
    # As where triton is installed, and its kernels' numbers are right.
    choice._checked.cache_clear()
    monkeypatch.setattr(choice, "obstacle", lambda *_: None)
    monkeypatch.setattr(choice, "fault", lambda _: "")

    def have(name: str, gigabytes: float, count: int = 1, bf16: bool = True) -> None:
        properties = SimpleNamespace(name=name, total_memory=int(gigabytes * 1e9), major=9, minor=0)
        facts: dict[str, Any] = {
            "is_available": True,
            "device_count": count,
            "get_device_name": name,
            "get_device_properties": properties,
            "get_device_capability": (9, 0),
            "is_bf16_supported": bf16,
        }
        for call, answer in facts.items():
            monkeypatch.setattr(torch.cuda, call, lambda *_, answer=answer, **__: answer)

    yield have
    choice._checked.cache_clear()


def pretrain(*overrides: str, recipe: str = "pctrl40", json_too: bool = False) -> Result:
    sets = [word for each in (*OFFLINE, *overrides) for word in ("--set", each)]
    words = ["pretrain", recipe, "--dry-run", "--device", "cuda", *sets]
    return CliRunner().invoke(app, [*words, "--json"] if json_too else words)


def line(result: Result, name: str) -> str:
    assert result.exit_code == 0, result.output
    found = re.search(rf"^{name} +(.*)", result.stderr, re.MULTILINE)
    assert found is not None, result.stderr
    return found[1]


def test_float32_is_advised_against(pretend: Pretend) -> None:
    pretend("NVIDIA H200", 150)
    said = r"with --set training\.precision=bf16 the run takes about .*\(from arithmetic, not measured\)"
    whole = "training.device_batch_size=1024"
    assert re.search(said, pretrain(TINY, whole).stderr)
    assert not re.search(said, pretrain(TINY, whole, "training.precision=bf16").stderr)
    assert not re.search(said, pretrain(TINY).stderr), "its passes take no longer in float32"


def test_a_shortener_that_looks_at_padding_is_not_said_to_run_by_our_kernels(pretend: Pretend) -> None:
    pretend("NVIDIA H200", 150)
    result = pretrain(TINY, "task.languages=[en]", recipe="multilingual_v3/random_30")
    assert "attention by sdpa (shortening per batch reads padding" in line(result, "device")


def test_the_classic_run_names_hours_and_memory(pretend: Pretend) -> None:
    pretend("NVIDIA H200", 150)
    result = pretrain("training.precision=bf16", "training.device_batch_size=64")
    kernels = "triton (its numbers were checked on this device)"
    assert line(result, "device") == f"cuda:0 (NVIDIA H200), bf16; attention by {kernels}"
    assert line(result, "takes") == (
        "about 4 h 05 min on one NVIDIA H200, 214,422 bytes per second "
        "(316 TFLOP/s, from arithmetic, not measured)"
    )
    memory = line(result, "memory")
    assert memory.startswith("about 39 GB of 150 GB: 4.79 GB weights, gradients and Adam's moments, ")
    assert "599 MB copies of weights" in memory and "GB activations of 64 examples" in memory
    assert not Path("runs").exists()


def test_scripts_get_numbers(pretend: Pretend) -> None:
    pretend("NVIDIA A100-SXM4-80GB", 85)
    estimate = json.loads(pretrain(TINY, "model.attention_dropout=0", json_too=True).stdout)["estimate"]
    assert estimate["device"] == "NVIDIA A100-SXM4-80GB" and estimate["measured"] is None
    assert estimate["flops_per_second"] == pytest.approx(0.6 * 19.5e12)
    assert 3000 * 1024 * 1024 / estimate["bytes_per_second"] / 3600 == pytest.approx(estimate["hours"])
    memory = estimate["memory"]
    assert memory.keys() == {"weights", "copies", "held", "temporary", "total", "available"}
    assert memory["available"] == 85e9
    parts = ("weights", "copies", "held", "temporary")
    assert memory["total"] == sum(memory[part] for part in parts) > memory["weights"] > 0


def test_the_plan_names_what_attention_runs_by(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    """And counts its memory; a failed self-check is reported."""
    pretend("NVIDIA H200", 150)
    found = {}
    for fault in ("", "its output is off by 3"):
        choice._checked.cache_clear()
        monkeypatch.setattr(choice, "fault", lambda _, fault=fault: fault)
        planned = json.loads(pretrain(TINY, json_too=True).stdout)
        found[planned["attention"]] = planned["estimate"]["memory"]["total"]
    checked, failed = found
    assert checked == "triton (its numbers were checked on this device)"
    assert failed == "sdpa (the self-check of our kernels failed: its output is off by 3)"
    assert found[failed] > found[checked]


def test_a_step_that_does_not_fit_is_refused_with_settings_that_do(pretend: Pretend) -> None:
    batch = "training.device_batch_size="
    pretend("NVIDIA GeForce RTX 3090", 2)
    refused = pretrain(TINY, f"{batch}256")
    assert refused.exit_code == 2, refused.output
    told = " ".join(refused.stderr.split())
    found = re.search(
        r"a training step of 256 examples needs about ([\d.]+) GB, and cuda:0 has 2 GB .*--set "
        rf"{batch}(\d+) or --set training.recompute=blocks$",
        told,
    )
    assert found is not None, told
    assert float(found[1]) > 2
    smaller = int(found[2])
    assert 1024 % smaller == 0 and smaller < 256
    # What is proposed fits, and what lies above it would not, or not well.
    for settings in ((f"{batch}{smaller}",), (f"{batch}256", "training.recompute=blocks")):
        fitting = pretrain(TINY, *settings)
        assert fitting.exit_code == 0 and "if memory runs out" not in fitting.stderr, fitting.output
    above = pretrain(TINY, f"{batch}{2 * smaller}")
    assert above.exit_code == 2 or "if memory runs out: --set" in above.stderr


def test_a_step_that_hardly_fits_is_spoken_of(pretend: Pretend) -> None:
    pretend("NVIDIA L40S", 48)
    total = json.loads(pretrain(TINY, json_too=True).stdout)["estimate"]["memory"]["total"]
    notes = dict.fromkeys((0.85, 0.95), 0)
    for share in notes:
        pretend("NVIDIA L40S", total / share / 1e9)
        notes[share] = pretrain(TINY).stderr.count("if memory runs out: --set training.device_batch_size=4")
    assert notes == {0.85: 0, 0.95: 1}


def test_a_gpu_that_is_too_small_for_any_batch(pretend: Pretend) -> None:
    pretend("NVIDIA L40S", 0.004)
    assert "no smaller batch fits: use a GPU with more memory" in pretrain(TINY).stderr


def test_a_gpu_of_no_known_kind_is_called_that(pretend: Pretend) -> None:
    pretend("NVIDIA Whatever", 80)
    assert " on one NVIDIA Whatever (unknown kind, estimated as an A100), " in line(pretrain(TINY), "takes")


def test_a_gpu_without_bf16_is_refused(pretend: Pretend) -> None:
    pretend("NVIDIA V100", 32, bf16=False)
    assert "does not support bf16" in pretrain(TINY, "training.precision=bf16").stderr
