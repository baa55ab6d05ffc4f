"""Datasets of the Hugging Face Hub: their configurations, splits and files, and the bytes of these."""

from __future__ import annotations

import difflib
import io
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.spec import AbstractBufferedFile

from mrt5cli.data.formats import suffix_of
from mrt5cli.data.splits import missing_pieces
from mrt5cli.errors import UserError
from mrt5cli.hub import WAYS_OUT, Repository
from mrt5cli.text import Tell, first_line, listed, say_nothing, say_on_stderr

BLOCK_BYTES = 4 << 20
CARD = "README.md"


class HubDataset:
    """A dataset at one commit: its configurations, and their files by split.

    Each request is sent to the Hub once. Offline, the local cache answers.

    Args:
        name, revision: as in `Repository`, whose errors are raised.
        cached: whether the cache may answer, with a note, if the network is unreachable.

    Attributes:
        commit: the commit that is read, a hash.
    """

    def __init__(
        self, name: str, revision: str | None = None, *, cached: bool = False, tell: Tell = say_on_stderr
    ) -> None:
        from huggingface_hub import constants

        self.name, self.repository = name, Repository("dataset", name, revision, tell)
        self._files: dict[tuple[str, str], list[str]] = {}
        card = self.repository.cached(CARD) if cached or constants.HF_HUB_OFFLINE else None
        info = self.repository.info(card.parent.name if card else None)
        self._offline = info is None
        if info is None:
            assert card is not None
            self.commit, self._base = card.parent.name, str(card.parent)
        else:
            self.commit, self._base = str(info.sha), f"hf://datasets/{name}@{info.sha}"
            # By the name of the revision, so that the cache records which commit it refers to.
            names = [file.rfilename for file in info.siblings or ()]
            card = self.repository.fetch(CARD) if CARD in names else None
        self._read_configurations(card)

    def configuration(self, name: str | None) -> str:
        """The configuration of this name, or the default one for None.

        Raises:
            UserError: it does not exist, or there is no default.
        """
        names = list(self._configurations)
        if name is None and (name := self._default) is None:
            hint = "choose one with task.source.configuration"
            raise UserError(f"{self.name} has several configurations: {listed(names)}", hint)
        if name not in self._configurations:
            near = difflib.get_close_matches(name, names, 3)
            names = [*near, *(other for other in names if other not in near)]
            raise UserError(
                f"{self.name} has no configuration {name!r}; it has {listed(names, len(near) or 8)}",
                "correct task.source.configuration, or task.source.configurations and task.languages",
            )
        return name

    def splits(self, configuration: str) -> list[str]:
        """The names of a configuration's splits."""
        return list(self._patterns(configuration))

    def files(self, configuration: str, split: str) -> list[str]:
        """The paths of a split's files in the repository, in the dataset's order.

        Raises:
            UserError: it has no files in a supported format, or the cache is incomplete offline.
        """
        from datasets.data_files import resolve_pattern

        key = configuration, split
        if key in self._files:
            return self._files[key]
        folder = self._folder(configuration)
        patterns = self._patterns(configuration)[split]
        found, reason = [], ""
        try:
            for pattern in patterns:
                found += self.repository.request(partial(resolve_pattern, pattern, folder), self.name)
        except FileNotFoundError as error:
            reason = first_line(error)
        found = [file.removeprefix(self._base).lstrip("/") for file in found]
        files = [file for file in found if suffix_of(file)]
        where = f"{self.name}, {configuration}, {split}"
        if self._offline and (not files or missing_pieces(files)):
            raise UserError(f"{where}: not all files are in the local Hub cache", WAYS_OUT["dataset"])
        if not files:
            raise UserError(
                f"{where}: {reason or f'no files in a supported format, only {listed(found)}'}",
                "use a dataset of JSON lines, Parquet, CSV, TSV or plain text; loading scripts are not run",
            )
        self._files[key] = files
        return files

    def label_names(self, configuration: str, column: str, path: Path) -> list[str] | None:
        """The names of a column's classes in the order of their numbers; None if it is not a class label.

        Args:
            path: a downloaded file, whose metadata is used if the dataset card does not describe the column.
        """
        from datasets.info import DatasetInfosDict

        info = DatasetInfosDict.from_dataset_card_data(self._metadata).get(configuration)
        features: Any = (info.features if info else None) or {}
        if column not in features and path.suffix == ".parquet":
            features = _features_of(path)
        return getattr(features.get(column), "names", None)

    def download(self, file: str) -> Path:
        """The path of a file in the cache, downloaded if needed."""
        return Path(self._base) / file if self._offline else self.repository.fetch(file, self.commit)

    def open(self, file: str, *, seconds: float, tell: Tell = say_nothing) -> BinaryIO:
        """A file opened for reading from the Hub, `BLOCK_BYTES` at a time; see `RemoteFile`."""
        if self._offline:
            return (Path(self._base) / file).open("rb")
        repository = Repository("dataset", self.name, self.commit, tell)
        return io.BufferedReader(RemoteFile(repository, file, seconds), BLOCK_BYTES)

    def _read_configurations(self, card: Path | None) -> None:
        """Read the configurations that README.md describes; without it, file names decide."""
        import yaml
        from datasets.utils.metadata import MetadataConfigs
        from huggingface_hub import DatasetCardData, metadata_load

        try:
            self._metadata = DatasetCardData(**((metadata_load(card) if card else None) or {}))
            configurations = MetadataConfigs.from_dataset_card_data(self._metadata)
            self._default = configurations.get_default_config_name() if configurations else "default"
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.name}: its README.md is invalid: {first_line(error)}",
                "choose another commit with task.source.revision",
            ) from error
        self._configurations: dict[str, dict[str, Any]] = dict(configurations) or {"default": {}}

    def _patterns(self, configuration: str) -> dict[str, list[str]]:
        from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns

        entry = self._configurations[configuration]
        if "data_files" not in entry:
            folder = self._folder(configuration)
            try:
                entry["data_files"] = self.repository.request(lambda: get_data_patterns(folder), self.name)
            except EmptyDatasetError as error:
                raise UserError(f"{self.name} contains no data files", "choose another dataset") from error
        return {str(split): list(some) for split, some in sanitize_patterns(entry["data_files"]).items()}

    def _folder(self, configuration: str) -> str:
        return "/".join(filter(None, (self._base, self._configurations[configuration].get("data_dir"))))


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a dataset; each read is one request for a range of its bytes.

    Reading raises `HubAway` if the Hub stays unreachable for `seconds`, and `UserError` if it refuses.

    Args:
        repository: the repository, at a commit.
        file: its path there.
        seconds: how long to wait for a Hub that does not answer.
    """

    def __init__(self, repository: Repository, file: str, seconds: float) -> None:
        from huggingface_hub import HfFileSystem, constants

        self._repository, self._file, self._seconds = repository, file, seconds
        path = f"datasets/{repository.name}@{repository.revision}/{file}"
        # Opened as `datasets` does, so that its cached listing is used.
        files = HfFileSystem(token=None, endpoint=constants.ENDPOINT)
        size = self._request(lambda: files.info(path)["size"])
        super().__init__(None, path, cache_type="none", size=size)

    def _request(self, action: Any) -> Any:
        return self._repository.request(
            action, f"{self._repository.name}, {self._file}", self._seconds, announce=False
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._request(partial(self._bytes, start, end))

    def _bytes(self, start: int, end: int) -> bytes:
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            self._repository.name, self._file, repo_type="dataset", revision=self._repository.revision
        )
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        response = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        content: bytes = response.content
        # A proxy that ignores ranges sends the complete file.
        return content if response.status_code == 206 else content[start:end]


def _features_of(path: Path) -> Any:
    """The features in the metadata of a Parquet file, by name."""
    import pyarrow as pa
    from datasets import Features
    from pyarrow import parquet

    try:
        return Features.from_arrow_schema(parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return {}  # reading its rows reports the error
