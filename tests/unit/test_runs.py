"""Runs below a folder: found, read whatever is in them, ranked, moved and removed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken import broken, broken_tree
from recorded_runs import evaluate, record

from mrt5cli import locks, manifest
from mrt5cli import recipe as recipes
from mrt5cli.errors import UserError
from mrt5cli.recipe import strict_yaml
from mrt5cli.rundir import RunDir
from mrt5cli.runs import choosing, curves, describing, found, moving


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_all(folder: Path) -> dict[str, found.Entry]:
    return {path.name: found.read(path) for path in found.find(folder)}


def test_states_steps_and_numbers(runs: Path) -> None:
    record(runs / "a", evaluation={"sequence_accuracy": 0.5})
    record(runs / "suite" / "deep" / "b", status="interrupted", steps=20, checkpoints=(20,))
    record(runs / "c", status="failed", error="RunFailed: the loss is NaN")
    record(runs / "d", status="running", ended=None, steps=12)
    trains = record(runs / "e", status="running", ended=None, steps=8)
    record(runs / "f").meta_path.unlink()
    (runs / "no run").mkdir()
    (runs / "no run" / "meta.json").write_text("{}")
    with trains.hold():
        seen = read_all(runs)
        states = {name: entry.state for name, entry in seen.items()}
        assert states == {
            **{"a": "finished", "b": "interrupted", "c": "failed"},
            **{"d": "stale", "e": "running", "f": "damaged"},
        }
        holder = seen["e"].holder
        assert holder is not None and holder.pid == os.getpid() and (seen["e"].age or 0) < 5
    assert found.read(trains.path).state == "stale"
    assert seen["b"].name == "runs/suite/deep/b" and (seen["b"].step, seen["b"].steps) == (20, 40)
    assert seen["c"].why == "RunFailed: the loss is NaN"
    assert seen["f"].why == "it has no meta.json"
    a = seen["a"]
    assert (a.task, a.target, a.number("cross_entropy"), a.number("sequence_accuracy")) == (
        *("vowel_removal", 0.25),
        *(0.5, 0.5),
    )
    assert a.size == sum(path.stat().st_size for path in (runs / "a").rglob("*") if path.is_file())
    assert describing.result(a) == "seq. acc. 50.00 %"


def test_what_is_glanced_at_is_what_the_recipe_says(runs: Path) -> None:
    shipped = Path(recipes.find("quickstart")).parent
    files = [path for path in shipped.rglob("*.yaml") if "miniature" in str(path) or path.parent == shipped]
    assert len(files) > 10
    names = {"start": "a folder's name: with 'quotes' and # more", "name": "x"}
    for path in files:
        recipe = recipes.load(path)
        odd = recipe.model_copy(update={"model": recipe.model.model_copy(update={"start": names["start"]})})
        for one in (recipe, odd):
            file = runs / "recipe.yaml"
            runs.mkdir(exist_ok=True)
            file.write_text(recipes.dump(one))
            seen = found.glance(file)
            assert seen["task"] == one.task.kind and seen["steps"] == one.training.max_steps
            assert seen["start"] == one.model.start and seen["name"] == one.name and seen["seed"] == one.seed
            assert seen["shortener"] == one.model.shortener.kind
            assert seen.get("target") == getattr(one.controller, "target_deletion_rate", None)


def test_only_the_end_of_metrics_is_read_and_a_cut_line_is_none(runs: Path) -> None:
    run = record(runs / "a")
    last = run.metrics()[-1]
    validation = json.dumps({"step": 40, "validation": {f"{n}": {"loss": 1.0} for n in range(20_000)}})
    before = run.metrics_path.read_text()
    for more in (
        "",
        validation + "\n",
        '{"step": 44, "loss": 1.0, "cross_en',
        validation[:-40],
        "\0" * 9000 + "\n",
    ):
        run.metrics_path.write_text(before + more)
        assert found.last_logged(run.metrics_path) == last
    run.metrics_path.write_text("x" * 100_000)
    assert found.last_logged(run.metrics_path) == {}
    run.metrics_path.unlink()
    assert found.read(run.path).step == 40 and found.read(run.path).logged == {}


def test_links_are_followed_once_and_circles_end(runs: Path, tmp_path: Path) -> None:
    record(tmp_path / "disk" / "far")
    record(runs / "near")
    (runs / "linked").symlink_to(tmp_path / "disk" / "far")
    (runs / "again").symlink_to("near")
    (runs / "circle").symlink_to(".")
    (runs / "nowhere").symlink_to("gone")
    (runs / "near" / "out").symlink_to(tmp_path / "disk")
    assert [str(path) for path in found.find(runs)] == ["runs/near", "runs/linked"]
    assert found.read(runs / "near").size < 2 * found.read(tmp_path / "disk" / "far").size


ODD: dict[str, Callable[[RunDir], object]] = {
    "meta of wrong types": lambda run: run.meta_path.write_text('{"status": 3, "sessions": "x"}'),
    "meta that is a list": lambda run: run.meta_path.write_text("[1]"),
    "meta cut short": lambda run: run.meta_path.write_text('{"status": "fin'),
    "empty meta": lambda run: run.meta_path.write_text(""),
    "no recipe": lambda run: run.recipe_path.unlink(),
    "recipe of something else": lambda run: run.recipe_path.write_text("a: 1\n"),
    "recipe without YAML": lambda run: run.recipe_path.write_text("training: {max_steps: [\n"),
    "recipe with steps in words": lambda run: run.recipe_path.write_text(
        run.recipe_path.read_text().replace("max_steps: 40", "max_steps: many")
    ),
    "recipe that is no text": lambda run: run.recipe_path.write_bytes(b"\xff\xfe\0"),
}


@pytest.mark.parametrize("what", ODD)
def test_a_damaged_run_is_shown_with_its_reason(runs: Path, what: str) -> None:
    run = record(runs / "a")
    ODD[what](run)
    [entry] = [found.read(path) for path in found.find(runs)]
    assert entry.state == "damaged" and entry.why and "\n" not in entry.why
    assert (
        what not in ("recipe that is no text", "recipe of something else")
        or str(run.recipe_path) in entry.why
    )
    json.dumps(entry.document())
    assert dict(describing.facts(entry))["state"] == "damaged"


def test_whatever_is_in_the_files_of_a_run_it_is_read(runs: Path, chance: random.Random) -> None:
    run = record(runs / "a", evaluation={"sequence_accuracy": 0.5})
    files = [run.meta_path, run.recipe_path, run.metrics_path, next((run.path / "eval").glob("*.json"))]
    (run.path / found.TAGS).write_text('{"tags": ["x"]}')
    files.append(run.path / found.TAGS)
    whole = {file: file.read_bytes() for file in files}
    states = set()
    for _ in range(150):
        for file, text in whole.items():
            file.write_bytes(text)
        file = chance.choice(files)
        if chance.random() < 0.3:
            file.write_bytes(broken(whole[file], chance))
        elif file == run.recipe_path:
            tree = strict_yaml.parse(whole[file].decode()).tree
            file.write_text(
                json.dumps(broken_tree(tree, chance), indent=2).translate({ord(c): None for c in '"{},'})
            )
        elif file == run.metrics_path:
            lines = whole[file].decode().splitlines()
            lines[-1] = json.dumps(broken_tree(json.loads(lines[-1]), chance))
            file.write_text("\n".join(lines) + "\n")
        else:
            file.write_text(json.dumps(broken_tree(json.loads(whole[file]), chance)))
        entry = found.read(run.path)
        states.add(entry.state)
        several = describing.final_numbers, describing.recipe_differences, describing.origin_differences
        tables = [
            describing.sessions(entry),
            describing.evaluations(entry),
            *(of([entry, entry]) for of in several),
        ]
        assert all(isinstance(cell, str) for table in tables for row in table.rows for cell in row)
        assert describing.facts(entry) and choosing.ordered([entry, entry], "age", False)
        for panel in curves.panels([("a", entry)], []):
            curves.drawn(panel, 60)
        json.dumps(entry.document())
    assert states >= {"finished", "damaged"}


def test_a_folder_that_nobody_may_read_is_shown(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(runs / "open")
    (runs / "closed").mkdir()
    scandir, listdir = os.scandir, os.listdir

    def refused(call: Callable[..., Any]) -> Callable[..., Any]:
        def ask(place: Any = ".") -> Any:
            if str(place).endswith("closed"):
                raise PermissionError(errno.EACCES, "Permission denied", str(place))
            return call(place)

        return ask

    monkeypatch.setattr(os, "scandir", refused(scandir))
    monkeypatch.setattr(os, "listdir", refused(listdir))
    seen = read_all(runs)
    assert seen["open"].state == "finished" and seen["closed"].state == "damaged"
    assert seen["closed"].why == "runs/closed cannot be read: Permission denied"


@pytest.mark.slow  # some seconds
def test_a_thousand_runs_are_read_in_a_second_or_two_without_torch(runs: Path) -> None:
    first = record(runs / "run-0", evaluation={"sequence_accuracy": 0.5})
    for number in range(1, 1000):
        shutil.copytree(first.path, runs / f"run-{number}", copy_function=os.link)
    code = (
        "import sys, time; from pathlib import Path; begin = time.process_time()\n"
        "from mrt5cli.runs import found, describing\n"
        "runs = [found.read(path) for path in found.find(Path('runs'))]\n"
        "size = sum(run.size for run in runs); words = [describing.result(run) for run in runs]\n"
        "heavy = sorted({'torch', 'pandas', 'rich'} & set(sys.modules))\n"
        "print(len(runs), time.process_time() - begin, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    count, seconds, modules = done.stdout.split(maxsplit=2)
    assert (count, modules.strip()) == ("1000", "[]")
    assert float(seconds) < 4, seconds  # 0.7 s on an idle core


# --- choosing -----------------------------------------------------------------------------------------------


def test_filters_and_orders(runs: Path) -> None:
    record(runs / "mrt5-a", cross_entropy=0.1, target=0.5)
    record(runs / "mrt5-b", cross_entropy=0.3, status="interrupted")
    record(runs / "byt5", cross_entropy=0.2, evaluation={"exact_match": 0.75})
    found.tag(RunDir(runs / "byt5"), ["base", "paper/1"], [])
    everything = [found.read(path) for path in found.find(runs)]

    def names(*filters: str) -> list[str]:
        return sorted(run.run.path.name for run in choosing.chosen(everything, filters))

    every = ["byt5", "mrt5-a", "mrt5-b"]
    for filters, wanted in {
        (): every,
        ("mrt5",): every[1:],
        ("runs/byt*",): every[:1],
        ("name=*-a,*-b",): every[1:],
        ("state=finished",): every[:2],
        ("state!=finished",): every[2:],
        ("state=finished,interrupted",): every,
        ("tag=base",): every[:1],
        ("tag=paper/*",): every[:1],
        ("tag!=base",): every[1:],
        ("task=vowel_removal", "cross_entropy<0.25"): every[:2],
        ("cross_entropy>=0.3",): every[2:],
        ("target=0.5",): every[1:2],
        ("step=40,80",): every,
        ("exact_match>0.5",): every[:1],
        ("exact_match<=0.5",): [],
    }.items():
        assert names(*filters) == wanted, filters
    order = lambda key, back=False: [run.run.path.name for run in choosing.ordered(everything, key, back)]
    assert order("cross_entropy") == ["mrt5-a", "byt5", "mrt5-b"]
    assert order("cross_entropy", True) == ["mrt5-b", "byt5", "mrt5-a"]
    assert order("exact_match", True)[0] == order("exact_match")[0] == "byt5"  # without a value, last
    assert order("name") == every and order("state")[-1] == "mrt5-b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stat=finished", "unknown name 'stat'"),
        ("state=done", "'done' is not a state"),
        ("state<3", "state is text"),
        ("step<many", "'many' is not a number"),
        ("loss=low", "'low' is not a number"),
        ("step>nan", "'nan' is not a number"),
        ("step=3,", "'3,' is not a number"),
        ("Step>3", "unknown name 'Step'"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choosing.condition(text)


@pytest.mark.parametrize(
    ("text", "unit"), [("size>1MB", "size is in bytes"), ("age<1h", "age is in seconds")]
)
def test_a_filter_in_the_units_of_a_list_is_told_its_own(text: str, unit: str) -> None:
    with pytest.raises(UserError) as caught:
        choosing.condition(text)
    assert str(caught.value.hint).startswith(unit)


def test_the_best_is_of_runs_measured_alike_and_ties_keep_the_earlier(runs: Path) -> None:
    for name, loss, ended in (("a", 0.3, "05"), ("b", 0.2, "09"), ("c", 0.2, "07"), ("d", 0.1, "08")):
        run = record(runs / name, ended=f"2026-01-{ended}T00:00:00+00:00", cross_entropy=1 - loss)
        evaluate(run, limit=None if name == "d" else 50, loss=loss, sequence_accuracy=1 - loss)
        evaluate(run, deletion="soft", loss=5 * loss)
        evaluate(run, split="validation", loss=loss)
    record(runs / "e", status="interrupted")
    everything = [found.read(path) for path in found.find(runs)]
    best = choosing.rank(everything, "loss")
    assert [run.run.path.name for run, _ in best.runs] == ["c", "b", "a"] and best.best[1] == 0.2
    assert best.of == "vowel_removal, test split, 50 examples, hard deletion"
    assert best.remarks == ["left out runs/d, which was evaluated under other conditions"]
    assert choosing.rank(everything, "loss", soft=True).best[0].run.path.name == "d"
    assert choosing.rank(everything, "loss", split="validation").best[0].run.path.name == "d"
    assert choosing.rank(everything, "sequence_accuracy").best[0].run.path.name == "c"
    of_training = choosing.rank(everything, "cross_entropy")
    assert of_training.best[0].run.path.name == "e" and of_training.of == "of training, last logged line"
    for metric, said in {
        "f1": "none of 5 runs has f1 .*test data with hard deletion",
        "deletion_rate": "neither direction of this metric",
        "alpha": "neither direction of this metric",
        "los": "unknown name 'los'",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            choosing.rank(everything, metric)
        assert "loss" in str(caught.value.hint)
    path = runs / "a" / "eval" / "xnli.json"
    document = json.loads(next((runs / "a" / "eval").glob("*-50.json")).read_text())
    document["task"]["kind"] = "xnli"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"several tasks.*: vowel_removal, xnli"):
        choosing.rank([found.read(path) for path in found.find(runs)], "loss")


# --- curves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("by", ["step", "seconds", "bytes"])
@pytest.mark.parametrize("plain", [False, True])
def test_curves_of_runs_of_other_lengths_fit(runs: Path, width: int, by: curves.By, plain: bool) -> None:
    entries = [
        found.read(record(runs / "a").path),
        found.read(record(runs / "b", steps=400, every=10, target=0.5, cross_entropy=3.0).path),
    ]
    panels = curves.panels([(entry.name, entry) for entry in entries], [], by)
    assert [panel.metric for panel in panels] == ["cross_entropy", "deletion_rate", "alpha"]
    for panel in panels:
        text = curves.drawn(panel, width, plain=plain)
        lines = text.splitlines()
        assert max(map(len, lines)) <= max(width, len(lines[0])) and len(lines) == 12 + len(lines) - 12
        assert "runs/a" in lines[1] and "runs/b" in lines[2] and "\x1b" not in text
        body = "\n".join(lines[4 if panel.metric == "deletion_rate" else 3 :])
        assert "x" in body and (not plain or text.isascii())
        assert ("*" in body) if plain else any("\u2801" <= c <= "\u28ff" for c in body)
    assert panels[1].curves[1].y[-1] == 50.0 and panels[1].curves[1].target == 50.0
    assert panels[0].curves[0].x[-1] == {"step": 40, "seconds": 80, "bytes": 80_000}[by]
    with pytest.raises(UserError, match="unknown name 'los'"):
        curves.panels([("a", entries[0])], ["los"])


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 3e-9], [-5e8, 7e8], [float("nan"), 1.0], [4.0, 3.0]]
)
def test_every_range_of_numbers_is_drawn(values: list[float]) -> None:
    rows = [{"step": place, "seconds": 1.0, "x": value} for place, value in enumerate(values)]
    if values == [4.0, 3.0]:
        rows = [row | {"step": -5 - row["step"]} for row in rows]
    rows.append({"step": 10**400, "seconds": 1.0, "x": 1.0})
    curve = curves._curve("a", rows, "x", "step")
    assert len(curve.x) == len(curve.y) == sum(value == value for value in values)
    text = curves.drawn(curves.Panel("x", [curve]), 60)
    assert max(map(len, text.splitlines())) <= 60 and any("\u2801" <= c <= "\u28ff" for c in text)


def test_numbers_of_validation_are_curves_too(runs: Path) -> None:
    run = record(runs / "a")
    lines = [
        {"step": step, "validation": {"en": {"loss": 9.0}, "total": {"loss": 1 / step}}} for step in (10, 20)
    ]
    run.metrics_path.write_text(
        run.metrics_path.read_text() + "".join(json.dumps(row) + "\n" for row in lines)
    )
    [panel] = curves.panels([("a", found.read(run.path))], ["validation_loss"])
    assert (panel.title, panel.curves[0].x, panel.curves[0].y) == ("validation loss", [10, 20], [0.1, 0.05])


# --- tags ---------------------------------------------------------------------------------------------------


def test_tags_outlive_a_training_that_writes_meta_at_its_end(runs: Path) -> None:
    from mrt5cli.training import record as training_record

    run = record(runs / "a", status="running", ended=None)
    with run.hold():
        assert found.tag(run, ["b", "a", "b"], []) == ["b", "a"]
        training_record.keep_room(run)
        training_record.end(run, "finished")
    assert found.read(run.path).tags == ("b", "a") and run.meta()["status"] == "finished"
    assert found.tag(run, ["c"], ["b"]) == ["a", "c"]
    for add, remove, said in (
        (["two words"], [], "is not a tag"),
        ([], ["x"], "no tag x"),
        (["\x1b[31m"], [], "is not a tag"),
    ):
        with pytest.raises(UserError, match=said):
            found.tag(run, add, remove)
    (run.path / found.TAGS).write_text('{"tags": 3}')
    entry = found.read(run.path)
    assert entry.state == "finished" and entry.tags == () and "damaged" in entry.notes[0]


# --- removing -----------------------------------------------------------------------------------------------


def test_a_run_is_removed_and_what_it_links_to_stays(runs: Path, tmp_path: Path) -> None:
    run, other = record(runs / "a"), record(runs / "b")
    disk = tmp_path / "disk"
    shutil.move(run.checkpoints, disk)
    run.checkpoints.symlink_to(disk)
    (run.path / "note").symlink_to(other.recipe_path)
    kept, theirs = content(disk), content(other.path)
    moving.remove(run)
    assert not run.path.exists() and content(disk) == kept and content(other.path) == theirs
    assert sorted(path.name for path in runs.iterdir()) == ["b"]


def test_checkpoints_go_alone(runs: Path) -> None:
    run = record(runs / "a", evaluation={"loss": 1.0})
    before = content(run.path)
    moving.remove_checkpoints(run)
    kept = {name: text for name, text in before.items() if not name.startswith("checkpoints/")}
    assert content(run.path) == kept and run.saved_steps() == []
    unfinished = record(runs / "b", status="interrupted")
    with pytest.raises(UserError, match="has no finished model"):
        moving.remove_checkpoints(unfinished)
    assert unfinished.saved_steps() == [20, 40]


HOLD = """
import sys, time
from pathlib import Path
from mrt5cli import locks
from mrt5cli.rundir import RunDir
if sys.argv[1] == "train":
    lock = locks.take(RunDir(Path(sys.argv[2])).lock)
