"""The metadata of a card: results that the Hub lists, and the licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results
from test_hub_export import tiny
from tiny_runs import SPANS, make_run

from mrt5cli import recipe as recipes
from mrt5cli.convert.card import model_card
from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.convert.files import Job
from mrt5cli.convert.license import IDENTIFIERS, license_name, of_card, stated
from mrt5cli.convert.model_index import ELSEWHERE
from mrt5cli.errors import UserError
from mrt5cli.models import load
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.writing import write_json

PLANTED = "planted-secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run on text, not evaluated."""
    return RunDir(make_run(tmp_path_factory.mktemp("runs"), "tiny", task=SPANS))


def row(subset: str = "en", **numbers: Any) -> dict[str, Any]:
    return {"subset": subset, "examples": 12, "deletion_rate": 0.4321, **numbers}


def evaluation(
    task: dict[str, Any], *rows: dict[str, Any], commits: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A file of results of one model on a task, given as in a recipe."""
    tree = {"name": "x", "description": "x", "task": task, "training": {"max_steps": 1}}
    settings = Recipe.model_validate(tree).task.model_dump(mode="json")
    model = {"source": "runs/tiny-seed3/model", "rows": rows, **more.pop("model", {})}
    return {
        "version": 3,
        "task": {"kind": task["kind"], "settings": settings, "commits": commits or {}},
        "split": "test",
        "deletion": "hard",
        "batch_size": 8,
        "models": [model],
        **more,
    }


def index_of(
    files: Sequence[dict[str, Any]], run: RunDir, folder: Path, model: Any = None, **job: Any
) -> list[EvalResult]:
    """What a card states of these files of results, as the Hub's own reader has it."""
    copy = RunDir(folder / "tiny-seed3")
    (copy.path / "eval").mkdir(parents=True)
    copy.recipe_path.write_bytes(run.recipe_path.read_bytes())
    for number, document in enumerate(files):
        write_json(copy.eval(f"evaluation-{number}"), document)
    text = model_card(Job(tiny() if model is None else model, copy.recipe(), copy, **job))
    assert PLANTED not in text
    data = ModelCard(text).data
    metadata = data.to_dict()
    assert ModelCardData(**metadata).to_dict() == metadata
    if "model-index" not in metadata:
        return []
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "tiny" and results == data.eval_results
    return results


def places(results: Sequence[EvalResult]) -> list[tuple[Any, ...]]:
    """Each dataset once, as `load_dataset` would be called."""
    found = [(one.dataset_type, one.dataset_config, one.dataset_split) for one in results]
    return list(dict.fromkeys(found))


# --- numbers ------------------------------------------------------------------------------------------------


def test_quality_stands_beside_its_deletion_rate(run: RunDir, tmp_path: Path) -> None:
    numbers = {"loss": 2.34567, "token_accuracy": 0.25, "source_removed_loss": 3.0, "kept_length": 9.5}
    soft = evaluation(SPANS, row(deletion_rate=0.5, loss=2.0), deletion="soft")
    results = index_of([evaluation(SPANS, row(**numbers)), soft], run, tmp_path)
    assert [(one.metric_name, one.metric_type, one.metric_value) for one in results] == [
        ("deleted (en, hard deletion)", "deletion_rate", 0.4321),
        ("cross-entropy (nats, en, hard deletion)", "loss", 2.3457),
        ("token accuracy (en, hard deletion)", "token_accuracy", 0.25),
        ("deleted (en, soft deletion)", "deletion_rate", 0.5),
        ("cross-entropy (nats, en, soft deletion)", "loss", 2.0),
    ]
    assert [one.metric_args for one in results] == [
        *3 * [{"deletion": "hard", "deletion_rate": 0.4321, "examples": 12}],
        *2 * [{"deletion": "soft", "deletion_rate": 0.5, "examples": 12}],
    ]
    assert {(one.task_type, one.task_name) for one in results} == {("text-generation", "span corruption")}


def test_what_has_no_rate_or_no_dataset_is_left_out(run: RunDir, tmp_path: Path) -> None:
    nothing: list[dict[str, Any]] = [
        evaluation(SPANS, row(deletion_rate=None, loss=2.0)),
        evaluation(SPANS, row(loss=2.0), data=f"/home/me/{PLANTED}"),
        evaluation({"kind": "xnli", "source": {"kind": "generated"}}, row(loss=2.0)),
        evaluation({"kind": "xnli", "source": {"kind": "hub"}, "languages": ["gone"]}, row("gone", loss=2.0)),
        evaluation({"kind": "xnli", "source": {"kind": "hub", "name": "a b"}}, row(loss=2.0)),
        {
            **evaluation(SPANS, row(loss=2.0)),
            "task": {"kind": "no_longer", "settings": {"kind": "no_longer"}},
        },
        {
            **evaluation(SPANS, row(loss=2.0)),
            "task": {"kind": "xnli", "settings": {"kind": "xnli", "was": 1}},
        },
        {**evaluation(SPANS, row(loss=2.0)), "task": {"kind": "xnli"}},
    ]
    assert index_of(nothing, run, tmp_path) == []


def test_a_model_without_a_gate_deletes_in_one_way_only(run: RunDir, tmp_path: Path) -> None:
    files = [evaluation({"kind": "copy", "length": 16}, row("all", loss=2.0, deletion_rate=0.0))]
    deleted, loss = index_of(files, run, tmp_path, tiny(deletion_type="none"))
    assert (deleted.metric_name, deleted.metric_value) == ("deleted", 0.0)
    assert loss.metric_name == "cross-entropy (nats)"
    assert loss.metric_args == {"deletion_rate": 0.0, "examples": 12}


def test_metrics_that_the_hub_has_are_called_as_there(run: RunDir, tmp_path: Path) -> None:
    files = [
        evaluation({"kind": "tydiqa"}, row("sw", exact_match=0.5, f1=0.75, loss=1.0)),
        evaluation(
            {
                "kind": "text2text",
                "source": {"kind": "hub", "name": "me/pairs"},
                "input": "{a}",
                "target": "{b}",
                "metrics": ["bleu", "chrf", "cer"],
            },
            row("all", bleu=12.5, chrf=30.0, cer=0.5, others={"own.score": 2.0}),
        ),
        evaluation({"kind": "xnli"}, row("sw", sequence_accuracy=0.5, accuracy=0.6)),
    ]
    results = index_of(files, run, tmp_path)
    found = {one.metric_type: one.metric_value for one in results}
    assert found == {
        **{"deletion_rate": 0.4321, "loss": 1.0, "exact_match": 0.5, "f1": 0.75},
        **{"sacrebleu": 12.5, "chrf": 30.0, "cer": 0.5, "own.score": 2.0, "accuracy": 0.6},
    }
    named = [one.metric_name for one in results if one.metric_type == "accuracy"]
    assert named == ["accuracy (hard deletion)", "accuracy among choices (hard deletion)"]
    types = {one.dataset_type: one.task_type for one in results}
    assert types == {
        "google-research-datasets/tydiqa": "question-answering",
        "me/pairs": "text-generation",
        "facebook/xnli": "text-classification",
    }


def test_metadata_lists_the_hubs_metrics_once(run: RunDir, tmp_path: Path) -> None:
    files = [evaluation({"kind": "tydiqa"}, row("sw", exact_match=0.5, f1=0.75, loss=1.0), row("fi", f1=0.5))]
    index_of(files, run, tmp_path)
    text = model_card(Job(tiny(), run.recipe(), RunDir(tmp_path / "tiny-seed3")))
    assert ModelCard(text).data.metrics == ["exact_match", "f1"]


# --- datasets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "subsets", "expected"),
    [
        (
            {"kind": "xnli"},
            ["en", "sw", "total"],
            [
                ("facebook/xnli", "en", "test"),
                ("facebook/xnli", "sw", "test"),
                ("facebook/xnli", None, "test"),
            ],
        ),
        (
            {"kind": "xquad"},
            ["de", "total"],
            [("google/xquad", "xquad.de", "validation"), ("google/xquad", None, "validation")],
        ),
        (
            {"kind": "tydiqa"},
            ["sw", "fi", "total"],
            [("google-research-datasets/tydiqa", "secondary_task", "validation")],
        ),
        (
            {"kind": "span_corruption", "source": {"kind": "hub", "configurations": {"sw": "swh"}}}
            | {"languages": ["en", "sw"]},
            ["en", "sw", "total"],
            [("allenai/c4", "en", "test"), ("allenai/c4", "swh", "test"), ("allenai/c4", None, "test")],
        ),
        (
            {
                "kind": "span_corruption",
                "sources": [
                    {"kind": "hub", "languages": ["sw", "de"]},
                    {"kind": "files", "path": f"/home/{PLANTED}/more", "languages": ["en"]},
                ],
            },
            ["c4/sw", "c4/de", "more/en", "total"],
            [
                ("allenai/c4", "sw", "test"),
                ("allenai/c4", "de", "test"),
                ("mrt5-span_corruption-files", None, "test"),
                ("mrt5-span_corruption-mixture", None, "test"),
            ],
        ),
        (
            {"kind": "text2text", "input": "{a}", "target": "{b}", "language_column": "l"}
            | {"source": {"kind": "hub", "name": "me/p", "configuration": "c", "splits": {"test": "t"}}},
            ["en", "sw", "total"],
            [("me/p", "c", "t")],
        ),
        ({"kind": "vowel_removal"}, ["all"], [("mrt5-vowel_removal-letters", None, "test")]),
        (
            {"kind": "xnli", "source": {"kind": "files", "path": f"/home/{PLANTED}"}},
            ["en"],
            [("mrt5-xnli-files", None, "test")],
        ),
    ],
)
def test_a_dataset_is_named_as_it_is_loaded(
    task: dict[str, Any], subsets: list[str], expected: list[Any], run: RunDir, tmp_path: Path
) -> None:
    files = [evaluation(task, *(row(subset, loss=float(n)) for n, subset in enumerate(subsets)))]
    results = index_of(files, run, tmp_path)
    assert places(results) == expected
    told = {(one.metric_name, one.unique_identifier) for one in results}
    assert len(told) == len(results), "no two numbers look the same"
    for one in results:
        kind = one.dataset_type.removeprefix(f"mrt5-{task['kind']}-")
        assert one.dataset_name == ELSEWHERE.get(kind, one.dataset_type)


