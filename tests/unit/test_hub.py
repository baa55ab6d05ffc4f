"""Hub datasets: what they consist of, what passes and is waited for, and one sentence for what does not."""

from __future__ import annotations

import io
import pickle
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import hubsim
import pytest
from hub_server import HubServer, point_at

from mrt5cli import hub as hub_module
from mrt5cli.data import hub_datasets as dataset_module
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.sources import open_source
from mrt5cli.errors import HubAway, UserError
from mrt5cli.hub import trouble
from mrt5cli.recipe import HubSource

NAME = "owner/corpus"
CONTENT = bytes(range(256)) * 4000


def make(folder: Path) -> None:
    """Two configurations; one of the files has a megabyte to be read in parts."""
    for language in ("en", "sw"):
        for number in (2, 0, 1):
            (folder / language).mkdir(exist_ok=True)
            (folder / language / f"train-{number}.jsonl").write_text(f'{{"text": "{language} {number}"}}\n')
    (folder / "big.txt").write_bytes(CONTENT)
    (folder / "nothing.txt").write_bytes(b"")
    configurations = {code: {"train": f"{code}/train-*", "test": f"{code}/test-*"} for code in ("en", "sw")}
    hubsim.write_card(folder, configurations | {"big": {"train": "big.txt"}})


@pytest.fixture
def corpus(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub with `NAME`, and pauses that do not keep a test."""
    monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.05)
    if not (hub.root / "datasets" / NAME).exists():
        hub.add(f"datasets/{NAME}", make)
    return hub


def opened(name: str = NAME, **more: Any) -> HubDataset:
    return HubDataset(name, **more)


def refusal(name: str = NAME, language: str = "en", **source: Any) -> str:
    with pytest.raises(UserError) as error:
        open_source(HubSource(kind="hub", name=name, **source), [language])
    assert error.value.exit_code == 2
    assert "--resume" not in str(error.value)
    return str(error.value)


# --- what it consists of ------------------------------------------------------------------------------------


def test_configurations_splits_and_files(corpus: HubServer) -> None:
    dataset = opened()
    assert dataset.commit == corpus.commit(f"datasets/{NAME}")
    assert dataset.configuration("sw") == "sw"
    assert dataset.splits("sw") == ["train", "test"]
    assert dataset.files("sw", "train") == [f"sw/train-{number}.jsonl" for number in range(3)]
    assert pickle.loads(pickle.dumps(dataset)).files("sw", "train") == dataset.files("sw", "train")


def test_a_dataset_without_a_page_is_told_by_the_names_of_its_files(corpus: HubServer) -> None:
    def bare(folder: Path) -> None:
        (folder / "data").mkdir()
        for name in ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"):
            (folder / "data" / name).write_text("{}\n")
        (folder / "corpus.py").write_text("# how it was made")

    corpus.add("datasets/owner/bare", bare)
    dataset = opened("owner/bare")
    assert dataset.commit == corpus.commit("datasets/owner/bare")
    assert dataset.configuration(None) == "default"
    assert dataset.files("default", "test") == ["data/test-00000-of-00001.jsonl"]


# --- what is refused ----------------------------------------------------------------------------------------


def test_what_is_not_there(corpus: HubServer) -> None:
    message = refusal("owner/nothing")
    assert (
        "owner/nothing is not a dataset of the Hugging Face Hub, or it" in message
        and "hf auth login" in message
    )
    assert "owner/corpus has no revision 'v7'" in refusal(revision="v7")
    message = refusal(language="sww")
    assert "owner/corpus has no configuration 'sww'; it has sw and 2 more" in message
    assert "task.source.configurations" in message
    assert "a/b/c is not a valid Hub id" in refusal("a/b/c")
    with pytest.raises(UserError, match=r"owner/corpus, sw, test: Unable to find .*sw/test-\*"):
        opened().files("sw", "test")


@pytest.mark.parametrize(
    ("how", "what", "way_out"),
    [
        ("gated", "owner/closed is gated: its owners grant access on request", "ask for access at http"),
        (
            "private",
            "owner/closed is not a dataset of the Hugging Face Hub, or it is private",
            "private",
        ),
    ],
)
def test_who_may_not_read(corpus: HubServer, how: str, what: str, way_out: str) -> None:
    def closed(folder: Path) -> None:
        make(folder)
        (folder / ".sim.json").write_text(f'{{"{how}": true}}')

    corpus.add("datasets/owner/closed", closed)
    message = refusal("owner/closed")
    assert what in message and way_out in message and "log in with `hf auth login`" in message


def test_a_dataset_that_is_made_by_a_script(corpus: HubServer) -> None:
    corpus.add("datasets/owner/script", lambda folder: (folder / "script.py").write_text("import datasets"))
    dataset = opened("owner/script")
    with pytest.raises(UserError, match=r"no files that this toolkit reads, only script.py\n.*a script"):
        dataset.files("default", "train")


def test_offline_and_not_cached_is_said_at_once() -> None:
    """Tests are offline unless they take the stand-in."""
    started = time.perf_counter()
    message = refusal()
    assert time.perf_counter() - started < 5
    assert "HF_HUB_OFFLINE is set" in message
    assert "--set task.source.kind=files --set task.source.path=FOLDER" in message and "network" in message


# --- what passes --------------------------------------------------------------------------------------------


def test_a_hub_that_is_away_is_told_soon(
    corpus: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(f"http://127.0.0.1:{port}", tmp_path / "other", monkeypatch)
    monkeypatch.setattr(hub_module, "PATIENCE", 0.8)
    started = time.perf_counter()
    message = refusal()
    assert 0.5 < time.perf_counter() - started < 4, "bounded, and not at the first try"
    assert re.search(
        r"owner/corpus is not available from the Hugging Face Hub: http.* cannot be reached \(.*refused",
        message,
    )
    assert "task.source.path=FOLDER" in message and "HF_ENDPOINT" in message
    [line] = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"waiting for the Hub \(owner/corpus\): http.*refused\); giving up after 1 s", line)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "code": 503},
        {"kind": "status", "code": 500},
        {"kind": "status", "code": 429, "retry_after": 1},
        {"kind": "reset"},
        {"kind": "cut", "after": 5},
    ],
    ids=lambda fault: str(fault.get("code", fault["kind"])),
)
@pytest.mark.parametrize("where", ["GET /api/datasets/owner/corpus$", "(HEAD|GET) .*README", "GET .*/tree/"])
def test_one_fault_does_not_end_a_start(corpus: HubServer, where: str, fault: dict[str, Any]) -> None:
    corpus.fault(where, **fault)
    assert opened().files("en", "train") == [f"en/train-{number}.jsonl" for number in range(3)]


def test_a_hub_that_answers_after_four_seconds(corpus: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    corpus.fault("GET /api/", "delay", seconds=4)
    assert opened().splits("en") == ["train", "test"]
    assert capfd.readouterr().err == "waiting for the Hub (owner/corpus) ...\n"


def test_a_hub_that_stays_busy(corpus: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PATIENCE", 0.5)
    corpus.fault("GET /api/", "status", code=503, times=99)
    message = refusal()
    assert "owner/corpus is not available from the Hugging Face Hub: it responds with status 503" in message
    assert message.endswith("or try again later")


def test_a_proxy_that_answers_in_place_of_the_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in to this network</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        point_at(endpoint, tmp_path / "other", monkeypatch)
        message = refusal()
        server.shutdown()
    assert f"{endpoint} does not respond like the Hugging Face Hub" in message and "HF_ENDPOINT" in message


def test_where_there_is_no_network_rows_come_from_the_cache(
    corpus: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened()
    for file in dataset.files("en", "train"):
        dataset.download(file)
    corpus.fault("GET /api/", "reset", times=99)
    monkeypatch.setattr(hub_module, "PATIENCE", 0.2)
    with pytest.raises(UserError, match="is not available from the Hugging Face Hub"):
        opened()
    told: list[str] = []
    again = opened(cached=True, tell=told.append)
    assert re.search(
        rf"{NAME} is read from the local Hub cache, commit {dataset.commit}: http.* cannot be reached",
        told[-1],
    )
    assert again.files("en", "train") == dataset.files("en", "train")
    with pytest.raises(UserError, match="owner/corpus, sw, train: not all files are in the local Hub cache"):
        again.files("sw", "train")


def test_what_an_exception_means() -> None:
    import httpx2

    class Unknown(Exception):
        pass

    assert trouble(httpx2.ConnectError("[Errno -2] Name or service not known"))[1]
    reason, passes = trouble(TimeoutError())
    assert passes and reason.endswith(" cannot be reached (TimeoutError)")
    wrapped = Unknown("cannot find the file")
    wrapped.__cause__ = httpx2.ConnectTimeout("timed out")
    reason, passes = trouble(wrapped)
    assert passes and reason.endswith(" (timed out)")
    assert trouble(Unknown("a bug")) == ("a bug", False)
    assert not trouble(OSError("No space left on device"))[1]
    full = OSError(28, "No space left on device")
    full.__context__ = httpx2.ReadError("cut off")
    reason, passes = trouble(full)
    assert not passes and "No space left on device" in reason


# --- the bytes of a file ------------------------------------------------------------------------------------


def read(*, seconds: float = 5, name: str = "big.txt", told: list[str] | None = None) -> bytes:
    dataset = opened()
    with dataset.open(name, seconds=seconds, tell=(told if told is not None else []).append) as file:
        return file.read()


def test_a_file_is_read_from_anywhere(corpus: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 100_000)
    assert read() == CONTENT
    assert read(name="nothing.txt") == b""
    corpus.clear()
    with opened().open("big.txt", seconds=5) as file:
        assert file.read(10) == CONTENT[:10] and file.read(10) == CONTENT[10:20]
        assert len(corpus.requests("206 GET")) == 1, "a block at a time"
        file.seek(-5, io.SEEK_END)
        assert file.read() == CONTENT[-5:] and file.tell() == len(CONTENT)
        file.seek(300_000)
        assert file.read(3) == CONTENT[300_000:300_003]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "code": 503, "times": 3},
        {"kind": "status", "code": 429, "retry_after": 1},
        {"kind": "reset", "times": 2},
        {"kind": "cut", "after": 1000, "times": 2},
        {"kind": "delay", "seconds": 0.5},
    ],
    ids=lambda fault: str(fault.get("code", fault["kind"])),
)
def test_what_passes_in_mid_stream(
    corpus: HubServer, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 300_000)
    corpus.fault("GET .*big.txt", skip=1, **fault)
    assert read() == CONTENT


def test_a_hub_that_comes_back_is_told_of(corpus: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.fault("GET .*big.txt", "reset", times=4)
    told: list[str] = []
    assert read(told=told, seconds=1800) == CONTENT
    begin, end = told
    assert begin.startswith("waiting for the Hub (owner/corpus, big.txt): ")
    assert begin.endswith("; giving up after 30 min")
    assert re.fullmatch(r"the Hub responds again after \d+ s \(owner/corpus, big.txt\)", end)


def test_a_hub_that_stays_away(corpus: HubServer) -> None:
    corpus.fault("GET .*big.txt", "status", code=503, times=99)
    with pytest.raises(
        HubAway, match=r"owner/corpus, big.txt is not available from .*: it responds with status 503"
    ):
        read(seconds=0.3)
    with pytest.raises(HubAway):
        read(seconds=0)


@pytest.mark.parametrize(
    ("code", "what", "way_out"),
    [
        (401, "the Hub refuses {}: it responds with status 401", "hf auth login"),
        (403, "the Hub refuses {}: it responds with status 403", "hf auth login"),
        (404, "the Hub refuses {}: it responds with status 404", "hf auth login"),
    ],
)
def test_what_does_not_pass_in_mid_stream(
    corpus: HubServer, code: int, what: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    corpus.fault("GET .*big.txt", "status", code=code)
    with pytest.raises(UserError, match=what.format("owner/corpus, big.txt")) as caught:
        read()
    assert not isinstance(caught.value, HubAway)
    assert way_out in (caught.value.hint or "") and "--resume" not in str(caught.value)
