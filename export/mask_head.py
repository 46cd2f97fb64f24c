"""The output head of fill-mask: keeps only the logits at masked positions, so that less data travels between Triton's processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MASKED = "masked/"
"""Prefix of the names of added nodes."""
_PLAIN = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators that act on each position separately if their other input is the same for all positions."""
_UNARY = frozenset({"Identity", "Cast", "Tanh", "Relu", "Sigmoid"})
"""Operators that act on each element separately."""
_SAME_RANK = frozenset({"Transpose", "Identity", "Cast", "Concat"})


def add_mask_head(model: onnx.ModelProto, heads: Sequence[str], mask_token_id: int) -> str:
    """Keep the logits at masked positions: ``[rows, longest, vocabulary]`` becomes ``[rows, masks, vocabulary]``.

    The positions are gathered before the projection onto the vocabulary, the most expensive layer of most models, so that it
    computes only those. If there are unsupported nodes between the projection and the logits, the logits are gathered instead.

    The masks of a row keep their order. A row with fewer masks than others in its batch is filled up with its other positions,
    the first one first, and every row has at least one position. :meth:`FillMaskTask.apply_output_head
    <export.tasks.fill_mask.FillMaskTask.apply_output_head>` does the same in numpy.

    Args:
        model: A raw fp32 graph, changed in place.
        heads: Names of the model's heads.
        mask_token_id: Id of the mask token.

    Returns:
        A description of the change for the manifest.
    """
    (logits,) = [output for output in model.graph.output if output.name in heads]
    chain = _to_projection(model, logits.name)
    model.graph.node.extend(_mask_positions())
    model.graph.initializer.extend(_mask_constants(mask_token_id))
    if chain:
        source, user, place = chain[-1].input[0], chain[-1], f"before {chain[-1].op_type} {chain[-1].name}".rstrip()
        user.input[0] = _MASKED + "picked"
        _store_transposed_weights(model, user)
        changed = {name for node in chain for name in node.output}
    else:
        source, place = _MASKED + "all", "from the logits, because no projection onto a vocabulary was found"
        _rename_output(model, logits.name, source)
        changed = {logits.name}
    model.graph.node.append(_masked_node("GatherND", [source, _MASKED + "index"], "picked", batch_dims=1))
    if not chain:
        model.graph.node.append(helper.make_node("Identity", [_MASKED + "picked"], [logits.name], name=f"{_MASKED}logits/Identity"))
    _remove_shapes(model, changed)
    dims = logits.type.tensor_type.shape.dim
    dims[1].Clear()
    dims[1].dim_param = "masks"
    _sort(model)
    return f"masked positions are gathered {place}"


