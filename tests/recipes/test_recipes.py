"""Every shipped recipe: loads, goes round, shrinks, builds, and says what the paper says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mrt5cli.recipe import Recipe, dump, find, load, smoke
from mrt5cli.recipe.loading import read, shipped
from mrt5cli.rundir import default_directory

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
IDS = [file.relative_to(ROOT / "recipes").with_suffix("").as_posix() for file in FILES]
PUBLISHED = json.loads((ROOT / "tests/fixtures/paper/rows.json").read_text())
"""Rows of the published results, grouped by what they are of: version, experiment, model, setting, task."""

PUBLISHED_NAME = {
    "none": "ByT5",
    "delete_gate": "MrT5",
    "random": "Random",
    "fixed": "Fixed",
    "boundary_predictor": "BP",
    "convolution": "CP",
}
DELETION_TYPE = {
    "none": "none",
    "delete_gate": "scaled_sigmoid",
    "random": "random",
    "fixed": "fixed",
    "boundary_predictor": "boundary_predictor",
    "convolution": "convolution",
    "source_removed": "source_removed",
}

each_recipe = pytest.mark.parametrize("file", FILES, ids=IDS)


def test_none_is_overlooked() -> None:
    assert len(FILES) == 77
    assert sorted(shipped().values()) == FILES
    assert not [file for file in (ROOT / "recipes").rglob("*") if file.is_file() and file.suffix != ".yaml"]


def test_names_are_distinct() -> None:
    assert len({load(file).name for file in FILES}) == len(FILES)


@each_recipe
def test_goes_through_yaml_unchanged(file: Path, tmp_path: Path) -> None:
    recipe = load(file)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == recipe


@each_recipe
def test_opens_with_how_to_run_it(file: Path) -> None:
    header = re.split(r"^[^#]", file.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)[0]
    path = file.relative_to(ROOT).as_posix()
    command = "finetune" if load(file).is_finetuning else "pretrain"
    assert re.search(rf"mrt5 {command} {re.escape(path)}( |\n)", header)
    for named in re.findall(r"recipes/\S+\.yaml", header):
        assert (ROOT / named).is_file()


@each_recipe
def test_is_found_by_its_name(file: Path) -> None:
    name = file.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    assert find(name).samefile(file)
    assert find(f"recipes/{name}.yaml").samefile(file)


@each_recipe
def test_shrinks_to_a_recipe_without_network_and_weights(file: Path) -> None:
    recipe = load(file)
    small = smoke(recipe)
    assert small.name == f"{recipe.name}-smoke"
    assert small.model.start == "scratch" and small.model.shape is not None
    assert small.training.max_steps <= 6 and small.input_length <= 64
    assert getattr(small.task, "source", None) is None or small.task.source.kind != "hub"
    assert small.task.kind == recipe.task.kind
    assert _without_sizes(small.model.shortener) == _without_sizes(recipe.model.shortener)
    assert small.controller.kind == recipe.controller.kind
    assert smoke(small) == small


SIZES = {"layer": 2, "stride": 4, "label_examples": 64, "vocabulary": 300}
"""What smoke shrinks in a shortener, and the most that is left of it."""


def _without_sizes(shortener: Any) -> dict[str, Any]:
    return {key: value for key, value in shortener.model_dump().items() if key not in SIZES}


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "boundary_predictor", "type": "entropy", "layer": 9},
        {"kind": "boundary_predictor", "type": "unigram", "layer": 9},
        {"kind": "convolution", "stride": 60, "layer": 9},
        {"kind": "fixed", "amount": 0.3, "layer": 9},
        {"kind": "source_removed"},
    ],
    ids=lambda settings: settings.get("type", settings["kind"]),
)
def test_smoke_shrinks_the_sizes_of_a_shortener_only(settings: dict[str, Any]) -> None:
    tree = load("english_v1/byt5").model_dump(mode="json")
    tree["model"]["shortener"] = settings
    recipe = Recipe.model_validate(tree)
    small = smoke(recipe)
    assert _without_sizes(small.model.shortener) == _without_sizes(recipe.model.shortener)
    for name, most in SIZES.items():
        if name in small.model.shortener.model_fields_set:
            default = type(recipe.model.shortener).model_fields[name].default
            assert getattr(small.model.shortener, name) in (most, default)
    meant = {"entropy": {"label_examples"}, "unigram": {"label_examples", "vocabulary"}}
    for name in meant.get(settings.get("type", ""), set()):
        assert getattr(small.model.shortener, name) == SIZES[name]
    assert smoke(small) == small


@pytest.mark.parametrize(
    ("name", "assignments"),
    [
        ("english_v1/random_15", ()),
        ("english_v1/fixed_15", ()),
        ("multilingual_v3/bp_50", ()),
        ("multilingual_v3/cp_3", ()),
        ("english_v1/byt5", ("{kind: boundary_predictor, type: entropy}",)),
        ("english_v1/byt5", ("{kind: boundary_predictor, type: unigram}",)),
        ("english_v1/byt5", ("{kind: source_removed}",)),
    ],
)
def test_smoke_trains_every_kind_of_baseline(
    name: str, assignments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from mrt5cli.cli import app

    monkeypatch.chdir(tmp_path)
    words = [word for section in assignments for word in ("--set", f"model.shortener={section}")]
    result = CliRunner().invoke(app, ["pretrain", name, "--smoke", "--device", "cpu", *words])
    assert result.exit_code == 0, result.output
    (run,) = Path("runs/smoke").iterdir()
    assert (run / "model" / "config.json").is_file()


@each_recipe
def test_names_its_published_numbers(file: Path) -> None:
    recipe = load(file)
    group = file.parent.name
    if group == "recipes":
        assert (recipe.paper is None) == (file.stem != "pctrl40")
        return
    if group == "xquad":
        assert recipe.paper is None, "no numbers were published"
        return
    assert recipe.paper is not None
    version = group.rsplit("_", 1)[-1]
    assert recipe.paper.version == version
    assert recipe.paper.rows == sorted(set(recipe.paper.rows)) != []
    assert "paper" in read(file).tree, "rows must not come from the base"
    found = {row: group for group in PUBLISHED for row in group["rows"]}
    for row in recipe.paper.rows:
        assert row in found, f"{row} is not a published row"
        assert _is_of(found[row], recipe), f"{row} is of {found[row]}"


def test_each_published_row_belongs_to_one_recipe() -> None:
    named = [row for file in FILES if (paper := load(file).paper) for row in paper.rows]
    assert sorted(named) == sorted(row for group in PUBLISHED for row in group["rows"])


def _is_of(published: dict[str, Any], recipe: Recipe) -> bool:
    """Whether published numbers are of this very run."""
    shortener, controller, setting = recipe.model.shortener, recipe.controller, dict(published["setting"])
    tasks = {
        "vowel_removal": "simple_vowel_removal",
        "contextual_vowel_removal": "contextual_vowel_removal",
        "merge_ABC": "sequence_merge",
        "span_corruption": None,
        "xnli": "xnli",
        "tydiqa": "tydiqa_goldp",
        "spelling_correction_contextual": "spelling_correction_contextual",
        "word_search": "word_search",
    }
    ours: dict[str, Any] = {
        "seed": recipe.seed,
        "alpha": getattr(controller, "alpha", None),
        "delta": recipe.target_deletion_rate,
        "rate": getattr(shortener, "rate", getattr(shortener, "amount", None)),
        "prior": getattr(shortener, "prior", None),
        # The share of positions that the authors expected to go.
        "run_tag": f"{100 * (1 - getattr(shortener, 'prior', 0)):g}%",
        "downsampling_rate": getattr(shortener, "stride", None),
        "gate_after_layer": getattr(shortener, "layer", None),
        "train_data": "English",
    }
    return (
        recipe.paper is not None
        and published["version"] == recipe.paper.version
        and published["task"] == tasks[recipe.task.kind]
        and published["model"] == PUBLISHED_NAME[shortener.kind]
        and all(ours[key] == value for key, value in setting.items())
    )


@pytest.mark.parametrize(
    ("group", "steps", "batch_size", "device_batch_size", "length"),
    [
        ("english_v1", 3000, 1024, 8, 1024),
        ("multilingual_v3", 5000, 1024, 8, 1024),
        ("diagnostic_v3", 30_000, 128, 32, 64),
        ("xnli_v3", 3000, 128, 16, 1024),
        ("tydiqa_v3", 3000, 64, 4, 2048),
        ("xquad", 3000, 64, 4, 2048),
        ("spelling_v3", 3000, 64, 64, 64),
        ("word_search_v3", 3000, 64, 64, 128),
    ],
)
def test_settings_common_to_a_group(
    group: str, steps: int, batch_size: int, device_batch_size: int, length: int
) -> None:
    recipes = [load(file) for file in (ROOT / "recipes" / group).glob("*.yaml")]
    assert recipes
    for recipe in recipes:
        training = recipe.training
        assert (training.max_steps, training.batch_size, training.device_batch_size) == (
            steps,
            batch_size,
            device_batch_size,
        )
        assert (training.learning_rate, training.schedule, training.warmup_steps) == (1e-4, "linear", 0)
        assert recipe.model.softmax1 and recipe.input_length == length


def test_gates_are_those_of_their_version() -> None:
    for name, path in shipped().items():
        gate = load(path).model.shortener
        if gate.kind == "delete_gate" and not name.startswith(("quickstart", "local_text", "spelling_small")):
            first = name.startswith(("english_v1", "pctrl40"))
            assert (gate.norm, gate.bias_init) == (("layer", -1.0) if first else ("rms", 1.0)), name
            assert gate.layer == (2 if name.startswith("diagnostic") else 3), name
            assert gate.scale == -30.0 and gate.threshold is None and gate.noise == "none", name


def test_controllers_update_as_the_published_runs_did() -> None:
    for name, path in shipped().items():
        if "_v3/mrt5" in name or name.startswith(("xquad/mrt5", "pctrl40")):
            assert load(path).controller.update_per == "micro_batch", name


def test_baselines_follow_the_laws_the_published_numbers_rest_on() -> None:
    """A batch's rows share the rate, the mask or the empty slots, and boundaries are drawn in evaluation."""
    counts: dict[str, int] = {}
    for name, path in shipped().items():
        shortener = load(path).model.shortener
        published = load(path).paper is not None or name.startswith("xquad")
        if not published or shortener.kind in ("none", "delete_gate"):
            continue
        counts[shortener.kind] = counts.get(shortener.kind, 0) + 1
        assert (shortener.layer, shortener.per) == (3, "batch"), name
        if shortener.kind == "boundary_predictor":
            assert (shortener.type, shortener.temperature, shortener.sampling) == ("gumbel", 0.5, "always"), (
                name
            )
    assert counts == {"random": 10, "fixed": 10, "boundary_predictor": 10, "convolution": 8}


