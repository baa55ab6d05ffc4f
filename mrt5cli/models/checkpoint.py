"""Loading and building: `load` for every supported checkpoint, `build` for a recipe's model section."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from mrt5cli import bounds, manifest
from mrt5cli.errors import CheckpointError
from mrt5cli.models.config import BYT5_SHAPES, MrT5Config
from mrt5cli.models.hub_files import locate
from mrt5cli.models.layouts import (
    fields_of,
    is_early,
    is_first_version,
    move_gate,
    read_raw_config,
    shown,
    writer_of,
)
from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration
from mrt5cli.models.shorteners import SHORTENERS, WITHOUT_MODULE, Shortener
from mrt5cli.models.weights import check_files, not_finite, read_weights, weight_names
from mrt5cli.models.wrappings import EMBEDDINGS, unwrapped, with_one_embedding
from mrt5cli.text import counted, first_line, shortened

if TYPE_CHECKING:  # models must work without recipes
    from mrt5cli.recipe import ModelSection

DTYPES = ("float32", "bfloat16")
GREATEST = {
    **{"num_layers": bounds.LAYERS, "num_decoder_layers": bounds.LAYERS, "num_heads": bounds.HEADS},
    **{"d_model": bounds.WIDTH, "d_ff": bounds.WIDTH, "d_kv": bounds.HEAD_WIDTH},
    **{"vocab_size": bounds.VOCABULARY, "max_position_embeddings": bounds.LENGTH},
    **{"relative_attention_num_buckets": bounds.HEAD_WIDTH, "relative_attention_max_distance": bounds.LENGTH},
}
"""The largest plausible size of each field; files whose weights have another size are refused later."""
NOT_CALIBRATED = {"deletion_threshold": None, "deletion_rate": None}
"""Fields that are meaningless for any shortener but the one they were set for."""
OF_A_RECIPE = {"inference_deletion": "hard", "gate_loss": 0.0, "score_loss": 0.0}
"""Fields of every model built from a recipe: the recipe defines the loss, whatever its start used."""
NOT_ONE_MODEL = "config.json and the weights must belong to one model; copy or download both again"
"""Hint where the two do not fit."""
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
logger = logging.getLogger(__name__)


def load(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    allow_pickle: bool = True,
    **config_overrides: Any,
) -> MrT5ForConditionalGeneration:
    """Load a run, a checkpoint or a Hub repository, in eval mode.

    Args:
        path_or_hub_id: a run directory; a directory written by `save_pretrained` (ours, the authors', or a
            plain T5 v1.1, ByT5, mT5 or umT5, which becomes a model without a shortener unless
            `deletion_type` is given); or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: "float32" or "bfloat16"; T5 overflows in float16.
        attn_implementation: "auto" (the default), "eager", "sdpa", "packed" or "triton"; see the README
            of `mrt5cli.models`.
        allow_pickle: if there are no safetensors files, read weights from pickles, with a reader that runs
            no code, and log a warning. False refuses them.
        **config_overrides: fields of `MrT5Config` to change. The authors' baselines are loaded to process
            each row on its own; `shortening_per="batch"` and `boundary_sampling="always"` restore the
            behavior of their code.

    Returns:
        The model. Its `fresh_weights` names the weights the checkpoint lacks: those of a new shortener.

    Raises:
        UserError: the model does not exist, or there is no network.
        CheckpointError: not a checkpoint, an unsupported kind of model, weights that are missing or have
            the wrong shape, or a file that does not match its manifest.json.
    """
    folder = locate(path_or_hub_id, revision=revision, allow_pickle=allow_pickle).folder
    where = shown(folder)
    sealed = manifest.check(folder, manifest.of_the_model)
    described = describe(folder)
    config = _config(described.fields, where, config_overrides)
    dtype = getattr(torch, dtype_name(dtype))
    state, note = unwrapped(read_weights(folder), where)
    if check_files(folder):
        logger.warning("%s: weights read from a pickle; no code in it was run", where)
    if note is not None:
        logger.warning("%s: %s", where, note)
    # A file may omit the head if it equals the embedding, as for every plain T5 that transformers 5 saves.
    tied = described.raw.get("tie_word_embeddings") is True
    state = with_one_embedding(state, where, tied=tied)
    if is_first_version(described.raw, state):
        # Not through transformers' `key_mapping`, which would move the gate back on every save.
        state = {move_gate(name, 1): weight for name, weight in state.items()}
    if sealed is None or not sealed.finite:
        _check_finite(state, where)
    fresh_weights = _check_complete(where, described.fields, config, state)
    try:
        with quiet_transformers():  # `_check_complete` has reported missing weights
            model = MrT5ForConditionalGeneration.from_pretrained(
                None, state_dict=state, config=config, attn_implementation=attn_implementation, dtype=dtype
            )
            model.name_or_path = str(folder)
            if (folder / GENERATION_CONFIG_NAME).is_file():
                model.generation_config = _generation_config(folder, where)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where} could not be loaded: {first_line(error)}") from error
    model.fresh_weights = fresh_weights
    return model.eval()


def _generation_config(folder: Path, where: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except (Exception, RecursionError) as error:  # it compares and counts whatever the file contains
        said = shortened(first_line(error), 300)
        raise CheckpointError(f"{where}: {GENERATION_CONFIG_NAME} cannot be used: {said}") from error


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name "float32" or "bfloat16", from a name or a torch dtype; `CheckpointError` for another one."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name} is not supported; expected {' or '.join(DTYPES)}")
    return name


def read_config(path_or_hub_id: str | Path, *, revision: str | None = None, **overrides: Any) -> MrT5Config:
    """The `MrT5Config` of anything `load` accepts, with `overrides` applied; no weight is read."""
    folder = locate(path_or_hub_id, revision=revision, weights=False).folder
    return _config(describe(folder).fields, shown(folder), overrides)


@dataclass(frozen=True)
class Description:
    """A checkpoint's configuration and origin.

    Attributes:
        raw: the content of its config.json.
        fields: the fields of `MrT5Config` that `raw` translates to.
        writer: the program that wrote it, for messages.
    """

    raw: dict[str, Any]
    fields: dict[str, Any]
    writer: str


def describe(folder: Path) -> Description:
    """Describe the checkpoint in a directory; the weights are read only if config.json is ambiguous."""
    where = shown(folder)
    manifest.check(folder, "config.json".__eq__)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{where} is not a checkpoint: it has no config.json",
            "name a run, a checkpoint directory or a Hub id",
        )
    raw = read_raw_config(folder / "config.json", where)
    names = weight_names(folder) if is_early(raw) else []
    return Description(raw, fields_of(raw, where, names), writer_of(raw, names))


def _config(fields: dict[str, Any], where: str, overrides: dict[str, Any]) -> MrT5Config:
    shortener = SHORTENERS.get(overrides.get("deletion_type", ""), Shortener)
    unknown = overrides.keys() - MrT5Config().to_dict().keys() - fields.keys() - shortener.own_fields.keys()
    if unknown:
        raise CheckpointError(
            f"{min(unknown)!r} is not a field of the model's configuration",
            "the docstring of MrT5Config lists them",
        )
    # A threshold belongs to its gate: another gate uses its own default unless one is given.
    if {"deletion_type", "sigmoid_mask_scale"} & set(overrides):
        overrides = {**NOT_CALIBRATED, **overrides}
    if "deletion_threshold" in overrides:
        overrides = {"deletion_rate": None, **overrides}
    had = fields.get("deletion_type", MrT5Config.deletion_type)
    if overrides.get("deletion_type", had) not in (had, *WITHOUT_MODULE):
        # The new shortener is ours, so the checkpoint's missing or old setting does not apply to it.
        overrides = {"inference_deletion": "hard", **overrides}
    own = _made(fields, f"{where}, config.json")
    return _made(fields | overrides, where) if overrides else own


def _made(fields: dict[str, Any], where: str) -> MrT5Config:
    """The configuration with these fields, after checking types and plausible sizes."""
    aliases = MrT5Config.attribute_map  # other models' names, which transformers would accept unchecked
    own = {name: value for name, value in fields.items() if name not in aliases}
    fields = {aliases[name]: value for name, value in fields.items() if name in aliases} | own
    for name, greatest in GREATEST.items():
        if isinstance(size := fields.get(name), int) and size > greatest:
            found = shortened(f"{size:,}")
            raise CheckpointError(f"{where}: {name} is {found}; expected {greatest:,} or less")
    try:
        return MrT5Config(**fields)
    except StrictDataclassFieldValidationError as error:
        name = str(error).split("'")[1]
        kind = MrT5Config.__dataclass_fields__[name].type
        value = shortened(repr(fields[name]))
        raise CheckpointError(f"{where}: {name} is {value}; expected {_expected(kind)}") from error
    except Exception as error:  # strict dataclasses raise several unrelated types
        # Some wrap the problem in a line that names their own validator.
        said = shortened(first_line(error.__cause__ or error), 300)
        raise CheckpointError(f"{where}: {said}") from error


def _expected(kind: Any) -> str:
    """The type of a field, for messages."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(kinds)}"
    exact = (one for one in kinds if not (one is int and float in kinds))
    return " or ".join(TYPES.get(one, "a list") for one in exact)


