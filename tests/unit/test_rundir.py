"""Run directories: names, whole-or-nothing writing, and finding the model of whatever was typed."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mrt5cli import locks, rundir
from mrt5cli.errors import RunFailed, UserError, of_the_system
from mrt5cli.recipe import dump, load
from mrt5cli.rundir import RunDir, RunState, resolve_model
from mrt5cli.training import record
from mrt5cli.writing import remove_directory, whole_directory, write_json, write_text


def make_run(path: Path, status: str = "running") -> RunDir:
    run = RunDir.create(path)
    write_text(run.recipe_path, dump(load("quickstart_byt5")))
    write_json(run.meta_path, {"status": status})
    return run


def make_checkpoint(path: Path) -> Path:
    write_json(path / "config.json", {})
    return path


def test_names(tmp_path: Path):
    run = RunDir(tmp_path / "mine")
    parts = (
        run.recipe_path,
        run.meta_path,
        run.metrics_path,
        run.checkpoint(500),
        run.model,
        run.eval("copy"),
    )
    assert [str(path.relative_to(run.path)) for path in parts] == [
        "recipe.yaml",
        "meta.json",
        "metrics.jsonl",
        "checkpoints/step-00000500",
        "model",
        "eval/copy.json",
    ]
    assert not run.path.exists()


def test_the_recipe_is_read_back(tmp_path: Path):
    recipe = load("quickstart_byt5")
    run = make_run(tmp_path / "mine")
    write_text(run.recipe_path, dump(recipe))
    assert RunDir(run.path).recipe() == recipe


def test_create_refuses_a_directory_of_other_things(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"not a run directory and not empty: it contains thesis\.tex"):
        RunDir.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_clears_what_a_kill_left_and_keeps_the_rest(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    make_checkpoint(run.checkpoint(3))
    make_checkpoint(run.checkpoints / ".tmp-step-00000006")
    (run.path / ".tmp-1-meta.json").write_text("{")
    RunDir.create(run.path)
    assert run.saved_steps() == [3]
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".tmp-")]


def test_only_whole_checkpoints_count_and_in_order_of_steps(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    for step in (100_000_000, 20, 3):
        make_checkpoint(run.checkpoint(step))
    make_checkpoint(run.checkpoints / ".tmp-step-00000040")
    assert run.saved_steps() == [3, 20, 100_000_000]


def test_a_line_cut_by_a_kill_is_dropped_and_later_lines_too(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    run.metrics_path.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"step": 2')
    assert [row["step"] for row in run.metrics()] == [5, 10, 15]
    run.go_back_to(10)
    assert run.metrics_path.read_text() == '{"step": 5}\n{"step": 10}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\0\0\0",
        b"\xff",
        b"[1]",
        b"3",
        b"{}",
        b'{"step": "2"}',
        b'{"step": 2, "loss": "x"}',
        b"[" * 99_999,
    ],
)
def test_a_damaged_line_of_metrics_costs_no_other_and_is_told_once(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path / "run")
    run.metrics_path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n' + line + b'\n{"step": 4}\n')
    for _ in range(2):
        assert [row["step"] for row in run.metrics()] == [1, 3, 4]
    assert [record.getMessage() for record in caplog.records] == [
        f"{run.metrics_path}: skipped 2 damaged lines, the first is line 2"
    ]
    run.go_back_to(3)
    assert run.metrics_path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize(
    "umask, files, folders", [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_files_of_a_directory_are_read_by_whom_the_umask_lets(
    tmp_path: Path, umask: int, files: int, folders: int
):
    before = os.umask(umask)
    try:
        with whole_directory(tmp_path / "model") as folder:
            (folder / "deep").mkdir()
            for name in ("model.safetensors", "deep/model.safetensors"):
                save_file({"weight": torch.ones(2)}, folder / name)
            (folder / "config.json").write_text("{}")
            (folder / "script").touch(0o700)
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.lstat().st_mode)
        for path in (tmp_path / "model", *(tmp_path / "model").rglob("*"))
    }
    assert modes == {
        "model": folders,
        "model/deep": folders,
        "model/model.safetensors": files,
        "model/deep/model.safetensors": files,
        "model/config.json": files,
        "model/script": files | 0o100,
    }


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "meta.json"
    write_json(path, {"status": "running"})

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"status": "finished"})
    assert json.loads(path.read_text()) == {"status": "running"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["meta.json"]


def test_json_without_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_directory_gets_its_name_only_when_whole(tmp_path: Path):
    with whole_directory(tmp_path / "step-1") as folder:
        write_text(folder / "weights", "1")
        assert not (tmp_path / "step-1").exists()
    assert (tmp_path / "step-1" / "weights").read_text() == "1"
    with whole_directory(tmp_path / "step-1") as folder:
        write_text(folder / "other", "2")
    assert [path.name for path in (tmp_path / "step-1").iterdir()] == ["other"]


def test_a_directory_that_fails_on_the_way_is_not_there(tmp_path: Path):
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "step-1") as folder:
        write_text(folder / "weights", "1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_removing_takes_the_name_away_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_checkpoint(tmp_path / "step-1")
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)
    remove_directory(tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()


# --- resolve_model ----------------------------------------------------------------------------------------


def test_a_run_stands_for_its_model(tmp_path: Path):
    run = make_run(tmp_path / "mine", "finished")
    make_checkpoint(run.checkpoint(5))
    make_checkpoint(run.model)
    assert resolve_model(run.path) == (str(run.model), run)


def test_an_unfinished_run_stands_for_its_latest_checkpoint(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    make_checkpoint(run.checkpoint(5))
    make_checkpoint(run.checkpoint(10))
    assert resolve_model(str(run.path)) == (str(run.checkpoint(10)), run)


def test_a_run_without_anything_saved(tmp_path: Path):
    run = make_run(tmp_path / "mine", "interrupted")
    with pytest.raises(UserError, match="the run is interrupted and has not saved a checkpoint") as caught:
        resolve_model(run.path)
    assert "--resume" in str(caught.value.hint)


@pytest.mark.parametrize("inside", ["checkpoint", "model"])
def test_a_directory_inside_a_run_belongs_to_it(tmp_path: Path, inside: str):
    run = make_run(tmp_path / "mine")
    path = make_checkpoint(run.checkpoint(5) if inside == "checkpoint" else run.model)
    assert resolve_model(path) == (str(path), RunDir(run.path))


def test_a_checkpoint_from_elsewhere(tmp_path: Path):
    path = make_checkpoint(tmp_path / "byt5")
    assert resolve_model(path) == (str(path), None)


@pytest.mark.parametrize("name", ["google/byt5-small", "gpt2", "stanfordnlp/mrt5-small"])
def test_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == (name, None)


def test_a_mistyped_run_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/quickstart-seed42"))
    with pytest.raises(UserError, match="runs/quickstart-seed2 does not exist") as caught:
        resolve_model("runs/quickstart-seed2")
    assert caught.value.hint == "did you mean runs/quickstart-seed42?"
    for name in ("quickstart-seed42", "quickstart-seed42@step-10"):
        with pytest.raises(UserError, match=f"{name} does not exist") as caught:
            resolve_model(name)
        assert caught.value.hint == f"did you mean runs/{name}?"


@pytest.mark.parametrize("name", ["./nothing", "/no/such/place", "a/b/c"])
def test_a_path_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist") as caught:
        resolve_model(name)
    assert caught.value.hint == "`mrt5 runs` lists the runs below runs/"


def test_things_that_are_no_model(tmp_path: Path):
    (tmp_path / "book.txt").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve_model(tmp_path / "book.txt")
    with pytest.raises(UserError, match="neither a run"):
        resolve_model(tmp_path)


# --- what disks and names refuse ----------------------------------------------------------------------------


class SafetensorError(Exception):
    """As safetensors tells of the system's errors, in its own class."""


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded", ".tmp-x/model.safetensors"), errno.EDQUOT),
        (SafetensorError("Error while serializing: I/O error: full (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 5"), errno.EIO),
        (OSError("problem writing element 2048 to file"), errno.EIO),  # numpy's
    ],
)
def test_what_a_disk_refuses_names_the_folder(tmp_path: Path, error: Exception, number: int) -> None:
    with pytest.raises(OSError, match=str(tmp_path / "new")) as caught, whole_directory(tmp_path / "new"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_when_all_is_written_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_directory(tmp_path / "new") as folder:
        (folder / "before").touch()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("mrt5cli.writing.room", lambda path: 512)
    said = r"No space left on device \(it needs more than 2.5 kB, and 512 B are free\)"
    with pytest.raises(OSError, match=said), whole_directory(tmp_path / "new") as folder:
        (folder / "weights").write_bytes(b"1" * 2500)
    said = r"\(it needs 9 MB, and 512 B are free\)"
    with pytest.raises(OSError, match=said), whole_directory(tmp_path / "new", needs=9_000_000):
        pass
    with pytest.raises(OSError, match=r"\(it needs 3 B, and 512 B are free\)"):
        write_text(tmp_path / "text", "abc")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "before"]


