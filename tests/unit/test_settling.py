"""How a deletion rate comes to its target, by curves whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_plans import blank_row, document, make_plan

from mrt5cli.analysis.across_runs import run_analysis
from mrt5cli.analysis.settling import WINDOW, running_mean, settled
from mrt5cli.errors import UserError
from mrt5cli.suite.jobs import Experiment
from mrt5cli.writing import write_json, write_text

STEPS = np.arange(10, 401, 10)
LAWS = Experiment(
    "laws",
    "Laws",
    None,
    "Starts.",
    (
        "miniature/byt5",
        "miniature/random_50",
        "miniature/controller_p_closed",
        "miniature/controller_pi_two_sided_open",
        "miniature/controller_quantile",
    ),
)


def rise(until: int, start: float = 0.0, to: float = 0.5) -> np.ndarray:
    """Straight to a rate by a step, then that."""
    return start + (to - start) * np.minimum(1, STEPS / until)


def swing(size: float) -> np.ndarray:
    """Around half, for ever, by a fraction, with a period longer than the running mean."""
    return 0.5 + size * np.sin(2 * np.pi * STEPS / 160)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_rate_settles_with_the_running_mean_that_follows_it(start: float) -> None:
    """Two lines of ten steps make the mean: it is there when both are."""
    found = settled(STEPS, rise(100, start), 0.5)
    assert found == {
        "settled": 110,
        "settled_wider": 110,
        "missed": pytest.approx(0.0),
        "overshoot": pytest.approx(0.0),
        "spread": pytest.approx(0.0),
    }


def test_what_leaves_the_band_late_settles_late() -> None:
    late = np.where((STEPS > 300) & (STEPS <= 320), 0.53, rise(50))  # the mean is off at 310, 320 and 330
    found = settled(STEPS, late, 0.5)
    assert (found["settled"], found["overshoot"]) == (340, pytest.approx(3.0))
    assert found["spread"] == pytest.approx(100 * np.std([0.53] * 2 + [0.5] * 8))


def test_a_band_of_two_points_is_entered_before_that_of_one() -> None:
    found = settled(STEPS, np.where(STEPS < 200, 0.515, 0.505), 0.5)
    assert (found["settled"], found["settled_wider"]) == (210, 10)


def test_what_swings_never_settles_and_overshoots_by_the_swing() -> None:
    found = settled(STEPS, swing(0.05), 0.5)
    assert abs(running_mean(STEPS, swing(0.05))[-1] - 0.5) < 0.01  # it passes by at the end
    assert found["settled"] is found["settled_wider"] is None
    assert 4.5 < found["overshoot"] < 5.0 and 2.0 < found["spread"] < 5.0


@pytest.mark.parametrize(("short", "wider"), [(0.48, None), (0.485, 330)])
def test_what_never_comes_there_has_no_overshoot(short: float, wider: int | None) -> None:
    found = settled(STEPS, rise(330, to=short), 0.5)
    assert found["settled"] is found["overshoot"] is None
    assert (found["settled_wider"] is None) == (wider is None)


def test_a_run_of_one_line_is_judged_by_it() -> None:
    assert settled([4], [0.495], 0.5)["settled"] == 4 and settled([4], [0.4], 0.5)["settled"] is None


def test_having_run_past_the_target_is_having_been_there() -> None:
    assert settled(STEPS, np.where(STEPS < 100, 0.0, 0.9), 0.5)["overshoot"] == pytest.approx(40.0)


def test_noise_of_a_batch_does_not_unsettle_a_rate_that_is_there() -> None:
    """Lines of every step, with the noise of 2,048 bytes: what the window is for."""
    steps = np.arange(1, 401)
    noisy = np.random.default_rng(0).binomial(2048, 0.5, size=400) / 2048
    assert np.abs(noisy[-50:] - 0.5).max() > 0.01
    assert settled(steps, noisy, 0.5)["settled"] <= WINDOW


def test_lines_weigh_as_many_steps_as_they_cover() -> None:
    steps, rates = np.array([5.0, 20.0, 45.0, 50.0]), np.array([1.0, 0.2, 0.4, 0.9])
    expected = [1.0, (1.0 * 5 + 0.2 * 15) / 20, 0.4, (0.4 * 25 + 0.9 * 5) / 30]
    assert running_mean(steps, rates).tolist() == pytest.approx(expected)


def test_of_runs_only_those_with_a_target_are_looked_at_and_missed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, [LAWS])
    jobs = {job.name: job for job in plan.trainings}
    for job in jobs.values():
        write_json(job.run.model / "config.json", {})
        row = blank_row("total") | {"deletion_rate": 0.53, "loss": 1.2}
        write_json(job.run.eval("own"), document(job.recipe.task.model_dump(mode="json"), [row]))
    with pytest.raises(UserError, match="no run of laws with a target has logged"):
        run_analysis("settling", plan.experiment_runs(LAWS))
    last = jobs["miniature/controller_quantile"].recipe.training.max_steps
    lines = [f'{{"step": {last}, "deletion_rate": 0.9}}', f'{{"step": {last}, "validation": {{}}}}']
    for name in ("miniature/controller_p_closed", "miniature/controller_quantile"):
        write_text(jobs[name].run.metrics_path, "\n".join([*lines, ""]))
    cut = jobs["miniature/controller_pi_two_sided_open"].run.metrics_path
    write_text(cut, f'{{"step": {last - 1}, "deletion_rate": 0.5}}\n')
    found = run_analysis("settling", plan.experiment_runs(LAWS))
    line, other = found["runs"]
    assert (other["law"], other["start"], other["target"]) == ("quantile_gate", "any", 0.5)
    assert (line["law"], line["start"], line["target"]) == ("p", "closed", 0.5)
    assert line["curve"] == {"step": [last], "deletion_rate": [0.9]} and line["settled"] is None
    assert (line["missed_on_test"], line["loss"]) == (pytest.approx(3.0), 1.2)
    assert line["missed"] == pytest.approx(40.0)  # on training text, by its own line
    assert found["missing"] == ["miniature/controller_pi_two_sided_open seed 42"]
