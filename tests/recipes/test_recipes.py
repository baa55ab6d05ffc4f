"""Every shipped recipe: loads, goes round, shrinks, builds, and says what the paper says."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from mrt5cli.paper.published import Published, published, unmatched
from mrt5cli.recipe import LossSection, Recipe, dump, find, load, smoke
from mrt5cli.recipe.loading import read, shipped
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.rundir import default_directory
from mrt5cli.suite.suites import load_suite

# Recipes do not change, and reading all of them takes over a second.
loaded = cache(load)

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
IDS = [file.relative_to(ROOT / "recipes").with_suffix("").as_posix() for file in FILES]
UNPUBLISHED = {name for part in unmatched()["recipes"] for name in part["recipes"]}
PAPER = sorted({name for experiment in load_suite("paper") for name in experiment.recipes})
"""Recipes that the experiments of the paper train."""

PUBLISHED_NAME = {
    "none": "ByT5",
    "delete_gate": "MrT5",
    "random": "Random",
    "fixed": "Fixed",
    "boundary_predictor": "BP",
    "convolution": "CP",
}
PUBLISHED_TASK = {
    "vowel_removal": "simple_vowel_removal",
    "contextual_vowel_removal": "contextual_vowel_removal",
    "merge_ABC": "sequence_merge",
    "xnli": "xnli",
    "tydiqa": "tydiqa_goldp",
    "spelling_correction_contextual": "spelling_correction_contextual",
    "word_search": "word_search",
}
"""What the published numbers call a task: as subset those of diagnostics, as experiment the others."""
TARGET = "controller.target_deletion_rate"

each_recipe = pytest.mark.parametrize("file", FILES, ids=IDS)


def test_none_is_overlooked() -> None:
    folders = Counter(file.parent.name for file in FILES)
    folders.pop("miniature", None)  # counted by its own tests
    assert folders == {
        "recipes": 8,
        "dates": 3,
        "diagnostic_v1": 11,
        "diagnostic_v3": 9,
        "english_v1": 16,
        "gate_placement_v1": 9,
        "gate_placement_v3": 4,
        "large_v3": 2,
        "multilingual_v1": 2,
        "multilingual_v3": 24,
        "softmax_ablation": 2,
        "spelling_v1": 2,
        "spelling_v3": 4,
        "tydiqa_v3": 4,
        "word_search_v1": 2,
        "word_search_v3": 4,
        "xnli_v1": 2,
        "xnli_v3": 4,
        "xquad": 4,
        "zero_shot": 1,
    }
    assert sorted(shipped().values()) == FILES
    others = {file.suffix for file in (ROOT / "recipes").rglob("*") if file.is_file()} - {".yaml", ".pyc"}
    assert others <= {".md", ".py"}, "a recipe by another ending would not be found"


def test_names_are_distinct() -> None:
    assert len({loaded(file).name for file in FILES}) == len(FILES)


@each_recipe
def test_goes_through_yaml_unchanged(file: Path, tmp_path: Path) -> None:
    recipe = loaded(file)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == recipe


@each_recipe
def test_opens_with_how_to_run_it(file: Path) -> None:
    header = re.split(r"^[^#]", file.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)[0]
    path = file.relative_to(ROOT).as_posix()
    command = "finetune" if loaded(file).is_finetuning else "pretrain"
    run = rf"mrt5 {command} {re.escape(path)}( |\n)"
    if file.parent.name == "zero_shot":  # a task, not a run
        run = r"mrt5 evaluate \S+ --task zero_shot/mc4 "
    assert re.search(run, header)
    for named in re.findall(r"recipes/\S+\.yaml", header):
        assert (ROOT / named).is_file()


@each_recipe
def test_is_found_by_its_name(file: Path) -> None:
    name = file.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    assert find(name).samefile(file)
    assert find(f"recipes/{name}.yaml").samefile(file)


@each_recipe
def test_shrinks_to_a_recipe_without_network_and_weights(file: Path) -> None:
    recipe = loaded(file)
    small = smoke(recipe)
    assert small.name == f"{recipe.name}-smoke"
    assert small.model.start == "scratch" and small.model.shape is not None
    assert small.training.max_steps <= 6 and small.task.longest_source <= 64
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
    recipe = loaded(file)
    name = file.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    if name not in PAPER or name in UNPUBLISHED:
        assert recipe.paper is None or (name, recipe.paper.rows) == ("pctrl40", [])
        return
    assert recipe.paper is not None
    assert recipe.paper.version == file.parent.name.rsplit("_", 1)[-1]
    assert recipe.paper.rows == sorted(set(recipe.paper.rows)) != []
    assert "rows" in read(file).tree["paper"], "rows must not come from the base"
    for row in recipe.paper.rows:
        assert row in published(), f"{row} is not a published row"
        assert _is_of(published()[row], recipe), f"{row} is of {published()[row]}"


def test_the_experiment_of_a_recipe_is_one_that_its_rows_are_of() -> None:
    for name in PAPER:
        paper = loaded(name).paper
        if paper is not None and paper.rows:
            assert paper.experiment in {published()[row].experiment for row in paper.rows}, name


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        ("r0094", "diagnostic_v1/merge_ABC_mrt5_1e-3_l6", "diagnostic_v1/merge_ABC_mrt5_1e-3_l7"),
        (
            "r0094",
            "diagnostic_v1/merge_ABC_mrt5_1e-3_l6",
            "diagnostic_v1/contextual_vowel_removal_mrt5_1e-3_l7",
        ),
        ("r0261", "multilingual_v1/byt5", "english_v1/byt5"),
        ("r0216", "english_v1/byt5", "multilingual_v1/byt5"),
        ("r0361", "gate_placement_v1/mrt5_p_50_l4", "gate_placement_v1/mrt5_alpha_0.01_l4"),
        ("r0339", "gate_placement_v3/mrt5_50_l4", "gate_placement_v3/mrt5_50_l5"),
        ("r1225", "large_v3/mrt5_50", "multilingual_v3/mrt5_50"),
        ("r2091", "xnli_v1/mrt5", "xnli_v3/mrt5_50"),
        ("r2091", "xnli_v1/mrt5", "spelling_v1/mrt5"),
    ],
)
def test_a_row_of_another_run_is_told_apart(row: str, right: str, wrong: str) -> None:
    assert _is_of(published()[row], load(right))
    assert not _is_of(published()[row], load(wrong))


def _is_of(row: Published, recipe: Recipe) -> bool:
    """Whether a published number is of this very run."""
    shortener, controller, task = recipe.model.shortener, recipe.controller, recipe.task
    layer = getattr(shortener, "layer", None)
    ours: dict[str, Any] = {
        "seed": recipe.seed,
        "alpha": getattr(controller, "alpha", None),
        "delta": recipe.target_deletion_rate,
        "target_deletion_rate": recipe.target_deletion_rate,
        "controller": {"p": "P", "pi": "PI"}.get(controller.kind),
        "rate": getattr(shortener, "rate", getattr(shortener, "amount", None)),
        "prior": getattr(shortener, "prior", None),
        # The share of positions that the authors expected to go.
        "run_tag": f"{100 * (1 - getattr(shortener, 'prior', 0)):g}%",
        "downsampling_rate": getattr(shortener, "stride", None),
        "gate_after_layer": layer,
        "gate_after_layer_or_run_tag": layer if layer == 3 else f"L{layer}",
        "train_data": {1: "English", 15: "15 languages"}.get(len(getattr(task, "languages", []))),
    }
    size = " large" if recipe.model.start.endswith("large") else ""
    if task.kind == "span_corruption":
        of_the_task = row.experiment not in PUBLISHED_TASK.values() and "diagnostic" not in row.experiment
    else:
        of_the_task = PUBLISHED_TASK[task.kind] in (row.experiment, row.subset)
    return (
        recipe.paper is not None
        and row.version == recipe.paper.version
        and of_the_task
        and row.model == PUBLISHED_NAME[shortener.kind] + size
        and all(ours[key] == value for key, value in row.setting.items())
    )


@pytest.mark.parametrize(
    ("group", "steps", "batch_size", "device_batch_size", "length"),
    [
        ("english_v1", 3000, 1024, 8, 1024),
        ("multilingual_v1", 3000, 1024, 8, 1024),
        ("multilingual_v3", 5000, 1024, 8, 1024),
        ("gate_placement_v1", 3000, 1024, 8, 1024),
        ("gate_placement_v3", 5000, 1024, 8, 1024),
        ("large_v3", 5000, 1024, 8, 1024),
        ("softmax_ablation", 5000, 1024, 8, 1024),
        ("diagnostic_v1", 20_000, 128, 32, 128),
        ("diagnostic_v3", 30_000, 128, 32, 64),
        ("xnli_v1", 3000, 128, 16, 1024),
        ("xnli_v3", 3000, 128, 16, 1024),
        ("tydiqa_v3", 3000, 64, 4, 2048),
        ("xquad", 3000, 64, 4, 2048),
        ("spelling_v1", 3000, 64, 64, 64),
        ("spelling_v3", 3000, 64, 64, 64),
        ("word_search_v1", 3000, 64, 64, 128),
        ("word_search_v3", 3000, 64, 64, 128),
    ],
)
def test_settings_common_to_a_group(
    group: str, steps: int, batch_size: int, device_batch_size: int, length: int
) -> None:
    recipes = [loaded(file) for file in (ROOT / "recipes" / group).glob("*.yaml")]
    assert recipes
    for recipe in recipes:
        training = recipe.training
        assert (training.max_steps, training.batch_size, training.device_batch_size) == (
            steps,
            batch_size,
            device_batch_size,
        )
        assert (training.learning_rate, training.schedule, training.warmup_steps) == (1e-4, "linear", 0)
        assert recipe.model.softmax1 == (group != "softmax_ablation")
        assert recipe.task.longest_source == length


def test_gates_are_those_of_their_version() -> None:
    layers: Counter[int] = Counter()
    for name in PAPER:
        gate = loaded(name).model.shortener
        if gate.kind != "delete_gate":
            continue
        group = name.split("/")[0]
        first = group.endswith("_v1") or name == "pctrl40"
        tag = re.search(r"_l(\d)$", name)
        layer = int(tag[1]) if tag else 2 if group == "diagnostic_v3" else 3
        layers[gate.layer] += 1
        assert (gate.norm, gate.bias_init) == (("layer", -1.0) if first else ("rms", 1.0)), name
        assert gate.layer == layer, name
        assert gate.scale == -30.0 and gate.threshold is None and gate.noise == "none", name
    assert {1, 2, 4, 5, 6, 7, 8} < set(layers) and layers[3] == max(layers.values())


def test_controllers_update_as_the_published_runs_did() -> None:
    steered = [name for name in PAPER if loaded(name).controller.kind != "constant"]
    assert len(steered) == 22
    for name in steered:
        controller = loaded(name).controller
        p = name.startswith(("pctrl40", "gate_placement_v1"))
        assert controller.kind == ("p" if p else "pi"), name
        assert (controller.update_per, controller.every_steps) == ("micro_batch", 10 if p else 1), name
        assert controller.k_p == (1e-6 if p else 0.5) and getattr(controller, "k_i", 1e-5) == 1e-5, name


def test_losses_are_averaged_as_in_the_published_runs_where_it_matters() -> None:
    """The reference's mean of means is another number only where its micro-batches hold unequal counts."""
    found = set()
    for name in PAPER:
        recipe = loaded(name)
        matters = name not in UNPUBLISHED and recipe.paper is not None and recipe.paper.rows != []
        matters &= recipe.training.batch_size > recipe.training.device_batch_size
        differs = matters and _counts_differ(recipe)
        assert (recipe.loss.average_per == "micro_batch") == differs, name
        found |= {name.split("/")[0]} if differs else set()
    assert found == {"diagnostic_v1", "diagnostic_v3", "tydiqa_v3", "xnli_v1", "xnli_v3"}


