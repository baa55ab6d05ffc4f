"""What the package offers to other code: lazily, with types, by the page that lists it."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tiny_runs import make_run

import mrt5cli
from mrt5cli import own_code
from mrt5cli.errors import CheckpointError, RecipeError, UserError
from mrt5cli.json_files import read_object
from mrt5cli.recipe import parse_overrides, strict_yaml
from mrt5cli.rundir import RunDir

PACKAGE = Path(mrt5cli.__file__).parent
PAGE = (PACKAGE / "API.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FUNCTIONS = [name for name in mrt5cli.__all__ if name.islower()]


# --- names and their page -----------------------------------------------------------------------------------


def test_the_page_lists_what_is_public() -> None:
    assert sorted(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)) == sorted(mrt5cli.__all__)


def test_the_package_says_its_names_in_three_places_alike() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: str(node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"mrt5cli.{home}" for name, home in mrt5cli._HOMES.items()}
    assert sorted(typed) == sorted(mrt5cli.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_has_every_argument_of_a_function(name: str) -> None:
    (shown,) = re.findall(rf"^`{name}\((.*?)\) -> (.*?)`$", PAGE, re.MULTILINE | re.DOTALL)
    signature = inspect.signature(getattr(mrt5cli, name))
    listed = [part.partition("=")[0] for part in re.split(r",\s+", shown[0]) if part != "*"]
    assert [one.lstrip("*") for one in listed] == list(signature.parameters)
    assert shown[1] == signature.return_annotation
    assert all(
        f"{each}:" in "".join(inspect.getdoc(getattr(mrt5cli, name)) or "").replace(", ", ": ")
        for each in signature.parameters
    )


def test_names_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys, mrt5cli\n"
        "assert set(mrt5cli.__all__) <= set(dir(mrt5cli))\n"
        "assert not {'torch', 'transformers', 'pydantic', 'mrt5cli.models'} & sys.modules.keys()\n"
        "from mrt5cli import pretrain\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="'mrt5cli' has no attribute 'laod'"):
        mrt5cli.laod  # noqa: B018


@pytest.mark.ci
def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    code = "\n".join(EXAMPLES)
    names = {
        alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module == "mrt5cli"
    }
    assert names == set(mrt5cli.__all__)
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("runs/smoke/quickstart-mrt5-smoke-seed1 ")
    assert lines[1:3] == ["25 20", "scaled_sigmoid []"]
    assert len(lines) == 10


# --- types --------------------------------------------------------------------------------------------------

CONSUMER = """\
from mrt5cli import (
    DeletionRateController,
    MrT5Config,
    MrT5ForConditionalGeneration,
    Predictor,
    evaluate,
    generate,
    load,
    pretrain,
)
from mrt5cli.errors import RunFailed, UserError

model = load("runs/a", dtype="bfloat16")
reveal_type(model)
config = MrT5Config(deletion_type="scaled_sigmoid", d_model=16)
reveal_type(config)
reveal_type(MrT5ForConditionalGeneration(config).config)
outputs = generate(model, ["a", b"b"], num_beams=2)
reveal_type(outputs)
generate(model, ["a"], num_beams="2")  # type: ignore[arg-type]
generate(model, ["a"], beams=2)  # type: ignore[call-arg]
reveal_type(Predictor("runs/a", column="text", num_beams=2)({"text": ["a"]}))
Predictor("runs/a", columns="text")  # type: ignore[call-arg]
result = evaluate(["runs/b", model], "vowel_removal", languages=["en"], limit=8, progress=False)
reveal_type(result)
reveal_type(result.summary.deletion_rate)
reveal_type(result.results[0].rows[0])
evaluate(model, limit="8")  # type: ignore[arg-type]
run = pretrain("quickstart", {"training.max_steps": 100}, out="runs/b")
reveal_type(run)
reveal_type(run.path)
pretrain(run.recipe(), {"seed": 2}, resume=1.5)  # type: ignore[arg-type]
controller = DeletionRateController(0.5, delay=10, k_p=0.1)
reveal_type(controller.attach(model))
reveal_type(controller.deletion_rate)
try:
    load("nowhere")
except (UserError, RunFailed) as error:
    reveal_type(error.hint)
