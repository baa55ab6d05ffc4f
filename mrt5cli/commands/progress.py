"""How far an evaluation is, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def examples_done(expected: int) -> Iterator[Callable[[str, str, int], None]]:
    """A bar for each model and subset when stderr is a terminal, else one line for each.

    Args:
        expected: examples a subset may have at most.
    """
    if not sys.stderr.isatty():
        yield _line_each()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[tuple[str, str], TaskID] = {}

        def report(name: str, subset: str, done: int) -> None:
            if (name, subset) not in known:
                known[name, subset] = bars.add_task(f"{name} {subset}", total=expected)
            bars.update(known[name, subset], completed=done)

        yield report


def _line_each() -> Callable[[str, str, int], None]:
    seen: set[tuple[str, str]] = set()

    def report(name: str, subset: str, done: int) -> None:
        if (name, subset) not in seen:
            seen.add((name, subset))
            print(f"evaluating {name}, {subset}", file=sys.stderr, flush=True)

    return report
