"""Runs on data of the Hub, against a stand-in: the paper's recipes at toy scale, and every kind of fault."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import hubsim
import pytest
from hub_server import HubServer, point_at
from runs_of_commands import MRT5, curve, start, wait_for
from typer.testing import CliRunner

from mrt5cli import hub as hub_module
from mrt5cli.cli import app
from mrt5cli.data import formats, reading, sources
from mrt5cli.data import hub_datasets as dataset_module
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")

C4, C4_COMMIT = "datasets/allenai/c4", hubsim.commit_of("datasets/allenai/c4")
# Recipes start from google/byt5-small, whose weights are a pickle; this is the same in safetensors.
START = "google/byt5-small"
SHAPE = "{d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}"
SMALL = {
    "model.start": "scratch",
    "model.shape": SHAPE,
    "model.shortener.layer": "1",
    "model.attention_dropout": "0",
    "task.input_length": "64",
    "training.max_steps": "10",
    "training.batch_size": "8",
    "training.device_batch_size": "4",
    "training.logging_steps": "1",
    "evaluation.examples": "8",
    "evaluation.batch_size": "4",
}
PLAIN = "owner/plain"


def mrt5(*words: str, **settings: str) -> Any:
    """The command in this process; keys of the recipe with "__" for dots."""
    sets = [
        word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")
    ]
    return CliRunner().invoke(app, [*words, *sets])


def sets(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def small(command: str, recipe: str, out: Path, *words: str, **changed: str) -> Any:
    settings = {key.replace(".", "__"): value for key, value in SMALL.items()} | changed
    return mrt5(command, recipe, "--out", str(out), "--device", "cpu", *words, **settings)


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has little held-out text, and pauses must not keep a test."""
    monkeypatch.setattr(sources, "ENGLISH_VALIDATION_EXAMPLES", 20)
    monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.05)


def corpus(hub: HubServer, name: str, *, wrong: dict[int, str] | None = None, cut: int | None = None) -> str:
    """A dataset of English; lines of its first file are others, or that is packed and its end cut off."""

    def make(folder: Path) -> None:
        draw = random.Random(1)
        lines = [json.dumps({"text": f"document {n} {draw.randbytes(80).hex()}"}) for n in range(60)]
        for file in ("more.jsonl", "held.jsonl"):
            (folder / file).write_text("\n".join(lines))
        for number, line in (wrong or {}).items():
            lines[number] = line
        text = "\n".join(lines).encode()
        if cut is None:
            (folder / "en.jsonl").write_bytes(text)
        else:
            (folder / "en.jsonl.gz").write_bytes(gzip.compress(text, mtime=0)[:-cut])
        hubsim.write_card(folder, {"en": {"train": "'[em]*.jsonl*'", "validation": "held.jsonl"}})

    hub.add(f"datasets/owner/{name}", make)
    return f"owner/{name}"


def on(name: str, **settings: str) -> dict[str, str]:
    source = {"name": name, "shuffle_shards": "false", **settings}
    return {f"task__source__{key}": value for key, value in source.items()}


def ask_often(patch: pytest.MonkeyPatch) -> None:
    """Have blocks so small that every step asks for some."""
    for module in (dataset_module, formats, reading):
        patch.setattr(module, "BLOCK_BYTES", 300)


@pytest.fixture
def many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_often(monkeypatch)


class Unbroken(NamedTuple):
    """`pretrain pctrl40` at toy scale on a plain corpus, with a Hub that is always available.

    `requests` for text are made until about half of the training is over.
    """

    run: RunDir
    requests: int


