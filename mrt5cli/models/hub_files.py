"""Resolves the name of a model to a local folder, which is all that readers of checkpoints see.

The name is a run, a checkpoint, or a model on the Hugging Face Hub, which is resolved to a commit and
downloaded once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.errors import CheckpointError
from mrt5cli.hub import Repository
from mrt5cli.models.layouts import read_raw_config, shown
from mrt5cli.models.weights import (
    PICKLE,
    PICKLE_INDEX,
    SAFE,
    SAFE_INDEX,
    check_files,
    pickles_refused,
    shards_in,
)
from mrt5cli.rundir import ADAPTER, adapter_refused, resolve_model
from mrt5cli.text import listed

if TYPE_CHECKING:
    from mrt5cli.rundir import RunDir

CONFIG = "config.json"
COMPANIONS = ("generation_config.json", "recipe.yaml")
"""Optional small files: how to generate, and the task the model was trained on."""
WEIGHTS = ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX))
"""Each format as one file, or as an index of several; the first one found is used."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A local checkpoint directory, with its run or its commit on the Hub, if any."""

    folder: Path
    run: RunDir | None = None
    commit: str | None = None


def locate(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = True,
    weights: bool = True,
) -> Located:
    """The folder of a run directory, a checkpoint directory or a Hub id, downloaded if necessary.

    Args:
        path_or_hub_id: a run means its finished model or, until that exists, its latest checkpoint.
        revision: branch, tag or commit, for Hub ids only.
        allow_pickle: False refuses a model that has only pickles, before downloading it.
        weights: False does not download the weights of a Hub model.

    Raises:
        UserError: it is neither a run, a checkpoint nor a Hub id, or the Hub model is not available.
    """
    where, run = resolve_model(path_or_hub_id)
    found = Located(Path(where), run)
    if not found.folder.is_dir():
        found = snapshot(where, revision, allow_pickle=allow_pickle, weights=weights)
    elif revision is not None:
        raise CheckpointError(
            f"{path_or_hub_id} is a local directory and has no revision {revision!r}; only Hub models do",
            "leave out the revision",
        )
    if not allow_pickle and check_files(found.folder):
        raise pickles_refused(shown(found.folder))
    return found


def snapshot(
    hub_id: str, revision: str | None = None, *, allow_pickle: bool = True, weights: bool = True
) -> Located:
    """A Hub model in the local cache, at the commit that a revision points to now.

    Without a network, or with HF_HUB_OFFLINE, it is the commit of the last download. safetensors files are
    preferred to pickles. The arguments are those of `locate`.

    Raises:
        UserError: the model or revision does not exist or may not be read, or neither Hub nor cache has it.
        CheckpointError: it is not a supported model.
    """
    repository = Repository("model", hub_id, revision, logger.warning)
    cached = _cached(repository.cached(CONFIG), weights)
    info = repository.info(cached.commit if cached else None)
    if info is None:
        assert cached is not None
        return cached
    names = [file.rfilename for file in info.siblings or ()]
    return _downloaded(repository, names, allow_pickle, weights)


def _cached(config: Path | None, weights: bool) -> Located | None:
    """The cached model that a config.json belongs to, if it is complete."""
    if config is None:
        return None
    if weights:
        try:
            check_files(config.parent)
        except CheckpointError:
            return None
    return Located(config.parent, commit=config.parent.name)


def _downloaded(repository: Repository, names: list[str], allow_pickle: bool, weights: bool) -> Located:
    """Download the model, config.json first, to refuse an unsupported model before its weights."""
    if CONFIG not in names and ADAPTER in names:
        raise adapter_refused(repository.name)
    if CONFIG not in names:
        raise CheckpointError(
            f"{repository.name} is not a checkpoint: its repository on the Hub has no {CONFIG}"
        )
    # By the name of the revision, so that the cache records which commit that is.
    config = repository.fetch(CONFIG)
    commit = config.parent.name
    read_raw_config(config, repository.name)
    for name in COMPANIONS:
        if name in names:
            repository.fetch(name, commit)
    if weights:
        format = next(((one, index) for one, index in WEIGHTS if one in names or index in names), None)
        if format is None:
            raise CheckpointError(
                f"{repository.name} has no weights that can be read; expected {SAFE} or {PICKLE}, or the "
                f"index of one, but there is only {listed(names)}"
            )
        single, index = format
        if single == PICKLE and not allow_pickle:
            raise pickles_refused(repository.name)
        for name in [single] if single in names else shards_in(repository.fetch(index, commit)):
            repository.fetch(name, commit)
    return Located(config.parent, commit=commit)
