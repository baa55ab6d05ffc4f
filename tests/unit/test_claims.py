"""Claims: each holds and fails on made-up results, and has no verdict where runs are missing."""

import itertools
import json
import math
from dataclasses import replace
from types import MappingProxyType

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_plans import document

from mrt5cli import recipe as recipes
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.metrics.results import Row
from mrt5cli.report import results
from mrt5cli.report.claims import CLAIMS, TARGET_TOLERANCE, judge
from mrt5cli.report.results import Results, evaluated_run
from mrt5cli.rundir import RunDir
from mrt5cli.suite.jobs import EvaluateJob, Evaluation, Experiment, SuitePlan, TrainJob
from mrt5cli.suite.suites import load_suite
from mrt5cli.writing import write_json

CONFIG = {
    "d_model": 128,
    "d_ff": 256,
    "num_heads": 4,
    "d_kv": 32,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "delete_gate_layer": 1,
    "vocab_size": 384,
    "feed_forward_proj": "gated-gelu",
}


def result(recipe, kind, *, rate=0.0, loss=1.0, seed=42, target=None, softmax1=True, rows=None, **row):
    task = row.pop("task", "span_corruption")
    lengths = {"target_tokens": 220, "input_length": 96.0, "kept_length": 96.0, "source_removed_loss": 3.0}
    last = Row("en", 10, **lengths | {"deletion_rate": rate, "loss": loss} | row)
    more = {
        "seed": seed,
        "kind": kind,
        "task": task,
        "softmax1": softmax1,
        "target": target,
        "config": CONFIG,
    }
    return evaluated_run(f"miniature/{recipe}", [last] if rows is None else rows, **more)


def Evidence(runs, missing=(), analyses=MappingProxyType({})):
    return results.Evidence(pd.DataFrame(runs), missing, analyses)


def tradeoff(random_loss, seed=42, random_rate=0.4):
    return [
        result("byt5", "none", loss=1.0, seed=seed),
        result("mrt5_30", "delete_gate", rate=0.3, loss=1.1, target=0.3, seed=seed),
        result("mrt5_50", "delete_gate", rate=0.5, loss=1.3, target=0.5, seed=seed),
        result("random_40", "random", rate=random_rate, loss=random_loss, seed=seed),
    ]


def test_the_suite_names_every_claim_and_nothing_else():
    named = {name for experiment in load_suite("miniature") for name in experiment.claims}
    assert named == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_without_runs_there_is_no_verdict_and_the_missing_ones_are_named(name):
    claim = judge(name, Evidence([], ["miniature/byt5 seed 42"]))
    assert claim.holds is None
    assert "miniature/byt5 seed 42" in claim.sentence


@pytest.mark.parametrize("name", CLAIMS)
def test_results_that_cannot_decide_get_no_verdict(name):
    unrelated = [result("cp_2", "convolution", rate=0.5)]
    assert judge(name, Evidence(unrelated)).holds is None


def test_a_verdict_waits_for_all_runs():
    claim = judge("less_loss_at_equal_reduction", Evidence(tradeoff(2.0), ["miniature/bp_50 seed 42"]))
    assert claim.holds is None
    assert claim.rows and "bp_50" in claim.sentence