def build(
    section: ModelSection, *, vocab_size: int = 384, device: str | torch.device | None = None
) -> MrT5ForConditionalGeneration:
    """The model of a recipe's `model` section, in training mode.

    Args:
        vocab_size: vocabulary of a model built from scratch; others bring their own.
        device: device to build on; "meta" allocates nothing and needs no weights.

    Raises:
        UserError, CheckpointError: as `load`, for a section with a `start`.
    """
    fields = section.shortener.config_fields()
    fields |= {
        "use_softmax1": section.softmax1,
        "dropout_rate": section.dropout,
        "attention_dropout_rate": section.attention_dropout,
        **OF_A_RECIPE,
    }
    if section.positions == "absolute":
        fields |= {"has_absolute_position_embeddings": True, "max_position_embeddings": section.max_positions}
    device = torch.device(device or "cpu")
    if section.start == "scratch":
        shape = section.shape.model_dump() if section.shape is not None else {}
        config = _made({"vocab_size": vocab_size, **shape, **fields}, "model")
    elif device.type != "meta":
        return load(section.start, revision=section.revision, **fields).train().to(device)
    elif section.start in BYT5_SHAPES:
        config = MrT5Config(**{**BYT5_SHAPES[section.start], **fields})
    else:
        config = read_config(section.start, revision=section.revision, **fields)
    with device:
        model = MrT5ForConditionalGeneration(config)
    if section.initialization == "depth_scaled":
        initialize_depth_scaled(model)
    return model.train()


