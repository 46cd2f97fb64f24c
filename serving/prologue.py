"""ONNX nodes in front of an exported graph, so that few tensors pass between Triton's processes.

Each tensor costs far more per pass through shared memory than its size suggests. Requests therefore carry ``input_ids`` alone,
with :data:`~serving.runtime.tokenization.PADDING` at the end of short rows, and the graph derives its attention mask itself
(and ``token_type_ids``, unless the model takes pairs of texts).

With ragged batching, rows of any length arrive concatenated: Triton passes a model with ``allow_ragged_batch`` one flat tensor,
and the length of every row through ``batch_input``. The prologue turns them into the ``[rows, longest]`` tensors that the graph
was exported with. Requests of different lengths so share an execution, and no client pads its rows.

Each row's digest passes through the graph unchanged, so that the outputs tell whose they are (see ``serving.runtime.digest``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from serving.runtime.digest import MODEL_DIGEST, REQUEST_DIGEST
from serving.runtime.tokenization import PADDING

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
LENGTHS = "row_lengths"
"""Extra graph input of a ragged model, INT32 ``[rows, 1]``: the number of tokens in each row."""
_P = "prologue/"
"""Prefix of the names of all nodes and tensors of the prologue."""


def request_inputs(inputs: Sequence[str], *, pair: bool) -> list[str]:
    """Return the graph inputs that a request must carry. The prologue derives the others.

    Args:
        inputs: Names of all graph inputs.
        pair: Whether the model takes pairs of texts.

    Raises:
        ValueError: An input cannot be derived from text.
    """
    unknown = set(inputs) - {IDS, MASK, TYPES}
    if unknown or IDS not in inputs:
        raise ValueError(f"cannot derive these model inputs from text: {', '.join(sorted(unknown)) or IDS}")
    return [name for name in inputs if name == IDS or (name == TYPES and pair)]


def add_prologue(model: onnx.ModelProto, *, pad_token_id: int, pair: bool, ragged: bool) -> onnx.ModelProto:
    """Change ``model`` in place, so that it takes only :func:`request_inputs` and the digest of each row, which it also returns.

    Args:
        model: The exported model, with INT64 inputs ``[rows, longest]``.
        pad_token_id: Token id of padding inside the graph.
        pair: Whether requests carry :data:`TYPES`.
        ragged: Whether inputs become flat, INT64 ``[positions]``, with :data:`LENGTHS` as an additional input.

    Returns:
        The same model.

    Raises:
        ValueError: An input is not INT64 of rank 2, or cannot be derived from text.
    """
    graph = model.graph
    names = [tensor.name for tensor in graph.input]
    _require_int64_rows(graph.input)
    carried = request_inputs(names, pair=pair)
    inner = {name: _P + name for name in names}
    for node in graph.node:
        _rename_inputs(node, inner)
    nodes = _ragged_nodes(carried) if ragged else []
    nodes += _derived_nodes(names, carried, ragged=ragged)
    nodes.append(_digest_node(ragged=ragged))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(constant for constant in _constants(pad_token_id) if constant.name in used)
    del graph.input[:]
    graph.input.extend(_inputs(carried, ragged=ragged))
    graph.output.append(helper.make_tensor_value_info(MODEL_DIGEST, TensorProto.INT64, ["rows", 1]))
    return model


def _require_int64_rows(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    for tensor in inputs:
        kind = tensor.type.tensor_type
        if kind.elem_type != TensorProto.INT64 or len(kind.shape.dim) != 2:
            raise ValueError(f"graph input {tensor.name} is not INT64 with two dimensions")


def _constants(pad_token_id: int) -> list[onnx.TensorProto]:
    scalars = {"zero": 0, "one": 1, "pad": pad_token_id, "marker": PADDING[IDS]}
    behind = {f"{IDS}/behind": PADDING[IDS], f"{TYPES}/behind": 0}
    made = [
        helper.make_tensor(_P + name, TensorProto.INT64, dims, [value])
        for constants, dims in ((scalars, []), (behind, [1]))
        for name, value in constants.items()
    ]
    return [*made, helper.make_tensor(_P + "column", TensorProto.INT64, [2], [-1, 1])]


def _inputs(carried: Sequence[str], *, ragged: bool) -> list[onnx.ValueInfoProto]:
    dims = ["positions"] if ragged else ["rows", "longest"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name in carried]
    inputs.append(helper.make_tensor_value_info(REQUEST_DIGEST, TensorProto.INT64, ["rows"] if ragged else ["rows", 1]))
    if ragged:
        inputs.append(helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["rows", 1]))
    return inputs


def _node(op: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [_P + output], name=f"{_P}{output}/{op}", **attributes)


def _ragged_nodes(carried: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that turn flat tensors into ``[rows, longest]``.

    Position ``c`` of row ``r`` is gathered from ``start[r] + c`` if ``c < length[r]``. Otherwise it is gathered from one element
    that is appended to the flat tensor and holds the padding.
    """
    nodes = [
        _node("Cast", [LENGTHS], "lengths", to=TensorProto.INT64),  # [rows, 1]
        _node("ReduceMax", [_P + "lengths"], "longest", keepdims=0),  # []
        _node("Range", [_P + "zero", _P + "longest", _P + "one"], "columns"),  # [longest]
        _node("CumSum", [_P + "lengths", _P + "zero"], "starts", exclusive=1),  # [rows, 1]
        _node("Add", [_P + "starts", _P + "columns"], "positions"),  # [rows, longest]
        _node("Less", [_P + "columns", _P + "lengths"], "inside"),  # [rows, longest]
        _node("Shape", [IDS], "behind"),  # [1]
        _node("Where", [_P + "inside", _P + "positions", _P + "behind"], "index"),  # [rows, longest]
    ]
    for name in carried:
        nodes.append(_node("Concat", [name, f"{_P}{name}/behind"], f"{name}/extended", axis=0))
        nodes.append(_node("Gather", [f"{_P}{name}/extended", _P + "index"], f"{name}/padded", axis=0))
    return nodes


