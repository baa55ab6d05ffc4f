"""Recipes: bases, overrides, every message about a wrong one, finding, writing, shrinking."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import Recipe, dump, find, load, smoke, strict_yaml
from mrt5cli.recipe import loading as recipe_load
from mrt5cli.recipe import words as recipe_words
from mrt5cli.recipe.differences import decides_numbers, differences, unlike
from mrt5cli.recipe.strict_yaml import dump as to_yaml
from mrt5cli.recipe.tasks import FilesSource, HubSource

PLAIN: dict[str, Any] = {
    "name": "plain",
    "description": "A recipe to break",
    "task": {"kind": "vowel_removal", "length": 16},
    "model": {"start": "scratch", "shortener": {"kind": "delete_gate", "layer": 1}},
    "controller": {"kind": "pi", "target_deletion_rate": 0.2},
    "training": {"max_steps": 10, "batch_size": 16},
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path / "plain.yaml", PLAIN)


def write(path: Path, tree: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else to_yaml(tree), encoding="utf-8")
    return path


def problems_of(path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return dict(caught.value.problems)


# --- a start that follows the seed --------------------------------------------------------------------------


def test_a_start_follows_the_seed_wherever_that_is_set(tmp_path: Path) -> None:
    controller = {"kind": "constant"}
    model = {"start": "runs/{seed}/x-seed{seed}"}
    base = write(tmp_path / "base.yaml", {**PLAIN, "model": model, "controller": controller})
    child = write(tmp_path / "child.yaml", "extends: base.yaml\nseed: 5\n")
    given = [(), ("seed=7",), ("seed=7", "model.start=a{seed}"), ("model={start: 'b{seed}'}",)]
    starts = [load(path, each).model.start for path in (base, child) for each in given]
    assert starts == [
        *("runs/42/x-seed42", "runs/7/x-seed7", "a7", "b42"),
        *("runs/5/x-seed5", "runs/7/x-seed7", "a7", "b5"),
    ]
    recipe = load(child)
    again = load(write(tmp_path / "saved.yaml", recipe_load.dump(recipe)), ["seed=9"])
    assert again.model.start == "runs/5/x-seed5", "what a run has saved is where it started"


def test_a_run_that_was_saved_with_a_start_spelt_out_is_the_same_recipe(tmp_path: Path) -> None:
    text = recipe_load.find("quickstart").read_text(encoding="utf-8")
    assert "start: runs/quickstart-byt5-seed{seed}" in text
    old = write(tmp_path / "recipe.yaml", text.replace("{seed}", "42"))
    assert differences(load(old), load("quickstart")) == {}
    assert set(differences(load(old), load("quickstart", ["seed=7"]))) == {"seed", "model.start"}


@pytest.mark.parametrize(
    "start", ["x{foo}", "x{", "}x", "{{seed}}", "{Seed}-{seed}", "{}", "{seed", "{ seed }"]
)
def test_other_braces_in_a_start_are_refused(plain: Path, start: str) -> None:
    found = problems_of(plain, f"model.start={strict_yaml.inline(start)}")
    shown = start.replace("{seed}", "42")
    assert found["model.start"] == (
        f"{shown!r}: the only braces allowed are {{seed}}, for the recipe's seed (--set)"
    )


def test_the_code_is_that_of_the_run_with_the_seed(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("mrt5cli.own_code.import_again", asked.append)
    (tmp_path / "x-seed7").mkdir()
    load(plain, ["seed=7", f"model.start={tmp_path}/x-seed{{seed}}"])
    assert asked == [plain, tmp_path / "x-seed7"]


@pytest.mark.parametrize("seed", ["-1", "true", "1.5", "null", "9" * 5000, "[1]", "'{foo}'"])
def test_a_wrong_seed_is_the_only_problem_of_a_start_that_follows_it(seed: str) -> None:
    assert set(problems_of(recipe_load.find("quickstart"), f"seed={seed}")) == {"seed"}


# --- bases --------------------------------------------------------------------------------------------------


def test_a_base_is_merged_key_by_key(tmp_path: Path, plain: Path) -> None:
    write(tmp_path / "child.yaml", "extends: plain.yaml\nname: child\ntraining: {max_steps: 20}\n")
    child = load(tmp_path / "child.yaml")
    assert (child.name, child.training.max_steps, child.training.batch_size) == ("child", 20, 16)
    assert child.description == "A recipe to break"


def test_bases_chain_and_are_relative_to_their_file(tmp_path: Path, plain: Path) -> None:
    write(tmp_path / "group/middle.yaml", "extends: ../plain.yaml\nseed: 1\ntraining: {batch_size: 32}\n")
    write(tmp_path / "group/deep/top.yaml", "extends: ../middle.yaml\nseed: 2\n")
    top = load(tmp_path / "group/deep/top.yaml")
    assert (top.seed, top.training.batch_size, top.training.max_steps) == (2, 32, 10)


def test_a_base_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    write(tmp_path / "mine.yaml", "extends: pctrl40\nname: mine\n")
    assert load(tmp_path / "mine.yaml").training == load("pctrl40").training


def test_a_list_replaces_a_list(tmp_path: Path) -> None:
    write(tmp_path / "mine.yaml", "extends: multilingual_v3/byt5\ntask: {languages: [en]}\n")
    recipe = load(tmp_path / "mine.yaml")
    assert recipe.task.languages == ["en"] and recipe.task.source.kind == "hub"


def test_a_section_of_another_kind_replaces_the_section(tmp_path: Path, plain: Path) -> None:
    text = (
        "extends: plain.yaml\nmodel: {shortener: {kind: random, rate: 0.5}}\ncontroller: {kind: constant}\n"
    )
    shortener = load(write(tmp_path / "child.yaml", text)).model.shortener
    assert (shortener.kind, shortener.layer, shortener.rate) == ("random", 3, 0.5)


def test_a_kind_with_the_same_settings_keeps_them(plain: Path) -> None:
    task = load(plain, ["task.kind=copy"]).task
    assert (task.kind, task.length) == ("copy", 16)


@pytest.mark.parametrize(
    ("files", "where", "key", "message"),
    [
        (
            {"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: a.yaml"},
            "c.yaml",
            "extends",
            "the bases form a cycle: a.yaml -> b.yaml -> c.yaml -> a.yaml",
        ),
        ({"a": "extends: a.yaml"}, "a.yaml", "extends", "the bases form a cycle: a.yaml -> a.yaml"),
        (
            {"a": "extends: quikstart"},
            "a.yaml",
            "extends",
            "no recipe 'quikstart': neither a file nor the name of a shipped recipe",
        ),
        ({"a": "extends: [a, b]"}, "a.yaml", "extends", "expected the file or the name of one recipe"),
        ({"a": ""}, "a.yaml", "", "the file is empty; expected `key: value` lines"),
        ({"a": "[1]"}, "a.yaml", "", "the file is not a recipe; expected `key: value` lines"),
        (
            {"a": "hello"},
            "a.yaml",
            "",
            "the file is not a recipe; expected `key: value` lines",
        ),
        (
            {"a": "extends: b.yaml", "b": "x: 1\nx: 2"},
            "b.yaml",
            "",
            "'x' is given twice, on lines 1 and 2",
        ),
    ],
)
def test_files_that_are_no_recipe(
    tmp_path: Path, files: dict[str, str], where: str, key: str, message: str
) -> None:
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "a.yaml")
    assert caught.value.problems == [(key, message)]
    assert caught.value.message.startswith(f"{tmp_path / where} has 1 problem")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match=r"a\.yaml is not UTF-8 text \(at byte 6\)"):
        load(tmp_path / "a.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert load(tmp_path / "bom.yaml") == load(plain)


# --- overrides ----------------------------------------------------------------------------------------------


def test_overrides_are_yaml_on_top(plain: Path) -> None:
    recipe = load(
        plain,
        [
            "training.learning_rate=1e-3",
            "description=no",
            "model.shortener={kind: none}",
            "controller={kind: constant}",
            "training.save_steps = 7",
        ],
    )
    assert recipe.training.learning_rate == 1e-3 and recipe.training.save_steps == 7
    assert recipe.description == "no" and recipe.model.shortener.kind == "none"


def test_a_new_kind_and_its_settings_may_come_in_any_order(plain: Path) -> None:
    overrides = ["controller.alpha=0.01", "controller.kind=constant"]
    for order in (overrides, overrides[::-1]):
        controller = load(plain, order).controller
        assert (controller.kind, controller.alpha) == ("constant", 0.01)


def test_a_mapping_given_by_set_takes_the_place_of_what_stood_there(tmp_path: Path) -> None:
    source = {"kind": "hub", "name": "me/mine", "configurations": {"en": "english", "de": "german"}}
    file = write(tmp_path / "a.yaml", {**PLAIN, "task": {"kind": "span_corruption", "source": source}})

    def read(*overrides: str) -> dict[str, Any]:
        return load(file, overrides).task.source.model_dump()

    assert read() == read("training.max_steps=10") != {}
    assert read("task.source.configurations={}")["configurations"] == {}
    assert read("task.source.configurations={fr: french}")["configurations"] == {"fr": "french"}
    kept = read("task.source.configurations.fr=french")
    assert kept["configurations"]["fr"] == "french" and kept["name"] == "me/mine"
    assert read("task.source={kind: hub}") == HubSource(kind="hub").model_dump()
    mine = FilesSource(kind="files", path="my_texts")
    assert read("task.source={kind: files, path: my_texts}") == mine.model_dump()
    assert problems_of(file, "task.source={}") == {
        "task.source.kind": "missing; expected embedded, files or hub"
    }


WRITE = "write key=value, such as training.max_steps=100 or task.languages=[en]"


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("training.max_steps", "training.max_steps", WRITE),
        ("=5", "=5", WRITE),
        ("a b=5", "a b=5", WRITE),
        ("task.languages[0]=en", "task.languages[0]=en", WRITE),
        ("extends=other.yaml", "extends", "cannot be set; it names the base of a recipe file"),
        (
            "task.source={kind",
            "task.source",
            "the value is not YAML: line 1, column 6: while parsing a flow mapping: expected ',' or '}', "
            "but got '<stream end>'",
        ),
    ],
)
def test_overrides_that_are_none(plain: Path, override: str, key: str, message: str) -> None:
    assert problems_of(plain, override) == {key: message}


def test_an_override_given_twice_is_refused(plain: Path) -> None:
    assert problems_of(plain, "seed=1", "seed=2") == {"seed": "set twice"}
    assert problems_of(plain, "controller={kind: p}", "controller.k_p=1") == {"controller.k_p": "set twice"}
    assert problems_of(plain, "model.revision=a", "model.revision=b") == {
        "model.revision": "set twice; --from and --revision also set keys of model"
    }


def test_all_bad_overrides_are_reported_at_once(plain: Path) -> None:
    assert list(problems_of(plain, "a", "b", "seed=1")) == ["a", "b"]


# --- wrong recipes ------------------------------------------------------------------------------------------

LM = "task={kind: span_corruption, source: {kind: embedded}}"
WRONG = [
    # unknown keys
    ("training.lerning_rate=1", "unknown key; did you mean learning_rate?"),
    ("trainig.max_steps=1", "unknown key; did you mean training?"),
    ("model.shortener.layr=1", "unknown key; did you mean layer?"),
    ("model.shortener.rate=0.5", "not a setting of kind 'delete_gate', but of 'random' or 'quantile_gate'"),
    ("controller.alpha=1", "not a setting of kind 'pi', but of 'constant'"),
    (
        "task.languages=[en]",
        "not a setting of kind 'copy', 'vowel_removal', 'contextual_vowel_removal' or 'merge_ABC', but of "
        "'span_corruption', 'xnli', 'tydiqa' or 'xquad'",
    ),
    ("learning_rate=1", "unknown key; did you mean training.learning_rate?"),
    ("model.layer=1", "unknown key; did you mean model.shortener.layer?"),
    ("k_p=1", "unknown key; did you mean controller.k_p?"),
    (
        "evaluation.zzz=1",
        "unknown key (known here: examples, batch_size, hard_delete, generation)",
    ),
    # wrong types
    ("seed=1.5", "expected a whole number from 0 to 4,294,967,295, not 1.5"),
    ("seed='1'", "expected a whole number from 0 to 4,294,967,295, not '1'"),
    ("training.batch_size=true", "expected a whole number from 1 to 1,048,576, not true"),
    ("training.learning_rate=fast", "expected a number from 1e-30 to 1000, not 'fast'"),
    ("training.compile=yes", "expected true or false, not 'yes'"),
    ("training.compile=1", "expected true or false, not 1"),
    ("model.start=7", "expected text, not 7"),
    ("description=", "expected text, not null"),
    ("description=''", "must not be empty"),
    ("description=[a]", "expected text, not [a]"),
    (
        f"training.learning_rate={'x' * 50}",
        f"expected a number from 1e-30 to 1000, not '{'x' * 36}...",
    ),
    ("loss=1", "expected a section (key: value lines), not 1"),
    ("loss=", "expected a section (key: value lines), not null"),
    ("training=[]", "expected a section (key: value lines), not []"),
    ("task.mean_insertions=many", "expected a number from 1e-06 to 2,097,152, or null, not 'many'"),
    (
        "model.shape=big",
        "expected a section (key: value lines), or null, not 'big'",
    ),
    (
        "paper={version: v1, experiment: e, rows: r1}",
        "expected a list of text, not 'r1'",
    ),
    # out of range
    ("controller.target_deletion_rate=40", "expected a number above 0 and below 1, not 40"),
    ("controller.target_deletion_rate=1.0", "expected a number above 0 and below 1, not 1.0"),
    ("controller.target_deletion_rate=-0.1", "expected a number above 0 and below 1, not -0.1"),
    ("controller.target_deletion_rate=.nan", "expected a number above 0 and below 1, not .nan"),
    ("model.dropout=.inf", "expected a number of at least 0 and below 1, not .inf"),
    ("loss.entropy_coefficient_1=-.inf", "expected a number from -1e+06 to 1e+06, not -.inf"),
    ("loss.hard_delete_probability=50", "expected a number from 0 to 1, not 50"),
    ("model.shortener.scale=30", "expected a number from -1e+06 to -1e-30, not 30"),
    ("task.length=4", "expected a whole number from 8 to 2,097,152, not 4"),
    (
        "name=My Run",
        "may contain a-z, 0-9, '.', '_' and '-', and must start with a letter or digit, not 'My Run'",
    ),
    # choices
    (
        "training.schedule=Linear",
        "expected 'linear', 'cosine' or 'constant', not 'Linear'",
    ),
    ("training.precision=fp16", "expected 'fp32' or 'bf16', not 'fp16'"),
    ("training.precision=float16", "expected 'fp32' or 'bf16', not 'float16'"),
    ("training.precision=half", "expected 'fp32' or 'bf16', not 'half'"),
    ("training.precision=16", "expected 'fp32' or 'bf16', not 16"),
    # sections that do not fit
    ("training.batch_size=12", "12 is not a multiple of training.device_batch_size 8"),
    ("model.shortener.layer=12", "must be less than the 12 layers of the encoder, not 12"),
    ("model.shortener.threshold=-31.0", "-31.0 is not above the scale -30.0; no byte would be deleted"),
    (
        "loss.regularizer_delay=10",
        "must be less than training.max_steps 10, not 10; otherwise the gate never learns to delete",
    ),
    ("task.mean_insertions=5", "has no effect, because 'vowel_removal' inserts nothing; leave it out"),
    (
        "training.warmup_steps=11",
        "11 exceeds training.max_steps 10, so the learning rate would never reach training.learning_rate; "
        "lower it too",
    ),
    ("model.max_positions=64", "only applies to positions: absolute, but positions is relative"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_every_wrong_value_is_a_sentence(plain: Path, override: str, message: str) -> None:
    found = problems_of(plain, override)
    (key, text), *more = found.items()
    assert not more
    assert text == f"{message} (--set)"
    assert override.startswith((key.split(".")[0], key))


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (
            ["model.shortener.kind=random"],
            "model.shortener.rate",
            "missing; expected a number above 0 and below 1",
        ),
        (
            ["controller.kind=p"],
            "controller.target_deletion_rate",
            "missing; expected a number above 0 and below 1",
        ),
        (
            ["task={kind: span_corruption}"],
            "task.source",
            "missing; expected a section with kind embedded, files or hub, or `sources`, a list of them",
        ),
        (
            ["training.batch_tokens=99", "loss.average_per=micro_batch"],
            "loss.average_per",
            "must not be micro_batch with training.batch_tokens, which divides steps unevenly (--set)",
        ),
        (
            ["controller.kind=PI"],
            "controller.kind",
            "unknown kind 'PI'; expected constant, p, pi or pi_two_sided (--set)",
        ),
        (
            ["controller.kind=bang"],
            "controller.kind",
            "unknown kind 'bang'; expected constant, p, pi or pi_two_sided (--set)",
        ),
        (
            ["controller.kind=[pi]"],
            "controller.kind",
            "unknown kind \"['pi']\"; expected constant, p, pi or pi_two_sided (--set)",
        ),
        (
            ["controller=pi"],
            "controller",
            "expected a section with kind constant, p, pi or pi_two_sided, not 'pi' (--set)",
        ),
        (
            ["model.shortener.kind=none"],
            "controller",
            "'pi' has nothing to control: model.shortener is 'none', not 'delete_gate'; leave it out, or set "
            "it to {kind: constant} (line 11)",
        ),
        (
            ["model.shape={d_model: 0}"],
            "model.shape.d_model",
            "expected a whole number from 1 to 4,194,304, not 0 (--set)",
        ),
        (
            ["model.shape={relative_attention_max_distance: 16}"],
            "model.shape.relative_attention_max_distance",
            "must be greater than half of relative_attention_num_buckets, 16 (--set)",
        ),
        (
            ["model.positions=absolute", "model.max_positions=8"],
            "model.max_positions",
            "8 is less than task.length 16 (--set)",
        ),
        (
            [
                "task={kind: xquad, input_length: 512, answer_length: 513}",
                "model.positions=absolute",
                "model.max_positions=512",
            ],
            "model.max_positions",
            "512 is less than task.answer_length 513 (--set)",
        ),
        (
            ["model.positions=absolute", "evaluation.generation.max_new_tokens=1025"],
            "evaluation.generation.max_new_tokens",
            "1025 exceeds model.max_positions 1024 (--set)",
        ),
        (
            ["model.shortener={kind: none}", "controller={kind: constant}", "loss.entropy_coefficient_1=1"],
            "loss.entropy_coefficient_1",
            "needs a delete gate, but model.shortener is 'none' (--set)",
        ),
        (
            [LM.replace("embedded", "hub, configurations: {en: 3}")],
            "task.source.configurations.en",
            "expected text, not 3 (--set)",
        ),
        (
            [LM.replace("embedded", "hub, configurations: en")],
            "task.source.configurations",
            "expected a mapping of text to text, not 'en' (--set)",
        ),
        ([LM.replace("}}", "}, languages: [en, en]}")], "task.languages", "listed twice: en (--set)"),
        (
            [LM.replace("}}", "}, languages: [en, de, fr]}")],
            "task.languages",
            "the embedded text is English and has no de, fr (--set)",
        ),
        (
            ["task={kind: span_corruption, source: {kind: hub}, shuffle: examples}"],
            "task.shuffle",
            "must be 'documents', because a streamed text is read in order; leave it out (--set)",
        ),
        (
            [
                "task={kind: span_corruption, source: {kind: files, path: a, streaming: true}, "
                "shuffle: examples}"
            ],
            "task.shuffle",
            "must be 'documents', because a streamed text is read in order; leave it out (--set)",
        ),
        (
            [LM.replace("}}", "}, languages: []}")],
            "task.languages",
            "must list at least 1, not 0 (--set)",
        ),
        (
            [LM.replace("}}", "}, languages: [en, 3]}")],
            "task.languages[1]",
            "expected text, not 3 (--set)",
        ),
        (
            [LM.replace("embedded", "hubb")],
            "task.source.kind",
            "unknown kind 'hubb'; expected embedded, files or hub (--set)",
        ),
        (
            [LM.replace("embedded", "embedded, path: x")],
            "task.source.path",
            "not a setting of kind 'embedded', but of 'files' (--set)",
        ),
        (
            ["training.sharding=fsdp", "training.lora={}"],
            "training.sharding",
            "must be none with training.lora, which leaves little to shard (--set)",
        ),
        (
            ["training.sharding=fsdp", "training.compile=true"],
            "training.sharding",
            "must be none with training.compile, whose graphs read complete weights (--set)",
        ),
    ],
)
def test_wrong_sections(plain: Path, overrides: list[str], key: str, message: str) -> None:
    assert problems_of(plain, *overrides) == {key: message}


@pytest.mark.parametrize(
    ("overrides", "remark"),
    [
        ([], None),
        (
            ["training.eval_steps=11"],
            "training.eval_steps 11 exceeds training.max_steps 10: nothing is measured on validation data",
        ),
        (["training.eval_steps=11", "training.best_metric=loss"], None),
        (
            [LM.replace("embedded", "hub, configurations: {en: a, de: b}")],
            "task.source.configurations names de, which is not in task.languages and therefore not used",
        ),
    ],
)
def test_settings_that_change_nothing_are_remarked_on(
    plain: Path, overrides: list[str], remark: str | None
) -> None:
    assert load(plain, overrides).remarks() == ([] if remark is None else [remark])


def test_shipped_recipes_leave_nothing_to_remark_on() -> None:
    recipes = [load(file) for file in recipe_load.shipped().values()]
    assert len(recipes) > 100
    assert [remark for recipe in recipes for one in (recipe, smoke(recipe)) for remark in one.remarks()] == []


@pytest.mark.parametrize(
    ("without", "key", "message"),
    [
        ("name", "name", "missing; expected text"),
        (
            "task",
            "task",
            "missing; expected a section with kind span_corruption, copy, vowel_removal, "
            "contextual_vowel_removal, merge_ABC, xnli, tydiqa, xquad, spelling_correction_contextual, "
            "word_search or text2text",
        ),
        ("training", "training", "missing; expected a section (key: value lines)"),
    ],
)
def test_missing_keys(tmp_path: Path, without: str, key: str, message: str) -> None:
    tree = {name: value for name, value in PLAIN.items() if name != without}
    assert problems_of(write(tmp_path / "a.yaml", tree)) == {key: message}


def test_a_missing_kind_names_the_kinds(tmp_path: Path) -> None:
    tree = {**PLAIN, "controller": {"alpha": 1}}
    assert problems_of(write(tmp_path / "a.yaml", tree)) == {
        "controller.kind": "missing; expected constant, p, pi or pi_two_sided"
    }


def test_settings_of_a_checkpoint_and_of_scratch_do_not_mix(tmp_path: Path) -> None:
    model = {"start": "google/byt5-small", "initialization": "depth_scaled", "shape": {"num_layers": 2}}
    assert problems_of(
        write(tmp_path / "a.yaml", {**PLAIN, "model": model, "controller": {"kind": "constant"}})
    ) == {
        "model.shape": "only applies to start: scratch; a checkpoint has its own shape (line 9)",
        "model.initialization": "only applies to start: scratch; a checkpoint has its own weights (line 8)",
    }


def test_all_problems_come_at_once_with_their_places(tmp_path: Path, plain: Path) -> None:
    write(tmp_path / "child.yaml", "extends: plain.yaml\n\nseeed: 1\nmodel: {shortener: {layr: 2}}\n")
    write(tmp_path / "plain.yaml", {"descripton": "x", **PLAIN})
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "child.yaml", ["training.max_steps=no"])
    assert caught.value.message.splitlines() == [
        f"{tmp_path / 'child.yaml'} has 4 problems",
        "  model.shortener.layr  unknown key; did you mean layer? (line 4)",
        "  training.max_steps    expected a whole number from 1 to 1,000,000,000, not 'no' (--set)",
        f"  descripton            unknown key; did you mean description? ({plain}, line 1)",
        "  seeed                 unknown key; did you mean seed? (line 3)",
    ]
    assert caught.value.hint == "`mrt5 recipe schema` explains every key"


def test_whatever_is_put_in_whatever_place_is_answered_in_a_sentence(plain: Path) -> None:
    odd = [
        "[]",
        "{}",
        "{kind: 1}",
        "null",
        "true",
        "-1",
        "1e400",
        "'x'",
        "[1, {a: b}]",
        "0.5",
        "99999999999999999999",
    ]
    for path in {key.path: None for key in recipe_words.all_keys()}:
        for value in odd:
            place, in_list, leaf = path.partition("[].")
            assignment = f"{place}=[{{{leaf}: {value}}}]" if in_list else f"{place}={value}"
            try:
                load(plain, [assignment])
            except RecipeError as error:
                for _, text in error.problems:
                    assert text.startswith(OURS), (path, value, text)


OURS = (
    "expected ",
    "needs best_metric",
    "unknown key",
    "cannot be set",
    "not a setting",
    "missing; ",
    "unknown kind",
    "'",
    "only applies to ",
    "must ",
    "may contain ",
    "has no effect",
    *"-0123456789",
)


# --- finding and writing ------------------------------------------------------------------------------------


def test_paths_under_the_working_directory_are_shown_short(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"^plain\.yaml has 1 problem\n"):
        load("plain.yaml", ["x=1"])


def test_a_file_is_found_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("quickstart").name == "quickstart.yaml"
    (tmp_path / "quickstart").mkdir()
    assert find("quickstart").name == "quickstart.yaml"
    (tmp_path / "pctrl40").write_text("x: 1")
    assert find("pctrl40") == Path("pctrl40")


@pytest.mark.parametrize("name", ["quickstart-byt5", "recipes/quickstart_byt5.yaml", "quickstart_byt5.yml"])
def test_names_are_found_as_people_write_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(name) == recipe_load.shipped()["quickstart_byt5"]


def test_the_last_part_of_a_name_is_enough_when_only_one_has_it() -> None:
    assert find("merge_ABC_mrt5_1.5e-2") == recipe_load.shipped()["diagnostic_v3/merge_ABC_mrt5_1.5e-2"]
    with pytest.raises(UserError, match="merge_ABC_byt5 is the name of 2 recipes"):
        find("merge_ABC_byt5")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "quikstart",
            "no recipe 'quikstart': neither a file nor the name of a shipped recipe",
            "did you mean quickstart?",
        ),
        (
            "multilingual_v3/mrt5_35",
            "no recipe 'multilingual_v3/mrt5_35': neither a file nor the name of a shipped recipe",
            "did you mean multilingual_v3/mrt5_50?",
        ),
        (
            "zzz",
            "no recipe 'zzz': neither a file nor the name of a shipped recipe",
            "`mrt5 recipe list` lists the shipped ones",
        ),
        (
            "random_40",
            "random_40 is the name of 2 recipes",
            "choose one of english_v1/random_40, multilingual_v3/random_40",
        ),
        ("mine", "mine is a directory, not a recipe", "choose a file in it: mine/first.yaml"),
        (
            "mine/frst.yaml",
            "no recipe 'mine/frst.yaml': neither a file nor the name of a shipped recipe",
            "did you mean mine/first.yaml?",
        ),
        (
            "x" * 5000,
            f"no recipe '{'x' * 5000}': neither a file nor the name of a shipped recipe",
            "`mrt5 recipe list` lists the shipped ones",
        ),
        (
            "a\0b",
            "no recipe 'a\\x00b': neither a file nor the name of a shipped recipe",
            "`mrt5 recipe list` lists the shipped ones",
        ),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_not_found(
    name: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine/first.yaml", PLAIN)
    with pytest.raises(UserError) as caught:
        find(name)
    assert (caught.value.message, caught.value.hint) == (message, hint)


RATES = st.floats(0.01, 0.99)
TASKS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("span_corruption"),
            "source": st.sampled_from([{"kind": "files", "path": "no"}, {"kind": "hub"}]),
            "input_length": st.integers(16, 1024),
            "noise_density": RATES,
            "languages": st.lists(st.sampled_from(["en", "no", "zh", "1e-4", "on"]), min_size=1, unique=True),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["copy", "vowel_removal"]), "length": st.integers(8, 1024)}
    ),
    st.fixed_dictionaries({"kind": st.just("merge_ABC"), "mean_insertions": st.none() | st.floats(0.1, 100)}),
)
GATED = st.tuples(
    st.fixed_dictionaries(
        {
            "kind": st.just("delete_gate"),
            "layer": st.integers(0, 11),
            "scale": st.floats(-100, -1),
            "norm": st.sampled_from(["rms", "layer", "none"]),
        }
    ),
    st.one_of(
        st.fixed_dictionaries({"kind": st.just("constant"), "alpha": st.floats(-1, 1)}),
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["p", "pi", "pi_two_sided"]),
                "target_deletion_rate": RATES,
                "k_p": st.floats(1e-9, 1),
            }
        ),
    ),
)
PLAIN_OR_RANDOM = st.tuples(
    st.one_of(
        st.just({"kind": "none"}),
        st.fixed_dictionaries({"kind": st.just("random"), "rate": RATES, "layer": st.integers(0, 11)}),
    ),
    st.just({"kind": "constant", "alpha": 0.0}),
)
NOTES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1) | st.sampled_from(
    ["no", "1e-4", "true", "null", "a: b", "# x", "- x", "&a", "*a"]
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    shortener, controller = draw(GATED | PLAIN_OR_RANDOM)
    device_batch_size = draw(st.integers(1, 64))
    start = draw(st.sampled_from(["scratch", "google/byt5-small", "runs/x"]))
    steps = draw(st.integers(1, 10**9))
    tree = {
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)),
        "description": draw(NOTES),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "task": draw(TASKS),
        "model": {
            "start": start,
            "shape": draw(st.none() | st.just({"d_model": 64})) if start == "scratch" else None,
            "shortener": shortener,
            "positions": draw(st.sampled_from(["relative", "absolute"])),
        },
        "controller": controller,
        "training": {
            "max_steps": steps,
            "device_batch_size": device_batch_size,
            "batch_size": device_batch_size * draw(st.integers(1, 64)),
            "learning_rate": draw(st.floats(1e-12, 1e3)),
            "precision": draw(st.sampled_from(["fp32", "bf16"])),
            "warmup_steps": draw(st.integers(0, min(1000, steps))),
        },
        "paper": draw(
            st.none() | st.just({"version": "v1", "experiment": "e", "rows": ["r1"], "note": "no"})
        ),
    }
    return Recipe.model_validate(tree)


@settings(deadline=None)  # other processes may have the machine
@given(recipes())
def test_dump_loads_back_to_an_equal_recipe(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("dumped") / "recipe.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe


@settings(deadline=None)  # other processes may have the machine
@given(recipes())
def test_any_recipe_shrinks_to_a_valid_one(recipe: Recipe) -> None:
    small = smoke(recipe)
    assert small.model.start == "scratch"
    assert small.training.max_steps <= 6 and small.training.batch_size <= 4
    accumulates = recipe.training.batch_size > recipe.training.device_batch_size
    assert (small.training.batch_size > small.training.device_batch_size) == accumulates
    assert (small.model.positions, small.model.softmax1) == (recipe.model.positions, recipe.model.softmax1)
    assert smoke(small) == small


def test_what_differs_is_told_as_recipes_write_it(plain: Path) -> None:
    changed = {
        "training.compile=true": ("training.compile", "false", "true"),
        "model.shape={d_model: 64}": ("model.shape", "null", "absent"),
        "training.best_metric=loss": ("training.best_metric", "null", "loss"),
    }
    before = load(plain)
    found = differences(before, load(plain, [*changed, "training.eval_steps=5"]))
    for key, old, new in changed.values():
        assert found.pop(key) == f"{old} in the run, {new} now"
    assert found.pop("training.eval_steps") == "0 in the run, 5 now"
    assert found.pop("model.shape.d_model") == "absent in the run, 64 now"
    assert all(key.startswith("model.shape.") for key in found)

    texts, more = (
        load(
            plain,
            [LM.replace("}}", f"}}, languages: {languages}}}").replace("embedded", "files, path: 'a: b'")],
        )
        for languages in ("[en]", "[en, 'no']")
    )
    assert differences(texts, more) == {"task.languages": "[en] in the run, [en, 'no'] now"}
    assert unlike(before.task, texts.task)["source.path"] == ("absent", "'a: b'")


NO_GATE = "controller={kind: constant}", "loss.regularizer_delay=0"


@pytest.mark.parametrize(
    ("settings", "decides"),
    [
        ([], False),
        (["loss.score_coefficient=0.1"], False),
        (["loss.average_per=micro_batch"], True),
        (["loss.gate_loss=gate_variance"], True),
        (["loss.entropy_coefficient_1=0.1"], True),
        (["loss.hard_delete_probability=0.5"], True),
        (["loss.score_coefficient=0.1", "loss.score_per=batch"], True),
        (["controller.update_per=micro_batch"], True),
        ([*NO_GATE, "model.shortener={kind: convolution, layer: 1, stride: 3}"], False),
        ([*NO_GATE, "model.shortener={kind: convolution, layer: 1, stride: 3, per: batch}"], True),
        ([*NO_GATE, "model.shortener={kind: fixed, layer: 1, amount: 0.5, per: batch}"], True),
        ([*NO_GATE, "model.shortener={kind: source_removed}"], False),
        ([*NO_GATE, "model.shortener={kind: source_removed}", "loss.score_coefficient=0.1"], True),
    ],
)
def test_how_a_step_is_divided_may_change_where_no_number_sees_it(settings: list[str], decides: bool) -> None:
    recipe = load("local_text", settings)
    assert decides_numbers("training.device_batch_size", recipe) == decides
    assert not decides_numbers("training.sharding", recipe)


# --- shrinking and the schema as text -----------------------------------------------------------------------


def test_smoke_keeps_what_chooses_code_and_shrinks_the_rest() -> None:
    recipe = load("diagnostic_v3/merge_ABC_mrt5_1.5e-2", ["task.mean_insertions=8", "training.compile=true"])
    small = smoke(recipe)
    assert small.name == "diagnostic-v3-merge-abc-mrt5-1.5e-2-smoke"
    assert small.description.startswith("Smoke run, tiny and meaningless, of: ")
    assert (small.task.length, small.task.mean_insertions) == (16, 2.0)
    assert (small.model.shortener.layer, small.loss.regularizer_delay) == (2, 2)
    assert (small.loss.score_coefficient, small.controller.alpha) == (0.5, 0.015)
    assert small.model.initialization == "depth_scaled"
    assert (small.training.compile, small.paper) == (False, None)


def test_smoke_replaces_hub_and_checkpoint_but_keeps_local_files() -> None:
    hub = smoke(load("multilingual_v3/mrt5_50"))
    assert (hub.task.source.kind, hub.task.languages, hub.model.start) == ("embedded", ["en"], "scratch")
    files = smoke(
        load("local_text", ["task.source={kind: files, path: my/texts}", "task.languages=[en, de]"])
    )
    assert (files.task.source.path, files.task.languages) == ("my/texts", ["en", "de"])


def test_every_key_says_what_it_means() -> None:
    keys = recipe_words.all_keys()
    assert len(keys) > 90
    assert [
        key.path for key in keys if not key.schema.get("description") and not key.path.endswith(".kind")
    ] == []
    assert {key.kind for key in keys if key.path == "controller.k_p"} == {"p", "pi", "pi_two_sided"}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("training.max_steps", "a whole number from 1 to 1,000,000,000"),
        ("training.learning_rate", "a number from 1e-30 to 1000"),
        ("model.dropout", "a number of at least 0 and below 1"),
        ("loss.hard_delete_probability", "a number from 0 to 1"),
        ("model.shortener.threshold", "a number from -1e+06 to -1e-30, or null"),
        ("task.languages", "a list of text"),
        ("paper.rows", "a list of text"),
        ("task.source.configurations", "a mapping of text to text"),
        ("model.softmax1", "true or false"),
        ("training.precision", "'fp32' or 'bf16'"),
        ("model.shape", "a section (key: value lines), or null"),
        ("controller", "a section with kind constant, p, pi or pi_two_sided"),
    ],
)
def test_what_a_key_expects(key: str, words: str) -> None:
    found = next(item.schema for item in recipe_words.all_keys() if item.path == key)
    assert recipe_words.expected(found) == words


def test_sections_cannot_be_changed() -> None:
    recipe = load("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.max_steps = 3  # type: ignore[misc]


def test_merging_leaves_both_sides_alone() -> None:
    base, top = {"a": {"b": 1}, "c": {"kind": "p", "x": 1}}, {"a": {"d": 2}, "c": {"kind": "pi"}}
    before = copy.deepcopy((base, top))
    assert recipe_load.merge(base, top) == {"a": {"b": 1, "d": 2}, "c": {"kind": "pi"}}
    assert (base, top) == before
