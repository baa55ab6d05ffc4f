"""Whether the share deleted from a sample says how much its loss rises (paper, per-sample analysis).

One sample: its deletion rate against how much its loss rises over ByT5's on the same sample. The paper takes
the rise in percent; beside it stands the rise in nats, because a percentage of a loss near 0, as on a task
that a model solves, is a ratio of two noisy numbers, and a few samples then decide r.
One model: Pearson's r over samples. Several models of a kind: the mean of their r by Fisher's z.

The paper: batch size 1, English test text, 1000 of 10,000 samples; ours are the same 1000 for all models of
an experiment, so that differences between models are not differences between samples. Where nothing was
published, all samples are taken, up to 10,000: a difference of two small r takes thousands to be seen.
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

    A model is compared with the baseline's run of its own seed, or else with the baseline's first. Samples
    are those of English or else of the first language; of a test whose parts are no languages, those of all
    parts. `source_worth_nats` is what the baselines lose without their source, a token: of one that is worth
    nothing, no deletion costs anything. None where nobody measured it.

    Raises:
        UserError: no baseline, or fewer than three samples.
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
            f"{len(samples.batches)} samples of {subset} make no correlation", "give more test text"
        )
    losses = {run.seed: measured(runs, run, samples)[0] for run in base}
    models: list[Json] = []
    for run in (run for run in runs.trained if run.name != runs.baseline):
        loss, deleted = measured(runs, run, samples)
        before = losses.get(run.seed, losses[base[0].seed])
        there_is = before > 0  # a loss of 0, which float32 can come to, has no percentages
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
    """Samples of a subset, as a task that `measure` can be given: a batch each, so that nothing is padded."""

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
    """Which samples are looked at, in order: the paper's 1000 of the first 10,000, or the first 4,000.

    The paper draws "random 1000" of 10,000; drawn with replacement, 48 would come twice and the p-values,
    which take samples for independent, would not be theirs. So: without.

    Args:
        available: samples there are; all of them are taken where they are not more than 1000.
        version: of the paper, which decides the generator's seed. Without one, the first 4,000 are taken: one
            at a time they are half a minute a model, and put an r near 0 within 0.03.
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
    # Scaled first: squares of very small or large deviations would underflow or overflow.
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


def difference_of_correlations(r: float, other: float, samples: int) -> tuple[float, float, float]:
    """How much larger r is than the other's size, in Fisher's z, and the ends of a 95 % interval of that.

    Either may be the mean of several models of a kind. They look at the same samples, which a mean does not
    make more: it is taken to be no surer than one model's.

    Args:
        r, other: within -1 and 1.
        samples: that each was seen in, at least four.
    """
    apart = _apart(r, other)
    half = Z_95 * math.sqrt(2 / (samples - 3))
    return apart, apart - half, apart + half


def samples_needed(r: float, other: float) -> int | None:
    """Samples in which r would be told from the other's size 80 times in 100, were both as given.

    Told is what the 95 % interval of `difference_of_correlations` says. None where r is not larger.
    """
    apart = _apart(r, other)
    return math.ceil(3 + 2 * ((Z_95 + Z_80) / apart) ** 2) if apart > 0 else None


def _apart(r: float, other: float) -> float:
    """r less the other's size, in Fisher's z; a perfect one, whose z is infinite, counts as almost so."""
    return math.atanh(max(-ALMOST_1, min(ALMOST_1, r))) - math.atanh(min(ALMOST_1, abs(other)))


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
