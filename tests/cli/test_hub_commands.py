"""Every command that takes a Hub id, with models as they lie on the Hub: what is said, and what is kept."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from typing import Any

import hubsim
import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from tiny_runs import SPANS, make_run
from transformers import AutoTokenizer
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.rundir import RunDir

BYT5 = "google/byt5-small"
NOTE = f"note: {BYT5}: weights read from a pickle; no code in it was run"
SMALL = [
    *("--set", "task.source={kind: embedded}", "--set", "task.input_length=64"),
    *("--set", "training.max_steps=1", "--set", "training.batch_size=2"),
    *("--set", "training.device_batch_size=2", "--device", "cpu"),
]


def mrt5(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def byt5(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub with google/byt5-small at two revisions, and a working directory of its own."""

    def with_refs(folder: Path) -> None:
        hubsim.make_byt5(folder)
        (folder / ".sim.json").write_text(json.dumps({"refs": {"v0": "google/byt5-before"}}))

    if not (hub.root / "models/google/byt5-before").exists():
        hub.add("models/google/byt5-before", partial(hubsim.make_byt5, seed=1))
        hub.add("models/some/byt5", with_refs)
    hub.provide(f"models/{BYT5}")
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def exported(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub with an MrT5 that `mrt5 convert --to hub` made."""
    run = make_run(tmp_path, "tiny", task=SPANS)
    hub.add("models/me/tiny", lambda folder: convert(str(run), folder, ConversionOptions("hub")))
    monkeypatch.chdir(tmp_path)
    return hub


def test_the_classic_run_starts_from_the_hub(byt5: HubServer) -> None:
    result = mrt5("pretrain", "pctrl40", *SMALL)
    assert result.stderr.count(NOTE) == 1
    commit = byt5.commit(f"models/{BYT5}")
    assert f"from {BYT5} at {commit[:12]}" in result.stderr
    run = RunDir(Path("runs/pctrl40-seed28"))
    assert run.meta()["hub_commits"] == {BYT5: commit}
    assert run.recipe().model.revision is None

    byt5.clear()
    again = mrt5("pretrain", "pctrl40", *SMALL, "--resume")
    assert "is finished" in again.stderr and not byt5.requests()


def test_a_dry_run_and_a_smoke_run(byt5: HubServer) -> None:
    planned = mrt5("pretrain", "pctrl40", *SMALL, "--dry-run", "--json")
    assert f"from {BYT5} at" in json.loads(planned.stdout)["model"]
    byt5.clear()
    mrt5("recipe", "check", "pctrl40")
    mrt5("finetune", "xnli_v3/byt5", "--from", "nobody/nothing", "--smoke", "--dry-run")
    assert not byt5.requests(), "neither needs the Hub"


def test_a_revision_of_what_is_trained(byt5: HubServer) -> None:
    before = byt5.commit("models/google/byt5-before")
    for words in (["--revision", "v0"], ["--set", "model.revision=v0"]):
        start = ["--set", "model.start=some/byt5", *words]
        planned = json.loads(mrt5("pretrain", "pctrl40", *SMALL, *start, "--dry-run", "--json").stdout)
        assert planned["recipe"]["model"]["revision"] == "v0"
        assert f"from some/byt5 at {before[:12]}" in planned["model"]
    generated = ["--set", "task.source={kind: generated}", "--set", "task.input_length=64", "--device", "cpu"]
    tune = ["finetune", "xnli_v3/byt5", "--from", "some/byt5", *generated, "--dry-run", "--json"]
    planned = json.loads(mrt5(*tune, "--revision", "v0").stdout)
    assert f"from some/byt5 at {before[:12]}" in planned["model"]
    assert json.loads(mrt5(*tune).stdout)["recipe"]["model"]["revision"] is None
    refused = mrt5(*tune, "--set", "model.revision=v0", code=2).stderr
    assert "model.revision  set twice" in refused
    twice = mrt5("pretrain", "pctrl40", "--revision", "v0", "--set", "model.revision=v0", code=2).stderr
    assert "model.revision  set twice" in twice


def test_no_pickle_on_every_command(byt5: HubServer) -> None:
    for words in (
        ["pretrain", "pctrl40", *SMALL],
        ["evaluate", BYT5, "--task", "copy"],
        ["inspect-deletions", BYT5, "--text", "a"],
        ["convert", BYT5, "out", "--to", "mrt5"],
        ["bench", BYT5, "--rounds", "1"],
    ):
        refused = mrt5(*words, "--no-pickle", code=2).stderr
        assert f"{BYT5} has its weights in pickles only, which --no-pickle" in refused, words
    assert not byt5.requests("pytorch_model.bin") and not Path("out").exists()


def test_evaluate_and_inspect_find_the_recipe_of_an_export(exported: HubServer) -> None:
    result = mrt5("evaluate", "me/tiny", "--limit", "2", "--device", "cpu", "--json")
    (model,) = json.loads(result.stdout)["models"]
    commit = exported.commit("models/me/tiny")
    assert (model["name"], model["source"], model["commit"]) == ("me/tiny", "me/tiny", commit)
    assert json.loads(result.stdout)["task"]["settings"]["input_length"] == SPANS["input_length"]
    assert "note:" not in result.stderr
    shown = mrt5("inspect-deletions", "me/tiny", "--limit", "1", "--device", "cpu", "--revision", commit)
    assert "me/tiny" in shown.stdout


def test_a_model_without_a_recipe_says_so(byt5: HubServer) -> None:
    assert f"{BYT5} has no recipe, so its task is unknown" in mrt5("evaluate", BYT5, code=2).stderr
    result = mrt5("evaluate", BYT5, "--task", "copy", "--limit", "2", "--device", "cpu", "--json")
    assert result.stderr.count(NOTE) == 1
    gone = mrt5("evaluate", BYT5, "--revision", "v9", "--task", "copy", code=2).stderr
    assert f"{BYT5} has no revision 'v9'" in gone


def test_convert_checks_its_destination_before_it_downloads(byt5: HubServer) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("x")
    assert "exists already" in mrt5("convert", BYT5, "full", "--to", "mrt5", code=2).stderr
    assert not byt5.requests()
    told = mrt5("convert", BYT5, "out", "--to", "mrt5", "--revision", "main", "--json")
    assert json.loads(told.stdout)["commit"] == byt5.commit(f"models/{BYT5}")


@pytest.mark.slow
def test_a_download_shows_bars_on_a_terminal_only(byt5: HubServer, tmp_path: Path) -> None:
    """In processes of their own, which read HF_ENDPOINT and HF_HOME as users set them."""
    words = [sys.executable, "-m", "mrt5cli", "convert", BYT5, "out", "--to", "mrt5"]
    environment = byt5.environment(TERM="xterm")
    byt5.fault("GET /api/models", "status", code=429, times=2)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stderr.splitlines() == [
        f"note: waiting for the Hub ({BYT5}): it responds with status 429 (simulated 429); "
        "giving up after 10 s",
        f"note: the Hub responds again after 3 s ({BYT5})",
        NOTE,
    ]
    assert "(ByT5 or T5 v1.1) -> out" in done.stdout

    words[4] = "google/byt5-before"
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 100))
    process = subprocess.Popen(
        [*words, "--overwrite"], stdout=subprocess.DEVNULL, stderr=side, env=environment, cwd=tmp_path
    )
    os.close(side)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert process.wait() == 0, shown
    assert b"pytorch_model.bin: 100%" in shown


def test_generate_takes_a_hub_id(byt5: HubServer) -> None:
    how = ["generate", BYT5, "--text", "abc", "--max-new-tokens", 3, "--device", "cpu"]
    result = mrt5(*how)

    assert result.stderr.count(NOTE) == 1
    assert mrt5(*how, "--revision", byt5.commit(f"models/{BYT5}")).stdout == result.stdout
    assert "pickle" in mrt5(*how, "--no-pickle", code=2).stderr


def test_generate_reads_the_recipe_beside_a_model(exported: HubServer) -> None:
    text = "ab" * 99
    (row,) = mrt5(
        "generate", "me/tiny", "--text", text, "--format", "jsonl", "--device", "cpu"
    ).stdout.splitlines()

    assert json.loads(row)["truncated"], "its task reads 64 byte tokens"


# --- what is pushed -----------------------------------------------------------------------------------------


@pytest.fixture
def mine(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub of a logged-in user without repositories; `tiny-seed3` is a run."""
    monkeypatch.setenv("HF_TOKEN", hubsim.TOKEN)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, "tiny", task=SPANS)
    shutil.rmtree(hub.root / "models/me/pushed", ignore_errors=True)
    hub.refresh()
    return hub


