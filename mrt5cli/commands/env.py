"""`mrt5 env`: the information about a machine and its packages that a bug report needs."""

from __future__ import annotations

import json
import locale
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mrt5cli
from mrt5cli import extras, places, runtime
from mrt5cli.commands.options import AsJson
from mrt5cli.output import print_json
from mrt5cli.text import MISSING, announced, byte_size, say, say_on_stderr

Facts = dict[str, str | int | bool | None]
PATIENCE = 60
"""Seconds to wait for the import of torch and transformers, which is slow from a cold network drive."""
NAMED = re.compile(
    r"(MRT5|HF|HUGGINGFACE|TRANSFORMERS|OMP|MKL|KMP|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|RAY|SLURM|WANDB|TRACKIO"
    r"|TENSORBOARD|LC|XDG|PYTHON)\w*|LANG|TMPDIR|CXX|COLUMNS|NO_COLOR|\w+_(PROXY|proxy)|RANK|WORLD_SIZE"
)
"""Environment variables that this toolkit or one of its libraries reads."""
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|JWT", re.IGNORECASE)
LOOKS_SECRET = re.compile(
    r"(?<=//)[^/\s]+(?=@)|^[^/\s]+:[^/\s]*(?=@)|\bhf_\w{8,}|(?<=token=)[^&\s]+|(?<=key=)[^&\s]+",
    re.IGNORECASE,
)
"""User and password in a URL (or in a proxy address without `http://`), a token or key in its query, and a
Hub token anywhere."""
HIDDEN = "(hidden)"


def env(as_json: AsJson = False) -> None:
    """Print what a bug report needs: versions, machine, GPUs, packages and environment variables.

    Tokens, passwords and the path of your home directory are hidden. Nothing is sent anywhere.

    Examples:

      mrt5 env

      mrt5 env --json
    """
    with announced("importing torch and transformers ...", say_on_stderr):
        document = {
            "mrt5cli": _ours(),
            "system": _system(),
            "packages": _packages(),
            "extras": _extras(),
            **_of_libraries(),
            "environment": _variables(os.environ),
            "caches": _caches(),
        }
    if as_json:
        return print_json(document)
    for title, facts in document.items():
        say(title)
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            shown = ("no", "yes")[value] if isinstance(value, bool) else MISSING if value is None else value
            say(f"  {name:<{width}}  {shown}")


def _ours() -> Facts:
    from mrt5cli.fingerprint import commit

    folder = Path(mrt5cli.__file__).parent
    return {
        "version": mrt5cli.__version__,
        "commit": commit(folder),
        "folder": _shown(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}, {_shown(sys.executable)}",
    }


def _system() -> Facts:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "os": platform.platform(),
        "cpu": runtime.cpu_name(),
        "cores": f"{os.cpu_count()}, {runtime.usable_cpus()} available",
        "memory": f"{byte_size(memory.total)}, {byte_size(memory.available)} free",
        "disk here": f"{byte_size(places.room(Path()))} free",
        "gpu": runtime.installed_gpu() or None,
        "driver": _driver(),
        "locale": f"{locale.setlocale(locale.LC_CTYPE)}, file names in {sys.getfilesystemencoding()}",
        "stdout": f"{sys.stdout.encoding}, {'a terminal' if sys.stdout.isatty() else 'not a terminal'}",
    }


def _driver() -> str | None:
    try:
        first, *_ = (runtime.DRIVER / "version").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    found = re.search(r"\d+(\.\d+)+", first)
    return found[0] if found else first


