"""The Hugging Face Hub, as models, datasets and pushes need it: patience, and a sentence for what goes wrong.

Everything goes through huggingface_hub: its session with the proxies and certificates of the environment,
HF_ENDPOINT, the token, the cache that transformers and datasets share. It repeats only some of its requests:
not those about a repository, and a file's content not after an HTTP 5xx. Here trouble that may pass (no
connection, a slow answer, a Hub that is busy or down, a body cut off) is waited for, whatever met it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.text import Tell, announced, duration, first_line, say_nothing, say_on_stderr

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

TRY_LATER = "try again later"
REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_mrt5.py"]
"""What an earlier push may have left in a repository and a loader would still find."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# What takes longer is announced.
SILENT_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# What ran so long has had an answer and moved on, so that what ended it is new trouble.
MOVED_ON_SECONDS = 60.0
BUSY = (408, 425, 429)
"""Answers besides 5xx that may be others soon."""


class Limits(NamedTuple):
    """Seconds to wait for trouble to pass.

    Attributes:
        busy: where something answers.
        away: where nothing does: most likely there is no network, and nobody wants to wait to be told.
        asked: where the Hub itself says when to come again.
    """

    busy: float
    away: float
    asked: float


OPENING = Limits(busy=30.0, away=4.0, asked=300.0)
CACHED = Limits(busy=3.0, away=0.0, asked=3.0)
"""Where what is in the cache will do."""
Answer = TypeVar("Answer")