def sharing_weights(model: MrT5ForConditionalGeneration, **fields: Any) -> MrT5ForConditionalGeneration:
    """A model with other configuration fields that shares this one's weights, without a copy.

    The threshold is reset unless it is given, because it belongs to the shortener that it was set for.
    """
    config = MrT5Config(**{**model.config.to_diff_dict(), **NOT_CALIBRATED, **fields})
    with torch.device("meta"):
        other = MrT5ForConditionalGeneration(config)
    other.load_state_dict(model.state_dict(), strict=False, assign=True)
    other.tie_weights()
    return other


@torch.no_grad()
def initialize_depth_scaled(model: MrT5ForConditionalGeneration) -> None:
    """The reference's from-scratch initialization: weights shrink with the root of their stack's depth.

    Standard deviations: 1 / sqrt(fan in * layers of the stack) for linear weights, 1 / sqrt(d_model * layers)
    for relative biases, 1 / sqrt(d_model) for the embedding and the head. Norm weights are constants of
    1 / sqrt(layers). Shorteners keep their own initialization, except for their norms.
    """
    width = model.config.d_model
    for stack in (model.encoder, model.decoder):
        depth = len(stack.block)
        shorteners = (module for module in stack.modules() if isinstance(module, Shortener))
        inside = {part for shortener in shorteners for part in shortener.modules()}
        for name, module in stack.named_modules():
            if isinstance(module, nn.Linear) and module not in inside:
                nn.init.normal_(module.weight, std=(module.in_features * depth) ** -0.5)
            elif isinstance(module, nn.Embedding) and name != "embed_tokens":
                nn.init.normal_(module.weight, std=(width * depth) ** -0.5)
            elif isinstance(module, T5LayerNorm | nn.LayerNorm):
                nn.init.constant_(module.weight, depth**-0.5)
    for weight in (model.shared.weight, model.lm_head.weight):
        nn.init.normal_(weight, std=width**-0.5)


