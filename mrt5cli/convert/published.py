"""A recipe without local paths, which are useless to others and may be private."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrt5cli import recipe as recipes
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import DEFAULT_FOLDER, HUB_ID

PLACES = {"start": "./your-start", "path": "./your-data"}
"""Keys of files and directories, and their placeholders in a published recipe."""
ELSEWHERE = "your-own"
FREE_TEXT = ("description", "note")
LOCAL = re.compile(r"[/~\\]|\.{1,2}/|[A-Za-z]:[/\\]")
"""The beginning of a string that is certainly a path."""
PATH_IN_TEXT = re.compile(r"(?<![\w:/.~-])(?:(?:~|\.{1,2})?[/\\][\w.@+-]|[A-Za-z]:[/\\])[^\s'\"`,;)]*(?<!\.)")


def published(recipe: Recipe) -> tuple[Recipe, str, list[str]]:
    """Replace the paths in a recipe by placeholders.

    Returns:
        The valid recipe; its recipe.yaml, with a comment that lists the placeholders; their keys.
    """
    tree = recipe.model_dump(mode="json")
    replaced = list(_replace(tree, "", hub_base(recipe)))
    clean = Recipe.model_validate(tree)
    head = f"# Local paths were removed: set your own for {', '.join(replaced)}.\n" if replaced else ""
    return clean, head + recipes.dump(clean), replaced


def hub_base(recipe: Recipe) -> str | None:
    """The Hub model that training started from; None for any other start."""
    start = recipe.model.start
    is_id = start.count("/") == 1 and HUB_ID.fullmatch(start) is not None
    # Paths of runs look like Hub ids, and the run may no longer exist on this machine.
    is_path = start.startswith(f"{DEFAULT_FOLDER}/") or Path(start).exists()
    return start if is_id and not is_path else None


def _replace(tree: Any, where: str, base: str | None) -> Iterator[str]:
    """Put placeholders into a dumped recipe; yields their keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict | list):
            yield from _replace(value, place, base)
        elif not isinstance(value, str) or value in ("scratch", base):
            continue
        elif key in FREE_TEXT:
            tree[key] = PATH_IN_TEXT.sub("(a path)", value)
        elif key in PLACES or LOCAL.match(value):
            # Sources of a mixture are named after their paths, which must stay distinct.
            number = where.rpartition(".")[2]
            tree[key] = PLACES.get(str(key), ELSEWHERE) + (f"-{number}" if number.isdigit() else "")
            yield place
