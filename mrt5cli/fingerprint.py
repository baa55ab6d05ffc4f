"""Whether what was made before would come out the same now: the version of the code that decides its numbers.

A version is the package's, and a hash of the syntax of every source file that a kind of work computes with.
Comments, docstrings and layout do not count. What a recipe says is compared key by key instead, so its schema
is not among the files: what a key means is in the code that reads it.
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
    "recipe/shorteners/*.py",  # which turn settings into what a model is built by
)
"""What every kind of work computes with."""
DECODING = ("generation/decoding.py", "generation/utf8.py")
THRESHOLDS = "generation/calibration.py"
VALIDATION = (
    *(f"evaluation/{name}.py" for name in ("counting", "evaluate", "options", "timing")),
    *DECODING,
)
"""What training imports of evaluations: validation chooses the best weights."""
DECIDES: dict[Work, tuple[str, ...]] = {
    "train": ("training/*.py", *VALIDATION),
    "evaluate": ("evaluation/*.py", *DECODING, THRESHOLDS),
    "analyse": ("analysis/*.py", "evaluation/*.py", *DECODING, THRESHOLDS),
}
"""What else each kind of work computes with."""
LEFT_OUT = {
    "evaluation/predictions.py",  # writes what was scored
    "evaluation/published.py",  # sets the paper's numbers beside ours
    "evaluation/request.py",  # turns what was typed into options, which suites have from elsewhere
    "evaluation/significance.py",  # compares two results, which no kind of work does
    "metrics/evaluate_metrics.py",  # is for other libraries; evaluation counts without it
    "training/interruption.py",  # a run that was stopped comes to the same numbers
    "training/pretrain.py",  # hands on a recipe, which is compared by itself
    *("training/plan_text.py", "training/progress.py", "training/record.py"),  # words
}
"""Files among those that decide no number."""


@cache
def code_version(work: Work) -> str:
    """The version of the code that a kind of work computes with, e.g. "0.1.0+1f0c5b7a9e21".

    Taken once a process, early, because a file that is edited later changes nothing about code that runs.
    """
    return f"{mrt5cli.__version__}+{source_hash(work, Path(mrt5cli.__file__).parent)}"


def source_hash(work: Work, package: Path) -> str:
    """A hash of the syntax of a package's files that decide a kind of work's numbers."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in (*SHARED, *DECIDES[work]) for path in package.glob(pattern)):
        name = path.relative_to(package).as_posix()
        if name not in LEFT_OUT:
            syntax = f"{name}\n{_syntax(path.read_text(encoding='utf-8'))}"
            digest.update(syntax.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def recipe_hash(recipe: Recipe) -> str:
    """A recipe's content in short: all of it but its description and what it is compared with."""
    content = recipe.model_copy(update={"description": "-", "paper": None}).model_dump_json()
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def _syntax(source: str) -> str:
    """The syntax tree of a source file, without docstrings and texts below constants."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [
                one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            ]
    return ast.dump(tree)


def commit(folder: Path) -> str | None:
    """The git commit of this package's own checkout, "+" added when files are changed; None if installed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # may lie inside somebody else's repository
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return None
