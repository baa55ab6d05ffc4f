"""Versions of the code that determines numbers, to tell whether an earlier result is still valid.

A version is a hash of the syntax of every source file that a kind of work computes with. Comments, docstrings
and layout do not count. Recipes are compared key by key instead, so the schema is not among the files: the
meaning of a key is in the code that reads it.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

import mrt5cli
from mrt5cli.recipe import Recipe

Work = Literal["train", "evaluate", "analyse"]

SHARED = (
    *("byte_tokens.py", "runtime.py", "templates.py"),
    *("models/**/*.py", "data/*.py", "tasks/*.py", "metrics/*.py"),
    "recipe/shorteners/*.py",  # they turn settings into the configuration of a model
)
"""Files that every kind of work computes with."""
DECODING = ("generation/decoding.py", "generation/utf8.py")
THRESHOLDS = "generation/calibration.py"
VALIDATION = (
    *(f"evaluation/{name}.py" for name in ("counting", "evaluate", "options", "timing")),
    *DECODING,
)
"""Evaluation code that training uses: validation selects the best weights."""
DECIDES: dict[Work, tuple[str, ...]] = {
    "train": ("training/*.py", *VALIDATION),
    "evaluate": ("evaluation/*.py", *DECODING, THRESHOLDS),
    "analyse": ("analysis/*.py", "evaluation/*.py", *DECODING, THRESHOLDS),
}
"""Further files that each kind of work computes with."""
LEFT_OUT = {
    "evaluation/predictions.py",  # writes the scored outputs
    "evaluation/published.py",  # shows the paper's numbers next to ours
    "evaluation/request.py",  # turns command-line arguments into options, which suites set directly
    "evaluation/significance.py",  # compares two results, which no kind of work does
    "metrics/evaluate_metrics.py",  # for other libraries; evaluation does not use it
    "training/interruption.py",  # an interrupted run reproduces the same numbers
    "training/pretrain.py",  # passes on a recipe, which is compared separately
    *("training/plan_text.py", "training/progress.py", "training/record.py"),  # messages
}
"""Exceptions among those: files that determine no number."""


@cache
def code_version(work: Work) -> str:
    """The version of the code that a kind of work computes with, such as "1f0c5b7a9e21".

    The package's version is not part of it, because it changes with every commit. Computed once per process,
    early, because editing a file later does not change the running code.
    """
    return source_hash(work, Path(mrt5cli.__file__).parent)


def source_hash(work: Work, package: Path) -> str:
    """A hash of the syntax of the files that determine the numbers of a kind of work."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in (*SHARED, *DECIDES[work]) for path in package.glob(pattern)):
        name = path.relative_to(package).as_posix()
        if name not in LEFT_OUT:
            syntax = f"{name}\n{_syntax(path.read_text(encoding='utf-8'))}"
            digest.update(syntax.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def recipe_hash(recipe: Recipe) -> str:
    """A short hash of a recipe without its description and its `paper` section."""
    content = recipe.model_copy(update={"description": "-", "paper": None}).model_dump_json()
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def _syntax(source: str) -> str:
    """The syntax tree of a source file, without docstrings, including those of constants."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [
                one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            ]
    return ast.dump(tree)


def commit(folder: Path) -> str | None:
    """The git commit of this package's checkout, with "+" for uncommitted changes; None if installed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails inside an unrelated repository
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return None
