"""Dynamic int8 whose activations have one scale per row, so that an answer does not depend on the other rows of its batch.

ONNX Runtime's dynamic quantization takes one scale for a whole tensor, so the largest value of a batch decides how finely all of
its rows are quantized. Here each vector that is multiplied with a matrix has its own scale.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph, optimize
from serving.errors import ExportError

LEVELS = 127
"""Quantized activations reach from 128 - 127 to 128 + 127."""
ZERO_POINT = 128
SMALLEST = 1e-12
"""Scales stay above this divided by :data:`LEVELS`, because a vector of zeros would divide by zero."""
_PREFIX = "rowwise"


def quantize_rowwise(source: Path, target: Path) -> int:
    """Quantize the products of a graph with constant matrices to int8, and its embeddings.

    Weights have one scale per column, activations one per vector (the last axis), embeddings one per token.

    Args:
        source: An fp32 graph without fused operators.
        target: File to write.

    Returns:
        Number of quantized products.

    Raises:
        ExportError: The graph cannot be quantized.
    """
    with tempfile.TemporaryDirectory() as folder:
        copied, path = (Path(folder) / name / "model.onnx" for name in ("copied", "int8"))
        model = graph.load(source)
        _copy_shared_weights(model)
        graph.save(model, copied)
        optimize.to_int8(copied, path, operators=["MatMul"])
        model = graph.load(path)
    products = _scale_rows(model)
    _quantize_embeddings(model)
    graph.save(model, target)
    return products


def _copy_shared_weights(model: onnx.ModelProto) -> None:
    """Give each ``Gemm`` its own weights, because ONNX Runtime's quantization transposes them in place."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights and uses[node.input[1]] > 1:
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[node.input[1]])
            copy.name = node.input[1] = f"{copy.name}/{node.name}"


def _scale_rows(model: onnx.ModelProto) -> int:
    """Replace each ``DynamicQuantizeLinear`` by operators that quantize each vector by itself."""
    scales: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            scales.add(node.output[1])
            nodes.extend(_quantize_vectors(node, opset=_opset(model)))
        else:
            nodes.append(node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=dtype), f"{_PREFIX}/{name}")
        for name, value, dtype in (
            ("levels", LEVELS, np.float32),
            ("step", 1 / LEVELS, np.float32),
            ("shift", ZERO_POINT, np.float32),
            ("smallest", SMALLEST, np.float32),
            ("zero_point", ZERO_POINT, np.uint8),
            ("axes", [-1], np.int64),
        )
    )
    products = [node.op_type for node in nodes].count("MatMulInteger")
    nodes = _scale_products(nodes, scales)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return products


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _quantize_vectors(node: onnx.NodeProto, *, opset: int) -> Iterator[onnx.NodeProto]:
    """Make the nodes that quantize the input of a ``DynamicQuantizeLinear`` along its last axis."""
    (values,), (quantized, scale, zero_point) = node.input, node.output

    def made(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], name=f"{_PREFIX}/{output}", **attributes)

    def inner(name: str) -> str:
        return f"{quantized}/{name}"

    yield made("Abs", [values], inner("absolute"))
    if opset < 18:  # the axes became an input
        yield made("ReduceMax", [inner("absolute")], inner("largest"), keepdims=1, axes=[-1])
    else:
        yield made("ReduceMax", [inner("absolute"), f"{_PREFIX}/axes"], inner("largest"), keepdims=1)
    yield made("Max", [inner("largest"), f"{_PREFIX}/smallest"], inner("bound"))
    yield made("Mul", [inner("bound"), f"{_PREFIX}/step"], scale)
    yield made("Div", [f"{_PREFIX}/levels", inner("bound")], inner("factor"))
    yield made("Mul", [values, inner("factor")], inner("scaled"))
    yield made("Round", [inner("scaled")], inner("rounded"))
    yield made("Add", [inner("rounded"), f"{_PREFIX}/shift"], inner("shifted"))
    yield made("Cast", [inner("shifted")], quantized, to=TensorProto.UINT8)
    yield made("Identity", [f"{_PREFIX}/zero_point"], zero_point)


def _scale_products(nodes: list[onnx.NodeProto], scales: set[str]) -> list[onnx.NodeProto]:
    """Change ``product * (x * w)`` to ``(product * w) * x``, where x is the scale of the vectors and w that of the columns.

    ONNX Runtime would fuse the former to ``MatMulIntegerToFloat``, which takes one scale for all vectors.
    """
    factors: dict[str, tuple[str, str]] = {}
    for node in nodes:
        if node.op_type == "Mul" and len(found := [name for name in node.input if name in scales]) == 1:
            (other,) = [name for name in node.input if name not in scales]
            factors[node.output[0]] = (found[0], other)
    if unknown := [node.name for node in nodes if scales.intersection(node.input) and node.output[0] not in factors]:
        raise ExportError(f"the scale of {unknown[0]} cannot be taken row by row")
    result = []
    for node in nodes:
        used = [name for name in node.input if name in factors]
        if not used:
            if node.output[0] not in factors:
                result.append(node)
            continue
        if node.op_type != "Mul" or len(used) != 1:
            raise ExportError(f"the product before {node.name} cannot be scaled row by row")
        (product,) = [name for name in node.input if name not in factors]
        by_row, by_column = factors[used[0]]
        inner = f"{node.output[0]}/columns"
        result.append(helper.make_node("Mul", [product, by_column], [inner], name=f"{node.name}/columns"))
        result.append(helper.make_node("Mul", [inner, by_row], list(node.output), name=node.name))
    return result


def _quantize_embeddings(model: onnx.ModelProto) -> None:
    """Quantize the fp32 matrices that are only looked up, with one scale per row of the matrix."""
    tables = {
        tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }
    lookups = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    lookups = [node for node in lookups if all(attribute.i == 0 for attribute in node.attribute)]
    looked_up = {id(node) for node in lookups}
    others = {name for node in model.graph.node if id(node) not in looked_up for name in node.input}
    for name in dict.fromkeys(node.input[0] for node in lookups):
        if name in others:
            continue
        values = numpy_helper.to_array(tables[name])
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), SMALLEST) / LEVELS
        model.graph.initializer.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}/int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale"))
        model.graph.initializer.remove(tables[name])
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if id(node) in looked_up and node.input[0] not in others:
            nodes.extend(_lookup(node))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _lookup(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Make the nodes that look up quantized values and their scales, and multiply them."""
    (table, indices), (output,) = node.input, node.output
    yield helper.make_node("Gather", [f"{table}/int8", indices], [f"{output}/int8"], name=f"{node.name}/int8", axis=0)
    yield helper.make_node("Gather", [f"{table}/scale", indices], [f"{output}/scale"], name=f"{node.name}/scale", axis=0)
    yield helper.make_node("Cast", [f"{output}/int8"], [f"{output}/cast"], name=f"{node.name}/cast", to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{output}/cast", f"{output}/scale"], [output], name=node.name)
