"""`mrt5 convert` as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from tiny_runs import make_run
from typer.testing import CliRunner

from mrt5cli.cli import app


def invoke(*words: object):
    return CliRunner().invoke(app, ["convert", *map(str, words)])


@pytest.mark.parametrize("layout", ["byt5", "hub"])
@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "models").iterdir()))
def test_every_golden_model_in_another_layout(name: str, layout: str, tmp_path: Path):
    result = invoke(GOLDEN / "models" / name, tmp_path / "out", "--to", layout, "--json")
    if layout == "byt5" and name.endswith("_abs"):
        assert result.exit_code == 2
        assert "learned positions" in result.stderr
        assert not (tmp_path / "out").exists()
        return
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["layout"] == layout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == document["files"]


def test_a_run_to_the_hub_layout_and_back_into_evaluate(tmp_path: Path):
    run = make_run(tmp_path, "run")
    result = invoke(run, tmp_path / "out", "--to", "hub")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    again = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), "--limit", "4", "--device", "cpu"])
    assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path):
    words = [sys.executable, "-m", "mrt5cli", "convert", str(GOLDEN / "models/canine"), "out", "--to", "mrt5"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.endswith("canine (the authors' CanineT5) -> out: this toolkit's layout")
    model = "3 + 1 layers, convolution with stride 4 before encoder block 1"
    assert second == f"{model}; 73,376 weights, float32"


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere/at/all", "out", "--to", "mrt5"], "does not exist"),
        (
            ["nobody/nothing", "out", "--to", "mrt5"],
            "is neither a directory here nor available from the Hugging Face Hub",
        ),
        (
            [GOLDEN / "models/t5", "out", "--to", "mrt5", "--push", "me/mine"],
            "--push uploads the output of --to hub",
        ),
        ([GOLDEN / "models/t5", "out", "--to", "hub", "--push", "mine"], "not a valid Hub id"),
        (
            [GOLDEN / "models/t5", "out", "--to", "hub", "--private"],
            "--private needs --push",
        ),
        (
            [GOLDEN / "models/t5", "out", "--to", "mrt5", "--license", "mit"],
            "--license is for the model card, which only --to hub writes",
        ),
        (
            [GOLDEN / "models/t5", "out", "--to", "hub", "--license", "apache"],
            "--license apache is not a license identifier of the Hub; did you mean apache-2.0?",
        ),
        (
            [GOLDEN / "models/t5", "out", "--to", "hub", "--license-link", "LICENSE"],
            "--license-link needs the name of the license",
        ),
        (
            [GOLDEN / "models/t5", "out", "--to", "mrt5", "--layer", "9"],
            "models/t5 has 4 encoder blocks hint: use a layer from 0 to 3",
        ),
        ([GOLDEN / "models/t5", "out", "--to", "mrt5", "--layer", "9"], "error: layer 9 (of --layer or"),
        ([GOLDEN / "models/t5", "out", "--to", "mrt5", "--max-shard-size", "much"], "is not a size"),
        (
            [GOLDEN / "models/t5", "out", "--to", "mrt5", "--recipe", "pctrl40", "--layer", "1"],
            "already defines the gate",
        ),
        ([GOLDEN / "models/mrt5_g1", "out", "--to", "mrt5", "--gate", "log_sigmoid"], "already has a"),
        ([GOLDEN / "models", "out", "--to", "mrt5"], "neither a run"),
        (
            [GOLDEN / "models/t5", "out", "--dtype", "float16"],
            "'float16' is not one of 'float32', 'bfloat16'",
        ),
    ],
)
def test_wrong_words(words: list, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_gate_from_a_recipe(tmp_path: Path):
    result = invoke(GOLDEN / "models/t5", tmp_path / "out", "--to", "mrt5", "--recipe", "pctrl40", "--json")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["deletion_type"], config["delete_gate_layer"], config["use_softmax1"]) == (
        "scaled_sigmoid",
        3,
        True,
    )
    assert len(json.loads(result.stdout)["fresh"]) == 4  # v1 normalises with a bias
