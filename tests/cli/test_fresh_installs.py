"""What a user installs: the sdist, the wheel built from it, and that wheel in a fresh environment per Python.

Slow, and needs a package index. torch is installed only where that brings no CUDA packages; elsewhere
only the commands that need none are run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
HEAVY = re.compile(r"nvidia|cuda|triton", re.IGNORECASE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("setuptools_scm") is None, reason="it names the wheel"),
]


def run(*command: str | Path, cwd: Path | None = None, code: int = 0) -> str:
    """The stdout of a command, in an environment without this one's packages."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, env=clean, timeout=900
    )
    assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def interpreter(version: str) -> Path | None:
    """A Python of a version: this one, one on the path, or one of pyenv's."""
    if sys.version.startswith(f"{version}."):
        return Path(sys.executable)
    if (found := shutil.which(f"python{version}")) and "shims" not in found:
        return Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return max(pyenv.glob(f"versions/{version}.*/bin/python"), default=None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of this checkout's commit, and a wheel built from that sdist, without git."""
    folder = tmp_path_factory.mktemp("built")
    run("git", "clone", "--quiet", ROOT, folder / "checkout")
    build = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=folder / "checkout")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, next((folder / "sdist").iterdir()))
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_and_its_wheel_have_the_commits_version_and_all_metadata(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    version = sdist.name.removeprefix("mrt5cli-").removesuffix(".tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(f"mrt5cli-{version}.dist-info/METADATA").decode()
    facts = Parser().parsestr(text)
    commit = run("git", "-C", ROOT, "rev-parse", "--short=9", "HEAD").strip()
    assert facts["Version"] == version and (f"+g{commit[:7]}" in version or "dev" not in version)
    assert facts["License-Expression"] == "Apache-2.0" and facts["Keywords"]
    assert "Typing :: Typed" in facts.get_all("Classifier")
    package = {name.removeprefix("mrt5cli/") for name in names if name.startswith("mrt5cli/")}
    assert package >= {"py.typed", "CITATION.cff", "CHANGELOG.md", "models/README.md", "recipes/README.md"}
    assert package >= {"pictures/training.svg", "report/pictures/heatmap.png", "recipes/quickstart.yaml"}
    assert [name for name in names if "tests/" in name or name.endswith(".pyc")] == []


def brought(pip: Path, *words: str) -> list[str]:
    """The packages that an installation would bring."""
    report = run(pip, "install", "--dry-run", "--quiet", "--report", "-", *words)
    return [one["metadata"]["name"] for one in json.loads(report)["install"]]


@pytest.mark.network
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_in_a_fresh_environment(
    version: str, built: tuple[Path, Path], tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    sdist, wheel = built
    source = sdist.parent / "checkout"
    run(python, "-m", "venv", tmp_path / "venv")
    programs = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = programs / "pip"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    light = [
        need for need in needs if "extra ==" not in need and not need.startswith(("torch", "accelerate"))
    ]
    lock = (source / ".requirements.lock").read_text(encoding="utf-8")
    torch = re.search(r"^torch==.*", lock, re.MULTILINE)[0]
    has_torch = not any(map(HEAVY.match, brought(pip, torch)))
    if has_torch:
        run(pip, "install", "--quiet", torch)
    assert not any(map(HEAVY.match, brought(pip, *light)))
    run(pip, "install", "--quiet", *light)
    run(pip, "install", "--quiet", "--no-deps", "accelerate")
    run(pip, "install", "--quiet", "--no-deps", wheel)

    mrt5 = programs / "mrt5"
    assert run(mrt5, "--version") == f"mrt5 {wheel.name.split('-')[1]}\n"
    assert "Fine-tune an existing model" in run(mrt5, "--help")
    assert "quickstart" in run(mrt5, "recipe", "list")
    assert "0 problems" in run(mrt5, "recipe", "check", "quickstart", "--no-build")
    topics = run(mrt5, "docs")
    assert all(f"  {topic} " in topics for topic in ("readme", "house", "models", "recipes", "changelog"))
    assert run(mrt5, "docs", "models") == (source / "mrt5cli/models/README.md").read_text(encoding="utf-8")
    assert run(mrt5, "docs", "readme") == (source / "README.md").read_text(encoding="utf-8")
    assert Path(run(mrt5, "docs", "house", "--path").strip()).is_relative_to(tmp_path / "venv")
    if not has_torch:
        pytest.skip(f"all that needs no torch works; {torch} would bring CUDA packages on Python {version}")
    assert run(pip, "check")
    run(mrt5, "pretrain", "local_text", "--smoke", "--out", tmp_path / "run")
    meta = json.loads((tmp_path / "run/meta.json").read_text(encoding="utf-8"))
    assert meta["status"] == "finished" and meta["versions"]["mrt5cli"] == wheel.name.split("-")[1]
    assert "loss" in run(mrt5, "evaluate", tmp_path / "run", "--limit", "4")
