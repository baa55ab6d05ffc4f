"""Access to the Hugging Face Hub for models, datasets, metrics and pushes: retries and clear errors.

huggingface_hub makes every request, with its proxies, HF_ENDPOINT, its token, and the cache shared with
transformers and datasets. It retries only some requests; here, every request is retried after a transient
failure (no connection, a slow answer, a busy Hub, a truncated body).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mrt5cli.errors import HubAway, UserError
from mrt5cli.text import Tell, announced, duration, first_line, say_on_stderr

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo, SpaceInfo

PATIENCE = 10.0
"""Total seconds of pauses between attempts, unless a caller sets another limit."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
BUSY = (408, 425, 429)
"""Transient status codes besides 5xx."""
ABSENT = {"model": "is neither a directory here nor", "dataset": "is not", "space": "is not"}
CHECK = {
    "model": "check the spelling",
    "dataset": "check task.source.name",
    "space": "check task.metrics; a custom metric needs --code FILE",
}
PAGES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
WAYS_OUT = {
    "model": "use a local checkpoint directory, connect to the network, or try again later",
    "dataset": "use local files (--set task.source.kind=files --set task.source.path=FOLDER, or "
    "--data FOLDER with evaluate), connect to the network (set HF_ENDPOINT for a mirror, HTTPS_PROXY for a "
    "proxy), or try again later",
    "space": "use a metric of the toolkit or a local script, connect to the network, or try again later",
}
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_mrt5.py"]
"""Files of an earlier push that a loader would still find in the repository."""
Result = TypeVar("Result")


def trouble(error: BaseException) -> tuple[str, bool]:
    """The reason behind an exception of huggingface_hub as text, and whether it is transient.

    Both are judged by the HTTP or system error that it wraps.
    """
    from huggingface_hub import constants, errors

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set", False
        if isinstance(link, errors.HfHubHTTPError):
            status, server = link.response.status_code, " ".join((link.server_message or "").split())
            reason = f"it responds with status {status}{f' ({server})' if server else ''}"
            return reason, status in BUSY or status >= 500
        if isinstance(link, errors.HTTPError | ConnectionError | TimeoutError):  # type: ignore[attr-defined]
            return f"{constants.ENDPOINT} cannot be reached ({first_line(link).rstrip('.')})", True
        if isinstance(link, OSError) and link.strerror:  # a local problem, such as a full disk
            break
        link = link.__cause__ or link.__context__
    return first_line(link or error), False


@dataclass(frozen=True)
class Repository:
    """A model, a dataset or a space of the Hub. Every failure to read it is a `UserError`.

    Attributes:
        kind: the type of repository; metrics are spaces.
        name: its id, "owner/name".
        revision: branch, tag or commit; None is the main branch.
        tell: receives notes about waiting and about falling back to the cache.
    """

    kind: Literal["model", "dataset", "space"]
    name: str
    revision: str | None = None
    tell: Tell = say_on_stderr

    def info(self, cached: str | None) -> ModelInfo | DatasetInfo | SpaceInfo | None:
        """The Hub's description of the repository, including its commit and its files.

        None if the cache must be used, because of offline mode or an unreachable Hub.

        Args:
            cached: the commit that is completely cached, or None.
        """
        from huggingface_hub import HfApi, constants

        action: Callable[[], Any] = partial(
            HfApi(library_name="mrt5cli").repo_info,
            self.name,
            revision=self.revision,
            repo_type=self.kind,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        try:
            return self.request(action, self.name, None if cached is None else 0.0)
        except HubAway as error:
            if cached is None:
                raise
            if not constants.HF_HUB_OFFLINE:
                self.tell(
                    f"{self.name} is read from the local Hub cache, commit {cached}: {trouble(error)[0]}"
                )
            return None

    def cached(self, file: str, commit: str | None = None) -> Path | None:
        """The cached file at a commit, by default the one the revision had at its last download, or None."""
        from huggingface_hub import try_to_load_from_cache

        at = commit or self.revision
        found = self.request(
            lambda: try_to_load_from_cache(self.name, file, repo_type=self.kind, revision=at), self.name
        )
        return Path(found) if isinstance(found, str) else None

    def fetch(self, file: str, commit: str | None = None) -> Path:
        """Path of a file in the cache, downloaded if needed and once more if it arrives damaged.

        Args:
            commit: the commit to read from; by default that of the revision.
        """
        from huggingface_hub import hf_hub_download

        what, at, before = f"{self.name}, {file}", commit or self.revision, self.cached(file, commit)

        def download() -> Path:
            try:
                return Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=at))
            except RuntimeError as error:  # the only exception type of hf_xet, which is written in Rust
                raise ConnectionError(first_line(error)) from error

        for _ in range(2):
            # A terminal shows huggingface_hub's own bar.
            path = self.request(download, what, announce=not sys.stderr.isatty())
            if path == before or _is_whole(path):
                return path
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise UserError(
            f"{what} arrived damaged twice: its SHA-256 differs from the Hub's",
            "check for a proxy that modifies downloads, or try again",
        )

    def request(
        self,
        action: Callable[[], Result],
        what: str,
        patience: float | None = None,
        *,
        announce: bool = True,
    ) -> Result:
        """Run an action, retrying it after transient failures, and return its result.

        Args:
            what: the subject of the action, for messages.
            patience: maximum total seconds of pauses, `PATIENCE` by default; 0 makes a single attempt.
            announce: print a note if the action takes longer than a moment.

        Raises:
            HubAway: the failure persisted.
            UserError: the Hub refused the request.
        """
        from huggingface_hub import logging

        if "HF_HUB_VERBOSITY" not in os.environ:  # ours replace its messages about retries
            logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        with announced(f"waiting for the Hub ({what}) ..." if announce else None, self.tell) as tell:
            return self._retried(action, what, PATIENCE if patience is None else patience, tell)

    def _retried(self, action: Callable[[], Result], what: str, patience: float, tell: Tell) -> Result:
        waited, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                result = action()
                break
            except Exception as error:
                reason, passes = trouble(error)
                if not passes or waited >= patience:
                    if (sentence := self._sentence(error, what)) is None:
                        raise
                    raise sentence from error
            if waited == FIRST_PAUSE:  # a single failure is not worth a message
                tell(f"waiting for the Hub ({what}): {reason}; giving up after {duration(patience)}")
            pause = min(pause, patience - waited)
            time.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, LONGEST_PAUSE)
        if waited > FIRST_PAUSE:
            tell(f"the Hub responds again after {duration(waited)} ({what})")
        return result

    def _sentence(self, error: Exception, what: str) -> UserError | None:
        """The error to raise for an exception during an action; None if it is not related to the Hub."""
        from huggingface_hub import constants, errors

        absent, (reason, passes) = f"{self.name} {ABSENT[self.kind]}", trouble(error)
        if passes or isinstance(error, errors.OfflineModeIsEnabled):
            message = f"{what} {ABSENT[self.kind]} available from the Hugging Face Hub: {reason}"
            return HubAway(message, WAYS_OUT[self.kind])
        match error:
            case errors.GatedRepoError():
                page = f"{constants.ENDPOINT}/{PAGES[self.kind]}{self.name}"
                return UserError(
                    f"{self.name} is gated: its owners grant access on request",
                    f"ask for access at {page}, then {LOG_IN}",
                )
            case errors.RepositoryNotFoundError():
                return UserError(
                    f"{absent} a {self.kind} of the Hugging Face Hub, or it is private",
                    f"{CHECK[self.kind]}; for a private {self.kind} {LOG_IN}",
                )
            case errors.RevisionNotFoundError():
                return UserError(
                    f"{self.name} has no revision {self.revision!r}",
                    "use a branch, a tag or a full commit hash",
                )
            case errors.HFValidationError():
                return UserError(f"{absent} a valid Hub id: {first_line(error)}", CHECK[self.kind])
            case errors.HfHubHTTPError():
                return UserError(
                    f"the Hub refuses {what}: {reason}",
                    f"if it needs an account with access, {LOG_IN} to a valid token of one",
                )
            case errors.LocalEntryNotFoundError() | json.JSONDecodeError():
                return UserError(
                    f"{constants.ENDPOINT} does not respond like the Hugging Face Hub",
                    "check HF_ENDPOINT and the proxy",
                )
        return None


