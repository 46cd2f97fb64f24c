"""Appends a task's output head to an exported graph, so that less data travels between Triton's processes."""

from __future__ import annotations

from pathlib import Path

import onnx

from export import graph
from export.tasks._encoder import ExportedEncoderTask
from serving.errors import ExportError


def add_output_head(path: Path, task: ExportedEncoderTask) -> str | None:
    """Append the task's output head, if it has one, to the graph at ``path``.

    Args:
        path: The graph, replaced in place.
        task: The task.

    Returns:
        A description of the change for the manifest; None if the task has no output head.

    Raises:
        ExportError: The graph lacks an output that the task reads.
    """
    description = None
    if task.has_output_head:
        model = graph.load(path)
        description = task.add_output_head(model)
        onnx.checker.check_model(model)
        graph.save(model, path)
    found = [output.name for output in onnx.load(str(path), load_external_data=False).graph.output]
    if missing := [name for name in task.model_outputs if name not in found]:
        raise ExportError(f"the graph lacks the outputs {', '.join(missing)}, which {task.name} needs; it has {', '.join(found)}")
    return description
