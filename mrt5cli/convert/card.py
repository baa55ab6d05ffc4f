"""The model card: README.md of an exported model, rendered from the template card.md.j2.

Every number comes from the model, its recipe or its run. Quality is never reported without its deletion rate,
neither in the table nor in the metadata; see `model_index`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

import mrt5cli
from mrt5cli.convert.files import Job, has_byte_vocabulary
from mrt5cli.convert.license import license_name
from mrt5cli.convert.model_index import DELETED, PIPELINE, Result, eval_results, hub_metrics
from mrt5cli.convert.modules import TRANSFORMERS
from mrt5cli.convert.published import hub_base, published
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.data.mixtures import shares
from mrt5cli.data.span_noise import FIRST_SENTINEL
from mrt5cli.generation.calibration import conditional_threshold
from mrt5cli.manifest import STEP_NAME
from mrt5cli.metrics.catalog import MEASURED, metric_of
from mrt5cli.metrics.results import Json, SavedEvaluation, SavedModel
from mrt5cli.recipe import DiagnosticTask, Recipe, SpanCorruptionTask, shorteners
from mrt5cli.rundir import HUB_ID
from mrt5cli.text import counted

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def model_card(job: Job) -> str:
    """The text of an export's card.

    Raises:
        UserError: results of the run cannot be read.
    """
    config, recipe = job.config, job.recipe
    shortener = shorteners.of_config(config)
    checkpoint = STEP_NAME.fullmatch(Path(job.model.name_or_path or "").name)
    step = int(checkpoint[1]) if checkpoint else None
    title = job.repo_id.split("/")[1] if job.repo_id else recipe.name if recipe else "MrT5 model"
    results = _results(job, step)
    metrics = [
        metric
        for metric in (
            *MEASURED,
            *map(metric_of, dict.fromkeys(name for *_, row in results for name in row.others)),
        )
        if metric.in_cards
        # The deletion rate is always shown.
        and (metric.name == DELETED or any(row.number(metric.name) is not None for *_, row in results))
    ]
    published_results = eval_results(results, metrics, recipe, gates=shortener.gates)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE,
        tags=["mrt5", "byte-level", "text2text-generation"],
        metrics=hub_metrics(published_results) or None,
        model_name=title if published_results else None,
        eval_results=published_results or None,
        **job.license,
        **_origin(recipe),
    )
    meta = {} if job.run is None else job.run.meta()
    # Not ModelCard.from_template, which renders undefined variables as empty.
    environment = Environment(
        loader=PackageLoader("mrt5cli.convert", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["flow"] = lambda text: " ".join(text.split())
    text = environment.get_template("card.md.j2").render(
        **_of_the_recipe(recipe),
        metadata=metadata.to_yaml(),
        license=license_name(job.license),
        license_link=job.license.get("license_link"),
        title=title,
        repo_id=job.repo_id,
        tokenizer=has_byte_vocabulary(config),
        config=config,
        parameters=job.model.num_parameters(),
        dtype=job.dtype,
        what_it_is=shortener.about.format(model="a byte-level encoder-decoder"),
        shortener=shortener,
        conditional=conditional_threshold(config, 0.0) is not None,
        step=meta.get("step") if step is None else step,
        made_with=list(_made_with(meta)),
        results=results,
        metrics=metrics,
        sentinel=FIRST_SENTINEL,
        transformers=".".join(str(part) for part in TRANSFORMERS),
        version=mrt5cli.__version__,
    )
    return str(ModelCard(text))  # validates the metadata


def _origin(recipe: Recipe | None) -> Json:
    """Metadata fields about the origin of a model."""
    if recipe is None:
        return {}
    return {
        # The Hub accepts language codes only; folder names of local text may be anything.
        "language": [code for code in _languages(recipe) if LANGUAGE_CODE.fullmatch(code)] or None,
        "datasets": list(dict.fromkeys(filter(None, map(_dataset, recipe.task.every_source)))) or None,
        "base_model": hub_base(recipe),
    }


def _languages(recipe: Recipe) -> list[str]:
    task = recipe.task
    own = [getattr(one, "languages", None) for one in task.every_source]
    return list(dict.fromkeys(code for some in own for code in some or getattr(task, "languages", [])))


def _of_the_recipe(recipe: Recipe | None) -> Json:
    """Template variables about the training and its data."""
    if recipe is None:
        return {"recipe": None, "learned": None}
    task, base, (clean, text, _) = recipe.task, hub_base(recipe), published(recipe)
    names = (f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code for code in _languages(recipe))
    description = " ".join(clean.description.split())
    return {
        "recipe": recipe,
        "description": description if description.endswith((".", "!", "?")) else f"{description}.",
        "task": task,
        "learned": {DiagnosticTask: "letters", SpanCorruptionTask: "text"}.get(type(task)),
        "sources": _sources(task.every_source),
        "base": base,
        "languages": ", ".join(names),
        "planned": counted(recipe.training.max_steps, "optimizer step"),
        "recipe_yaml": text.rstrip(),
        "fence": "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0)),
    }


def _dataset(source: Any) -> str | None:
    """The Hub id of a source; None if it is not a Hub dataset."""
    name = getattr(source, "name", None) if source.kind == "hub" else None
    return name if name and HUB_ID.fullmatch(name) else None


def _sources(sources: Sequence[Any]) -> list[Json]:
    """Template variables for each data source."""
    parts = shares([getattr(one, "weight", 1.0) for one in sources]) if sources else []
    return [
        {"kind": one.kind, "dataset": _dataset(one), "share": f"{100 * part:.3g} %"}
        for one, part in zip(sources, parts, strict=True)
    ]


def _made_with(meta: Json) -> Iterator[str]:
    """Hardware, date and versions, as far as recorded by the run."""
    if meta.get("device_name"):
        processes = meta.get("processes", 1)
        yield f"{meta['device_name']}{f' x {processes}' if processes > 1 else ''}"
    if meta.get("started"):
        yield f"started {meta['started'][:10]}"
    yield from (f"{name} {version}" for name, version in meta.get("versions", {}).items())
    if meta.get("commit"):
        yield f"commit `{meta['commit']}`"


def _results(job: Job, step: int | None) -> list[Result]:
    """Every evaluation of this model in the run's eval folder, with its conditions."""
    hint = "evaluate the run again, or delete the file"
    paths = sorted((job.run.path / "eval").glob("*.json")) if job.run is not None else []
    return [
        Result(one, _conditions(one, model, job), row)
        for one in (SavedEvaluation.read(path, hint) for path in paths)
        for model in one.models
        if model.step == step
        for row in model.rows
    ]