"""
REVEALED = [
    "mrt5cli.models.mrt5.MrT5ForConditionalGeneration",
    "mrt5cli.models.config.MrT5Config",
    "mrt5cli.models.config.MrT5Config",
    "typing.Iterator[mrt5cli.generation.generate.Generated]",
    "dict[str, typing.Sequence[Any]]",
    "mrt5cli.evaluation.compare.Comparison",
    "float | None",
    "mrt5cli.metrics.results.Row",
    "mrt5cli.rundir.RunDir",
    "pathlib.Path",
    "mrt5cli.training.rate_controller.DeletionRateController",
    "float | None",
    "str | None",
]


@pytest.mark.ci
def test_a_file_of_somebody_elses_passes_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/mrt5cli").symlink_to(PACKAGE)  # as installed: mypy reads no editable installation
    (tmp_path / "consumer.py").write_text(CONSUMER, encoding="utf-8")
    (tmp_path / "empty.ini").write_text("[mypy]\n", encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", "empty.ini", "consumer.py"]
    done = subprocess.run(
        mypy,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "MYPY_CACHE_DIR": os.devnull},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert re.findall(r'Revealed type is "(.*)"', done.stdout) == REVEALED, done.stdout
    assert done.returncode == 0, done.stdout


def test_settings_of_generate_and_their_types_are_the_same() -> None:
    from mrt5cli.generation.generate import Given, Settings

    assert get_type_hints(Given) == get_type_hints(Settings)


# --- evaluate -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), "tiny")


def test_a_loaded_model_is_measured_as_its_run_is(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = mrt5cli.load(run).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    named = mrt5cli.evaluate(run, limit=8, progress=False)
    held = mrt5cli.evaluate(
        model, "vowel_removal", data=None, limit=8, batch_size=8, deletion_rates=[0.5], progress=False
    )
    assert held.options.recipe == "vowel_removal" and named.options.limit == 8
    # The task by its kind is as long as the paper's, not as this run's.
    both = mrt5cli.evaluate([run, model], run / "recipe.yaml", limit=8, test_difference=True, progress=False)
    assert [result.subject.name for result in both.results] == ["tiny-seed3", "the loaded model"]
    assert both.results[1].rows == both.results[0].rows == named.rows
    assert both.summary == named.summary == named.rows[-1]
    assert {one.p_value for one in both.differences} == {1.0}
    assert model.training and all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_nothing_is_written_until_it_is_saved(run: Path) -> None:
    model = mrt5cli.load(run)
    found = mrt5cli.evaluate([run, model], run / "recipe.yaml", limit=8, progress=False)
    assert not (run / "eval").exists()
    [line] = found.save()
    saved = line.removeprefix("saved ")
    assert Path(saved).parent == run / "eval"
    assert [one["name"] for one in read_object(Path(saved))["models"]] == ["tiny-seed3"]
    assert [one["source"] for one in found.document()["models"]] == [str(run / "model"), "in memory"]


def test_progress_is_on_stderr(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mrt5cli.evaluate(run, limit=8)
    out, err = capfd.readouterr()
    assert out == "" and "evaluating tiny-seed3, all" in err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"limit": 0}, "limit is 0, expected 1 or more"),
        ({"deletion_rates": [1.5]}, "deletion rate 1.5: expected a share"),
        ({"deletion_rates": [0.5], "hard_delete": False}, "soft gates delete nothing"),
        ({"test_difference": True}, "test_difference needs two models, not 1"),
        ({"languages": ["tlh"]}, "has no tlh"),
        ({"task": "no_such"}, "--task no_such"),
    ],
)
def test_what_cannot_be_evaluated(run: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        mrt5cli.evaluate(run, **wrong, progress=False)


def test_what_cannot_be_evaluated_of_a_loaded_model(run: Path) -> None:
    model = mrt5cli.load(run)
    with pytest.raises(UserError, match="the loaded model has no recipe"):
        mrt5cli.evaluate(model)
    with pytest.raises(UserError, match="stays on its device"):
        mrt5cli.evaluate(model, "vowel_removal", device="cpu")
    with pytest.raises(UserError, match="no model to evaluate"):
        mrt5cli.evaluate([])
    with pytest.raises(TypeError, match="not one string"):
        mrt5cli.evaluate(run, languages="en")
    with pytest.raises(CheckpointError):
        mrt5cli.load(run, dtype="float16")


# --- pretrain -----------------------------------------------------------------------------------------------


def test_a_run_of_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    monkeypatch.chdir(tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    recipe = RunDir(run).recipe()
    settings = {"seed": 5, "training.max_steps": 2, "training.save_steps": 1, "model.dropout": 1e-5}
    first = mrt5cli.pretrain(recipe, settings, device="cpu", progress=False)
    assert first == RunDir(Path("runs/tiny-seed5")) and first.is_finished
    assert first.recipe() == recipe.model_copy(
        update={
            "seed": 5,
            "training": recipe.training.model_copy(update={"max_steps": 2, "save_steps": 1}),
            "model": recipe.model.model_copy(update={"dropout": 1e-5}),
        }
    )
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert mrt5cli.load(first.path).config.deletion_type == "scaled_sigmoid"
    with pytest.raises(UserError, match="contains a finished run"):
        mrt5cli.pretrain(recipe, settings, device="cpu", progress=False)
    again = mrt5cli.pretrain(str(first.recipe_path), out=first.path, resume=True, device="cpu")
    assert again == first
    out, err = capfd.readouterr()
    assert out == "" and "is finished; nothing to do" in err
    # From a model that is there: what describes one from nothing is left out.
    tuned = mrt5cli.pretrain(
        recipe, {"training.max_steps": 1}, start=first.path, out="tuned", device="cpu", progress=False
    )
    assert tuned.recipe().model.start == "runs/tiny-seed5" and tuned.recipe().model.shape is None


def test_a_run_remembers_the_files_it_was_given(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_code, "IMPORTED", {})
    (tmp_path / "mine.py").write_text("", encoding="utf-8")
    made = mrt5cli.pretrain(
        run / "recipe.yaml", out=tmp_path / "made", code=[tmp_path / "mine.py"], device="cpu", progress=False
    )
    assert [one["path"] for one in made.meta()["code"]] == [str(tmp_path / "mine.py")]


def test_settings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"settings has 2 problems") as caught:
        mrt5cli.pretrain("quickstart", {"seed": object(), "training.max_steps": {1j}}, out=tmp_path / "a")
    assert [key for key, _ in caught.value.problems] == ["seed", "training.max_steps"]
    with pytest.raises(RecipeError, match=r"training\.max_stepz"):
        mrt5cli.pretrain("quickstart", {"training.max_stepz": 1}, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "value", [1e-5, "no", None, True, [1, "a"], {"kind": "files", "path": "x: y"}, "a\nb"]
)
def test_a_setting_comes_through_as_it_was_given(value: object) -> None:
    assert parse_overrides([f"a.b={strict_yaml.inline(value)}"]) == {"a": {"b": value}}