class TestEqualReduction:
    def test_losses_are_compared_at_the_baselines_rate(self):
        claim = judge("less_loss_at_equal_reduction", Evidence(tradeoff(1.25)))
        (row,) = claim.rows
        assert claim.holds is True
        assert row["mrt5_above_byt5"] == pytest.approx(0.2)  # half way from 1.1 to 1.3
        assert row["above_mrt5"] == pytest.approx(0.05)

    def test_one_baseline_below_mrt5_is_enough_to_deny_it_and_is_named(self):
        better = result("cp_2", "convolution", rate=0.5, loss=1.29)
        claim = judge("less_loss_at_equal_reduction", Evidence([*tradeoff(1.25), better]))
        assert claim.holds is False
        assert "not lower than cp_2 (-0.010)" in claim.sentence

    def test_what_the_paper_knows_nothing_of_neither_denies_it_nor_bears_it_out(self):
        better = result("hnet", "hnet", rate=0.4, loss=0.5)
        alone = judge("less_loss_at_equal_reduction", Evidence([*tradeoff(1.25), better]))
        assert alone == judge("less_loss_at_equal_reduction", Evidence(tradeoff(1.25)))

    def test_between_byt5_and_the_lowest_mrt5_the_line_starts_at_no_deletion(self):
        claim = judge("less_loss_at_equal_reduction", Evidence(tradeoff(1.06, random_rate=0.15)))
        assert claim.rows[0]["above_mrt5"] == pytest.approx(0.01)

    def test_a_little_beyond_mrt5_it_is_still_compared_and_far_beyond_it_is_not(self):
        near = judge("less_loss_at_equal_reduction", Evidence(tradeoff(1.4, random_rate=0.53)))
        far = judge("less_loss_at_equal_reduction", Evidence(tradeoff(9.0, random_rate=0.6)))
        assert near.rows[0]["mrt5_above_byt5"] == pytest.approx(0.33)
        assert far.holds is None and "random_40" in far.sentence

    def test_each_seed_is_compared_with_its_own(self):
        claim = judge("less_loss_at_equal_reduction", Evidence([*tradeoff(1.25), *tradeoff(1.15, seed=43)]))
        (row,) = claim.rows
        assert claim.holds is False
        assert (row["seeds"], row["seeds_mrt5_lower"]) == (2, 1)
        assert row["above_mrt5_low"] == pytest.approx(-0.05)
        assert row["above_mrt5_high"] == pytest.approx(0.05)

    @given(
        rates=st.lists(st.floats(0.05, 0.9), min_size=1, max_size=4, unique=True),
        costs=st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4),
        rate=st.floats(0.01, 0.9),
        gap=st.floats(0.001, 1.0),
    )
    def test_a_baseline_above_the_line_bears_it_out_and_one_below_denies_it(self, rates, costs, rate, gap):
        learned = sorted(zip(rates, costs, strict=False))
        points = [(0.0, 1.0), *((r, 1.0 + cost) for r, cost in learned)]
        on_line = next(
            (
                low[1] + (high[1] - low[1]) * (rate - low[0]) / (high[0] - low[0])
                for low, high in itertools.pairwise(points)
                if low[0] <= rate <= high[0]
            ),
            None,
        )
        runs = [result("byt5", "none")]
        runs += [
            result(f"mrt5_{i}", "delete_gate", rate=r, loss=loss) for i, (r, loss) in enumerate(points[1:])
        ]
        for sign in (1, -1):
            loss = (on_line or 1.0) + sign * gap
            claim = judge(
                "less_loss_at_equal_reduction",
                Evidence([*runs, result("random", "random", rate=rate, loss=loss)]),
            )
            if on_line is not None:
                assert claim.holds is (sign > 0)
            elif claim.holds is None:
                assert rate > points[-1][0]


@pytest.mark.parametrize(("removed", "holds"), [(1.3, True), (1.1, False)])
def test_models_that_hardly_read_their_source_are_told(removed, holds):
    claim = judge("source_is_read", Evidence([result("byt5", "none", source_removed_loss=removed)]))
    assert claim.holds is holds


@pytest.mark.parametrize(
    ("off", "holds"), [(TARGET_TOLERANCE - 0.001, True), (-TARGET_TOLERANCE - 0.001, False)]
)
def test_targets_are_hit_within_the_tolerance_on_either_side(off, holds):
    runs = [
        result("mrt5_30", "delete_gate", rate=0.3, target=0.3),
        result("mrt5_50", "delete_gate", rate=0.5 + off, target=0.5),
    ]
    claim = judge("hits_targets", Evidence(runs))
    assert claim.holds is holds
    assert f"{0.5 + off:.1%} for 50%" in claim.sentence


