"""What a user names as a model, as a folder on this machine: a run, a checkpoint, or a model of the Hugging
Face Hub, which is resolved to a commit and downloaded once. What reads checkpoints reads folders only.

Everything goes through huggingface_hub: its session with the proxies and certificates of the environment,
HF_ENDPOINT, the token, the cache that transformers shares. Requests are asked again where it gives up early.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import parse_ratelimit_headers

from mrt5cli.models.layouts import CheckpointError, first_line, hub_name, read_raw_config
from mrt5cli.models.weights import (
    PICKLE,
    PICKLE_INDEX,
    SAFE,
    SAFE_INDEX,
    check_files,
    pickles_refused,
    shards_in,
)
from mrt5cli.rundir import resolve_model

if TYPE_CHECKING:
    from mrt5cli.rundir import RunDir

CONFIG = "config.json"
BESIDE = ("generation_config.json", "recipe.yaml")
"""Small files that come along if the repository has them: how to generate, and the task it was trained on."""
WEIGHTS = ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX))
"""Each format in one file or, by its index, in several; the first that is there is taken."""

ATTEMPTS, UNHEARD = 5, 3
"""How often a request is made while the Hub answers that it cannot serve it, and while nothing answers."""
TIMEOUT, IMPATIENT = 10.0, 5.0
"""Seconds to wait for an answer about a model, the second where the model is in the cache already."""
LONGEST_WAIT = 300.0
"""Seconds: a Hub that asks to be left alone for longer ends the attempt."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
NO_NETWORK = (errors.HTTPError, ConnectionError, TimeoutError)

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Located:
    """A model on this machine.

    Attributes:
        folder: a checkpoint directory.
        run: the run it belongs to, or None.
        commit: of the Hub repository it comes from, or None.
    """

    folder: Path
    run: RunDir | None = None
    commit: str | None = None


def locate(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = True,
    weights: bool = True,
) -> Located:
    """The folder of a run directory, a checkpoint directory or a Hub id, downloaded if need be.

    Args:
        path_or_hub_id: a run stands for its finished model, or its latest checkpoint while there is none.
        revision: branch, tag or commit, of a Hub id only.
        allow_pickle: False refuses a model whose weights are in pickles alone.
        weights: False leaves the weights of a Hub model where they are.

    Raises:
        UserError: it is none of the three.
        CheckpointError: the Hub model cannot be had, the revision is of a directory, or what is there are
            pickles, and none may be read.
    """
    where, run = resolve_model(path_or_hub_id)
    found = Located(Path(where), run)
    if not found.folder.is_dir():
        found = snapshot(where, revision, allow_pickle=allow_pickle, weights=weights)
    elif revision is not None:
        raise CheckpointError(
            f"{path_or_hub_id} is a directory here, and has no revision {revision!r}: only Hub models do"
        )
    if not allow_pickle and check_files(found.folder):
        raise pickles_refused(hub_name(found.folder) or where)
    return found


def snapshot(
    hub_id: str, revision: str | None = None, *, allow_pickle: bool = True, weights: bool = True
) -> Located:
    """A model of the Hub in the local cache, at the commit that a revision means now.

    Without a network, or with HF_HUB_OFFLINE, what it meant when it was last downloaded. Weights are taken
    from safetensors files, or else from pickles; nothing else is looked for, and no service that converts
    them. Downloaded weights are checked against the SHA-256 that the Hub names.

    Args:
        hub_id: "owner/name".
        revision: branch, tag or commit; None for main.
        allow_pickle: False downloads no pickles, and refuses a model that has nothing else.
        weights: as `locate`.

    Raises:
        CheckpointError: there is no such model or revision, it may not be read, its files are not those of a
            model of ours, or neither Hub nor cache has it.
    """
    cached = None
    try:
        cached = _cached(hub_id, revision, weights)
        if constants.HF_HUB_OFFLINE:
            if cached is None:
                raise CheckpointError(
                    f"{hub_id} is neither a directory here nor {_how_far(hub_id, revision)}, and "
                    "HF_HUB_OFFLINE is set; unset it, or give a checkpoint directory"
                )
            return cached
        return _downloaded(hub_id, revision, allow_pickle, weights, hurry=cached is not None)
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"{hub_id} is neither a directory here nor a name that the Hub takes: {first_line(error)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} has no revision {revision!r}; expected a branch, a tag or a whole commit hash"
        ) from error
    except NO_NETWORK as error:
        if cached is None:
            raise _refusal(hub_id, revision, error) from error
        logger.warning("%s is read from the local cache, commit %s: %s", hub_id, cached.commit, reason(error))
        return cached
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{constants.ENDPOINT} does not answer as the Hub does; look at HF_ENDPOINT and at the proxy"
        ) from error
    except (OSError, RuntimeError) as error:  # the second is what hf_xet's Rust part raises
        raise CheckpointError(f"{hub_id} cannot be downloaded: {reason(error)}") from error


