"""Appends a task's output head to an exported graph, so that less data travels between Triton's processes."""

from __future__ import annotations

from pathlib import Path

import onnx

from export import graph
from export.tasks.exported import ExportedTask
from serving.errors import ExportError


def add_output_head(path: Path, task: ExportedTask) -> str | None:
    """Append the task's output head, if it has one, to the graph at ``path``.

    Returns:
        A sentence for the manifest, if there is something to say.

    Raises:
        ExportError: An output that the task reads is not there.
    """
    sentence = None
    if task.has_output_head:
        model = graph.load(path)
        sentence = task.add_output_head(model)
        onnx.checker.check_model(model)
        graph.save(model, path)
    found = [output.name for output in onnx.load(str(path), load_external_data=False).graph.output]
    if missing := [name for name in task.model_outputs if name not in found]:
        raise ExportError(f"the graph gives {', '.join(found)}, not {', '.join(missing)}, which {task.name} reads")
    return sentence
