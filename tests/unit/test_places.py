"""`~` wherever a path enters, and a home for libraries where the user has none."""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from mrt5cli import places
from mrt5cli.cli import app
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import load
from mrt5cli.writing import write_text


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a home and without a name, as containers have them."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
    return tmp_path


@pytest.mark.parametrize(
    ("place", "kind", "reason"),
    [
        ("/proc/x", "file", "No such file or directory"),
        ("/proc/x/y", "folder", "No such file or directory"),
        ("{here}", "file", "it is not a file"),
        ("{here}/file", "folder", ".*/file is not a folder"),
        ("{here}/file/x", "file", ".*/file is not a folder"),
        ("{here}/" + 300 * "x", "folder", "File name too long"),
        ("{here}/file", "file", None),
        ("{here}", "folder", None),
        ("{here}/file", "new folder", None),
        ("/proc/x", "new folder", "No such file or directory"),
        ("/dev/null", "file", "it is not a file"),
        ("{here}/new/x", "file", None),
    ],
)
def test_a_place_is_refused_before_there_is_something_to_write(
    tmp_path: Path, place: str, kind: Literal["file", "folder", "new folder"], reason: str | None
) -> None:
    (tmp_path / "file").write_text("content")
    path = Path(place.format(here=tmp_path))
    if reason is None:
        places.check_writable(path, kind)
    else:
        with pytest.raises(UserError, match=f"cannot be written: {reason}"):
            places.check_writable(path, kind)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(
    "command",
    [
        "pretrain quickstart_byt5 --out PLACE",
        "pretrain quickstart_byt5 --out PLACE --dry-run",
        "finetune xnli_v3/mrt5_50 --out PLACE --dry-run",
        "evaluate no/such/run --out PLACE",
        "bench no/such/run --out PLACE",
        "convert nobody/nothing PLACE --to mrt5",
        "data build word-search PLACE --words no/such/file",
        "data build spelling PLACE --text no/such/file",
        "data build udhr PLACE --archive no/such/file",
        "reproduce --report-only --out PLACE",
        "reproduce --dry-run --out PLACE",
        "reproduce --dry-run --runs PLACE",
    ],
)
@pytest.mark.parametrize("place", ["/proc/x", "file/x"])
def test_every_command_looks_at_its_output_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    result = CliRunner().invoke(app, command.replace("PLACE", place).split())
    assert result.exit_code == 2, result.output
    assert re.search(f"error: {place}.* cannot be written: ", result.stderr)


def test_a_link_is_followed_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "file")
    for text in ("first", "second"):
        write_text(places.new_file(link), text)
        assert link.is_symlink() and (tmp_path / "folder" / "file").read_text() == text
    link.unlink()
    link.symlink_to("/proc/x")
    with pytest.raises(UserError, match="link cannot be written"):
        places.new_file(link)


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert places.place("~/runs/x") == "/home/me/runs/x"
    assert places.path("~") == Path("/home/me")
    assert places.place("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    for unchanged in ("runs/~x", "./~/x", "google/byt5-small", "a~"):
        assert places.place(unchanged) == unchanged
    with pytest.raises(UserError, match="there is no user 'nobody-here'") as caught:
        places.place("~nobody-here/x")
    assert caught.value.hint == "for a folder of that name, use ./~nobody-here/x"


def test_without_a_home(nobody: Path) -> None:
    places.find_home()

    made = nobody / f"mrt5-home-{os.getuid()}"
    assert os.environ["HOME"] == str(made)
    assert made.stat().st_mode & 0o777 == 0o700
    assert os.environ["LOGNAME"] == str(os.getuid())


def test_somebody_elses_folder_is_no_home(nobody: Path) -> None:
    (nobody / f"mrt5-home-{os.getuid()}").mkdir(mode=0o777)
    (nobody / f"mrt5-home-{os.getuid()}").chmod(0o777)
    places.find_home()

    home = Path(os.environ["HOME"])
    assert home.parent == nobody and home.name != f"mrt5-home-{os.getuid()}"
    assert home.stat().st_mode & 0o777 == 0o700


def test_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for key, value in {"path": "~/texts"}.items():
        recipe = load("local_text", [f"task.source={{kind: files, {key}: {value}}}"])
        assert recipe.task.source.path == "/home/me/texts"
    assert load("spelling_small", ["model.start=~/m", "model.shape=null"]).model.start == "/home/me/m"
    with pytest.raises(RecipeError, match=r"task\.source\.path +~nobody-here/x: there is no user"):
        load("local_text", ["task.source={kind: files, path: ~nobody-here/x}"])
    for name in ("caf\udce9", '"caf\\udce9"'):
        with pytest.raises(RecipeError, match=r"lone surrogate|not allowed"):
            load("local_text", [f"task.source={{kind: files, path: {name}}}"])


@pytest.mark.parametrize(
    "command",
    [
        "pretrain ~nobody-here/x",
        "pretrain quickstart --out=~nobody-here/x",
        "finetune spelling_small --from=~nobody-here/x",
        "evaluate ~nobody-here/x",
        "evaluate x --data=~nobody-here/x",
        "evaluate x --compare=~nobody-here/x",
        "evaluate x --task=~nobody-here/x",
        "evaluate x --out=~nobody-here/x",
        "inspect-deletions ~nobody-here/x",
        "inspect-deletions x --file=~nobody-here/x",
        "convert ~nobody-here/x y --to hub",
        "convert x ~nobody-here/x --to hub",
        "convert x y --to hub --recipe=~nobody-here/x",
        "bench ~nobody-here/x",
        "bench --out=~nobody-here/x",
        "reproduce ~nobody-here/x",
        "reproduce --runs=~nobody-here/x",
        "reproduce --out=~nobody-here/x",
        "data build spelling ~nobody-here/x",
        "data build spelling x --text=~nobody-here/x",
        "data build spelling x --misspellings=~nobody-here/x",
        "data build word-search x --words=~nobody-here/x",
        "data build udhr x --archive=~nobody-here/x",
        "recipe show ~nobody-here/x",
        "recipe check ~nobody-here/x",
        "recipe copy quickstart ~nobody-here/x",
    ],
)
def test_every_option_knows_home_directories(command: str) -> None:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert "~nobody-here/x: there is no user 'nobody-here'" in result.stderr
