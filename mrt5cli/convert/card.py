"""The model card: README.md of an exported model, made of what is known and saying what is not.

Every number comes from the model, its recipe or its run; nothing is filled in. Quality never stands
without the deletion rate beside it, which is also why the metadata carries no results: the Hub would list
them alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import mrt5cli
from mrt5cli.convert.modules import TRANSFORMERS
from mrt5cli.convert.published import hub_base, published_yaml, without_local_paths
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.data.span_noise import FIRST_SENTINEL
from mrt5cli.metrics.catalog import MEASURED
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.recipe import DiagnosticTask, Recipe, SpanCorruptionTask, shorteners
from mrt5cli.rundir import HUB_ID, STEP_NAME, RunDir
from mrt5cli.text import counted

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
DELETED = "deletion_rate"

DIAGNOSTICS = {
    "copy": "copying random letter strings",
    "vowel_removal": "copying random letter strings without their vowels",
    "contextual_vowel_removal": "copying random letter strings without the vowels that follow a lower-case "
    "consonant",
    "merge_ABC": "copying random letter strings with every ABC replaced by D",
}

_MODEL = "a byte-level encoder-decoder"

CITATION = r"""@inproceedings{kallini2025mrt,
  title     = {{MrT5}: Dynamic Token Merging for Efficient Byte-level Language Models},
  author    = {Julie Kallini and Shikhar Murty and Christopher D. Manning and Christopher Potts and
               R{\'o}bert Csord{\'a}s},
  booktitle = {The Thirteenth International Conference on Learning Representations},
  year      = {2025},
  url       = {https://openreview.net/forum?id=VYWBMq1L7H}
}"""


def model_card(
    model: Any, recipe: Recipe | None, run: RunDir | None, *, repo_id: str | None, dtype: str, tokenizer: bool
) -> str:
    """The whole card.

    Args:
        model: what is exported; its configuration and size are read.
        recipe: how it was trained, or None.
        run: versions, times and results, or None.
        repo_id: where it will be; None makes the examples load the current directory.
        dtype: of the weights as they are written.
        tokenizer: whether the export comes with one.

    Raises:
        UserError: results of the run cannot be read.
    """
    config = model.config
    checkpoint = Path(getattr(model, "name_or_path", "") or "").name
    step = int(match[1]) if (match := STEP_NAME.fullmatch(checkpoint)) else None
    title = repo_id.split("/")[1] if repo_id else recipe.name if recipe else "MrT5 model"
    sections = [
        f"# {title}\n\n{_what_it_is(config, recipe)}",
        f"## How to use\n\n{_how_to_use(config, recipe, repo_id, tokenizer)}",
        f"## Architecture\n\n{_architecture(config, model.num_parameters(), dtype)}",
        f"## Data\n\n{_data(recipe)}",
        f"## Training\n\n{_training(recipe, run, step)}",
        f"## Results\n\n{_results(run, step)}",
        f"## Intended use and limits\n\n{_limits(config, recipe, tokenizer)}",
        f"## Citation\n\n```bibtex\n{CITATION}\n```\n\n"
        f"Exported with the MrT5 toolkit, mrt5cli {mrt5cli.__version__}.",
    ]
    return f"---\n{_front_matter(recipe)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(recipe: Recipe | None) -> str:
    """Metadata of the Hub. No licence: that of the weights is the owner's to state."""
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["mrt5", "byte-level"]}
    if recipe is not None:
        # The Hub takes codes only, and folder names of local text can be anything.
        codes = getattr(recipe.task, "languages", [])
        languages = [code for code in codes if LANGUAGE_CODE.fullmatch(code)]
        if languages:
            metadata["language"] = languages
        dataset = _dataset(recipe)
        if dataset is not None:
            metadata["datasets"] = [dataset]
        base = hub_base(recipe)
        if base is not None:
            metadata["base_model"] = base
    return yaml.safe_dump(metadata, sort_keys=True, allow_unicode=True)


def _dataset(recipe: Recipe) -> str | None:
    """The Hub dataset that the recipe names, or None."""
    source = getattr(recipe.task, "source", None)
    name = getattr(source, "name", None) if getattr(source, "kind", None) == "hub" else None
    return name if name and HUB_ID.fullmatch(name) else None


# --- sections -----------------------------------------------------------------------------------------------


def _what_it_is(config: Any, recipe: Recipe | None) -> str:
    what = shorteners.of_config(config).about.format(model=_MODEL)
    return what if recipe is None else f"{what} {_sentence(without_local_paths(recipe)[0].description)}"


def _architecture(config: Any, parameters: int, dtype: str) -> str:
    shortener = shorteners.of_config(config)
    positions = (
        f"{config.max_position_embeddings} learned positions"
        if config.has_absolute_position_embeddings
        else f"relative, {config.relative_attention_num_buckets} buckets up to distance "
        f"{config.relative_attention_max_distance}"
    )
    rows = [
        ("parameters", f"{parameters:,}, {dtype}"),
        ("encoder, decoder blocks", f"{config.num_layers}, {config.num_decoder_layers}"),
        ("width, feed-forward width", f"{config.d_model}, {config.d_ff}"),
        ("attention heads", f"{config.num_heads} of width {config.d_kv}"),
        ("attention", "softmax1: exp(x) / (1 + sum exp(x))" if config.use_softmax1 else "softmax"),
        ("positions", positions),
        ("vocabulary", str(config.vocab_size)),
        ("shortener", shortener.placed() + shortener.details()),
    ]
    return _table(["", ""], [list(row) for row in rows])


def _data(recipe: Recipe | None) -> str:
    if recipe is None:
        return "Unknown: the model came without its recipe."
    task, dataset = recipe.task, _dataset(recipe)
    if isinstance(task, DiagnosticTask):
        return (
            f"Generated strings, no text: {DIAGNOSTICS[task.kind]}, {task.length} byte tokens each, "
            f"{task.train_examples:,} distinct ones for training."
        )
    if dataset is not None:
        text = f"[{dataset}](https://huggingface.co/datasets/{dataset})"
    else:
        text = {
            "embedded": "the English documentation that ships inside Python",
            "files": "local files, which are not part of this repository",
            "hub": "the task's dataset on the Hugging Face Hub",
            "generated": "random rows, which mean nothing",
        }.get(task.source.kind, f"data of kind `{task.source.kind}`")
    codes = getattr(task, "languages", [])
    names = ", ".join(f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code for code in codes)
    if not isinstance(task, SpanCorruptionTask):
        return f"The task `{task.kind}`, on {text}.{f' Its languages: {names}.' if names else ''}"
    return (
        f"Span corruption, ByT5's pre-training task, on {text}. Languages, drawn uniformly: {names}. Inputs "
        f"of {task.input_length} byte tokens, {task.noise_density:.0%} of the bytes corrupted in spans of "
        f"{task.mean_span_length:g} on average."
    )


def _training(recipe: Recipe | None, run: RunDir | None, step: int | None) -> str:
    meta = run.meta() if run is not None else {}
    done = meta.get("step") if step is None else step
    lines = []
    if recipe is None:
        lines.append("Unknown: the model came without its recipe.")
    else:
        training, start = recipe.training, recipe.model.start
        base = hub_base(recipe)
        began = (
            "from scratch"
            if start == "scratch"
            else f"from [{base}](https://huggingface.co/{base})"
            if base
            else "from another model, which is not named here"
        )
        planned = counted(training.max_steps, "optimizer step")
        steps = planned if done is None else f"{done:,} of {planned}"
        lines.append(
            f"Trained {began}: {steps} of {training.batch_size:,} examples each, AdamW, "
            f"learning rate {training.learning_rate:g}, {training.schedule} schedule, {training.precision}, "
            f"seed {recipe.seed}."
        )
        target = recipe.target_deletion_rate
        if target is not None:
            lines.append(f"The deletion rate was steered to {target:.0%} of the non-pad bytes.")
        if done is None:
            lines.append("How many steps were really taken is not recorded.")
        elif done < training.max_steps:
            lines.append("**The training is not finished.**")
    facts = []
    if meta.get("device_name"):
        processes = meta.get("processes", 1)
        facts.append(f"{meta['device_name']}{f' x {processes}' if processes > 1 else ''}")
    if meta.get("started"):
        facts.append(f"started {meta['started'][:10]}")
    if isinstance(meta.get("versions"), dict):
        facts += [f"{name} {version}" for name, version in meta["versions"].items()]
    if meta.get("commit"):
        facts.append(f"commit `{meta['commit']}`")
    lines.append(f"Made with: {', '.join(facts)}." if facts else "Versions and hardware are not recorded.")
    text = " ".join(lines)
    if recipe is None:
        return text
    dumped = published_yaml(recipe)
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", dumped)), default=0))
    return (
        f"{text}\n\n<details>\n<summary>The recipe, whole: <code>mrt5 pretrain recipe.yaml</code> trains it "
        f"again</summary>\n\n{fence}yaml\n{dumped.rstrip()}\n{fence}\n\n</details>"
    )


# --- results ------------------------------------------------------------------------------------------------


def _results(run: RunDir | None, step: int | None) -> str:
    """Every evaluation of exactly this model that lies in the run's eval folder."""
    hint = "evaluate the run again, or take the file away"
    paths = sorted((run.path / "eval").glob("*.json")) if run is not None else []
    results = [
        (one, row)
        for one in (SavedEvaluation.read(path, hint) for path in paths)
        for model in one.models
        if model.step == step
        for row in model.rows
    ]
    if not results:
        return "Not evaluated, or its results were not at hand when it was exported."
    shown = [
        metric
        for metric in MEASURED
        if metric.in_cards
        # Quality never stands without what was deleted.
        and (metric.name == DELETED or any(row.number(metric.name) is not None for _, row in results))
    ]
    lines = [
        [one.task, one.split, one.deletion, row.subset, f"{row.examples:,}"]
        + [metric.text(row.number(metric.name)) for metric in shown]
        for one, row in results
    ]
    headers = ["task", "split", "deletion", "of", "examples"]
    table = _table([*headers, *(metric.heading.replace(",", "") for metric in shown)], lines)
    sizes = ", ".join(str(size) for size in sorted({one.batch_size for one, _ in results}))
    return (
        f"{table}\n\n*Deleted*: share of input positions, padding not counted, that later layers do without. "
        "*Hard* deletion removes them, *soft* hides them as in training. Cross-entropies are per target "
        "token, accuracies teacher-forced. *Without source*: the same targets while the encoder sees a "
        "lone EOS; where the cross-entropy is not well below it, the model hardly reads its input. Examples "
        f"are held out by the toolkit, in batches of {sizes}."
    )


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# --- use ----------------------------------------------------------------------------------------------------


def _how_to_use(config: Any, recipe: Recipe | None, repo_id: str | None, tokenizer: bool) -> str:
    shortener = shorteners.of_config(config)
    gated = shortener.gates
    name = repo_id or "."
    here = "" if repo_id else " Run it in this directory, or put the directory's path for `name`."
    hard = "hard_delete=True" if gated else ""
    needs = ".".join(str(part) for part in TRANSFORMERS)
    imports = "AutoModelForSeq2SeqLM, AutoTokenizer" if tokenizer else "AutoModelForSeq2SeqLM"
    code = ["import torch", f"from transformers import {imports}", "", f'name = "{name}"']
    if tokenizer:
        # Without the argument transformers asks on the terminal: it reads the configuration here too.
        code.append("tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)")
    code.append("model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True).eval()")
    code += ["", *_example_inputs(recipe, tokenizer), "with torch.inference_mode():"]
    arguments = ", ".join(part for part in ("**inputs", hard) if part)
    code.append(f"    output = model.generate({arguments})")
    if tokenizer:
        code.append("print(tokenizer.batch_decode(output, skip_special_tokens=True))")
    else:
        code.append("print(output)")
    if gated or shortener.pools or not shortener.reads_source:
        code += [
            "",
            "with torch.inference_mode():",
            f"    encoded = model.get_encoder()({arguments})",
            'kept = encoded.kept_lengths / inputs["attention_mask"].sum(dim=1)',
            'print("share of the input that is left:", kept)',
        ]
    text = (
        f"Needs torch and transformers 5, from {needs} on, no more; transformers 4 cannot load it.{here} "
        "`trust_remote_code=True` runs the `*_mrt5.py` files of this repository: read them, or pin a "
        "`revision`."
        "\n\n```python\n" + "\n".join(code) + "\n```\n\n"
    )
    if gated:
        return text + (
            "`hard_delete=True` really removes bytes, which is where the speed comes from. Without it "
            "deletion is soft, as in training: every position is computed, attention hides the deleted "
            "ones, and outputs differ a little. It is an argument of `generate`, of `forward` and of the "
            "encoder, off unless given; `generation_config.json` has no place for it. "
            "`deletion_threshold=` replaces the configured threshold for one call."
        )
    if shortener.pools:
        return text + "Positions are always pooled; there is nothing to switch on or off."
    return text + "There is nothing to switch on or off."


def _example_inputs(recipe: Recipe | None, tokenizer: bool) -> list[str]:
    if not tokenizer:
        return [
            "ids = torch.tensor([[5, 6, 7, 1]])  # of this model's own tokenizer; 1 ends a sequence",
            'inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}',
        ]
    task = None if recipe is None else recipe.task
    if isinstance(task, SpanCorruptionTask):
        return [
            f"# The model fills gaps. The first is marked with id {FIRST_SENTINEL}, the next with "
            f"{FIRST_SENTINEL - 1}, and so on.",
            'before = tokenizer("The quick brown fox ", add_special_tokens=False).input_ids',
            'after = tokenizer(" over the lazy dog.").input_ids',
            f"ids = torch.tensor([before + [{FIRST_SENTINEL}] + after])",
            'inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}',
        ]
    letters = isinstance(task, DiagnosticTask)
    texts = '"#qvAbhZeZgbKlywZ"' if letters else '"The first text.", "And a second, longer one."'
    return [f'inputs = tokenizer([{texts}], padding=True, return_tensors="pt")']


def _limits(config: Any, recipe: Recipe | None, tokenizer: bool) -> str:
    if recipe is None:
        points = ["What the model was trained for is not known, so neither is what it can do."]
    elif isinstance(recipe.task, SpanCorruptionTask):
        points = [
            "Meant for research on shorter sequences in byte-level models, and as a start for fine-tuning.",
            "It was trained to fill gaps in text. It follows no instructions and answers no questions.",
            "It repeats what its training text contains, prejudice and errors included, and knows little of "
            "languages it was not trained on.",
        ]
    elif isinstance(recipe.task, DiagnosticTask):
        points = [
            "Meant for research on deletion: it does one task on letter strings of one length and knows no "
            "language."
        ]
    else:
        points = [f"Meant for the one task it was trained on, `{recipe.task.kind}`, in that task's prompts."]
    shortener = shorteners.of_config(config)
    if shortener.gates or shortener.pools:
        points.append(
            "How much is deleted depends on the text: on other languages, scripts and tasks rates differ, "
            "and quality with them. Report both."
        )
    if getattr(shortener, "per", "row") == "batch":
        points.append("Rows of a batch and their padding influence each other (`shortening_per: batch`).")
    points.append("Pass an `attention_mask` with padded batches; without one padding is attended to.")
    points.append("float32 or bfloat16; T5's activations overflow in float16.")
    points.append(
        'Attention runs with `attn_implementation="packed"` (the default, which leaves out all padding), '
        '`"sdpa"` or `"eager"`.'
    )
    if config.has_absolute_position_embeddings:
        points.append(f"Inputs and outputs end at {config.max_position_embeddings} byte tokens.")
    if tokenizer:
        points.append(
            "The tokenizer's `<extra_id_...>` mean nothing to the model: sentinels are ids "
            f"{FIRST_SENTINEL}, {FIRST_SENTINEL - 1}, and so on. `</s>` and `<pad>` inside a text become "
            "special tokens."
        )
    else:
        points.append("No tokenizer is included: the vocabulary is not that of bytes.")
    points.append(
        "The licence of the weights is not stated here; ask their owner. The code files are under the Apache "
        "License 2.0."
    )
    return "\n".join(f"- {point}" for point in points)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."
