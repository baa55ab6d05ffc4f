"""Processes leave their group before they end; nothing waits for its threads under the interpreter's lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = """
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from mrt5cli.training.run import leave_group
from torch.nn.parallel import DistributedDataParallel

def threads():
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return sorted(name for name in names if "gloo" in name)

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
wrapped = DistributedDataParallel(torch.nn.Linear(8, 8))
wrapped.itself = wrapped
wrapped(torch.randn(4, 8)).sum().backward()
assert threads(), "gloo names its threads otherwise"
if rank == 1:
    time.sleep(1)  # so that the other one's thread still waits for this one when it leaves
work = dist.all_reduce(torch.ones(1), async_op=True)
# Needs the interpreter in a thread of the group, as letting go of a tensor of Python's does.
then = work.get_future().then(lambda _: time.sleep(0.1))
del wrapped, work
leave_group()
print("left:", threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux only")
def test_leaving_a_group_ends_its_threads(tmp_path: Path) -> None:
    group = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in group]
    finally:
        for process in group:
            process.kill()
    assert [out for out, _ in ends] == ["left: []\n"] * 2, ends
