"""`mrt5 convert --to hub`: a directory that plain transformers loads, ready for the Hugging Face Hub.

    config.json (auto_map)  generation_config.json  model.safetensors, or shards  *_mrt5.py (the model's code)
    tokenizer_config.json, added_tokens.json (ByT5's)  README.md (the card)  recipe.yaml (no local paths)

Hard deletion stays off unless a call asks for it, as everywhere else: the same weights should not give other
numbers because they were exported. It could not be a default of generation_config.json anyway. transformers
takes a field it finds there out of a call's arguments, so `generate(hard_delete=...)` would no longer reach
the model.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import GenerationConfig

from mrt5cli.convert.card import model_card
from mrt5cli.convert.files import Job, has_byte_vocabulary, write_recipe, write_tokenizer, write_weights
from mrt5cli.convert.modules import CONFIGURATION, MODELING, source_files
from mrt5cli.data.span_noise import plan_lengths
from mrt5cli.errors import UserError
from mrt5cli.recipe import SpanCorruptionTask
from mrt5cli.rundir import write_json, write_text

NEW_TOKENS = 512
"""Bytes `generate` may write where no recipe says how long targets are."""

AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.MrT5Config",
    "AutoModelForSeq2SeqLM": f"{MODELING}.MrT5ForConditionalGeneration",
}


def write_hub(job: Job, folder: Path) -> list[str]:
    """Everything that plain transformers and the readers of a model need.

    Raises:
        UserError: the shortener is not of this package, whose source is what is exported; or results of the
            run cannot be read.
    """
    shortener = job.model.encoder.shortener
    if shortener is not None and not type(shortener).__module__.startswith("mrt5cli.models."):
        raise UserError(
            f"the shortener {job.config.deletion_type!r} comes with --code, and an exported model is made of "
            "this package's files alone",
            "convert it to mrt5, or put its file into mrt5cli/models/shorteners",
        )
    card = model_card(job)  # first what may be refused, then the gigabytes
    for file, source in source_files().items():
        write_text(folder / file, source)
    write_weights(job, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": AUTO_MAP, "dtype": job.dtype}
    config.pop("tokenizer_class", None)
    if has_byte_vocabulary(job.config):
        config["tokenizer_class"] = "ByT5Tokenizer"
    write_json(path, dict(sorted(config.items())))
    # Not the model's own, which may carry sampling settings from wherever the weights started.
    GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=most_new_tokens(job),
        pad_token_id=job.config.pad_token_id,
        eos_token_id=job.config.eos_token_id,
        decoder_start_token_id=job.config.decoder_start_token_id,
    ).save_pretrained(folder)
    write_tokenizer(job.config, folder)
    write_text(folder / "README.md", card)
    return write_recipe(job, folder)


def most_new_tokens(job: Job) -> int:
    """The longest target of the task a model was trained on, in byte tokens, as far as it has positions."""
    task, length = None if job.recipe is None else job.recipe.task, NEW_TOKENS
    if isinstance(task, SpanCorruptionTask):
        length = plan_lengths(task.input_length, task.noise_density, task.mean_span_length).targets
    elif task is not None:
        length = task.longest_target or NEW_TOKENS
    learned = job.config.has_absolute_position_embeddings
    return min(length, job.config.max_position_embeddings) if learned else length
