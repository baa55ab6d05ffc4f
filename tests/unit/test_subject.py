"""Which task a model is given: its own, another kind at a length that suits it, or another recipe's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mrt5cli.errors import UserError
from mrt5cli.recipe import Recipe, dump
from mrt5cli.rundir import RunDir
from mrt5cli.subject import (
    Subject,
    check_fits,
    choose_task,
    newest_subject,
)
from mrt5cli.writing import write_json, write_text


def subject(task: dict | None) -> Subject:
    recipe = None
    if task is not None:
        recipe = Recipe.model_validate(
            {"name": "r", "description": "r", "task": task, "training": {"max_steps": 1}}
        )
    return Subject("r-seed1", "somewhere", None, recipe)


VOWELS = {"kind": "vowel_removal", "length": 20, "eval_examples": 50}
SPANS = {"kind": "span_corruption", "source": {"kind": "embedded"}, "input_length": 256}


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
    with pytest.raises(UserError, match="has no recipe") as caught:
        choose_task(None, subject(None))
    assert "--task" in (caught.value.hint or "")


def test_lengths() -> None:
    assert choose_task(None, subject(SPANS)).longest_source == 256
    assert choose_task(None, subject(VOWELS)).longest_source == 20


def test_tasks_of_rows_have_the_papers_settings_whatever_the_run_was() -> None:
    xnli = choose_task("xnli", subject(VOWELS))
    assert (xnli.source.kind, len(xnli.languages), xnli.longest_source) == ("hub", 15, 1024)
    assert choose_task("tydiqa", subject(None)).longest_source == 2048
    assert choose_task("xquad", subject(SPANS)).longest_source == 2048
    own = subject({"kind": "xnli", "languages": ["en"]})
    assert choose_task("xnli", own) is own.recipe.task  # type: ignore[union-attr]


def test_character_tasks_need_their_files() -> None:
    with pytest.raises(
        UserError, match="the examples of word_search are files, and none are given"
    ) as caught:
        choose_task("word_search", subject(VOWELS))
    assert "--data" in (caught.value.hint or "")

    section = choose_task("word_search", subject(VOWELS), "there")
    assert (section.source.path, section.longest_source) == ("there", 128)
    assert choose_task("spelling_correction_contextual", subject(None), "there").longest_source == 64


def test_data_replaces_the_source_and_nothing_else() -> None:
    own = subject({"kind": "xnli", "languages": ["en", "sw"], "input_length": 200})
    section = choose_task(None, own, "mine")
    assert section.source.model_dump() == {"kind": "files", "path": "mine"}
    assert (section.languages, section.input_length) == (["en", "sw"], 200)

    assert choose_task("span_corruption", subject(SPANS), "mine").source.path == "mine"
    files = {"kind": "files", "path": "theirs", "text_column": "body"}
    other = choose_task(None, subject({**SPANS, "source": files}), "mine").source
    assert (other.path, other.text_column) == ("mine", "body")

    with pytest.raises(UserError, match="the examples of copy are generated, not read from"):
        choose_task("copy", subject(None), "mine")


def test_the_newest_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(name: str, task: dict, status: str, ended: str | None) -> None:
        made = RunDir.create(Path("runs") / name)
        recipe = subject(task).recipe
        assert recipe is not None
        write_text(made.recipe_path, dump(recipe))
        write_json(made.meta_path, {"status": status, "ended": ended})
        write_json(made.model / "config.json", {})

    with pytest.raises(UserError, match="there is no finished run under runs/") as caught:
        newest_subject(None)
    assert "`mrt5 pretrain quickstart_byt5`" in (caught.value.hint or "")
    run("old", VOWELS, "finished", "2026-01-01T10:00:00+00:00")
    run("new", VOWELS, "finished", "2026-01-02T09:00:00+00:00")
    run("text", SPANS, "finished", "2026-01-02T08:00:00+00:00")
    run("newer", VOWELS, "stopped", "2026-01-03T09:00:00+00:00")
    (tmp_path / "runs" / "notes").mkdir()

    assert newest_subject(None).name == "new"
    assert newest_subject("vowel_removal").name == "new"
    assert newest_subject("span_corruption").name == "text"
    assert newest_subject("runs/text/recipe.yaml").name == "text"
    with pytest.raises(UserError, match="no finished run under runs/ that was trained on xnli"):
        newest_subject("xnli")
    (tmp_path / "runs/new/recipe.yaml").write_text("name: from elsewhere\n")
    assert newest_subject("vowel_removal").name == "old", "the one that cannot be read is passed over"
    with pytest.raises(UserError, match="--task xnly: no recipe 'xnly'"):
        newest_subject("xnly")


def test_a_model_with_too_few_positions_is_refused() -> None:
    def model(positions: int) -> SimpleNamespace:
        config = SimpleNamespace(has_absolute_position_embeddings=True, max_position_embeddings=positions)
        return SimpleNamespace(config=config)

    section = choose_task(None, subject(SPANS))
    check_fits(model(256), section, "r")
    with pytest.raises(
        UserError, match="r has 255 learned positions and cannot read the 256 byte tokens of span_corruption"
    ):
        check_fits(model(255), section, "r")
