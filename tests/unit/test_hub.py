"""Hub datasets that cannot be had: one sentence each, at once, with a way out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mrt5cli.data.sources import open_source
from mrt5cli.errors import UserError
from mrt5cli.recipe import HubSource

NAME = "owner/corpus"


def response(status: int) -> Any:
    """What huggingface_hub's errors look at; its HTTP library differs between versions."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def refusal(language: str = "en") -> str:
    with pytest.raises(UserError) as error:
        open_source(HubSource(kind="hub", name=NAME), [language])
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there were a network; what answers is up to the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


def answers(online: pytest.MonkeyPatch, error: Exception | None) -> None:
    def dataset_info(self: Any, name: str, *, timeout: float) -> None:
        assert (name, timeout <= 5) == (NAME, True)
        if error is not None:
            raise error

    online.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_offline_and_not_cached_is_said_at_once() -> None:
    assert constants.HF_HUB_OFFLINE
    started = time.perf_counter()
    message = refusal()
    assert time.perf_counter() - started < 5
    assert "HF_HUB_OFFLINE is set" in message
    assert "--set task.source.kind=files --set task.source.path=FOLDER" in message and "network" in message


@pytest.mark.parametrize(
    "error", [OSError("Name or service not known"), LookupError("of a type of the HTTP library")]
)
def test_no_network_is_said_without_retries(online: pytest.MonkeyPatch, error: Exception) -> None:
    answers(online, error)
    online.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("retries for 20 seconds"))
    message = refusal()
    assert f"no network to read {NAME}: {error}" in message
    assert "task.source.path=FOLDER" in message and "HF_ENDPOINT" in message


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (errors.RepositoryNotFoundError("404", response=response(404)), "there is no dataset 'owner/corpus'"),
        (errors.GatedRepoError("403", response=response(403)), "owner/corpus is gated"),
        (errors.HfHubHTTPError("500 Server Error", response=response(500)), "refused owner/corpus: 500"),
    ],
)
def test_what_the_hub_refuses(online: pytest.MonkeyPatch, error: Exception, what: str) -> None:
    answers(online, error)
    assert what in refusal()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (
            ValueError("BuilderConfig 'ens' not found. Available: ['en', 'es', 'fr']"),
            "no such configuration; it has",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found corpus.py"),
            "it is made by a script",
        ),
        (ConnectionError("Couldn't reach it"), "cannot be read from the Hugging Face Hub: Couldn't reach it"),
        (
            datasets.exceptions.DatasetNotFoundError("is a gated dataset"),
            "cannot be opened: is a gated dataset",
        ),
    ],
)
def test_what_datasets_refuses(online: pytest.MonkeyPatch, error: Exception, what: str) -> None:
    answers(online, None)

    def load(name: str, language: str) -> None:
        assert (name, language) == (NAME, "ens")
        raise error

    online.setattr(datasets, "load_dataset_builder", load)
    message = refusal("ens")
    assert what in message
    if isinstance(error, ValueError):
        assert "it has es, en ... (3 in all)" in message, "the nearest names"
