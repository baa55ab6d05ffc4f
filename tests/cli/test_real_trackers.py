"""Real trackers, offline: a training that is killed and resumed, and what each of them has of it afterwards.

None is in the lock. In an environment with the locked packages and these:
    pip install tensorboard trackio wandb && pytest -m slow tests/cli/test_real_trackers.py
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs_of_commands import ENVIRONMENT, MRT5, start, wait_for

from mrt5cli.rundir import RunDir

pytestmark = pytest.mark.slow
SETTINGS = {
    "max_steps": 300,
    "save_steps": 50,
    "logging_steps": 5,
    "eval_steps": 60,
}
Sent = list[dict[str, Any]]


def of_tensorboard(run: RunDir, folder: Path) -> tuple[Sent, str]:
    """Each number of each event file as stored, and the recipe."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    util = pytest.importorskip("tensorboard.util.tensor_util")
    rows, recipe = [], ""
    for file in sorted((run.path / "tensorboard").iterdir()):
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag.startswith("recipe"):
                    recipe = util.make_ndarray(value.tensor)[0].decode()
                elif value.tag.startswith(("train/", "eval/")):
                    number = float(util.make_ndarray(value.tensor))
                    rows.append({"train/global_step": event.step, value.tag: number})
    return rows, recipe


def of_trackio(run: RunDir, folder: Path) -> tuple[Sent, str]:
    """The rows of its local database, all of one run."""
    [database] = (folder / "trackio").glob("huggingface.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        configs = connection.execute("SELECT config FROM configs").fetchall()
    assert len({name for name, _ in rows}) == 1 and rows[0][0].startswith("run-")
    return [json.loads(metrics) for _, metrics in rows], str(configs[0][0])


def of_wandb(run: RunDir, folder: Path) -> tuple[Sent, str]:
    """The records of the folders of both sessions, which have one id."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows, configs, ids = [], "", set()
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for file in (next(each.glob("*.wandb")) for each in folders):
        for content in records(file.read_bytes()):
            record = pb.Record.FromString(content)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert record.run.display_name == "run"
                configs += str(record.run.config)
            if record.HasField("config"):
                configs += str(record.config)
            if record.HasField("history"):
                items = {
                    "/".join(item.nested_key) or item.key: item.value_json for item in record.history.item
                }
                rows.append({key: json.loads(value) for key, value in items.items()})
    assert len(ids) == 1
    return [row for row in rows if "train/global_step" in row], configs


def records(content: bytes) -> Iterator[bytes]:
    """Those of a LevelDB log, in which one may be cut into several pieces."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


@pytest.mark.parametrize(
    ("tracker", "read", "lost"),
    # It is written at once; every half second; in blocks of 32 kB.
    [("tensorboard", of_tensorboard, 1), ("trackio", of_trackio, 10), ("wandb", of_wandb, 25)],
)
def test_a_killed_and_resumed_run_is_one_curve_without_a_step_twice(
    tmp_path: Path, tracker: str, read: Callable[[RunDir, Path], tuple[Sent, str]], lost: int
) -> None:
    pytest.importorskip(tracker)
    run = RunDir(tmp_path / "run")
    environment = {**ENVIRONMENT, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    options = [f"--set=training.{key}={value}" for key, value in SETTINGS.items()]
    command = ["pretrain", "quickstart", "--smoke", "--out", str(run.path), *options]
    command += [f"--set=training.report_to=[{tracker}]"]
    with (tmp_path / "log").open("w") as log:
        process = start(tmp_path, *MRT5, *command, stderr=log, environment=environment)
        wait_for(lambda: any(row["step"] > 75 for row in run.metrics()), process)
        process.kill()
        process.communicate()
        assert run.saved_steps(), "it was killed behind a checkpoint"
        process = start(tmp_path, *MRT5, *command, "--resume", stderr=log, environment=environment)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and out == "", (tmp_path / "log").read_text()

    sent, recipe = read(run, tmp_path)
    assert "max_steps" in recipe and "vowel_removal" in recipe
    lines = {row["step"]: row for row in run.metrics() if "loss" in row}
    validations = {row["step"]: row["validation"]["all"] for row in run.metrics() if "validation" in row}
    for name, expected in (
        ("train/loss", {step: row["cross_entropy"] for step, row in lines.items()}),
        ("train/total_loss", {step: row["loss"] for step, row in lines.items()}),
        ("train/alpha", {step: row["alpha"] for step, row in lines.items()}),
        ("train/deletion_rate", {step: row["deletion_rate"] for step, row in lines.items()}),
        ("train/kept_length", {step: row["kept_length"] for step, row in lines.items()}),
        ("eval/loss", {step: row["loss"] for step, row in validations.items()}),
    ):
        steps = [row["train/global_step"] for row in sent if name in row]
        assert len(steps) == len({*steps}), f"{name}: a step twice"
        got = {row["train/global_step"]: row[name] for row in sent if name in row}
        assert {*got} <= {*expected} and len(expected) - len(got) <= lost and 300 in got
        for step, value in got.items():
            assert value == pytest.approx(expected[step], rel=1e-5, abs=1e-6), (name, step)
    for name in ("train/bytes_per_second", "train/grad_norm", "train/learning_rate", "train/memory_bytes"):
        assert any(name in row for row in sent)
