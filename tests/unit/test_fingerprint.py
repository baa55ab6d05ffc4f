"""The version of the code that decides numbers: what changes it, and what must not."""

from __future__ import annotations

import ast
import shutil
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_house import imported

import mrt5cli
from mrt5cli import recipe as recipes
from mrt5cli.fingerprint import (
    DECIDES,
    LEFT_OUT,
    SHARED,
    VALIDATION,
    code_version,
    recipe_hash,
    source_hash,
)

PACKAGE = Path(mrt5cli.__file__).parent


FILES = {
    "models/mrt5.py": {"train", "evaluate", "analyse"},
    "templates.py": {"train", "evaluate", "analyse"},  # what a model is given to read
    "data/span_noise.py": {"train", "evaluate", "analyse"},
    "recipe/shorteners/delete_gate.py": {"train", "evaluate", "analyse"},  # settings become a configuration
    "metrics/catalog.py": {"train", "evaluate", "analyse"},  # which direction of a metric is better
    "training/losses.py": {"train"},
    "training/choose.py": {"train"},  # how a step is divided into batches
    "evaluation/counting.py": {"train", "evaluate", "analyse"},  # validation chooses the best weights
    "generation/calibration.py": {"evaluate", "analyse"},  # another threshold for a model that is trained
    "evaluation/compare.py": {"evaluate", "analyse"},
    "analysis/deletions.py": {"analyse"},
    "data/builders/spelling.py": set(),
    "training/progress.py": set(),
    "commands/evaluate.py": set(),
    "recipe/schema.py": set(),  # recipes are compared key by key
}
"""Some files of the package, and the kinds of work whose numbers they decide."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of some of the package's sources, to change."""
    for name in [*FILES, "training/controller.py", "training/validation.py", "evaluation/evaluate.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, tmp_path / name)
    return tmp_path


def hashes(package: Path) -> dict[str, str]:
    return {work: source_hash(work, package) for work in DECIDES}


def test_the_version_is_that_of_the_sources() -> None:
    for work in DECIDES:
        assert code_version(work) == source_hash(work, PACKAGE)  # the version changes with every commit
    assert len(set(hashes(PACKAGE).values())) == len(DECIDES)


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = hashes(package)
    path = package / "training" / "controller.py"
    text = path.read_text()
    first = text.index('"""')
    path.write_text(f'"""Other words."""\n# a remark\n\n\n{text[text.index(chr(34) * 3, first + 3) + 3 :]}')
    assert path.read_text() != text
    assert hashes(package) == before


@pytest.mark.parametrize("file, works", FILES.items())
def test_what_a_file_decides(package: Path, file: str, works: set[str]) -> None:
    before = hashes(package)
    path = package / file
    path.write_text(path.read_text() + "\nADDED = 1\n")
    after = hashes(package)
    assert {work for work in DECIDES if before[work] != after[work]} == works


def test_a_new_file_and_a_renamed_one_count(package: Path) -> None:
    before = hashes(package)
    (package / "models" / "new.py").write_text("x = 1\n")
    added = hashes(package)
    (package / "models" / "new.py").rename(package / "models" / "newer.py")
    assert len({before["train"], added["train"], hashes(package)["train"]}) == 3


@given(st.integers(), st.integers())
def test_values_count(one: int, other: int) -> None:
    found = []
    for value in (one, other):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "runtime.py").write_text(f"x = [{value}, 'a']  # {one}")
            found.append(source_hash("train", Path(folder)))
    assert (found[0] == found[1]) == (one == other)


def test_every_pattern_is_of_something() -> None:
    for pattern in (*SHARED, *chain(*DECIDES.values())):
        assert any(PACKAGE.glob(pattern)), pattern


def test_files_that_are_left_out_are_among_the_others() -> None:
    named = {name for pattern in (*SHARED, *chain(*DECIDES.values())) for name in PACKAGE.glob(pattern)}
    assert {PACKAGE / name for name in LEFT_OUT} <= named


def test_a_run_depends_on_the_evaluation_code_that_training_imports() -> None:
    found: set[str] = set()
    waiting = sorted((PACKAGE / "training").glob("*.py"))
    while waiting:
        for module in imported(ast.parse(waiting.pop().read_text())):
            file = f"{module.removeprefix('mrt5cli.').replace('.', '/')}.py"
            if file.startswith(("evaluation/", "generation/")) and file not in found:
                found.add(file)
                waiting.append(PACKAGE / file)
    assert found == set(VALIDATION)


def test_a_recipes_hash_is_of_what_it_says_about_the_run() -> None:
    recipe = recipes.load("quickstart_byt5")
    assert recipe_hash(recipe.model_copy(update={"description": "other words"})) == recipe_hash(recipe)
    assert recipe_hash(recipe.model_copy(update={"seed": 7})) != recipe_hash(recipe)
