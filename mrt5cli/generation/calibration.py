"""Calibrate a trained gate to another deletion rate: find the threshold that deletes a given share of a text.

A learned gate orders bytes by how much they are needed; training only decides where to cut. The cut can be
moved afterwards without touching a weight: the threshold is the gate value below which the requested share of
a calibration text lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mrt5cli.byte_tokens import PAD
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.shorteners import SHORTENERS
from mrt5cli.recipe.shorteners import of_config, of_type
from mrt5cli.tasks.base import Batch, Task

TOLERANCE = 0.01
"""A calibrated threshold misses its rate if the two differ by more than this share of positions."""


class Gap(NamedTuple):
    """A range of rates that no threshold reaches, because many positions share one gate value."""

    below: float
    above: float
    value: float


@dataclass(frozen=True)
class Calibration:
    """A threshold and its effect on the calibration text.

    Attributes:
        rate: requested share of non-pad positions deleted, 0 to 1.
        threshold: gate value; hard deletion keeps values above it.
        reached: share of the calibration text's non-pad positions that it deletes, 0 to 1.
        positions: number of these positions.
        gap: the unreachable range around the requested rate; None if the rate is reached.
        conditioned: whether the gate is conditioned on the rate, so that the threshold needed no text.
        beyond: why the model has not learned the rate, as a phrase after "the model"; None if it may have.
    """

    rate: float
    threshold: float
    reached: float
    positions: int
    gap: Gap | None = None
    conditioned: bool = False
    beyond: str | None = None

    @property
    def missed(self) -> bool:
        """Whether the threshold misses the rate, because too many gate values are equal."""
        return abs(self.reached - self.rate) > TOLERANCE

    @property
    def option(self) -> str:
        """The option of `mrt5 convert` for this calibration, with all digits of a float32 threshold.

        A gate conditioned on a rate gets the rate, so that the export records it, too."""
        if self.conditioned:
            return f"--deletion-rate={self.rate!r}"
        return f"--threshold={np.float32(self.threshold)!s}"

    def described(self) -> str:
        """The threshold as text, the share that it deletes and, if that misses the rate, the reason."""
        if self.rate == 0:
            return "a threshold below every gate value, which deletes nothing"
        effect = "sets the rate and deletes" if self.conditioned else "deletes"
        found = (
            f"threshold {self.threshold:.4g}, which {effect} "
            f"{self.reached:.1%} of {self.positions:,} validation positions"
        ).replace("%", " %") + (f"; the model {self.beyond}" if self.beyond else "")
        if self.gap is None:
            return found
        below, above, value = self.gap
        rates = ("nothing" if not below else f"{100 * below:.1f} %", f"{100 * above:.1f} %")
        return (
            f"{found}; {100 * self.rate:g} % cannot be reached: {100 * (above - below):.1f} % of positions "
            f"have the same gate value, {value:.4g}, so a threshold deletes {' or '.join(rates)}"
        )


def conditional_threshold(config: MrT5Config, rate: float) -> float | None:
    """The threshold of a gate conditioned on a rate, 0 to below 1; None for gates that need calibration."""
    shortener = SHORTENERS.get(config.deletion_type)
    return None if shortener is None else shortener.threshold_at(config, rate)


def calibrate(
    model: MrT5ForConditionalGeneration, batches: Iterable[Batch], rates: Sequence[float], name: str
) -> list[Calibration]:
    """Find the threshold of each rate in one pass of the encoder over B rows of L bytes per batch.

    Args:
        model: a model with a learned delete gate; put in eval mode for the duration.
        batches: batches with input_ids (B, L) and attention_mask (B, L).
        rates: requested shares of non-pad positions, each from 0 to below 1.
        name: name of the model in messages.

    Raises:
        UserError: the model has no learned gate, or there is no text.
    """
    kind = model.config.deletion_type
    shortener = of_type(kind)
    if not shortener.gates or shortener.refuses_threshold:
        raise UserError(
            f"{name} has no learned delete gate (its deletion_type is {kind!r}), so no threshold can set its "
            "deletion rate",
            "use a model trained with model.shortener.kind: delete_gate or quantile_gate",
        )
    values = _gate_values(model, batches)
    if not len(values):
        raise UserError("there is no text to calibrate the threshold on", "provide at least one valid input")
    settings = of_config(model.config)
    lowest = max(settings.lowest_gate_value, -1e9)  # log sigmoid is unbounded
    nothing = Calibration(0.0, lowest - 1, 0.0, len(values))
    found = []
    for rate in rates:
        if (threshold := conditional_threshold(model.config, rate)) is not None:
            reached = float((values <= threshold).mean())
            beyond = settings.beyond_training(rate)
            found.append(Calibration(rate, threshold, reached, len(values), conditioned=True, beyond=beyond))
        else:
            found.append(nearest(values, rate) if rate else nothing)
    return found


def calibrate_on_task(
    model: MrT5ForConditionalGeneration,
    task: Task,
    rates: Sequence[float],
    name: str,
    *,
    batch_size: int,
    limit: int | None = None,
    progress: Callable[[str, int], object] = lambda subset, done: None,
) -> list[Calibration]:
    """As `calibrate`, on at most `limit` validation examples of each of a task's subsets.

    Args:
        progress: called with a subset and the number of its examples read.

    Raises:
        UserError: as `calibrate`, or the task has no validation examples.
    """

    def text() -> Iterator[Batch]:
        for subset in task.subsets("validation"):
            done = 0
            for batch in task.held_out("validation", subset, batch_size=batch_size, limit=limit):
                yield batch
                done += len(batch["input_ids"])
                progress(subset, done)

    return calibrate(model, text(), rates, name)


def check_threshold(config: MrT5Config, name: str, threshold: float) -> None:
    """Refuse a threshold outside of the gate's range, or for a model without a threshold.

    Args:
        name: name of the model in messages.

    Raises:
        UserError: the threshold is refused.
    """
    shortener = of_config(config)
    refusal = shortener.refuses_threshold or (None if shortener.gates else "has no delete gate")
    if refusal:
        why = refusal.format_map(dict(shortener))
        raise UserError(f"{name} {why}, so --threshold {threshold:g} has no effect", "leave --threshold out")
    lowest = shortener.lowest_gate_value
    if not lowest < threshold < 0 and threshold != SHORTENERS[config.deletion_type].threshold_at(config, 0.0):
        raise UserError(
            f"--threshold {threshold:g} is outside of the gate's range, {lowest:g} (delete) to 0 (keep)",
            f"choose a value in between; this model's own threshold is {config.deletion_threshold:g}",
        )


def nearest(values: NDArray[np.float32], rate: float) -> Calibration:
    """The threshold with the nearest rate that keeps at least one position.

    It lies midway between two gate values: at a gate value, rounding would decide about the position.
    """
    thresholds, counts = np.unique(values, return_counts=True)
    shares = np.cumsum(counts) / len(values)
    place = int(np.abs(shares[:-1] - rate).argmin()) if len(shares) > 1 else 0
    threshold, kept = thresholds[place], thresholds[min(place + 1, len(thresholds) - 1)]
    middle = threshold + (kept - threshold) / 2
    threshold = middle if middle < kept else threshold
    found = Calibration(rate, float(threshold), float(shares[place]), len(values))
    if not found.missed:
        return found
    above = int(np.searchsorted(shares, rate))  # the first share >= rate; the last is 1
    below = float(shares[above - 1]) if above else 0.0
    return replace(found, gap=Gap(below, float(shares[above]), float(thresholds[above])))


def _gate_values(model: MrT5ForConditionalGeneration, batches: Iterable[Batch]) -> NDArray[np.float32]:
    """(n,) gate values of all non-pad positions, from `scale` (delete) to 0 (keep)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.train(False)
    found = [np.empty(0, dtype=np.float32)]
    try:
        with torch.inference_mode():
            for batch in batches:
                ids = batch["input_ids"].to(device)
                mask = batch["attention_mask"].to(device)
                encoded = model.encoder(input_ids=ids, attention_mask=mask, hard_delete=True)
                found.append(encoded.delete_gate_output[ids != PAD].float().cpu().numpy())
    finally:
        model.train(was_training)
    return np.concatenate(found)
