"""`mrt5 env`: what a report of a bug needs to say about the machine and what is installed on it."""

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
"""Seconds that torch and transformers may take to be imported; a cold network drive needs some."""
NAMED = re.compile(
    r"(MRT5|HF|HUGGINGFACE|TRANSFORMERS|OMP|MKL|KMP|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|RAY|SLURM|WANDB|TRACKIO"
    r"|TENSORBOARD|LC|XDG|PYTHON)\w*|LANG|TMPDIR|CXX|COLUMNS|NO_COLOR|\w+_(PROXY|proxy)|RANK|WORLD_SIZE"
)
"""Environment variables that decide something here or in a library below."""
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|JWT", re.IGNORECASE)
LOOKS_SECRET = re.compile(
    r"(?<=//)[^/\s]+(?=@)|^[^/\s]+:[^/\s]*(?=@)|\bhf_\w{8,}|(?<=token=)[^&\s]+|(?<=key=)[^&\s]+",
    re.IGNORECASE,
)
"""A user and a password in a URL, or in a proxy's without `http://`, a token or a key in its query, and a
token of the Hub, wherever they stand."""
HIDDEN = "(hidden)"


def env(as_json: AsJson = False) -> None:
    """Say what a report of a bug needs: versions, machine, GPUs, what is installed and set.

    Tokens and passwords are hidden, and so is the name of your home directory. Nothing is sent anywhere.

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
            told = ("no", "yes")[value] if isinstance(value, bool) else MISSING if value is None else value
            say(f"  {name:<{width}}  {told}")


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
        "cores": f"{os.cpu_count()}, of which {runtime.usable_cpus()} may be used",
        "memory": f"{byte_size(memory.total)}, {byte_size(memory.available)} of it free",
        "disk here": f"{byte_size(places.room(Path()))} free",
        "gpu": runtime.installed_gpu() or None,
        "driver": _driver(),
        "locale": f"{locale.setlocale(locale.LC_CTYPE)}, file names in {sys.getfilesystemencoding()}",
        "stdout": f"{sys.stdout.encoding}, {'a terminal' if sys.stdout.isatty() else 'no terminal'}",
    }


def _driver() -> str | None:
    try:
        first, *_ = (runtime.DRIVER / "version").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    found = re.search(r"\d+(\.\d+)+", first)
    return found[0] if found else first


def _packages() -> Facts:
    """The versions of what mrt5cli always needs."""
    from importlib import metadata

    try:
        needed = [line for line in metadata.requires("mrt5cli") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return {"mrt5cli": "not installed, it runs from its folder"}
    return {name: _version(name) for name in map(_name, needed)}


def _extras() -> Facts:
    """Of every extra the versions of its packages, or how to install them."""
    found: Facts = {}
    for extra, packages in extras.extras().items():
        versions = {name: _version(name) for name in map(_name, packages) if name != "mrt5cli"}
        whole = None not in versions.values()
        told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        found[extra] = told if whole else f"not installed: {extras.how_to_install(extra)}"
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

    folders = {"models of the Hub": constants.HF_HUB_CACHE, "Hugging Face": constants.HF_HOME}
    return {
        name: f"{_shown(folder)}, {'there' if Path(folder).is_dir() else 'not there'}"
        for name, folder in folders.items()
    }


def _shown(text: str | Path) -> str:
    """A value that may be made public: without the name of who is at home here, and without passwords."""
    home = os.path.expanduser("~")
    return LOOKS_SECRET.sub(HIDDEN, str(text).replace(home, "~") if len(home) > 1 else str(text))


# --- what only torch knows ----------------------------------------------------------------------------------


def _of_libraries() -> dict[str, Facts]:
    """What torch and the code above it say, asked in a process of its own: a broken torch may end that."""
    titles = ("torch", "fast paths")
    code = f"from {__name__} import _tell; _tell()"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
        lines, told, code_ = asked.stdout.splitlines(), asked.stderr, asked.returncode
    except subprocess.TimeoutExpired as late:
        lines, told, code_ = (late.stdout or b"").decode().splitlines(), f"no answer in {PATIENCE} s", 1
    found = {title: json.loads(line) for title, line in zip(titles, lines, strict=False)}
    if code_:
        ended = signal.Signals(-code_).name if code_ < 0 else None
        why = f"ended by {ended}" if ended else (told.strip().splitlines() or ["it ended without a word"])[-1]
        found[titles[len(found)]] = {"broken": _shown(why)}
    return found


def _tell() -> None:
    """Print what torch says and what serves our models, a line of JSON each, as soon as it is known."""
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
    """What serves a model of ByT5-small's shape here."""
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
        "run, once they have checked their numbers" if hindered is None else f"no: {hindered}",
    )
    if hindered is not None:
        chosen = choose(config, device, torch.float32, drops=True, score_per=None, trains=True)
        yield "attention", str(chosen)
    states, weight = torch.zeros(2, config.d_model), torch.zeros(config.d_ff, config.d_model)
    yield (
        "products on the CPU",
        "oneDNN, where they are wide" if suits_onednn(states, weight) else "PyTorch's",
    )
