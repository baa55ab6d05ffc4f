"""What a task is: training batches without end, held-out batches that never change, and how to show them.

To add a task, write one file with a `Task` subclass under `@register("its_kind")`, and give it with --code.
A recipe gives it the settings of `recipe.tasks.AddedTask`, or those of a section of its own.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from mrt5cli import own_code
from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.data.characters import shown
from mrt5cli.errors import UserError
from mrt5cli.metrics.answers import Normalization
from mrt5cli.recipe import tasks as sections

if TYPE_CHECKING:
    from mrt5cli.recipe.tasks import TaskBase, TaskSection

# What held-out examples are drawn for.
HELD_OUT_SEED = 20241028
# input_ids (B, L), attention_mask (B, L) and labels (B, T), all int64 and contiguous.
Batch = dict[str, torch.Tensor]


def make_batch(input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> Batch:
    """A batch of ids (B, L), padded with 0, and labels (B, T), padded with -100."""
    inputs = torch.from_numpy(np.ascontiguousarray(input_ids))
    return {
        "input_ids": inputs,
        "attention_mask": inputs.ne(PAD).long(),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
    }


class BatchStream(IterableDataset[Batch], ABC):
    """Training batches of one rank, without end. Give it to `DataLoader(stream, batch_size=None)`.

    With W loader workers, worker w makes batches start + w, start + w + W, ..., which the loader puts
    back in order.

    Attributes:
        start_batch: batches this rank has already consumed; the next iteration begins after them.
        may_fail: batches come from somewhere else, and one day may not.
    """

    start_batch: int = 0
    may_fail: bool = False

    @abstractmethod
    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        """Batches start_batch + worker, start_batch + worker + workers, ..."""

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        self._handed_out = self.start_batch
        for batch in self.batches(info.id if info else 0, info.num_workers if info else 1):
            self._handed_out += 1
            yield batch

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where to resume, as numbers and strings: after the batches that the training loop has `consumed`.

        Needed with loader workers, and wherever a loader reads ahead; by default, what was handed out here.
        """
        return {"start_batch": self._consumed(consumed)}

    def _consumed(self, consumed: int | None) -> int:
        return getattr(self, "_handed_out", self.start_batch) if consumed is None else consumed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration where `state_dict` was taken."""
        self.start_batch = state["start_batch"]

    def remarks(self) -> list[str]:
        """What the user should know of the data read so far, a sentence each."""
        return []


class SeekableStream(BatchStream):
    """A stream whose example i is a function of i: batch b of all R ranks together begins at b * R * B.

    Several batches are made at a time, because numpy's cost per call is what small batches pay for.

    Args:
        read: makes the examples of indices (E,), any of them.
        batch_size: B, examples a batch on this rank.
        at_once: examples made at a time, about.
        sizes: (E,) what the examples of indices (E,) take; by these, long and short ones are dealt out among
            the ranks, so that none waits long for another. None: all take the same.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], Batch],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        at_once: int = 64,
        sizes: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__()
        self._read, self._batch_size, self._rank, self._world_size = read, batch_size, rank, world_size
        self._sizes = sizes
        self._group = max(1, at_once // batch_size)

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        size = self._batch_size
        numbers = count(self.start_batch + worker, workers)
        while True:
            together = np.array(list(islice(numbers, self._group)), dtype=np.int64)
            yield from batches_of(self._read(self._dealt(together).reshape(-1)), size)

    def _dealt(self, batches: NDArray[np.int64]) -> NDArray[np.int64]:
        """(G, B) the examples of this rank's batches (G,)."""
        size, ranks, rank = self._batch_size, self._world_size, self._rank
        of_all = (batches * ranks * size)[:, None] + np.arange(ranks * size)
        if ranks == 1 or self._sizes is None:
            return of_all[:, rank * size : (rank + 1) * size]
        order = np.argsort(-self._sizes(of_all.reshape(-1)).reshape(of_all.shape), axis=1, kind="stable")
        # The longest to each rank in turn, and the next ones from the last rank back to the first.
        rounds = np.arange(size)
        places = rounds * ranks + np.where(rounds % 2, ranks - 1 - rank, rank)
        return np.take_along_axis(of_all, order[:, places], axis=1)


def batches_of(examples: Batch, size: int) -> Iterator[Batch]:
    """Batches of `size` rows, as wide as their longest source and target; memory not shared between them."""
    targets = examples["labels"].ne(IGNORED_LABEL).sum(dim=1)
    sources = examples["attention_mask"].sum(dim=1)
    for start in range(0, len(targets), size):
        stop = start + size
        width = int(sources[start:stop].max())
        widths = dict.fromkeys(("input_ids", "attention_mask", "segment_ends"), width)
        widths["labels"] = max(1, int(targets[start:stop].max()))
        rows = {name: tensor[start:stop, : widths.get(name)] for name, tensor in examples.items()}
        # A view would carry the memory of all examples along to another process.
        yield {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in rows.items()}


class Task(ABC):
    """Data, prompt and metrics of one kind of learning, used by training and evaluation alike.

    Attributes:
        name: what the recipe calls it.
        version: raised when held-out data changes, so that results made before are not compared with
            later ones.
        measures: the task's own numbers, the headline first, as `metrics.catalog` names them; none where loss
            and bits per byte are what counts. Some are of generated answers, and need `references`.
        normalization: how exact match and F1 compare answers, see `metrics.answers`.
        experiment: the task's name in the published results; None where it has no rows there.
        choices: every target there is, where they are few enough to choose among; else None.
        answer_length: byte tokens to generate at most, EOS included; None where nothing is generated.
        sentinels: ids that stand for a missing span in its examples, from the last byte's down.
    """

    name: str
    answer_length: int | None = None
    sentinels: int = 0
    version: ClassVar[int] = 1
    measures: tuple[str, ...] = ()
    normalization: Normalization = "squad"
    experiment: str | None = None
    choices: tuple[str, ...] | None = None

    @abstractmethod
    def subsets(self, split: str) -> list[str]:
        """Parts of a held-out split that are reported apart: languages, or just "all"."""

    @abstractmethod
    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        """Training batches of one rank, `batch_size` examples each."""

    @abstractmethod
    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterable[Batch]:
        """Batches of "validation" or "test": the same examples every time, whatever the batch size.

        Args:
            subset: one of `subsets(split)`.
            batch_size: examples a batch; the last may be smaller.
            limit: examples at most.
        """

    def references(self, split: str, subset: str, limit: int | None = None) -> list[tuple[str, ...]] | None:
        """The accepted answers of each held-out example, in the order of `held_out`, at least one each.

        None where answers are not generated.
        """
        return None

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        """How many of the held-out examples have a source that was cut to the task's input length."""
        return 0

    def language_of(self, subset: str) -> str | None:
        """The language a subset is in, as a code; None where subsets are no languages."""
        return None

    def deletable(
        self, input_ids: torch.Tensor | NDArray[np.int64], gate: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_] | None:
        """(B, L), the positions whose bytes the target does not need; None where a task cannot know.

        Args:
            gate: (B, L) gate values. Where one of several bytes has to stay, whichever it is, it is the one
                that the gate would delete last.
        """
        return None

    def is_remote(self, subset: str) -> bool:
        """Whether a subset is streamed from the Hub, where its first example takes requests."""
        return False

    def shares(self) -> dict[str, float]:
        """Of a mixture, the share of the training examples that is drawn from each source, by its name."""
        return {}

    def remarks(self) -> list[str]:
        """What the user should know of the data read so far, a sentence each."""
        return []

    def splits(self) -> list[str]:
        """A line a split, with the files that it was found in; none where no file says one."""
        return []

    def commits(self) -> dict[str, str]:
        """The Hub datasets that have been opened, and the commit of each."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """One line: the task, its data and its sizes."""

    def example(self, split: str) -> tuple[str, str]:
        """The first source and target of "train", "validation" or "test" as people are shown them."""
        if split == "train":
            batch = next(iter(self.train_stream(batch_size=1, seed=HELD_OUT_SEED)))
        else:
            batch = next(iter(self.held_out(split, self.subsets(split)[0], batch_size=1, limit=1)))
        source, target = (batch[name][0].tolist() for name in ("input_ids", "labels"))
        return shown(source, sentinels=self.sentinels), shown(target, sentinels=self.sentinels)


_TASKS: dict[str, Callable[..., Task]] = {}
# The file of this folder that registers a kind, where it is not called as the kind.
_FILES = {
    **dict.fromkeys(("copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"), "diagnostic"),
    **dict.fromkeys(("spelling_correction_contextual", "word_search"), "characters"),
}
_TaskClass = TypeVar("_TaskClass", bound=type[Task])


def register(*kinds: str, section: type[TaskBase] | None = None) -> Callable[[_TaskClass], _TaskClass]:
    """Class decorator: recipe sections of these kinds build this task. It is called with the section.

    Args:
        section: the settings of a task of the user's own; by default those of `AddedTask`.

    Raises:
        ValueError: there is a task of one of the kinds already.
    """

    def add(task: _TaskClass) -> _TaskClass:
        own = not task.__module__.startswith("mrt5cli.tasks.")
        for kind in kinds:
            if kind in _TASKS or (own and kind in sections.kinds()):
                whose = own_code.brought_by(_TASKS[kind].__module__) if kind in _TASKS else ""
                raise ValueError(f"there is a task {kind!r} already{whose}")
            _TASKS[kind] = task
            if own:
                sections.register(kind, section)
        return task

    return add


def build_task(section: TaskSection) -> Task:
    """The task of a recipe's task section."""
    return task_class(section.kind)(section)


def task_class(kind: str) -> Callable[..., Task]:
    """What builds a kind of task, from the file of this folder or given with --code that has it."""
    if kind not in _TASKS:
        importlib.import_module(f"mrt5cli.tasks.{_FILES.get(kind, kind)}")
    return _TASKS[kind]


def check_held_out(task: Task, split: str, subsets: Sequence[str] | None = None) -> None:
    """Look whether every subset has examples, before time is spent on the first.

    Streams of the Hub are spared: there this takes a request for each subset.

    Raises:
        UserError: one has none, or they cannot be read.
    """
    names = task.subsets(split) if subsets is None else subsets
    if not names:
        found = "; ".join(task.splits()) or "none"
        raise UserError(f"{task.name}: there are no {split} examples", f"the splits that are there: {found}")
    for subset in names:
        if task.is_remote(subset):
            continue
        if next(iter(task.held_out(split, subset, batch_size=1, limit=1)), None) is None:
            raise UserError(f"there are no {split} examples for {subset!r}")
