"""Ray, on one machine: `Predictor` in Ray Data, and `mrt5 generate --engine ray`; workers that are killed.

Ray is too large for the locked environment; `pip install 'ray[data]'` beside it, without its other packages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import SHORTENERS, make_run

from mrt5cli import generate
from mrt5cli.errors import UserError
from mrt5cli.generation.cluster import Cluster

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it ends workers where anybody else's processes take the memory
}


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--engine ray needs the package ray") as caught:
        Cluster("auto")
    assert caught.value.hint == "pip install 'ray[data]>=2.60'"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ray", reason="Ray is not installed")
    return make_run(tmp_path_factory.mktemp("runs"), "mrt5")


# --- Ray Data -----------------------------------------------------------------------------------------------

OVER_PARQUET = """
import os, sys
from pathlib import Path
import ray
from mrt5cli import Predictor

class Mortal(Predictor):
    def __call__(self, batch):
        if 700 in batch["id"] and not os.path.exists("died"):
            Path("died").touch()
            os.kill(os.getpid(), 9)
        return super().__call__(batch)

run, how = sys.argv[1:]
settings = dict(column="text", added={"output": "out", "score": "score", "bytes": "raw"}, max_new_tokens=8)
ray.init(num_cpus=4, include_dashboard=False)
rows = ray.data.read_parquet("texts")
if how == "actors":
    pool = ray.data.ActorPoolStrategy(size=2)
    rows = rows.map_batches(
        Mortal, fn_constructor_args=[run], fn_constructor_kwargs=settings, compute=pool, batch_size=64
    )
else:
    rows = rows.map_batches(Mortal(run, **settings), batch_size=64)
rows.write_parquet("outputs")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["actors", "tasks"])
def test_a_folder_of_parquet_with_a_worker_killed_in_the_middle(run: Path, tmp_path: Path, how: str) -> None:
    texts = [f"row {number} of them" for number in range(1200)]
    (tmp_path / "texts").mkdir()
    for first in range(0, 1200, 200):
        ids = list(range(first, first + 200))
        table = pa.table({"id": ids, "text": [texts[number] for number in ids]})
        pq.write_table(table, tmp_path / f"texts/{first}.parquet")
    (tmp_path / "over.py").write_text(OVER_PARQUET)
    done = subprocess.run(
        [sys.executable, "over.py", str(run), how],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]

    assert (tmp_path / "died").exists()
    found = pq.read_table(tmp_path / "outputs").sort_by("id")
    assert found["id"].to_pylist() == list(range(1200))
    outputs = list(generate(run, texts, max_new_tokens=8))
    assert found["raw"].to_pylist() == [one.bytes for one in outputs]
    assert found["out"].to_pylist() == [one.output for one in outputs]
    assert found["score"].to_pylist() == pytest.approx([one.score for one in outputs], abs=1e-4)


# --- the command --------------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "mrt5cli", "generate", *map(str, words), "--max-new-tokens", "6"]


def written(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def started(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def done_of(out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until some inputs are done."""
    note = out.with_name(f"{out.name}.unfinished.json")
    while process.poll() is None and not (note.exists() and json.loads(note.read_text())["done"]["inputs"]):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def workers_below(process: int) -> list[int]:
    """The actors that a command has, by the name that Ray gives their processes."""
    import psutil

    below = psutil.Process(process).children(recursive=True)
    return [one.pid for one in below if any("_Worker" in word for word in one.cmdline())]


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(f"line {number}\n" for number in range(count)))
    return path


@pytest.mark.slow
def test_a_worker_is_killed_and_the_command_too(run: Path, tmp_path: Path) -> None:
    file, out, whole = lines(tmp_path / "in.txt", 20_000), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    local = written(run, file, "--out", whole)
    assert local.returncode == 0, local.stderr

    process = started(run, file, "--out", out, "--engine", "ray", "--workers", 2)
    done_of(out, process)
    workers = workers_below(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    before = out.stat().st_size
    while process.poll() is None and out.stat().st_size < before + 500_000:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 143, said
    assert "with --resume to continue" in " ".join(said.split())
    again = written(run, file, "--out", out, "--engine", "ray", "--workers", 2, "--resume")
    assert again.returncode == 0, again.stderr

    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["--sample", "--num-return", 2], ["--deletion-rate", 0.3], ["--num-beams", 2]], ids=str
)
def test_the_same_bytes_as_here(run: Path, tmp_path: Path, how: list[object]) -> None:
    file = lines(tmp_path / "in.txt", 5_000)
    for name, where in (("here.jsonl", []), ("there.jsonl", ["--engine", "ray", "--workers", 2])):
        done = written(run, file, "--out", tmp_path / name, *how, *where)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


@pytest.mark.slow
def test_random_deletion_is_drawn_alike(run: Path, tmp_path: Path) -> None:
    random = make_run(tmp_path, "random", shortener=SHORTENERS["random"])
    test_the_same_bytes_as_here(random, tmp_path, [])


@pytest.mark.slow
def test_what_is_wrong_there_is_said_here(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_bytes(b"a\n" * 3000 + b"\xff\n")
    out = tmp_path / "out.txt"
    bad = written(run, file, "--out", out, "--engine", "ray", "--workers", 1)
    assert bad.returncode == 2 and "in.txt, line 3001" in bad.stderr
    assert len(out.read_text().splitlines()) == 3000
    many = written(run, file, "--engine", "ray", "--workers", 500, "--device", "cpu")
    assert many.returncode == 2 and "each worker needs one" in many.stderr
    none = written(run, file, "--engine", "ray", "--device", "cuda")
    assert none.returncode == 2 and "the Ray cluster has 0 GPUs" in none.stderr
