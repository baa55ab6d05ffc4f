"""Each published number has its place, each recipe of the paper numbers or a reason, each run a section."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import astuple

from mrt5cli.paper.published import chosen, from_analyses, published, unmatched
from mrt5cli.recipe import load
from mrt5cli.recipe.loading import shipped
from mrt5cli.report.placement import place
from mrt5cli.suite.jobs import Experiment
from mrt5cli.suite.suites import load_suite

SUITE = load_suite("paper")
OTHERS = ("quickstart", "local_text", "spelling_small", "miniature/", "dates/")
"""Recipes that are not the paper's: small, and without a network."""

SECTIONS = {
    ("v3", "diagnostic"): {"diagnostic_v3"},
    ("v3", "diagnostic_deletion_patterns"): {"diagnostic_v3"},
    ("v3", "span_corruption_multilingual"): {"multilingual_v3"},
    ("v3", "span_corruption_per_language_delta0.5"): {"per_language_v3"},
    ("v3", "runtime"): {"runtime_v3"},
    ("v3", "gate_placement"): {"gate_placement_v3"},
    ("v1+v3", "compute_savings"): {"compute_savings"},
    ("v3", "per_sample"): {"per_sample_v3"},
    ("v3", "large_model"): {"large_v3"},
    ("v3", "xnli"): {"xnli_v3"},
    ("v3", "tydiqa_goldp"): {"tydiqa_v3"},
    ("v3", "spelling_correction_contextual"): {"spelling_v3"},
    ("v3", "word_search"): {"word_search_v3"},
    ("v1", "diagnostic"): {"diagnostic_v1"},
    ("v1", "english_span_corruption"): {"english_v1"},
    ("v1", "runtime"): {"english_v1"},
    ("v1", "per_language_span_corruption"): {"multilingual_v1"},
    ("v1", "gate_placement"): {"gate_placement_v1_alpha", "gate_placement_v1_p"},
    ("v1", "per_sample"): {"per_sample_v1"},
    ("v1", "xnli"): {"xnli_v1"},
    ("v1", "spelling_correction_contextual"): {"spelling_v1"},
    ("v1", "word_search"): {"word_search_v1"},
}
"""The experiments of the suite in which what was published under a name can be measured."""

MEASURED_BY = {
    "runtime_per_example": "runtime",
    "runtime_decrease_vs_byt5": "runtime",
    "total_eval_time": "runtime",
    "pearson_r": "per_sample",
}
"""Metrics that a plain evaluation does not have, and what an experiment must do to have them."""


def rows_of_recipes() -> dict[str, str]:
    """The recipe that names a number, by its id."""
    named = [(row, name) for name in shipped() if (paper := load(name).paper) for row in paper.rows]
    assert len(named) == len(dict(named)), Counter(row for row, _ in named).most_common(1)
    return dict(named)


def without() -> list[str]:
    """Numbers that nothing here is held against."""
    return [id_ for part in unmatched()["without"] for id_ in chosen(part["numbers"])]


def unpublished() -> set[str]:
    """Recipes of the suite for which nothing was published."""
    return {name for part in unmatched()["recipes"] for name in part["recipes"]}


# --- the numbers --------------------------------------------------------------------------------------------


def test_the_numbers_are_those_that_were_compared_with_their_source() -> None:
    """All fields of all rows were compared with the digest of the paper when this was written.

    A change of any number, setting or tolerance shows here; make it only with the source at hand.
    """
    lines = [json.dumps(astuple(number)) for number in published().values()]
    assert len(lines) == 2371
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST


DIGEST = "8733d317cddb77bc46a320369db2764463a47f8199dc39b70fd8dfd036ed18a5"


def test_every_number_has_exactly_one_place() -> None:
    recipes, analyses, left = rows_of_recipes(), from_analyses(), without()
    everywhere = [*recipes, *analyses, *left]
    assert sorted(everywhere) == list(published())
    assert (len(recipes), len(analyses), len(left)) == (1996, 26, 349)


def test_every_version_that_is_final_is_reproduced_but_for_prose() -> None:
    left = {(published()[row].version, published()[row].experiment) for row in without()}
    final = {group for group in left if not group[0].startswith("interim-")}
    assert final == {("v1", "abstract"), ("v3", "abstract"), ("v3", "model_size")}


# --- the recipes --------------------------------------------------------------------------------------------