def _counts_differ(recipe: Recipe) -> bool:
    """Whether the parts of the recipe's loss are over other counts in one micro-batch than in the next."""
    shortener, loss = recipe.model.shortener.kind, recipe.loss
    parts = {"cross_entropy"}
    if shortener == "delete_gate":
        parts |= {"gate", "entropy"}
    if shortener == "boundary_predictor":
        parts |= {"auxiliary"}
    if loss.score_coefficient:
        parts |= {"encoder_score", "cross_score"}
    task = smoke(recipe).task
    if recipe.is_finetuning:  # at toy scale, all sources are cut to the same length
        task = task.model_copy(update={"input_length": recipe.task.input_length})
    return bool(parts & _ragged(task.model_dump_json(), loss.score_per))


@cache
def _ragged(task: str, score_per: str) -> set[str]:
    """What a task's micro-batches have unequal counts of."""
    from mrt5cli.tasks import build_task
    from mrt5cli.training.losses import PARTS, counts

    section = TypeAdapter(TaskSection).validate_json(task)
    stream = iter(build_task(section).train_stream(batch_size=2, seed=1))
    settings = LossSection.model_validate({"score_per": score_per})
    several = [counts(next(stream), settings, own_loss_per_position=False).tolist() for _ in range(20)]
    columns = zip(*several, strict=True)
    return {name for name, column in zip(PARTS, columns, strict=True) if len(set(column)) > 1}


