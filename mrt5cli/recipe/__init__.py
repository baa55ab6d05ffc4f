"""Recipes: one run, whole, in one YAML file. The only reader of recipe YAML.

`schema` says what a recipe is, `loading` reads one with its bases and overrides, `words` turns what is wrong
into sentences, `shrink` makes the smoke version, `strict_yaml` is YAML without its surprises.
"""

from mrt5cli.recipe.loading import dump, find, load, parse_overrides
from mrt5cli.recipe.schema import (
    CharacterTask,
    ConstantController,
    DiagnosticTask,
    EmbeddedSource,
    EvaluationSection,
    FileRows,
    FilesSource,
    GeneratedRows,
    HubRows,
    HubSource,
    LossSection,
    ModelSection,
    PaperSection,
    PController,
    PIController,
    Recipe,
    RowTask,
    Shape,
    SpanCorruptionTask,
    TrainingSection,
    TwoSidedPIController,
    TyDiQATask,
    XnliTask,
    XQuADTask,
)
from mrt5cli.recipe.section import Misfit, Section
from mrt5cli.recipe.shrink import left_out_of_smoke, smoke

__all__ = [
    "CharacterTask",
    "ConstantController",
    "DiagnosticTask",
    "EmbeddedSource",
    "EvaluationSection",
    "FileRows",
    "FilesSource",
    "GeneratedRows",
    "HubRows",
    "HubSource",
    "LossSection",
    "Misfit",
    "ModelSection",
    "PController",
    "PIController",
    "PaperSection",
    "Recipe",
    "RowTask",
    "Section",
    "Shape",
    "SpanCorruptionTask",
    "TrainingSection",
    "TwoSidedPIController",
    "TyDiQATask",
    "XQuADTask",
    "XnliTask",
    "dump",
    "find",
    "left_out_of_smoke",
    "load",
    "parse_overrides",
    "smoke",
]
