"""The interface of a task: endless training batches, held-out batches that never change, and its metrics.

To add a task, write one file with a `Task` subclass under `@register("its_kind")`, and pass it with --code.
Its recipe section is `recipe.tasks.AddedTask` or a subclass of it. README.md works through an example.

Letters: B rows, L byte tokens of a source, T of a target, R ranks.
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

# The seed of held-out examples.
HELD_OUT_SEED = 20241028
# input_ids (B, L), attention_mask (B, L) and labels (B, T), all int64 and contiguous.
Batch = dict[str, torch.Tensor]


def make_batch(input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> Batch:
    """A batch from ids (B, L), padded with 0, and labels (B, T), padded with -100."""
    inputs = torch.from_numpy(np.ascontiguousarray(input_ids))
    return {
        "input_ids": inputs,
        "attention_mask": inputs.ne(PAD).long(),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
    }


class BatchStream(IterableDataset[Batch], ABC):
    """Endless training batches of one rank, for `DataLoader(stream, batch_size=None)`.

    With W loader workers, worker w makes batches start + w, start + w + W, ..., which the loader restores to
    order.

    Attributes:
        start_batch: the number of batches that this rank has consumed; the next iteration begins after them.
        may_fail: whether the batches depend on disks or networks that may fail during training.
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
        """The position from which to resume, as numbers and strings.

        Args:
            consumed: the number of batches that the training loop has used. Required with loader workers and
                wherever a loader reads ahead; by default, the number of batches yielded by this object.
        """
        return {"start_batch": self._consumed(consumed)}

    def _consumed(self, consumed: int | None) -> int:
        return getattr(self, "_handed_out", self.start_batch) if consumed is None else consumed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration at the position of a `state_dict`."""
        self.start_batch = state["start_batch"]

    def remarks(self) -> list[str]:
        """Remarks for the user on the data read so far, one sentence each."""
        return []


class SeekableStream(BatchStream):
    """A stream whose example i is a function of i: batch b of all R ranks together begins at b * R * B.

    Several batches are made at a time, because numpy's overhead per call dominates small batches.

    Args:
        read: makes the examples with indices (E,), which are arbitrary.
        batch_size: B, the examples in a batch on this rank.
        at_once: roughly how many examples are made at a time.
        sizes: (E,) the cost of the examples with indices (E,), by which long and short ones are distributed
            evenly over the ranks, so that no rank waits long for another. None: all cost the same.
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
        # The longest examples go to the ranks in turn, the next ones from the last rank back to the first.
        rounds = np.arange(size)
        places = rounds * ranks + np.where(rounds % 2, ranks - 1 - rank, rank)
        return np.take_along_axis(of_all, order[:, places], axis=1)


def batches_of(examples: Batch, size: int) -> Iterator[Batch]:
    """Batches of `size` rows, as wide as their longest source and target, which share no memory."""
    targets = examples["labels"].ne(IGNORED_LABEL).sum(dim=1)
    sources = examples["attention_mask"].sum(dim=1)
    for start in range(0, len(targets), size):
        stop = start + size
        width = int(sources[start:stop].max())
        widths = dict.fromkeys(("input_ids", "attention_mask", "segment_ends"), width)
        widths["labels"] = max(1, int(targets[start:stop].max()))
        rows = {name: tensor[start:stop, : widths.get(name)] for name, tensor in examples.items()}
        # A view would send the memory of all examples to another process.
        yield {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in rows.items()}