@pytest.mark.parametrize(
    ("base", "group", "changed"),
    [
        ("english_v1/mrt5_alpha_0.01", "gate_placement_v1/mrt5_alpha_0.01_l*", {"model.shortener.layer"}),
        ("pctrl40", "gate_placement_v1/mrt5_p_50_l*", {"model.shortener.layer", "seed", TARGET}),
        ("multilingual_v3/mrt5_50", "gate_placement_v3/*", {"model.shortener.layer", "seed"}),
        ("multilingual_v3/byt5", "softmax_ablation/byt5", {"model.softmax1"}),
        ("multilingual_v3/mrt5_50", "softmax_ablation/mrt5_50", {"model.softmax1"}),
        ("multilingual_v3/byt5", "large_v3/byt5", {"model.start", "evaluation.examples", "seed"}),
        ("multilingual_v3/mrt5_50", "large_v3/mrt5_50", {"model.start", "evaluation.examples", "seed"}),
        ("english_v1/byt5", "multilingual_v1/byt5", {"task.languages"}),
        ("multilingual_v3/byt5", "zero_shot/mc4", {"task.languages"}),
        ("xnli_v3/byt5", "xnli_v1/byt5", {"model.start", "seed"}),
        ("spelling_v3/byt5", "spelling_v1/byt5", {"model.start", "seed"}),
        ("word_search_v3/byt5", "word_search_v1/byt5", {"model.start", "seed"}),
    ],
)
def test_a_variant_changes_what_it_is_about_and_nothing_else(
    base: str, group: str, changed: set[str]
) -> None:
    files = sorted((ROOT / "recipes").glob(f"{group}.yaml"))
    below = _settings(load(base))
    found = set()
    for file in files:
        variant = _settings(loaded(file))
        found |= {key for key in below.keys() | variant.keys() if below.get(key) != variant.get(key)}
    assert found == changed


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting that decides numbers, by its dotted key."""
    flat: dict[str, Any] = {}

    def walk(section: dict[str, Any], above: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                walk(value, f"{above}{key}.")
            else:
                flat[above + key] = value

    walk(recipe.model_dump(exclude={"name", "description", "paper"}), "")
    return flat


def test_the_zero_shot_task_is_in_all_languages_of_mc4() -> None:
    languages = load("zero_shot/mc4").task.languages
    trained = load("multilingual_v3/byt5").task.languages
    assert len(languages) == len(set(languages)) == 107
    assert set(trained) < set(languages)
    # A reader of YAML 1.1 takes Norwegian's code for "false".
    assert "no" in languages and len([code for code in languages if code.endswith("-Latn")]) == 6


def test_baselines_follow_the_laws_the_published_numbers_rest_on() -> None:
    """A batch's rows share the rate, the mask or the empty slots, and boundaries are drawn in evaluation."""
    counts: dict[str, int] = {}
    for name, path in shipped().items():
        shortener = loaded(path).model.shortener
        published = loaded(path).paper is not None or name.startswith("xquad")
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
DOWNSTREAM += ("xnli_v1", "spelling_v1", "word_search_v1")