def _packages() -> Facts:
    """The versions of the required packages."""
    from importlib import metadata

    try:
        needed = [line for line in metadata.requires("mrt5cli") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return {"mrt5cli": "not installed; running from its source folder"}
    return {name: _version(name) for name in map(_name, needed)}


def _extras() -> Facts:
    """The package versions of each extra, or how to install it."""
    found: Facts = {}
    for extra, packages in extras.extras().items():
        versions = {name: _version(name) for name in map(_name, packages) if name != "mrt5cli"}
        whole = None not in versions.values()
        shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        found[extra] = shown if whole else f"not installed: {extras.how_to_install(extra)}"
    return found


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _variables(environment: Mapping[str, str]) -> Facts:
    chosen = {name: value for name, value in sorted(environment.items()) if NAMED.fullmatch(name)}
    return {name: HIDDEN if SECRET.search(name) else _shown(value) for name, value in chosen.items()}


def _caches() -> Facts:
    from huggingface_hub import constants

    folders = {"Hub models": constants.HF_HUB_CACHE, "Hugging Face": constants.HF_HOME}
    return {
        name: f"{_shown(folder)}, {'exists' if Path(folder).is_dir() else 'does not exist'}"
        for name, folder in folders.items()
    }


def _shown(text: str | Path) -> str:
    """A value that is safe to publish, without the home directory and without passwords."""
    home = os.path.expanduser("~")
    return LOOKS_SECRET.sub(HIDDEN, str(text).replace(home, "~") if len(home) > 1 else str(text))


# --- torch --------------------------------------------------------------------------------------------------


def _of_libraries() -> dict[str, Facts]:
    """The facts about torch and the fast paths, from a separate process, which a broken torch may crash."""
    titles = ("torch", "fast paths")
    code = f"from {__name__} import _print_facts; _print_facts()"
    try:
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
        lines, errors, status = process.stdout.splitlines(), process.stderr, process.returncode
    except subprocess.TimeoutExpired as late:
        lines, errors, status = (late.stdout or b"").decode().splitlines(), f"no answer in {PATIENCE} s", 1
    found = {title: json.loads(line) for title, line in zip(titles, lines, strict=False)}
    if status:
        ended = signal.Signals(-status).name if status < 0 else None
        last = (errors.strip().splitlines() or [f"exit code {status} without a message"])[-1]
        found[titles[len(found)]] = {"broken": _shown(f"ended by {ended}" if ended else last)}
    return found


def _print_facts() -> None:
    """Print the facts about torch and the fast paths, one line of JSON each, as soon as they are known."""
    print(json.dumps(dict(_torch())), flush=True)
    print(json.dumps(dict(_fast_paths())), flush=True)


def _torch() -> Iterator[tuple[str, str | int | bool | None]]:
    import torch

    yield "version", torch.__version__
    yield "built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    yield "threads", f"{torch.get_num_threads()}, between operators {torch.get_num_interop_threads()}"
    backends: Any = torch.backends  # which have no types
    for name, backend in (("MKL", backends.mkl), ("oneDNN", backends.mkldnn)):
        yield name, bool(backend.is_available())
    compiler = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")), None)
    yield "C++ compiler", compiler
    yield "cuda", torch.cuda.is_available()
    if torch.cuda.is_available():
        yield "cudnn", backends.cudnn.version()
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            yield f"cuda:{number}", f"{gpu.name}, {byte_size(gpu.total_memory)}, sm_{gpu.major}{gpu.minor}"


def _fast_paths() -> Iterator[tuple[str, str | int | bool | None]]:
    """The fast paths for a model of ByT5-small's shape on this machine."""
    import torch

    from mrt5cli.models import BYT5_SHAPES, MrT5Config
    from mrt5cli.models.fast.choice import choose
    from mrt5cli.models.fast.kernels import obstacle
    from mrt5cli.models.fast.products import suits_onednn
    from mrt5cli.models.fast.switch import fast_paths_are_on

    shape: dict[str, Any] = dict(BYT5_SHAPES["google/byt5-small"])
    config, device = MrT5Config(**shape), runtime.device()
    hindered = obstacle(device, config.d_kv)
    yield "switched on", fast_paths_are_on()
    yield "device", str(device)
    yield (
        "our kernels",
        "used, after a self-check of their results" if hindered is None else f"no: {hindered}",
    )
    if hindered is not None:
        chosen = choose(config, device, torch.float32, drops=True, score_per=None, trains=True)
        yield "attention", str(chosen)
    states, weight = torch.zeros(2, config.d_model), torch.zeros(config.d_ff, config.d_model)
    yield (
        "matrix products on the CPU",
        "oneDNN where they are wide" if suits_onednn(states, weight) else "PyTorch",
    )
