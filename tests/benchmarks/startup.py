"""How long a user waits: for help, and from the command to the first training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from mrt5cli.benchmark.models import base_model
from mrt5cli.benchmark.suite import Case, Suite
from mrt5cli.errors import RunFailed

HELP, FIRST_STEP = "mrt5 --help", "command to first training step"
PATIENCE = 300.0
"""Seconds after which a command is given up."""
RECIPE = {
    "name": "first-step",
    "description": "one step of a tiny model that is on disk",
    "task": {"kind": "vowel_removal", "length": 32, "train_examples": 64, "eval_examples": 16},
    "controller": {"kind": "constant"},
    "training": {"max_steps": 1000, "batch_size": 4, "device_batch_size": 4, "logging_steps": 1},
}


def startup(folder: Path, threads: int) -> Suite:
    """The commands in processes of their own, and what of it is Python and its libraries.

    Args:
        folder: for the model, its recipe and the runs.
        threads: of the training.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base_model(None, "tiny").save_pretrained(folder / "model")
    model = {"start": str(folder / "model"), "shortener": {"kind": "delete_gate", "layer": 3}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**RECIPE, "model": model}), encoding="utf-8")  # JSON is YAML
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def python(*words: str) -> Callable[[], None]:
        def call() -> None:
            done = subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
            if done.returncode:
                raise RunFailed(f"python {' '.join(words)}: {done.stderr.strip()[-500:]}")

        return call

    def first_step() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            run = Path(out) / "run"
            words = ["-m", "mrt5cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu"]
            _until_written(run / "metrics.jsonl", [sys.executable, *words], environment)

    libraries = (
        "import torch; from transformers.models.t5 import modeling_t5; from transformers import Trainer"
    )
    return Suite(
        "startup",
        {
            "python alone": Case(python("-c", "pass")),
            HELP: Case(python("-m", "mrt5cli", "--help")),
            "import of torch and transformers": Case(python("-c", libraries)),
            FIRST_STEP: Case(first_step),
        },
    )


def _until_written(path: Path, command: list[str], environment: dict[str, str]) -> None:
    """Run a command until it wrote a line to a file, and end it there."""
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, env=environment, stdout=messages, stderr=messages)
        try:
            begun = time.monotonic()
            while not (path.is_file() and path.stat().st_size):
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    messages.seek(0)
                    said: Any = messages.read().decode(errors="replace").strip()[-500:]
                    raise RunFailed(f"{' '.join(command)} made no step: {said}")
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
