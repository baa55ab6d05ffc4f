"""Every kind of shortener in `mrt5 recipe`: listed, shown, explained, built, and its mistakes named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.commands.recipe import what_is_trained
from mrt5cli.models import MrT5Config, build
from mrt5cli.models.shorteners import SHORTENERS as MODULES
from mrt5cli.models.shorteners import WITHOUT_MODULE, Gate
from mrt5cli.recipe import Recipe, load
from mrt5cli.recipe.shorteners import SHORTENERS, ShortenerSection, of_config, of_type

NAMES = [name for section in SHORTENERS for name in section.kinds()]
KINDS = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"

RIGHT = {
    "{kind: fixed, amount: 0.3}": "fixed 30 %",
    "{kind: boundary_predictor, prior: 0.4}": "BP prior 0.4",
    "{kind: boundary_predictor, type: entropy, label_examples: 10}": "BP entropy",
    "{kind: boundary_predictor, type: unigram, vocabulary: 500}": "BP unigram",
    "{kind: convolution, stride: 3}": "CP stride 3",
    "{kind: source_removed}": "no source",
    "{kind: random, rate: 0.5}": "random 50 %",
    "{kind: none}": "ByT5",
}

WRONG = [
    ("{kind: fixed}", "amount", "missing; expected a number above 0 and below 1"),
    ("{kind: fixed, amount: 0.3, rate: 0.3}", "rate", "not a setting of kind 'fixed', but of 'random'"),
    ("{kind: fixed, amount: 0.3, per: rows}", "per", "expected 'batch' or 'row', not 'rows'"),
    ("{kind: boundary_predictor, temperature: 0}", "temperature", "expected a number from 0.001 to 1000"),
    ("{kind: boundary_predictor, sampling: never}", "sampling", "expected 'training' or 'always'"),
    ("{kind: boundary_predictor, type: entropy, prior: 0.3}", "prior", "no effect with type: entropy"),
    ("{kind: boundary_predictor, vocabulary: 500}", "vocabulary", "no effect with type: gumbel"),
    ("{kind: boundary_predictor, label_example: 5}", "label_example", "did you mean label_examples?"),
    ("{kind: convolution}", "stride", "missing; expected a whole number from 2 to 2,097,152"),
    ("{kind: convolution, stride: 1}", "stride", "expected a whole number from 2 to 2,097,152, not 1"),
    ("{kind: source_removed, layer: 3}", "layer", "not a setting of kind 'source_removed', but of"),
    ("{kind: words}", "kind", f"expected {KINDS}; a custom one needs --code FILE or an installed package"),
]


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, ["recipe", *words])


@pytest.mark.parametrize(("section", "in_words"), RIGHT.items(), ids=RIGHT)
def test_each_kind_is_shown_listed_and_built(section: str, in_words: str) -> None:
    changed = ["--set", f"model.shortener={section}"]
    shown = mrt5("show", "english_v1/byt5", *changed, "--json")
    assert shown.exit_code == 0, shown.output
    recipe = Recipe.model_validate(json.loads(shown.stdout))
    assert what_is_trained(recipe) == in_words
    checked = mrt5("check", "english_v1/byt5", *changed)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.endswith("1 recipe, 0 problems\n")


@pytest.mark.parametrize(("section", "key", "message"), WRONG, ids=[section for section, _, _ in WRONG])
def test_mistakes_are_named(section: str, key: str, message: str) -> None:
    checked = mrt5("check", "english_v1/byt5", "--set", f"model.shortener={section}", "--json")
    assert checked.exit_code == 2, checked.output
    (file,) = json.loads(checked.stdout)
    (problem,) = file["problems"]
    assert problem["key"] == f"model.shortener.{key}"
    assert message in problem["problem"]


def test_the_list_says_what_each_baseline_is() -> None:
    rows = {row["name"]: row["model"] for row in json.loads(mrt5("list", "--json").stdout)}
    assert rows["multilingual_v3/fixed_30"] == "fixed 30 %"
    assert rows["multilingual_v3/bp_30"] == "BP prior 0.7"
    assert rows["multilingual_v3/cp_3"] == "CP stride 3"
    assert not [
        name
        for name, model in rows.items()
        if model.startswith("MrT5")
        and not any(word in name for word in ("mrt5", "controller"))
        and name not in ("quickstart", "pctrl40", "local_text", "spelling_small")
    ]


@pytest.mark.parametrize("kind", NAMES)
def test_each_key_of_each_kind_is_explained(kind: str) -> None:
    explained = mrt5("schema", "model.shortener").stdout
    blocks = explained.split("\nmodel.shortener.")[1:]
    own = [block for block in blocks if block.split("\n")[0].endswith(f"({kind})")]
    names = {block.split(" ")[0] for block in own}
    section = load("english_v1/byt5", [f"model.shortener={_least(kind)}"]).model.shortener
    assert names == set(type(section).model_fields)
    for block in own:
        name, *lines = block.rstrip().split("\n")
        assert len(lines) == (1 if name.startswith("kind") else 2), f"{name} has no description"


def _least(kind: str) -> str:
    """The least that a recipe says of a kind, in YAML."""
    return json.dumps(_smallest(next(section for section in SHORTENERS if kind in section.kinds())))


def _smallest(section: type[ShortenerSection]) -> dict[str, Any]:
    required = {
        name: field.examples[0]
        for name, field in section.model_fields.items()
        if field.is_required() and field.examples
    }
    return {"kind": section.kinds()[0], **required}


def test_copying_a_baseline_writes_it_out_whole(tmp_path: Path) -> None:
    copied = mrt5("copy", "multilingual_v3/bp_40", str(tmp_path / "mine.yaml"))
    assert copied.exit_code == 0, copied.output
    assert load(tmp_path / "mine.yaml") == load("multilingual_v3/bp_40")


CANDIDATES = (1, 5, 0.25, 0.75, 2.5, -1.0, -20.0, True, False)
"""Of these one is a value of any setting that chooses among no words."""
OF_LABELS = {"label_examples", "vocabulary"}
"""Settings of what teaches a boundary predictor, which is no part of the model."""


def _another(section: type[ShortenerSection], least: dict[str, Any], name: str) -> ShortenerSection:
    """The section with another value of a setting than its default."""
    default = section.model_validate(least)
    for value in (*getattr(section.model_fields[name].annotation, "__args__", ()), *CANDIDATES):
        try:
            changed = section.model_validate({**least, name: value})
        except ValueError:
            continue
        if changed != default:
            return changed
    raise AssertionError(f"no other value of {name}")


@pytest.mark.parametrize("section", SHORTENERS)
def test_every_setting_reaches_the_models_configuration_and_comes_back(
    section: type[ShortenerSection],
) -> None:
    least = _smallest(section)
    default = section.model_validate(least)
    assert of_config(MrT5Config(**default.config_fields())).config_fields().items() >= {
        item for item in default.config_fields().items() if item[0] != "deletion_threshold"
    }
    for name in section.model_fields.keys() - {"kind"} - OF_LABELS:
        changed = _another(section, least, name)
        fields = changed.config_fields()
        assert fields != default.config_fields(), name
        found = of_config(MrT5Config(**fields))
        assert type(found) is section
        assert getattr(found, name) == getattr(changed, name)


@pytest.mark.parametrize("section", SHORTENERS)
def test_every_kind_has_its_words_and_its_module(section: type[ShortenerSection]) -> None:
    told = section.model_validate(_smallest(section))
    assert section.__doc__ and section.paper_name and section.called
    assert "{model}" in section.about and section.about.endswith(".")
    config = MrT5Config(**told.config_fields())
    # A dangling brace or a missing setting would raise here.
    assert told.placed() and isinstance(of_config(config).details(), str)
    (section.refuses_threshold or "").format_map(dict(told))
    assert 0 <= told.share_deleted(0.5) <= 1
    assert told.smallest().keys() <= section.model_fields.keys()
    assert not (section.gates and section.pools)
    modules = [MODULES.get(name) for name in section.deletion_types]
    for name, module in zip(section.deletion_types, modules, strict=True):
        assert of_type(name) is section
        if module is None:
            assert name in WITHOUT_MODULE and not (section.gates or section.pools)
            continue
        assert section.gates == issubclass(module, Gate)
        made = module(config)
        assert section.has_weights == any(True for _ in made.parameters())
        assert module.own_fields.keys() <= set(section.config_names().values())


def test_each_deletion_type_belongs_to_one_kind() -> None:
    types = [name for section in SHORTENERS for name in section.deletion_types]
    assert sorted(types) == sorted([*MODULES, *WITHOUT_MODULE])


def test_the_reference_keeps_the_first_byte_of_a_row_that_would_lose_all() -> None:
    recipe = load("quickstart", ["model.start=scratch", "model.shortener.row_without_survivors=first"])
    assert build(recipe.model, device="meta").config.row_without_survivors == "first"
    assert (
        build(load("quickstart", ["model.start=scratch"]).model, device="meta").config.row_without_survivors
        == "best"
    )
    told = mrt5("schema", "model.shortener.row_without_survivors").stdout
    assert "'best' or 'first'; default \"best\"" in told and "the reference's" in told
