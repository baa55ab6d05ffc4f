"""What `--to hub` writes: the files, the flat sources, the card; and how a push fails."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubsim
import huggingface_hub
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from tiny_runs import SPANS, make_run
from transformers import AutoModelForSeq2SeqLM

from mrt5cli import hub as hub_module
from mrt5cli import recipe as recipes
from mrt5cli.convert import card, modules
from mrt5cli.convert.conversion import ConversionOptions, convert
from mrt5cli.convert.files import Job
from mrt5cli.convert.layouts import write_hub
from mrt5cli.convert.published import published
from mrt5cli.errors import UserError
from mrt5cli.hub import check_can_push, push
from mrt5cli.models import CheckpointError, MrT5Config, MrT5ForConditionalGeneration, load
from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.shorteners import SHORTENERS, WITHOUT_MODULE
from mrt5cli.recipe.shorteners import of_config, of_type
from mrt5cli.rundir import RunDir
from mrt5cli.writing import write_json

ROOT = Path(__file__).parents[2]
TINY = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}


def tiny(**fields: Any) -> MrT5ForConditionalGeneration:
    torch.manual_seed(1)
    return MrT5ForConditionalGeneration(MrT5Config(**{**TINY, "delete_gate_layer": 1, **fields})).eval()


def export(folder: Path, model: Any = None, recipe: Any = None, run: Any = None, **more: Any) -> Path:
    folder.mkdir(parents=True)
    write_hub(Job(tiny() if model is None else model, recipe, run, **more), folder)
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run on text, not evaluated."""
    made = RunDir(make_run(tmp_path_factory.mktemp("runs"), "tiny", task=SPANS))
    meta = {
        "status": "finished",
        "step": 1,
        "device_name": "Some CPU",
        "processes": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.99.0"},
        "commit": "abc123",
    }
    write_json(made.meta_path, meta)
    return made


@pytest.fixture
def evaluated(run: RunDir, tmp_path: Path) -> RunDir:
    """The same run with results of two languages, of soft deletion, and of an earlier checkpoint."""
    copy = RunDir(tmp_path / run.path.name)
    copy.path.mkdir()
    for path in (run.recipe_path, run.meta_path):
        (copy.path / path.name).write_bytes(path.read_bytes())
    write_json(copy.eval("span_corruption"), document("model", {"en": 0.4321, "sw": 0.5432, "total": 0.48}))
    write_json(copy.eval("span_corruption-soft"), document("model", {"en": 0.1234}, deletion="soft"))
    name = "step-00000500"
    write_json(copy.eval(f"span_corruption-{name}"), document(f"checkpoints/{name}", {"en": 0.0678}))
    return copy


def document(source: str, rates: dict[str, float], deletion: str = "hard") -> dict[str, Any]:
    row = {
        "examples": 1200,
        "loss": 2.34567,
        "bits_per_byte": 3.384,
        "token_accuracy": 0.31,
        "kept_length": 9.5,
    }
    return {
        "task": {"kind": "span_corruption"},
        "split": "test",
        "deletion": deletion,
        "batch_size": 16,
        "models": [
            {
                "source": f"elsewhere/tiny-seed3/{source}",
                "rows": [{**row, "subset": name, "deletion_rate": rate} for name, rate in rates.items()],
            }
        ],
    }


# --- files --------------------------------------------------------------------------------------------------


def test_the_files_of_an_export(run: RunDir, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = export(tmp_path / "out", load(run.model), run.recipe(), run)
    assert {path.name for path in folder.iterdir()} == {
        *modules.source_files(),
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "recipe.yaml"),
        *("tokenizer_config.json", "added_tokens.json"),
    }
    config = read_json(folder / "config.json")
    assert config["model_type"] == "mrt5"
    assert config["architectures"] == ["MrT5ForConditionalGeneration"]
    assert config["tie_word_embeddings"] is False
    for place in config["auto_map"].values():
        file, name = place.split(".")
        assert f"\nclass {name}(" in (folder / f"{file}.py").read_text()
    everything = "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors")
    assert str(run.path) not in everything