@pytest.mark.parametrize(
    ("claim", "kind"),
    [("gate_finds_the_letters", "delete_gate"), ("told_gate_finds_the_letters", "quantile_gate")],
)
@pytest.mark.parametrize(
    ("precision", "recall", "tokens", "holds"),
    [
        (1.0, 0.97, 0.9985, True),
        (0.98, 1.0, 0.9985, False),
        (1.0, 0.5, 0.9985, False),
        (1.0, 0.97, 0.9975, False),
    ],
)
def test_a_gate_must_delete_the_letters_and_only_them(claim, kind, precision, recall, tokens, holds):
    measured = {"gate_precision": precision, "gate_recall": recall, "rate": 0.19}
    gate = result("merge", kind, task="merge_ABC", token_accuracy=tokens, **measured)
    base = result("merge_byt5", "none", task="merge_ABC", token_accuracy=1.0, sequence_accuracy=0.99)
    found = judge(claim, Evidence([base, gate]))
    assert found.holds is holds
    assert found.rows[0]["byt5_sequence_accuracy"] == 0.99
    assert f"{int(tokens > 0.998)} with tokens right as often" in found.sentence


def test_a_gate_that_deletes_no_letter_has_found_none():
    """It has no precision, and counts all the same."""
    found = {"gate_precision": None, "gate_recall": 0.0, "token_accuracy": 1.0, "rate": 0.03}
    gates = [result("merge", "delete_gate", task="merge_ABC", seed=seed, **found) for seed in (42, 43)]
    base = result("merge_byt5", "none", task="merge_ABC", token_accuracy=1.0)
    claim = judge("gate_finds_the_letters", Evidence([base, *gates]))
    assert claim.holds is False
    assert "0 of 2 gates" in claim.sentence and "precision none, recall 0.000 (2 seeds)" in claim.sentence


def test_a_precision_that_some_seeds_have_says_how_many():
    found = {"gate_recall": 0.5, "token_accuracy": 1.0, "task": "merge_ABC"}
    gates = [
        result("merge", "delete_gate", seed=seed, gate_precision=one, **found)
        for seed, one in ((42, 0.9), (43, None), (44, 0.8))
    ]
    claim = judge("gate_finds_the_letters", Evidence(gates))
    assert "precision 0.800 to 0.900 in 2 of 3, recall 0.500 (3 seeds)" in claim.sentence


@pytest.mark.parametrize(
    ("rates", "holds"),
    [
        ({"en": 0.44, "fr": 0.46, "ru": 0.56, "bg": 0.57, "zh": 0.30}, True),
        ({"en": 0.30, "fr": 0.60, "ru": 0.31, "bg": 0.59, "zh": 0.45}, False),
    ],
)
def test_rates_differ_by_script_when_scripts_are_farther_apart_than_languages_of_one(rates, holds):
    rows = [Row(code, 10, deletion_rate=rate, loss=1.0) for code, rate in rates.items()]
    total = Row("total", 10, deletion_rate=0.5, loss=1.0)
    claim = judge("rates_differ_by_script", Evidence([result("m", "delete_gate", rows=[*rows, total])]))
    assert claim.holds is holds
    assert [row["language"] for row in claim.rows] == ["English", "French", "Russian", "Bulgarian", "Chinese"]


