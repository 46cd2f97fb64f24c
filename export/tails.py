"""What is appended to an exported graph so that less travels between Triton's processes than the model's heads give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.pooled import pooled
from serving.errors import ExportError
from serving.runtime.tasks.base import Task


def add_tail(path: Path, task: Task) -> str | None:
    """Append the task's tail, if it has one, to the graph at ``path``.

    Returns:
        What the manifest is to say about it, if anything.

    Raises:
        ExportError: an output that the task reads is not there.
    """
    said = None
    if task.tail:
        model = graph.load(path)
        said = TAILS[task.tail](model, task)
        onnx.checker.check_model(model)
        graph.save(model, path)
    found = [output.name for output in onnx.load(str(path), load_external_data=False).graph.output]
    if missing := [name for name in task.outputs_read if name not in found]:
        raise ExportError(f"the graph gives {', '.join(found)}, not {', '.join(missing)}, which {task.name} reads")
    return said


_MASKED = "masked/"
"""What the names of the nodes begin with that :func:`masked` adds."""
_PLAIN = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators that compute each position from itself alone where their other input is the same for all."""
_UNARY = frozenset({"Identity", "Cast", "Tanh", "Relu", "Sigmoid"})
"""Operators that compute each element from itself alone."""
_SAME_RANK = frozenset({"Transpose", "Identity", "Cast", "Concat"})


def masked(model: onnx.ModelProto, task: Any) -> str:
    """Keep the logits at masked positions: ``[rows, longest, vocabulary]`` becomes ``[rows, masks, vocabulary]``.

    Positions are drawn out in front of the projection onto the vocabulary, which then computes those alone: it is the dearest layer
    of most models. Where what leads from there to the logits is not understood, they are drawn out of the logits.

    Masks of a row stand in their order; a row of fewer masks than its neighbours is filled up with its other positions from the
    first on, and all have at least one (see :meth:`FillMask.reduced`).
    """
    (logits,) = [output for output in model.graph.output if output.name in task.heads]
    chain = _to_projection(model, logits.name)
    model.graph.node.extend(_mask_positions())
    model.graph.initializer.extend(_mask_constants(task.mask_token_id))
    if chain:
        source, user, said = chain[-1].input[0], chain[-1], f"in front of {chain[-1].op_type} {chain[-1].name}".rstrip()
        user.input[0] = _MASKED + "picked"
        _give_own_weights(model, user)
        changed = {name for node in chain for name in node.output}
    else:
        source, said = _MASKED + "all", "of the logits: no projection onto a vocabulary was found"
        _rename_output(model, logits.name, source)
        changed = {logits.name}
    model.graph.node.append(_masked_node("GatherND", [source, _MASKED + "index"], "picked", batch_dims=1))
    if not chain:
        model.graph.node.append(helper.make_node("Identity", [_MASKED + "picked"], [logits.name], name=f"{_MASKED}logits/Identity"))
    _forget_shapes(model, changed)
    dims = logits.type.tensor_type.shape.dim
    dims[1].Clear()
    dims[1].dim_param = "masks"
    _sort(model)
    return f"masked positions are drawn out {said}"


def _to_projection(model: onnx.ModelProto, logits: str) -> list[onnx.NodeProto]:
    """The nodes from the logits back to the matrix product with the vocabulary's weights, that one last; none where anything else
    stands between, or somebody else reads what they give."""
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


def _give_own_weights(model: onnx.ModelProto, projection: onnx.NodeProto) -> None:
    """Where the vocabulary's weights are the embeddings, transposed while running, hold them transposed.

    ONNX Runtime does that itself when it loads an fp32 graph. Quantised, it would turn the whole table back into fp32 and transpose
    it for every request, and multiply in fp32.
    """
    name = projection.input[1]
    (transposing,) = [node for node in model.graph.node if name in node.output] or [None]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    if transposing is None or transposing.op_type != "Transpose" or transposing.input[0] not in weights:
        return
    own = np.ascontiguousarray(numpy_helper.to_array(weights[transposing.input[0]]).T)
    model.graph.initializer.append(numpy_helper.from_array(own, _MASKED + "weights"))
    projection.input[1] = _MASKED + "weights"
    if not any(name in node.input for node in model.graph.node):
        model.graph.node.remove(transposing)


class _Constants:
    """Tensors of a graph that do not depend on its inputs."""

    def __init__(self, model: onnx.ModelProto, producers: Mapping[str, onnx.NodeProto]) -> None:
        self._dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._dims[node.output[0]] = list(attribute.t.dims)
        self._producers = producers

    def knows(self, name: str) -> bool:
        """Whether ``name`` is one of them."""
        if name in self._dims:
            return True
        node = self._producers.get(name)
        return node is not None and bool(node.input) and all(self.knows(one) for one in node.input)

    def rank(self, name: str) -> int | None:
        """Number of its axes; None: unknown, or no constant."""
        if name in self._dims:
            return len(self._dims[name])
        node = self._producers.get(name)
        return self.rank(node.input[0]) if node is not None and node.op_type in _SAME_RANK else None

    def same_for_all(self, name: str) -> bool:
        """Whether the constant ``name`` has no axis for rows or positions."""
        if name in self._dims:
            return all(dim == 1 for dim in self._dims[name][:-1])
        return self.rank(name) == 1


def _mask_positions() -> list[onnx.NodeProto]:
    """Token ids → ``masked/index``, INT64 ``[rows, masks, 1]``.

    Whole numbers that fall from the first mask to the last, then from the first other position on: none is there twice, so the
    order of the largest does not depend on who sorts.
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


def _forget_shapes(model: onnx.ModelProto, names: set[str]) -> None:
    """What the exporter noted of tensors that have another shape now."""
    kept = [info for info in model.graph.value_info if info.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _sort(model: onnx.ModelProto) -> None:
    """Nodes in an order in which each comes after those whose results it reads."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    OnnxModel(model).topological_sort()


TAILS: dict[str, Callable[[onnx.ModelProto, Task], str | None]] = {"masked": masked, "pooled": pooled}
"""By the name that tasks give as their ``tail``. Each rewrites a raw fp32 graph in place: its heads become ``outputs_read``."""
