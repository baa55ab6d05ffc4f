"""XNLI: prompt, labels, languages, where the Hub has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hubsim
import pytest
from hub_server import HubServer

from mrt5cli.errors import UserError
from mrt5cli.recipe import XnliTask
from mrt5cli.recipe.tasks import XNLI_LANGUAGES
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
    found = "null" if label is None else repr(label)
    assert caught.value.message == (
        f"{tmp_path / 'train.jsonl'}, line 1: column 'label' is {found}, expected 0, 1, 2 or entailment, "
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


def test_where_the_hub_has_it(hub: HubServer) -> None:
    """15 languages, a configuration each; only the splits that are asked for are downloaded, once."""
    hub.provide("datasets/facebook/xnli")
    task = xnli({"kind": "hub"})
    assert not hub.requests(), "nothing is asked before it is needed"
    assert task.describe() == (
        "xnli, facebook/xnli from the Hub, 2,000 training and 100 validation rows, test of en, fr, es and 12 "
        "more, at most 1024 -> 2 byte tokens"
    )
    for language in task.subsets("test"):
        assert sum(len(batch["labels"]) for batch in task.held_out("test", language, batch_size=50)) == 120
        assert task.truncated("test", language) == 0
    assert task.commits() == {"facebook/xnli": hub.commit("datasets/facebook/xnli")}
    downloads = [line for line in hub.requests("200 GET /datasets") if line.endswith(".parquet")]
    wanted = ["en/train", "en/validation", *(f"{language}/test" for language in XNLI_LANGUAGES)]
    assert [re.sub(r".*/(\w+/\w+)-00000.*", r"\1", line) for line in downloads] == wanted
    assert len(hub.requests()) < 3 * len(wanted) + 10, "a listing, a HEAD and a GET a file"
    asked = len(hub.requests())
    again = xnli({"kind": "hub"})
    assert again.example("test") == task.example("test")
    assert len(hub.requests()) < asked + 8, "from the cache"


def test_another_dataset_at_another_revision(hub: HubServer) -> None:
    for name in ("xnli", "xnli-old"):
        rows = [{"premise": name, "hypothesis": "h", "label": 1}]

        def make(folder: Path, rows: list[dict[str, Any]] = rows) -> None:
            hubsim.write_parquet(folder / "en" / "train-0.parquet", rows)
            hubsim.write_card(folder, {"en": {"train": "en/train-*"}})
            if rows[0]["premise"] == "xnli":
                (folder / ".sim.json").write_text('{"refs": {"v1": "someone/xnli-old"}}')

        hub.add(f"datasets/someone/{name}", make)
    source = {"kind": "hub", "name": "someone/xnli"}
    assert xnli(source).example("train")[0] == "Premise: xnli Hypothesis: h"
    old = xnli({**source, "revision": "v1"})
    assert old.example("train")[0] == "Premise: xnli-old Hypothesis: h"
    assert old.commits() == {"someone/xnli": hub.commit("datasets/someone/xnli-old")}
    with pytest.raises(UserError, match="someone/xnli has no revision 'v2'"):
        xnli({**source, "revision": "v2"}).example("train")