def test_our_own_load_takes_it_without_running_its_code(tmp_path: Path) -> None:
    model = tiny()
    folder = export(tmp_path / "out", model)
    before = set(sys.modules)
    loaded = load(folder)
    assert type(loaded) is MrT5ForConditionalGeneration
    assert not [name for name in set(sys.modules) - before if name.startswith("transformers_modules")]
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    ours, theirs = model.config.to_dict(), loaded.config.to_dict()
    unlike = {name for name, value in ours.items() if theirs[name] != value}
    assert unlike <= {"_name_or_path", "architectures"}


def test_where_the_package_is_imported_it_wins_over_the_exported_code(tmp_path: Path) -> None:
    folder = export(tmp_path / "out")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is MrT5ForConditionalGeneration


def test_an_exported_model_can_be_exported_again(tmp_path: Path) -> None:
    first = export(tmp_path / "first")
    second = export(tmp_path / "second", load(first))
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_bfloat16_is_written_and_said(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", tiny().to(torch.bfloat16))
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    small, large = (path / "model.safetensors" for path in (folder, export(tmp_path / "full")))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    assert "bfloat16" in (folder / "README.md").read_text()


def test_float16_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = export(tmp_path / "in")
    with pytest.raises(CheckpointError, match="float16 is not supported"):
        convert(str(source), tmp_path / "out", ConversionOptions("hub", dtype="float16"))
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_is_not_of_bytes_gets_no_tokenizer(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", tiny(vocab_size=1000))
    assert not list(folder.glob("*token*.json"))
    assert "tokenizer_class" not in read_json(folder / "config.json")
    text = (folder / "README.md").read_text()
    assert "No tokenizer is included" in text and "AutoTokenizer" not in text


def test_a_smaller_byte_vocabulary_gets_a_tokenizer_of_its_size(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    folder = export(tmp_path / "out", tiny(vocab_size=260))
    assert len(ByT5Tokenizer.from_pretrained(folder)) == 260


def test_the_generation_config(run: RunDir, tmp_path: Path) -> None:
    trained = export(tmp_path / "trained", load(run.model), run.recipe(), run)
    # 64 inputs: 62 kept and corrupted bytes, a sentinel, EOS; 11 corrupted, a sentinel, EOS.
    assert read_json(trained / "generation_config.json")["max_new_tokens"] == 13
    short = tiny(has_absolute_position_embeddings=True, max_position_embeddings=40, boundary_temperature=0.3)
    written = read_json(export(tmp_path / "short", short) / "generation_config.json")
    written.pop("transformers_version")
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    assert written == {"max_new_tokens": 40, **ids}


# --- sources ------------------------------------------------------------------------------------------------


def imports(source: str) -> tuple[set[str], set[str]]:
    """Absolute and relative modules a source imports."""
    nodes = list(ast.walk(ast.parse(source)))
    absolute = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    absolute |= {node.module or "" for node in froms if not node.level}
    return absolute, {"." * (node.level - 1) + (node.module or "") for node in froms if node.level}


def guarded_imports(source: str) -> set[str]:
    """Absolute modules whose absence a source is ready for: transformers overlooks those too."""
    guards = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Try)]
    imported = [node for guard in guards for node in guard.body if isinstance(node, ast.Import)]
    return {alias.name for node in imported for alias in node.names}


def test_the_sources_compile_and_need_only_each_other() -> None:
    files = modules.source_files()
    assert {"configuration_mrt5.py", "modeling_mrt5.py"} <= files.keys()
    needed = set()
    for name, source in files.items():
        compile(source, name, "exec")
        absolute, relative = imports(source)
        absolute -= guarded_imports(source)
        tops = {module.split(".")[0] for module in absolute}
        assert tops <= {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub", "numpy"}, name
        assert {f"{module}.py" for module in relative} <= files.keys(), name
        needed |= relative
    assert {f"{module}.py" for module in needed} | {"modeling_mrt5.py"} == files.keys()


def test_transformers_finds_the_same_files_by_its_own_rule(tmp_path: Path) -> None:
    from transformers.dynamic_module_utils import check_imports, get_relative_import_files

    for name, source in modules.source_files().items():
        (tmp_path / name).write_text(source)
        check_imports(tmp_path / name)
    found = get_relative_import_files(tmp_path / "modeling_mrt5.py")
    assert {Path(path).name for path in found} | {"modeling_mrt5.py"} == modules.source_files().keys()


def test_apart_from_imports_the_sources_are_the_packages_own() -> None:
    ours = (ROOT / "mrt5cli" / "models" / "deletion.py").read_text()
    assert modules.source_files()["deletion_mrt5.py"].endswith(ours)


def test_attention_has_names_of_its_own() -> None:
    # Two versions in one process must not use each other's functions.
    source = modules.source_files()["attention_mrt5.py"]
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert not strings & set(IMPLEMENTATIONS.values())
    for name in IMPLEMENTATIONS.values():
        assert len({text for text in strings if re.fullmatch(f"{name}_[0-9a-f]{{12}}", str(text))}) == 1


def test_an_old_transformers_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    for name in ("configuration_mrt5.py", "modeling_mrt5.py"):
        with pytest.raises(
            ImportError, match=r"needs transformers 5\.17 or newer, and 4\.57\.1 is installed"
        ):
            exec(compile(modules.source_files()[name], name, "exec"), {})


def test_the_oldest_transformers_is_the_toolkits_own() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers>={'.'.join(map(str, modules.TRANSFORMERS))},<6" in required


# --- card ---------------------------------------------------------------------------------------------------

ALWAYS = {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["mrt5", "byte-level", "text2text-generation"],
}
"""Metadata of every card."""


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text, as the Hub's own reader sees them."""
    read = ModelCard.load(folder / "README.md")
    metadata = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert read.data.to_dict() == metadata
    return metadata, read.text


def table_rows(text: str, header: str) -> list[dict[str, str]]:
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(header))
    names = [cell.strip() for cell in lines[start].strip("|").split("|")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, [cell.strip() for cell in line.strip("|").split("|")], strict=True)))
    return rows


