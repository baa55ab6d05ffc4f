"""Prompts, targets and cuts equal to those of the authors' code; their labels are padded with 0, not -100."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrt5cli.byte_tokens import IGNORED_LABEL
from mrt5cli.recipe import CharacterTask, XnliTask, XQuADTask
from mrt5cli.tasks import Task, build_task

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "golden" / "data" / "prompts.json").read_text(encoding="utf-8")
)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"kind": "files", "path": str(folder)}


def task_of(case: dict[str, Any], folder: Path) -> Task:
    """The task over the case's rows, all of them said to be in English."""
    rows = [{"id": str(number), "language": "en"} | row for number, row in enumerate(case["records"])]
    section = {"xnli": XnliTask, "qa": XQuADTask}[case["task"]]
    kind = "xnli" if section is XnliTask else "xquad"
    return build_task(
        section.model_validate(
            {
                "kind": kind,
                "source": write_rows(folder, rows),
                "languages": ["en"],
                "input_length": case["max_length"],
            }
        )
    )


def without_padding(labels: list[list[int]], padding: int) -> list[list[int]]:
    return [[label for label in row if label != padding] for row in labels]


def test_there_are_cases() -> None:
    assert [case["task"] for case in GOLDEN["batches"]] == ["xnli", "xnli", "qa", "qa"]
    assert len(GOLDEN["character_tasks"]) == 4


@pytest.mark.parametrize("case", GOLDEN["batches"], ids=lambda case: f"{case['task']}-{case['max_length']}")
def test_batches(case: dict[str, Any], tmp_path: Path) -> None:
    task = task_of(case, tmp_path)
    [batch] = task.held_out("test", "en", batch_size=3)
    assert batch["input_ids"].tolist() == case["input_ids"]
    assert batch["attention_mask"].tolist() == case["attention_mask"]
    ours = without_padding(batch["labels"].tolist(), IGNORED_LABEL)
    assert ours == without_padding(case["labels"], 0)
    answers = case["all_answers"]
    assert task.references("test", "en") == (answers and [tuple(texts) for texts in answers])


@pytest.mark.parametrize("case", GOLDEN["character_tasks"], ids=lambda case: case["input"][:12])
def test_character_tasks(case: dict[str, Any], tmp_path: Path) -> None:
    source = write_rows(tmp_path, [{"input": case["input"], "output": case["output"]}])
    task = build_task(CharacterTask.model_validate({"kind": case["task"], "source": source}))
    assert task.encoding.input_length == len(case["input_ids"])  # type: ignore[attr-defined]
    assert task.encoding.target_length == len(case["labels"])  # type: ignore[attr-defined]
    [batch] = task.held_out("test", "test", batch_size=1)
    assert batch["input_ids"][0].tolist() == [token for token in case["input_ids"] if token]
    assert batch["attention_mask"][0].sum() == sum(case["attention_mask"])
    assert without_padding(batch["labels"].tolist(), IGNORED_LABEL) == without_padding([case["labels"]], 0)
