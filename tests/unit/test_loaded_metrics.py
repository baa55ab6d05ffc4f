"""Metrics by `evaluate.load`: local scripts and those of the Hub, and every reason why one cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from huggingface_hub import constants

from mrt5cli.errors import HubAway, UserError
from mrt5cli.metrics import loaded
from mrt5cli.metrics.loaded import load, load_all, numbers_of

SCRIPT = """
import datasets
import evaluate
{imports}

class Metric(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features={features}
        )

    def _compute(self, predictions, references):
        {compute}
"""
TEXTS = "datasets.Features(predictions=text, references=text)"
LISTS = "datasets.Features(predictions=text, references=datasets.Sequence(text))"
SAME = 'return {"same": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}'


def script(path: Path, compute: str = SAME, features: str = TEXTS, imports: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT.format(features=features, compute=compute, imports=imports))
    return str(path)


@pytest.fixture(autouse=True)
def _fresh(evaluate_modules: None) -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


def test_one_number_has_the_metrics_name(tmp_path: Path) -> None:
    metric = load(script(tmp_path / "alike.py"))
    assert metric.score(["a", "b"], [("a", "b"), ("x", "b")]) == {"alike": 0.5}, "the first of several"
    assert metric.score(["a"], [("a",)]) == {"alike": 1.0}, "again"
    assert metric.source.startswith("alike.py, SHA-256 ")


def test_several_numbers_are_prefixed_and_lists_are_left_out(tmp_path: Path) -> None:
    compute = 'return {"all": 3, "each": [1, 2], "right": True, "rate": __import__("numpy").float32(0.5)}'
    metric = load(script(tmp_path / "counts" / "counts.py", compute))
    assert metric.score(["a"], [("a",)]) == {"counts.all": 3.0, "counts.rate": 0.5}
    assert load(str(tmp_path / "counts")).score(["a"], [("a",)]) == {"counts.all": 3.0, "counts.rate": 0.5}
    assert numbers_of(metric.name, ["counts.all", "counts2", "other.counts"]) == ["counts.all"]


@pytest.mark.parametrize("features", [LISTS, f"[{LISTS}, {TEXTS}]", f"[{TEXTS}, {LISTS}]"])
def test_lists_of_references_where_the_metric_takes_them(features: str, tmp_path: Path) -> None:
    check = "assert len({len(texts) for texts in references}) == 1"
    compute = f"{check}; return {{'x': sum(p in r for p, r in zip(predictions, references))}}"
    metric = load(script(tmp_path / "among.py", compute, features))
    assert metric.takes_lists
    assert metric.score(["a", "b", "c"], [("x", "a"), ("b",), ("x", "y", "z")]) == {"among": 2.0}


def test_two_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    first, second = script(tmp_path / "a" / "same.py"), script(tmp_path / "b" / "same.py")
    load_all([first])
    with pytest.raises(UserError, match=r"the metrics .*same\.py and .*same\.py are both named same"):
        load_all([first, second])
    mine = script(tmp_path / "cer.py")
    assert load(mine).score(["a"], [("a",)]) == {mine: 1.0}, "the toolkit has a metric of that name"


def test_what_a_metric_prints_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(script(tmp_path / "loud.py", f"print('look at me'); {SAME}", imports="print('hello')"))
    out, err = capsys.readouterr()
    assert out == "" and "look at me" in err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"imports": "import nowhere_to_be_found"}, "needs packages that are not installed: nowhere"),
        ({"imports": "import json, re"}, "imports several modules in one line, which `evaluate` cannot read"),
        ({"imports": "1 / 0"}, "cannot be loaded: ZeroDivisionError: division by zero"),
        ({"compute": "return 1 / 0"}, "cannot score texts: ZeroDivisionError"),
        ({"compute": "return {'each': [1]}"}, "returns no number, only each"),
        ({"compute": "return None"}, "returns no number, only nothing"),
        (
            {"features": "datasets.Features(predictions=datasets.Value('int32'), references=text)"},
            "does not compare texts: it expects",
        ),
        (
            {"features": "datasets.Features(predictions=text, references=text, sources=text)"},
            "cannot score texts: ValueError: Evaluation module inputs are missing: ['sources']",
        ),
    ],
)
def test_a_script_that_cannot_be_used_is_named_before_anything_is_measured(
    given: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = script(tmp_path / "mine.py", **given)
    with pytest.raises(UserError) as caught:
        load(path)
    assert f"the metric {path} {told}" in caught.value.message


@pytest.mark.parametrize("name", ["./nowhere.py", "./nowhere/at/all", "."])
def test_a_script_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"the metric {name} (does not exist|has no \w+.py)"):
        load(name)


# --- the Hub ---


def provide(hub: HubServer, name: str, **given: str) -> None:
    def make(folder: Path) -> None:
        script(folder / f"{name.rpartition('/')[2]}.py", imports="from .beside import LENGTH", **given)
        (folder / "beside.py").write_text("LENGTH = 1\n")
        (folder / "app.py").write_text("import gradio\n")
        (folder / "README.md").write_text("a metric\n")

    hub.add(f"spaces/{name}", make)


@pytest.mark.parametrize("name", ["alike", "somebody/alike", "somebody/bleu"])
def test_a_metric_of_the_hub_is_named_with_its_commit_and_kept(
    name: str, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = name if "/" in name else f"evaluate-metric/{name}"
    provide(hub, repository)

    metric = load(name)

    assert metric.score(["a"], [("a",)]) == {"alike" if name.endswith("alike") else name: 1.0}
    told = capsys.readouterr().err
    assert f"note: the metric {name} is code from the Hub and runs on this machine:" in told
    assert metric.source in told
    assert not [path for path in hub.requests("resolve") if "app.py" in path or "README" in path]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load.cache_clear()
    assert load(name).source == metric.source, "the cache serves"


def test_a_metric_that_the_hub_does_not_have(hub: HubServer) -> None:
    with pytest.raises(UserError) as caught:
        load("nosuchmetric")
    told = "the metric 'nosuchmetric' is not built in, and evaluate-metric/nosuchmetric is not a space"
    assert told in caught.value.message
    hub.add("spaces/somebody/page", lambda folder: script(folder / "app.py") and None)
    with pytest.raises(UserError, match=r"somebody/page has no page\.py"):
        load("somebody/page")


def test_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubAway) as caught:
        load("rouge")
    assert caught.value.message == (
        "the metric 'rouge' is not built in, and evaluate-metric/rouge is not available from the "
        "Hugging Face Hub: HF_HUB_OFFLINE is set"
    )
    assert "a local script" in str(caught.value.hint)
    assert loaded.load.cache_info().currsize == 0, "another try is another try"