def _derived_nodes(names: Sequence[str], carried: Sequence[str], *, ragged: bool) -> list[onnx.NodeProto]:
    """Return the nodes that derive every input of the graph from ``[rows, longest]`` ids with marked padding."""
    given = {name: f"{_P}{name}/padded" if ragged else name for name in carried}
    nodes = [
        _node("Greater", [given[IDS], _P + "marker"], "real"),
        _node("Where", [_P + "real", given[IDS], _P + "pad"], IDS),
    ]
    if MASK in names:
        nodes.append(_node("Cast", [_P + "real"], MASK, to=TensorProto.INT64))
    if TYPES in carried:
        nodes.append(_node("Identity", [given[TYPES]], TYPES))
    elif TYPES in names:
        nodes.append(_node("Mul", [given[IDS], _P + "zero"], TYPES))
    return nodes


def _digest_node(*, ragged: bool) -> onnx.NodeProto:
    """Return the node that passes the digest of each row on unchanged, as ``[rows, 1]``. Ragged inputs are flat."""
    name = f"{_P}{MODEL_DIGEST}"
    if ragged:
        return helper.make_node("Reshape", [REQUEST_DIGEST, _P + "column"], [MODEL_DIGEST], name=name)
    return helper.make_node("Identity", [REQUEST_DIGEST], [MODEL_DIGEST], name=name)


def _rename_inputs(node: onnx.NodeProto, inner: Mapping[str, str]) -> None:
    for index, name in enumerate(node.input):
        if name in inner:
            node.input[index] = inner[name]
    for attribute in node.attribute:
        for subgraph in [attribute.g, *attribute.graphs]:
            for child in subgraph.node:
                _rename_inputs(child, inner)
