"""The Hugging Face Hub for models, datasets, metrics and pushes: retries, and a sentence for each trouble.

huggingface_hub makes every request, with its proxies, HF_ENDPOINT, its token, and the cache that transformers
and datasets share. It repeats only some requests; here trouble that may pass (no connection, a slow answer, a
Hub that is busy or down, a body cut off) is met with patience, whatever request it hits.
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
"""Seconds of pauses between attempts, unless a caller has more patience."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
BUSY = (408, 425, 429)
"""Status codes besides 5xx that may be others soon."""
ABSENT = {"model": "is neither a directory here nor", "dataset": "is not", "space": "is not"}
CHECK = {
    "model": "check the name",
    "dataset": "check task.source.name",
    "space": "check the task's metrics, of which one of your own comes with --code FILE",
}
PAGES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
WAYS_OUT = {
    "model": "give a checkpoint directory, connect to the network, or try again later",
    "dataset": "use local files (--set task.source.kind=files --set task.source.path=FOLDER, or "
    "with evaluate --data FOLDER), connect to the network (HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy), "
    "or try again later",
    "space": "use a metric of the toolkit or a local script, connect to the network, or try again later",
}
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_mrt5.py"]
"""What an earlier push may have left in a repository and a loader would still find."""
Result = TypeVar("Result")


def trouble(error: BaseException) -> tuple[str, bool]:
    """What an exception of huggingface_hub means, in words, and whether it may pass by itself.

    That is judged by the HTTP or system error that it wraps.
    """
    from huggingface_hub import constants, errors

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set", False
        if isinstance(link, errors.HfHubHTTPError):
            status, server = link.response.status_code, " ".join((link.server_message or "").split())
            reason = f"it answers {status}{f' ({server})' if server else ''}"
            return reason, status in BUSY or status >= 500
        if isinstance(link, errors.HTTPError | ConnectionError | TimeoutError):  # type: ignore[attr-defined]
            return f"{constants.ENDPOINT} cannot be reached ({first_line(link).rstrip('.')})", True
        if isinstance(link, OSError) and link.strerror:  # on this side: a full disk, say
            break
        link = link.__cause__ or link.__context__
    return first_line(link or error), False