OPENED_BY_ID = r"""
import sys

class NoToolkit:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mrt5cli":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoToolkit())
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("me/pushed", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained("me/pushed", trust_remote_code=True).eval()
inputs = tokenizer(["some text", "and more of it"], padding=True, return_tensors="pt")
print(type(model).__module__)
print(model.generate(**inputs, max_new_tokens=5).tolist())
"""


@pytest.mark.slow
def test_a_push_opens_and_evaluates_by_its_id_alone(mine: HubServer, tmp_path: Path) -> None:
    run = json.loads(mrt5("evaluate", "tiny-seed3", "--device", "cpu", "--json").stdout)
    pushed = mrt5("convert", "tiny-seed3", "out", "--to", "hub", "--push", "me/pushed", "--license", "mit")
    assert "note:" not in pushed.stdout

    found = json.loads(mrt5("evaluate", "me/pushed", "--device", "cpu", "--json").stdout)
    assert found["models"][0]["rows"] == run["models"][0]["rows"]
    assert found["task"] == run["task"] and found["deletion"] == run["deletion"] == "hard"
    assert found["models"][0]["commit"] is not None

    card = ModelCard.load("me/pushed")
    told = {one.metric_type: one.metric_value for one in card.data.eval_results}
    row = run["models"][0]["rows"][0]
    for name in ("deletion_rate", "loss", "bits_per_byte", "token_accuracy"):
        assert told[name] == pytest.approx(row[name], abs=1e-4), name

    words = [sys.executable, "-I", "-c", OPENED_BY_ID]
    done = subprocess.run(
        words, capture_output=True, text=True, env=mine.environment(), cwd=tmp_path, check=True
    )
    module, ids = done.stdout.splitlines()[-2:]
    assert module.startswith("transformers_modules.me.pushed")
    from mrt5cli.models import load

    model = load("tiny-seed3")
    inputs = AutoTokenizer.from_pretrained("out")(
        ["some text", "and more of it"], padding=True, return_tensors="pt"
    )
    assert json.loads(ids) == model.generate(**inputs, max_new_tokens=5, hard_delete=True).tolist()