class Task(ABC):
    """The data, prompt and metrics of one problem, used by training and evaluation alike.

    Attributes:
        name: its kind in recipes.
        version: incremented when held-out data changes, so that older results are not compared with newer
            ones.
        measures: the task's metrics, the headline first, by their names in `metrics.catalog`; empty if loss
            and bits per byte are the metrics. Metrics of generated answers need `references`.
        normalization: how exact match and F1 compare answers, see `metrics.answers`.
        experiment: the task's name in the published results; None if it has no rows there.
        choices: all possible targets, if they are few; else None.
        answer_length: the most byte tokens to generate, EOS included; None if nothing is generated.
        sentinels: the number of ids that mark a missing span in its examples, from the last byte's id down.
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
        """The parts of a held-out split that are reported separately: languages, or just "all"."""

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
            batch_size: the examples in a batch; the last batch may be smaller.
            limit: the most examples to yield; None yields all.
        """

    def references(self, split: str, subset: str, limit: int | None = None) -> list[tuple[str, ...]] | None:
        """The accepted answers of each held-out example, at least one, in the order of `held_out`.

        None if answers are not generated.
        """
        return None

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        """The number of held-out examples whose source was cut to the task's input length."""
        return 0

    def language_of(self, subset: str) -> str | None:
        """The language code of a subset; None if subsets are not languages."""
        return None

    def deletable(
        self, input_ids: torch.Tensor | NDArray[np.int64], gate: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_] | None:
        """(B, L), True at positions whose bytes the target does not need; None if that is unknown.

        Args:
            gate: (B, L) gate values. If any one of several bytes must be kept, it is the one that the gate
                would delete last.
        """
        return None

    def is_remote(self, subset: str) -> bool:
        """Whether a subset is streamed from the Hub, so that its first example needs requests."""
        return False

    def shares(self) -> dict[str, float]:
        """For a mixture, the share of training examples that each source provides, 0 to 1, by its name."""
        return {}

    def remarks(self) -> list[str]:
        """Remarks for the user on the data read so far, one sentence each."""
        return []

    def splits(self) -> list[str]:
        """One line per split with its files; empty if no file names a split."""
        return []

    def commits(self) -> dict[str, str]:
        """The Hub datasets that have been opened, with the commit of each."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """The task, its data and its sizes in one line."""

    def example(self, split: str) -> tuple[str, str]:
        """The first source and target of "train", "validation" or "test", in human-readable form."""
        if split == "train":
            batch = next(iter(self.train_stream(batch_size=1, seed=HELD_OUT_SEED)))
        else:
            batch = next(iter(self.held_out(split, self.subsets(split)[0], batch_size=1, limit=1)))
        source, target = (batch[name][0].tolist() for name in ("input_ids", "labels"))
        return shown(source, sentinels=self.sentinels), shown(target, sentinels=self.sentinels)


_TASKS: dict[str, Callable[..., Task]] = {}
# The module in this folder that registers a kind, if its name is not the kind.
_FILES = {
    **dict.fromkeys(("copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"), "diagnostic"),
    **dict.fromkeys(("spelling_correction_contextual", "word_search"), "characters"),
}
_TaskClass = TypeVar("_TaskClass", bound=type[Task])


def register(*kinds: str, section: type[TaskBase] | None = None) -> Callable[[_TaskClass], _TaskClass]:
    """Class decorator: recipe sections of these kinds build this task, by calling it with the section.

    Args:
        section: the section class of a user-defined task; by default `AddedTask`.

    Raises:
        ValueError: a task of one of these kinds exists already.
    """

    def add(task: _TaskClass) -> _TaskClass:
        own = not task.__module__.startswith("mrt5cli.tasks.")
        for kind in kinds:
            if kind in _TASKS or (own and kind in sections.kinds()):
                whose = own_code.brought_by(_TASKS[kind].__module__) if kind in _TASKS else ""
                raise ValueError(f"a task {kind!r} exists already{whose}")
            _TASKS[kind] = task
            if own:
                sections.register(kind, section)
        return task

    return add


def build_task(section: TaskSection) -> Task:
    """The task of a recipe's task section."""
    return task_class(section.kind)(section)


def task_class(kind: str) -> Callable[..., Task]:
    """The class that builds a kind of task, from this folder or from a file given with --code."""
    if kind not in _TASKS:
        importlib.import_module(f"mrt5cli.tasks.{_FILES.get(kind, kind)}")
    return _TASKS[kind]


def check_held_out(task: Task, split: str, subsets: Sequence[str] | None = None) -> None:
    """Check that every subset has examples, before time is spent on the first.

    Streams of the Hub are not checked, because each would need requests.

    Raises:
        UserError: a subset has no examples, or they cannot be read.
    """
    names = task.subsets(split) if subsets is None else subsets
    if not names:
        found = "; ".join(task.splits()) or "none"
        raise UserError(f"{task.name}: there are no {split} examples", f"add them; splits found: {found}")
    for subset in names:
        if task.is_remote(subset):
            continue
        if next(iter(task.held_out(split, subset, batch_size=1, limit=1)), None) is None:
            raise UserError(f"there are no {split} examples for {subset!r}", "add some, or leave it out")
