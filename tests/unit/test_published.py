"""The paper's numbers: all that recipes are held against, the same, and in our units below a table."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from mrt5cli.evaluation.published import published_rows
from mrt5cli.paper.published import published
from mrt5cli.recipe.tasks import TYDIQA_LANGUAGES, XNLI_LANGUAGES


def task(experiment: str | None, by_language: bool = True) -> Any:
    return SimpleNamespace(experiment=experiment, language_of=lambda subset: subset if by_language else None)


def test_every_number_is_there_once_and_usable() -> None:
    rows = list(published().values())

    assert len(rows) == 2371
    assert Counter(row.version for row in rows)["v3"] == 1585
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    for row in rows:
        assert isinstance(row.value, int | float)
        assert not isinstance(row.value, bool)
        assert isinstance(row.metric, str)
        assert row.subset is None or isinstance(row.subset, str)
        assert (row.tolerance is not None) == (row.precision == "digitized")


def test_some_numbers_by_hand() -> None:
    rows = published()

    assert (rows["r1435"].subset, rows["r1435"].metric, rows["r1435"].value) == (
        "English",
        "sequence_accuracy",
        80.3,
    )
    assert rows["r0004"].value == pytest.approx(5.1428e-05)
    assert rows["r0411"].tolerance == 0.002


def test_xnli_of_all_languages() -> None:
    rows = published_rows(task("xnli"), XNLI_LANGUAGES)

    models = list(dict.fromkeys((row.version, row.model) for row in rows))
    assert models == [
        ("v3", "ByT5"),
        ("v3", "MrT5"),
        ("v3", "BP"),
        ("v3", "CP"),
        ("v1", "ByT5"),
        ("v1", "MrT5"),
    ]
    assert len(rows) == 6 * 16
    total = next(row for row in rows if row.subset == "total")
    assert total.numbers["sequence_accuracy"] == pytest.approx(0.6472)
    assert total.numbers["deletion_rate"] == 0
    assert total.numbers["ms_per_example"] == 14.17
    assert total.numbers["examples"] == 75150
    english = next(row for row in rows if (row.version, row.model, row.subset) == ("v3", "MrT5", "en"))
    assert english.numbers["sequence_accuracy"] == pytest.approx(0.802)
    assert english.setting == {"delta": 0.5, "seed": 14}
    assert all(published()[name].subset == "English" for name in english.ids)


def test_the_rows_a_recipe_names_choose_its_model() -> None:
    named = [
        name for name, row in published().items() if (row.experiment, row.model) == ("tydiqa_goldp", "BP")
    ]

    rows = published_rows(task("tydiqa_goldp"), TYDIQA_LANGUAGES, named)

    assert {(row.version, row.model) for row in rows} == {("v3", "BP")}
    assert [row.subset for row in rows] == [*TYDIQA_LANGUAGES, "total"]
    assert rows[-1].numbers["exact_match"] == pytest.approx(0.4059)
    assert rows[-1].numbers["f1"] == pytest.approx(0.5404)
    assert len(published_rows(task("tydiqa_goldp"), TYDIQA_LANGUAGES, ["r0004"])) == 4 * 10


def test_some_languages_have_no_published_total() -> None:
    assert {row.subset for row in published_rows(task("xnli"), ["en", "sw"])} == {"en", "sw"}
    assert published_rows(task("xnli"), ["xx"]) == []


def test_parts_of_a_test_are_named_as_published() -> None:
    parts = ["test_context_dependent", "test_context_independent"]

    rows = published_rows(task("spelling_correction_contextual", by_language=False), parts)

    assert {row.subset for row in rows} == {*parts, "total"}


def test_what_was_never_published() -> None:
    assert published_rows(task(None), ["en"]) == []
    assert published_rows(task("xquad"), ["en"]) == []
