"""Recipes: one run, whole, in one YAML file. The only reader of recipe YAML.

`schema` says what a recipe is, `loading` reads one with its bases and overrides, `words` turns what is wrong
into sentences, `shrink` makes the smoke version, `strict_yaml` is YAML without its surprises.
"""

from mrt5cli.recipe.loading import dump, find, load
from mrt5cli.recipe.schema import (
    ConstantController,
    DeleteGate,
    DiagnosticTask,
    EmbeddedSource,
    EvaluationSection,
    FilesSource,
    HubSource,
    LossSection,
    Misfit,
    ModelSection,
    NoShortener,
    PaperSection,
    PController,
    PIController,
    RandomGate,
    Recipe,
    Section,
    Shape,
    SpanCorruptionTask,
    TrainingSection,
    TwoSidedPIController,
)
from mrt5cli.recipe.shrink import smoke

__all__ = [
    "ConstantController",
    "DeleteGate",
    "DiagnosticTask",
    "EmbeddedSource",
    "EvaluationSection",
    "FilesSource",
    "HubSource",
    "LossSection",
    "Misfit",
    "ModelSection",
    "NoShortener",
    "PController",
    "PIController",
    "PaperSection",
    "RandomGate",
    "Recipe",
    "Section",
    "Shape",
    "SpanCorruptionTask",
    "TrainingSection",
    "TwoSidedPIController",
    "dump",
    "find",
    "load",
    "smoke",
]
