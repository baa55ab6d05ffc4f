"""Datasets of the Hugging Face Hub: what a configuration consists of, and the bytes of its files.

Every request goes through huggingface_hub's session, which knows proxies, HF_ENDPOINT, tokens and
certificates. Trouble that may pass (no connection, a slow answer, a Hub that is busy or down, a body cut off)
is waited for: a few seconds when a dataset is opened, as long as a recipe says in mid-stream.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeVar

from mrt5cli.errors import RunFailed, UserError

# What takes longer is announced.
SILENT_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
BLOCK_BYTES = 4 << 20
DOWNLOADS = 3
BUSY = (408, 429)
_SUFFIX = re.compile(r"\.(jsonl?|parquet|csv|tsv|txt)(\.(gz|bz2|xz))?$")
_PIECE = re.compile(r"\d+-of-(\d+)")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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


OPENING = Limits(busy=30.0, away=6.0, asked=300.0)
Answer = TypeVar("Answer")
Tell = Callable[[str], None]


def say(text: str) -> None:
    """Print on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_nothing(text: str) -> None:
    """For processes that are not to speak."""


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
    from huggingface_hub import errors

    reason = first_line(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.OfflineModeIsEnabled):
            return Trouble("HF_HUB_OFFLINE is set", passes=False, connected=False)
        response = getattr(link, "response", None)
        if isinstance(link, errors.HfHubHTTPError) and response is not None:
            status = int(response.status_code)
            said = getattr(link, "server_message", None)
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
            return Trouble(first_line(link), passes=True, connected=connected)
        link = link.__cause__ or link.__context__
    return Trouble(reason, passes=False)


def _asked_to_wait(headers: Any) -> float:
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    after = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)
    if after.isdigit():
        return float(after)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


class OutOfPatience(Exception):
    """Trouble has not passed in time.

    Args:
        trouble: the last that was met.
        seconds: that were waited.
    """

    def __init__(self, trouble: Trouble, seconds: float) -> None:
        super().__init__(trouble.reason)
        self.trouble, self.seconds = trouble, seconds


def patiently(action: Callable[[], Answer], what: str, limits: Limits, tell: Tell) -> Answer:
    """What an action gives, done again while what keeps it from succeeding may pass.

    Args:
        what: it is about, for people.
        tell: told when trouble takes longer than a moment, and when it is over.

    Raises:
        OutOfPatience: the trouble did not pass.
        Exception: of the action, where it will not pass.
    """
    first_tried = first_failed = None
    pause, told = FIRST_PAUSE, False
    while True:
        tried = time.monotonic()
        try:
            answer = action()
        except UserError:
            raise  # it has been judged already
        except Exception as error:
            # Whatever it is, `trouble` says whether it may pass.
            found = trouble(error)
            if not found.passes:
                raise
            now = time.monotonic()
            first_tried, first_failed = first_tried or tried, first_failed or now
            limit = limits.asked if found.wait else limits.busy if found.connected else limits.away
            left = limit - (now - (first_failed if found.connected else first_tried))
            if left <= 0 or found.wait > left:
                raise OutOfPatience(found, now - first_failed) from error
            pause = min(max(pause, found.wait), left)
            if not told and now - first_tried + pause > SILENT_SECONDS:
                tell(f"waiting for the Hub ({what}): {found.reason}; giving up after {in_words(limit)}")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if told and first_failed is not None:
                tell(f"the Hub answers again, after {in_words(time.monotonic() - first_failed)} ({what})")
            return answer


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its name."""
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def in_words(seconds: float) -> str:
    """ "45 s", "30 min", "2 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


# --- a dataset ----------------------------------------------------------------------------------------------