def _is_whole(path: Path) -> bool:
    """Whether a cached file matches its name: large files are stored under their SHA-256."""
    name = path.resolve().name
    if len(name) != 64:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


# --- a push -------------------------------------------------------------------------------------------------


def check_can_push(repo_id: str) -> None:
    """Refuse a push that cannot succeed, before any work is done for it.

    Raises:
        UserError: the name is invalid, or there is no token that the Hub accepts.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    hint = "use OWNER/NAME, where OWNER is a user or an organisation of the Hub"
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id} is not a valid Hub id", hint)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} is not a valid Hub id: {first_line(error)}", hint) from error
    try:
        Repository("model", repo_id).request(HfApi(library_name="mrt5cli").whoami, repo_id)
    except (UserError, OSError) as error:  # the latter if there is no token
        raise UserError(
            f"cannot push to {repo_id}: {trouble(error)[0]}",
            f"{LOG_IN} to a token with write permission, or leave out --push and push the directory later",
        ) from error


def card_of(repo_id: str) -> str | None:
    """The current README.md of a repository, or None."""
    from huggingface_hub import HfApi

    repository, api = Repository("model", repo_id), HfApi(library_name="mrt5cli")
    there = repository.request(lambda: api.file_exists(repo_id, "README.md"), repo_id)
    return repository.fetch("README.md").read_text(encoding="utf-8", errors="replace") if there else None


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an exported directory, creating the repository if needed, and return its URL.

    See `check_can_push`. A new repository is private if requested; otherwise the owner's settings on the Hub
    decide, which default to public. An existing one keeps its visibility. Weights and code of an earlier push
    are replaced; other files stay.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api = HfApi(library_name="mrt5cli")
    try:
        url = api.create_repo(repo_id, repo_type="model", exist_ok=True, private=private or None)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=folder,
            commit_message="Model, code and card from mrt5 convert",
            delete_patterns=REPLACED,
        )
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hub refuses the push to {repo_id}: {trouble(error)[0]}",
            f"use a token with write permission for {repo_id.split('/')[0]}, or another repository",
        ) from error
    except (HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:  # Rust parts raise the third
        raise UserError(
            f"the upload to {repo_id} was interrupted: {first_line(error)}",
            f"push {folder} again; it is complete, and files that arrived are not sent twice",
        ) from error
    except ValueError as error:  # raised by huggingface_hub if the Hub rejects the card
        raise UserError(
            f"the Hub rejects README.md of {folder}: {' '.join(str(error).split())}",
            "correct it and upload the directory with `hf upload`",
        ) from error
    return str(url)