def test_a_dataset_is_at_the_commit_that_was_read(run: RunDir, tmp_path: Path) -> None:
    commits = {"facebook/xnli": "a" * 40}
    files = [evaluation({"kind": "xnli"}, row("sw", loss=1.0), commits=commits)]
    assert {one.dataset_revision for one in index_of(files, run, tmp_path)} == {"a" * 40}


# --- thresholds ---------------------------------------------------------------------------------------------


def at(threshold: float, rate: float) -> dict[str, Any]:
    return {"calibration": {"rate": rate, "threshold": threshold, "reached": rate, "positions": 9}}


def test_numbers_of_another_threshold_say_so(run: RunDir, tmp_path: Path) -> None:
    own = evaluation(SPANS, row(loss=2.0))
    moved = evaluation(SPANS, row(loss=3.0, deletion_rate=0.3), model=at(-20.0, 0.3))
    moved["models"] = [*own["models"], *moved["models"]]
    as_it_was = index_of([own, moved], run, tmp_path / "own")
    assert [(one.metric_name, one.metric_value) for one in as_it_was] == [
        ("deleted (en, hard deletion)", 0.4321),
        ("cross-entropy (nats, en, hard deletion)", 2.0),
        ("deleted (en, hard deletion, threshold moved to delete 30 %)", 0.3),
        ("cross-entropy (nats, en, hard deletion, threshold moved to delete 30 %)", 3.0),
    ]
    exported = tiny(deletion_threshold=-20.0, deletion_rate=0.3)
    assert [one.metric_name for one in index_of([moved], run, tmp_path / "moved", exported, moved=True)] == [
        "deleted (en, hard deletion, before its threshold was moved)",
        "cross-entropy (nats, en, hard deletion, before its threshold was moved)",
        "deleted (en, hard deletion)",
        "cross-entropy (nats, en, hard deletion)",
    ]


