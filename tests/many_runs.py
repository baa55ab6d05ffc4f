"""Trains several runs one after the other, as each process of a group that a launcher has started.

The argument is a JSON file: a list of keyword arguments of `pretrain`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mrt5cli import pretrain
from mrt5cli.training import run, sharding

leave_group, shard = run.leave_group, sharding.shard


def watched(model: Any) -> None:
    """Shard it, and see that a process is left with its share."""
    shard(model)
    weights = list(model.parameters())
    share = sum(each.to_local().numel() for each in weights) / sum(each.numel() for each in weights)
    assert abs(share * dist.get_world_size() - 1) < 0.1, share


sharding.shard = watched
run.leave_group = lambda: None  # the group is that of the runs that follow, too
for keywords in json.loads(Path(sys.argv[1]).read_text()):
    pretrain(**keywords, device="cpu", progress=False)
leave_group()