class TestPerSample:
    def judged(self, *models, **found):
        """Of (recipe, seed, r in nats, r in percent), and what else the analysis found."""
        kinds = {"mrt5_50": "delete_gate", "random_50": "random"}
        runs = [result(name, kinds[name], rate=0.5, seed=seed) for name, seed, *_ in models]
        lines = [
            {"recipe": f"miniature/{name}", "seed": seed, "samples": 1000, "r": percent, "r_nats": nats}
            for name, seed, nats, percent in models
        ]
        analyses = {"per_sample": {"models": lines} | found}
        return judge("rate_does_not_tell_loss", Evidence(runs, analyses=analyses))

    @pytest.mark.parametrize(
        ("ours", "theirs", "holds", "says"),
        [
            (0.05, 0.35, True, "differ by 0.315 [0.228, 0.403]"),
            (-0.05, 0.35, True, "differ by 0.315 [0.228, 0.403]"),
            (0.015, 0.016, None, "at these r it would take 15,690,384 samples, and there are 1,000"),
            (0.30, 0.35, None, "at these r it would take 5,023 samples, and there are 1,000"),
            (0.05, 0.04, None, "random's is not the larger, and there are 1,000"),
            (-0.5, 0.35, False, "differ by -0.184 [-0.272, -0.096]"),
        ],
    )
    def test_nats_decide_as_far_as_there_are_samples(self, ours, theirs, holds, says):
        models = ("mrt5_50", 42, ours, 0.9), ("random_50", 42, theirs, -0.9)
        claim = self.judged(*models, source_worth_nats=0.72)
        assert claim.holds is holds
        assert says in claim.sentence
        assert ("open:" in claim.sentence) is (holds is None)
        assert "in percent 0.900 and -0.900" in claim.sentence
        assert "worth 0.72 nats" in claim.sentence

    def test_seeds_are_averaged_by_fishers_z_and_are_no_more_samples(self):
        """What is in doubt for one model of each is so for three: all look at the same samples."""
        one = self.judged(("mrt5_50", 42, 0.1, 0.1), ("random_50", 42, 0.18, 0.3))
        three = self.judged(
            *(("mrt5_50", seed, r, 0.1) for seed, r in ((42, 0.1), (43, 0.0), (44, 0.2))),
            *(("random_50", seed, 0.18, None) for seed in (42, 43, 44)),
        )
        assert one.holds is three.holds is None
        assert "0.101 for MrT5 (3 models) and 0.180 for random deletion (3)" in three.sentence
        assert [row["seed"] for row in three.rows] == [42, 43, 44] * 2

    def test_without_nats_or_samples_there_is_no_verdict(self):
        old = self.judged(("mrt5_50", 42, None, 0.1), ("random_50", 42, None, 0.3))
        few = self.judged(("mrt5_50", 42, 0.1, 0.1), ("random_50", 42, 0.9, 0.9))
        assert old.holds is None
        assert few.holds is True  # and with a handful:
        lines = [{"recipe": f"miniature/{name}", "seed": 42, "samples": 3, "r": 0.9, "r_nats": 0.9}
                 for name in ("mrt5_50", "random_50")]  # fmt: skip
        runs = [result("mrt5_50", "delete_gate"), result("random_50", "random")]
        evidence = Evidence(runs, analyses={"per_sample": {"models": lines}})
        assert judge("rate_does_not_tell_loss", evidence).holds is None


class TestSoftmax1:
    def judged(self, gaps, half):
        """Of what deletion adds with softmax, less what it adds with softmax1, by seed; softmax1's is 0.1."""
        runs, pairs = [], []
        for seed, gap in enumerate(gaps, 42):
            byt5 = 1.0 + seed / 1000  # bases differ, and only what deletion adds counts
            runs += [
                result("byt5", "none", loss=byt5, seed=seed),
                result("mrt5_50", "delete_gate", rate=0.5, loss=byt5 + 0.1, seed=seed),
                result("byt5_softmax", "none", loss=1.5, softmax1=False, seed=seed),
                result("mrt5_50_softmax", "delete_gate", loss=1.6 + gap, softmax1=False, seed=seed),
            ]
            part = {"measure": "loss", "low": -9.0, "high": 9.0}  # a language, before the total
            whole = {"measure": "loss", "low": -0.3, "high": -0.3 + 2 * (half or 0)}
            pairs += [{"seed": seed, "differences": [part, whole, {"measure": "cer"}]}] * 2  # ByT5, MrT5
        analyses = {} if half is None else {"softmax1": {"pairs": pairs}}
        return judge("softmax1_costs_less", Evidence(runs, analyses=analyses))

    @pytest.mark.parametrize(
        ("gaps", "half", "holds", "says"),
        [
            ((0.10, 0.11, 0.09), 0.05, True, "a difference of -0.1000 over 3 seeds [-0.1248, -0.0752]"),
            ((-0.10, -0.11, -0.09), 0.05, False, "a difference of +0.1000"),
            (
                (0.10, 0.11, 0.09),
                0.08,
                None,
                "an uncertainty of 0.1131; too close to call; it would take 2.6 times",
            ),
            ((0.10, 0.30, -0.10), 0.01, None, "too close to call; at this spread it would take 34 seeds"),
            ((0.01, 0.03, -0.01), 0.02, None, "take 34 seeds; it would take 16.3 times the test text"),
            ((0.10,), 0.01, None, "too close to call, and one seed says nothing about others"),
            ((0.10, 0.11, 0.09), None, None, "not run yet: analysis softmax1"),
        ],
    )
    def test_it_is_decided_when_both_seeds_and_test_text_tell(self, gaps, half, holds, says):
        claim = self.judged(gaps, half)
        assert claim.holds is holds
        assert says in claim.sentence
        added = [row["above_byt5"] for row in claim.rows]
        assert added == pytest.approx([0.1] * len(gaps) + [0.1 + gap for gap in gaps])

    def test_seeds_without_a_partner_are_left_out(self):
        runs = [result("byt5", "none"), result("mrt5_50", "delete_gate", loss=1.1)]
        runs += [
            result("a", "none", softmax1=False, seed=43),
            result("b", "delete_gate", softmax1=False, seed=43),
        ]
        claim = judge("softmax1_costs_less", Evidence(runs))
        assert claim.holds is None
        assert "of one seed" in claim.sentence


