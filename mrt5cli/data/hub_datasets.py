"""Datasets of the Hugging Face Hub: what a configuration consists of, and the bytes of its files.

Trouble that may pass is waited for, see `mrt5cli.hub`: a few seconds when a dataset is opened, as long as a
recipe says in mid-stream.
"""

from __future__ import annotations

import difflib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mrt5cli.data.formats import suffix_of
from mrt5cli.data.splits import missing_pieces
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.hub import TRY_LATER, Limits, OutOfPatience, Repository, patiently, trouble
from mrt5cli.text import Tell, duration, first_line, listed, say_nothing, say_on_stderr

BLOCK_BYTES = 4 << 20
CARD = "README.md"


class _Found(NamedTuple):
    """A dataset's commit, where its files are, and README.md, which says what it consists of."""

    commit: str
    base: str
    card: Path | None


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
        tell: Tell = say_on_stderr,
    ) -> None:
        from huggingface_hub import constants

        self.name = name
        self.repository = Repository(
            "dataset",
            name,
            revision,
            absent="is not",
            check="check task.source.name",
            ways_out=ways_out,
            tell=tell,
        )
        self._files: dict[tuple[str, str], list[str]] = {}
        card = self.repository.cached(CARD)
        here = None
        if card is not None and (cached or constants.HF_HUB_OFFLINE):
            here = _Found(card.parent.name, str(card.parent), card)
        found = self.repository.online_or_cached(self._find, here, here.commit if here else "")
        self.commit, self._base, card = found
        self._offline = found is here
        self._read_configurations(card)

    def configuration(self, name: str | None) -> str:
        """A configuration by its name; the one that counts where none is given.

        Raises:
            UserError: there is no such configuration, or there are several.
        """
        there = list(self._configurations)
        if name is None and (name := self._default) is None:
            raise UserError(f"{self.name} has several configurations: {listed(there)}")
        if name not in self._configurations:
            near = difflib.get_close_matches(name, there, 3)
            there = [*near, *(other for other in there if other not in near)]
            raise UserError(
                f"{self.name} has no configuration {name!r}; it has {listed(there, len(near) or 8)}",
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

        def resolved() -> list[str]:
            patterns = self._patterns(configuration)[split]
            return [file for pattern in patterns for file in resolve_pattern(pattern, folder)]

        found: list[str] = []
        missing = None
        try:
            found = self.repository.ask(resolved, slow="listing the files of {} ...")
        except FileNotFoundError as error:
            missing = first_line(error)
        found = [file.removeprefix(self._base).lstrip("/") for file in found]
        files = [file for file in found if suffix_of(file)]
        if not files or (self._offline and missing_pieces(files)):
            where = f"{self.name}, {configuration}, {split}"
            if self._offline:
                raise UserError(
                    f"{where}: not all files are in the local Hub cache, and HF_HUB_OFFLINE is set",
                    self.repository.ways_out,
                )
            raise UserError(
                f"{where}: {missing or f'no files that this toolkit reads, only {listed(found)}'}",
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
        """A file in the cache, downloaded if need be.

        Raises:
            UserError: it cannot be had whole.
        """
        return Path(self._base) / file if self._offline else self.repository.fetch(file, self.commit)

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

    def _find(self, limits: Limits) -> _Found:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        commit, card = str(self.repository.about(limits).sha), None
        try:
            # Who asks for a file finds out about access, too.
            card = self.repository.fetch(CARD)
            commit = card.parent.name
        except UserError as error:
            if not isinstance(error.__cause__, RemoteEntryNotFoundError):
                raise
        return _Found(commit, f"hf://datasets/{self.name}@{commit}", card)

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
                entry["data_files"] = self.repository.ask(lambda: get_data_patterns(folder))
            except EmptyDatasetError as error:
                raise UserError(f"{self.name} holds no data files") from error
        return {str(split): list(some) for split, some in sanitize_patterns(entry["data_files"]).items()}

    def _folder(self, configuration: str) -> str:
        return "/".join(filter(None, (self._base, self._configurations[configuration].get("data_dir"))))


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
        self._dataset, self._what = dataset.repository, f"{dataset.name}, {file}"
        self._seconds, self._tell = seconds, tell
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
        limits = Limits(self._seconds, self._seconds, self._seconds)
        try:
            with self._dataset.sentences(self._what):
                return patiently(lambda: self._ask(first, count), self._what, limits, self._tell)
        except UserError as error:
            late = error.__cause__
            if not isinstance(late, OutOfPatience):
                raise
            waited = f" for {duration(late.seconds)}" if late.seconds >= 1 else ""
            raise RunFailed(
                f"the Hub has not given {self._what}{waited}: {late.trouble.reason}", TRY_LATER
            ) from late
        except Exception as error:
            raise RunFailed(f"reading {self._what} from the Hub failed: {trouble(error).reason}") from error

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


def _features_of(path: Path) -> Any:
    """The features that a Parquet file was written with, by name."""
    import pyarrow as pa
    from datasets import Features
    from pyarrow import parquet

    try:
        return Features.from_arrow_schema(parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return {}  # whoever reads its rows says what is wrong
