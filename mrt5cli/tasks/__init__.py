"""Tasks: data, prompts and metrics, one file per kind."""

from __future__ import annotations

from mrt5cli.tasks.base import Batch, BatchStream, Task, build_task

__all__ = ["Batch", "BatchStream", "Task", "build_task"]
