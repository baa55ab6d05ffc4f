"""Analyses of several tiny runs: what they say, what they refuse, and that missing runs only go missing."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_plans import make_plan, train

from mrt5cli.analysis.across_runs import ANALYSES, run_analysis
from mrt5cli.analysis.deletion_patterns import letter_kinds
from mrt5cli.analysis.dial import WANTED
from mrt5cli.analysis.per_sample import Samples, correlation, measured
from mrt5cli.byte_tokens import encode
from mrt5cli.errors import UserError
from mrt5cli.suite.jobs import Experiment, SuitePlan
from mrt5cli.writing import write_json, write_text

LANGUAGES = Experiment(
    "languages",
    "Languages",
    "v3",
    "Three families.",
    (
        "multilingual_v3/byt5",
        "multilingual_v3/mrt5_50",
        "softmax_ablation/mrt5_50",
        "multilingual_v3/random_50",
        "multilingual_v3/cp_2",
    ),
    baseline="multilingual_v3/byt5",
    analyses=tuple(ANALYSES),
)
LETTERS = Experiment("letters", "Letters", "v3", "Merging.", ("diagnostic_v3/merge_ABC_mrt5_1e-2",))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SuitePlan:
    made = make_plan(tmp_path_factory.mktemp("runs"), [LANGUAGES, LETTERS])
    train(made, runtime=True)
    for job in made.trainings:
        last = job.recipe.training.max_steps
        write_text(job.run.metrics_path, f'{{"step": {last}, "deletion_rate": 0.5}}\n')
    return made


@pytest.fixture
def untrained(tmp_path: Path) -> SuitePlan:
    return make_plan(tmp_path, [LANGUAGES, LETTERS], left_out=LANGUAGES.recipes)


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["recipe"].rpartition("/")[2] for line in lines]


@pytest.mark.parametrize("name", ANALYSES)
def test_documents_are_json_and_name_nothing_missing(plan: SuitePlan, name: str) -> None:
    seen: list[tuple[str, str, int]] = []
    experiment = LETTERS if name == "gate_training" else LANGUAGES
    runs = replace(plan.experiment_runs(experiment), progress=lambda *done: seen.append(done))
    found = run_analysis(name, runs)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert found["missing"] == []
    assert bool(seen) == (name in ("per_sample", "deletion_patterns", "softmax1", "gate_training", "dial"))


def test_a_dial_has_each_gates_own_rate_and_the_wanted_ones_and_the_baseline_as_it_is(
    plan: SuitePlan,
) -> None:
    points = run_analysis("dial", plan.experiment_runs(LANGUAGES))["points"]
    wanted: dict[str, list[float | None]] = {}
    for point in points:
        wanted.setdefault(point["recipe"], []).append(point["wanted"])
    gates = {name: [None, *WANTED] for name in ("multilingual_v3/mrt5_50", "softmax_ablation/mrt5_50")}
    assert wanted == {"multilingual_v3/byt5": [None], **gates}
    assert [point["reached"] for point in points if point["kind"] == "none"] == [0.0]
    moved = [point for point in points if point["wanted"] is not None]
    # Of a few hundred positions, found on others.
    assert all(abs(point["reached"] - point["wanted"]) < 0.15 for point in moved)
    assert {point["target"] for point in moved} == {0.5} and all(point["loss"] > 0 for point in points)


def test_an_unknown_analysis_is_refused(plan: SuitePlan) -> None:
    with pytest.raises(UserError, match="no analysis is named 'per_sampel'"):
        run_analysis("per_sampel", plan.experiment_runs(LANGUAGES))


@pytest.mark.parametrize("name", [name for name in ANALYSES if name != "compute"])
def test_without_runs_there_is_nothing_to_say(untrained: SuitePlan, name: str) -> None:
    with pytest.raises(UserError, match="no "):
        run_analysis(name, untrained.experiment_runs(LANGUAGES))


# --- per sample ------------------------------------------------------------------------------------------


def test_samples_agree_with_the_evaluation_of_the_same_examples(plan: SuitePlan) -> None:
    """Batches of one delete what batches of four do, and losses are the evaluation's own."""
    found = run_analysis("per_sample", plan.experiment_runs(LANGUAGES))
    assert found["samples"] == 8  # the smoke recipe's examples
    assert names(found["models"]) == ["mrt5_50", "mrt5_50", "random_50", "cp_2"]
    for model, run in zip(found["models"], plan.experiment_runs(LANGUAGES).runs[1:], strict=True):
        result = run.own()
        assert result is not None
        if model["family"] == "MrT5":
            rate = result[0].known("deletion_rate")
            assert np.mean(model["deleted_percent"]) == pytest.approx(100 * rate, abs=1e-3)
        again = correlation(model["deleted_percent"], model["loss_increase_percent"])
        assert model["r"] is None or model["r"] == pytest.approx(again.r, abs=1e-4)
    assert found["models"][3]["r"] is None  # a convolution pools as much of every sample
    assert set(found["families"]) == {"MrT5", "Random", "CP"}
    assert found["families"]["CP"] is found["families_nats"]["CP"] is None
    for model in found["models"]:
        again = correlation(model["deleted_percent"], model["loss_increase_nats"])
        assert model["r_nats"] is None or model["r_nats"] == pytest.approx(again.r, abs=1e-3)
        assert model["r_nats"] is None or model["low_nats"] < model["r_nats"] < model["high_nats"]
        assert model["deleted_sd_points"] == pytest.approx(np.std(model["deleted_percent"], ddof=1), abs=1e-3)
    [byt5] = plan.experiment_runs(LANGUAGES).baselines
    row, _ = byt5.own() or (None, None)
    assert row is not None
    assert found["source_worth_nats"] == pytest.approx(row.known("source_removed_loss") - row.known("loss"))


