"""The paper in miniature: its comparisons are fair, whole and independent of where they are run."""

import re
from functools import cache

import pytest

from mrt5cli import recipe as recipes
from mrt5cli.recipe.loading import shipped
from mrt5cli.suite.suites import load_suite

NAMES = sorted(name for name in shipped() if name.startswith("miniature/"))
RECIPES = {name: recipes.load(path) for name, path in shipped().items() if name in NAMES}
EXPERIMENTS = {experiment.id: experiment for experiment in load_suite("miniature")}


@cache
def all_recipes():
    return {name: recipes.load(path) for name, path in shipped().items()}


def test_every_recipe_is_shown_or_another_starts_from_it():
    shown = {name for experiment in EXPERIMENTS.values() for name in experiment.recipes}
    started_from = {recipe.model.start for recipe in RECIPES.values()}
    bases = {name for name, recipe in RECIPES.items() if f"runs/{recipe.name}-seed42" in started_from}
    assert set(NAMES) <= shown | bases


@pytest.mark.parametrize("name", NAMES)
def test_starts_are_runs_of_shipped_recipes_with_their_own_seed(name):
    start = RECIPES[name].model.start
    own = {f"runs/{recipe.name}-seed{recipe.seed}" for recipe in all_recipes().values()}
    assert start == "scratch" or start in own


@pytest.mark.parametrize("experiment", ["tradeoff", "seeds", "per_sample_text", "runtime"])
def test_models_that_are_compared_differ_in_nothing_but_how_they_shorten(experiment):
    """Same start, text, steps, learning rate and seed: what is left is the shortener, and what steers it."""

    def apart_from_shortening(name):
        tree = RECIPES[name].model_dump()
        tree["model"].pop("shortener")
        for key in ("name", "description", "controller", "loss"):
            tree.pop(key)
        return tree

    first, *others = (apart_from_shortening(name) for name in EXPERIMENTS[experiment].recipes)
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", [name for name in NAMES if re.search(r"_[357]0$", name)])
def test_the_rate_in_a_name_is_what_the_model_aims_at(name):
    recipe = RECIPES[name]
    rate = recipe.model.shortener.share_deleted(recipe.target_deletion_rate)
    assert rate == pytest.approx(int(name[-2:]) / 100)


def test_softmax_differs_from_softmax1_in_nothing_else():
    for name in ("byt5_base", "byt5", "mrt5_50"):
        ours, other = (RECIPES[f"miniature/{stem}"].model_dump() for stem in (name, f"{name}_softmax"))
        assert ours["model"].pop("softmax1") is True and other["model"].pop("softmax1") is False
        starts = [tree["model"].pop("start") for tree in (ours, other)]
        assert starts[0] == starts[1] == "scratch" or starts[1] == starts[0].replace("-seed", "-softmax-seed")
        for tree in (ours, other):
            tree.pop("name"), tree.pop("description")
        assert ours == other


def test_softmax_and_softmax1_are_compared_with_several_seeds_each_from_a_base_of_its_own():
    experiment = EXPERIMENTS["softmax1"]
    assert len(experiment.seeds) >= 3
    files = shipped()
    for name in experiment.recipes:
        starts = [recipes.load(files[name], [f"seed={seed}"]).model.start for seed in experiment.seeds]
        assert [start.rpartition("-seed")[2] for start in starts] == [str(seed) for seed in experiment.seeds]


def test_only_two_parts_need_text_that_is_not_there():
    """The rest runs where nothing can be downloaded or has been built."""
    outside = {
        experiment.id
        for experiment in EXPERIMENTS.values()
        for name in experiment.recipes
        if getattr(getattr(all_recipes()[name].task, "source", None), "kind", "embedded") != "embedded"
    }
    assert outside == {"multilingual", "per_sample_spelling"}
    assert "data/corpus" in RECIPES["miniature/multilingual_byt5"].model_dump_json()
