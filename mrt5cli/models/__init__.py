"""One configuration class, one model class, `load` for checkpoints and `build` for recipes.

Importing this package registers `model_type: mrt5` with `AutoConfig` and `AutoModelForSeq2SeqLM`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSeq2SeqLM

from mrt5cli.errors import CheckpointError
from mrt5cli.models.checkpoint import build, load, read_config
from mrt5cli.models.config import BYT5_SHAPES, MrT5Config
from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration
from mrt5cli.models.outputs import MrT5EncoderOutput, MrT5Output

AutoConfig.register("mrt5", MrT5Config, exist_ok=True)
AutoModelForSeq2SeqLM.register(MrT5Config, MrT5ForConditionalGeneration, exist_ok=True)

__all__ = [
    "BYT5_SHAPES",
    "CheckpointError",
    "MrT5Config",
    "MrT5EncoderOutput",
    "MrT5ForConditionalGeneration",
    "MrT5Output",
    "build",
    "load",
    "read_config",
]
