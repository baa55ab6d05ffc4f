"""Which task a model is given: its own, another kind at a length that suits it, or another recipe's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mrt5cli.errors import UserError
from mrt5cli.evaluation.subject import TASK_KINDS, Subject, check_fits, choose_task, task_length
from mrt5cli.recipe import Recipe


def subject(task: dict | None) -> Subject:
    recipe = None
    if task is not None:
        recipe = Recipe.model_validate(
            {"name": "r", "description": "r", "task": task, "training": {"max_steps": 1}}
        )
    return Subject("r-seed1", "somewhere", None, recipe)


VOWELS = {"kind": "vowel_removal", "length": 20, "eval_examples": 50}
SPANS = {"kind": "span_corruption", "source": {"kind": "embedded"}, "input_length": 256}


def test_the_kinds_are_those_of_the_schema() -> None:
    assert TASK_KINDS == ("span_corruption", "copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC")


def test_the_runs_own_task() -> None:
    own = subject(VOWELS)

    assert own.recipe is not None
    assert choose_task(None, own) is own.recipe.task
    assert choose_task("vowel_removal", own) is own.recipe.task


def test_another_kind_takes_the_runs_length() -> None:
    assert choose_task("copy", subject(VOWELS)).length == 20
    assert choose_task("span_corruption", subject(VOWELS)).input_length == 20
    assert choose_task("span_corruption", subject({**VOWELS, "length": 9})).input_length == 16
    assert choose_task("merge_ABC", subject(SPANS)).length == 64


def test_a_model_without_recipe_takes_the_papers_lengths() -> None:
    assert choose_task("span_corruption", subject(None)).input_length == 1024
    assert choose_task("copy", subject(None)).length == 64
    with pytest.raises(UserError, match="comes without a recipe") as caught:
        choose_task(None, subject(None))
    assert "--task" in (caught.value.hint or "")


def test_lengths() -> None:
    assert task_length(choose_task(None, subject(SPANS))) == 256
    assert task_length(choose_task(None, subject(VOWELS))) == 20


def test_a_model_with_too_few_positions_is_refused() -> None:
    def model(positions: int) -> SimpleNamespace:
        config = SimpleNamespace(has_absolute_position_embeddings=True, max_position_embeddings=positions)
        return SimpleNamespace(config=config)

    section = choose_task(None, subject(SPANS))
    check_fits(model(256), section, "r")
    with pytest.raises(UserError, match="r learned 255 positions and cannot read the 256 of span_corruption"):
        check_fits(model(255), section, "r")