class TestControllerSettles:
    LAWS = ("p", "pi", "pi_two_sided")

    def judged(self, missed, settled, spread=(0.5, 0.5, 0.5), more_on_test=2.0):
        """Runs of each controller: the points they miss by, when they settle, and how many points more they
        miss by on test text; None where that is not known."""
        runs = [
            {
                "law": law, "recipe": f"{law}_{place}", "seed": 42, "missed": off, "settled": step,
                "overshoot": 9.0, "spread": wide, "loss": 1.2,
                "missed_on_test": None if more_on_test is None else off + more_on_test,
            }
            for law, offs, steps, wide in zip(self.LAWS, missed, settled, spread, strict=True)
            for place, (off, step) in enumerate(zip(offs, steps, strict=True))
        ]  # fmt: skip
        given = [result("mrt5_50", "delete_gate", rate=0.5)]
        return judge("controller_settles", Evidence(given, analyses={"settling": {"runs": runs}}))

    def test_the_earliest_of_those_with_all_runs_on_target_is_recommended(self):
        missed = [(0.1, 3.2, -0.1), (1.0, -0.9, 0.2), (0.3, -1.0, 0.0)]
        claim = self.judged(missed, [(10, 10, 10), (300, None, 320), (150, 200, None)])
        assert claim.holds is True
        assert claim.sentence.endswith("for new work: pi_two_sided")
        assert "p 2 of 3 (farthest +3.2 points, settled by step 10 " in claim.sentence
        assert [row["within_1_point"] for row in claim.rows] == [2, 3, 3]
        assert [row["on_test_within_1_point"] for row in claim.rows] == [0, 0, 1]
        assert [row["on_test_farthest_points"] for row in claim.rows] == [5.2, 3.0, 2.3]
        assert [row["median_settling_step"] for row in claim.rows] == [10, 320, 200]
        assert [row["never_settled"] for row in claim.rows] == [0, 1, 1]

    def test_of_two_as_early_the_steadier_is_recommended(self):
        claim = self.judged([(0.0,)] * 3, [(100,)] * 3, spread=(0.5, 0.1, 0.2))
        assert claim.sentence.endswith("for new work: pi")

    def test_where_none_has_all_runs_on_target_none_is_recommended(self):
        claim = self.judged([(0.0, 1.1), (-1.1, 0.0), (2.0, -2.0)], [(100, None)] * 3)
        assert claim.holds is False
        assert "none is recommended" in claim.sentence and "settled never in the median" in claim.sentence
        assert "Infinity" not in json.dumps(claim.rows)

    def test_a_law_is_judged_by_the_text_that_it_steers_by(self):
        claim = self.judged([(0.0,)] * 3, [(100,)] * 3, more_on_test=None)
        assert claim.holds is True
        assert all(math.isnan(row["on_test_farthest_points"]) for row in claim.rows)