def _check_complete(
    where: str, fields: dict[str, Any], config: MrT5Config, state: Mapping[str, Tensor]
) -> list[str]:
    """The names of a new shortener's weights, which are either all missing or all present.

    Any other missing or unexpected weight is an error. `fields` are the checkpoint's own; `config` may have
    another shortener.
    """
    layers = config.num_layers + (config.num_decoder_layers or 0)
    if layers > len(state):  # before the skeleton is built, layer by layer
        raise CheckpointError(
            f"{where}: config.json describes {layers:,} layers, but the files contain {len(state)} weights",
            NOT_ONE_MODEL,
        )
    skeleton = _skeleton(config, where)
    expected = {name: weight for name, weight in skeleton.state_dict().items() if name not in EMBEDDINGS[1:]}
    mismatched = sorted(
        key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape
    )
    if mismatched:
        key = mismatched[0]
        raise CheckpointError(
            f"{where}: {counted(len(mismatched), 'weight')} with the wrong shape, first {key}: "
            f"{list(state[key].shape)} in the file, {list(expected[key].shape)} by config.json",
            NOT_ONE_MODEL,
        )
    exchanged = any(
        fields.get(name, getattr(MrT5Config, name)) != getattr(config, name)
        for name in ("deletion_type", "delete_gate_layer")
    )
    missing = expected.keys() - state.keys()
    whole = {key for key in expected if of_a_shortener(key)}
    fresh = whole if exchanged and whole <= missing else set()
    # Ignored: weights of a shortener that the caller replaced, and one in Google's files that T5 never uses.
    unused = skeleton._keys_to_ignore_on_load_unexpected or ()
    extra = {key for key in state.keys() - expected.keys() if not any(re.search(one, key) for one in unused)}
    if exchanged:
        extra = {key for key in extra if not of_a_shortener(key)}
    if lost := missing - fresh:
        sentence, hint = f"{where}: {counted(len(lost), 'weight')} missing, first {min(lost)}", NOT_ONE_MODEL
        wanted, there = _positions(lost), _positions(state)
        if wanted and there and wanted != there:
            setter = key = "has_absolute_position_embeddings"
            if fields.get(key, False) == getattr(config, key):
                setter += " of its config.json"
            else:
                setter, hint = "model.positions", f"set model.positions: {there}"
            sentence += f"; its positions are {there}, but {setter} makes them {wanted}"
        raise CheckpointError(sentence, hint)
    if extra:
        raise CheckpointError(
            f"{where}: {counted(len(extra), 'weight')} not part of the model that config.json describes, "
            f"first {min(extra)}",
            NOT_ONE_MODEL,
        )
    return sorted(fresh)


def _positions(names: Iterable[str]) -> str | None:
    """The kind of positions, in a recipe's terms, that weights with these names implement."""
    kinds = {"absolute_pos_embed": "absolute", "relative_attention_bias": "relative"}
    return next((kind for part, kind in kinds.items() if any(part in name for name in names)), None)


def _skeleton(config: MrT5Config, where: str) -> MrT5ForConditionalGeneration:
    """The model on the meta device: a configuration may describe one that does not fit into memory."""
    try:
        with torch.device("meta"):
            return MrT5ForConditionalGeneration(config)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where} cannot be built: {first_line(error)}") from error


def _check_finite(state: dict[str, Tensor], where: str) -> None:
    """Refuse NaN and infinity: such a model's outputs are NaN or, worse, plausible numbers."""
    if broken := not_finite(state):
        raise CheckpointError(
            f"{where}: NaN or infinity in {counted(len(broken), 'weight')}, first {broken[0]}",
            "the training that wrote it diverged; use an earlier checkpoint",
        )


def of_a_shortener(key: str) -> bool:
    """Whether a weight belongs to a shortener, of any kind."""
    parts = {"down_ln", *(shortener.name for shortener in SHORTENERS.values())}
    return not parts.isdisjoint(key.split("."))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and log messages below errors."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
