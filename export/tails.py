"""What is appended to an exported graph so that less travels between Triton's processes than the model's heads give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from export import graph
from export.pooled import pooled
from serving.runtime.tasks.base import Task

TAILS: dict[str, Callable[[onnx.ModelProto, Task], None]] = {"pooled": pooled}
"""By the name that tasks give as their ``tail``. Each rewrites a raw fp32 graph in place: its heads become ``outputs_read``."""


def add_tail(path: Path, task: Task) -> None:
    """Append the task's tail, if it has one, to the graph at ``path``."""
    if not task.tail:
        return
    model = graph.load(path)
    TAILS[task.tail](model, task)
    onnx.checker.check_model(model)
    graph.save(model, path)