def test_a_limit_on_the_size_of_files_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (4096, 4096))
    for error in (OSError(errno.EFBIG, "File too large"), RuntimeError("PytorchStreamWriter failed")):
        said = pytest.raises(OSError, match=r"and ulimit -f allows 4.1 kB per file\)")
        with said as caught, whole_directory(tmp_path / "new"):
            raise error
        assert "ulimit -f unlimited" in of_the_system(caught.value)[1]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (UserError("no (os error 28)"), RuntimeError("shapes"), ValueError("(os error 2)")):
        with pytest.raises(type(error)) as caught, whole_directory(tmp_path / "new"):
            raise error
        assert caught.value is error


def test_names_that_are_not_utf8_can_be_written_and_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_json(folder / "meta.json", {"command": [str(folder)]})
    assert json.loads((folder / "meta.json").read_text(encoding="utf-8")) == {"command": [str(folder)]}


# --- one trainer, and what it finds -------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_run_has_one_trainer(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.holder() is None
    run.check_free()
    with run.hold():
        holder = run.holder()
        assert holder is not None and holder.pid == os.getpid()
        for refused in (run.check_free, lambda: run.hold().__enter__()):
            with pytest.raises(
                UserError, match=rf"training in {run.path}: pid {holder.pid} on host "
            ) as caught:
                refused()
            assert f"stop it (kill {holder.pid}), or choose another directory" in str(caught.value.hint)
            assert caught.value.exit_code == 2
    run.check_free()
    with run.hold():
        pass


