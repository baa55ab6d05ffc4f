"""A disk that fills up in the middle: a sentence with place, need and room; and nothing whole is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_pretrain import RECIPE

from mrt5cli import cli
from mrt5cli.errors import RunFailed
from mrt5cli.generation.outputs import Output, note_of
from mrt5cli.report import page
from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = RECIPE.replace("max_steps: 60", "max_steps: 12").replace("save_steps: 7", "save_steps: 4")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SHORT)
    return tmp_path


def mrt5(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mrt5", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def refuse(number: int, when: Callable[[str], bool]) -> Callable[[int], None]:
    """An `os.fsync` that refuses files and folders by their path."""
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if when(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    return refusing


@pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the system does not say what a file is called"
)
@pytest.mark.parametrize(
    ("full_at", "saved", "named"),
    [
        pytest.param(
            *("step-00000004/optimizer.pt", [], "run/checkpoints/step-00000004"), marks=pytest.mark.slow
        ),
        (".tmp-step-00000008", [4], "run/checkpoints/step-00000008"),
        pytest.param(
            *("step-00000008/model.safetensors", [4], "run/checkpoints/step-00000008"),
            marks=pytest.mark.slow,
        ),
        (".tmp-model", [8, 12], "run/model"),
    ],
)
def test_a_training_says_so_and_resumes(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full_at: str,
    saved: list[int],
    named: str,
) -> None:
    run = RunDir(Path("run"))
    filled = []

    def full(path: str) -> bool:
        """From this file on, until the room that was kept is given back."""
        filled.append(path.endswith(full_at))
        return any(filled) and run.kept_room.exists()

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse(errno.ENOSPC, full))
        assert mrt5(patched, "pretrain", "tiny.yaml", "--out", "run", "--device", "cpu") == 1
    said = capsys.readouterr().err
    assert f"error: {named} cannot be written: No space left on device (it needs " in said
    assert "are free)" in said and "hint: free some space there" in said
    assert "to resume: mrt5 pretrain run/recipe.yaml --out run --resume" in said
    meta = run.meta()
    assert meta["status"] == "failed" and "No space left on device (it needs " in meta["error"]
    assert run.saved_steps() == saved
    assert not list(run.path.rglob(".tmp-*"))
    for step in saved:
        load_file(run.checkpoint(step) / "model.safetensors")
    assert mrt5(monkeypatch, "pretrain", "tiny.yaml", "--out", "run", "--device", "cpu", "--resume") == 0
    assert run.is_finished and run.meta()["status"] == "finished"


def test_where_nothing_can_be_written_any_more_that_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, begun = RunDir(Path("run")), []

    def read_only(path: str) -> bool:
        begun.append("step-00000008" in path)
        return any(begun)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse(errno.EROFS, read_only))
        assert mrt5(patched, "pretrain", "tiny.yaml", "--out", "run", "--device", "cpu") == 1
    said = capsys.readouterr().err
    assert "meta.json; it still lists the run as running, but the run has ended" in said
    assert "error: Read-only file system: run/checkpoints/step-00000008" in said
    assert run.saved_steps() == [4] and run.meta()["status"] == "running"


def test_generated_rows_stay_and_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    output = Output(path, {"model": "a"})
    with output:
        output.begin()
        output.write("one\n")
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", refuse(errno.ENOSPC, lambda name: True))
            said = r"No space left on device \(it needs 4 B, and .* are free\)"
            with pytest.raises(OSError, match=said) as caught:
                output.write("two\n")
    assert caught.value.filename == str(path) and note_of(path).is_file()
    with Output(path, {"model": "a"}, resume=True) as again:
        again.begin()
        again.write("two\n")
        again.finish()
    assert path.read_text() == "one\ntwo\n"


class Full:
    """A file on a full disk."""

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_half_a_recipe_is_not_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if mode != "x":
            return opened(path, mode, *args, **more)
        path.touch()
        return Full()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert mrt5(patched, "recipe", "copy", "quickstart", "mine.yaml") == 1
    assert "error: mine.yaml cannot be written: No space left on device (it needs " in capsys.readouterr().err
    assert not Path("mine.yaml").exists()


def test_a_report_without_room_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device (it takes 9 kB, and 0 B are free)", str(path))

    monkeypatch.setattr(page, "write_text", full)
    monkeypatch.setattr(page, "_report", lambda plan: {"damaged": [], "sections": []})
    monkeypatch.setattr(page, "render", lambda template, report: "")
    with pytest.raises(RunFailed, match=r"report.html cannot be written: No space .* \(it takes 9 kB"):
        page.write_report(None, tmp_path)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell sets the limit")
@pytest.mark.parametrize("kilobytes", [40, 100, 210])
def test_a_limit_that_the_system_sets(place: Path, kilobytes: int) -> None:
    command = (
        f"ulimit -f {kilobytes}; exec {sys.executable} -m mrt5cli pretrain tiny.yaml --out run --device cpu"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    said = "run/checkpoints/step-00000004 cannot be written: File too large (it needs 256 kB, and ulimit -f"
    if kilobytes < 210:
        assert done.returncode == 1 and said in " ".join(done.stderr.split())
        assert RunDir(Path("run")).meta()["status"] == "failed"
        assert not list(Path("run").rglob(".tmp-*"))
    else:
        assert done.returncode == 0, done.stderr
