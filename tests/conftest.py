"""Shared by all tests: where the golden material is and how a case of it is read."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

# Nothing in the test suite may reach for the Hub, whatever the machine's own settings are.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when torch is imported: threads that spin while they wait slow a busy machine down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read when triton is imported, which transformers does: without a GPU our kernels run in its interpreter.
if importlib.util.find_spec("triton") is not None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["hub_server"]

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference material, see its README."""
    return GOLDEN


def golden_cases(*groups: str) -> list[Any]:
    """One pytest parameter for each case of the groups: the path of its JSON file."""
    return [
        pytest.param(path, id=f"{group}-{path.stem}")
        for group in groups
        for path in sorted((GOLDEN / "cases" / group).glob("*.json"))
    ]


def read_case(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case's description and its tensors."""
    from safetensors.torch import load_file

    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