def _conditions(one: SavedEvaluation, model: SavedModel, job: Job) -> list[str]:
    """Conditions that distinguish these results from others of the model, besides soft or hard deletion.

    The path of other data is not mentioned: a card is public.
    """
    found, recipe, conditional = [], job.recipe, conditional_threshold(job.config, 0.0) is not None
    if model.calibration is None:
        moved = "its rate was set" if conditional else "its threshold was moved"
        found += [f"before {moved}"] if job.moved else []
    elif not (job.moved and math.isclose(model.calibration["threshold"], job.config.threshold)):
        how = "rate set to" if conditional else "threshold moved to delete"
        found.append(f"{how} {100 * model.calibration['rate']:g} %")
    if model.dtype not in (None, "float32"):
        found.append(str(model.dtype))
    if one.normalization not in (None, "none"):
        found.append(f"{one.normalization} rule")
    if one.generation is not None and (beams := one.generation["num_beams"]) > 1:
        found.append(f"{beams} beams")
    if one.task == "text2text" and recipe is not None:
        own = recipe.task.model_dump(mode="json")
        if any(one.settings.get(key) != own.get(key) for key in ("input", "target")):
            found.append(f"another task: {one.settings.get('input')} -> {one.settings.get('target')}")
    if one.data is not None:
        found.append("other data")
    return found
