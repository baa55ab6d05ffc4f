"""The README at the top is short enough to be read, and no README points to what is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.cli import get_docs_for_click

from mrt5cli.cli import app

ROOT = Path(__file__).parents[2]
READMES = sorted(
    {
        ROOT / "README.md",
        *ROOT.glob("mrt5cli/**/*.md"),
        *ROOT.glob("recipes/**/*.md"),
        *ROOT.glob("tests/benchmarks/*.md"),
    }
)


def test_what_a_newcomer_reads_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", readme.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        found = readme.parent / name if name else readme
        assert found.exists(), link
        titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
        }, link


def test_the_page_of_the_commands_says_what_their_help_says() -> None:
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="mrt5")
    written = (ROOT / "mrt5cli/commands/README.md").read_text(encoding="utf-8")
    assert written == f"{page.strip()}\n", "run `make docs`"