class TestAnyRate:
    EACH, SEEDS = {0.3: 0.01, 0.5: 0.02, 0.9: 0.1}, (42, 43, 44)

    def points(self, conditioned=0.0, moved=0.3, noise=(0.0, 0.001, -0.001), seeds=SEEDS, reached=0.0):
        """ByT5 at 1, MrT5s above it by EACH, the conditioned model by `conditioned` more, and the MrT5 of
        50 % by `moved` more at every rate but its own."""
        for seed, off in zip(seeds, noise, strict=False):
            base = {"seed": seed, "target": None, "wanted": None, "reached": 0.0}
            yield {**base, "recipe": "byt5", "kind": "none", "loss": 1.0}
            for rate, above in self.EACH.items():
                own = {"recipe": f"mrt5_{rate}", "kind": "delete_gate", "target": rate}
                yield {**base, **own, "reached": rate, "loss": 1 + above}
                for wanted in (0.1, *self.EACH):
                    # The others' thresholds do not matter.
                    worse = self.EACH.get(wanted, 0.0) + (moved + off if wanted != 0.5 else 0.0)
                    worse = worse if rate == 0.5 else -9.0
                    yield {**base, **own, "wanted": wanted, "reached": wanted - 0.004, "loss": 1 + worse}
            for wanted in (0.1, *self.EACH):
                line = {**base, "recipe": "any_rate", "kind": "quantile_gate", "wanted": wanted}
                loss = 1 + self.EACH.get(wanted, 0.0) + conditioned + off
                yield {**line, "reached": wanted + reached, "loss": loss}

    def judged(self, **given):
        dial = {"points": [*self.points(**given)]}
        return judge("one_model_any_rate", Evidence([result("byt5", "none")], analyses={"dial": dial}))

    @pytest.mark.parametrize(
        ("conditioned", "moved", "holds"),
        [
            (0.0, 0.3, True),
            (-0.1, 0.3, True),  # better than one each is as good
            (0.1, 0.3, False),
            (0.3, 0.1, False),
            (0.0, 0.0004, None),
        ],
    )
    def test_intervals_over_seeds_decide(self, conditioned, moved, holds):
        claim = self.judged(conditioned=conditioned, moved=moved)
        assert claim.holds is holds
        assert ("too close to call" in claim.sentence) == (holds is None)

    def test_a_spread_of_seeds_that_covers_the_difference_decides_nothing(self):
        # Nearly the same for the conditioned model and the threshold: only one trained each is uncertain.
        assert self.judged(conditioned=0.1, moved=0.6, noise=(0.0, 0.1, -0.1)).holds is True
        points = [*self.points()]
        for point in points:
            if point["kind"] == "quantile_gate":
                point["loss"] += {42: 0.4, 43: -0.4, 44: 0.0}[point["seed"]]
        evidence = Evidence([result("byt5", "none")], analyses={"dial": {"points": points}})
        assert judge("one_model_any_rate", evidence).holds is None

    def test_one_seed_decides_nothing(self):
        claim = self.judged(seeds=(42,))
        assert claim.holds is None and "+0.0000 nats above MrT5s" in claim.sentence

    def test_only_rates_that_all_three_have_decide_and_all_are_shown(self):
        claim = self.judged()
        assert "means of 3 seeds, over 30, 50, 90 %" in claim.sentence
        assert [row["wanted"] for row in claim.rows] == [0.1, 0.3, 0.5, 0.9]
        nothing, *others = claim.rows
        assert math.isnan(nothing["minus_each"]) and nothing["minus_moved"] == pytest.approx(-0.3, abs=0.01)
        assert [row["minus_each"] for row in others] == pytest.approx([0.0] * 3, abs=1e-9)
        assert others[0]["minus_each_low"] < 0 < others[0]["minus_each_high"]

    def test_losses_are_compared_at_the_rate_that_was_reached(self):
        row = self.judged(reached=0.02).rows[2]  # of the way from 50 to 90 % a twentieth
        assert row["minus_each"] == pytest.approx(-(0.1 - 0.02) / 20)
        assert (row["conditioned_misses_by_points"], row["moved_misses_by_points"]) == pytest.approx(
            (2.0, -0.4)
        )

    def test_without_the_analysis_there_is_no_verdict(self):
        claim = judge("one_model_any_rate", Evidence([result("byt5", "none")]))
        assert (claim.holds, claim.sentence) == (None, "not run yet: analysis dial")
        claim = judge("one_model_any_rate", Evidence([result("byt5", "none")], ["analysis dial"]))
        assert (claim.holds, claim.sentence) == (None, "not run yet: analysis dial")

    def test_without_a_told_model_or_a_byt5_no_rate_is_compared(self):
        for lacking in ("quantile_gate", "none", "delete_gate"):
            left = [point for point in self.points() if point["kind"] != lacking]
            evidence = Evidence([result("byt5", "none")], analyses={"dial": {"points": left}})
            claim = judge("one_model_any_rate", evidence)
            assert claim.holds is None and claim.sentence.startswith("at no rate")


