"""Broken files of every kind that is read: success, or a sentence; see `tests/broken.py`.

MRT5_TEST_EXAMPLES=5000 draws so many of each kind; `make fuzz` draws others every time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from broken import DATA, PACK, broken, broken_tree, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reproduction import FAMILY, experiment, leave_done

from mrt5cli import recipe
from mrt5cli.data.columns import column_of_texts
from mrt5cli.data.formats import DataFile
from mrt5cli.data.reading import usable_rows
from mrt5cli.generation.inputs import Prompt, Source
from mrt5cli.generation.outputs import left_off, note_of
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import RunDir
from mrt5cli.suite.planning import make_plan
from mrt5cli.templates import Template

EXAMPLES = int(os.environ.get("MRT5_TEST_EXAMPLES", "25"))
many = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32).map(random.Random)
FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.mark.parametrize("name", DATA)
@many
@given(chance=seeds)
def test_data(name: str, chance: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "broken-data"
    folder.mkdir(exist_ok=True)
    content = broken(DATA[name], chance)
    if chance.random() < 0.3:
        end = chance.choice(list(PACK))
        content = PACK[end](content)
        content, name = (broken(content, chance) if chance.random() < 0.5 else content), name + end
    file = folder / name
    file.write_bytes(content)
    read(lambda: list(usable_rows(DataFile.local(file), [column_of_texts("text")])), name)

    def generate() -> None:
        with Source(file, Prompt.of(Template.parse("{text}"))) as source:
            for one in source:
                assert one.problem is None or name in one.problem.message

    read(generate, name)
    file.unlink()


@many
@given(chance=seeds)
def test_recipes(chance: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "broken.yaml"
    source = chance.choice([path for path in shipped().values() if b"extends" not in path.read_bytes()])
    file.write_bytes(broken(source.read_bytes(), chance))
    read(lambda: recipe.load(file), file.name)


@many
@given(chance=seeds)
def test_overrides(chance: random.Random) -> None:
    key = chance.choice(["name", "seed", "task.length", "task", "training.max_steps", "model.start", "x.y"])
    value = broken(b"[a, {b: 1}]", chance).decode("utf-8", "replace")
    read(lambda: recipe.load("quickstart", [f"{key}={value}"]), "--set", "quickstart")


RESULTS = [json.loads(path.read_bytes()) for path in sorted(FIXTURES.glob("results_v1/*.json"))]


def _spoil(file: Path, tree: Any, chance: random.Random) -> None:
    """Write a file of JSON, broken as a value or as a text."""
    if chance.random() < 0.6:
        file.write_text(json.dumps(broken_tree(tree, chance)))
    else:
        file.write_bytes(broken(json.dumps(tree).encode(), chance))


@many
@given(chance=seeds)
def test_results(chance: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "broken.json"
    _spoil(file, chance.choice(RESULTS), chance)
    read(lambda: SavedEvaluation.read(file), file.name)


@many
@given(chance=seeds)
def test_state_of_a_run(chance: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDir(tmp_path_factory.getbasetemp() / "broken-run")
    run.path.mkdir(exist_ok=True)
    shutil.copy(shipped()["quickstart"], run.recipe_path)
    code = [{"path": "/nowhere/x.py", "sha256": "0"}] if chance.random() < 0.2 else []
    session = {"started": "2026-01-01T00:00:00+00:00", "ended": None, "status": "finished", "code": "x"}
    meta = {"status": "finished", "step": 3, "code": code, "sessions": [session], "ended": "2026-01-02"}
    _spoil(run.meta_path, meta | {"versions": {"torch": "2"}, "best": None, "processes": 1}, chance)
    lines = b"".join(b'{"step": %d, "loss": 1.0}\n' % step for step in range(9))
    run.metrics_path.write_bytes(broken(lines, chance))
    read(lambda: run.state(), "meta.json")
    read(lambda: run.metrics(), "metrics.jsonl")
    read(lambda: run.recipe(), "meta.json", "broken-run")


SUITE = experiment("small", "tiny/byt5", "tiny/mrt5", analyses=("compute",))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite that is done; one of its files is broken after the other."""
    root = tmp_path_factory.mktemp("suite")
    leave_done(make_plan("mine", (SUITE,), root, known=FAMILY))
    return root


@many
@given(chance=seeds)
def test_states_of_a_suite(suite: Path, chance: random.Random) -> None:
    file = chance.choice(sorted(suite.rglob("*.json")))
    whole = file.read_bytes()
    try:
        _spoil(file, json.loads(whole), chance)
        read(lambda: make_plan("mine", (SUITE,), suite, known=FAMILY), file.name, str(file.parent))
    finally:
        file.write_bytes(whole)


@many
@given(chance=seeds)
def test_where_generation_was_left(chance: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "broken.txt"
    file.write_bytes(b"a\n")
    done = {"inputs": 1, "outputs": 1, "bytes": 2, "bad": 0, "cut": 0}
    _spoil(note_of(file), {"done": done, "settings": {"seed": 1}}, chance)
    read(lambda: left_off(file, {"seed": 1}), file.name)


# --- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose files are broken one after the other."""
    folder = tmp_path_factory.mktemp("checkpoint") / "broken"
    shutil.copytree(golden_dir / "models" / "mrt5_g2", folder)
    return folder


@many
@given(chance=seeds)
def test_configurations(checkpoint: Path, chance: random.Random) -> None:
    from mrt5cli.models.checkpoint import read_config

    file = checkpoint / "config.json"
    whole = file.read_bytes()
    try:
        _spoil(file, json.loads(whole), chance)
        read(lambda: read_config(checkpoint), "broken")
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@settings(many, max_examples=max(EXAMPLES // 10, 4))
@given(chance=seeds)
def test_checkpoints(checkpoint: Path, name: str, chance: random.Random) -> None:
    from mrt5cli.models import load

    file = checkpoint / name
    whole = file.read_bytes()
    try:
        if file.suffix == ".json":
            _spoil(file, json.loads(whole), chance)
        else:  # its header, and where its numbers end
            head = int.from_bytes(whole[:8], "little") + 8
            file.write_bytes(broken(whole[:head], chance) + whole[head : chance.choice((None, -1, head))])
        read(lambda: load(checkpoint), "broken")
    finally:
        file.write_bytes(whole)


@many
@given(chance=seeds)
def test_indexes_of_weights(checkpoint: Path, chance: random.Random) -> None:
    from mrt5cli.models.weights import weight_names

    folder = checkpoint.parent / "broken-index"
    folder.mkdir(exist_ok=True)
    shutil.copy(checkpoint / "model.safetensors", folder / "a.safetensors")
    (checkpoint.parent / "outside.safetensors").write_bytes(b"")
    tree = {
        "metadata": {"total_size": 5},
        "weight_map": {"x": "a.safetensors", "y": "../outside.safetensors"},
    }
    if chance.random() < 0.5:
        tree["weight_map"]["y"] = "a.safetensors"
    _spoil(folder / "model.safetensors.index.json", tree, chance)
    read(lambda: weight_names(folder), "broken-index")
