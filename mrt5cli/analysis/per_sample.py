"""Whether a sample's deletion rate predicts its loss increase (paper, per-sample analysis).

For one sample: its deletion rate and its loss increase over ByT5 on the same sample. The paper uses the
increase in percent. We add the increase in nats, because on a task that a model solves, a percentage of a
loss near 0 is a ratio of two noisy numbers and a few samples decide r.
For one model: Pearson's r over samples. For several models of a kind: the mean of their r by Fisher's z.

The paper uses batch size 1 and 1000 of 10,000 English test samples; we use the same 1000 for all models of an
experiment, so that models differ but samples do not. Without published numbers, the first 4,000 samples are
used: separating two small correlations needs thousands.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.json_files import finite
from mrt5cli.metrics import Z_80, Z_95
from mrt5cli.metrics.results import Json
from mrt5cli.metrics.student_t import two_sided_p

if TYPE_CHECKING:
    from mrt5cli.tasks.base import Batch, Task

LANGUAGE = "en"
DIGITS = 4
ALMOST_1 = 1 - 1e-12
POOL = 10_000
SAMPLES = 1_000
UNPUBLISHED = 4_000
DRAW_SEEDS = {"v3": 86, "v1": 34}
"""Seed of the generator that samples from the pool, by the paper's version."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of two numbers over samples.

    Attributes:
        samples: number of samples.
        r: -1 to 1; None if one number does not vary, or with fewer than three samples.
        p_value: two-sided p-value of no correlation, by the t distribution; None if r is None.
        low, high: 95 % interval of r by Fisher's z; None if r is None, or with fewer than four samples.
    """

    samples: int
    r: float | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None


def per_sample(runs: ExperimentRuns) -> Json:
    """Correlations of each model, their mean per family, and the points of every sample.

    A model is compared with the baseline's run of the same seed, or else with the baseline's first run.
    Samples come from English or else from the first language; for a test without languages, from all parts.
    `source_worth_nats` is the loss per token that the baselines add without their source (None if not
    measured): if the source is worth nothing, deletion costs nothing.

    Raises:
        UserError: the baseline has no finished run, or there are fewer than three samples.
    """
    from mrt5cli.tasks.base import build_task

    base = runs.baselines
    task = build_task(base[0].recipe.task)
    subsets = task.subsets("test")
    if LANGUAGE in subsets or subsets[0] in LANGUAGES:
        subsets = [LANGUAGE if LANGUAGE in subsets else subsets[0]]
    subset = ", ".join(subsets)
    pool = base[0].recipe.evaluation.examples if runs.smoke else POOL
    there = [one for part in subsets for one in task.held_out("test", part, batch_size=1, limit=pool)]
    samples = Samples(subset, [there[place] for place in draw_samples(len(there), runs.version)])
    if len(samples.batches) < 3:
        raise UserError(
            f"a correlation needs at least 3 samples; {subset} has {len(samples.batches)}",
            "add test text to the task's source",
        )
    losses = {run.seed: measured(runs, run, samples)[0] for run in base}
    models: list[Json] = []
    for run in (run for run in runs.trained if run.name != runs.baseline):
        loss, deleted = measured(runs, run, samples)
        before = losses.get(run.seed, losses[base[0].seed])
        there_is = before > 0  # a loss that float32 rounds to 0 has no percentages
        percent = np.divide(100 * (loss - before), before, out=np.full_like(loss, np.nan), where=there_is)
        x, nats = 100 * deleted, loss - before
        columns = {"deleted_percent": x, "loss_increase_percent": percent, "loss_increase_nats": nats}
        in_nats = asdict(correlation(x, nats))
        models.append(
            {
                **run.line(),
                **asdict(correlation(x[there_is], percent[there_is])),
                **{f"{name}_nats": in_nats[name] for name in ("r", "p_value", "low", "high")},
                "deleted_sd_points": float(x.std(ddof=1)),
                **finite({name: np.round(values, DIGITS).tolist() for name, values in columns.items()}),
            }
        )
    measured_bare = [row for row, _ in filter(None, (run.own("source_removed_loss") for run in base))]
    worth = [row.known("source_removed_loss") - row.known("loss") for row in measured_bare]
    return {
        "subset": subset,
        "available": len(there),
        "samples": len(samples.batches),
        "drawn": "without replacement",
        "source_worth_nats": fmean(worth) if worth else None,
        "models": models,
        "families": _means(models, "r"),
        "families_nats": _means(models, "r_nats"),
    }


def _means(models: Sequence[Json], r: str) -> dict[str, float | None]:
    """The mean of each family's correlations."""
    rs: defaultdict[str, list[float | None]] = defaultdict(list)
    for model in models:
        rs[model["family"]].append(model[r])
    return {family: fisher_mean(of) for family, of in rs.items()}


