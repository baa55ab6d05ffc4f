"""--code: a shortener in a file of the user's own is trained, saved and loaded again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from own_kinds import forgotten
from typer.testing import CliRunner

from mrt5cli import cli, own_code
from mrt5cli.cli import app
from mrt5cli.errors import RecipeError
from mrt5cli.models import shorteners as modules
from mrt5cli.recipe import shorteners as sections
from mrt5cli.rundir import RunDir
from mrt5cli.subject import find_subject
from mrt5cli.suite.states import _stale

README = (Path(modules.__file__).parent / "README.md").read_text(encoding="utf-8")
OWN, RECIPE = (
    re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]  # type: ignore[index]
    for language in ("python", "yaml")
)
"""The example of `mrt5cli/models/shorteners/README.md`: a gate that keeps every third byte at first."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with the file and a recipe; what is registered is forgotten again."""
    (tmp_path / "nth.py").write_text(OWN)
    (tmp_path / "nth.yaml").write_text(RECIPE)
    pairs = [f"tset {n}\ttest {n}\n" for n in range(40)]
    (tmp_path / "pairs.tsv").write_text("".join(["noisy\tclean\n", *pairs]))
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield


def mrt5(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done


def test_trained_saved_and_loaded_again():
    done = mrt5("pretrain", "nth.yaml", "--out", "run", "--device", "cpu", "--code", "nth.py")
    assert "next: mrt5 evaluate run\n" in done.output
    saved = json.loads(Path("run/model/config.json").read_text())
    assert (saved["deletion_type"], saved["nth_that_stays"]) == ("every_nth", 3)
    [row] = json.loads(mrt5("evaluate", "run", "--code", "nth.py", "--device", "cpu", "--json").stdout)[
        "models"
    ][0]["rows"]
    assert row["deletion_rate"] == pytest.approx(2 / 3, abs=0.01)  # 8 of 12 bytes
    timed = mrt5("bench", "run", "--what", "precision", "--limit", "8", "--code", "nth.py", "--json")
    assert json.loads(timed.stdout)["suites"][0]["rows"][0]["deletion_rate"] == row["deletion_rate"]
    converted = mrt5("convert", "run", "copy", "--to", "mrt5", "--code", "nth.py").stdout
    assert "every-nth gate, keeping one byte in 3 at first, before encoder block 1" in converted
    mrt5("inspect-deletions", "copy", "--code", "nth.py", "--text", "x", "--threshold", "-3")
    for layout, reason in {"hub": "is custom code", "reference": "'every_nth'"}.items():
        assert reason in mrt5("convert", "run", "x", "--to", layout, "--code", "nth.py", code=2).output
    assert not Path("x").exists()


def test_without_the_file_the_kind_is_not_known():
    told = mrt5("recipe", "check", "nth.yaml", code=2).output
    assert "unknown kind 'nth'" in told and "a custom one needs --code FILE" in " ".join(told.split())
    assert "unknown kind" not in mrt5("recipe", "check", "nth.yaml", "--code", "nth.py").output
    shown = mrt5(
        "recipe", "show", "nth.yaml", "--code", "nth.py", "--set", "model.shortener.n=1", code=2
    ).output
    assert "expected a whole number of at least 2, not 1" in shown


def test_how_to_go_on_names_the_file(tmp_path: Path):
    own_code.import_file(Path("nth.py"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert RunDir(tmp_path).resume_command.endswith("--resume --code nth.py")
    (tmp_path / "meta.json").write_text(json.dumps({"code": own_code.record()}))
    assert RunDir(tmp_path).resume_command.endswith("--resume")  # the run names it itself


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("\nx = 1 / 0", "cannot be imported: ZeroDivisionError: division by zero (wrong.py, line 2)"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("x = (", "cannot be imported: SyntaxError: '(' was never closed (wrong.py, line 1)"),
    ],
)
def test_a_file_that_cannot_be_imported(content: str | None, reason: str):
    if content is not None:
        Path("wrong.py").write_text(content)
    assert reason in mrt5("recipe", "show", "quickstart", "--code", "wrong.py", code=2).output
    assert not own_code.IMPORTED


def test_a_fault_in_it_is_told_by_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    Path("faulty.py").write_text("def fails():\n    return 1 / 0\n")
    own_code.import_file(Path("faulty.py"))
    [module] = [module for name, module in sys.modules.items() if name.endswith("_faulty")]
    monkeypatch.setattr(cli, "app", module.fails)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err
    assert "error: faulty.py, line 2: ZeroDivisionError: division by zero\n" in said
    assert "bug in mrt5cli" not in said


def test_two_of_one_name_are_refused():
    own_code.import_file(Path("nth.py"))
    with pytest.raises(ValueError, match="the shortener 'every_nth' exists already: Nth"):
        sections.register(type("Other", (sections.Placed,), {"deletion_types": ("every_nth",)}))
    with pytest.raises(ValueError, match="'random' exists already"):
        modules.register(type("Other", (modules.Gate,), {"deletion_types": ("random",)}))


@pytest.mark.slow
def test_a_suite_trains_it_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch):
    Path("recipes").mkdir()
    Path("nth.yaml").rename("recipes/nth.yaml")
    monkeypatch.setattr("mrt5cli.recipe.loading.shipped_directory", lambda: Path("recipes"))
    Path("mine.yaml").write_text("experiments:\n- {id: all, title: All, recipes: [nth]}\n")
    done = mrt5("reproduce", "mine.yaml", "--code", "nth.py", "--device", "cpu", "--json")
    assert {job["id"]: job["status"] for job in json.loads(done.stdout)["jobs"]} == {
        "train nth seed 42": "done",
        "evaluate nth seed 42 vowel_removal": "done",
    }


# --- a run remembers it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe."""
    where = tmp_path_factory.mktemp("trained")
    (where / "nth.py").write_text(OWN)
    (where / "nth.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch, forgotten():
        patch.chdir(where)
        mrt5("pretrain", "nth.yaml", "--out", "run", "--device", "cpu", "--code", "nth.py")
    return where / "run"


@pytest.fixture
def run(trained: Path, folder: Path) -> Path:
    """A copy of that run whose file is the one in the working directory."""
    shutil.copytree(trained, "run")
    meta = json.loads(Path("run/meta.json").read_text())
    [entry] = meta["code"]
    assert entry == {"path": str(trained.parent / "nth.py"), "sha256": sha256(OWN.encode()).hexdigest()}
    assert [session["own_code"] for session in meta["sessions"]] == [[entry]]
    name_code(Path("nth.py"))
    return Path("run")


def name_code(file: Path, path: str | None = None, run: Path = Path("run")) -> None:
    """Have a run say that it was made with a file as it is now, by its real path or as given."""
    meta = json.loads((run / "meta.json").read_text())
    meta["code"] = [{"path": path or str(file.resolve()), "sha256": sha256(file.read_bytes()).hexdigest()}]
    (run / "meta.json").write_text(json.dumps(meta))


WITH_RUN = {
    "evaluate": ("evaluate", "run", "--device", "cpu", "--json"),
    "newest run": ("evaluate", "--device", "cpu", "--json"),
    "inspect": ("inspect-deletions", "run", "--text", "abcdef"),
    "checkpoint": ("inspect-deletions", "run/checkpoints/step-00000002", "--text", "abcdef"),
    "bench": ("bench", "run", "--what", "precision", "--limit", "4", "--json"),
    "convert": ("convert", "run", "copy", "--to", "mrt5"),
    "resume": ("pretrain", "nth.yaml", "--out", "run", "--resume", "--device", "cpu"),
    "from": ("finetune", "nth.yaml", "--from", "run", "--out", "new", "--device", "cpu"),
    "start": ("finetune", "nth.yaml", "--set", "model={start: run}", "--dry-run"),
    "drafted from": ("recipe", "new", "text2text", "--data", "pairs.tsv", "--from", "run"),
    "its recipe": ("recipe", "show", "run/recipe.yaml"),
    "the task of its recipe": ("evaluate", "run", "--task", "run/recipe.yaml", "--device", "cpu"),
}


@pytest.mark.parametrize("words", WITH_RUN.values(), ids=WITH_RUN)
def test_a_run_brings_its_code_along(run: Path, words: tuple[str, ...]) -> None:
    if words[1].startswith("--"):
        Path("runs").mkdir()
        run.rename("runs/run")
    mrt5(*words)
    assert [path.name for path in own_code.IMPORTED] == ["nth.py"]


def test_what_is_trained_from_a_run_remembers_it_too(run: Path) -> None:
    mrt5(*WITH_RUN["from"])
    assert json.loads(Path("new/meta.json").read_text())["code"] == own_code.record() != []


CHANGED = {
    "changed": (lambda: Path("nth.py").write_text(OWN + "# a remark\n"), "nth.py, which has changed since"),
    "gone": (lambda: Path("nth.py").unlink(), "nth.py, which no longer exists"),
    "relative": (lambda: name_code(Path("nth.py"), "nth.py"), "nth.py, which resolves to another path"),
    "linked": (
        lambda: name_code(Path("nth.py"), "/proc/self/cwd/nth.py"),
        "/proc/self/cwd/nth.py, which resolves to another path",
    ),
    "inside": (
        lambda: name_code(Path("nth.py").rename("run/nth.py")),
        "run/nth.py, which is in a run directory, from which code is not imported automatically",
    ),
}


@pytest.mark.parametrize(("change", "why"), CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("name", ["evaluate", "resume", "from", "checkpoint"])
def test_code_that_is_not_what_it_was_is_not_imported(
    run: Path, change: Callable[[], object], why: str, name: str
) -> None:
    change()
    told = " ".join(mrt5(*WITH_RUN[name], code=2).output.split())
    assert "error: run was made with " in told and why in told
    assert "to use the current code, add --code " in told and not own_code.IMPORTED


def test_changed_code_is_used_where_it_is_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = own_code_of(run)
    Path("nth.py").write_text(OWN + "# a remark\n")
    mrt5(*WITH_RUN["evaluate"], "--code", "nth.py")
    assert "run was made with another version of nth.py; using nth.py" in caplog.text
    meta = json.loads(Path("run/meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**meta, "status": "interrupted"}))
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints/step-00000002")
    mrt5(*WITH_RUN["resume"], "--code", "nth.py")
    after = json.loads(Path("run/meta.json").read_text())
    assert after["code"] == own_code.record() != before
    assert [session["own_code"] for session in after["sessions"][1:]] == [after["code"]]


def own_code_of(run: Path) -> object:
    return json.loads((run / "meta.json").read_text())["code"]


def test_a_recipe_is_drafted_from_a_run_of_changed_code(run: Path) -> None:
    Path("nth.py").write_text(OWN + "# a remark\n")
    words = ("recipe", "new", "text2text", "--data", "pairs.tsv", "--from", "run")
    assert "add --code" in " ".join(mrt5(*words, code=2).output.split())
    drafted = mrt5(*words, "--code", "nth.py").stdout
    train = "mrt5 finetune THIS.yaml --code nth.py"
    assert f"#   {train} --smoke && {train}\n" in drafted
    Path("drafted.yaml").write_text(drafted)
    assert "0 problems" in mrt5("recipe", "check", "drafted.yaml", "--code", "nth.py").output


def test_code_that_has_moved_is_known_by_its_content(run: Path) -> None:
    Path("nth.py").rename("moved.py")
    assert "which no longer exists" in " ".join(mrt5(*WITH_RUN["evaluate"], code=2).output.split())
    assert "note" not in mrt5(*WITH_RUN["evaluate"], "--code", "moved.py").stderr


def test_code_that_has_moved_and_changed_is_used_where_it_is_named(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("nth.py").unlink()
    Path("moved.py").write_text(OWN + "# a remark\n")
    mrt5(*WITH_RUN["evaluate"], "--code", "moved.py")
    assert "run was made with another version of nth.py; using moved.py" in caplog.text


def test_another_file_is_given_beside_what_a_run_brings(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("more.py").write_text("x = 1\n")
    mrt5(*WITH_RUN["evaluate"], "--code", "more.py")
    assert [path.name for path in own_code.IMPORTED] == ["more.py", "nth.py"] and not caplog.text


def test_a_second_path_is_the_same_file(run: Path) -> None:
    Path("link.py").symlink_to("nth.py")
    shutil.copy("nth.py", "copy.py")
    mrt5("recipe", "show", "nth.yaml", "--code", "link.py", "--code", "copy.py", "--code", "nth.py")
    assert len(own_code.IMPORTED) == 1


def test_two_files_of_one_kind_are_both_named(run: Path) -> None:
    Path("other.py").write_text(OWN + "# of somebody else\n")
    told = mrt5("recipe", "show", "nth.yaml", "--code", "nth.py", "--code", "other.py", code=2).output
    told = " ".join(told.split())
    assert "--code other.py cannot be imported: ValueError: the shortener 'every_nth'" in told
    line = OWN.splitlines().index("@sections.register") + 1
    assert f"already: Nth, of nth.py (other.py, line {line})" in told


def test_a_file_that_registers_its_kind_no_longer_is_named(run: Path) -> None:
    Path("nth.py").write_text("x = 1\n")
    name_code(Path("nth.py"))
    told = " ".join(mrt5(*WITH_RUN["evaluate"], code=2).output.split())
    assert "unknown kind 'nth'" in told and "nth.py registers no shortener of that name" in told


def test_a_file_that_fails_by_now_is_the_runs(run: Path) -> None:
    Path("nth.py").write_text("import nowhere_to_be_found")
    name_code(Path("nth.py"))
    told = " ".join(mrt5(*WITH_RUN["evaluate"], code=2).output.split())
    assert "nth.py, which a run was made with, cannot be imported: ModuleNotFoundError" in told


def test_a_model_that_is_no_run_brings_no_code(run: Path) -> None:
    """Files next to a checkpoint, on the Hub for example, are untrusted, even if they look like a run."""
    snapshot = Path("snapshot")
    shutil.copytree(run / "model", snapshot)
    shutil.copy(run / "meta.json", snapshot)
    hub = SimpleNamespace(run=None, folder=snapshot, commit="1" * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrt5cli.models.hub_files.locate", lambda *args, **options: hub)
        with pytest.raises(RecipeError, match="unknown kind 'nth'"):
            find_subject("someone/model")
    assert not own_code.IMPORTED


def test_what_is_written_as_code_is_checked(run: Path) -> None:
    for wrong in ("nth.py", [{"path": 3}], [["nth.py"]]):
        meta = json.loads((run / "meta.json").read_text())
        (run / "meta.json").write_text(json.dumps({**meta, "code": wrong}))
        told = " ".join(mrt5(*WITH_RUN["evaluate"], code=2).output.split())
        assert "meta.json is damaged: its code is" in told


def test_a_suite_trains_again_what_was_made_with_other_code(run: Path) -> None:
    job, meta = SimpleNamespace(needs=[]), json.loads((run / "meta.json").read_text())
    assert _stale(job, meta) == "trained with another version of your own code"
    own_code.import_file(Path("nth.py"))
    assert _stale(job, meta) is None
