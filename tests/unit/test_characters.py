"""The character tasks: TSV files with and without a header, parts of the test, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrt5cli.byte_tokens import decode
from mrt5cli.errors import UserError
from mrt5cli.recipe import CharacterTask
from mrt5cli.tasks import Task, build_task
from mrt5cli.tasks.base import check_held_out

SPELLING = "spelling_correction_contextual"


def characters(folder: Path, kind: str = SPELLING, **settings: Any) -> Task:
    source = {"kind": "files", "path": str(folder)}
    return build_task(CharacterTask.model_validate({"kind": kind, "source": source, **settings}))


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_folder_without_a_test_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "train.tsv", "helo\thello\n")
    source = {"kind": "files", "path": str(tmp_path)}
    section = CharacterTask.model_validate({"kind": SPELLING, "source": source})
    with pytest.raises(UserError, match=f"^{SPELLING}: there are no test examples") as refused:
        check_held_out(build_task(section), "test")
    assert "train.tsv" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "the cta sat\tthe cat sat\nhelo\thello\n",
        "input\toutput\nthe cta sat\tthe cat sat\nhelo\thello\n",
        "output\tsource\tinput\nthe cat sat\tbook\tthe cta sat\nhello\tx\thelo\n",
        "the cta sat\tthe cat sat\tbook\t3\n\nhelo\thello\n",
        "the cta sat\tthe cat sat\r\nhelo\thello",
    ],
)
def test_header_is_optional_and_other_columns_do_not_matter(tmp_path: Path, text: str) -> None:
    write(tmp_path, "train.tsv", text)
    task = characters(tmp_path)
    assert task.example("train") == ("the cta sat", "the cat sat")
    assert len(task.rows("train", "all")) == 2  # type: ignore[attr-defined]


def test_a_folder_as_published(tmp_path: Path) -> None:
    """Files of both tasks side by side, named by task and split."""
    for kind, parts in {
        "word_search": ["test_oov", "test_paraphrase", "test_overlap", "test_paraphrase_overlap"],
        SPELLING: ["test_context_dependent", "test_context_independent"],
    }.items():
        for part in ["train", "val", *parts]:
            write(tmp_path, f"{kind}_{part}.tsv", f"{kind} {part}\tx\n")
    for kind, parts in {
        "word_search": ["test_oov", "test_paraphrase", "test_overlap", "test_paraphrase_overlap"],
        SPELLING: ["test_context_dependent", "test_context_independent"],
    }.items():
        task = characters(tmp_path, kind)
        assert task.subsets("test") == parts, "in the paper's order"
        assert task.subsets("validation") == ["all"]
        assert task.example("validation")[0] == f"{kind} val"
        for part in parts:
            [batch] = task.held_out("test", part, batch_size=4)
            assert decode(batch["input_ids"]) == f"{kind} {part}"
            assert task.language_of(part) is None


def test_parts_of_ones_own(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv", "test.tsv", "test-hard.tsv", "test_oov.jsonl"):
        row = '{"input": "a", "output": "b"}' if name.endswith("jsonl") else "a\tb"
        write(tmp_path, name, row + "\n")
    task = characters(tmp_path, "word_search")
    assert task.subsets("test") == ["test_oov", "test", "test-hard"]
    assert (task.measures, task.experiment) == (("sequence_accuracy",), "word_search")
    assert task.answer_length is None and task.references("test", "test") is None and task.choices is None
    assert task.describe() == (
        f"word_search, rows of {tmp_path}, 1 training and 1 validation rows, test of "
        "test_oov, test, test-hard, at most 128 -> 16 byte tokens"
    )


@pytest.mark.parametrize(("kind", "lengths"), [(SPELLING, (64, 64)), ("word_search", (128, 16))])
def test_lengths(tmp_path: Path, kind: str, lengths: tuple[int, int]) -> None:
    write(tmp_path, "test.tsv", f"{'a' * 200}\t{'b' * 200}\n{'a' * (lengths[0] - 1)}\tb\n")
    task = characters(tmp_path, kind)
    [batch] = task.held_out("test", "test", batch_size=2)
    assert (batch["input_ids"].shape[1], batch["labels"].shape[1]) == lengths
    assert task.truncated("test", "test") == 1
    task = characters(tmp_path, kind, input_length=300, target_length=5)
    [batch] = task.held_out("test", "test", batch_size=2)
    assert (batch["input_ids"].shape[1], batch["labels"].shape[1]) == (201, 5)
    assert batch["labels"][0].tolist() == [101, 101, 101, 101, 1]
    assert task.truncated("test", "test") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nc\n", "line 2: 1 cell, expected 2 (input, output)"),
        ("", "train.tsv contains no rows"),
    ],
)
def test_wrong_rows(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "train.tsv", text)
    with pytest.raises(UserError) as caught:
        characters(tmp_path).train_stream(batch_size=1, seed=1)
    assert caught.value.message.endswith(message)


def test_other_formats_need_the_columns(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", '{"source": "a", "target": "b"}')
    with pytest.raises(UserError, match="line 1: no column 'input'; it has source, target"):
        characters(tmp_path).train_stream(batch_size=1, seed=1)


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "test_oov.tsv", "a\tb\n")
    task = characters(tmp_path, "word_search")
    assert task.subsets("test") == ["test_oov"]
    with pytest.raises(UserError, match=r"has no files of train; it has test \(test_oov\)"):
        task.train_stream(batch_size=1, seed=1)


def test_numbers_of_the_paper_do_not_stand_beside_data_made_here(tmp_path: Path) -> None:
    write(tmp_path, "train.tsv", "the cta sat\tthe cat sat\n")
    assert characters(tmp_path).experiment == SPELLING
    write(tmp_path, "manifest.json", '{"made_by": "mrt5 data build spelling"}')
    assert characters(tmp_path).experiment is None
