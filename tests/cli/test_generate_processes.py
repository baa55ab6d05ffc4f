"""`mrt5 generate` as a process: killed, interrupted, in a pipe, and in constant memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import make_run

pytestmark = pytest.mark.slow
LINES = 200_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), "mrt5")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "mrt5cli", "generate", *map(str, words), "--device", "cpu"]


def started(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(f"line {number}\n" for number in range(count)))
    return path


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_stopped_in_the_middle_and_gone_on_with(
    run: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    file, out, whole = lines(tmp_path / "in.txt", 30_000), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    how = [run, file, "--max-new-tokens", 3]
    subprocess.run(command(*how, "--out", whole), check=True, capture_output=True)

    process = started(*how, "--out", out)
    note = tmp_path / "out.jsonl.unfinished.json"
    while process.poll() is None and not (note.exists() and json.loads(note.read_text())["done"]["inputs"]):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said.decode()
    assert 0 < len(out.read_bytes()) < len(whole.read_bytes())
    if number != signal.SIGKILL:
        assert "with --resume to continue" in " ".join(said.decode().split())
    subprocess.run(command(*how, "--out", out, "--resume"), check=True, capture_output=True)

    assert out.read_bytes() == whole.read_bytes()
    assert not note.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_is_the_first_ones(
    run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    file, out = lines(tmp_path / "in.txt", LINES), tmp_path / "out.txt"
    words = [*command(run, file, "--max-new-tokens", 3, "--out", out), "--device", "cpu,cpu"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    note = tmp_path / "out.txt.unfinished.json"
    while process.poll() is None and not (note.exists() and json.loads(note.read_text())["done"]["inputs"]):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)  # until the last process has let go of stderr
    assert process.returncode == 128 + number, said
    assert "with --resume to continue" in " ".join(said.split()) and "Traceback" not in said, said


def test_a_reader_that_goes_away_ends_it_quietly(run: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "in.txt", 30_000)
    process = started(run, file, "--max-new-tokens", 3)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(timeout=60) == 141
    assert b"error" not in process.stderr.read()
    process.stderr.close()


def test_a_pipe_is_read_and_written(run: Path) -> None:
    process = subprocess.run(command(run), input=b"abc\nde\n", capture_output=True, check=True)

    assert process.stdout.count(b"\n") == 2
    assert "2 inputs, 2 outputs" in process.stderr.decode()


def test_memory_does_not_grow_with_the_file(run: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (4096, LINES):
        file, out = lines(tmp_path / "in.tsv", 0), tmp_path / "out.tsv"
        with file.open("w") as stream:
            stream.write("id\ttext\n")
            stream.writelines(f'{number}\t"say ""{number}"""\n' for number in range(count))
        how = ["--column", "text", "--add-column", "answer", "--max-new-tokens", 2, "--out", out]
        subprocess.run(command(run, file, *how), check=True, capture_output=True)
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)  # MiB, of all so far
        assert out.read_bytes().count(b"\n") == count + 1
    size = os.path.getsize(tmp_path / "in.tsv") / 2**20

    assert size > 3
    assert peaks[1] < peaks[0] + 30, peaks


def test_its_benchmark_runs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "generating.py"
    small = ["--lines", "8", "--rounds", "2", "--length", "16", "--target", "2", "--alone", "2"]
    said = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, check=True).stdout

    assert said.startswith("tiny, 8 lines of 16 -> 2 byte tokens")
    assert said.count("goal") == 2