def test_the_card_of_a_run(evaluated: RunDir, run: RunDir, tmp_path: Path) -> None:
    folder = export(tmp_path / "out", load(run.model), evaluated.recipe(), evaluated, repo_id="me/tiny-mrt5")
    metadata, text = card_of(folder)
    (index,) = metadata.pop("model-index")
    assert index["name"] == "tiny-mrt5" and index["results"]
    assert metadata == {**ALWAYS, "language": ["en"]}
    assert text.lstrip().startswith("# tiny-mrt5\n")
    assert 'name = "me/tiny-mrt5"' in text
    assert "1 of 1 optimizer step of 8 examples each" in text and "seed 3" in text
    for fact in ("Some CPU", "started 2026-01-02", "torch 2.99.0", "commit `abc123`"):
        assert fact in text
    assert "delete gate before encoder block 1" in text
    assert "documentation that ships inside Python" in text and "English (en)" in text
    details = re.search(r"<details>.*?```yaml\n(.*?)```\n\n</details>", text, re.S)
    assert details is not None
    assert details[1] == (folder / "recipe.yaml").read_text()
    assert "Kallini" in text and "Dynamic Token Merging for Efficient Byte-level Language Models" in text
    rows = table_rows(text, "| task | split")
    assert [(row["deletion"], row["of"], row["deleted %"]) for row in rows] == [
        ("soft", "en", "12.3"),
        ("hard", "en", "43.2"),
        ("hard", "sw", "54.3"),
        ("hard", "total", "48.0"),
    ]
    assert rows[0]["cross-entropy nats"] == "2.3457" and rows[0]["examples"] == "1,200"
    assert "gate recall" not in rows[0]  # nobody measured it


