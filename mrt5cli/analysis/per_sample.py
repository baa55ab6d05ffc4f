"""Whether the share deleted from a sample says how much its loss rises (paper, per-sample analysis).

One sample: its deletion rate against how much its loss rises over ByT5's on the same sample, both in percent.
One model: Pearson's r over samples. Several models of a kind: the mean of their r by Fisher's z.

The paper: batch size 1, English test text, 1000 of 10,000 samples; ours are the same 1000 for all models of
an experiment, so that differences between models are not differences between samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics import Z_95
from mrt5cli.metrics.results import Json
from mrt5cli.metrics.student_t import two_sided_p

if TYPE_CHECKING:
    from mrt5cli.tasks.base import Batch, Task

LANGUAGE = "en"
DIGITS = 4
POOL = 10_000
SAMPLES = 1_000
DRAW_SEEDS = {"v3": 86, "v1": 34}
"""Of the generator that draws samples from the pool, by the paper's version."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of two numbers over samples.

    Attributes:
        r: -1 to 1; None where one of the two does not vary, or samples are fewer than three.
        p_value: two-sided, of no correlation, by the t distribution; None where r is.
        low, high: 95 % interval of r by Fisher's z; None where r is, or with fewer than four samples.
    """

    samples: int
    r: float | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None


def per_sample(runs: ExperimentRuns) -> Json:
    """Correlations of each model, their mean of each family, and the points of every sample.

    A model is compared with the baseline's run of its own seed, or else with the baseline's first.

    Raises:
        UserError: no baseline, or fewer than three samples.
    """
    from mrt5cli.tasks.base import build_task

    base = runs.baselines
    task = build_task(base[0].recipe.task)
    subsets = task.subsets("test")
    subset = LANGUAGE if LANGUAGE in subsets else subsets[0]
    pool = base[0].recipe.evaluation.examples if runs.smoke else POOL
    there = list(task.held_out("test", subset, batch_size=1, limit=pool))
    samples = Samples(subset, [there[place] for place in draw_samples(len(there), runs.version)])
    if len(samples.batches) < 3:
        raise UserError(
            f"{len(samples.batches)} samples of {subset} make no correlation", "give more test text"
        )
    losses = {run.seed: measured(runs, run, samples)[0] for run in base}
    models: list[Json] = []
    for run in (run for run in runs.trained if run.name != runs.baseline):
        loss, deleted = measured(runs, run, samples)
        before = losses.get(run.seed, losses[base[0].seed])
        columns = {"deleted_percent": 100 * deleted, "loss_increase_percent": 100 * (loss - before) / before}
        rounded = {name: np.round(values, DIGITS).tolist() for name, values in columns.items()}
        models.append({**run.line(), **asdict(correlation(*columns.values())), **rounded})
    rs: defaultdict[str, list[float | None]] = defaultdict(list)
    for model in models:
        rs[model["family"]].append(model["r"])
    return {
        "subset": subset,
        "available": len(there),
        "samples": len(samples.batches),
        "drawn": "without replacement",
        "models": models,
        "families": {family: fisher_mean(of) for family, of in rs.items()},
    }


@dataclass(frozen=True)
class Samples:
    """Samples of a subset, as a task that `measure` can be given: a batch each, so that nothing is padded."""

    subset: str
    batches: list[Batch]

    def held_out(self, split: str, subset: str, **ignored: object) -> Iterator[Batch]:
        yield from self.batches

    def deletable(self, input_ids: object) -> None:
        return None

    def truncated(self, split: str, subset: str, limit: int | None) -> int:
        return 0


def measured(
    runs: ExperimentRuns, run: ExperimentRun, samples: Samples
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) loss of each sample, nats a token, and (n,) share of its positions that is gone, 0 to 1."""
    from mrt5cli.evaluation.evaluate import measure
    from mrt5cli.evaluation.options import EvaluationOptions

    found = measure(
        run.load(runs.device),
        cast("Task", samples),  # it has all of a task that is used here
        EvaluationOptions(
            subsets=[samples.subset],
            batch_size=1,
            hard_delete=run.recipe.evaluation.hard_delete,
            source_removed=False,
            measures=(),
        ),
        progress=partial(runs.progress, run.title),
    )
    outcomes = found.outcomes[samples.subset]
    return outcomes.nats / outcomes.tokens, 1 - outcomes.kept / outcomes.positions


def draw_samples(available: int, version: str | None) -> NDArray[np.int64]:
    """Which samples are looked at, in order: 1000 of the first 10,000, each at most once.

    The paper draws "random 1000" of 10,000; drawn with replacement, 48 would come twice and the p-values,
    which take samples for independent, would not be theirs. So: without.

    Args:
        available: samples there are; all of them are taken where they are not more than 1000.
        version: of the paper, which decides the generator's seed; the camera-ready's when it is neither.
    """
    pool = min(available, POOL)
    if pool <= SAMPLES:
        return np.arange(pool)
    generator = np.random.default_rng(DRAW_SEEDS[version or "v3"])
    return np.sort(generator.choice(pool, SAMPLES, replace=False))


def correlation(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's r of (n,) numbers."""
    # Scaled first: squares of very small or large deviations would underflow or overflow.
    one, other = _scaled(np.asarray(x, dtype=np.float64)), _scaled(np.asarray(y, dtype=np.float64))
    count = len(one)
    spread = math.sqrt(float(one @ one) * float(other @ other))
    if count < 3 or spread == 0:
        return Correlation(count)
    r = max(-1.0, min(1.0, float(one @ other) / spread))
    rest = (1 - r) * (1 + r)
    t = math.inf if rest == 0 else r * math.sqrt((count - 2) / rest)
    low, high = fisher_interval(r, count) if count > 3 else (None, None)
    return Correlation(count, r, two_sided_p(t, count - 2), low, high)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean, the largest of them 1; zeros where nothing varies but by rounding."""
    deviations = values - values.mean()
    largest = float(np.abs(deviations).max())
    if largest <= 1e-12 * float(np.abs(values).max()):
        return np.zeros_like(values)
    return deviations / largest


def fisher_interval(r: float, samples: int) -> tuple[float, float]:
    """95 % interval of an r seen in so many samples, at least four."""
    if abs(r) == 1:
        return r, r
    z, half = math.atanh(r), Z_95 / math.sqrt(samples - 3)
    return math.tanh(z - half), math.tanh(z + half)


def fisher_mean(rs: Sequence[float | None]) -> float | None:
    """The mean of correlations by Fisher's z; undefined ones are left out, and None is left without any.

    A perfect correlation, whose z is infinite, makes the mean perfect; two opposite ones have none.
    """
    known = [r for r in rs if r is not None]
    perfect = {r for r in known if abs(r) == 1}
    if len(perfect) == 2 or not known:
        return None
    if perfect:
        return perfect.pop()
    return math.tanh(math.fsum(math.atanh(r) for r in known) / len(known))
