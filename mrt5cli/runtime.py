"""The machine a command runs on, decided once: device, precision, seed, threads, rank."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mrt5cli.errors import UserError
from mrt5cli.text import counted, shortened

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
Sharding = Literal["none", "fsdp"]

LAUNCHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "MPI_LOCAL", "ACCELERATE_"),
)
"""Prefixes of the variables by which launchers describe a group of processes to libraries."""
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
"""Variables in which launchers put the number of processes."""
FSDP = "use --set training.sharding=fsdp, which shards weights, gradients and moments with FSDP2"
NOT_OURS = {
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", FSDP),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", FSDP),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("--use_parallelism_config", FSDP),
    "FSDP_OFFLOAD_PARAMS": ("--fsdp_offload_params", "use more processes: each holds a smaller shard"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "--fsdp_activation_checkpointing",
        "use --set training.recompute=blocks",
    ),
}
"""Variables by which accelerate launch requests features that our tests do not cover, the option that sets
each, and what to use instead."""
DRIVER = Path("/proc/driver/nvidia")

# OpenMP reads it when torch is imported, so it is set here. By default, waiting threads keep their core busy:
# on two cores with any other load, steps were 4 times slower on average, and some of them 20 times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Runtime:
    """What `start` decided.

    Attributes:
        device: where tensors live.
        precision: "fp32", or "bf16" by autocast. Never fp16, in which T5's activations overflow.
        seed: the seed of every random generator.
        rank, world_size: index of this process and number of processes that train together.
    """

    device: torch.device
    precision: Precision
    seed: int
    rank: int
    world_size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def describe(self) -> dict[str, Any]:
        """The fields of meta.json."""
        import torch

        return {
            "device": str(self.device),
            "device_name": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": self.world_size,
        }

    def sentence(self) -> str:
        """Human-readable, such as "cpu (2 threads), fp32"."""
        facts = self.describe()
        on_cpu = self.device.type == "cpu"
        what = counted(facts["threads"], "thread") if on_cpu else facts["device_name"]
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.device} ({what}), {self.precision}{processes}"


def start(
    requested: str | None = None,
    *,
    precision: Precision = "fp32",
    sharding: Sharding = "none",
    seed: int = 42,
) -> Runtime:
    """Choose device and threads, and seed every generator; called once, before a model is built.

    Raises:
        UserError: the device does not exist, it does not support this precision, or a launcher requests what
            contradicts the recipe or is not supported.
    """
    import torch
    from transformers import set_seed

    rank, world_size = processes()
    _refuse_others()
    if world_size > 1:
        _check_launch(precision, sharding)
    # A single process drops all variables of launchers, which libraries would read. The recipe, not the
    # launcher, configures FSDP.
    left = LAUNCHERS if world_size == 1 else ("ACCELERATE_USE_FSDP", "FSDP_")
    for name in [name for name in os.environ if name.startswith(left)]:
        del os.environ[name]
    chosen = device(requested)
    if precision == "bf16":
        check_bf16(chosen, "set training.precision: fp32")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    set_seed(seed)
    return Runtime(chosen, precision, seed, rank, world_size)


def _refuse_others() -> None:
    """Refuse features of accelerate launch that our tests do not cover."""
    for name, (option, instead) in NOT_OURS.items():
        if _is_on(name):
            raise UserError(f"accelerate launch was given {option}, which mrt5 does not support", instead)
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        raise UserError(
            f"accelerate launch was given --dynamo_backend {backend}, which recompiles for every length",
            "use --set training.compile=true, which compiles one graph for all lengths",
        )
    if os.environ.get("PJRT_DEVICE") == "TPU":
        raise UserError("mrt5 does not support TPUs (PJRT_DEVICE is TPU)", "use an NVIDIA GPU or a CPU")


def _check_launch(precision: Precision, sharding: Sharding) -> None:
    """Refuse options of accelerate launch that contradict the recipe."""
    version = os.environ.get("FSDP_VERSION", "1")
    if _is_on("ACCELERATE_USE_FSDP") and version != "2":
        raise UserError(
            f"accelerate launch was given --use_fsdp with --fsdp_version {version}",
            "launch with --fsdp_version 2",
        )
    if _is_on("ACCELERATE_USE_FSDP") and sharding == "none":
        raise UserError(
            "accelerate launch was given --use_fsdp, but the recipe sets training.sharding: none",
            "set it in the recipe: --set training.sharding=fsdp",
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    if launched not in ("no", precision):
        raise UserError(
            f"accelerate launch was given --mixed_precision {launched}, but the recipe sets "
            f"training.precision: {precision}",
            "launch with --mixed_precision no, and set training.precision",
        )


def _is_on(name: str) -> bool:
    """Whether accelerate set a variable to true."""
    return os.environ.get(name, "").lower() in ("true", "1")


def device(requested: str | None = None) -> torch.device:
    """The device that `--device` names: cpu, cuda, cuda:1, or auto (None), which is a GPU if there is one.

    In a launched group of processes, "cuda" and "auto" are this process's own GPU.

    Raises:
        UserError: not the name of a device, or the device does not exist.
    """
    import torch

    name = requested or "auto"
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name):
        raise UserError(
            f"--device {shortened(name)} is not a device",
            "use cpu, cuda, cuda:N (a GPU's number) or auto",
        )
    if name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        if name == "auto":
            return torch.device("cpu")
        raise UserError(f"--device {name}: torch {torch.__version__} finds no GPU", "use --device cpu")
    if ":" not in name:
        return torch.device("cuda", (int(os.environ["LOCAL_RANK"]) if processes()[1] > 1 else 0) % found)
    index = int(name.split(":")[1])
    if index >= found:
        raise UserError(
            f"--device {name}: this machine has {found} GPUs, numbered from 0", "use --device cuda:0"
        )
    if processes()[1] > 1:
        raise UserError(
            f"--device {name} names one GPU for several processes",
            "use --device cuda, and each process uses its own",
        )
    return torch.device("cuda", index)


def devices(requested: str) -> list[torch.device]:
    """The devices of a comma-separated list; "all" is every GPU. See `device`.

    Raises:
        UserError: one is not the name of a device, or does not exist.
    """
    import torch

    if requested == "all":
        requested = ",".join(f"cuda:{number}" for number in range(torch.cuda.device_count())) or "cuda"
    return [device(name.strip()) for name in requested.split(",")]


def check_bf16(device: torch.device, hint: str) -> None:
    """Refuse a GPU without bf16 support.

    Args:
        hint: what to do instead.
    """
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{device_name(device)} does not support bf16", hint)


def processes() -> tuple[int, int]:
    """(rank, world size) of this process under torchrun or accelerate launch; otherwise (0, 1)."""
    if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def leads() -> bool:
    """Whether this process prints and writes for its group, which a process without a group does."""
    return os.environ.get("RANK", "") in ("", "0") or not os.environ.get("WORLD_SIZE")


def ignored_launchers() -> list[str]:
    """A note if a launcher started several processes but this one trains alone; call it before `start`."""
    if processes()[1] > 1:
        return []
    sizes = [f"{name}={size}" for name in SIZES if (size := os.environ.get(name, "1")) not in ("", "0", "1")]
    if not sizes:
        return []
    together = "use torchrun or accelerate launch to train with several"
    return [f"{', '.join(sizes)}: ignored, this process trains alone; {together}"]


def usable_cpus() -> int:
    """Cores this process may use; in a container often far fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def memory(device: torch.device) -> int:
    """Total memory in bytes of a GPU, or of the machine for a CPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def memory_in_use(device: torch.device) -> int | None:
    """Bytes that PyTorch has reserved on a GPU, or the resident memory of this process; None if unknown.

    Does not synchronize with the device.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    import psutil

    try:
        return int(psutil.Process().memory_info().rss)
    except (psutil.Error, OSError):
        return None


def installed_gpu() -> str:
    """The name of an NVIDIA GPU according to its driver, without torch; empty if there is none."""
    for facts in sorted(DRIVER.glob("gpus/*/information")):
        model = re.search(r"^Model:\s*(.*)", facts.read_text(encoding="utf-8"), re.MULTILINE)
        if model:
            return model[1]
    return ""


def device_name(device: torch.device) -> str:
    """The model of a GPU or of the CPU, or the CPU's architecture if its model is unknown."""
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The model of the CPU, or its architecture if the model is unknown."""
    import platform

    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        facts = ""
    model = re.search(r"^model name\s*: (.*)", facts, re.MULTILINE)
    return model[1] if model else platform.machine()
