"""Dynamic int8 whose activations have one scale per row, so that an answer does not depend on the other rows of its batch.

ONNX Runtime's dynamic quantization takes one scale for a whole tensor, so the largest value of a batch decides how finely all of
its rows are quantized. Here each vector that is multiplied with a matrix has its own scale.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
SCALES = 16
"""The scales of an embedding are filled up to a multiple of this number, which is 64 bytes. If a tensor begins elsewhere, the
instances of a server cannot share the weights."""
_PREFIX = "rowwise"
_DOMAIN = "com.microsoft"


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
    """Replace the operators of ONNX Runtime's quantization, which take one scale per tensor, by those that take one per vector."""
    producers = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    products = {
        node.output[0]: _find_product(node, producers, users) for node in model.graph.node if node.op_type == "MatMulInteger"
    }
    replaced = {name for product in products.values() for name in product.replaced}
    constants = {
        "levels": np.array(LEVELS, dtype=np.float32),
        "one": np.array(1, dtype=np.float32),
        "smallest": np.array(SMALLEST, dtype=np.float32),
        "zero_point": np.array(ZERO_POINT, dtype=np.uint8),
        "axes": np.array([-1], dtype=np.int64),
    }
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            if others := [user for user in users.get(node.output[1], []) if user.output[0] not in replaced]:
                raise ExportError(f"the scale of {others[0].name} cannot be taken row by row")
            nodes.extend(_quantize_vectors(node, opset=_opset(model)))
        elif node.output[0] in products:
            nodes.extend(_scaled(products[node.output[0]]))
        elif node.output[0] not in replaced:
            nodes.append(node)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in dict.fromkeys(product.columns for product in products.values()):
        constants[f"{name}/step"] = numpy_helper.to_array(weights[name]) / np.float32(LEVELS)
    model.graph.initializer.extend(numpy_helper.from_array(value, f"{_PREFIX}/{name}") for name, value in constants.items())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if all(entry.domain != _DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return len(products)


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


@dataclass(frozen=True, kw_only=True)
class _Product:
    """How ONNX Runtime's quantization multiplies with a matrix: ``cast(integers) * (scale of the tensor * scales of the columns)``.

    Attributes:
        integers: The node that multiplies the integers.
        columns: Name of the scales of the columns.
        result: Name of the result.
        replaced: First outputs of the nodes that are replaced.
    """

    integers: onnx.NodeProto
    columns: str
    result: str
    replaced: frozenset[str]


def _find_product(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], users: Mapping[str, list[onnx.NodeProto]]
) -> _Product:
    """Find the nodes of a product.

    Args:
        node: The ``MatMulInteger``.
        producers: Node by name of each output.
        users: Nodes that read a tensor, by its name.

    Raises:
        ExportError: The nodes around it are others than those that ONNX Runtime's quantization writes.
    """
    quantization = producers.get(node.input[0])
    casts = users.get(node.output[0], [])
    scalings = users.get(casts[0].output[0], []) if len(casts) == 1 else []
    if (
        quantization is not None
        and quantization.op_type == "DynamicQuantizeLinear"
        and [one.op_type for one in scalings] == ["Mul"]
    ):
        scale = quantization.output[1]
        for factor in (producers[name] for name in scalings[0].input if name in producers):
            columns = [name for name in factor.input if name != scale]
            if factor.op_type == "Mul" and len(columns) == 1:
                outputs = (node.output[0], casts[0].output[0], factor.output[0], scalings[0].output[0])
                return _Product(integers=node, columns=columns[0], result=outputs[-1], replaced=frozenset(outputs))
    raise ExportError(f"the product of {node.name} cannot be scaled row by row")


def _made(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{_PREFIX}/{output}", **attributes)


def _quantize_vectors(node: onnx.NodeProto, *, opset: int) -> Iterator[onnx.NodeProto]:
    """Make the nodes that quantize the input of a ``DynamicQuantizeLinear`` along its last axis."""
    (values,), quantized = node.input, node.output[0]
    absolute, largest, factor, scaled = (f"{quantized}/{name}" for name in ("absolute", "largest", "factor", "scaled"))
    yield _made("Abs", [values], absolute)
    if opset < 18:  # the axes became an input
        yield _made("ReduceMax", [absolute], largest, keepdims=1, axes=[-1])
    else:
        yield _made("ReduceMax", [absolute, f"{_PREFIX}/axes"], largest, keepdims=1)
    yield _made("Max", [largest, f"{_PREFIX}/smallest"], _bound(quantized))
    yield _made("Div", [f"{_PREFIX}/levels", _bound(quantized)], factor)
    yield _made("Mul", [values, factor], scaled)
    yield _made("QuantizeLinear", [scaled, f"{_PREFIX}/one", f"{_PREFIX}/zero_point"], quantized)


def _bound(quantized: str) -> str:
    """Name the largest magnitudes of vectors."""
    return f"{quantized}/bound"


def _scaled(product: _Product) -> Iterator[onnx.NodeProto]:
    """Make the nodes that multiply with a matrix, then with the scale of each column, then with that of each vector.

    ``MatMulIntegerToFloat`` takes one scale for all vectors, which is 1 here.
    """
    quantized, matrix, _, zero_point = product.integers.input
    by_column = f"{product.result}/columns"
    inputs = [quantized, matrix, f"{_PREFIX}/one", f"{_PREFIX}/{product.columns}/step", f"{_PREFIX}/zero_point", zero_point]
    yield _made("MatMulIntegerToFloat", inputs, by_column, domain=_DOMAIN)
    yield _made("Mul", [by_column, _bound(quantized)], product.result)


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
        scale = np.pad(scale.astype(np.float32), ((0, -len(scale) % SCALES), (0, 0)))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
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