else:
    assert locks.read_on(Path(sys.argv[2], "config.json"))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["train", "read"])
@pytest.mark.parametrize("do", ["remove", "move", "checkpoints"])
def test_a_run_that_is_trained_or_read_is_refused_and_stays(runs: Path, how: str, do: str) -> None:
    run = record(runs / "a")
    place = run.path if how == "train" else run.checkpoint(20)
    before = content(run.path)
    words = [sys.executable, "-c", HOLD, how, str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            with pytest.raises(UserError) as caught:
                if do == "move":
                    moving.move(run, runs / "b")
                else:
                    (moving.remove if do == "remove" else moving.remove_checkpoints)(run)
            if how == "train":
                assert f"being trained, pid {process.pid} on" in caught.value.message
                assert f"kill {process.pid}" in str(caught.value.hint)
            else:
                assert f"another process reads {run.checkpoint(20)}" in caught.value.message
        finally:
            process.kill()
    assert content(run.path) == before and not (runs / "b").exists()
    moving.remove(run)
    assert not run.path.exists()


def test_a_model_that_an_evaluation_has_opened_stays(runs: Path) -> None:
    run = record(runs / "a")
    code = (
        "import sys, time\nfrom mrt5cli.rundir import resolve_model\n"
        "print(resolve_model(sys.argv[1])[0], flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "runs/a/model\n"
            for do in (moving.remove, lambda one: moving.move(one, runs / "b")):
                with pytest.raises(UserError, match="another process reads runs/a/model"):
                    do(run)
            moving.remove_checkpoints(run)  # which it does not read
        finally:
            process.kill()
    assert (run.model / "config.json").is_file() and run.saved_steps() == []


def test_what_is_no_run_and_links_to_runs_are_not_removed(runs: Path) -> None:
    (runs / "notes").mkdir(parents=True)
    (runs / "notes" / "meta.json").write_text("{}")
    run = record(runs / "a")
    (runs / "link").symlink_to("a")
    for path, said in (
        (runs / "notes", "is not a run"),
        (runs / "link", "is a link to"),
        (runs, "is not a run"),
    ):
        for do in (moving.remove, lambda run: moving.move(run, runs / "z")):
            with pytest.raises(UserError, match=said):
                do(RunDir(path))
    assert run.is_run and (runs / "notes").is_dir() and (runs / "link").is_symlink()


def test_a_removal_that_is_refused_leaves_the_run_whole(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(runs / "a")
    before = content(run.path)

    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        moving.remove(run)
    assert content(run.path) == before and run.holder() is None


# --- moving -------------------------------------------------------------------------------------------------


def other_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == "a":
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_move_keeps_what_refers_to_the_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, across: bool, absolute: bool
) -> None:
    typed = str(tmp_path / "runs" / "a") if absolute else "runs/a"
    command = ["mrt5", "pretrain", "x", "--out", typed]
    run = record(
        runs / "a", evaluation={"loss": 0.5}, command=command, from_model=typed, hub_commits={typed: "1"}
    )
    follower = record(runs / "suite" / "b", start=typed)
    at_checkpoint = record(runs / "c", start=f"{typed}/checkpoints/step-00000020")
    at_step = record(runs / "f", start=f"{typed}@step-20")
    segment = at_step.segment(20) / "recipe.yaml"
    segment.parent.mkdir(parents=True)
    shutil.copy(at_step.recipe_path, segment)
    unlike = record(runs / "d", start="runs/another-a")
    damaged = record(runs / "e")
    damaged.recipe_path.write_text("x")
    files, theirs = content(run.path), content(unlike.path)
    if across:
        other_file_system(monkeypatch)
    new = tmp_path / "kept" / "first"
    assert {path.name for path in moving.move(run, new)} == {"b", "c", "f"}
    assert not run.path.exists() and not run.path.is_symlink() and RunDir(new).is_run
    place = str(new) if absolute else "kept/first"
    assert follower.recipe().model.start == place
    assert at_checkpoint.recipe().model.start == f"{place}/checkpoints/step-00000020"
    assert at_step.recipe().model.start == f"{place}@step-20"
    assert segment.read_bytes() == at_step.recipe_path.read_bytes()
    for one in (follower, at_checkpoint, at_step, unlike, RunDir(new)):
        assert one.recipe_changed() is None
    assert content(unlike.path) == theirs
    meta = RunDir(new).meta()
    assert meta["command"] == command and meta["from_model"] == place and meta["hub_commits"] == {place: "1"}
    [(path, saved)] = found.read(new).evaluations
    assert saved.models[0].source == "kept/first/model"
    assert shlex_words(RunDir(new).resume_command)[2:5] == [str(new / "recipe.yaml"), "--out", str(new)]
    changed = {"meta.json", str(path.relative_to(new))}
    now = content(new)
    assert now.keys() == files.keys() and {name for name in now if now[name] != files[name]} == changed
    assert all(manifest.fault(folder) is None for folder in moving.weights(RunDir(new)))
    assert moving.starting_from(RunDir(new)) and RunDir(new).holder() is None
    assert not list(tmp_path.rglob(".tmp-*"))


def shlex_words(text: str) -> list[str]:
    import shlex

    return shlex.split(text)


def test_a_move_is_refused_where_no_recipe_could_start_from(runs: Path) -> None:
    run, follower = record(runs / "a"), record(runs / "b", start="runs/a")
    before = content(runs)
    with pytest.raises(
        UserError, match=r"runs/b would start from runs/\{c\}, but a recipe's model.start cannot"
    ):
        moving.move(run, Path("runs/{c}"))
    assert content(runs) == before and follower.recipe().model.start == "runs/a"
    moving.move(follower, Path("runs/{c}"))  # nothing starts from there


def test_a_move_is_refused_where_it_cannot_be_whole(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = record(runs / "a"), record(runs / "b", start="runs/a")
    before = content(runs)
    (runs / "link").symlink_to("nowhere")
    for new, said in {
        runs / "b": "already exists",
        runs / "link": "already exists",
        runs / "a" / "x": "into itself",
        runs / "b" / "x": "inside the run",
    }.items():
        with pytest.raises(UserError, match=said):
            moving.move(run, new)
    with other.hold(), pytest.raises(UserError, match="starts from it and is being trained"):
        moving.move(run, runs / "z")
    evaluation = evaluate(run, loss=1.0)
    evaluation.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        moving.move(run, runs / "z")
    evaluation.unlink()
    other_file_system(monkeypatch)
    weights = run.model / "model.safetensors"
    weights.write_bytes(bytes(999) + b"1")
    with pytest.raises(UserError, match=r"is damaged.*model\.safetensors"):
        moving.move(run, runs / "z")
    weights.write_bytes(bytes(1000))
    check = moving._check_copy

    def cut(old: Path, copy: Path) -> None:
        (copy / "metrics.jsonl").write_text("cut")
        check(old, copy)

    monkeypatch.setattr(moving, "_check_copy", cut)
    with pytest.raises(UserError, match="differs from it; nothing was moved"):
        moving.move(run, runs / "z")
    (runs / "link").unlink()
    assert content(runs) == before and not (runs / "z").exists()


def test_a_path_out_of_the_working_directory_is_absolute(runs: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    os.chdir(work)
    run, other = record(runs / "a"), record(runs / "b", start="runs/a")
    moving.move(run, tmp_path / "far")
    assert other.recipe().model.start == str(tmp_path / "far") and other.recipe_changed() is None


def test_a_kill_between_move_and_references_leaves_a_link(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = record(runs / "a"), record(runs / "b", start="runs/a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moving, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        moving.move(run, runs / "z")
    assert RunDir(Path(other.recipe().model.start)).is_run and other.recipe_changed() is None
    assert [path.name for path in found.find(runs)] == ["b", "z"]


def test_names_are_found_and_slips_are_answered(runs: Path) -> None:
    record(runs / "suite" / "mrt5-seed1")
    for text in ("runs/suite/mrt5-seed1", "suite/mrt5-seed1"):
        assert found.resolve(text).path == runs / "suite" / "mrt5-seed1"
    for text, hint in {
        "mrt5-seed2": "did you mean runs/suite/mrt5-seed1?",
        "runs/suite/mrt-seed1": "did you mean runs/suite/mrt5-seed1?",
        "suite": "runs in it: runs/suite/mrt5-seed1",
        "wholly-else": "run `mrt5 runs`",
        "": None,
    }.items():
        with pytest.raises(UserError) as caught:
            found.resolve(text)
        assert hint is None or hint in str(caught.value.hint)


def test_a_list_does_not_keep_a_training_from_starting(runs: Path) -> None:
    run = record(runs / "a")
    run.lock.touch()
    begin = time.monotonic()
    for _ in range(50):
        assert found.read(run.path).holder is None
        lock = locks.take(run.lock)
        assert isinstance(lock, locks.Lock)
        assert found.read(run.path).state == "running"
        lock.release()
    assert time.monotonic() - begin < 20
