"""XNLI: prompt, labels, languages, where the Hub has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrt5cli.errors import UserError
from mrt5cli.recipe import XnliTask
from mrt5cli.recipe.schema import XNLI_LANGUAGES
from mrt5cli.tasks import Task, build_task


def xnli(source: dict[str, Any], **settings: Any) -> Task:
    return build_task(XnliTask.model_validate({"kind": "xnli", "source": source, **settings}))


def files(folder: Path, label: object, name: str = "train.jsonl") -> dict[str, str]:
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": label}
    (folder / name).write_text(json.dumps(row) + "\n")
    return {"kind": "files", "path": str(folder)}


@pytest.mark.parametrize(
    ("label", "target"),
    [(0, "0"), (1, "1"), (2, "2"), ("2", "2"), ("entailment", "0"), ("neutral", "1"), ("contradiction", "2")],
)
def test_prompt_and_label(tmp_path: Path, label: object, target: str) -> None:
    task = xnli(files(tmp_path, label))
    assert task.example("train") == ("Premise: It rains. Hypothesis: It is wet.", target)


@pytest.mark.parametrize("label", [-1, 3, "Neutral", "", None, 1.0, True, [0]])
def test_no_label(tmp_path: Path, label: object) -> None:
    task = xnli(files(tmp_path, label))
    with pytest.raises(UserError) as caught:
        task.example("train")
    found = "nothing" if label is None else repr(label)
    assert caught.value.message == (
        f"{tmp_path / 'train.jsonl'}, line 1: column 'label' holds {found}, expected 0, 1, 2 or entailment, "
        "neutral, contradiction"
    )


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    task = xnli({"kind": "generated", "examples": 3})
    assert (task.name, task.measures, task.experiment) == ("xnli", ("sequence_accuracy",), "xnli")
    assert task.choices == ("0", "1", "2")
    assert task.answer_length is None and task.references("test", "en") is None
    assert task.subsets("validation") == ["en"]
    assert task.subsets("test") == XNLI_LANGUAGES
    assert [task.language_of(language) for language in task.subsets("test")] == XNLI_LANGUAGES
    batch = next(iter(task.train_stream(batch_size=2, seed=1)))
    assert batch["labels"].shape == (2, 2), "a digit and EOS"


def test_where_the_hub_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the Hub's schema, 15 languages; each configuration and split is asked for once."""
    import datasets

    asked = []

    def load_dataset(name: str, configuration: str, *, split: str) -> Any:
        asked.append((name, configuration, split))
        rows = [
            {"premise": f"{configuration} {split} {n}", "hypothesis": "h", "label": n % 3} for n in range(10)
        ]
        dataset = datasets.Dataset.from_list(rows)
        return dataset.cast_column(
            "label", datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = xnli({"kind": "hub"})
    assert not asked, "nothing is read before it is needed"
    assert task.describe() == (
        "xnli, facebook/xnli from the Hub, 10 training and 10 validation rows in en, test in 15 languages, "
        "1024 -> 2 byte tokens at most"
    )
    for language in task.subsets("test"):
        batches = list(task.held_out("test", language, batch_size=4))
        assert sum(len(batch["labels"]) for batch in batches) == 10
        assert task.truncated("test", language) == 0
    assert task.example("test")[0] == "Premise: en test 0 Hypothesis: h"
    assert asked == [
        ("facebook/xnli", "en", "train"),
        ("facebook/xnli", "en", "validation"),
        *(("facebook/xnli", language, "test") for language in XNLI_LANGUAGES),
    ]
    xnli({"kind": "hub", "name": "someone/xnli"}).example("train")
    assert asked[-1] == ("someone/xnli", "en", "train")
