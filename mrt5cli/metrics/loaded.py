"""Metrics that the catalog lacks, by `evaluate.load`: of the Hub ("rouge", "owner/name"), or a local script.

A metric of the Hub is a script, which runs on this machine: which one, and at which commit, is said before it
does. It is downloaded as models are, so a cached one serves without a network.
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
"""The owner of metrics whose name has none."""
TRIAL = ["a text", "another one"]


@dataclass(frozen=True)
class LoadedMetric:
    """A metric of `evaluate` that scores texts.

    Attributes:
        name: as the task says it.
        source: where its script is from, for the record: a commit of the Hub, or a path and a hash.
        takes_lists: each of its references is a list of the accepted texts, and not just the first.
    """

    name: str
    source: str
    module: evaluate.EvaluationModule
    takes_lists: bool

    def score(self, answers: Sequence[str], accepted: Accepted) -> dict[str, float]:
        """Its numbers over all answers: one by the metric's own name, several as "metric.number".

        Lists in its result, of a number an example say, are left out.

        Raises:
            UserError: it fails, or returns no number.
        """
        references: list[Any] = [list(texts) if self.takes_lists else texts[0] for texts in accepted]
        if self.takes_lists:  # some metrics want as many of each: said twice, a reference changes nothing
            most = max(map(len, references))
            references = [texts + texts[:1] * (most - len(texts)) for texts in references]
        try:
            with redirect_stdout(sys.stderr):
                found = self.module.compute(predictions=list(answers), references=references)
        except Exception as error:  # it may do anything
            raise UserError(
                f"the metric {self.name} cannot score texts: {type(error).__name__}: {first_line(error)}",
                "take it out of the task's metrics, or use one of the toolkit's own",
            ) from error
        numbers = {
            key: float(value)
            for key, value in (found or {}).items()
            if isinstance(value, int | float | np.number) and not isinstance(value, bool)
        }
        if not numbers:
            raise UserError(
                f"the metric {self.name} returns no number, but {listed(list(found or {})) or 'nothing'}"
            )
        own = short(self.name)
        return {own if len(numbers) == 1 else f"{own}.{key}": value for key, value in numbers.items()}


def numbers_of(name: str, others: Sequence[str]) -> list[str]:
    """Those of the other numbers of a row that are a loaded metric's."""
    own = short(name)
    return [key for key in others if key == own or key.startswith(f"{own}.")]


def load_all(names: Sequence[str]) -> None:
    """Load metrics before they are needed.

    Raises:
        UserError: two have one name; or as `load`.
    """
    called: dict[str, str] = {}
    for name in names:
        other = called.setdefault(short(name), name)
        if other != name:
            raise UserError(
                f"the metrics {other} and {name} are both called {short(name)}", "measure one of them"
            )
        load(name)


def check_scripts(names: Sequence[str]) -> None:
    """Refuse a script of the user's own that is not there; nothing is loaded for it.

    Raises:
        UserError: as said.
    """
    for name in names:
        if name not in METRICS and is_path(name):
            _local(name)


@cache
def load(name: str) -> LoadedMetric:
    """The metric of a name or a path, tried on two texts.

    Raises:
        UserError: there is none, it cannot be had, it needs packages that are not installed, or it does not
            score texts.
    """
    script, source = _local(name) or _of_the_hub(name)
    with announced(f"loading the metric {name} ...", say_on_stderr):
        import evaluate

        try:
            with redirect_stdout(sys.stderr):
                module = evaluate.load(str(script), keep_in_memory=True)
        except Exception as error:  # a script may do anything
            raise _not_loaded(name, error) from error
        metric = LoadedMetric(name, source, module, _takes_lists(name, module))
        metric.score(TRIAL, [(text,) for text in TRIAL])
    return metric


def _local(name: str) -> tuple[Path, str] | None:
    """A script here, or the one that a folder has of its own name, and what it is recorded as."""
    path = Path(name).expanduser()
    script = path / f"{path.resolve().name}.py" if path.is_dir() else path
    if script.is_file() and script.suffix == ".py":
        return script, f"{script.name}, SHA-256 {hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"
    if not is_path(name):
        return None
    what = (
        f"holds no {script.name}"
        if path.is_dir()
        else "is not there"
        if not path.exists()
        else "is no script"
    )
    raise UserError(f"the metric {name} {what}", "give a Python script, or a folder with one of its own name")


def _of_the_hub(name: str) -> tuple[Path, str]:
    repository = Repository("space", name if "/" in name else f"{CANONICAL}/{name}")
    script = f"{name.rpartition('/')[2]}.py"
    try:
        path = repository.cached(script)
        info = repository.info(None if path is None else path.parent.name)
        if info is not None:
            files = [one.rfilename for one in info.siblings or () if re.fullmatch(r"\w+\.py", one.rfilename)]
            if script not in files:
                raise UserError(f"{repository.name} has no {script}", "look for a slip in the name")
            path = repository.fetch(script)
            for file in files:
                if file not in (script, "app.py"):  # that is the page that shows it
                    repository.fetch(file, path.parent.name)
    except UserError as error:
        raise type(error)(
            f"the metric {name!r} is not the toolkit's, and {error.message}", error.hint
        ) from error
    assert path is not None  # `info` raises where neither the Hub nor the cache has it
    source = f"{repository.name} at commit {path.parent.name}"
    say_on_stderr(f"note: the metric {name} is code from the Hub that runs on this machine: {source}")
    return path, source


def _not_loaded(name: str, error: Exception) -> UserError:
    needed = re.search(r"'pip install ([^']+)'", str(error)) if isinstance(error, ImportError) else None
    if needed:
        packages = needed[1].strip()
        if "," in packages:  # `evaluate` reads "import a, b" as the package "a,"
            return UserError(
                f"the metric {name} imports several modules in one line, which `evaluate` cannot read",
                "give each import of its script a line of its own",
            )
        return UserError(
            f"the metric {name} needs what is not installed: {packages}", f"pip install {packages}"
        )
    return UserError(f"the metric {name} cannot be loaded: {type(error).__name__}: {first_line(error)}")


def _takes_lists(name: str, module: evaluate.EvaluationModule) -> bool:
    """Whether references are lists of texts, where the metric lets us choose; predictions must be texts."""
    from datasets import Value

    kinds = module.features if isinstance(module.features, list) else [module.features]
    of_texts = [
        one for one in kinds if {"predictions", "references"} <= set(one) and _is_text(one["predictions"])
    ]
    if not of_texts:
        raise UserError(
            f"the metric {name} does not compare texts: it takes {listed([dict(one) for one in kinds])}",
            "a task's metric takes texts as predictions, and texts or lists of them as references",
        )
    return any(not isinstance(one["references"], Value) for one in of_texts)


def _is_text(feature: object) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")