def test_the_card_of_a_mixture(tmp_path: Path) -> None:
    task = {
        "kind": "span_corruption",
        "sources": [
            {"kind": "hub", "name": "owner/texts", "weight": 3, "languages": ["sw", "de"]},
            {"kind": "files", "path": "/home/me/more"},
        ],
    }
    from mrt5cli.recipe import Recipe

    tree = {"name": "mixed", "description": "Two texts", "task": task, "training": {"max_steps": 1}}
    metadata, text = card_of(export(tmp_path / "out", recipe=Recipe.model_validate(tree)))
    assert (metadata["datasets"], metadata["language"]) == (["owner/texts"], ["sw", "de", "en"])
    link = "[owner/texts](https://huggingface.co/datasets/owner/texts)"
    assert f"on a mixture: 75 % from {link}, 25 % from local files" in text
    assert "/home/me" not in text


def test_a_checkpoint_has_its_own_results_and_step(evaluated: RunDir, run: RunDir, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny-seed3" / "checkpoints" / "step-00000500"
    load(run.model).save_pretrained(checkpoint)
    recipe = evaluated.recipe()
    training = recipe.training.model_copy(update={"max_steps": 3000})
    recipe = recipe.model_copy(update={"training": training})
    _, text = card_of(export(tmp_path / "out", load(checkpoint), recipe, evaluated))
    assert [row["deleted %"] for row in table_rows(text, "| task | split")] == ["6.8"]
    assert "500 of 3,000 optimizer steps" in text
    assert "The training is not finished" in text


def test_deletion_stands_beside_quality_even_where_it_was_not_measured(
    evaluated: RunDir, run: RunDir, tmp_path: Path
) -> None:
    results = document("model", {"en": 0.5})
    del results["models"][0]["rows"][0]["deletion_rate"]
    results["models"][0]["rows"][0] |= {"exact_match": 0.25, "subset": "a|b"}
    for path in (evaluated.path / "eval").iterdir():
        path.unlink()
    write_json(evaluated.eval("qa"), results)
    _, text = card_of(export(tmp_path / "out", load(run.model), None, evaluated))
    line = next(line for line in text.splitlines() if "a\\|b" in line)
    header = next(line for line in text.splitlines() if line.startswith("| task | split"))
    assert "| deleted % | cross-entropy nats |" in header and header.endswith("| exact match % |")
    assert "| - | 2.3457 |" in line and line.endswith("| 25.00 |")


def test_results_that_cannot_be_read_are_named(evaluated: RunDir, run: RunDir, tmp_path: Path) -> None:
    evaluated.eval("broken").write_text('{"models": [')
    with pytest.raises(UserError, match=r"broken\.json cannot be read"):
        export(tmp_path / "out", load(run.model), evaluated.recipe(), evaluated)
    evaluated.eval("broken").write_text('{"models": []}')
    with pytest.raises(UserError, match=r"broken\.json is not a results file"):
        export(tmp_path / "other", load(run.model), evaluated.recipe(), evaluated)
    assert not list((tmp_path / "other").iterdir())


def test_without_a_run_the_card_says_what_is_not_known(tmp_path: Path) -> None:
    metadata, text = card_of(export(tmp_path / "out"))
    assert metadata == ALWAYS
    assert text.count("Unknown: the model has no recipe.") == 2
    assert "Not evaluated, or the results were not available" in text
    assert "Versions and hardware are not recorded" in text
    assert "<details>" not in text and "None" not in text
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_base_model_datasets_and_languages_come_from_the_recipe(tmp_path: Path) -> None:
    from mrt5cli import recipe as recipes

    recipe = recipes.load("multilingual_v3/mrt5_50")
    metadata, text = card_of(export(tmp_path / "out", recipe=recipe))
    assert metadata["base_model"] == "google/byt5-small"
    assert metadata["datasets"] == ["allenai/c4"]
    assert metadata["language"] == recipe.task.languages and "sw" in metadata["language"]
    assert "steered to delete 50 % of the bytes" in text
    assert "The controller's target deletion rate was 50%" in text
    assert "The number of completed steps is not recorded" in text


@pytest.mark.parametrize("start", ["runs/byt5-seed1", "runs/byt5-seed1/model", "scratch", "my_model"])
def test_a_start_that_may_be_a_path_is_not_called_a_hub_model(start: str, tmp_path: Path) -> None:
    from mrt5cli import recipe as recipes

    recipe = recipes.load("multilingual_v3/mrt5_50", [f"model.start={start}"])
    metadata, text = card_of(export(tmp_path / "out", recipe=recipe))
    assert "base_model" not in metadata
    assert ("from scratch" if start == "scratch" else "from another model") in text


@pytest.mark.parametrize(
    ("task", "expected", "new_tokens"),
    [
        (
            {"kind": "xnli"},
            "`xnli`, on the task's dataset on the Hugging Face Hub. Its languages: English",
            512,
        ),
        ({"kind": "tydiqa", "source": {"kind": "generated"}}, "`tydiqa`, on random rows", 256),
        (
            {"kind": "word_search", "source": {"kind": "files", "path": "here"}, "target_length": 9},
            "`word_search`, on local files",
            9,
        ),
        ({"kind": "merge_ABC", "length": 32}, "every ABC replaced by D, 32 byte tokens each", 32),
    ],
)
def test_every_kind_of_task(
    task: dict[str, Any], expected: str, new_tokens: int, run: RunDir, tmp_path: Path
) -> None:
    from mrt5cli.recipe import Recipe

    recipe = Recipe.model_validate({**run.recipe().model_dump(), "task": task})
    folder = export(tmp_path / "out", recipe=recipe)
    _, text = card_of(folder)
    assert expected in text
    assert read_json(folder / "generation_config.json")["max_new_tokens"] == new_tokens


def test_local_paths_are_no_hub_names(tmp_path: Path) -> None:
    from mrt5cli import recipe as recipes

    recipe = recipes.load(
        "multilingual_v3/mrt5_50",
        [
            "task.source={kind: files, path: my/texts}",
            "task.languages=[no, old_norse, de]",
        ],
    )
    metadata, text = card_of(export(tmp_path / "out", recipe=recipe))
    assert metadata["language"] == ["no", "de"]
    assert "datasets" not in metadata
    assert "local files, which are not part of this repository" in text and "old_norse" in text


KINDS = {
    "none": "without any deletion",
    "scaled_sigmoid": "delete gate before encoder block 1; gate values from -30",
    "log_sigmoid": "gate values log sigmoid",
    "random": "50 % deleted at random before encoder block 1",
    "fixed": "the last 50 % of every word deleted",
    "boundary_predictor": "boundary predictor (gumbel) before encoder block 1",
    "convolution": "convolution with stride 4",
    "source_removed": "the encoder sees one EOS",
}


@pytest.mark.parametrize("inference_deletion", ["hard", "soft"])
@pytest.mark.parametrize("kind", [*WITHOUT_MODULE, *SHORTENERS])
def test_every_architecture_is_described_and_called_as_it_works(kind: str, inference_deletion: str) -> None:
    text = card.model_card(Job(tiny(deletion_type=kind, inference_deletion=inference_deletion)))
    assert KINDS.get(kind, of_config(MrT5Config(deletion_type=kind)).phrase()) in text
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    compile(code[1], "card", "exec")
    gates, soft = of_type(kind).gates, inference_deletion == "soft"
    assert ("generate(**inputs, hard_delete=True)" in code[1]) == (gates and soft)
    assert (f"`config.json` sets `inference_deletion: {inference_deletion}`" in text) == gates
    other = 'from_pretrained(name, inference_deletion="{}"'.format("hard" if soft else "soft")
    assert (other in text) == gates
    assert ("`hard_delete=False` makes one call soft" in text) == (gates and not soft)
    assert ("`deletion_threshold=` replaces" in text) == (gates and not of_type(kind).refuses_threshold)


def test_what_a_threshold_was_chosen_for_is_said() -> None:
    text = card.model_card(Job(tiny(deletion_threshold=-9.0, deletion_rate=0.3)))
    assert "replaces the configured threshold, which was chosen to delete 30 %, for one call" in text


def test_a_recipe_with_a_fence_in_it_stays_inside_its_own(run: RunDir, tmp_path: Path) -> None:
    recipe = run.recipe().model_copy(update={"description": "with ```` inside"})
    text = (export(tmp_path / "out", recipe=recipe) / "README.md").read_text()
    assert "\n`````yaml\n" in text


# --- local paths --------------------------------------------------------------------------------------------

PLANTED = "planted-secret"


def strings_in(tree: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all strings in a dumped recipe."""
    places = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            places += strings_in(value, (*where, key))
        elif isinstance(value, str):
            places.append((*where, key))
    return places


@pytest.mark.parametrize(
    "path", [f"/home/me/{PLANTED}", f"./{PLANTED}/texts", f"~/{PLANTED}/a", f"C:\\{PLANTED}"]
)
@pytest.mark.parametrize("name", ["xnli_v3/mrt5_50", "spelling_v3/mrt5_50", "pctrl40"])
def test_no_path_leaves_by_any_key_of_a_recipe(name: str, path: str) -> None:
    files = {"kind": "files", "path": path}
    recipe = recipes.load(
        name, [f"task.source={json.dumps(files)}", "paper={version: v3, experiment: x, note: y}"]
    )
    tree, accepted = recipe.model_dump(mode="json"), []
    for *sections, key in strings_in(tree):
        changed = json.loads(json.dumps(tree))
        section = changed
        for part in sections:
            section = section[part]
        section[key] = f"from {path}, as it is" if key in ("description", "note") else path
        try:
            other = recipes.Recipe.model_validate(changed)
        except ValueError:  # a name or a choice of words
            continue
        accepted.append(key)
        clean, _, replaced = published(other)
        assert PLANTED not in recipes.dump(clean), key
        assert "task.source.path" in replaced
    assert {"start", "path", "description", "note"} <= set(accepted)


def test_relative_paths_and_hub_ids_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = recipes.load(
        "local_text", ["model.start=mine/first", "model.shape=null", "model.initialization=t5"]
    )
    assert published(here)[0].model.start == "mine/first", "a Hub id, as far as anybody can tell"
    Path("mine/first").mkdir(parents=True)
    assert published(here)[0].model.start == "./your-start"
    sentence = "ByT5/T5 and/or MrT5, https://arxiv.org/abs/2410.20771 at 1/2 rate"
    kept = recipes.load("pctrl40", [f"description={sentence}"])
    assert published(kept) == (kept, recipes.dump(kept), [])


@pytest.mark.parametrize("layout", ["mrt5", "hub", "byt5", "reference"])
def test_no_file_of_an_export_names_a_local_folder(layout: str, tmp_path: Path) -> None:
    texts = tmp_path / PLANTED / "texts"
    texts.mkdir(parents=True)
    (texts / "train.txt").write_text("Some text of mine. " * 40)
    source = {"kind": "files", "path": str(texts)}
    run = RunDir(make_run(tmp_path / PLANTED, "tiny", task={**SPANS, "source": source}))
    tree = run.recipe().model_dump(mode="json")
    tree["description"] = f"Goes on from {tmp_path}/{PLANTED}/first."
    tree["model"] |= {"start": str(run.model), "shape": None}
    recipe = recipes.Recipe.model_validate(tree)
    run.recipe_path.write_text(recipes.dump(recipe))
    write_json(run.meta_path, {**run.meta(), "command": ["mrt5", "pretrain", str(texts)]})
    results = document(str(run.model), {"en": 0.4})
    results["task"]["settings"] = recipe.task.model_dump(mode="json")
    write_json(run.eval("span_corruption"), {**results, "data": str(texts)})

    outcome = convert(str(run.path), tmp_path / "out", ConversionOptions(layout))
    files = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"]
    assert len(files) >= 2
    for path in files:
        assert PLANTED not in path.read_text(encoding="utf-8"), path.name
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    if layout in ("mrt5", "hub"):
        again = recipes.load(tmp_path / "out" / "recipe.yaml")
        assert (again.model.start, again.task.source.path) == ("./your-start", "./your-data")
        assert again.training == recipe.training
        assert "set your own for task.source.path, model.start" in (
            tmp_path / "out" / "recipe.yaml"
        ).read_text(encoding="utf-8")
        assert "recipe.yaml has placeholders for local paths: task.source.path, model.start" in outcome.notes


# --- push ---------------------------------------------------------------------------------------------------


class FakeApi:
    """Records calls; raises what it is told to."""

    calls: list[tuple[str, dict[str, Any]]]
    fails: Exception | None

    def __init__(self, **_: Any) -> None: ...

    def create_repo(self, repo_id: str, **arguments: Any) -> str:
        self.calls.append(("create", {"repo_id": repo_id, **arguments}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **arguments: Any) -> None:
        self.calls.append(("upload", arguments))
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    import huggingface_hub

    FakeApi.calls, FakeApi.fails = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


def http_error(status: int, said: str = "something") -> HfHubHTTPError:
    # What the error looks at; huggingface_hub's HTTP library differs between versions.
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status}\nmore", response=response, server_message=said)


def test_push_uploads_everything_and_clears_what_a_loader_would_still_find(
    api: type[FakeApi], tmp_path: Path
) -> None:
    assert push(tmp_path, "me/tiny") == "https://huggingface.co/me/tiny"
    (_, created), (_, uploaded) = api.calls
    assert created == {"repo_id": "me/tiny", "repo_type": "model", "exist_ok": True, "private": None}
    assert uploaded["folder_path"] == tmp_path and uploaded["repo_id"] == "me/tiny"
    assert "*.safetensors" in uploaded["delete_patterns"]


def test_a_private_push_makes_a_private_repository(api: type[FakeApi], tmp_path: Path) -> None:
    push(tmp_path, "me/tiny", private=True)
    assert api.calls[0] == (
        "create",
        {"repo_id": "me/tiny", "repo_type": "model", "exist_ok": True, "private": True},
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(401), "the Hub refuses the push to me/tiny: it responds with status 401"),
        (http_error(403), "the Hub refuses the push to me/tiny: it responds with status 403"),
        (
            http_error(400, "bad metadata in README.md"),
            r"refuses the push to me/tiny: it responds with status 400 \(bad metadata in README",
        ),
        (HTTPError("connection reset\nmore"), "was interrupted: connection reset$"),
        (ConnectionError("gone"), "was interrupted: gone"),
        (RuntimeError("cas error"), "was interrupted: cas error"),
        (json.JSONDecodeError("no JSON", "<html>", 0), "was interrupted: no JSON"),
        (
            ValueError("Invalid metadata in README.md.\n- license"),
            "rejects README.md of .* README.md. - l",
        ),
    ],
)
def test_what_the_hub_objects_to_is_one_sentence(
    error: Exception,
    expected: str,
    api: type[FakeApi],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    api.fails = error
    with pytest.raises(UserError) as raised:
        push(tmp_path, "me/tiny")
    assert re.search(expected, raised.value.message)
    assert "\n" not in raised.value.message


def test_what_has_no_chance_is_refused_before_any_work(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="cannot push to me/tiny: Token is required"):
        check_can_push("me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(UserError, match="cannot push to me/tiny: it responds with status 401"):
        check_can_push("me/tiny")
    monkeypatch.setenv("HF_TOKEN", hubsim.TOKEN)
    hub.fault("whoami", "status", code=503)
    check_can_push("me/tiny")
    hub.fault("whoami", "reset", times=9)
    monkeypatch.setattr(hub_module, "PATIENCE", 0)
    with pytest.raises(UserError, match=r"cannot push to me/tiny: http://127.0.0.1.* cannot be reached"):
        check_can_push("me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        check_can_push("me/tiny")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/ti ny", "me/-tiny", "me/tiny.git", ""])
def test_impossible_repository_names(name: str, api: type[FakeApi]) -> None:
    with pytest.raises(UserError, match="is not a"):
        check_can_push(name)
    assert not api.calls
