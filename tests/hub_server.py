"""Fixtures for tests that talk to a Hub: `hub` is a stand-in on the loopback address (see `hubsim.py`).

    def test_it(hub: HubServer) -> None:
        hub.provide("models/google/byt5-small")               # of hubsim.MAKERS; built once a session
        hub.fault("GET .*pytorch_model.bin", "status", code=503)
        load("google/byt5-small")
        assert hub.requests("resolve") == [...]

Inside a test huggingface_hub and datasets use it, online, with empty caches and no token; commands run as a
subprocess use it with `env=hub.environment()`.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hubsim
import pytest


class HubServer:
    """A Hub that serves what tests ask for.

    Attributes:
        root: {models,datasets}/OWNER/NAME/FILES; a test may write repositories of its own there, by `add`.
        home: the HF_HOME of the test that runs.
        endpoint: its address.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root
        self._server, self.sim = hubsim.make_server(root)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def provide(self, *repositories: str) -> None:
        """Have repositories of `hubsim.MAKERS`, "models/google/byt5-small", each made once a session."""
        for repository in repositories:
            if not (self.root / repository).exists():
                self.add(repository, hubsim.MAKERS[repository])

    def add(self, repository: str, make: Callable[[Path], None]) -> Path:
        """A repository as `make` writes it into a folder; one of that name is replaced.

        Returns:
            Its folder. Call `refresh` after changing files in it.
        """
        folder = self.root / repository
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        self.refresh()
        return folder

    def refresh(self) -> None:
        """See what has changed in the folders of the repositories."""
        self.sim.repos.clear()
        hubsim.facts.cache_clear()

    def commit(self, repository: str) -> str:
        """The commit of main."""
        return hubsim.commit_of(repository)

    def fault(self, match: str, kind: str, *, times: int = 1, **details: Any) -> None:
        """Have requests fail whose "METHOD PATH" matches; the kinds are in hubsim's head."""
        self.sim.faults.append({"match": match, "kind": kind, "times": times, **details})

    def clear(self) -> None:
        """No faults, and nothing asked yet."""
        self.sim.faults, self.sim.log = [], []

    def requests(self, part: str = "") -> list[str]:
        """ "200 GET /api/models/..." of all that was asked, or of what has `part` in it."""
        lines = [f"{code} {line}" for _, line, code in self.sim.log]
        return [line for line in lines if part in line]

    def environment(self, **more: str) -> dict[str, str]:
        """For a subprocess that uses this Hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        mine = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **mine, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """One server a session; tests take `hub`."""
    server = HubServer(tmp_path_factory.mktemp("hub"))
    yield server
    server.close()


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server without faults, and the libraries of this process set to it."""
    hub_server.clear()
    point_at(hub_server.endpoint, tmp_path / "hf-home", monkeypatch)
    hub_server.home = tmp_path / "hf-home"
    return hub_server


def point_at(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub and datasets use another Hub and cache; they read their environment on import."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        # Not every version has all of them.
        monkeypatch.setattr(constants, name, value, raising=False)
    for name, value in {
        "HF_ENDPOINT": endpoint,
        "HUB_DATASETS_URL": endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    # The functions of huggingface_hub are methods of an object that was made on import.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    # Listings of an earlier test.
    huggingface_hub.HfFileSystem.clear_instance_cache()
