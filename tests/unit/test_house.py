"""The house has floors, and imports run down: to a lower floor, or to a neighbour that does not call back."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = """
    __main__
    cli commands
    report
    suite drafting
    training analysis benchmark
    convert
    evaluation
    generation
    tasks
    data subject runs
    models
    rundir fingerprint
    recipe paper
    metrics
    bars hub json_files locks manifest output own_code places runtime stand_ins stopping writing
    batching bounds byte_tokens documentation errors extras templates text mrt5cli
"""
"""Rooms from the roof to the ground: packages of mrt5cli, its single files, and the package's own name and
version. A run directory reads its recipe, so it and the fingerprint of a recipe stand above recipes; and
recipes choose the best weights by a metric of the catalog, so metrics stand below."""
LEVEL = {room: level for level, floor in enumerate(FLOORS.strip().splitlines()) for room in floor.split()}


def test_imports_run_down() -> None:
    arrows = defaultdict(set)
    for path in (ROOT / "mrt5cli").rglob("*.py"):
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            arrow = room(path), module.partition(".")[2].partition(".")[0] or "mrt5cli"
            arrows[arrow].add(f"{path.relative_to(ROOT)} imports {module}")
    arrows = {(upper, lower): places for (upper, lower), places in arrows.items() if upper != lower}
    assert {upper for upper, _ in arrows} | {lower for _, lower in arrows} == set(LEVEL)
    up = {arrow: places for arrow, places in arrows.items() if LEVEL[arrow[1]] < LEVEL[arrow[0]]}
    assert up == {}
    graph = defaultdict(set)
    for upper, lower in arrows:
        graph[upper].add(lower)
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


ROOMS = sorted(path.parent.name for path in (ROOT / "mrt5cli").glob("*/__init__.py"))


CIRCLES = {"models": "a configuration looks its shortener up, and shorteners are typed by configurations"}


@pytest.mark.parametrize("name", [room for room in ROOMS if room not in CIRCLES])
def test_files_of_a_room_do_not_import_in_circles_not_even_types(name: str) -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "mrt5cli" / name).rglob("*.py")
    }
    graph = defaultdict(set)
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                taken = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= (taken & modules.keys()) or ({str(node.module)} & modules.keys())
    assert graph
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of ours that a file imports, in functions too; not those that only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "mrt5cli":
            rooms = (alias.name for alias in node.names)
            yield from (f"mrt5cli.{name}" if name in LEVEL else "mrt5cli" for name in rooms)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mrt5cli."):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "mrt5cli")
        yield from imported(node)


def room(path: Path) -> str:
    """What a file of mrt5cli belongs to: a package, or it is a room of its own."""
    first = path.relative_to(ROOT / "mrt5cli").parts[0]
    return "mrt5cli" if first == "__init__.py" else first.removesuffix(".py")
