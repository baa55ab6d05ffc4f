"""text2text by a recipe and a TSV file: trained, resumed, evaluated, looked into, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hubsim
import pytest
import yaml
from hub_server import HubServer
from runs_of_commands import curve
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from mrt5cli.cli import app
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: around
description: Words are turned around
seed: 5
task:
  kind: text2text
  source: {kind: files, path: words.tsv, split: {validation: 0.1, test: 0.1}}
  input: "Turn around: {word}"
  target: "{turned}"
  input_length: 32
  target_length: 12
  metrics: [exact_match, sequence_accuracy]
model:
  start: scratch
  shape: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
  shortener: {kind: delete_gate, layer: 1, bias_init: 0.5}
training: {max_steps: 4, batch_size: 4, device_batch_size: 4, logging_steps: 1, save_steps: 2, eval_steps: 4}
evaluation: {examples: 6, batch_size: 4}
"""
ROWS = [f"word{number}é\té{number}drow" for number in range(90)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("words.tsv").write_text("\n".join(["word\tturned", *ROWS, ""]), encoding="utf-8")
    Path("around.yaml").write_text(RECIPE)
    return tmp_path


def mrt5(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*words, *([] if words[0] == "convert" else ["--device", "cpu"])])
    assert result.exit_code == code, result.output
    return result


def half_of(whole: RunDir, step: int) -> RunDir:
    """A run that was killed after a checkpoint."""
    half = RunDir(Path("half"))
    half.path.mkdir()
    for part in ("recipe.yaml", "metrics.jsonl"):
        shutil.copy(whole.path / part, half.path / part)
    shutil.copytree(whole.checkpoint(step), half.checkpoint(step))
    half.meta_path.write_text(json.dumps({**whole.meta(), "status": "running"}))
    return half


@pytest.mark.parametrize("mixed", [False, True], ids=["one", "mixture"])
def test_trained_resumed_evaluated_and_looked_into(here: Path, mixed: bool) -> None:
    if mixed:
        tree = yaml.safe_load(RECIPE)
        file = tree["task"].pop("source") | {"weight": 2}
        again = {**file, "weight": 1, "name": "back", "input": "Back: {turned}", "target": "{word}"}
        Path("around.yaml").write_text(json.dumps(tree | {"task": tree["task"] | {"sources": [file, again]}}))
    plan = mrt5("pretrain", "around.yaml", "--out", "whole").output
    assert "text2text, " + ("66.7 % words" if mixed else "rows of words.tsv") in plan
    assert "by a hash of their inputs" in plan and "Turn around: word" in plan
    whole = RunDir(Path("whole"))
    half = half_of(whole, 2)
    mrt5("pretrain", "around.yaml", "--out", "half", "--resume")
    assert curve(half) == curve(whole)
    weights = [load_file(run.model / "model.safetensors") for run in (whole, half)]
    assert all(weight.equal(weights[1][name]) for name, weight in weights[0].items())

    told = json.loads(mrt5("evaluate", "whole", "--json").stdout)
    rows = {row["subset"]: row for row in told["models"][0]["rows"]}
    assert set(rows) == ({"words", "back", "total"} if mixed else {"all"})
    assert all(0 <= row["exact_match"] <= 1 and row["examples"] >= 6 for row in rows.values())
    if mixed:
        return
    Path("test.csv").write_text("word,turned\nab,ba\n")
    told = json.loads(mrt5("evaluate", "whole", "--data", "test.csv", "--json").stdout)
    assert [row["examples"] for row in told["models"][0]["rows"]] == [1]
    assert "turned" not in mrt5("inspect-deletions", "whole", "--limit", "2").output
    mrt5("convert", "whole", "exported", "--to", "hub")
    card = Path("exported/README.md").read_text(encoding="utf-8")
    assert "local files, which are not part of this repository" in card and "words.tsv" not in card


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_divided_by_tokens_as_by_rows_and_resumed(here: Path, workers: int) -> None:
    long = [f"{'long ' * (number % 5)}{number}\t{number}" for number in range(40)]
    Path("words.tsv").write_text("\n".join(["word\tturned", *long, ""]))
    settings = ("model.dropout=0.0", "training.batch_size=8", "training.eval_steps=0")
    recipe = ["around.yaml", *(word for each in settings for word in ("--set", each))]
    mrt5("pretrain", *recipe, "--out", "rows")
    recipe += ["--set", f"training.data_workers={workers}"]
    told = mrt5("pretrain", *recipe, "--set", "training.batch_tokens=100", "--out", "whole").output
    assert "steps    4 of 8 examples, at most 100 byte tokens per forward pass; " in told
    rows, whole = curve(RunDir(Path("rows"))), RunDir(Path("whole"))
    for one, other in zip(rows, curve(whole), strict=True):
        known, found = ({k: v for k, v in line.items() if v is not None} for line in (one, other))
        assert known == pytest.approx(found, rel=1e-5), one["step"]
    half = half_of(whole, 2)
    mrt5("pretrain", "half/recipe.yaml", "--out", "half", "--resume")
    assert curve(half) == curve(whole)


def test_rows_of_the_hub_and_their_commit(here: Path, hub: HubServer) -> None:
    def make(folder: Path) -> None:
        (folder / "train.csv").write_text("\n".join(["word,turned", *ROWS, ""]).replace("\t", ","))
        hubsim.write_card(folder, {"default": {"train": "train.csv"}})

    hub.add("datasets/someone/words", make)
    tree = yaml.safe_load(RECIPE)
    tree["task"]["source"] = {"kind": "hub", "name": "someone/words", "split": {"test": 0.2}}
    Path("around.yaml").write_text(json.dumps(tree))
    plan = mrt5("pretrain", "around.yaml", "--out", "run", "--set", "training.eval_steps=0").output
    assert "text2text, someone/words from the Hub, " in plan and "a share of 20 %" in plan
    run = RunDir(Path("run"))
    assert run.meta()["data"] == {"someone/words": hub.commit("datasets/someone/words")}
    told = mrt5("pretrain", "around.yaml", "--smoke").output
    assert "generated rows" in told and "someone/words" not in told


def test_a_wrong_column_is_one_sentence(here: Path) -> None:
    told = mrt5("pretrain", "around.yaml", "--set", 'task.input="{wrd}"', code=2).output
    assert "error: words.tsv, line 1: no column 'wrd'; it has word, turned; did you mean 'word'?" in told
    told = mrt5("pretrain", "around.yaml", "--set", "task.input=word", code=2).output
    assert "task.input  uses no column; write one in braces" in told


def test_smoke_trains_on_the_real_rows(here: Path) -> None:
    told = mrt5("pretrain", "around.yaml", "--smoke").output
    assert "text2text, rows of words.tsv" in told and "Turn around: word" in told