class TestRuntime:
    def runs(self, *times, kind="delete_gate"):
        kept = (70.0, 50.0, 30.0)
        gates = [
            result(
                f"mrt5_{i}",
                kind,
                rate=1 - length / 96,
                median_ms_per_example=time,
                kept_length=length,
            )
            for i, (length, time) in enumerate(zip(kept, times, strict=True))
        ]
        return [result("byt5", "none", median_ms_per_example=10.0), *gates]

    @pytest.mark.parametrize("kind", ["delete_gate", "random"])
    def test_time_near_the_arithmetic_bears_it_out(self, kind):
        """Whichever bytes go: time depends on how many."""
        claim = judge("runtime_falls_as_predicted", Evidence(self.runs(8.5, 7.2, 6.0, kind=kind)))
        assert claim.holds is True
        ratios = [row["macs_ratio"] for row in claim.rows]
        assert ratios == sorted(ratios, reverse=True) and 0 < ratios[-1] < ratios[0] < 1

    def test_time_that_does_not_fall_with_the_rate_denies_it(self):
        claim = judge("runtime_falls_as_predicted", Evidence(self.runs(7.0, 7.2, 5.0)))
        assert claim.holds is False
        assert "does not fall" in claim.sentence

    def test_time_that_falls_too_little_denies_it(self):
        assert judge("runtime_falls_as_predicted", Evidence(self.runs(9.9, 9.8, 9.7))).holds is False


