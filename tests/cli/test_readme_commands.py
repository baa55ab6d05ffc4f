"""Every command in every document is accepted by the command line and runs at toy scale (marked `readme`)."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hubsim
import pytest
import readme_commands
import tiny_runs
import typer
from hub_server import HubServer
from readme_commands import ROOT, Shell, Shown

from mrt5cli.cli import MISTYPED, app
from mrt5cli.recipe.loading import load, shipped

READMES = [
    path
    for path in sorted(
        {
            ROOT / "README.md",
            *ROOT.glob("mrt5cli/**/*.md"),
            *ROOT.glob("recipes/**/*.md"),
            *ROOT.glob("tests/benchmarks/*.md"),
        }
    )
    if path != ROOT / "mrt5cli/commands/README.md"  # written from the help; see test_readmes.py
]
SHOWN = {str(path.relative_to(ROOT)): readme_commands.shown(path) for path in READMES}
MENTIONED = {str(path.relative_to(ROOT)): readme_commands.mentioned(path) for path in READMES}
_INCOMPLETE = re.compile(r"Missing parameter|requires an argument")
_RUN = re.compile(r"(?<![\w./-])(?:runs/)?([\w.-]+-seed\d+)\b")
_TASK = re.compile(r"mrt5 evaluate --task (\w+)")
_FILE = re.compile(r"`([\w.]+\.(?:py|yaml))`[^`]*\n\n```(?:python|yaml)\n(.*?)```", re.DOTALL)
"""A file that a document shows, with its name before the block."""
_NEEDS = re.compile(r"needs the packages? ([\w-]+)")


def accept(words: list[str]) -> None:
    """Parse the words of an `mrt5` command without running it.

    Raises:
        MISTYPED: no such command or option, a value out of range, an argument that is missing.
    """
    for place in reversed([place for place, word in enumerate(words) if word == "--code"]):
        words = words[:place] + words[place + 2 :]  # the file that the document shows is not written yet
    command = typer.main.get_command(app)
    context = command.make_context("mrt5", list(words))
    while words and hasattr(command, "resolve_command"):
        words = [*context._protected_args, *context.args]
        if not words:
            return
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, list(words), parent=context)


def every_command(lines: list[Shown]) -> Iterator[tuple[Shown, list[str]]]:
    for line in lines:
        for words in line.commands():
            if words and words[0] == "mrt5":
                yield line, words[1:]


def test_commands_are_found() -> None:
    assert len(SHOWN["README.md"]) >= 15
    assert sum(map(len, SHOWN.values())) > 60 and sum(map(len, MENTIONED.values())) > 40


@pytest.mark.parametrize("readme", SHOWN)
def test_the_command_line_accepts_them(readme: str) -> None:
    for line, words in every_command(SHOWN[readme]):
        try:
            accept(words)
        except MISTYPED as error:
            pytest.fail(f"{line}: {error}")
        except typer.Exit:
            pass  # --help and --version
        if words[0] in ("pretrain", "finetune") and "." not in words[1] and not words[1].startswith("runs/"):
            assert words[1] in shipped(), f"{line}: no shipped recipe has this name"


@pytest.mark.parametrize("readme", MENTIONED)
def test_the_command_line_accepts_what_prose_mentions(readme: str) -> None:
    for line, words in every_command(MENTIONED[readme]):
        try:
            accept(words)
        except MISTYPED as error:
            is_group = str(error).startswith("Usage:")  # named alone, it shows its help
            assert is_group or _INCOMPLETE.search(str(error)), f"{line}: {error}"
        except typer.Exit:
            pass


@pytest.mark.parametrize("readme", SHOWN)
def test_make_has_the_targets(readme: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in [*SHOWN[readme], *MENTIONED[readme]]:
        for words in line.commands():
            if words and words[0] == "make":
                asked = {word for word in words[1:] if "=" not in word}
                assert asked <= targets, f"{line}: make has no {asked - targets}"


# --- running them -------------------------------------------------------------------------------------------

PAIRS = "".join(f"{kind}\tword {kind} {number}\tWORD {number}\n" for kind in "ab" for number in range(40))
FILES = {
    "my_texts/one.txt": "Some text of one's own, long enough to be a document.\n" * 40,
    "my_texts/two.txt": "And another one, which differs from the first in every line.\n" * 40,
    "pairs.tsv": f"kind\tinput\ttarget\n{PAIRS}",
    ".venv/bin/activate": "",  # of `make setup`, which is not run
    "lines.txt": "first line\nsecond line\n",
}
"""What the reader has, and our documents name."""


def _publish_tiny(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        run = tiny_runs.make_run(Path(elsewhere), "published")
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)


@pytest.mark.slow
@pytest.mark.readme
@pytest.mark.parametrize("readme", [name for name, lines in SHOWN.items() if lines])
def test_they_run(readme: str, tmp_path: Path, hub: HubServer) -> None:
    """From top to bottom, in one folder, so that a command finds what those before it have made.

    Runs that no command before has made are tiny ones, untrained.
    """
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, text in _FILE.findall((ROOT / readme).read_text(encoding="utf-8")):
        (tmp_path / name).write_text(text)
    hub.provide(*hubsim.MAKERS)
    hub.add("models/stanfordnlp/mrt5-small", _publish_tiny)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shell = Shell(tmp_path, hub.environment())
    try:
        for line in SHOWN[readme]:
            for name in _RUN.findall(line.text):
                if not (tmp_path / "runs" / name).exists():
                    tiny_runs.make_run(tmp_path / "runs", "made").rename(tmp_path / "runs" / name)
            for task in _TASK.findall(line.text):
                if not (
                    tmp_path / "runs" / task
                ).exists():  # it is trained with --smoke, which is no run of one's own
                    section = load(f"{task}_v3/byt5").task.model_dump(mode="json", exclude_unset=True)
                    tiny_runs.make_run(tmp_path / "runs", task, task=section).rename(tmp_path / "runs" / task)
            if "--heatmap" in line.text:  # a training that still has a checkpoint
                for run in (tmp_path / "runs" / name for name in _RUN.findall(line.text)):
                    shutil.copytree(run / "model", run / "checkpoints/step-00000001", dirs_exist_ok=True)
            done = shell.run(line.text)
            needed = _NEEDS.search(done.stderr)
            if needed and any(f"pip install {needed[1]}" in before.text for before in SHOWN[readme]):
                continue  # an extra that the document has just had the reader install
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    finally:
        shell.close()
