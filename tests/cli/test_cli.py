"""The shell of the `mrt5` command: help without waiting, one boundary for errors, exit codes, the wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mrt5cli import __version__, cli
from mrt5cli.errors import RecipeError, RunFailed, UserError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "pyarrow", "rich", "yaml")


def mrt5(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mrt5cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipe", "--help"], ["recipe", "check", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    heavy = HEAVY if arguments[0] == "recipe" else (*HEAVY, "importlib.metadata")
    code = (
        "import sys\n"
        f"sys.argv = ['mrt5', *{arguments!r}]\n"
        "from mrt5cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_every_command_is_there_with_a_line_that_is_not_cut_off() -> None:
    help_text = CliRunner().invoke(cli.app, ["--help"]).stdout
    for command in ("pretrain", "evaluate", "inspect-deletions", "recipe"):
        assert f"\n  {command} " in help_text
    assert "..." not in help_text.split("Prepare:")[1]


def test_version() -> None:
    assert mrt5("--version").stdout == f"mrt5 {__version__}\n"


def test_no_command_is_answered_with_help_and_exit_code_2() -> None:
    done = mrt5()
    assert done.returncode == 2 and "Usage: mrt5 [OPTIONS]" in done.stdout + done.stderr


def test_a_mistyped_command_is_a_usage_error() -> None:
    done = mrt5("recipes")
    assert done.returncode == 2 and done.stdout == ""
    assert "recipes" in done.stderr and "Traceback" not in done.stderr


# --- the boundary -------------------------------------------------------------------------------------------


def boundary(action: Callable[[], None]) -> typer.Typer:
    """An app like ours with one command that does `action`."""
    app = typer.Typer(cls=cli.Boundary, rich_markup_mode=None)

    @app.callback()
    def _group() -> None: ...

    app.command("act")(action)
    return app


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (UserError("no such thing", "look elsewhere"), 2, "error: no such thing\nhint: look elsewhere\n"),
        (RunFailed("loss is nan", "lower the rate"), 1, "error: loss is nan\nhint: lower the rate\n"),
        (
            RecipeError("a.yaml", [("x", "unknown"), ("yy", "missing")]),
            2,
            "error: a.yaml has 2 problems\n  x   unknown\n  yy  missing\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (typer.Exit(7), 7, ""),
    ],
)
def test_what_a_user_can_cause_is_a_sentence_and_an_exit_code(
    error: BaseException, code: int, stderr: str
) -> None:
    result = CliRunner().invoke(boundary(raising(error)), ["act"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", stderr)


def test_a_bad_checkpoint_is_bad_input() -> None:
    from mrt5cli.models import CheckpointError

    result = CliRunner().invoke(boundary(raising(CheckpointError("x is no checkpoint"))), ["act"])
    assert (result.exit_code, result.stderr) == (2, "error: x is no checkpoint\n")


def test_other_value_errors_are_not_swallowed() -> None:
    result = CliRunner().invoke(boundary(raising(ValueError("oops"))), ["act"])
    assert isinstance(result.exception, ValueError)


def test_debug_shows_the_traceback_of_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRT5_DEBUG", "1")
    result = CliRunner().invoke(boundary(raising(UserError("no"))), ["act"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback ") and result.stderr.endswith("error: no\n")


@pytest.mark.parametrize(
    ("error", "stderr"),
    [
        (
            ZeroDivisionError("division\nby zero"),
            "error: ZeroDivisionError: division by zero\n"
            "hint: this is a bug in mrt5cli; MRT5_DEBUG=1 shows where it happened\n",
        ),
        (
            AssertionError(),
            "error: AssertionError\nhint: this is a bug in mrt5cli; MRT5_DEBUG=1 shows where it happened\n",
        ),
        (
            OSError(28, "No space left on device", "runs/x"),
            "error: runs/x cannot be written: No space left on device\n"
            "hint: free some space there, or choose another location\n",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "error: the package 'torch' is not installed\nhint: `pip check` lists what is missing\n",
        ),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_the_unexpected_is_one_sentence_and_exit_code_1(
    error: Exception,
    stderr: str,
    debug: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    monkeypatch.setenv("MRT5_DEBUG", "1" if debug else "0")
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code == 1 and printed.out == ""
    assert printed.err.endswith(stderr)
    assert printed.err.startswith("Traceback " if debug else "error: ")


def test_ctrl_c_in_a_process_is_exit_code_130() -> None:
    code = (
        "import os, signal, sys, typer\n"
        "from mrt5cli import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "@cli.app.command()\n"
        "def act() -> None:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['mrt5', 'act']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("arguments", [["recipe", "schema"], ["recipe", "list"], ["--version"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet(arguments: list[str], unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mrt5cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=120), errors) == (141, b"")


# --- packaging ----------------------------------------------------------------------------------------------


def test_pyproject_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for init in ROOT.glob("mrt5cli/**/__init__.py")
    }
    assert set(settings["packages"]) == folders | {"mrt5cli.recipes"}


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools builds the wheel")
def test_the_wheel_carries_the_recipes_and_finds_them(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("mrt5cli", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run(
        [*build, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def data_below(folder: Path, root: Path) -> set[Path]:
        kinds = (".yaml", ".j2", ".css", ".mplstyle", ".typed")
        return {path.relative_to(root) for path in folder.rglob("*") if path.suffix in kinds}

    carried = data_below(site / "mrt5cli", site / "mrt5cli")
    recipes = data_below(ROOT / "recipes", ROOT)
    data = data_below(ROOT / "mrt5cli", ROOT / "mrt5cli")
    assert carried == recipes | data
    yaml = {Path(f"{name}.yaml") for name in ("paper/published", "paper/unmatched", "suite/suites/paper")}
    assert yaml | {Path("py.typed")} <= data

    checked = subprocess.run(
        [sys.executable, "-m", "mrt5cli", "recipe", "check", "quickstart", "--no-build", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        timeout=120,
    )
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)[0]["file"] == "site/mrt5cli/recipes/quickstart.yaml"