def test_a_second_push_keeps_the_licence_and_says_what_it_replaces(mine: HubServer) -> None:
    push = ["convert", "tiny-seed3", "out", "--to", "hub", "--push", "me/pushed", "--overwrite"]
    first = mrt5(*push, "--license", "my-lab-1", "--license-link", "LICENSE")
    assert "note:" not in first.stdout
    shutil.rmtree("out")
    before = mine.requests("commit/main")

    again = mrt5(*push)
    assert "note: the license, my-lab-1, is taken from the card in me/pushed" in again.stdout
    assert "note: README.md of me/pushed is replaced; the old one stays in" in again.stdout
    assert len(mine.requests("commit/main")) == 2 * len(before) > 0
    metadata = ModelCard.load("me/pushed").data
    assert (metadata.license, metadata.license_name) == ("other", "my-lab-1")
    assert metadata.license_link == "LICENSE"

    other = mrt5(*push, "--license", "mit")
    assert "the license" not in other.stdout
    metadata = ModelCard.load("me/pushed").data
    assert (metadata.license, metadata.license_name) == ("mit", None)


@pytest.mark.parametrize("written", ["---\nlicense: [\n---\n", "no metadata at all", "\x00\xff"])
def test_a_card_that_cannot_be_read_keeps_no_push(written: str, mine: HubServer) -> None:
    mine.add("models/me/pushed", lambda folder: (folder / "README.md").write_text(written, "latin-1"))
    pushed = mrt5("convert", "tiny-seed3", "out", "--to", "hub", "--push", "me/pushed")
    assert "the license" not in pushed.stdout and "README.md of me/pushed is replaced" in pushed.stdout
    assert "license" not in ModelCard.load("me/pushed").data.to_dict()


def test_a_card_that_the_hub_refuses_is_one_sentence(mine: HubServer) -> None:
    mine.add(
        "models/me/pushed", lambda folder: (folder / "README.md").write_text("---\nlicense: refuse-me\n---\n")
    )
    refused = mrt5("convert", "tiny-seed3", "out", "--to", "hub", "--push", "me/pushed", code=2).stderr
    assert "the Hub rejects README.md of out" in " ".join(refused.split())
    assert '"license" must be one of [apache-2.0, mit, ...]' in " ".join(refused.split())