class TestPaper:
    """The paper's own numbers (camera-ready, averages over 15 languages) bear out what it claims."""

    def test_equal_reduction(self):
        bits = {
            "delete_gate": ((0.337, 0.993), (0.411, 1.001), (0.495, 1.020), (0.574, 1.045), (0.681, 1.091)),
            "random": ((0.300, 1.105), (0.400, 1.164), (0.500, 1.236), (0.600, 1.318), (0.701, 1.436)),
            "fixed": ((0.258, 1.192), (0.350, 1.274), (0.447, 1.364), (0.543, 1.458), (0.645, 1.571)),
        }
        runs = [
            result(f"{kind}_{place}", kind, rate=rate, loss=loss)
            for kind, points in bits.items()
            for place, (rate, loss) in enumerate(points)
        ]
        claim = judge("less_loss_at_equal_reduction", Evidence([result("byt5", "none", loss=0.962), *runs]))
        assert claim.holds is True
        assert len(claim.rows) == 10

    def test_scripts(self):
        percent = {
            "en": 56.1, "fr": 47.6, "es": 49.2, "de": 43.1, "el": 52.9, "bg": 54.1, "ru": 54.5, "tr": 41.6,
            "ar": 53.2, "vi": 42.1, "th": 58.2, "zh": 35.9, "hi": 54.9, "sw": 40.0, "ur": 52.1,
        }  # fmt: skip
        rows = [Row(code, 10, deletion_rate=rate / 100, loss=1.0) for code, rate in percent.items()]
        rows.append(Row("total", 10, deletion_rate=0.495, loss=1.0))
        claim = judge("rates_differ_by_script", Evidence([result("m", "delete_gate", rows=rows)]))
        assert claim.holds is True
        assert "35.9% (Han) to 58.2% (Thai)" in claim.sentence

    def test_samples(self):
        correlations = {
            "delete_gate": (0.14, 0.13, 0.13, 0.08, 0.03),
            "random": (0.28, 0.30, 0.32, 0.29, 0.28),
        }
        runs, models = [], []
        for kind, rs in correlations.items():
            for place, r in enumerate(rs):
                runs.append(result(f"{kind}_{place}", kind, rate=0.5))
                line = {"recipe": runs[-1]["recipe"], "seed": 42, "samples": 1000}
                models.append(line | {"r": r, "r_nats": r})  # it prints those in percent alone
        claim = judge("rate_does_not_tell_loss", Evidence(runs, analyses={"per_sample": {"models": models}}))
        assert claim.holds is True
        assert "0.102 for MrT5 (5 models) and 0.294" in claim.sentence


class TestGathering:
    """From files to evidence: what runs left on disk is found, and what is not there is named."""

    NAMES = ("miniature/byt5", "miniature/mrt5_50")

    def plan(self, folder):
        experiment = Experiment("tradeoff", "t", None, "a", recipes=self.NAMES, baseline="miniature/byt5")
        plan = SuitePlan("miniature", folder, [experiment])
        for name in self.NAMES:
            recipe = recipes.load(f"recipes/{name}.yaml")
            run = RunDir(folder / recipe.name)
            train = TrainJob(id=f"train {name}", name=name, output=run.meta_path, recipe=recipe, run=run)
            evaluate = EvaluateJob(
                id=f"evaluate {name}",
                name=name,
                output=run.eval("span_corruption"),
                train=train,
                evaluation=Evaluation(),
                task=recipe.task,
                options=EvaluationOptions(batch_size=8),
            )
            plan.jobs += [train, evaluate]
        return plan, experiment

    def write(self, plan, rates):
        outputs = [job.output for job in plan.jobs if job.kind == "evaluate"]
        for output, rate in zip(outputs, rates, strict=False):
            output.parent.mkdir(parents=True)
            row = {"subset": "en", "examples": 10, "deletion_rate": rate, "loss": 1.0 + rate}
            settings = plan.jobs[0].recipe.task.model_dump(mode="json")
            output.write_text(json.dumps(document(settings, [row])))

    def test_what_is_on_disk_is_judged(self, tmp_path):
        plan, experiment = self.plan(tmp_path)
        self.write(plan, (0.0, 0.49))
        claim = judge("hits_targets", Results(plan, experiment).evidence)
        assert claim.holds is True
        assert claim.rows[0]["target"] == 0.5 and claim.rows[0]["deleted"] == 0.49

    def test_what_an_analysis_lacks_is_waited_for(self, tmp_path):
        plan, experiment = self.plan(tmp_path)
        plan.experiments = [experiment] = [replace(experiment, analyses=("settling",))]
        self.write(plan, (0.0, 0.49))
        write_json(plan.analysis(experiment, "settling"), {"runs": [], "missing": ["mrt5_50 seed 42"]})
        claim = judge("hits_targets", Results(plan, experiment).evidence)
        assert claim.holds is None
        assert claim.sentence.endswith("(not run yet: mrt5_50 seed 42 in analysis settling)")

    def test_what_is_not_is_named(self, tmp_path):
        plan, experiment = self.plan(tmp_path)
        self.write(plan, (0.0,))
        claim = judge("hits_targets", Results(plan, experiment).evidence)
        assert claim.holds is None
        assert "miniature/mrt5_50 seed 42" in claim.sentence
