"""`mrt5 recipe`: list, show, check, copy, schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrt5cli import __version__
from mrt5cli.cli import app
from mrt5cli.commands.recipe import SCHEMA
from mrt5cli.recipe import load
from mrt5cli.recipe.loading import shipped

GOOD = """\
name: good
description: Fine
task: {kind: copy, length: 16}
model: {start: scratch}
training: {max_steps: 5}
"""


MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mrt5(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["recipe", *arguments])
    assert result.exit_code == code, result.output
    return result


# --- list and show ------------------------------------------------------------------------------------------


def test_list_has_a_line_for_every_recipe() -> None:
    header, *lines = mrt5("list").stdout.splitlines()
    assert header.split() == ["name", "command", "model", "steps", "paper", "what"]
    assert [line.split()[0] for line in lines if line] == list(shipped())
    groups = [
        [Path(line.split()[0]).parent for line in group.splitlines()]
        for group in "\n".join(lines).split("\n\n")
    ]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(groups) == len({Path(name).parent for name in shipped()}) == 21
    commands = {line.split()[0]: line.split()[1] for line in lines if line}
    assert commands["xnli_v3/mrt5_50"] == commands["xquad/byt5"] == "finetune"
    assert commands["pctrl40"] == commands["quickstart"] == "pretrain"
    line = next(line for line in lines if line.startswith("multilingual_v3/mrt5_50 "))
    assert line.split("  ")[-1] == "MrT5 from ByT5-small on 15 languages, steered to delete 50 % of the bytes"
    assert "MrT5 50 % (pi)" in line and "5,000" in line and "v3 span_corruption_multilingual" in line


def test_list_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(mrt5("list", "--json").stdout)}
    assert rows["quickstart_byt5"]["model"] == "ByT5" and rows["quickstart_byt5"]["paper"] is None
    assert rows["english_v1/random_15"] == {
        "name": "english_v1/random_15",
        "command": "pretrain",
        "model": "random 15 %",
        "steps": 3000,
        "paper": "v1 english_span_corruption",
        "description": "ByT5-small on English with 15 % of the positions deleted at random",
    }
    assert rows["diagnostic_v3/merge_ABC_mrt5_1.5e-2"]["model"] == "MrT5 alpha 0.015"


def test_show_prints_the_resolved_recipe() -> None:
    shown = mrt5("show", "multilingual_v3/mrt5_30", "--set", "training.max_steps=7", "--set", "seed=1").stdout
    Path("shown.yaml").write_text(shown)
    assert load("shown.yaml") == load("multilingual_v3/mrt5_30", ["training.max_steps=7", "seed=1"])
    assert "extends" not in shown and "adam_beta2: 0.999" in shown


def test_show_as_json() -> None:
    shown = json.loads(mrt5("show", "pctrl40", "--json").stdout)
    assert shown["controller"]["k_p"] == 1e-6 and shown["training"]["max_steps"] == 3000


def test_show_reports_problems_on_stderr() -> None:
    result = mrt5("show", "pctrl40", "--set", "controler.k_p=1", code=2)
    assert result.stdout == ""
    assert "  controler  unknown key; did you mean controller? (--set)\n" in result.stderr
    assert result.stderr.endswith("hint: `mrt5 recipe schema` explains every key\n")


# --- check --------------------------------------------------------------------------------------------------


def test_check_counts_recipes_and_builds_them() -> None:
    Path("a.yaml").write_text(GOOD)
    Path("b.yaml").write_text("extends: a.yaml\nname: b\n")
    assert mrt5("check", ".").stdout == "2 recipes, 0 problems\n"
    assert mrt5("check", "a.yaml", "a.yaml", "./a.yaml").stdout == "1 recipe, 0 problems\n"


def test_check_prints_every_problem_of_every_file() -> None:
    Path("deep/er").mkdir(parents=True)
    Path("deep/a.yaml").write_text(GOOD)
    Path("deep/er/b.yml").write_text(GOOD + "seed: x\nsped: 1\n")
    Path("c.yaml").write_text("a: b: c")
    Path("d.yaml").write_bytes(b"\xff")
    result = mrt5("check", "deep", "c.yaml", "d.yaml", code=2)
    assert result.stdout.splitlines() == [
        "deep/er/b.yml has 2 problems",
        "  seed  expected a whole number from 0 to 4,294,967,295, not 'x' (line 6)",
        "  sped  unknown key; did you mean seed? (line 7)",
        "",
        "c.yaml has 1 problem",
        "    line 1, column 5: mapping values are not allowed here",
        "",
        "d.yaml has 1 problem",
        "    d.yaml is not UTF-8 text (at byte 0)",
        "",
        "4 recipes, 4 problems",
    ]


def test_check_as_json() -> None:
    Path("a.yaml").write_text(GOOD + "seed: -1\n")
    Path("b.yaml").write_text("{")
    a, b = json.loads(mrt5("check", ".", "--json", code=2).stdout)
    assert a == {
        "file": "a.yaml",
        "problems": [
            {
                "key": "seed",
                "problem": "expected a whole number from 0 to 4,294,967,295, not -1 (line 6)",
            }
        ],
        "except": [],
        "remarks": [],
    }
    assert b["problems"][0]["key"] is None


def test_check_names_models_that_cannot_be_built_here() -> None:
    start = "runs/quickstart-byt5-seed42"
    lines = mrt5("check", "quickstart").stdout.splitlines()
    why = f"for its model, whose start is not here: {start} does not exist"
    assert lines[0].endswith(f"quickstart.yaml: ok, except {why}")
    assert lines[1:] == ["1 recipe, 0 problems; 1 ok, except for what is not here"]
    [checked] = json.loads(mrt5("check", "quickstart", "--json").stdout)
    assert (checked["problems"], checked["except"]) == ([], [why])
    assert mrt5("check", "quickstart", "--no-build").stdout == "1 recipe, 0 problems\n"


def test_check_names_data_that_is_not_here() -> None:
    files = "{kind: files, path: %s}"
    task = "{kind: span_corruption, input_length: 64, sources: [%s, %s, {kind: embedded}]}"
    text = GOOD.replace("{kind: copy, length: 16}", task % (files % "here.txt", files % "gone"))
    Path("a.yaml").write_text(text.replace("scratch", "google/byt5-nothing"))
    Path("here.txt").write_text("x")
    assert mrt5("check", "a.yaml").stdout.splitlines() == [
        "a.yaml: ok, except for its data, gone, which is not here, and for its model, whose start is not "
        "here: google/byt5-nothing is no folder here",
        "1 recipe, 0 problems; 1 ok, except for what is not here",
    ]


def test_check_names_models_that_cannot_be_built_anywhere() -> None:
    Path("start").mkdir()
    Path("start/config.json").write_text('{"model_type": "bert"}')
    Path("start/model.safetensors").write_bytes(b"")
    Path("a.yaml").write_text(GOOD.replace("scratch", "start"))
    printed = mrt5("check", "a.yaml", code=2).stdout
    assert printed.startswith("a.yaml has 1 problem\n  model  cannot be built: start is a 'bert' model")
    assert printed.endswith("1 recipe, 1 problem\n")


def test_check_takes_the_model_of_a_run_that_is_here() -> None:
    from mrt5cli.models import build
    from mrt5cli.recipe import smoke

    small = smoke(load("quickstart_byt5"))
    build(small.model).save_pretrained("runs/first-seed1/model")
    for name, text in (("recipe.yaml", GOOD), ("meta.json", "{}")):
        Path("runs/first-seed1", name).write_text(text)
    Path("a.yaml").write_text(GOOD.replace("scratch", "runs/first-seed1"))
    assert mrt5("check", "a.yaml").stdout == "1 recipe, 0 problems\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "no recipe 'nothing': neither a file nor the name of a shipped recipe"),
        ("quikstart", "no recipe 'quikstart': .*; did you mean quickstart.*"),
        ("empty", r"empty holds no recipes \(.yaml files\)"),
    ],
)
def test_check_of_nothing_goes_on_with_the_others(path: str, message: str) -> None:
    Path("empty").mkdir()
    Path("a.yaml").write_text(GOOD)
    Path("b.yaml").write_text(GOOD + "sped: 1\n")
    first, text, _, second, *_, last = mrt5("check", "a.yaml", path, "b.yaml", code=2).stdout.splitlines()
    assert (first, second) == (f"{path} has 1 problem", "b.yaml has 1 problem")
    assert re.match(f"    {message}", text)
    assert last == "3 recipes, 2 problems"


def test_a_bad_recipe_is_answered_without_torch() -> None:
    Path("a.yaml").write_text(GOOD + "sed: 1\n")
    code = (
        "import sys\n"
        "sys.argv = ['mrt5', 'recipe', 'check', 'a.yaml']\n"
        "from mrt5cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "2 False", done.stderr


# --- copy ---------------------------------------------------------------------------------------------------


def test_copy_keeps_the_comments_of_a_recipe_without_base() -> None:
    result = mrt5("copy", "local_text", "mine.yaml")
    assert result.stdout == "mine.yaml\n"
    assert "runs/local-text-seed42" in result.stderr
    assert Path("mine.yaml").read_text() == MODELINE + shipped()["local_text"].read_text()


def test_copy_writes_out_what_a_base_gives() -> None:
    Path("folder").mkdir()
    assert mrt5("copy", "multilingual_v3/mrt5_30", "folder").stdout == "folder/mrt5_30.yaml\n"
    text = Path("folder/mrt5_30.yaml").read_text()
    assert text.startswith(f"{MODELINE}# Paper, camera-ready: ") and "extends:" not in text
    assert load("folder/mrt5_30.yaml") == load("multilingual_v3/mrt5_30")


def test_copy_never_overwrites() -> None:
    Path("mine.yaml").write_text("precious")
    result = mrt5("copy", "quickstart", "mine.yaml", code=2)
    assert result.stderr == "error: mine.yaml exists already\nhint: give another name, or remove it first\n"
    assert Path("mine.yaml").read_text() == "precious"


def test_copy_does_not_write_through_a_link() -> None:
    Path("mine.yaml").symlink_to("elsewhere.yaml")
    mrt5("copy", "quickstart", "mine.yaml", code=2)
    assert not Path("elsewhere.yaml").exists()


def test_copy_to_where_nothing_can_be_written() -> None:
    result = mrt5("copy", "quickstart", "no/such/folder.yaml", code=2)
    assert result.stderr.startswith(
        "error: no/such/folder.yaml cannot be written: No such file or directory\n"
    )


# --- editors ------------------------------------------------------------------------------------------------


def named_by(recipe: Path) -> Path:
    """The schema of a recipe as yaml-language-server finds it: a path from its folder on."""
    named = re.findall(r"^# yaml-language-server: \$schema=(.*)$", recipe.read_text(), re.MULTILINE)
    assert len(named) == 1 and "://" not in named[0]
    return recipe.parent / named[0]


def test_the_schema_that_a_copy_names_is_beside_it() -> None:
    Path("folder").mkdir()
    told = mrt5("copy", "quickstart", "folder/mine.yaml").stderr
    schema = named_by(Path("folder/mine.yaml"))
    assert f"{schema} tells an editor" in told
    assert json.loads(schema.read_text()) == json.loads(mrt5("schema", "--json").stdout)
    assert load("folder/mine.yaml") == load("quickstart")
    assert mrt5("check", "folder", "--no-build").stdout == "1 recipe, 0 problems\n"


def test_a_copy_of_a_copy_names_its_own_schema_once() -> None:
    mrt5("copy", "quickstart", "mine.yaml")
    Path("folder").mkdir()
    Path("folder", SCHEMA).write_text("{}")  # of an earlier version
    mrt5("copy", "mine.yaml", "folder")
    assert Path("folder/mine.yaml").read_text() == Path("mine.yaml").read_text()
    assert named_by(Path("folder/mine.yaml")).read_text() == named_by(Path("mine.yaml")).read_text()


def test_without_a_schema_none_is_named() -> None:
    mrt5("copy", "quickstart", "with.yaml")
    mrt5("copy", "quickstart", "mine.yaml", "--no-schema")
    assert Path("mine.yaml").read_text() == shipped()["quickstart"].read_text()
    assert mrt5("copy", "quickstart", "/dev/stdout").stdout == shipped()["quickstart"].read_text()


def test_a_copy_whose_schema_cannot_be_written_is_none() -> None:
    Path(SCHEMA).mkdir()
    assert f"{SCHEMA} cannot be written" in mrt5("copy", "quickstart", "mine.yaml", code=2).stderr
    assert not Path("mine.yaml").exists()


def test_new_writes_its_recipe_to_a_file_like_copy() -> None:
    Path("pairs.tsv").write_text("noisy\tclean\nx\ty\nz\tw\n" * 20)
    words = ("new", "text2text", "--data", "pairs.tsv", "--device", "cpu")
    printed = mrt5(*words).stdout
    assert mrt5(*words, "-o", "mine.yaml").stdout == "mine.yaml\n"
    assert Path("mine.yaml").read_text() == MODELINE + printed
    assert named_by(Path("mine.yaml")).is_file()
    assert "mine.yaml exists already" in mrt5(*words, "--out", "mine.yaml", code=2).stderr


# --- schema -------------------------------------------------------------------------------------------------


def test_schema_explains_every_key() -> None:
    printed = mrt5("schema").stdout
    assert printed.startswith("extends\n")
    assert (
        "training.learning_rate\n    a number from 1e-30 to 1000; default 0.0001\n"
        "    peak learning rate of AdamW\n" in printed
    )
    assert "model.shortener.rate  (random)\n    a number above 0 and below 1; required\n" in printed


def test_schema_of_one_key_or_section() -> None:
    assert mrt5("schema", "training.max_steps").stdout == (
        "training.max_steps\n    a whole number from 1 to 1,000,000,000; required\n"
        "    total optimizer steps\n"
    )
    assert all(line[0] in " c" for line in mrt5("schema", "controller").stdout.splitlines())


def test_schema_of_a_kind() -> None:
    text = mrt5("schema", "task.text2text").stdout
    assert text.startswith("task.kind  (text2text)\n") and "task.choices  (text2text)\n" in text
    assert "task.sources[].weight  (files)\n" in text and "noise_density" not in text
    assert mrt5("schema", "model.shortener.random").stdout.startswith("model.shortener.kind  (random)\n")
    assert list(json.loads(mrt5("schema", "controller.constant", "--json").stdout)) == [
        "controller.kind",
        "controller.alpha",
    ]
    for key in ("task.sources", "task.sources.weight", "task.sources.embedded"):
        assert mrt5("schema", key).stdout.startswith("task.sources"), key


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("text2txt", None),
        ("task.txt2text", "task.text2text"),
        ("trainng", "training"),
        ("max_step", "training.max_steps"),
        ("training.lr_rate", None),
    ],
)
def test_schema_of_an_unknown_key(key: str, near: str | None) -> None:
    result = mrt5("schema", key, code=2)
    assert result.stderr.startswith(f"error: no key '{key}' in a recipe\n")
    assert near is None or result.stderr.endswith(f"hint: did you mean {near}?\n")


def test_schema_as_json() -> None:
    whole = json.loads(mrt5("schema", "--json").stdout)
    assert list(whole)[:2] == ["$schema", "$id"]
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert whole["$id"] == f"urn:mrt5cli:recipe:{__version__}"
    assert list(whole["properties"])[:3] == ["extends", "name", "description"]
    assert whole["anyOf"] == [
        {"required": ["name", "description", "task", "training"]},
        {"required": ["extends"]},
    ]
    rate = json.loads(mrt5("schema", "controller.target_deletion_rate", "--json").stdout)
    assert (rate["exclusiveMinimum"], rate["exclusiveMaximum"]) == (0, 1)
    assert json.loads(mrt5("schema", "loss", "--json").stdout)["additionalProperties"] is False