def _to_projection(model: onnx.ModelProto, logits: str) -> list[onnx.NodeProto]:
    """Return the nodes from the logits back to the matrix product with the vocabulary's weights, which is the last one.

    The list is empty if there are other nodes between, or if another node reads an intermediate result.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    constants = _Constants(model, producers)
    chain: list[onnx.NodeProto] = []
    name = logits
    while (node := producers.get(name)) is not None and readers.get(name, 0) == (1 if chain else 0):
        chain.append(node)
        if node.op_type == "MatMul":
            return chain if constants.rank(node.input[1]) == 2 and not constants.knows(node.input[0]) else []
        if node.op_type in _PLAIN and constants.knows(node.input[1]) and constants.same_for_all(node.input[1]):
            name = node.input[0]
        elif node.op_type in _PLAIN and constants.knows(node.input[0]) and constants.same_for_all(node.input[0]):
            name = node.input[1]
        elif node.op_type in _UNARY:
            name = node.input[0]
        else:
            break
    return []


def _store_transposed_weights(model: onnx.ModelProto, projection: onnx.NodeProto) -> None:
    """Store a transposed copy of the projection's weights if the graph transposes the embeddings at run time.

    ONNX Runtime folds that transposition when it loads an fp32 graph. In a quantized graph it would convert all embeddings to
    fp32, transpose them for every request, and multiply in fp32.
    """
    name = projection.input[1]
    (transposing,) = [node for node in model.graph.node if name in node.output] or [None]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if transposing is None or transposing.op_type != "Transpose" or transposing.input[0] not in weights:
        return
    transposed = np.ascontiguousarray(numpy_helper.to_array(weights[transposing.input[0]]).T)
    model.graph.initializer.append(numpy_helper.from_array(transposed, _MASKED + "weights"))
    projection.input[1] = _MASKED + "weights"
    if not any(name in node.input for node in model.graph.node):
        model.graph.node.remove(transposing)


class _Constants:
    """Finds tensors of a graph that do not depend on its inputs."""

    def __init__(self, model: onnx.ModelProto, producers: Mapping[str, onnx.NodeProto]) -> None:
        self._dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._dims[node.output[0]] = list(attribute.t.dims)
        self._producers = producers

    def knows(self, name: str) -> bool:
        """Return whether the tensor ``name`` does not depend on the inputs."""
        if name in self._dims:
            return True
        node = self._producers.get(name)
        return node is not None and bool(node.input) and all(self.knows(one) for one in node.input)

    def rank(self, name: str) -> int | None:
        """Return the number of axes of a constant; None if it is unknown."""
        if name in self._dims:
            return len(self._dims[name])
        node = self._producers.get(name)
        return self.rank(node.input[0]) if node is not None and node.op_type in _SAME_RANK else None

    def same_for_all(self, name: str) -> bool:
        """Return whether the constant ``name`` has no axis for rows or positions."""
        if name in self._dims:
            return all(dim == 1 for dim in self._dims[name][:-1])
        return self.rank(name) == 1


def _mask_positions() -> list[onnx.NodeProto]:
    """Return the nodes from the token ids to ``masked/index``, INT64 ``[rows, masks, 1]``.

    The sort keys decrease from the first mask to the last, then from the first other position on. All keys are different, so the
    result does not depend on the sorting algorithm.
    """
    inputs = ["input_ids", _MASKED + "mask_id"]
    return [
        _masked_node("Equal", inputs, "is_mask"),  # [rows, longest]
        _masked_node("Cast", [_MASKED + "is_mask"], "marks", to=TensorProto.INT64),
        _masked_node("ReduceSum", [_MASKED + "marks", _MASKED + "last_axis"], "counts", keepdims=0),  # [rows]
        _masked_node("ReduceMax", [_MASKED + "counts"], "most", keepdims=1),  # [1]
        _masked_node("Max", [_MASKED + "most", _MASKED + "one"], "kept"),
        _masked_node("Shape", ["input_ids"], "longest", start=1),  # [1]
        _masked_node("Mul", [_MASKED + "marks", _MASKED + "longest"], "heights"),
        _masked_node("Squeeze", [_MASKED + "longest"], "end"),  # []
        _masked_node("Range", [_MASKED + "zero", _MASKED + "end", _MASKED + "step"], "places"),  # [longest]
        _masked_node("Sub", [_MASKED + "heights", _MASKED + "places"], "keys"),
        helper.make_node(
            "TopK",
            [_MASKED + "keys", _MASKED + "kept"],
            [_MASKED + "values", _MASKED + "positions"],  # both [rows, masks]
            name=f"{_MASKED}positions/TopK",
        ),
        _masked_node("Unsqueeze", [_MASKED + "positions", _MASKED + "last_axis"], "index"),
    ]


def _mask_constants(mask_token_id: int) -> list[onnx.TensorProto]:
    values = {"mask_id": mask_token_id, "zero": 0, "step": 1, "one": [1], "last_axis": [-1]}
    return [numpy_helper.from_array(np.array(value, dtype=np.int64), _MASKED + name) for name, value in values.items()]


def _masked_node(op: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [_MASKED + output], name=f"{_MASKED}{output}/{op}", **attributes)


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _remove_shapes(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove the recorded shapes of tensors whose shape has changed."""
    unchanged = [info for info in model.graph.value_info if info.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(unchanged)


def _sort(model: onnx.ModelProto) -> None:
    """Sort the nodes topologically."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    OnnxModel(model).topological_sort()
