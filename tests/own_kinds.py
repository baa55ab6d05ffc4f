"""Kinds that a test registers, forgotten when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mrt5cli import own_code
from mrt5cli.metrics import catalog, scoring
from mrt5cli.models import shorteners as modules
from mrt5cli.recipe import shorteners as sections
from mrt5cli.recipe import tasks
from mrt5cli.recipe.section import take_in_added_kinds
from mrt5cli.tasks import base

LISTS: list[list[type]] = [tasks.SECTIONS, sections.SHORTENERS]
TABLES = (modules.SHORTENERS, catalog.METRICS, scoring.OWN, own_code.IMPORTED, own_code.FAILED)


@contextmanager
def forgotten() -> Iterator[None]:
    """What is imported and registered meanwhile is not there before it, nor after it."""
    lists, tables, packages = [list(one) for one in LISTS], [dict(one) for one in TABLES], own_code.PACKAGES
    own_code.PACKAGES = None
    try:
        yield
    finally:
        for there, before in zip(LISTS, lists, strict=True):
            there[:] = before
        for table, entries in zip(TABLES, tables, strict=True):
            table.clear()
            table.update(entries)
        # The toolkit's own tasks register when they are first used, and only once.
        for kind, task in list(base._TASKS.items()):
            if not task.__module__.startswith("mrt5cli."):
                del base._TASKS[kind]
        own_code.PACKAGES = packages
        take_in_added_kinds()