@dataclass(frozen=True)
class Repository:
    """A model, a dataset or a space of the Hub; whatever keeps it from being read is a `UserError`.

    Attributes:
        kind: which of them. Metrics are spaces.
        name: its id, "owner/name".
        revision: branch, tag or commit; None is the main branch.
        tell: receives notes on waiting, and on the cache standing in for the Hub.
    """

    kind: Literal["model", "dataset", "space"]
    name: str
    revision: str | None = None
    tell: Tell = say_on_stderr

    def info(self, cached: str | None) -> ModelInfo | DatasetInfo | SpaceInfo | None:
        """What the Hub says of it, its commit and its files among that.

        None where the cache has to do: offline, or because the Hub is away.

        Args:
            cached: the commit that the cache has all of, or None.
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
        """A file in the cache, at a commit, or as the revision was when it was last downloaded."""
        from huggingface_hub import try_to_load_from_cache

        at = commit or self.revision
        found = self.request(
            lambda: try_to_load_from_cache(self.name, file, repo_type=self.kind, revision=at), self.name
        )
        return Path(found) if isinstance(found, str) else None

    def fetch(self, file: str, commit: str | None = None) -> Path:
        """A file in the cache, downloaded if need be, and once more where it arrives damaged.

        Args:
            commit: to take it from; by default the revision, and the cache then knows which commit that is.
        """
        from huggingface_hub import hf_hub_download

        what, at, before = f"{self.name}, {file}", commit or self.revision, self.cached(file, commit)

        def download() -> Path:
            try:
                return Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=at))
            except RuntimeError as error:  # the Rust part of hf_xet has no other name for trouble
                raise ConnectionError(first_line(error)) from error

        for _ in range(2):
            # A terminal shows huggingface_hub's own bar.
            path = self.request(download, what, announce=not sys.stderr.isatty())
            if path == before or _is_whole(path):
                return path
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise UserError(
            f"{what} arrived damaged, twice: its SHA-256 is not what the Hub names",
            "look for a proxy that changes what it passes on, or try again",
        )

    def request(
        self,
        action: Callable[[], Result],
        what: str,
        patience: float | None = None,
        *,
        announce: bool = True,
    ) -> Result:
        """The result of an action, repeated while what keeps it from succeeding may pass.

        Args:
            what: the action is about, for people.
            patience: seconds of pauses at most, `PATIENCE` by default; 0 makes a single attempt.
            announce: note the action where it takes longer than a moment.

        Raises:
            HubAway: the trouble did not pass in time.
            UserError: the Hub refuses.
        """
        from huggingface_hub import logging

        if "HF_HUB_VERBOSITY" not in os.environ:  # its words on retries; there are ours instead
            logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        with announced(f"waiting for the Hub ({what}) ..." if announce else None, self.tell) as tell:
            return self._patiently(action, what, PATIENCE if patience is None else patience, tell)

    def _patiently(self, action: Callable[[], Result], what: str, patience: float, tell: Tell) -> Result:
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
            if waited == FIRST_PAUSE:  # a single stumble is not worth a word
                tell(f"waiting for the Hub ({what}): {reason}; giving up after {duration(patience)}")
            pause = min(pause, patience - waited)
            time.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, LONGEST_PAUSE)
        if waited > FIRST_PAUSE:
            tell(f"the Hub answers again, after {duration(waited)} ({what})")
        return result

    def _sentence(self, error: Exception, what: str) -> UserError | None:
        """What an exception means for the action at hand; None where it is none of the Hub's."""
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
                    "expected a branch, a tag or a whole commit hash",
                )
            case errors.HFValidationError():
                return UserError(f"{absent} a name that the Hub takes: {first_line(error)}", CHECK[self.kind])
            case errors.HfHubHTTPError():
                return UserError(
                    f"the Hub refuses {what}: {reason}",
                    f"for what only some accounts may do, {LOG_IN} to a valid token of one that may",
                )
            case errors.LocalEntryNotFoundError() | json.JSONDecodeError():
                return UserError(
                    f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does",
                    "look at HF_ENDPOINT and at the proxy",
                )
        return None


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache is what its name says: large files are kept by their SHA-256."""
    name = path.resolve().name
    if len(name) != 64:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


# --- a push -------------------------------------------------------------------------------------------------


def check_can_push(repo_id: str) -> None:
    """Refuse a push that has no chance, before any work is done for it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    hint = "write owner/name, the owner being a user or an organisation of the Hub"
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id} is not a repository of the Hub", hint)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} is not a name that the Hub takes: {first_line(error)}", hint) from error
    try:
        Repository("model", repo_id).request(HfApi(library_name="mrt5cli").whoami, repo_id)
    except (UserError, OSError) as error:  # the latter where there is no token
        raise UserError(
            f"nothing can be pushed to {repo_id}: {trouble(error)[0]}",
            f"{LOG_IN} to a token that may write, or leave out --push and push the directory later",
        ) from error


def card_of(repo_id: str) -> str | None:
    """README.md as it stands in a repository now; None where there is none yet."""
    from huggingface_hub import HfApi

    repository, api = Repository("model", repo_id), HfApi(library_name="mrt5cli")
    there = repository.request(lambda: api.file_exists(repo_id, "README.md"), repo_id)
    return repository.fetch("README.md").read_text(encoding="utf-8", errors="replace") if there else None


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an exported directory, creating the repository if it is not there; see `check_can_push`.

    A new repository is private if that is wanted, else what the owner's settings on the Hub say, which is
    public by default; one that exists keeps its visibility. Weights and code of an earlier push are replaced;
    the rest of the repository stays. Returns the repository's address.
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
            f"the Hub refuses a push to {repo_id}: {trouble(error)[0]}",
            f"use a token with write permission for {repo_id.split('/')[0]}, or another repository",
        ) from error
    except (HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:  # Rust parts raise the third
        raise UserError(
            f"the upload to {repo_id} broke off: {first_line(error)}",
            f"{folder} is complete; push again, what has arrived is not sent twice",
        ) from error
    except ValueError as error:  # what huggingface_hub makes of the Hub's verdict on the card
        raise UserError(
            f"the Hub does not take README.md of {folder}: {' '.join(str(error).split())}",
            "correct it, and upload the directory with `hf upload`",
        ) from error
    return str(url)