class HubDataset:
    """A dataset at one commit: its configurations, and their files by split.

    What is asked of the Hub is asked once. Offline, all is what an earlier use left in the cache.

    Args:
        name: its id.
        revision: commit, tag or branch; None is the main branch.
        ways_out: what to do where there is no network.
        cached: take what the cache has, and say so, where there is no network.

    Raises:
        UserError: no network, no such dataset or revision, no access.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        *,
        ways_out: str,
        cached: bool = False,
        tell: Tell = say,
    ) -> None:
        from huggingface_hub import constants

        self.name, self._revision, self._ways_out, self._tell = name, revision, ways_out, tell
        self._files: dict[tuple[str, str], list[str]] = {}
        _speak_for_libraries()
        self._offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        self._read_configurations(self._find(cached))

    def configuration(self, name: str | None) -> str:
        """A configuration by its name; the one that counts where none is given.

        Raises:
            UserError: there is no such configuration, or there are several.
        """
        there = list(self._configurations)
        if name is None and (name := self._default) is None:
            raise UserError(f"{self.name} has several configurations: {_some(there)}")
        if name not in self._configurations:
            near = difflib.get_close_matches(name, there, 3)
            raise UserError(
                f"{self.name} has no configuration {name!r}; it has {_some(near or there)}"
                f"{f' ... ({len(there)} in all)' if len(there) > len(near) > 0 else ''}",
                "see task.source.configurations and task.languages",
            )
        return name

    def splits(self, configuration: str) -> list[str]:
        """Names of the splits of a configuration."""
        return list(self._patterns(configuration))

    def files(self, configuration: str, split: str) -> list[str]:
        """Paths in the repository of the files of a split, in the dataset's order.

        Raises:
            UserError: they are not there, or the Hub is not.
        """
        from datasets.data_files import resolve_pattern

        key = configuration, split
        if key in self._files:
            return self._files[key]
        folder = self._folder(configuration)

        def listed() -> list[str]:
            patterns = self._patterns(configuration)[split]
            return [file for pattern in patterns for file in resolve_pattern(pattern, folder)]

        found: list[str] = []
        missing = None
        try:
            found = self._ask(listed, "listing the files of {} ...")
        except FileNotFoundError as error:
            missing = first_line(error)
        found = [file.removeprefix(self._base).lstrip("/") for file in found]
        files = [file for file in found if _SUFFIX.search(file)]
        if not files or (self._offline and not _complete(files)):
            where = f"{self.name}, {configuration}, {split}"
            if self._offline:
                raise UserError(f"{where}: {self._offline} and not all files are cached", self._ways_out)
            raise UserError(
                f"{where}: {missing or f'no files that this toolkit reads, only {_some(found)}'}",
                "JSON lines, Parquet, CSV, TSV and plain text are read; a dataset that a script makes is not",
            )
        self._files[key] = files
        return files

    def label_names(self, configuration: str, column: str, path: Path) -> list[str] | None:
        """Names of a column's classes, in the order of their numbers, where the dataset has any.

        Args:
            path: a downloaded file, which may say what the dataset's page does not.
        """
        from datasets.info import DatasetInfosDict

        info = DatasetInfosDict.from_dataset_card_data(self._metadata).get(configuration)
        features: Any = (info.features if info else None) or {}
        if column not in features and path.suffix == ".parquet":
            features = _features_of(path)
        return getattr(features.get(column), "names", None)

    def download(self, file: str) -> Path:
        """A file in the cache, downloaded if need be; one that is not what the Hub says it is, again.

        Raises:
            UserError: it cannot be had whole.
        """
        if self._offline:
            return Path(self._base) / file
        # A terminal shows huggingface_hub's own bar.
        slow = None if sys.stderr.isatty() else f"downloading {file} of {self.name} ..."
        for anew in (False, *[True] * (DOWNLOADS - 1)):
            path = Path(self._ask(partial(self._fetch, file, anew), slow))
            if _is_whole(path):
                return path
        raise UserError(
            f"{self.name}, {file}: what the Hub sends is not what it says it has (SHA-256), {DOWNLOADS} times"
        )

    def open(self, file: str, *, seconds: float, tell: Tell = say_nothing) -> BinaryIO:
        """A file's bytes, read from the Hub a few megabytes at a time.

        Args:
            seconds: to wait for a Hub that does not answer.
            tell: is told of it.
        """
        if self._offline:
            return (Path(self._base) / file).open("rb")
        return io.BufferedReader(RemoteFile(self, file, seconds, tell), BLOCK_BYTES)

    # How it is found.

    def _find(self, cached: bool) -> Path | None:
        """README.md, and with it the commit, on the Hub or in the cache."""
        with self._errors():
            there = self._cached_card()
        if not self._offline:
            try:
                self.commit, card = self._ask(self._card)
            except UserError as error:
                if not cached or there is None or not isinstance(error.__cause__, OutOfPatience):
                    raise
                self._offline = "there is no network"
                self._tell(f"{error.message}; it is read from the cache, commit {there.parent.name}")
            else:
                self._base = f"hf://datasets/{self.name}@{self.commit}"
                return card
        if there is None:
            at = "" if self._revision is None else f" at {self._revision}"
            raise UserError(
                f"{self.name}{at} cannot be read: {self._offline} and it is not cached", self._ways_out
            )
        self.commit, self._base = there.parent.name, str(there.parent)
        return there

    def _fetch(self, file: str, anew: bool) -> str:
        from huggingface_hub import hf_hub_download

        try:
            return str(hf_hub_download(self.name, file, force_download=anew, **self._at(self.commit)))
        except RuntimeError as error:  # the Rust part of hf_xet has no other name for trouble
            raise ConnectionError(first_line(error)) from error

    @staticmethod
    def _at(revision: str | None) -> dict[str, Any]:
        return {"repo_type": "dataset", "revision": revision}

    def _card(self) -> tuple[str, Path | None]:
        """The commit, and README.md; to ask for that finds out about access, too."""
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        # A download repeats what fails for half a minute without a word; this does not.
        timeout = float(constants.HF_HUB_ETAG_TIMEOUT)
        information = HfApi().dataset_info(self.name, revision=self._revision, timeout=timeout)
        try:
            path = hf_hub_download(self.name, "README.md", **self._at(self._revision))
        except RemoteEntryNotFoundError:
            return str(information.sha), None
        return Path(path).parent.name, Path(path)

    def _cached_card(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, "README.md", **self._at(self._revision))
        return Path(found) if isinstance(found, str) else None

    def _read_configurations(self, card: Path | None) -> None:
        """Read what README.md says of configurations; without that, files are told apart by their names."""
        import yaml
        from datasets.utils.metadata import MetadataConfigs
        from huggingface_hub import DatasetCardData, metadata_load

        try:
            self._metadata = DatasetCardData(**((metadata_load(card) if card else None) or {}))
            configurations = MetadataConfigs.from_dataset_card_data(self._metadata)
            self._default = configurations.get_default_config_name() if configurations else "default"
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{self.name}: its README.md is wrong: {first_line(error)}") from error
        self._configurations: dict[str, dict[str, Any]] = dict(configurations) or {"default": {}}

    def _patterns(self, configuration: str) -> dict[str, list[str]]:
        from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns

        entry = self._configurations[configuration]
        if "data_files" not in entry:
            folder = self._folder(configuration)
            try:
                entry["data_files"] = self._ask(lambda: get_data_patterns(folder))
            except EmptyDatasetError as error:
                raise UserError(f"{self.name} holds no data files") from error
        return {str(split): list(some) for split, some in sanitize_patterns(entry["data_files"]).items()}

    def _folder(self, configuration: str) -> str:
        return "/".join(filter(None, (self._base, self._configurations[configuration].get("data_dir"))))

    def _ask(
        self, question: Callable[[], Answer], slow: str | None = "waiting for the Hub ({}) ..."
    ) -> Answer:
        """The answer, or a sentence.

        Args:
            slow: said when it takes longer than a moment; None says nothing.
        """
        with _announced(slow and slow.format(self.name), self._tell) as tell, self._errors():
            return patiently(question, self.name, OPENING, tell)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Sentences for what keeps a dataset from being opened."""
        from huggingface_hub import constants, errors

        try:
            yield
        except OutOfPatience as error:
            reason = error.trouble.reason
            text = (
                f"{self.name} cannot be read from the Hugging Face Hub: {reason}"
                if error.trouble.connected
                else f"no network to read {self.name}: {reason}"
            )
            raise UserError(text, self._ways_out) from error
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.name} is gated: its owners grant access on request",
                f"ask for access at {constants.ENDPOINT}/datasets/{self.name}, then {LOG_IN}",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"there is no dataset {self.name!r} on the Hugging Face Hub, or it is private",
                f"check task.source.name; for a private dataset {LOG_IN}",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{self.name} has no revision {self._revision!r}",
                "task.source.revision takes a commit, a tag or a branch",
            ) from error
        except errors.HFValidationError as error:
            raise UserError(
                f"{self.name!r} is no name of a dataset: {first_line(error)}", "see task.source.name"
            ) from error
        except (errors.LocalEntryNotFoundError, json.JSONDecodeError) as error:
            raise UserError(
                f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does: {trouble(error).reason}",
                "look at HF_ENDPOINT and at the proxy",
            ) from error
        except errors.HfHubHTTPError as error:
            hint = LOG_IN if trouble(error).status in (401, 403) else None
            raise UserError(
                f"the Hugging Face Hub refused {self.name}: {trouble(error).reason}", hint
            ) from error


