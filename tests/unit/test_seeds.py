"""Where tests get their numbers from: the same each time, others with a seed, and `make fuzz` says which."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
DRAWING = """
import pathlib, random, sys
import hypothesis, numpy
from hypothesis import strategies as st

DRAWN = pathlib.Path(__file__).with_name("drawn")

def note(*numbers):
    with DRAWN.open("a") as file:
        print(*numbers, file=file)

@hypothesis.given(st.integers())
def test_small(number):
    note("example", number)
    assert number < 10_000

def test_by_chance(chance):
    note("chance", chance.random())

def test_by_global_generators():
    note("global", random.random(), numpy.random.rand())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawing")
    for name in ("conftest.py", "hub_server.py", "hubsim.py"):
        shutil.copy(TESTS / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    drawn\n    slow\n    gpu\n    network\n")
    (folder / "test_drawing.py").write_text(DRAWING)
    return folder


def run(folder: Path, *words: str, seed: str | None = None, ci: bool = True) -> tuple[str, str]:
    """What pytest printed, and what the tests drew, where hypothesis finds itself in a CI or not."""
    (folder / "drawn").unlink(missing_ok=True)
    environment = {
        key: text for key, text in os.environ.items() if not key.startswith(("MRT5_TEST", "PYTEST"))
    }
    environment.pop("CI", None)
    if ci:
        environment["CI"] = "true"
    if seed is not None:
        environment["MRT5_TEST_SEED"] = seed
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, (folder / "drawn").read_text()


def test_numbers_are_the_same_each_time_and_others_with_a_seed(folder: Path):
    told, first = run(folder, "-m", "pytest", "-q", ci=False)
    assert "make fuzz" in run(folder, "-m", "pytest")[0]
    assert (folder / "drawn").read_text() == first
    assert first.count("example") > 3 and "chance" in first and "global" in first

    fuzzed, drawn = run(folder, str(TESTS / "fuzz.py"), "--minutes", "0.4", "--seed", "5", "--processes", "0")
    for kind in ("example", "chance"):
        one, other = ({line for line in text.splitlines() if kind in line} for text in (first, drawn))
        assert one != other
    counts = re.search(r"fuzz: seed 5, 0.0 minutes: 2 tests, (\d+) examples drawn, 1 failure\n", fuzzed)
    assert counts, fuzzed
    assert 0 <= drawn.count("example") - int(counts[1]) <= 3, (
        "but for the ones that show the failure at the end"
    )
    assert "global" not in drawn  # it neither asks for `chance` nor is marked `drawn`
    repeat = re.search(r"to repeat: MRT5_TEST_SEED=5 (\S+) -m pytest (\S+)\n", fuzzed)
    assert repeat, fuzzed
    assert repeat[2] == "test_drawing.py::test_small"
    _, again = run(folder, "-m", "pytest", repeat[2], seed="5")
    assert again == "".join(line for line in drawn.splitlines(True) if "example" in line)
    assert "reproduce_failure" in told and "reproduce_failure" in fuzzed
