"""The output head of feature extraction: pools the vectors of a row's tokens, so that only one vector leaves the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.tasks._pooling import CLS, LAST, MAX, MEAN
from serving.errors import ExportError
from serving.prologue import MASK

_P = "pooled/"
PADDING_VALUE = -1e4
"""Replaces the vectors of padding in max pooling: below any value of a hidden layer, and finite in fp16."""

Nodes = list[onnx.NodeProto]


def add_pooling_head(model: onnx.ModelProto, head: str, output: str, *, pooling: str, dims: int, unit: bool) -> None:
    """Pool ``[rows, longest, hidden]`` by the attention mask to FP32 ``[rows, dims]``.

    Args:
        model: A raw fp32 graph, changed in place.
        head: Name of its output.
        output: Name of the new output.
        pooling: One of :data:`~export.tasks._pooling.POOLINGS`.
        dims: Number of leading dimensions of the vector to keep.
        unit: Whether the vector is scaled to norm 1 first.

    Raises:
        ExportError: The graph has no attention mask to pool by.
    """
    graph = model.graph
    if MASK not in [tensor.name for tensor in graph.input] and pooling != CLS:
        raise ExportError(f"the graph has no input {MASK}, so padding cannot be excluded", hint="give --setting pooling=cls")
    nodes = _POOLINGS[pooling](head, _opset(model))
    nodes += _unit(_opset(model)) if unit else []
    nodes.append(_node("Slice", [_P + ("unit" if unit else "whole"), _P + "start", _P + "dims", _P + "last_axis"], output))
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(tensor for tensor in _constants(dims) if tensor.name in used)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch_size", dims]))


def _opset(model: onnx.ModelProto) -> int:
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _constants(dims: int) -> list[onnx.TensorProto]:
    values = {
        "start": np.array([0]),
        "dims": np.array([dims]),
        "positions": np.array([1]),
        "last_axis": np.array([-1]),
        "first": np.array(0),
        "axis": np.array(1),
        "least": np.array(PADDING_VALUE, dtype=np.float32),
        "tiny": np.array(1e-6, dtype=np.float32),
    }
    return [numpy_helper.from_array(value, _P + name) for name, value in values.items()]


def _node(op: str, inputs: list[str], output: str, **attributes: int | list[int]) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{_P}{output}/{op}", **attributes)


def _unit(opset: int) -> Nodes:
    """Scale to norm 1, over the largest number first, because in fp16 the squares of a vector may be too large to add up."""
    reduced: list[onnx.NodeProto] = []
    for operator, vector, result in (("ReduceMax", "sizes", "largest"), ("ReduceL2", "scaled", "norm")):
        if opset < 18:  # axes became an input in opset 18
            reduced.append(_node(operator, [_P + vector], _P + result, keepdims=1, axes=[-1]))
        else:
            reduced.append(_node(operator, [_P + vector, _P + "last_axis"], _P + result, keepdims=1))
    largest, norm = reduced
    return [
        _node("Abs", [_P + "whole"], _P + "sizes"),
        largest,
        _node("Max", [_P + "largest", _P + "tiny"], _P + "scale"),
        _node("Div", [_P + "whole", _P + "scale"], _P + "scaled"),
        norm,
        _node("Max", [_P + "norm", _P + "tiny"], _P + "positive_norm"),
        _node("Div", [_P + "scaled", _P + "positive_norm"], _P + "unit"),
    ]


def _cls(head: str, _opset: int) -> Nodes:
    return [_node("Gather", [head, _P + "first"], _P + "whole", axis=1)]


def _max(head: str, opset: int) -> Nodes:
    largest = _node("ReduceMax", [_P + "kept", _P + "positions"], _P + "whole", keepdims=0)
    if opset < 18:  # axes became an input in opset 18
        largest = _node("ReduceMax", [_P + "kept"], _P + "whole", keepdims=0, axes=[1])
    return [
        _node("Cast", [MASK], _P + "real", to=TensorProto.BOOL),  # [rows, longest]
        _node("Unsqueeze", [_P + "real", _P + "last_axis"], _P + "real_vectors"),  # [rows, longest, 1]
        _node("Where", [_P + "real_vectors", head, _P + "least"], _P + "kept"),
        largest,
    ]


def _mean(head: str, _opset: int) -> Nodes:
    return [_node("Cast", [MASK], _P + "chosen", to=TensorProto.FLOAT), *_weighted(head)]


def _last(head: str, _opset: int) -> Nodes:
    """Select the last token of each row: the first position at which the running count of tokens reaches the total."""
    return [
        _node("CumSum", [MASK, _P + "axis"], _P + "counted"),  # [rows, longest]
        _node("ReduceSum", [MASK, _P + "positions"], _P + "tokens", keepdims=1),  # [rows, 1]
        _node("Equal", [_P + "counted", _P + "tokens"], _P + "from_last_on"),
        _node("Cast", [_P + "from_last_on"], _P + "marked", to=TensorProto.INT64),
        _node("Mul", [_P + "marked", MASK], _P + "last"),
        _node("Cast", [_P + "last"], _P + "chosen", to=TensorProto.FLOAT),
        *_weighted(head),
    ]


def _weighted(head: str) -> Nodes:
    """Compute the mean of the chosen tokens as a matrix product with weights that add up to 1.

    This keeps all intermediate values within the range of fp16, and accelerators accumulate matrix products in fp32.
    """
    return [
        _node("ReduceSum", [_P + "chosen", _P + "positions"], _P + "count", keepdims=1),  # [rows, 1]
        _node("Div", [_P + "chosen", _P + "count"], _P + "weights"),  # [rows, longest]
        _node("Unsqueeze", [_P + "weights", _P + "positions"], _P + "weights_row"),  # [rows, 1, longest]
        _node("MatMul", [_P + "weights_row", head], _P + "product"),  # [rows, 1, hidden]
        _node("Squeeze", [_P + "product", _P + "positions"], _P + "whole"),  # [rows, hidden]
    ]


_POOLINGS: dict[str, Callable[[str, int], Nodes]] = {MEAN: _mean, CLS: _cls, MAX: _max, LAST: _last}