def _downloaded(
    hub_id: str, revision: str | None, allow_pickle: bool, weights: bool, *, hurry: bool
) -> Located:
    """The model as the Hub has it now, config.json first: another kind of model is refused before its weights
    are downloaded."""
    api = HfApi(library_name="mrt5cli")
    timeout = IMPATIENT if hurry else TIMEOUT
    about = patiently(
        lambda: api.model_info(hub_id, revision=revision, timeout=timeout), attempts=1 if hurry else ATTEMPTS
    )
    names = [file.rfilename for file in about.siblings or ()]
    if CONFIG not in names:
        raise CheckpointError(f"{hub_id} is not a checkpoint: its repository on the Hub has no {CONFIG}")
    # Asked for by the name of the revision, so that the cache knows which commit that was.
    config = Path(patiently(lambda: hf_hub_download(hub_id, CONFIG, revision=revision)))
    commit = config.parent.name
    read_raw_config(config, hub_id)
    for name in BESIDE:
        if name in names:
            _file(hub_id, name, commit)
    if weights:
        single, index = _format_of(hub_id, names)
        if single == PICKLE and not allow_pickle:
            raise pickles_refused(hub_id)
        _weights(api, hub_id, commit, single if single in names else index)
    return Located(config.parent, commit=commit)


def _format_of(hub_id: str, names: Sequence[str]) -> tuple[str, str]:
    """The best of `WEIGHTS` that a repository has."""
    for single, index in WEIGHTS:
        if single in names or index in names:
            return single, index
    others = ", ".join(sorted(name for name in names if name.endswith((".h5", ".msgpack", ".bin", ".pt"))))
    raise CheckpointError(
        f"{hub_id} has no weights that can be read: neither {SAFE} nor {PICKLE} nor an index of one"
        + (f", only {others}" if others else "")
    )


def _weights(api: HfApi, hub_id: str, commit: str, file: str) -> None:
    """Have the weights, all shards of them where `file` is an index."""
    files = [file]
    if file in (SAFE_INDEX, PICKLE_INDEX):
        index = _file(hub_id, file, commit)
        files = shards_in(index)
    files = [name for name in files if not _in_cache(hub_id, name, commit)]
    if not files:
        return
    entries = patiently(lambda: api.get_paths_info(hub_id, files, revision=commit))
    lfs = {entry.path: getattr(entry, "lfs", None) for entry in entries}
    for name in files:
        stored = lfs.get(name)
        expected = None if stored is None else stored.sha256
        path = _file(hub_id, name, commit)
        if expected is not None and _sha256(path) != expected:
            path = _file(hub_id, name, commit, force_download=True)
            if _sha256(path) != expected:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
                raise CheckpointError(
                    f"{hub_id}: {name} arrived damaged, twice: its SHA-256 is not what the Hub names, "
                    f"{expected}; look for a proxy that changes what it passes on, or try again"
                )


def _file(hub_id: str, name: str, commit: str, **options: Any) -> Path:
    return Path(patiently(lambda: hf_hub_download(hub_id, name, revision=commit, **options)))