def test_a_conversion_knows_whether_it_moves_the_threshold(run: RunDir, tmp_path: Path) -> None:
    write_json(run.eval("span_corruption"), evaluation(SPANS, row(loss=2.0)))
    try:
        for fields, moved in (
            ({}, False),
            ({"deletion_threshold": -15.0}, False),
            ({"deletion_threshold": -9.0}, True),
        ):
            folder = tmp_path / str(fields)
            convert(str(run.path), folder, ConversionOptions("hub", fields=fields))
            text = (folder / "README.md").read_text()
            assert ("before its threshold was moved" in text) == moved
    finally:
        run.eval("span_corruption").unlink()


# --- licence ------------------------------------------------------------------------------------------------


def test_a_licence_is_stated_as_the_hub_calls_it() -> None:
    assert stated("apache-2.0") == {"license": "apache-2.0"}
    own = stated("my-lab-1", "https://example.org/lab")
    assert own == {"license": "other", "license_name": "my-lab-1", "license_link": "https://example.org/lab"}
    assert {"mit", "cc-by-4.0", "openrail++", "llama3.1"} <= IDENTIFIERS and "other" not in IDENTIFIERS
    assert (license_name(own), license_name({}), license_name({"license": ["mit", "gpl"]})) == (
        "my-lab-1",
        "",
        "mit, gpl",
    )