DOWNSTREAM = ("xnli_v3", "tydiqa_v3", "xquad", "spelling_v3", "word_search_v3")


@pytest.mark.parametrize("group", DOWNSTREAM)
def test_downstream_recipes_start_from_the_run_of_their_own_kind(group: str) -> None:
    """A run that a shipped recipe makes, with the same shortener, whose weights therefore fit."""
    makers = {str(default_directory(made)): made for made in map(load, FILES)}
    recipes = [load(file) for file in sorted((ROOT / "recipes" / group).glob("*.yaml"))]
    assert [recipe.model.shortener.kind for recipe in recipes] == [
        "boundary_predictor",
        "none",
        "convolution",
        "delete_gate",
    ]
    for recipe in recipes:
        maker = makers[recipe.model.start]
        assert recipe.is_finetuning and not maker.is_finetuning
        assert recipe.model.shortener == maker.model.shortener
        assert recipe.target_deletion_rate == maker.target_deletion_rate
        assert recipe.training.best_metric == "loss" and recipe.evaluation.hard_delete
        assert recipe.training.max_steps % recipe.training.eval_steps == 0


def test_lengths_of_targets_are_the_papers() -> None:
    assert load("tydiqa_v3/byt5").task.answer_length == load("xquad/byt5").task.answer_length == 256
    assert load("spelling_v3/byt5").task.target_length == 64
    assert load("word_search_v3/byt5").task.target_length == 16


def test_every_model_builds() -> None:
    from mrt5cli.models import build

    sections = {}
    for file in FILES:
        for recipe in (load(file), smoke(load(file))):
            if not recipe.model.start.startswith("runs/"):
                sections.setdefault(recipe.model.model_dump_json(), recipe.model)
    assert len(sections) >= 50
    for section in sections.values():
        model = build(section, device="meta")
        assert model.config.deletion_type == DELETION_TYPE[section.shortener.kind]
        assert all(parameter.is_meta for parameter in model.parameters())
