"""Trains several runs one after the other, as each process of a group that a launcher has started.

The argument is a JSON file: a list of keyword arguments of `pretrain`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mrt5cli import pretrain
from mrt5cli.training import run

leave_group = run.leave_group
run.leave_group = lambda: None  # the group is that of the runs that follow, too
for keywords in json.loads(Path(sys.argv[1]).read_text()):
    pretrain(**keywords, device="cpu", progress=False)
leave_group()
