"""`mrt5 docs`: every Markdown file of the package is a topic; a pipe gets it as is, a terminal formatted."""

from __future__ import annotations

import pydoc
import re
import subprocess
import sys
import webbrowser
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from typer.testing import CliRunner

import mrt5cli
from mrt5cli import documentation
from mrt5cli.cli import app
from mrt5cli.commands import docs
from mrt5cli.documentation import summary, text, topics

PACKAGE = Path(mrt5cli.__file__).parent
NAMED = {
    "readme",
    "house",
    "api",
    "models",
    "shorteners",
    "tasks",
    "data",
    "commands",
    "recipes",
    "changelog",
}


def told(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["docs", *words])
    assert result.exit_code == code, result.output
    return result.stdout or result.stderr


def test_every_markdown_file_is_a_topic_of_its_own() -> None:
    found = topics()
    files = {*PACKAGE.rglob("*.md"), PACKAGE.parent / "README.md", PACKAGE.parent / "recipes/README.md"}
    assert set(found.values()) == files
    assert found.keys() >= NAMED


def test_the_list_has_a_line_with_title_and_first_sentence_for_each() -> None:
    lines = told().splitlines()
    assert [line.split()[0] for line in lines] == list(topics())
    assert all(re.fullmatch(r"  \S+ +\S.*: .*[.:]?", line) for line in lines), lines
    assert not any(sign in line for line in lines for sign in ("](", "`", "**"))


def test_the_list_is_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "columns", lambda _: 70)
    assert max(map(len, told().splitlines())) <= 70  # although some sentences contain "mrt5 ", as commands do


@pytest.mark.parametrize(
    "page, line",
    [
        ("# A page\n\nFirst, e.g.x. Second.\n", "A page: First, e.g.x."),
        (
            "# `mrt5`\n\n    code\n\n| a | b |\n|---|---|\n\nA [link](x.md) to\n**it**: b. C.",
            "mrt5: A link to it: b.",
        ),
        ("# T\n\n- a list\n  that goes on\n\n```sh\nmrt5\n\nmore\n```\n\nProse", "T: Prose"),
        ("# T\n\n<picture>\n  <img>\n</picture>\n\n![alt](a.png)\n\nWhat follows:\n", "T: What follows"),
        ("# Only a title\n", "Only a title"),
        ("", ""),
    ],
)
def test_the_summary_is_prose(page: str, line: str) -> None:
    assert summary(page) == line


@pytest.mark.parametrize("topic", topics())
def test_a_pipe_gets_the_markdown_and_a_path_leads_to_it(topic: str) -> None:
    path = Path(told(topic, "--path").rstrip("\n"))
    assert told(topic.upper()) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("topic", ["house", "models"])
def test_a_terminal_gets_it_formatted_in_a_pager(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(pydoc, "pager", shown.append)
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = topics()[topic]
    docs._page(text(topic, file))
    (page,) = shown
    plain = re.sub(r"\x1b\[[\d;]*m", "", page)
    assert "\x1b[1" in page and "\x1b]8" not in page  # no links: older pagers print them as they are
    assert "README.md)" not in plain and "\n##" not in plain
    assert max(map(len, plain.splitlines())) <= 72


def test_a_wrong_topic_suggests_the_nearest() -> None:
    assert (
        told("shortener", code=2) == "error: there is no topic 'shortener'\nhint: did you mean shorteners?\n"
    )
    assert told("zzzz", code=2).endswith("hint: `mrt5 docs` lists the topics\n")
    assert "need one" in told("--open", code=2)


def test_a_browser_gets_a_page_whose_links_lead_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    told("models", "--open")
    page = Path(unquote(urlparse(opened[0]).path))
    html = page.read_text(encoding="utf-8")
    page.unlink()
    assert f'<base href="{(PACKAGE / "models/README.md").as_uri()}">' in html
    assert "<table>" in html and "<h2 id=" in html
    anchors = re.findall(rf'href="{re.escape(opened[0])}#([^"]+)"', html)
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_no_browser_is_an_error_that_says_where_the_page_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    said = told("house", "--open", code=2)
    assert said.startswith("error: no browser could be opened for ") and "mrt5 docs house" in said
    Path(re.search(r"for (\S+)", said)[1]).unlink()


def test_the_top_readme_of_an_installed_package_is_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "topics", lambda: {"readme": None})
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Description": "\n# mrt5\n\nFast, ü.\n"})
    assert told() == "  readme  mrt5: Fast, ü.\n"
    assert told("readme") == "# mrt5\n\nFast, ü.\n"
    assert "no README.md" in told("readme", "--path", code=2)

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    assert "without its README" in told("readme", code=2)


def test_markdown_is_imported_for_a_terminal_only() -> None:
    code = (
        "import sys; sys.argv = ['mrt5', 'docs']\nfrom mrt5cli.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'rich.markdown', 'markdown_it', 'torch', 'yaml'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
