"""Text that is read again and again instead of held in memory: Hub datasets, and local files when asked.

Built on `datasets` in streaming mode. A `DocumentStream` is one language and split as a run of bytes,
sharded over ranks and loader workers, and it can say where it is and go on from there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.corpus import END_OF_DOCUMENT
from mrt5cli.data.files import MANY_FILES, FilesOfSplits
from mrt5cli.errors import RunFailed, UserError

OFFLINE_WAYS_OUT = (
    "train on a local folder (--set task.source.kind=files --set task.source.path=FOLDER), or connect to the "
    "network (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 uses only what is cached)"
)
PROBE_SECONDS = 3.0
ROWS_AT_ONCE = 8

Builder = Any  # datasets.DatasetBuilder, which is imported only when streaming


class DocumentStream:
    """Documents one after the other, each followed by an end mark, as a run of bytes.

    Args:
        opened: gives the dataset of an epoch, in that epoch's order and already sharded.
        column: with the text.
        keep: which documents are of this split; None keeps all.
        endless: start the next epoch when one is over.
        failure: makes an exception of the underlying reader into ours.
    """

    def __init__(
        self,
        opened: Callable[[int], Any],
        column: str,
        *,
        keep: Callable[[bytes], bool] | None = None,
        endless: bool = True,
        failure: Callable[[Exception], UserError],
    ) -> None:
        self._opened, self._column, self._keep = opened, column, keep
        self._endless, self._failure = endless, failure
        self._rest = bytearray()
        self._open(0, None)

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes, end marks included; fewer only when a single pass is over."""
        while len(self._rest) < count and self._read():
            pass
        taken = np.frombuffer(bytes(self._rest[:count]), dtype=np.uint8)
        del self._rest[:count]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in numbers and strings only."""
        return {
            "epoch": self._epoch,
            "dataset": self._dataset.state_dict(),
            "found": self._found,
            "rest": self._rest.decode("latin-1"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._open(state["epoch"], state["dataset"])
        self._found = state["found"]
        self._rest = bytearray(state["rest"], "latin-1")

    def _open(self, epoch: int, state: Any) -> None:
        self._epoch, self._found = epoch, False
        self._dataset = self._opened(epoch)
        if state is not None:
            self._dataset.load_state_dict(state)
        # Rows in batches, because plain iteration in a loader's worker divides the data a second time.
        self._rows: Iterator[dict[str, list[Any]]] = self._dataset.iter(ROWS_AT_ONCE)

    def _read(self) -> bool:
        """Read some documents; False when a single pass is over."""
        try:
            rows = next(self._rows, None)
        except Exception as error:
            # Readers of five formats and a network client: each fails with types of its own.
            raise self._failure(error) from error
        if rows is not None:
            self._add(rows)
            return True
        if self._endless:
            if not self._found:
                raise UserError("a whole pass over the training data found no text", "see task.source")
            self._open(self._epoch + 1, None)
        return self._endless

    def _add(self, rows: dict[str, list[Any]]) -> None:
        if self._column not in rows:
            raise UserError(
                f"the data has no column {self._column!r}; it has {', '.join(rows)}",
                "--set task.source.text_column=NAME",
            )
        for text in rows[self._column]:
            if not isinstance(text, str | None):
                raise UserError(f"column {self._column!r} holds {type(text).__name__}, expected text")
            document = (text or "").encode("utf-8", errors="replace")
            if document and (self._keep is None or self._keep(document)):
                self._found = True
                self._rest += document
                self._rest.append(END_OF_DOCUMENT)


def opener(
    builder: Builder, split: str, *, key: Sequence[int] | None, shard: int = 0, shards: int = 1
) -> Callable[[int], Any]:
    """A function from an epoch to its dataset: files in an order drawn from (*key, epoch), then this shard.

    The files themselves are put in order, because `IterableDataset.shuffle` cannot resume exactly.
    """

    def opened(epoch: int) -> Any:
        from datasets.distributed import split_dataset_by_node

        files = (builder.config.data_files or {}).get(split)
        if key is None or not files:
            dataset = builder.as_streaming_dataset(split=split)
        else:
            order = np.random.default_rng((*key, epoch)).permutation(len(files))
            original = list(files)
            files[:] = [original[index] for index in order]
            try:
                dataset = builder.as_streaming_dataset(split=split)
            finally:
                # Other streams over the same builder have orders of their own.
                files[:] = original
        return split_dataset_by_node(dataset, rank=shard, world_size=shards) if shards > 1 else dataset

    return opened


def splits_of(builder: Builder) -> list[str]:
    """Names of the splits a builder has."""
    return [str(name) for name in (builder.config.data_files or builder.info.splits or {})]


def local_builder(found: dict[str, FilesOfSplits], language: str) -> Builder:
    """A builder over a language's local files, which must be of one format.

    Raises:
        UserError: several formats.
    """
    import datasets

    files = found[language]
    every = [file for group in files.values() for file in group]
    formats = sorted({re.sub(r"\.gz$", "", file.name).rsplit(".", 1)[1] for file in every})
    if len(formats) > 1:
        raise UserError(
            f"streaming reads files of one format, not {' and '.join(formats)}",
            "keep the text in memory instead: --set task.source.streaming=false",
        )
    names = {split: [str(file) for file in group] for split, group in files.items()}
    if formats == ["txt"]:
        unit = "document" if len(every) >= MANY_FILES else "paragraph"
        return datasets.load_dataset_builder("text", data_files=names, sample_by=unit)
    return datasets.load_dataset_builder("json" if formats == ["jsonl"] else formats[0], data_files=names)


def local_failure(path: Path, error: Exception) -> UserError:
    """What a reader's exception means for files below `path`."""
    return UserError(
        f"{path} cannot be read: {_first_line(error)}",
        "--set task.source.streaming=false reads it into memory and says where the fault is",
    )


