"""Suites: read strictly, with every problem at once, and the ones that come with the toolkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrt5cli.errors import RecipeError, UserError
from mrt5cli.suite.jobs import Evaluation
from mrt5cli.suite.suites import load_suite, suite_names

KNOWN = ["xnli/byt5", "xnli/mrt5", "xnli/random", "english/byt5"]


def suite(folder: Path, *entries: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text("experiments:\n" + "".join(f"- {{{entry}}}\n" for entry in entries))
    return path


def problems(folder: Path, *entries: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_suite(suite(folder, *entries), recipes=KNOWN)
    return dict(caught.value.problems)


def test_globs_stand_for_what_no_entry_before_named(tmp_path: Path) -> None:
    path = suite(
        tmp_path,
        "id: a, title: A, about: what, version: v3, recipes: [xnli/mrt5, 'xnli/*'], baseline: xnli/byt5, "
        "seeds: [1, 2], evaluations: [{}, {task: english/byt5, limit: 3, runtime: true}], analyses: [x]",
    )
    [experiment] = load_suite(path, recipes=KNOWN)
    assert experiment.recipes == ("xnli/mrt5", "xnli/byt5", "xnli/random")
    assert experiment.seeds == (1, 2)
    assert experiment.evaluations == (Evaluation(), Evaluation("english/byt5", runtime=True, limit=3))
    assert experiment.analyses == ("x",)


def test_a_field_left_out_is_the_dataclasss(tmp_path: Path) -> None:
    [experiment] = load_suite(suite(tmp_path, "id: a, title: A, about: what"), recipes=KNOWN)
    assert experiment.evaluations == (Evaluation(),)
    assert experiment.recipes == experiment.seeds == experiment.claims == ()


def test_every_wrong_key_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "id: a, title: A, about: what, recipies: []",
        "id: b, title: B, about: what, version: v2, evaluations: [{runtimes: true}]",
        "title: C, about: what",
    )
    assert found["experiments[0].recipies"] == "unknown key; did you mean recipes?"
    assert found["experiments[1].evaluations[0].runtimes"] == "unknown key; did you mean runtime?"
    assert "'v1' or 'v3'" in found["experiments[1].version"]
    assert "required" in found["experiments[2].id"]


def test_every_wrong_name_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "id: a, title: A, about: what, recipes: [xnli/mrt6, 'none/*', xnli/byt5]",
        "id: a, title: B, about: w, recipes: [xnli/byt5], baseline: xnli/bty5, evaluations: [{task: xnly}]",
    )
    assert "did you mean xnli/mrt5?" in found["experiments[0].recipes[0]"]
    assert found["experiments[0].recipes[1]"] == "no shipped recipe 'none/*'"
    assert "another experiment is also called" in found["experiments[1].id"]
    assert "did you mean xnli/byt5?" in found["experiments[1].baseline"]
    assert "no shipped recipe 'xnly'" in found["experiments[1].evaluations[0].task"]


def test_a_lone_experiment_that_is_wrong_is_not_also_too_few(tmp_path: Path) -> None:
    found = problems(tmp_path, "id: a, title: A, recipes: [xnli/byt5], seeds: [-1]")
    assert list(found) == ["experiments[0].seeds[0]"]


def test_a_seed_that_stands_twice_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "id: a, title: A, recipes: [xnli/byt5], seeds: [42, 43, 42]")
    assert found["experiments[0].seeds"].startswith("42 is listed twice")


@pytest.mark.parametrize("text", ["", "- a\n", "experiments: []\n", "experiments: 3\n"])
def test_what_is_no_suite(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        load_suite(path, recipes=KNOWN)


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_suite("papr")
    assert "did you mean paper?" in str(caught.value.hint)


def test_the_suites_that_come_along() -> None:
    assert "paper" in suite_names()
    for name in suite_names():
        experiments = load_suite(name)
        assert experiments and all(one.about for one in experiments)
