"""Convert a checkpoint to an fp32 ONNX graph with Optimum. Imports torch."""

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
from export.tasks._encoder import ExportedEncoderTask
from serving.errors import ExportError, first_line


def require_supported(config: dict[str, Any], task: type[ExportedEncoderTask]) -> None:
    """Check that Optimum can export an architecture for ``task``.

    Args:
        config: The checkpoint's ``config.json``.
        task: The class of the task.

    Raises:
        ExportError: Optimum cannot. The message lists the tasks that the architecture can be exported for, if any.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the supported architectures
    from optimum.exporters.tasks import TasksManager

    model_type = str(config.get("model_type"))
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        tested = "bert, distilbert, roberta, albert, electra, mpnet, deberta-v2, xlm-roberta, camembert and modernbert are tested"
        raise ExportError(f"Optimum cannot export the architecture {model_type!r}", hint=tested) from None
    if (task.optimum_task or task.name) not in tasks:
        known = ", ".join(sorted(tasks))
        name = task.optimum_task or task.name
        raise ExportError(f"Optimum cannot export the architecture {model_type!r} for {name}, only for {known}")


def convert(checkpoint: Path, task: type[ExportedEncoderTask], folder: Path, *, opset: int) -> Path:
    """Convert a checkpoint to an fp32 graph without fused operators.

    Args:
        checkpoint: Folder of the checkpoint.
        task: The class of the task.
        folder: Folder for the graph.
        opset: ONNX operator set.

    Returns:
        The file ``model.onnx``. Its inputs are INT64 ``[rows, tokens]`` with two dynamic axes.

    Raises:
        ExportError: Optimum failed, or exported an axis with a fixed size.
    """
    from optimum.exporters.onnx import main_export

    try:
        with silence_exporters():
            # Optimum's validation only logs differences; export.verify compares the variants with the original
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
            raise  # an error of the file system, such as a full disk
        raise ExportError(f"Optimum could not export {checkpoint}: {type(error).__name__}: {first_line(error)}") from error
    path = folder / "model.onnx"
    _remove_group_axis(path)
    _find_one_end_token(path)
    _require_dynamic_axes(path)
    return path


def _remove_group_axis(path: Path) -> None:
    """Change inputs of shape ``[groups, rows, tokens]`` to ``[rows, tokens]``; the graph then treats each row as one group."""
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
    all_nodes = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(all_nodes)
    for tensor in model.graph.output:  # [groups, rows] becomes [rows, 1]
        tensor.type.tensor_type.shape.dim[1].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1))
    onnx.checker.check_model(model)
    graph.save(model, path)


def _find_one_end_token(path: Path) -> None:
    """Let a head that reads the last end-of-text token find exactly one in each row.

    The heads of BART and T5 gather the end tokens of all rows at once and divide them by the number of rows, so a text that names
    the token would break the whole batch. In a row without one, which the model refuses, the first token is found.
    """
    model = graph.load(path)
    made_by = {output: node for node in model.graph.node for output in node.output}
    for indices in [node for node in model.graph.node if node.op_type == "NonZero"]:
        found = made_by.get(indices.input[0])
        while found is not None and found.op_type == "Cast":
            found = made_by.get(found.input[0])
        if found is None or found.op_type != "Equal" or "input_ids" not in found.input:
            continue
        (marked,) = found.output
        found.output[0] = f"{_END}/all"
        place = list(model.graph.node).index(found) + 1
        for node in reversed(_last_or_first(f"{_END}/all", marked)):
            model.graph.node.insert(place, node)
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), f"{_END}/{name}")
            for name, value in {"one": 1, "zero": 0, "axis": 1, "axes": [1]}.items()
        )
        onnx.checker.check_model(model)
        graph.save(model, path)
        return


_END = "one_end_token"
"""Prefix of the names of the nodes and tensors that find one end token."""


def _last_or_first(marked: str, result: str) -> list[onnx.NodeProto]:
    """Return nodes that keep the last mark of each row, BOOL ``[rows, tokens]``, or mark the first token of a row without one."""

    def node(operator: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        name = output if output == result else f"{_END}/{output}"
        named = [one if one == marked else f"{_END}/{one}" for one in inputs]
        return onnx.helper.make_node(operator, named, [name], name=f"{_END}/{operator}/{output}", **attributes)

    return [
        node("Cast", [marked], "marks", to=onnx.TensorProto.INT64),
        node("CumSum", ["marks", "axis"], "marks_from_here", reverse=1),
        node("Equal", ["marks_from_here", "one"], "none_behind"),
        node("And", [marked, "none_behind"], "last"),
        node("ReduceSum", ["marks", "axes"], "count", keepdims=1),
        node("Equal", ["count", "zero"], "unmarked"),  # [rows, 1]
        node("Equal", ["marks", "marks"], "any"),
        node("Cast", ["any"], "ones", to=onnx.TensorProto.INT64),
        node("CumSum", ["ones", "axis"], "number"),
        node("Equal", ["number", "one"], "first"),
        node("And", ["first", "unmarked"], "fallback"),
        node("Or", ["last", "fallback"], result),
    ]


def _require_dynamic_axes(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    names = set(graph.input_names(path))
    for tensor in model.graph.input:
        fixed = [axis for axis, dim in enumerate(tensor.type.tensor_type.shape.dim) if not dim.dim_param]
        if tensor.name in names and fixed:
            raise ExportError(
                f"axis {fixed[0]} of {tensor.name!r} has a fixed size in the exported graph, which could serve only one shape"
            )


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress the output and warnings of tracing and quantization; the graphs are verified by measurement instead."""
    import torch

    log = torch._C._jit_onnx_log  # where tracing fails, it prints the whole graph to standard output, whatever its settings
    loggers = [logging.getLogger(name) for name in (None, "optimum", "onnxruntime", "torch.onnx", "transformers")]
    levels = [logger.level for logger in loggers]
    printed = contextlib.redirect_stdout(io.StringIO())  # our standard output holds only results
    with printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        torch._C._jit_onnx_log = lambda *_: None
        try:
            yield
        finally:
            torch._C._jit_onnx_log = log
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
