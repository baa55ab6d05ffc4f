"""Recipes: a complete run in one YAML file. The only package that reads recipe YAML.

`schema` defines a recipe, `loading` reads one with its bases and overrides, `words` turns problems into
sentences, `shrink` makes the smoke version, `strict_yaml` is YAML without its surprises.
"""

from mrt5cli.recipe.loading import dump as dump
from mrt5cli.recipe.loading import find as find
from mrt5cli.recipe.loading import load as load
from mrt5cli.recipe.loading import parse_overrides as parse_overrides
from mrt5cli.recipe.schema import ConstantController as ConstantController
from mrt5cli.recipe.schema import EvaluationSection as EvaluationSection
from mrt5cli.recipe.schema import GenerationSection as GenerationSection
from mrt5cli.recipe.schema import LoraSection as LoraSection
from mrt5cli.recipe.schema import LossSection as LossSection
from mrt5cli.recipe.schema import ModelSection as ModelSection
from mrt5cli.recipe.schema import PController as PController
from mrt5cli.recipe.schema import PIController as PIController
from mrt5cli.recipe.schema import Recipe as Recipe
from mrt5cli.recipe.schema import Shape as Shape
from mrt5cli.recipe.schema import TwoSidedPIController as TwoSidedPIController
from mrt5cli.recipe.section import Section as Section
from mrt5cli.recipe.shrink import left_out_of_smoke as left_out_of_smoke
from mrt5cli.recipe.shrink import smoke as smoke
from mrt5cli.recipe.tasks import CharacterTask as CharacterTask
from mrt5cli.recipe.tasks import DiagnosticTask as DiagnosticTask
from mrt5cli.recipe.tasks import EmbeddedSource as EmbeddedSource
from mrt5cli.recipe.tasks import FileRows as FileRows
from mrt5cli.recipe.tasks import FilesSource as FilesSource
from mrt5cli.recipe.tasks import GeneratedRows as GeneratedRows
from mrt5cli.recipe.tasks import HubRows as HubRows
from mrt5cli.recipe.tasks import HubSource as HubSource
from mrt5cli.recipe.tasks import SpanCorruptionTask as SpanCorruptionTask
from mrt5cli.recipe.tasks import Text2TextTask as Text2TextTask
from mrt5cli.recipe.tasks import TyDiQATask as TyDiQATask
from mrt5cli.recipe.tasks import XnliTask as XnliTask
from mrt5cli.recipe.tasks import XQuADTask as XQuADTask