def hub_failure(name: str, error: Exception) -> UserError:
    """What an exception in mid-stream means for a Hub dataset."""
    return RunFailed(
        f"reading {name} from the Hub failed: {_first_line(error)}", "the run can go on with --resume"
    )


def hub_builder(name: str, language: str) -> Builder:
    """A builder of a Hub dataset's configuration for a language, after a quick look whether it is in reach.

    Raises:
        UserError: no network, no such dataset, no access, no such configuration.
    """
    import datasets

    with hub_errors(name, language):
        return datasets.load_dataset_builder(name, language)


@contextmanager
def hub_errors(name: str, configuration: str | None, ways_out: str = OFFLINE_WAYS_OUT) -> Iterator[None]:
    """Ask the Hub for a dataset's page before it is opened, and say what keeps it from being opened.

    Args:
        ways_out: what to do where there is no network.

    Raises:
        UserError: no network, no such dataset, no access, no such configuration.
    """
    import datasets
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        _probe(name, ways_out)
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"{name} cannot be opened: {_first_line(error)}", "see task.source.name") from error
    except ConnectionError as error:
        reason = (
            "HF_HUB_OFFLINE is set and it is not cached" if constants.HF_HUB_OFFLINE else _first_line(error)
        )
        raise UserError(f"{name} cannot be read from the Hugging Face Hub: {reason}", ways_out) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot be opened for {configuration!r}: {_meaning(error, configuration or '')}"
        ) from error


def _probe(name: str, ways_out: str) -> None:
    """Ask once for the dataset's page, because `datasets` would retry for some 20 seconds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: its owners grant access on request",
            f"ask for access at {_page(name)}, then log in with `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no dataset {name!r} on the Hugging Face Hub, or it is private",
            "check task.source.name; for a private dataset log in with `hf auth login`",
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"the Hugging Face Hub refused {name}: {_first_line(error)}", ways_out) from error
    except Exception as error:
        # The HTTP library under huggingface_hub has changed twice; whatever it raises here is a lost
        # connection.
        raise UserError(f"no network to read {name}: {_first_line(error)}", ways_out) from error


def _page(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{name}"


def _meaning(error: Exception, language: str) -> str:
    """A shorter text for the two things that happen: no such configuration, and a script instead of data."""
    text = str(error)
    if listed := re.search(r"Available: \[(.*)\]", text):
        names = re.findall(r"'([^']+)'", listed.group(1))
        near = difflib.get_close_matches(language, names, 3) or names[:8]
        return f"it has no such configuration; it has {', '.join(near)} ... ({len(names)} in all)"
    if "script" in text:
        return "it is made by a script, which `datasets` no longer runs; use a Parquet or JSON copy"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
