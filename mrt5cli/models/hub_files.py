"""What a user names as a model, as a folder on this machine: a run, a checkpoint, or a model of the Hugging
Face Hub, which is resolved to a commit and downloaded once. What reads checkpoints reads folders only.
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
BESIDE = ("generation_config.json", "recipe.yaml")
"""Small files that come along if the repository has them: how to generate, and the task it was trained on."""
WEIGHTS = ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX))
"""Each format in one file or, by its index, in several; the first that is there is taken."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A checkpoint directory on this machine, with its run or its commit on the Hub where it has one."""

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
    """The folder of a run directory, a checkpoint directory or a Hub id, downloaded if need be.

    Args:
        path_or_hub_id: a run stands for its finished model, or its latest checkpoint while there is none.
        revision: branch, tag or commit, of a Hub id only.
        allow_pickle: False refuses a model whose weights are in pickles alone, before it is downloaded.
        weights: False leaves the weights of a Hub model where they are.

    Raises:
        UserError: it is none of the three, or the Hub model cannot be had.
    """
    where, run = resolve_model(path_or_hub_id)
    found = Located(Path(where), run)
    if not found.folder.is_dir():
        found = snapshot(where, revision, allow_pickle=allow_pickle, weights=weights)
    elif revision is not None:
        raise CheckpointError(
            f"{path_or_hub_id} is a directory here, and has no revision {revision!r}: only Hub models do"
        )
    if not allow_pickle and check_files(found.folder):
        raise pickles_refused(shown(found.folder))
    return found


def snapshot(
    hub_id: str, revision: str | None = None, *, allow_pickle: bool = True, weights: bool = True
) -> Located:
    """A model of the Hub in the local cache, at the commit that a revision means now.

    Without a network, or with HF_HUB_OFFLINE, what it meant when it was last downloaded. Weights are taken
    from safetensors files, or else from pickles. The arguments are those of `locate`.

    Raises:
        UserError: there is no such model or revision, it may not be read, or neither Hub nor cache has it.
        CheckpointError: its files are not those of a model of ours.
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
    """The model beside a config.json in the local cache, if all that is needed of it is there."""
    if config is None:
        return None
    if weights:
        try:
            check_files(config.parent)
        except CheckpointError:
            return None
    return Located(config.parent, commit=config.parent.name)


def _downloaded(repository: Repository, names: list[str], allow_pickle: bool, weights: bool) -> Located:
    """The model as the Hub has it now, config.json first: another kind of model is refused before its weights
    are downloaded."""
    if CONFIG not in names and ADAPTER in names:
        raise adapter_refused(repository.name)
    if CONFIG not in names:
        raise CheckpointError(
            f"{repository.name} is not a checkpoint: its repository on the Hub has no {CONFIG}"
        )
    # By the name of the revision, so that the cache knows which commit that is.
    config = repository.fetch(CONFIG)
    commit = config.parent.name
    read_raw_config(config, repository.name)
    for name in BESIDE:
        if name in names:
            repository.fetch(name, commit)
    if weights:
        format = next(((one, index) for one, index in WEIGHTS if one in names or index in names), None)
        if format is None:
            raise CheckpointError(
                f"{repository.name} has no weights that can be read, in {SAFE} or {PICKLE} or by an index of "
                f"one: only {listed(names)}"
            )
        single, index = format
        if single == PICKLE and not allow_pickle:
            raise pickles_refused(repository.name)
        for name in [single] if single in names else shards_in(repository.fetch(index, commit)):
            repository.fetch(name, commit)
    return Located(config.parent, commit=commit)
