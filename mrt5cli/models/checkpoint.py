"""Loading and building: `load` for every checkpoint we can run, `build` for a recipe's model section."""

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

if TYPE_CHECKING:  # models run without recipes
    from mrt5cli.recipe import ModelSection

DTYPES = ("float32", "bfloat16")
GREATEST = {
    **{"num_layers": bounds.LAYERS, "num_decoder_layers": bounds.LAYERS, "num_heads": bounds.HEADS},
    **{"d_model": bounds.WIDTH, "d_ff": bounds.WIDTH, "d_kv": bounds.HEAD_WIDTH},
    **{"vocab_size": bounds.VOCABULARY, "max_position_embeddings": bounds.LENGTH},
    **{"relative_attention_num_buckets": bounds.HEAD_WIDTH, "relative_attention_max_distance": bounds.LENGTH},
}
"""Sizes in a configuration, and the largest that is no slip; weights of another size are refused later."""
NOT_CALIBRATED = {"deletion_threshold": None, "deletion_rate": None}
"""What belongs to one shortener, and says nothing of another."""
OF_A_RECIPE = {"inference_deletion": "hard", "gate_loss": 0.0, "score_loss": 0.0}
"""What every model of a recipe has: its loss is the recipe's, whatever its start was trained with."""
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
    """The model of a run, a checkpoint or a Hub repository, in eval mode.

    Args:
        path_or_hub_id: a run directory; a directory as `save_pretrained` writes it (ours, the authors', or a
            plain T5 v1.1, ByT5, mT5 or umT5 one, which becomes a model without a shortener unless
            `deletion_type` is given); or a Hub id.
        revision: of a Hub id: a branch, tag or commit.
        dtype: "float32" or "bfloat16"; T5 overflows in float16.
        attn_implementation: "auto" (the default), "eager", "sdpa", "packed" or "triton"; see the README
            of `mrt5cli.models`.
        allow_pickle: read weights from pickles where there are no safetensors files, with a reader that runs
            no code; a line in the log says so. False refuses them.
        **config_overrides: fields of `MrT5Config` to change. The authors' baselines are loaded to treat every
            row by itself; `shortening_per="batch"` and `boundary_sampling="always"` are what their code does.

    Returns:
        The model; its `fresh_weights` are what the checkpoint does not hold: a new shortener's, or none.

    Raises:
        UserError: no such model, or no network.
        CheckpointError: not a checkpoint, wrong kind of model, weights missing or of another shape, a file
            that is not what its manifest.json says.
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
    # Files may leave the head out where it is the embedding, as transformers 5 makes and calls a plain T5.
    tied = described.raw.get("tie_word_embeddings") is True
    state = with_one_embedding(state, where, tied=tied)
    if is_first_version(described.raw, state):
        # Not by transformers' `key_mapping`, which would move the gate back at every saving.
        state = {move_gate(name, 1): weight for name, weight in state.items()}
    if sealed is None or not sealed.finite:
        _check_finite(state, where)
    fresh_weights = _check_complete(where, described.fields, config, state)
    try:
        with quiet_transformers():  # `_check_complete` has judged what is missing
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
    except (Exception, RecursionError) as error:  # it compares and counts whatever stands there
        said = shortened(first_line(error), 300)
        raise CheckpointError(f"{where}: {GENERATION_CONFIG_NAME} cannot be used: {said}") from error


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name "float32" or "bfloat16", from a name or a torch dtype; `CheckpointError` for another one."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name} is not offered; expected {' or '.join(DTYPES)}")
    return name


def read_config(path_or_hub_id: str | Path, *, revision: str | None = None, **overrides: Any) -> MrT5Config:
    """The `MrT5Config` of what `load` takes, with `overrides` applied; no weight is read."""
    folder = locate(path_or_hub_id, revision=revision, weights=False).folder
    return _config(describe(folder).fields, shown(folder), overrides)


@dataclass(frozen=True)
class Description:
    """What a checkpoint is.

    Attributes:
        raw: the content of its config.json.
        fields: of `MrT5Config`, that `raw` stands for.
        writer: whose layout it is in, for people.
    """

    raw: dict[str, Any]
    fields: dict[str, Any]
    writer: str


def describe(folder: Path) -> Description:
    """What the checkpoint in a directory is; without weights, as far as config.json says."""
    where = shown(folder)
    manifest.check(folder, "config.json".__eq__)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where} is not a checkpoint: it has no config.json")
    raw = read_raw_config(folder / "config.json", where)
    names = weight_names(folder) if is_early(raw) else []
    return Description(raw, fields_of(raw, where, names), writer_of(raw, names))


def _config(fields: dict[str, Any], where: str, overrides: dict[str, Any]) -> MrT5Config:
    shortener = SHORTENERS.get(overrides.get("deletion_type", ""), Shortener)
    unknown = overrides.keys() - MrT5Config().to_dict().keys() - fields.keys() - shortener.own_fields.keys()
    if unknown:
        raise CheckpointError(f"{min(unknown)!r} is not a field of the model's configuration")
    # A threshold belongs to its gate: with another gate, and none given, the new gate's default applies.
    if {"deletion_type", "sigmoid_mask_scale"} & set(overrides):
        overrides = {**NOT_CALIBRATED, **overrides}
    if "deletion_threshold" in overrides:
        overrides = {"deletion_rate": None, **overrides}
    had = fields.get("deletion_type", MrT5Config.deletion_type)
    if overrides.get("deletion_type", had) not in (had, *WITHOUT_MODULE):
        # The new shortener is one of ours, not the checkpoint's, which may be silent.
        overrides = {"inference_deletion": "hard", **overrides}
    own = _made(fields, f"{where}, config.json")
    return _made(fields | overrides, where) if overrides else own


def _made(fields: dict[str, Any], where: str) -> MrT5Config:
    """The configuration with these fields, each of the right type and of a size that a machine could hold."""
    aliases = MrT5Config.attribute_map  # other models' names, which transformers would take unchecked
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
        # Some wrap what is wrong in a line that names their own validator.
        said = shortened(first_line(error.__cause__ or error), 300)
        raise CheckpointError(f"{where}: {said}") from error


def _expected(kind: Any) -> str:
    """The type of a field in words."""
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
        vocab_size: only for models built from scratch.
        device: where to build; "meta" allocates nothing and needs no weights.
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
    """A model with other fields in its configuration, and this one's weights, which are not copied.

    A threshold is left out unless it is given: it is of the shortener that it was set for.
    """
    config = MrT5Config(**{**model.config.to_diff_dict(), **NOT_CALIBRATED, **fields})
    with torch.device("meta"):
        other = MrT5ForConditionalGeneration(config)
    other.load_state_dict(model.state_dict(), strict=False, assign=True)
    other.tie_weights()
    return other


@torch.no_grad()
def initialize_depth_scaled(model: MrT5ForConditionalGeneration) -> None:
    """The reference's from-scratch initialisation: weights of a stack shrink with the root of its depth.

    Linear weights have standard deviation 1 / sqrt(fan in * layers of their stack), relative biases
    1 / sqrt(d_model * layers), norm weights are 1 / sqrt(layers), the embedding and the head have 1 /
    sqrt(d_model). Shorteners keep their own initialisation, except for their norms, which are scaled like
    all.
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
    """The weights of a new shortener, all or none of which are missing; anything else that is missing, or
    left over, means that these are not this model's weights. `fields` are the checkpoint's own; `config` may
    have another shortener."""
    layers = config.num_layers + (config.num_decoder_layers or 0)
    if layers > len(state):  # before the skeleton is built, layer by layer
        raise CheckpointError(
            f"{where}: config.json describes {layers:,} layers, and the files hold {len(state)} weights"
        )
    skeleton = _skeleton(config, where)
    expected = {name: weight for name, weight in skeleton.state_dict().items() if name not in EMBEDDINGS[1:]}
    mismatched = sorted(
        key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape
    )
    if mismatched:
        key = mismatched[0]
        raise CheckpointError(
            f"{where}: {len(mismatched)} weights have another shape, first {key}: {list(state[key].shape)} "
            f"in the file, {list(expected[key].shape)} in config.json"
        )
    exchanged = any(
        fields.get(name, getattr(MrT5Config, name)) != getattr(config, name)
        for name in ("deletion_type", "delete_gate_layer")
    )
    missing = expected.keys() - state.keys()
    whole = {key for key in expected if of_a_shortener(key)}
    fresh = whole if exchanged and whole <= missing else set()
    # A shortener that the caller has exchanged or left out stays behind, and a weight that Google's own
    # files have and no layer of T5 uses.
    unused = skeleton._keys_to_ignore_on_load_unexpected or ()
    extra = {key for key in state.keys() - expected.keys() if not any(re.search(one, key) for one in unused)}
    if exchanged:
        extra = {key for key in extra if not of_a_shortener(key)}
    if lost := missing - fresh:
        sentence = f"{where}: {counted(len(lost), 'weight')} missing, first {min(lost)}"
        wanted, there = _positions(lost), _positions(state)
        if wanted and there and wanted != there:
            says = "has_absolute_position_embeddings of its config.json"
            if (
                fields.get("has_absolute_position_embeddings", False)
                != config.has_absolute_position_embeddings
            ):
                says = "model.positions"
            sentence += f"; its positions are {there}, and {says} makes them {wanted}"
        raise CheckpointError(sentence)
    if extra:
        raise CheckpointError(
            f"{where}: {counted(len(extra), 'weight')} of no part of the model that config.json describes, "
            f"first {min(extra)}"
        )
    return sorted(fresh)