def test_every_recipe_of_the_paper_has_numbers_or_a_reason() -> None:
    reproduced = set(rows_of_recipes().values())
    used = {name for experiment in SUITE for name in experiment.recipes}
    used |= {one.task for experiment in SUITE for one in experiment.evaluations if one.task}
    assert used == reproduced | unpublished()
    assert not reproduced & unpublished()


def test_every_recipe_that_is_the_papers_is_in_an_experiment() -> None:
    ours = {name for name in shipped() if not name.startswith(OTHERS)}
    used = {name for experiment in SUITE for name in experiment.recipes}
    assert ours - used == {"zero_shot/mc4"}
    assert used <= ours
    assert len(used) == 106


# --- the experiments ----------------------------------------------------------------------------------------


def experiment(id_: str) -> Experiment:
    (found,) = (experiment for experiment in SUITE if experiment.id == id_)
    return found


def test_every_number_can_be_measured_in_an_experiment_of_its_version() -> None:
    for row, recipe in rows_of_recipes().items():
        number = published()[row]
        homes = [experiment(id_) for id_ in SECTIONS[number.version, number.experiment]]
        homes = [home for home in homes if recipe in home.recipes]
        assert homes, f"{recipe} is in no experiment for {number}"
        for home in homes:
            assert home.version == number.version
            needed = MEASURED_BY.get(number.metric)
            if needed == "runtime":
                assert any(one.runtime for one in home.evaluations), f"{home.id} does not time: {number}"
            elif needed:
                assert needed in home.analyses, f"{home.id} has no {needed}: {number}"
            elif "deletion_rate[" in number.metric:
                assert "deletion_patterns" in home.analyses
            else:
                assert home.evaluations, f"{home.id} does not evaluate: {number}"


def test_the_report_shows_every_number_where_it_can_be_measured() -> None:
    placed = {number.id: id_ for id_, numbers in place(SUITE).items() for number, _ in numbers}
    assert len(placed) == 1996 + 26
    for row, id_ in placed.items():
        assert id_ in SECTIONS[published()[row].version, published()[row].experiment], published()[row]


def test_every_section_has_numbers_and_every_experiment_without_any_says_so() -> None:
    with_numbers = {id_ for ids in SECTIONS.values() for id_ in ids}
    unpublished_ones = {experiment.id for experiment in SUITE if experiment.version is None}
    assert {experiment.id for experiment in SUITE} == with_numbers | unpublished_ones | {"p_controller_v1"}
    assert not with_numbers & unpublished_ones


def test_numbers_of_analyses_are_of_analyses_that_are_made() -> None:
    for part in unmatched()["analyses"]:
        assert part["analysis"] in experiment(part["experiment"]).analyses
    for row, id_ in from_analyses().items():
        assert id_ in SECTIONS[published()[row].version, published()[row].experiment]


def test_a_time_stands_beside_that_of_a_model_which_deletes_nothing() -> None:
    """Milliseconds belong to a machine: only ratios to the baseline can be compared."""
    for each in SUITE:
        if any(one.runtime for one in each.evaluations):
            assert each.baseline is not None
            assert load(each.baseline).model.shortener.kind == "none"


def test_per_language_numbers_of_english_runs_are_of_15_languages() -> None:
    (evaluation,) = experiment("multilingual_v1").evaluations
    assert evaluation.task is not None
    assert len(load(evaluation.task).task.languages) == 15
    assert load("english_v1/mrt5_alpha_0.01").task.languages == ["en"]


# --- unmatched.yaml -----------------------------------------------------------------------------------------


def test_every_part_is_whole_and_chooses_numbers_in_one_way() -> None:
    keys = {
        "analyses": {"experiment", "analysis", "numbers", "reason"},
        "without": {"numbers", "reason"},
        "recipes": {"recipes", "reason"},
    }
    assert set(unmatched()) == set(keys)
    for name, parts in unmatched().items():
        for part in parts:
            assert set(part) == keys[name], part
            if "numbers" in part:
                assert set(part["numbers"]) in ({"rows"}, {"version", "experiment"}), part
                assert chosen(part["numbers"]), part


def test_reasons_are_sentences_worth_reading() -> None:
    reasons = [part["reason"] for parts in unmatched().values() for part in parts]
    assert all(len(reason.split()) >= 5 and "\n" not in reason for reason in reasons)