class RemoteFile(io.RawIOBase):
    """A file of a dataset, from whose bytes any part can be asked for; requests that fail are repeated.

    Args:
        dataset: whose.
        file: its path in the repository.
        seconds: to wait for a Hub that does not answer.
        tell: is told of it.

    Reading raises `RunFailed` where the Hub is away for longer, `UserError` where it refuses.
    """

    def __init__(self, dataset: HubDataset, file: str, seconds: float, tell: Tell) -> None:
        from huggingface_hub import hf_hub_url

        super().__init__()
        self._name, self._file, self._seconds, self._tell = dataset.name, file, seconds, tell
        self._url = hf_hub_url(dataset.name, file, repo_type="dataset", revision=dataset.commit)
        self._place, self._size = 0, -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END and self._size < 0:
            self._read(0, 1)  # an answer says how long the file is
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        if len(buffer) == 0 or 0 <= self._size <= self._place:
            return 0
        content = self._read(self._place, len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def readall(self) -> bytes:
        parts = []
        while part := self.read(BLOCK_BYTES):
            parts.append(part)
        return b"".join(parts)

    def _read(self, first: int, count: int) -> bytes:
        try:
            limits = Limits(self._seconds, self._seconds, self._seconds)
            what = f"{self._name}, {self._file}"
            return patiently(lambda: self._ask(first, count), what, limits, self._tell)
        except OutOfPatience as error:
            waited = f" for {in_words(error.seconds)}" if error.seconds >= 1 else ""
            raise RunFailed(
                f"the Hub has not given {self._name}, {self._file}{waited}: {error.trouble.reason}"
            ) from error
        except Exception as error:
            self._refused(error)

    def _ask(self, first: int, count: int) -> bytes:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        headers = {"Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
        response = get_session().get(
            self._url, headers={**build_hf_headers(), **headers}, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        if response.status_code == 416:  # nothing there, as in an empty file
            self._size = max(self._size, 0)
            return b""
        hf_raise_for_status(response)
        content: bytes = response.content
        if response.status_code != 206:
            # A proxy that does not know ranges sends all of it.
            self._size = len(content)
            return content[first : first + count]
        self._size = int(response.headers["Content-Range"].rpartition("/")[2])
        return content

    def _refused(self, error: Exception) -> NoReturn:
        found, what = trouble(error), f"{self._name}, {self._file}"
        if found.status is None:
            raise RunFailed(f"reading {what} from the Hub failed: {found.reason}") from error
        hint = f"the account may have lost its access: {LOG_IN}" if found.status in (401, 403) else None
        raise UserError(f"the Hub refuses {what}: {found.reason}", hint) from error


def _features_of(path: Path) -> Any:
    """The features that a Parquet file was written with, by name."""
    import pyarrow as pa
    from datasets import Features
    from pyarrow import parquet

    try:
        return Features.from_arrow_schema(parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return {}  # whoever reads its rows says what is wrong


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache is what its name says: large files are kept by their SHA-256."""
    name = path.resolve().name
    if len(name) != 64:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


def _speak_for_libraries() -> None:
    """What huggingface_hub and datasets would log of retries, we say in our own words."""
    import datasets
    import huggingface_hub

    if "HF_HUB_VERBOSITY" not in os.environ:
        huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if "DATASETS_VERBOSITY" not in os.environ:
        datasets.logging.set_verbosity_error()


@contextmanager
def _announced(text: str | None, tell: Tell) -> Iterator[Tell]:
    """Tell what is waited for, if it takes longer than a moment and nothing has been told of it by then."""
    timer = Timer(SILENT_SECONDS, tell if text else say_nothing, [text])
    timer.daemon = True
    timer.start()

    def tell_instead(other: str) -> None:
        timer.cancel()
        tell(other)

    try:
        yield tell_instead
    finally:
        timer.cancel()


def _complete(files: Sequence[str]) -> bool:
    """Whether none of the pieces is missing that names such as train-00000-of-00002 count."""
    pieces = Counter(
        (file[: match.start()], int(match[1])) for file in files if (match := _PIECE.search(file))
    )
    return all(count == total for (_, total), count in pieces.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" ... ({len(names)} in all)" if len(names) > 8 else "")