@pytest.fixture(scope="module")
def unbroken(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    corpus(hub_server, "plain")
    hub_server.clear()
    with pytest.MonkeyPatch.context() as patch:
        ask_often(patch)
        point_at(hub_server.endpoint, folder / "hf", patch)
        result = small("pretrain", "pctrl40", folder / "run", **on(PLAIN))
    assert result.exit_code == 0, result.output
    requests = len(hub_server.requests("en.jsonl"))
    assert requests > 12
    return Unbroken(RunDir(folder / "run"), requests // 2)


# --- the paper's recipes ------------------------------------------------------------------------------------


def test_pctrl40_from_start_to_evaluation(hub: HubServer, tmp_path: Path) -> None:
    hub.provide(C4, f"models/{START}")
    run = RunDir(tmp_path / "run")
    own = {
        "model.start": START,
        "task.input_length": "64",
        "training.max_steps": "2",
        "evaluation.examples": "8",
    }
    words = ["--device", "cpu", *sets({**own, "training.batch_size": "8", "training.device_batch_size": "4"})]
    result = mrt5("pretrain", "pctrl40", "--out", str(run.path), *words)
    assert result.exit_code == 0, result.output
    assert run.meta()["data"] == {"allenai/c4": C4_COMMIT}
    result = mrt5("evaluate", str(run.path), "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["task"]["commits"] == {"allenai/c4": C4_COMMIT}
    assert [row["subset"] for row in document["models"][0]["rows"]] == ["en"]
    assert any("en/c4-train" in line for line in hub.requests("206 GET"))
    assert any("en/c4-validation" in line for line in hub.requests("206 GET"))
    assert not [line for line in hub.requests("206 GET") if "multilingual" in line], "the cleaned English"


@pytest.mark.slow
def test_fifteen_languages_ask_for_listings_once(hub: HubServer, tmp_path: Path) -> None:
    hub.provide(C4)
    few = {"training__max_steps": "3", "training__batch_size": "32"}
    result = small("pretrain", "multilingual_v3/mrt5_50", tmp_path / "run", **few)
    assert result.exit_code == 0, result.output
    pages = hub.requests("/tree/")
    assert len(pages) == len(set(pages)) < 40, "ten thousands of names, each once"
    others = [line for line in hub.requests("allenai/c4") if "/tree/" not in line and "206 GET" not in line]
    assert len(others) <= 4, others
    read = {re.sub(r".*/(c4-[a-z]+)[.-].*", r"\1", line) for line in hub.requests("206 GET")}
    assert len(read) == 15
    assert "languages" in result.stderr and "Retrying" not in result.stderr


@pytest.mark.parametrize(
    ("recipe", "repositories", "tested"),
    [
        ("xnli_v3/mrt5_50", ["facebook/xnli"], "en,sw"),
        ("tydiqa_v3/mrt5_50", ["google-research-datasets/tydiqa"], "en,ru"),
        ("xquad/mrt5_50", ["rajpurkar/squad", "google/xquad"], "en,th"),
    ],
)
def test_downstream(
    hub: HubServer, unbroken: Unbroken, tmp_path: Path, recipe: str, repositories: list[str], tested: str
) -> None:
    hub.provide(*(f"datasets/{name}" for name in repositories))
    run = RunDir(tmp_path / "run")
    own = {key: value for key, value in SMALL.items() if key not in ("model.start", "model.shape")}
    own |= {"model.shortener.norm": "layer", "task.input_length": "64"}
    own |= {"training.max_steps": "2", "training.eval_steps": "2"}
    own |= {} if recipe.startswith("xnli") else {"task.answer_length": "6"}
    words = ["--from", str(unbroken.run.path), "--out", str(run.path), "--device", "cpu"]
    result = mrt5("finetune", recipe, *words, *sets(own))
    assert result.exit_code == 0, result.output
    assert run.meta()["data"] == {repositories[0]: hub.commit(f"datasets/{repositories[0]}")}
    assert "Generating" not in result.stderr and "examples/s" not in result.stderr
    words = ["--languages", tested, "--limit", "4", "--device", "cpu", "--json"]
    result = mrt5("evaluate", str(run.path), *words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["task"]["commits"][repositories[-1]] == hub.commit(f"datasets/{repositories[-1]}")
    rows = {row["subset"]: row["examples"] for row in document["models"][0]["rows"]}
    assert {name: rows[name] for name in tested.split(",")} == dict.fromkeys(tested.split(","), 4)


# --- in mid-stream ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(hub: HubServer, unbroken: Unbroken, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    settings = {key.replace("__", "."): value for key, value in on(PLAIN).items()}
    words = sets({**SMALL, **settings, "training.save_steps": "2"})
    command = (*MRT5, "pretrain", "pctrl40", "--out", str(run.path), *words)
    process = start(tmp_path, *command, environment=hub.environment())
    wait_for(lambda: len(run.metrics()) >= 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.meta()["status"] == "running" and run.saved_steps()
    result = small("pretrain", "pctrl40", run.path, "--resume", **on(PLAIN), training__save_steps="2")
    assert result.exit_code == 0, result.output
    assert curve(run) == curve(unbroken.run)


@pytest.mark.usefixtures("many_requests")
@pytest.mark.parametrize(
    ("workers", "fault"),
    [
        ("0", {"kind": "status", "code": 503, "times": 4}),
        pytest.param("1", {"kind": "reset", "times": 3}, marks=pytest.mark.slow),
        ("0", {"kind": "cut", "after": 300}),
    ],
    ids=["503", "reset", "cut"],
)
def test_what_passes_leaves_no_trace(
    hub: HubServer, unbroken: Unbroken, tmp_path: Path, workers: str, fault: dict[str, Any]
) -> None:
    hub.fault("GET .*/en.jsonl", skip=unbroken.requests, **fault)
    result = small("pretrain", "pctrl40", tmp_path / "run", **on(PLAIN), training__data_workers=workers)
    assert result.exit_code == 0, result.output
    assert not hub.sim.faults[0]["times"], "the fault was met"
    assert curve(RunDir(tmp_path / "run")) == curve(unbroken.run)


@pytest.mark.usefixtures("many_requests")
@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_a_hub_that_stays_away_ends_in_a_checkpoint(
    hub: HubServer, unbroken: Unbroken, tmp_path: Path, workers: str
) -> None:
    run = RunDir(tmp_path / "run")
    hub.fault("GET .*/en.jsonl", "status", code=503, skip=unbroken.requests, times=10_000)
    settings = {"training__data_workers": workers, **on(PLAIN, patience="3s")}
    result = small("pretrain", "pctrl40", run.path, **settings)
    assert result.exit_code == 1, result.output
    told = result.stderr
    # What a worker says goes past the runner of this test.
    waiting = (
        r"waiting for the Hub \(owner/plain, en.jsonl\): it responds with status 503 .*; giving up after 3 s"
    )
    assert workers == "1" or re.search(waiting, told)
    assert "Retrying" not in told and "Traceback" not in told
    [step] = run.saved_steps()
    assert 0 < step < 10 and step == run.metrics()[-1]["step"]
    assert f"stopped; the last checkpoint is step {step}\n" in result.stderr
    assert run.meta()["status"] == "failed"
    error = re.search(
        r"error: owner/plain, en.jsonl is not available from .*: it responds with status 503 .*\nhint: (.*)",
        told,
    )
    assert error is not None, told
    command = re.fullmatch(r"to resume: mrt5 (.*)", error[1])
    assert command is not None
    hub.clear()
    hub.fault("GET /api/", "status", code=503, times=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "PATIENCE", 0.2)
        result = mrt5(*shlex.split(command[1]), "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert f"hint: the checkpoint of step {step} is kept; to resume later: mrt5 pretrain" in result.stderr
    hub.clear()
    result = mrt5(*shlex.split(command[1]), "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert curve(run) == curve(unbroken.run)


@pytest.mark.slow
@pytest.mark.usefixtures("many_requests")
def test_ctrl_c_while_the_hub_is_away_saves(hub: HubServer, unbroken: Unbroken, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    hub.fault("GET .*/en.jsonl", "hang", seconds=5, skip=unbroken.requests)

    def interrupt() -> None:
        while hub.sim.faults[0]["times"]:
            time.sleep(0.05)
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = small("pretrain", "pctrl40", run.path, **on(PLAIN))
    thread.join()
    assert result.exit_code == 130 or isinstance(result.exception, KeyboardInterrupt), result.output
    [step] = run.saved_steps()
    assert f"stopped and saved at step {step}\nto resume: mrt5 pretrain" in result.stderr
    hub.clear()
    result = small("pretrain", "pctrl40", run.path, "--resume", **on(PLAIN))
    assert result.exit_code == 0, result.output
    assert curve(run) == curve(unbroken.run)


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_hub_that_is_away_at_the_start_is_bad_input(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    hub.provide(C4, f"models/{START}")
    hub.fault(f"GET /api/{kind}/", "status", code=503, times=99)
    monkeypatch.setattr(hub_module, "PATIENCE", 0.2)
    result = small("pretrain", "pctrl40", tmp_path / "run", model__start=START, model__shape="null")
    assert result.exit_code == 2, result.output
    name = START if kind == "models" else "allenai/c4"
    assert f"error: {name} " in result.stderr and "Hub: it responds with status 503" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("many_requests")
def test_evaluate_says_nothing_of_resuming(hub: HubServer, unbroken: Unbroken) -> None:
    hub.fault("GET .*/held.jsonl", "status", code=503, times=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "seconds_of", lambda _: 0.2)
        result = mrt5("evaluate", str(unbroken.run.path), "--limit", "4", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "error: owner/plain, held.jsonl is not available from the Hugging Face Hub" in result.stderr
    assert "--resume" not in result.stderr


# --- what does not pass -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_requests")
def test_a_damaged_file_saves_names_itself_and_can_be_left_out(hub: HubServer, tmp_path: Path) -> None:
    name = corpus(hub, "cut", cut=3000)
    run = RunDir(tmp_path / "run")
    result = small("pretrain", "pctrl40", run.path, **on(name))
    assert result.exit_code == 1, result.output
    assert re.search(
        rf"error: {name}, en.jsonl.gz after line \d+: damaged, Compressed file ended", result.stderr
    )
    assert "hint: pass --set task.source.skip_corrupt=true to leave it out and count it" in result.stderr
    assert "--resume" not in result.stderr
    [step] = run.saved_steps()
    assert f"stopped; the last checkpoint is step {step}\n" in result.stderr
    result = small("pretrain", "pctrl40", run.path, "--resume", **on(name, skip_corrupt="true"))
    assert result.exit_code == 0, result.output
    assert "left out the rest of owner/cut, en.jsonl.gz after line" in result.stderr
    assert "note: left out of the data: the rest of 1 damaged file\n" in result.stderr
    whole = small("pretrain", "pctrl40", tmp_path / "whole", **on(name, skip_corrupt="true"))
    assert whole.exit_code == 0, whole.output
    assert curve(run) == curve(RunDir(tmp_path / "whole"))


@pytest.mark.usefixtures("many_requests")
@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ('{"text": 5}', "line 21: column 'text' is 5, expected text", None),
        ('{"text": nothing}', "line 21: not JSON", "--set task.source.skip_corrupt=true to leave it out"),
        (
            '{"words": "a"}',
            "line 21: no column 'text'; it has words",
            "task.source.text_column",
        ),
    ],
    ids=["type", "no JSON", "no column"],
)
def test_a_wrong_row_in_mid_stream(
    hub: HubServer, tmp_path: Path, line: str, what: str, hint: str | None
) -> None:
    name = corpus(hub, "wrong", wrong={20: line})
    run = RunDir(tmp_path / "run")
    result = small("pretrain", "pctrl40", run.path, **on(name))
    assert result.exit_code == 1, result.output
    assert f"error: {name}, en.jsonl, {what}" in result.stderr
    assert ("hint: " in result.stderr) is (hint is not None)
    assert (hint or "") in result.stderr and "--resume" not in result.stderr
    assert f"stopped; the last checkpoint is step {run.saved_steps()[-1]}\n" in result.stderr


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"task__source__name": "owner/nothing"}, "owner/nothing is not a dataset of the Hugging Face Hub"),
        ({"task__languages": "[enn]"}, "allenai/c4 has no configuration 'enn'; it has en "),
        ({"task__source__text_column": "body"}, "line 1: no column 'body'; it has text, timestamp, url"),
        ({"task__source__revision": "v9"}, "allenai/c4 has no revision 'v9'"),
    ],
    ids=["dataset", "configuration", "column", "revision"],
)
def test_what_is_wrong_from_the_start_is_bad_input(
    hub: HubServer, tmp_path: Path, settings: dict[str, str], what: str
) -> None:
    hub.provide(C4)
    result = small("pretrain", "pctrl40", tmp_path / "run", **settings)
    assert result.exit_code == 2, result.output
    assert re.search(rf"error: .*{re.escape(what)}", result.stderr)
    assert "--resume" not in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("many_requests")
def test_a_run_goes_on_with_the_commit_it_began_with(hub: HubServer, tmp_path: Path) -> None:
    """main may have moved on meanwhile: here v1 is what it was."""
    before = corpus(hub, "before")
    name = corpus(hub, "moved", wrong=dict.fromkeys(range(0, 60, 2), '{"text": "other"}'))
    (hub.root / "datasets" / name / ".sim.json").write_text(json.dumps({"refs": {"v1": before}}))
    hub.refresh()
    run, other = RunDir(tmp_path / "run"), RunDir(tmp_path / "other")
    few = {**on(name), "training__max_steps": "10"}
    hub.clear()
    result = small("pretrain", "pctrl40", other.path, **few, task__source__revision="v1")
    assert result.exit_code == 0, result.output
    assert other.meta()["data"] == {name: hub.commit(f"datasets/{before}")}
    half = len(hub.requests("en.jsonl")) // 2
    hub.fault("GET .*/en.jsonl", "status", code=403, skip=half, times=99)
    result = small("pretrain", "pctrl40", run.path, **few, task__source__revision="v1")
    assert result.exit_code == 1 and "it answers 403" in result.stderr, result.output
    hub.clear()
    refused = small("pretrain", "pctrl40", run.path, "--resume", **few, task__source__revision="main")
    assert refused.exit_code == 2, refused.output
    assert f"{name} is at commit " in refused.stderr
    result = small("pretrain", "pctrl40", run.path, "--resume", **few)
    assert result.exit_code == 0, result.output
    assert curve(run) == curve(other)


@pytest.mark.slow
def test_two_processes_save_together_when_one_loses_its_data(hub: HubServer, tmp_path: Path) -> None:
    """The other process waits at the same step, learns of it, and resumes there later."""

    def make(folder: Path) -> None:
        draw = random.Random(1)
        for number in range(60):
            lines = [
                json.dumps({"text": f"document {number} {n} {draw.randbytes(80).hex()}"}) for n in range(3)
            ]
            (folder / f"en-{number:02}.jsonl").write_text("\n".join(lines))
        hubsim.write_card(folder, {"en": {"train": "en-*"}})

    hub.add("datasets/owner/pieces", make)
    source = {key.replace("__", "."): value for key, value in on("owner/pieces", patience="3s").items()}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mrt5cli", "pretrain", "pctrl40"]
    launch += ["--device", "cpu", *sets({**SMALL, **source, "training.device_batch_size": "2"})]

    def train(out: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, "--out", out, *words],
            cwd=tmp_path,
            env=hub.environment(),
            stderr=subprocess.PIPE,
            text=True,
            timeout=200,
        )

    done = train("whole")
    assert done.returncode == 0, done.stderr
    hub.clear()
    # Both read all files; one of them is refused one.
    hub.fault("GET .*/en-.[13579].jsonl", "status", code=403, skip=8, times=1)
    done = train("broken")
    assert done.returncode != 0
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    [step] = broken.saved_steps()
    assert 0 < step < 10
    files = {path.name for path in broken.checkpoint(step).iterdir()}
    assert {"mrt5_state_0.json", "mrt5_state_1.json"} <= files
    assert f"stopped; the last checkpoint is step {step}" in done.stderr
    assert "another process could not read its training data" in done.stderr
    assert "it answers 403" in done.stderr
    hub.clear()
    done = train("broken", "--resume")
    assert done.returncode == 0, done.stderr
    assert curve(broken) == curve(whole)
