"""A long run holds no more at its end than at its beginning, and text of any size takes little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mrt5cli.rundir import RunDir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="memory is as Linux tells it"),
]

RECIPE = """
name: long
description: A long run of a tiny model
task:
  kind: span_corruption
  source: {kind: files, path: texts, streaming: true}
  input_length: 64
model:
  start: scratch
  shape: {d_model: 32, d_ff: 48, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
  shortener: {kind: delete_gate, layer: 1}
controller: {kind: pi, target_deletion_rate: 0.3}
training: {max_steps: 2000, batch_size: 8, device_batch_size: 4, data_workers: 2, logging_steps: 20,
  eval_steps: 100, save_steps: 200}
evaluation: {examples: 16, batch_size: 8}
"""
MIB = 2**20


class Watch(threading.Thread):
    """Reads now and then what a process and its children hold in memory that is theirs alone, in bytes."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.ended = process, threading.Event()
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.seen.append((time.monotonic(), sum(map(held, family(self.process)))))


def family(process: int) -> list[int]:
    """A process and all that it has started."""
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").glob("*/children")
        for child in readable(task).split()
    ]
    return [process, *(each for child in children for each in family(child))]


def held(process: int) -> int:
    """Bytes in memory that no other process shares, by pages."""
    rollup = readable(Path(f"/proc/{process}/smaps_rollup")).splitlines()
    return sum(1024 * int(line.split()[1]) for line in rollup if line.startswith("Private_"))


def readable(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it has ended meanwhile
        return ""


def test_two_thousand_steps_with_workers_and_validation(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        lines = [f"text {number} line {line}: {'many words ' * (line % 9)}\n\n" for line in range(400)]
        (texts / f"train-{number:02}.txt").write_text("".join(lines))
        (texts / f"validation-{number:02}.txt").write_text("".join(lines[:20]))
    (tmp_path / "long.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "mrt5cli", "pretrain", "long.yaml", "--out", "run", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    watch.start()
    said = process.communicate(timeout=1500)[1]
    watch.ended.set()
    assert process.returncode == 0, said
    run = RunDir(tmp_path / "run")
    rows = [row for row in run.metrics() if "loss" in row]
    assert rows[-1]["step"] == 2000
    # Of the last 70 % of the time: caches are full, and both workers have been through all files.
    trained = rows[-1]["seconds"]
    last = watch.seen[-1][0]
    later = [size for at, size in watch.seen if at > last - 0.7 * trained]
    third = len(later) // 3
    first, end = (sorted(part)[third // 2] for part in (later[:third], later[-third:]))
    print(f"{first / MIB:.1f} MiB, then {end / MIB:.1f} MiB, of {len(later)} readings")
    assert end - first < 16 * MIB, [size // MIB for size in later]


READING = """
import resource, sys
from mrt5cli.data.sources import open_source
from mrt5cli.recipe import FilesSource

text = open_source(FilesSource(kind="files", path=sys.argv[1], streaming=True), ["en"])
stream = text.train("en", key=(1, 2))
wanted = int(float(sys.argv[2]))
stream.take(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while wanted > 0:
    wanted -= len(stream.take(2**20))
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize(
    ("suffix", "files"),
    [("jsonl", 100), ("txt", 10), ("txt", 1000)],
    ids=["rows", "paragraphs", "whole files"],
)
def test_ten_gigabytes_of_text_stream_through_little_memory(tmp_path: Path, suffix: str, files: int) -> None:
    """Many names of one file are read like as many files."""
    line = "a line of text that is long enough to look like one of a book, with its words " * 5
    line = f'{{"text": "{line}"}}\n' if suffix == "jsonl" else f"{line}\n\n"
    texts = tmp_path / "texts"
    texts.mkdir()
    first = texts / f"part-000.{suffix}"
    with first.open("w") as file:
        for _ in range(10**10 // files // len(line) // 1000):
            file.write(line * 1000)
    for number in range(1, files):
        os.link(first, texts / f"part-{number:03}.{suffix}")
    command = [sys.executable, "-c", READING, str(texts), "9.8e9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    before, after = (int(size) / 1024 for size in done.stdout.split())
    print(f"{before:.0f} MiB after the first bytes, {after:.0f} MiB at the most")
    assert after - before < 64
