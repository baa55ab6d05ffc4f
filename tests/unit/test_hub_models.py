"""Models of the Hub, laid out as the real ones are: loaded, started from, kept in the cache; and faults."""

from __future__ import annotations

import json
import logging
import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubsim
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants, snapshot_download
from tiny_runs import SPANS, make_run

from mrt5cli import hub as hub_module
from mrt5cli import recipe as recipes
from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.errors import UserError
from mrt5cli.models import CheckpointError, MrT5ForConditionalGeneration, load, read_config
from mrt5cli.models.hub_files import locate, snapshot
from mrt5cli.recipe import ModelSection, smoke
from mrt5cli.subject import find_subject, find_subjects
from mrt5cli.training.choose import choose
from mrt5cli.training.plan import RunOptions
from mrt5cli.training.run import execute
from mrt5cli.training.start import model_to_start

BYT5 = "google/byt5-small"
COMMIT = hubsim.commit_of(f"models/{BYT5}")


@pytest.fixture
def byt5(hub: HubServer) -> HubServer:
    """The Hub, with google/byt5-small: a pickle, and no safetensors file."""
    hub.provide(f"models/{BYT5}")
    return hub


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds waited between requests, without waiting; to `patiently` they have passed."""
    taken: list[float] = []
    clock = time.monotonic
    passed = SimpleNamespace(monotonic=lambda: clock() + sum(taken), sleep=taken.append)
    monkeypatch.setattr(hub_module, "time", passed)
    monkeypatch.setattr(time, "sleep", taken.append)  # huggingface_hub's own
    return taken


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def weights_are(model: MrT5ForConditionalGeneration, expected: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items() if "embed" not in name)


def refused(hub_id: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load(hub_id, **options)
    assert "\n" not in error.value.message
    return "; ".join(filter(None, (error.value.message, error.value.hint)))


# --- as the Hub is ------------------------------------------------------------------------------------------


def test_byt5_loads_as_it_lies_on_the_hub(byt5: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    model = load(BYT5)
    assert weights_are(model, hubsim.byt5_weights())
    notes = [record.getMessage() for record in caplog.records]
    assert notes == [f"{BYT5}: weights read from a pickle; no code in it was run"]
    fetched = {re.sub(r".*/", "", line) for line in byt5.requests("GET") if "/resolve/" in line}
    assert fetched == {"config.json", "generation_config.json", "pytorch_model.bin"}, "nothing for others"
    assert not [line for line in byt5.requests() if re.search("discussions|refs|commits|safetensors", line)]


def test_a_start_gets_a_gate_and_knows_its_commit(byt5: HubServer) -> None:
    section = ModelSection.model_validate({"shortener": {"kind": "delete_gate", "layer": 3}})
    found = model_to_start(section)
    assert section.start == BYT5 and found.commit == COMMIT
    assert found.model.config.deletion_type == "scaled_sigmoid" and found.model.training
    assert weights_are(found.model, hubsim.byt5_weights())
    assert found.notes == [f"the delete gate is randomly initialized: {BYT5} has none at that layer"]


@pytest.mark.parametrize("layout", ["mrt5", "byt5", "reference", "hub"])
def test_converts_to_every_layout(layout: str, byt5: HubServer, tmp_path: Path) -> None:
    outcome = convert(BYT5, tmp_path / "out", ConversionOptions(layout))
    assert outcome.commit == COMMIT
    assert weights_are(load(tmp_path / "out", allow_pickle=False), hubsim.byt5_weights())
    for path in (tmp_path / "out").glob("*[!s]"):
        if path.suffix != ".safetensors":
            assert str(byt5.home) not in path.read_text(encoding="utf-8"), path.name


def test_safetensors_are_taken_where_both_are(hub: HubServer) -> None:
    def both(folder: Path) -> None:
        hubsim.make_byt5(folder)
        hubsim.make_byt5(folder, safe=True)

    hub.add("models/some/both", both)
    load("some/both", allow_pickle=False)
    assert hub.requests("model.safetensors") and not hub.requests("pytorch_model.bin")


@pytest.mark.parametrize("safe", [True, False])
def test_weights_in_shards(safe: bool, hub: HubServer) -> None:
    def sharded(folder: Path) -> None:
        from safetensors.torch import save_file

        hubsim.make_byt5(folder, safe=safe)
        (folder / ("model.safetensors" if safe else "pytorch_model.bin")).unlink()
        state = hubsim.byt5_weights()
        stem, end = ("model", "safetensors") if safe else ("pytorch_model", "bin")
        where = {
            name: f"{stem}-0000{1 + place % 2}-of-00002.{end}" for place, name in enumerate(sorted(state))
        }
        for file in set(where.values()):
            part = {name: tensor for name, tensor in state.items() if where[name] == file}
            save_file(part, folder / file) if safe else torch.save(part, folder / file)
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": where}))
        (folder / f"{stem}-00003-of-00002.{end}").write_bytes(b"of an earlier push")

    hub.add("models/some/sharded", sharded)
    assert weights_are(load("some/sharded"), hubsim.byt5_weights())
    assert not hub.requests("00003-of")


def test_a_revision_is_a_branch_a_tag_or_a_commit(byt5: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    byt5.add("models/some/older", partial(hubsim.make_byt5, seed=1))

    def with_refs(folder: Path) -> None:
        hubsim.make_byt5(folder)
        (folder / ".sim.json").write_text(json.dumps({"refs": {"v1": "some/older"}}))

    byt5.add("models/some/model", with_refs)
    main, older = (hubsim.commit_of(f"models/some/{name}") for name in ("model", "older"))
    assert snapshot("some/model").commit == main
    for revision in ("v1", older):
        assert snapshot("some/model", revision).commit == older
        assert weights_are(load("some/model", revision=revision), hubsim.byt5_weights(seed=1))
    assert weights_are(load("some/model"), hubsim.byt5_weights())
    subjects = find_subjects(["some/model"], "v1")
    assert subjects[0].commit == older and subjects[0].name == "some/model"
    section = ModelSection.model_validate({"start": "some/model", "revision": "v1"})
    assert model_to_start(section).commit == older
    assert "has no revision 'v2'; use a branch, a tag or a full commit" in refused(
        "some/model", revision="v2"
    )
    offline(monkeypatch)
    assert snapshot("some/model", "v1").commit == older, "the cache knows which commit a name meant"
    assert "available from the Hugging Face Hub: HF_HUB_OFFLINE is set" in refused(
        "some/model", revision="v2"
    )


def test_a_revision_is_of_hub_models_only(tmp_path: Path) -> None:
    run = str(make_run(tmp_path, "tiny"))
    with pytest.raises(
        CheckpointError, match=r"is a local directory and has no revision 'v1'.*\n  leave out the revision"
    ):
        load(run, revision="v1")
    with pytest.raises(UserError, match="--revision v1 needs a Hub model, and none is given"):
        find_subjects([run], "v1")
    with pytest.raises(ValueError, match="only applies to a Hub model"):
        ModelSection.model_validate({"start": "scratch", "revision": "v1"})


def test_a_repository_that_was_exported_brings_its_recipe(hub: HubServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, "tiny", task=SPANS)
    hub.add("models/me/tiny", lambda folder: convert(str(run), folder, ConversionOptions("hub")))
    subject = find_subject("me/tiny")
    assert subject.name == "me/tiny" and subject.commit == hub.commit("models/me/tiny")
    assert subject.recipe is not None and subject.recipe.task.input_length == SPANS["input_length"]
    assert torch.equal(load(subject.source).shared.weight, load(run).shared.weight)


# --- once it is here ----------------------------------------------------------------------------------------


def test_offline_it_loads_from_the_cache(byt5: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    load(BYT5)
    offline(monkeypatch)
    byt5.clear()
    assert weights_are(load(BYT5), hubsim.byt5_weights())
    assert find_subject(BYT5).commit == COMMIT
    assert not byt5.requests()


def test_what_transformers_has_downloaded_serves_too(
    byt5: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_download(BYT5)
    offline(monkeypatch)
    assert weights_are(load(BYT5), hubsim.byt5_weights())


def test_online_it_is_downloaded_once(byt5: HubServer) -> None:
    load(BYT5)
    byt5.clear()
    load(BYT5)
    assert not [line for line in byt5.requests("GET") if "/resolve/" in line]


def test_without_a_network_the_cache_is_used_at_once(
    byt5: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, naps: list[float]
) -> None:
    load(BYT5)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    caplog.clear()
    started = time.perf_counter()
    assert weights_are(load(BYT5), hubsim.byt5_weights())
    assert time.perf_counter() - started < 5 and not naps
    note = caplog.records[0].getMessage()
    assert note.startswith(
        f"{BYT5} is read from the local Hub cache, commit {COMMIT}: http://127.0.0.1:9 cannot be"
    )


def test_without_a_network_and_a_cache_it_is_one_sentence_soon(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_module, "PATIENCE", 1.0)
    started = time.perf_counter()
    message = refused(BYT5)
    assert time.perf_counter() - started < 6
    assert "neither a directory here nor available from the Hugging Face Hub: http://127.0.0.1:9" in message


def test_half_a_model_in_the_cache_is_called_so(byt5: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_config(BYT5).num_layers == 6
    assert not byt5.requests("pytorch_model.bin"), "a configuration is not 1.2 GB"
    offline(monkeypatch)
    assert read_config(BYT5).num_layers == 6
    assert "is neither a directory here nor available from the Hugging Face Hub: HF_HUB" in refused(BYT5)


def test_pickles_may_be_refused_before_and_after_the_download(
    byt5: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{BYT5} has its weights in pickles only" in refused(BYT5, allow_pickle=False)
    assert not byt5.requests("pytorch_model.bin")
    load(BYT5)
    for _ in range(2):
        assert f"{BYT5} has its weights in pickles only" in refused(BYT5, allow_pickle=False)
        offline(monkeypatch)


def test_code_in_a_pickle_of_the_hub_is_not_run(hub: HubServer, tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "was-here"), "w"))

    def poisoned(folder: Path) -> None:
        hubsim.make_byt5(folder)
        torch.save({"extra": Intruder()}, folder / "pytorch_model.bin")

    hub.add("models/some/poison", poisoned)
    assert "nothing in it was run" in refused("some/poison")
    assert not (tmp_path / "was-here").exists()


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", ["GET /api/models", "HEAD .*config.json", "GET .*pytorch_model.bin"])
@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        ({"kind": "status", "code": 503}, 1),
        ({"kind": "status", "code": 503, "times": 2}, 3),
        ({"kind": "status", "code": 429}, 1),
        ({"kind": "reset"}, 1),
    ],
)
def test_a_busy_hub_is_asked_again(
    match: str, fault: dict[str, Any], waits: float, byt5: HubServer, naps: list[float]
) -> None:
    byt5.fault(match, **fault)
    assert weights_are(load(BYT5), hubsim.byt5_weights())
    # huggingface_hub asks for a file's metadata a second time at once, and then waits as well.
    assert match.startswith("HEAD") or waits <= sum(naps) <= waits + 2


def test_what_is_cut_off_is_gone_on_with(
    byt5: HubServer, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of 10 MB there would be none whole
    byt5.fault("GET .*pytorch_model.bin", "cut", times=2)
    assert weights_are(load(BYT5), hubsim.byt5_weights())
    assert [line.split()[0] for line in byt5.requests("GET") if "model.bin" in line] == ["200", "206", "206"]


def test_a_slow_answer_ends_nothing(byt5: HubServer) -> None:
    byt5.fault("GET /api/models", "delay", seconds=4)
    started = time.perf_counter()
    assert snapshot(BYT5, weights=False).commit == COMMIT
    assert time.perf_counter() - started > 4
    assert len(byt5.requests("GET /api/models")) == 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            {"kind": "status", "code": 503},
            "it responds with status 503 (simulated 503); use a local checkpoint directory",
        ),
        ({"kind": "reset"}, "cannot be reached (Server disconnected without sending a response); use"),
    ],
)
def test_a_hub_that_stays_away(fault: dict[str, Any], told: str, byt5: HubServer, naps: list[float]) -> None:
    byt5.fault("GET /api/models", **fault, times=99)
    assert told in refused(BYT5)
    assert len(byt5.requests("/api/models")) == 5
    assert sum(naps) == pytest.approx(10, abs=2)


def test_waiting_is_told_in_our_words(
    byt5: HubServer, naps: list[float], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    byt5.fault("GET /api/models", "status", code=429, times=2)
    with caplog.at_level(logging.WARNING):
        snapshot(BYT5)
    begin, end = (record.getMessage() for record in caplog.records if record.name.startswith("mrt5cli"))
    assert (
        begin
        == f"waiting for the Hub ({BYT5}): it responds with status 429 (simulated 429); giving up after 10 s"
    )
    assert end == f"the Hub responds again after 3 s ({BYT5})"
    assert "Retrying" not in "".join(capfd.readouterr())


def test_damaged_weights_are_fetched_again_and_then_refused(byt5: HubServer) -> None:
    byt5.fault("GET .*pytorch_model.bin", "corrupt")
    assert weights_are(load(BYT5), hubsim.byt5_weights())
    hub_id = "google/byt5-small-safe"
    byt5.provide(f"models/{hub_id}")
    byt5.fault("GET .*model.safetensors", "corrupt", times=2)
    message = refused(hub_id)
    assert "model.safetensors arrived damaged twice: its SHA-256 differs from the Hub's" in message
    assert weights_are(load(hub_id), hubsim.byt5_weights()), "nothing damaged was left in the cache"


def make_other(kind: str, folder: Path) -> None:
    hubsim.make_byt5(folder)
    config = {**hubsim.BYT5_CONFIG, "model_type": "bert"}
    match kind:
        case "gated" | "private":
            (folder / ".sim.json").write_text(json.dumps({kind: True}))
        case "bert":
            (folder / "config.json").write_text(json.dumps(config))
        case "no config":
            (folder / "config.json").unlink()
        case "adapter":
            (folder / "config.json").rename(folder / "adapter_config.json")
        case "no weights":
            (folder / "pytorch_model.bin").unlink()
        case "broken":
            (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "gated",
            r"is gated: its owners .*; ask for access at http://127.0.0.1:\d+/some/gated, then log in with",
        ),
        (
            "private",
            "nor a model of the Hugging Face Hub, or it is private; check the spelling; for a private",
        ),
        ("bert", "some/bert is a 'bert' model; expected an MrT5, ByT5 or T5 v1.1 checkpoint"),
        ("no config", "some/no-config is not a checkpoint: its repository on the Hub has no config.json"),
        ("adapter", r"some/adapter is a PEFT adapter \(adapter_config.json\), not a complete model"),
        ("no weights", r"has no weights that can be read.* only .*flax_model.msgpack.*tf_model.h5"),
        ("broken", r"config.json cannot be read: it is not JSON"),
    ],
)
def test_repositories_that_are_no_use(kind: str, told: str, hub: HubServer) -> None:
    name = f"some/{kind.replace(' ', '-')}"
    hub.add(f"models/{name}", partial(make_other, kind))
    assert re.search(told, refused(name))
    assert not hub.requests("GET /some") or not [line for line in hub.requests("GET") if "model.bin" in line]


@pytest.mark.parametrize(
    ("name", "told"),
    [("nobody/nothing", "nor a model of the Hugging Face Hub"), ("a..b/c", "nor a valid Hub id")],
)
def test_ids_that_nothing_has(name: str, told: str, hub: HubServer, naps: list[float]) -> None:
    assert told in refused(name)
    assert not naps


def test_a_token_that_is_none_is_no_outage(
    byt5: HubServer, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    byt5.fault("GET /api/models", "status", code=401)
    assert (
        f"the Hub refuses {BYT5}: it responds with status 401 (simulated 401); if it needs an account"
        in refused(BYT5)
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    byt5.fault("GET /api/models", "status", code=401)
    assert f"the Hub refuses {BYT5}: it responds with status 401" in refused(BYT5)
    assert not naps


def test_what_is_no_hub_is_not_taken_for_one(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def portal(self: hubsim.Handler) -> None:
        self.answer(200, b"<html>Welcome to the hotel</html>", {"Content-Type": "text/html"})

    monkeypatch.setattr(hubsim.Handler, "route", portal)
    assert "does not respond like the Hugging Face Hub; check HF_ENDPOINT and the proxy" in refused(BYT5)


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_is_a_checkpoint_to_load(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tiny")
    expected = load(run / "model").shared.weight
    assert torch.equal(load(run).shared.weight, expected)
    assert torch.equal(load(str(run)).shared.weight, expected)
    step = run / "checkpoints" / "step-00000007"
    (run / "model").rename(step)
    assert torch.equal(load(run).shared.weight, expected), "the latest checkpoint, while there is no model"
    assert locate(step).run == locate(run).run
    assert torch.equal(load(step).shared.weight, expected)
    (step / "config.json").unlink()
    step.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"has no model yet.*\n.*train it: mrt5 pretrain"):
        load(run)


def test_the_python_of_the_readme_runs_as_it_stands(
    byt5: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(
        r"## Python\n+```python\n(.*?)```\n\nA ByT5 with a fresh gate: `(.*?)`", readme, re.DOTALL
    )
    assert found is not None
    block, start = found.groups()
    run = re.search(r'run = "(.*)"', block)
    assert run is not None
    monkeypatch.chdir(tmp_path)
    trained = execute(choose(smoke(recipes.load("quickstart")), RunOptions(Path(run[1]), device="cpu")))
    assert trained.is_finished
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["out"].loss.isfinite() and len(names["answers"]) == 2
    assert re.search(r"tensor\(\[\d+, \d+\]\)", capsys.readouterr().out), "what is left of each row"
    assert eval(start, names).config.deletion_type == "scaled_sigmoid"
