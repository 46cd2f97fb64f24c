"""Checkpoint → fp32 ONNX graph, through Optimum. Imports torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export import graph
from export.checkpoint import first_line
from export.tasks.exported import ExportedTask
from serving.errors import ExportError


def require_supported(config: dict[str, Any], task: type[ExportedTask]) -> None:
    """Refuse an architecture that Optimum cannot export for ``task``.

    Raises:
        ExportError: with the tasks that it can be exported for, if any.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401 - fills the register
    from optimum.exporters.tasks import TasksManager

    model_type = str(config.get("model_type"))
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        tested = "bert, distilbert, roberta, albert, electra, mpnet, deberta-v2, xlm-roberta and modernbert are tested"
        raise ExportError(f"Optimum cannot export the architecture {model_type!r}", hint=tested) from None
    if (task.optimum_task or task.name) not in tasks:
        known = ", ".join(sorted(tasks))
        name = task.optimum_task or task.name
        raise ExportError(f"Optimum cannot export the architecture {model_type!r} for {name}, only for {known}")


def convert(checkpoint: Path, task: type[ExportedTask], folder: Path, *, opset: int) -> Path:
    """Write the checkpoint as ``folder/model.onnx``: fp32, unfused, its inputs ``[rows, tokens]``, both axes free.

    Raises:
        ExportError: Optimum failed, or fixed an axis that must be free.
    """
    from optimum.exporters.onnx import main_export

    try:
        with exporter_kept_quiet():
            # its own validation only logs; verify.py is the judge
            main_export(
                str(checkpoint),
                str(folder),
                task=task.optimum_task or task.name,
                opset=opset,
                library_name="transformers",
                framework="pt",
                do_validation=False,
                trust_remote_code=False,
            )
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the model
        raise ExportError(f"Optimum could not export {checkpoint}: {type(error).__name__}: {first_line(error)}") from error
    path = folder / "model.onnx"
    _ungroup(path)
    _require_free_axes(path)
    return path


def _ungroup(path: Path) -> None:
    """Where inputs are ``[groups, rows, tokens]``, make them ``[rows, tokens]``: each row becomes a group of its own."""
    model = graph.load(path)
    grouped = [tensor for tensor in model.graph.input if len(tensor.type.tensor_type.shape.dim) == 3]
    if not grouped:
        return
    axis = onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "ungrouped/axis")
    nodes = []
    for tensor in grouped:
        inner = f"ungrouped/{tensor.name}"
        for node in model.graph.node:
            node.input[:] = [inner if name == tensor.name else name for name in node.input]
        nodes.append(onnx.helper.make_node("Unsqueeze", [tensor.name, axis.name], [inner], name=inner))
        del tensor.type.tensor_type.shape.dim[1]
    model.graph.initializer.append(axis)
    whole = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(whole)
    for tensor in model.graph.output:  # [groups, rows] is [rows, 1] now
        tensor.type.tensor_type.shape.dim[1].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1))
    onnx.checker.check_model(model)
    graph.save(model, path)


def _require_free_axes(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    names = set(graph.input_names(path))
    for tensor in model.graph.input:
        fixed = [axis for axis, dim in enumerate(tensor.type.tensor_type.shape.dim) if not dim.dim_param]
        if tensor.name in names and fixed:
            raise ExportError(f"the exported graph fixes axis {fixed[0]} of {tensor.name!r}: it could serve one shape only")


@contextlib.contextmanager
def exporter_kept_quiet() -> Iterator[None]:
    """Silence what tracing and quantising say about themselves: whether the graph is right is measured, not read off warnings."""
    loggers = [logging.getLogger(name) for name in (None, "optimum", "onnxruntime", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    printed = contextlib.redirect_stdout(io.StringIO())  # standard output is for results
    with printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
