"""How to install what only some commands need: hints name packages that an index has."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mrt5cli import extras

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", DECLARED)
def test_the_command_names_every_package_of_an_extra_and_never_our_own(extra: str) -> None:
    command = shlex.split(extras.how_to_install(extra))
    assert command[:2] == ["pip", "install"] and len(command) > 2
    assert not any(word.startswith("mrt5cli") for word in command)
    assert {package for package in DECLARED[extra] if "mrt5cli" not in package} <= set(command)


def test_an_extra_of_extras_has_their_packages() -> None:
    assert {*extras.packages("plots"), *extras.packages("onnx")} < set(extras.packages("dev"))


def test_several_extras_are_one_command() -> None:
    assert extras.how_to_install("plots", "slurm") == "pip install 'matplotlib>=3.8' 'submitit>=1.5.4,<2'"


def test_of_an_installed_wheel_its_metadata_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "mrt5cli" / "extras.py"))
    # As setuptools writes them.
    lines = ["numpy>=1.26", 'onnx>=1.23; extra == "onnx"', 'onnxruntime<3,>=1; extra == "onnx"']
    lines += ['ray[data]>=2.60; extra == "ray"', 'mrt5cli[onnx,ray]; extra == "dev"', "x ; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "mrt5cli" else None)
    assert extras.how_to_install("ray") == "pip install 'ray[data]>=2.60'"
    assert extras.packages("dev") == ["onnx>=1.23", "onnxruntime<3,>=1", "ray[data]>=2.60", "x"]


def test_no_file_tells_anybody_to_install_our_name_from_an_index() -> None:
    ours = re.compile(r"mrt5cli\[[a-z]|pip install [^\n`]*\bmrt5cli\b(?!-)")
    files = [path for folder in ("mrt5cli", "recipes") for path in (ROOT / folder).rglob("*")]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [ROOT / "README.md", *files]
        if path.suffix in {".py", ".md", ".yaml", ".j2", ".html"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if ours.search(line)
    ]
    assert found == []