def test_losses_of_samples_are_those_of_the_evaluation(plan: SuitePlan) -> None:
    from mrt5cli.tasks.base import build_task

    runs = plan.experiment_runs(LANGUAGES)
    [base] = runs.baselines
    task = build_task(base.recipe.task)
    samples = Samples("en", list(task.held_out("test", "en", batch_size=1, limit=8)))
    loss, deleted = measured(runs, base, samples)
    result = base.own()
    assert result is not None
    assert loss.mean() == pytest.approx(result[0].loss, rel=1e-5)  # all targets are as long
    assert not deleted.any()


SPELLING = Experiment(
    "spelling",
    "Spelling",
    None,
    "A test of two parts, and no languages.",
    ("spelling_small_byt5", "spelling_small_random"),
    seeds=(1, 2),
    baseline="spelling_small_byt5",
)


def test_parts_that_are_no_languages_are_taken_together_and_seeds_with_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, [SPELLING])
    for job in plan.trainings:
        job.run.model.mkdir(parents=True)
        write_json(job.run.model / "config.json", {})
    looked_at: list[tuple[int, int]] = []

    def pretended(runs: Any, run: Any, samples: Samples) -> tuple[Any, Any]:
        """Losses of the seed, one of them 0; so the rise over the run of the same seed is the rate itself."""
        looked_at.append((run.seed, len(samples.batches)))
        count = len(samples.batches)
        deleted = np.zeros(count) if run.family == "ByT5" else np.linspace(0, 0.5, count)
        return np.arange(count) ** 2 * run.seed + deleted, deleted

    monkeypatch.setattr("mrt5cli.analysis.per_sample.measured", pretended)
    found = run_analysis("per_sample", plan.experiment_runs(SPELLING))
    assert found["subset"] == "test_context_dependent, test_context_independent"
    assert found["source_worth_nats"] is None
    count = found["samples"]
    assert count == found["available"] == 16  # of each part the smoke recipe's
    assert looked_at == [(seed, count) for seed in (1, 2)] * 2
    for model in found["models"]:
        assert model["r_nats"] == pytest.approx(1.0)
        assert model["loss_increase_percent"][0] is None  # of a loss of 0 there are no percentages
        assert model["samples"] == count - 1
        assert model["r"] is not None
    json.dumps(found, allow_nan=False)


def test_per_sample_needs_its_baseline(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, [LANGUAGES], left_out=["multilingual_v3/byt5"])
    with pytest.raises(UserError, match="compares with multilingual_v3/byt5, which has no finished run"):
        run_analysis("per_sample", plan.experiment_runs(LANGUAGES))


# --- compute and time ------------------------------------------------------------------------------------


def test_without_runs_the_curve_is_the_papers(untrained: SuitePlan) -> None:
    found = run_analysis("compute", untrained.experiment_runs(LANGUAGES))
    curve = {point["deletion_rate"]: point for point in found["curve"]}
    assert curve[0.0]["paper_macs"] == 311_455_522_304
    assert curve[0.5]["paper_relative"] == pytest.approx(0.6166, abs=5e-5)
    assert curve[0.5]["relative"] > curve[0.5]["paper_relative"]  # what is never deleted weighs more
    assert len(found["missing"]) == 5


def test_with_runs_the_curve_is_theirs_and_they_lie_on_it(plan: SuitePlan) -> None:
    found = run_analysis("compute", plan.experiment_runs(LANGUAGES))
    assert found["sizes"]["d_model"] == 32
    assert found["source"] == 64
    byt5, mrt5, *_ = found["runs"]
    assert byt5["relative"] == 1.0
    x = [point["deletion_rate"] for point in found["curve"]]
    y = [point["relative"] for point in found["curve"]]
    assert mrt5["relative"] == pytest.approx(float(np.interp(mrt5["deletion_rate"], x, y)), abs=0.01)


def test_times_are_shares_of_the_baselines(plan: SuitePlan) -> None:
    found = run_analysis("runtime", plan.experiment_runs(LANGUAGES))
    byt5, mrt5, *_ = found["runs"]
    assert byt5["decrease_percent"] == pytest.approx(0.0)
    expected = 100 * (1 - mrt5["ms_per_example"] / byt5["ms_per_example"])
    assert mrt5["decrease_percent"] == pytest.approx(expected)
    assert 0 < mrt5["macs_decrease_percent"] < 100 * mrt5["deletion_rate"]


