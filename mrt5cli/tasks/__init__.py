"""Tasks: data, prompts and metrics, one kind a file."""

from __future__ import annotations

from mrt5cli.tasks.base import Batch, BatchStream, Task, build_task

__all__ = ["Batch", "BatchStream", "Task", "build_task"]