# --- trouble ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """What an exception of huggingface_hub means.

    Attributes:
        reason: in words.
        passes: it may pass by itself.
        connected: something answered.
        wait: seconds after which the Hub asks to come again; 0 where it does not.
        status: of its answer, if there was one.
    """

    reason: str
    passes: bool
    connected: bool = True
    wait: float = 0.0
    status: int | None = None


def trouble(error: BaseException) -> Trouble:
    """What an exception means; the cause that it wraps, where that is what happened."""
    from huggingface_hub import constants, errors

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.OfflineModeIsEnabled):
            return Trouble("HF_HUB_OFFLINE is set", passes=False, connected=False)
        response = getattr(link, "response", None)
        if isinstance(link, errors.HfHubHTTPError) and response is not None:
            status = int(response.status_code)
            said = " ".join((getattr(link, "server_message", None) or "").split())
            return Trouble(
                f"it answers {status}{f' ({said})' if said else ''}",
                passes=status in BUSY or status >= 500,
                wait=_asked_to_wait(response.headers),
                status=status,
            )
        if isinstance(link, errors.HTTPError | ConnectionError | TimeoutError):  # type: ignore[attr-defined]
            # The HTTP library under huggingface_hub has changed twice.
            names = {kind.__name__ for kind in type(link).__mro__}
            connected = names.isdisjoint({"ConnectError", "ConnectTimeout"})
            said = first_line(link).rstrip(".")
            return Trouble(f"{constants.ENDPOINT} cannot be reached ({said})", True, connected)
        if isinstance(link, OSError) and link.strerror:  # on this side: a full disk, say
            return Trouble(f"{link.strerror}{f': {link.filename}' if link.filename else ''}", passes=False)
        link = link.__cause__ or link.__context__
    return Trouble(first_line(error), passes=False)


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    after = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)
    if after.isdigit():
        return float(after)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def refusal(found: Trouble, what: str) -> UserError:
    """What somebody is told who gets no from the Hub, or an answer of something else.

    Args:
        what: was wanted, for people.
    """
    from huggingface_hub import constants, get_token

    if found.status is None:
        return UserError(
            f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does",
            "look at HF_ENDPOINT and at the proxy",
        )
    if found.status == 401 and get_token() is None:
        return UserError(f"the Hub asks for a login for {what}", LOG_IN)
    if found.status == 401:
        return UserError(
            f"the Hub does not accept the Hugging Face token it was given for {what}",
            "log in again with `hf auth login`, or set HF_TOKEN to a valid token",
        )
    hint = {
        403: f"the account may have no access: {LOG_IN}",
        404: "it may have been taken away, or made private, since it was listed",
    }.get(found.status)
    return UserError(f"the Hub refuses {what}: {found.reason}", hint)


# --- patience -----------------------------------------------------------------------------------------------


class OutOfPatience(Exception):
    """Trouble has not passed in time.

    Args:
        trouble: the last that was met.
        seconds: that were waited.
    """

    def __init__(self, trouble: Trouble, seconds: float) -> None:
        super().__init__(trouble.reason)
        self.trouble, self.seconds = trouble, seconds


def patiently(
    action: Callable[[], Answer], what: str, limits: Limits | None = None, tell: Tell = say_nothing
) -> Answer:
    """What an action gives, done again while what keeps it from succeeding may pass.

    Args:
        what: it is about, for people.
        limits: `OPENING` by default.
        tell: told when trouble takes longer than a moment, and when it is over.

    Raises:
        OutOfPatience: the trouble did not pass.
        Exception: of the action, where it will not pass.
    """
    first_tried = first_failed = 0.0
    pause, told = FIRST_PAUSE, False
    while True:
        tried = time.monotonic()
        try:
            with _quiet():
                answer = action()
        except UserError:
            raise  # it has been judged already
        except Exception as error:
            # Whatever it is, `trouble` says whether it may pass.
            found = trouble(error)
            if not found.passes:
                raise
            now = time.monotonic()
            if not first_failed or now - tried > MOVED_ON_SECONDS:
                first_tried, first_failed, pause = tried, now, FIRST_PAUSE
            busy, away, asked = limits or OPENING
            limit = asked if found.wait else busy if found.connected else away
            left = limit - (now - (first_failed if found.connected else first_tried))
            if left <= 0 or found.wait > left:
                raise OutOfPatience(found, now - first_failed) from error
            pause = min(max(pause, found.wait), left)
            if not told and now - first_tried + pause > SILENT_SECONDS:
                tell(f"waiting for the Hub ({what}): {found.reason}; giving up after {duration(limit)}")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if told:
                tell(f"the Hub answers again, after {duration(time.monotonic() - first_failed)} ({what})")
            return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave to us what huggingface_hub logs of what fails, unless HF_HUB_VERBOSITY asks for it."""
    from huggingface_hub import logging

    verbosity = logging.get_verbosity()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# --- a repository -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A model or a dataset of the Hub; whatever keeps it from being read is a `UserError`.

    Attributes:
        kind: which of the two.
        name: its id, "owner/name".
        revision: branch, tag or commit; None is the main branch.
        absent: begins to say that it is not there: "is not", where it could be nothing else.
        check: what to do about a wrong name.
        ways_out: what to do where there is no network.
        tell: told what is waited for, and that the cache stands in.
    """

    kind: Literal["model", "dataset"]
    name: str
    revision: str | None
    absent: str
    check: str
    ways_out: str
    tell: Tell

    def online_or_cached(
        self, online: Callable[[Limits], Answer], cached: Answer | None, commit: str, *, partly: bool = False
    ) -> Answer:
        """What the Hub has; what the cache has with HF_HUB_OFFLINE, or without a network.

        Args:
            online: asks the Hub.
            cached: what the cache has, at this `commit`, if that will do.
            partly: the cache has some of what is needed.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            if cached is None:
                where = f"{'whole ' if partly else ''}in the local Hub cache"
                at = "" if self.revision is None else f" at revision {self.revision!r}"
                raise UserError(
                    f"{self.name} {self.absent} {where}{at}, and HF_HUB_OFFLINE is set", self.ways_out
                )
            return cached
        try:
            return online(OPENING if cached is None else CACHED)
        except UserError as error:
            if cached is None or not isinstance(error.__cause__, OutOfPatience):
                raise
            reason = error.__cause__.trouble.reason
            self.tell(f"{self.name} is read from the local Hub cache, commit {commit}: {reason}")
            return cached

    def about(self, limits: Limits) -> ModelInfo | DatasetInfo:
        """What the Hub says of it, its commit and its files among that."""
        from huggingface_hub import HfApi, constants

        # Unlike a download, this does not repeat what fails for half a minute without a word.
        timeout = float(constants.HF_HUB_ETAG_TIMEOUT)
        api = HfApi(library_name="mrt5cli")
        information: Callable[..., ModelInfo | DatasetInfo] = (
            api.model_info if self.kind == "model" else api.dataset_info
        )
        return self.ask(lambda: information(self.name, revision=self.revision, timeout=timeout), limits)

    def cached(self, file: str, revision: str | None = None) -> Path | None:
        """A file in the cache, at another revision if one is given."""
        from huggingface_hub import try_to_load_from_cache

        with self.sentences():
            found = try_to_load_from_cache(
                self.name, file, repo_type=self.kind, revision=revision or self.revision
            )
        return Path(found) if isinstance(found, str) else None

    def fetch(self, file: str, revision: str | None = None) -> Path:
        """A file in the cache, downloaded if need be, and once more where it arrives damaged."""
        from huggingface_hub import hf_hub_download

        at = revision or self.revision

        def download() -> Path:
            try:
                return Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=at))
            except RuntimeError as error:  # the Rust part of hf_xet has no other name for trouble
                raise ConnectionError(first_line(error)) from error

        # A terminal shows huggingface_hub's own bar.
        slow = None if sys.stderr.isatty() else "downloading {} ..."
        for _ in range(2):
            before = self.cached(file, at)
            path = self.ask(download, what=f"{self.name}, {file}", slow=slow)
            if path == before or _is_whole(path):
                return path
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise UserError(
            f"{self.name}, {file} arrived damaged, twice: its SHA-256 is not what the Hub names",
            "look for a proxy that changes what it passes on, or try again",
        )

    def ask(
        self,
        question: Callable[[], Answer],
        limits: Limits | None = None,
        *,
        what: str | None = None,
        slow: str | None = "waiting for the Hub ({}) ...",
    ) -> Answer:
        """An answer of the Hub, waited for.

        Args:
            limits: `OPENING` by default.
            what: it is about, for people; the repository by default.
            slow: told of that when it takes longer than a moment; None tells nothing.
        """
        from huggingface_hub import constants

        what = what or self.name
        if not constants.ENDPOINT.startswith(("http://", "https://")):
            raise UserError(
                f"HF_ENDPOINT is {constants.ENDPOINT!r}; expected an address such as https://huggingface.co",
                "correct it, or unset it",
            )
        with announced(slow and slow.format(what), self.tell, SILENT_SECONDS) as tell, self.sentences(what):
            return patiently(question, what, limits, tell)

    @contextmanager
    def sentences(self, what: str | None = None) -> Iterator[None]:
        """Raise what keeps it from being read as a `UserError`.

        Args:
            what: is read, for people; the repository by default.
        """
        from huggingface_hub import constants, errors

        try:
            yield
        except OutOfPatience as error:
            found = error.trouble
            asks = f"; it asks to wait {duration(found.wait)}" if found.wait else ""
            message = f"{self.name} {self.absent} available from the Hugging Face Hub: {found.reason}{asks}"
            if found.connected:
                raise RunFailed(message, TRY_LATER) from error
            raise UserError(message, self.ways_out) from error
        except errors.GatedRepoError as error:
            page = f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"
            raise UserError(
                f"{self.name} is gated: its owners grant access on request",
                f"ask for access at {page}, then {LOG_IN}",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{self.name} {self.absent} a {self.kind} of the Hugging Face Hub, or it is private",
                f"{self.check}; for a private {self.kind} {LOG_IN}",
            ) from error
        except errors.RevisionNotFoundError as error:
            where = " as task.source.revision" if self.kind == "dataset" else ""
            raise UserError(
                f"{self.name} has no revision {self.revision!r}",
                f"expected a branch, a tag or a whole commit hash{where}",
            ) from error
        except errors.HFValidationError as error:
            raise UserError(
                f"{self.name} {self.absent} a name that the Hub takes: {first_line(error)}", self.check
            ) from error
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, json.JSONDecodeError) as error:
            raise refusal(trouble(error), what or self.name) from error
        except OSError as error:
            if not error.strerror:
                raise
            raise UserError(f"{what or self.name} cannot be read: {trouble(error).reason}") from error


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache is what its name says: large files are kept by their SHA-256."""
    name = path.resolve().name
    if len(name) != 64:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


# --- a push -------------------------------------------------------------------------------------------------


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot name a repository of somebody's.

    Raises:
        UserError: it has no owner, or characters the Hub does not take.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    hint = "write owner/name, the owner being a user or an organisation of the Hub"
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id} is not a repository of the Hub", hint)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} is not a name that the Hub takes: {first_line(error)}", hint) from error


def check_can_push(repo_id: str) -> None:
    """Refuse a push that has no chance, before any work is done for it.

    Raises:
        UserError: the name is impossible, nobody is logged in, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"nothing can be pushed to {repo_id} while HF_HUB_OFFLINE is set", "unset it, or leave out --push"
        )
    if get_token() is None:
        raise UserError(
            f"pushing to {repo_id} needs a Hugging Face token, and there is none",
            f"{LOG_IN} to a token that may write",
        )
    try:
        patiently(HfApi(library_name="mrt5cli").whoami, repo_id, tell=say_on_stderr)
    except OutOfPatience as error:
        raise UserError(
            f"pushing to {repo_id} needs the Hub, and {error.trouble.reason}",
            "push the directory later, or leave out --push",
        ) from error
    except (HfHubHTTPError, json.JSONDecodeError) as error:
        raise _push_refused(error, repo_id) from error


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an exported directory, creating the repository if it is not there; see `check_can_push`.

    A new repository is private if that is asked for, else what the owner's settings on the Hub say, which is
    public by default; one that exists keeps its visibility. Weights and code of an earlier push are replaced;
    the rest of the repository stays.

    Returns:
        The repository's address.

    Raises:
        UserError: no network, no token, no permission, or whatever else the Hub objects to.
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
        raise _push_refused(error, repo_id) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the last is what the upload's Rust part raises
        raise UserError(
            f"the upload to {repo_id} broke off: {first_line(error)}",
            f"{folder} is complete; push again, what has arrived is not sent twice",
        ) from error
    return str(url)


def _push_refused(error: Exception, repo_id: str) -> UserError:
    found = trouble(error)
    if found.status in (403, 404):
        return UserError(
            f"the token's owner may not write to {repo_id}, or the Hub knows no {repo_id.split('/')[0]}",
            "use a token with write permission for that owner, or another repository",
        )
    return refusal(found, repo_id)