@pytest.mark.parametrize("group", DOWNSTREAM)
def test_downstream_recipes_start_from_the_run_of_their_own_kind(group: str) -> None:
    """A run that a shipped recipe makes, with the same shortener, whose weights therefore fit."""
    makers = {str(default_directory(made)): made for made in map(load, FILES)}
    recipes = [loaded(file) for file in sorted((ROOT / "recipes" / group).glob("*.yaml"))]
    kinds = ["none", "delete_gate"]
    if not group.endswith("_v1"):
        kinds = ["boundary_predictor", "none", "convolution", "delete_gate"]
    assert [recipe.model.shortener.kind for recipe in recipes] == kinds
    for recipe in recipes:
        maker = makers[recipe.model.start]
        assert recipe.is_finetuning and not maker.is_finetuning
        assert recipe.paper is None or maker.paper is None or recipe.paper.version == maker.paper.version
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
        for recipe in (loaded(file), smoke(loaded(file))):
            if not recipe.model.start.startswith("runs/"):
                sections.setdefault(recipe.model.model_dump_json(), recipe.model)
    assert len(sections) >= 50
    for section in sections.values():
        model = build(section, device="meta")
        assert model.config.deletion_type in section.shortener.deletion_types
        assert all(parameter.is_meta for parameter in model.parameters())


def test_the_large_model_has_the_papers_size() -> None:
    """1.2 billion parameters; the gate has a norm and a weight for each of 1536 dimensions, and a bias."""
    from mrt5cli.models import build

    sizes = {
        name: sum(parameter.numel() for parameter in build(loaded(name).model, device="meta").parameters())
        for name in ("large_v3/byt5", "large_v3/mrt5_50")
    }
    assert round(sizes["large_v3/byt5"] / 1e9, 1) == 1.2
    assert sizes["large_v3/mrt5_50"] - sizes["large_v3/byt5"] == 1536 + 1536 + 1
