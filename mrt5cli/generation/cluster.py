"""Run one model on a Ray cluster: windows of texts go to its actors in turn.

If an actor or its machine dies, Ray restarts the actor, and its windows are repeated.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.extras import how_to_install
from mrt5cli.generation.calibration import Calibration
from mrt5cli.generation.generate import Job
from mrt5cli.generation.predictor import PenElsewhere
from mrt5cli.generation.workers import as_ours, in_turn
from mrt5cli.generation.writing import BATCH_TOKENS, Progress, Text, Written
from mrt5cli.stopping import raised
from mrt5cli.text import counted, first_line

CPUS = 4
"""CPUs per worker on a cluster without GPUs, by default."""
WAITING = 2
"""Windows queued per worker: the current one, and the next."""
RETRIES = 3
"""Retries of a window whose worker died: a window that kills every worker is not an accident."""


class Cluster:
    """A `Pen` on a Ray cluster, that of RAY_ADDRESS or of this machine; a context manager.

    Args:
        device: "cuda", "cpu", or "auto": GPUs if the cluster has any.
        workers: number of workers; None means one per GPU, or one per `CPUS` cores.

    Attributes:
        kind: kind of device, "cuda" or "cpu".

    Raises:
        UserError: Ray is not installed, or the cluster has too few GPUs or CPUs.
    """

    def __init__(self, device: str, workers: int | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("--engine ray needs the package ray", how_to_install("ray"))
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"--device {device} names devices of one machine", "with --engine ray, use cuda, cpu or auto"
            )
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports usage to its makers
        with raised():  # Ray replaces the SIGTERM handler; ours is restored
            ray.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.kind = "cpu" if device == "cpu" or (device == "auto" and not gpus) else "cuda"
        most = gpus if self.kind == "cuda" else cpus
        if not 0 < (workers or 1) <= most:
            what = counted(most, "GPU" if self.kind == "cuda" else "CPU")
            self.__exit__()
            raise UserError(f"the Ray cluster has {what}, and each worker needs one", "lower --workers")
        self._count = workers or (gpus if self.kind == "cuda" else max(1, cpus // CPUS))
        each: dict[str, Any] = {"num_cpus": cpus // self._count}
        self._share = {"num_gpus": 1} if self.kind == "cuda" else each
        self._actors: list[Any] = []
        self._threshold: float | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def __str__(self) -> str:
        return f"{counted(self._count, 'worker')} on Ray, {self.kind}"

    def adapted(self, job: Job) -> Job:
        """The job, with the default batch size of the workers' devices unless one is set."""
        tokens = job.settings.batch_tokens or BATCH_TOKENS[self.kind]
        return replace(job, options=replace(job.options, batch_tokens=tokens))

    def started(self, job: Job) -> Cluster:
        """Start the workers, each of which loads the model; returns self."""
        import ray

        make = PenElsewhere.of(job, self.kind, job.options.batch_tokens)
        actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **self._share)(_Worker)
        self._actors = [actor.remote(make) for _ in range(self._count)]
        return self

    def threshold_for(self, rate: float, texts: Sequence[Text]) -> Calibration:
        """See `Pen.threshold_for`; runs on the first worker."""
        found: Calibration = self._received(self._sent(0, "threshold_for", rate, texts))
        return found

    def move_threshold(self, threshold: float) -> None:
        """See `Pen.move_threshold`; sent along with every window, since restarted workers have no state."""
        self._threshold = threshold

    def write_all(
        self, windows: Iterable[Sequence[Text]], progress: Progress = lambda done: None
    ) -> Iterator[list[list[Written]]]:
        """See `Pen.write_all`; `progress` is called once per window."""

        def send(number: int, window: Sequence[Text]) -> Any:
            return self._sent(number % self._count, "write", window)

        return in_turn(windows, send, self._received, WAITING * self._count, progress)

    def _sent(self, worker: int, what: str, *arguments: object) -> Any:
        return self._actors[worker].do.remote(self._threshold, what, *arguments)

    def _received(self, sent: Any) -> Any:
        import ray

        try:
            found = ray.get(sent)
        except ray.exceptions.RayError as error:
            raise RunFailed(
                f"a Ray worker died {RETRIES + 1} times on the same inputs: {first_line(error)}",
                "it may have run out of memory: lower --batch-tokens",
            ) from error
        if isinstance(found, Exception):
            raise found
        return found


class _Worker:
    """An actor: makes a pen, and calls its methods."""

    def __init__(self, make: PenElsewhere) -> None:
        self._make = make

    def do(self, threshold: float | None, what: str, *arguments: Any) -> Any:
        try:
            pen = self._make()
            if threshold is not None:
                pen.move_threshold(threshold)
            return getattr(pen, what)(*arguments)
        except Exception as error:
            return as_ours(error)
