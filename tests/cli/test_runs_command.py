"""`mrt5 runs` as it is typed, in pipes and in terminals of several widths."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import record
from rich.cells import cell_len
from runs_of_commands import ENVIRONMENT, MRT5, started, wait_for
from test_pretrain import RECIPE
from typer.testing import CliRunner

from mrt5cli import recipe as recipes
from mrt5cli.cli import app
from mrt5cli.commands import runs as runs_commands
from mrt5cli.rundir import RunDir
from mrt5cli.runs import found
from mrt5cli.text import visible

HOSTILE = "odd \x1b[31mred\u202e\nname"
NAMES = ("mrt5-seed1", "two words", "\u05e8\u05d9\u05e6\u05d4-seed1", HOSTILE, "x" * 60)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def mrt5(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["runs", *words])
    assert result.exit_code == code, (words, result.output, result.exception)
    return result


def on_terminal(columns: int, *words: str, answer: str | None = None, **environment: str) -> tuple[str, int]:
    """What a terminal of so many columns shows of a command, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"} | {
        "TERM": "xterm-256color"
    }
    with subprocess.Popen(
        [sys.executable, *MRT5, "runs", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=kept | environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        if answer is not None:
            os.write(ours, answer.encode())
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        code = process.wait(60)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n"), code


def test_no_runs_name_a_command_that_works(runs: Path) -> None:
    assert mrt5().stdout == mrt5("list").stdout
    said = mrt5().stdout
    assert said == "there are no runs below runs/; train one: mrt5 pretrain quickstart_byt5\n"
    assert recipes.load(said.split()[-1]).model.start == "scratch"
    assert json.loads(mrt5("list", "--json").stdout) == []
    assert "elsewhere is not a folder" in mrt5("list", "elsewhere", code=2).stderr


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_list_fits_and_cuts_no_name(runs: Path, width: int) -> None:
    for number, name in enumerate(NAMES):
        record(runs / name, cross_entropy=number + 0.5, evaluation={"sequence_accuracy": 0.5})
    found.tag(RunDir(runs / NAMES[0]), ["baseline"], [])
    record(runs / "gone").recipe_path.unlink()
    shown, code = on_terminal(width, "list", "--sort", "name")
    assert code == 0 and "\x1b" not in shown and "\u202e" not in shown
    assert all(cell_len(line) <= max(width, cell_len(f"runs/{'x' * 60}")) for line in shown.splitlines()), (
        shown
    )
    for name in NAMES:
        assert visible(f"runs/{name}", lines=False) in shown
    assert (
        "runs/gone: damaged, it has no recipe.yaml" in " ".join(shown.split())
    ) and "Traceback" not in shown
    if width == 140:
        assert re.search(r"not shown at this width: .*size, task", shown) and "baseline" in shown
    piped = mrt5("list", "--sort", "name").stdout
    for header in ("run", "state", "entropy", "target %", "age", "tags", "result", "size", "task"):
        assert header in piped
    assert "seq. acc. 50.00 %" in piped and "25.0/25.0" in piped and "baseline" in piped


@pytest.mark.parametrize("command", ["", "list", "show", "compare", "best", "rm", "mv", "tag"])
def test_examples_in_help_stand_in_one_line(command: str) -> None:
    result = CliRunner().invoke(app, ["runs", *filter(None, [command]), "--help"], env={"COLUMNS": "80"})
    examples = [line for line in result.stdout.splitlines() if line.startswith("    mrt5 ")]
    given = [
        line for line in (command_of(command).__doc__ or "").splitlines() if line.startswith("      mrt5 ")
    ]
    assert len(given) > 1 and [line.strip() for line in examples] == [line.strip() for line in given]


def command_of(name: str) -> Callable[..., object]:
    callbacks = {one.name: one.callback for one in runs_commands.app.registered_commands}
    found_one = callbacks[name] if name else runs_commands._runs
    assert found_one is not None
    return found_one


def test_json_has_everything(runs: Path) -> None:
    record(
        runs / "a", evaluation={"sequence_accuracy": 0.5}, best={"metric": "loss", "value": 0.5, "step": 20}
    )
    with record(runs / "b", status="running", ended=None).hold():
        a, b = json.loads(mrt5("list", "--json", "--sort", "name").stdout)
    assert (a["run"], a["state"], a["step"], a["steps"], a["target"]) == ("runs/a", "finished", 40, 40, 0.25)
    assert a["logged"]["cross_entropy"] == 0.5 and a["best"]["step"] == 20 and a["bytes"] > 3000
    assert (
        a["evaluations"][0]["rows"][0]["sequence_accuracy"] == 0.5 and a["evaluations"][0]["split"] == "test"
    )
    assert b["state"] == "running" and b["process"]["pid"] == os.getpid() and b["process"]["host"]
    shown = json.loads(mrt5("show", "a", "--json").stdout)
    assert shown["recipe"]["training"]["max_steps"] == 40 and shown["curves"][0]["y"][-1] == 0.5
    compared = json.loads(mrt5("compare", "a", "b", "--json").stdout)
    assert [one["run"] for one in compared["runs"]] == ["runs/a", "runs/b"]


@pytest.mark.parametrize("width", [80, 140])
def test_show_and_compare_fit_a_terminal_and_are_plain_text(runs: Path, width: int) -> None:
    record(runs / "a-run-of-some-length", evaluation={"sequence_accuracy": 0.5, "loss": 0.2})
    record(
        runs / HOSTILE, steps=80, max_steps=80, target=0.5, status="failed", error="it \x1b[31m failed\nhere"
    )
    shown, code = on_terminal(width, "show", "a-run-of-some-length")
    assert code == 0 and max(map(cell_len, shown.splitlines())) <= width and "\x1b" not in shown, shown
    for text in (
        "finished, 40 of 40 steps",
        "target 25 %",
        "Sessions",
        "2 checkpoints: step 20, 40",
        "cross-entropy,",
    ):
        assert text in shown, text
    assert sum("\u2801" <= c <= "\u28ff" for c in shown) > 60
    shown, code = on_terminal(width, "compare", "a-run-of-some-length", f"runs/{HOSTILE}")
    assert code == 0 and max(map(cell_len, shown.splitlines())) <= width and "\x1b" not in shown, shown
    assert "controller.target_deletion_rate  0.25 (A), 0.5 (B)" in shown and "Last numbers" in shown
    shown, code = on_terminal(width, "show", f"runs/{HOSTILE}")
    assert "failed" in shown and r"it \x1b[31m failed" in shown.replace("\n", " ") and "\x1b" not in shown


def test_curves_in_ascii_where_a_stream_holds_no_more(runs: Path) -> None:
    record(runs / "a")
    words = [sys.executable, *MRT5, "runs", "show", "a"]
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run(words, capture_output=True, env=environment, timeout=60)
    assert (
        done.returncode == 0 and done.stdout.isascii() and b"\\u" not in done.stdout and b"***" in done.stdout
    )


def test_best_prints_a_path_alone(runs: Path) -> None:
    for name, accuracy in (("two words", 0.75), ("b", 0.5)):
        record(runs / name, evaluation={"sequence_accuracy": accuracy}, cross_entropy=accuracy)
    found_best = mrt5("best", "--metric", "sequence_accuracy")
    assert found_best.stdout == "runs/two words\n"
    assert (
        "75.00 %, the highest of 2 runs; vowel_removal, test split, 100 examples, hard" in found_best.stderr
    )
    quiet = mrt5("best", "--metric", "cross_entropy", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("runs/b\n", "")
    only = mrt5("best", "--metric", "cross_entropy", "-q", "--filter", "name=*two*")
    assert only.stdout == "runs/two words\n"
    document = json.loads(mrt5("best", "--metric", "sequence_accuracy", "--json").stdout)
    assert (
        document["run"] == "runs/two words" and document["better"] == "higher" and len(document["runs"]) == 2
    )
    none = mrt5("best", "--filter", "zzz", code=2)
    assert none.stdout == "" and "none of 2 runs meets zzz" in none.stderr and "leave out" in none.stderr
    missing = mrt5("best", "--metric", "f1", code=2)
    assert missing.stdout == "" and "there are: " in missing.stderr and "cross_entropy" in missing.stderr


def test_rm_asks_on_a_terminal_and_refuses_without(runs: Path) -> None:
    record(runs / "a")
    record(runs / "b", start="runs/a")
    refused = mrt5("rm", "a", code=2)
    assert "there is no terminal to ask on" in refused.stderr and "--yes" in refused.stderr
    assert "runs/b starts from it" in refused.stderr
    shown, code = on_terminal(100, "rm", "a", answer="n\n")
    assert code == 2 and "kB? [y/N]" in shown and "nothing was removed" in shown and (runs / "a").is_dir()
    shown, code = on_terminal(100, "rm", "a", answer="y\n")
    assert code == 0 and "removed runs/a" in shown and not (runs / "a").exists() and (runs / "b").is_dir()
    assert mrt5("rm", "b", "--checkpoints", "--yes").stdout == "removed runs/b/checkpoints\n"
    assert RunDir(runs / "b").saved_steps() == [] and (runs / "b" / "model").is_dir()
    with record(runs / "c").hold():
        said = " ".join(mrt5("rm", "b", "c", "--yes", code=2).stderr.split())
        assert f"runs/c cannot be removed: it is being trained, pid {os.getpid()}" in said
    assert (runs / "b").is_dir() and (runs / "c").is_dir()
    (record(runs / "d").model / "config.json").unlink()
    unfinished = mrt5("rm", "c", "d", "--checkpoints", "--yes", code=2)
    assert "has no finished model" in unfinished.stderr and unfinished.stdout == ""
    assert RunDir(runs / "c").saved_steps()


def test_mv_and_tag(runs: Path) -> None:
    record(runs / "a")
    record(runs / "b", start="runs/a")
    assert mrt5("tag", "a", "base", "paper/1").stdout == "base\npaper/1\n"
    assert mrt5("tag", "a", "--remove", "base").stdout == "paper/1\n"
    assert mrt5("mv", "a", "z").stdout == "moved runs/a to runs/z\nruns/b starts from there now\n"
    assert mrt5("tag", "z").stdout == "paper/1\n" and RunDir(runs / "b").recipe().model.start == "runs/z"
    assert mrt5("mv", "z", "kept/y").stdout.startswith("moved runs/z to kept/y\n")
    assert "runs/b is there already" in mrt5("mv", "kept/y", "runs/b", code=2).stderr
    assert "did you mean runs/b?" in mrt5("mv", "bb", "c", code=2).stderr
    assert "named twice" in mrt5("compare", "b", "runs/b", code=2).stderr
    assert "named twice" in mrt5("compare", "b", str((runs / "b").absolute()), code=2).stderr
    for name in (".", ".."):
        assert f"{name!r} is no name for a run" in mrt5("mv", "b", name, code=2).stderr


@pytest.mark.parametrize("words", [("show", "a"), ("compare", "a", "b")])
def test_pages_and_pictures(runs: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    record(runs / "a", evaluation={"loss": 0.5})
    record(runs / "b", steps=80, max_steps=80)
    mrt5(*words, "--html", "page.html", "--png", "curves.png")
    page = Path("page.html").read_text()
    assert page.count("<figure") == 3 and "http" not in page.replace("http://www.w3.org", "").replace(
        "https://www.w3.org", ""
    )
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    assert "pictures of this format cannot be written" in mrt5(*words, "--png", "curves.txt", code=2).stderr
    from mrt5cli.report import run_pages

    monkeypatch.setattr(run_pages, "can_draw", lambda: False)
    mrt5(*words, "--html", "other.html")
    other = Path("other.html").read_text()
    assert "<figure" not in other and "pip install &#39;matplotlib" in other and "<h2" in other
    refused = " ".join(mrt5(*words, "--png", "other.png", code=2).stderr.split())
    assert "--png needs matplotlib, which is not installed hint: pip install 'matplotlib" in refused
    assert not Path("other.png").exists()


@pytest.mark.browser
def test_a_page_fits_a_telephone_and_a_desk(runs: Path, browser: Any) -> None:
    long = "a-run-with-a-name-that-is-longer-than-a-telephone-is-wide"
    record(runs / long, evaluation={"loss": 0.5})
    record(runs / "<b>bold</b>", steps=80, max_steps=80)
    mrt5("show", long, "--html", "show.html")
    mrt5("compare", long, "runs/<b>bold</b>", "--html", "compare.html")
    for name in ("show", "compare"):
        for width in (380, 1200):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(Path(f"{name}.html").absolute().as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("figure").count() == 3 and page.locator("td b, svg b").count() == 0
            box = page.locator("figure svg:visible").first.bounding_box()
            assert box["width"] <= width and box["height"] > 100
            page.close()


@pytest.mark.slow
def test_a_run_is_listed_and_shown_while_it_trains(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = RunDir(runs / "t")
    words = (
        "pretrain",
        "tiny.yaml",
        "--out",
        "runs/t",
        "--set",
        "training.max_steps=1000000",
        "--device",
        "cpu",
    )
    with started(tmp_path, *MRT5, *words) as process:
        wait_for(lambda: len(run.saved_steps()) > 0, process)
        for _ in range(20):
            shown = mrt5("list").stdout
            assert "running" in shown and f"runs/t: running, pid {process.pid} on host" in " ".join(
                shown.split()
            )
            assert "running" in mrt5("show", "t").stdout
        assert "being trained" in " ".join(mrt5("rm", "t", "--yes", code=2).stderr.split())
        assert "being trained" in " ".join(mrt5("mv", "t", "u", code=2).stderr.split())
        mrt5("tag", "t", "watched")
        lines = len(run.metrics())
        wait_for(lambda: len(run.metrics()) > lines + 2, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "stale" in mrt5("list").stdout
    assert "watched" in mrt5("list").stdout
