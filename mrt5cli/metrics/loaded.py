"""Metrics loaded by `evaluate.load`: from the Hub ("rouge", "owner/name"), or from a local script.

A metric from the Hub is a script that runs on this machine; its name and commit are printed before it runs.
It is downloaded like a model, so a cached one works without a network.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt5cli.errors import UserError
from mrt5cli.hub import Repository
from mrt5cli.metrics.catalog import METRICS, is_path, short
from mrt5cli.metrics.scoring import Accepted
from mrt5cli.text import announced, first_line, listed, say_on_stderr

if TYPE_CHECKING:
    import evaluate

CANONICAL = "evaluate-metric"
"""The owner of metrics named without one."""
TRIAL = ["a text", "another one"]


@dataclass(frozen=True)
class LoadedMetric:
    """A metric of `evaluate` that scores texts.

    Attributes:
        name: name in the task's metrics.
        source: origin of its script for the record: a Hub commit, or a file name and a hash.
        takes_lists: whether each reference is the list of accepted texts; else the first of them.
    """

    name: str
    source: str
    module: evaluate.EvaluationModule
    takes_lists: bool

    def score(self, answers: Sequence[str], accepted: Accepted) -> dict[str, float]:
        """The metric's numbers over all answers: a single one under its name, several as "metric.number".

        Lists in its result, such as a number per example, are dropped.

        Raises:
            UserError: the metric fails or returns no number.
        """
        references: list[Any] = [list(texts) if self.takes_lists else texts[0] for texts in accepted]
        if self.takes_lists:  # some metrics need lists of equal length: repeating a reference changes nothing
            most = max(map(len, references))
            references = [texts + texts[:1] * (most - len(texts)) for texts in references]
        try:
            with redirect_stdout(sys.stderr):
                found = self.module.compute(predictions=list(answers), references=references)
        except Exception as error:  # a script may raise anything
            raise UserError(
                f"the metric {self.name} cannot score texts: {type(error).__name__}: {first_line(error)}",
                "remove it from the task's metrics, or use one of the toolkit's own",
            ) from error
        numbers = {
            key: float(value)
            for key, value in (found or {}).items()
            if isinstance(value, int | float | np.number) and not isinstance(value, bool)
        }
        if not numbers:
            raise UserError(
                f"the metric {self.name} returns no number, only {listed(list(found or {})) or 'nothing'}",
                "make its compute() return a dictionary of numbers",
            )
        own = short(self.name)
        return {own if len(numbers) == 1 else f"{own}.{key}": value for key, value in numbers.items()}


def numbers_of(name: str, others: Sequence[str]) -> list[str]:
    """The keys of `Row.others` that belong to a loaded metric."""
    own = short(name)
    return [key for key in others if key == own or key.startswith(f"{own}.")]


def load_all(names: Sequence[str]) -> None:
    """Load metrics before anything is measured.

    Raises:
        UserError: two metrics share a short name; or as `load`.
    """
    called: dict[str, str] = {}
    for name in names:
        other = called.setdefault(short(name), name)
        if other != name:
            raise UserError(f"the metrics {other} and {name} are both named {short(name)}", "use one of them")
        load(name)


def check_scripts(names: Sequence[str]) -> None:
    """Check that local scripts exist, without loading them.

    Raises:
        UserError: a script does not exist.
    """
    for name in names:
        if name not in METRICS and is_path(name):
            _local(name)


@cache
def load(name: str) -> LoadedMetric:
    """Load the metric of a name or a path, and try it on two texts.

    Raises:
        UserError: it does not exist, cannot be downloaded, needs packages that are not installed, or does not
            score texts.
    """
    script, source = _local(name) or _of_the_hub(name)
    with announced(f"loading the metric {name} ...", say_on_stderr):
        import evaluate

        try:
            with redirect_stdout(sys.stderr):
                module = evaluate.load(str(script), keep_in_memory=True)
        except Exception as error:  # a script may raise anything
            raise _not_loaded(name, error) from error
        metric = LoadedMetric(name, source, module, _takes_lists(name, module))
        metric.score(TRIAL, [(text,) for text in TRIAL])
    return metric


def _local(name: str) -> tuple[Path, str] | None:
    """A local script, or the one named like its folder, and its entry in the record; None if not a path."""
    path = Path(name).expanduser()
    script = path / f"{path.resolve().name}.py" if path.is_dir() else path
    if script.is_file() and script.suffix == ".py":
        return script, f"{script.name}, SHA-256 {hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"
    if not is_path(name):
        return None
    what = (
        f"has no {script.name}"
        if path.is_dir()
        else "does not exist"
        if not path.exists()
        else "is not a Python script"
    )
    raise UserError(f"the metric {name} {what}", "name a Python script, or a folder with one of its name")


def _of_the_hub(name: str) -> tuple[Path, str]:
    repository = Repository("space", name if "/" in name else f"{CANONICAL}/{name}")
    script = f"{name.rpartition('/')[2]}.py"
    try:
        path = repository.cached(script)
        info = repository.info(None if path is None else path.parent.name)
        if info is not None:
            files = [one.rfilename for one in info.siblings or () if re.fullmatch(r"\w+\.py", one.rfilename)]
            if script not in files:
                raise UserError(f"{repository.name} has no {script}", "check the name for a typo")
            path = repository.fetch(script)
            for file in files:
                if file not in (script, "app.py"):  # the metric's demo page
                    repository.fetch(file, path.parent.name)
    except UserError as error:
        raise type(error)(f"the metric {name!r} is not built in, and {error.message}", error.hint) from error
    assert path is not None  # `info` raises where neither the Hub nor the cache has it
    source = f"{repository.name} at commit {path.parent.name}"
    say_on_stderr(f"note: the metric {name} is code from the Hub and runs on this machine: {source}")
    return path, source


def _not_loaded(name: str, error: Exception) -> UserError:
    needed = re.search(r"'pip install ([^']+)'", str(error)) if isinstance(error, ImportError) else None
    if needed:
        packages = needed[1].strip()
        if "," in packages:  # `evaluate` reads "import a, b" as the package "a,"
            return UserError(
                f"the metric {name} imports several modules in one line, which `evaluate` cannot read",
                "put each import of its script on a separate line",
            )
        return UserError(
            f"the metric {name} needs packages that are not installed: {packages}", f"pip install {packages}"
        )
    return UserError(
        f"the metric {name} cannot be loaded: {type(error).__name__}: {first_line(error)}",
        "fix the script, or remove it from the task's metrics",
    )


def _takes_lists(name: str, module: evaluate.EvaluationModule) -> bool:
    """Whether references may be lists of texts; predictions must be texts."""
    from datasets import Value

    kinds = module.features if isinstance(module.features, list) else [module.features]
    of_texts = [
        one for one in kinds if {"predictions", "references"} <= set(one) and _is_text(one["predictions"])
    ]
    if not of_texts:
        raise UserError(
            f"the metric {name} does not compare texts: it expects {listed([dict(one) for one in kinds])}",
            "use a metric whose predictions are texts, and whose references are texts or lists of texts",
        )
    return any(not isinstance(one["references"], Value) for one in of_texts)


def _is_text(feature: object) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")