@dataclass(frozen=True)
class Samples:
    """Samples of a subset in the form of a task for `measure`, one per batch, so that nothing is padded."""

    subset: str
    batches: list[Batch]

    def held_out(self, split: str, subset: str, **ignored: object) -> Iterator[Batch]:
        yield from self.batches

    def deletable(self, input_ids: object, gate: object = None) -> None:
        return None

    def truncated(self, split: str, subset: str, limit: int | None) -> int:
        return 0


def measured(
    runs: ExperimentRuns, run: ExperimentRun, samples: Samples
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) loss of each sample in nats per token, and (n,) deletion rate (0 to 1)."""
    from mrt5cli.evaluation.evaluate import measure
    from mrt5cli.evaluation.options import EvaluationOptions

    found = measure(
        run.load(runs.device),
        cast("Task", samples),  # it provides everything that `measure` uses of a task
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
    """Sorted indices of the samples to use: the paper's 1000 of the first 10,000, or the first 4,000.

    The paper uses a "random 1000" of 10,000. Sampling is without replacement: with it, 48 samples would occur
    twice, and p-values assume independent samples.

    Args:
        available: number of existing samples; all are used if there are at most 1000.
        version: the paper's version, which decides the generator's seed. Without one, the first 4,000 samples
            are used, which take half a minute per model and determine an r near 0 to within 0.03.
    """
    if version is None:
        return np.arange(min(available, UNPUBLISHED))
    pool = min(available, POOL)
    if pool <= SAMPLES:
        return np.arange(pool)
    generator = np.random.default_rng(DRAW_SEEDS[version])
    return np.sort(generator.choice(pool, SAMPLES, replace=False))


def correlation(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's r of (n,) numbers."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    count = len(x)
    if count < 3:
        return Correlation(count)
    # Scale first, because squares of very small or large deviations would underflow or overflow.
    one, other = _scaled(x), _scaled(y)
    spread = math.sqrt(float(one @ one) * float(other @ other))
    if spread == 0:
        return Correlation(count)
    r = max(-1.0, min(1.0, float(one @ other) / spread))
    rest = (1 - r) * (1 + r)
    t = math.inf if rest == 0 else r * math.sqrt((count - 2) / rest)
    low, high = fisher_interval(r, count) if count > 3 else (None, None)
    return Correlation(count, r, two_sided_p(t, count - 2), low, high)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean, scaled to at most 1; zeros if values vary only by rounding."""
    deviations = values - values.mean()
    largest = float(np.abs(deviations).max())
    if largest <= 1e-12 * float(np.abs(values).max()):
        return np.zeros_like(values)
    return deviations / largest


def fisher_interval(r: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of an r over at least four samples."""
    if abs(r) == 1:
        return r, r
    z, half = math.atanh(r), Z_95 / math.sqrt(samples - 3)
    return math.tanh(z - half), math.tanh(z + half)


def difference_of_correlations(r: float, other: float, samples: int) -> tuple[float, float, float]:
    """The difference of r and the magnitude of `other` in Fisher's z, and its 95 % interval.

    Either may be the mean over several models. Those share their samples, so a mean is treated as no more
    certain than a single model's r.

    Args:
        r, other: -1 to 1.
        samples: number of samples of each, at least four.
    """
    apart = _apart(r, other)
    half = Z_95 * math.sqrt(2 / (samples - 3))
    return apart, apart - half, apart + half


def samples_needed(r: float, other: float) -> int | None:
    """The number of samples that distinguish r from the magnitude of `other` with a power of 80 %.

    They differ if the 95 % interval of `difference_of_correlations` excludes 0. None if r is not larger.
    """
    apart = _apart(r, other)
    return math.ceil(3 + 2 * ((Z_95 + Z_80) / apart) ** 2) if apart > 0 else None


def _apart(r: float, other: float) -> float:
    """r minus the magnitude of `other` in Fisher's z; perfect correlations are clipped to a finite z."""
    return math.atanh(max(-ALMOST_1, min(ALMOST_1, r))) - math.atanh(min(ALMOST_1, abs(other)))


def fisher_mean(rs: Sequence[float | None]) -> float | None:
    """The mean of correlations by Fisher's z, skipping undefined ones; None without any.

    A perfect correlation, whose z is infinite, makes the mean perfect; two opposite perfect ones have no
    mean.
    """
    known = [r for r in rs if r is not None]
    perfect = {r for r in known if abs(r) == 1}
    if len(perfect) == 2 or not known:
        return None
    if perfect:
        return perfect.pop()
    return math.tanh(math.fsum(math.atanh(r) for r in known) / len(known))