def test_a_run_without_anything_saved_that_is_being_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with (
        run.hold(),
        pytest.raises(UserError, match="being trained and has not saved a checkpoint: pid"),
    ):
        resolve_model(run.path)
    with pytest.raises(UserError, match="the run was killed and has not saved a checkpoint"):
        resolve_model(run.path)


def begin(run: RunDir, found: RunState | None = None, *, step: int = 0) -> None:
    with run.opened(load("quickstart_byt5"), {"status": "running"}, step=step, found=found):
        pass


def finished_run(path: Path) -> RunDir:
    run = make_run(path, "finished")
    for folder in (run.checkpoint(3), run.best_weights(3), run.model):
        make_checkpoint(folder)
    write_json(run.eval("copy"), {})
    write_text(run.path / "notes.txt", "mine")
    return run


BEGUN = [".mrt5.lock", "checkpoints", "meta.json", "metrics.jsonl", "recipe.yaml"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_is_replaced_leaves_nothing(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    begin(run)
    assert names(run.path) == BEGUN and run.state() == RunState([], {"status": "running"})


@pytest.mark.parametrize("removals", range(8))
def test_replacing_that_is_killed_on_the_way_can_be_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    run, before = finished_run(tmp_path / "run"), rundir._remove
    left = [None] * removals

    def killed(path: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        before(path)

    with monkeypatch.context() as kill:
        kill.setattr(rundir, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(run)
    # What is left is a run to replace; or none, and a fresh start finds nothing of the old one.
    begin(run, None if run.is_run else run.state())
    assert names(run.path) == BEGUN and run.saved_steps() == []


@pytest.mark.parametrize("file", ["thesis.tex", "model/config.json", "checkpoints/step-00000003/config.json"])
def test_a_lock_makes_no_run_of_other_files_nor_of_one_without_meta(tmp_path: Path, file: str) -> None:
    run = RunDir(tmp_path / "run")
    with run.hold():
        pass
    write_text(run.path / file, "mine")
    # A checkpoint belongs to a run that has lost its meta.json.
    told = (
        "contains the checkpoints of a run but no recipe.yaml"
        if "step-" in file
        else "contains (thesis|model)"
    )
    with pytest.raises(UserError, match=told):
        begin(run, RunState())
    assert (run.path / file).read_text() == "mine" and len(names(run.path)) == 2


@pytest.mark.parametrize("gone", ["", "checkpoints", "metrics.jsonl", "meta.json", "recipe.yaml"])
def test_what_is_deleted_under_a_run_is_named_and_not_written_again(tmp_path: Path, gone: str) -> None:
    run = RunDir(tmp_path / "run")
    whole = gone == ""
    with (
        pytest.raises(
            RunFailed, match=f"{(run.path / gone)} was deleted while .* in {'it' if whole else run.path}"
        ),
        run.opened(load("quickstart_byt5"), {}, step=0, found=RunState()),
    ):
        run.add_metrics({"step": 1})
        rundir._remove(run.path / gone)
        before = sorted(run.path.rglob("*"))
        for write in (lambda: run.add_metrics({"step": 2}), lambda: record.end(run, "finished")):
            with pytest.raises(RunFailed, match="was deleted"):
                write()
        assert sorted(run.path.rglob("*")) == before
        raise OSError(errno.ENOENT, "No such file or directory", str(run.path))
    assert run.holder() is None


def test_a_directory_that_took_its_place_is_not_written_into(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.opened(load("quickstart_byt5"), {}, step=0, found=RunState()):
        run.path.rename(tmp_path / "moved")
        make_run(run.path)
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        with pytest.raises(RunFailed, match=f"{run.path} was replaced by another directory"):
            run.add_metrics({"step": 1})
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


# --- links --------------------------------------------------------------------------------------------------


def linked(link: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return target


def test_a_run_goes_through_links_and_keeps_them(tmp_path: Path) -> None:
    run, disk = RunDir(tmp_path / "run"), tmp_path / "disk"
    linked(run.path, disk / "run")
    folders = [linked(place, disk / place.name) for place in (run.checkpoints, run.best, run.model)]
    for _ in range(2):
        begin(run, run.state(), step=max(run.saved_steps(), default=0))
        write_text(folders[0] / "notes.txt", "mine")
        for step in (1, 2, 3):
            for place in (run.checkpoint(step), run.best_weights(step)):
                with whole_directory(place) as folder:
                    make_checkpoint(folder)
        with whole_directory(run.model) as folder:
            make_checkpoint(folder)
        run.prune(1)
        assert run.saved_steps() == [3] and run.best_steps() == [3]
        assert [place.is_symlink() for place in (run.path, run.checkpoints, run.best, run.model)] == [
            True
        ] * 4
        assert [names(folder) for folder in folders] == [
            ["notes.txt", "step-00000003"],
            ["step-00000003"],
            ["config.json"],
        ]
        assert resolve_model(run.path) == (str(run.model), run)
    begin(run)
    assert run.model.is_symlink() and run.checkpoints.is_symlink()
    assert [names(folder) for folder in folders] == [["notes.txt"], [], []]


def test_a_link_to_a_checkpoint_is_pruned_and_the_checkpoint_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_checkpoint(linked(run.checkpoint(1), tmp_path / "disk" / "one"))
    make_checkpoint(run.checkpoint(2))
    run.prune(1)
    assert names(run.checkpoints) == ["step-00000002"] and names(tmp_path / "disk" / "one") == ["config.json"]


@pytest.mark.parametrize("place", ["", "checkpoints", "best", "model"])
def test_a_link_to_a_disk_that_is_away_is_refused_before_anything_is_made(tmp_path: Path, place: str) -> None:
    run, disk = RunDir(tmp_path / "run"), tmp_path / "disk"
    link = run.path / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(disk / "me" / "run")
    for refused in (run.check_not_foreign, lambda: begin(run, RunState())):
        with pytest.raises(UserError, match=f"{link} is a link to .*, but {disk / 'me'} does not exist"):
            refused()
    assert not disk.exists() and names(tmp_path) == ["run"]
    (disk / "me").mkdir(parents=True)
    begin(run, RunState())
    assert run.is_run and link.is_symlink()


# --- readers ------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_read_is_pruned_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    readers: dict[tuple[int, int], int] = {}
    monkeypatch.setattr(locks, "_READ", readers)
    make_checkpoint(run.checkpoint(1))
    assert resolve_model(run.path)[0] == str(run.checkpoint(1))
    make_checkpoint(run.best_weights(1))
    resolve_model(run.best_weights(1))
    monkeypatch.setattr(locks, "_READ", {})  # from here on, readers are another process
    for step in (2, 3):
        make_checkpoint(run.checkpoint(step))
        make_checkpoint(run.best_weights(step))
        run.prune(1)
        assert run.saved_steps() == run.best_steps() == [1, step]
    for descriptor in readers.values():
        os.close(descriptor)
    run.prune(1)
    assert run.saved_steps() == run.best_steps() == [3]


def test_a_checkpoint_that_goes_while_it_is_looked_for_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read_on = make_run(tmp_path / "run"), locks.read_on
    make_checkpoint(run.checkpoint(1))

    def meanwhile(file: Path) -> bool:
        if len(run.saved_steps()) == 1 and run.saved_steps()[0] < 4:
            make_checkpoint(run.checkpoint(run.saved_steps()[0] + 1))
            run.prune(1)
        return read_on(file)

    monkeypatch.setattr(locks, "read_on", meanwhile)
    assert resolve_model(run.path)[0] == str(run.checkpoint(4))