def _positions(names: Iterable[str]) -> str | None:
    """The kind of positions, by the words of recipes, that weights of these names are for."""
    kinds = {"absolute_pos_embed": "absolute", "relative_attention_bias": "relative"}
    return next((kind for part, kind in kinds.items() if any(part in name for name in names)), None)


def _skeleton(config: MrT5Config, where: str) -> MrT5ForConditionalGeneration:
    """The model without its weights: a configuration may describe one that fits into no memory."""
    try:
        with torch.device("meta"):
            return MrT5ForConditionalGeneration(config)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where} cannot be built: {first_line(error)}") from error


def _check_finite(state: dict[str, Tensor], where: str) -> None:
    """Refuse weights that are not numbers: every output of such a model is NaN, or worse, looks like one."""
    if broken := not_finite(state):
        raise CheckpointError(
            f"{where}: there is NaN or infinity in {counted(len(broken), 'weight')}, first {broken[0]}; the "
            "training that wrote them went wrong: take an earlier checkpoint of it"
        )


def of_a_shortener(key: str) -> bool:
    """Whether a weight belongs to what stands between two encoder blocks, whichever kind it is."""
    parts = {"down_ln", *(shortener.name for shortener in SHORTENERS.values())}
    return not parts.isdisjoint(key.split("."))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no remarks while weights are loaded or saved, or a model is trained."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