def test_what_was_timed_elsewhere_is_left_out_and_named(plan: SuitePlan) -> None:
    ran = plan.experiment_runs(LANGUAGES).runs[1]
    [path] = (ran.run.path / "eval").glob("*.json")
    whole = path.read_text()
    try:
        other = json.loads(whole)
        other["models"][0]["device_name"] = "another machine"
        write_json(path, other)
        found = run_analysis("runtime", plan.experiment_runs(LANGUAGES))
        assert found["missing"] == [f"multilingual_v3/mrt5_50 seed {ran.seed}"] == [ran.title]
        placed = run_analysis("gate_placement", plan.experiment_runs(LANGUAGES))
        assert placed["runs"][0]["decrease_percent"] is None
    finally:
        path.write_text(whole)


def test_gates_are_told_by_the_layer_they_follow(plan: SuitePlan) -> None:
    found = run_analysis("gate_placement", plan.experiment_runs(LANGUAGES))
    assert [line["after_layer"] for line in found["runs"]] == [2, 2, 2, 2]  # shrunk from 3
    assert "byt5" not in names(found["runs"])


# --- softmax1 --------------------------------------------------------------------------------------------


def test_softmax1_is_compared_on_the_same_examples(plan: SuitePlan) -> None:
    [pair] = run_analysis("softmax1", plan.experiment_runs(LANGUAGES))["pairs"]
    assert (pair["recipe"], pair["without"]) == ("multilingual_v3/mrt5_50", "softmax_ablation/mrt5_50")
    [loss] = [found for found in pair["differences"] if found["measure"] == "loss"]
    assert loss["difference"] == pytest.approx(pair["softmax1"]["loss"] - pair["softmax"]["loss"], rel=1e-5)
    assert loss["low"] <= loss["difference"] <= loss["high"]


# --- patterns --------------------------------------------------------------------------------------------


def test_patterns_of_letters_are_counted_as_published(plan: SuitePlan) -> None:
    [model] = run_analysis("deletion_patterns", plan.experiment_runs(LETTERS))["models"]
    rates = {line["kind"]: line for line in model["letters"]}
    assert list(rates) == [
        "all", "A_in_ABC", "B_in_ABC", "C_in_ABC", "outside_ABC_incl_markers", "start_marker_#", "eos"
    ]  # fmt: skip
    assert rates["all"]["count"] == 16 * model["examples"] == model["positions"]
    assert rates["all"]["rate"] == pytest.approx(model["deletion_rate"])
    letters = sum(rates[kind]["deleted"] for kind in ("A_in_ABC", "B_in_ABC", "C_in_ABC"))
    assert letters + rates["outside_ABC_incl_markers"]["deleted"] == rates["all"]["deleted"]
    result = plan.experiment_runs(LETTERS).runs[0].own()
    assert result is not None
    assert model["gate_precision"] == pytest.approx(result[0].gate_precision)
    assert model["gate_recall"] == pytest.approx(result[0].gate_recall)


def test_shown_texts_are_whole(plan: SuitePlan) -> None:
    for model in run_analysis("deletion_patterns", plan.experiment_runs(LANGUAGES))["models"]:
        assert model["family"] != "ByT5"
        for shown in model["shown"]:
            text = "".join(part for part, _ in shown["runs"])
            assert len(text) > 16
            states = {state for _, state in shown["runs"]}
            assert ("bar" in states) == (model["family"] == "CP")


def test_gates_are_followed_only_where_it_is_known_what_can_go(plan: SuitePlan) -> None:
    with pytest.raises(
        UserError, match="no finished run of languages has a delete_gate and a task that knows"
    ):
        run_analysis("gate_training", plan.experiment_runs(LANGUAGES))


letters = st.text("ABCDabcdeiouXz", max_size=40)


@given(letters)
def test_kinds_of_letters_hold_what_they_say(text: str) -> None:
    ids = encode(f"#{text}", add_eos=True)
    for task in ("vowel_removal", "contextual_vowel_removal", "merge_ABC"):
        kinds = letter_kinds(task, ids)
        # Together they are every position but what the task leaves unnamed, and none twice.
        parts = [mask for kind, mask in kinds.items() if kind != "all"]
        if task == "merge_ABC":
            parts = [mask for kind, mask in kinds.items() if "ABC" in kind]
        assert np.sum(parts, axis=0).tolist() == [1] * len(ids)
    assert letter_kinds("merge_ABC", ids)["A_in_ABC"].sum() == text.count("ABC")
    after = letter_kinds("contextual_vowel_removal", ids)["vowel_after_lowercase_consonant"]
    expected = sum(one in "bcdz" and other in "Aaeiou" for one, other in itertools.pairwise(text))
    assert after.sum() == expected


def test_subjects_are_runs(plan: SuitePlan) -> None:
    run = plan.experiment_runs(LETTERS).runs[0]
    assert run.subject().run == run.run