@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("Apache-2.0", None, "did you mean apache-2.0?"),
        ("my-lab", None, "--license my-lab is not a license identifier of the Hub"),
        ("other", None, "--license other is not a license identifier of the Hub"),
        ("other", "LICENSE", "--license other is not a license identifier of the Hub"),
        ("mit", "LICENSE", "--license-link is for licenses without a Hub identifier, and mit is one"),
    ],
)
def test_what_is_no_licence_is_one_sentence(name: str, link: str | None, message: str) -> None:
    with pytest.raises(UserError) as raised:
        stated(name, link)
    assert message in raised.value.message
    assert "repositories-licenses" in str(raised.value.hint) or "leave it out" in str(raised.value.hint)


def test_the_card_says_under_what_the_weights_are() -> None:
    text = model_card(Job(tiny(), license=stated("my-lab-1", "LICENSE")))
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "my-lab-1", "LICENSE")
    assert "The weights are licensed under [my-lab-1](LICENSE), as stated by their owner" in text
    assert "licensed under mit," in model_card(Job(tiny(), license=stated("mit")))
    assert "The license of the weights is not stated" in model_card(Job(tiny()))


def test_what_an_earlier_card_states() -> None:
    assert of_card("---\nlicense: mit\ntags: [a]\n---\ntext") == {"license": "mit"}
    for nothing in ("", "text", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\ntags: [a]\n---\n"):
        assert of_card(nothing) == {}
    assert of_card(Path("not/there/README.md")) == {}


def test_a_licence_survives_another_conversion(run: RunDir, tmp_path: Path) -> None:
    out, further = tmp_path / "out", tmp_path / "further"
    convert(str(run.path), out, ConversionOptions("hub", license=stated("mit")))
    again = convert(str(run.path), out, ConversionOptions("hub", overwrite=True))
    onward = convert(str(out), further, ConversionOptions("hub"))
    for folder, outcome in ((out, again), (further, onward)):
        assert ModelCard.load(folder / "README.md").data.license == "mit"
        assert outcome.notes == [f"the license, mit, is taken from the card in {out}"]
    ours = convert(str(out), tmp_path / "ours", ConversionOptions("mrt5"))
    assert not ours.notes, "which has no card"
    assert load(tmp_path / "ours").config.inference_deletion == "hard"


def test_recipes_name_what_a_model_was_made_from() -> None:
    data = ModelCard(model_card(Job(tiny(), recipes.load("multilingual_v3/mrt5_50")))).data
    assert (data.base_model, data.datasets) == ("google/byt5-small", ["allenai/c4"])
    assert data.pipeline_tag == "text-generation" and data.eval_results is None