def _in_cache(hub_id: str, name: str, revision: str | None) -> Path | None:
    found = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(hub_id: str, revision: str | None, weights: bool) -> Located | None:
    """The model in the local cache, if all that is needed of it is there."""
    config = _in_cache(hub_id, CONFIG, revision)
    if config is None:
        return None
    found = Located(config.parent, commit=config.parent.name)
    if weights:
        try:
            check_files(found.folder)
        except CheckpointError:
            return None
    return found


def _how_far(hub_id: str, revision: str | None) -> str:
    """How much of a model that cannot be used is in the cache, in words."""
    at = "" if revision is None else f" at revision {revision!r}"
    if _in_cache(hub_id, CONFIG, revision) is None:
        return f"in the local Hub cache{at}"
    return f"whole in the local Hub cache{at}: its weights, or some of them, are missing there"


# --- asking -------------------------------------------------------------------------------------------------


def patiently(call: Callable[[], Answer], *, attempts: int = ATTEMPTS) -> Answer:
    """What a request to the Hub gives, made again while the Hub is busy, and a little while nothing answers.

    huggingface_hub makes only some of its requests again: not those about a repository, and a file's content
    not after an HTTP 5xx or a connection that breaks.

    Args:
        call: makes the request.
        attempts: how often at most; fewer while nothing answers at all.

    Raises:
        HTTPError, OSError: what the last attempt raised.
    """
    for attempt in range(1, attempts + 1):
        try:
            with _without_its_remarks():
                return call()
        except (errors.HTTPError, OSError, RuntimeError) as error:
            cause = _cause(error)
            seconds = _seconds_until_again(cause, attempt)
            if seconds is None or attempt == attempts:
                if cause is error:
                    raise
                raise cause from None
            logger.warning("%s; asking again in %g s", reason(cause), seconds)
            time.sleep(seconds)
    raise ValueError("no attempt was allowed")


def _seconds_until_again(error: BaseException, attempt: int) -> float | None:
    """How long to wait before a request is made again; None if it should not be."""
    usual = float(2 ** (attempt - 1))
    if not isinstance(error, errors.HfHubHTTPError):
        # A file on this side that cannot be written has an errno that no network error has.
        local = isinstance(error, OSError) and not isinstance(error, NO_NETWORK) and error.errno is not None
        return None if local or attempt >= UNHEARD else usual
    if error.response.status_code not in BUSY:
        return None
    headers = error.response.headers
    asked = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)
    seconds = usual
    if asked.isdigit():
        seconds = float(asked)
    elif limit is not None and limit.remaining == 0:
        seconds = float(limit.reset_in_seconds)
    return seconds if seconds <= LONGEST_WAIT else None


def _cause(error: BaseException) -> BaseException:
    """What went wrong, where huggingface_hub reports only that a file is not in the cache either."""
    wrapped = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    return wrapped or error


def reason(error: BaseException) -> str:
    """Why a request failed, in a phrase, "the Hub answers with HTTP 503"."""
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub answers with HTTP {error.response.status_code}"
    if isinstance(error, NO_NETWORK):
        said = first_line(error) if str(error) else type(error).__name__
        return f"{constants.ENDPOINT} cannot be reached ({said})"
    return getattr(error, "strerror", None) or first_line(error)


def _refusal(hub_id: str, revision: str | None, error: BaseException) -> CheckpointError:
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{hub_id} is gated: ask for access on its page, {constants.ENDPOINT}/{hub_id}, and log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{hub_id} is no directory here, and the Hub has no such model, or it is private; check the "
            "name, or log in with `hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return CheckpointError(
            f"{hub_id}: the Hub does not accept the Hugging Face token it was given "
            f"(HTTP {error.response.status_code}); log in again with `hf auth login`, or set HF_TOKEN to a "
            "valid token"
        )
    what = _how_far(hub_id, revision)
    return CheckpointError(
        f"{hub_id} is neither a directory here nor {what}, and {reason(error)}; try again later, or give a "
        "checkpoint directory"
    )


@contextmanager
def _without_its_remarks() -> Iterator[None]:
    """huggingface_hub's own lines about what fails stay unsaid; `patiently` says it."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
