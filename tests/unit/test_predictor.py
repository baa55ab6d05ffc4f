"""`Predictor`: batches of columns in, the same with outputs out, the bytes that `generate` has."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import SHORTENERS, make_run

from mrt5cli import Predictor, generate
from mrt5cli.errors import UserError
from mrt5cli.generation import predictor

TEXTS = ["hello", "a", "été où", "x" * 40, "where did they all go then"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), "tiny")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3, "num_return": 2},
        {"sample": True, "seed": 4, "temperature": 2.0},
        {"escapes": True, "hard_delete": False},
        {"prompt": "{text}!", "batch_tokens": 70},
        {"precision": "bf16", "valid_utf8": True},
    ],
    ids=str,
)
def test_outputs_are_those_of_generate(run: Path, how: dict[str, Any]) -> None:
    added = {name: f"its {name}" for name in predictor.FIELDS}
    places = {"prompt": how["prompt"]} if "prompt" in how else {"column": "text"}
    rest = {name: value for name, value in how.items() if name != "prompt"}
    predict = Predictor(run, added=added, number="n", max_new_tokens=9, **{**rest, **places})
    predict = pickle.loads(pickle.dumps(predict))
    batch = {"n": np.arange(len(TEXTS)), "text": np.array(TEXTS, dtype=object), "other": [None] * len(TEXTS)}
    found = predict(batch)

    texts = [f"{text}!" for text in TEXTS] if "prompt" in how else TEXTS
    outputs = list(generate(run, texts, max_new_tokens=9, **rest))
    several = how.get("num_return", 1)
    for name, column in added.items():
        values = [getattr(one, name) for one in outputs]
        groups = [values[k : k + several] for k in range(0, len(values), several)]
        wanted = groups if several > 1 else values
        assert found[column] == (
            pytest.approx(wanted, abs=1e-4) if name in ("score",) and several == 1 else wanted
        )
    assert list(found) == [*batch, *added.values()]
    assert all(found[name] is batch[name] for name in batch)


def test_a_gate_is_told_its_rate(tmp_path: Path) -> None:
    run = make_run(tmp_path, "told", shortener=SHORTENERS["quantile_gate"])
    how: dict[str, Any] = {"max_new_tokens": 3, "deletion_rate": 0.7}
    predict = Predictor(run, column="text", added={"kept": "kept", "output": "output"}, **how)
    found = predict({"text": TEXTS})
    wanted = list(generate(run, TEXTS, **how))
    by_threshold = list(generate(run, TEXTS, max_new_tokens=3, threshold=-30.0 * (1 - 0.7)))
    assert found["output"] == [one.output for one in wanted]
    assert found["kept"] == [one.kept for one in wanted] == [one.kept for one in by_threshold]
    assert found["kept"] != [one.kept for one in generate(run, TEXTS, max_new_tokens=3)]


def test_draws_depend_on_a_rows_number_alone(run: Path) -> None:
    predict = Predictor(run, column="text", number="n", sample=True, max_new_tokens=9)
    together = predict({"text": TEXTS, "n": range(5)})["output"]
    backwards = predict({"text": TEXTS[::-1], "n": [4, 3, 2, 1, 0]})["output"]
    assert backwards == together[::-1] and len(set(together)) > 1
    with pytest.raises(UserError, match="has the same number in two rows"):
        predict({"text": TEXTS[:2], "n": [7, 7]})


def test_a_process_loads_the_model_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    real = predictor.make_pen
    monkeypatch.setattr(predictor, "make_pen", lambda *what: loaded.append(what) or real(*what))
    predict = Predictor(run, column="text", max_new_tokens=7)
    assert not loaded
    assert len(pickle.dumps(predict)) < 5_000
    for one in (predict, pickle.loads(pickle.dumps(predict))):
        one({"text": TEXTS})
        one({"text": TEXTS})
    assert len(loaded) == 1


def test_it_is_found_from_another_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    predict = Predictor(run.name, column="text", max_new_tokens=6)
    monkeypatch.chdir(tmp_path)
    assert predict({"text": ["a"]})["output"] == [next(generate(run, ["a"], max_new_tokens=6)).output]


def test_datasets_map(run: Path) -> None:
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    predict = Predictor(run, column="text", added={"output": "out"}, max_new_tokens=9)
    mapped = Dataset.from_dict({"text": TEXTS}).map(predict, batched=True, batch_size=2)

    assert mapped.column_names == ["text", "out"]
    assert mapped["out"][:] == [one.output for one in generate(run, TEXTS, max_new_tokens=9)]
    # By which its cache knows what was done before.
    assert Hasher.hash(predict) == Hasher.hash(
        Predictor(run, column="text", added={"output": "out"}, max_new_tokens=9)
    )
    assert Hasher.hash(predict) != Hasher.hash(Predictor(run, column="text", max_new_tokens=9))


def test_bad_rows(run: Path) -> None:
    batch = {"text": ["a", None, " ", "b"]}
    with pytest.raises(UserError, match=r"row 2 of the batch: column 'text' is null"):
        Predictor(run, column="text")(batch)
    predict = Predictor(
        run, column="text", added={"output": "o", "kept": "k"}, on_error="empty", max_new_tokens=5
    )
    found = predict(batch)
    assert (found["o"][1:3], found["k"][1:3]) == (["", ""], [None, None])
    good = Predictor(run, column="text", max_new_tokens=5)({"text": ["a", "b"]})["output"]
    assert [found["o"][0], found["o"][3]] == good
    assert predict({"text": []}) == {"text": [], "o": [], "k": []}


def test_columns_that_are_not_there_or_there_already(run: Path) -> None:
    with pytest.raises(UserError, match=r"the batch: no column 'tixt'; it has text; did you mean 'text'"):
        Predictor(run, column="tixt", on_error="empty")({"text": ["a"]})
    with pytest.raises(UserError, match="the batch already has a column 'output'"):
        Predictor(run, column="text")({"text": ["a"], "output": ["b"]})


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, "no column is named as its input"),
        ({"column": "text", "added": {"answer": "a"}}, "added: an output has no 'answer'"),
        ({"column": "text", "sample": True}, "requires the number of each row"),
        ({"column": "text", "deletion_rate": 0.5}, "deletion_rate needs the first inputs"),
        ({"column": "text", "device": "cuda:0,cuda:1"}, "names several devices"),
        ({"column": "text", "num_beams": 0}, "num_beams is 0"),
        ({"column": "text", "threshold": -1.0, "hard_delete": False}, "requires hard deletion"),
    ],
    ids=str,
)
def test_what_cannot_be(run: Path, how: dict[str, Any], told: str) -> None:
    """It is said before any worker has started."""
    with pytest.raises(UserError, match=told):
        Predictor(run, **how)
